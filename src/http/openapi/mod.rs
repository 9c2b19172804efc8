//! The API page: the OpenAPI document and the Swagger UI that shows it.
//!
//! Handlers describe themselves (`#[utoipa::path]`, `documented_errors!`). [`document`] adds what many operations have in common
//! (authentication, idempotency, the failures of any request), by the kind of the operation, and [`fields`] puts the types of fields in
//! their places. [`events`] describes the events in a document of its own. [`page`] serves them.

pub mod document;
pub mod errors;
mod events;
mod fields;
pub mod page;
#[cfg(test)]
mod tests;
