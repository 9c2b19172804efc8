//! Startup, rebuild, audit.

mod audit;
mod emptied;
mod joining;
mod large;
pub mod rebuild;
mod restored_postgres;
mod startup;
mod startup_waits;
mod upgrade;
