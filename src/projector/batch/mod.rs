//! Folds a batch of events into the changes of each table, so that the number of statements does not depend on the
//! number of events.
//!
//! Of several changes to a row the last one counts, and the changes of a counter are summed.

mod refunds;
mod users;

use std::collections::{BTreeMap, HashMap};

use chrono::NaiveDate;

pub use self::refunds::{LineDelta, PartInsert, RefundDelta};

use crate::{
    model::{
        BalanceEntry, CampaignTerms, OrderLine,
        event::{self, Body, Event, PaymentOutcome, RemoteHoldState},
        *,
    },
    redis::commands::DAY_FORMAT,
};

/// The changes of a batch.
#[derive(Default)]
pub struct Batch {
    pub new_users: Vec<UserInsert>,
    /// The final balance, by user.
    pub balances: HashMap<i64, Won>,
    /// The new name and the time of the change, by user.
    pub names: HashMap<i64, (String, Millis)>,
    /// When it was forgotten, by user.
    pub forgotten: HashMap<i64, Millis>,
    pub new_products: Vec<ProductInsert>,
    /// By product.
    pub descriptions: HashMap<i64, ProductDescription>,
    /// Additions to the counters of a product.
    pub units: HashMap<i64, StockDelta>,
    /// Additions to what the partition ever gave to others and took back, by product and other partition.
    pub allotments: HashMap<(i64, u16), AllotmentDelta>,
    /// Additions to what the partition ever received from others and gave back, by product.
    pub transfers: HashMap<i64, TransferDelta>,
    pub new_campaigns: Vec<(CampaignTerms, Millis)>,
    /// Opening and closing time, by campaign.
    pub windows: HashMap<i64, (Millis, Millis)>,
    /// Additions to the counters of a campaign.
    pub issued: HashMap<i64, CampaignDelta>,
    pub new_coupons: Vec<CouponInsert>,
    /// Coupons issued to users of other partitions.
    pub remote_coupons: Vec<CouponInsert>,
    /// By coupon and user.
    pub coupons: HashMap<(i64, i64), CouponState>,
    pub new_orders: Vec<(event::OrderPlaced, Millis)>,
    /// Of an earlier release, by order.
    pub remote_holds: HashMap<i64, RemoteHold>,
    /// By order.
    pub orders: HashMap<i64, OrderState>,
    /// Additions to the refunded money and parts, by order.
    pub refunds: HashMap<i64, RefundDelta>,
    /// Additions to the refunded units, and to those that stay off sale, by order and product.
    pub refunded_lines: HashMap<(i64, i64), LineDelta>,
    /// By order and part.
    pub parts: BTreeMap<(i64, i64), PartInsert>,
    /// When the gateway had refunded a part that an earlier batch has, by order and part.
    pub ended_parts: HashMap<(i64, i64), Millis>,
    pub new_payments: Vec<PaymentInsert>,
    /// By receipt.
    pub payments: HashMap<String, PaymentState>,
    pub entries: Vec<BalanceEntry>,
    /// By the key's digest.
    pub records: HashMap<String, (event::Record, Millis)>,
    /// The highest reserved id, by sequence.
    pub sequences: HashMap<String, i64>,
}

pub struct UserInsert {
    pub id: i64,
    pub name: String,
    pub at: Millis,
}

pub struct ProductInsert {
    pub id: i64,
    pub name: String,
    pub category: String,
    pub price: Won,
    pub terms: SaleTerms,
    pub at: Millis,
}

pub struct ProductDescription {
    pub name: String,
    pub price: Won,
    pub category: String,
    pub terms: SaleTerms,
    /// The number of the price and the terms.
    pub version: i64,
}

/// Units given to another partition and taken back from it.
#[derive(Clone, Copy, Default)]
pub struct AllotmentDelta {
    pub allotted: i64,
    pub regained: i64,
    /// Withheld units that were taken back.
    pub recovered: i64,
}

/// Units received from the owner partition and given back to it.
#[derive(Clone, Copy, Default)]
pub struct TransferDelta {
    pub received: i64,
    pub returned: i64,
    /// Withheld units that were given back.
    pub surrendered: i64,
}

/// Changes of a product's counters, in units.
#[derive(Clone, Copy, Default)]
pub struct StockDelta {
    pub on_sale: i64,
    pub held: i64,
    pub sold: i64,
    pub withheld: i64,
    /// Refunded units that stay off sale.
    pub quarantined: i64,
    /// Units with other partitions.
    pub allotted: i64,
    pub stocked: i64,
}

