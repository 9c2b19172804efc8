//! Authentication: operators by token or session, users by a JSON Web Token.

pub mod operator;
pub mod require;
pub mod session;
pub mod user;
