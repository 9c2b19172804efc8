//! Completes the steps between two partitions that were pending, as the owner partition decided. With one partition
//! there are none. A step in a partition that is not rebuilt is its script's, as if the relay took it: a repeat changes
//! nothing.
//!
//! Without a loss, these are the steps that the relay had not taken yet. After a loss, one partition may have a
//! decision that another has lost: a user has a coupon that the campaign did not issue, or stock is held for an order
//! that does not exist. The order's owner partition and the user's coupons take precedence.

use std::collections::BTreeMap;

use chrono_tz::Tz;
use futures_util::TryStreamExt;

use super::{findings::PossibleLosses, load::RemoteHold, prepare::is_live};
use crate::{
    archive,
    model::{
        Call, CouponId, Error, Millis, OrderId, OrderLine, Partition, Scope, UserId,
        event::{pack_lines, unpack_lines},
    },
    postgres::{
        self,
        snapshot::{RemoteCouponRow, Snapshot, StrayHoldRow},
    },
    redis::{
        Store,
        bulk::Bulk,
        commands::{Issued, REMOTE_HOLD_GRACE_MS, RemoteEnd},
        keys::Keys,
        records::pack_coupon,
    },
};

/// What becomes of a remote hold that is not in the state that its order implies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HoldStep {
    /// The rebuild moves the hold, in a partition of the scope.
    Move,
    /// The script of a partition that decides ends the hold.
    End(RemoteEnd),
    /// Nothing is missing, or the sweeper asks the order's owner partition.
    Leave,
    /// The hold is in a partition that decides, and can't be what it is beside the order as PostgreSQL has it.
    Contradicts,
}

/// The step of a stray hold in a rebuild of `scope`.
pub(super) fn hold_step(row: &StrayHoldRow, scope: &Scope) -> HoldStep {
    let (here, owner) = (Partition(row.partition as u16), scope.owner(row.order_id));
    let is_placed = row.placed_at.is_some();
    match (scope.contains(here), scope.contains(owner)) {
        (true, true) => HoldStep::Move,
        // The owner partition decides: it may have the order although PostgreSQL does not.
        (true, false) => {
            if is_placed {
                HoldStep::Move
            } else {
                HoldStep::Leave
            }
        }
        (false, false) => HoldStep::Leave,
        (false, true) => match (row.wanted.as_str(), row.held.as_deref().unwrap_or("RELEASED")) {
            ("SETTLED", "HELD") => HoldStep::End(RemoteEnd::Settled),
            ("REFUNDED", "HELD" | "SETTLED") => HoldStep::End(RemoteEnd::Refunded),
            ("RELEASED", "HELD") if is_placed => HoldStep::End(RemoteEnd::Released),
            ("HELD" | "SETTLED", _) | ("RELEASED", "SETTLED") => HoldStep::Contradicts,
            _ => HoldStep::Leave,
        },
    }
}

pub(super) struct Repair<'a> {
    pub(super) store: &'a Store,
    pub(super) db: &'a postgres::Connection,
    /// The partitions that are rebuilt. The others decide: only their scripts write there.
    pub(super) scope: &'a Scope,
    pub(super) zone: Tz,
    pub(super) now: Millis,
    pub(super) losses: &'a PossibleLosses,
}