/// Changes of a campaign's counters, in coupons.
#[derive(Clone, Copy, Default)]
pub struct CampaignDelta {
    pub issued: i64,
    pub withheld: i64,
}

pub struct CouponInsert {
    pub coupon: i64,
    pub user: i64,
    pub issue_no: i64,
    pub at: Millis,
}

pub struct CouponState {
    pub status: &'static str,
    pub order: Option<i64>,
    pub used_at: Option<Millis>,
}

#[derive(Clone)]
pub struct OrderState {
    pub status: OrderStatus,
    pub paid_at: Option<Millis>,
    pub closed_at: Option<Millis>,
    pub reason: Option<CloseReason>,
    /// The day of the sale.
    pub sold_on: Option<NaiveDate>,
    /// The operator who refunded the order, and the reason.
    pub refunded_by: Option<(String, String)>,
}

impl OrderState {
    /// The state of an order that was only placed.
    pub const PENDING: OrderState = OrderState {
        status: OrderStatus::Pending,
        paid_at: None,
        closed_at: None,
        reason: None,
        sold_on: None,
        refunded_by: None,
    };
}

pub struct PaymentInsert {
    pub id: i64,
    pub order: i64,
    pub user: i64,
    pub payment_type: PaymentType,
    pub method: &'static str,
    pub amount: Won,
    pub receipt: String,
    /// The idempotency key of the request that waits for the gateway: digest and fingerprint.
    pub key: Option<(String, String)>,
    /// The provider's id of the payment, if it was known before the provider approved it.
    pub transaction: Option<String>,
    pub at: Millis,
}

#[derive(Clone, Default)]
pub struct PaymentState {
    pub status: &'static str,
    pub transaction: Option<String>,
    pub paid_at: Option<Millis>,
    pub ended_at: Option<Millis>,
    /// The operator who resolved the payment, and the reason.
    pub resolved: Option<(String, String)>,
}

/// Units that the partition held for an order of another one.
pub struct RemoteHold {
    pub user: i64,
    pub state: RemoteHoldState,
    pub lines: Vec<OrderLine>,
    /// The order of the hold does not exist.
    pub forgotten: bool,
}

/// A counter of a product, between which events move units.
#[derive(Clone, Copy)]
enum Shelf {
    OnSale,
    Held,
    Sold,
    Withheld,
    Quarantined,
}

