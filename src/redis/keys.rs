//! Every key of Redis.
//!
//! A key starts with the hash tag of its partition (`{p0}`), so that all keys of a partition share one Redis Cluster slot and one
//! script may use them together. The comment of each key says what it holds. Scripts never build keys.

use chrono::NaiveDate;

use crate::model::{CouponId, OrderId, Partition, ProductId, UserId};

/// A day in a key.
const DAY: &str = "%Y%m%d";

/// The keys of one partition.
#[derive(Clone, Copy, Debug)]
pub struct Keys(pub Partition);

/// The kind of a key, with what its name says beside the partition. Each has the comment of its method of [`Keys`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyKind {
    Meta,
    Instances,
    Serving,
    Requests,
    Outbox,
    Ids,
    /// By the digest of the idempotency key.
    Record(String),
    User(UserId),
    Issued(UserId),
    Campaign(CouponId),
    Holders(CouponId),
    Campaigns,
    Product(ProductId),
    Catalogue,
    Category(String),
    Price,
    Stock,
    Held,
    Sold,
    Withheld,
    Quarantined,
    Order(OrderId),
    Expiry,
    Gateway,
    Allotted,
    Regained,
    Recovered,
    Received,
    Returned,
    Surrendered,
    Freed,
    PriceVersion,
    LimitGroups,
    RankUnits(NaiveDate),
    RankWon(NaiveDate),
}

impl Keys {
    fn key(self, rest: std::fmt::Arguments<'_>) -> String {
        format!("{{p{}}}:{rest}", self.0.0)
    }

    /// hash: `store partitions layout epoch seq`; `frozen` (the reason) while the partition must not decide, with its `cause` if
    /// decisions were lost, and `rebuilding` while a rebuild has written only a part of it; `relayed`, `epoch:seq:entry` of the
    /// last decision whose effects the projector has relayed and whose order it has evicted; `forgotten`, which changes with each
    /// user that is forgotten.
    pub fn meta(self) -> String {
        self.key(format_args!("meta"))
    }

    /// hash: process id → its word: `history epoch seq epoch seq at drained before_postgres`, what it acknowledged and what it told
    /// clients. See [`roll_call`](super::roll_call).
    pub fn instances(self) -> String {
        self.key(format_args!("instances"))
    }

    /// stream: the events of every decision, until PostgreSQL has had them for a while.
    pub fn outbox(self) -> String {
        self.key(format_args!("outbox"))
    }

    /// hash: sequence name → last number reserved: of the partition's own orders and payments; in the first partition also `user`,
    /// `product`, `coupon`, the ids of all partitions, and `order`, `payment`, from which earlier versions take numbers for all.
    pub fn ids(self) -> String {
        self.key(format_args!("ids"))
    }

    /// list: fingerprint, then the reply, of the request under an idempotency key; or, in the key's own partition, `CLAIMED` if
    /// another partition decides the request.
    pub fn record(self, digest: &str) -> String {
        self.key(format_args!("idem:{digest}"))
    }

    /// hash: `name balance entries tail open`, of a user that was forgotten without the name; by coupon id the user's coupons, `issue_no|issued_at|state|order|used_at`; and what
    /// the user has, held and paid, of each limit: `limit:product` and `group:name` in units.
    pub fn user(self, id: UserId) -> String {
        self.key(format_args!("user:{id}"))
    }

    /// hash: by coupon id, the coupons that campaigns of this partition issued to a user of another one, each as it was issued.
    /// Its state is in the user's partition once an order has used it.
    pub fn issued(self, id: UserId) -> String {
        self.key(format_args!("issued:{id}"))
    }

    /// hash: `code type amount total issued opens_at closes_at expires_at`; after a loss `withheld`, the coupons that are not
    /// issued, and `skipped`, the issue numbers that are not used; `reopening`, a token, while a release of withheld coupons is
    /// prepared.
    pub fn campaign(self, id: CouponId) -> String {
        self.key(format_args!("coupon:{id}"))
    }

    /// set: ids of the users that have one of the campaign's coupons.
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

    /// hash: product id → won, or `won|opens|closes|limit|group` with the terms of sale: see [`SaleTerms`](crate::model::SaleTerms).
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

    /// hash: product id → units that a rebuild withholds.
    pub fn withheld(self) -> String {
        self.key(format_args!("withheld"))
    }

    /// hash: product id → refunded units that stay off sale, here.
    pub fn quarantined(self) -> String {
        self.key(format_args!("quarantined"))
    }

    /// hash: `user status total discount final coupon lines placed_at expires_at`, then its payment (`receipt`, and `payment`:
    /// `id|type|method|paid_at|day`) and its end; `doubt` is 1 if lost decisions may have paid the order. Evicted some time after it is final and in PostgreSQL.
    pub fn order(self, id: OrderId) -> String {
        self.key(format_args!("order:{id}"))
    }

