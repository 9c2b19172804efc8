//! Webhooks in PostgreSQL: the receivers, as operators see and change them. [`rounds`] has what the sending processes read and write.

pub mod rounds;

use sqlx::{PgConnection, Row, postgres::PgRow};

use super::{Connection, translate_sqlx};
use crate::model::{
    DeliveryFilter, Error, IdempotencyKey, KeyRotation, MAX_WEBHOOKS, Millis, NewWebhook, RECORD_TTL_MS, Reply,
    Webhook, WebhookDelivery, WebhookId, WebhookKey, WebhookKeys, WebhookPatch, WebhookStatus,
    public_event::{EventCursor, KeptEvent},
};

/// The columns that [`webhook`] reads.
macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT id, url, kinds, description, status, next_ms, created_ms, failing_ms, old_key_ms,
                 (SELECT count(*) FROM webhook_retries AS r WHERE r.webhook_id = w.id) AS retries
             FROM (SELECT *, (extract(epoch FROM next_at) * 1000)::bigint AS next_ms,
                       (extract(epoch FROM created_at) * 1000)::bigint AS created_ms,
                       (extract(epoch FROM failing_since) * 1000)::bigint AS failing_ms,
                       (extract(epoch FROM old_key_until) * 1000)::bigint AS old_key_ms
                   FROM webhooks) AS w ",
            $rest
        )
    };
}

/// Creates a webhook that begins after `cursor`, unless a request with this key has. Returns it as it was created, and its key.
///
/// # Errors
/// [`Error::TooManyWebhooks`]; [`Error::IdempotencyKeyReused`]; [`Error::Unavailable`] while PostgreSQL is.
pub async fn create(
    db: &Connection,
    new: &NewWebhook,
    key: &WebhookKey,
    cursor: &EventCursor,
    request: Option<&IdempotencyKey>,
    now: Millis,
) -> Result<Reply<(Webhook, WebhookKey)>, Error> {
    if let Some(before) = answered_before(db, request, now).await? {
        return Ok(Reply { value: (created(new, before.webhook, before.at), before.key), replayed: true });
    }
    let mut transaction = db.get_postgres_connection_pool().begin().await.map_err(translate_sqlx)?;
    let id: Option<i64> = sqlx::query_scalar(
        "INSERT INTO webhooks (url, kinds, description, key, cursor, next_at, created_at)
         SELECT $1, $2, $3, $4, $5, to_timestamp($6 / 1000.0), to_timestamp($6 / 1000.0)
         WHERE (SELECT count(*) FROM webhooks) < $7 RETURNING id",
    )
    .bind(&new.url)
    .bind(&new.kinds)
    .bind(&new.description)
    .bind(key.as_bytes())
    .bind(cursor.to_string())
    .bind(now.0)
    .bind(MAX_WEBHOOKS)
    .fetch_optional(&mut *transaction)
    .await
    .map_err(translate_sqlx)?;
    let id = id.and_then(WebhookId::new).ok_or(Error::TooManyWebhooks)?;
    if record_request(&mut transaction, request, id, key, now).await? {
        transaction.commit().await.map_err(translate_sqlx)?;
        return Ok(Reply { value: (created(new, id, now), key.clone()), replayed: false });
    }
    // A concurrent request with this key was first.
    transaction.rollback().await.map_err(translate_sqlx)?;
    let before = answered_before(db, request, now).await?.ok_or(Error::InProgress)?;
    Ok(Reply { value: (created(new, before.webhook, before.at), before.key), replayed: true })
}

/// A webhook as it is created.
fn created(new: &NewWebhook, id: WebhookId, now: Millis) -> Webhook {
    let NewWebhook { url, kinds, description } = new.clone();
    Webhook {
        id,
        url,
        kinds,
        description,
        status: WebhookStatus::On,
        failing_since: None,
        next_at: now,
        retries: 0,
        old_key_until: None,
        created_at: now,
    }
}

/// What an earlier request with the same idempotency key was answered.
struct AnsweredRequest {
    webhook: WebhookId,
    key: WebhookKey,
    at: Millis,
}

