//! Compares the decisions of a page of the outbox with what PostgreSQL has of them.

use std::collections::HashMap;

use super::{
    Audit,
    fields::{differ, sorted},
    outbox::{Decided, Walk, describe},
    report::Findings,
};
use crate::{
    model::{
        BalanceEntry, OrderStatus, Partition, RECORD_TTL_MS,
        event::{Body, Event, OrderRefunded, PaymentOutcome, pack_lines},
    },
    postgres::{
        queries::decided::{CreatedKind, CreatedRow, IssuedRow, PartRow, ResolutionRow},
        snapshot::{AllotmentRow, CampaignRow, OrderRow, PartitionStockRow, RecordRow, Snapshot},
    },
};

/// The packed reply of a payment that its gateway has not decided.
const RUNNING: &str = "7:RUNNING";

/// What PostgreSQL has of a page of decisions.
#[derive(Default)]
pub(super) struct PageFacts {
    orders: HashMap<i64, OrderRow>,
    resolutions: HashMap<i64, ResolutionRow>,
    /// By order and part.
    parts: HashMap<(i64, i32), PartRow>,
    /// By product and other partition.
    allotments: HashMap<(i64, i32), AllotmentRow>,
    partition_stock: HashMap<i64, PartitionStockRow>,
    records: HashMap<String, RecordRow>,
    users: HashMap<i64, CreatedRow>,
    products: HashMap<i64, CreatedRow>,
    created_campaigns: HashMap<i64, CreatedRow>,
    campaigns: HashMap<i64, CampaignRow>,
    /// By coupon and user.
    coupons: HashMap<(i64, i64), IssuedRow>,
    remote_coupons: HashMap<(i64, i64), IssuedRow>,
    /// Balance entries that are not as decided: user and number.
    other_entries: Vec<(i64, i64)>,
    reserved_ids: HashMap<String, i64>,
}

/// The order that a decision is about.
fn order_of(body: &Body) -> Option<i64> {
    match body {
        Body::OrderPlaced(placed) => Some(placed.order.get()),
        Body::PaymentStarted(started) => Some(started.order.get()),
        Body::OrderPaid(paid) => Some(paid.order.get()),
        Body::OrderClosed(closed) => Some(closed.order.get()),
        Body::OrderRefunded(part) => Some(part.order.get()),
        Body::PaymentEnded { order, .. } | Body::RefundEnded { order, .. } => Some(order.get()),
        Body::PaymentResolved(resolved) => Some(resolved.order.get()),
        _ => None,
    }
}

/// The users that a decision creates or renames, with their names, and whether they are new.
fn named_users(body: &Body) -> Vec<(i64, String, bool)> {
    match body {
        Body::UsersCreated { first, step, count, name, prefixed, .. } => {
            let named = |n: i64| {
                let id = first.get().saturating_add(n.saturating_mul(*step));
                (id, if *prefixed { format!("{name}{id}") } else { name.clone() }, true)
            };
            (0..*count).map(named).collect()
        }
        Body::UserForgotten { user, .. } => vec![(user.get(), String::new(), false)],
        Body::UsersPut(users) => users.iter().map(|put| (put.user.get(), put.name.clone(), put.is_new)).collect(),
        _ => Vec::new(),
    }
}

/// The discrepancy of a user that a decision created or renamed `at`.
fn of_user(row: Option<&CreatedRow>, (id, name, is_new): (i64, String, bool), at: i64) -> Option<String> {
    let Some(row) = row else { return Some(format!("PostgreSQL does not have user {id}")) };
    let has_other_name = !row.name.is_empty() && row.name != name;
    let differs = is_new && (has_other_name || row.created_at != at);
    differs.then(|| format!("user {id} is {name:?} of {at}, and in PostgreSQL {:?} of {}", row.name, row.created_at))
}

