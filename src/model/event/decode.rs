//! Decodes the entries of an outbox.

use super::{
    batch::{CHECKED_OUT, packed_event, packed_events},
    fields::EventFields,
    *,
};

/// Separates the events of an entry, and the users of an event.
pub(super) const NEXT_EVENT: char = '\u{1e}';
/// The field of an entry with a batch that holds its events.
const EVENTS: &str = "events";
/// The field with the id of the request.
const REQUEST_ID: &str = "rid";
/// The parts at the end of a packed event whose request had an idempotency key.
const RECORD_PARTS: [&str; 3] = ["key", "print", "reply"];

/// Lines of releases whose orders had some in other partitions.
const REMOTE_LINES: &str = "far";

/// Why an entry of the outbox does not decode to an event.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadEvent(pub String);

/// Whether a newer program wrote the entry. The projector of this one must not pass it.
pub fn is_newer(fields: &[(String, String)]) -> bool {
    version(fields).is_some_and(|version| version > BATCH_OF_CHECKOUTS)
}

fn version(fields: &[(String, String)]) -> Option<i64> {
    fields.iter().find(|(field, _)| field == "v").and_then(|(_, value)| value.parse().ok())
}

/// One decoded decision of an entry.
#[derive(Clone, Debug)]
pub struct Decoded {
    /// `(epoch, seq)`, also if the event itself does not decode.
    pub position: Option<(i64, i64)>,
    /// [`BadEvent`] names the invalid field.
    pub event: Result<Event, BadEvent>,
}

impl Decoded {
    fn new(f: Result<EventFields<'_>, BadEvent>) -> Self {
        let number = |name: &str| f.as_ref().ok()?.get(name)?.parse().ok();
        Decoded { position: number("epoch").zip(number("seq")), event: f.and_then(|f| Event::read(&f)) }
    }

    /// The seq follows the kind, so it is readable even if the other parts are not.
    fn packed(head: EntryHead<'_>, packed: &str) -> Self {
        let number = |text: Option<&str>| text?.parse().ok();
        let position = number(head.epoch.map(|(_, epoch)| epoch)).zip(number(packed.split(SEPARATOR).nth(1)));
        Decoded { position, ..Decoded::new(unpack(head, packed)) }
    }
}

/// The kinds of version [`SINGLE_OF_USERS`].
const OF_USERS: [&str; 2] = ["users_put", "user_forgotten"];

/// Decodes the fields of a stream entry into its decisions, in their order. Returns at least one.
pub fn decode(fields: &[(String, String)]) -> Vec<Decoded> {
    let all = || fields.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    match version(fields) {
        Some(version @ (SINGLE | SINGLE_OF_REFUNDS | SINGLE_OF_USERS)) => {
            let mut decoded = Decoded::new(Ok(EventFields(all().collect())));
            let kind = all().find(|(name, _)| *name == "kind").map_or("", |(_, kind)| kind);
            if OF_USERS.contains(&kind) != (version == SINGLE_OF_USERS) {
                decoded.event = Err(EventFields::bad("kind", kind));
            }
            vec![decoded]
        }
        Some(version @ (BATCH | BATCH_WITH_REMOTE_LINES | BATCH_OF_CHECKOUTS)) => {
            let head = EntryHead { version, epoch: all().find(|(name, _)| *name == "epoch") };
            // A missing field decodes as an empty packed event, which lacks its parts.
            let packed = all().find(|(name, _)| *name == EVENTS).map_or("", |(_, packed)| packed);
            packed_events(version, packed).iter().map(|packed| Decoded::packed(head, packed)).collect()
        }
        unknown => {
            let position = Decoded::new(Ok(EventFields(all().collect()))).position;
            let why =
                unknown.map_or("field v is missing".to_owned(), |version| format!("version {version} is unknown"));
            vec![Decoded { position, event: Err(BadEvent(why)) }]
        }
    }
}

/// The fields of an entry's `nth` decision, in the form of an entry with this decision only.
pub fn fields_of(fields: &[(String, String)], nth: usize) -> Vec<(String, String)> {
    let Some(version @ (BATCH | BATCH_WITH_REMOTE_LINES | BATCH_OF_CHECKOUTS)) = version(fields) else {
        return fields.to_vec();
    };
    let all = || fields.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let head = EntryHead { version, epoch: all().find(|(name, _)| *name == "epoch") };
    let events = all().find(|(name, _)| *name == EVENTS);
    let packed = events.and_then(|(_, packed)| packed_event(version, packed, nth));
    let unpacked = packed.as_deref().and_then(|packed| unpack(head, packed).ok());
    let packed = packed.as_deref().map(|packed| (EVENTS, packed));
    let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
    match unpacked {
        Some(EventFields(named)) => [("v", "1")].into_iter().chain(named).map(owned).collect(),
        None => {
            // A checkout is two events where its version is; what is not readable is one.
            let version = if version == BATCH_OF_CHECKOUTS { BATCH } else { version }.to_string();
            [("v", version.as_str())].into_iter().chain(head.epoch).chain(packed).map(owned).collect()
        }
    }
}

