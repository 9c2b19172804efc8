//! The API over HTTP.
//!
//! Owns everything between a TCP connection and a method of the [`Engine`](crate::engine::Engine): decoding and its refusals,
//! the status table, the OpenAPI document, the operators' tokens and sessions, the user that a request acts for, limits of all
//! kinds and the accept loop. The engine decides about goods and money.
//!
//! [`router`] has every route and every layer, [`roles`] the role that each of the operators' routes needs; [`state`] is what
//! handlers share. A request passes [`server`] (sockets),
//! [`middleware`] (one layer a file), [`auth`] and [`limits`], the extractors of [`extract`], and ends in a handler of
//! [`routes`] (the public API) or [`admin`] (the operators' API). [`error`] is the one status table; [`openapi`] is the document.

pub mod admin;
pub mod auth;
pub mod error;
pub mod event_stream;
pub mod extract;
mod headers;
pub mod limits;
pub mod middleware;
mod openapi;
mod page;
mod reply;
pub mod request_class;
pub mod request_id;
pub mod roles;
pub mod router;
pub mod routes;
pub mod server;
pub mod state;
pub mod waiting;
