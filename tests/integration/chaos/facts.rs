//! Compares the final state of the stores with the replies to the clients: the stores have every acknowledged effect once, and
//! no other.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
};

use serde_json::Value;
use sqlx::PgPool;

use super::{
    elsewhere::BroughtFacts,
    history::{Attempt, Operation, Outcome, Request},
    objects::SLACK,
    shop::Goods,
};

/// An order's row and lines.
#[derive(Clone, Debug)]
pub struct OrderFact {
    pub user: i64,
    pub status: String,
    pub price: i64,
    pub coupon: Option<i64>,
    pub reason: String,
    /// Nanoseconds since 1970; 0 without such an event.
    pub placed_at: u64,
    pub paid_at: u64,
    pub closed_at: u64,
    pub lines: BTreeMap<i64, i64>,
    /// Its refunded parts, in their order.
    pub parts: Vec<PartFact>,
}

/// A refunded part of an order: its product and units, its share of the price, whether its units stay off sale, and when.
#[derive(Clone, Debug)]
pub struct PartFact {
    pub line: (i64, i64),
    pub amount: i64,
    pub quarantined: bool,
    pub at: u64,
}

impl OrderFact {
    /// The units of a product, and the won, that no part has refunded.
    pub fn left_units(&self, product: i64) -> i64 {
        let refunded: i64 = self.parts.iter().filter(|part| part.line.0 == product).map(|part| part.line.1).sum();
        self.lines.get(&product).map_or(0, |units| units - refunded)
    }

    pub fn left_price(&self) -> i64 {
        self.price - self.parts.iter().map(|part| part.amount).sum::<i64>()
    }

    /// The part after which the reply shows so many refunded units in all.
    pub fn part_of(&self, reply: &Value) -> Option<&PartFact> {
        let shown: i64 = reply["orderProducts"].as_array()?.iter().map(|line| int(line, "refundedQuantity")).sum();
        let mut units = 0;
        self.parts.iter().find(|part| {
            units += part.line.1;
            units == shown
        })
    }
}

/// A balance entry: type, amount, before, after, order.
pub type Entry = (String, i64, i64, i64, Option<i64>);

/// The contents of PostgreSQL. (The invariants check that Redis has the same.)
#[derive(Default)]
pub struct Facts {
    pub orders: BTreeMap<i64, OrderFact>,
    /// Of paid orders, by payment id: order, user, amount, receipt.
    pub payments: BTreeMap<i64, (i64, i64, i64, String)>,
    /// The orders whose payment went through the gateway: no balance has an entry of it.
    pub by_gateway: BTreeSet<i64>,
    /// By user and entry number.
    pub entries: BTreeMap<(i64, i64), Entry>,
    /// By campaign and user: the place, and the time in nanoseconds since 1970.
    pub coupons: BTreeMap<(i64, i64), (i64, u64)>,
    pub balances: BTreeMap<i64, i64>,
    pub on_sale: BTreeMap<i64, i64>,
    /// The units that a product ever had.
    pub stocked: BTreeMap<i64, i64>,
    /// The end of a campaign's window, in nanoseconds since 1970.
    pub closes_at: BTreeMap<i64, u64>,
    /// What came from elsewhere, which is in none of the others.
    pub brought: BroughtFacts,
}

