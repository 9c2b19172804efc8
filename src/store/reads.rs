//! The reads: each one round trip, none of them a script that writes.
//!
//! A read that finds nothing asks once more whether the partition's books are open at all, so that a Redis which lost its
//! data answers "unavailable" rather than "no such user".

use std::collections::HashMap;

use anyhow::anyhow;
use redis::FromRedisValue;

use super::{
    Store,
    keys::{Keys, Partition},
    scripts::{self, Invocation},
};
use crate::domain::{Error, event, event::Event, model::*, types::*};

/// What a user's hash of coupons says about one of them.
#[derive(Clone, Copy, Debug)]
pub struct CouponRecord {
    pub coupon_id: CouponId,
    pub issue_no: i64,
    pub issued_at: Millis,
    pub held_by: Option<OrderId>,
    pub used_at: Option<Millis>,
    /// Neither held nor used.
    pub free: bool,
}

/// An order as Redis keeps it: what the API shows, and what its gateway payment needs.
#[derive(Clone, Debug)]
pub struct OrderRecord {
    pub order: Order,
    /// The lines held in other partitions; part of the order's lines.
    pub far: Vec<OrderLine>,
    /// `%Y%m%d`, of a paid order.
    pub day: Option<String>,
    pub gateway: Option<GatewayRecord>,
}

/// How far a gateway payment is.
#[derive(Clone, Debug)]
pub struct GatewayRecord {
    pub state: GatewayState,
    pub payment_id: PaymentId,
    pub payment_type: PaymentType,
    pub receipt: String,
    pub started_at: Millis,
    /// The request that waits for the verdict.
    pub key: Option<IdempotencyKey>,
}

/// Where a gateway payment stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GatewayState {
    /// The gateway was asked; its word decides about the order.
    Started,
    /// The order is closed, but nobody could say for certain that no money was taken.
    Watched,
    /// The order is refunded, and the gateway must give the money back.
    RefundDue,
    /// Nothing is left to do.
    Ended,
}

impl Store {
    /// A user's name and balance.
    ///
    /// # Errors
    /// [`Error::UserNotFound`].
    pub async fn balance(&self, user: UserId) -> Result<Balance, Error> {
        let home = self.home(user.get());
        let mut read = redis::cmd("HMGET");
        read.arg(Keys(home).user(user)).arg(&["name", "balance"]);
        match self.query(home, &read).await? {
            (Some(user_name), Some(balance)) => Ok(Balance { user_id: user, user_name, balance }),
            _ => Err(self.absent(home, Error::UserNotFound).await),
        }
    }

    /// A user's newest balance changes that may not be in Postgres yet, newest first, at most `most`; whether there are
    /// more.
    ///
    /// # Errors
    /// [`Error::UserNotFound`].
    pub async fn history_tail(&self, user: UserId, most: usize) -> Result<(Vec<BalanceEntry>, bool), Error> {
        let home = self.home(user.get());
        let call =
            Invocation::new(&scripts::HISTORY_TAIL).key(Keys(home).user(user)).key(Keys(home).outbox()).arg(most);
        let answer = self.call(home, &call).await?;
        match answer.word.as_str() {
            "TAIL" => {
                let more = answer.get::<String>(0)? == "1";
                let mut entries = Vec::new();
                for value in answer.rest(1) {
                    let fields = Vec::<(String, String)>::from_redis_value(value)
                        .map_err(|error| Error::Internal(anyhow!("an outbox entry has no fields: {error}")))?;
                    let event = Event::decode(&fields).map_err(|error| Error::Internal(error.into()))?;
                    entries.extend(event.entry_of(user));
                }
                Ok((entries, more))
            }
            "USER_NOT_FOUND" => Err(self.absent(home, Error::UserNotFound).await),
            _ => Err(answer.unknown()),
        }
    }

