//! The operations of the service.
//!
//! [`Engine`] has one method per operation of clients and operators, in one file per resource. `http` validates the form of a
//! request, and a script in Redis decides on the state; the engine reserves ids, adds times and terms, calls the one script
//! that decides, and interprets its reply.
//!
//! Every write may fail with [`Error::IdempotencyKeyReused`], [`Error::InProgress`] or [`Error::Unavailable`]; a method's docs
//! list its other errors.
//!
//! Depends on `model`, `config`, `archive` and the adapters: `redis`, `postgres`, `gateway`.

mod backoff;
mod balances;
mod catalog;
mod coupons;
mod creations;
pub mod dashboard;
mod durability;
mod events;
mod expiry;
mod id_allocator;
mod operator_log;
mod operators;
mod orders;
mod payment_outcomes;
mod payments;
mod previews;
mod providers;
mod refunds;
pub mod request_history;
mod sales;
pub mod sold_out;
mod stats;
mod supply;
mod timeline;
mod upserts;

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use chrono::NaiveDate;
use chrono_tz::Tz;
use tokio::sync::OnceCell;

pub use operator_log::OperatorLog;
pub use previews::Preview;
pub use upserts::MAX_PUT_ID;

use crate::{
    archive::Archive,
    config::{DurabilityConfig, GatewayConfig, ShopConfig},
    gateway::Gateways,
    model::*,
    postgres,
    redis::{Store, commands::OwnSequence},
};

/// The maximum time that a listing from PostgreSQL waits for the projection of the decisions before it.
const PROJECTION_TIMEOUT: Duration = Duration::from_secs(2);

/// The engine: every operation of the API, on one Redis and one PostgreSQL.
pub struct Engine {
    store: Store,
    db: postgres::Connection,
    archive: Archive,
    clock: Clock,
    zone: Tz,
    hold_ms: i64,
    refund_window_ms: i64,
    max_open_orders: u32,
    max_balance: Won,
    gateways: Gateways,
    give_up_ms: i64,
    watch_ms: i64,
    gateway_timeout_ms: i64,
    order_ids: id_allocator::Allocator,
    payment_ids: id_allocator::Allocator,
    campaigns: coupons::CampaignCache,
    supplies: supply::Supplies,
    sold_out: Arc<sold_out::SoldOutCache>,
    popular: catalog::PopularCache,
    /// The deployment's digest, in the names of orders at payment providers.
    deployment: OnceCell<String>,
    durability: durability::Durability,
    last_postgres: stats::LastPostgres,
    last_day: RwLock<Option<CalendarDay>>,
    /// The identity of the deployment, once it was asked for.
    identity: tokio::sync::OnceCell<String>,
    waiting_readers: events::WaitingReaders,
}

impl Engine {
    pub fn new(
        store: Store,
        db: postgres::Connection,
        clock: Clock,
        shop: &ShopConfig,
        gateways: Gateways,
        gateway: &GatewayConfig,
        durability: &DurabilityConfig,
    ) -> Self {
        let sold_out = sold_out::SoldOutCache::new(store.clone(), clock.clone(), shop.sold_out_lease_ms);
        let archive = Archive::new(store.clone(), db.clone(), shop.time_zone);
        let partitions = store.partitions();
        Engine {
            store,
            db,
            archive,
            clock,
            zone: shop.time_zone,
            hold_ms: shop.order_hold_seconds * 1000,
            refund_window_ms: shop.refund_window_seconds * 1000,
            max_open_orders: shop.max_open_orders_per_user,
            max_balance: shop.max_balance,
            gateways,
            give_up_ms: gateway.payment_gateway_give_up_seconds * 1000,
            watch_ms: gateway.payment_gateway_watch_seconds * 1000,
            gateway_timeout_ms: gateway.payment_gateway_timeout_ms as i64,
            order_ids: id_allocator::Allocator::new(OwnSequence::Orders, partitions),
            payment_ids: id_allocator::Allocator::new(OwnSequence::Payments, partitions),
            campaigns: coupons::CampaignCache::default(),
            supplies: supply::Supplies::default(),
            sold_out: Arc::new(sold_out),
            popular: catalog::PopularCache::default(),
            deployment: OnceCell::new(),
            durability: durability::Durability::new(durability),
            last_postgres: stats::LastPostgres::default(),
            last_day: RwLock::default(),
            identity: tokio::sync::OnceCell::new(),
            waiting_readers: events::WaitingReaders::default(),
        }
    }

