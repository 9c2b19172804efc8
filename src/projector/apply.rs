//! Writes a folded batch: per table one statement for new rows and one for changed rows. All values are bound as
//! arrays, so the text of a statement is the same for every batch. A new order or payment is inserted in its final
//! state.
//!
//! Every statement must touch exactly the rows that the batch names. Otherwise (an order is missing, a coupon was
//! issued twice) the transaction fails, and the projector finds the event that caused it.

use std::collections::HashSet;

use sea_orm::{ConnectionTrait, DatabaseTransaction, DbBackend, DbErr, Statement, Value};

use super::batch::{Batch, NewPayment, OrderState, PaymentState};
use crate::{
    model::{
        Millis, Partition,
        event::{self, pack_lines},
    },
    redis::commands::RECORD_TTL_MS,
};

/// Why a batch could not be applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    #[error(transparent)]
    Db(#[from] DbErr),
    #[error("{what}: {named} named, {touched} there")]
    Missing { what: &'static str, named: usize, touched: u64 },
}

/// Times are bound as milliseconds. The statements divide the times of events as `float8`: exact to the microsecond
/// until the year 2242, and fourteen times as fast as `numeric`. They divide times that an operator sets, which may be
/// later, as `numeric`.
fn ms(at: Millis) -> i64 {
    at.0
}

fn optional_ms(at: Option<Millis>) -> i64 {
    at.map_or(0, ms)
}

struct Apply<'a>(&'a DatabaseTransaction);

impl Apply<'_> {
    /// Runs a statement that must touch `rows` rows, unless there are none.
    async fn run(&self, what: &'static str, rows: usize, sql: &str, values: Vec<Value>) -> Result<(), ApplyError> {
        if rows == 0 {
            return Ok(());
        }
        let done = self.0.execute_raw(Statement::from_sql_and_values(DbBackend::Postgres, sql, values)).await?;
        let touched = done.rows_affected();
        if touched == rows as u64 { Ok(()) } else { Err(ApplyError::Missing { what, named: rows, touched }) }
    }
}

/// Binds one value of each row as an array.
macro_rules! column {
    ($rows:expr, $row:pat => $value:expr) => {
        $rows.iter().map(|$row| $value).collect::<Vec<_>>().into()
    };
}

/// Applies a batch of a partition.
///
/// # Errors
/// A row violates a constraint or is missing, or PostgreSQL is unavailable.
pub async fn apply(transaction: &DatabaseTransaction, here: Partition, batch: &Batch) -> Result<(), ApplyError> {
    let db = Apply(transaction);
    users(&db, batch).await?;
    products(&db, batch).await?;
    campaigns(&db, batch).await?;
    orders(&db, batch).await?;
    coupons(&db, batch).await?;
    payments(&db, batch).await?;
    holds(&db, here, batch).await?;
    records(&db, here, batch).await?;
    sequences(&db, batch).await
}

