//! The vocabulary: ids, money, time, positions, entities, events and errors. It imports no other module of the crate.

mod entities;
mod error;
pub mod event;
mod partition;
mod position;
mod types;

pub use entities::*;
pub use error::Error;
pub use partition::{MAX_PARTITIONS, Partition};
pub use position::{Identity, Position, Projection};
pub use types::*;

/// The outcome of an operation that an idempotency key may replay.
pub type Outcome<T> = Result<Reply<T>, Error>;
