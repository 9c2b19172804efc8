//! What operators put in: users and products.

use super::Created;
use crate::{
    model::{
        Call, Category, Error, MAX_STOCK, NewProduct, Partition, Product, ProductId, ProductPatch, Reply, UserId, Won,
    },
    redis::{Store, keys::Keys, script},
};

/// Users to create in one step: all at home in one partition.
pub struct UserBatch<'a> {
    pub first: UserId,
    /// From one id to the next: the number of partitions.
    pub step: i64,
    pub count: i64,
    /// The name, or what comes before the id in each name.
    pub name: &'a str,
    /// Whether `name` is only the beginning.
    pub prefixed: bool,
    pub balance: Won,
}

impl UserBatch<'_> {
    fn ids(&self) -> impl Iterator<Item = i64> {
        let (first, step) = (self.first.get(), self.step);
        (0..self.count).map(move |n| first + n * step)
    }
}

impl Store {
    /// `users_create.lua`.
    ///
    /// # Errors
    /// The shared refusals.
    pub async fn users_create(&self, call: &Call, home: Partition, batch: &UserBatch<'_>) -> Result<Created, Error> {
        let mut call = self
            .begin_unrecorded(call, &script::USERS_CREATE, home)
            .arg(batch.balance)
            .arg(batch.first.get())
            .arg(batch.step)
            .arg(if batch.prefixed { "1" } else { "0" })
            .arg(batch.name);
        for id in batch.ids() {
            let Some(user) = UserId::new(id) else { return Err(Error::InvalidRequest("ids are used up")) };
            call = call.key(Keys(home).user(user));
            call = if batch.prefixed { call.arg(format!("{}{id}", batch.name)) } else { call.arg(batch.name) };
        }
        Created::read(&self.call(home, &call).await?)
    }

    /// `product_create.lua`.
    ///
    /// # Errors
    /// The shared refusals.
    pub async fn product_create(&self, call: &Call, id: ProductId, new: &NewProduct) -> Result<Created, Error> {
        let here = self.owner(id.get());
        let keys = Keys(here);
        let call = self
            .begin_unrecorded(call, &script::PRODUCT_CREATE, here)
            .key(keys.product(id))
            .key(keys.price())
            .key(keys.stock())
            .key(keys.catalogue())
            .key(keys.category(new.category.as_str()))
            .arg(id.get())
            .arg(&new.name)
            .arg(new.price)
            .arg(new.stock)
            .arg(new.category.as_str());
        Created::read(&self.call(here, &call).await?)
    }

    /// `stock_release.lua`: how many units are still kept back.
    ///
    /// # Errors
    /// [`Error::ProductNotFound`], [`Error::InsufficientStock`] where less is kept back, and the shared refusals.
    pub async fn stock_release(&self, call: &Call, id: ProductId, units: i64) -> Result<Reply<i64>, Error> {
        let here = self.owner(id.get());
        let keys = Keys(here);
        let call = self
            .begin(call, &script::STOCK_RELEASE, here)
            .key(keys.stock())
            .key(keys.withheld())
            .arg(id.get())
            .arg(units);
        let answer = self.call(here, &call).await?;
        match answer.word.as_str() {
            "UNITS_RELEASED" => Ok(answer.reply(answer.get(2)?)),
            "PRODUCT_NOT_FOUND" => Err(Error::ProductNotFound),
            "INSUFFICIENT_STOCK" => Err(Error::InsufficientStock),
            _ => Err(answer.unknown()),
        }
    }

    /// `product_update.lua`: the product as it now is; `None` where its category is no longer `had`, and nothing was changed.
    ///
    /// # Errors
    /// [`Error::ProductNotFound`], [`Error::InsufficientStock`] where there is less to take off, and the shared refusals.
    pub async fn product_update(
        &self,
        call: &Call,
        id: ProductId,
        had: &str,
        patch: &ProductPatch,
    ) -> Result<Option<Reply<Product>>, Error> {
        let here = self.owner(id.get());
        let keys = Keys(here);
        let category = patch.category.as_ref().map_or(had, Category::as_str);
        let call = self
            .begin(call, &script::PRODUCT_UPDATE, here)
            .key(keys.product(id))
            .key(keys.price())
            .key(keys.stock())
            .key(keys.category(had))
            .key(keys.category(category))
            .arg(id.get())
            .arg(patch.name.as_deref().unwrap_or(""))
            .arg(patch.price.map(|price| price.to_string()).unwrap_or_default())
            .arg(had)
            .arg(category)
            .arg(patch.stock_delta.unwrap_or(0))
            .arg(MAX_STOCK);
        let answer = self.call(here, &call).await?;
        match answer.word.as_str() {
            "UPDATED" => {
                let (name, price, stock, category) = (answer.get(2)?, answer.get(3)?, answer.get(4)?, answer.get(5)?);
                Ok(Some(answer.reply(Product { product_id: id, name, price, stock, category })))
            }
            "STALE" => Ok(None),
            "PRODUCT_NOT_FOUND" => Err(Error::ProductNotFound),
            "INSUFFICIENT_STOCK" => Err(Error::InsufficientStock),
            "LIMIT_EXCEEDED" => Err(Error::InvalidRequest("the product would have too many units")),
            _ => Err(answer.unknown()),
        }
    }
}