async fn users(db: &Apply<'_>, batch: &Batch) -> Result<(), ApplyError> {
    let new = &batch.new_users;
    db.run(
        "new users",
        new.len(),
        "INSERT INTO users (id, name, balance, created_at)
         SELECT id, name, balance, to_timestamp(at::float8 / 1000)
         FROM unnest($1::bigint[], $2::text[], $3::bigint[], $4::bigint[]) AS new (id, name, balance, at)",
        vec![
            column!(new, u => u.id),
            column!(new, u => u.name.clone()),
            column!(new, u => batch.balances.get(&u.id).copied().unwrap_or(0)),
            column!(new, u => ms(u.at)),
        ],
    )
    .await?;
    let inserted: HashSet<i64> = new.iter().map(|u| u.id).collect();
    let balances: Vec<_> = batch.balances.iter().filter(|(id, _)| !inserted.contains(*id)).collect();
    db.run(
        "users",
        balances.len(),
        "UPDATE users SET balance = new.balance FROM unnest($1::bigint[], $2::bigint[]) AS new (id, balance)
         WHERE users.id = new.id",
        vec![column!(balances, (id, _) => **id), column!(balances, (_, balance) => **balance)],
    )
    .await?;
    let entries = &batch.entries;
    db.run(
        "balance entries",
        entries.len(),
        "INSERT INTO balance_entries
             (user_id, entry_no, transaction_type, amount, before_balance, after_balance, order_id, created_at)
         SELECT user_id, entry_no, type, amount, before, after, NULLIF(order_id, 0), to_timestamp(at::float8 / 1000)
         FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[],
                     $8::bigint[]) AS new (user_id, entry_no, type, amount, before, after, order_id, at)",
        vec![
            column!(entries, e => e.user_id.get()),
            column!(entries, e => e.entry_no),
            column!(entries, e => e.kind.as_str().to_owned()),
            column!(entries, e => e.amount),
            column!(entries, e => e.before),
            column!(entries, e => e.after),
            column!(entries, e => e.order_id.map_or(0, |id| id.get())),
            column!(entries, e => ms(e.at)),
        ],
    )
    .await
}

async fn products(db: &Apply<'_>, batch: &Batch) -> Result<(), ApplyError> {
    let new = &batch.new_products;
    db.run(
        "new products",
        new.len(),
        "INSERT INTO products (id, name, category, price, on_sale, held, sold, stocked, created_at)
         SELECT id, name, category, price, 0, 0, 0, 0, to_timestamp(at::float8 / 1000)
         FROM unnest($1::bigint[], $2::text[], $3::text[], $4::bigint[], $5::bigint[])
             AS new (id, name, category, price, at)",
        vec![
            column!(new, p => p.id),
            column!(new, p => p.name.clone()),
            column!(new, p => p.category.clone()),
            column!(new, p => p.price),
            column!(new, p => ms(p.at)),
        ],
    )
    .await?;
    let described: Vec<_> = batch.descriptions.iter().collect();
    db.run(
        "products",
        described.len(),
        "UPDATE products SET name = new.name, price = new.price, category = new.category
         FROM unnest($1::bigint[], $2::text[], $3::bigint[], $4::text[]) AS new (id, name, price, category)
         WHERE products.id = new.id",
        vec![
            column!(described, (id, _) => **id),
            column!(described, (_, (name, ..)) => name.clone()),
            column!(described, (_, (_, price, _)) => *price),
            column!(described, (.., (_, _, category)) => category.clone()),
        ],
    )
    .await?;
    let units: Vec<_> = batch.units.iter().collect();
    db.run(
        "products",
        units.len(),
        "UPDATE products SET on_sale = products.on_sale + new.on_sale, held = products.held + new.held,
             sold = products.sold + new.sold, withheld = products.withheld + new.withheld,
             stocked = products.stocked + new.stocked
         FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[])
             AS new (id, on_sale, held, sold, withheld, stocked)
         WHERE products.id = new.id",
        vec![
            column!(units, (id, _) => **id),
            column!(units, (_, u) => u.on_sale),
            column!(units, (_, u) => u.held),
            column!(units, (_, u) => u.sold),
            column!(units, (_, u) => u.withheld),
            column!(units, (_, u) => u.stocked),
        ],
    )
    .await
}