fn by_id(rows: Vec<CreatedRow>) -> HashMap<i64, CreatedRow> {
    rows.into_iter().map(|row| (row.id, row)).collect()
}

impl PageFacts {
    pub(super) async fn read(
        snapshot: &mut Snapshot,
        here: Partition,
        audit: &Audit,
        decided: &[Decided],
    ) -> sqlx::Result<Self> {
        let projected = || decided.iter().filter(|decided| decided.is_projected).map(|decided| &decided.event);
        let bodies = || projected().map(|event| &event.body);
        let orders: Vec<i64> = bodies().filter_map(order_of).collect();
        let entries: Vec<&BalanceEntry> = bodies().filter_map(Body::entry).collect();
        let (mut given, mut had) = (Vec::new(), Vec::new());
        let (mut users, mut products, mut campaigns) = (Vec::new(), Vec::new(), Vec::new());
        let (mut issued, mut remote, mut reserves) = ((Vec::new(), Vec::new()), (Vec::new(), Vec::new()), false);
        for body in bodies() {
            users.extend(named_users(body).into_iter().map(|(id, ..)| id));
            match body {
                Body::StockAllotted { product, .. } | Body::StockRegained { product, .. } => given.push(product.get()),
                Body::StockReceived { product, .. } | Body::StockReturned { product, .. } => had.push(product.get()),
                Body::ProductCreated { product, .. } => products.push(product.get()),
                Body::CampaignCreated(terms) => campaigns.push(terms.coupon_id.get()),
                Body::CouponIssued { coupon, user, at_home, .. } => {
                    let pairs = if *at_home { &mut issued } else { &mut remote };
                    pairs.0.push(coupon.get());
                    pairs.1.push(user.get());
                }
                Body::CouponGranted { coupon, user, .. } => {
                    issued.0.push(coupon.get());
                    issued.1.push(user.get());
                }
                Body::IdsReserved { .. } => reserves = true,
                _ => {}
            }
        }
        let digests: Vec<String> =
            projected().filter_map(|event| event.record.as_ref()).map(|record| record.digest.clone()).collect();
        let mut facts = PageFacts::default();
        if !orders.is_empty() {
            let rows = snapshot.orders_of(&orders, audit.zone.name()).await?;
            facts.orders = rows.into_iter().map(|row| (row.id, row)).collect();
            let resolved = snapshot.resolutions(&orders).await?;
            facts.parts =
                snapshot.parts(&orders).await?.into_iter().map(|row| ((row.order_id, row.part), row)).collect();
            facts.resolutions = resolved.into_iter().map(|row| (row.order_id, row)).collect();
        }
        if !given.is_empty() {
            let rows = snapshot.allotments_of(&given).await?;
            facts.allotments = rows.into_iter().map(|row| ((row.product_id, row.partition), row)).collect();
        }
        if !had.is_empty() {
            let rows = snapshot.partition_stock_of(here.0, &had).await?;
            facts.partition_stock = rows.into_iter().map(|row| (row.product_id, row)).collect();
        }
        if !digests.is_empty() {
            let rows = snapshot.records_of(here.0, &digests).await?;
            facts.records = rows.into_iter().map(|row| (row.digest.clone(), row)).collect();
        }
        if !entries.is_empty() {
            facts.other_entries = snapshot.other_entries(&entries).await?;
        }
        if !users.is_empty() {
            facts.users = by_id(snapshot.created(CreatedKind::User, &users).await?);
        }
        if !products.is_empty() {
            facts.products = by_id(snapshot.created(CreatedKind::Product, &products).await?);
        }
        if !campaigns.is_empty() {
            facts.created_campaigns = by_id(snapshot.created(CreatedKind::Campaign, &campaigns).await?);
            facts.campaigns = snapshot.campaigns_of(&campaigns).await?.into_iter().map(|row| (row.id, row)).collect();
        }
        for (remote, (coupons, users), rows) in
            [(false, issued, &mut facts.coupons), (true, remote, &mut facts.remote_coupons)]
        {
            if !coupons.is_empty() {
                let found = snapshot.issued(remote, &coupons, &users).await?;
                rows.extend(found.into_iter().map(|row| ((row.coupon_id, row.user_id), row)));
            }
        }
        if reserves {
            facts.reserved_ids = snapshot.reserved_ids().await?.into_iter().collect();
        }
        Ok(facts)
    }