impl Repair<'_> {
    /// Completes the pending steps. Returns their number.
    pub(super) async fn run(&self, snapshot: &mut Snapshot, bulk: &mut Bulk<'_>) -> anyhow::Result<i64> {
        if self.store.partitions() == 1 {
            return Ok(0);
        }
        let mut repaired = 0;
        let mut rows = snapshot.ungranted(self.scope);
        while let Some(row) = rows.try_next().await? {
            repaired += i64::from(self.grant(bulk, &row).await?);
        }
        drop(rows);
        let mut rows = snapshot.unissued(self.scope);
        while let Some(row) = rows.try_next().await? {
            repaired += i64::from(self.issue(bulk, &row).await?);
        }
        drop(rows);
        let mut rows = snapshot.stray_holds(self.scope, self.zone.name());
        while let Some(row) = rows.try_next().await? {
            let moved = match hold_step(&row, self.scope) {
                HoldStep::Move => self.hold(bulk, &row).await?,
                HoldStep::End(end) => self.end(&row, end).await?,
                HoldStep::Leave => false,
                HoldStep::Contradicts => {
                    let (order, partition) = (row.order_id, row.partition);
                    tracing::error!(order, partition, "a partition took a step of a lost decision during the rebuild");
                    false
                }
            };
            repaired += i64::from(moved);
        }
        drop(rows);
        self.suspect(snapshot).await?;
        Ok(repaired)
    }

    /// Marks the stock that other partitions hold for orders that a lost decision may have paid.
    async fn suspect(&self, snapshot: &mut Snapshot) -> anyhow::Result<()> {
        let mut suspects: BTreeMap<Partition, Vec<OrderId>> = BTreeMap::new();
        let mut rows = snapshot.held_elsewhere(self.scope);
        while let Some(row) = rows.try_next().await? {
            let may_be_paid = self.losses.may_be_paid(self.scope.owner(row.order_id), row.placed_at);
            if let Some(order) = OrderId::new(row.order_id).filter(|_| may_be_paid) {
                suspects.entry(Partition(row.partition as u16)).or_default().push(order);
            }
        }
        for (here, orders) in suspects {
            self.is_taken(here, self.store.hold_suspect(here, &orders).await.map(drop)).await?;
        }
        Ok(())
    }

    /// Whether a step in a partition outside the scope was taken. One that does not decide is left to its own rebuild,
    /// which finds the step missing.
    async fn is_taken(&self, here: Partition, step: Result<(), Error>) -> anyhow::Result<bool> {
        let Err(error) = step else { return Ok(true) };
        if is_live(&self.store.partition_state(here).await?) {
            return Err(error.into());
        }
        tracing::warn!(partition = here.0, %error, "a step is left to the rebuild of its partition");
        Ok(false)
    }

    /// Gives a user the coupon that a campaign issued.
    async fn grant(&self, bulk: &mut Bulk<'_>, row: &RemoteCouponRow) -> anyhow::Result<bool> {
        let owner = self.store.owner(row.user_id);
        let (Some(user), Some(coupon)) = (UserId::new(row.user_id), CouponId::new(row.coupon_id)) else {
            anyhow::bail!("coupon {} of user {} in PostgreSQL", row.coupon_id, row.user_id)
        };
        if !self.scope.contains(owner) {
            let issued = Issued { issue_no: row.issue_no, issued_at: Millis(row.issued_at) };
            let granted = self.store.coupon_grant(&call(), user, coupon, issued).await;
            return self.is_taken(owner, granted).await;
        }
        let fields = [
            ("coupon", row.coupon_id.to_string()),
            ("user", row.user_id.to_string()),
            ("issue_no", row.issue_no.to_string()),
            ("issued_at", row.issued_at.to_string()),
        ];
        bulk.emit(owner, self.now, "coupon_granted", &fields).await?;
        let record = pack_coupon(row.issue_no, Millis(row.issued_at), "A", None, None);
        bulk.field(owner, Keys(owner).user(user), row.coupon_id, record).await?;
        Ok(true)
    }

    /// Counts a coupon that a user has as issued by its campaign.
    async fn issue(&self, bulk: &mut Bulk<'_>, row: &RemoteCouponRow) -> anyhow::Result<bool> {
        let here = self.store.owner(row.coupon_id);
        if !self.scope.contains(here) {
            let (coupon, user) = (row.coupon_id, row.user_id);
            tracing::warn!(coupon, user, "a user has a coupon that its campaign, in another partition, did not issue");
            return Ok(false);
        }
        let Some(coupon) = CouponId::new(row.coupon_id) else {
            anyhow::bail!("coupon {} in PostgreSQL", row.coupon_id)
        };
        let fields = [
            ("coupon", row.coupon_id.to_string()),
            ("user", row.user_id.to_string()),
            ("issue_no", row.issue_no.to_string()),
            ("at_home", "0".to_owned()),
        ];
        // At the time of the original issue: the user's coupon has it, and the two must agree.
        bulk.emit(here, Millis(row.issued_at), "coupon_issued", &fields).await?;
        let campaign = Keys(here).campaign(coupon);
        bulk.count(here, campaign, "issued", 1).await?;
        bulk.member(here, Keys(here).holders(coupon), row.user_id).await?;
        Ok(true)
    }

    /// Ends a hold of a partition outside the scope.
    async fn end(&self, row: &StrayHoldRow, end: RemoteEnd) -> anyhow::Result<bool> {
        let (Some(order), Some(user), Some(lines)) =
            (OrderId::new(row.order_id), UserId::new(row.user_id), unpack_lines(&row.lines))
        else {
            anyhow::bail!("the hold of order {} in partition {} is unreadable", row.order_id, row.partition);
        };
        let (stores, day) = ((self.store, self.db), row.day.as_deref().unwrap_or(""));
        let ended = archive::end_remote(stores, &call(), (order, user), &lines, end, day).await;
        self.is_taken(Partition(row.partition as u16), ended).await
    }

    /// Moves a remote hold to the state that its order implies. Returns false if there is nothing to move, or no stock
    /// left.
    async fn hold(&self, bulk: &mut Bulk<'_>, row: &StrayHoldRow) -> anyhow::Result<bool> {
        let here = Partition(row.partition as u16);
        let (Some(order), Some(lines)) = (OrderId::new(row.order_id), unpack_lines(&row.lines)) else {
            anyhow::bail!("the hold of order {} in partition {} is unreadable", row.order_id, row.partition);
        };
        let may_be_paid = self.losses.may_be_paid(self.store.owner(row.order_id), row.placed_at);
        let was = row.held.as_deref().unwrap_or("RELEASED");
        let keys = Keys(here);
        // The counter that has the units in a state, and whether they are withheld there.
        let counter = |state: &str| match state {
            "HELD" => (keys.held(), false),
            "SETTLED" => (keys.sold(), false),
            _ if may_be_paid => (keys.withheld(), true),
            _ => (keys.stock(), false),
        };
        let taken = matches!(row.wanted.as_str(), "HELD" | "SETTLED");
        let was_taken = matches!(was, "HELD" | "SETTLED");
        if taken && !was_taken && !self.suffices(bulk, here, &lines).await? {
            tracing::error!(%order, partition = here.0, "the stock of an order is gone: it was given back and sold again");
            return Ok(false);
        }
        if !taken && !was_taken {
            return Ok(false);
        }
        let (to, withheld) = counter(&row.wanted);
        let from = if was_taken { counter(was).0 } else { keys.stock() };
        let fields = |mut more: Vec<(&'static str, String)>| {
            more.extend([
                ("order", row.order_id.to_string()),
                ("user", row.user_id.to_string()),
                ("lines", pack_lines(&lines)),
            ]);
            more
        };
        let settled = |from: &str| {
            fields(vec![
                ("from", from.to_owned()),
                ("to", row.wanted.clone()),
                ("withheld", if withheld { "1" } else { "0" }.to_owned()),
            ])
        };
        if row.held.is_none() {
            bulk.emit(here, self.now, "stock_held", &fields(Vec::new())).await?;
            if row.wanted != "HELD" {
                bulk.emit(here, self.now, "stock_settled", &settled("HELD")).await?;
            }
        } else {
            bulk.emit(here, self.now, "stock_settled", &settled(was)).await?;
        }
        for line in &lines {
            bulk.count(here, from.clone(), line.product_id.get(), -line.quantity).await?;
            bulk.count(here, to.clone(), line.product_id.get(), line.quantity).await?;
        }
        let due = row.expires_at.map_or(self.now, Millis).plus(REMOTE_HOLD_GRACE_MS);
        let held =
            RemoteHold { here, order, user: row.user_id, lines: &row.lines, state: &row.wanted, due, may_be_paid };
        held.write(bulk).await?;
        Ok(true)
    }

    /// Whether the units on sale suffice for these lines.
    async fn suffices(&self, bulk: &mut Bulk<'_>, here: Partition, lines: &[OrderLine]) -> anyhow::Result<bool> {
        bulk.flush().await?;
        let ids: Vec<i64> = lines.iter().map(|line| line.product_id.get()).collect();
        let stock = self.store.stock_of(here, &ids).await?;
        Ok(lines.iter().zip(stock).all(|(line, on_sale)| on_sale >= line.quantity))
    }
}

