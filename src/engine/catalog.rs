//! Products: the catalogue and the popular ones.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::*;

/// How long a merged ranking is served without looking again. A sale or refund by this process makes it look at once; so
/// this bounds only how late another process's sales are seen.
const POPULAR_TTL: Duration = Duration::from_secs(1);
/// Places kept of each ranking: the most that a request may ask for.
const POPULAR_PLACES: usize = 100;

/// Merged rankings by scope, and the number of sales and refunds made by this process.
#[derive(Default)]
pub(super) struct PopularCache {
    sales: AtomicU64,
    cached: Mutex<HashMap<RankingScope, CachedRanking>>,
    /// Held by the one request that merges.
    merging: tokio::sync::Mutex<()>,
}

#[derive(Clone)]
struct CachedRanking {
    at: Instant,
    day: NaiveDate,
    sales: u64,
    ranking: Arc<Vec<RankedProduct>>,
}

impl PopularCache {
    /// A sale or a refund was made: what was merged before no longer holds.
    pub(super) fn sold(&self) {
        self.sales.fetch_add(1, Ordering::SeqCst);
    }

    /// What was merged, if it includes the first `sales` sales.
    fn get(&self, scope: RankingScope, day: NaiveDate, sales: u64) -> Option<Arc<Vec<RankedProduct>>> {
        let merged = self.cached.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let found = merged.get(&scope)?;
        (found.day == day && found.sales >= sales && found.at.elapsed() < POPULAR_TTL).then(|| found.ranking.clone())
    }
}

impl Engine {
    /// A product.
    ///
    /// # Errors
    /// [`Error::ProductNotFound`].
    pub async fn product(&self, product: ProductId) -> Result<Product, Error> {
        self.store.product(product).await
    }

    /// A page of the catalogue by product id.
    ///
    /// # Errors
    /// Redis can't answer.
    pub async fn products(&self, page: i64, size: i64, category: Option<Category>) -> Result<ProductPage, Error> {
        let (products, total) = self.store.products(page * size, size, category.as_ref()).await?;
        Ok(ProductPage { products, page, size, total })
    }

    /// The most sold products of a scope, at most `limit` (to 100). Includes every sale that this process answered before.
    ///
    /// # Errors
    /// Redis can't answer.
    pub async fn popular(&self, scope: RankingScope, limit: usize) -> Result<Vec<RankedProduct>, Error> {
        let (today, sales) = (self.today(), self.popular.sales.load(Ordering::SeqCst));
        let ranking = match self.popular.get(scope, today, sales) {
            Some(ranking) => ranking,
            None => {
                // One request merges for all that came meanwhile.
                let _merging = self.popular.merging.lock().await;
                match self.popular.get(scope, today, sales) {
                    Some(ranking) => ranking,
                    None => self.merge(scope, today).await?,
                }
            }
        };
        Ok(ranking.iter().take(limit).cloned().collect())
    }

    async fn merge(&self, scope: RankingScope, day: NaiveDate) -> Result<Arc<Vec<RankedProduct>>, Error> {
        // Counted before reading: a sale during the read may be missing from it.
        let sales = self.popular.sales.load(Ordering::SeqCst);
        let ranking = Arc::new(self.store.ranking(day, scope.days(), POPULAR_PLACES).await?);
        let merged = CachedRanking { at: Instant::now(), day, sales, ranking: ranking.clone() };
        self.popular.cached.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).insert(scope, merged);
        Ok(ranking)
    }
}
