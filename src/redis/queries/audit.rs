//! Reads for the audit: records with everything that belongs to them, and the decisions that PostgreSQL does not have yet, at
//! one moment (one `MULTI`). Works on a closed partition too.

use std::collections::{BTreeMap, HashMap, HashSet};

use anyhow::anyhow;
use chrono::NaiveDate;
use redis::{FromRedisValue, Value};

use super::ranking::Scores;
use crate::{
    model::{Error, Partition, Position, *},
    redis::{
        Store,
        keys::Keys,
        outbox::{Entry, StreamId},
        records::take_coupons,
        settings::ServerInfo,
    },
};

/// The page size of a scan.
const SCAN_BATCH: usize = 1000;

/// The fields of a hash.
pub type HashFields = HashMap<String, String>;

/// Records of one partition at one moment.
#[derive(Debug)]
pub struct Inspected<T> {
    /// The partition's last decision; `None` if the partition has no state.
    pub position: Option<Position>,
    /// The entries of the outbox after the given one.
    pub entries: Vec<Entry>,
    pub records: Vec<T>,
}

/// A user. The fields are empty if the user does not exist.
#[derive(Debug, Default)]
pub struct UserSeen {
    pub fields: HashFields,
    /// The coupon records by campaign, as the scripts write them.
    pub coupons: HashMap<i64, String>,
}

/// A product.
#[derive(Debug, Default)]
pub struct ProductSeen {
    pub fields: HashFields,
    pub price: Option<i64>,
    pub on_sale: Option<i64>,
    pub held: i64,
    pub sold: i64,
    pub withheld: i64,
    /// Whether the catalog has it.
    pub listed: bool,
}

/// A campaign.
#[derive(Debug, Default)]
pub struct CampaignSeen {
    pub fields: HashFields,
    pub holders: i64,
    pub listed: bool,
}

/// An order.
#[derive(Debug, Default)]
pub struct OrderSeen {
    pub fields: HashFields,
    /// Whether the expiry index has it.
    pub expires: bool,
    /// Whether the index of gateway payments has it.
    pub watched: bool,
    /// Whether its key expires.
    pub leaves: bool,
}

/// A remote hold.
#[derive(Debug, Default)]
pub struct HoldSeen {
    pub fields: HashFields,
    /// Whether the index of remote holds has it.
    pub due: bool,
    /// Whether its key expires.
    pub leaves: bool,
}

/// The rankings of one day: units and won by product.
#[derive(Debug, Default)]
pub struct RanksSeen {
    pub units: BTreeMap<i64, i64>,
    pub won: BTreeMap<i64, i64>,
}

/// The ids in the keys of a scan, by kind of key.
#[derive(Debug, Default)]
pub struct Scanned {
    pub users: Vec<i64>,
    pub products: Vec<i64>,
    pub campaigns: Vec<i64>,
    pub orders: Vec<i64>,
    pub holds: Vec<i64>,
    /// Keys that the service does not write.
    pub unknown: Vec<String>,
}

struct Replies(std::vec::IntoIter<Value>);

impl Replies {
    fn next<T: FromRedisValue>(&mut self) -> Result<T, Error> {
        let value = self.0.next().unwrap_or(Value::Nil);
        T::from_redis_value(value)
            .map_err(|error| Error::Internal(anyhow!("a value in Redis has an unexpected type: {error}")))
    }
}

impl Store {
    /// Reads the position, up to `max` entries of the outbox after `after`, and the replies to the commands of `add_reads`, at
    /// one moment.
    async fn at_one_moment(
        &self,
        here: Partition,
        (after, max): (StreamId, usize),
        add_reads: impl FnOnce(&mut redis::Pipeline),
    ) -> Result<(Option<Position>, Vec<Entry>, Replies), Error> {
        let mut read = redis::pipe();
        read.atomic();
        read.cmd("HMGET").arg(Keys(here).meta()).arg(&["epoch", "seq"]);
        read.cmd("XRANGE").arg(Keys(here).outbox()).arg(format!("({after}")).arg("+").arg("COUNT").arg(max);
        add_reads(&mut read);
        let replies: Vec<Value> = self.pipe_unchecked(here, &read).await?;
        let mut replies = Replies(replies.into_iter());
        let (epoch, seq): (Option<i64>, Option<i64>) = replies.next()?;
        let entries: Vec<Entry> = replies.next()?;
        Ok((epoch.zip(seq).map(|(epoch, seq)| Position { epoch, seq }), entries, replies))
    }

    /// Reads users.
    ///
    /// # Errors
    /// [`Error::Unavailable`], as for all the following methods.
    pub async fn inspect_users(
        &self,
        here: Partition,
        outbox: (StreamId, usize),
        ids: &[i64],
    ) -> Result<Inspected<UserSeen>, Error> {
        let users: Vec<UserId> = ids.iter().filter_map(|id| UserId::new(*id)).collect();
        let reads = |read: &mut redis::Pipeline| {
            for user in &users {
                read.cmd("HGETALL").arg(Keys(here).user(*user));
            }
        };
        let (position, entries, mut replies) = self.at_one_moment(here, outbox, reads).await?;
        let records = users.iter().map(|_| {
            let mut fields: HashMap<String, String> = replies.next()?;
            let coupons = take_coupons(&mut fields);
            Ok(UserSeen { fields, coupons })
        });
        Ok(Inspected { position, entries, records: records.collect::<Result<_, Error>>()? })
    }

