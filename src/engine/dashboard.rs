//! What operators watch while it happens: reads for the dashboard, each bounded in how much it asks for. How often, and for how
//! long, is left to whoever watches.

use std::collections::HashMap;

use futures_util::future::try_join_all;
use uuid::Uuid;

use super::*;
use crate::{
    model::Partition, postgres::queries::resources::ProjectedPosition, redis::queries::dashboard::ServerState,
};

/// The most campaigns that are looked at, of those that close first.
const MAX_CAMPAIGNS: i64 = 500;
/// Products of whose held units one look learns, in all.
const HELD_PAGE: usize = 1000;

/// How far Postgres is.
#[derive(Clone, Debug)]
pub struct Projected {
    pub positions: Vec<ProjectedPosition>,
    /// By partition, of those that have any.
    pub dead_letters: HashMap<u16, i64>,
}

impl Engine {
    /// How far Postgres is.
    ///
    /// # Errors
    /// [`Error::Unavailable`] while Postgres is.
    pub async fn projected_positions(&self) -> Result<Projected, Error> {
        let positions = postgres::queries::resources::positions(&self.db).await?;
        Ok(Projected { positions, dead_letters: postgres::queries::resources::dead_letters(&self.db).await? })
    }

    /// How far Postgres is behind what has been decided by now, if it is where `projected` says.
    ///
    /// # Errors
    /// [`Error::Unavailable`] while Redis is.
    pub async fn lag(&self, projected: &Projected) -> Result<ProjectionStatus, Error> {
        let now = self.clock.now();
        let letters = &projected.dead_letters;
        let mut partitions = Vec::with_capacity(projected.positions.len());
        for projected in &projected.positions {
            let here = Partition(projected.partition);
            let decided = self.store.position(here).await?;
            let last = projected.stream_id.parse().map_err(Error::Internal)?;
            let oldest = self.store.outbox_oldest_after(here, last).await?;
            partitions.push(PartitionStatus {
                partition: projected.partition,
                epoch: decided.epoch,
                decided_seq: decided.seq,
                projected_seq: projected.seq,
                lag_seconds: oldest.map_or(0.0, |oldest| (now.0 - oldest.0).max(0) as f64 / 1000.0),
                dead_letters: letters.get(&projected.partition).copied().unwrap_or(0),
            });
        }
        Ok(ProjectionStatus {
            lag_events: partitions.iter().map(|p| (p.decided_seq - p.projected_seq).max(0)).sum(),
            lag_seconds: partitions.iter().map(|p| p.lag_seconds).fold(0.0, f64::max),
            max_backlog: self.durability.max_backlog,
            dead_letters: letters.values().sum(),
            partitions,
        })
    }

    /// How many orders there are in Postgres, of the statuses that there are any of.
    ///
    /// # Errors
    /// [`Error::Unavailable`] while Postgres is.
    pub async fn order_totals(&self) -> Result<HashMap<OrderStatus, i64>, Error> {
        postgres::queries::resources::order_totals(&self.db).await
    }

    /// Campaigns whose window has not closed for longer than `back_ms`, soonest to close first; where there are very many, not
    /// all of them.
    ///
    /// # Errors
    /// [`Error::Unavailable`] while Redis is; so all the following.
    pub async fn campaigns_lately(&self, back_ms: i64) -> Result<Vec<Campaign>, Error> {
        let of_each = MAX_CAMPAIGNS / i64::from(self.store.partitions()) + 1;
        self.store.campaigns_closing_after(back_ms, of_each).await
    }

    /// Where the units of these products are, in no order; those that do not exist are left out.
    pub async fn shelves(&self, ids: &[ProductId]) -> Result<Vec<ShelvedProduct>, Error> {
        let here = |here| {
            let mine: Vec<ProductId> = ids.iter().copied().filter(|id| self.store.owner(id.get()) == here).collect();
            async move { self.store.shelves_of(here, &mine).await }
        };
        Ok(try_join_all(self.store.all().map(here)).await?.into_iter().flatten().flatten().collect())
    }

    /// Goes on looking at what is held of which product, from where `cursors` stand, one for each partition (none: from the
    /// beginning): what this look found, and where the next one goes on.
    pub async fn held_lately(&self, cursors: &[String]) -> Result<(Vec<(ProductId, i64)>, Vec<String>), Error> {
        let size = (HELD_PAGE / usize::from(self.store.partitions())).max(10);
        let pages = self.store.all().map(|here| {
            let cursor = cursors.get(usize::from(here.0)).map_or("0", String::as_str);
            self.store.held_page(here, cursor, size)
        });
        let (found, next): (Vec<_>, Vec<_>) = try_join_all(pages).await?.into_iter().unzip();
        Ok((found.into_iter().flatten().collect(), next))
    }

    /// Tells the dashboards of the other processes what requests this one answered, as `report`; `instance` is its own id.
    pub async fn report_requests(&self, instance: Uuid, report: &str) -> Result<(), Error> {
        postgres::instance_requests::write(&self.db, instance, report).await
    }

    /// Takes that back, where an instance is named, and removes what processes that are gone have left.
    pub async fn withdraw_requests(&self, instance: Option<Uuid>) -> Result<(), Error> {
        postgres::instance_requests::remove(&self.db, instance).await
    }

    /// What the other processes that are at work have told.
    pub async fn requests_of_others(&self, instance: Uuid) -> Result<Vec<String>, Error> {
        postgres::instance_requests::others(&self.db, instance).await
    }

    /// How each server of Redis is.
    pub async fn redis_states(&self) -> Result<Vec<ServerState>, Error> {
        self.store.server_states().await
    }
}
