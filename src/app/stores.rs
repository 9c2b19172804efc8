//! Connects to both stores.

use crate::{
    config::{EngineConfig, redact},
    postgres,
    recovery::open,
    redis::Store,
};

/// The reasons to wait for the stores. Redis, if only PostgreSQL is unavailable.
pub(super) struct MissingStores {
    pub(super) reasons: Vec<String>,
    pub(super) redis: Option<Store>,
}

/// Connects to both stores. Returns the reasons to wait if a store is unavailable.
///
/// # Errors
/// Errors that waiting does not cure.
pub(super) async fn connect_both(
    config: &EngineConfig,
) -> anyhow::Result<Result<(postgres::Connection, Store), MissingStores>> {
    let redis = async {
        let store = Store::connect(&config.redis).await?;
        store.check_loaded().await?;
        anyhow::Ok(store)
    };
    match tokio::join!(postgres::connect(&config.postgres), redis) {
        (Ok(db), Ok(store)) => Ok(Ok((db, store))),
        (db, store) => {
            let (store, failed) = match store {
                Ok(store) => (Some(store), None),
                Err(error) => (None, Some(error)),
            };
            let failed = db.err().into_iter().chain(failed);
            let reasons = failed.map(reason_to_wait).collect::<anyhow::Result<_>>()?;
            Ok(Err(MissingStores { reasons, redis: store }))
        }
    }
}

/// The reason of a failed attempt to open the stores, if the next attempt may succeed; otherwise the error.
pub(super) fn reason_to_wait(error: anyhow::Error) -> anyhow::Result<String> {
    if open::is_transient(&error) { Ok(redact(&format!("{error:#}")).into_owned()) } else { Err(error) }
}
