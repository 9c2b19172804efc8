//! The outbox's vocabulary: what a decision wrote down, whole, so that nobody has to look at Redis to understand it.
//!
//! An entry of the outbox has one event, as a flat list of fields (version 1), or those of a call that decided many requests
//! at once, packed into one text (version 2). Decoding trusts nothing: what does not fit is an error with the reason,
//! which the projector files as a dead letter.

use std::str::FromStr;

use super::*;

/// The versions of entries that this code writes and reads: of one event, and of many.
pub const SINGLE: i64 = 1;
pub const BATCH: i64 = 2;
/// What separates the parts of a packed event, and the events of an entry; no part has a control character in it.
pub const SEPARATOR: char = '\u{1f}';
const NEXT_EVENT: char = '\u{1e}';
/// The field of all events of an entry.
const EVENTS: &str = "events";
/// The field of the id of the request that an event is of.
const REQUEST_ID: &str = "rid";
/// The parts that a packed event ends with where its request had an idempotency key.
const RECORD_PARTS: [&str; 3] = ["key", "print", "reply"];
/// The most users that one event creates.
pub const MAX_USERS_PER_EVENT: i64 = 10_000;

/// A decision, and where it stands in its partition's books.
#[derive(Clone, Debug)]
pub struct Event {
    pub epoch: i64,
    pub seq: i64,
    pub at: Millis,
    /// Of the request that it was decided for; empty where it has none.
    pub request_id: String,
    pub body: Body,
    /// What is to be answered to a repeat of the request.
    pub record: Option<Record>,
}

/// The idempotency record of a decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Of the key, as in the record's name.
    pub digest: String,
    /// Of the request.
    pub fingerprint: String,
    /// The script's reply, packed: see [`unpack_reply`].
    pub reply: String,
}

/// What was decided. Lines named `lines` are of products at home in the event's partition, `far` of others.
#[derive(Clone, Debug)]
pub enum Body {
    UsersCreated {
        first: UserId,
        step: i64,
        count: i64,
        balance: Won,
        name: String,
        prefixed: bool,
    },
    ProductCreated {
        product: ProductId,
        name: String,
        price: Won,
        units: i64,
        category: String,
    },
    ProductUpdated {
        product: ProductId,
        name: String,
        price: Won,
        category: String,
        delta: i64,
    },
    CampaignCreated(CampaignTerms),
    CampaignUpdated {
        coupon: CouponId,
        opens_at: Millis,
        closes_at: Millis,
    },
    CouponIssued {
        coupon: CouponId,
        user: UserId,
        issue_no: i64,
        at_home: bool,
    },
    CouponGranted {
        coupon: CouponId,
        user: UserId,
        issue_no: i64,
        issued_at: Millis,
    },
    BalanceCharged(BalanceEntry),
    OrderPlaced(Placed),
    PaymentStarted(Started),
    OrderPaid(Paid),
    OrderClosed(Closed),
    PaymentEnded {
        order: OrderId,
        receipt: String,
        outcome: PaymentOutcome,
        /// The gateway's transaction, where it is known only now.
        transaction: Option<String>,
    },
    PaymentResolved(Resolved),
    StockHeld {
        order: OrderId,
        user: UserId,
        lines: Vec<OrderLine>,
    },
    StockSettled {
        order: OrderId,
        user: UserId,
        lines: Vec<OrderLine>,
        from: HoldState,
        to: HoldState,
        /// What was held is kept off sale, as in [`Closed`].
        withheld: bool,
        /// No order came of it, and none can.
        forgotten: bool,
    },
    /// Ids that a request will create under, however often it is repeated.
    IdsReserved {
        sequence: String,
        last: i64,
    },
    /// A rebuild: what it keeps off sale.
    Rebuilt {
        units: Vec<(ProductId, i64)>,
        coupons: Vec<(CouponId, i64)>,
    },
    StockReleased {
        product: ProductId,
        units: i64,
    },
    CouponsReleased {
        coupon: CouponId,
        count: i64,
    },
}

/// `order_placed`
#[derive(Clone, Debug)]
pub struct Placed {
    pub order: OrderId,
    pub user: UserId,
    pub lines: Vec<OrderLine>,
    pub remote: Vec<OrderLine>,
    pub total: Won,
    pub discount: Won,
    pub final_price: Won,
    pub coupon: Option<CouponId>,
    pub expires_at: Millis,
}

