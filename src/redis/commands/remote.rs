//! The steps of an operation in partitions that do not own its user. With one partition none of them is called.

use chrono::NaiveDate;

use super::{
    Issued,
    orders::{DAY_FORMAT, no_stock},
};
use crate::{
    config::TOMBSTONE_TTL_MS,
    model::{Call, Error, OrderLine, Partition, *},
    redis::{
        Store,
        keys::Keys,
        queries::ranking::ranked_until,
        reply_code::ReplyCode,
        script::{self, Invocation},
    },
};

/// Holds in one call of `hold_suspect.lua`.
const SUSPECT_BATCH: usize = 200;

/// Holds stock of one partition for an order of another one.
#[derive(Clone, Debug)]
pub struct HoldStock {
    pub order_id: OrderId,
    pub user_id: UserId,
    /// How long from now the hold is checked, unless its order has ended it by then.
    pub check_in_ms: i64,
    /// The order's lines of the partition.
    pub lines: Vec<(ProductId, i64)>,
}

/// Applies the end of an order to the stock that another partition holds for it.
#[derive(Clone, Copy, Debug)]
pub struct SettleStock {
    pub order_id: OrderId,
    pub user_id: UserId,
    pub end: RemoteEnd,
    /// The day of the sale.
    pub day: Option<NaiveDate>,
}

/// The end of an order, for the partitions that hold stock for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemoteEnd {
    Settled,
    /// The stock is released; a hold that arrives later is refused.
    Released,
    /// The stock is released, of a hold that is known to have arrived.
    Abandoned,
    Refunded,
}

/// The state of an order, as its owner partition tells a remote hold.
#[derive(Clone, Debug)]
pub struct ResolvedOrder {
    /// `None`: there is no such order, and never will be.
    pub status: Option<OrderStatus>,
    pub refunded: bool,
    /// `%Y%m%d`, of a paid order.
    pub day: String,
}

impl Store {
    /// `coupon_grant.lua`.
    ///
    /// # Errors
    /// The [shared refusals](super#shared-refusals).
    pub async fn coupon_grant(&self, call: &Call, user: UserId, coupon: CouponId, issued: Issued) -> Result<(), Error> {
        let owner = self.owner(user.get());
        let mut invocation = self.begin_unrecorded(call, &script::COUPON_GRANT, owner);
        invocation
            .key(Keys(owner).user(user))
            .arg(user.get())
            .arg(coupon.get())
            .arg(issued.issue_no)
            .arg(issued.issued_at.0);
        let reply = self.decide(call, owner, &invocation).await?;
        match reply.code {
            ReplyCode::Granted | ReplyCode::AlreadyGranted => Ok(()),
            _ => Err(reply.unexpected()),
        }
    }

    /// `stock_hold.lua`: the lines with their prices, packed.
    ///
    /// # Errors
    /// [`Error::ProductNotFound`], [`Error::SoldOut`], [`Error::InsufficientStock`],
    /// and the [shared refusals](super#shared-refusals).
    pub async fn stock_hold(&self, call: &Call, here: Partition, hold: &HoldStock) -> Result<String, Error> {
        let keys = Keys(here);
        let mut invocation = self.begin_unrecorded(call, &script::STOCK_HOLD, here);
        invocation.key(keys.hold(hold.order_id)).key(keys.holds());
        invocation.key(keys.price()).key(keys.stock()).key(keys.held());
        invocation.arg(hold.order_id.get()).arg(hold.user_id.get()).arg(hold.check_in_ms).arg(hold.lines.len());
        for (product, quantity) in &hold.lines {
            invocation.arg(product.get()).arg(quantity);
        }
        let reply = self.decide(call, here, &invocation).await?;
        match reply.code {
            ReplyCode::Held | ReplyCode::AlreadyHeld => reply.get(0),
            ReplyCode::Released => Err(Error::unavailable("the order took too long and was given up")),
            _ => Err(no_stock(&reply)),
        }
    }