impl Batch {
    /// Folds the events of one partition, in the sequence of their decisions.
    pub fn fold<'a>(events: impl IntoIterator<Item = &'a Event>) -> Self {
        let mut batch = Batch::default();
        for event in events {
            batch.add(event);
        }
        batch
    }

    fn add(&mut self, event: &Event) {
        let at = event.at;
        if let Some(record) = &event.record {
            self.records.insert(record.digest.clone(), (record.clone(), at));
        }
        match &event.body {
            Body::UsersCreated { first, step, count, balance, name, prefixed } => {
                for id in (0..*count).map(|n| first.get().saturating_add(n.saturating_mul(*step))) {
                    let name = if *prefixed { format!("{name}{id}") } else { name.clone() };
                    self.new_users.push(UserInsert { id, name, at });
                    if let Some(user) = UserId::new(id).filter(|_| *balance > 0) {
                        self.entry(&event::opening_entry(user, *balance, at));
                    }
                }
            }
            Body::UsersPut(users) => users.iter().for_each(|put| self.put_user(put, at)),
            Body::UserForgotten { user, entry } => self.forgotten_user(*user, entry.as_ref(), at),
            Body::ProductCreated { product, name, price, units, category, terms } => {
                let (id, name, category) = (product.get(), name.clone(), category.clone());
                self.new_products.push(ProductInsert { id, name, category, price: *price, terms: *terms, at });
                self.restock(*product, *units);
            }
            Body::ProductUpdated { product, name, price, category, delta, version, terms } => {
                let (name, category) = (name.clone(), category.clone());
                let (price, version, terms) = (*price, *version, *terms);
                self.descriptions.insert(product.get(), ProductDescription { name, price, category, terms, version });
                self.restock(*product, *delta);
            }
            Body::CampaignCreated(terms) => self.new_campaigns.push((terms.clone(), at)),
            Body::CampaignUpdated { coupon, opens_at, closes_at } => {
                self.windows.insert(coupon.get(), (*opens_at, *closes_at));
            }
            Body::CouponIssued { coupon, user, issue_no, at_home } => {
                self.issued.entry(coupon.get()).or_default().issued += 1;
                let coupons = if *at_home { &mut self.new_coupons } else { &mut self.remote_coupons };
                coupons.push(CouponInsert { coupon: coupon.get(), user: user.get(), issue_no: *issue_no, at });
            }
            Body::CouponGranted { coupon, user, issue_no, issued_at } => self.new_coupons.push(CouponInsert {
                coupon: coupon.get(),
                user: user.get(),
                issue_no: *issue_no,
                at: *issued_at,
            }),
            Body::BalanceCharged(entry) => self.entry(entry),
            Body::OrderPlaced(placed) => {
                self.shift(&placed.lines, Shelf::OnSale, Shelf::Held);
                self.set_coupon(placed.coupon, placed.user, "HELD", Some(placed.order), None);
                self.new_orders.push((placed.clone(), at));
            }
            Body::PaymentStarted(started) => self.new_payments.push(PaymentInsert {
                id: started.payment.get(),
                order: started.order.get(),
                user: started.user.get(),
                payment_type: started.payment_type,
                method: "GATEWAY",
                amount: started.amount,
                receipt: started.receipt.clone(),
                key: event.record.as_ref().map(|record| (record.digest.clone(), record.fingerprint.clone())),
                transaction: started.transaction.clone(),
                at,
            }),
            Body::OrderPaid(paid) => self.paid(paid, at),
            Body::OrderClosed(closed) => self.closed(closed, at),
            Body::OrderRefunded(part) => self.refunded(part, at),
            Body::RefundEnded { order, part, .. } => self.part_ended(*order, *part, at),
            Body::PaymentEnded { receipt, outcome, transaction, .. } => {
                let state = self.payments.entry(receipt.clone()).or_default();
                state.status = match outcome {
                    PaymentOutcome::Refunded => "REFUNDED",
                    PaymentOutcome::Declined => "DECLINED",
                    PaymentOutcome::Settled => "PAID",
                    PaymentOutcome::Disputed => "DISPUTED",
                };
                if transaction.is_some() {
                    state.transaction.clone_from(transaction);
                }
                state.ended_at = Some(at);
            }
            Body::PaymentResolved(resolved) => {
                let state = self.payments.entry(resolved.receipt.clone()).or_default();
                state.status = if resolved.approved { "UNCONFIRMED" } else { "WATCHED" };
                state.resolved = Some((resolved.operator.clone(), resolved.reason.clone()));
            }
            Body::RemoteHold { order, user, lines, from, to, withheld, forgotten } => {
                let from = from.map_or(Shelf::OnSale, shelf_of);
                self.shift(lines, from, if *withheld { Shelf::Withheld } else { shelf_of(*to) });
                let (user, lines, forgotten) = (user.get(), lines.clone(), *forgotten);
                self.remote_holds.insert(order.get(), RemoteHold { user, state: *to, lines, forgotten });
            }
            Body::StockAllotted { product, partition, units, .. } => {
                let delta = self.units.entry(product.get()).or_default();
                delta.on_sale -= units;
                delta.allotted += units;
                self.allotments.entry((product.get(), partition.0)).or_default().allotted += units;
            }
            Body::StockReceived { product, units, .. } => {
                self.units.entry(product.get()).or_default().on_sale += units;
                self.transfers.entry(product.get()).or_default().received += units;
            }
            Body::StockReturned { product, units, withheld, .. } => {
                let shelf = if *withheld { Shelf::Withheld } else { Shelf::OnSale };
                *self.units.entry(product.get()).or_default().on(shelf) -= units;
                let transfer = self.transfers.entry(product.get()).or_default();
                *(if *withheld { &mut transfer.surrendered } else { &mut transfer.returned }) += units;
            }
            Body::StockRegained { product, partition, units, withheld, .. } => {
                let shelf = if *withheld { Shelf::Withheld } else { Shelf::OnSale };
                let delta = self.units.entry(product.get()).or_default();
                *delta.on(shelf) += units;
                delta.allotted -= units;
                let allotment = self.allotments.entry((product.get(), partition.0)).or_default();
                *(if *withheld { &mut allotment.recovered } else { &mut allotment.regained }) += units;
            }
            Body::IdsReserved { sequence, last } => {
                let highest = self.sequences.entry(sequence.clone()).or_default();
                *highest = (*last).max(*highest);
            }
            Body::Rebuilt { units, coupons } => {
                units.iter().for_each(|(product, units)| self.withhold(*product, *units));
                coupons.iter().for_each(|(coupon, n)| self.issued.entry(coupon.get()).or_default().withheld += n);
            }
            Body::StockReleased { product, units } => self.withhold(*product, -units),
            Body::CouponsReleased { coupon, count } => {
                self.issued.entry(coupon.get()).or_default().withheld -= count;
            }
        }
    }

    fn paid(&mut self, paid: &event::OrderPaid, at: Millis) {
        self.shift(&paid.lines, Shelf::Held, Shelf::Sold);
        self.set_coupon(paid.coupon, paid.user, "USED", Some(paid.order), Some(at));
        let sold_on = NaiveDate::parse_from_str(&paid.day, DAY_FORMAT).ok();
        let state = OrderState {
            status: OrderStatus::Paid,
            paid_at: Some(at),
            closed_at: None,
            reason: None,
            sold_on,
            refunded_by: None,
        };
        self.orders.insert(paid.order.get(), state);
        if !paid.by_gateway {
            self.new_payments.push(PaymentInsert {
                id: paid.payment.get(),
                order: paid.order.get(),
                user: paid.user.get(),
                payment_type: paid.payment_type,
                method: "BALANCE",
                amount: paid.amount,
                receipt: paid.receipt.clone(),
                key: None,
                transaction: None,
                at,
            });
        }
        let state = self.payments.entry(paid.receipt.clone()).or_default();
        state.status = "PAID";
        state.transaction.clone_from(&paid.transaction);
        state.paid_at = Some(at);
        if let Some(entry) = &paid.entry {
            self.entry(entry);
        }
    }

    fn closed(&mut self, closed: &event::OrderClosed, at: Millis) {
        let from = if closed.from == OrderStatus::Paid { Shelf::Sold } else { Shelf::Held };
        let to = match (closed.withheld, closed.quarantined) {
            (true, _) => Shelf::Withheld,
            (false, true) => Shelf::Quarantined,
            (false, false) => Shelf::OnSale,
        };
        self.shift(&closed.lines, from, to);
        if closed.quarantined {
            for line in &closed.lines {
                let key = (closed.order.get(), line.product_id.get());
                self.refunded_lines.entry(key).or_default().quarantined += line.quantity;
            }
        }
        self.set_coupon(closed.coupon, closed.user, "AVAILABLE", None, None);
        let state = self.orders.entry(closed.order.get()).or_insert(OrderState::PENDING);
        state.status = closed.status;
        state.closed_at = Some(at);
        state.reason = Some(closed.reason);
        state.refunded_by.clone_from(&closed.operator);
        if let Some(receipt) = &closed.receipt {
            let state = self.payments.entry(receipt.clone()).or_default();
            state.status = match (closed.reason, closed.by_gateway) {
                (CloseReason::Refunded, true) => "REFUND_DUE",
                (CloseReason::Refunded, false) => "REFUNDED",
                _ if closed.watched => "WATCHED",
                _ => "DECLINED",
            };
            state.ended_at = Some(at);
        }
        if let Some(entry) = &closed.entry {
            self.entry(entry);
        }
    }

    fn restock(&mut self, product: ProductId, delta: i64) {
        let units = self.units.entry(product.get()).or_default();
        units.on_sale += delta;
        units.stocked += delta;
    }

    fn shift(&mut self, lines: &[OrderLine], from: Shelf, to: Shelf) {
        for line in lines {
            let units = self.units.entry(line.product_id.get()).or_default();
            *units.on(from) -= line.quantity;
            *units.on(to) += line.quantity;
        }
    }

    fn withhold(&mut self, product: ProductId, count: i64) {
        let units = self.units.entry(product.get()).or_default();
        units.on_sale -= count;
        units.withheld += count;
    }

    fn set_coupon(
        &mut self,
        coupon: Option<CouponId>,
        user: UserId,
        status: &'static str,
        order: Option<OrderId>,
        used_at: Option<Millis>,
    ) {
        if let Some(coupon) = coupon {
            let state = CouponState { status, order: order.map(OrderId::get), used_at };
            self.coupons.insert((coupon.get(), user.get()), state);
        }
    }

    fn entry(&mut self, entry: &BalanceEntry) {
        self.balances.insert(entry.user_id.get(), entry.after);
        self.entries.push(entry.clone());
    }
}

/// Where the units of a remote hold are.
fn shelf_of(state: RemoteHoldState) -> Shelf {
    match state {
        RemoteHoldState::Held => Shelf::Held,
        RemoteHoldState::Settled => Shelf::Sold,
        RemoteHoldState::Released | RemoteHoldState::Refunded => Shelf::OnSale,
    }
}

impl StockDelta {
    fn on(&mut self, shelf: Shelf) -> &mut i64 {
        match shelf {
            Shelf::OnSale => &mut self.on_sale,
            Shelf::Held => &mut self.held,
            Shelf::Sold => &mut self.sold,
            Shelf::Withheld => &mut self.withheld,
            Shelf::Quarantined => &mut self.quarantined,
        }
    }
}