impl Facts {
    pub async fn read(pool: &PgPool) -> Facts {
        let mut facts = Facts::default();
        type Row = (i64, i64, String, i64, Option<i64>, String, i64, i64, i64);
        let ns = |column: &str| format!("coalesce(extract(epoch FROM {column}) * 1000000000, 0)::bigint");
        let orders = format!(
            "SELECT id, user_id, status, final_price, coupon_id, coalesce(close_reason, ''), {}, {}, {} FROM orders",
            ns("placed_at"),
            ns("paid_at"),
            ns("closed_at")
        );
        let rows: Vec<Row> = sqlx::query_as(sqlx::AssertSqlSafe(orders)).fetch_all(pool).await.unwrap();
        for (id, user, status, price, coupon, reason, placed, paid, closed) in rows {
            let (placed_at, paid_at, closed_at) = (placed as u64, paid as u64, closed as u64);
            let (lines, parts) = (BTreeMap::new(), Vec::new());
            let order = OrderFact { user, status, price, coupon, reason, placed_at, paid_at, closed_at, lines, parts };
            facts.orders.insert(id, order);
        }
        let sql = "SELECT order_id, product_id, quantity FROM order_lines";
        for (order, product, quantity) in sqlx::query_as::<_, (i64, i64, i64)>(sql).fetch_all(pool).await.unwrap() {
            facts.orders.get_mut(&order).unwrap().lines.insert(product, quantity);
        }
        let sql = format!(
            "SELECT order_id, lines, amount, quarantined, {} FROM order_refunds ORDER BY order_id, part",
            ns("refunded_at")
        );
        let rows: Vec<(i64, String, i64, bool, i64)> =
            sqlx::query_as(sqlx::AssertSqlSafe(sql)).fetch_all(pool).await.unwrap();
        for (order, lines, amount, quarantined, at) in rows {
            // Every part is of one product.
            let mut fields = lines.split(':').map(|field| field.parse().unwrap_or(-1));
            let line = (fields.next().unwrap(), fields.next().unwrap());
            let part = PartFact { line, amount, quarantined, at: at as u64 };
            facts.orders.get_mut(&order).unwrap().parts.push(part);
        }
        let sql = "SELECT p.id, p.order_id, p.user_id, p.amount, p.receipt
                   FROM payments p JOIN orders o ON o.id = p.order_id WHERE o.paid_at IS NOT NULL";
        let rows: Vec<(i64, i64, i64, i64, String)> = sqlx::query_as(sql).fetch_all(pool).await.unwrap();
        facts.payments =
            rows.into_iter().map(|(id, order, user, amount, receipt)| (id, (order, user, amount, receipt))).collect();
        let sql = "SELECT order_id FROM payments WHERE method = 'GATEWAY'";
        facts.by_gateway = sqlx::query_scalar(sql).fetch_all(pool).await.unwrap().into_iter().collect();
        let sql = "SELECT user_id, entry_no, transaction_type, amount, before_balance, after_balance, order_id
                   FROM balance_entries WHERE user_id < 1000000";
        let rows: Vec<(i64, i64, String, i64, i64, i64, Option<i64>)> =
            sqlx::query_as(sql).fetch_all(pool).await.unwrap();
        let entry = |(user, no, kind, amount, before, after, order)| ((user, no), (kind, amount, before, after, order));
        facts.entries = rows.into_iter().map(entry).collect();
        let coupons = format!(
            "SELECT coupon_id, user_id, issue_no, {} FROM (
                 SELECT coupon_id, user_id, issue_no, issued_at FROM user_coupons
                 UNION SELECT coupon_id, user_id, issue_no, issued_at FROM remote_coupons) AS issued",
            ns("issued_at")
        );
        let rows: Vec<(i64, i64, i64, i64)> =
            sqlx::query_as(sqlx::AssertSqlSafe(coupons)).fetch_all(pool).await.unwrap();
        facts.coupons = rows.into_iter().map(|(coupon, user, no, at)| ((coupon, user), (no, at as u64))).collect();
        let pairs = async |sql: &'static str| -> BTreeMap<i64, i64> {
            sqlx::query_as::<_, (i64, i64)>(sql).fetch_all(pool).await.unwrap().into_iter().collect()
        };
        facts.balances = pairs("SELECT id, balance FROM users WHERE id < 1000000").await;
        facts.on_sale = pairs("SELECT id, on_sale FROM products WHERE id < 1000000").await;
        facts.stocked = pairs("SELECT id, stocked FROM products WHERE id < 1000000").await;
        let ends = pairs("SELECT id, (extract(epoch FROM closes_at) * 1000)::bigint FROM campaigns").await;
        facts.closes_at = ends.into_iter().map(|(id, at)| (id, at as u64 * 1_000_000)).collect();
        facts.brought = BroughtFacts::read(pool).await;
        facts
    }
}

/// A difference between the replies and the stores.
#[derive(Clone, Debug)]
pub struct Difference {
    pub kind: DifferenceKind,
    /// The id of the object whose partition decided.
    pub owner: i64,
    pub what: String,
}

#[derive(Clone, Debug, PartialEq)]
pub enum DifferenceKind {
    /// Acknowledged, and not stored so often. With the times of each request and its reply.
    Missing { times: usize, acknowledged: Vec<(u64, u64)> },
    /// Stored and never acknowledged.
    Unacknowledged,
    /// A read that disagrees with the stores; with the times of its request and its reply, if it shows what the stores do not have.
    Read { within: Option<(u64, u64)> },
}

/// Compares acknowledged with stored items, each with its number of occurrences.
struct Ledger<T> {
    what: &'static str,
    /// How often it is stored, and the times of each request and its reply.
    items: BTreeMap<T, (usize, Vec<(u64, u64)>)>,
}

impl<T: Ord + std::fmt::Debug> Ledger<T> {
    fn new(what: &'static str) -> Self {
        Ledger { what, items: BTreeMap::new() }
    }

