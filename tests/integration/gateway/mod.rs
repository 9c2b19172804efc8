//! Payments through an external gateway.

mod faults;
pub mod flow;
mod fuzz_replies;
mod http;
mod outcomes;