/// `payment_started`
#[derive(Clone, Debug)]
pub struct Started {
    pub order: OrderId,
    pub user: UserId,
    pub payment: PaymentId,
    pub payment_type: PaymentType,
    pub amount: Won,
    pub receipt: String,
}

/// How a gateway payment ended that outlived the decision about its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PaymentOutcome {
    Refunded,
    Declined,
    /// The gateway says what an operator said: approved.
    Settled,
    /// The gateway never said so.
    Disputed,
}

/// `payment_resolved`: what an operator said of a payment, beside the `order_paid` or `order_closed` that follows from it.
#[derive(Clone, Debug)]
pub struct Resolved {
    pub order: OrderId,
    pub user: UserId,
    pub receipt: String,
    pub approved: bool,
    pub operator: String,
    pub reason: String,
}

/// `order_paid`
#[derive(Clone, Debug)]
pub struct Paid {
    pub order: OrderId,
    pub user: UserId,
    pub payment: PaymentId,
    pub payment_type: PaymentType,
    pub amount: Won,
    pub receipt: String,
    /// Paid through a gateway, and not from the balance.
    pub by_gateway: bool,
    /// The gateway's transaction; `None` where the balance paid, or an operator did not know it.
    pub transaction: Option<String>,
    pub lines: Vec<OrderLine>,
    pub remote: Vec<OrderLine>,
    pub coupon: Option<CouponId>,
    /// What left the balance; `None` where nothing did.
    pub entry: Option<BalanceEntry>,
    /// The day of the sale, `%Y%m%d` in the service's zone.
    pub day: String,
}

/// `order_closed`
#[derive(Clone, Debug)]
pub struct Closed {
    pub order: OrderId,
    pub user: UserId,
    /// PENDING or PAID.
    pub from: OrderStatus,
    pub status: OrderStatus,
    pub reason: CloseReason,
    pub lines: Vec<OrderLine>,
    pub remote: Vec<OrderLine>,
    pub coupon: Option<CouponId>,
    /// The payment that was declined or refunded.
    pub receipt: Option<String>,
    /// The gateway could not say for certain that it took nothing, and is asked for a while yet.
    pub watched: bool,
    /// What the order held is kept off sale: decisions that were lost may have paid it.
    pub withheld: bool,
    pub by_gateway: bool,
    /// What came back to the balance.
    pub entry: Option<BalanceEntry>,
    /// The day of the sale, `%Y%m%d`; empty where there was none.
    pub day: String,
}

/// Where stock stands that is held for an order at home in another partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HoldState {
    Held,
    Settled,
    /// Back on sale, as is the next.
    Released,
    Refunded,
}

impl HoldState {
    /// As Redis and Postgres have it.
    pub fn as_str(self) -> &'static str {
        match self {
            HoldState::Held => "HELD",
            HoldState::Settled => "SETTLED",
            HoldState::Released => "RELEASED",
            HoldState::Refunded => "REFUNDED",
        }
    }
}

/// Why an entry of the outbox is no event.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadEvent(pub String);

