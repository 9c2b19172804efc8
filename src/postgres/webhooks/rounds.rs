//! What the sending processes read and write. A process sends to a webhook while it has its lease, so that no two send the same.

use std::time::Duration;

use sqlx::{AssertSqlSafe, PgConnection, Row, postgres::PgRow};

use crate::{
    model::{
        Error, LeasedWebhook, Millis, Partition, PendingEvent, RoundOutcome, WebhookDelivery, WebhookId,
        public_event::{EventCursor, EventPlace},
    },
    postgres::{Connection, translate_sqlx},
};

/// The parts of the log: each has the attempts of a day, in turn.
const SLOTS: i16 = 16;
const DAY_MS: i64 = 86_400_000;

/// A webhook that may have something to send.
#[derive(Clone, Debug)]
pub struct DueWebhook {
    pub id: WebhookId,
    pub cursor: EventCursor,
    /// Whether something is to be sent again now.
    pub has_retries: bool,
}

/// The webhooks that no process sends to now, and that may be sent something.
///
/// # Errors
/// [`Error::Unavailable`] while PostgreSQL is.
pub async fn due(db: &Connection, now: Millis) -> Result<Vec<DueWebhook>, Error> {
    let rows = sqlx::query(
        "SELECT id, cursor, EXISTS (SELECT FROM (
                 SELECT DISTINCT ON (manual, CASE WHEN manual THEN event_id ELSE subject END) due_at FROM webhook_retries
                 WHERE webhook_id = w.id
                 ORDER BY manual, CASE WHEN manual THEN event_id ELSE subject END, partition, epoch, seq, late) AS first
             WHERE due_at <= to_timestamp($1 / 1000.0)) AS has_retries
         FROM webhooks AS w
         WHERE status = 'ON' AND (failures = 0 OR next_at <= to_timestamp($1 / 1000.0)) AND coalesce(leased_until <= clock_timestamp(), true)
         ORDER BY next_at, id",
    )
    .bind(now.0)
    .fetch_all(db.get_postgres_connection_pool())
    .await
    .map_err(translate_sqlx)?;
    let due = |row: &PgRow| -> sqlx::Result<DueWebhook> {
        Ok(DueWebhook { id: id(row)?, cursor: cursor(row)?, has_retries: row.try_get("has_retries")? })
    };
    rows.iter().map(due).collect::<sqlx::Result<_>>().map_err(translate_sqlx)
}

/// The numbers of webhooks that failed for good, and of those that fail now.
///
/// # Errors
/// [`Error::Unavailable`] while PostgreSQL is.
pub async fn failing(db: &Connection) -> Result<(i64, i64), Error> {
    sqlx::query_as(
        "SELECT count(*) FILTER (WHERE status = 'FAILED'),
             count(*) FILTER (WHERE status = 'ON' AND (failing_since IS NOT NULL OR EXISTS (
                 SELECT FROM webhook_retries AS r WHERE r.webhook_id = w.id AND NOT manual)))
         FROM webhooks AS w",
    )
    .fetch_one(db.get_postgres_connection_pool())
    .await
    .map_err(translate_sqlx)
}

/// The columns of a leased webhook `w`.
macro_rules! leased_columns {
    () => {
        "w.id, url, kinds, key, old_key, (extract(epoch FROM old_key_until) * 1000)::bigint AS old_key_ms, cursor,
         (extract(epoch FROM failing_since) * 1000)::bigint AS failing_ms, failures, changes,
         (SELECT count(*) FROM webhook_retries AS r WHERE r.webhook_id = w.id) AS retries"
    };
}

/// Takes or keeps the lease of a webhook that is on, and reads it; `None` if another process has it, or if it is off.
///
/// # Errors
/// [`Error::Unavailable`] while PostgreSQL is.
pub async fn lease(
    db: &Connection,
    webhook: WebhookId,
    process: &str,
    time: Duration,
) -> Result<Option<LeasedWebhook>, Error> {
    let sql = concat!(
        "WITH leased AS (
             SELECT id FROM webhooks
             WHERE id = $1 AND status = 'ON' AND (leased_by = $2 OR coalesce(leased_until <= clock_timestamp(), true))
             FOR UPDATE SKIP LOCKED)
         UPDATE webhooks AS w SET leased_by = $2, leased_until = clock_timestamp() + $3 * interval '1 ms'
         FROM leased WHERE w.id = leased.id RETURNING ",
        leased_columns!()
    );
    write_lease(db, sql, webhook, process, time).await
}