    /// Reads products.
    pub async fn inspect_products(
        &self,
        here: Partition,
        outbox: (StreamId, usize),
        ids: &[i64],
    ) -> Result<Inspected<ProductSeen>, Error> {
        let keys = Keys(here);
        let products: Vec<ProductId> = ids.iter().filter_map(|id| ProductId::new(*id)).collect();
        let reads = |read: &mut redis::Pipeline| {
            for product in &products {
                read.cmd("HGETALL").arg(keys.product(*product));
                for counters in [keys.price(), keys.stock(), keys.held(), keys.sold(), keys.withheld()] {
                    read.cmd("HGET").arg(counters).arg(product.get());
                }
                read.cmd("ZSCORE").arg(keys.catalogue()).arg(product.get());
            }
        };
        let (position, entries, mut replies) = self.at_one_moment(here, outbox, reads).await?;
        let records = products.iter().map(|_| {
            Ok(ProductSeen {
                fields: replies.next()?,
                price: replies.next()?,
                on_sale: replies.next()?,
                held: replies.next::<Option<i64>>()?.unwrap_or(0),
                sold: replies.next::<Option<i64>>()?.unwrap_or(0),
                withheld: replies.next::<Option<i64>>()?.unwrap_or(0),
                listed: replies.next::<Option<f64>>()?.is_some(),
            })
        });
        Ok(Inspected { position, entries, records: records.collect::<Result<_, Error>>()? })
    }

    /// Reads campaigns.
    pub async fn inspect_campaigns(
        &self,
        here: Partition,
        outbox: (StreamId, usize),
        ids: &[i64],
    ) -> Result<Inspected<CampaignSeen>, Error> {
        let campaigns: Vec<CouponId> = ids.iter().filter_map(|id| CouponId::new(*id)).collect();
        let reads = |read: &mut redis::Pipeline| {
            for campaign in &campaigns {
                read.cmd("HGETALL").arg(Keys(here).campaign(*campaign));
                read.cmd("SCARD").arg(Keys(here).holders(*campaign));
                read.cmd("ZSCORE").arg(Keys(here).campaigns()).arg(campaign.get());
            }
        };
        let (position, entries, mut replies) = self.at_one_moment(here, outbox, reads).await?;
        let records = campaigns.iter().map(|_| {
            let (fields, holders) = (replies.next()?, replies.next()?);
            Ok(CampaignSeen { fields, holders, listed: replies.next::<Option<f64>>()?.is_some() })
        });
        Ok(Inspected { position, entries, records: records.collect::<Result<_, Error>>()? })
    }

    /// Reads orders.
    pub async fn inspect_orders(
        &self,
        here: Partition,
        outbox: (StreamId, usize),
        ids: &[i64],
    ) -> Result<Inspected<OrderSeen>, Error> {
        let orders: Vec<OrderId> = ids.iter().filter_map(|id| OrderId::new(*id)).collect();
        let reads = |read: &mut redis::Pipeline| {
            for order in &orders {
                read.cmd("HGETALL").arg(Keys(here).order(*order));
                read.cmd("ZSCORE").arg(Keys(here).expiry()).arg(order.get());
                read.cmd("ZSCORE").arg(Keys(here).gateway()).arg(order.get());
                read.cmd("PTTL").arg(Keys(here).order(*order));
            }
        };
        let (position, entries, mut replies) = self.at_one_moment(here, outbox, reads).await?;
        let records = orders.iter().map(|_| {
            let (fields, expires) = (replies.next()?, replies.next::<Option<f64>>()?.is_some());
            let watched = replies.next::<Option<f64>>()?.is_some();
            Ok(OrderSeen { fields, expires, watched, leaves: replies.next::<i64>()? >= 0 })
        });
        Ok(Inspected { position, entries, records: records.collect::<Result<_, Error>>()? })
    }

    /// Reads the remote holds of these orders, each with its user.
    pub async fn inspect_holds(
        &self,
        here: Partition,
        outbox: (StreamId, usize),
        ids: &[(i64, i64)],
    ) -> Result<Inspected<HoldSeen>, Error> {
        let orders: Vec<(OrderId, i64)> =
            ids.iter().filter_map(|(order, user)| Some((OrderId::new(*order)?, *user))).collect();
        let reads = |read: &mut redis::Pipeline| {
            for (order, user) in &orders {
                read.cmd("HGETALL").arg(Keys(here).hold(*order));
                read.cmd("ZSCORE").arg(Keys(here).holds()).arg(format!("{order}:{user}"));
                read.cmd("PTTL").arg(Keys(here).hold(*order));
            }
        };
        let (position, entries, mut replies) = self.at_one_moment(here, outbox, reads).await?;
        let records = orders.iter().map(|_| {
            let (fields, due) = (replies.next()?, replies.next::<Option<f64>>()?.is_some());
            Ok(HoldSeen { fields, due, leaves: replies.next::<i64>()? >= 0 })
        });
        Ok(Inspected { position, entries, records: records.collect::<Result<_, Error>>()? })
    }

