//! Units that move between the owner partition of a product and the partitions that sell it. With one partition none of them is
//! called.
//!
//! A transfer has two steps, one in each partition. Both count the units that ever took this way, so that a repeat of a step changes
//! nothing, and whoever finds the two counts different takes the second step: the request, the relay, a rebuild.

use futures_util::future::try_join_all;

use crate::{
    model::{Call, Error, Partition, ProductId, SaleTerms, Won, pack_price, unpack_price},
    redis::{
        Store,
        keys::Keys,
        reply_code::ReplyCode,
        script::{self, Invocation},
    },
};

/// The maximum units of a lot, unless an order needs more.
const MAX_LOT: i64 = 10_000;
/// Lots per partition into which the units on sale are divided.
const LOTS_PER_PARTITION: i64 = 2;

/// A price with the terms of sale, and their number, which grows with each change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NumberedPrice {
    pub price: Won,
    pub terms: SaleTerms,
    pub version: i64,
}

impl NumberedPrice {
    fn read(product: ProductId, packed: &str, version: Option<i64>) -> Result<Self, Error> {
        let (price, terms) = unpack_price(packed)
            .ok_or_else(|| Error::Internal(anyhow::anyhow!("the price of product {product} is {packed:?}")))?;
        Ok(NumberedPrice { price, terms, version: version.unwrap_or_default() })
    }

    /// What a product begins with. Terms are a change: every partition then knows them before the first order.
    pub fn first(price: Won, terms: SaleTerms) -> Self {
        NumberedPrice { price, terms, version: i64::from(terms != SaleTerms::default()) }
    }

    /// The value in Redis.
    pub fn packed(&self) -> String {
        pack_price(self.price, &self.terms)
    }
}

/// What an owner partition gives to another one.
#[derive(Clone, Copy, Debug)]
pub struct Allotment {
    /// The units that it ever gave to the other partition, with these.
    pub total: i64,
    pub price: NumberedPrice,
}

/// The units that may leave a partition for a product's owner partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReturnedUnits {
    OnSale,
    Withheld,
}

impl ReturnedUnits {
    /// Whether the units are withheld, as scripts and events write it.
    pub fn flag(self) -> &'static str {
        match self {
            ReturnedUnits::OnSale => "0",
            ReturnedUnits::Withheld => "1",
        }
    }
}

/// What a partition has of a product of another one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PartitionStock {
    /// The partition's epoch: a rebuild begins `freed` anew.
    pub epoch: i64,
    pub on_sale: i64,
    /// Units that ever came back on sale.
    pub freed: i64,
    pub received: i64,
    pub returned: i64,
    pub withheld: i64,
    pub surrendered: i64,
}

/// What an owner partition gave to another one and took back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Given {
    pub allotted: i64,
    pub regained: i64,
    pub recovered: i64,
}

/// What an owner partition has of a product.
#[derive(Clone, Debug)]
pub struct GivenUnits {
    pub on_sale: i64,
    pub price: NumberedPrice,
    /// What it gave to other partitions and took back, in the order of the question.
    pub to: Vec<Given>,
}

impl Store {
    /// `stock_allot.lua`, in the product's owner partition: gives partition `other` the `needed` units, or more. `None`: it has fewer on
    /// sale.
    ///
    /// # Errors
    /// [`Error::ProductNotFound`], and the [shared refusals](super#shared-refusals).
    pub async fn stock_allot(
        &self,
        call: &Call,
        product: ProductId,
        other: Partition,
        needed: i64,
    ) -> Result<Option<Allotment>, Error> {
        let here = self.owner(product.get());
        let keys = Keys(here);
        let mut invocation = self.begin_unrecorded(call, &script::STOCK_ALLOT, here);
        invocation.key(keys.price()).key(keys.price_version()).key(keys.stock()).key(keys.allotted());
        invocation.arg(product.get()).arg(other.0).arg(needed);
        invocation.arg(LOTS_PER_PARTITION * i64::from(self.partitions())).arg(MAX_LOT);
        let reply = self.decide(call, here, &invocation).await?;
        match reply.code {
            ReplyCode::Allotted => {
                let terms = reply.get::<String>(3)?.parse().map_err(|_| reply.unexpected())?;
                let price = NumberedPrice { price: reply.get(1)?, terms, version: reply.get(2)? };
                Ok(Some(Allotment { total: reply.get(0)?, price }))
            }
            ReplyCode::InsufficientStock => Ok(None),
            ReplyCode::ProductNotFound => Err(Error::ProductNotFound),
            _ => Err(reply.unexpected()),
        }
    }

