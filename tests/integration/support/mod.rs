//! Shared by the tests: the harness, the invariants, fakes and proxies, parsers.

pub mod api_kit;
pub mod exposition;
pub mod fake_gateway;
pub mod fake_issuer;
pub mod files;
pub mod harness;
pub mod invariants;
pub mod outbox;
pub mod preload;
pub mod promql;
pub mod repository;
pub mod standby;