    /// A user's coupons, in no order.
    ///
    /// # Errors
    /// [`Error::UserNotFound`].
    pub async fn user_coupons(&self, user: UserId) -> Result<Vec<CouponRecord>, Error> {
        let home = self.home(user.get());
        let mut read = redis::pipe();
        read.cmd("EXISTS").arg(Keys(home).user(user));
        read.cmd("HGETALL").arg(Keys(home).user_coupons(user));
        let (exists, records): (bool, HashMap<i64, String>) = self.pipe(home, &read).await?;
        if !exists {
            return Err(self.absent(home, Error::UserNotFound).await);
        }
        records
            .iter()
            .map(|(id, record)| {
                coupon_record(*id, record)
                    .ok_or_else(|| Error::Internal(anyhow!("a coupon of user {user} is {record:?}")))
            })
            .collect()
    }

    /// A campaign, or `None`.
    pub async fn campaign(&self, coupon: CouponId) -> Result<Option<Campaign>, Error> {
        let here = self.home(coupon.get());
        let mut read = redis::cmd("HGETALL");
        read.arg(Keys(here).campaign(coupon));
        let fields: HashMap<String, String> = self.query(here, &read).await?;
        if fields.is_empty() {
            self.check_books(here).await?;
            return Ok(None);
        }
        campaign(coupon, &fields).map(Some)
    }

