//! The public API, one file per resource: its routes, then its bodies, then its handlers. Beside it `/healthz`, `/readyz` and
//! `/metrics`.

pub mod balances;
#[cfg(feature = "baseline")]
pub mod baseline;
pub mod coupons;
pub mod gateways;
pub mod health;
pub mod metrics;
pub mod orders;
pub mod payments;
pub mod products;
mod recent;