    /// `stock_receive.lua`: puts on sale in partition `here` what the product's owner partition ever gave to it, `total`.
    ///
    /// # Errors
    /// The [shared refusals](super#shared-refusals). A repeat is safe.
    pub async fn stock_receive(
        &self,
        call: &Call,
        here: Partition,
        product: ProductId,
        total: i64,
        price: NumberedPrice,
    ) -> Result<(), Error> {
        let keys = Keys(here);
        let mut invocation = self.begin_unrecorded(call, &script::STOCK_RECEIVE, here);
        invocation.key(keys.price()).key(keys.price_version()).key(keys.stock()).key(keys.received()).key(keys.freed());
        invocation.arg(product.get()).arg(total).arg(price.packed()).arg(price.version);
        let reply = self.decide(call, here, &invocation).await?;
        match reply.code {
            ReplyCode::Received | ReplyCode::AlreadyReceived => Ok(()),
            _ => Err(reply.unexpected()),
        }
    }

    /// `stock_return.lua`: gives everything on a shelf of partition `here` back to the product's owner partition. Returns the units
    /// that it ever gave back.
    ///
    /// # Errors
    /// The [shared refusals](super#shared-refusals).
    pub async fn stock_return(
        &self,
        call: &Call,
        here: Partition,
        product: ProductId,
        shelf: ReturnedUnits,
    ) -> Result<i64, Error> {
        let keys = Keys(here);
        let mut invocation = self.begin_unrecorded(call, &script::STOCK_RETURN, here);
        match shelf {
            ReturnedUnits::OnSale => invocation.key(keys.stock()).key(keys.returned()),
            ReturnedUnits::Withheld => invocation.key(keys.withheld()).key(keys.surrendered()),
        };
        invocation.arg(product.get()).arg(shelf.flag());
        let reply = self.decide(call, here, &invocation).await?;
        match reply.code {
            ReplyCode::Returned | ReplyCode::AlreadyReturned => reply.get(0),
            _ => Err(reply.unexpected()),
        }
    }

    /// `stock_regain.lua`: takes back in the product's owner partition what partition `other` ever gave back, `total`.
    ///
    /// # Errors
    /// [`Error::ProductNotFound`], and the [shared refusals](super#shared-refusals). A repeat is safe.
    pub async fn stock_regain(
        &self,
        call: &Call,
        product: ProductId,
        other: Partition,
        total: i64,
        shelf: ReturnedUnits,
    ) -> Result<(), Error> {
        let here = self.owner(product.get());
        let keys = Keys(here);
        let mut invocation = self.begin_unrecorded(call, &script::STOCK_REGAIN, here);
        match shelf {
            ReturnedUnits::OnSale => invocation.key(keys.stock()).key(keys.regained()),
            ReturnedUnits::Withheld => invocation.key(keys.withheld()).key(keys.recovered()),
        };
        invocation.arg(product.get()).arg(other.0).arg(total).arg(shelf.flag());
        let reply = self.decide(call, here, &invocation).await?;
        match reply.code {
            ReplyCode::Regained | ReplyCode::AlreadyRegained => Ok(()),
            ReplyCode::ProductNotFound => Err(Error::ProductNotFound),
            _ => Err(reply.unexpected()),
        }
    }

