//! What is read without a record of PostgreSQL to start from: the fixed keys, the members of indexes, and every key of a server.

use std::collections::{BTreeMap, HashMap, HashSet};

use chrono::NaiveDate;

use super::{HashFields, LossyText, ScoredTexts};
use crate::{
    model::{CouponId, Error, Millis, Partition, Word},
    redis::{
        Store,
        keys::{KeyKind, Keys},
        leases::ServingLease,
        outbox::{Entry, Relayed, StreamId},
        roll_call,
        settings::ServerInfo,
    },
};

/// The page size of a scan.
const SCAN_BATCH: usize = 1000;

/// The state of a partition, and what its processes say.
#[derive(Debug)]
pub struct FixedKeys {
    pub meta: HashFields,
    /// The words by process; `None` for one that is no word.
    pub words: Vec<(String, Option<Word>)>,
    /// The leases by process; `None` for one that is no lease.
    pub leases: Vec<(String, Option<ServingLease>)>,
    /// Whether the leases have members and do not expire.
    pub leases_stay: bool,
    /// Whether there are samples of requests that do not expire.
    pub samples_stay: bool,
    /// The last id of each sequence.
    pub ids: HashFields,
    /// The server's time.
    pub at: Millis,
}

impl FixedKeys {
    /// The mark in the partition's state. `Some(None)` for a text that is no mark.
    pub fn relayed(&self) -> Option<Option<Relayed>> {
        self.meta.get("relayed").map(|text| Relayed::parse(text).filter(|mark| mark.to_string() == *text))
    }
}

/// The ids in the keys of a scan, by kind of key.
#[derive(Debug, Default)]
pub struct Scanned {
    pub users: Vec<i64>,
    pub products: Vec<i64>,
    pub campaigns: Vec<i64>,
    pub orders: Vec<i64>,
    /// Users of other partitions, whose coupons are listed.
    pub remote_coupons: Vec<i64>,
    /// The digests of idempotency records.
    pub records: Vec<String>,
    pub categories: Vec<String>,
    /// The days of rankings.
    pub days: Vec<NaiveDate>,
    /// Keys that the service does not write.
    pub unknown: Vec<String>,
}

impl Store {
    /// Reads the state of a partition, and what its processes say, at one moment.
    ///
    /// # Errors
    /// [`Error::Unavailable`], as for all the following methods.
    pub async fn fixed_keys(&self, here: Partition) -> Result<FixedKeys, Error> {
        let keys = Keys(here);
        let mut read = redis::pipe();
        read.atomic();
        for hash in [keys.meta(), keys.instances(), keys.serving(), keys.ids()] {
            read.cmd("HGETALL").arg(hash);
        }
        for expiring in [keys.serving(), keys.requests()] {
            read.cmd("PTTL").arg(expiring);
        }
        read.cmd("TIME");
        type Hash = HashMap<LossyText, LossyText>;
        type Fixed = (HashFields, Hash, Hash, HashFields, i64, i64, (i64, i64));
        let (meta, words, leases, ids, ttl, samples_ttl, (seconds, microseconds)): Fixed =
            self.pipe_unchecked(here, &read).await?;
        let word = |(process, word): (LossyText, LossyText)| (process.0, roll_call::unpack_exactly(&word.0));
        let lease = |(process, lease): (LossyText, LossyText)| (process.0, serde_json::from_str(&lease.0).ok());
        Ok(FixedKeys {
            meta,
            leases_stay: !leases.is_empty() && ttl < 0,
            samples_stay: samples_ttl == -1,
            words: words.into_iter().map(word).collect(),
            leases: leases.into_iter().map(lease).collect(),
            ids,
            at: Millis(seconds * 1000 + microseconds / 1000),
        })
    }

