//! Parses the records of coupons, campaigns and orders, which the scripts write.

use std::collections::HashMap;

use anyhow::anyhow;

use crate::model::{Error, event, *};

/// A coupon in its user's hash.
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

/// What a user's partition knows of a purchase.
#[derive(Clone, Debug)]
pub struct Buyer {
    /// `None`: there is no such user.
    pub balance: Option<Won>,
    /// The user's coupon, if it is beside the user.
    pub coupon: Option<CouponRecord>,
    /// The price of each product, if the partition knows it.
    pub prices: Vec<Option<Won>>,
}

/// An order in Redis: the order itself, and the state of its gateway payment.
#[derive(Clone, Debug)]
pub struct OrderRecord {
    pub order: Order,
    /// The day of the sale of a paid order, `%Y%m%d`.
    pub day: Option<String>,
    pub gateway: Option<GatewayRecord>,
    /// The last preparation of its payment.
    pub prepared: Option<Preparation>,
    /// The payments that providers prepared for it, the latest last: the name of the type, and the provider's id.
    prepared_ids: Vec<(String, String)>,
    /// The refunded parts that its gateway has not refunded yet, the earliest first.
    pub due: Vec<DuePart>,
}

impl OrderRecord {
    /// The ids of the payments of a type that its provider prepared, the latest last.
    pub fn prepared_ids(&self, payment_type: PaymentType) -> Vec<String> {
        let is_of_type = |name: &str| name == payment_type.as_str();
        let known = self.prepared_ids.iter().filter(|(name, _)| is_of_type(name)).map(|(_, id)| id.clone());
        let mut ids: Vec<String> = known.collect();
        // An earlier version keeps the last one alone.
        if let Some(last) = self.prepared.as_ref().filter(|prepared| is_of_type(&prepared.payment_type))
            && let Some(id) = &last.transaction
            && !ids.contains(id)
        {
            ids.push(id.clone());
        }
        ids
    }
}

/// A refunded part of an order that its gateway has not refunded yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DuePart {
    /// The number of the part, from 1.
    pub number: i64,
    pub amount: Won,
    /// What the gateway has to have refunded of the payment, with this part and all before it.
    pub total: Won,
    pub since: Millis,
}

/// A gateway payment.
#[derive(Clone, Debug)]
pub struct GatewayRecord {
    pub state: GatewayState,
    pub payment_id: PaymentId,
    pub payment_type: PaymentType,
    pub receipt: String,
    /// The provider's id of the payment, if it is known.
    pub transaction: Option<String>,
    pub started_at: Millis,
    /// The beginning of its state: when it was started, or its order paid or closed.
    pub since: Millis,
    /// The number of queries to the gateway without an outcome.
    pub queries: i64,
    /// The gateway's last answer.
    pub last_answer: Option<String>,
    /// The idempotency key of the request that waits for the outcome.
    pub key: Option<IdempotencyKey>,
}

/// The state of a gateway payment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GatewayState {
    /// The payment was requested; the gateway's outcome decides on the order.
    Started,
    /// The order is closed, but the gateway may still take the money.
    Watched,
    /// The order is refunded, and the gateway must refund the money.
    RefundDue,
    /// An operator approved the payment and the order is paid; the gateway has not confirmed it yet.
    Unconfirmed,
    /// Nothing is left to do.
    Ended,
}

impl GatewayState {
    /// The text that the scripts use.
    pub fn as_str(self) -> &'static str {
        match self {
            GatewayState::Started => "STARTED",
            GatewayState::Watched => "WATCHED",
            GatewayState::RefundDue => "REFUND_DUE",
            GatewayState::Unconfirmed => "UNCONFIRMED",
            GatewayState::Ended => "ENDED",
        }
    }
}

/// Parses a time in ms. A time out of range makes its record unreadable, instead of a panic when the time is formatted.
fn time(ms: i64) -> Option<Millis> {
    (0..=Millis::MAX.0).contains(&ms).then_some(Millis(ms))
}

