//! Payments through an external gateway.

mod checkout;
mod faults;
pub mod flow;
mod fuzz_replies;
mod http;
mod outcomes;
mod providers;
mod refunds;
mod strays;
mod tokens;
