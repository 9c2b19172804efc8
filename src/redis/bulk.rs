//! Bulk writes of a rebuild, key by key, while its partitions are frozen and no other process writes to them.
//!
//! Nothing here is atomic. A partition is marked `rebuilding` from before the first deletion until after the last write, and a
//! rebuild that finds the mark starts over.

use std::{
    collections::BTreeMap,
    fmt::Display,
    time::{Duration, Instant},
};

use tokio_util::task::AbortOnDropHandle;

use super::{LAYOUT, Store, keys::Keys, outbox::StreamId};
use crate::model::{Error, Identity, Millis, Partition, Position, Scope, UserId, event};

/// The number of commands per pipeline. Redis runs them at once, and serves no other client meanwhile: about two milliseconds.
const PIPELINE_BATCH: usize = 500;
/// Entries of the outbox in one read.
const OUTBOX_PAGE: usize = 1000;

/// The fields of a partition's `meta` that exist.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PartitionState {
    pub store: Option<String>,
    pub position: Option<Position>,
    pub frozen: Option<String>,
    pub rebuilding: bool,
    /// The number of the layout in which the partition is written.
    pub layout: Option<i64>,
}

impl Store {
    /// Reads the state of a partition, open or not.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn partition_state(&self, here: Partition) -> Result<PartitionState, Error> {
        let mut read = redis::cmd("HMGET");
        read.arg(Keys(here).meta()).arg(&["store", "epoch", "seq", "frozen", "rebuilding", "layout"]);
        type StateFields = (Option<String>, Option<i64>, Option<i64>, Option<String>, Option<String>, Option<i64>);
        let (store, epoch, seq, frozen, rebuilding, layout): StateFields = self.query_unchecked(here, &read).await?;
        let position = epoch.zip(seq).map(|(epoch, seq)| Position { epoch, seq });
        Ok(PartitionState { store, position, frozen, rebuilding: rebuilding.is_some(), layout })
    }

    /// Freezes a partition for `reason`, unless it is frozen already. A partition without a state gets one at `position`.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn close(
        &self,
        here: Partition,
        identity: &Identity,
        position: Position,
        reason: &str,
    ) -> Result<(), Error> {
        let meta = Keys(here).meta();
        let mut shut = redis::pipe();
        shut.atomic();
        shut.cmd("HSETNX").arg(&meta).arg("frozen").arg(reason).ignore();
        for (field, value) in [
            ("store", identity.store.clone()),
            ("partitions", identity.partitions.to_string()),
            ("epoch", position.epoch.to_string()),
            ("seq", position.seq.to_string()),
        ] {
            shut.cmd("HSETNX").arg(&meta).arg(field).arg(value).ignore();
        }
        self.pipe_unchecked(here, &shut).await
    }

    /// Freezes a partition with a new reason.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn keep_closed(&self, here: Partition, reason: &str) -> Result<(), Error> {
        let mut shut = redis::cmd("HSET");
        shut.arg(Keys(here).meta()).arg("frozen").arg(reason);
        self.query_unchecked::<i64>(here, &shut).await.map(drop)
    }

    /// Unfreezes a partition: it decides again.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn reopen(&self, here: Partition) -> Result<(), Error> {
        let mut open = redis::cmd("HDEL");
        open.arg(Keys(here).meta()).arg(&["frozen", "cause", "rebuilding"]);
        self.query_unchecked::<i64>(here, &open).await.map(drop)
    }

    /// Marks a partition as being rebuilt, and sets the position from which it will continue.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn mark_rebuilding(
        &self,
        here: Partition,
        identity: &Identity,
        position: Position,
        reason: &str,
    ) -> Result<(), Error> {
        let mut mark = redis::cmd("HSET");
        mark.arg(Keys(here).meta()).arg("rebuilding").arg(1).arg("frozen").arg(reason);
        mark.arg("store").arg(&identity.store).arg("partitions").arg(identity.partitions);
        mark.arg("epoch").arg(position.epoch).arg("seq").arg(position.seq).arg("layout").arg(LAYOUT);
        self.query_unchecked::<i64>(here, &mark).await.map(drop)
    }

    /// The number of decisions in the outbox beyond PostgreSQL's position, which is at `entry`, and the highest position.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn unprojected(
        &self,
        here: Partition,
        projected: Position,
        entry: StreamId,
    ) -> Result<(usize, Position), Error> {
        let (mut count, mut highest) = (0, projected);
        // Skips the entries that are kept after their commit, if they are of the epoch that PostgreSQL is in.
        let at = self.outbox_between(here, (entry.before(), entry), 1).await?;
        let mut decided =
            at.iter().flat_map(|entry| event::decode(&entry.fields)).filter_map(|decoded| decoded.position);
        let is_of_outbox = decided.next_back().is_some_and(|(epoch, seq)| Position { epoch, seq } == projected);
        let mut last = if is_of_outbox { entry } else { StreamId::ZERO };
        loop {
            let page = self.outbox_page(here, last, OUTBOX_PAGE).await?;
            let Some(end) = page.last() else { return Ok((count, highest)) };
            last = end.id;
            for read in &page {
                for decoded in event::decode(&read.fields) {
                    let position = decoded.position.map(|(epoch, seq)| Position { epoch, seq });
                    if position.map_or(read.id > entry, |position| position > projected) {
                        count += 1;
                    }
                    highest = highest.max(position.unwrap_or_default());
                }
            }
        }
    }

    /// Removes every key of these partitions except their state, and the words and the requests of their processes. Returns the
    /// number of removed keys.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn empty(&self, scope: &Scope) -> Result<u64, Error> {
        let mut removed = 0;
        let kept = |here| [Keys(here).meta(), Keys(here).instances(), Keys(here).requests()];
        let tags: Vec<_> = scope.iter().map(|here| (here, format!("{{p{}}}:", here.0), kept(here))).collect();
        for server in self.servers().await? {
            let mut cursor = Some("0".to_owned());
            while let Some(from) = cursor {
                let (page, next) = self.scan_page(server, &from).await?;
                for (here, tag, kept) in &tags {
                    let keys: Vec<&String> =
                        page.iter().filter(|key| key.starts_with(tag) && !kept.contains(key)).collect();
                    if !keys.is_empty() {
                        let mut unlink = redis::cmd("UNLINK");
                        unlink.arg(&keys);
                        removed += self.query_unchecked::<u64>(*here, &unlink).await?;
                    }
                }
                cursor = next;
            }
        }
        Ok(removed)
    }

    /// A page of the products that a partition has on sale, each with its units, and the next cursor, which is `None` after the last page.
    /// A product may be in two pages.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn stock_page(
        &self,
        here: Partition,
        cursor: &str,
        size: usize,
    ) -> Result<(Vec<(i64, i64)>, Option<String>), Error> {
        let mut scan = redis::cmd("HSCAN");
        scan.arg(Keys(here).stock()).arg(cursor).arg("COUNT").arg(size);
        let (next, page): (String, Vec<(i64, i64)>) = self.query_unchecked(here, &scan).await?;
        Ok((page, Some(next).filter(|next| next != "0")))
    }

    /// Units on sale of these products.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn stock_of(&self, here: Partition, ids: &[i64]) -> Result<Vec<i64>, Error> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let mut read = redis::cmd("HMGET");
        read.arg(Keys(here).stock()).arg(ids);
        let stock: Vec<Option<i64>> = self.query_unchecked(here, &read).await?;
        Ok(stock.into_iter().map(Option::unwrap_or_default).collect())
    }

    /// A user's coupon of a campaign, as the scripts write it.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn coupon_field(&self, here: Partition, user: UserId, coupon: i64) -> Result<Option<String>, Error> {
        let mut read = redis::cmd("HGET");
        read.arg(Keys(here).user(user)).arg(coupon);
        self.query_unchecked(here, &read).await
    }

    /// A page of a partition's campaigns by id, each with the number of coupons that are neither issued nor withheld.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn campaign_page(&self, here: Partition, offset: usize, size: usize) -> Result<Vec<(i64, i64)>, Error> {
        let ids = self.page_of(here, Keys(here).campaigns(), offset, size).await?;
        let mut read = redis::pipe();
        for id in ids.iter().filter_map(|id| crate::model::CouponId::new(*id)) {
            read.cmd("HMGET").arg(Keys(here).campaign(id)).arg(&["total", "issued", "withheld"]);
        }
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let counters: Vec<(i64, i64, Option<i64>)> = self.pipe_unchecked(here, &read).await?;
        let left = counters.into_iter().map(|(total, issued, withheld)| total - issued - withheld.unwrap_or(0));
        Ok(ids.into_iter().zip(left).collect())
    }

    /// A page of the numeric members of a sorted set.
    pub(super) async fn page_of(
        &self,
        here: Partition,
        index: String,
        offset: usize,
        size: usize,
    ) -> Result<Vec<i64>, Error> {
        let mut read = redis::cmd("ZRANGE");
        read.arg(index).arg(offset).arg(offset + size - 1);
        self.query_unchecked(here, &read).await
    }
}

