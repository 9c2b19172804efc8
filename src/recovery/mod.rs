//! Opens the two stores at start ([`open`]), and rebuilds Redis from PostgreSQL ([`rebuild`]), also while the process runs
//! ([`watch`]). [`join`] opens Redis without PostgreSQL, on the word of other instances.

pub mod convert;
mod findings;
pub mod join;
mod load;
pub mod log;
pub mod open;
mod prepare;
mod progress;
pub mod rebuild;
mod repair;
mod sequences;
pub mod watch;
mod withhold;
