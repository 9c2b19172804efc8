//! Tells an unavailable Redis, for which waiting helps, from a wrong configuration.

use std::error::Error as StdError;

use deadpool_redis::PoolError;
use redis::{ErrorKind, RedisError};

use super::{Store, server_error::Means, settings::NotMaster};
use crate::model::{Error, Partition};

/// Whether this cause, one of an error's chain, means that Redis is unreachable, loading, busy or in a failover.
pub fn is_unavailable(cause: &(dyn StdError + 'static)) -> bool {
    if cause.is::<NotMaster>() {
        return true;
    }
    match (cause.downcast_ref::<PoolError>(), cause.downcast_ref::<RedisError>()) {
        (Some(PoolError::Timeout(_)), _) => true,
        (Some(PoolError::Backend(error)), _) | (None, Some(error)) => is_unavailable_now(error),
        _ => false,
    }
}

fn is_unavailable_now(error: &RedisError) -> bool {
    match error.kind() {
        // A wrong password.
        ErrorKind::AuthenticationFailed => false,
        ErrorKind::ClusterConnectionNotFound => true,
        // A missing password.
        _ if refuses_user(error) => false,
        _ => !matches!(Means::of(error), Means::Wrong | Means::Forbidden),
    }
}

fn refuses_user(error: &RedisError) -> bool {
    // The error of a pipeline has no code; the errors of its commands have.
    let refused = error.clone().into_server_errors();
    refused.iter().flat_map(|errors| errors.iter()).any(|(_, error)| matches!(error.code(), "NOAUTH" | "WRONGPASS"))
}

impl Store {
    /// Checks that the first partition's server has loaded its data.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn check_loaded(&self) -> Result<(), Error> {
        let info: String = self.query_unchecked(Partition(0), redis::cmd("INFO").arg("persistence")).await?;
        match info.lines().any(|line| line.trim() == "loading:1") {
            true => Err(Error::unavailable("Redis is loading its data")),
            false => Ok(()),
        }
    }
}
