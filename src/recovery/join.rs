//! Joining without PostgreSQL: a process that starts while PostgreSQL is away serves if another one does.
//!
//! PostgreSQL knows three things that a start needs: which Redis is the store's, the position that Redis must have, and
//! whether replies ever went out before PostgreSQL had the decision. The instances that serve know them too, and write
//! them into leases in Redis while PostgreSQL is away ([`Voucher`], [`redis::leases`](crate::redis::leases)).
//!
//! The proof, in each partition:
//!
//! 1. The new process leaves a lease of its own that only asks.
//! 2. An instance that serves reads it, *then* checks that Redis is not behind anything that it knows as acknowledged, and
//!    writes a lease that names the new process. Such a lease can't stem from an earlier state of this Redis: the
//!    new process's id is random.
//! 3. Every lease of an instance names the new process, or was not renewed for [`LEASE_TTL`]: then that instance is gone.
//! 4. Redis is not behind the acknowledged position of any lease, of a gone instance either.
//!
//! The process joins only the same database, by the place in `DATABASE_URL`, and with `ACK` other than `postgres` only if
//! an instance that serves has the same: then PostgreSQL knows already that replies do not wait for it. The instances
//! that vouched remember the process and its acknowledged positions, and report them to PostgreSQL with their own.
//!
//! Until PostgreSQL is back, the process's connections to it wait. Then everything that PostgreSQL would have been asked
//! at start is asked ([`Confirmation`]), before the first connection is used. A Redis that is behind is fenced; a store that
//! is not the database's ends the process.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{bail, ensure};
use futures_util::future::join_all;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{open, sequences};
use crate::{
    config::{Ack, EngineConfig, PostgresConfig},
    engine::Engine,
    model::{Error, Partition, Position, Projection},
    postgres::{self, progress},
    redis::{
        Store,
        leases::{LEASE_TTL, ServingLease},
    },
    worker::{Worker, Workers},
};

/// The interval of the renewals of a lease.
const RENEWAL_INTERVAL: Duration = Duration::from_millis(500);
/// The interval at which a new process checks the leases.
const CHECK_INTERVAL: Duration = Duration::from_millis(100);
/// How long one attempt to join may take: a lease expires, and another one is renewed.
const JOIN_TIMEOUT: Duration = Duration::from_secs(8);
/// The interval of the attempts to reach PostgreSQL.
const CONFIRMATION_INTERVAL: Duration = Duration::from_millis(500);

/// The values of the leases that were read, and since when each is unchanged.
#[derive(Default)]
struct LeaseHistory(HashMap<(Partition, String), (Option<ServingLease>, Option<Instant>)>);

impl LeaseHistory {
    /// Records a reading of a partition's leases. Returns those that were not renewed for [`LEASE_TTL`].
    fn record(&mut self, here: Partition, read: &BTreeMap<String, Option<ServingLease>>, now: Instant) -> Vec<String> {
        self.0.retain(|(partition, process), _| *partition != here || read.contains_key(process));
        let mut gone = Vec::new();
        for (process, lease) in read {
            let (known, since) = self.0.entry((here, process.clone())).or_default();
            if known != lease || since.is_none() {
                (*known, *since) = (lease.clone(), Some(now));
            }
            if since.is_some_and(|since| now - since >= LEASE_TTL) {
                gone.push(process.clone());
            }
        }
        gone
    }
}

/// What this process writes into its leases, beside the positions.
#[derive(Clone)]
pub struct Voucher {
    /// The id of this process: random, of this start alone.
    pub process: String,
    pub store: Store,
    /// The identity of the deployment.
    pub identity: String,
    /// The place of the database.
    pub database: String,
    pub ack: Ack,
}

impl Voucher {
    fn lease(&self, here: Partition, serves: bool, seen: BTreeSet<String>, beat: u64) -> ServingLease {
        let (acknowledged, projected) = (self.store.acknowledged_position(here), self.store.projection(here));
        ServingLease {
            store: self.identity.clone(),
            database: self.database.clone(),
            serves,
            before_postgres: self.ack != Ack::Postgres,
            acknowledged: (acknowledged.epoch, acknowledged.seq),
            projected: (projected.position.epoch, projected.position.seq),
            last_dead_letter: projected.last_dead_letter,
            seen,
            beat,
        }
    }