    pub(super) fn check(
        &self,
        audit: &Audit,
        here: Partition,
        walk: &mut Walk,
        decided: &[Decided],
        findings: &mut Findings,
    ) {
        for Decided { entry, position, event, is_projected } in decided {
            match &event.body {
                Body::ProductCreated { product, name, price, category, terms, .. }
                | Body::ProductUpdated { product, name, price, category, terms, .. } => {
                    let described = describe(name, *price, category, &terms.to_string());
                    walk.descriptions.insert(product.get(), (*position, described));
                }
                Body::CampaignCreated(terms) => {
                    walk.windows.insert(terms.coupon_id.get(), (*position, (terms.opens_at, terms.closes_at)));
                }
                Body::CampaignUpdated { coupon, opens_at, closes_at } => {
                    walk.windows.insert(coupon.get(), (*position, (*opens_at, *closes_at)));
                }
                _ => {}
            }
            if !is_projected {
                continue;
            }
            let mut wrong = self.of_event(event);
            wrong.extend(self.of_record(audit, event));
            for wrong in wrong.into_iter().flatten() {
                findings.add(format!("partition {}, entry {entry}, decision {}: {wrong}", here.0, position.seq));
            }
        }
    }

    fn of_event(&self, event: &Event) -> Vec<Option<String>> {
        let missing = |what: String| vec![Some(format!("PostgreSQL does not have {what}"))];
        let at = event.at.0;
        if let Some(order) = order_of(&event.body) {
            let Some(row) = self.orders.get(&order) else { return missing(format!("order {order}")) };
            let mut wrong = match &event.body {
                Body::OrderRefunded(OrderRefunded { part, .. }) | Body::RefundEnded { part, .. } => {
                    let row = i32::try_from(*part).ok().and_then(|part| self.parts.get(&(order, part)));
                    let Some(row) = row else { return missing(format!("part {part} of order {order}")) };
                    of_part(event, row)
                }
                _ => of_order(event, row, self.resolutions.get(&order)),
            };
            wrong.push(event.body.entry().and_then(|entry| self.of_entry(entry)));
            return wrong;
        }
        match &event.body {
            Body::UsersCreated { .. } | Body::UsersPut(_) => {
                named_users(&event.body).into_iter().map(|user| of_user(self.users.get(&user.0), user, at)).collect()
            }
            Body::UserForgotten { user, entry } => {
                let is_forgotten = self.users.get(&user.get()).is_some_and(|row| row.name.is_empty());
                let named = (!is_forgotten).then(|| format!("user {user} is not forgotten in PostgreSQL"));
                vec![named, entry.as_ref().and_then(|entry| self.of_entry(entry))]
            }
            Body::BalanceCharged(entry) => vec![self.of_entry(entry)],
            Body::ProductCreated { product, .. } => match self.products.get(&product.get()) {
                None => missing(format!("product {product}")),
                Some(row) => vec![differ("the creation of a product", at, row.created_at)],
            },
            Body::CampaignCreated(terms) => {
                let id = terms.coupon_id.get();
                let (Some(row), Some(created)) = (self.campaigns.get(&id), self.created_campaigns.get(&id)) else {
                    return missing(format!("campaign {id}"));
                };
                vec![
                    differ("the creation of a campaign", at, created.created_at),
                    differ("the code", &terms.code, &row.code),
                    differ("the discount", terms.discount.kind.as_str(), &row.discount_type),
                    differ("the discount", terms.discount.amount, row.discount_amount),
                    differ("the conditions", terms.conditions.to_string(), &row.conditions),
                    differ("the total", terms.total, row.total),
                    differ("the end", terms.expires_at.0, row.expires_at),
                ]
            }
            Body::CouponIssued { coupon, user, issue_no, at_home } => {
                let coupons = if *at_home { &self.coupons } else { &self.remote_coupons };
                of_coupon(coupons.get(&(coupon.get(), user.get())), (coupon.get(), user.get()), (*issue_no, at))
            }
            Body::CouponGranted { coupon, user, issue_no, issued_at } => {
                let row = self.coupons.get(&(coupon.get(), user.get()));
                of_coupon(row, (coupon.get(), user.get()), (*issue_no, issued_at.0))
            }
            Body::StockAllotted { product, partition, total, .. } => {
                let row = self.allotments.get(&(product.get(), i32::from(partition.0)));
                vec![of_transfer("gave", *total, row.map(|row| row.allotted))]
            }
            Body::StockRegained { product, partition, total, withheld, .. } => {
                let row = self.allotments.get(&(product.get(), i32::from(partition.0)));
                let had = row.map(|row| if *withheld { row.recovered } else { row.regained });
                vec![of_transfer("took back", *total, had)]
            }
            Body::StockReceived { product, total, .. } => {
                vec![of_transfer("received", *total, self.partition_stock.get(&product.get()).map(|row| row.received))]
            }
            Body::StockReturned { product, total, withheld, .. } => {
                let row = self.partition_stock.get(&product.get());
                let had = row.map(|row| if *withheld { row.surrendered } else { row.returned });
                vec![of_transfer("gave back", *total, had)]
            }
            Body::IdsReserved { sequence, last } => {
                let reserved = self.reserved_ids.get(sequence).copied().unwrap_or(0);
                vec![
                    (reserved < *last)
                        .then(|| format!("PostgreSQL has reserved {reserved} of {sequence:?}, and not {last}")),
                ]
            }
            _ => Vec::new(),
        }
    }

