//! What the metrics are told of Redis: how much waits in each partition. Also of one that is closed.

use super::due::{due_ranges, stuck_range};
use crate::{
    model::{Error, Millis, Partition, Position},
    redis::{
        Store,
        connection::Connections,
        keys::Keys,
        outbox::{Entry, StreamId},
    },
};

type Reads = ((Option<i64>, Option<i64>), u64, Vec<Entry>, u64, u64, u64, u64, u64, u64, u64, u64);

/// Things that come due.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PendingCount {
    /// All of them.
    pub open: u64,
    /// Those that are due already.
    pub due: u64,
}

/// What waits in a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pending {
    /// The last decision; `None` where the books are not there.
    pub decided: Option<Position>,
    /// Entries of the outbox, from the first that is not trimmed yet.
    pub outbox: u64,
    /// When the oldest entry after the given one was written, by Redis's clock.
    pub oldest: Option<Millis>,
    /// PENDING orders by the end of their hold, gateway payments by when they are looked at next, stock held for orders
    /// elsewhere likewise.
    pub orders: PendingCount,
    pub payments: PendingCount,
    /// Gateway payments that nobody can settle.
    pub stuck_payments: u64,
    pub remote_holds: PendingCount,
}

impl Store {
    /// What waits in a partition at `now`, in one round trip; `after` is the last entry that Postgres has.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn pending(&self, here: Partition, after: StreamId, now: Millis) -> Result<Pending, Error> {
        let keys = Keys(here);
        let due = [keys.expiry(), keys.gateway(), keys.holds()];
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
        let (
            decided,
            outbox,
            oldest,
            orders,
            orders_due,
            payments,
            payments_due,
            far_holds,
            far_holds_due,
            stuck,
            stuck_due,
        ): Reads = self.pipe_unchecked(here, &read).await?;
        Ok(Pending {
            decided: decided.0.zip(decided.1).map(|(epoch, seq)| Position { epoch, seq }),
            outbox,
            oldest: oldest.first().map(|entry| Millis(entry.id.ms as i64)),
            orders: PendingCount { open: orders, due: orders_due },
            payments: PendingCount { open: payments, due: payments_due + stuck_due },
            stuck_payments: stuck,
            remote_holds: PendingCount { open: far_holds, due: far_holds_due },
        })
    }

    /// Its connections by what they are for.
    pub fn connections(&self) -> [(&'static str, Connections); 3] {
        self.shared_connections().connections()
    }
}
