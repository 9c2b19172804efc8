//! Walks the outbox of each partition: its decisions follow each other without a gap, each balance change begins where the last one
//! of its user ended, and PostgreSQL has the same of what it has (`decided`).
//!
//! The outbox grows and is trimmed meanwhile. A page of entries is read first, and then PostgreSQL: up to the position there, it
//! has every decision of the page. Only what no later decision changes is compared.

use std::collections::{HashMap, HashSet};

use super::{
    Audit,
    coverage::OUTBOX,
    decided::PageFacts,
    fields::differ,
    report::{Findings, UNKNOWN},
};
use crate::{
    model::{
        Millis, Partition, Position,
        event::{self, Body, Decoded, Event},
    },
    postgres::snapshot::Snapshot,
    redis::outbox::{Entry, StreamId},
};

/// Entries in one page; each may have many decisions.
const ENTRIES: usize = 200;
/// Stands for the entry of the previous change in the same entry.
const SAME_ENTRY: &str = "=";

/// The names of the fields of events.
const NAMES: &[&str] = &[
    "after",
    "amount",
    "at",
    "at_home",
    "balance",
    "before",
    "category",
    "closes_at",
    "code",
    "conditions",
    "count",
    "coupon",
    "coupons",
    "credit",
    "day",
    "debit",
    "delta",
    "discount",
    "entry_no",
    "epoch",
    "events",
    "expires_at",
    "final",
    "first",
    "from",
    "issue_no",
    "issued_at",
    "key",
    "kind",
    "left",
    "lines",
    "method",
    "name",
    "opens_at",
    "operator",
    "order",
    "outcome",
    "part",
    "partition",
    "payment",
    "prefixed",
    "prev",
    "price",
    "print",
    "product",
    "quarantined",
    "reason",
    "receipt",
    "refunds",
    "reply",
    "rid",
    "seq",
    "sequence",
    "status",
    "step",
    "terms",
    "total",
    "transaction",
    "type",
    "units",
    "user",
    "users",
    "v",
    "version",
    "watch",
    "why",
    "withheld",
];

/// The names of an entry's fields that no event has.
fn unknown_names(entry: &Entry) -> impl Iterator<Item = &str> {
    entry.fields.iter().map(|(name, _)| name.as_str()).filter(|name| NAMES.binary_search(name).is_err())
}

/// The last change of a user's balance.
struct BalanceChange {
    entry: StreamId,
    number: i64,
    after: i64,
}

/// What the walk through an outbox remembers.
#[derive(Default)]
pub(super) struct Walk {
    /// The last entry, and its last decision.
    entry: StreamId,
    at: Option<Position>,
    /// The oldest entry when the walk began, or began again.
    first: StreamId,
    /// By user.
    changes: HashMap<i64, BalanceChange>,
    /// The last name, price and category of products, and the last windows of campaigns, that were changed.
    pub(super) descriptions: HashMap<i64, (Position, String)>,
    pub(super) windows: HashMap<i64, (Position, (Millis, Millis))>,
}

/// A decision that decodes, and its entry.
pub(super) struct Decided {
    pub(super) entry: StreamId,
    pub(super) position: Position,
    pub(super) event: Event,
    /// PostgreSQL has it.
    pub(super) is_projected: bool,
}

impl Audit {
    pub(super) async fn decided(&self) -> anyhow::Result<Findings> {
        let mut findings = Findings::new(OUTBOX, "decisions");
        for here in self.store.all() {
            let mut walk = Walk::default();
            loop {
                let (first, entries) = self.store.outbox_from_first(here, walk.entry, ENTRIES).await?;
                let (Some(first), Some(last)) = (first, entries.last()) else { break };
                if first > walk.entry {
                    // The walk begins, or what it would have read next was trimmed.
                    walk = Walk { first, changes: walk.changes, ..Walk::default() };
                }
                walk.entry = last.id;
                self.page(here, &mut walk, &entries, &mut findings).await?;
                if entries.len() < ENTRIES {
                    break;
                }
            }
            self.end_walk(here, walk, &mut findings).await?;
        }
        Ok(findings)
    }

