//! The histories of single objects, from the history of the run and the times that the stores record.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{
    elsewhere::{self, BroughtKind},
    facts::{Facts, OrderFact},
    history::{Operation, Outcome, Request, now},
    linear::*,
    losses::Losses,
    shop::Goods,
};

/// The difference between a time of the stores, in whole milliseconds, and one of the clients, in nanoseconds.
pub const SLACK: u64 = 20_000_000;

/// The results for all objects.
#[derive(Default)]
pub struct CheckResults {
    pub checked: BTreeMap<&'static str, usize>,
    pub longest: usize,
    pub undecided: usize,
    pub violations: Vec<String>,
}

impl CheckResults {
    fn check<S>(&mut self, kind: &'static str, id: i64, start: S, intervals: Vec<Interval<S>>)
    where
        S: stateright::semantics::SequentialSpec + Clone,
        S::Op: Clone + std::fmt::Debug,
        S::Ret: Clone + std::fmt::Debug + PartialEq,
    {
        *self.checked.entry(kind).or_default() += 1;
        self.longest = self.longest.max(intervals.len());
        match check(&format!("{kind} {id}"), start, intervals) {
            CheckResult::Linearizable => {}
            CheckResult::Not(why) => self.violations.push(why),
            CheckResult::Undecided => self.undecided += 1,
        }
    }
}

/// The histories collected so far, by object.
struct Objects<'a> {
    facts: &'a Facts,
    losses: &'a Losses,
    end: u64,
    campaigns: BTreeMap<i64, Vec<Interval<Campaign>>>,
    balances: BTreeMap<i64, Vec<Interval<Balance>>>,
    products: BTreeMap<i64, Vec<Interval<Stock>>>,
    orders: BTreeMap<i64, Vec<Interval<Order>>>,
    brought: BTreeMap<(BroughtKind, i64), Vec<Interval<Brought>>>,
}

/// Checks every object. With several partitions, units that go from one to another are on sale in neither for a moment: reads of
/// products do not count then, as orders and their refusals do. Objects whose effects were lost, and goods that were withheld, are left out.
pub fn check_all(operations: &[Operation], facts: &Facts, partitions: u16, losses: &Losses) -> CheckResults {
    let mut objects = Objects {
        facts,
        losses,
        end: now(),
        campaigns: BTreeMap::new(),
        balances: BTreeMap::new(),
        products: BTreeMap::new(),
        orders: BTreeMap::new(),
        brought: BTreeMap::new(),
    };
    let mut holders: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
    for operation in operations.iter().filter(|operation| operation.done().is_some()) {
        if let Request::Issue { campaign, user } = operation.request {
            holders.entry(user).or_default().push(campaign);
        }
    }
    for operation in operations {
        objects.effect(operation);
        objects.refusals_and_reads(operation, &holders);
    }
    objects.expiries();
    objects.last_reads();
    let mut results = CheckResults::default();
    let unharmed = |id: &i64| !losses.concern(*id);
    let on_sale = |id: &i64| !losses.withhold(*id);
    for (id, intervals) in objects.campaigns.into_iter().filter(|(id, _)| on_sale(id)) {
        let start = Campaign { total: Goods::COUPONS, issued: BTreeMap::new() };
        results.check("campaign", id, start, intervals);
    }
    for (id, intervals) in objects.balances.into_iter().filter(|(id, _)| unharmed(id)) {
        results.check("balance", id, Balance(Goods::BALANCE), intervals);
    }
    for (id, mut intervals) in objects.products.into_iter().filter(|(id, _)| on_sale(id)) {
        if partitions > 1 {
            intervals.retain(|interval| !matches!(interval.op, StockOp::Read));
        }
        results.check("product", id, Stock(Goods::STOCK), intervals);
    }
    for (id, intervals) in objects.orders.into_iter().filter(|(id, _)| unharmed(id)) {
        results.check("order", id, Order::Pending, intervals);
    }
    for ((kind, id), intervals) in objects.brought.into_iter().filter(|((_, id), _)| unharmed(id)) {
        let start = match id {
            // It is there from the start.
            elsewhere::FIRST if kind == BroughtKind::User => Brought::Is(kind.label(id, 0)),
            _ => Brought::Unknown,
        };
        results.check(kind.path(), id, start, intervals);
    }
    results
}

