//! Reads of users, coupons, campaigns, products and orders.
//!
//! A read that finds nothing checks the partition's state, so that the reply of a Redis that lost its data is "unavailable"
//! and not "no such user".

use std::collections::{BTreeMap, HashMap};

use anyhow::anyhow;
use futures_util::future::try_join_all;
use redis::FromRedisValue;

use crate::{
    model::{Error, Partition, event, *},
    redis::{
        Store, batcher,
        commands::GROUPS_IN,
        keys::Keys,
        partition_closed,
        records::{Buyer, CouponRecord, OrderRecord, campaign, coupon_record, order_record, take_coupons},
        reply_code::ReplyCode,
        script::{self, Invocation},
    },
};

/// What bringing a user in compares. One that was forgotten has no name.
#[derive(Clone, Debug)]
pub struct NamedUser {
    pub name: Option<String>,
    /// The number of balance entries.
    pub entries: i64,
}

impl Store {
    /// A user's name and balance.
    ///
    /// # Errors
    /// [`Error::UserNotFound`].
    pub async fn balance(&self, user: UserId) -> Result<Balance, Error> {
        let owner = self.owner(user.get());
        let mut read = redis::cmd("HMGET");
        read.arg(Keys(owner).user(user)).arg(&["name", "balance"]);
        match self.query(owner, read).await? {
            (Some(user_name), Some(balance)) => Ok(Balance { user_id: user, user_name, balance }),
            _ => Err(self.absent(owner, Error::UserNotFound).await),
        }
    }

    /// `history_read.lua`: a user's balance changes that the outbox still has, newest first, at most `max`; and whether there are
    /// more.
    ///
    /// # Errors
    /// [`Error::UserNotFound`].
    pub async fn history_read(&self, user: UserId, max: usize) -> Result<(Vec<BalanceEntry>, bool), Error> {
        let owner = self.owner(user.get());
        let mut invocation = Invocation::new(&script::HISTORY_READ);
        invocation.key(Keys(owner).user(user)).key(Keys(owner).outbox()).arg(max).arg(user.get());
        let reply = self.run_script(owner, &invocation).await?;
        match reply.code {
            ReplyCode::Entries => {
                let more = reply.get::<String>(0)? == "1";
                let mut entries = Vec::new();
                for value in reply.into_fields(1) {
                    let fields = Vec::<(String, String)>::from_redis_value(value)
                        .map_err(|error| Error::Internal(anyhow!("an outbox entry has no fields: {error}")))?;
                    for decoded in event::decode(&fields) {
                        let event = decoded.event.map_err(|bad| Error::Internal(bad.into()))?;
                        entries.extend(event.entry_of(user));
                    }
                }
                Ok((entries, more))
            }
            ReplyCode::UserNotFound => Err(self.absent(owner, Error::UserNotFound).await),
            _ => Err(reply.unexpected()),
        }
    }

    /// A user's coupons, in no order.
    ///
    /// # Errors
    /// [`Error::UserNotFound`].
    pub async fn user_coupons(&self, user: UserId) -> Result<Vec<CouponRecord>, Error> {
        let owner = self.owner(user.get());
        let read = |key: String| {
            let mut read = redis::cmd("HGETALL");
            read.arg(key);
            read
        };
        // The user's own partition is read last: it has the state of each coupon that an order has used.
        let others = self.all_but(owner);
        let issued = others.map(|here| self.query(here, read(Keys(here).issued(user))));
        let issued: Vec<HashMap<i64, String>> = try_join_all(issued).await?;
        let mut fields: HashMap<String, String> = self.query(owner, read(Keys(owner).user(user))).await?;
        let own = take_coupons(&mut fields);
        // A user that was forgotten has no name.
        if !fields.contains_key("name") {
            return Err(self.absent(owner, Error::UserNotFound).await);
        }
        let mut records: HashMap<i64, String> = issued.into_iter().flatten().collect();
        records.extend(own);
        records.iter().map(|(id, record)| read_coupon(user, *id, record)).collect()
    }