    /// Those of these users, by campaign, whom the campaign's set of holders lacks: campaign and user.
    pub async fn missing_holders(&self, users: &BTreeMap<CouponId, Vec<i64>>) -> Result<Vec<(CouponId, i64)>, Error> {
        let mut by_partition: BTreeMap<Partition, Vec<(CouponId, &[i64])>> = BTreeMap::new();
        for (coupon, users) in users {
            by_partition.entry(self.owner(coupon.get())).or_default().push((*coupon, users));
        }
        let mut missing = Vec::new();
        for (here, campaigns) in by_partition {
            let mut read = redis::pipe();
            for (coupon, users) in &campaigns {
                read.cmd("SMISMEMBER").arg(Keys(here).holders(*coupon)).arg(*users);
            }
            let held: Vec<Vec<bool>> = self.pipe_unchecked(here, &read).await?;
            for ((coupon, users), held) in campaigns.iter().zip(held) {
                missing.extend(users.iter().zip(held).filter(|(_, held)| !held).map(|(user, _)| (*coupon, *user)));
            }
        }
        Ok(missing)
    }

    /// The first entry of the outbox.
    pub async fn first_outbox_entry(&self, here: Partition) -> Result<Option<StreamId>, Error> {
        let mut read = redis::cmd("XRANGE");
        read.arg(Keys(here).outbox()).arg("-").arg("+").arg("COUNT").arg(1);
        let first: Vec<Entry> = self.query_unchecked(here, &read).await?;
        Ok(first.first().map(|entry| entry.id))
    }

    /// A page of the members of a sorted set, with their scores.
    pub async fn scored_page(
        &self,
        here: Partition,
        set: &KeyKind,
        offset: usize,
        size: usize,
    ) -> Result<Vec<(String, f64)>, Error> {
        let mut read = redis::cmd("ZRANGE");
        read.arg(Keys(here).of(set)).arg(offset).arg(offset + size - 1).arg("WITHSCORES");
        let ScoredTexts(members) = self.query_unchecked(here, &read).await?;
        Ok(members)
    }

    /// A page of the fields of a hash with their values, and the next cursor, which is `None` after the last page.
    pub async fn field_page(
        &self,
        here: Partition,
        hash: &KeyKind,
        cursor: &str,
    ) -> Result<(Vec<(String, String)>, Option<String>), Error> {
        let mut scan = redis::cmd("HSCAN");
        scan.arg(Keys(here).of(hash)).arg(cursor).arg("COUNT").arg(SCAN_BATCH);
        let (next, page): (String, Vec<(LossyText, LossyText)>) = self.query_unchecked(here, &scan).await?;
        Ok((page.into_iter().map(|(field, value)| (field.0, value.0)).collect(), Some(next).filter(|next| next != "0")))
    }

    /// Whether a ranking of a day is there and does not expire.
    pub async fn ranks_stay(&self, here: Partition, day: NaiveDate) -> Result<bool, Error> {
        let mut read = redis::pipe();
        for set in [Keys(here).rank_units(day), Keys(here).rank_won(day)] {
            read.cmd("PTTL").arg(set);
        }
        let ttls: Vec<i64> = self.pipe_unchecked(here, &read).await?;
        Ok(ttls.contains(&-1))
    }

    /// The first entry of the outbox, and up to `count` entries after `after`, at one moment.
    pub async fn outbox_from_first(
        &self,
        here: Partition,
        after: StreamId,
        count: usize,
    ) -> Result<(Option<StreamId>, Vec<Entry>), Error> {
        let outbox = Keys(here).outbox();
        let mut read = redis::pipe();
        read.atomic();
        read.cmd("XRANGE").arg(&outbox).arg("-").arg("+").arg("COUNT").arg(1);
        read.cmd("XRANGE").arg(&outbox).arg(format!("({after}")).arg("+").arg("COUNT").arg(count);
        let (first, entries): (Vec<Entry>, Vec<Entry>) = self.pipe_unchecked(here, &read).await?;
        Ok((first.first().map(|entry| entry.id), entries))
    }

    /// The first entry of the outbox, and the entries of these ids that it has, at one moment.
    pub async fn outbox_entries(
        &self,
        here: Partition,
        ids: &[StreamId],
    ) -> Result<(Option<StreamId>, Vec<Entry>), Error> {
        let outbox = Keys(here).outbox();
        let mut read = redis::pipe();
        read.atomic();
        read.cmd("XRANGE").arg(&outbox).arg("-").arg("+").arg("COUNT").arg(1);
        for id in ids {
            read.cmd("XRANGE").arg(&outbox).arg(id.to_string()).arg(id.to_string());
        }
        let mut entries: Vec<Vec<Entry>> = self.pipe_unchecked(here, &read).await?;
        let first = entries.remove(0);
        Ok((first.first().map(|entry| entry.id), entries.into_iter().flatten().collect()))
    }

