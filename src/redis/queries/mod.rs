//! Reads, one file per subject. Most reads are one round trip per partition.

pub mod audit;
pub mod dashboard;
pub mod due;
pub mod ranking;
pub mod resources;
pub mod sold_out;
pub mod stats;
