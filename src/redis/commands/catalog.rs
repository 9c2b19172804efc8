//! Users and products.

use super::Created;
use crate::{
    model::{
        Call, Category, Error, LimitGroup, MAX_STOCK, NewProduct, Partition, Product, ProductId, ProductPatch, Reply,
        SaleTermsPatch, UserId, Won,
    },
    redis::{
        Store,
        keys::Keys,
        reply_code::ReplyCode,
        script::{self, Invocation},
        script_reply::ScriptReply,
    },
};

/// The partition that has the limits of groups of products.
pub const GROUPS_IN: Partition = Partition(0);

/// Users that one script creates: all of one partition.
#[derive(Clone, Debug)]
pub struct UserBatch {
    pub first: UserId,
    /// From one id to the next: the number of partitions.
    pub step: i64,
    pub count: i64,
    /// The name of every user; with `prefixed`, what precedes the id in each name.
    pub name: String,
    pub prefixed: bool,
    pub balance: Won,
}

impl UserBatch {
    fn ids(&self) -> impl Iterator<Item = i64> {
        let (first, step) = (self.first.get(), self.step);
        (0..self.count).map(move |n| first + n * step)
    }
}

impl Store {
    /// `users_create.lua`.
    ///
    /// # Errors
    /// The [shared refusals](super#shared-refusals).
    pub async fn users_create(&self, call: &Call, owner: Partition, batch: &UserBatch) -> Result<Created, Error> {
        let mut invocation = self.begin(call, &script::USERS_CREATE, owner);
        invocation
            .arg(batch.balance)
            .arg(batch.first.get())
            .arg(batch.step)
            .arg(if batch.prefixed { "1" } else { "0" })
            .arg(&batch.name);
        for id in batch.ids() {
            let Some(user) = UserId::new(id) else { return Err(Error::InvalidRequest("ids are used up")) };
            invocation.key(Keys(owner).user(user));
            match batch.prefixed {
                true => invocation.arg(format!("{}{id}", batch.name)),
                false => invocation.arg(&batch.name),
            };
        }
        Created::of(&self.decide(call, owner, &invocation).await?)
    }

    /// `product_create.lua`.
    ///
    /// # Errors
    /// The [shared refusals](super#shared-refusals).
    pub async fn product_create(&self, call: &Call, id: ProductId, new: &NewProduct) -> Result<Reply<Created>, Error> {
        let here = self.owner(id.get());
        let keys = Keys(here);
        let mut invocation = self.begin(call, &script::PRODUCT_CREATE, here);
        invocation
            .key(keys.product(id))
            .key(keys.price())
            .key(keys.stock())
            .key(keys.catalogue())
            .key(keys.category(new.category.as_str()))
            .key(keys.price_version())
            .arg(id.get())
            .arg(&new.name)
            .arg(new.price)
            .arg(new.stock)
            .arg(new.category.as_str())
            .arg(new.terms.to_string());
        let reply = self.decide(call, here, &invocation).await?;
        Ok(reply.with(Created::of(&reply)?))
    }

    /// The reply of `product_create.lua`, `None`, or of `product_update.lua` to an earlier request under the call's idempotency key.
    ///
    /// # Errors
    /// The [shared refusals](super#shared-refusals).
    pub async fn product_put_before(
        &self,
        call: &Call,
        id: ProductId,
    ) -> Result<Option<Reply<Option<Product>>>, Error> {
        let here = self.owner(id.get());
        let Some(reply) = self.recorded(call, here, &script::PRODUCT_UPDATE).await? else { return Ok(None) };
        match reply.code {
            ReplyCode::Created => Ok(Some(reply.with(None))),
            ReplyCode::Updated => Ok(Some(reply.with(Some(self.updated(id, &reply)?.0)))),
            _ => Err(reply.unexpected()),
        }
    }

    /// The product, and the number of its price, of a reply of `product_update.lua`.
    fn updated(&self, id: ProductId, reply: &ScriptReply) -> Result<(Product, i64), Error> {
        let (name, price, stock, category) = (reply.get(0)?, reply.get(1)?, reply.get(2)?, reply.get(3)?);
        // A reply that an earlier version recorded has no terms.
        let terms = reply.get::<String>(5).unwrap_or_default().parse().map_err(|_| reply.unexpected())?;
        let read_at = self.now(self.owner(id.get()));
        Ok((Product { product_id: id, name, price, stock, category, terms, read_at }, reply.get(4)?))
    }

