//! Users, with their coupons and the end of their balance history.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::{
    audit::{
        Audit,
        delta::{Moment, changed_balances},
        expected::{expected_coupons, expected_users},
        fields::{add_record, differ, field, one_sided, unknown_fields},
        report::Findings,
    },
    model::{CouponId, Partition, event},
    redis::{
        outbox::{Entry, StreamId},
        queries::audit::UserSeen,
    },
};

const FIELDS: &[&str] = &["name", "balance", "entries", "tail", "open"];

/// The last change of a balance, which an entry of the outbox must have if the outbox still has that entry.
struct LastChange {
    user: i64,
    entry: StreamId,
    number: i64,
}

impl Audit {
    pub(super) async fn users(&self, here: Partition, ids: &[i64], findings: &mut Findings) -> anyhow::Result<()> {
        let Moment { rows: (users, coupons), seen, since, projected_entry, .. } = self
            .moment(
                here,
                async |snapshot| Ok((snapshot.users_of(ids).await?, snapshot.coupons_of(ids).await?)),
                async |outbox| self.store.inspect_users(here, outbox, ids).await,
            )
            .await?;
        let expected = expected_users(users, &since);
        let mut expected_coupons = expected_coupons(coupons, &since);
        // Users by coupon. Each must be among the holders of the campaign, a set that only grows.
        let mut holders: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
        let mut projected_changes = Vec::new();
        for (id, UserSeen { fields, coupons }) in ids.iter().zip(&seen) {
            let row = expected.get(id);
            let mut wrong = vec![one_sided(!fields.is_empty() || !coupons.is_empty(), row.is_some())];
            if let (Some(row), false) = (row, fields.is_empty()) {
                wrong.extend([
                    differ("the name", field(fields, "name"), &row.name),
                    differ("the balance", field(fields, "balance"), row.balance),
                    differ("the number of balance entries", field(fields, "entries"), row.entries),
                    differ("the number of open orders", field(fields, "open"), row.open),
                    (row.balance < 0).then(|| "the balance is negative".to_owned()),
                ]);
                wrong.extend(unknown_fields(fields, FIELDS));
                match (since.tails.get(id), fields.get("tail").map(String::as_str)) {
                    (Some(expected), tail) => {
                        wrong.push(differ("the entry of the last balance change", tail.unwrap_or_default(), expected));
                    }
                    // PostgreSQL has the whole history.
                    (None, Some("")) => {}
                    (None, tail) => match tail.and_then(|tail| Some((tail, tail.parse::<StreamId>().ok()?))) {
                        Some((tail, entry)) if entry.to_string() == tail && entry <= projected_entry => {
                            projected_changes.push(LastChange { user: *id, entry, number: row.entries });
                        }
                        _ => wrong.push(Some(format!("its last balance change is in no entry {tail:?}"))),
                    },
                }
            }
            let expected: BTreeMap<i64, String> = expected_coupons.remove(id).unwrap_or_default();
            for coupon in coupons.keys().chain(expected.keys().filter(|coupon| !coupons.contains_key(coupon))) {
                let (redis, postgres) = (coupons.get(coupon), expected.get(coupon));
                let shown = |record: Option<&String>| record.cloned().unwrap_or_default();
                wrong.push(differ(&format!("coupon {coupon}"), shown(redis), shown(postgres)));
                if redis.is_some() {
                    holders.entry(*coupon).or_default().push(*id);
                }
            }
            add_record(findings, "user", id, wrong);
        }
        for (coupon, users) in holders {
            let Some(id) = CouponId::new(coupon) else { continue };
            for (user, holds) in users.iter().zip(self.store.are_holders(id, &users).await?) {
                if !holds {
                    findings.add(format!("user {user}: has coupon {coupon} and is not among its holders"));
                }
            }
        }
        self.last_changes(here, &projected_changes, findings).await
    }

    /// Checks that the outbox has each change in the entry that the user names, unless that entry was trimmed.
    async fn last_changes(
        &self,
        here: Partition,
        changes: &[LastChange],
        findings: &mut Findings,
    ) -> anyhow::Result<()> {
        let ids: HashSet<StreamId> = changes.iter().map(|change| change.entry).collect();
        if ids.is_empty() {
            return Ok(());
        }
        let (first, entries) = self.store.outbox_entries(here, &Vec::from_iter(ids)).await?;
        let changed: HashMap<StreamId, Option<HashMap<i64, i64>>> =
            entries.iter().map(|entry| (entry.id, last_numbers(entry))).collect();
        for LastChange { user, entry, number } in changes {
            let has_it = match changed.get(entry) {
                Some(Some(numbers)) => numbers.get(user) == Some(number),
                // An entry that does not decode is a finding of its own.
                Some(None) => true,
                None => first.is_none_or(|first| *entry < first),
            };
            if !has_it {
                findings.add(format!("user {user}: entry {entry} of the outbox does not have its last balance change"));
            }
        }
        Ok(())
    }
}

/// The number of the last balance entry of each user whose balance an entry of the outbox changed; `None` if the entry does not
/// decode.
fn last_numbers(entry: &Entry) -> Option<HashMap<i64, i64>> {
    let events = event::decode(&entry.fields).into_iter().map(|decoded| decoded.event.ok());
    Some(events.collect::<Option<Vec<_>>>()?.iter().flat_map(|event| changed_balances(&event.body)).collect())
}
