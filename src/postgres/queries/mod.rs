//! Reads, one file per subject. Listings go through the entities; other statements are SQL through sqlx.

pub mod archived_orders;
pub mod dead_letters;
pub mod decided;
pub mod page;
pub mod resources;
pub mod sales;
pub mod timeline;