    /// The coupon that a campaign issued to a user of another partition, as it was issued; `None` if it issued none.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn issued_coupon(&self, user: UserId, coupon: CouponId) -> Result<Option<CouponRecord>, Error> {
        let here = self.owner(coupon.get());
        let mut read = redis::cmd("HGET");
        read.arg(Keys(here).issued(user)).arg(coupon.get());
        let record: Option<String> = self.query(here, read).await?;
        record.map(|record| read_coupon(user, coupon.get(), &record)).transpose()
    }

    /// A campaign, or `None`.
    pub async fn campaign(&self, coupon: CouponId) -> Result<Option<Campaign>, Error> {
        let here = self.owner(coupon.get());
        let mut read = redis::cmd("HGETALL");
        read.arg(Keys(here).campaign(coupon));
        let fields: HashMap<String, String> = self.query(here, read).await?;
        if fields.is_empty() {
            self.check_partition(here).await?;
            return Ok(None);
        }
        campaign(coupon, &fields).map(Some)
    }

    /// Campaigns of all partitions that are not closed, or closed at most `back_ms` ago, in the order of their closing; at most
    /// `max` per partition.
    pub async fn campaigns_closing_after(&self, back_ms: i64, max: i64) -> Result<Vec<Campaign>, Error> {
        let mut campaigns = Vec::new();
        for here in self.all() {
            let mut read = redis::cmd("ZRANGE");
            read.arg(Keys(here).campaigns()).arg(format!("({}", self.now(here).0 - back_ms)).arg("+inf");
            read.arg("BYSCORE").arg("LIMIT").arg(0).arg(max);
            let ids: Vec<i64> = self.query(here, read).await?;
            if ids.is_empty() {
                self.check_partition(here).await?;
            }
            let ids: Vec<CouponId> = ids.into_iter().filter_map(CouponId::new).collect();
            let mut read = redis::pipe();
            for id in &ids {
                read.cmd("HGETALL").arg(Keys(here).campaign(*id));
            }
            let found: Vec<HashMap<String, String>> =
                if ids.is_empty() { Vec::new() } else { self.pipe(here, &read).await? };
            for (id, fields) in ids.into_iter().zip(&found) {
                campaigns.push(campaign(id, fields)?);
            }
        }
        campaigns.sort_by_key(|campaign| (campaign.terms.closes_at, campaign.terms.coupon_id));
        Ok(campaigns)
    }

    /// A product.
    ///
    /// # Errors
    /// [`Error::ProductNotFound`].
    pub async fn product(&self, product: ProductId) -> Result<Product, Error> {
        let here = self.owner(product.get());
        let (receiver, must_run) = self.shared.products.submit(here, product, 1);
        if must_run {
            let store = self.clone();
            tokio::spawn(async move {
                store.shared.products.run(here, |ids| store.products_batch(here, ids)).await;
            });
        }
        match batcher::reply(receiver).await? {
            Some(found) => Ok(found),
            None => Err(self.absent(here, Error::ProductNotFound).await),
        }
    }

    /// A product for each id. Reads an id once, however often the batch has it.
    async fn products_batch(
        &self,
        here: Partition,
        batch: Vec<ProductId>,
    ) -> Result<Vec<Result<Option<Product>, Error>>, Error> {
        let mut ids = batch.clone();
        ids.sort_unstable();
        ids.dedup();
        let found = self.products_of(here, &ids).await?;
        let found_of = |id: &ProductId| ids.binary_search(id).ok().and_then(|at| found.get(at)?.clone());
        Ok(batch.iter().map(|id| Ok(found_of(id))).collect())
    }

    /// Products of one partition, with the units that all partitions have on sale; `None` for those that do not exist.
    pub async fn products_of(&self, here: Partition, ids: &[ProductId]) -> Result<Vec<Option<Product>>, Error> {
        let (products, elsewhere) = tokio::try_join!(self.own_products(here, ids), self.on_sale_elsewhere(here, ids))?;
        let add = |(product, more): (Option<Product>, i64)| {
            product.map(|product| Product { stock: product.stock + more, ..product })
        };
        Ok(products.into_iter().zip(elsewhere).map(add).collect())
    }

    /// The units of products of partition `owner` that the other partitions have on sale.
    pub async fn on_sale_elsewhere(&self, owner: Partition, ids: &[ProductId]) -> Result<Vec<i64>, Error> {
        let mut units = vec![0; ids.len()];
        if ids.is_empty() {
            return Ok(units);
        }
        let numbers: Vec<i64> = ids.iter().map(|id| id.get()).collect();
        let others = self.all_but(owner).map(|here| {
            let mut read = redis::cmd("HMGET");
            read.arg(Keys(here).stock()).arg(&numbers);
            self.query::<Vec<Option<i64>>>(here, read)
        });
        for counts in try_join_all(others).await? {
            units.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count.unwrap_or_default());
        }
        Ok(units)
    }

    /// Products of one partition, with the units that it has on sale itself.
    async fn own_products(&self, here: Partition, ids: &[ProductId]) -> Result<Vec<Option<Product>>, Error> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let keys = Keys(here);
        let numbers: Vec<i64> = ids.iter().map(|id| id.get()).collect();
        let mut read = redis::pipe();
        read.cmd("HMGET").arg(keys.price()).arg(&numbers);
        read.cmd("HMGET").arg(keys.stock()).arg(&numbers);
        for id in ids {
            read.cmd("HMGET").arg(keys.product(*id)).arg(&["name", "category"]);
        }
        let mut replies: Vec<redis::Value> = self.pipe(here, &read).await?;
        let described = replies.split_off(2.min(replies.len()));
        let mut columns = replies.into_iter();
        let prices = columns.next().map(Vec::<Option<String>>::from_redis_value);
        let stocks = columns.next().map(Vec::<Option<i64>>::from_redis_value);
        let (Some(Ok(prices)), Some(Ok(stocks))) = (prices, stocks) else {
            return Err(Error::Internal(anyhow!("prices and stock are no numbers")));
        };
        let read_at = self.now(here);
        let found = ids.iter().zip(prices).zip(stocks).zip(described).map(|(((id, price), stock), described)| {
            let (name, category) = <(Option<String>, Option<String>)>::from_redis_value(described).ok()?;
            let (price, terms) = unpack_price(&price?)?;
            let (name, stock, category) = (name?, stock?, category?);
            Some(Product { product_id: *id, name, price, stock, category, terms, read_at })
        });
        Ok(found.collect())
    }

    /// The names of users; `None` for one that does not exist.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn user_names(&self, ids: &[UserId]) -> Result<Vec<Option<String>>, Error> {
        let names = ids.iter().map(|id| {
            let here = self.owner(id.get());
            let mut read = redis::cmd("HGET");
            read.arg(Keys(here).user(*id)).arg("name");
            self.query(here, read)
        });
        try_join_all(names).await
    }

    /// Users as what brings them in compares them; `None` for one that does not exist.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn named_users(&self, ids: &[UserId]) -> Result<Vec<Option<NamedUser>>, Error> {
        let mut by_owner = BTreeMap::<Partition, Vec<usize>>::new();
        for (place, id) in ids.iter().enumerate() {
            by_owner.entry(self.owner(id.get())).or_default().push(place);
        }
        let mut named = vec![None; ids.len()];
        for (here, places) in by_owner {
            let mut read = redis::pipe();
            for id in places.iter().filter_map(|place| ids.get(*place)) {
                read.cmd("HMGET").arg(Keys(here).user(*id)).arg(&["name", "entries"]);
            }
            let found: Vec<(Option<String>, Option<i64>)> = self.pipe(here, &read).await?;
            for (place, (name, entries)) in places.into_iter().zip(found) {
                if let Some(named) = named.get_mut(place) {
                    *named = entries.map(|entries| NamedUser { name, entries });
                }
            }
        }
        Ok(named)
    }

    /// The categories of products; `None` for one that does not exist.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn categories_of(&self, ids: &[ProductId]) -> Result<Vec<Option<String>>, Error> {
        let categories = ids.iter().map(|id| {
            let here = self.owner(id.get());
            let mut read = redis::cmd("HGET");
            read.arg(Keys(here).product(*id)).arg("category");
            self.query(here, read)
        });
        try_join_all(categories).await
    }

    /// A page of the catalog by product id, and the number of all products.
    pub async fn products(
        &self,
        offset: i64,
        size: i64,
        category: Option<&Category>,
    ) -> Result<(Vec<Product>, i64), Error> {
        let (mut ids, mut total) = (Vec::new(), 0);
        for here in self.all() {
            let set = match category {
                Some(category) => Keys(here).category(category.as_str()),
                None => Keys(here).catalogue(),
            };
            // One partition: the page itself. Several: from each, everything up to the end of the page.
            let first = if self.partitions() == 1 { offset } else { 0 };
            let mut read = redis::pipe();
            read.cmd("ZCARD").arg(&set);
            read.cmd("ZRANGE").arg(&set).arg(first).arg(offset + size - 1);
            let (count, page): (i64, Vec<i64>) = self.pipe(here, &read).await?;
            total += count;
            ids.extend(page.into_iter().filter_map(ProductId::new));
        }
        if total == 0 {
            self.check_partition(Partition(0)).await?;
        }
        if self.partitions() > 1 {
            ids.sort_unstable();
            ids = ids.into_iter().skip(offset as usize).take(size as usize).collect();
        }
        let mut products = Vec::with_capacity(ids.len());
        for here in self.all() {
            let ids: Vec<ProductId> = ids.iter().copied().filter(|id| self.owner(id.get()) == here).collect();
            products.extend(self.products_of(here, &ids).await?.into_iter().flatten());
        }
        products.sort_unstable_by_key(|product| product.product_id);
        Ok((products, total))
    }

    /// The units on sale that partition `here` itself has of these products, and their terms of sale; `None` for those that it does not
    /// know.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn on_sale_here(
        &self,
        here: Partition,
        ids: &[ProductId],
    ) -> Result<Vec<Option<(i64, SaleTerms)>>, Error> {
        let numbers: Vec<i64> = ids.iter().map(|id| id.get()).collect();
        let mut read = redis::pipe();
        read.cmd("HMGET").arg(Keys(here).stock()).arg(&numbers);
        read.cmd("HMGET").arg(Keys(here).price()).arg(&numbers);
        let (stock, prices): (Vec<Option<i64>>, Vec<Option<String>>) = self.pipe(here, &read).await?;
        let known = |(units, price): (Option<i64>, Option<String>)| Some((units?, unpack_price(&price?)?.1));
        Ok(stock.into_iter().zip(prices).map(known).collect())
    }

    /// What a user has of limits, by the fields that count it.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn user_limits(&self, user: UserId, fields: &[String]) -> Result<Vec<i64>, Error> {
        let here = self.owner(user.get());
        let mut read = redis::cmd("HMGET");
        read.arg(Keys(here).user(user)).arg(fields);
        let units: Vec<Option<i64>> = self.query(here, read).await?;
        Ok(units.into_iter().map(Option::unwrap_or_default).collect())
    }

    /// The limit per user that the products of a group have; `None` while it has no products.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn group_limit(&self, group: LimitGroup) -> Result<Option<i64>, Error> {
        let mut read = redis::cmd("HGET");
        read.arg(Keys(GROUPS_IN).limit_groups()).arg(group.as_str());
        self.query(GROUPS_IN, read).await
    }

    /// What the user's partition knows of a purchase, at one moment.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn buyer(&self, user: UserId, coupon: Option<CouponId>, products: &[ProductId]) -> Result<Buyer, Error> {
        let here = self.owner(user.get());
        let keys = Keys(here);
        let numbers: Vec<i64> = products.iter().map(|product| product.get()).collect();
        let mut read = redis::pipe();
        read.atomic();
        read.cmd("HGET").arg(keys.user(user)).arg("balance");
        read.cmd("HGET").arg(keys.user(user)).arg(coupon.map_or(0, CouponId::get));
        read.cmd("HMGET").arg(keys.price()).arg(&numbers);
        let (balance, record, packed): (Option<Won>, Option<String>, Vec<Option<String>>) =
            self.pipe(here, &read).await?;
        let prices =
            packed.iter().map(|packed| packed.as_deref().and_then(unpack_price).map(|(price, _)| price)).collect();
        let record = coupon.zip(record).map(|(coupon, record)| read_coupon(user, coupon.get(), &record));
        Ok(Buyer { balance, coupon: record.transpose()?, prices })
    }

    /// An order, or `None`.
    pub async fn order(&self, order: OrderId) -> Result<Option<OrderRecord>, Error> {
        let owner = self.owner(order.get());
        let mut read = redis::cmd("HGETALL");
        read.arg(Keys(owner).order(order));
        let fields: HashMap<String, String> = self.query(owner, read).await?;
        if !fields.contains_key("user") {
            self.check_partition(owner).await?;
            return Ok(None);
        }
        order_record(order, &fields).map(Some).ok_or_else(|| Error::Internal(anyhow!("order {order} is not readable")))
    }

    /// Orders whose hold has ended, the longest due first.
    pub async fn due_orders(&self, here: Partition, max: usize) -> Result<Vec<OrderId>, Error> {
        let ids = self.due(here, &Keys(here).expiry(), max).await?;
        Ok(ids.iter().filter_map(|id| id.parse().ok()).filter_map(OrderId::new).collect())
    }

    async fn due(&self, here: Partition, index: &str, max: usize) -> Result<Vec<String>, Error> {
        let mut read = redis::cmd("ZRANGE");
        read.arg(index).arg("-inf").arg(self.now(here).0).arg("BYSCORE").arg("LIMIT").arg(0).arg(max);
        self.query(here, read).await
    }

    /// `absent` if the partition is open: only then does an empty read mean that the resource does not exist.
    async fn absent(&self, here: Partition, absent: Error) -> Error {
        self.check_partition(here).await.err().unwrap_or(absent)
    }

    /// Checks that the partition has a state and is not frozen.
    pub(super) async fn check_partition(&self, here: Partition) -> Result<(), Error> {
        let state = self.partition_state(here).await?;
        if state.position.is_none() || state.frozen.is_some() {
            self.watermark(here).invalidate();
            return Err(partition_closed());
        }
        Ok(())
    }
}

fn read_coupon(user: UserId, coupon: i64, record: &str) -> Result<CouponRecord, Error> {
    coupon_record(coupon, record)
        .ok_or_else(|| Error::Internal(anyhow!("coupon {coupon} of user {user} is {record:?}")))
}