    /// zset: PENDING order id by the end of its hold, ms.
    pub fn expiry(self) -> String {
        self.key(format_args!("expiry"))
    }

    /// zset: order id by the next check of its gateway payment, ms.
    pub fn gateway(self) -> String {
        self.key(format_args!("gateway"))
    }

    /// hash: `product:partition` → units that the product's owner partition, this one, ever gave to the other one.
    pub fn allotted(self) -> String {
        self.key(format_args!("allotted"))
    }

    /// hash: `product:partition` → units on sale that the owner partition, this one, ever took back.
    pub fn regained(self) -> String {
        self.key(format_args!("regained"))
    }

    /// hash: `product:partition` → withheld units that the owner partition, this one, ever took back.
    pub fn recovered(self) -> String {
        self.key(format_args!("recovered"))
    }

    /// hash: id of a product of another partition → units that this one ever received.
    pub fn received(self) -> String {
        self.key(format_args!("received"))
    }

    /// hash: id of a product of another partition → units on sale that this one ever gave back.
    pub fn returned(self) -> String {
        self.key(format_args!("returned"))
    }

    /// hash: id of a product of another partition → withheld units that this one ever gave back.
    pub fn surrendered(self) -> String {
        self.key(format_args!("surrendered"))
    }

    /// hash: product id → units that ever came back on sale here.
    pub fn freed(self) -> String {
        self.key(format_args!("freed"))
    }

    /// hash: product id → the number of its price and terms of sale, which each change of either increments.
    pub fn price_version(self) -> String {
        self.key(format_args!("price_version"))
    }

    /// hash: group of products → its limit per user. In the first partition only.
    pub fn limit_groups(self) -> String {
        self.key(format_args!("limit_groups"))
    }

    /// zset: product id by units of paid orders, of one day.
    pub fn rank_units(self, day: NaiveDate) -> String {
        self.key(format_args!("rank:units:{}", day.format(DAY)))
    }

    /// zset: product id by won of paid orders, of one day.
    pub fn rank_won(self, day: NaiveDate) -> String {
        self.key(format_args!("rank:won:{}", day.format(DAY)))
    }

    /// The key of this kind.
    pub fn of(self, kind: &KeyKind) -> String {
        match kind {
            KeyKind::Meta => self.meta(),
            KeyKind::Instances => self.instances(),
            KeyKind::Serving => self.serving(),
            KeyKind::Requests => self.requests(),
            KeyKind::Outbox => self.outbox(),
            KeyKind::Ids => self.ids(),
            KeyKind::Record(digest) => self.record(digest),
            KeyKind::User(id) => self.user(*id),
            KeyKind::Issued(id) => self.issued(*id),
            KeyKind::Campaign(id) => self.campaign(*id),
            KeyKind::Holders(id) => self.holders(*id),
            KeyKind::Campaigns => self.campaigns(),
            KeyKind::Product(id) => self.product(*id),
            KeyKind::Catalogue => self.catalogue(),
            KeyKind::Category(category) => self.category(category),
            KeyKind::Price => self.price(),
            KeyKind::Stock => self.stock(),
            KeyKind::Held => self.held(),
            KeyKind::Sold => self.sold(),
            KeyKind::Withheld => self.withheld(),
            KeyKind::Quarantined => self.quarantined(),
            KeyKind::Order(id) => self.order(*id),
            KeyKind::Expiry => self.expiry(),
            KeyKind::Gateway => self.gateway(),
            KeyKind::Allotted => self.allotted(),
            KeyKind::Regained => self.regained(),
            KeyKind::Recovered => self.recovered(),
            KeyKind::Received => self.received(),
            KeyKind::Returned => self.returned(),
            KeyKind::Surrendered => self.surrendered(),
            KeyKind::Freed => self.freed(),
            KeyKind::PriceVersion => self.price_version(),
            KeyKind::LimitGroups => self.limit_groups(),
            KeyKind::RankUnits(day) => self.rank_units(*day),
            KeyKind::RankWon(day) => self.rank_won(*day),
        }
    }