    /// `limit_group_set.lua`: gives a group its limit per user. False, and no change, if it has another one.
    ///
    /// # Errors
    /// The [shared refusals](super#shared-refusals). A repeat is safe.
    pub async fn limit_group_set(&self, group: LimitGroup, limit: i64) -> Result<bool, Error> {
        let keys = Keys(GROUPS_IN);
        let mut invocation = Invocation::new(&script::LIMIT_GROUP_SET);
        invocation.key(keys.meta()).key(keys.limit_groups()).arg(group.as_str()).arg(limit);
        let reply = self.run_script(GROUPS_IN, &invocation).await?;
        match reply.code {
            ReplyCode::GroupSet | ReplyCode::Unchanged => Ok(true),
            ReplyCode::OtherLimit => Ok(false),
            _ => Err(reply.unexpected()),
        }
    }

    /// `stock_release.lua`: the units that are still withheld.
    ///
    /// # Errors
    /// [`Error::ProductNotFound`], [`Error::InsufficientStock`] where fewer are withheld,
    /// and the [shared refusals](super#shared-refusals).
    pub async fn stock_release(&self, call: &Call, id: ProductId, units: i64) -> Result<Reply<i64>, Error> {
        let here = self.owner(id.get());
        let keys = Keys(here);
        let mut invocation = self.begin(call, &script::STOCK_RELEASE, here);
        invocation.key(keys.stock()).key(keys.withheld()).arg(id.get()).arg(units);
        let reply = self.decide(call, here, &invocation).await?;
        match reply.code {
            ReplyCode::UnitsReleased => Ok(reply.with(reply.get(0)?)),
            ReplyCode::ProductNotFound => Err(Error::ProductNotFound),
            ReplyCode::InsufficientStock => Err(Error::InsufficientStock),
            _ => Err(reply.unexpected()),
        }
    }

    /// `product_update.lua`: the changed product and the number of its price; `None`, and no change, if its category, or the terms
    /// that the patch changes, are no longer those of `had`.
    /// `elsewhere`: the units that other partitions have on sale, which the reply counts.
    ///
    /// # Errors
    /// [`Error::ProductNotFound`], [`Error::InsufficientStock`] where fewer units are on sale than are removed, and the
    /// [shared refusals](super#shared-refusals).
    pub async fn product_update(
        &self,
        call: &Call,
        had: &Product,
        patch: &ProductPatch,
        elsewhere: i64,
    ) -> Result<Option<Reply<(Product, i64)>>, Error> {
        let id = had.product_id;
        let here = self.owner(id.get());
        let keys = Keys(here);
        let category = patch.category.as_ref().map_or(had.category.as_str(), Category::as_str);
        let changes_terms = patch.terms != SaleTermsPatch::default();
        let mut invocation = self.begin(call, &script::PRODUCT_UPDATE, here);
        invocation
            .key(keys.product(id))
            .key(keys.price())
            .key(keys.stock())
            .key(keys.category(&had.category))
            .key(keys.category(category))
            .key(keys.price_version())
            .arg(id.get())
            .arg(patch.name.as_deref().unwrap_or(""))
            .arg(patch.price.map(|price| price.to_string()).unwrap_or_default())
            .arg(&had.category)
            .arg(category)
            .arg(patch.stock_delta.unwrap_or(0))
            .arg(MAX_STOCK)
            .arg(elsewhere)
            .arg(if changes_terms { "1" } else { "0" })
            .arg(had.terms.to_string())
            .arg(patch.terms.of(had.terms).to_string());
        let reply = self.decide(call, here, &invocation).await?;
        match reply.code {
            ReplyCode::Updated => Ok(Some(reply.with(self.updated(id, &reply)?))),
            // A concurrent request under the same key has created the product.
            ReplyCode::Stale | ReplyCode::Created => Ok(None),
            ReplyCode::ProductNotFound => Err(Error::ProductNotFound),
            ReplyCode::InsufficientStock => Err(Error::InsufficientStock),
            ReplyCode::LimitExceeded => Err(Error::InvalidRequest("the product would have too many units")),
            _ => Err(reply.unexpected()),
        }
    }
}
