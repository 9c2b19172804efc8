//! Records with everything that belongs to them.

use std::collections::HashMap;

use chrono::NaiveDate;

use super::{HashFields, Inspected, LossyText, Replies, ScoredTexts};
use crate::{
    model::{CouponId, Error, OrderId, Partition, ProductId, UserId},
    redis::{Store, commands::GROUPS_IN, keys::Keys, outbox::StreamId},
};

/// A user. The fields are empty if the user does not exist.
#[derive(Debug, Default)]
pub struct UserSeen {
    /// Those that are neither coupons nor of limits.
    pub fields: HashFields,
    /// The coupon records by campaign, as the scripts write them.
    pub coupons: HashMap<i64, String>,
    /// What the user has of limits.
    pub limits: HashFields,
}

/// A product.
#[derive(Debug, Default)]
pub struct ProductSeen {
    pub fields: HashFields,
    /// Its fields in `price`, `stock`, `held`, `sold`, `withheld`, `quarantined` and `price_version`.
    pub counters: [Option<String>; 7],
    /// For each partition the units that its own partition gave to it, took back, and took back withheld.
    pub given: Vec<[Option<String>; 3]>,
    /// Its score in the catalogue, and in the category that the caller names.
    pub listed: Option<f64>,
    pub listed_in_category: Option<f64>,
}

/// A campaign.
#[derive(Debug, Default)]
pub struct CampaignSeen {
    pub fields: HashFields,
    pub holders: i64,
    /// Its score among the campaigns.
    pub listed: Option<f64>,
}

/// An order.
#[derive(Debug, Default)]
pub struct OrderSeen {
    pub fields: HashFields,
    /// Its score in the expiry index.
    pub expires: Option<f64>,
    /// Its score in the index of gateway payments.
    pub watched: Option<f64>,
    /// Whether its key expires.
    pub leaves: bool,
}

/// The rankings of one day: product ids with units, and with won.
#[derive(Debug, Default)]
pub struct RanksSeen {
    pub units: Vec<(String, f64)>,
    pub won: Vec<(String, f64)>,
    /// Whether one of the two has members and does not expire.
    pub stays: bool,
}

/// An idempotency record; empty if there is none.
#[derive(Debug, Default)]
pub struct RecordSeen {
    pub items: Vec<String>,
    /// The rest of its life; negative if it does not expire.
    pub ttl_ms: i64,
}

fn texts_of<const N: usize>(replies: &mut Replies) -> Result<[Option<String>; N], Error> {
    let mut texts = [const { None }; N];
    for text in &mut texts {
        *text = replies.text()?;
    }
    Ok(texts)
}

fn leaves(replies: &mut Replies) -> Result<bool, Error> {
    Ok(replies.next::<i64>()? >= 0)
}

