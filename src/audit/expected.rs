//! Applies the decisions that PostgreSQL lacks to its rows. The results are the records that Redis must have.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::delta::Delta;
use crate::{
    model::{
        Millis, OrderStatus,
        event::{Body, pack_lines},
    },
    postgres::snapshot::{CampaignRow, CouponRow, HoldRow, OrderRow, ProductRow, UserRow},
    redis::records::pack_coupon,
};

pub(super) fn expected_users(rows: Vec<UserRow>, since: &Delta) -> HashMap<i64, UserRow> {
    let mut users: HashMap<i64, UserRow> = rows.into_iter().map(|row| (row.id, row)).collect();
    for new in &since.batch.new_users {
        let (id, name) = (new.id, new.name.clone());
        users.insert(id, UserRow { id, name, balance: 0, entries: 0, open: 0 });
    }
    for (id, balance) in &since.batch.balances {
        users.entry(*id).and_modify(|user| user.balance = *balance);
    }
    for entry in &since.batch.entries {
        users.entry(entry.user_id.get()).and_modify(|user| user.entries += 1);
    }
    for (id, change) in since.open_orders() {
        users.entry(id).and_modify(|user| user.open += change);
    }
    users
}

/// Packed coupons, by user and campaign.
pub(super) fn expected_coupons(rows: Vec<CouponRow>, since: &Delta) -> HashMap<i64, BTreeMap<i64, String>> {
    let mut coupons: HashMap<(i64, i64), CouponRow> =
        rows.into_iter().map(|row| ((row.coupon_id, row.user_id), row)).collect();
    for new in &since.batch.new_coupons {
        let row = CouponRow {
            coupon_id: new.coupon,
            user_id: new.user,
            issue_no: new.issue_no,
            status: "AVAILABLE".into(),
            order_id: None,
            issued_at: new.at.0,
            used_at: None,
        };
        coupons.insert((new.coupon, new.user), row);
    }
    for (key, state) in &since.batch.coupons {
        coupons.entry(*key).and_modify(|row| {
            row.status = state.status.to_owned();
            row.order_id = state.order;
            row.used_at = state.used_at.map(|at| at.0);
        });
    }
    let mut by_user: HashMap<i64, BTreeMap<i64, String>> = HashMap::new();
    for ((coupon, user), row) in coupons {
        let state = row.status.get(..1).unwrap_or("?");
        let record = pack_coupon(row.issue_no, Millis(row.issued_at), state, row.order_id, row.used_at.map(Millis));
        by_user.entry(user).or_default().insert(coupon, record);
    }
    by_user
}

pub(super) fn expected_products(rows: Vec<ProductRow>, since: &Delta) -> HashMap<i64, ProductRow> {
    let mut products: HashMap<i64, ProductRow> = rows.into_iter().map(|row| (row.id, row)).collect();
    for new in &since.batch.new_products {
        let row = ProductRow {
            id: new.id,
            name: new.name.clone(),
            category: new.category.clone(),
            price: new.price,
            on_sale: 0,
            held: 0,
            sold: 0,
            withheld: 0,
            stocked: 0,
        };
        products.insert(new.id, row);
    }
    for (id, (name, price, category)) in &since.batch.descriptions {
        products.entry(*id).and_modify(|row| {
            row.name.clone_from(name);
            row.price = *price;
            row.category.clone_from(category);
        });
    }
    for (id, units) in &since.batch.units {
        products.entry(*id).and_modify(|row| {
            row.on_sale += units.on_sale;
            row.held += units.held;
            row.sold += units.sold;
            row.withheld += units.withheld;
            row.stocked += units.stocked;
        });
    }
    products
}

pub(super) fn expected_campaigns(rows: Vec<CampaignRow>, since: &Delta) -> HashMap<i64, CampaignRow> {
    let mut campaigns: HashMap<i64, CampaignRow> = rows.into_iter().map(|row| (row.id, row)).collect();
    for (terms, _) in &since.batch.new_campaigns {
        let id = terms.coupon_id.get();
        let row = CampaignRow {
            id,
            code: terms.code.clone(),
            discount_type: terms.discount.kind.as_str().to_owned(),
            discount_amount: terms.discount.amount,
            total: terms.total,
            issued: 0,
            withheld: 0,
            opens_at: terms.opens_at.0,
            closes_at: terms.closes_at.0,
            expires_at: terms.expires_at.0,
            last_no: 0,
        };
        campaigns.insert(id, row);
    }
    for (id, (opens_at, closes_at)) in &since.batch.windows {
        campaigns.entry(*id).and_modify(|row| {
            (row.opens_at, row.closes_at) = (opens_at.0, closes_at.0);
        });
    }
    for (id, change) in &since.batch.issued {
        campaigns.entry(*id).and_modify(|row| {
            row.issued += change.issued;
            row.withheld += change.withheld;
        });
    }
    campaigns
}

