//! Applies the decisions that PostgreSQL lacks to its rows. The results are the records that Redis must have.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::delta::Delta;
use crate::{
    model::{
        CouponId, Millis, OrderStatus, RECORD_TTL_MS,
        event::{Body, OrderPlaced, pack_lines},
    },
    postgres::snapshot::{CampaignRow, CouponRow, HoldRow, OrderRow, ProductRow, RecordRow, UserRow},
    redis::{commands::DAY_FORMAT, records::pack_coupon},
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
    for new in since.batch.new_coupons.iter().chain(&since.batch.remote_coupons) {
        campaigns.entry(new.coupon).and_modify(|row| row.last_no = row.last_no.max(new.issue_no));
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

/// Orders with their payments.
pub(super) fn expected_orders(rows: Vec<OrderRow>, since: &Delta) -> HashMap<i64, OrderRow> {
    let mut orders: HashMap<i64, OrderRow> = rows.into_iter().map(|row| (row.id, row)).collect();
    for (placed, at) in &since.batch.new_orders {
        orders.insert(placed.order.get(), placed_order(placed, *at));
    }
    for (id, state) in &since.batch.orders {
        orders.entry(*id).and_modify(|order| {
            order.status = state.status.as_str().to_owned();
            order.close_reason = state.reason.map(|reason| reason.as_str().to_owned());
            order.paid_at = state.paid_at.map(|at| at.0).or(order.paid_at);
            order.closed_at = state.closed_at.map(|at| at.0);
            order.day = state.sold_on.map(|day| day.format(DAY_FORMAT).to_string()).or(order.day.take());
        });
    }
    for new in &since.batch.new_payments {
        orders.entry(new.order).and_modify(|order| {
            order.payment_id = Some(new.id);
            order.payment_type = Some(new.payment_type.as_str().to_owned());
            order.method = Some(new.method.to_owned());
            order.payment_status = Some("STARTED".to_owned());
            order.receipt = Some(new.receipt.clone());
            order.started_at = Some(new.at.0);
            (order.key_digest, order.key_fingerprint) = new.key.clone().unzip();
        });
    }
    for order in orders.values_mut() {
        let Some(state) = order.receipt.as_ref().and_then(|receipt| since.batch.payments.get(receipt)) else {
            continue;
        };
        order.payment_status = Some(state.status.to_owned());
        order.transaction_id = state.transaction.clone().or(order.transaction_id.take());
    }
    orders
}

/// An order that was only placed.
fn placed_order(placed: &OrderPlaced, at: Millis) -> OrderRow {
    OrderRow {
        id: placed.order.get(),
        user_id: placed.user.get(),
        status: OrderStatus::Pending.as_str().to_owned(),
        total: placed.total,
        discount: placed.discount,
        final_price: placed.final_price,
        coupon_id: placed.coupon.map(CouponId::get),
        placed_at: at.0,
        expires_at: placed.expires_at.0,
        closed_at: None,
        close_reason: None,
        ended_at: None,
        day: None,
        own: pack_lines(&placed.lines),
        remote: pack_lines(&placed.remote),
        payment_id: None,
        payment_type: None,
        method: None,
        payment_status: None,
        receipt: None,
        transaction_id: None,
        started_at: None,
        paid_at: None,
        key_digest: None,
        key_fingerprint: None,
    }
}

/// Orders whose remote hold has ended with a sale or a refund in PostgreSQL and has no later decision: only these holds may be
/// evicted. (A released hold expires by itself.)
pub(super) fn evictable_holds(rows: &[HoldRow], since: &Delta) -> HashSet<i64> {
    let ended = rows.iter().filter(|row| matches!(row.state.as_str(), "SETTLED" | "REFUNDED")).map(|row| row.order_id);
    ended.filter(|order| !since.batch.holds.contains_key(order)).collect()
}

/// Remote holds by order. The end of its order's hold is unknown of a hold that PostgreSQL lacks.
pub(super) fn expected_holds(rows: Vec<HoldRow>, since: &Delta) -> HashMap<i64, HoldRow> {
    let mut holds: HashMap<i64, HoldRow> = rows.into_iter().map(|row| (row.order_id, row)).collect();
    for (order, hold) in &since.batch.holds {
        let (state, lines) = (hold.state.as_str().to_owned(), pack_lines(&hold.lines));
        let new = HoldRow {
            partition: 0,
            order_id: *order,
            user_id: hold.user,
            state,
            lines,
            placed_at: None,
            expires_at: holds.get(order).and_then(|row| row.expires_at),
            paid_at: None,
        };
        holds.insert(*order, new);
    }
    holds
}

/// Idempotency records by the digest of the key.
pub(super) fn expected_records(rows: Vec<RecordRow>, since: &Delta) -> HashMap<String, RecordRow> {
    let mut records: HashMap<String, RecordRow> = rows.into_iter().map(|row| (row.digest.clone(), row)).collect();
    for (digest, (record, at)) in &since.batch.records {
        let (fingerprint, reply) = (record.fingerprint.clone(), record.reply.clone());
        let expires_at = at.plus(RECORD_TTL_MS).0;
        records
            .insert(digest.clone(), RecordRow { partition: 0, digest: digest.clone(), fingerprint, reply, expires_at });
    }
    records
}
