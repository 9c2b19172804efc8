//! Hostile and numerous connections.

mod burst;
pub mod flood;
mod hostile;
