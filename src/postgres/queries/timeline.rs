//! What Postgres can tell of one order, or of what went wrong about one user: for operators who are asked why.

use sea_orm::{DatabaseConnection, DbErr, RuntimeErr};

use crate::{
    model::{DeadLetter, DeadLetterId, Error, Millis, OrderId, OrderTrace, PaymentTrace, UserId},
    postgres::translate,
};

/// Dead letters told of at most.
const MAX_DEAD_LETTERS: i64 = 20;
/// Balance changes of one order: a payment and a refund, as a rule.
const MAX_ENTRIES: i64 = 20;

/// When what happened to an order, as far as Postgres has it; `None` if it does not have the order (yet).
///
/// # Errors
/// [`Error::Unavailable`] while Postgres is.
pub async fn order(db: &DatabaseConnection, order: OrderId, partitions: u16) -> Result<Option<OrderTrace>, Error> {
    let pool = db.get_postgres_connection_pool();
    type Row = (i64, String, i64, i64, Option<i64>, Option<i64>, Option<String>);
    let row: Option<Row> = sqlx::query_as(
        "SELECT user_id, status, (extract(epoch FROM placed_at) * 1000)::bigint,
             (extract(epoch FROM expires_at) * 1000)::bigint, (extract(epoch FROM paid_at) * 1000)::bigint,
             (extract(epoch FROM closed_at) * 1000)::bigint, close_reason
         FROM orders WHERE id = $1",
    )
    .bind(order.get())
    .fetch_optional(pool)
    .await
    .map_err(untranslated)?;
    let Some((user, status, placed_at, expires_at, paid_at, closed_at, close_reason)) = row else { return Ok(None) };
    type Payment = (
        i64,
        String,
        String,
        String,
        i64,
        String,
        Option<String>,
        i64,
        Option<i64>,
        Option<i64>,
        Option<String>,
        Option<String>,
    );
    let payment: Option<Payment> = sqlx::query_as(
        "SELECT id, payment_type, method, status, amount, receipt, transaction_id,
             (extract(epoch FROM started_at) * 1000)::bigint, (extract(epoch FROM paid_at) * 1000)::bigint,
             (extract(epoch FROM ended_at) * 1000)::bigint, resolved_by, resolved_because
         FROM payments WHERE order_id = $1",
    )
    .bind(order.get())
    .fetch_optional(pool)
    .await
    .map_err(untranslated)?;
    let payment = payment.map(
        |(
            payment_id,
            payment_type,
            method,
            status,
            amount,
            receipt,
            transaction_id,
            started_at,
            paid_at,
            ended_at,
            resolved_by,
            resolved_because,
        )| {
            PaymentTrace {
                resolved: resolved_by.zip(resolved_because),
                payment_id,
                payment_type,
                method,
                status,
                amount,
                receipt,
                transaction_id,
                started_at: Millis(started_at),
                paid_at: paid_at.map(Millis),
                ended_at: ended_at.map(Millis),
            }
        },
    );
    let entries: Vec<(i64, String, i64, i64)> = sqlx::query_as(
        "SELECT entry_no, transaction_type, amount, (extract(epoch FROM created_at) * 1000)::bigint
         FROM balance_entries WHERE user_id = $1 AND order_id = $2 ORDER BY entry_no LIMIT $3",
    )
    .bind(user)
    .bind(order.get())
    .bind(MAX_ENTRIES)
    .fetch_all(pool)
    .await
    .map_err(untranslated)?;
    let holds: Vec<(i32, String)> = sqlx::query_as(
        "SELECT partition, state FROM stock_holds WHERE partition = ANY($1) AND order_id = $2 ORDER BY partition",
    )
    .bind((0..i32::from(partitions)).collect::<Vec<i32>>())
    .bind(order.get())
    .fetch_all(pool)
    .await
    .map_err(untranslated)?;
    Ok(Some(OrderTrace {
        status,
        placed_at: Millis(placed_at),
        expires_at: Millis(expires_at),
        paid_at: paid_at.map(Millis),
        closed_at: closed_at.map(Millis),
        close_reason,
        payment,
        entries: entries.into_iter().map(|(no, kind, amount, at)| (no, kind, amount, Millis(at))).collect(),
        holds: holds.into_iter().map(|(partition, state)| (partition as u16, state)).collect(),
    }))
}

/// Dead letters about an order, oldest first, at most twenty.
///
/// # Errors
/// [`Error::Unavailable`] while Postgres is.
pub async fn dead_letters_of_order(db: &DatabaseConnection, order: OrderId) -> Result<Vec<DeadLetter>, Error> {
    dead_letters(db, "order", order.get()).await
}

/// The same about a user.
///
/// # Errors
/// [`Error::Unavailable`] while Postgres is.
pub async fn dead_letters_of_user(db: &DatabaseConnection, user: UserId) -> Result<Vec<DeadLetter>, Error> {
    dead_letters(db, "user", user.get()).await
}

/// They are few: no index has their fields.
async fn dead_letters(db: &DatabaseConnection, field: &str, id: i64) -> Result<Vec<DeadLetter>, Error> {
    type Row = (i32, String, Option<i64>, String, String, i64);
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT partition, stream_id, seq, reason, fields::text, (extract(epoch FROM recorded_at) * 1000)::bigint
         FROM dead_letters WHERE fields->>$1 = $2 ORDER BY epoch, seq, recorded_at LIMIT $3",
    )
    .bind(field)
    .bind(id.to_string())
    .bind(MAX_DEAD_LETTERS)
    .fetch_all(db.get_postgres_connection_pool())
    .await
    .map_err(untranslated)?;
    let letter = |(partition, stream_id, seq, reason, fields, at): Row| DeadLetter {
        id: DeadLetterId { partition: partition as u16, stream_id, seq },
        reason,
        fields: serde_json::from_str(&fields).unwrap_or_default(),
        recorded_at: Millis(at),
    };
    Ok(rows.into_iter().map(letter).collect())
}

fn untranslated(error: sqlx::Error) -> Error {
    translate(DbErr::Query(RuntimeErr::SqlxError(error.into())))
}