    fn acknowledged(&mut self, item: T, within: (u64, u64)) {
        self.items.entry(item).or_default().1.push(within);
    }

    /// Compares with the stored items. `owner`: the id of the object whose partition decided.
    fn compare(
        mut self,
        owner: impl Fn(&T) -> i64,
        stored: impl IntoIterator<Item = T>,
        differences: &mut Vec<Difference>,
    ) {
        for item in stored {
            self.items.entry(item).or_default().0 += 1;
        }
        for (item, (stored, acknowledged)) in self.items {
            let (owner, number) = (owner(&item), acknowledged.len());
            let (kind, said) = match number.cmp(&stored) {
                Ordering::Equal => continue,
                Ordering::Less => (DifferenceKind::Unacknowledged, "stored and never acknowledged"),
                Ordering::Greater => {
                    let kind = DifferenceKind::Missing { times: number - stored, acknowledged };
                    (kind, "acknowledged and not stored")
                }
            };
            let what = format!("{}: {said} ({}): {item:?}", self.what, number.abs_diff(stored));
            differences.push(Difference { kind, owner, what });
        }
    }
}

fn int(body: &Value, field: &str) -> i64 {
    body[field].as_i64().unwrap_or(-1)
}

fn text(body: &Value, field: &str) -> String {
    body[field].as_str().unwrap_or("").to_owned()
}

/// The differences between the acknowledged effects and the stored ones.
pub fn compare(operations: &[Operation], facts: &Facts, goods: &Goods) -> Vec<Difference> {
    let mut differences = facts.brought.differences();
    let mut coupons = Ledger::new("coupons (campaign, user, place)");
    let mut orders = Ledger::new("orders (id, user, price, coupon, lines)");
    let mut payments = Ledger::new("payments (id, order, user, amount, receipt)");
    let mut entries = Ledger::new("balance entries (user, type, amount, after if acknowledged, order)");
    let mut failed = Ledger::new("failed orders");
    let mut closed = Ledger::new("closed orders (id, reason)");
    let mut refunded = Ledger::new("refunded parts (order, product, units, off sale)");
    let mut stocked: BTreeMap<i64, i64> = goods.products.iter().map(|product| (*product, goods.stock)).collect();
    for user in &goods.users {
        entries.acknowledged((*user, "CHARGE", Goods::BALANCE, Some(Goods::BALANCE), None), (0, 0));
    }
    for (operation, effect) in
        operations.iter().flat_map(|one| one.effects().into_iter().map(move |effect| (one, effect)))
    {
        let within = (effect.began, effect.ended);
        if let (Request::Pay { order, .. }, Outcome::Declined { .. }) = (&operation.request, &effect.outcome) {
            failed.acknowledged(*order, within);
        }
        let Outcome::Done { body, .. } = &effect.outcome else { continue };
        match &operation.request {
            Request::Issue { campaign, user } => coupons.acknowledged((*campaign, *user, int(body, "issueNo")), within),
            Request::Charge { user, amount } => {
                entries.acknowledged((*user, "CHARGE", *amount, Some(int(body, "balance")), None), within);
            }
            Request::Place { user, lines, coupon, pays } => {
                let lines: BTreeMap<i64, i64> = lines.iter().copied().collect();
                let (order, price) = (int(body, "orderId"), int(body, "finalPrice"));
                orders.acknowledged((order, *user, price, *coupon, lines), within);
                if *pays {
                    payments.acknowledged((int(body, "paymentId"), order, *user, price, text(body, "receipt")), within);
                }
                if *pays && price > 0 {
                    entries.acknowledged((*user, "PAYMENT", price, None, Some(order)), within);
                }
            }
            Request::Pay { order, user, price, .. } => {
                payments.acknowledged((int(body, "paymentId"), *order, *user, *price, text(body, "receipt")), within);
                if *price > 0 && !facts.by_gateway.contains(order) {
                    entries.acknowledged((*user, "PAYMENT", *price, None, Some(*order)), within);
                }
            }
            Request::Refund { order, line, by_operator, .. } if text(body, "closeReason").is_empty() => {
                refunded.acknowledged((*order, line.0, line.1, *by_operator), within);
            }
            // A refund of all that was left is a cancellation.
            Request::Cancel { order, user } | Request::Refund { order, user, .. } => {
                let left = facts.orders.get(order).map(OrderFact::left_price);
                let (reason, price) = (text(body, "closeReason"), left.unwrap_or_else(|| int(body, "finalPrice")));
                if reason == "REFUNDED" && price > 0 && !facts.by_gateway.contains(order) {
                    entries.acknowledged((*user, "REFUND", price, None, Some(*order)), within);
                }
                closed.acknowledged((*order, reason), within);
            }
            Request::Restock { product, units } => *stocked.entry(*product).or_default() += units,
            _ => {}
        }
    }
    for (order, fact) in facts.orders.iter().filter(|(order, _)| !facts.by_gateway.contains(order)) {
        for part in fact.parts.iter().filter(|part| part.amount > 0) {
            // The ledger of the parts says whether it was acknowledged.
            entries.acknowledged((fact.user, "REFUND", part.amount, None, Some(*order)), (0, u64::MAX));
        }
    }
    let parts = facts.orders.iter().flat_map(|(order, fact)| fact.parts.iter().map(move |part| (*order, part)));
    let part = |(order, part): (i64, &PartFact)| (order, part.line.0, part.line.1, part.quarantined);
    refunded.compare(|(order, ..)| *order, parts.map(part), &mut differences);
    coupons.compare(
        |(campaign, ..)| *campaign,
        facts.coupons.iter().map(|((campaign, user), (no, _))| (*campaign, *user, *no)),
        &mut differences,
    );
    let order = |(id, o): (&i64, &OrderFact)| (*id, o.user, o.price, o.coupon, o.lines.clone());
    orders.compare(|(order, ..)| *order, facts.orders.iter().map(order), &mut differences);
    let payment = |(id, (order, user, amount, receipt)): (&i64, &(i64, i64, i64, String))| {
        (*id, *order, *user, *amount, receipt.clone())
    };
    payments.compare(|(_, order, ..)| *order, facts.payments.iter().map(payment), &mut differences);
    let entry = |((user, _), (kind, amount, _, after, order)): (&(i64, i64), &Entry)| {
        let kind = ["CHARGE", "PAYMENT", "REFUND"].into_iter().find(|known| known == kind).unwrap_or("?");
        (*user, kind, *amount, (kind == "CHARGE").then_some(*after), *order)
    };
    entries.compare(|(user, ..)| *user, facts.entries.iter().map(entry), &mut differences);
    let of_status = |status: &'static str| facts.orders.iter().filter(move |(_, order)| order.status == status);
    failed.compare(|order| *order, of_status("FAILED").map(|(id, _)| *id), &mut differences);
    let by_users = of_status("CANCELLED").filter(|(_, order)| order.reason != "EXPIRED");
    closed.compare(|(order, _)| *order, by_users.map(|(id, order)| (*id, order.reason.clone())), &mut differences);
    for (product, units) in stocked {
        if facts.stocked.get(&product) != Some(&units) {
            let what = format!("product {product} got {units} units, and has {:?}", facts.stocked.get(&product));
            differences.push(Difference { kind: DifferenceKind::Read { within: None }, owner: product, what });
        }
    }
    differences.extend(reads(operations, facts));
    differences.extend(beyond_terms(operations, facts, goods));
    differences
}