/// Few enough to be searched one by one.
struct Fields<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Fields<'a> {
    fn get(&self, name: &str) -> Option<&'a str> {
        self.0.iter().find(|(field, _)| *field == name).map(|(_, value)| *value)
    }

    fn text(&self, name: &str) -> Result<&'a str, BadEvent> {
        self.get(name).ok_or_else(|| BadEvent(format!("field {name} is missing")))
    }

    fn bad(name: &str, value: &str) -> BadEvent {
        BadEvent(format!("field {name} is {:?}", value.chars().take(40).collect::<String>()))
    }

    fn int(&self, name: &str) -> Result<i64, BadEvent> {
        let text = self.text(name)?;
        let safe = |n: &i64| (-MAX_SAFE_INTEGER..=MAX_SAFE_INTEGER).contains(n);
        text.parse().ok().filter(safe).ok_or_else(|| Self::bad(name, text))
    }

    /// A change of units or coupons: never more than there may be of one thing, so that no batch's sum overflows.
    fn change(&self, name: &str) -> Result<i64, BadEvent> {
        let n = self.int(name)?;
        if (-MAX_STOCK..=MAX_STOCK).contains(&n) { Ok(n) } else { Err(BadEvent(format!("field {name} is too much"))) }
    }

    fn units(&self, name: &str) -> Result<i64, BadEvent> {
        self.count(name)?;
        self.change(name)
    }

    fn count(&self, name: &str) -> Result<i64, BadEvent> {
        let n = self.int(name)?;
        if n >= 0 { Ok(n) } else { Err(BadEvent(format!("field {name} is negative"))) }
    }

    fn id<T>(&self, name: &str, new: fn(i64) -> Option<T>) -> Result<T, BadEvent> {
        new(self.int(name)?).ok_or_else(|| BadEvent(format!("field {name} is no id")))
    }

    fn optional_id<T>(&self, name: &str, new: fn(i64) -> Option<T>) -> Result<Option<T>, BadEvent> {
        if self.text(name)?.is_empty() { Ok(None) } else { self.id(name, new).map(Some) }
    }

    fn name<T: FromStr>(&self, name: &str) -> Result<T, BadEvent> {
        let text = self.text(name)?;
        text.parse().map_err(|_| Self::bad(name, text))
    }

    fn optional(&self, name: &str) -> Result<Option<String>, BadEvent> {
        self.text(name).map(|text| (!text.is_empty()).then(|| text.to_owned()))
    }

    fn time(&self, name: &str) -> Result<Millis, BadEvent> {
        let at = Millis(self.count(name)?);
        if at <= Millis::MAX { Ok(at) } else { Err(BadEvent(format!("field {name} is no time"))) }
    }

    fn flag(&self, name: &str) -> Result<bool, BadEvent> {
        match self.text(name)? {
            "1" => Ok(true),
            "0" => Ok(false),
            other => Err(Self::bad(name, other)),
        }
    }

    /// One that events have not had from the beginning.
    fn optional_flag(&self, name: &str) -> Result<bool, BadEvent> {
        if self.get(name).is_some() { self.flag(name) } else { Ok(false) }
    }

    fn lines(&self, name: &str) -> Result<Vec<OrderLine>, BadEvent> {
        unpack_lines(self.text(name)?).ok_or_else(|| BadEvent(format!("field {name} is no list of lines")))
    }

    fn hold_state(&self, name: &str) -> Result<HoldState, BadEvent> {
        match self.text(name)? {
            "HELD" => Ok(HoldState::Held),
            "SETTLED" => Ok(HoldState::Settled),
            "RELEASED" => Ok(HoldState::Released),
            "REFUNDED" => Ok(HoldState::Refunded),
            other => Err(Self::bad(name, other)),
        }
    }

    /// `id:count,...`
    fn counts<T>(&self, name: &str, new: fn(i64) -> Option<T>) -> Result<Vec<(T, i64)>, BadEvent> {
        let text = self.text(name)?;
        let pair = |packed: &str| {
            let (id, count) = packed.split_once(':')?;
            Some((new(id.parse().ok()?)?, count.parse().ok().filter(|n| (1..=MAX_STOCK).contains(n))?))
        };
        let pairs = text.split(',').filter(|packed| !packed.is_empty()).map(pair);
        pairs.collect::<Option<_>>().ok_or_else(|| Self::bad(name, text))
    }

    fn record(&self) -> Result<Option<Record>, BadEvent> {
        if self.get("key").is_none() {
            return Ok(None);
        }
        let (digest, fingerprint, reply) = (self.text("key")?, self.text("print")?, self.text("reply")?);
        unpack_reply(reply).ok_or_else(|| Self::bad("reply", reply))?;
        Ok(Some(Record { digest: digest.into(), fingerprint: fingerprint.into(), reply: reply.into() }))
    }

    fn entry(&self, kind: TransactionType, amount: &str, at: Millis) -> Result<BalanceEntry, BadEvent> {
        Ok(BalanceEntry {
            user_id: self.id("user", UserId::new)?,
            entry_no: self.count("entry_no")?,
            kind,
            amount: self.count(amount)?,
            before: self.count("before")?,
            after: self.count("after")?,
            order_id: if kind == TransactionType::Charge { None } else { Some(self.id("order", OrderId::new)?) },
            at,
        })
    }
}

/// Reads lines packed as `product:quantity:price,...`; `None` where they are not.
pub fn unpack_lines(packed: &str) -> Option<Vec<OrderLine>> {
    if packed.is_empty() {
        return Some(Vec::new());
    }
    let lines: Vec<OrderLine> = packed.split(',').take(MAX_ORDER_LINES + 1).map(unpack_line).collect::<Option<_>>()?;
    (lines.len() <= MAX_ORDER_LINES).then_some(lines)
}

/// Packs lines as `product:quantity:price,...`.
pub fn pack_lines(lines: &[OrderLine]) -> String {
    let packed = lines.iter().map(|line| format!("{}:{}:{}", line.product_id, line.quantity, line.price));
    packed.collect::<Vec<_>>().join(",")
}

