//! firstcome: a flash-sale commerce engine. *First come, first served, exactly once.*
//!
//! ```text
//! request → http → domain → store (one Lua script: checks, writes, XADD) → reply
//!                             └→ outbox stream → projector → Postgres
//! ```
//!
//! Redis decides; Postgres remembers. The map:
//!
//! - [`http`] speaks the API: routes, bodies, errors, the OpenAPI document. It knows `domain`, and what operators may set going:
//!   an [`audit`], another try of the [`projector`]'s.
//! - [`domain`] is the verbs and their outcomes, and the vocabulary. It knows `store`, `gateway` and `db`'s reads.
//! - [`store`] is the only code that speaks Redis; the decisions themselves are in `lua/`.
//! - [`projector`] is the only code that writes to Postgres what Redis decided; [`db`] reads it, and writes only what no outbox
//!   carries: whose store it is, and the log of operators' acts.
//! - [`rebuild`] puts Redis back together from Postgres; [`audit`] recomputes every conservation law.
//! - [`gateway`] asks external payment gateways; [`tokens`] says who a user is, by its token.
//! - [`ops`] is the dashboard: its page and its live feed.
//! - [`metrics`] is what Prometheus is told, [`telemetry`] the log and the traces; anybody may use both.
//! - [`dev`] starts private servers for the quick start and the tests.
//! - [`config`] is the configuration, [`app`] puts the parts together, [`stop`] takes the signals that end them, [`probe`] asks
//!   a running service how it is, [`seed`] is the demo catalogue.

pub mod app;
pub mod audit;
pub mod config;
pub mod db;
pub mod dev;
pub mod domain;
pub mod gateway;
pub mod http;
pub mod metrics;
pub mod ops;
pub mod probe;
pub mod projector;
pub mod rebuild;
pub mod seed;
pub mod stop;
pub mod store;
pub mod telemetry;
pub mod tokens;