/// Keeps the lease of a webhook, and reads it; `None` if another process has it, or if it is off.
///
/// # Errors
/// [`Error::Unavailable`] while PostgreSQL is.
pub async fn renew(
    db: &Connection,
    webhook: WebhookId,
    process: &str,
    time: Duration,
) -> Result<Option<LeasedWebhook>, Error> {
    let sql = concat!(
        "UPDATE webhooks AS w SET leased_until = clock_timestamp() + $3 * interval '1 ms'
         WHERE id = $1 AND leased_by = $2 AND status = 'ON' RETURNING ",
        leased_columns!()
    );
    write_lease(db, sql, webhook, process, time).await
}

async fn write_lease(
    db: &Connection,
    sql: &'static str,
    webhook: WebhookId,
    process: &str,
    time: Duration,
) -> Result<Option<LeasedWebhook>, Error> {
    let row = sqlx::query(sql)
        .bind(webhook.get())
        .bind(process)
        .bind(time.as_millis() as f64)
        .fetch_optional(db.get_postgres_connection_pool())
        .await
        .map_err(translate_sqlx)?;
    row.as_ref().map(leased).transpose().map_err(translate_sqlx)
}

/// Gives the lease of a webhook back. A renewal that PostgreSQL executes later finds no holder.
///
/// # Errors
/// [`Error::Unavailable`] while PostgreSQL is.
pub async fn release(db: &Connection, webhook: WebhookId, process: &str) -> Result<(), Error> {
    sqlx::query("UPDATE webhooks SET leased_until = NULL, leased_by = NULL WHERE id = $1 AND leased_by = $2")
        .bind(webhook.get())
        .bind(process)
        .execute(db.get_postgres_connection_pool())
        .await
        .map(drop)
        .map_err(translate_sqlx)
}

/// The events that are to be sent again now: of each subject the first.
///
/// # Errors
/// [`Error::Unavailable`] while PostgreSQL is.
pub async fn retries(db: &Connection, webhook: WebhookId, now: Millis, limit: i64) -> Result<Vec<PendingEvent>, Error> {
    let rows = sqlx::query(
        "SELECT partition, epoch, seq, late, event_id, kind, subject, body, attempts, manual,
             (extract(epoch FROM first_failed_at) * 1000)::bigint AS first_failed_ms
         FROM (SELECT DISTINCT ON (manual, CASE WHEN manual THEN event_id ELSE subject END) *
               FROM webhook_retries WHERE webhook_id = $1
               ORDER BY manual, CASE WHEN manual THEN event_id ELSE subject END, partition, epoch, seq, late) AS first
         WHERE due_at <= to_timestamp($2 / 1000.0) ORDER BY due_at, partition, epoch, seq, late LIMIT $3",
    )
    .bind(webhook.get())
    .bind(now.0)
    .bind(limit)
    .fetch_all(db.get_postgres_connection_pool())
    .await
    .map_err(translate_sqlx)?;
    rows.iter().map(pending).collect::<sqlx::Result<_>>().map_err(translate_sqlx)
}

/// The subjects whose events wait for an earlier one.
///
/// # Errors
/// [`Error::Unavailable`] while PostgreSQL is.
pub async fn waiting_subjects(db: &Connection, webhook: WebhookId) -> Result<Vec<String>, Error> {
    sqlx::query_scalar("SELECT DISTINCT subject FROM webhook_retries WHERE webhook_id = $1 AND NOT manual")
        .bind(webhook.get())
        .fetch_all(db.get_postgres_connection_pool())
        .await
        .map_err(translate_sqlx)
}

/// Writes what a round changes; `None`, and nothing is changed, if the process has lost the lease. What a round says of the receiver
/// counts only if no operator has changed the webhook meanwhile: returns whether it does.
///
/// # Errors
/// [`Error::Unavailable`] while PostgreSQL is.
pub async fn finish(
    db: &Connection,
    webhook: &LeasedWebhook,
    process: &str,
    outcome: &RoundOutcome,
    now: Millis,
) -> Result<Option<bool>, Error> {
    let (changes, webhook) = (webhook.changes, webhook.id);
    let mut transaction = db.get_postgres_connection_pool().begin().await.map_err(translate_sqlx)?;
    let finished: Option<bool> = sqlx::query_scalar(
        "UPDATE webhooks SET cursor = $3,
             failing_since = CASE WHEN changes = $8 THEN to_timestamp($4 / 1000.0) ELSE failing_since END,
             failures = CASE WHEN changes = $8 THEN $5 ELSE failures END,
             next_at = CASE WHEN changes = $8 THEN to_timestamp($6 / 1000.0) ELSE next_at END,
             status = CASE WHEN changes = $8 AND $7 AND status = 'ON' THEN 'FAILED' ELSE status END
         WHERE id = $1 AND leased_by = $2 RETURNING changes = $8",
    )
    .bind(webhook.get())
    .bind(process)
    .bind(outcome.cursor.to_string())
    .bind(outcome.failing_since.map(|since| since.0))
    .bind(outcome.failures as i32)
    .bind(outcome.next_at.0)
    .bind(outcome.gives_up)
    .bind(changes)
    .fetch_optional(&mut *transaction)
    .await
    .map_err(translate_sqlx)?;
    if finished.is_none() {
        return Ok(None);
    }
    let written = async {
        recovered(&mut transaction, webhook, &outcome.recovered).await?;
        failed(&mut transaction, webhook, &outcome.failed).await?;
        log(&mut transaction, webhook, &outcome.deliveries, now).await
    };
    written.await.map_err(translate_sqlx)?;
    transaction.commit().await.map_err(translate_sqlx)?;
    Ok(finished)
}

