//! One typed function per script that decides: it writes keys and arguments, and turns the reply's code into an outcome.
//!
//! A code that the function does not expect is an error, never a default.
//!
//! # Shared refusals
//! Every command may return these values of [`Error`](crate::model::Error), beside its own:
//!
//! - `IdempotencyKeyReused`: the call's idempotency key belongs to another request.
//! - `InProgress`: the first request under the key, or a payment of the order, is still running.
//! - `Unavailable`: Redis does not reply, and the script may have run or not; or the partition is closed, or has lost decisions.
//! - `Internal`: the reply has a code or a field that the function does not expect.

mod balances;
mod catalog;
mod coupons;
mod idempotency;
mod ids;
mod orders;
mod payments;
mod refunds;
mod transfers;
mod users;

pub use catalog::*;
pub use coupons::*;
pub use ids::*;
pub use orders::*;
pub use payments::*;
pub use refunds::*;
pub use transfers::*;
pub use users::*;

use super::{
    Store,
    keys::Keys,
    script::{Invocation, Script},
};
use crate::model::{Call, Partition, RECORD_TTL_MS};

impl Store {
    /// Begins a call of a script with an idempotency record: writes the keys and arguments that all of them start with.
    fn begin(&self, call: &Call, script: &'static Script, partition: Partition) -> Invocation {
        let keys = Keys(partition);
        let (digest, fingerprint) = call.key_parts();
        let mut invocation = Invocation::new(script);
        invocation.key(keys.meta()).key(keys.outbox()).key(keys.record(digest));
        invocation.arg(self.test_clock()).arg(fingerprint).arg(RECORD_TTL_MS).arg(&call.request_id);
        invocation
    }

    /// The same for a script without one.
    fn begin_unrecorded(&self, call: &Call, script: &'static Script, partition: Partition) -> Invocation {
        let keys = Keys(partition);
        let mut invocation = Invocation::new(script);
        invocation.key(keys.meta()).key(keys.outbox()).arg(self.test_clock()).arg(&call.request_id);
        invocation
    }
}
