//! The public API, endpoint by endpoint, over HTTP.

mod balances;
mod checkout;
mod conditions;
mod coupons;
pub mod errors;
mod fuzz_requests;
mod idempotency;
pub mod openapi;
mod orders;
mod payments;
mod products;
mod refunds;
mod smoke;
pub mod tokens;
mod unknown_fields;
mod writes;
