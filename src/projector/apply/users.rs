//! Users, their balances and balance entries.

use std::collections::HashSet;

use sea_orm::{ConnectionTrait, DatabaseTransaction, DbBackend, DbErr, Statement};

use super::{Apply, ApplyError, column, ms};
use crate::{
    model::{
        Partition,
        event::{Body, Event},
    },
    projector::batch::Batch,
};

pub(super) async fn users(db: &Apply<'_>, batch: &Batch) -> Result<(), ApplyError> {
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
    let names: Vec<_> = batch.names.iter().collect();
    db.run(
        "names of users",
        names.len(),
        "UPDATE users SET name = new.name, renamed_at = to_timestamp(at::float8 / 1000)
         FROM unnest($1::bigint[], $2::text[], $3::bigint[]) AS new (id, name, at) WHERE users.id = new.id",
        vec![
            column!(names, (id, _) => **id),
            column!(names, (_, (name, _)) => name.clone()),
            column!(names, (_, (_, at)) => ms(*at)),
        ],
    )
    .await?;
    forgotten(db, batch).await?;
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

async fn forgotten(db: &Apply<'_>, batch: &Batch) -> Result<(), ApplyError> {
    let forgotten: Vec<_> = batch.forgotten.iter().collect();
    db.run(
        "forgotten users",
        forgotten.len(),
        "UPDATE users SET name = '', renamed_at = to_timestamp(at::float8 / 1000), forgotten_at = to_timestamp(at::float8 / 1000)
         FROM unnest($1::bigint[], $2::bigint[]) AS gone (id, at) WHERE users.id = gone.id",
        vec![column!(forgotten, (id, _) => **id), column!(forgotten, (_, at) => ms(**at))],
    )
    .await
}

/// Removes what else PostgreSQL has of the names of users that these events forget: in the dead letters of their partition, and in
/// the operator log of versions that kept names in it. What only their number tells stays.
///
/// # Errors
/// PostgreSQL is unavailable.
pub async fn remove_names(
    transaction: &DatabaseTransaction,
    here: Partition,
    events: impl Iterator<Item = &Event>,
) -> Result<(), DbErr> {
    for event in events {
        let Body::UserForgotten { user, .. } = &event.body else { continue };
        for sql in [
            // The only user that the event creates.
            "UPDATE dead_letters SET fields = fields || '{\"name\": \"\"}'
             WHERE partition = $1 AND fields->>'kind' = 'users_created' AND fields->>'first' = $2::text
                AND fields->>'count' = '1'",
            "UPDATE dead_letters SET fields = jsonb_set(fields, '{users}', to_jsonb(regexp_replace(fields->>'users',
                 '(^|' || chr(30) || ')(' || $2 || chr(31) || '[01]' || chr(31) || ')[^' || chr(30) || ']*', '\\1\\2', 'g')))
             WHERE partition = $1 AND fields->>'kind' = 'users_put'",
            // A reply of an earlier version has the name.
            "UPDATE dead_letters SET fields = fields - '{key,print,reply}'::text[]
             WHERE partition = $1 AND fields->>'user' = $2::text",
            // It can only be read, and not by its fields.
            "UPDATE dead_letters SET fields = '{\"escaped\": \"\"}'
             WHERE partition = $1 AND fields->>'escaped' LIKE '%users_put%' || $2 || '%'",
            "UPDATE operator_log SET detail = ''
             WHERE $1 >= 0 AND target = 'userId=' || $2
                AND action IN ('POST /admin/v1/users', 'PUT /admin/v1/users/{userId}')",
        ] {
            let values = [i32::from(here.0).into(), user.to_string().into()];
            transaction.execute_raw(Statement::from_sql_and_values(DbBackend::Postgres, sql, values)).await?;
        }
    }
    Ok(())
}
