//! Applies the decisions that PostgreSQL lacks to its rows. The results are the records that Redis must have.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::delta::Delta;
use crate::{
    model::{
        CouponId, Millis, OrderStatus, RECORD_TTL_MS,
        event::{Body, OrderPlaced, OrderRefunded, pack_lines},
    },
    postgres::snapshot::{
        AllotmentRow, CampaignRow, CouponRow, OrderRow, PartitionStockRow, ProductRow, RecordRow, RemoteCouponRow,
        UserLimitRow, UserRow,
    },
    redis::{
        commands::{DAY_FORMAT, NumberedPrice},
        records::pack_coupon,
    },
};

pub(super) fn expected_users(rows: Vec<UserRow>, since: &Delta) -> HashMap<i64, UserRow> {
    let mut users: HashMap<i64, UserRow> = rows.into_iter().map(|row| (row.id, row)).collect();
    for new in &since.batch.new_users {
        let (id, name) = (new.id, new.name.clone());
        users.insert(id, UserRow { id, name, balance: 0, entries: 0, open: 0 });
    }
    for (id, (name, _)) in &since.batch.names {
        users.entry(*id).and_modify(|user| user.name.clone_from(name));
    }
    for id in since.batch.forgotten.keys() {
        users.entry(*id).and_modify(|user| user.name.clear());
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

/// What users have of limits, held and paid, by user and by the field that counts it.
pub(super) fn expected_limits(rows: Vec<UserLimitRow>, since: &Delta) -> HashMap<i64, BTreeMap<String, i64>> {
    let mut limits: HashMap<i64, BTreeMap<String, i64>> = HashMap::new();
    for row in rows {
        limits.entry(row.user_id).or_default().insert(row.field, row.units);
    }
    for event in &since.events {
        let (user, lines, sign) = match &event.body {
            Body::OrderPlaced(placed) => (placed.user, &placed.lines, 1),
            Body::OrderClosed(closed) => (closed.user, &closed.lines, -1),
            Body::OrderRefunded(part) => (part.user, &part.lines, -1),
            _ => continue,
        };
        for (line, limit) in lines.iter().filter_map(|line| Some((line, line.limit?))) {
            let units = limits.entry(user.get()).or_default().entry(limit.field(line.product_id)).or_default();
            *units += sign * line.quantity;
        }
    }
    limits
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
            quarantined: 0,
            allotted: 0,
            stocked: 0,
            price_version: NumberedPrice::first(new.price, new.terms).version,
            terms: new.terms.to_string(),
        };
        products.insert(new.id, row);
    }
    for (id, described) in &since.batch.descriptions {
        products.entry(*id).and_modify(|row| {
            row.name.clone_from(&described.name);
            row.price = described.price;
            row.category.clone_from(&described.category);
            row.price_version = described.version;
            row.terms = described.terms.to_string();
        });
    }
    for (id, units) in &since.batch.units {
        products.entry(*id).and_modify(|row| {
            row.on_sale += units.on_sale;
            row.held += units.held;
            row.sold += units.sold;
            row.withheld += units.withheld;
            row.quarantined += units.quarantined;
            row.allotted += units.allotted;
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
            conditions: terms.conditions.to_string(),
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
            Body::OrderRefunded(part) => part.order,
            Body::PaymentEnded { order, .. } | Body::RefundEnded { order, .. } => *order,
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
    for event in &since.events {
        match &event.body {
            Body::OrderRefunded(part) => {
                orders.entry(part.order.get()).and_modify(|order| refund_part(order, part, event.at));
            }
            Body::RefundEnded { order, part, .. } => {
                orders.entry(order.get()).and_modify(|order| end_part(order, *part));
            }
            _ => {}
        }
    }
    for new in &since.batch.new_payments {
        orders.entry(new.order).and_modify(|order| {
            order.payment_id = Some(new.id);
            order.payment_type = Some(new.payment_type.as_str().to_owned());
            order.method = Some(new.method.to_owned());
            order.payment_status = Some("STARTED".to_owned());
            order.receipt = Some(new.receipt.clone());
            order.transaction_id = new.transaction.clone();
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

/// Refunds a part of an order.
fn refund_part(order: &mut OrderRow, part: &OrderRefunded, at: Millis) {
    order.lines = pack_lines(&part.left);
    order.refunded += part.amount;
    order.refunds += 1;
    if part.by_gateway && part.amount > 0 {
        let due = format!("{}:{}:{}", part.part, part.amount, at.0);
        order.due = if order.due.is_empty() { due } else { format!("{},{due}", order.due) };
    }
}

/// Ends a part that the gateway has refunded.
fn end_part(order: &mut OrderRow, part: i64) {
    let number = format!("{part}:");
    order.due = order.due.split(',').filter(|due| !due.starts_with(&number)).collect::<Vec<_>>().join(",");
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
        lines: pack_lines(&placed.lines),
        ordered: pack_lines(&placed.lines),
        refunded: 0,
        refunds: 0,
        due: String::new(),
        refunded_by: None,
        refunded_because: None,
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

/// The units of products of other partitions, and what was received and given back, by product.
pub(super) fn expected_partition_stock(rows: Vec<PartitionStockRow>, since: &Delta) -> HashMap<i64, PartitionStockRow> {
    let mut stock: HashMap<i64, PartitionStockRow> = rows.into_iter().map(|row| (row.product_id, row)).collect();
    for (id, units) in &since.batch.units {
        let row = stock.entry(*id).or_default();
        row.on_sale += units.on_sale;
        row.held += units.held;
        row.sold += units.sold;
        row.withheld += units.withheld;
        row.quarantined += units.quarantined;
    }
    for (id, transfer) in &since.batch.transfers {
        let row = stock.entry(*id).or_default();
        row.received += transfer.received;
        row.returned += transfer.returned;
        row.surrendered += transfer.surrendered;
    }
    stock
}

/// What the owner partition of products gave to others and took back, by product and other partition.
pub(super) fn expected_allotments(rows: Vec<AllotmentRow>, since: &Delta) -> BTreeMap<(i64, u16), [i64; 3]> {
    let counts =
        |row: AllotmentRow| ((row.product_id, row.partition as u16), [row.allotted, row.regained, row.recovered]);
    let mut allotments: BTreeMap<(i64, u16), [i64; 3]> = rows.into_iter().map(counts).collect();
    for (key, delta) in &since.batch.allotments {
        let counts = allotments.entry(*key).or_default();
        for (count, more) in counts.iter_mut().zip([delta.allotted, delta.regained, delta.recovered]) {
            *count += more;
        }
    }
    allotments
}

/// The records of the coupons that campaigns issued to users of other partitions, by user and campaign.
pub(super) fn expected_remote_coupons(
    rows: Vec<RemoteCouponRow>,
    since: &Delta,
) -> HashMap<i64, BTreeMap<i64, String>> {
    let rows = rows.into_iter().map(|row| (row.user_id, row.coupon_id, row.issue_no, row.issued_at));
    let new = since.batch.remote_coupons.iter().map(|new| (new.user, new.coupon, new.issue_no, new.at.0));
    let mut by_user: HashMap<i64, BTreeMap<i64, String>> = HashMap::new();
    for (user, coupon, issue_no, issued_at) in rows.chain(new) {
        let record = pack_coupon(issue_no, Millis(issued_at), "A", None, None);
        by_user.entry(user).or_default().insert(coupon, record);
    }
    by_user
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
