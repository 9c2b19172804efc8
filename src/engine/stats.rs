//! The states of both stores and of this process, for the metrics: read on request, in bounded time even if a store is
//! unavailable.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};

use super::{Engine, dashboard::Projected, sold_out};
use crate::{
    model::Partition,
    postgres::{self, progress::ProjectedPosition},
    redis::{
        outbox::StreamId,
        queries::stats::{PendingCount, PendingWork},
    },
    telemetry::metrics::state::{Holds, Observed, PartitionGauges, Postgres, SoldOut},
};

/// The time limit for each store.
const STORE_TIMEOUT: Duration = Duration::from_secs(1);
/// The time without queries after a timeout of PostgreSQL, because an abandoned query keeps a connection of the pool for a
/// while.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// The maximum number of partitions queried at once.
const CONCURRENCY: usize = 32;

/// The last known state of PostgreSQL.
#[derive(Default)]
pub(super) struct LastPostgres(Mutex<PostgresSeen>);

#[derive(Default)]
struct PostgresSeen {
    /// The last known positions: a lower bound of the current ones.
    positions: Vec<ProjectedPosition>,
    /// The time of the last timeout.
    unavailable_since: Option<Instant>,
}

impl Engine {
    /// Reads the state of the stores and of this process. Takes two seconds at most, and omits values that it can't read in
    /// that time.
    pub async fn observe(&self) -> Observed {
        // First: its positions are the starts of the partitions' backlogs.
        let postgres = self.observe_postgres().await;
        let positions = self.last_postgres.0.lock().unwrap_or_else(PoisonError::into_inner).positions.clone();
        // One deadline for all partitions together.
        let deadline = tokio::time::Instant::now() + STORE_TIMEOUT;
        let reads = self.store.all().map(|here| {
            let projected = positions.iter().find(|position| position.partition == here);
            async move { tokio::time::timeout_at(deadline, self.observe_partition(here, projected)).await.ok()? }
        });
        let partitions: Vec<Option<PartitionGauges>> = stream::iter(reads).buffered(CONCURRENCY).collect().await;
        let redis = partitions.iter().all(Option::is_some);
        let open: Vec<bool> = self.store.all().map(|here| self.store.is_open(here)).collect();
        let sold_out::Counts { refused, renewed, read, learned } = self.sold_out.counts();
        let connections = self.store.connections();
        Observed {
            ready: redis && open.iter().all(|open| *open),
            redis,
            partitions: partitions.into_iter().flatten().collect(),
            open,
            unconfirmed: self.is_unconfirmed(),
            unsafe_settings: self.store.unsafe_settings(),
            replicas: (self.store.all().map(|here| self.store.replicas(here)).collect(), self.durability.replicas()),
            redis_connections: connections.map(|(kind, count)| (kind, count.open, count.max)).into(),
            postgres,
            postgres_connections: postgres::connections(&self.db),
            clock_offset: self.store.clock_offset_ms() as f64 / 1000.0,
            backlog: (self.store.backlog(), self.durability.max_backlog),
            sold_out: SoldOut { refused, renewed, read, learned },
        }
    }

    async fn observe_postgres(&self) -> Option<Postgres> {
        let seen = || self.last_postgres.0.lock().unwrap_or_else(PoisonError::into_inner);
        if seen().unavailable_since.is_some_and(|at| at.elapsed() < RETRY_INTERVAL) {
            return None;
        }
        let before = self.store.projected_positions();
        let Ok(read) = tokio::time::timeout(STORE_TIMEOUT, self.projected_positions()).await else {
            seen().unavailable_since = Some(Instant::now());
            return None;
        };
        let Projected { positions, dead_letters } = read.ok()?;
        for projected in &positions {
            self.store.observe_projection(projected.partition, projected.projection(), &before);
        }
        let dead_letters =
            positions.iter().map(|at| (at.partition.0, dead_letters.get(&at.partition.0).copied().unwrap_or(0)));
        let postgres = Postgres { dead_letters: dead_letters.collect() };
        *seen() = PostgresSeen { positions, unavailable_since: None };
        Some(postgres)
    }

    async fn observe_partition(
        &self,
        here: Partition,
        projected: Option<&ProjectedPosition>,
    ) -> Option<PartitionGauges> {
        let now = self.store.now(here);
        let after = projected.and_then(|position| position.stream_id.parse().ok()).unwrap_or(StreamId::ZERO);
        let pending = self.store.pending(here, after, now).await.ok()?;
        let PendingWork { decided, outbox, oldest, orders, payments, stuck_payments } = pending;
        let count = |waiting: PendingCount| (waiting.open, waiting.due);
        let decisions = decided?.seq;
        Some(PartitionGauges {
            partition: here.0,
            decisions,
            outbox,
            lag_events: projected.map(|position| (decisions - position.position.seq).max(0)),
            lag_seconds: oldest.map_or(0.0, |oldest| (now.0 - oldest.0).max(0) as f64 / 1000.0),
            holds: Holds { orders: count(orders), payments: count(payments) },
            stuck_payments,
        })
    }
}
