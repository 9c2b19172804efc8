//! Completes the steps between two partitions that were pending, as the owner partition decided. With one partition
//! there are none.
//!
//! Without a loss, these are the steps that the relay had not taken yet. After a loss, one partition may have a
//! decision that another has lost: a user has a coupon that the campaign did not issue, or stock is held for an order
//! that does not exist. The order's owner partition and the user's coupons take precedence.

use futures_util::TryStreamExt;

use super::{load::RemoteHold, rebuild::PossibleLosses};
use crate::{
    model::{
        CouponId, Millis, OrderId, OrderLine, Partition, UserId,
        event::{pack_lines, unpack_lines},
    },
    postgres::snapshot::{RemoteCouponRow, Snapshot, StrayHoldRow},
    redis::{Store, bulk::Bulk, commands::REMOTE_HOLD_GRACE_MS, keys::Keys, records::pack_coupon},
};

pub(super) struct Repair<'a> {
    pub(super) store: &'a Store,
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
        let mut rows = snapshot.ungranted();
        while let Some(row) = rows.try_next().await? {
            self.grant(bulk, &row).await?;
            repaired += 1;
        }
        drop(rows);
        let mut rows = snapshot.unissued(self.store.partitions());
        while let Some(row) = rows.try_next().await? {
            self.issue(bulk, &row).await?;
            repaired += 1;
        }
        drop(rows);
        let mut rows = snapshot.stray_holds(self.store.partitions());
        while let Some(row) = rows.try_next().await? {
            if self.hold(bulk, &row).await? {
                repaired += 1;
            }
        }
        Ok(repaired)
    }

    /// Gives a user the coupon that a campaign issued.
    async fn grant(&self, bulk: &mut Bulk<'_>, row: &RemoteCouponRow) -> anyhow::Result<()> {
        let owner = self.store.owner(row.user_id);
        let Some(user) = UserId::new(row.user_id) else { anyhow::bail!("user {} in PostgreSQL", row.user_id) };
        let fields = [
            ("coupon", row.coupon_id.to_string()),
            ("user", row.user_id.to_string()),
            ("issue_no", row.issue_no.to_string()),
            ("issued_at", row.issued_at.to_string()),
        ];
        bulk.emit(owner, self.now, "coupon_granted", &fields).await?;
        let record = pack_coupon(row.issue_no, Millis(row.issued_at), "A", None, None);
        Ok(bulk.field(owner, Keys(owner).user(user), row.coupon_id, record).await?)
    }

    /// Counts a coupon that a user has as issued by its campaign.
    async fn issue(&self, bulk: &mut Bulk<'_>, row: &RemoteCouponRow) -> anyhow::Result<()> {
        let here = self.store.owner(row.coupon_id);
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
        Ok(bulk.member(here, Keys(here).holders(coupon), row.user_id).await?)
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
