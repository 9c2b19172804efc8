//! The integration tests, one binary: every test runs against real servers of its own.
//!
//! A test starts a [`support::harness::TestApp`] and ends with `test.finish().await`, which drains the outbox and
//! checks the invariants ([`support::invariants`]). A test that does not call it fails.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::large_futures,
    clippy::type_complexity
)]

mod api;
mod architecture;
mod chaos;
mod documents;
mod drill;
mod engine;
mod file_lengths;
mod gateway;
mod http;
mod operators;
mod postgres;
mod process;
mod projector;
mod recovery;
mod redis;
mod support;
mod test_names;
mod type_names;
mod vocabulary;