/// The request id in the fields of an event.
pub fn request_id(fields: &[(String, String)]) -> Option<&str> {
    fields.iter().find(|(name, _)| name == REQUEST_ID).map(|(_, id)| id.as_str())
}

/// What all events of an entry share.
#[derive(Clone, Copy)]
struct EntryHead<'a> {
    version: i64,
    epoch: Option<(&'a str, &'a str)>,
}

/// Pairs the parts of a packed event with their names.
fn unpack<'a>(head: EntryHead<'a>, packed: &'a str) -> Result<EventFields<'a>, BadEvent> {
    let (kind, parts) = packed.split_once(SEPARATOR).unwrap_or((packed, ""));
    let names: &[&str] = match kind {
        "coupon_issued" => &["seq", "at", "rid", "coupon", "user", "issue_no", "at_home"],
        "balance_charged" => &["seq", "at", "rid", "user", "entry_no", "amount", "before", "after", "prev"],
        "order_placed" => {
            &["seq", "at", "rid", "order", "user", "lines", "total", "discount", "final", "coupon", "expires_at"]
        }
        "order_paid" => &[
            "seq",
            "at",
            "rid",
            "order",
            "user",
            "payment",
            "type",
            "amount",
            "receipt",
            "method",
            "transaction",
            "lines",
            "coupon",
            "day",
            "debit",
            "before",
            "after",
            "entry_no",
            "prev",
        ],
        "order_closed" => &[
            "seq", "at", "rid", "order", "user", "from", "status", "reason", "lines", "coupon", "receipt", "method",
            "day", "watch", "withheld", "credit", "before", "after", "entry_no", "prev",
        ],
        CHECKED_OUT => return Err(BadEvent(format!("{kind} does not have its parts"))),
        other => return Err(EventFields::bad("kind", other)),
    };
    let earlier: Vec<&'static str>;
    let names = if head.version == BATCH_WITH_REMOTE_LINES {
        let with_remote = |name: &&'static str| [Some(*name), (*name == "lines").then_some(REMOTE_LINES)];
        earlier = names.iter().flat_map(with_remote).flatten().collect();
        &earlier[..]
    } else {
        names
    };
    let mut fields = Vec::with_capacity(names.len() + RECORD_PARTS.len() + 2);
    fields.extend(head.epoch);
    fields.push(("kind", kind));
    let mut parts = parts.split(SEPARATOR);
    fields.extend(names.iter().copied().zip(parts.by_ref()));
    let complete = fields.len() - 1 - usize::from(head.epoch.is_some()) == names.len();
    let before = fields.len();
    fields.extend(RECORD_PARTS.into_iter().zip(parts.by_ref()));
    let recorded = fields.len() - before;
    if !complete || (recorded != 0 && recorded != RECORD_PARTS.len()) || parts.next().is_some() {
        return Err(BadEvent(format!("{kind} does not have its parts")));
    }
    Ok(EventFields(fields))
}

impl Event {
    fn read(f: &EventFields<'_>) -> Result<Event, BadEvent> {
        let at = f.time("at")?;
        let (epoch, seq, body) = (f.count("epoch")?, f.count("seq")?, Body::decode(f, at)?);
        let request_id = f.get(REQUEST_ID).unwrap_or_default().to_owned();
        Ok(Event { epoch, seq, at, request_id, body, record: f.record()? })
    }
}

