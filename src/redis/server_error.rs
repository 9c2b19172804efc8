//! The meaning of Redis's errors: which concern the command, which the connection, and which the server or the cluster.

use redis::{ErrorKind, RedisError};

/// The meaning of an error for the connection and the server. No command is ever resent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Means {
    /// The command was wrong, or the data has an unexpected type.
    Wrong,
    /// The right server can't run commands now. The command did not run.
    NotNow,
    /// The user lacks a permission. A script may have run in part.
    Forbidden,
    /// The partition is on another server of the cluster, or on none at the moment: discover again, keep the connections.
    OtherPlace,
    /// The server refuses writes, or all commands, for now; another one may have become master. Reconnect, but not too often.
    PerhapsOtherServer,
    /// The server is no master, or does not accept the credentials. Reconnect.
    OtherServer,
    /// The connection is broken. The command may have run.
    BrokenConnection,
}

/// The error codes that concern the server rather than the command (docs/operations.md, "Redis's error codes").
const REFUSALS: &[(&str, Means)] = &[
    // The slot is, or is about to be, on another node; or the cluster has no owner for it.
    ("ASK", Means::OtherPlace),
    ("CLUSTERDOWN", Means::OtherPlace),
    ("MOVED", Means::OtherPlace),
    ("TRYAGAIN", Means::OtherPlace),
    // A replica: demoted, or never a master.
    ("READONLY", Means::OtherServer),
    ("MASTERDOWN", Means::OtherServer),
    // A blocking read on a server that was demoted meanwhile.
    ("UNBLOCKED", Means::OtherServer),
    // The connection is not authenticated: a new one will be.
    ("NOAUTH", Means::OtherServer),
    // The server is cut off from its replicas.
    ("NOREPLICAS", Means::PerhapsOtherServer),
    // The server can't write to its disk.
    ("MISCONF", Means::PerhapsOtherServer),
    // The server has restarted and loads its data.
    ("LOADING", Means::PerhapsOtherServer),
    ("NOPERM", Means::Forbidden),
    ("BUSY", Means::NotNow),
    ("OOM", Means::NotNow),
    ("UNKILLABLE", Means::NotNow),
    // The script was flushed between its loading and the call.
    ("NOSCRIPT", Means::NotNow),
];

impl Means {
    /// Of a pipeline, the gravest meaning.
    pub(super) fn of(error: &RedisError) -> Means {
        // The error of a pipeline has no code; the errors of its commands have.
        if let Some(errors) = error.clone().into_server_errors() {
            let means = errors.iter().map(|(_, error)| Means::of_code(error.code()));
            return means.max().unwrap_or(Means::Wrong);
        }
        match error.kind() {
            ErrorKind::Io => Means::BrokenConnection,
            ErrorKind::AuthenticationFailed => Means::OtherServer,
            _ if error.is_unrecoverable_error() || error.is_connection_dropped() => Means::BrokenConnection,
            _ => Means::Wrong,
        }
    }

    fn of_code(code: &str) -> Means {
        REFUSALS.iter().find(|(refusal, _)| *refusal == code).map_or(Means::Wrong, |(_, means)| *means)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_codes_of_client_classified() {
        // Codes that do not concern the server: the command was wrong, or they belong to features that are not used.
        let of_commands = ["ERR", "EXECABORT", "CROSSSLOT", "NOTBUSY", "NOSUB"];
        for code in of_commands {
            assert_eq!(Means::of_code(code), Means::Wrong, "{code}");
        }
        let mut codes: Vec<_> = REFUSALS.iter().map(|(code, _)| *code).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), REFUSALS.len(), "a code is there twice");
    }
}