async fn campaigns(db: &Apply<'_>, batch: &Batch) -> Result<(), ApplyError> {
    let new = &batch.new_campaigns;
    db.run(
        "new campaigns",
        new.len(),
        "INSERT INTO campaigns
             (id, code, discount_type, discount_amount, total, issued, opens_at, closes_at, expires_at, created_at)
         SELECT id, code, type, amount, total, 0, to_timestamp(opens / 1000.0), to_timestamp(closes / 1000.0),
             to_timestamp(expires / 1000.0), to_timestamp(at / 1000.0)
         FROM unnest($1::bigint[], $2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[],
                     $8::bigint[], $9::bigint[]) AS new (id, code, type, amount, total, opens, closes, expires, at)",
        vec![
            column!(new, (t, _) => t.coupon_id.get()),
            column!(new, (t, _) => t.code.clone()),
            column!(new, (t, _) => t.discount.kind.as_str().to_owned()),
            column!(new, (t, _) => t.discount.amount),
            column!(new, (t, _) => t.total),
            column!(new, (t, _) => ms(t.opens_at)),
            column!(new, (t, _) => ms(t.closes_at)),
            column!(new, (t, _) => ms(t.expires_at)),
            column!(new, (_, at) => ms(*at)),
        ],
    )
    .await?;
    let windows: Vec<_> = batch.windows.iter().collect();
    db.run(
        "campaigns",
        windows.len(),
        "UPDATE campaigns SET opens_at = to_timestamp(opens / 1000.0), closes_at = to_timestamp(closes / 1000.0)
         FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) AS new (id, opens, closes)
         WHERE campaigns.id = new.id",
        vec![
            column!(windows, (id, _) => **id),
            column!(windows, (_, (opens, _)) => ms(*opens)),
            column!(windows, (_, (_, closes)) => ms(*closes)),
        ],
    )
    .await?;
    let issued: Vec<_> = batch.issued.iter().collect();
    db.run(
        "campaigns",
        issued.len(),
        "UPDATE campaigns SET issued = campaigns.issued + new.issued, withheld = campaigns.withheld + new.withheld
         FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) AS new (id, issued, withheld)
         WHERE campaigns.id = new.id",
        vec![
            column!(issued, (id, _) => **id),
            column!(issued, (_, n) => n.issued),
            column!(issued, (_, n) => n.withheld),
        ],
    )
    .await
}

async fn coupons(db: &Apply<'_>, batch: &Batch) -> Result<(), ApplyError> {
    let new = &batch.new_coupons;
    db.run(
        "new coupons",
        new.len(),
        // The join replaces the foreign key to the users. The status is not yet that of the batch: hardly any coupon is
        // used in the batch that issued it.
        "INSERT INTO user_coupons (coupon_id, user_id, issue_no, status, issued_at)
         SELECT coupon, user_id, issue_no, 'AVAILABLE', to_timestamp(at::float8 / 1000)
         FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[]) AS new (coupon, user_id, issue_no, at)
         JOIN users ON users.id = new.user_id",
        vec![
            column!(new, c => c.coupon),
            column!(new, c => c.user),
            column!(new, c => c.issue_no),
            column!(new, c => ms(c.at)),
        ],
    )
    .await?;
    let remote = &batch.remote_coupons;
    db.run(
        "remote coupons",
        remote.len(),
        "INSERT INTO remote_coupons (coupon_id, user_id, issue_no, issued_at)
         SELECT coupon, user_id, issue_no, to_timestamp(at::float8 / 1000)
         FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[]) AS new (coupon, user_id, issue_no, at)",
        vec![
            column!(remote, c => c.coupon),
            column!(remote, c => c.user),
            column!(remote, c => c.issue_no),
            column!(remote, c => ms(c.at)),
        ],
    )
    .await?;
    let states: Vec<_> = batch.coupons.iter().collect();
    db.run(
        "coupons",
        states.len(),
        "UPDATE user_coupons SET status = new.status, order_id = NULLIF(new.order_id, 0),
             used_at = to_timestamp(NULLIF(new.used_at, 0)::float8 / 1000)
         FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::bigint[], $5::bigint[])
             AS new (coupon, user_id, status, order_id, used_at)
         WHERE user_coupons.coupon_id = new.coupon AND user_coupons.user_id = new.user_id",
        vec![
            column!(states, ((coupon, _), _) => *coupon),
            column!(states, ((_, user), _) => *user),
            column!(states, (_, state) => state.status.to_owned()),
            column!(states, (_, state) => state.order.unwrap_or(0)),
            column!(states, (_, state) => optional_ms(state.used_at)),
        ],
    )
    .await
}

