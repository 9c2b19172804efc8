//! Opens the store: checks that Redis and PostgreSQL belong together.
//!
//! An empty Redis beside an empty PostgreSQL is initialised as a new store. Otherwise the identity and the partitions
//! must match, and the position of each partition in Redis must not be behind the projected one or an acknowledged one,
//! with every decision in between in the outbox. A partition that is stays closed beside the others. A store of which every partition is
//! closed is refused, unless this process recovers one of them. Nothing is repaired here: see [`crate::recovery::rebuild`] and
//! [`crate::recovery::watch`].

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, bail};
use uuid::Uuid;

use super::sequences;
use crate::{
    config::{Ack, EngineConfig},
    model::{Error, Identity, Partition, Position, event},
    postgres::{
        self,
        progress::{self, ProjectedPosition},
    },
    redis::{
        self, Store,
        fencing::{ProgressSource, ReportedProgress},
        partition_state::FreezeCause,
    },
};

/// How long a check of a partition waits for the positions that PostgreSQL has.
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(2);
/// The remedy where Redis lost decisions.
const REBUILD: &str = "bring back the Redis that knows them, or run `firstcome rebuild`: see docs/operations.md";
/// The remedy where the outbox lacks decisions.
const DISCARD: &str = "if PostgreSQL was restored from a backup, bring back a later one if there is one; \
                       `firstcome rebuild --discard` goes back to what PostgreSQL has, and keeps off sale what may have been sold \
                       since: see docs/operations.md";
/// The remedy where a process that only reads finds what has to be recovered.
const RECOVER: &str =
    "start a service, which recovers it, or bring that Redis back with its data: see docs/operations.md";
/// Reads of an outbox that another process projects meanwhile.
const OUTBOX_ATTEMPTS: usize = 10;
/// The epoch of a store that was never rebuilt.
const FIRST_EPOCH: i64 = 1;

/// Opens the store, and initialises it if both sides are empty. With `recovers`, this process recovers what Redis lost, and opens a
/// store of which no partition can be used yet.
///
/// # Errors
/// The two stores can't be used together. The message has the reason and the remedy.
pub async fn open(
    store: Store,
    db: &postgres::Connection,
    config: &EngineConfig,
    recovers: bool,
) -> anyhow::Result<Store> {
    let (partitions, durability, ack) = (config.shop.partitions, config.redis.redis_durability, config.durability.ack);
    postgres::check_schema(db).await?;
    store.check_settings(durability).await?;
    let Identities { store, in_redis, in_postgres, decided } = identities(store, db).await?;
    let identity = match (in_redis, in_postgres) {
        (None, None) => {
            let name = Uuid::new_v4().to_string();
            progress::insert_identity(db, &name, partitions.unwrap_or(1), FIRST_EPOCH).await?;
            // The identity of the first process, if several start at once.
            let stored = progress::identity(db).await?.context("the new store's identity did not stay")?;
            let stored = identity_of(stored);
            store.initialise(&stored).await?;
            tracing::info!(store = stored.store, partitions = stored.partitions, "a new store");
            stored
        }
        (None, Some(in_postgres)) => {
            if decided {
                bail!(
                    "Redis is empty, but PostgreSQL has what store {} decided: bring that Redis back with its data, or run \
                     `firstcome rebuild`",
                    in_postgres.store
                );
            }
            // The first start ended before it initialised Redis.
            store.initialise(&in_postgres).await?;
            in_postgres
        }
        (Some(in_redis), in_postgres) => {
            let in_postgres = same_store(&in_redis, in_postgres)?;
            if !decided && is_half_initialised(&store).await? {
                // The first start ended before it had initialised Redis.
                store.initialise(&in_postgres).await?;
            }
            in_redis
        }
    };
    check_partitions(partitions, identity.partitions)?;
    let store = store.with_partitions(identity.partitions);
    if identity.partitions > 1 {
        store.check_settings(durability).await?;
    }
    let mut closed = partitions_behind(&store, db).await?;
    let gaps = gaps(&store, db).await?;
    closed.extend(gaps.clone());
    // The check of a partition that lost decisions freezes it, for every process: not at a start that leaves it to an operator.
    if !recovers || gaps.len() == usize::from(store.partitions()) {
        refuse_if_all_closed(&store, &closed)?;
    }
    store.load_scripts().await?;
    store.guard(&identity.store, durability, ack, progress_source(db));
    for (here, reason) in &gaps {
        store.freeze(*here, reason, FreezeCause::Gap).await?;
    }
    for (here, checked) in store.check_patiently(store.all().filter(|here| !gaps.contains_key(here))).await {
        match checked {
            Ok(()) => {}
            Err(Error::Unavailable { reason, .. }) => {
                closed.entry(here).or_insert_with(|| format!("{reason} ({REBUILD})"));
            }
            Err(other) => return Err(other.into()),
        }
    }
    if !(recovers && any_lost(&store).await) {
        refuse_if_all_closed(&store, &closed)?;
    }
    for (here, reason) in &closed {
        tracing::error!(partition = here.0, reason, "a partition is closed");
    }
    sequences::complete(&store, db).await?;
    store.check_replication().await?;
    if ack != Ack::Postgres {
        progress::acknowledges_before_postgres(db).await?;
    }
    Ok(store)
}

