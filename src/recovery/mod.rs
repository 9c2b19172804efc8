//! Opens the two stores at start ([`open`]), and rebuilds Redis from PostgreSQL ([`rebuild`]), also while the process runs
//! ([`emptied`]). [`join`] opens Redis without PostgreSQL, on the word of other instances.

pub mod emptied;
pub mod findings;
pub mod join;
mod load;
pub mod open;
mod prepare;
mod progress;
pub mod rebuild;
mod repair;
mod withhold;