async fn orders(db: &Apply<'_>, batch: &Batch) -> Result<(), ApplyError> {
    let new = &batch.new_orders;
    let state = |o: &event::OrderPlaced| batch.orders.get(&o.order.get()).copied().unwrap_or(OrderState::PENDING);
    db.run(
        "new orders",
        new.len(),
        // The join replaces the foreign key to the users.
        "INSERT INTO orders (id, user_id, total, discount, final_price, coupon_id, placed_at, expires_at, status, paid_at,
             closed_at, close_reason, sold_on)
         SELECT new.id, user_id, total, discount, final, NULLIF(coupon, 0), to_timestamp(at::float8 / 1000),
             to_timestamp(expires::float8 / 1000), status, to_timestamp(NULLIF(paid_at, 0)::float8 / 1000),
             to_timestamp(NULLIF(closed_at, 0)::float8 / 1000), NULLIF(reason, ''), NULLIF(sold_on, '')::date
         FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[],
                     $8::bigint[], $9::text[], $10::bigint[], $11::bigint[], $12::text[], $13::text[])
             AS new (id, user_id, total, discount, final, coupon, at, expires, status, paid_at, closed_at, reason, sold_on)
         JOIN users ON users.id = new.user_id",
        vec![
            column!(new, (o, _) => o.order.get()),
            column!(new, (o, _) => o.user.get()),
            column!(new, (o, _) => o.total),
            column!(new, (o, _) => o.discount),
            column!(new, (o, _) => o.final_price),
            column!(new, (o, _) => o.coupon.map_or(0, |id| id.get())),
            column!(new, (_, at) => ms(*at)),
            column!(new, (o, _) => ms(o.expires_at)),
            column!(new, (o, _) => state(o).status.as_str().to_owned()),
            column!(new, (o, _) => optional_ms(state(o).paid_at)),
            column!(new, (o, _) => optional_ms(state(o).closed_at)),
            column!(new, (o, _) => state(o).reason.map_or("", |reason| reason.as_str()).to_owned()),
            column!(new, (o, _) => state(o).sold_on.map(|day| day.to_string()).unwrap_or_default()),
        ],
    )
    .await?;
    let lines_of = |o: &'_ event::OrderPlaced| {
        let lines = o.lines.iter().chain(&o.remote).copied().enumerate();
        lines.map(|(place, line)| (o.order.get(), place as i64, line)).collect::<Vec<_>>()
    };
    let lines: Vec<_> = new.iter().flat_map(|(o, _)| lines_of(o)).collect();
    db.run(
        "new order lines",
        lines.len(),
        "INSERT INTO order_lines (order_id, product_id, quantity, price, place)
         SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[])",
        vec![
            column!(lines, (order, ..) => *order),
            column!(lines, (.., line) => line.product_id.get()),
            column!(lines, (.., line) => line.quantity),
            column!(lines, (.., line) => line.price),
            column!(lines, (_, place, _) => *place),
        ],
    )
    .await?;
    let inserted: HashSet<i64> = new.iter().map(|(o, _)| o.order.get()).collect();
    let states: Vec<_> = batch.orders.iter().filter(|(id, _)| !inserted.contains(*id)).collect();
    db.run(
        "orders",
        states.len(),
        "UPDATE orders SET status = new.status,
             paid_at = coalesce(to_timestamp(NULLIF(new.paid_at, 0)::float8 / 1000), orders.paid_at),
             closed_at = to_timestamp(NULLIF(new.closed_at, 0)::float8 / 1000), close_reason = NULLIF(new.reason, ''),
             sold_on = coalesce(NULLIF(new.sold_on, '')::date, orders.sold_on)
         FROM unnest($1::bigint[], $2::text[], $3::bigint[], $4::bigint[], $5::text[], $6::text[])
             AS new (id, status, paid_at, closed_at, reason, sold_on)
         WHERE orders.id = new.id",
        vec![
            column!(states, (id, _) => **id),
            column!(states, (_, state) => state.status.as_str().to_owned()),
            column!(states, (_, state) => optional_ms(state.paid_at)),
            column!(states, (_, state) => optional_ms(state.closed_at)),
            column!(states, (_, state) => state.reason.map_or("", |reason| reason.as_str()).to_owned()),
            column!(states, (_, state) => state.sold_on.map(|day| day.to_string()).unwrap_or_default()),
        ],
    )
    .await
}