impl Objects<'_> {
    fn effect(&mut self, operation: &Operation) {
        let Some((began, ended)) = operation.effect_within() else { return };
        // The effect is not older than the time that the stores recorded.
        let since = |recorded: u64| began.max(recorded.saturating_sub(SLACK)).min(ended);
        let none = Value::Null;
        let body = operation.done().unwrap_or(&none);
        match &operation.request {
            Request::Issue { campaign, user } => {
                let recorded = self.facts.coupons.get(&(*campaign, *user)).map_or(0, |(_, at)| *at);
                let ret = CampaignRet::Issued(body["issueNo"].as_i64().unwrap_or(-1));
                let interval = Interval { began: since(recorded), ended, op: CampaignOp::Issue(*user), ret };
                self.campaigns.entry(*campaign).or_default().push(interval);
            }
            Request::Charge { user, amount } => {
                let ret = BalanceRet::Is(body["balance"].as_i64().unwrap_or(-1));
                self.balance(*user, (began, ended), BalanceOp::Charge(*amount), ret);
            }
            Request::Create { version } => {
                let id = body["userId"].as_i64().unwrap_or(-1);
                let op = BroughtOp::Create(elsewhere::name(0, *version));
                self.brought(BroughtKind::User, id, (began, ended), op, BroughtRet::Done);
            }
            Request::Bring { kind, id, version } => {
                let op = BroughtOp::Bring(kind.label(*id, *version));
                self.brought(*kind, *id, (began, ended), op, BroughtRet::Done);
            }
            Request::Forget { user } => {
                self.brought(BroughtKind::User, *user, (began, ended), BroughtOp::Forget, BroughtRet::Done);
            }
            Request::Restock { product, units } => {
                let op = StockOp::Release(*units);
                let interval = Interval { began, ended, op, ret: StockRet::Moved };
                self.products.entry(*product).or_default().push(interval);
            }
            Request::Place { user, pays, .. } => {
                let id = body["orderId"].as_i64().unwrap_or(-1);
                let Some(order) = self.facts.orders.get(&id) else { return };
                let within = (since(order.placed_at), ended);
                self.stock(order, within, StockOp::Hold);
                if *pays && order.price > 0 {
                    self.balance(*user, within, BalanceOp::Pay(order.price), BalanceRet::Moved);
                }
                if *pays {
                    let op = OrderOp::Pay { right: true, affordable: true };
                    self.order(id, within, op, OrderRet::Is(Order::Paid));
                }
            }
            Request::Pay { order: id, user, price, amount } => {
                let Some(order) = self.facts.orders.get(id) else { return };
                let affordable = !operation.declined();
                let within = (since(if affordable { order.paid_at } else { order.closed_at }), ended);
                let ret = if affordable { BalanceRet::Moved } else { BalanceRet::Declined };
                if *price > 0 && !self.facts.by_gateway.contains(id) {
                    self.balance(*user, within, BalanceOp::Pay(*price), ret);
                }
                let to = if affordable { Order::Paid } else { Order::Failed };
                self.order(*id, within, OrderOp::Pay { right: price == amount, affordable }, OrderRet::Is(to));
                if !affordable {
                    self.stock(order, within, StockOp::Release);
                }
            }
            Request::Refund { order: id, user, .. } if body["closeReason"].is_null() => {
                let Some(order) = self.facts.orders.get(id) else { return };
                let Some(part) = order.part_of(body) else { return };
                let within = (since(part.at), ended);
                if part.amount > 0 && !self.facts.by_gateway.contains(id) {
                    self.balance(*user, within, BalanceOp::Refund(part.amount), BalanceRet::Moved);
                }
                self.order(*id, within, OrderOp::Refund, OrderRet::Is(Order::Paid));
                if !part.quarantined {
                    let (product, units) = part.line;
                    let interval =
                        Interval { began: within.0, ended, op: StockOp::Release(units), ret: StockRet::Moved };
                    self.products.entry(product).or_default().push(interval);
                }
            }
            // A refund of all that was left is a cancellation.
            Request::Cancel { order: id, user } | Request::Refund { order: id, user, .. } => {
                let Some(order) = self.facts.orders.get(id) else { return };
                let (within, refunded) = ((since(order.closed_at), ended), body["closeReason"] == "REFUNDED");
                if refunded && order.left_price() > 0 && !self.facts.by_gateway.contains(id) {
                    self.balance(*user, within, BalanceOp::Refund(order.left_price()), BalanceRet::Moved);
                }
                let to = if refunded { Order::Refunded } else { Order::Cancelled };
                self.order(*id, within, OrderOp::Cancel, OrderRet::Is(to));
                // An operator's refund keeps the units off sale.
                if !matches!(operation.request, Request::Refund { by_operator: true, .. }) {
                    self.stock(order, within, StockOp::Release);
                }
            }
            _ => {}
        }
    }

    /// Adds refusals and reads, each attempt as an operation of its own.
    fn refusals_and_reads(&mut self, operation: &Operation, holders: &BTreeMap<i64, Vec<i64>>) {
        for attempt in &operation.attempts {
            let within = (attempt.began, attempt.ended);
            if self.losses.unfounded(operation.request.owner(), within) {
                continue;
            }
            match (&operation.request, &attempt.outcome) {
                (Request::Issue { campaign, user }, Outcome::Refused { code, .. }) => {
                    let ret = if code == "COUPON_OUT_OF_STOCK" { CampaignRet::SoldOut } else { CampaignRet::HoldsOne };
                    // The refusal of a campaign that has ended has the same code.
                    let closes_at = self.facts.closes_at.get(campaign).copied().unwrap_or(u64::MAX);
                    if ret == CampaignRet::HoldsOne && closes_at <= attempt.ended + SLACK {
                        continue;
                    }
                    self.campaign(*campaign, within, CampaignOp::Issue(*user), ret);
                }
                (Request::Place { lines, .. }, Outcome::Refused { code, .. }) if lines.len() == 1 => {
                    let ret = match code.as_str() {
                        "SOLD_OUT" => StockRet::SoldOut,
                        "INSUFFICIENT_STOCK" => StockRet::TooFew,
                        _ => continue,
                    };
                    let (began, ended) = within;
                    let interval = Interval { began, ended, op: StockOp::Hold(lines[0].1), ret };
                    self.products.entry(lines[0].0).or_default().push(interval);
                }
                // A customer whose preparation is gone prepares the payment anew.
                (Request::Pay { order, .. }, Outcome::Refused { code, .. })
                    if operation.request.is_by_gateway()
                        && code == "INVALID_PAYMENT_REQUEST"
                        && self.losses.forget_preparations(*order) => {}
                (Request::Pay { order, price, amount, .. }, Outcome::Refused { code, .. }) => {
                    let op = OrderOp::Pay { right: price == amount, affordable: true };
                    let paid = code == "ORDER_ALREADY_PAID";
                    self.order(*order, within, op, if paid { OrderRet::AlreadyPaid } else { OrderRet::Invalid });
                }
                (Request::Cancel { order, .. }, Outcome::Refused { .. }) => {
                    self.order(*order, within, OrderOp::Cancel, OrderRet::AlreadyClosed);
                }
                (Request::Refund { order, .. }, Outcome::Refused { code, .. }) => {
                    let ret = match code.as_str() {
                        "ORDER_ALREADY_CLOSED" => OrderRet::AlreadyClosed,
                        // It is PENDING, or has fewer units left.
                        _ => continue,
                    };
                    self.order(*order, within, OrderOp::Refund, ret);
                }
                (Request::Balance { user }, Outcome::Done { body, .. }) => {
                    let ret = BalanceRet::Is(body["balance"].as_i64().unwrap_or(-1));
                    self.balance(*user, within, BalanceOp::Read, ret);
                }
                (Request::Entries { user }, Outcome::Done { body, .. }) => {
                    let last = body.as_array().and_then(|list| list.last());
                    let ret = BalanceRet::Is(last.and_then(|last| last["after_balance"].as_i64()).unwrap_or(-1));
                    self.balance(*user, within, BalanceOp::Read, ret);
                }
                (Request::Bring { kind, id, version }, Outcome::Refused { .. }) => {
                    let op = BroughtOp::Bring(kind.label(*id, *version));
                    self.brought(*kind, *id, within, op, BroughtRet::NotFound);
                }
                (Request::Brought { kind, id }, Outcome::Refused { .. }) => {
                    self.brought(*kind, *id, within, BroughtOp::Read, BroughtRet::NotFound);
                }
                (Request::Brought { kind, id }, Outcome::Done { body, .. }) => {
                    self.brought(*kind, *id, within, BroughtOp::Read, BroughtRet::Is(kind.label_of(body)));
                }
                (Request::Product { product }, Outcome::Done { body, .. }) => {
                    let ret = StockRet::Are(body["stockQuantity"].as_i64().unwrap_or(-1));
                    let interval = Interval { began: within.0, ended: within.1, op: StockOp::Read, ret };
                    self.products.entry(*product).or_default().push(interval);
                }
                (Request::Order { order, .. }, Outcome::Done { body, .. }) => {
                    let text = |field: &str| body[field].as_str().unwrap_or("").to_owned();
                    let read = status(&text("orderStatus"), &text("closeReason"));
                    self.order(*order, within, OrderOp::Read, OrderRet::Is(read));
                }
                (Request::Coupons { user }, Outcome::Done { body, .. }) => {
                    for campaign in holders.get(user).into_iter().flatten() {
                        let list = body.as_array().map(Vec::as_slice).unwrap_or_default();
                        let read = list.iter().find(|coupon| coupon["couponId"] == *campaign);
                        let place = read.and_then(|coupon| coupon["issueNo"].as_i64());
                        self.campaign(*campaign, within, CampaignOp::Read(*user), CampaignRet::Has(place));
                    }
                }
                _ => {}
            }
        }
    }

    /// Adds expiries, which no client requests: each took effect at its recorded time or later.
    fn expiries(&mut self) {
        let facts = self.facts;
        for (id, order) in facts.orders.iter().filter(|(_, order)| order.reason == "EXPIRED") {
            let within = (order.closed_at.saturating_sub(SLACK), self.end);
            self.order(*id, within, OrderOp::Expire, OrderRet::Is(Order::Expired));
            self.stock(order, within, StockOp::Release);
        }
    }

    /// Adds the final state of the stores as a last read.
    fn last_reads(&mut self) {
        let (facts, last) = (self.facts, (self.end + 1, self.end + 2));
        for (user, balance) in &facts.balances {
            self.balance(*user, last, BalanceOp::Read, BalanceRet::Is(*balance));
        }
        for ((kind, id), label) in &facts.brought.labels {
            let ret = if label.is_empty() { BroughtRet::NotFound } else { BroughtRet::Is(label.clone()) };
            self.brought(*kind, *id, last, BroughtOp::Read, ret);
        }
        for (product, units) in &facts.on_sale {
            let interval = Interval { began: last.0, ended: last.1, op: StockOp::Read, ret: StockRet::Are(*units) };
            self.products.entry(*product).or_default().push(interval);
        }
        for (id, order) in &facts.orders {
            let read = status(&order.status, &order.reason);
            self.order(*id, last, OrderOp::Read, OrderRet::Is(read));
        }
    }

    fn brought(&mut self, kind: BroughtKind, id: i64, (began, ended): (u64, u64), op: BroughtOp, ret: BroughtRet) {
        self.brought.entry((kind, id)).or_default().push(Interval { began, ended, op, ret });
    }

    fn campaign(&mut self, id: i64, (began, ended): (u64, u64), op: CampaignOp, ret: CampaignRet) {
        self.campaigns.entry(id).or_default().push(Interval { began, ended, op, ret });
    }

    fn balance(&mut self, id: i64, (began, ended): (u64, u64), op: BalanceOp, ret: BalanceRet) {
        self.balances.entry(id).or_default().push(Interval { began, ended, op, ret });
    }

    fn order(&mut self, id: i64, (began, ended): (u64, u64), op: OrderOp, ret: OrderRet) {
        self.orders.entry(id).or_default().push(Interval { began, ended, op, ret });
    }

    /// Adds an operation on each product of an order.
    fn stock(&mut self, order: &OrderFact, (began, ended): (u64, u64), op: fn(i64) -> StockOp) {
        for (product, ordered) in &order.lines {
            // What comes back is what no part has brought back before.
            let units = if matches!(op(0), StockOp::Release(_)) { order.left_units(*product) } else { *ordered };
            let interval = Interval { began, ended, op: op(units), ret: StockRet::Moved };
            self.products.entry(*product).or_default().push(interval);
        }
    }
}

fn status(status: &str, reason: &str) -> Order {
    match (status, reason) {
        ("PENDING", _) => Order::Pending,
        ("PAID", _) => Order::Paid,
        ("FAILED", _) => Order::Failed,
        (_, "REFUNDED") => Order::Refunded,
        (_, "EXPIRED") => Order::Expired,
        _ => Order::Cancelled,
    }
}
