//! The log of operators' acts in Postgres. Written here and not by the projector: an act is no decision of Redis's, is in no
//! outbox, and is told by the process in which it happened.

use sea_orm::{ConnectionTrait, DbBackend, DbErr, RuntimeErr, Statement};

use super::{Connection, translate};
use crate::model::{Error, Millis, OperatorAction, OperatorLogFilter, OperatorLogPage};

/// Writes acts, each once however often it is tried.
///
/// # Errors
/// Postgres is away, or takes one of them for no text at all.
pub async fn write(db: &Connection, acts: &[OperatorAction]) -> Result<(), DbErr> {
    let sql = "INSERT INTO operator_log (id, operator, action, target, detail, status, request_id, at)
               SELECT id::uuid, operator, action, target, detail, status, request_id, to_timestamp(at / 1000.0)
               FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::integer[], $7::text[], $8::bigint[])
                   AS new (id, operator, action, target, detail, status, request_id, at)
               ON CONFLICT DO NOTHING";
    let texts =
        |text: fn(&OperatorAction) -> &str| acts.iter().map(|act| text(act).to_owned()).collect::<Vec<String>>();
    let values = [
        texts(|act| &act.id).into(),
        texts(|act| &act.operator).into(),
        texts(|act| &act.action).into(),
        texts(|act| &act.target).into(),
        texts(|act| &act.detail).into(),
        acts.iter().map(|act| i32::from(act.status)).collect::<Vec<i32>>().into(),
        texts(|act| &act.request_id).into(),
        acts.iter().map(|act| act.at.0).collect::<Vec<i64>>().into(),
    ];
    db.execute_raw(Statement::from_sql_and_values(DbBackend::Postgres, sql, values)).await.map(drop)
}

/// A page of acts, newest first.
///
/// # Errors
/// [`Error::Unavailable`] while Postgres is.
pub async fn page(db: &Connection, filter: &OperatorLogFilter) -> Result<OperatorLogPage, Error> {
    let untranslated = |error: sqlx::Error| translate(DbErr::Query(RuntimeErr::SqlxError(error.into())));
    let operator = filter.operator.as_deref();
    let pool = db.get_postgres_connection_pool();
    let total: i64 = sqlx::query_scalar("SELECT count(*) FROM operator_log WHERE $1::text IS NULL OR operator = $1")
        .bind(operator)
        .fetch_one(pool)
        .await
        .map_err(untranslated)?;
    type Row = (String, String, String, String, String, i32, String, i64);
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT id::text, operator, action, target, detail, status, request_id, (extract(epoch FROM at) * 1000)::bigint
         FROM operator_log WHERE $1::text IS NULL OR operator = $1
         ORDER BY operator_log.at DESC, operator_log.id DESC OFFSET $2 LIMIT $3",
    )
    .bind(operator)
    .bind(filter.page * filter.size)
    .bind(filter.size)
    .fetch_all(pool)
    .await
    .map_err(untranslated)?;
    let entry = |(id, operator, action, target, detail, status, request_id, at): Row| OperatorAction {
        id,
        operator,
        action,
        target,
        detail,
        status: status as u16,
        request_id,
        at: Millis(at),
    };
    Ok(OperatorLogPage { actions: rows.into_iter().map(entry).collect(), page: filter.page, size: filter.size, total })
}