/// The answer to an earlier request with this idempotency key.
///
/// # Errors
/// [`Error::IdempotencyKeyReused`] if that was another request; [`Error::Unavailable`] while PostgreSQL is.
async fn answered_before(
    db: &Connection,
    request: Option<&IdempotencyKey>,
    now: Millis,
) -> Result<Option<AnsweredRequest>, Error> {
    let Some(request) = request else { return Ok(None) };
    let row: Option<(i64, Vec<u8>, i64, String)> = sqlx::query_as(
        "SELECT webhook_id, key, (extract(epoch FROM at) * 1000)::bigint, fingerprint FROM webhook_requests
         WHERE digest = $1 AND at > to_timestamp($2 / 1000.0)",
    )
    .bind(&request.digest)
    .bind(now.0 - RECORD_TTL_MS)
    .fetch_optional(db.get_postgres_connection_pool())
    .await
    .map_err(translate_sqlx)?;
    let Some((webhook, key, at, fingerprint)) = row else { return Ok(None) };
    if fingerprint != request.fingerprint {
        return Err(Error::IdempotencyKeyReused);
    }
    Ok(WebhookId::new(webhook).map(|webhook| AnsweredRequest { webhook, key: WebhookKey::new(key), at: Millis(at) }))
}

/// Keeps the answer to a request with an idempotency key. False if another request with this key has one.
async fn record_request(
    connection: &mut PgConnection,
    request: Option<&IdempotencyKey>,
    webhook: WebhookId,
    key: &WebhookKey,
    now: Millis,
) -> Result<bool, Error> {
    let Some(request) = request else { return Ok(true) };
    let recorded = sqlx::query(
        "INSERT INTO webhook_requests (digest, fingerprint, webhook_id, key, at) VALUES ($1, $2, $3, $4, to_timestamp($5 / 1000.0))
         ON CONFLICT (digest) DO UPDATE SET fingerprint = excluded.fingerprint, webhook_id = excluded.webhook_id,
             key = excluded.key, at = excluded.at
         WHERE webhook_requests.at <= to_timestamp($6 / 1000.0)",
    )
    .bind(&request.digest)
    .bind(&request.fingerprint)
    .bind(webhook.get())
    .bind(key.as_bytes())
    .bind(now.0)
    .bind(now.0 - RECORD_TTL_MS)
    .execute(connection)
    .await
    .map_err(translate_sqlx)?;
    Ok(recorded.rows_affected() > 0)
}

/// Removes the answers to requests whose idempotency keys are over.
///
/// # Errors
/// [`Error::Unavailable`] while PostgreSQL is.
pub async fn purge_requests(db: &Connection, now: Millis) -> Result<(), Error> {
    sqlx::query("DELETE FROM webhook_requests WHERE at <= to_timestamp($1 / 1000.0)")
        .bind(now.0 - RECORD_TTL_MS)
        .execute(db.get_postgres_connection_pool())
        .await
        .map(drop)
        .map_err(translate_sqlx)
}

/// All webhooks, by id.
///
/// # Errors
/// [`Error::Unavailable`] while PostgreSQL is.
pub async fn all(db: &Connection) -> Result<Vec<Webhook>, Error> {
    let rows = sqlx::query(select!("ORDER BY id")).fetch_all(db.get_postgres_connection_pool()).await;
    rows.and_then(|rows| rows.iter().map(webhook).collect()).map_err(translate_sqlx)
}

/// A webhook.
///
/// # Errors
/// [`Error::WebhookNotFound`]; [`Error::Unavailable`] while PostgreSQL is.
pub async fn find(db: &Connection, id: WebhookId) -> Result<Webhook, Error> {
    let row = sqlx::query(select!("WHERE id = $1")).bind(id.get()).fetch_optional(db.get_postgres_connection_pool());
    let row = row.await.map_err(translate_sqlx)?.ok_or(Error::WebhookNotFound)?;
    webhook(&row).map_err(translate_sqlx)
}

/// Changes a webhook. One that is switched on begins anew: what is to be sent again is due at once.
///
/// # Errors
/// [`Error::WebhookNotFound`]; [`Error::Unavailable`] while PostgreSQL is.
pub async fn update(db: &Connection, id: WebhookId, patch: &WebhookPatch, now: Millis) -> Result<Webhook, Error> {
    let mut transaction = db.get_postgres_connection_pool().begin().await.map_err(translate_sqlx)?;
    let changed = sqlx::query(
        "UPDATE webhooks SET url = coalesce($2, url), kinds = coalesce($3, kinds), description = coalesce($4, description),
             status = CASE WHEN $5 THEN 'ON' WHEN NOT $5 THEN 'OFF' ELSE status END,
             failing_since = CASE WHEN $5 IS NULL THEN failing_since END,
             failures = CASE WHEN $5 IS NULL THEN failures ELSE 0 END,
             next_at = CASE WHEN $5 OR $2 IS NOT NULL THEN to_timestamp($6 / 1000.0) ELSE next_at END,
             changes = changes + 1
         WHERE id = $1",
    )
    .bind(id.get())
    .bind(&patch.url)
    .bind(&patch.kinds)
    .bind(&patch.description)
    .bind(patch.enabled)
    .bind(now.0)
    .execute(&mut *transaction)
    .await
    .map_err(translate_sqlx)?;
    if changed.rows_affected() == 0 {
        return Err(Error::WebhookNotFound);
    }
    if patch.enabled == Some(true) {
        sqlx::query(
            "UPDATE webhook_retries SET due_at = to_timestamp($2 / 1000.0), first_failed_at = to_timestamp($2 / 1000.0)
             WHERE webhook_id = $1",
        )
        .bind(id.get())
        .bind(now.0)
        .execute(&mut *transaction)
        .await
        .map_err(translate_sqlx)?;
    }
    transaction.commit().await.map_err(translate_sqlx)?;
    find(db, id).await
}

