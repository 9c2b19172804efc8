//! Renders a decision as other systems see it.

use serde::Serialize;

use super::{data::*, rfc3339};
use crate::model::{
    BalanceEntry, CouponConditions, OrderLine,
    event::{self, Body, PaymentOutcome},
};

impl From<&BalanceEntry> for BalanceChangeData {
    fn from(entry: &BalanceEntry) -> Self {
        let BalanceEntry { amount, before, after, entry_no, .. } = *entry;
        BalanceChangeData { amount, before_balance: before, after_balance: after, entry_no }
    }
}

fn lines_of(lines: &[OrderLine]) -> Vec<LineData> {
    let line =
        |line: &OrderLine| LineData { product_id: line.product_id.get(), quantity: line.quantity, price: line.price };
    lines.iter().map(line).collect()
}

/// The type, the subject and the data in JSON.
pub(super) fn of(body: &Body) -> (EventType, String, String) {
    let user = |id: i64| format!("users/{id}");
    let product = |id: i64| format!("products/{id}");
    let coupon = |id: i64| format!("coupons/{id}");
    let order = |id: i64| format!("orders/{id}");
    let moved = |kind: EventType, product_id: i64, (quantity, total_quantity): (i64, i64), withheld: bool| {
        rendered(kind, product(product_id), &StockMovedData { product_id, quantity, total_quantity, withheld })
    };
    match body {
        Body::UsersCreated { first, step, count, balance, .. } => {
            let (first_user_id, step, count, balance) = (first.get(), *step, *count, *balance);
            let data = UserCreatedData { first_user_id, step, count, balance };
            rendered(EventType::UserCreated, user(first_user_id), &data)
        }
        Body::UsersPut(users) => {
            let first = users.first().map_or(0, |put| put.user.get());
            let users = users.iter().map(|put| PutUserData { user_id: put.user.get(), created: put.is_new }).collect();
            rendered(EventType::UserPut, user(first), &UserPutData { users })
        }
        Body::UserForgotten { user: id, entry } => {
            let balance = entry.as_ref().map(BalanceChangeData::from);
            let data = UserForgottenData { user_id: id.get(), balance };
            rendered(EventType::UserForgotten, user(id.get()), &data)
        }
        Body::ProductCreated { product: id, name, price, units, category, terms } => {
            let data = ProductCreatedData {
                product_id: id.get(),
                product_name: name.clone(),
                price: *price,
                category: category.clone(),
                stock_quantity: *units,
                opens_at: terms.opens_at.map(rfc3339),
                closes_at: terms.closes_at.map(rfc3339),
                limit_per_user: terms.limit_per_user,
                limit_group: terms.limit_group.map(|group| group.to_string()),
            };
            rendered(EventType::ProductCreated, product(id.get()), &data)
        }
        Body::ProductUpdated { product: id, name, price, category, delta, version, terms } => {
            let data = ProductChangedData {
                product_id: id.get(),
                product_name: name.clone(),
                price: *price,
                category: category.clone(),
                stock_delta: *delta,
                version: *version,
                opens_at: terms.opens_at.map(rfc3339),
                closes_at: terms.closes_at.map(rfc3339),
                limit_per_user: terms.limit_per_user,
                limit_group: terms.limit_group.map(|group| group.to_string()),
            };
            rendered(EventType::ProductChanged, product(id.get()), &data)
        }
        Body::CampaignCreated(terms) => {
            let CouponConditions { min_order_price, max_discount_price, product_ids, categories } = &terms.conditions;
            let data = CouponCreatedData {
                coupon_id: terms.coupon_id.get(),
                coupon_code: terms.code.clone(),
                discount_type: terms.discount.kind,
                discount_amount: terms.discount.amount,
                total_quantity: terms.total,
                opens_at: rfc3339(terms.opens_at),
                closes_at: rfc3339(terms.closes_at),
                expired_at: rfc3339(terms.expires_at),
                min_order_price: *min_order_price,
                max_discount_price: *max_discount_price,
                product_ids: product_ids.iter().map(|id| id.get()).collect(),
                categories: categories.iter().map(|category| category.as_str().to_owned()).collect(),
            };
            rendered(EventType::CouponCreated, coupon(data.coupon_id), &data)
        }
        Body::CampaignUpdated { coupon: id, opens_at, closes_at } => {
            let (opens_at, closes_at) = (rfc3339(*opens_at), rfc3339(*closes_at));
            let data = CouponChangedData { coupon_id: id.get(), opens_at, closes_at };
            rendered(EventType::CouponChanged, coupon(id.get()), &data)
        }
        Body::CouponIssued { coupon: id, user: holder, issue_no, .. } => {
            let (coupon_id, user_id, issue_no) = (id.get(), holder.get(), *issue_no);
            let data = CouponIssuedData { coupon_id, user_id, issue_no };
            rendered(EventType::CouponIssued, of_holder(coupon_id, user_id), &data)
        }
        Body::CouponGranted { coupon: id, user: holder, issue_no, issued_at } => {
            let (coupon_id, user_id, issue_no) = (id.get(), holder.get(), *issue_no);
            let data = CouponGrantedData { coupon_id, user_id, issue_no, issued_at: rfc3339(*issued_at) };
            rendered(EventType::CouponGranted, of_holder(coupon_id, user_id), &data)
        }
        Body::BalanceCharged(entry) => {
            let BalanceEntry { user_id, amount, before, after, entry_no, .. } = *entry;
            let (user_id, before_balance, after_balance) = (user_id.get(), before, after);
            let data = BalanceChargedData { user_id, amount, before_balance, after_balance, entry_no };
            rendered(EventType::BalanceCharged, user(user_id), &data)
        }
        Body::OrderPlaced(placed) => {
            let data = OrderPlacedData {
                order_id: placed.order.get(),
                user_id: placed.user.get(),
                lines: lines_of(&placed.lines).into_iter().chain(lines_of(&placed.remote)).collect(),
                total_price: placed.total,
                discount_price: placed.discount,
                final_price: placed.final_price,
                coupon_id: placed.coupon.map(|id| id.get()),
                expires_at: rfc3339(placed.expires_at),
            };
            rendered(EventType::OrderPlaced, order(data.order_id), &data)
        }
        Body::PaymentStarted(started) => {
            let data = PaymentStartedData {
                order_id: started.order.get(),
                user_id: started.user.get(),
                payment_id: started.payment.get(),
                payment_type: started.payment_type,
                amount: started.amount,
                receipt: started.receipt.clone(),
            };
            rendered(EventType::PaymentStarted, order(data.order_id), &data)
        }
        Body::OrderPaid(paid) => {
            let data = OrderPaidData {
                order_id: paid.order.get(),
                user_id: paid.user.get(),
                payment_id: paid.payment.get(),
                payment_type: paid.payment_type,
                amount: paid.amount,
                receipt: paid.receipt.clone(),
                by_gateway: paid.by_gateway,
                transaction_id: paid.transaction.clone(),
                lines: lines_of(&paid.lines),
                coupon_id: paid.coupon.map(|id| id.get()),
                balance: paid.entry.as_ref().map(BalanceChangeData::from),
            };
            rendered(EventType::OrderPaid, order(data.order_id), &data)
        }
        Body::OrderClosed(closed) => {
            let data = closed_data(closed);
            rendered(EventType::OrderClosed, order(data.order_id), &data)
        }
        Body::OrderRefunded(part) => {
            let data = OrderRefundedData {
                order_id: part.order.get(),
                user_id: part.user.get(),
                part: part.part,
                lines: lines_of(&part.lines),
                left_lines: lines_of(&part.left),
                amount: part.amount,
                receipt: part.receipt.clone(),
                by_gateway: part.by_gateway,
                by_operator: part.operator.is_some(),
                restocked: !part.quarantined,
                balance: part.entry.as_ref().map(BalanceChangeData::from),
            };
            rendered(EventType::OrderRefunded, order(data.order_id), &data)
        }
        Body::RefundEnded { order: id, receipt, part, .. } => {
            let data = RefundEndedData { order_id: id.get(), receipt: receipt.clone(), part: *part };
            rendered(EventType::RefundEnded, order(id.get()), &data)
        }
        Body::PaymentEnded { order: id, receipt, outcome, transaction } => {
            let outcome = match outcome {
                PaymentOutcome::Refunded => "REFUNDED",
                PaymentOutcome::Declined => "DECLINED",
                PaymentOutcome::Settled => "SETTLED",
                PaymentOutcome::Disputed => "DISPUTED",
            };
            let (receipt, transaction_id) = (receipt.clone(), transaction.clone());
            let data = PaymentEndedData { order_id: id.get(), receipt, outcome, transaction_id };
            rendered(EventType::PaymentEnded, order(id.get()), &data)
        }
        Body::PaymentResolved(resolved) => {
            let data = PaymentResolvedData {
                order_id: resolved.order.get(),
                user_id: resolved.user.get(),
                receipt: resolved.receipt.clone(),
                approved: resolved.approved,
            };
            rendered(EventType::PaymentResolved, order(data.order_id), &data)
        }
        Body::StockAllotted { product: id, units, total, .. } => {
            moved(EventType::StockAllotted, id.get(), (*units, *total), false)
        }
        Body::StockReceived { product: id, units, total } => {
            moved(EventType::StockReceived, id.get(), (*units, *total), false)
        }
        Body::StockReturned { product: id, units, total, withheld } => {
            moved(EventType::StockReturned, id.get(), (*units, *total), *withheld)
        }
        Body::StockRegained { product: id, units, total, withheld, .. } => {
            moved(EventType::StockRegained, id.get(), (*units, *total), *withheld)
        }
        Body::RemoteHold { order: id, user: holder, lines, to, .. } => {
            let (order_id, user_id, state) = (id.get(), holder.get(), to.as_str());
            let data = StockHeldData { order_id, user_id, lines: lines_of(lines), state };
            rendered(EventType::StockHeld, order(order_id), &data)
        }
        Body::StockReleased { product: id, units } => {
            let data = StockReleasedData { product_id: id.get(), quantity: *units };
            rendered(EventType::StockReleased, product(id.get()), &data)
        }
        Body::CouponsReleased { coupon: id, count } => {
            let data = CouponReleasedData { coupon_id: id.get(), quantity: *count };
            rendered(EventType::CouponReleased, coupon(id.get()), &data)
        }
        Body::IdsReserved { sequence, last } => {
            let data = IdsReservedData { sequence: sequence.clone(), last: *last };
            rendered(EventType::IdsReserved, format!("sequences/{sequence}"), &data)
        }
        Body::Rebuilt { units, coupons } => {
            let units = units.iter().map(|(id, n)| WithheldUnitsData { product_id: id.get(), quantity: *n });
            let coupons = coupons.iter().map(|(id, n)| WithheldCouponsData { coupon_id: id.get(), quantity: *n });
            let data = PartitionRebuiltData { withheld_products: units.collect(), withheld_coupons: coupons.collect() };
            rendered(EventType::PartitionRebuilt, "partition".to_owned(), &data)
        }
    }
}

fn closed_data(closed: &event::OrderClosed) -> OrderClosedData {
    OrderClosedData {
        order_id: closed.order.get(),
        user_id: closed.user.get(),
        from_status: closed.from,
        order_status: closed.status,
        close_reason: closed.reason,
        lines: lines_of(&closed.lines),
        coupon_id: closed.coupon.map(|id| id.get()),
        receipt: closed.receipt.clone(),
        by_gateway: closed.by_gateway,
        by_operator: closed.operator.is_some(),
        restocked: !closed.withheld && !closed.quarantined,
        balance: closed.entry.as_ref().map(BalanceChangeData::from),
    }
}

/// The subject of a user's coupon: the issues of one campaign need no order among themselves.
fn of_holder(coupon: i64, user: i64) -> String {
    format!("users/{user}/coupons/{coupon}")
}

fn rendered(kind: EventType, subject: String, data: &impl Serialize) -> (EventType, String, String) {
    // Structs of numbers and texts: serde_json refuses none of them.
    (kind, subject, serde_json::to_string(data).unwrap_or_default())
}
