//! Users, with their coupons and the end of their balance history.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::{
    audit::{
        Audit, PAGE,
        delta::{Moment, changed_balances},
        expected::{expected_coupons, expected_limits, expected_users},
        fields::{add_record, differ, differ_number, differ_text, field, one_sided, unknown_fields},
        report::Findings,
    },
    model::{CouponId, Partition, event},
    postgres::snapshot::{CouponRow, UserLimitRow, UserRow},
    redis::{
        outbox::{Entry, StreamId},
        queries::audit::UserSeen,
    },
};

/// The rows of users, of their coupons and of what they have of limits, and the users in Redis.
type UsersMoment = Moment<(Vec<UserRow>, Vec<CouponRow>, Vec<UserLimitRow>), UserSeen>;

/// What is left to check of users once they are compared.
#[derive(Default)]
struct Followed {
    /// Users by coupon. Each must be among the holders of the campaign, a set that only grows.
    holders: BTreeMap<CouponId, Vec<i64>>,
    changes: Vec<LastChange>,
}

const FIELDS: &[&str] = &["name", "balance", "entries", "tail", "open"];

/// The last change of a balance, which an entry of the outbox must have if the outbox still has that entry.
struct LastChange {
    user: i64,
    entry: StreamId,
    number: i64,
}

impl Audit {
    pub(super) async fn users(&self, here: Partition, ids: &[i64], findings: &mut Findings) -> anyhow::Result<()> {
        let pages: Vec<&[i64]> = ids.chunks(PAGE).collect();
        let moments = self
            .moments(
                here,
                &pages,
                async |snapshot, ids| {
                    let (users, coupons) = (snapshot.users_of(ids).await?, snapshot.coupons_of(ids).await?);
                    Ok((users, coupons, snapshot.user_limits_of(ids).await?))
                },
                async |outbox, ids| self.store.inspect_users(here, outbox, ids).await,
            )
            .await?;
        let mut followed = Followed::default();
        for (ids, moment) in pages.into_iter().zip(moments) {
            compare_users(ids, moment, findings, &mut followed);
        }
        for (coupon, user) in self.store.missing_holders(&followed.holders).await? {
            findings.add(format!("user {user}: has coupon {coupon} and is not among its holders"));
        }
        self.last_changes(here, followed.changes, findings).await
    }

    /// Checks that the outbox has each change in the entry that the user names, unless that entry was trimmed.
    async fn last_changes(
        &self,
        here: Partition,
        mut changes: Vec<LastChange>,
        findings: &mut Findings,
    ) -> anyhow::Result<()> {
        if changes.is_empty() {
            return Ok(());
        }
        let Some(first) = self.store.first_outbox_entry(here).await? else { return Ok(()) };
        changes.retain(|change| change.entry >= first);
        let ids: HashSet<StreamId> = changes.iter().map(|change| change.entry).collect();
        if ids.is_empty() {
            return Ok(());
        }
        let (first, entries) = self.store.outbox_entries(here, &Vec::from_iter(ids)).await?;
        let changed: HashMap<StreamId, Option<HashMap<i64, i64>>> =
            entries.iter().map(|entry| (entry.id, last_numbers(entry))).collect();
        for LastChange { user, entry, number } in &changes {
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

/// Compares a page of users.
fn compare_users(ids: &[i64], moment: UsersMoment, findings: &mut Findings, followed: &mut Followed) {
    let Moment { rows: (users, coupons, limits), seen, since, projected_entry, .. } = moment;
    let expected = expected_users(users, &since);
    let mut expected_coupons = expected_coupons(coupons, &since);
    let mut expected_limits = expected_limits(limits, &since);
    for (id, UserSeen { fields, coupons, limits }) in ids.iter().zip(&seen) {
        let row = expected.get(id);
        let mut wrong = vec![one_sided(!fields.is_empty() || !coupons.is_empty(), row.is_some())];
        if let (Some(row), false) = (row, fields.is_empty()) {
            wrong.extend([
                differ_text("the name", field(fields, "name"), &row.name),
                differ_number("the balance", field(fields, "balance"), row.balance),
                differ_number("the number of balance entries", field(fields, "entries"), row.entries),
                differ_number("the number of open orders", field(fields, "open"), row.open),
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
                        followed.changes.push(LastChange { user: *id, entry, number: row.entries });
                    }
                    _ => wrong.push(Some(format!("its last balance change is in no entry {tail:?}"))),
                },
            }
        }
        let has: BTreeMap<String, i64> = expected_limits.remove(id).unwrap_or_default();
        for limit in limits.keys().chain(has.keys().filter(|limit| !limits.contains_key(limit))) {
            let (redis, postgres) = (limits.get(limit).map_or("0", String::as_str), has.get(limit).unwrap_or(&0));
            wrong.push(differ(&format!("what it has of {limit}"), redis, postgres));
        }
        let expected: BTreeMap<i64, String> = expected_coupons.remove(id).unwrap_or_default();
        for coupon in coupons.keys().chain(expected.keys().filter(|coupon| !coupons.contains_key(coupon))) {
            let (redis, postgres) = (coupons.get(coupon), expected.get(coupon));
            let shown = |record: Option<&String>| record.cloned().unwrap_or_default();
            wrong.push(differ(&format!("coupon {coupon}"), shown(redis), shown(postgres)));
            if redis.is_some()
                && let Some(coupon) = CouponId::new(*coupon)
            {
                followed.holders.entry(coupon).or_default().push(*id);
            }
        }
        add_record(findings, "user", id, wrong);
    }
}

/// The number of the last balance entry of each user whose balance an entry of the outbox changed; `None` if the entry does not
/// decode.
fn last_numbers(entry: &Entry) -> Option<HashMap<i64, i64>> {
    let events = event::decode(&entry.fields).into_iter().map(|decoded| decoded.event.ok());
    Some(events.collect::<Option<Vec<_>>>()?.iter().flat_map(|event| changed_balances(&event.body)).collect())
}