    /// Campaigns whose window has not closed at `now`, soonest to close first, from all partitions: at most `most`.
    pub async fn campaigns_closing_after(&self, now: Millis, most: i64) -> Result<Vec<Campaign>, Error> {
        let mut campaigns = Vec::new();
        for here in self.all() {
            let mut read = redis::cmd("ZRANGE");
            read.arg(Keys(here).campaigns()).arg(format!("({}", now.0)).arg("+inf");
            read.arg("BYSCORE").arg("LIMIT").arg(0).arg(most);
            let ids: Vec<i64> = self.query(here, &read).await?;
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
        let here = self.home(product.get());
        match self.products_of(here, &[product]).await?.pop().flatten() {
            Some(found) => Ok(found),
            None => Err(self.absent(here, Error::ProductNotFound).await),
        }
    }

    /// These products of one partition; `None` for those that do not exist.
    pub async fn products_of(&self, here: Partition, ids: &[ProductId]) -> Result<Vec<Option<Product>>, Error> {
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
        let mut columns = replies.into_iter().map(Vec::<Option<i64>>::from_redis_value);
        let (Some(Ok(prices)), Some(Ok(stocks))) = (columns.next(), columns.next()) else {
            return Err(Error::Internal(anyhow!("prices and stock are no numbers")));
        };
        let found = ids.iter().zip(prices).zip(stocks).zip(described).map(|(((id, price), stock), described)| {
            let (name, category) = <(Option<String>, Option<String>)>::from_redis_value(described).ok()?;
            Some(Product { product_id: *id, name: name?, price: price?, stock: stock?, category: category? })
        });
        Ok(found.collect())
    }

    /// A page of the catalogue by product id, and how many products there are in all.
    pub async fn products(
        &self,
        offset: i64,
        size: i64,
        category: Option<&Category>,
    ) -> Result<(Vec<Product>, i64), Error> {
        let (mut ids, mut total) = (Vec::new(), 0);
        for here in self.all() {
            let set = match category {
                Some(category) => Keys(here).of_category(category),
                None => Keys(here).catalogue(),
            };
            // With one partition the page itself; with many, each one's share of everything up to the page's end.
            let first = if self.partitions() == 1 { offset } else { 0 };
            let mut read = redis::pipe();
            read.cmd("ZCARD").arg(&set);
            read.cmd("ZRANGE").arg(&set).arg(first).arg(offset + size - 1);
            let (count, page): (i64, Vec<i64>) = self.pipe(here, &read).await?;
            total += count;
            ids.extend(page.into_iter().filter_map(ProductId::new));
        }
        if total == 0 {
            self.check_books(Partition(0)).await?;
        }
        if self.partitions() > 1 {
            ids.sort_unstable();
            ids = ids.into_iter().skip(offset as usize).take(size as usize).collect();
        }
        let mut products = Vec::with_capacity(ids.len());
        for here in self.all() {
            let mine: Vec<ProductId> = ids.iter().copied().filter(|id| self.home(id.get()) == here).collect();
            products.extend(self.products_of(here, &mine).await?.into_iter().flatten());
        }
        products.sort_unstable_by_key(|product| product.product_id);
        Ok((products, total))
    }

    /// An order, or `None`.
    pub async fn order(&self, order: OrderId) -> Result<Option<OrderRecord>, Error> {
        let home = self.home(order.get());
        let mut read = redis::cmd("HGETALL");
        read.arg(Keys(home).order(order));
        let fields: HashMap<String, String> = self.query(home, &read).await?;
        if !fields.contains_key("user") {
            self.check_books(home).await?;
            return Ok(None);
        }
        order_record(order, &fields).map(Some).ok_or_else(|| Error::Internal(anyhow!("order {order} is not readable")))
    }

    /// Orders whose hold ended at or before `now`, longest due first, with their users.
    pub async fn due_orders(&self, here: Partition, now: Millis, most: usize) -> Result<Vec<(OrderId, UserId)>, Error> {
        let ids = self.due(here, &Keys(here).expiry(), now, most).await?;
        let ids: Vec<OrderId> = ids.iter().filter_map(|id| id.parse().ok()).filter_map(OrderId::new).collect();
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let mut read = redis::pipe();
        for id in &ids {
            read.cmd("HGET").arg(Keys(here).order(*id)).arg("user");
        }
        let users: Vec<Option<i64>> = self.pipe(here, &read).await?;
        Ok(ids.into_iter().zip(users).filter_map(|(id, user)| Some((id, UserId::new(user?)?))).collect())
    }

    /// Orders whose gateway payment is to be looked at by `now`.
    pub async fn due_payments(&self, here: Partition, now: Millis, most: usize) -> Result<Vec<OrderId>, Error> {
        let ids = self.due(here, &Keys(here).gateway(), now, most).await?;
        Ok(ids.iter().filter_map(|id| id.parse().ok()).filter_map(OrderId::new).collect())
    }

    /// Far holds that are to be looked at by `now`: orders at home elsewhere, and their users.
    pub async fn due_holds(&self, here: Partition, now: Millis, most: usize) -> Result<Vec<(OrderId, UserId)>, Error> {
        let members = self.due(here, &Keys(here).holds(), now, most).await?;
        let pair = |member: &String| {
            let (order, user) = member.split_once(':')?;
            Some((OrderId::new(order.parse().ok()?)?, UserId::new(user.parse().ok()?)?))
        };
        Ok(members.iter().filter_map(pair).collect())
    }

    async fn due(&self, here: Partition, index: &str, now: Millis, most: usize) -> Result<Vec<String>, Error> {
        let mut read = redis::cmd("ZRANGE");
        read.arg(index).arg("-inf").arg(now.0).arg("BYSCORE").arg("LIMIT").arg(0).arg(most);
        self.query(here, &read).await
    }

    /// Puts off looking at a gateway payment that is still in the index.
    pub async fn postpone_payment(&self, order: OrderId, until: Millis) -> Result<(), Error> {
        let home = self.home(order.get());
        let mut put_off = redis::cmd("ZADD");
        put_off.arg(Keys(home).gateway()).arg("XX").arg(until.0).arg(order.get());
        self.query(home, &put_off).await
    }

    /// Puts off looking at a far hold that is still in the index.
    pub async fn postpone_hold(
        &self,
        here: Partition,
        order: OrderId,
        user: UserId,
        until: Millis,
    ) -> Result<(), Error> {
        let mut put_off = redis::cmd("ZADD");
        put_off.arg(Keys(here).holds()).arg("XX").arg(until.0).arg(format!("{order}:{user}"));
        self.query(here, &put_off).await
    }

    /// `absent` if the partition's books are open, so that not finding something means that it is not there.
    async fn absent(&self, here: Partition, absent: Error) -> Error {
        self.check_books(here).await.err().unwrap_or(absent)
    }

    async fn check_books(&self, here: Partition) -> Result<(), Error> {
        self.position(here).await.map(drop)
    }
}

fn coupon_record(id: i64, record: &str) -> Option<CouponRecord> {
    let mut parts = record.split('|');
    let issue_no = parts.next()?.parse().ok()?;
    let issued_at = Millis(parts.next()?.parse().ok()?);
    let state = parts.next()?;
    let order = parts.next()?.parse().ok().and_then(OrderId::new);
    let used_at = parts.next()?.parse().ok().map(Millis);
    let held_by = if state == "H" { order } else { None };
    Some(CouponRecord { coupon_id: CouponId::new(id)?, issue_no, issued_at, held_by, used_at, free: state == "A" })
}

fn campaign(coupon_id: CouponId, fields: &HashMap<String, String>) -> Result<Campaign, Error> {
    let read = || {
        let int = |name: &str| fields.get(name)?.parse::<i64>().ok();
        let discount = Discount { kind: fields.get("type")?.parse().ok()?, amount: int("amount")? };
        let terms = CampaignTerms {
            coupon_id,
            code: fields.get("code")?.clone(),
            discount,
            total: int("total")?,
            opens_at: Millis(int("opens_at")?),
            closes_at: Millis(int("closes_at")?),
            expires_at: Millis(int("expires_at")?),
        };
        Some(Campaign { terms, issued: int("issued")? })
    };
    read().ok_or_else(|| Error::Internal(anyhow!("campaign {coupon_id} is not readable")))
}

fn order_record(order_id: OrderId, fields: &HashMap<String, String>) -> Option<OrderRecord> {
    let text = |name: &str| fields.get(name).map(String::as_str).filter(|text| !text.is_empty());
    let int = |name: &str| text(name)?.parse::<i64>().ok();
    let far = event::unpack_lines(text("far").unwrap_or(""))?;
    let mut lines = event::unpack_lines(text("lines").unwrap_or(""))?;
    lines.extend(far.iter().copied());
    let payment_id = int("payment").and_then(PaymentId::new);
    let payment_type = text("type").and_then(|word| word.parse().ok());
    let receipt = text("receipt").map(str::to_owned);
    let payment = match (payment_id, payment_type, &receipt, int("paid_at")) {
        (Some(payment_id), Some(payment_type), Some(receipt), Some(paid_at)) => {
            Some(OrderPayment { payment_id, payment_type, receipt: receipt.clone(), paid_at: Millis(paid_at) })
        }
        _ => None,
    };
    let gateway = match (text("gateway"), payment_id, payment_type, receipt) {
        (Some(state), Some(payment_id), Some(payment_type), Some(receipt)) => Some(GatewayRecord {
            state: match state {
                "STARTED" => GatewayState::Started,
                "WATCHED" => GatewayState::Watched,
                "REFUND_DUE" => GatewayState::RefundDue,
                _ => GatewayState::Ended,
            },
            payment_id,
            payment_type,
            receipt,
            started_at: Millis(int("gateway_at")?),
            key: match (text("key"), text("fingerprint")) {
                (Some(digest), Some(fingerprint)) => {
                    Some(IdempotencyKey { digest: digest.to_owned(), fingerprint: fingerprint.to_owned() })
                }
                _ => None,
            },
        }),
        _ => None,
    };
    let order = Order {
        order_id,
        user_id: UserId::new(int("user")?)?,
        status: text("status")?.parse().ok()?,
        lines,
        total: int("total")?,
        discount: int("discount")?,
        final_price: int("final")?,
        coupon_id: int("coupon").and_then(CouponId::new),
        ordered_at: Millis(int("placed_at")?),
        expires_at: Millis(int("expires_at")?),
        payment,
        closed_at: int("closed_at").map(Millis),
        close_reason: text("reason").and_then(|word| word.parse().ok()),
    };
    Some(OrderRecord { order, far, day: text("day").map(str::to_owned), gateway })
}
