//! The one integration-test binary: everything runs against real servers, private to each test.
//!
//! A test starts a [`support::harness::TestApp`], does what it is about, and ends with `test.finish().await`, which drains the
//! outbox and checks the books ([`support::invariants`]). A test that forgets to fails.
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
mod engine;
mod gateway;
mod http;
mod operators;
mod postgres;
mod process;
mod projector;
mod recovery;
mod redis;
mod support;