/// Opens the store to read it, and changes nothing: neither initialises nor recovers it, and freezes no partition. `None` if there is
/// no store yet.
///
/// # Errors
/// The two stores can't be used together, or a partition is closed: [`open`] or a running process recovers it.
pub async fn open_to_read(
    store: Store,
    db: &postgres::Connection,
    config: &EngineConfig,
) -> anyhow::Result<Option<Store>> {
    postgres::check_schema(db).await?;
    store.check_settings(config.redis.redis_durability).await?;
    let Identities { store, in_redis, in_postgres, .. } = identities(store, db).await?;
    if let Some(known) = in_redis.as_ref().or(in_postgres.as_ref()) {
        check_partitions(config.shop.partitions, known.partitions)?;
    }
    let reported = reported_progress(db).await?;
    let decided = reported.iter().any(|known| known.projected.position.seq > 0 || known.acknowledged.seq > 0);
    match (in_redis, in_postgres) {
        (None, None) => return Ok(None),
        // The first start ended before it initialised Redis.
        (None, Some(_)) if !decided => return Ok(None),
        (None, Some(in_postgres)) => bail!(
            "Redis is empty, but PostgreSQL has what store {} decided, and nothing is recovered here: {RECOVER}",
            in_postgres.store
        ),
        (Some(in_redis), in_postgres) => {
            same_store(&in_redis, in_postgres)?;
            if !decided && is_half_initialised(&store).await? {
                return Ok(None);
            }
        }
    }
    for here in store.all() {
        let state = store.partition_state(here).await?;
        if state.position.is_none() || state.rebuilding || state.frozen.is_some() {
            let why = state.frozen.unwrap_or_else(|| "it has lost its state".to_owned());
            bail!("partition {} of Redis is closed, and nothing is recovered here ({why}): {RECOVER}", here.0);
        }
    }
    let mut closed = partitions_behind(&store, db).await?;
    closed.extend(gaps(&store, db).await?);
    if let Some(reason) = closed.into_values().next() {
        bail!("{reason}");
    }
    Ok(Some(store))
}

/// PostgreSQL's identity.
///
/// # Errors
/// Redis and PostgreSQL are of different stores.
fn same_store(in_redis: &Identity, in_postgres: Option<Identity>) -> anyhow::Result<Identity> {
    let Some(in_postgres) = in_postgres else {
        bail!(
            "Redis has store {}, but this PostgreSQL database has none: point DATABASE_URL at the database that belongs to it",
            in_redis.store
        );
    };
    if (&in_redis.store, in_redis.partitions) != (&in_postgres.store, in_postgres.partitions) {
        bail!(
            "Redis has store {} and PostgreSQL has store {}: they do not belong together",
            in_redis.store,
            in_postgres.store
        );
    }
    Ok(in_postgres)
}

