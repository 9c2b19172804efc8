//! Reads for the metrics: the pending work of each partition. Works on a closed partition too.

use super::due::{due_ranges, stuck_range};
use crate::{
    model::{Error, Millis, Partition, Position},
    redis::{
        Store,
        connection::ConnectionCount,
        keys::Keys,
        outbox::{Entry, StreamId},
    },
};

type Reads = ((Option<i64>, Option<i64>), u64, Vec<Entry>, u64, u64, u64, u64, u64, u64);

/// A number of scheduled items.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PendingCount {
    /// All items.
    pub open: u64,
    /// The items that are due.
    pub due: u64,
}

/// The pending work of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PendingWork {
    /// The last decision; `None` if the partition has no state.
    pub decided: Option<Position>,
    /// The number of entries in the outbox.
    pub outbox: u64,
    /// The time, by Redis's clock, of the oldest entry that PostgreSQL does not have.
    pub oldest: Option<Millis>,
    /// PENDING orders, due at the end of their hold.
    pub orders: PendingCount,
    /// Gateway payments, due at their next check.
    pub payments: PendingCount,
    pub stuck_payments: u64,
}

impl Store {
    /// Reads the pending work of a partition at `now`, in one round trip. `after` is the last entry that PostgreSQL has.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn pending(&self, here: Partition, after: StreamId, now: Millis) -> Result<PendingWork, Error> {
        let keys = Keys(here);
        let due = [keys.expiry(), keys.gateway()];
        let mut read = redis::pipe();
        read.cmd("HMGET").arg(keys.meta()).arg(&["epoch", "seq"]);
        read.cmd("XLEN").arg(keys.outbox());
        read.cmd("XRANGE").arg(keys.outbox()).arg(format!("({after}")).arg("+").arg("COUNT").arg(1);
        for key in &due {
            read.cmd("ZCARD").arg(key);
            read.cmd("ZCOUNT").arg(key).arg("-inf").arg(now.0);
        }
        let (stuck_first, stuck_last) = stuck_range();
        read.cmd("ZCOUNT").arg(keys.gateway()).arg(stuck_first).arg(stuck_last);
        let [_, (due_first, due_last)] = due_ranges(now);
        read.cmd("ZCOUNT").arg(keys.gateway()).arg(due_first).arg(due_last);
        let (decided, outbox, oldest, orders, orders_due, payments, payments_due, stuck, stuck_due): Reads =
            self.pipe_unchecked(here, &read).await?;
        Ok(PendingWork {
            decided: decided.0.zip(decided.1).map(|(epoch, seq)| Position { epoch, seq }),
            outbox,
            oldest: oldest.first().map(|entry| Millis(entry.id.ms as i64)),
            orders: PendingCount { open: orders, due: orders_due },
            payments: PendingCount { open: payments, due: payments_due + stuck_due },
            stuck_payments: stuck,
        })
    }

    /// The numbers of connections, by their use.
    pub fn connections(&self) -> [(&'static str, ConnectionCount); 3] {
        self.shared_connections().connections()
    }
}
