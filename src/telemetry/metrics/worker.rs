//! The background workers of a process, as the label of their metric names them.

macro_rules! workers {
    ($($(#[$doc:meta])* $name:ident = $label:literal,)+) => {
        /// A background worker.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Worker {
            $($(#[$doc])* $name,)+
        }

        impl Worker {
            /// The label of every worker.
            pub(super) const LABELS: &[&str] = &[$($label),+];

            /// The label.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Worker::$name => $label,)+
                }
            }
        }
    };
}

workers! {
    /// Asks PostgreSQL, once it is back, to confirm what this process started with.
    Confirmation = "confirmation",
    /// Removes events that are kept no longer.
    EventPurge = "event_purge",
    /// Ends what is due, of a kind in a partition.
    Expiry = "expiry",
    /// Refreshes the keys of users' tokens.
    Jwks = "jwks",
    /// Keeps leases while PostgreSQL is away, for processes that start meanwhile.
    Leases = "leases",
    /// Forgets clients whose rate limits are full again.
    Limits = "limits",
    /// Writes the actions of operators.
    OperatorLog = "operator_log",
    /// Watches whether PostgreSQL answers.
    PostgresWatch = "postgres_watch",
    /// Projects a partition.
    Projector = "projector",
    /// Deletes expired idempotency records.
    RecordCleanup = "record_cleanup",
    /// Recovers partitions whose data Redis lost.
    Recovery = "recovery",
    /// Watches the partitions of Redis.
    RedisWatch = "redis_watch",
    /// Reports the requests of this process to the others.
    RequestReports = "request_reports",
    /// Writes samples of the requests of this process, for the last fifteen minutes of every dashboard.
    RequestSamples = "request_samples",
    /// Asks the Sentinels for the primary.
    Sentinels = "sentinels",
    /// Sends events to webhooks.
    Webhooks = "webhooks",
}