pub(super) fn coupon_record(id: i64, record: &str) -> Option<CouponRecord> {
    let mut parts = record.split('|');
    let issue_no = parts.next()?.parse().ok()?;
    let issued_at = time(parts.next()?.parse().ok()?)?;
    let state = parts.next()?;
    let order = parts.next()?.parse().ok().and_then(OrderId::new);
    let used_at = parts.next()?.parse().ok().and_then(time);
    let held_by = if state == "H" { order } else { None };
    Some(CouponRecord { coupon_id: CouponId::new(id)?, issue_no, issued_at, held_by, used_at, free: state == "A" })
}

/// Removes the coupons from a user's hash: the fields whose names are numbers.
pub(super) fn take_coupons(user: &mut HashMap<String, String>) -> HashMap<i64, String> {
    user.extract_if(|name, _| name.starts_with(|c: char| c.is_ascii_digit()))
        .filter_map(|(id, record)| Some((id.parse().ok()?, record)))
        .collect()
}

/// Formats a coupon record as the scripts do. `state` is A(vailable), H(eld by the order) or U(sed).
pub fn pack_coupon(
    issue_no: i64,
    issued_at: Millis,
    state: &str,
    order: Option<i64>,
    used_at: Option<Millis>,
) -> String {
    let text = |value: Option<i64>| value.map(|value| value.to_string()).unwrap_or_default();
    format!("{issue_no}|{}|{state}|{}|{}", issued_at.0, text(order), text(used_at.map(|at| at.0)))
}

/// The record of a coupon in a new state, of no order.
pub fn repack_coupon(record: &str, state: &str) -> String {
    let mut parts = record.split('|');
    let mut next = || parts.next().unwrap_or_default();
    format!("{}|{}|{state}||", next(), next())
}

pub(super) fn campaign(coupon_id: CouponId, fields: &HashMap<String, String>) -> Result<Campaign, Error> {
    let read = || {
        let int = |name: &str| fields.get(name)?.parse::<i64>().ok();
        let count = |n: i64| (0..=MAX_SAFE_INTEGER).contains(&n).then_some(n);
        let discount = Discount { kind: fields.get("type")?.parse().ok()?, amount: int("amount")? };
        let terms = CampaignTerms {
            coupon_id,
            code: fields.get("code")?.clone(),
            discount,
            conditions: fields.get("conditions").map_or(Some(CouponConditions::default()), |text| text.parse().ok())?,
            total: count(int("total")?)?,
            opens_at: time(int("opens_at")?)?,
            closes_at: time(int("closes_at")?)?,
            expires_at: time(int("expires_at")?)?,
        };
        Some(Campaign { terms, issued: count(int("issued")?)?, withheld: count(int("withheld").unwrap_or(0))? })
    };
    read().ok_or_else(|| Error::Internal(anyhow!("campaign {coupon_id} is not readable")))
}

