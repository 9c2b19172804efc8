//! Reads: one file per subject.

pub mod archived_orders;
pub mod dead_letters;
pub mod page;
pub mod resources;
pub mod timeline;