/// Orders that the terms of sale forbid: more units than the limit per user, or placed after the sale of a product had ended.
fn beyond_terms(operations: &[Operation], facts: &Facts, goods: &Goods) -> Vec<Difference> {
    let mut differences = Vec::new();
    let mut report = |owner: i64, what: String| {
        differences.push(Difference { kind: DifferenceKind::Read { within: None }, owner, what });
    };
    for (products, limit) in &goods.limits {
        let mut had: BTreeMap<i64, i64> = BTreeMap::new();
        for order in facts.orders.values().filter(|order| matches!(&*order.status, "PENDING" | "PAID")) {
            let units: i64 = products.iter().map(|product| order.left_units(*product)).sum();
            *had.entry(order.user).or_default() += units;
        }
        for (user, units) in had.into_iter().filter(|(_, units)| units > limit) {
            report(user, format!("user {user} has {units} units of {products:?}, and the limit is {limit}"));
        }
    }
    for operation in operations {
        let (Request::EndSale { product, at }, Some(effect)) = (&operation.request, operation.effect()) else {
            continue;
        };
        let ended = effect.ended.max(*at) + SLACK;
        for (id, order) in facts.orders.iter().filter(|(_, order)| order.placed_at > ended) {
            if order.lines.contains_key(product) {
                report(*product, format!("order {id} was placed after the sale of product {product} had ended"));
            }
        }
    }
    differences
}