impl Body {
    fn decode(f: &EventFields<'_>, at: Millis) -> Result<Body, BadEvent> {
        Ok(match f.text("kind")? {
            "users_created" => {
                let (count, step) = (f.count("count")?, f.count("step")?);
                if !(1..=MAX_USERS_PER_EVENT).contains(&count) || step < 1 {
                    return Err(BadEvent("the batch of users is out of bounds".into()));
                }
                Body::UsersCreated {
                    first: f.id("first", UserId::new)?,
                    step,
                    count,
                    balance: f.count("balance")?,
                    name: f.text("name")?.to_owned(),
                    prefixed: f.flag("prefixed")?,
                }
            }
            "users_put" => Body::UsersPut(f.users("users")?),
            "user_forgotten" => Body::UserForgotten {
                user: f.id("user", UserId::new)?,
                entry: f.entry_if_any(TransactionType::Payment, "debit", at)?,
            },
            "product_created" => Body::ProductCreated {
                product: f.id("product", ProductId::new)?,
                name: f.text("name")?.to_owned(),
                price: f.count("price")?,
                units: f.units("units")?,
                category: f.text("category")?.to_owned(),
                terms: f.later("terms")?,
            },
            "product_updated" => Body::ProductUpdated {
                product: f.id("product", ProductId::new)?,
                name: f.text("name")?.to_owned(),
                price: f.count("price")?,
                category: f.text("category")?.to_owned(),
                delta: f.change("delta")?,
                version: f.later_count("version")?,
                terms: f.later("terms")?,
            },
            "campaign_created" => Body::CampaignCreated(CampaignTerms {
                coupon_id: f.id("coupon", CouponId::new)?,
                code: f.text("code")?.to_owned(),
                discount: Discount { kind: f.name("type")?, amount: f.count("amount")? },
                conditions: f.later("conditions")?,
                total: f.count("total")?,
                opens_at: f.time("opens_at")?,
                closes_at: f.time("closes_at")?,
                expires_at: f.time("expires_at")?,
            }),
            "campaign_updated" => Body::CampaignUpdated {
                coupon: f.id("coupon", CouponId::new)?,
                opens_at: f.time("opens_at")?,
                closes_at: f.time("closes_at")?,
            },
            "coupon_issued" => Body::CouponIssued {
                coupon: f.id("coupon", CouponId::new)?,
                user: f.id("user", UserId::new)?,
                issue_no: f.count("issue_no")?,
                at_home: f.flag("at_home")?,
            },
            "coupon_granted" => Body::CouponGranted {
                coupon: f.id("coupon", CouponId::new)?,
                user: f.id("user", UserId::new)?,
                issue_no: f.count("issue_no")?,
                issued_at: f.time("issued_at")?,
            },
            "balance_charged" => Body::BalanceCharged(f.entry(TransactionType::Charge, "amount", at)?),
            "order_placed" => Body::OrderPlaced(OrderPlaced {
                order: f.id("order", OrderId::new)?,
                user: f.id("user", UserId::new)?,
                lines: f.lines("lines")?,
                remote: f.earlier_lines(REMOTE_LINES)?,
                total: f.count("total")?,
                discount: f.count("discount")?,
                final_price: f.count("final")?,
                coupon: f.optional_id("coupon", CouponId::new)?,
                expires_at: f.time("expires_at")?,
            }),
            "payment_started" => Body::PaymentStarted(PaymentStarted {
                order: f.id("order", OrderId::new)?,
                user: f.id("user", UserId::new)?,
                payment: f.id("payment", PaymentId::new)?,
                payment_type: f.name("type")?,
                amount: f.count("amount")?,
                receipt: f.text("receipt")?.to_owned(),
                transaction: f.get("transaction").filter(|id| !id.is_empty()).map(str::to_owned),
            }),
            "order_paid" => Body::OrderPaid(OrderPaid {
                order: f.id("order", OrderId::new)?,
                user: f.id("user", UserId::new)?,
                payment: f.id("payment", PaymentId::new)?,
                payment_type: f.name("type")?,
                amount: f.count("amount")?,
                receipt: f.text("receipt")?.to_owned(),
                // The first form of this event has no `method`: there, a transaction implies a gateway.
                by_gateway: match f.get("method") {
                    None => !f.text("transaction")?.is_empty(),
                    Some(_) => f.by_gateway()?,
                },
                transaction: f.optional("transaction")?,
                lines: f.lines("lines")?,
                coupon: f.optional_id("coupon", CouponId::new)?,
                entry: f.entry_if_any(TransactionType::Payment, "debit", at)?,
                day: f.text("day")?.to_owned(),
            }),
            "order_closed" => Body::OrderClosed(OrderClosed {
                order: f.id("order", OrderId::new)?,
                user: f.id("user", UserId::new)?,
                from: f.name("from")?,
                status: f.name("status")?,
                reason: f.name("reason")?,
                lines: f.lines("lines")?,
                coupon: f.optional_id("coupon", CouponId::new)?,
                receipt: f.optional("receipt")?,
                watched: f.optional_flag("watch")?,
                withheld: f.optional_flag("withheld")?,
                quarantined: f.optional_flag("quarantined")?,
                // An order that was not paid has none.
                by_gateway: !f.text("method")?.is_empty() && f.by_gateway()?,
                operator: f.operator(),
                entry: f.entry_if_any(TransactionType::Refund, "credit", at)?,
                day: f.text("day")?.to_owned(),
            }),
            "order_refunded" => Body::OrderRefunded(OrderRefunded {
                order: f.id("order", OrderId::new)?,
                user: f.id("user", UserId::new)?,
                part: f.count("part")?,
                lines: f.lines("lines")?,
                left: f.lines("left")?,
                amount: f.count("amount")?,
                quarantined: f.flag("quarantined")?,
                receipt: f.text("receipt")?.to_owned(),
                by_gateway: f.by_gateway()?,
                operator: f.operator(),
                entry: f.entry_if_any(TransactionType::Refund, "credit", at)?,
                day: f.text("day")?.to_owned(),
            }),
            "refund_ended" => Body::RefundEnded {
                order: f.id("order", OrderId::new)?,
                receipt: f.text("receipt")?.to_owned(),
                part: f.count("part")?,
                refunds: f.count("refunds")?,
            },
            "payment_ended" => Body::PaymentEnded {
                order: f.id("order", OrderId::new)?,
                receipt: f.text("receipt")?.to_owned(),
                outcome: match f.text("outcome")? {
                    "REFUNDED" => PaymentOutcome::Refunded,
                    "DECLINED" => PaymentOutcome::Declined,
                    "SETTLED" => PaymentOutcome::Settled,
                    "DISPUTED" => PaymentOutcome::Disputed,
                    other => return Err(EventFields::bad("outcome", other)),
                },
                transaction: f.get("transaction").filter(|text| !text.is_empty()).map(str::to_owned),
            },
            "payment_resolved" => Body::PaymentResolved(PaymentResolved {
                order: f.id("order", OrderId::new)?,
                user: f.id("user", UserId::new)?,
                receipt: f.text("receipt")?.to_owned(),
                approved: match f.text("outcome")? {
                    "APPROVED" => true,
                    "DECLINED" => false,
                    other => return Err(EventFields::bad("outcome", other)),
                },
                operator: f.text("operator")?.to_owned(),
                reason: f.text("why")?.to_owned(),
            }),
            "stock_held" => Body::RemoteHold {
                order: f.id("order", OrderId::new)?,
                user: f.id("user", UserId::new)?,
                lines: f.lines("lines")?,
                from: None,
                to: RemoteHoldState::Held,
                withheld: false,
                forgotten: false,
            },
            "stock_settled" => Body::RemoteHold {
                order: f.id("order", OrderId::new)?,
                user: f.id("user", UserId::new)?,
                lines: f.lines("lines")?,
                from: Some(f.hold_state("from")?),
                to: f.hold_state("to")?,
                withheld: f.optional_flag("withheld")?,
                forgotten: f.optional_flag("forgotten")?,
            },
            "stock_allotted" => Body::StockAllotted {
                product: f.id("product", ProductId::new)?,
                partition: f.partition("partition")?,
                units: f.units("units")?,
                total: f.count("total")?,
                price: f.count("price")?,
                version: f.count("version")?,
                terms: f.later("terms")?,
            },
            "stock_received" => Body::StockReceived {
                product: f.id("product", ProductId::new)?,
                units: f.units("units")?,
                total: f.count("total")?,
            },
            "stock_returned" => Body::StockReturned {
                product: f.id("product", ProductId::new)?,
                units: f.units("units")?,
                total: f.count("total")?,
                withheld: f.flag("withheld")?,
            },
            "stock_regained" => Body::StockRegained {
                product: f.id("product", ProductId::new)?,
                partition: f.partition("partition")?,
                units: f.units("units")?,
                total: f.count("total")?,
                withheld: f.flag("withheld")?,
            },
            "ids_reserved" => {
                let (first, count) = (f.count("first")?, f.count("count")?);
                Body::IdsReserved { sequence: f.text("sequence")?.to_owned(), last: first + count - 1 }
            }
            "rebuilt" => Body::Rebuilt {
                units: f.counts("units", ProductId::new)?,
                coupons: f.counts("coupons", CouponId::new)?,
            },
            "stock_released" => {
                Body::StockReleased { product: f.id("product", ProductId::new)?, units: f.units("units")? }
            }
            "coupons_released" => {
                Body::CouponsReleased { coupon: f.id("coupon", CouponId::new)?, count: f.units("count")? }
            }
            other => return Err(EventFields::bad("kind", other)),
        })
    }
}
