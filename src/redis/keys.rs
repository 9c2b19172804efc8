//! Every key of Redis, and the partition that it is in.
//!
//! A key starts with its partition's hash tag (`{p0}`), so that all keys of a partition share one Redis Cluster slot and
//! one script may touch them together. What each key holds is written where it is built; scripts never build keys.

use chrono::NaiveDate;

use crate::model::{CouponId, OrderId, Partition, ProductId, UserId};

/// The builder of one partition's keys.
#[derive(Clone, Copy, Debug)]
pub struct Keys(pub Partition);

impl Keys {
    fn key(self, rest: std::fmt::Arguments<'_>) -> String {
        format!("{{p{}}}:{rest}", self.0.0)
    }

    /// hash: `store partitions layout epoch seq`; `frozen` while the partition must not decide, and `rebuilding` while what is in it is
    /// no more than a part of what Postgres has.
    pub fn meta(self) -> String {
        self.key(format_args!("meta"))
    }

    /// stream: the events of every decision, until Postgres has them.
    pub fn outbox(self) -> String {
        self.key(format_args!("outbox"))
    }

    /// hash: sequence name → last id reserved (first partition only).
    pub fn ids(self) -> String {
        self.key(format_args!("ids"))
    }

    /// list: fingerprint, then the reply, for an idempotency key's digest; or, in the key's own partition, `CLAIMED` where another
    /// one decides.
    pub fn record(self, digest: &str) -> String {
        self.key(format_args!("idem:{digest}"))
    }

    /// hash: `name balance entries tail open`, and by coupon id the user's coupons: `issue_no|issued_at|state|order|used_at`.
    pub fn user(self, id: UserId) -> String {
        self.key(format_args!("user:{id}"))
    }

    /// hash: `code type amount total issued opens_at closes_at expires_at`, and where a rebuild keeps some
    /// back `withheld`, and `skipped`: how many places of the order of arrival are not given out; `reopening` while some of
    /// these are about to be released.
    pub fn campaign(self, id: CouponId) -> String {
        self.key(format_args!("coupon:{id}"))
    }

    /// set: the user ids that hold one of its coupons.
    pub fn holders(self, id: CouponId) -> String {
        self.key(format_args!("coupon:{id}:holders"))
    }

    /// zset: coupon id by the end of its window, ms.
    pub fn campaigns(self) -> String {
        self.key(format_args!("coupons"))
    }

    /// hash: `name category stocked`.
    pub fn product(self, id: ProductId) -> String {
        self.key(format_args!("product:{id}"))
    }

    /// zset: product id by itself.
    pub fn catalogue(self) -> String {
        self.key(format_args!("catalogue"))
    }

    /// zset: product id by itself, of one category.
    pub fn category(self, category: &str) -> String {
        self.key(format_args!("catalogue:{category}"))
    }

    /// hash: product id → won.
    pub fn price(self) -> String {
        self.key(format_args!("price"))
    }

    /// hash: product id → units on sale.
    pub fn stock(self) -> String {
        self.key(format_args!("stock"))
    }

    /// hash: product id → units held by PENDING orders.
    pub fn held(self) -> String {
        self.key(format_args!("held"))
    }

    /// hash: product id → units sold by PAID orders.
    pub fn sold(self) -> String {
        self.key(format_args!("sold"))
    }

    /// hash: product id → units that a rebuild keeps off sale.
    pub fn withheld(self) -> String {
        self.key(format_args!("withheld"))
    }

    /// hash: `user status total discount final coupon lines far placed_at expires_at`, then what happened to it; `doubt` where
    /// decisions that were lost may have paid it. Leaves some time after it is over and in Postgres: what is not here may be
    /// there.
    pub fn order(self, id: OrderId) -> String {
        self.key(format_args!("order:{id}"))
    }

    /// zset: PENDING order id by the end of its hold, ms.
    pub fn expiry(self) -> String {
        self.key(format_args!("expiry"))
    }

    /// zset: order id by when its gateway payment is looked at next, ms.
    pub fn gateway(self) -> String {
        self.key(format_args!("gateway"))
    }

    /// hash: `state lines user` of the stock held here for an order at home elsewhere; `doubt` as in the order. Leaves as orders
    /// do.
    pub fn hold(self, order: OrderId) -> String {
        self.key(format_args!("hold:{order}"))
    }

    /// zset: `order:user` by when its far hold is looked at, ms.
    pub fn holds(self) -> String {
        self.key(format_args!("holds"))
    }

    /// zset: product id by units of paid orders, of one day.
    pub fn rank_units(self, day: NaiveDate) -> String {
        self.key(format_args!("rank:units:{}", day.format("%Y%m%d")))
    }

    /// zset: product id by won of paid orders, of one day.
    pub fn rank_won(self, day: NaiveDate) -> String {
        self.key(format_args!("rank:won:{}", day.format("%Y%m%d")))
    }

    /// The keys that there is one of, each with the type that Redis has for it.
    pub(super) fn fixed(self) -> Vec<(String, &'static str)> {
        let hashes = [self.meta(), self.ids(), self.price(), self.stock(), self.held(), self.sold(), self.withheld()];
        let sets = [self.campaigns(), self.catalogue(), self.expiry(), self.gateway(), self.holds()];
        let hashes = hashes.into_iter().map(|key| (key, "hash"));
        let sets = sets.into_iter().map(|key| (key, "zset"));
        hashes.chain(sets).chain([(self.outbox(), "stream")]).collect()
    }

    /// A key of every kind.
    pub(super) fn samples(self) -> Vec<String> {
        let day = NaiveDate::default();
        let mut samples: Vec<String> = self.fixed().into_iter().map(|(key, _)| key).collect();
        samples.extend(["idem:0", "catalogue:A"].map(|rest| self.key(format_args!("{rest}"))));
        samples.extend(
            ["user:1", "product:1", "coupon:1", "coupon:1:holders", "order:1", "hold:1"]
                .map(|rest| self.key(format_args!("{rest}"))),
        );
        samples.extend([self.rank_units(day), self.rank_won(day)]);
        samples
    }

    /// A key that never exists.
    pub(super) fn never(self) -> String {
        self.key(format_args!("never"))
    }
}