/// Checks the histories and the lists of coupons that clients read during the run: each entry agrees with the final state, and
/// none is missing that was acknowledged before the read.
fn reads(operations: &[Operation], facts: &Facts) -> Vec<Difference> {
    let mut differences = Vec::new();
    let mut issued: BTreeMap<i64, Vec<(u64, i64)>> = BTreeMap::new();
    let mut charged: BTreeMap<i64, Vec<(u64, i64, i64)>> = BTreeMap::new();
    for operation in operations {
        let (Some(effect), Some(body)) = (operation.effect(), operation.done()) else { continue };
        match operation.request {
            Request::Issue { campaign, user } => issued.entry(user).or_default().push((effect.ended, campaign)),
            Request::Charge { user, amount } => {
                charged.entry(user).or_default().push((effect.ended, amount, int(body, "balance")));
            }
            _ => {}
        }
    }
    for operation in operations {
        for attempt in &operation.attempts {
            let Outcome::Done { body, .. } = &attempt.outcome else { continue };
            let within = (attempt.began, attempt.ended);
            let mut report = |owner: i64, within: Option<(u64, u64)>, what: String| {
                differences.push(Difference { kind: DifferenceKind::Read { within }, owner, what });
            };
            let list = body.as_array().map(Vec::as_slice).unwrap_or_default();
            match operation.request {
                Request::Coupons { user } => {
                    let shown: BTreeSet<i64> = list.iter().map(|coupon| int(coupon, "couponId")).collect();
                    for coupon in list {
                        let place = facts.coupons.get(&(int(coupon, "couponId"), user)).map(|(place, _)| *place);
                        if place != Some(int(coupon, "issueNo")) {
                            let what = format!("user {user} read a coupon that the stores do not have: {coupon}");
                            report(int(coupon, "couponId"), Some(within), what);
                        }
                    }
                    let before = issued
                        .get(&user)
                        .into_iter()
                        .flatten()
                        .filter(|(acknowledged, _)| *acknowledged < attempt.began);
                    for (_, campaign) in before.filter(|(_, campaign)| !shown.contains(campaign)) {
                        report(*campaign, None, format!("user {user} has a coupon of {campaign} and did not read it"));
                    }
                }
                Request::Entries { user } => {
                    let mut shown = BTreeSet::new();
                    for entry in list {
                        let (kind, order) = (text(entry, "transactionType"), entry["orderId"].as_i64());
                        let (amount, after) = (int(entry, "amount"), int(entry, "after_balance"));
                        let acknowledged = (kind, amount, int(entry, "before_balance"), after, order);
                        if facts.entries.get(&(user, int(entry, "entryNo"))) != Some(&acknowledged) {
                            let what = format!("user {user} read an entry that the stores do not have: {entry}");
                            report(user, Some(within), what);
                        }
                        shown.insert((amount, after));
                    }
                    let before = charged
                        .get(&user)
                        .into_iter()
                        .flatten()
                        .filter(|(acknowledged, ..)| *acknowledged < attempt.began);
                    for (_, amount, after) in before.filter(|(_, amount, after)| !shown.contains(&(*amount, *after))) {
                        report(
                            user,
                            None,
                            format!("user {user} charged {amount} to {after} and did not read the entry"),
                        );
                    }
                }
                _ => {}
            }
        }
    }
    differences
}

#[test]
fn order_beyond_terms_of_sale_found() {
    let order = |user, status: &str, placed_at, units| OrderFact {
        user,
        status: status.to_owned(),
        price: 0,
        coupon: None,
        reason: String::new(),
        placed_at,
        paid_at: 0,
        closed_at: 0,
        lines: [(7, units)].into(),
        parts: Vec::new(),
    };
    let found = |orders: Vec<OrderFact>| {
        let facts = Facts { orders: (1..).zip(orders).collect(), ..Facts::default() };
        let goods = Goods { limits: vec![(vec![7, 8], 3)], ..Goods::of(9) };
        let mut ended = Operation::new(Request::EndSale { product: 7, at: 1_000 }, String::new());
        let outcome = Outcome::Done { body: Value::Null, replayed: false };
        ended.attempts.push(Attempt { began: 0, ended: 1_000, outcome });
        beyond_terms(&[ended], &facts, &goods).len()
    };
    assert_eq!(found(vec![order(1, "PAID", 1, 2), order(1, "PENDING", 1, 1), order(1, "CANCELLED", 1, 1)]), 0);
    assert_eq!(found(vec![order(1, "PAID", 1, 2), order(1, "PENDING", 1, 2), order(2, "PAID", 1, 3)]), 1);
    assert_eq!(found(vec![order(1, "CANCELLED", 1_001 + SLACK, 1)]), 1);
}
