//! Idempotency records, and the sequences of ids.

use super::{Apply, ApplyError, column, ms};
use crate::{
    model::{Partition, RECORD_TTL_MS},
    projector::batch::Batch,
};

pub(super) async fn records(db: &Apply<'_>, here: Partition, batch: &Batch) -> Result<(), ApplyError> {
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

pub(super) async fn sequences(db: &Apply<'_>, batch: &Batch) -> Result<(), ApplyError> {
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