impl Store {
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
        let seen = |replies: &mut Replies| {
            let user = |_| {
                let mut fields = replies.hash()?;
                let is_coupon = |name: &str| {
                    name.starts_with(|first: char| first.is_ascii_digit())
                        && name.parse::<i64>().is_ok_and(|id| id > 0 && id.to_string() == name)
                };
                let coupons = fields.take(is_coupon).into_iter();
                let coupons = coupons.filter_map(|(id, record)| Some((id.parse().ok()?, record))).collect();
                let is_of_limit = |name: &str| name.starts_with("limit:") || name.starts_with("group:");
                let limits = fields.take(is_of_limit).into_iter().collect();
                Ok(UserSeen { fields, coupons, limits })
            };
            users.iter().map(user).collect()
        };
        self.at_one_moment(here, outbox, reads, seen).await
    }

    /// Reads products, and whether each is listed in the category beside its id.
    pub async fn inspect_products(
        &self,
        here: Partition,
        outbox: (StreamId, usize),
        ids: &[(i64, String)],
    ) -> Result<Inspected<ProductSeen>, Error> {
        let keys = Keys(here);
        let products: Vec<(ProductId, &str)> =
            ids.iter().filter_map(|(id, category)| Some((ProductId::new(*id)?, category.as_str()))).collect();
        let reads = |read: &mut redis::Pipeline| {
            for (product, category) in &products {
                read.cmd("HGETALL").arg(keys.product(*product));
                for counters in [
                    keys.price(),
                    keys.stock(),
                    keys.held(),
                    keys.sold(),
                    keys.withheld(),
                    keys.quarantined(),
                    keys.price_version(),
                ] {
                    read.cmd("HGET").arg(counters).arg(product.get());
                }
                for other in self.all() {
                    for counters in [keys.allotted(), keys.regained(), keys.recovered()] {
                        read.cmd("HGET").arg(counters).arg(format!("{product}:{}", other.0));
                    }
                }
                for set in [keys.catalogue(), keys.category(category)] {
                    read.cmd("ZSCORE").arg(set).arg(product.get());
                }
            }
        };
        let seen = |replies: &mut Replies| {
            let product = |_| {
                let fields = replies.hash()?;
                let counters = texts_of(replies)?;
                let given = self.all().map(|_| texts_of(replies)).collect::<Result<_, Error>>()?;
                let (listed, listed_in_category) = (replies.next()?, replies.next()?);
                Ok(ProductSeen { fields, counters, given, listed, listed_in_category })
            };
            products.iter().map(product).collect()
        };
        self.at_one_moment(here, outbox, reads, seen).await
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
        let seen = |replies: &mut Replies| {
            let campaign =
                |_| Ok(CampaignSeen { fields: replies.hash()?, holders: replies.next()?, listed: replies.next()? });
            campaigns.iter().map(campaign).collect()
        };
        self.at_one_moment(here, outbox, reads, seen).await
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
        let seen = |replies: &mut Replies| {
            let order = |_| {
                let (fields, expires, watched) = (replies.hash()?, replies.next()?, replies.next()?);
                Ok(OrderSeen { fields, expires, watched, leaves: leaves(replies)? })
            };
            orders.iter().map(order).collect()
        };
        self.at_one_moment(here, outbox, reads, seen).await
    }

    /// Reads what a partition has of these products of others: on sale, held, sold, withheld, quarantined, received, given back, and withheld units given
    /// back.
    pub async fn inspect_partition_stock(
        &self,
        here: Partition,
        outbox: (StreamId, usize),
        ids: &[i64],
    ) -> Result<Inspected<[Option<String>; 8]>, Error> {
        let keys = Keys(here);
        let counters = [
            keys.stock(),
            keys.held(),
            keys.sold(),
            keys.withheld(),
            keys.quarantined(),
            keys.received(),
            keys.returned(),
            keys.surrendered(),
        ];
        let reads = |read: &mut redis::Pipeline| {
            for id in ids {
                for counter in &counters {
                    read.cmd("HGET").arg(counter).arg(id);
                }
            }
        };
        let seen = |replies: &mut Replies| ids.iter().map(|_| texts_of(replies)).collect();
        self.at_one_moment(here, outbox, reads, seen).await
    }

    /// Reads the coupons that campaigns of a partition issued to these users of other ones.
    pub async fn inspect_remote_coupons(
        &self,
        here: Partition,
        outbox: (StreamId, usize),
        ids: &[i64],
    ) -> Result<Inspected<HashFields>, Error> {
        let users: Vec<UserId> = ids.iter().filter_map(|id| UserId::new(*id)).collect();
        let reads = |read: &mut redis::Pipeline| {
            for user in &users {
                read.cmd("HGETALL").arg(Keys(here).issued(*user));
            }
        };
        let seen = |replies: &mut Replies| users.iter().map(|_| replies.hash()).collect();
        self.at_one_moment(here, outbox, reads, seen).await
    }

    /// The prices that a partition has of these products, each with its number.
    pub async fn prices_of(&self, here: Partition, ids: &[i64]) -> Result<Vec<(String, String)>, Error> {
        let mut read = redis::pipe();
        for hash in [Keys(here).price(), Keys(here).price_version()] {
            read.cmd("HMGET").arg(hash).arg(ids);
        }
        let (prices, versions): (Vec<Option<LossyText>>, Vec<Option<LossyText>>) =
            self.pipe_unchecked(here, &read).await?;
        let text = |text: Option<LossyText>| text.map(|text| text.0).unwrap_or_default();
        Ok(prices.into_iter().map(text).zip(versions.into_iter().map(text)).collect())
    }

    /// The limits per user of groups of products.
    pub async fn inspect_limit_groups(&self) -> Result<HashFields, Error> {
        let mut read = redis::cmd("HGETALL");
        read.arg(Keys(GROUPS_IN).limit_groups());
        self.query_unchecked::<HashFields>(GROUPS_IN, &read).await
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
                    read.cmd("ZRANGE").arg(&set).arg(0).arg(-1).arg("WITHSCORES");
                    read.cmd("PTTL").arg(&set);
                }
            }
        };
        let seen = |replies: &mut Replies| {
            let day = |_| {
                let (ScoredTexts(units), units_leave) = (replies.next()?, leaves(replies)?);
                let (ScoredTexts(won), won_leave) = (replies.next()?, leaves(replies)?);
                let stays = !units.is_empty() && !units_leave || !won.is_empty() && !won_leave;
                Ok(RanksSeen { units, won, stays })
            };
            days.iter().map(day).collect()
        };
        self.at_one_moment(here, outbox, reads, seen).await
    }

    /// Reads the idempotency records of these digests.
    pub async fn inspect_records(
        &self,
        here: Partition,
        outbox: (StreamId, usize),
        digests: &[String],
    ) -> Result<Inspected<RecordSeen>, Error> {
        let reads = |read: &mut redis::Pipeline| {
            for digest in digests {
                read.cmd("LRANGE").arg(Keys(here).record(digest)).arg(0).arg(-1);
                read.cmd("PTTL").arg(Keys(here).record(digest));
            }
        };
        let seen = |replies: &mut Replies| {
            let record = |_| {
                let items: Vec<LossyText> = replies.next()?;
                Ok(RecordSeen { items: items.into_iter().map(|item| item.0).collect(), ttl_ms: replies.next()? })
            };
            digests.iter().map(record).collect()
        };
        self.at_one_moment(here, outbox, reads, seen).await
    }
}
