//! The projection of the outbox to PostgreSQL, dead letters, eviction.

mod dead_letters;
mod events;
mod evict;
pub mod fuzz_events;
pub mod projection;