async fn recovered(
    connection: &mut PgConnection,
    webhook: WebhookId,
    places: &[(Partition, EventPlace, bool)],
) -> sqlx::Result<()> {
    if places.is_empty() {
        return Ok(());
    }
    let column = |value: fn(&(Partition, EventPlace, bool)) -> i64| places.iter().map(value).collect::<Vec<i64>>();
    sqlx::query(
        "DELETE FROM webhook_retries AS r
         USING unnest($2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::boolean[])
             AS gone (partition, epoch, seq, late, manual)
         WHERE r.webhook_id = $1 AND r.partition = gone.partition AND r.epoch = gone.epoch AND r.seq = gone.seq
             AND r.late = gone.late AND r.manual = gone.manual",
    )
    .bind(webhook.get())
    .bind(column(|(here, ..)| here.0.into()))
    .bind(column(|(_, place, _)| place.epoch))
    .bind(column(|(_, place, _)| place.seq))
    .bind(column(|(_, place, _)| place.late))
    .bind(places.iter().map(|(.., manual)| *manual).collect::<Vec<bool>>())
    .execute(connection)
    .await
    .map(drop)
}

async fn failed(
    connection: &mut PgConnection,
    webhook: WebhookId,
    events: &[(PendingEvent, Millis)],
) -> sqlx::Result<()> {
    if events.is_empty() {
        return Ok(());
    }
    let numbers = |value: fn(&(PendingEvent, Millis)) -> i64| events.iter().map(value).collect::<Vec<i64>>();
    let texts = |value: fn(&(PendingEvent, Millis)) -> &str| {
        events.iter().map(|event| value(event).to_owned()).collect::<Vec<String>>()
    };
    sqlx::query(
        "INSERT INTO webhook_retries (webhook_id, partition, epoch, seq, late, event_id, kind, subject, body, attempts,
             first_failed_at, due_at, manual)
         SELECT $1, partition, epoch, seq, late, event_id, kind, subject, body, attempts, to_timestamp(first_failed / 1000.0),
             to_timestamp(due / 1000.0), manual
         FROM unnest($2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::text[], $7::text[], $8::text[], $9::text[],
                     $10::bigint[], $11::bigint[], $12::bigint[], $13::boolean[])
             AS new (partition, epoch, seq, late, event_id, kind, subject, body, attempts, first_failed, due, manual)
         ON CONFLICT (webhook_id, partition, epoch, seq, late, manual) DO UPDATE SET attempts = excluded.attempts,
             due_at = excluded.due_at",
    )
    .bind(webhook.get())
    .bind(numbers(|(event, _)| event.partition.0.into()))
    .bind(numbers(|(event, _)| event.place.epoch))
    .bind(numbers(|(event, _)| event.place.seq))
    .bind(numbers(|(event, _)| event.place.late))
    .bind(texts(|(event, _)| &event.id))
    .bind(texts(|(event, _)| &event.kind))
    .bind(texts(|(event, _)| &event.subject))
    .bind(texts(|(event, _)| &event.body))
    .bind(numbers(|(event, _)| event.attempts))
    .bind(numbers(|(event, due)| event.first_failed_at.unwrap_or(*due).0))
    .bind(numbers(|(_, due)| due.0))
    .bind(events.iter().map(|(event, _)| event.manual).collect::<Vec<bool>>())
    .execute(connection)
    .await
    .map(drop)
}