/// The operator who resolved a payment, and the reason; empty without one.
fn resolved(state: Option<&PaymentState>) -> (String, String) {
    state.and_then(|state| state.resolved.clone()).unwrap_or_default()
}

async fn payments(db: &Apply<'_>, batch: &Batch) -> Result<(), ApplyError> {
    let new = &batch.new_payments;
    let state = |p: &NewPayment| batch.payments.get(&p.receipt);
    db.run(
        "new payments",
        new.len(),
        // The join replaces the foreign key to the orders.
        "INSERT INTO payments
             (id, order_id, user_id, payment_type, method, amount, receipt, started_at, key_digest, key_fingerprint, status,
             transaction_id, paid_at, ended_at, resolved_by, resolved_because)
         SELECT new.id, order_id, new.user_id, type, method, amount, receipt, to_timestamp(at::float8 / 1000),
             NULLIF(digest, ''), NULLIF(fingerprint, ''), new.status, NULLIF(transaction_id, ''),
             to_timestamp(NULLIF(new.paid_at, 0)::float8 / 1000), to_timestamp(NULLIF(ended_at, 0)::float8 / 1000),
             NULLIF(new.resolved_by, ''), NULLIF(new.resolved_because, '')
         FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::text[], $5::text[], $6::bigint[], $7::text[],
                     $8::bigint[], $9::text[], $10::text[], $11::text[], $12::text[], $13::bigint[], $14::bigint[],
                     $15::text[], $16::text[])
             AS new (id, order_id, user_id, type, method, amount, receipt, at, digest, fingerprint, status, transaction_id,
                     paid_at, ended_at, resolved_by, resolved_because)
         JOIN orders ON orders.id = new.order_id",
        vec![
            column!(new, p => p.id),
            column!(new, p => p.order),
            column!(new, p => p.user),
            column!(new, p => p.payment_type.as_str().to_owned()),
            column!(new, p => p.method.to_owned()),
            column!(new, p => p.amount),
            column!(new, p => p.receipt.clone()),
            column!(new, p => ms(p.at)),
            column!(new, p => p.key.as_ref().map_or("", |(digest, _)| digest).to_owned()),
            column!(new, p => p.key.as_ref().map_or("", |(_, fingerprint)| fingerprint).to_owned()),
            column!(new, p => state(p).map_or("STARTED", |state| state.status).to_owned()),
            column!(new, p => state(p).and_then(|state| state.transaction.clone()).unwrap_or_default()),
            column!(new, p => optional_ms(state(p).and_then(|state| state.paid_at))),
            column!(new, p => optional_ms(state(p).and_then(|state| state.ended_at))),
            column!(new, p => resolved(state(p)).0),
            column!(new, p => resolved(state(p)).1),
        ],
    )
    .await?;
    let inserted: HashSet<&str> = new.iter().map(|p| p.receipt.as_str()).collect();
    let states: Vec<_> = batch.payments.iter().filter(|(receipt, _)| !inserted.contains(receipt.as_str())).collect();
    db.run(
        "payments",
        states.len(),
        "UPDATE payments SET status = new.status,
             transaction_id = coalesce(NULLIF(new.transaction_id, ''), payments.transaction_id),
             paid_at = coalesce(to_timestamp(NULLIF(new.paid_at, 0)::float8 / 1000), payments.paid_at),
             ended_at = coalesce(to_timestamp(NULLIF(new.ended_at, 0)::float8 / 1000), payments.ended_at),
             resolved_by = coalesce(NULLIF(new.resolved_by, ''), payments.resolved_by),
             resolved_because = coalesce(NULLIF(new.resolved_because, ''), payments.resolved_because)
         FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::text[], $7::text[])
             AS new (receipt, status, transaction_id, paid_at, ended_at, resolved_by, resolved_because)
         WHERE payments.receipt = new.receipt",
        vec![
            column!(states, (receipt, _) => (*receipt).clone()),
            column!(states, (_, state) => state.status.to_owned()),
            column!(states, (_, state) => state.transaction.clone().unwrap_or_default()),
            column!(states, (_, state) => optional_ms(state.paid_at)),
            column!(states, (_, state) => optional_ms(state.ended_at)),
            column!(states, (_, state) => resolved(Some(state)).0),
            column!(states, (_, state) => resolved(Some(state)).1),
        ],
    )
    .await
}