    /// Starts to keep leases while PostgreSQL is away, for processes that start meanwhile.
    pub fn keep_vouching(self, engine: Arc<Engine>, workers: &Workers) {
        let (this, history, beat) =
            (Arc::new(self), Arc::<Mutex<LeaseHistory>>::default(), Arc::<AtomicU64>::default());
        workers.every(Worker::Leases, RENEWAL_INTERVAL, move || {
            let (this, engine, history, beat) = (this.clone(), engine.clone(), history.clone(), beat.clone());
            async move {
                if !engine.is_postgres_away() {
                    *history.lock().unwrap_or_else(PoisonError::into_inner) = LeaseHistory::default();
                    return;
                }
                let beat = beat.fetch_add(1, Ordering::Relaxed);
                let renewed = join_all(this.store.all().map(|here| this.renew(here, &history, beat))).await;
                for error in renewed.into_iter().filter_map(Result::err) {
                    tracing::debug!(%error, "can't renew a lease");
                }
            }
        });
    }

    /// Renews the lease of a partition, if the partition is open.
    async fn renew(&self, here: Partition, history: &Mutex<LeaseHistory>, beat: u64) -> Result<(), Error> {
        let mut read = self.store.leases(here).await?;
        read.remove(&self.process);
        let gone = history.lock().unwrap_or_else(PoisonError::into_inner).record(here, &read, Instant::now());
        for lease in read.values().flatten().filter(|lease| lease.serves && lease.store == self.identity) {
            self.store.observe_acknowledged(here, lease.acknowledged());
        }
        // After the reading: the lease says that the partition was sound when the others had asked.
        self.store.check(here).await?;
        let seen = read.into_keys().filter(|process| !gone.contains(process)).collect();
        self.store.renew_lease(here, &self.process, &self.lease(here, true, seen, beat), &gone).await
    }
}

/// The leases of a partition, as a process that wants to join judges them.
enum Judgement {
    /// Enough instances vouch for the partition: the highest acknowledged position, and the highest progress of PostgreSQL.
    Sound { acknowledged: Position, projected: Projection },
    /// A rebuild or an operator has to open the partition first; no process can decide in it.
    Frozen,
    /// Why the process can't join yet.
    NotYet(String),
}

fn not_vouched() -> String {
    "no other instance serves that could vouch for this Redis".to_owned()
}

impl Voucher {
    /// Joins the instances that serve. Returns the partitions for which no instance vouches because they are frozen, or the
    /// reason to wait.
    ///
    /// # Errors
    /// Redis is unavailable.
    async fn join(&self) -> Result<Result<Vec<Partition>, String>, Error> {
        let (deadline, mut history, mut beat) = (Instant::now() + JOIN_TIMEOUT, LeaseHistory::default(), 0);
        loop {
            let mut waits_for = None;
            let (mut frozen, mut facts, mut any_serves) = (Vec::new(), Vec::new(), false);
            for here in self.store.all() {
                let mut read = self.store.leases(here).await?;
                read.remove(&self.process);
                any_serves |= read.values().flatten().any(|lease| lease.serves);
                match self.judge(here, &read, &mut history).await? {
                    Judgement::Sound { acknowledged, projected } => facts.push((here, acknowledged, projected)),
                    Judgement::Frozen => frozen.push(here),
                    Judgement::NotYet(why) => waits_for = Some(why),
                }
            }
            let Some(why) = waits_for.or_else(|| facts.is_empty().then(not_vouched)) else {
                for (here, acknowledged, projected) in facts {
                    // Not a reading of PostgreSQL: a lower position does not prove that PostgreSQL has gone back.
                    self.store.observe_projection(here, projected, &[]);
                    self.store.observe_acknowledged(here, acknowledged);
                }
                return Ok(Ok(frozen));
            };
            // Write no lease where no instance serves.
            if !any_serves || Instant::now() >= deadline {
                return Ok(Err(why));
            }
            beat += 1;
            for here in self.store.all() {
                let asks = self.lease(here, false, BTreeSet::new(), beat);
                self.store.renew_lease(here, &self.process, &asks, &[]).await?;
            }
            tokio::time::sleep(CHECK_INTERVAL).await;
        }
    }

