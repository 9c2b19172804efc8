//! What Redis keeps of a coupon, a campaign and an order, read back from the scripts' own notation.

use std::collections::HashMap;

use anyhow::anyhow;

use crate::domain::{Error, event, model::*, types::*};

/// What a user's hash of coupons says about one of them.
#[derive(Clone, Copy, Debug)]
pub struct CouponRecord {
    pub coupon_id: CouponId,
    pub issue_no: i64,
    pub issued_at: Millis,
    pub held_by: Option<OrderId>,
    pub used_at: Option<Millis>,
    /// Neither held nor used.
    pub free: bool,
}

/// An order as Redis keeps it: what the API shows, and what its gateway payment needs.
#[derive(Clone, Debug)]
pub struct OrderRecord {
    pub order: Order,
    /// The lines held in other partitions; part of the order's lines.
    pub far: Vec<OrderLine>,
    /// `%Y%m%d`, of a paid order.
    pub day: Option<String>,
    pub gateway: Option<GatewayRecord>,
}

/// How far a gateway payment is.
#[derive(Clone, Debug)]
pub struct GatewayRecord {
    pub state: GatewayState,
    pub payment_id: PaymentId,
    pub payment_type: PaymentType,
    pub receipt: String,
    pub started_at: Millis,
    /// The request that waits for the verdict.
    pub key: Option<IdempotencyKey>,
}

/// Where a gateway payment stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GatewayState {
    /// The gateway was asked; its word decides about the order.
    Started,
    /// The order is closed, but nobody could say for certain that no money was taken.
    Watched,
    /// The order is refunded, and the gateway must give the money back.
    RefundDue,
    /// Nothing is left to do.
    Ended,
}

pub(super) fn coupon_record(id: i64, record: &str) -> Option<CouponRecord> {
    let mut parts = record.split('|');
    let issue_no = parts.next()?.parse().ok()?;
    let issued_at = Millis(parts.next()?.parse().ok()?);
    let state = parts.next()?;
    let order = parts.next()?.parse().ok().and_then(OrderId::new);
    let used_at = parts.next()?.parse().ok().map(Millis);
    let held_by = if state == "H" { order } else { None };
    Some(CouponRecord { coupon_id: CouponId::new(id)?, issue_no, issued_at, held_by, used_at, free: state == "A" })
}

/// The same the other way round, in the scripts' notation: `state` is A(vailable), H(eld by the order) or U(sed).
pub fn pack_coupon(
    issue_no: i64,
    issued_at: Millis,
    state: &str,
    order: Option<i64>,
    used_at: Option<Millis>,
) -> String {
    let shown = |value: Option<i64>| value.map(|value| value.to_string()).unwrap_or_default();
    format!("{issue_no}|{}|{state}|{}|{}", issued_at.0, shown(order), shown(used_at.map(|at| at.0)))
}

pub(super) fn campaign(coupon_id: CouponId, fields: &HashMap<String, String>) -> Result<Campaign, Error> {
    let read = || {
        let int = |name: &str| fields.get(name)?.parse::<i64>().ok();
        let discount = Discount { kind: fields.get("type")?.parse().ok()?, amount: int("amount")? };
        let terms = CampaignTerms {
            coupon_id,
            code: fields.get("code")?.clone(),
            discount,
            total: int("total")?,
            opens_at: Millis(int("opens_at")?),
            closes_at: Millis(int("closes_at")?),
            expires_at: Millis(int("expires_at")?),
        };
        Some(Campaign { terms, issued: int("issued")?, withheld: int("withheld").unwrap_or(0) })
    };
    read().ok_or_else(|| Error::Internal(anyhow!("campaign {coupon_id} is not readable")))
}

pub(super) fn order_record(order_id: OrderId, fields: &HashMap<String, String>) -> Option<OrderRecord> {
    let text = |name: &str| fields.get(name).map(String::as_str).filter(|text| !text.is_empty());
    let int = |name: &str| text(name)?.parse::<i64>().ok();
    let far = event::unpack_lines(text("far").unwrap_or(""))?;
    let mut lines = event::unpack_lines(text("lines").unwrap_or(""))?;
    lines.extend(far.iter().copied());
    let payment_id = int("payment").and_then(PaymentId::new);
    let payment_type = text("type").and_then(|word| word.parse().ok());
    let receipt = text("receipt").map(str::to_owned);
    let payment = match (payment_id, payment_type, &receipt, int("paid_at")) {
        (Some(payment_id), Some(payment_type), Some(receipt), Some(paid_at)) => {
            Some(OrderPayment { payment_id, payment_type, receipt: receipt.clone(), paid_at: Millis(paid_at) })
        }
        _ => None,
    };
    let gateway = match (text("gateway"), payment_id, payment_type, receipt) {
        (Some(state), Some(payment_id), Some(payment_type), Some(receipt)) => Some(GatewayRecord {
            state: match state {
                "STARTED" => GatewayState::Started,
                "WATCHED" => GatewayState::Watched,
                "REFUND_DUE" => GatewayState::RefundDue,
                _ => GatewayState::Ended,
            },
            payment_id,
            payment_type,
            receipt,
            started_at: Millis(int("gateway_at")?),
            key: match (text("key"), text("fingerprint")) {
                (Some(digest), Some(fingerprint)) => {
                    Some(IdempotencyKey { digest: digest.to_owned(), fingerprint: fingerprint.to_owned() })
                }
                _ => None,
            },
        }),
        _ => None,
    };
    let order = Order {
        order_id,
        user_id: UserId::new(int("user")?)?,
        status: text("status")?.parse().ok()?,
        lines,
        total: int("total")?,
        discount: int("discount")?,
        final_price: int("final")?,
        coupon_id: int("coupon").and_then(CouponId::new),
        ordered_at: Millis(int("placed_at")?),
        expires_at: Millis(int("expires_at")?),
        payment,
        closed_at: int("closed_at").map(Millis),
        close_reason: text("reason").and_then(|word| word.parse().ok()),
    };
    Some(OrderRecord { order, far, day: text("day").map(str::to_owned), gateway })
}
