//! Opens the two stores at start ([`open`]), and rebuilds Redis from PostgreSQL ([`rebuild`]), also while the process runs
//! ([`emptied`]).

pub mod emptied;
mod load;
pub mod open;
mod progress;
pub mod rebuild;
mod repair;
mod withhold;
