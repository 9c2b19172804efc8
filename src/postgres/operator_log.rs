//! The operator log in PostgreSQL. The process that served the operator writes it, not the projector: an operator's
//! action is no decision of Redis and stands in no outbox.

use sea_orm::DbErr;

use super::{Connection, statement_error, translate_sqlx};
use crate::model::{Error, Millis, OperatorAction, OperatorLogFilter, Page};

/// Writes actions, each once: an action that is already there changes nothing.
///
/// # Errors
/// PostgreSQL is unavailable, or refuses the text of an action (see [`super::is_data_fault`]).
pub async fn write(db: &Connection, actions: &[OperatorAction]) -> Result<(), DbErr> {
    let roles: Vec<Option<String>> = actions.iter().map(|action| Some(action.role?.as_str().to_owned())).collect();
    let texts = |text: fn(&OperatorAction) -> &str| {
        actions.iter().map(|action| text(action).to_owned()).collect::<Vec<String>>()
    };
    sqlx::query(
        "INSERT INTO operator_log (id, operator, action, target, detail, status, request_id, at, role)
         SELECT id::uuid, operator, action, target, detail, status, request_id, to_timestamp(at / 1000.0), role
         FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::integer[], $7::text[], $8::bigint[],
                     $9::text[])
             AS new (id, operator, action, target, detail, status, request_id, at, role)
         ON CONFLICT DO NOTHING",
    )
    .bind(texts(|action| &action.id))
    .bind(texts(|action| &action.operator))
    .bind(texts(|action| &action.action))
    .bind(texts(|action| &action.target))
    .bind(texts(|action| &action.detail))
    .bind(actions.iter().map(|action| i32::from(action.status)).collect::<Vec<i32>>())
    .bind(texts(|action| &action.request_id))
    .bind(actions.iter().map(|action| action.at.0).collect::<Vec<i64>>())
    .bind(roles)
    .execute(db.get_postgres_connection_pool())
    .await
    .map(drop)
    .map_err(statement_error)
}

/// A page of actions, newest first.
///
/// # Errors
/// [`Error::Unavailable`] while PostgreSQL is.
pub async fn page(db: &Connection, filter: &OperatorLogFilter) -> Result<Page<OperatorAction>, Error> {
    let operator = filter.operator.as_deref();
    let pool = db.get_postgres_connection_pool();
    let total: i64 = sqlx::query_scalar("SELECT count(*) FROM operator_log WHERE $1::text IS NULL OR operator = $1")
        .bind(operator)
        .fetch_one(pool)
        .await
        .map_err(translate_sqlx)?;
    type LogRow = (String, String, String, String, String, i32, String, i64, Option<String>);
    let rows: Vec<LogRow> = sqlx::query_as(
        "SELECT id::text, operator, action, target, detail, status, request_id, (extract(epoch FROM at) * 1000)::bigint,
                role
         FROM operator_log WHERE $1::text IS NULL OR operator = $1
         ORDER BY operator_log.at DESC, operator_log.id DESC OFFSET $2 LIMIT $3",
    )
    .bind(operator)
    .bind(filter.page * filter.size)
    .bind(filter.size)
    .fetch_all(pool)
    .await
    .map_err(translate_sqlx)?;
    let action = |(id, operator, action, target, detail, status, request_id, at, role): LogRow| OperatorAction {
        id,
        operator,
        // `None` also for a role that a later version knows.
        role: role.and_then(|role| role.parse().ok()),
        action,
        target,
        detail,
        status: status as u16,
        request_id,
        at: Millis(at),
    };
    Ok(Page { items: rows.into_iter().map(action).collect(), page: filter.page, size: filter.size, total })
}
