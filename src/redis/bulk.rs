//! Writing a store back, key by key: what a rebuild does while every partition is frozen and nobody else writes.
//!
//! Nothing here is atomic, and nothing needs to be: a partition is marked `rebuilding` from before its first key goes to
//! after its last is back, and one that is found so marked is rebuilt again from the beginning.

use std::fmt::Display;

use super::{LAYOUT, Store, keys::Keys, outbox::StreamId};
use crate::model::{Error, Identity, Millis, Partition, Position, event};

/// Commands sent at once.
const PIPELINE_BATCH: usize = 1000;

/// What a partition's `meta` says, as far as it says anything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PartitionState {
    pub store: Option<String>,
    pub position: Option<Position>,
    pub frozen: Option<String>,
    pub rebuilding: bool,
}

impl Store {
    /// A partition's books, whatever they say.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn partition_state(&self, here: Partition) -> Result<PartitionState, Error> {
        let mut read = redis::cmd("HMGET");
        read.arg(Keys(here).meta()).arg(&["store", "epoch", "seq", "frozen", "rebuilding"]);
        type Fields = (Option<String>, Option<i64>, Option<i64>, Option<String>, Option<String>);
        let (store, epoch, seq, frozen, rebuilding): Fields = self.query_unchecked(here, &read).await?;
        let position = epoch.zip(seq).map(|(epoch, seq)| Position { epoch, seq });
        Ok(PartitionState { store, position, frozen, rebuilding: rebuilding.is_some() })
    }

    /// Stops a partition from deciding, for `reason`; books that are not there are opened, frozen, at `position`.
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

    /// Gives another reason why a partition is frozen.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn keep_closed(&self, here: Partition, reason: &str) -> Result<(), Error> {
        let mut shut = redis::cmd("HSET");
        shut.arg(Keys(here).meta()).arg("frozen").arg(reason);
        self.query_unchecked::<i64>(here, &shut).await.map(drop)
    }

    /// Lets a partition decide again.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn reopen(&self, here: Partition) -> Result<(), Error> {
        let mut open = redis::cmd("HDEL");
        open.arg(Keys(here).meta()).arg(&["frozen", "rebuilding"]);
        self.query_unchecked::<i64>(here, &open).await.map(drop)
    }

    /// Marks what is in a partition as not worth keeping, and from where it will go on.
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

    /// Entries of the outbox beyond a position of Postgres: how many, and how far they go.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn unprojected(&self, here: Partition, projected: Position) -> Result<(usize, Position), Error> {
        let (mut count, mut last, mut highest) = (0, StreamId::ZERO, projected);
        loop {
            let page = self.outbox_page(here, last, PIPELINE_BATCH).await?;
            let Some(end) = page.last() else { return Ok((count, highest)) };
            last = end.id;
            for decoded in page.iter().flat_map(|entry| event::decode(&entry.fields)) {
                let position = decoded.position.map(|(epoch, seq)| Position { epoch, seq });
                if position.is_none_or(|position| position > projected) {
                    count += 1;
                }
                highest = highest.max(position.unwrap_or_default());
            }
        }
    }

    /// Removes every key of every partition but the books.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn empty(&self) -> Result<u64, Error> {
        let mut gone = 0;
        for server in self.servers().await? {
            let mut cursor = Some("0".to_owned());
            while let Some(from) = cursor {
                let (page, next) = self.scan_page(server, &from).await?;
                for of in self.all() {
                    let (tag, meta) = (format!("{{p{}}}:", of.0), Keys(of).meta());
                    let mine: Vec<&String> = page.iter().filter(|key| key.starts_with(&tag) && **key != meta).collect();
                    if !mine.is_empty() {
                        let mut unlink = redis::cmd("UNLINK");
                        unlink.arg(&mine);
                        gone += self.query_unchecked::<u64>(of, &unlink).await?;
                    }
                }
                cursor = next;
            }
        }
        Ok(gone)
    }

    /// A page of a partition's products by id, each with its units on sale.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn stock_page(&self, here: Partition, offset: usize, size: usize) -> Result<Vec<(i64, i64)>, Error> {
        let ids = self.page_of(here, Keys(here).catalogue(), offset, size).await?;
        let stock = self.stock_of(here, &ids).await?;
        Ok(ids.into_iter().zip(stock).collect())
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

    /// A page of a partition's campaigns by id, each with what is neither issued nor withheld.
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