    /// The partition of a key, and its kind; `None` if the service writes no such key.
    pub fn parse(key: &str) -> Option<(Partition, KeyKind)> {
        fn id<T>(new: fn(i64) -> Option<T>, text: &str) -> Option<T> {
            new(text.parse().ok()?)
        }
        let day = |text: &str| NaiveDate::parse_from_str(text, DAY).ok();
        let (partition, rest) = key.strip_prefix("{p")?.split_once("}:")?;
        let here = Partition(partition.parse().ok()?);
        let parts: Vec<&str> = rest.split(':').collect();
        let kind = match parts.as_slice() {
            ["meta"] => KeyKind::Meta,
            ["instances"] => KeyKind::Instances,
            ["serving"] => KeyKind::Serving,
            ["requests"] => KeyKind::Requests,
            ["outbox"] => KeyKind::Outbox,
            ["ids"] => KeyKind::Ids,
            ["idem", digest] => KeyKind::Record((*digest).to_owned()),
            ["user", user] => KeyKind::User(id(UserId::new, user)?),
            ["issued", user] => KeyKind::Issued(id(UserId::new, user)?),
            ["coupon", coupon] => KeyKind::Campaign(id(CouponId::new, coupon)?),
            ["coupon", coupon, "holders"] => KeyKind::Holders(id(CouponId::new, coupon)?),
            ["coupons"] => KeyKind::Campaigns,
            ["product", product] => KeyKind::Product(id(ProductId::new, product)?),
            ["catalogue"] => KeyKind::Catalogue,
            ["catalogue", category] => KeyKind::Category((*category).to_owned()),
            ["price"] => KeyKind::Price,
            ["stock"] => KeyKind::Stock,
            ["held"] => KeyKind::Held,
            ["sold"] => KeyKind::Sold,
            ["withheld"] => KeyKind::Withheld,
            ["quarantined"] => KeyKind::Quarantined,
            ["order", order] => KeyKind::Order(id(OrderId::new, order)?),
            ["expiry"] => KeyKind::Expiry,
            ["gateway"] => KeyKind::Gateway,
            ["allotted"] => KeyKind::Allotted,
            ["regained"] => KeyKind::Regained,
            ["recovered"] => KeyKind::Recovered,
            ["received"] => KeyKind::Received,
            ["returned"] => KeyKind::Returned,
            ["surrendered"] => KeyKind::Surrendered,
            ["freed"] => KeyKind::Freed,
            ["price_version"] => KeyKind::PriceVersion,
            ["limit_groups"] => KeyKind::LimitGroups,
            ["rank", "units", units] => KeyKind::RankUnits(day(units)?),
            ["rank", "won", won] => KeyKind::RankWon(day(won)?),
            _ => return None,
        };
        // A number has one form.
        (Keys(here).of(&kind) == key).then_some((here, kind))
    }

    /// The keys whose names are fixed, each with its type in Redis.
    pub(super) fn fixed(self) -> Vec<(String, &'static str)> {
        let hashes = [
            self.meta(),
            self.instances(),
            self.ids(),
            self.price(),
            self.stock(),
            self.held(),
            self.sold(),
            self.withheld(),
            self.quarantined(),
            self.allotted(),
            self.regained(),
            self.recovered(),
            self.received(),
            self.returned(),
            self.surrendered(),
            self.freed(),
            self.price_version(),
            self.limit_groups(),
            self.serving(),
        ];
        let sets = [self.campaigns(), self.catalogue(), self.expiry(), self.gateway()];
        let hashes = hashes.into_iter().map(|key| (key, "hash"));
        let sets = sets.into_iter().map(|key| (key, "zset"));
        hashes.chain(sets).chain([(self.outbox(), "stream")]).collect()
    }

    /// A key of every kind.
    pub fn samples(self) -> Vec<String> {
        let day = NaiveDate::default();
        let mut samples: Vec<String> = self.fixed().into_iter().map(|(key, _)| key).collect();
        samples.extend(["idem:0", "catalogue:A"].map(|rest| self.key(format_args!("{rest}"))));
        samples.extend(
            ["user:1", "issued:1", "product:1", "coupon:1", "coupon:1:holders", "order:1"]
                .map(|rest| self.key(format_args!("{rest}"))),
        );
        samples.extend([self.rank_units(day), self.rank_won(day), self.requests()]);
        samples
    }

    /// hash: process → [`ServingLease`](super::leases::ServingLease), as JSON; only while PostgreSQL is away.
    pub fn serving(self) -> String {
        self.key(format_args!("serving"))
    }

    /// stream: `ago`, ms, and `sample`, a [`RequestSample`](crate::model::RequestSample), as JSON: the requests of each process, of the
    /// last fifteen minutes. In the first partition only. Not of the shop's state: not among the fixed keys, whose types are checked.
    pub fn requests(self) -> String {
        self.key(format_args!("requests"))
    }

    /// A key that never exists.
    pub(super) fn never(self) -> String {
        self.key(format_args!("never"))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn key_parsed_as_built() {
        let kinds: Vec<KeyKind> = Keys(Partition(7))
            .samples()
            .iter()
            .map(|key| {
                let (here, kind) = Keys::parse(key).unwrap_or_else(|| panic!("{key} is of no kind"));
                assert_eq!(Keys(here).of(&kind), *key);
                assert_eq!(here, Partition(7));
                kind
            })
            .collect();
        let distinct: HashSet<_> = kinds.iter().map(std::mem::discriminant).collect();
        assert_eq!((distinct.len(), kinds.len()), (35, 35), "a sample of each kind");
        for foreign in
            ["", "meta", "{p0}:", "{p0}:metb", "{p00}:meta", "{p0}:user:01", "{p0}:user:0", "{p0}:rank:units:2026030"]
        {
            assert_eq!(Keys::parse(foreign), None, "{foreign}");
        }
    }
}
