//! The records of one order, and the dead letters of an order or a user, for the operators' timelines.

use sqlx::{Row as _, postgres::PgRow};

use crate::{
    model::{
        DeadLetter, DeadLetterId, Error, Millis, OrderId, OrderTrace, PaymentTrace, RefundTrace, UserId,
        event::unpack_lines,
    },
    postgres::{Connection, translate_sqlx},
};

/// Dead letters in one read.
const MAX_DEAD_LETTERS: i64 = 20;
/// Balance entries of one order: usually one payment, and one refund. Of many refunds the oldest.
const MAX_ENTRIES: i64 = 20;
/// Refunded parts of one order.
const MAX_REFUNDS: i64 = 100;

/// The records of an order; `None` if PostgreSQL does not have the order (yet).
///
/// # Errors
/// [`Error::Unavailable`] while PostgreSQL is.
pub async fn order(db: &Connection, order: OrderId) -> Result<Option<OrderTrace>, Error> {
    let pool = db.get_postgres_connection_pool();
    type OrderRow = (i64, String, i64, i64, Option<i64>, Option<i64>, Option<String>, Option<String>, Option<String>);
    let row: Option<OrderRow> = sqlx::query_as(
        "SELECT user_id, status, (extract(epoch FROM placed_at) * 1000)::bigint,
             (extract(epoch FROM expires_at) * 1000)::bigint, (extract(epoch FROM paid_at) * 1000)::bigint,
             (extract(epoch FROM closed_at) * 1000)::bigint, close_reason, refunded_by, refunded_because
         FROM orders WHERE id = $1",
    )
    .bind(order.get())
    .fetch_optional(pool)
    .await
    .map_err(translate_sqlx)?;
    let Some((user, status, placed_at, expires_at, paid_at, closed_at, close_reason, by, because)) = row else {
        return Ok(None);
    };
    let payment = sqlx::query(
        "SELECT id, payment_type, method, status, amount, receipt, transaction_id, resolved_by, resolved_because,
             (extract(epoch FROM started_at) * 1000)::bigint AS started_at,
             (extract(epoch FROM paid_at) * 1000)::bigint AS paid_at,
             (extract(epoch FROM ended_at) * 1000)::bigint AS ended_at
         FROM payments WHERE order_id = $1",
    )
    .bind(order.get())
    .fetch_optional(pool)
    .await
    .and_then(|row| row.as_ref().map(payment_trace).transpose())
    .map_err(translate_sqlx)?;
    let entries: Vec<(i64, String, i64, i64)> = sqlx::query_as(
        "SELECT entry_no, transaction_type, amount, (extract(epoch FROM created_at) * 1000)::bigint
         FROM balance_entries WHERE user_id = $1 AND order_id = $2 ORDER BY entry_no LIMIT $3",
    )
    .bind(user)
    .bind(order.get())
    .bind(MAX_ENTRIES)
    .fetch_all(pool)
    .await
    .map_err(translate_sqlx)?;
    let refunds = sqlx::query(
        "SELECT part, amount, lines, quarantined, refunded_by, reason, status,
             (extract(epoch FROM refunded_at) * 1000)::bigint AS refunded_at,
             (extract(epoch FROM ended_at) * 1000)::bigint AS ended_at
         FROM order_refunds WHERE order_id = $1 ORDER BY part DESC LIMIT $2",
    )
    .bind(order.get())
    .bind(MAX_REFUNDS)
    .fetch_all(pool)
    .await
    .and_then(|rows| rows.iter().map(refund_trace).collect::<sqlx::Result<Vec<_>>>())
    .map_err(translate_sqlx)?;
    Ok(Some(OrderTrace {
        status,
        placed_at: Millis(placed_at),
        expires_at: Millis(expires_at),
        paid_at: paid_at.map(Millis),
        closed_at: closed_at.map(Millis),
        close_reason,
        refunded_by: by.map(|operator| (operator, because.unwrap_or_default())),
        payment,
        refunds,
        entries: entries.into_iter().map(|(no, kind, amount, at)| (no, kind, amount, Millis(at))).collect(),
    }))
}

fn refund_trace(row: &PgRow) -> sqlx::Result<RefundTrace> {
    let (operator, reason): (Option<String>, Option<String>) = (row.try_get("refunded_by")?, row.try_get("reason")?);
    Ok(RefundTrace {
        part: row.try_get("part")?,
        amount: row.try_get("amount")?,
        lines: unpack_lines(row.try_get("lines")?).unwrap_or_default(),
        quarantined: row.try_get("quarantined")?,
        operator: operator.map(|operator| (operator, reason.unwrap_or_default())),
        status: row.try_get("status")?,
        refunded_at: Millis(row.try_get("refunded_at")?),
        ended_at: row.try_get::<Option<i64>, _>("ended_at")?.map(Millis),
    })
}

fn payment_trace(row: &PgRow) -> sqlx::Result<PaymentTrace> {
    let resolved_by: Option<String> = row.try_get("resolved_by")?;
    let time = |column: &str| Ok::<_, sqlx::Error>(row.try_get::<Option<i64>, _>(column)?.map(Millis));
    Ok(PaymentTrace {
        payment_id: row.try_get("id")?,
        payment_type: row.try_get("payment_type")?,
        method: row.try_get("method")?,
        status: row.try_get("status")?,
        amount: row.try_get("amount")?,
        receipt: row.try_get("receipt")?,
        transaction_id: row.try_get("transaction_id")?,
        started_at: Millis(row.try_get("started_at")?),
        paid_at: time("paid_at")?,
        ended_at: time("ended_at")?,
        resolved: resolved_by.zip(row.try_get("resolved_because")?),
    })
}

/// Dead letters about an order, oldest first, at most twenty.
///
/// # Errors
/// [`Error::Unavailable`] while PostgreSQL is.
pub async fn dead_letters_of_order(db: &Connection, order: OrderId) -> Result<Vec<DeadLetter>, Error> {
    dead_letters(db, "order", order.get()).await
}

/// Dead letters about a user, oldest first, at most twenty.
///
/// # Errors
/// [`Error::Unavailable`] while PostgreSQL is.
pub async fn dead_letters_of_user(db: &Connection, user: UserId) -> Result<Vec<DeadLetter>, Error> {
    dead_letters(db, "user", user.get()).await
}

/// Dead letters whose `field` is `id`. There is no index on the fields: dead letters are few.
async fn dead_letters(db: &Connection, field: &str, id: i64) -> Result<Vec<DeadLetter>, Error> {
    type DeadLetterRow = (i32, String, Option<i64>, String, String, i64);
    let rows: Vec<DeadLetterRow> = sqlx::query_as(
        "SELECT partition, stream_id, seq, reason, fields::text, (extract(epoch FROM recorded_at) * 1000)::bigint
         FROM dead_letters WHERE fields->>$1 = $2 ORDER BY epoch, seq, recorded_at LIMIT $3",
    )
    .bind(field)
    .bind(id.to_string())
    .bind(MAX_DEAD_LETTERS)
    .fetch_all(db.get_postgres_connection_pool())
    .await
    .map_err(translate_sqlx)?;
    let dead_letter = |(partition, stream_id, seq, reason, fields, at): DeadLetterRow| DeadLetter {
        id: DeadLetterId { partition: partition as u16, stream_id, seq },
        reason,
        fields: serde_json::from_str(&fields).unwrap_or_default(),
        recorded_at: Millis(at),
    };
    Ok(rows.into_iter().map(dead_letter).collect())
}