    async fn page(
        &self,
        here: Partition,
        walk: &mut Walk,
        entries: &[Entry],
        findings: &mut Findings,
    ) -> anyhow::Result<()> {
        let ids: Vec<String> = entries.iter().map(|entry| entry.id.to_string()).collect();
        let mut snapshot = Snapshot::begin(&self.db).await?;
        let Some((projected, projected_entry)) = snapshot.projected(here).await? else {
            return Ok(snapshot.end().await?);
        };
        let projected_entry: StreamId = projected_entry.parse()?;
        let dead_letters: HashSet<(String, Option<i64>)> =
            snapshot.dead_letters_of(here, &ids).await?.into_iter().collect();
        let mut decided = Vec::new();
        for entry in entries {
            let has_dead_letter = dead_letters.iter().any(|(dead, _)| *dead == entry.id.to_string());
            for name in unknown_names(entry).filter(|_| !has_dead_letter) {
                findings.add(format!("partition {}, entry {}: the field {name:?} {UNKNOWN}", here.0, entry.id));
            }
            let is_dead =
                |seq: Option<i64>| [seq, None].iter().any(|seq| dead_letters.contains(&(entry.id.to_string(), *seq)));
            for (nth, Decoded { position, event }) in event::decode(&entry.fields).into_iter().enumerate() {
                findings.count_one();
                let position = position.map(|(epoch, seq)| Position { epoch, seq });
                let is_next =
                    |position: Position| walk.at.is_some_and(|at| position == Position { seq: at.seq + 1, ..at });
                let begins = |position: Position| walk.at.is_none_or(|at| position.epoch > at.epoch);
                let name = || format!("partition {}, entry {}", here.0, entry.id);
                let is_projected = entry.id <= projected_entry && position.is_none_or(|at| at <= projected);
                match (event, position) {
                    (Ok(event), Some(position)) => {
                        if !is_next(position) && !begins(position) {
                            findings.add(format!("{}: decision {position:?} follows {:?}", name(), walk.at));
                        }
                        walk.at = Some(position);
                        let is_dead = is_dead(Some(position.seq));
                        if is_dead {
                            walk.lose_sight(entry.id);
                        } else {
                            let wrong = walk.follow_balance(entry, nth, &event.body);
                            wrong.into_iter().for_each(|wrong| findings.add(format!("{}: {wrong}", name())));
                        }
                        let is_projected = is_projected && !is_dead;
                        decided.push(Decided { entry: entry.id, position, event, is_projected });
                    }
                    (event, position) => {
                        walk.at = position.filter(|position| is_next(*position)).or(walk.at);
                        walk.lose_sight(entry.id);
                        // What is not projected yet becomes a dead letter, and is named as such.
                        if let Err(bad) = event
                            && is_projected
                            && !has_dead_letter
                        {
                            findings.add(format!("{}: {bad}", name()));
                        }
                    }
                }
            }
            if entry.id == projected_entry
                && let Some(last) = walk.at.filter(|last| *last != projected)
            {
                findings.add(format!(
                    "partition {}, entry {}: it ends at {last:?}, and PostgreSQL is at {projected:?} with it",
                    here.0, entry.id
                ));
            }
        }
        let facts = PageFacts::read(&mut snapshot, here, self, &decided).await?;
        snapshot.end().await?;
        facts.check(self, here, walk, &decided, findings);
        Ok(())
    }
}

impl Walk {
    /// Begins again after an entry whose changes are not known.
    fn lose_sight(&mut self, entry: StreamId) {
        self.first = StreamId { no: entry.no.saturating_add(1), ..entry };
        self.changes.clear();
        self.descriptions.clear();
        self.windows.clear();
    }