/// A buffer of commands for the partitions of a rebuild. It sends a partition's commands in pipelines of
/// [`PIPELINE_BATCH`], one at a time, while the caller prepares the next. It drops commands of other partitions: only their scripts
/// may write there.
pub struct Bulk<'s> {
    store: &'s Store,
    pending: BTreeMap<Partition, PendingCommands>,
    writing: Duration,
}

/// The commands of a partition that are not sent yet.
struct PendingCommands {
    pipe: redis::Pipeline,
    count: usize,
    /// The pipeline that is under way.
    sending: Option<AbortOnDropHandle<Result<(), Error>>>,
    /// The last decision of the partition.
    position: Position,
}

impl<'s> Bulk<'s> {
    /// `positions` are the last decisions of the rebuild's partitions.
    pub fn new(store: &'s Store, positions: impl IntoIterator<Item = (Partition, Position)>) -> Self {
        let pending =
            |(here, position)| (here, PendingCommands { pipe: redis::pipe(), count: 0, sending: None, position });
        Bulk { store, pending: positions.into_iter().map(pending).collect(), writing: Duration::ZERO }
    }

    /// The time that the caller waited for the commands so far.
    pub fn writing(&self) -> Duration {
        self.writing
    }

    async fn add(&mut self, here: Partition, command: redis::Cmd) -> Result<(), Error> {
        let Some(pending) = self.pending.get_mut(&here) else { return Ok(()) };
        pending.pipe.add_command(command).ignore();
        pending.count += 1;
        if pending.count < PIPELINE_BATCH {
            return Ok(());
        }
        let began = Instant::now();
        pending.send(self.store, here).await?;
        self.writing += began.elapsed();
        Ok(())
    }

