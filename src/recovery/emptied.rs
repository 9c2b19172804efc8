//! Rebuilds a Redis that comes back empty, in a running process: with `REDIS_DURABILITY=none`, PostgreSQL has every
//! acknowledged decision, and Redis may forget everything at any moment.
//!
//! The checks of the partitions notice the loss ([`fencing`](crate::redis::fencing)) and keep them closed. The rebuild
//! is the one of a start, over connections of its own, because those of the process refuse a closed partition. A lock in
//! PostgreSQL lets one process rebuild; the others wait for it and find nothing left to do.

use std::time::Duration;

use chrono_tz::Tz;

use super::rebuild::{self, Rebuild};
use crate::{
    config::{ProjectorConfig, RedisConfig, Retention},
    model::Clock,
    postgres,
    projector::Projector,
    redis::Store,
    worker::{Worker, Workers},
};

/// The interval between two looks at the last result of the checks.
const INTERVAL: Duration = Duration::from_millis(500);

/// The dependencies and settings of the rebuild of an emptied Redis.
#[derive(Clone)]
pub struct EmptiedRedis {
    /// The store of the running process.
    pub store: Store,
    pub redis: RedisConfig,
    pub db: postgres::Connection,
    pub clock: Clock,
    pub zone: Tz,
    pub projector: ProjectorConfig,
    /// The time limit of a transaction of the projector.
    pub timeout: Duration,
    pub retention: Retention,
}

impl EmptiedRedis {
    /// Starts to watch for an empty Redis.
    pub fn keep_rebuilding(self, workers: &Workers) {
        workers.every(Worker::EmptiedRedis, INTERVAL, move || {
            let this = self.clone();
            async move {
                if this.is_suspected()
                    && let Err(error) = Box::pin(this.rebuild()).await
                {
                    tracing::warn!(error = format!("{error:#}"), "an empty Redis is not rebuilt yet");
                }
            }
        });
    }

    /// Whether a partition is closed because its state is gone, or because a rebuild is under way, whose process may have died.
    fn is_suspected(&self) -> bool {
        let suspected = |reason: String| reason == rebuild::REASON;
        self.store
            .all()
            .any(|here| self.store.has_lost_state(here) || self.store.closed_for(here).is_some_and(suspected))
    }

    async fn rebuild(&self) -> anyhow::Result<()> {
        let store = Store::connect(&self.redis).await?;
        store.set_clock(&self.clock);
        let EmptiedRedis { db, clock, zone, retention, .. } = self.clone();
        let projector =
            Projector::new(store.clone(), db.clone(), clock.clone(), &self.projector, self.timeout, retention);
        let durability = self.redis.redis_durability;
        Rebuild { store, db, projector, clock, zone, retention, durability, barrier: None }
            .run_if_needed()
            .await
            .map(drop)
    }
}