/// The words of a packed reply, each preceded by its length in bytes (`4:PAID2:17`); `None` where it is none.
pub fn unpack_reply(mut packed: &str) -> Option<Vec<&str>> {
    let mut words = Vec::new();
    while !packed.is_empty() {
        let (length, rest) = packed.split_once(':')?;
        let (word, rest) = rest.split_at_checked(length.parse().ok()?)?;
        words.push(word);
        packed = rest;
    }
    Some(words)
}

fn unpack_line(packed: &str) -> Option<OrderLine> {
    let mut parts = packed.split(':');
    let product_id = ProductId::new(parts.next()?.parse().ok()?)?;
    let quantity = parts.next()?.parse().ok().filter(|q| (1..=MAX_LINE_QUANTITY).contains(q))?;
    let price = parts.next()?.parse().ok().filter(|p| (0..=MAX_PRICE).contains(p))?;
    parts.next().is_none().then_some(OrderLine { product_id, quantity, price })
}

/// Whether an entry was written by a program newer than this one, which has to wait for it.
pub fn is_newer(fields: &[(String, String)]) -> bool {
    version(fields).is_some_and(|version| version > BATCH)
}

fn version(fields: &[(String, String)]) -> Option<i64> {
    fields.iter().find(|(field, _)| field == "v").and_then(|(_, value)| value.parse().ok())
}

/// One decision of an entry.
#[derive(Clone, Debug)]
pub struct Decoded {
    /// `(epoch, seq)`, even of one that is otherwise no event.
    pub position: Option<(i64, i64)>,
    /// [`BadEvent`] says which field does not fit.
    pub event: Result<Event, BadEvent>,
}

impl Decoded {
    fn new(f: Result<Fields<'_>, BadEvent>) -> Self {
        let number = |name: &str| f.as_ref().ok()?.get(name)?.parse().ok();
        Decoded { position: number("epoch").zip(number("seq")), event: f.and_then(|f| Event::read(&f)) }
    }

    /// Its number comes right after its kind, whatever else is wrong with it.
    fn packed(epoch: Option<(&str, &str)>, packed: &str) -> Self {
        let number = |text: Option<&str>| text?.parse().ok();
        let position = number(epoch.map(|(_, epoch)| epoch)).zip(number(packed.split(SEPARATOR).nth(1)));
        Decoded { position, ..Decoded::new(unpack(epoch, packed)) }
    }
}

/// Decodes a stream entry's fields: at least one, in the order of their decisions.
pub fn decode(fields: &[(String, String)]) -> Vec<Decoded> {
    let all = || fields.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    match version(fields) {
        Some(SINGLE) => vec![Decoded::new(Ok(Fields(all().collect())))],
        Some(BATCH) => {
            let epoch = all().find(|(name, _)| *name == "epoch");
            // One without events is one that does not have its parts.
            let packed = all().find(|(name, _)| *name == EVENTS).map_or("", |(_, packed)| packed);
            packed.split(NEXT_EVENT).map(|packed| Decoded::packed(epoch, packed)).collect()
        }
        unknown => {
            let position = Decoded::new(Ok(Fields(all().collect()))).position;
            let why =
                unknown.map_or("field v is missing".to_owned(), |version| format!("version {version} is unknown"));
            vec![Decoded { position, event: Err(BadEvent(why)) }]
        }
    }
}

/// The fields of an entry's `nth` decision, as if it were the only one of an entry.
pub fn fields_of(fields: &[(String, String)], nth: usize) -> Vec<(String, String)> {
    if version(fields) != Some(BATCH) {
        return fields.to_vec();
    }
    let all = || fields.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let epoch = all().find(|(name, _)| *name == "epoch");
    let packed = all().find(|(name, _)| *name == EVENTS).and_then(|(_, packed)| packed.split(NEXT_EVENT).nth(nth));
    let unpacked = packed.and_then(|packed| unpack(epoch, packed).ok());
    let packed = packed.map(|packed| (EVENTS, packed));
    let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
    match unpacked {
        Some(Fields(named)) => [("v", "1")].into_iter().chain(named).map(owned).collect(),
        None => [("v", "2")].into_iter().chain(epoch).chain(packed).map(owned).collect(),
    }
}

/// The id of the request that an event is of, in the fields of one.
pub fn request_id(fields: &[(String, String)]) -> Option<&str> {
    fields.iter().find(|(name, _)| name == REQUEST_ID).map(|(_, id)| id.as_str())
}