    async fn judge(
        &self,
        here: Partition,
        read: &BTreeMap<String, Option<ServingLease>>,
        history: &mut LeaseHistory,
    ) -> Result<Judgement, Error> {
        let gone = history.record(here, read, Instant::now());
        // After the leases: it has everything that their writers know.
        let state = self.store.partition_state(here).await?;
        if state.frozen.is_some() {
            return Ok(Judgement::Frozen);
        }
        let (mut acknowledged, mut projected) = (Position::default(), Projection::default());
        let (mut vouching, mut before_postgres) = (0, false);
        for (process, lease) in read {
            let Some(lease) = lease else {
                return Ok(Judgement::NotYet(
                    "another version's instance serves, whose lease can't be read".to_owned(),
                ));
            };
            if !lease.serves {
                continue;
            }
            acknowledged = acknowledged.max(lease.acknowledged());
            if lease.projection().position >= projected.position {
                projected = lease.projection();
            }
            if gone.contains(process) {
                continue;
            }
            if lease.store != self.identity || lease.database != self.database {
                return Ok(Judgement::NotYet("the instances that serve use another DATABASE_URL".to_owned()));
            }
            if !lease.seen.contains(&self.process) {
                return Ok(Judgement::NotYet(format!(
                    "an instance that serves has not vouched for partition {} yet",
                    here.0
                )));
            }
            (vouching, before_postgres) = (vouching + 1, before_postgres || lease.before_postgres);
        }
        Ok(match state.position {
            _ if vouching == 0 => Judgement::NotYet(not_vouched()),
            Some(position) if position >= acknowledged => match before_postgres || self.ack == Ack::Postgres {
                true => Judgement::Sound { acknowledged, projected },
                false => Judgement::NotYet(
                    "every instance that serves has ACK=postgres, and only PostgreSQL can record that this one has not"
                        .to_owned(),
                ),
            },
            _ => {
                Judgement::NotYet(format!("partition {} of Redis is behind what another instance acknowledged", here.0))
            }
        })
    }
}

/// Opens Redis on the word of the instances that serve. `db` waits for the confirmation. Returns the reason to wait if they do not
/// vouch for it.
///
/// # Errors
/// As [`open`](super::open::open), as far as Redis is concerned.
pub async fn join(
    store: Store,
    db: &postgres::Connection,
    config: &EngineConfig,
    process: &str,
) -> anyhow::Result<Result<Voucher, String>> {
    let durability = config.redis.redis_durability;
    let Some(identity) = store.identity().await? else { return Ok(Err("Redis is empty".to_owned())) };
    open::check_partitions(config.shop.partitions, identity.partitions)?;
    let store = store.with_partitions(identity.partitions);
    let voucher = Voucher {
        process: process.to_owned(),
        store: store.clone(),
        identity: identity.store.clone(),
        database: postgres::place(&config.postgres)?,
        ack: config.durability.ack,
    };
    let frozen = match voucher.join().await? {
        Ok(frozen) => frozen,
        Err(why) => return Ok(Err(why)),
    };
    store.check_settings(durability).await?;
    store.load_scripts().await?;
    store.guard(&identity.store, durability, config.durability.ack, open::progress_source(db));
    for (_, checked) in store.check_patiently(store.all().filter(|here| !frozen.contains(here))).await {
        if let Err(error) = checked {
            return Ok(Err(error.to_string()));
        }
    }
    store.check_replication().await?;
    tracing::warn!(store = identity.store, "PostgreSQL is away: joined the instances that serve");
    Ok(Ok(voucher))
}