    /// Sends the remaining commands, and waits until all are done.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn flush(&mut self) -> Result<(), Error> {
        let began = Instant::now();
        for (here, pending) in &mut self.pending {
            pending.send(self.store, *here).await?;
        }
        for pending in self.pending.values_mut() {
            pending.sent().await?;
        }
        self.writing += began.elapsed();
        Ok(())
    }

    /// Sets fields of a hash, except those that are `None`.
    ///
    /// # Errors
    /// [`Error::Unavailable`], as for all the following methods.
    pub async fn hash(
        &mut self,
        here: Partition,
        key: String,
        fields: &[(&str, Option<&(dyn Display + Sync)>)],
    ) -> Result<(), Error> {
        let mut set = redis::cmd("HSET");
        set.arg(key);
        for (field, value) in fields {
            if let Some(value) = value {
                set.arg(*field).arg(value.to_string());
            }
        }
        self.add(here, set).await
    }

    /// Sets one field of a hash.
    pub async fn field(
        &mut self,
        here: Partition,
        key: String,
        field: impl Display,
        value: impl Display,
    ) -> Result<(), Error> {
        self.add(here, redis::cmd("HSET").arg(key).arg(field.to_string()).arg(value.to_string()).to_owned()).await
    }

    /// Adds to one field of a hash.
    pub async fn count(&mut self, here: Partition, key: String, field: impl Display, delta: i64) -> Result<(), Error> {
        self.add(here, redis::cmd("HINCRBY").arg(key).arg(field.to_string()).arg(delta).to_owned()).await
    }

    /// Adds a member to a set.
    pub async fn member(&mut self, here: Partition, key: String, member: i64) -> Result<(), Error> {
        self.add(here, redis::cmd("SADD").arg(key).arg(member).to_owned()).await
    }

    /// Adds a member to a sorted set.
    pub async fn ranked(
        &mut self,
        here: Partition,
        key: String,
        member: impl Display,
        score: i64,
    ) -> Result<(), Error> {
        self.add(here, redis::cmd("ZADD").arg(key).arg(score).arg(member.to_string()).to_owned()).await
    }

    /// Removes a member from a sorted set.
    pub async fn unranked(&mut self, here: Partition, key: String, member: impl Display) -> Result<(), Error> {
        self.add(here, redis::cmd("ZREM").arg(key).arg(member.to_string()).to_owned()).await
    }

    /// Appends items to a list.
    pub async fn list(&mut self, here: Partition, key: String, items: &[&str]) -> Result<(), Error> {
        self.add(here, redis::cmd("RPUSH").arg(key).arg(items).to_owned()).await
    }

    /// Sets the lifetime of a key.
    pub async fn expire_after(&mut self, here: Partition, key: String, ttl_ms: i64) -> Result<(), Error> {
        self.add(here, redis::cmd("PEXPIRE").arg(key).arg(ttl_ms).to_owned()).await
    }

    /// Appends a decision of the rebuild itself to the outbox, with the partition's next seq.
    pub async fn emit(
        &mut self,
        here: Partition,
        at: Millis,
        kind: &str,
        fields: &[(&str, String)],
    ) -> Result<(), Error> {
        let Some(pending) = self.pending.get_mut(&here) else { return Ok(()) };
        pending.position.seq += 1;
        let Position { epoch, seq } = pending.position;
        let mut add = redis::cmd("XADD");
        add.arg(Keys(here).outbox()).arg("*").arg("v").arg(event::SINGLE).arg("kind").arg(kind);
        add.arg("epoch").arg(epoch).arg("seq").arg(seq).arg("at").arg(at.0).arg("rid").arg("rebuild");
        for (field, value) in fields {
            add.arg(*field).arg(value);
        }
        self.add(here, add).await?;
        self.field(here, Keys(here).meta(), "seq", seq).await
    }
}

impl PendingCommands {
    /// Sends the pipeline once the one before is done.
    async fn send(&mut self, store: &Store, here: Partition) -> Result<(), Error> {
        if self.count == 0 {
            return Ok(());
        }
        self.sent().await?;
        let (mut full, store) = (std::mem::replace(&mut self.pipe, redis::pipe()), store.clone());
        self.count = 0;
        // Redis flushes its append-only file once for a transaction, and otherwise for each 16 KB that it reads.
        full.atomic();
        let sending = async move { store.pipe_unchecked::<()>(here, &full).await };
        self.sending = Some(AbortOnDropHandle::new(tokio::spawn(sending)));
        Ok(())
    }

    /// Waits for the pipeline that is under way.
    async fn sent(&mut self) -> Result<(), Error> {
        match self.sending.take() {
            Some(sending) => sending.await.map_err(|error| Error::Internal(error.into()))?,
            None => Ok(()),
        }
    }
}
