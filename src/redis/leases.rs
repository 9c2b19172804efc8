//! Leases: while PostgreSQL is away, each serving process says in Redis that it serves, and which positions it knows.
//!
//! A process that starts meanwhile can't ask PostgreSQL which Redis is the store's, and how far Redis must be. The leases answer:
//! their writers have compared this Redis with PostgreSQL, and with every decision that they acknowledged since
//! (`recovery::join`). While PostgreSQL is there, there are no leases.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{Store, keys::Keys};
use crate::model::{Error, Partition, Position, Projection};

/// The time after which a lease that is not renewed counts for nothing.
pub const LEASE_TTL: Duration = Duration::from_secs(5);

/// The knowledge of one process about one partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServingLease {
    /// The identity of the deployment.
    pub store: String,
    /// A digest of the place of the database.
    pub database: String,
    /// False for a process that only wants to serve.
    pub serves: bool,
    /// Whether its replies go out before PostgreSQL has the decision, which PostgreSQL has recorded.
    pub before_postgres: bool,
    /// Epoch and seq of the last decision that it knows. Clients may have been told of fewer: that is in its word for the roll call
    /// ([`roll_call`](super::roll_call)), which a process that joins reads too. A Redis that is behind this has lost decisions.
    pub acknowledged: (i64, i64),
    /// Epoch and seq of the last decision that PostgreSQL has, as far as it knows.
    pub projected: (i64, i64),
    /// The seq of PostgreSQL's last dead letter; 0 if there is none.
    pub last_dead_letter: i64,
    /// The processes whose leases it had read when it checked the partition, before it wrote this lease.
    pub seen: BTreeSet<String>,
    /// Counts the renewals.
    pub beat: u64,
}

impl ServingLease {
    pub fn acknowledged(&self) -> Position {
        Position { epoch: self.acknowledged.0, seq: self.acknowledged.1 }
    }

    pub fn projection(&self) -> Projection {
        let (epoch, seq) = self.projected;
        Projection { position: Position { epoch, seq }, last_dead_letter: self.last_dead_letter }
    }
}

impl Store {
    /// The leases of a partition by process, read in one step; `None` for one that this version can't read.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn leases(&self, here: Partition) -> Result<BTreeMap<String, Option<ServingLease>>, Error> {
        let mut read = redis::cmd("HGETALL");
        read.arg(Keys(here).serving());
        let leases: BTreeMap<String, String> = self.query(here, read).await?;
        Ok(leases.into_iter().map(|(process, lease)| (process, serde_json::from_str(&lease).ok())).collect())
    }

    /// Writes a process's lease, and removes those of `gone` processes. Runs only on a server that was checked since the
    /// connection to it was made.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn renew_lease(
        &self,
        here: Partition,
        process: &str,
        lease: &ServingLease,
        gone: &[String],
    ) -> Result<(), Error> {
        let text = serde_json::to_string(lease).map_err(|error| Error::Internal(error.into()))?;
        let key = Keys(here).serving();
        let mut renew = redis::pipe();
        renew.atomic();
        renew.cmd("HSET").arg(&key).arg(process).arg(text).ignore();
        if !gone.is_empty() {
            renew.cmd("HDEL").arg(&key).arg(gone).ignore();
        }
        renew.cmd("PEXPIRE").arg(&key).arg(LEASE_TTL.as_millis() as u64).ignore();
        self.pipe(here, &renew).await
    }

    /// The last decision of a partition that this process knows as acknowledged.
    pub fn acknowledged_position(&self, here: Partition) -> Position {
        self.watermark(here).acknowledged()
    }

    /// PostgreSQL's last known progress in a partition.
    pub fn projection(&self, here: Partition) -> Projection {
        *self.watermark(here).projection().borrow()
    }

    /// Records a position that another process acknowledged: from then on a Redis that is behind it has lost decisions.
    pub fn observe_acknowledged(&self, here: Partition, position: Position) {
        self.watermark(here).advance(position);
    }
}