/// The identities of both sides at one moment.
struct Identities {
    /// The store, with the partitions that PostgreSQL has.
    store: Store,
    in_redis: Option<Identity>,
    in_postgres: Option<Identity>,
    /// Whether PostgreSQL had a decision before Redis was read.
    decided: bool,
}

/// Reads the identities, again if the first start of another process wrote PostgreSQL's, and possibly Redis's, meanwhile.
async fn identities(mut store: Store, db: &postgres::Connection) -> anyhow::Result<Identities> {
    loop {
        let in_postgres = progress::identity(db).await?.map(identity_of);
        // Redis knows what PostgreSQL knew before, unless it lost it.
        let decided = has_decisions(db).await?;
        if let Some(identity) = &in_postgres {
            store = store.with_partitions(identity.partitions);
        }
        let in_redis = store.identity().await?;
        if progress::identity(db).await?.is_some() == in_postgres.is_some() {
            return Ok(Identities { store, in_redis, in_postgres, decided });
        }
    }
}

/// Checks the configured number of partitions, if it is set.
pub(super) fn check_partitions(configured: Option<u16>, partitions: u16) -> anyhow::Result<()> {
    if let Some(wanted) = configured.filter(|wanted| *wanted != partitions) {
        bail!("PARTITIONS is {wanted}, but this store has {partitions} and that can't be changed");
    }
    Ok(())
}

/// Whether the next attempt to open the stores may succeed.
pub fn is_transient(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        matches!(cause.downcast_ref::<postgres::Unusable>(), Some(postgres::Unusable::Unavailable(_)))
            || matches!(cause.downcast_ref::<Error>(), Some(Error::Unavailable { .. }))
            || cause.downcast_ref::<sea_orm::DbErr>().is_some_and(postgres::is_transient)
            || cause.downcast_ref::<sqlx::Error>().is_some_and(postgres::is_unavailable)
            || redis::is_unavailable(cause)
    })
}

/// PostgreSQL as the source of the positions that a partition is checked against.
pub(super) fn progress_source(db: &postgres::Connection) -> ProgressSource {
    let db = db.clone();
    Box::new(move || {
        let db = db.clone();
        Box::pin(async move {
            match tokio::time::timeout(PROGRESS_TIMEOUT, reported_progress(&db)).await {
                Ok(Ok(reported)) => reported,
                _ => {
                    tracing::warn!(
                        "PostgreSQL does not report its positions: partitions are checked against those of this process only"
                    );
                    Vec::new()
                }
            }
        })
    })
}

pub(super) async fn reported_progress(db: &postgres::Connection) -> Result<Vec<ReportedProgress>, Error> {
    let acknowledged = progress::acknowledged(db).await?;
    let report = |projected: ProjectedPosition| {
        let acknowledged = acknowledged.iter().find(|acknowledged| acknowledged.partition == projected.partition);
        ReportedProgress {
            partition: projected.partition,
            projected: projected.projection(),
            acknowledged: acknowledged.map(|acknowledged| acknowledged.position).unwrap_or_default(),
        }
    };
    Ok(progress::projected(db).await?.into_iter().map(report).collect())
}

/// Whether PostgreSQL has a decision of the store.
async fn has_decisions(db: &postgres::Connection) -> Result<bool, Error> {
    Ok(progress::projected(db).await?.iter().any(|projected| projected.position.seq > 0))
}

/// Whether no partition of Redis has decided anything, and the first one, which is initialised last, has no state.
async fn is_half_initialised(store: &Store) -> Result<bool, Error> {
    let mut first = None;
    for here in store.all() {
        let position = store.partition_state(here).await?.position;
        if position.is_some_and(|position| position.seq > 0) {
            return Ok(false);
        }
        first = first.or(Some(position.is_some()));
    }
    Ok(first == Some(false))
}