/// What PostgreSQL has to confirm about a process that joined without it.
#[derive(Clone)]
pub struct Confirmation {
    pub voucher: Voucher,
    pub postgres: PostgresConfig,
    /// Cancelled once PostgreSQL has confirmed: its connections wait until then.
    pub confirmed: CancellationToken,
    /// Why PostgreSQL contradicts. The process then ends.
    pub contradiction: Arc<OnceLock<String>>,
}

impl Confirmation {
    /// Starts to ask PostgreSQL as soon as it is there. Cancels `stopping` if it contradicts.
    pub fn keep_asking(self, stopping: CancellationToken, workers: &Workers) {
        workers.spawn(Worker::Confirmation, move || {
            let (this, stopping) = (self.clone(), stopping.clone());
            async move {
                loop {
                    match Box::pin(this.confirm()).await {
                        Ok(()) => {
                            tracing::info!("PostgreSQL is there, and confirms what this process joined on");
                            return this.confirmed.cancel();
                        }
                        Err(error) if open::is_transient(&error) => {
                            tracing::debug!("PostgreSQL can't confirm: {error:#}")
                        }
                        Err(error) => {
                            let reason = format!("{error:#}");
                            tracing::error!(reason, "PostgreSQL contradicts what this process joined on");
                            let _ = this.contradiction.set(reason);
                            return stopping.cancel();
                        }
                    }
                    tokio::time::sleep(CONFIRMATION_INTERVAL).await;
                }
            }
        });
    }

    /// Asks what a start asks.
    async fn confirm(&self) -> anyhow::Result<()> {
        let db = postgres::connect(&self.postgres).await?;
        let confirmed = self.confirm_by(&db).await;
        db.close().await?;
        confirmed
    }

    async fn confirm_by(&self, db: &postgres::Connection) -> anyhow::Result<()> {
        postgres::check_schema(db).await?;
        let Voucher { store, identity, ack, .. } = &self.voucher;
        let Some((name, partitions)) = progress::identity(db).await? else {
            bail!("this PostgreSQL database has no store, and Redis has store {identity}: DATABASE_URL is wrong");
        };
        ensure!(
            (name.as_str(), partitions) == (identity.as_str(), store.partitions()),
            "Redis has store {identity} and PostgreSQL has store {name}: they do not belong together"
        );
        let before = store.projected_positions();
        for reported in open::reported_progress(db).await? {
            store.observe_projection(reported.partition, reported.projected, &before);
            store.observe_acknowledged(reported.partition, reported.acknowledged);
        }
        for here in store.all() {
            // Fences the partition if Redis is behind, and logs that.
            if let Err(error) = store.check(here).await {
                tracing::warn!(partition = here.0, %error, "a partition can't be used");
            }
        }
        sequences::complete(store, db).await?;
        if *ack != Ack::Postgres {
            progress::acknowledges_before_postgres(db).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(beat: u64) -> Option<ServingLease> {
        Some(ServingLease {
            store: "store".to_owned(),
            database: "database".to_owned(),
            serves: true,
            before_postgres: true,
            acknowledged: (1, 5),
            projected: (1, 4),
            last_dead_letter: 0,
            seen: BTreeSet::new(),
            beat,
        })
    }

    #[test]
    fn lease_gone_when_not_renewed_for_its_time() {
        let (mut history, begun) = (LeaseHistory::default(), Instant::now());
        let read = |a, b| BTreeMap::from([("a".to_owned(), lease(a)), ("b".to_owned(), lease(b))]);
        assert!(history.record(Partition(0), &read(1, 1), begun).is_empty());
        let later = begun + LEASE_TTL - Duration::from_millis(1);
        assert!(history.record(Partition(0), &read(1, 2), later).is_empty());
        let expired = begun + LEASE_TTL;
        assert_eq!(history.record(Partition(0), &read(1, 2), expired), ["a"]);
        // Of another partition nothing was read so far.
        assert!(history.record(Partition(1), &read(1, 2), expired).is_empty());
        assert!(history.record(Partition(0), &read(2, 3), expired).is_empty());
    }
}
