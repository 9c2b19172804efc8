//! Which check covers which key of Redis: each kind of key has at least one, so that no key is forgotten.
//!
//! What a check does not see, a changed value may hide. These fields are such: the text and the number of a gateway's answers in
//! an order (`gateway_said`, `gateway_asks`), the preparations of its payment (`prepared`, `prepared_ids`), the positions, the time and the history within the word of a process, which a
//! process renews twice a second, the ids of requests in the outbox, the token of a prepared release, the remaining life of a
//! key that expires (but of idempotency records), a sequence of ids that is too high, numbers of coupons that are skipped, the
//! next check of a gateway within its longest pause, the number of units that came back on sale (`freed`), the number by which
//! processes learn of users that were forgotten, rankings of days that no scope covers any more, and the samples of the processes'
//! requests, which are no part of the shop's state.

use crate::redis::keys::KeyKind;

pub const STATE: &str = "stores belong together";
pub const PROJECTION: &str = "projection: PostgreSQL gets what is decided";
pub const USERS: &str = "users: Redis = PostgreSQL";
pub const PRODUCTS: &str =
    "products: Redis = PostgreSQL, stocked = on sale + held + sold + withheld + quarantined + with other partitions";
pub const CAMPAIGNS: &str = "campaigns: Redis = PostgreSQL, issued = holders, issued + withheld <= total";
pub const ORDERS: &str = "orders: Redis = PostgreSQL, total = lines, every hold has an end";
pub const PARTITION_STOCK: &str = "units of other partitions: Redis = PostgreSQL, received = on sale + held + sold + withheld + quarantined + given back";
pub const REMOTE_COUPONS: &str = "coupons of users of other partitions: Redis = PostgreSQL";
pub const PRICES: &str = "prices in other partitions: those of the products";
pub const LIMIT_GROUPS: &str = "limits of groups: those of the products";
pub const RECORDS: &str = "idempotency records: Redis = PostgreSQL";
pub const OUTBOX: &str = "outbox: no gap, and nothing that PostgreSQL has otherwise";
pub const IDS: &str = "sequences of ids: above the ids in use";
pub const PROCESSES: &str = "processes: their words and leases are sound";
pub const INDEXES: &str = "indexes: each entry is of a record that belongs there";
pub const KEYS: &str = "keys of Redis: each is of something in PostgreSQL";
pub const RANKINGS: &str = "rankings = lines of paid orders";
pub const BETWEEN: &str = "what is between partitions";

/// The checks of the keys of a kind.
pub fn checks_of(kind: &KeyKind) -> &'static [&'static str] {
    match kind {
        KeyKind::Meta => &[STATE, PROJECTION],
        KeyKind::Instances | KeyKind::Serving | KeyKind::Requests => &[PROCESSES],
        KeyKind::Outbox => &[OUTBOX, PROJECTION],
        KeyKind::Ids => &[IDS, KEYS],
        KeyKind::Record(_) => &[RECORDS, KEYS],
        KeyKind::User(_) => &[USERS, KEYS],
        KeyKind::Issued(_) => &[REMOTE_COUPONS, KEYS],
        KeyKind::Campaign(_) | KeyKind::Holders(_) => &[CAMPAIGNS, USERS, KEYS],
        KeyKind::Campaigns => &[CAMPAIGNS, INDEXES],
        KeyKind::Product(_) => &[PRODUCTS, KEYS],
        KeyKind::Catalogue | KeyKind::Category(_) => &[PRODUCTS, INDEXES],
        KeyKind::LimitGroups => &[LIMIT_GROUPS],
        KeyKind::Price | KeyKind::PriceVersion => &[PRODUCTS, PRICES, INDEXES],
        KeyKind::Stock | KeyKind::Held | KeyKind::Sold | KeyKind::Withheld | KeyKind::Quarantined => {
            &[PRODUCTS, PARTITION_STOCK, INDEXES]
        }
        KeyKind::Allotted | KeyKind::Regained | KeyKind::Recovered => &[PRODUCTS, BETWEEN, INDEXES],
        KeyKind::Received | KeyKind::Returned | KeyKind::Surrendered => &[PARTITION_STOCK, BETWEEN, INDEXES],
        KeyKind::Freed => &[INDEXES],
        KeyKind::Order(_) => &[ORDERS, KEYS],
        KeyKind::Expiry | KeyKind::Gateway => &[ORDERS, INDEXES],
        KeyKind::RankUnits(_) | KeyKind::RankWon(_) => &[RANKINGS, KEYS],
    }
}
