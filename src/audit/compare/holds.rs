//! Stock held for orders of other partitions.

use std::collections::{BTreeSet, HashMap};

use crate::{
    audit::{
        Audit, CLOCK_TOLERANCE_MS,
        delta::Moment,
        expected::{evictable_holds, expected_holds},
        fields::{add_record, differ, field, unknown_fields},
        report::Findings,
    },
    model::{OrderId, Partition},
    postgres::snapshot::{HoldRow, Snapshot},
    redis::{
        commands::REMOTE_HOLD_GRACE_MS,
        queries::audit::{HashFields, HoldSeen},
        retention::EvictionCandidate,
    },
};

const FIELDS: &[&str] = &["state", "lines", "user", "doubt"];

impl Audit {
    pub(super) async fn holds(&self, here: Partition, ids: &[i64], findings: &mut Findings) -> anyhow::Result<()> {
        // Redis indexes a hold by order and user. The user never changes, so an earlier snapshot can name it.
        let mut snapshot = Snapshot::begin(&self.db).await?;
        let known = snapshot.holds_of(here.0, ids).await?;
        snapshot.end().await?;
        let users: HashMap<i64, i64> = known.iter().map(|hold| (hold.order_id, hold.user_id)).collect();
        let pairs: Vec<(i64, i64)> = ids.iter().map(|order| (*order, users.get(order).copied().unwrap_or(0))).collect();
        let Moment { rows, seen, since, evicted, .. } = self
            .moment(
                here,
                async |snapshot| snapshot.holds_of(here.0, ids).await,
                async |outbox| self.store.inspect_holds(here, outbox, &pairs).await,
            )
            .await?;
        let evictable = evictable_holds(&rows, &since);
        let expected = expected_holds(rows, &since);
        let mut staying = BTreeSet::new();
        for (id, HoldSeen { fields, due, leaves }) in ids.iter().zip(&seen) {
            let (state, row) = (field(fields, "state"), expected.get(id));
            let evictable = evictable.contains(id);
            let mut wrong = vec![
                (matches!(state, "HELD" | "SETTLED") && *leaves && !evictable)
                    .then(|| "it is about to be evicted from Redis, and is not closed".to_owned()),
                (state == "RELEASED" && !leaves).then(|| "it is released, and does not expire".to_owned()),
            ];
            wrong.extend(against_postgres(fields, row, evictable));
            if users.contains_key(id) {
                let is_due = due.is_some();
                wrong
                    .push((is_due != (state == "HELD")).then(|| "the clock does not look at it as it must".to_owned()));
            }
            wrong.push(
                due.filter(|due| *due > self.latest_check(row) as f64)
                    .map(|due| format!("the clock looks at it at {due}, long after its order has ended")),
            );
            if !fields.is_empty() && !leaves && evictable && evicted {
                staying.insert(*id);
            }
            add_record(findings, "stock held for order", id, wrong);
        }
        let candidate = |id: &i64| Some((*id, EvictionCandidate::Hold(OrderId::new(*id)?)));
        self.staying(here, "stock held for order", staying.iter().filter_map(candidate).collect(), findings).await
    }

    /// The latest time (ms) at which the sweeper asks about a hold. PostgreSQL may not have the order yet.
    fn latest_check(&self, row: Option<&HoldRow>) -> i64 {
        let Some(expires_at) = row.and_then(|row| row.expires_at) else { return i64::MAX };
        expires_at.max(self.clock.now().0) + REMOTE_HOLD_GRACE_MS + CLOCK_TOLERANCE_MS
    }
}

fn against_postgres(fields: &HashFields, row: Option<&HoldRow>, evictable: bool) -> Vec<Option<String>> {
    let expected =
        row.map_or(("", "", String::new()), |row| (row.state.as_str(), row.lines.as_str(), row.user_id.to_string()));
    // A released hold expires after a while: missing is the same as released.
    let may_be_missing = evictable || !matches!(expected.0, "HELD" | "SETTLED");
    if fields.is_empty() {
        return vec![differ("the hold", "", expected.0).filter(|_| !may_be_missing)];
    }
    let (state, lines, user) = (field(fields, "state"), field(fields, "lines"), field(fields, "user"));
    let mut wrong: Vec<Option<String>> = unknown_fields(fields, FIELDS).collect();
    let suspect = fields.get("doubt").filter(|suspect| *suspect != "1");
    wrong.push(suspect.map(|suspect| format!("its order may have been paid before a loss: {suspect:?} is not 1")));
    // An end that came before its hold, or after it left Redis, leaves a tombstone, of which there is no event.
    if !may_be_missing || (state, lines) != ("RELEASED", "") {
        wrong.push(differ("the hold", state, expected.0));
        wrong.push(differ("its lines", lines, expected.1));
        wrong.push(differ("its user", user, expected.2));
    }
    wrong
}
