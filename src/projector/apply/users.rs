//! Users, their balances and balance entries.

use std::collections::HashSet;

use super::{Apply, ApplyError, column, ms};
use crate::projector::batch::Batch;

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
