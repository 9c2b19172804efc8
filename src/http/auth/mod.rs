//! Authentication: operators by token, session or the company's account, users by a JSON Web Token.

pub mod operator;
pub mod require;
pub mod session;
pub mod sign_in;
mod spent;
pub mod user;