    fn of_entry(&self, entry: &BalanceEntry) -> Option<String> {
        let key = (entry.user_id.get(), entry.entry_no);
        self.other_entries
            .contains(&key)
            .then(|| format!("PostgreSQL has another balance entry {} of user {}", key.1, key.0))
    }

    fn of_record(&self, audit: &Audit, event: &Event) -> Option<Option<String>> {
        let record = event.record.as_ref()?;
        let expires_at = event.at.plus(RECORD_TTL_MS).0;
        let is_running = matches!(event.body, Body::PaymentStarted(_));
        let wrong = match self.records.get(&record.digest) {
            _ if is_running != (record.reply == RUNNING) => {
                Some(format!("the request has the reply {:?}, which is of another decision", record.reply))
            }
            // The payment has ended since, under the same key: the key is free for another request a day later only.
            Some(row) if is_running && (expires_at..expires_at + RECORD_TTL_MS).contains(&row.expires_at) => {
                differ("the request of a payment", &record.fingerprint, &row.fingerprint)
            }
            // A later decision has the key.
            Some(row) if row.expires_at > expires_at => None,
            Some(row) if row.expires_at == expires_at => differ(
                "the request with its reply",
                format!("{} {}", record.fingerprint, record.reply),
                format!("{} {}", row.fingerprint, row.reply),
            ),
            None if expires_at <= audit.clock.now().0 => None,
            _ => Some(format!("PostgreSQL does not have idempotency record {}", record.digest)),
        };
        Some(wrong)
    }
}

/// The discrepancy of a count that only grows.
fn of_transfer(verb: &str, total: i64, in_postgres: Option<i64>) -> Option<String> {
    let known = in_postgres.unwrap_or_default();
    (known < total).then(|| format!("the partition {verb} {total} units, and in PostgreSQL {known}"))
}

