//! Reads: one file per subject, each read one round trip.

pub mod audit;
pub mod dashboard;
pub mod due;
pub mod ranking;
pub mod resources;
mod sold_out;
pub mod stats;
