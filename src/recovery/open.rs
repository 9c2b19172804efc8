//! Opening the store: who Redis is, who Postgres is, and whether they belong together.
//!
//! An empty Redis beside an empty Postgres is a new store. Everything else must match: the identity, the partitions, and
//! Redis at or past the position that Postgres has of each partition, and past what any process was told, with all of the
//! difference in the outbox. What does not match is refused, never repaired here: see [`crate::recovery::rebuild`].

use std::time::Duration;

use anyhow::{Context, bail};
use uuid::Uuid;

use crate::{
    config::Ack,
    model::{Error, Identity, Partition, event},
    postgres::{self, progress, queries::resources::ProjectedPosition},
    redis::{
        Store,
        fencing::{ProgressSource, ReportedProgress},
    },
};

/// How long the store waits for Postgres's word when Redis was restarted.
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(2);
/// The way on where Redis knows less than it did.
const REBUILD: &str = "bring back the Redis that knows them, or run `firstcome rebuild`: see docs/operations.md";
/// The way on where Redis knows more than Postgres, and not how it came to it.
const DISCARD: &str = "if PostgreSQL was restored from a backup, bring back a later one if there is one; \
                       `firstcome rebuild --discard` goes back to what PostgreSQL has, and keeps off sale what may have been sold \
                       since: see docs/operations.md";
/// How often an outbox is looked at that others are carrying away at the same time.
const OUTBOX_ATTEMPTS: usize = 10;
/// The epoch of a store that was never rebuilt.
const FIRST_EPOCH: i64 = 1;

/// Opens the store, initialising it if both sides are new. `partitions` is how many the configuration wants.
///
/// # Errors
/// The reason why these two can't be served from, and what to do about it.
pub async fn open(
    store: Store,
    db: &postgres::Connection,
    partitions: Option<u16>,
    allow_unsafe_redis: bool,
    ack: Ack,
) -> anyhow::Result<Store> {
    postgres::check_schema(db).await?;
    store.check_settings(allow_unsafe_redis).await?;
    let here = store.identity().await?;
    let there = progress::identity(db).await?.map(identity_of);
    let identity = match (here, there) {
        (None, None) => {
            let mint =
                Identity { store: Uuid::new_v4().to_string(), partitions: partitions.unwrap_or(1), epoch: FIRST_EPOCH };
            progress::insert_identity(db, &mint.store, mint.partitions, mint.epoch).await?;
            // Whoever came first, if several start at once.
            let agreed = progress::identity(db).await?.context("the new store's identity did not stay")?;
            let agreed = identity_of(agreed);
            store.initialise(&agreed).await?;
            tracing::info!(store = agreed.store, partitions = agreed.partitions, "a new store");
            agreed
        }
        (None, Some(there)) => {
            let positions = postgres::queries::resources::positions(db).await?;
            if positions.iter().any(|position| position.seq > 0) {
                bail!(
                    "Redis is empty, but PostgreSQL has what store {} decided: bring that Redis back with its data, or run \
                     `firstcome rebuild`",
                    there.store
                );
            }
            // A first start that ended between the two.
            store.initialise(&there).await?;
            there
        }
        (Some(here), None) => bail!(
            "Redis has store {}, but this PostgreSQL database has none: point DATABASE_URL at the database that belongs to it",
            here.store
        ),
        (Some(here), Some(there)) => {
            if (&here.store, here.partitions) != (&there.store, there.partitions) {
                bail!(
                    "Redis has store {} and PostgreSQL has store {}: they do not belong together",
                    here.store,
                    there.store
                );
            }
            here
        }
    };
    if let Some(wanted) = partitions.filter(|wanted| *wanted != identity.partitions) {
        bail!("PARTITIONS is {wanted}, but this store has {} and that can't be changed", identity.partitions);
    }
    let store = store.with_partitions(identity.partitions);
    if identity.partitions > 1 {
        store.check_settings(allow_unsafe_redis).await?;
    }
    check_positions(&store, db).await?;
    check_outboxes(&store, db).await?;
    store.load_scripts().await?;
    store.guard(&identity.store, allow_unsafe_redis, progress_source(db));
    for here in store.all() {
        store.check(here).await.map_err(|error| match error {
            Error::Unavailable { reason, .. } => anyhow::anyhow!("{reason} ({REBUILD})"),
            other => other.into(),
        })?;
    }
    if ack == Ack::Redis {
        progress::acknowledges_before_postgres(db).await?;
    }
    Ok(store)
}

