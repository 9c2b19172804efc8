//! The API page: the OpenAPI document and the Swagger UI that shows it.
//!
//! Handlers describe themselves (`#[utoipa::path]`, `documented_errors!`). [`document`] adds what many operations have in common
//! (authentication, idempotency, the failures of any request), by the kind of the operation, and [`fields`] puts the types of fields in
//! their places. [`page`] serves both.

pub mod document;
pub mod errors;
mod fields;
pub mod page;
#[cfg(test)]
mod tests;
