//! The one integration-test binary: everything runs against real servers, private to each test.
//!
//! A test starts a [`harness::World`], does what it is about, and ends with `world.finish().await`, which drains the
//! outbox and checks the books ([`books`]). A test that forgets to fails.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::large_futures,
    clippy::type_complexity
)]

mod acts;
mod api_admin;
mod api_balances;
mod api_coupons;
mod api_errors;
mod api_idempotency;
mod api_kit;
mod api_openapi;
mod api_orders;
mod api_payments;
mod api_products;
mod api_unknown;
mod audit;
mod big_baskets;
mod binary;
mod books;
mod chaos;
mod clocks;
mod cluster;
mod dead_letters;
mod degraded;
mod degraded_postgres;
mod deployment;
mod drain;
mod durability;
mod environment;
mod expiry;
mod exposition;
mod fake_gateway;
mod flood;
mod fuzz_events;
mod fuzz_gateway;
mod fuzz_http;
mod gateway_faults;
mod gateway_flow;
mod gateway_http;
mod gateway_outcomes;
mod harness;
mod http_burst;
mod http_hostile;
mod instances;
mod large;
mod metrics;
mod model;
mod operations;
mod ops_feed;
mod ops_instances;
mod ops_session;
mod partitions;
mod pooler;
mod postgres_faults;
mod postgres_tls;
mod projector;
mod promql;
mod races;
mod readme;
mod rebuild;
mod redis_addresses;
mod redis_failover;
mod redis_proxy;
mod redis_rights;
mod refused_decisions;
mod restored;
mod retire;
mod scripts;
mod scripts_batches;
mod scripts_bounds;
mod scripts_numbers;
mod scripts_redis;
mod scripts_rules;
mod secrets;
mod smoke;
mod sold_out;
mod sold_out_model;
mod startup;
mod startup_waits;
mod stories;
mod strangers;
mod telemetry;
mod tokens;