/// Postgres, asked by the store how far the partitions had decided.
fn progress_source(db: &postgres::Connection) -> ProgressSource {
    let db = db.clone();
    Box::new(move || {
        let db = db.clone();
        Box::pin(async move {
            match tokio::time::timeout(PROGRESS_TIMEOUT, reported_progress(&db)).await {
                Ok(Ok(testimony)) => testimony,
                _ => {
                    tracing::warn!("PostgreSQL can't say how far it is: only what this process was told counts");
                    Vec::new()
                }
            }
        })
    })
}

async fn reported_progress(db: &postgres::Connection) -> Result<Vec<ReportedProgress>, Error> {
    let told = progress::acknowledged(db).await?;
    let of = |projected: ProjectedPosition| {
        let told = told.iter().find(|told| told.partition == i32::from(projected.partition));
        ReportedProgress {
            partition: Partition(projected.partition),
            projected: projected.projection(),
            acknowledged: told.map(progress::Acknowledged::position).unwrap_or_default(),
        }
    };
    Ok(postgres::queries::resources::positions(db).await?.into_iter().map(of).collect())
}

/// Redis must be at or past what Postgres has of each partition, and what any process was told; behind it, decisions were
/// lost.
async fn check_positions(store: &Store, db: &postgres::Connection) -> anyhow::Result<()> {
    for ReportedProgress { partition, projected, acknowledged: told } in reported_progress(db).await? {
        let decided = store.position(partition).await?;
        for (known, of) in [(projected.position, "behind PostgreSQL's"), (told, "behind what was told:")] {
            if decided < known {
                bail!(
                    "partition {} of Redis is at ({}, {}), {of} ({}, {}): Redis lost decisions that were acknowledged, and \
                     serving on would contradict them ({REBUILD})",
                    partition.0,
                    decided.epoch,
                    decided.seq,
                    known.epoch,
                    known.seq
                );
            }
        }
    }
    Ok(())
}

/// What Redis has decided beyond Postgres must be in the outbox, from the next decision on; else it was lost from there.
async fn check_outboxes(store: &Store, db: &postgres::Connection) -> anyhow::Result<()> {
    for mut projected in postgres::queries::resources::positions(db).await? {
        let here = Partition(projected.partition);
        for _ in 0..OUTBOX_ATTEMPTS {
            let decided = store.position(here).await?;
            if (decided.epoch, decided.seq) <= projected.at() {
                break;
            }
            let first = store.outbox_page(here, projected.stream_id.parse()?, 1).await?;
            let again = position_of(here, db).await?;
            if again != projected {
                // Another process carries decisions there, and takes them off the outbox.
                projected = again;
                continue;
            }
            let (epoch, seq) = projected.at();
            let next = first.first().map(|entry| event::decode(&entry.fields).first().and_then(|event| event.position));
            // One that has no number is no decision, and a dead letter to be.
            let follows = next.is_some_and(|next| next.is_none_or(|next| next == (epoch, seq + 1)));
            if !follows {
                bail!(
                    "the outbox of partition {} of Redis does not lead from ({epoch}, {seq}), where PostgreSQL is, to ({}, {}): \
                     decisions are lost ({DISCARD})",
                    here.0,
                    decided.epoch,
                    decided.seq
                );
            }
            break;
        }
    }
    Ok(())
}

async fn position_of(here: Partition, db: &postgres::Connection) -> anyhow::Result<ProjectedPosition> {
    let positions = postgres::queries::resources::positions(db).await?;
    let position = positions.into_iter().find(|position| position.partition == here.0);
    position.with_context(|| format!("PostgreSQL has no position of partition {}", here.0))
}

/// What Postgres knows of a store that Redis has lost or not had yet.
fn identity_of((store, partitions): (String, u16)) -> Identity {
    Identity { store, partitions, epoch: FIRST_EPOCH }
}