fn of_coupon(row: Option<&IssuedRow>, (coupon, user): (i64, i64), issued: (i64, i64)) -> Vec<Option<String>> {
    let wrong = match row {
        None => Some(format!("PostgreSQL does not have coupon {coupon} of user {user}")),
        Some(row) if (row.issue_no, row.issued_at) != issued => Some(format!(
            "coupon {coupon} of user {user} has number and time {issued:?}, and not {:?}",
            (row.issue_no, row.issued_at)
        )),
        Some(_) => None,
    };
    vec![wrong]
}

/// The discrepancies of a decision about a refunded part of an order.
fn of_part(event: &Event, row: &PartRow) -> Vec<Option<String>> {
    let at = event.at.0;
    match &event.body {
        Body::OrderRefunded(part) => {
            let (operator, reason) = part.operator.clone().unwrap_or_default();
            let is_due = part.by_gateway && part.amount > 0;
            vec![
                differ("the refunded lines", sorted(&pack_lines(&part.lines)), sorted(&row.lines)),
                differ("the user", part.user.get(), row.user_id),
                differ("the refunded won", part.amount, row.amount),
                differ("whether the units stay off sale", part.quarantined, row.quarantined),
                differ("the operator", operator, row.refunded_by.clone().unwrap_or_default()),
                differ("the operator's reason", reason, row.reason.clone().unwrap_or_default()),
                differ("the time of the refund", at, row.refunded_at),
                differ("the receipt", &part.receipt, &row.receipt),
                differ("a refund by the gateway", part.by_gateway, row.method == "GATEWAY"),
                differ("the day of the sale", &part.day, row.day.clone().unwrap_or_default()),
                differ("the state of the refund", "REFUNDED", &row.status).filter(|_| !is_due),
            ]
        }
        Body::RefundEnded { receipt, refunds, .. } => vec![
            differ("the receipt", receipt, &row.receipt),
            differ("the state of the refund", "REFUNDED", &row.status),
            differ("the end of the refund", at, row.ended_at.unwrap_or_default()),
            (*refunds > i64::from(row.refunds))
                .then(|| format!("{refunds} parts were refunded, and in PostgreSQL {}", row.refunds)),
        ],
        _ => Vec::new(),
    }
}