/// Deletes a webhook, and what is to be sent to it again. Its log stays for its time.
///
/// # Errors
/// [`Error::WebhookNotFound`]; [`Error::Unavailable`] while PostgreSQL is.
pub async fn delete(db: &Connection, id: WebhookId) -> Result<(), Error> {
    let deleted = sqlx::query("DELETE FROM webhooks WHERE id = $1").bind(id.get());
    let deleted = deleted.execute(db.get_postgres_connection_pool()).await.map_err(translate_sqlx)?;
    if deleted.rows_affected() == 0 { Err(Error::WebhookNotFound) } else { Ok(()) }
}

/// Gives a webhook another key, unless a request with this idempotency key has. Returns the new key and the end of the old one.
///
/// # Errors
/// [`Error::KeyRotating`] while an earlier key is valid and is to stay so; [`Error::WebhookNotFound`];
/// [`Error::IdempotencyKeyReused`]; [`Error::Unavailable`] while PostgreSQL is.
pub async fn rotate(
    db: &Connection,
    id: WebhookId,
    rotation: &KeyRotation,
    now: Millis,
) -> Result<Reply<(WebhookKey, Millis)>, Error> {
    let KeyRotation { new, valid_ms, request } = rotation;
    let mut transaction = db.get_postgres_connection_pool().begin().await.map_err(translate_sqlx)?;
    let row = sqlx::query(
        "SELECT key, old_key, (extract(epoch FROM old_key_until) * 1000)::bigint AS old_key_ms
         FROM webhooks WHERE id = $1 FOR UPDATE",
    )
    .bind(id.get())
    .fetch_optional(&mut *transaction)
    .await
    .map_err(translate_sqlx)?
    .ok_or(Error::WebhookNotFound)?;
    // Requests for one webhook wait for each other here.
    if let Some(before) = answered_before(db, request.as_ref(), now).await? {
        return Ok(Reply { value: (before.key, before.at.plus(*valid_ms)), replayed: true });
    }
    let is_rotating = keys(&row).map_err(translate_sqlx)?.old.is_some_and(|(_, until)| until > now);
    if is_rotating && *valid_ms > 0 {
        return Err(Error::KeyRotating);
    }
    let until = now.plus(*valid_ms);
    sqlx::query("UPDATE webhooks SET key = $2, old_key = key, old_key_until = to_timestamp($3 / 1000.0) WHERE id = $1")
        .bind(id.get())
        .bind(new.as_bytes())
        .bind(until.0)
        .execute(&mut *transaction)
        .await
        .map_err(translate_sqlx)?;
    if !record_request(&mut transaction, request.as_ref(), id, new, now).await? {
        return Err(Error::IdempotencyKeyReused);
    }
    transaction.commit().await.map_err(translate_sqlx)?;
    Ok(Reply { value: (new.clone(), until), replayed: false })
}

/// The attempts of a webhook, newest first.
///
/// # Errors
/// [`Error::Unavailable`] while PostgreSQL is.
pub async fn deliveries(db: &Connection, id: WebhookId, filter: DeliveryFilter) -> Result<Vec<WebhookDelivery>, Error> {
    let sql = if filter.failed {
        "SELECT no, event_id, kind, attempt, (extract(epoch FROM at) * 1000)::bigint AS at_ms, took_ms, status, failure, manual
         FROM webhook_deliveries WHERE webhook_id = $1 AND no < $2 AND failure IS NOT NULL ORDER BY no DESC LIMIT $3"
    } else {
        "SELECT no, event_id, kind, attempt, (extract(epoch FROM at) * 1000)::bigint AS at_ms, took_ms, status, failure, manual
         FROM webhook_deliveries WHERE webhook_id = $1 AND no < $2 ORDER BY no DESC LIMIT $3"
    };
    let rows = sqlx::query(sql)
        .bind(id.get())
        .bind(filter.before.unwrap_or(i64::MAX))
        .bind(filter.limit)
        .fetch_all(db.get_postgres_connection_pool())
        .await;
    rows.and_then(|rows| rows.iter().map(delivery).collect()).map_err(translate_sqlx)
}