async fn log(
    connection: &mut PgConnection,
    webhook: WebhookId,
    deliveries: &[WebhookDelivery],
    now: Millis,
) -> sqlx::Result<()> {
    if deliveries.is_empty() {
        return Ok(());
    }
    let numbers = |value: fn(&WebhookDelivery) -> i64| deliveries.iter().map(value).collect::<Vec<i64>>();
    let texts = |value: fn(&WebhookDelivery) -> &str| {
        deliveries.iter().map(|delivery| value(delivery).to_owned()).collect::<Vec<String>>()
    };
    sqlx::query(
        "INSERT INTO webhook_deliveries (slot, webhook_id, no, event_id, kind, attempt, at, took_ms, status, failure, manual)
         SELECT $1, $2, nextval('webhook_deliveries_no'), event_id, kind, attempt, to_timestamp(at::float8 / 1000), took_ms,
             NULLIF(status, 0), NULLIF(failure, ''), manual
         FROM unnest($3::text[], $4::text[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[], $9::text[], $10::boolean[])
             AS new (event_id, kind, attempt, at, took_ms, status, failure, manual)",
    )
    .bind(slot_at(now))
    .bind(webhook.get())
    .bind(texts(|delivery| &delivery.event_id))
    .bind(texts(|delivery| &delivery.kind))
    .bind(numbers(|delivery| delivery.attempt))
    .bind(numbers(|delivery| delivery.at.0))
    .bind(numbers(|delivery| delivery.took_ms))
    .bind(numbers(|delivery| delivery.status.unwrap_or(0).into()))
    .bind(texts(|delivery| delivery.failure.as_deref().unwrap_or_default()))
    .bind(deliveries.iter().map(|delivery| delivery.manual).collect::<Vec<bool>>())
    .execute(connection)
    .await
    .map(drop)
}

/// Empties the slots of the log that are older than these days.
///
/// # Errors
/// [`Error::Unavailable`] while PostgreSQL is, or while a reader holds a slot.
pub async fn purge_log(db: &Connection, now: Millis, keep_days: i64) -> Result<(), Error> {
    let kept: Vec<i16> = (0..=keep_days).map(|days| slot_at(now.plus(-days * DAY_MS))).collect();
    for slot in (0..SLOTS).filter(|slot| !kept.contains(slot)) {
        let table = format!("webhook_deliveries_{slot}");
        let pool = db.get_postgres_connection_pool();
        let has_rows: bool = sqlx::query_scalar(AssertSqlSafe(format!("SELECT EXISTS (SELECT FROM {table})")))
            .fetch_one(pool)
            .await
            .map_err(translate_sqlx)?;
        if has_rows {
            // Writers and readers wait behind the lock, so it must not wait long for one of them.
            let sql = format!("SET LOCAL lock_timeout = '2s'; TRUNCATE {table}");
            let mut transaction = pool.begin().await.map_err(translate_sqlx)?;
            sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *transaction).await.map_err(translate_sqlx)?;
            transaction.commit().await.map_err(translate_sqlx)?;
        }
    }
    Ok(())
}

fn slot_at(at: Millis) -> i16 {
    at.0.div_euclid(DAY_MS).rem_euclid(i64::from(SLOTS)) as i16
}

fn id(row: &PgRow) -> sqlx::Result<WebhookId> {
    WebhookId::new(row.try_get("id")?).ok_or_else(|| sqlx::Error::Decode("a webhook has no id".into()))
}

fn cursor(row: &PgRow) -> sqlx::Result<EventCursor> {
    let text: &str = row.try_get("cursor")?;
    text.parse().map_err(|_| sqlx::Error::Decode("a webhook has no cursor".into()))
}

fn leased(row: &PgRow) -> sqlx::Result<LeasedWebhook> {
    Ok(LeasedWebhook {
        id: id(row)?,
        url: row.try_get("url")?,
        kinds: row.try_get("kinds")?,
        keys: super::keys(row)?,
        cursor: cursor(row)?,
        failing_since: row.try_get::<Option<i64>, _>("failing_ms")?.map(Millis),
        failures: row.try_get::<i32, _>("failures")?.into(),
        retries: row.try_get("retries")?,
        changes: row.try_get("changes")?,
    })
}

fn pending(row: &PgRow) -> sqlx::Result<PendingEvent> {
    let late: i32 = row.try_get("late")?;
    Ok(PendingEvent {
        partition: Partition(row.try_get::<i32, _>("partition")? as u16),
        place: EventPlace { epoch: row.try_get("epoch")?, seq: row.try_get("seq")?, late: late.into() },
        id: row.try_get("event_id")?,
        kind: row.try_get("kind")?,
        subject: row.try_get("subject")?,
        body: row.try_get("body")?,
        attempts: row.try_get::<i32, _>("attempts")?.into(),
        first_failed_at: Some(Millis(row.try_get("first_failed_ms")?)),
        manual: row.try_get("manual")?,
    })
}