/// The discrepancies of a decision about an order. The order may have been decided about again since.
fn of_order(event: &Event, row: &OrderRow, resolution: Option<&ResolutionRow>) -> Vec<Option<String>> {
    fn shown<T: ToString>(value: Option<T>) -> String {
        value.map(|value| value.to_string()).unwrap_or_default()
    }
    let (at, receipt) = (event.at.0, shown(row.receipt.as_ref()));
    let lines = |lines: &[_], of: &str| differ("the lines", sorted(&pack_lines(lines)), sorted(of));
    let coupon = shown(row.coupon_id);
    match &event.body {
        Body::OrderPlaced(placed) => vec![
            lines(&placed.lines, &row.ordered),
            differ("the user", placed.user.get(), row.user_id),
            differ("the total", placed.total, row.total),
            differ("the discount", placed.discount, row.discount),
            differ("the price", placed.final_price, row.final_price),
            differ("the coupon", shown(placed.coupon), coupon),
            differ("the time of its placement", at, row.placed_at),
            differ("the end of its hold", placed.expires_at.0, row.expires_at),
        ],
        Body::PaymentStarted(started) => vec![
            differ("the user", started.user.get(), row.user_id),
            differ("the payment", started.payment.get(), shown(row.payment_id)),
            differ("the type of its payment", started.payment_type.as_str(), shown(row.payment_type.as_ref())),
            differ("the price", started.amount, row.final_price),
            differ("the receipt", &started.receipt, receipt),
            started.transaction.as_ref().and_then(|transaction| {
                differ("the gateway's transaction", transaction, shown(row.transaction_id.as_ref()))
            }),
            differ("the start of its payment", at, shown(row.started_at)),
        ],
        Body::OrderPaid(paid) => {
            let method = if paid.by_gateway { "GATEWAY" } else { "BALANCE" };
            // A refund, or the gateway's word after an operator's, may bring another transaction.
            let is_final = resolution.is_none() && matches!(row.payment_status.as_deref(), Some("PAID" | "REFUND_DUE"));
            vec![
                lines(&paid.lines, &row.ordered),
                differ("the user", paid.user.get(), row.user_id),
                differ("the payment", paid.payment.get(), shown(row.payment_id)),
                differ("the type of its payment", paid.payment_type.as_str(), shown(row.payment_type.as_ref())),
                differ("the price", paid.amount, row.final_price),
                differ("the receipt", &paid.receipt, receipt),
                differ("the method of its payment", method, shown(row.method.as_ref())),
                differ(
                    "the gateway's transaction",
                    shown(paid.transaction.as_ref()),
                    shown(row.transaction_id.as_ref()),
                )
                .filter(|_| is_final),
                differ("the coupon", shown(paid.coupon), coupon),
                differ("the time of payment", at, shown(row.paid_at)),
                differ("the day of the sale", &paid.day, shown(row.day.as_ref())),
            ]
        }
        Body::OrderClosed(closed) => {
            let was_paid = closed.from == OrderStatus::Paid;
            vec![
                lines(&closed.lines, &row.lines),
                differ("the user", closed.user.get(), row.user_id),
                differ("whether it was paid", was_paid, row.paid_at.is_some()),
                differ("the status", closed.status.as_str(), &row.status),
                differ(
                    "the operator",
                    shown(closed.operator.as_ref().map(|(operator, _)| operator)),
                    shown(row.refunded_by.as_ref()),
                ),
                differ(
                    "the operator's reason",
                    shown(closed.operator.as_ref().map(|(_, reason)| reason)),
                    shown(row.refunded_because.as_ref()),
                ),
                differ("the reason of its end", closed.reason.as_str(), shown(row.close_reason.as_ref())),
                differ("the time of its end", at, shown(row.closed_at)),
                differ("the coupon", shown(closed.coupon), coupon),
                closed.receipt.as_ref().and_then(|closed| differ("the receipt", closed, &receipt)),
                differ("a refund by the gateway", closed.by_gateway, row.method.as_deref() == Some("GATEWAY"))
                    .filter(|_| was_paid),
                differ("the day of the sale", &closed.day, shown(row.day.as_ref())).filter(|_| was_paid),
            ]
        }
        Body::PaymentEnded { receipt: of, outcome, transaction, .. } => {
            let status = match outcome {
                PaymentOutcome::Refunded => "REFUNDED",
                PaymentOutcome::Declined => "DECLINED",
                PaymentOutcome::Settled => "PAID",
                PaymentOutcome::Disputed => "DISPUTED",
            };
            // A paid order may be refunded later.
            let is_final =
                !matches!(outcome, PaymentOutcome::Settled | PaymentOutcome::Disputed) || row.closed_at.is_none();
            vec![
                differ("the receipt", of, receipt),
                differ("the end of its payment", status, shown(row.payment_status.as_ref())).filter(|_| is_final),
                transaction.as_ref().filter(|_| is_final).and_then(|transaction| {
                    differ("the gateway's transaction", transaction, shown(row.transaction_id.as_ref()))
                }),
            ]
        }
        Body::PaymentResolved(resolved) => vec![
            differ("the user", resolved.user.get(), row.user_id),
            differ("the receipt", &resolved.receipt, receipt),
            differ("whether it was paid", resolved.approved, row.paid_at.is_some()),
            differ("the operator", &resolved.operator, shown(resolution.map(|row| &row.operator))),
            differ("the operator's reason", &resolved.reason, shown(resolution.map(|row| &row.reason))),
        ],
        _ => Vec::new(),
    }
}
