//! The Lua scripts, and Redis in every state and behind every address.

pub mod addresses;
pub mod cluster;
mod degraded;
pub mod failover;
pub mod proxy;
pub mod replicas;
mod rights;
mod roll_call;
pub mod script_batches;
mod script_bounds;
pub mod script_failures;
mod script_numbers;
mod script_rules;
pub mod scripts;
mod topologies;
mod torn_log;
