//! Payments.

use std::collections::HashSet;

use super::{Apply, ApplyError, column, ms, optional_ms};
use crate::projector::batch::{Batch, PaymentInsert, PaymentState};

/// The operator who resolved a payment, and the reason; empty without one.
fn resolved(state: Option<&PaymentState>) -> (String, String) {
    state.and_then(|state| state.resolved.clone()).unwrap_or_default()
}

pub(super) async fn payments(db: &Apply<'_>, batch: &Batch) -> Result<(), ApplyError> {
    let new = &batch.new_payments;
    let state = |p: &PaymentInsert| batch.payments.get(&p.receipt);
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
            column!(new, p => state(p)
                .and_then(|state| state.transaction.clone())
                .or_else(|| p.transaction.clone())
                .unwrap_or_default()),
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
