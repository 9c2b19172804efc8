//! Idempotency records.

use std::collections::HashMap;

use crate::{
    audit::{
        Audit, CLOCK_TOLERANCE_MS,
        delta::Moment,
        expected::expected_records,
        fields::{differ, number},
        report::Findings,
    },
    model::{Partition, RECORD_TTL_MS, event::unpack_reply},
    postgres::snapshot::{RecordRow, Snapshot},
    redis::queries::audit::RecordSeen,
};

impl Audit {
    /// Compares the idempotency records of a partition under these digests. `clocks_agree`: whether this process and the
    /// server have the same time, so that the lives of a record on both sides can be compared.
    pub(in crate::audit) async fn records(
        &self,
        (here, clocks_agree): (Partition, bool),
        digests: &[String],
        findings: &mut Findings,
    ) -> anyhow::Result<()> {
        if digests.is_empty() {
            return Ok(());
        }
        let Moment { rows, seen, since, .. } = self
            .moment(
                here,
                async |snapshot| snapshot.records_of(here.0, digests).await,
                async |outbox| self.store.inspect_records(here, outbox, digests).await,
            )
            .await?;
        let (expected, now) = (expected_records(rows, &since), self.clock.now().0);
        let mut claims = HashMap::new();
        for (digest, RecordSeen { items, ttl_ms }) in digests.iter().zip(&seen) {
            findings.count_one();
            let row = expected.get(digest);
            // Both sides drop it at about the same time.
            let lives = row.is_some_and(|row| row.expires_at > now + CLOCK_TOLERANCE_MS);
            let mut wrong = Vec::new();
            if items.is_empty() {
                wrong.extend(lives.then(|| "it was decided, and is not in Redis".to_owned()));
            } else {
                wrong.extend((*ttl_ms < 0).then(|| "it does not expire".to_owned()));
                wrong.extend((*ttl_ms > RECORD_TTL_MS + CLOCK_TOLERANCE_MS).then(|| "it expires too late".to_owned()));
            }
            if let [fingerprint, state, rest @ ..] = items.as_slice()
                && state == "CLAIMED"
                && !lives
            {
                let is_claim =
                    matches!(rest, [requests] if requests == "KEPT" || number(requests).is_some_and(|n| n > 0));
                wrong.extend((!is_claim).then(|| format!("it claims its key with {rest:?}")));
                let owner = self.store.owner_of_key(digest);
                wrong.extend((owner != here).then(|| format!("it claims a key of partition {}", owner.0)));
                claims.insert(digest.clone(), fingerprint.clone());
            } else if !items.is_empty() {
                match row {
                    Some(row) => wrong.extend(against_postgres(row, items)),
                    // PostgreSQL drops it when it expires, by the clock of a process.
                    None if clocks_agree && *ttl_ms > CLOCK_TOLERANCE_MS => {
                        wrong.push("it is in Redis and not in PostgreSQL".to_owned());
                    }
                    None => {}
                }
            }
            if let Some(row) = row.filter(|_| lives && clocks_agree && *ttl_ms >= 0) {
                let differs = (now + ttl_ms - row.expires_at).abs() > CLOCK_TOLERANCE_MS;
                wrong.extend(
                    differs.then(|| format!("it expires in {ttl_ms} ms, and in PostgreSQL at {}", row.expires_at)),
                );
            }
            wrong.into_iter().for_each(|wrong| findings.add(format!("idempotency record {digest}: {wrong}")));
        }
        self.claims(here, claims, findings).await
    }

    /// Checks that claims bind their keys to the requests that other partitions decided.
    async fn claims(
        &self,
        here: Partition,
        claims: HashMap<String, String>,
        findings: &mut Findings,
    ) -> anyhow::Result<()> {
        if claims.is_empty() {
            return Ok(());
        }
        let digests: Vec<String> = claims.keys().cloned().collect();
        let others: Vec<i32> = self.store.all_but(here).map(|other| other.0.into()).collect();
        let until = self.clock.now().0 + CLOCK_TOLERANCE_MS;
        let mut snapshot = Snapshot::begin(&self.db).await?;
        let decided = snapshot.fingerprints_of(&others, &digests, until).await?;
        snapshot.end().await?;
        for (digest, fingerprint) in claims {
            let mut of_key =
                decided.iter().filter(|(other, _)| *other == digest).map(|(_, decided)| decided).peekable();
            if of_key.peek().is_some() && of_key.all(|decided| *decided != fingerprint) {
                findings.add(format!("idempotency record {digest}: it claims its key for another request"));
            }
        }
        Ok(())
    }
}

fn against_postgres(row: &RecordRow, items: &[String]) -> Option<String> {
    let mut expected = unpack_reply(&row.reply).unwrap_or_default();
    expected.insert(0, &row.fingerprint);
    differ("the request with its reply", items.join(" "), expected.join(" "))
}