/// The steps that the rebuild takes in partitions outside its scope, as their events name it.
fn call() -> Call {
    Call::new("rebuild", None)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An order of partition 0 with a hold in partition 1, of two.
    fn row(wanted: &str, held: Option<&str>, is_placed: bool) -> StrayHoldRow {
        StrayHoldRow {
            partition: 1,
            order_id: 2,
            user_id: 2,
            lines: "1:1:100".to_owned(),
            held: held.map(str::to_owned),
            wanted: wanted.to_owned(),
            placed_at: is_placed.then_some(1),
            expires_at: is_placed.then_some(2),
            day: None,
        }
    }

    #[test]
    fn hold_of_live_partition_ended_by_script_or_rebuilt_too() {
        use HoldStep::{Contradicts, End, Leave};
        let of_order = Scope::of([Partition(0)], 2);
        for (wanted, held, is_placed, step) in [
            ("SETTLED", Some("HELD"), true, End(RemoteEnd::Settled)),
            ("RELEASED", Some("HELD"), true, End(RemoteEnd::Released)),
            ("REFUNDED", Some("HELD"), true, End(RemoteEnd::Refunded)),
            ("REFUNDED", Some("SETTLED"), true, End(RemoteEnd::Refunded)),
            // The sweeper asks for the order.
            ("RELEASED", Some("HELD"), false, Leave),
            // Nothing is held, and nothing should be.
            ("REFUNDED", None, true, Leave),
            ("REFUNDED", Some("RELEASED"), true, Leave),
            ("RELEASED", Some("REFUNDED"), true, Leave),
            ("RELEASED", Some("REFUNDED"), false, Leave),
            // The lost partition had an order, a payment, a cancellation or a refund that PostgreSQL lacks.
            ("RELEASED", Some("SETTLED"), false, Contradicts),
            ("RELEASED", Some("SETTLED"), true, Contradicts),
            ("HELD", Some("SETTLED"), true, Contradicts),
            ("HELD", Some("RELEASED"), true, Contradicts),
            ("HELD", Some("REFUNDED"), true, Contradicts),
            ("HELD", None, true, Contradicts),
            ("SETTLED", None, true, Contradicts),
            ("SETTLED", Some("RELEASED"), true, Contradicts),
            ("SETTLED", Some("REFUNDED"), true, Contradicts),
        ] {
            let row = row(wanted, held, is_placed);
            assert_eq!(hold_step(&row, &of_order), step, "{wanted}, {held:?}, {is_placed}");
            assert_eq!(hold_step(&row, &Scope::all(2)), HoldStep::Move, "{wanted}, {held:?}, {is_placed}");
        }
    }

    #[test]
    fn hold_of_rebuilt_partition_moved_when_order_known() {
        let of_hold = Scope::of([Partition(1)], 2);
        for (wanted, held) in [("HELD", None), ("SETTLED", Some("HELD")), ("RELEASED", Some("SETTLED"))] {
            assert_eq!(hold_step(&row(wanted, held, true), &of_hold), HoldStep::Move);
        }
        // The order's partition decides: PostgreSQL need not have everything of it.
        for held in ["HELD", "SETTLED", "REFUNDED"] {
            assert_eq!(hold_step(&row("RELEASED", Some(held), false), &of_hold), HoldStep::Leave);
        }
        let neither = Scope::of([Partition(2)], 3);
        assert_eq!(
            hold_step(&StrayHoldRow { partition: 0, order_id: 1, ..row("HELD", None, true) }, &neither),
            HoldStep::Leave
        );
    }
}
