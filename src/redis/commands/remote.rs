//! The steps that an operation takes in a partition that is not its user's home. With one partition none is ever called.

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

/// What became of an order that stock is held for in another partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemoteEnd {
    Settled,
    /// Given back; and if it is not held yet, it never will be.
    Released,
    /// Given back, by whoever found it held.
    Abandoned,
    Refunded,
}

/// What an order's home partition says of it.
#[derive(Clone, Debug)]
pub struct Verdict {
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
    /// The shared refusals.
    pub async fn coupon_grant(&self, call: &Call, user: UserId, coupon: CouponId, issued: Issued) -> Result<(), Error> {
        let home = self.owner(user.get());
        let mut invocation = self.begin_unrecorded(call, &script::COUPON_GRANT, home);
        invocation
            .key(Keys(home).user(user))
            .arg(user.get())
            .arg(coupon.get())
            .arg(issued.issue_no)
            .arg(issued.issued_at.0);
        let reply = self.decide(call, home, &invocation).await?;
        match reply.code {
            ReplyCode::Granted | ReplyCode::AlreadyGranted => Ok(()),
            _ => Err(reply.unexpected()),
        }
    }

    /// `stock_hold.lua`: the lines with their prices, packed.
    ///
    /// # Errors
    /// [`Error::ProductNotFound`], [`Error::SoldOut`], [`Error::InsufficientStock`], and the shared refusals.
    pub async fn stock_hold(
        &self,
        call: &Call,
        partition: Partition,
        order: OrderId,
        user: UserId,
        due_in_ms: i64,
        lines: &[(ProductId, i64)],
    ) -> Result<String, Error> {
        let keys = Keys(partition);
        let mut invocation = self.begin_unrecorded(call, &script::STOCK_HOLD, partition);
        invocation
            .key(keys.hold(order))
            .key(keys.holds())
            .key(keys.price())
            .key(keys.stock())
            .key(keys.held())
            .arg(order.get())
            .arg(user.get())
            .arg(due_in_ms)
            .arg(lines.len());
        for (product, quantity) in lines {
            invocation.arg(product.get()).arg(quantity);
        }
        let reply = self.decide(call, partition, &invocation).await?;
        match reply.code {
            ReplyCode::Held | ReplyCode::AlreadyHeld => reply.get(0),
            ReplyCode::Released => Err(Error::unavailable("the order took too long and was given up")),
            _ => Err(no_stock(&reply)),
        }
    }

    /// `stock_settle.lua`: false if there is nothing held or sold here for the order, whether it never was or has left Redis.
    /// `day` is the day of a sale.
    ///
    /// # Errors
    /// The shared refusals.
    pub async fn stock_settle(
        &self,
        call: &Call,
        partition: Partition,
        order: OrderId,
        user: UserId,
        end: RemoteEnd,
        day: Option<NaiveDate>,
    ) -> Result<bool, Error> {
        let keys = Keys(partition);
        let ranked = day.unwrap_or(NaiveDate::MIN);
        let mut invocation = self.begin_unrecorded(call, &script::STOCK_SETTLE, partition);
        invocation
            .key(keys.hold(order))
            .key(keys.holds())
            .key(keys.stock())
            .key(keys.held())
            .key(keys.sold())
            .key(keys.rank_units(ranked))
            .key(keys.rank_won(ranked))
            .key(keys.withheld())
            .arg(order.get())
            .arg(user.get())
            .arg(match end {
                RemoteEnd::Settled => "SETTLED",
                RemoteEnd::Released | RemoteEnd::Abandoned => "RELEASED",
                RemoteEnd::Refunded => "REFUNDED",
            })
            .arg(day.map_or(0, |day| ranked_until(day).0))
            .arg(TOMBSTONE_TTL_MS)
            .arg(if end == RemoteEnd::Abandoned { "0" } else { "1" });
        let reply = self.decide(call, partition, &invocation).await?;
        match reply.code {
            ReplyCode::Moved | ReplyCode::Tombstoned | ReplyCode::Unchanged => Ok(true),
            ReplyCode::HoldNotFound => Ok(false),
            _ => Err(reply.unexpected()),
        }
    }

    /// Carries an order's end to every partition that holds some of its lines, all of them `far`. `day` is the day of the
    /// sale, `%Y%m%d`, or empty. Returns the partitions where there is nothing of it (any more).
    ///
    /// # Errors
    /// The shared refusals; every step may be taken again.
    pub async fn end_remote(
        &self,
        call: &Call,
        order: OrderId,
        user: UserId,
        far: &[OrderLine],
        end: RemoteEnd,
        day: &str,
    ) -> Result<Vec<Partition>, Error> {
        let mut partitions: Vec<Partition> = far.iter().map(|line| self.owner(line.product_id.get())).collect();
        partitions.sort_unstable();
        partitions.dedup();
        let day = NaiveDate::parse_from_str(day, DAY_FORMAT).ok();
        let mut gone = Vec::new();
        for partition in partitions {
            if !self.stock_settle(call, partition, order, user, end, day).await? {
                gone.push(partition);
            }
        }
        Ok(gone)
    }

    /// `order_resolve.lua`.
    ///
    /// # Errors
    /// The shared refusals.
    pub async fn order_resolve(&self, order: OrderId) -> Result<Verdict, Error> {
        let home = self.owner(order.get());
        let mut invocation = Invocation::new(&script::ORDER_RESOLVE);
        invocation.key(Keys(home).meta()).key(Keys(home).order(order)).arg(TOMBSTONE_TTL_MS);
        let reply = self.run_script(home, &invocation).await?;
        if reply.code != ReplyCode::OrderStatus {
            return Err(reply.unexpected());
        }
        let (status, reason): (String, String) = (reply.get(0)?, reply.get(1)?);
        let refunded = reason == CloseReason::Refunded.as_str();
        Ok(Verdict { status: status.parse().ok(), refunded, day: reply.get(2)? })
    }
}