    /// Reads the rankings of these days.
    pub async fn inspect_ranks(
        &self,
        here: Partition,
        outbox: (StreamId, usize),
        days: &[NaiveDate],
    ) -> Result<Inspected<RanksSeen>, Error> {
        let reads = |read: &mut redis::Pipeline| {
            for day in days {
                for set in [Keys(here).rank_units(*day), Keys(here).rank_won(*day)] {
                    read.cmd("ZRANGE").arg(set).arg(0).arg(-1).arg("WITHSCORES");
                }
            }
        };
        let (position, entries, mut replies) = self.at_one_moment(here, outbox, reads).await?;
        let mut scores = || -> Result<BTreeMap<i64, i64>, Error> {
            let Scores(scores) = replies.next()?;
            Ok(scores.into_iter().map(|(product, score)| (product, score as i64)).collect())
        };
        let records = days.iter().map(|_| Ok(RanksSeen { units: scores()?, won: scores()? }));
        Ok(Inspected { position, entries, records: records.collect::<Result<_, Error>>()? })
    }

    /// For each of these users, whether the campaign's set of holders has the user.
    pub async fn are_holders(&self, coupon: CouponId, users: &[i64]) -> Result<Vec<bool>, Error> {
        if users.is_empty() {
            return Ok(Vec::new());
        }
        let here = self.owner(coupon.get());
        let mut read = redis::cmd("SMISMEMBER");
        read.arg(Keys(here).holders(coupon)).arg(users);
        self.query_unchecked(here, &read).await
    }

    /// The size of the expiry index, or with `gateway` of the index of gateway payments.
    pub async fn index_size(&self, here: Partition, gateway: bool) -> Result<usize, Error> {
        let mut count = redis::cmd("ZCARD");
        count.arg(if gateway { Keys(here).gateway() } else { Keys(here).expiry() });
        self.query_unchecked(here, &count).await
    }

    /// A page of the expiry index, or with `gateway` of the index of gateway payments.
    pub async fn index_page(
        &self,
        here: Partition,
        gateway: bool,
        offset: usize,
        size: usize,
    ) -> Result<Vec<i64>, Error> {
        let index = if gateway { Keys(here).gateway() } else { Keys(here).expiry() };
        self.page_of(here, index, offset, size).await
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

    /// A page of the service's keys on a server, and the next cursor, which is `None` after the last page. A key that exists
    /// during the whole scan is in at least one page.
    pub async fn scan_page(&self, server: Partition, cursor: &str) -> Result<(Vec<String>, Option<String>), Error> {
        let mut scan = redis::cmd("SCAN");
        scan.arg(cursor).arg("MATCH").arg("{p*}:*").arg("COUNT").arg(SCAN_BATCH);
        let (next, page): (String, Vec<String>) = self.query_unchecked(server, &scan).await?;
        Ok((page, Some(next).filter(|next| next != "0")))
    }
}

/// Sorts the keys of a page by partition and kind.
pub fn sort_keys(page: &[String]) -> BTreeMap<u16, Scanned> {
    let mut sorted: BTreeMap<u16, Scanned> = BTreeMap::new();
    for key in page {
        let Some((partition, rest)) = key.strip_prefix("{p").and_then(|key| key.split_once("}:")) else { continue };
        let Ok(partition) = partition.parse() else { continue };
        let scanned = sorted.entry(partition).or_default();
        let parts: Vec<&str> = rest.split(':').collect();
        let numbers = match parts.as_slice() {
            ["user", id] | ["user", id, "coupons"] => Some((&mut scanned.users, id)),
            ["product", id] => Some((&mut scanned.products, id)),
            ["coupon", id] | ["coupon", id, "holders"] => Some((&mut scanned.campaigns, id)),
            ["order", id] => Some((&mut scanned.orders, id)),
            ["hold", id] => Some((&mut scanned.holds, id)),
            [
                "meta" | "outbox" | "ids" | "coupons" | "catalogue" | "price" | "stock" | "held" | "sold" | "withheld"
                | "serving" | "instances",
            ]
            | ["expiry" | "gateway" | "holds"]
            | ["idem" | "claim" | "catalogue", _]
            | ["rank", "units" | "won", _] => continue,
            _ => None,
        };
        match numbers.and_then(|(ids, id)| Some((ids, id.parse().ok().filter(|id| *id > 0)?))) {
            Some((ids, id)) => ids.push(id),
            None => scanned.unknown.push(key.clone()),
        }
    }
    sorted
}
