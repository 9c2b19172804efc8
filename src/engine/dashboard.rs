//! Reads for the dashboard. Each is bounded in size; the caller decides how often to read, and with what time limit.

use std::collections::HashMap;

use futures_util::future::try_join_all;

use super::*;
use crate::{postgres::progress::ProjectedPosition, redis::queries::dashboard::ServerState};

/// The maximum number of campaigns to read, in the order of their closing.
const MAX_CAMPAIGNS: i64 = 500;
/// The number of products with held units that one scan reads, over all partitions.
const HELD_PAGE: usize = 1000;

/// PostgreSQL's progress.
#[derive(Clone, Debug)]
pub struct Projected {
    pub positions: Vec<ProjectedPosition>,
    /// The number of dead letters by partition; partitions without any are missing.
    pub dead_letters: HashMap<u16, i64>,
}

impl Engine {
    /// Reads PostgreSQL's progress.
    ///
    /// # Errors
    /// [`Error::Unavailable`] while PostgreSQL is.
    pub async fn projected_positions(&self) -> Result<Projected, Error> {
        let positions = postgres::progress::projected(&self.db).await?;
        Ok(Projected { positions, dead_letters: postgres::queries::dead_letters::counts(&self.db).await? })
    }

    /// The lag of `projected` behind the decisions up to now.
    ///
    /// # Errors
    /// [`Error::Unavailable`] while Redis is.
    pub async fn lag(&self, projected: &Projected) -> Result<ProjectionStatus, Error> {
        let now = self.clock.now();
        let dead_letters = &projected.dead_letters;
        let mut partitions = Vec::with_capacity(projected.positions.len());
        for projected in &projected.positions {
            let here = projected.partition;
            let decided = self.store.position(here).await?;
            let last = projected.stream_id.parse().map_err(Error::Internal)?;
            let oldest = self.store.outbox_oldest_after(here, last).await?;
            partitions.push(PartitionStatus {
                partition: here.0,
                epoch: decided.epoch,
                decided_seq: decided.seq,
                projected_seq: projected.position.seq,
                lag_seconds: oldest.map_or(0.0, |oldest| (now.0 - oldest.0).max(0) as f64 / 1000.0),
                dead_letters: dead_letters.get(&here.0).copied().unwrap_or(0),
            });
        }
        Ok(ProjectionStatus {
            lag_events: partitions.iter().map(|p| (p.decided_seq - p.projected_seq).max(0)).sum(),
            lag_seconds: partitions.iter().map(|p| p.lag_seconds).fold(0.0, f64::max),
            max_backlog: self.durability.max_backlog,
            dead_letters: dead_letters.values().sum(),
            partitions,
        })
    }

    /// The number of orders in PostgreSQL by status; statuses without any are missing.
    ///
    /// # Errors
    /// [`Error::Unavailable`] while PostgreSQL is.
    pub async fn order_totals(&self) -> Result<HashMap<OrderStatus, i64>, Error> {
        postgres::queries::resources::order_totals(&self.db).await
    }

    /// Campaigns that are not closed, or closed at most `back_ms` ago, in the order of their closing; about
    /// [`MAX_CAMPAIGNS`] at most.
    ///
    /// # Errors
    /// [`Error::Unavailable`] while Redis is.
    pub async fn campaigns_lately(&self, back_ms: i64) -> Result<Vec<Campaign>, Error> {
        let per_partition = MAX_CAMPAIGNS / i64::from(self.store.partitions()) + 1;
        self.store.campaigns_closing_after(back_ms, per_partition).await
    }

    /// The units of these products by state, in no order. Products that do not exist are omitted.
    ///
    /// # Errors
    /// [`Error::Unavailable`] while Redis is.
    pub async fn shelves(&self, ids: &[ProductId]) -> Result<Vec<ShelvedProduct>, Error> {
        let here = |here| {
            let mine: Vec<ProductId> = ids.iter().copied().filter(|id| self.store.owner(id.get()) == here).collect();
            async move { self.store.shelves_of(here, &mine).await }
        };
        Ok(try_join_all(self.store.all().map(here)).await?.into_iter().flatten().flatten().collect())
    }

    /// Continues a scan of the held units of products. `cursors` has one cursor per partition; a missing one starts from the
    /// beginning. Returns this part of the scan and the next cursors.
    ///
    /// # Errors
    /// [`Error::Unavailable`] while Redis is.
    pub async fn held_lately(&self, cursors: &[String]) -> Result<(Vec<(ProductId, i64)>, Vec<String>), Error> {
        let size = (HELD_PAGE / usize::from(self.store.partitions())).max(10);
        let pages = self.store.all().map(|here| {
            let cursor = cursors.get(usize::from(here.0)).map_or("0", String::as_str);
            self.store.held_page(here, cursor, size)
        });
        let (found, next): (Vec<_>, Vec<_>) = try_join_all(pages).await?.into_iter().unzip();
        Ok((found.into_iter().flatten().collect(), next))
    }

    /// Stores this process's `report` of its requests for the dashboards of other processes; `instance` is its id.
    ///
    /// # Errors
    /// [`Error::Unavailable`] while PostgreSQL is.
    pub async fn report_requests(&self, instance: &str, report: &str) -> Result<(), Error> {
        postgres::instance_requests::write(&self.db, instance, report).await
    }

    /// Removes the report of `instance`, if it is given, and the reports of processes that have ended.
    ///
    /// # Errors
    /// [`Error::Unavailable`] while PostgreSQL is.
    pub async fn withdraw_requests(&self, instance: Option<&str>) -> Result<(), Error> {
        postgres::instance_requests::remove(&self.db, instance).await
    }

    /// The reports of the other running processes.
    ///
    /// # Errors
    /// [`Error::Unavailable`] while PostgreSQL is.
    pub async fn requests_of_others(&self, instance: &str) -> Result<Vec<String>, Error> {
        postgres::instance_requests::others(&self.db, instance).await
    }

    /// The state of each Redis server.
    ///
    /// # Errors
    /// [`Error::Unavailable`] while Redis is.
    pub async fn redis_states(&self) -> Result<Vec<ServerState>, Error> {
        self.store.server_states().await
    }
}