/// Whether a partition has lost decisions, by another check of each that is closed: the one before has frozen it.
async fn any_lost(store: &Store) -> bool {
    let mut lost = false;
    for here in store.all() {
        lost |= store.check(here).await.is_err() && store.loss(here).is_some();
    }
    lost
}

/// Refuses a store of which no partition can be used.
fn refuse_if_all_closed(store: &Store, closed: &BTreeMap<Partition, String>) -> anyhow::Result<()> {
    match closed.values().next() {
        Some(reason) if closed.len() == usize::from(store.partitions()) => bail!("{reason}"),
        _ => Ok(()),
    }
}

/// The partitions of Redis that are behind their projected or their acknowledged position, or that have no state: decisions are
/// lost. Each with the reason not to use it, and the remedy.
async fn partitions_behind(store: &Store, db: &postgres::Connection) -> anyhow::Result<BTreeMap<Partition, String>> {
    let mut behind = BTreeMap::new();
    for ReportedProgress { partition, projected, acknowledged } in reported_progress(db).await? {
        let Some(decided) = store.partition_state(partition).await?.position else {
            behind.insert(partition, format!("Redis has lost the state of partition {} ({REBUILD})", partition.0));
            continue;
        };
        for (known, whose) in [(projected.position, "PostgreSQL's"), (acknowledged, "the acknowledged")] {
            if decided < known {
                behind.entry(partition).or_insert_with(|| {
                    format!(
                        "partition {} of Redis is at ({}, {}), behind {whose} ({}, {}): Redis lost decisions that were \
                         acknowledged, and serving on would contradict them ({REBUILD})",
                        partition.0, decided.epoch, decided.seq, known.epoch, known.seq
                    )
                });
            }
        }
    }
    Ok(behind)
}

/// The partitions whose outbox lacks the decision after the projected position although there is one: decisions are lost. Each with
/// the reason not to use it, and the remedy.
async fn gaps(store: &Store, db: &postgres::Connection) -> anyhow::Result<BTreeMap<Partition, String>> {
    let mut gaps = BTreeMap::new();
    for mut projected in progress::projected(db).await? {
        let here = projected.partition;
        for _ in 0..OUTBOX_ATTEMPTS {
            let Some(decided) = store.partition_state(here).await?.position else { break };
            if decided <= projected.position {
                break;
            }
            let first = store.outbox_page(here, projected.stream_id.parse()?, 1).await?;
            let again = position_of(here, db).await?;
            if again != projected {
                // Another process projects and trims the outbox meanwhile.
                projected = again;
                continue;
            }
            let Position { epoch, seq } = projected.position;
            let next = first.first().map(|entry| event::decode(&entry.fields).first().and_then(|event| event.position));
            // An entry without a position is no decision, and will become a dead letter.
            let follows = next.is_some_and(|next| next.is_none_or(|next| next == (epoch, seq + 1)));
            if !follows {
                let reason = format!(
                    "the outbox of partition {} of Redis does not lead from ({epoch}, {seq}), where PostgreSQL is, to ({}, {}): \
                     decisions are lost ({DISCARD})",
                    here.0, decided.epoch, decided.seq
                );
                gaps.insert(here, reason);
            }
            break;
        }
    }
    Ok(gaps)
}

async fn position_of(here: Partition, db: &postgres::Connection) -> anyhow::Result<ProjectedPosition> {
    let projected = progress::projected(db).await?.into_iter().find(|projected| projected.partition == here);
    projected.with_context(|| format!("PostgreSQL has no position of partition {}", here.0))
}

/// The identity in PostgreSQL. The epoch is that of a new store: Redis alone has the current one.
fn identity_of((store, partitions): (String, u16)) -> Identity {
    Identity { store, partitions, epoch: FIRST_EPOCH }
}