    /// `stock_settle.lua`: false if partition `here` has no hold of the order: there never was one, or it was evicted.
    ///
    /// # Errors
    /// The [shared refusals](super#shared-refusals).
    pub async fn stock_settle(&self, call: &Call, here: Partition, settle: SettleStock) -> Result<bool, Error> {
        let SettleStock { order_id, user_id, end, day } = settle;
        let keys = Keys(here);
        let ranked = day.unwrap_or(NaiveDate::MIN);
        let mut invocation = self.begin_unrecorded(call, &script::STOCK_SETTLE, here);
        invocation.key(keys.hold(order_id)).key(keys.holds());
        invocation.key(keys.stock()).key(keys.held()).key(keys.sold());
        invocation.key(keys.rank_units(ranked)).key(keys.rank_won(ranked)).key(keys.withheld());
        invocation.arg(order_id.get()).arg(user_id.get()).arg(match end {
            RemoteEnd::Settled => "SETTLED",
            RemoteEnd::Released | RemoteEnd::Abandoned => "RELEASED",
            RemoteEnd::Refunded => "REFUNDED",
        });
        invocation.arg(day.map_or(0, |day| ranked_until(day).0)).arg(TOMBSTONE_TTL_MS);
        invocation.arg(if end == RemoteEnd::Abandoned { "0" } else { "1" });
        let reply = self.decide(call, here, &invocation).await?;
        match reply.code {
            ReplyCode::Moved | ReplyCode::Tombstoned | ReplyCode::Unchanged => Ok(true),
            ReplyCode::HoldNotFound => Ok(false),
            _ => Err(reply.unexpected()),
        }
    }

    /// Applies the end of an order in every partition that owns one of its remote lines. `day` is the day of the sale, `%Y%m%d`, or
    /// empty. Returns the partitions without a hold of the order.
    ///
    /// # Errors
    /// The [shared refusals](super#shared-refusals). A repeat is safe.
    pub async fn end_remote(
        &self,
        call: &Call,
        order: OrderId,
        user: UserId,
        remote: &[OrderLine],
        end: RemoteEnd,
        day: &str,
    ) -> Result<Vec<Partition>, Error> {
        let mut partitions: Vec<Partition> = remote.iter().map(|line| self.owner(line.product_id.get())).collect();
        partitions.sort_unstable();
        partitions.dedup();
        let day = NaiveDate::parse_from_str(day, DAY_FORMAT).ok();
        let settle = SettleStock { order_id: order, user_id: user, end, day };
        let mut without_hold = Vec::new();
        for here in partitions {
            if !self.stock_settle(call, here, settle).await? {
                without_hold.push(here);
            }
        }
        Ok(without_hold)
    }

    /// `hold_suspect.lua`: marks the HELD ones of these remote holds of partition `here`, so that their units are withheld when
    /// they are released. Returns their number.
    ///
    /// # Errors
    /// The shared refusals. A repeat is safe.
    pub async fn hold_suspect(&self, here: Partition, orders: &[OrderId]) -> Result<i64, Error> {
        let mut suspected = 0;
        for batch in orders.chunks(SUSPECT_BATCH) {
            let mut invocation = Invocation::new(&script::HOLD_SUSPECT);
            invocation.key(Keys(here).meta()).arg(batch.len());
            for order in batch {
                invocation.key(Keys(here).hold(*order));
            }
            let reply = self.run_script(here, &invocation).await?;
            match reply.code {
                ReplyCode::Suspected => suspected += reply.get::<i64>(0)?,
                _ => return Err(reply.unexpected()),
            }
        }
        Ok(suspected)
    }

    /// `order_resolve.lua`, in the order's owner partition.
    ///
    /// # Errors
    /// The [shared refusals](super#shared-refusals).
    pub async fn order_resolve(&self, order: OrderId) -> Result<ResolvedOrder, Error> {
        let owner = self.owner(order.get());
        let mut invocation = Invocation::new(&script::ORDER_RESOLVE);
        invocation.key(Keys(owner).meta()).key(Keys(owner).order(order)).arg(TOMBSTONE_TTL_MS);
        let reply = self.run_script(owner, &invocation).await?;
        if reply.code != ReplyCode::OrderStatus {
            return Err(reply.unexpected());
        }
        let (status, reason): (String, String) = (reply.get(0)?, reply.get(1)?);
        let refunded = reason == CloseReason::Refunded.as_str();
        Ok(ResolvedOrder { status: status.parse().ok(), refunded, day: reply.get(2)? })
    }
}
