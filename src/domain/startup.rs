//! Opening the store: who Redis is, who Postgres is, and whether they belong together.
//!
//! An empty Redis beside an empty Postgres is a new store. Everything else must match: the identity, the partitions, and
//! Redis at or past the position that Postgres has of each partition. What does not match is refused, never repaired here.

use anyhow::{Context, bail};
use uuid::Uuid;

use crate::{
    db::{self, identity},
    store::{Identity, Store, keys::Partition},
};

/// The epoch of a store that was never rebuilt.
const FIRST_EPOCH: i64 = 1;

/// Opens the store, initialising it if both sides are new. `partitions` is how many the configuration wants.
///
/// # Errors
/// The reason why these two can't be served from, and what to do about it.
pub async fn open(store: Store, db: &db::Connection, partitions: Option<u16>) -> anyhow::Result<Store> {
    db::check_schema(db).await?;
    let here = store.identity().await?;
    let there = identity::read(db).await?.map(identity_of);
    let identity = match (here, there) {
        (None, None) => {
            let mint =
                Identity { store: Uuid::new_v4().to_string(), partitions: partitions.unwrap_or(1), epoch: FIRST_EPOCH };
            identity::remember(db, &mint.store, mint.partitions, mint.epoch).await?;
            // Whoever came first, if several start at once.
            let agreed = identity::read(db).await?.context("the new store's identity did not stay")?;
            let agreed = identity_of(agreed);
            store.initialise(&agreed).await?;
            tracing::info!(store = agreed.store, partitions = agreed.partitions, "a new store");
            agreed
        }
        (None, Some(there)) => {
            let positions = db::reads::positions(db).await?;
            if positions.iter().any(|position| position.seq > 0) {
                bail!(
                    "Redis is empty, but PostgreSQL has what store {} decided: bring that Redis back with its data \
                     (or point REDIS_URL and DATABASE_URL at a pair that belongs together)",
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
    check_positions(&store, db).await?;
    store.load_scripts().await?;
    Ok(store)
}

/// Redis must be at or past what Postgres has of each partition; behind it, decisions were lost.
async fn check_positions(store: &Store, db: &db::Connection) -> anyhow::Result<()> {
    for projected in db::reads::positions(db).await? {
        let decided = store.position(Partition(projected.partition)).await?;
        if (decided.epoch, decided.seq) < (projected.epoch, projected.seq) {
            bail!(
                "partition {} of Redis is at ({}, {}), behind PostgreSQL's ({}, {}): Redis lost decisions that were \
                 acknowledged, and serving on would contradict them",
                projected.partition,
                decided.epoch,
                decided.seq,
                projected.epoch,
                projected.seq
            );
        }
    }
    Ok(())
}

/// What Postgres knows of a store that Redis has lost or not had yet.
fn identity_of((store, partitions): (String, u16)) -> Identity {
    Identity { store, partitions, epoch: FIRST_EPOCH }
}
