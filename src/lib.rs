//! firstcome: a flash-sale commerce engine. First come, first served, exactly once.
pub mod config;
pub mod db;
pub mod dev;
pub mod domain;
pub mod gateway;
pub mod http;
pub mod projector;
pub mod store;
