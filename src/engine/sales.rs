//! Reads of sales for operators: what is on sale when, and who has how much of a product.

use std::collections::HashMap;

use super::*;
use crate::model::Partition;

/// The length of a plan without an end, and how far before now one without a beginning begins.
const PLAN_MS: i64 = 8 * 86_400_000;
const PLAN_BEGINS_BEFORE_MS: i64 = 86_400_000;
/// The maximum numbers of products and of campaigns of a plan.
const MAX_PLANNED_PRODUCTS: usize = 500;
const MAX_PLANNED_CAMPAIGNS: usize = 200;

impl Engine {
    /// The sales whose window includes a moment of `from..until`; by default of the last day and the next seven. Waits for the
    /// projection, at most [`PROJECTION_TIMEOUT`].
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] if the range is empty; [`Error::Unavailable`] while Redis or PostgreSQL is.
    pub async fn sales_plan(&self, from: Option<Millis>, until: Option<Millis>) -> Result<SalesPlan, Error> {
        let now = self.store.now(Partition(0));
        let from = from.unwrap_or(now.plus(-PLAN_BEGINS_BEFORE_MS));
        let until = until.unwrap_or(from.plus(PLAN_MS).min(Millis::MAX));
        if from >= until {
            return Err(Error::InvalidRequest("the range is empty"));
        }
        self.wait_for_projection().await?;
        let (ids, all_products) = self.planned_products(from, until).await?;
        let mut shelves: HashMap<ProductId, ShelvedProduct> =
            self.shelves(&ids).await?.into_iter().map(|product| (product.product_id, product)).collect();
        let products = ids.iter().filter_map(|id| shelves.remove(id)).collect();
        let (campaigns, all_campaigns) = self.planned_campaigns(now, from, until).await?;
        Ok(SalesPlan { from, until, products, campaigns, complete: all_products && all_campaigns })
    }

    /// The products of a plan, and whether these are all.
    async fn planned_products(&self, from: Millis, until: Millis) -> Result<(Vec<ProductId>, bool), Error> {
        let most = MAX_PLANNED_PRODUCTS as i64 + 1;
        let mut ids = postgres::queries::sales::products_with_terms(&self.db, from, until, most).await?;
        let all = ids.len() <= MAX_PLANNED_PRODUCTS;
        ids.truncate(MAX_PLANNED_PRODUCTS);
        Ok((ids, all))
    }

    /// The campaigns of a plan, and whether these are all.
    async fn planned_campaigns(
        &self,
        now: Millis,
        from: Millis,
        until: Millis,
    ) -> Result<(Vec<Campaign>, bool), Error> {
        let most = MAX_PLANNED_CAMPAIGNS as i64 + 1;
        let mut campaigns = self.store.campaigns_closing_after(now.0 - from.0, most).await?;
        let here = |here: Partition| {
            campaigns.iter().filter(|campaign| self.store.owner(campaign.terms.coupon_id.get()) == here).count()
        };
        let all_read = self.store.all().all(|partition| here(partition) <= MAX_PLANNED_CAMPAIGNS);
        campaigns.retain(|campaign| campaign.terms.opens_at < until);
        let all = all_read && campaigns.len() <= MAX_PLANNED_CAMPAIGNS;
        campaigns.truncate(MAX_PLANNED_CAMPAIGNS);
        Ok((campaigns, all))
    }

    /// A product and its units by state.
    ///
    /// # Errors
    /// [`Error::ProductNotFound`]; [`Error::Unavailable`] while Redis is.
    pub async fn shelved_product(&self, product: ProductId) -> Result<ShelvedProduct, Error> {
        match self.shelves(&[product]).await?.pop() {
            Some(found) => Ok(found),
            // Tells an unknown product from a Redis that lost its data.
            None => self.product(product).await.and(Err(Error::ProductNotFound)),
        }
    }

    /// A page of the users with units that count against a product's limit. Waits for the projection, at most
    /// [`PROJECTION_TIMEOUT`].
    ///
    /// # Errors
    /// [`Error::ProductNotFound`]; [`Error::Unavailable`] while Redis or PostgreSQL is.
    pub async fn limited_users(&self, product: ProductId, page: i64, size: i64) -> Result<LimitedUsers, Error> {
        let terms = self.product(product).await?.terms;
        self.wait_for_projection().await?;
        postgres::queries::sales::limited_users(&self.db, product, terms, page, size).await
    }
}