    /// `price_set.lua`: takes over the price and terms of a product of another partition, unless partition `here` has a newer one.
    ///
    /// # Errors
    /// The [shared refusals](super#shared-refusals). A repeat is safe.
    pub async fn price_set(&self, here: Partition, product: ProductId, price: NumberedPrice) -> Result<(), Error> {
        let keys = Keys(here);
        let mut invocation = Invocation::new(&script::PRICE_SET);
        invocation.key(keys.meta()).key(keys.price()).key(keys.price_version()).key(keys.stock());
        invocation.arg(product.get()).arg(price.packed()).arg(price.version);
        let reply = self.run_script(here, &invocation).await?;
        match reply.code {
            ReplyCode::PriceSet | ReplyCode::Unchanged => Ok(()),
            _ => Err(reply.unexpected()),
        }
    }

    /// Brings a changed price, or changed terms, of a product to all partitions but its owner's.
    ///
    /// # Errors
    /// As [`Store::price_set`]. A repeat is safe.
    pub async fn price_spread(&self, product: ProductId, price: NumberedPrice) -> Result<(), Error> {
        let others = self.all_but(self.owner(product.get()));
        try_join_all(others.map(|here| self.price_set(here, product, price))).await.map(drop)
    }

    /// The price and terms of a product, in its owner partition.
    ///
    /// # Errors
    /// [`Error::ProductNotFound`]; [`Error::Unavailable`].
    pub async fn price_of(&self, product: ProductId) -> Result<NumberedPrice, Error> {
        let keys = Keys(self.owner(product.get()));
        let mut read = redis::pipe();
        read.atomic();
        read.cmd("HGET").arg(keys.price()).arg(product.get());
        read.cmd("HGET").arg(keys.price_version()).arg(product.get());
        let (price, version): (Option<String>, Option<i64>) = self.pipe(self.owner(product.get()), &read).await?;
        let packed = price.ok_or(Error::ProductNotFound)?;
        NumberedPrice::read(product, &packed, version)
    }

    /// What a partition has of a product of another one, at one moment.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn partition_stock(&self, here: Partition, product: ProductId) -> Result<PartitionStock, Error> {
        let keys = Keys(here);
        let counters =
            [keys.stock(), keys.freed(), keys.received(), keys.returned(), keys.withheld(), keys.surrendered()];
        let mut read = redis::pipe();
        read.atomic();
        read.cmd("HGET").arg(keys.meta()).arg("epoch");
        for counter in counters {
            read.cmd("HGET").arg(counter).arg(product.get());
        }
        let counts: Vec<Option<i64>> = self.pipe(here, &read).await?;
        let mut counts = counts.into_iter().map(Option::unwrap_or_default);
        let mut next = || counts.next().unwrap_or_default();
        Ok(PartitionStock {
            epoch: next(),
            on_sale: next(),
            freed: next(),
            received: next(),
            returned: next(),
            withheld: next(),
            surrendered: next(),
        })
    }

    /// The units that a product's owner partition has on sale, its price, and what it gave to each of these partitions, at one moment.
    /// `None`: there is no such product.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn given(&self, product: ProductId, others: &[Partition]) -> Result<Option<GivenUnits>, Error> {
        let here = self.owner(product.get());
        let keys = Keys(here);
        let fields: Vec<String> = others.iter().map(|other| format!("{product}:{}", other.0)).collect();
        let mut read = redis::pipe();
        read.atomic();
        for counter in [keys.stock(), keys.price(), keys.price_version()] {
            read.cmd("HGET").arg(counter).arg(product.get());
        }
        for counter in [keys.allotted(), keys.regained(), keys.recovered()] {
            read.cmd("HMGET").arg(counter).arg(&fields);
        }
        type Count = Option<i64>;
        let (on_sale, packed, version, allotted, regained, recovered): (
            Count,
            Option<String>,
            Count,
            Vec<Count>,
            Vec<Count>,
            Vec<Count>,
        ) = self.pipe(here, &read).await?;
        let Some((on_sale, packed)) = on_sale.zip(packed) else { return Ok(None) };
        let to = allotted.into_iter().zip(regained).zip(recovered).map(|((allotted, regained), recovered)| Given {
            allotted: allotted.unwrap_or_default(),
            regained: regained.unwrap_or_default(),
            recovered: recovered.unwrap_or_default(),
        });
        let price = NumberedPrice::read(product, &packed, version)?;
        Ok(Some(GivenUnits { on_sale, price, to: to.collect() }))
    }
}