    /// The time zone of the API's wall-clock times.
    pub fn zone(&self) -> Tz {
        self.zone
    }

    /// The engine's clock.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// The number of partitions.
    pub fn partitions(&self) -> u16 {
        self.store.partitions()
    }

    /// The cache of sold-out campaigns.
    pub fn sold_out(&self) -> &sold_out::SoldOutCache {
        &self.sold_out
    }

    fn today(&self) -> NaiveDate {
        self.day(self.clock.now()).date
    }

    /// The day in the shop's zone that includes `now`. The last result is cached.
    fn day(&self, now: Millis) -> CalendarDay {
        let last = *self.last_day.read().unwrap_or_else(PoisonError::into_inner);
        last.filter(|day| day.includes(now)).unwrap_or_else(|| {
            let day = CalendarDay::of(now, self.zone);
            *self.last_day.write().unwrap_or_else(PoisonError::into_inner) = Some(day);
            day
        })
    }

    /// Runs a decision of partition `decides`. If the idempotency key has another owner partition, claims the key there first;
    /// the claim stays unless the decision is a refusal.
    async fn with_claimed_key<T>(
        &self,
        call: &Call,
        decides: Partition,
        decision: impl Future<Output = Outcome<T>>,
    ) -> Outcome<T> {
        if !self.store.claims_key(call, decides) {
            return decision.await;
        }
        self.with_bound_key(call, decision).await
    }

    /// Binds the idempotency key in its own partition while `work` runs, and afterwards unless it is a refusal.
    async fn with_bound_key<T>(&self, call: &Call, work: impl Future<Output = Outcome<T>>) -> Outcome<T> {
        // Boxed, because few requests need this: otherwise the future of every coupon issue would be as large
        // (docs/decisions.md).
        Box::pin(self.store.idempotency_claim(call)).await?;
        let outcome = work.await;
        let refused = outcome.as_ref().is_err_and(|error| !error.leaves_outcome_unknown());
        if let Err(error) = Box::pin(self.store.idempotency_settle(call, !refused)).await {
            tracing::debug!(%error, "can't settle the claim of an idempotency key: it expires by itself");
        }
        outcome
    }

    /// Rejects an order that can't be this user's: an order has the same owner partition as its user.
    async fn check_owner(&self, call: &Call, order: OrderId, user: UserId) -> Result<(), Error> {
        let owner = self.store.owner(user.get());
        if self.store.owner(order.get()) != owner {
            // Check the key before the order: it may belong to another request.
            self.store.check_key(call, owner).await?;
            return Err(Error::OrderNotFound);
        }
        Ok(())
    }

    /// Waits until PostgreSQL has all decisions up to now, at most [`PROJECTION_TIMEOUT`]. A listing then includes every
    /// decision that its reader was sent, unless the projection lags.
    async fn wait_for_projection(&self) -> Result<(), Error> {
        let mut decided = Vec::new();
        for here in self.store.all() {
            decided.push(self.store.position(here).await?);
        }
        let mut pause = Duration::from_millis(2);
        let poll = async {
            loop {
                let positions = postgres::progress::projected(&self.db).await?;
                let behind = positions.iter().zip(&decided).any(|(projected, decided)| projected.position < *decided);
                if !behind && positions.len() == decided.len() {
                    return Ok(());
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_millis(100));
            }
        };
        tokio::time::timeout(PROJECTION_TIMEOUT, poll).await.unwrap_or(Ok(()))
    }
}
