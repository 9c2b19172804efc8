//! firstcome: a flash-sale commerce engine. *First come, first served, exactly once.*
//!
//! ```text
//! request → http → engine → redis (one Lua script: checks, writes, XADD) → reply
//!                             └→ outbox stream → projector → postgres
//! ```
//!
//! Redis decides; PostgreSQL records. A module imports only modules to its left, which a test holds:
//!
//! ```text
//! sync, model ← config, telemetry, worker ← redis | postgres | gateway | jwt ← archive | oidc ← engine | projector ← webhooks, recovery, audit ← http ← dashboard ← app | dev ← cli
//! ```
//!
//! - `sync` names the locks that the concurrency tests replace.
//! - [`model`] is the vocabulary: ids, money, time, positions, entities, events, errors.
//! - [`config`] is the settings with their bounds; [`telemetry`] is the log, the traces and the metrics; [`worker`] runs work
//!   in the background.
//! - [`redis`] is the only code that speaks Redis; the decisions themselves are in `lua/`.
//! - [`postgres`] is the only code that speaks PostgreSQL: entities, queries, migrations.
//! - [`gateway`] asks external payment gateways; [`jwt`] verifies users' tokens.
//! - [`oidc`] signs operators in with the company's accounts.
//! - [`archive`] finds and restores orders that have left Redis.
//! - [`engine`] has one method per operation; [`projector`] writes to PostgreSQL what Redis decided.
//! - [`webhooks`] sends events to other systems.
//! - [`recovery`] opens the stores and rebuilds Redis from PostgreSQL; [`audit`] recomputes every invariant over both.
//! - [`http`] is the API: routes, bodies, errors, limits, the OpenAPI document. [`dashboard`] is the operators' page and its feed.
//! - [`app`] builds, starts and stops the parts. [`dev`] starts private servers for `make run` and the tests.

pub mod app;
pub mod archive;
pub mod audit;
pub mod cli;
pub mod config;
pub mod dashboard;
pub mod dev;
pub mod engine;
pub mod gateway;
pub mod http;
pub mod jwt;
pub mod model;
pub mod oidc;
pub mod postgres;
pub mod projector;
pub mod recovery;
pub mod redis;
mod sync;
pub mod telemetry;
pub mod webhooks;
pub mod worker;