/// The fields that Redis must have of an order; an absent field is empty.
pub(super) struct ExpectedOrder {
    pub(super) user: i64,
    pub(super) status: String,
    pub(super) reason: String,
    pub(super) total: i64,
    pub(super) final_price: i64,
    pub(super) coupon: String,
    pub(super) own: String,
    pub(super) remote: String,
    pub(super) paid_at: String,
    pub(super) closed_at: String,
}

/// Orders that are closed in PostgreSQL and have no later decision: only these may be evicted.
pub(super) fn evictable_orders(rows: &[OrderRow], since: &Delta) -> HashSet<i64> {
    let mut evictable: HashSet<i64> = rows.iter().filter(|row| row.is_closed()).map(|row| row.id).collect();
    for event in &since.events {
        let order = match &event.body {
            Body::OrderPlaced(placed) => placed.order,
            Body::PaymentStarted(started) => started.order,
            Body::OrderPaid(paid) => paid.order,
            Body::OrderClosed(closed) => closed.order,
            Body::PaymentEnded { order, .. } => *order,
            Body::PaymentResolved(resolved) => resolved.order,
            _ => continue,
        };
        evictable.remove(&order.get());
    }
    evictable
}

pub(super) fn expected_orders(rows: Vec<OrderRow>, since: &Delta) -> HashMap<i64, ExpectedOrder> {
    fn shown<T: ToString>(value: Option<T>) -> String {
        value.map(|value| value.to_string()).unwrap_or_default()
    }
    let as_expected = |row: OrderRow| ExpectedOrder {
        user: row.user_id,
        status: row.status,
        reason: row.close_reason.unwrap_or_default(),
        total: row.total,
        final_price: row.final_price,
        coupon: shown(row.coupon_id),
        own: row.own,
        remote: row.remote,
        paid_at: shown(row.paid_at),
        closed_at: shown(row.closed_at),
    };
    let mut orders: HashMap<i64, ExpectedOrder> = rows.into_iter().map(|row| (row.id, as_expected(row))).collect();
    for (placed, _) in &since.batch.new_orders {
        let order = ExpectedOrder {
            user: placed.user.get(),
            status: OrderStatus::Pending.as_str().to_owned(),
            reason: String::new(),
            total: placed.total,
            final_price: placed.final_price,
            coupon: shown(placed.coupon),
            own: pack_lines(&placed.lines),
            remote: pack_lines(&placed.remote),
            paid_at: String::new(),
            closed_at: String::new(),
        };
        orders.insert(placed.order.get(), order);
    }
    for (id, state) in &since.batch.orders {
        orders.entry(*id).and_modify(|order| {
            order.status = state.status.as_str().to_owned();
            order.reason = shown(state.reason.map(|reason| reason.as_str()));
            if let Some(at) = state.paid_at {
                order.paid_at = at.0.to_string();
            }
            order.closed_at = shown(state.closed_at.map(|at| at.0));
        });
    }
    orders
}

/// Orders whose remote hold is SETTLED in PostgreSQL and has no later decision: only these holds may be evicted. (A
/// released hold expires by itself.)
pub(super) fn evictable_holds(rows: &[HoldRow], since: &Delta) -> HashSet<i64> {
    let settled = rows.iter().filter(|row| row.state == "SETTLED").map(|row| row.order_id);
    settled.filter(|order| !since.batch.holds.contains_key(order)).collect()
}

/// State and lines by order.
pub(super) fn expected_holds(rows: Vec<HoldRow>, since: &Delta) -> HashMap<i64, (String, String)> {
    let mut holds: HashMap<i64, (String, String)> =
        rows.into_iter().map(|row| (row.order_id, (row.state, row.lines))).collect();
    for (order, hold) in &since.batch.holds {
        holds.insert(*order, (hold.state.as_str().to_owned(), pack_lines(&hold.lines)));
    }
    holds
}