    /// One partition on each server.
    pub async fn servers(&self) -> Result<Vec<Partition>, Error> {
        let (mut seen, mut servers) = (HashSet::new(), Vec::new());
        for here in self.all() {
            let mut read = redis::cmd("INFO");
            read.arg("server");
            let info: String = self.query_unchecked(here, &read).await?;
            if seen.insert(ServerInfo::read(&info).run_id) {
                servers.push(here);
            }
        }
        Ok(servers)
    }

    /// The number of keys on all servers, others' included.
    pub async fn count_keys(&self) -> Result<i64, Error> {
        let mut keys = 0;
        for server in self.servers().await? {
            let info: String = self.query_unchecked(server, redis::cmd("INFO").arg("keyspace")).await?;
            let counts = info.lines().filter_map(|line| line.split_once(":keys=")?.1.split(',').next());
            keys += counts.filter_map(|count| count.parse::<i64>().ok()).sum::<i64>();
        }
        Ok(keys)
    }

    /// A page of the service's keys on a server, and the next cursor, which is `None` after the last page. A key that exists
    /// during the whole scan is in at least one page.
    pub async fn scan_page(&self, server: Partition, cursor: &str) -> Result<(Vec<String>, Option<String>), Error> {
        let mut scan = redis::cmd("SCAN");
        scan.arg(cursor).arg("MATCH").arg("{p*}:*").arg("COUNT").arg(SCAN_BATCH);
        let (next, page): (String, Vec<LossyText>) = self.query_unchecked(server, &scan).await?;
        Ok((page.into_iter().map(|key| key.0).collect(), Some(next).filter(|next| next != "0")))
    }
}

/// Sorts the keys of a page by partition and kind. Keys of partitions that the store does not have are unknown.
pub fn sort_keys(page: &[String], partitions: u16) -> BTreeMap<u16, Scanned> {
    let mut sorted: BTreeMap<u16, Scanned> = BTreeMap::new();
    for key in page {
        let Some((here, kind)) = Keys::parse(key).filter(|(here, _)| here.0 < partitions) else {
            // Claims of idempotency keys by an earlier version, which expire.
            if !key.contains("}:claim:") {
                sorted.entry(0).or_default().unknown.push(key.clone());
            }
            continue;
        };
        let scanned = sorted.entry(here.0).or_default();
        match kind {
            KeyKind::User(id) => scanned.users.push(id.get()),
            KeyKind::Product(id) => scanned.products.push(id.get()),
            KeyKind::Campaign(id) | KeyKind::Holders(id) => scanned.campaigns.push(id.get()),
            KeyKind::Order(id) => scanned.orders.push(id.get()),
            KeyKind::Issued(id) => scanned.remote_coupons.push(id.get()),
            KeyKind::Record(digest) => scanned.records.push(digest),
            KeyKind::Category(category) => scanned.categories.push(category),
            KeyKind::RankUnits(day) | KeyKind::RankWon(day) => scanned.days.push(day),
            KeyKind::Meta
            | KeyKind::Instances
            | KeyKind::Serving
            | KeyKind::Requests
            | KeyKind::Outbox
            | KeyKind::Ids
            | KeyKind::Campaigns
            | KeyKind::Catalogue
            | KeyKind::Price
            | KeyKind::Stock
            | KeyKind::Held
            | KeyKind::Sold
            | KeyKind::Withheld
            | KeyKind::Quarantined
            | KeyKind::Expiry
            | KeyKind::Gateway
            | KeyKind::Allotted
            | KeyKind::Regained
            | KeyKind::Recovered
            | KeyKind::Received
            | KeyKind::Returned
            | KeyKind::Surrendered
            | KeyKind::Freed
            | KeyKind::PriceVersion
            | KeyKind::LimitGroups => {}
        }
    }
    sorted
}
