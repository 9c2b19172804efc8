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