/// Has an event sent to a webhook at once, beside all others; one that is the next of its subject to be sent again is due at once
/// instead. `body`: the CloudEvent.
///
/// # Errors
/// [`Error::WebhookNotFound`]; [`Error::Unavailable`] while PostgreSQL is.
pub async fn resend(db: &Connection, id: WebhookId, event: &KeptEvent, body: &str, now: Millis) -> Result<(), Error> {
    let mut transaction = db.get_postgres_connection_pool().begin().await.map_err(translate_sqlx)?;
    let found = sqlx::query("UPDATE webhooks SET next_at = to_timestamp($2 / 1000.0) WHERE id = $1")
        .bind(id.get())
        .bind(now.0)
        .execute(&mut *transaction)
        .await
        .map_err(translate_sqlx)?;
    if found.rows_affected() == 0 {
        return Err(Error::WebhookNotFound);
    }
    let is_next = sqlx::query(
        "UPDATE webhook_retries SET due_at = to_timestamp($6 / 1000.0)
         WHERE webhook_id = $1 AND partition = $2 AND epoch = $3 AND seq = $4 AND late = $5 AND NOT manual AND NOT EXISTS (
             SELECT FROM webhook_retries AS r WHERE r.webhook_id = $1 AND r.subject = $7 AND NOT r.manual
                 AND (r.partition, r.epoch, r.seq, r.late) < ($2, $3, $4, $5))",
    )
    .bind(id.get())
    .bind(i32::from(event.partition.0))
    .bind(event.place.epoch)
    .bind(event.place.seq)
    .bind(event.place.late as i32)
    .bind(now.0)
    .bind(&event.subject)
    .execute(&mut *transaction)
    .await
    .map_err(translate_sqlx)?;
    if is_next.rows_affected() == 0 {
        sqlx::query(
            "INSERT INTO webhook_retries (webhook_id, partition, epoch, seq, late, event_id, kind, subject, body, attempts,
                 first_failed_at, due_at, manual)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 0, to_timestamp($10 / 1000.0), to_timestamp($10 / 1000.0), true)
             ON CONFLICT (webhook_id, partition, epoch, seq, late, manual) DO UPDATE SET due_at = excluded.due_at",
        )
        .bind(id.get())
        .bind(i32::from(event.partition.0))
        .bind(event.place.epoch)
        .bind(event.place.seq)
        .bind(event.place.late as i32)
        .bind(event.id())
        .bind(&event.kind)
        .bind(&event.subject)
        .bind(body)
        .bind(now.0)
        .execute(&mut *transaction)
        .await
        .map_err(translate_sqlx)?;
    }
    transaction.commit().await.map_err(translate_sqlx)
}

fn webhook(row: &PgRow) -> sqlx::Result<Webhook> {
    let unknown = |value: &str| sqlx::Error::Decode(format!("a webhook has the unknown value {value:?}").into());
    let (id, status): (i64, &str) = (row.try_get("id")?, row.try_get("status")?);
    Ok(Webhook {
        id: WebhookId::new(id).ok_or_else(|| unknown("id"))?,
        url: row.try_get("url")?,
        kinds: row.try_get("kinds")?,
        description: row.try_get("description")?,
        status: status.parse().map_err(|_| unknown(status))?,
        failing_since: row.try_get::<Option<i64>, _>("failing_ms")?.map(Millis),
        next_at: Millis(row.try_get("next_ms")?),
        retries: row.try_get("retries")?,
        old_key_until: row.try_get::<Option<i64>, _>("old_key_ms")?.map(Millis),
        created_at: Millis(row.try_get("created_ms")?),
    })
}

fn keys(row: &PgRow) -> sqlx::Result<WebhookKeys> {
    let old: Option<Vec<u8>> = row.try_get("old_key")?;
    let until: Option<i64> = row.try_get("old_key_ms")?;
    let old = old.zip(until).map(|(old, until)| (WebhookKey::new(old), Millis(until)));
    Ok(WebhookKeys { key: WebhookKey::new(row.try_get("key")?), old })
}

fn delivery(row: &PgRow) -> sqlx::Result<WebhookDelivery> {
    Ok(WebhookDelivery {
        no: row.try_get("no")?,
        event_id: row.try_get("event_id")?,
        kind: row.try_get("kind")?,
        attempt: row.try_get::<i32, _>("attempt")?.into(),
        at: Millis(row.try_get("at_ms")?),
        took_ms: row.try_get::<i32, _>("took_ms")?.into(),
        status: row.try_get::<Option<i16>, _>("status")?.map(i16::cast_unsigned),
        failure: row.try_get("failure")?,
        manual: row.try_get("manual")?,
    })
}
