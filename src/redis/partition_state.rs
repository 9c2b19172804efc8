//! What Redis has of a partition's state, and the mark that freezes it.

use redis::{RedisError, RedisResult, Value, aio::MultiplexedConnection};

use super::{
    Store,
    keys::Keys,
    script::{self, Invocation},
};
use crate::{
    model::{Error, Partition, Position},
    telemetry::metrics,
};

/// Why a partition is frozen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FreezeCause {
    /// Redis has lost acknowledged decisions.
    Loss,
    /// The outbox does not continue where PostgreSQL is.
    Gap,
}

impl FreezeCause {
    /// The value in the partition's state.
    pub fn as_str(self) -> &'static str {
        match self {
            FreezeCause::Loss => "LOSS",
            FreezeCause::Gap => "GAP",
        }
    }
}

/// What a check reads of a partition's `meta`.
pub(super) struct Meta {
    pub store: Option<String>,
    pub position: Option<Position>,
    pub frozen: Option<String>,
    pub layout: Option<i64>,
    /// Changes with each user that is forgotten; 0 before the first.
    pub forgotten: i64,
    cause: Option<String>,
    rebuilding: Option<String>,
}

impl Meta {
    /// From the reply to [`meta_fields`].
    pub fn read(reply: Value) -> RedisResult<Meta> {
        type Fields = (
            Option<i64>,
            Option<i64>,
            Option<i64>,
            Option<String>,
            Option<String>,
            Option<String>,
            Option<String>,
            Option<i64>,
        );
        let (epoch, seq, layout, store, frozen, cause, rebuilding, forgotten): Fields = redis::from_redis_value(reply)?;
        let position = epoch.zip(seq).map(|(epoch, seq)| Position { epoch, seq });
        Ok(Meta { store, position, frozen, layout, forgotten: forgotten.unwrap_or(0), cause, rebuilding })
    }

    /// Whether Redis has lost decisions of the partition, and has not been rebuilt yet.
    pub fn is_lost(&self) -> bool {
        let loss = self.cause.as_deref() == Some(FreezeCause::Loss.as_str());
        self.position.is_none() || self.rebuilding.is_some() || loss
    }
}

pub(super) fn meta_fields(here: Partition) -> redis::Cmd {
    let mut fields = redis::cmd("HMGET");
    fields.arg(Keys(here).meta()).arg(&[
        "epoch",
        "seq",
        "layout",
        "store",
        "frozen",
        "cause",
        "rebuilding",
        "forgotten",
    ]);
    fields
}

pub(super) async fn read_meta(here: Partition, link: &mut MultiplexedConnection) -> RedisResult<Meta> {
    Meta::read(meta_fields(here).query_async(link).await?)
}

impl Store {
    /// Closes and freezes a partition of which a script made a decision under a seq that was acknowledged before: Redis has lost
    /// the earlier decisions.
    pub(super) async fn lost(
        &self,
        here: Partition,
        link: &mut MultiplexedConnection,
        found: Position,
        acknowledged: Position,
    ) -> Error {
        let reason = behind(here, found, acknowledged);
        tracing::error!(partition = here.0, reason, "a partition is closed");
        self.watermark(here).close(reason.clone());
        if let Err(error) = self.freeze_over(here, link, &reason, FreezeCause::Loss).await {
            tracing::error!(partition = here.0, %error, "can't freeze a partition for other processes");
        }
        Error::unavailable(reason)
    }

    /// Freezes a partition for all processes, until a rebuild.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn freeze(&self, here: Partition, reason: &str, cause: FreezeCause) -> Result<(), Error> {
        tracing::error!(partition = here.0, reason, "a partition is frozen");
        self.watermark(here).close(reason.to_owned());
        let (handle, mut link) = self.shared_connections().get(here).await?;
        let frozen = self.freeze_over(here, &mut link, reason, cause).await;
        self.shared_connections().settle(&handle, frozen).map(drop)
    }

    /// Freezes a partition over `link`.
    pub(super) async fn freeze_over(
        &self,
        here: Partition,
        link: &mut MultiplexedConnection,
        reason: &str,
        cause: FreezeCause,
    ) -> Result<(), RedisError> {
        metrics::PARTITION_FREEZES.inc();
        let mut freeze = Invocation::new(&script::PARTITION_FREEZE);
        freeze.key(Keys(here).meta()).arg(reason).arg(cause.as_str());
        freeze.by_source().query_async::<Value>(link).await.map(drop)
    }
}

/// The reason to close a partition without a state.
pub(super) fn state_lost(here: Partition) -> String {
    format!("Redis has lost the state of partition {}", here.0)
}

pub(super) fn behind(here: Partition, found: Position, acknowledged: Position) -> String {
    format!(
        "partition {} of Redis is at ({}, {}), behind the acknowledged ({}, {}): acknowledged decisions are lost",
        here.0, found.epoch, found.seq, acknowledged.epoch, acknowledged.seq
    )
}