async fn holds(db: &Apply<'_>, here: Partition, batch: &Batch) -> Result<(), ApplyError> {
    let orphaned: Vec<_> = batch.orphaned_holds.iter().collect();
    db.run(
        "stock holds",
        orphaned.len(),
        "DELETE FROM stock_holds WHERE partition = $1 AND order_id = ANY($2)",
        vec![i32::from(here.0).into(), column!(orphaned, order => **order)],
    )
    .await?;
    let holds: Vec<_> = batch.holds.iter().filter(|(order, _)| !batch.orphaned_holds.contains(order)).collect();
    db.run(
        "stock holds",
        holds.len(),
        "INSERT INTO stock_holds (partition, order_id, user_id, state, lines)
         SELECT $1, order_id, user_id, state, lines
         FROM unnest($2::bigint[], $3::bigint[], $4::text[], $5::text[]) AS new (order_id, user_id, state, lines)
         ON CONFLICT (partition, order_id) DO UPDATE SET state = excluded.state",
        vec![
            i32::from(here.0).into(),
            column!(holds, (order, _) => **order),
            column!(holds, (_, hold) => hold.user),
            column!(holds, (_, hold) => hold.state.as_str().to_owned()),
            column!(holds, (_, hold) => pack_lines(&hold.lines)),
        ],
    )
    .await
}

async fn records(db: &Apply<'_>, here: Partition, batch: &Batch) -> Result<(), ApplyError> {
    let records: Vec<_> = batch.records.values().collect();
    db.run(
        "idempotency records",
        records.len(),
        // A key may be used again after its record has expired. A payment's record is first RUNNING, then has the
        // outcome.
        "INSERT INTO idempotency_records (partition, digest, fingerprint, reply, expires_at)
         SELECT $1, digest, fingerprint, reply, to_timestamp(until::float8 / 1000)
         FROM unnest($2::text[], $3::text[], $4::text[], $5::bigint[]) AS new (digest, fingerprint, reply, until)
         ON CONFLICT (partition, digest) DO UPDATE
             SET fingerprint = excluded.fingerprint, reply = excluded.reply, expires_at = excluded.expires_at",
        vec![
            i32::from(here.0).into(),
            column!(records, (record, _) => record.digest.clone()),
            column!(records, (record, _) => record.fingerprint.clone()),
            column!(records, (record, _) => record.reply.clone()),
            column!(records, (_, at) => ms(at.plus(RECORD_TTL_MS))),
        ],
    )
    .await
}

async fn sequences(db: &Apply<'_>, batch: &Batch) -> Result<(), ApplyError> {
    let sequences: Vec<_> = batch.sequences.iter().collect();
    db.run(
        "id sequences",
        sequences.len(),
        "INSERT INTO id_sequences (name, last) SELECT * FROM unnest($1::text[], $2::bigint[])
         ON CONFLICT (name) DO UPDATE SET last = greatest(id_sequences.last, excluded.last)",
        vec![column!(sequences, (name, _) => (*name).clone()), column!(sequences, (_, last) => **last)],
    )
    .await
}