/// The parts of a packed event by their names.
fn unpack<'a>(epoch: Option<(&'a str, &'a str)>, packed: &'a str) -> Result<Fields<'a>, BadEvent> {
    let (kind, parts) = packed.split_once(SEPARATOR).unwrap_or((packed, ""));
    let names: &[&str] = match kind {
        "coupon_issued" => &["seq", "at", "rid", "coupon", "user", "issue_no", "at_home"],
        "balance_charged" => &["seq", "at", "rid", "user", "entry_no", "amount", "before", "after", "prev"],
        "order_placed" => {
            &["seq", "at", "rid", "order", "user", "lines", "far", "total", "discount", "final", "coupon", "expires_at"]
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
            "far",
            "coupon",
            "day",
            "debit",
            "before",
            "after",
            "entry_no",
            "prev",
        ],
        "order_closed" => &[
            "seq", "at", "rid", "order", "user", "from", "status", "reason", "lines", "far", "coupon", "receipt",
            "method", "day", "watch", "withheld", "credit", "before", "after", "entry_no", "prev",
        ],
        other => return Err(Fields::bad("kind", other)),
    };
    let mut fields = Vec::with_capacity(names.len() + RECORD_PARTS.len() + 2);
    fields.extend(epoch);
    fields.push(("kind", kind));
    let mut parts = parts.split(SEPARATOR);
    fields.extend(names.iter().copied().zip(parts.by_ref()));
    let whole = fields.len() - 1 - usize::from(epoch.is_some()) == names.len();
    let before = fields.len();
    fields.extend(RECORD_PARTS.into_iter().zip(parts.by_ref()));
    let recorded = fields.len() - before;
    if !whole || (recorded != 0 && recorded != RECORD_PARTS.len()) || parts.next().is_some() {
        return Err(BadEvent(format!("{kind} does not have its parts")));
    }
    Ok(Fields(fields))
}

impl Event {
    fn read(f: &Fields<'_>) -> Result<Event, BadEvent> {
        let at = f.time("at")?;
        let (epoch, seq, body) = (f.count("epoch")?, f.count("seq")?, Body::decode(f, at)?);
        let request_id = f.get(REQUEST_ID).unwrap_or_default().to_owned();
        Ok(Event { epoch, seq, at, request_id, body, record: f.record()? })
    }

    /// What the event did to `user`'s balance, if anything.
    pub fn entry_of(&self, user: UserId) -> Option<BalanceEntry> {
        let entry = match &self.body {
            Body::BalanceCharged(entry) => Some(entry.clone()),
            Body::OrderPaid(paid) => paid.entry.clone(),
            Body::OrderClosed(closed) => closed.entry.clone(),
            Body::UsersCreated { balance, .. } if *balance > 0 => Some(opening_entry(user, *balance, self.at)),
            _ => None,
        };
        entry.filter(|entry| entry.user_id == user)
    }
}

/// The first entry of a user that was created with a balance.
pub fn opening_entry(user_id: UserId, balance: Won, at: Millis) -> BalanceEntry {
    let kind = TransactionType::Charge;
    BalanceEntry { user_id, entry_no: 1, kind, amount: balance, before: 0, after: balance, order_id: None, at }
}

impl Body {
    /// The order that it is about, if any.
    pub fn order(&self) -> Option<OrderId> {
        match self {
            Body::OrderPlaced(placed) => Some(placed.order),
            Body::PaymentStarted(started) => Some(started.order),
            Body::OrderPaid(paid) => Some(paid.order),
            Body::OrderClosed(closed) => Some(closed.order),
            Body::PaymentResolved(resolved) => Some(resolved.order),
            Body::PaymentEnded { order, .. } | Body::StockHeld { order, .. } | Body::StockSettled { order, .. } => {
                Some(*order)
            }
            _ => None,
        }
    }

