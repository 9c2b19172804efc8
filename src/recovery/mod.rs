//! Opens the two stores at start ([`open`]), and rebuilds Redis from PostgreSQL ([`rebuild`]).

mod load;
pub mod open;
mod progress;
pub mod rebuild;
mod repair;
mod withhold;
