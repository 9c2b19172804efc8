//! Opening the stores at a start, and rebuilding Redis from PostgreSQL.

mod load;
pub mod open;
mod progress;
pub mod rebuild;
mod repair;
mod withhold;