/// Parses an order from its fields in Redis; `None` if they are not readable.
pub fn order_record(order_id: OrderId, fields: &HashMap<String, String>) -> Option<OrderRecord> {
    let text = |name: &str| fields.get(name).map(String::as_str).filter(|text| !text.is_empty());
    let int = |name: &str| text(name)?.parse::<i64>().ok();
    let left = event::unpack_lines(text("lines").unwrap_or(""))?;
    // Of an order of which parts are refunded, `lines` and `final` are what is left.
    let lines = text("ordered").map_or_else(|| Some(left.clone()), event::unpack_lines)?;
    let (total, discount, left_price) = (int("total")?, int("discount")?, int("final")?);
    let final_price = if text("ordered").is_some() { total.checked_sub(discount)? } else { left_price };
    let due = due_parts(text("due").unwrap_or(""), final_price.checked_sub(left_price)?)?;
    let begun = begun_payment(text("payment"), text("receipt"));
    let payment = begun.clone().and_then(|BegunPayment { payment_id, payment_type, receipt, paid_at, .. }| {
        Some(OrderPayment { payment_id, payment_type, receipt, paid_at: paid_at? })
    });
    let closed_at = int("closed_at").and_then(time);
    let gateway = match (text("gateway"), begun.clone()) {
        (Some(state), Some(BegunPayment { payment_id, payment_type, receipt, .. })) => Some(GatewayRecord {
            state: match state {
                "STARTED" => GatewayState::Started,
                "WATCHED" => GatewayState::Watched,
                "REFUND_DUE" => GatewayState::RefundDue,
                "UNCONFIRMED" => GatewayState::Unconfirmed,
                _ => GatewayState::Ended,
            },
            payment_id,
            payment_type,
            receipt,
            transaction: text("transaction").map(str::to_owned),
            started_at: time(int("gateway_at")?)?,
            since: closed_at
                .or(payment.as_ref().map(|payment| payment.paid_at))
                .or_else(|| time(int("gateway_at")?))?,
            queries: int("gateway_asks").unwrap_or(0),
            last_answer: text("gateway_said").map(str::to_owned),
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
        total,
        discount,
        final_price,
        coupon_id: int("coupon").and_then(CouponId::new),
        ordered_at: time(int("placed_at")?)?,
        expires_at: time(int("expires_at")?)?,
        payment,
        closed_at,
        close_reason: text("reason").and_then(|name| name.parse().ok()),
        left,
        left_price,
    };
    // An unreadable one is as none: the customer prepares the payment anew.
    let prepared = text("prepared").and_then(|json| serde_json::from_str(json).ok());
    let prepared_id = |line: &str| line.split_once(' ').map(|(name, id)| (name.to_owned(), id.to_owned()));
    let prepared_ids = text("prepared_ids").unwrap_or("").lines().filter_map(prepared_id).collect();
    Some(OrderRecord { order, day: begun.and_then(|begun| begun.day), gateway, prepared, prepared_ids, due })
}

/// The payment of an order, which a gateway may not have settled yet.
#[derive(Clone)]
struct BegunPayment {
    payment_id: PaymentId,
    payment_type: PaymentType,
    receipt: String,
    paid_at: Option<Millis>,
    day: Option<String>,
}

/// Parses a payment as `lua/lib/payment.lua` packs it.
fn begun_payment(packed: Option<&str>, receipt: Option<&str>) -> Option<BegunPayment> {
    let parts: Vec<&str> = packed?.split('|').collect();
    let [id, payment_type, _, paid_at, day] = parts[..] else { return None };
    Some(BegunPayment {
        payment_id: PaymentId::new(id.parse().ok()?)?,
        payment_type: payment_type.parse().ok()?,
        receipt: receipt?.to_owned(),
        paid_at: paid_at.parse().ok().and_then(time),
        day: Some(day).filter(|day| !day.is_empty()).map(str::to_owned),
    })
}

/// The parts that are due, packed as `number:won:since,...`. `refunded`: the won of all parts.
fn due_parts(packed: &str, refunded: Won) -> Option<Vec<DuePart>> {
    let part = |packed: &str| {
        let mut numbers = packed.split(':').map(|number| number.parse::<i64>().ok());
        let (number, amount, since) = (numbers.next()??, numbers.next()??, time(numbers.next()??)?);
        (numbers.next().is_none() && amount >= 0).then_some(DuePart { number, amount, total: 0, since })
    };
    let mut parts: Vec<DuePart> =
        packed.split(',').filter(|packed| !packed.is_empty()).map(part).collect::<Option<_>>()?;
    // Parts are refunded in their order: what is refunded is refunded with the last one.
    let mut total = refunded;
    for part in parts.iter_mut().rev() {
        part.total = total;
        total = total.checked_sub(part.amount)?;
    }
    Some(parts)
}

#[cfg(test)]
mod tests {
    use proptest::{collection, prelude::*, sample::select};

    use super::*;

    /// The form of a time in replies.
    fn shown(at: Millis) -> String {
        at.local(chrono_tz::Asia::Seoul)
    }

    const CAMPAIGN: &str = "code A;type FIXED;amount 5;total 9;issued 3;withheld 1;opens_at 0;closes_at 5;expires_at 9";
    const ORDER: &str = "user 1;status PAID;lines 1:2:300,2:1:5;total 605;discount 5;final 600;coupon 4;placed_at 1;\
        expires_at 9;receipt r;payment 7|CARD|GATEWAY|5|20260302;closed_at 6;reason REFUNDED;gateway REFUND_DUE;gateway_at 5;\
        key 0a;fingerprint 0b";
    const NUMBERS: &[&str] = &[
        "",
        "0",
        "-1",
        "1",
        "253402300799999",
        "253402300800000",
        "9007199254740991",
        "9007199254740992",
        "9223372036854775807",
        "-9223372036854775808",
        "PENDING",
        "\0",
    ];

    fn hash(record: &str) -> HashMap<String, String> {
        let field =
            |field: &str| field.split_once(' ').map(|(name, value)| (name.to_owned(), value.to_owned())).unwrap();
        record.split(';').map(field).collect()
    }

    /// A record with some fields changed or removed.
    fn changed(record: &'static str) -> impl Strategy<Value = HashMap<String, String>> {
        let names: Vec<String> = hash(record).into_keys().collect();
        let packed = select(NUMBERS).prop_map(|number| format!("7|CARD|GATEWAY|{number}|{number}"));
        let value = prop_oneof![3 => select(NUMBERS).prop_map(str::to_owned), 1 => packed, 1 => any::<String>()];
        collection::vec((select(names), proptest::option::weighted(0.9, value)), 0..5).prop_map(move |changes| {
            let mut fields = hash(record);
            for (name, value) in changes {
                match value {
                    Some(value) => fields.insert(name, value),
                    None => fields.remove(&name),
                };
            }
            fields
        })
    }

    #[test]
    fn record_of_script_parsed() {
        let found = campaign(CouponId::new(1).unwrap(), &hash(CAMPAIGN)).unwrap();
        assert_eq!((found.terms.total, found.issued, found.withheld), (9, 3, 1));
        let found = order_record(OrderId::new(1).unwrap(), &hash(ORDER)).unwrap();
        assert_eq!(found.order.lines.len(), 2);
        assert_eq!(found.gateway.unwrap().state, GatewayState::RefundDue);
        assert_eq!(coupon_record(1, "3|5|H|7|").unwrap().held_by, OrderId::new(7));
    }

    #[test]
    fn record_unreadable_when_time_beyond_calendar() {
        for (record, name) in [(CAMPAIGN, "closes_at"), (ORDER, "placed_at")] {
            for ms in ["-1", "253402300800000", "9223372036854775807", "-9223372036854775808"] {
                let mut fields = hash(record);
                fields.insert(name.to_owned(), ms.to_owned());
                let read = campaign(CouponId::new(1).unwrap(), &fields).is_ok()
                    || order_record(OrderId::new(1).unwrap(), &fields).is_some();
                assert!(!read, "{name} {ms}");
            }
        }
    }

    proptest! {
        #[test]
        fn record_parsed_can_be_serialized(
            of_campaign in changed(CAMPAIGN),
            of_order in changed(ORDER),
            of_coupon in prop_oneof![any::<String>(), collection::vec(select(NUMBERS), 0..6).prop_map(|parts| parts.join("|"))],
            id in any::<i64>(),
        ) {
            if let Ok(found) = campaign(CouponId::new(1).unwrap(), &of_campaign) {
                let terms = &found.terms;
                prop_assert!([terms.opens_at, terms.closes_at, terms.expires_at].into_iter().all(|at| !shown(at).is_empty()));
                prop_assert!(terms.total.checked_sub(found.issued + found.withheld).is_some());
            }
            if let Some(found) = order_record(OrderId::new(1).unwrap(), &of_order) {
                let order = &found.order;
                let times = [Some(order.ordered_at), Some(order.expires_at), order.closed_at];
                let paid = order.payment.as_ref().map(|payment| payment.paid_at);
                let started = found.gateway.map(|gateway| gateway.started_at);
                prop_assert!(times.into_iter().chain([paid, started]).flatten().all(|at| !shown(at).is_empty()));
            }
            if let Some(found) = coupon_record(id, &of_coupon) {
                prop_assert!([Some(found.issued_at), found.used_at].into_iter().flatten().all(|at| !shown(at).is_empty()));
            }
        }
    }
}