    /// Follows the chain of a user's balance changes. Returns the discrepancies.
    fn follow_balance(&mut self, entry: &Entry, nth: usize, body: &Body) -> Vec<String> {
        if let Body::UsersCreated { first, step, count, balance, .. } = body {
            for user in
                (0..*count).map(|n| first.get().saturating_add(n.saturating_mul(*step))).filter(|_| *balance > 0)
            {
                self.changes.insert(user, BalanceChange { entry: entry.id, number: 1, after: *balance });
            }
            return Vec::new();
        }
        let Some(change) = body.entry() else { return Vec::new() };
        let user = change.user_id.get();
        let fields = event::fields_of(&entry.fields, nth);
        let previous = fields.iter().find(|(name, _)| name == "prev").map_or("", |(_, value)| value.as_str());
        let mut wrong = Vec::new();
        match self.changes.get(&user) {
            Some(last) => {
                let expected = if last.entry == entry.id { SAME_ENTRY.to_owned() } else { last.entry.to_string() };
                if (previous, change.entry_no, change.before) != (expected.as_str(), last.number + 1, last.after) {
                    wrong.push(format!(
                        "balance entry {} of user {user} begins with {} after {previous:?}, and the one before is {} with {} in {expected:?}",
                        change.entry_no, change.before, last.number, last.after
                    ));
                }
            }
            // The change before is no longer in the outbox: it was trimmed, or is from before a rebuild.
            None => {
                let is_trimmed =
                    previous.parse::<StreamId>().is_ok_and(|entry| entry < self.first && entry.to_string() == previous);
                if !previous.is_empty() && !is_trimmed {
                    wrong.push(format!(
                        "the balance entry of user {user} before {} is not in {previous:?}",
                        change.entry_no
                    ));
                }
            }
        }
        self.changes.insert(user, BalanceChange { entry: entry.id, number: change.entry_no, after: change.after });
        wrong
    }
}

impl Audit {
    /// Checks what only the end of the walk tells.
    async fn end_walk(&self, here: Partition, walk: Walk, findings: &mut Findings) -> anyhow::Result<()> {
        let (products, campaigns) =
            (Vec::from_iter(walk.descriptions.keys().copied()), Vec::from_iter(walk.windows.keys().copied()));
        if products.is_empty() && campaigns.is_empty() {
            return Ok(());
        }
        let mut snapshot = Snapshot::begin(&self.db).await?;
        let projected = snapshot.projected(here).await?.map(|(position, _)| position).unwrap_or_default();
        let rows = snapshot.products_of(&products).await?;
        let windows = snapshot.campaigns_of(&campaigns).await?;
        snapshot.end().await?;
        // PostgreSQL may have changes that the walk did not reach.
        let (first, newer) = self.store.outbox_from_first(here, walk.entry, ENTRIES).await?;
        if first.is_none_or(|first| first > walk.entry) || newer.len() >= ENTRIES {
            return Ok(());
        }
        let mut changed = HashSet::new();
        for event in
            newer.iter().flat_map(|entry| event::decode(&entry.fields)).filter_map(|decoded| decoded.event.ok())
        {
            match event.body {
                Body::ProductUpdated { product, .. } => drop(changed.insert(product.get())),
                Body::CampaignUpdated { coupon, .. } => drop(changed.insert(coupon.get())),
                _ => {}
            }
        }
        for row in rows.iter().filter(|row| !changed.contains(&row.id)) {
            let Some((position, last)) = walk.descriptions.get(&row.id).filter(|(at, _)| *at <= projected) else {
                continue;
            };
            let now = describe(&row.name, row.price, &row.category, &row.terms);
            let wrong = differ(&format!("product {}, by decision {},", row.id, position.seq), last, now);
            wrong.into_iter().for_each(|wrong| findings.add(wrong));
        }
        for row in windows.iter().filter(|row| !changed.contains(&row.id)) {
            let Some((position, last)) = walk.windows.get(&row.id).filter(|(at, _)| *at <= projected) else { continue };
            let shown = |(opens_at, closes_at): (i64, i64)| format!("open from {opens_at} to {closes_at}");
            let what = format!("campaign {}, by decision {},", row.id, position.seq);
            let wrong = differ(&what, shown((last.0.0, last.1.0)), shown((row.opens_at, row.closes_at)));
            wrong.into_iter().for_each(|wrong| findings.add(wrong));
        }
        Ok(())
    }
}

/// A product's description.
pub(super) fn describe(name: &str, price: i64, category: &str, terms: &str) -> String {
    format!("{name}, {price} won, {category}, terms {terms:?}")
}

#[cfg(test)]
mod tests {
    use super::NAMES;

    #[test]
    fn names_of_event_fields_sorted() {
        assert!(NAMES.is_sorted());
    }
}
