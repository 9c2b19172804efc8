//! What operators bring in under the ids that it has elsewhere: users, products and campaigns with versions; users that the service
//! creates beside them; and users that are forgotten. Nobody buys with or of them, so that each is a register.

use std::collections::{BTreeMap, BTreeSet};

use firstcome::model::Millis;
use serde_json::{Value, json};
use sqlx::PgPool;

use super::{
    facts::{Difference, DifferenceKind, Entry},
    history::{Operation, Request},
    losses::Losses,
};

/// The first id from elsewhere. Those of the service's own are below it before the first one comes, and above it afterwards.
pub const FIRST: i64 = 1_000_000;
/// The opening balance of such a user.
pub const OPENING: i64 = 40;
/// When the window of a campaign ends, in its version 0.
const CLOSES_AT: i64 = 3_000_000_000_000;

/// What is brought in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BroughtKind {
    User,
    Product,
    Campaign,
}

/// A name that no other record has.
pub fn name(id: i64, version: i64) -> String {
    format!("elsewhere-{id}-{version}-")
}

fn closes_at(version: i64) -> String {
    Millis(CLOSES_AT + version * 1_000).local(chrono_tz::Asia::Seoul)
}

impl BroughtKind {
    pub fn path(self) -> &'static str {
        match self {
            BroughtKind::User => "users",
            BroughtKind::Product => "products",
            BroughtKind::Campaign => "coupons",
        }
    }

    pub fn read_path(self, id: i64) -> String {
        match self {
            BroughtKind::User => format!("/api/v1/balances/{id}"),
            BroughtKind::Product => format!("/api/v1/products/{id}"),
            BroughtKind::Campaign => format!("/admin/v1/coupons/{id}"),
        }
    }

    pub fn body(self, id: i64, version: i64) -> Value {
        match self {
            BroughtKind::User => json!({"userName": name(id, version), "balance": OPENING}),
            BroughtKind::Product => {
                json!({"productName": name(id, version), "price": 10, "stockQuantity": 3, "category": "ELSEWHERE"})
            }
            BroughtKind::Campaign => json!({"couponCode": "ELSEWHERE", "discountType": "FIXED", "discountAmount": 5,
                "totalQuantity": 2, "opensAt": "2020-01-01T00:00:00", "closesAt": closes_at(version),
                "expiredAt": "2099-01-01T00:00:00"}),
        }
    }

    /// What distinguishes the versions.
    pub fn label(self, id: i64, version: i64) -> String {
        match self {
            BroughtKind::User | BroughtKind::Product => name(id, version),
            BroughtKind::Campaign => closes_at(version),
        }
    }

    /// The same, of a reply.
    pub fn label_of(self, body: &Value) -> String {
        let field = match self {
            BroughtKind::User => "userName",
            BroughtKind::Product => "productName",
            BroughtKind::Campaign => "closesAt",
        };
        body[field].as_str().unwrap_or("?").to_owned()
    }
}

/// What PostgreSQL has of it.
#[derive(Default)]
pub struct BroughtFacts {
    /// The version; empty of a user that was forgotten.
    pub labels: BTreeMap<(BroughtKind, i64), String>,
    pub entries: BTreeMap<i64, Vec<Entry>>,
}

impl BroughtFacts {
    pub async fn read(pool: &PgPool) -> BroughtFacts {
        let mut facts = BroughtFacts::default();
        for (kind, sql) in [
            (BroughtKind::User, "SELECT id, name FROM users WHERE id >= $1"),
            (BroughtKind::Product, "SELECT id, name FROM products WHERE id >= $1"),
        ] {
            let rows: Vec<(i64, String)> = sqlx::query_as(sql).bind(FIRST).fetch_all(pool).await.unwrap();
            facts.labels.extend(rows.into_iter().map(|(id, label)| ((kind, id), label)));
        }
        let sql = "SELECT id, (extract(epoch FROM closes_at) * 1000)::bigint FROM campaigns WHERE id >= $1";
        let rows: Vec<(i64, i64)> = sqlx::query_as(sql).bind(FIRST).fetch_all(pool).await.unwrap();
        let label = |at| Millis(at).local(chrono_tz::Asia::Seoul);
        facts.labels.extend(rows.into_iter().map(|(id, at)| ((BroughtKind::Campaign, id), label(at))));
        let sql = "SELECT user_id, transaction_type, amount, before_balance, after_balance, order_id
                   FROM balance_entries WHERE user_id >= $1 ORDER BY user_id, entry_no";
        let rows: Vec<(i64, String, i64, i64, i64, Option<i64>)> =
            sqlx::query_as(sql).bind(FIRST).fetch_all(pool).await.unwrap();
        for (user, kind, amount, before, after, order) in rows {
            facts.entries.entry(user).or_default().push((kind, amount, before, after, order));
        }
        facts
    }

    /// Users whose balance is not the one that they came with, or was not forfeited when they were forgotten.
    pub fn differences(&self) -> Vec<Difference> {
        let opening = ("CHARGE".to_owned(), OPENING, 0, OPENING, None);
        let forfeited = ("PAYMENT".to_owned(), OPENING, OPENING, 0, None);
        let mut differences = Vec::new();
        for ((_, user), label) in self.labels.iter().filter(|((kind, _), _)| *kind == BroughtKind::User) {
            let entries = self.entries.get(user).cloned().unwrap_or_default();
            let expected =
                if label.is_empty() { vec![opening.clone(), forfeited.clone()] } else { vec![opening.clone()] };
            if entries != expected {
                let what = format!("user {user} from elsewhere ({label:?}) has the entries {entries:?}");
                differences.push(Difference { kind: DifferenceKind::Read { within: None }, owner: *user, what });
            }
        }
        differences
    }
}

/// Names that PostgreSQL still has of users that were forgotten, or that a reader of the events gets.
pub async fn names_left(
    pool: &PgPool,
    operations: &[Operation],
    facts: &BroughtFacts,
    feed: &[Value],
    losses: &Losses,
) -> Vec<String> {
    let gone = |user: &i64| {
        facts.labels.get(&(BroughtKind::User, *user)).is_some_and(String::is_empty) && !losses.concern(*user)
    };
    let mut names = BTreeSet::new();
    for operation in operations {
        match (&operation.request, operation.done()) {
            (Request::Bring { kind: BroughtKind::User, id, version }, _) if gone(id) => {
                names.insert(name(*id, *version));
            }
            (Request::Create { version }, Some(body)) if gone(&body["userId"].as_i64().unwrap_or(-1)) => {
                names.insert(name(0, *version));
            }
            _ => {}
        }
    }
    let mut left = Vec::new();
    for name in names {
        let sql = "SELECT (SELECT count(*) FROM users WHERE name = $1)
                       + (SELECT count(*) FROM events AS e WHERE position($1 IN e::text) > 0)
                       + (SELECT count(*) FROM webhook_retries AS r WHERE position($1 IN r::text) > 0)
                       + (SELECT count(*) FROM idempotency_records AS i WHERE position($1 IN i::text) > 0)
                       + (SELECT count(*) FROM operator_log AS o WHERE position($1 IN o::text) > 0)";
        let count: i64 = sqlx::query_scalar(sql).bind(&name).fetch_one(pool).await.unwrap();
        if count > 0 || feed.iter().any(|event| event.to_string().contains(&name)) {
            left.push(format!("the name {name} of a forgotten user is in {count} rows, or in the feed"));
        }
    }
    left
}