    fn decode(f: &Fields<'_>, at: Millis) -> Result<Body, BadEvent> {
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
            "product_created" => Body::ProductCreated {
                product: f.id("product", ProductId::new)?,
                name: f.text("name")?.to_owned(),
                price: f.count("price")?,
                units: f.units("units")?,
                category: f.text("category")?.to_owned(),
            },
            "product_updated" => Body::ProductUpdated {
                product: f.id("product", ProductId::new)?,
                name: f.text("name")?.to_owned(),
                price: f.count("price")?,
                category: f.text("category")?.to_owned(),
                delta: f.change("delta")?,
            },
            "campaign_created" => Body::CampaignCreated(CampaignTerms {
                coupon_id: f.id("coupon", CouponId::new)?,
                code: f.text("code")?.to_owned(),
                discount: Discount { kind: f.name("type")?, amount: f.count("amount")? },
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
            "order_placed" => Body::OrderPlaced(Placed {
                order: f.id("order", OrderId::new)?,
                user: f.id("user", UserId::new)?,
                lines: f.lines("lines")?,
                remote: f.lines("far")?,
                total: f.count("total")?,
                discount: f.count("discount")?,
                final_price: f.count("final")?,
                coupon: f.optional_id("coupon", CouponId::new)?,
                expires_at: f.time("expires_at")?,
            }),
            "payment_started" => Body::PaymentStarted(Started {
                order: f.id("order", OrderId::new)?,
                user: f.id("user", UserId::new)?,
                payment: f.id("payment", PaymentId::new)?,
                payment_type: f.name("type")?,
                amount: f.count("amount")?,
                receipt: f.text("receipt")?.to_owned(),
            }),
            "order_paid" => Body::OrderPaid(Paid {
                order: f.id("order", OrderId::new)?,
                user: f.id("user", UserId::new)?,
                payment: f.id("payment", PaymentId::new)?,
                payment_type: f.name("type")?,
                amount: f.count("amount")?,
                receipt: f.text("receipt")?.to_owned(),
                // The first version of this event said it by the transaction alone.
                by_gateway: f.get("method").map_or(!f.text("transaction")?.is_empty(), |method| method == "GATEWAY"),
                transaction: f.optional("transaction")?,
                lines: f.lines("lines")?,
                remote: f.lines("far")?,
                coupon: f.optional_id("coupon", CouponId::new)?,
                entry: match f.count("debit")? {
                    0 => None,
                    _ => Some(f.entry(TransactionType::Payment, "debit", at)?),
                },
                day: f.text("day")?.to_owned(),
            }),
            "order_closed" => Body::OrderClosed(Closed {
                order: f.id("order", OrderId::new)?,
                user: f.id("user", UserId::new)?,
                from: f.name("from")?,
                status: f.name("status")?,
                reason: f.name("reason")?,
                lines: f.lines("lines")?,
                remote: f.lines("far")?,
                coupon: f.optional_id("coupon", CouponId::new)?,
                receipt: f.optional("receipt")?,
                watched: f.optional_flag("watch")?,
                withheld: f.optional_flag("withheld")?,
                by_gateway: f.text("method")? == "GATEWAY",
                entry: match f.count("credit")? {
                    0 => None,
                    _ => Some(f.entry(TransactionType::Refund, "credit", at)?),
                },
                day: f.text("day")?.to_owned(),
            }),
            "payment_ended" => Body::PaymentEnded {
                order: f.id("order", OrderId::new)?,
                receipt: f.text("receipt")?.to_owned(),
                outcome: match f.text("outcome")? {
                    "REFUNDED" => PaymentOutcome::Refunded,
                    "DECLINED" => PaymentOutcome::Declined,
                    "SETTLED" => PaymentOutcome::Settled,
                    "DISPUTED" => PaymentOutcome::Disputed,
                    other => return Err(Fields::bad("outcome", other)),
                },
                transaction: f.get("transaction").filter(|text| !text.is_empty()).map(str::to_owned),
            },
            "payment_resolved" => Body::PaymentResolved(Resolved {
                order: f.id("order", OrderId::new)?,
                user: f.id("user", UserId::new)?,
                receipt: f.text("receipt")?.to_owned(),
                approved: match f.text("outcome")? {
                    "APPROVED" => true,
                    "DECLINED" => false,
                    other => return Err(Fields::bad("outcome", other)),
                },
                operator: f.text("operator")?.to_owned(),
                reason: f.text("why")?.to_owned(),
            }),
            "stock_held" => Body::StockHeld {
                order: f.id("order", OrderId::new)?,
                user: f.id("user", UserId::new)?,
                lines: f.lines("lines")?,
            },
            "stock_settled" => Body::StockSettled {
                order: f.id("order", OrderId::new)?,
                user: f.id("user", UserId::new)?,
                lines: f.lines("lines")?,
                from: f.hold_state("from")?,
                to: f.hold_state("to")?,
                withheld: f.optional_flag("withheld")?,
                forgotten: f.optional_flag("forgotten")?,
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
            other => return Err(Fields::bad("kind", other)),
        })
    }
}
