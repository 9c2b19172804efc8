//! The vocabulary: ids, money, time, positions, entities by subject, events and errors.
//!
//! Imports no other module of the crate; every module may import it.

mod call;
mod campaigns;
mod conditions;
mod error;
pub mod event;
mod operator_log;
mod orders;
mod page;
mod partition;
mod payments;
mod position;
mod products;
mod projection;
pub mod public_event;
mod recovery;
mod requests;
mod sale;
mod time;
mod timeline;
mod types;
mod users;
mod webhooks;

pub use call::*;
pub use campaigns::*;
pub use conditions::*;
pub use error::Error;
pub use operator_log::*;
pub use orders::*;
pub use page::Page;
pub use partition::{MAX_PARTITIONS, Partition, Scope};
pub use payments::*;
pub use position::{Identity, Position, Projection, Word};
pub use products::*;
pub use projection::*;
pub use recovery::{BegunBy, Recovery, RecoveryOutcome, RecoveryProgress};
pub use requests::*;
pub use sale::*;
pub use time::*;
pub use timeline::*;
pub use types::*;
pub use users::*;
pub use webhooks::*;

/// The outcome of an operation whose reply an idempotency key may replay.
pub type Outcome<T> = Result<Reply<T>, Error>;