/// Commands for all partitions, sent when there are enough of them.
pub struct Bulk<'s> {
    store: &'s Store,
    pending: Vec<(redis::Pipeline, usize)>,
    /// Each partition's last decision.
    positions: Vec<Position>,
}

impl<'s> Bulk<'s> {
    /// `positions`: each partition's last decision up to here, by partition.
    pub fn new(store: &'s Store, positions: Vec<Position>) -> Self {
        Bulk { store, pending: store.all().map(|_| (redis::pipe(), 0)).collect(), positions }
    }

    async fn add(&mut self, here: Partition, command: redis::Cmd) -> Result<(), Error> {
        let (pipe, count) = &mut self.pending[usize::from(here.0)];
        pipe.add_command(command).ignore();
        *count += 1;
        if *count >= PIPELINE_BATCH { self.flush_one(here).await } else { Ok(()) }
    }

    async fn flush_one(&mut self, here: Partition) -> Result<(), Error> {
        let (pipe, count) = &mut self.pending[usize::from(here.0)];
        if *count == 0 {
            return Ok(());
        }
        let full = std::mem::replace(pipe, redis::pipe());
        *count = 0;
        self.store.pipe_unchecked::<()>(here, &full).await
    }

    /// Sends what is left.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn flush(&mut self) -> Result<(), Error> {
        for here in self.store.all() {
            self.flush_one(here).await?;
        }
        Ok(())
    }

    /// Sets fields of a hash; those that are `None` are left out.
    ///
    /// # Errors
    /// As [`Bulk::flush`]; so all the following.
    pub async fn hash(
        &mut self,
        here: Partition,
        key: String,
        fields: &[(&str, Option<&dyn Display>)],
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

    /// Puts a member into a set.
    pub async fn member(&mut self, here: Partition, key: String, member: i64) -> Result<(), Error> {
        self.add(here, redis::cmd("SADD").arg(key).arg(member).to_owned()).await
    }

    /// Puts a member into a sorted set.
    pub async fn ranked(
        &mut self,
        here: Partition,
        key: String,
        member: impl Display,
        score: i64,
    ) -> Result<(), Error> {
        self.add(here, redis::cmd("ZADD").arg(key).arg(score).arg(member.to_string()).to_owned()).await
    }

    /// Takes a member out of a sorted set.
    pub async fn unranked(&mut self, here: Partition, key: String, member: impl Display) -> Result<(), Error> {
        self.add(here, redis::cmd("ZREM").arg(key).arg(member.to_string()).to_owned()).await
    }

    /// Writes a list.
    pub async fn list(&mut self, here: Partition, key: String, items: &[&str]) -> Result<(), Error> {
        self.add(here, redis::cmd("RPUSH").arg(key).arg(items).to_owned()).await
    }

    /// Lets a key live this long from now.
    pub async fn expire_after(&mut self, here: Partition, key: String, life_ms: i64) -> Result<(), Error> {
        self.add(here, redis::cmd("PEXPIRE").arg(key).arg(life_ms).to_owned()).await
    }

    /// Writes a decision of the rebuild itself into the outbox, under the partition's next number.
    pub async fn emit(
        &mut self,
        here: Partition,
        at: Millis,
        kind: &str,
        fields: &[(&str, String)],
    ) -> Result<(), Error> {
        let position = &mut self.positions[usize::from(here.0)];
        position.seq += 1;
        let Position { epoch, seq } = *position;
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
