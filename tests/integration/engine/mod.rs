//! The engine's decisions: races, expiry, partitions, durability, coupons that are sold out.

mod big_baskets;
mod clocks;
pub mod durability;
mod expiry;
mod model;
mod partitions;
mod races;
mod refused_decisions;
pub mod sold_out;
mod sold_out_model;
mod storage_bounds;

use proptest::test_runner::Config;

/// The configuration of a model test: this many cases, or `PROPTEST_CASES`.
fn model_config(cases: u32) -> Config {
    let mut config = Config { max_shrink_iters: 60, failure_persistence: None, ..Config::default() };
    if std::env::var("PROPTEST_CASES").is_err() {
        config.cases = cases;
    }
    config
}
