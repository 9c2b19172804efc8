//! The catalog: products, and the ranking of the most sold ones.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::*;

/// The lifetime of a cached ranking. A sale or a refund of this process expires it at once, so this bounds only the delay of
/// other processes' sales.
const POPULAR_TTL: Duration = Duration::from_secs(1);
/// The length of a cached ranking: the maximum that a request may ask for.
const POPULAR_PLACES: usize = 100;

/// The cached rankings by scope, and the number of sales and refunds of this process.
#[derive(Default)]
pub(super) struct PopularCache {
    sales: AtomicU64,
    cached: Mutex<HashMap<RankingScope, CachedRanking>>,
    /// Held by the request that merges the days' rankings.
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
    /// Records a sale or a refund: expires the cached rankings.
    pub(super) fn sold(&self) {
        self.sales.fetch_add(1, Ordering::SeqCst);
    }

    /// The cached ranking, if it includes the first `sales` sales.
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

    /// A page of the catalog by product id.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn products(&self, page: i64, size: i64, category: Option<Category>) -> Result<Page<Product>, Error> {
        let (products, total) = self.store.products(page * size, size, category.as_ref()).await?;
        Ok(Page { items: products, page, size, total })
    }

    /// The most sold products of a scope, at most `limit` (up to 100). Includes every sale that this process has replied to.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn popular(&self, scope: RankingScope, limit: usize) -> Result<Vec<RankedProduct>, Error> {
        let (today, sales) = (self.today(), self.popular.sales.load(Ordering::SeqCst));
        let ranking = match self.popular.get(scope, today, sales) {
            Some(ranking) => ranking,
            None => {
                // One request merges; concurrent ones wait and use its result.
                let _merging = self.popular.merging.lock().await;
                match self.popular.get(scope, today, sales) {
                    Some(ranking) => ranking,
                    None => self.load_ranking(scope, today).await?,
                }
            }
        };
        Ok(ranking.iter().take(limit).cloned().collect())
    }

    async fn load_ranking(&self, scope: RankingScope, day: NaiveDate) -> Result<Arc<Vec<RankedProduct>>, Error> {
        // Load the count before the read: the ranking may lack a sale made during the read.
        let sales = self.popular.sales.load(Ordering::SeqCst);
        let ranking = Arc::new(self.store.ranking(day, scope.days(), POPULAR_PLACES).await?);
        let loaded = CachedRanking { at: Instant::now(), day, sales, ranking: ranking.clone() };
        self.popular.cached.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).insert(scope, loaded);
        Ok(ranking)
    }
}
