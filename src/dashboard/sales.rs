//! What sells: the rankings, and the products that a watcher of a sale wants to see.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use futures_util::future::{try_join, try_join_all};

use crate::{
    engine::Engine,
    model::{Error, ProductId, RankedProduct, RankingScope, ShelvedProduct},
};

/// Places of a ranking that are shown, and that are known, so that movement is seen from further below.
pub const SHOWN_PLACES: usize = 10;
const KNOWN_PLACES: usize = 100;
/// Products that are shown.
const SHOWN_PRODUCTS: usize = 12;
/// Products that may be those with most units held.
const HELD_CANDIDATES: usize = 48;

/// What sells, as of one reading.
pub struct Sales {
    /// By scope, the first places of each.
    pub rankings: Vec<(RankingScope, Vec<RankedProduct>)>,
    /// The products to show, in this order.
    pub hot: Vec<ProductId>,
    /// Those, and those in the rankings' shown places.
    pub shelves: HashMap<ProductId, ShelvedProduct>,
    /// For the next reading.
    pub held: Held,
}

/// Which products have most units held: every reading learns of some products.
#[derive(Clone, Default)]
pub struct Held {
    /// How far the look around has come, by partition.
    cursors: Vec<String>,
    /// Units held when last seen, of those with most.
    most: Vec<(ProductId, i64)>,
}

impl Held {
    fn learn(&mut self, seen: Vec<(ProductId, i64)>, cursors: Vec<String>) {
        self.cursors = cursors;
        let mut most: HashMap<ProductId, i64> = self.most.drain(..).collect();
        most.extend(seen);
        self.most = most.into_iter().filter(|(_, held)| *held > 0).collect();
        self.most.sort_unstable_by_key(|(id, held)| (std::cmp::Reverse(*held), *id));
        self.most.truncate(HELD_CANDIDATES);
    }
}

impl Sales {
    /// Reads them.
    ///
    /// # Errors
    /// Redis can't answer.
    pub async fn read(engine: Arc<Engine>, mut held: Held) -> Result<Self, Error> {
        let ranking = async |scope: RankingScope| Ok((scope, engine.popular(scope, KNOWN_PLACES).await?));
        let rankings = try_join_all(RankingScope::ALL.iter().map(|scope| ranking(*scope)));
        let (rankings, (seen, cursors)) = try_join(rankings, engine.held_lately(&held.cursors)).await?;
        held.learn(seen, cursors);
        let shown = |(_, ranked): &(RankingScope, Vec<RankedProduct>)| {
            ranked.iter().take(SHOWN_PLACES).map(|product| product.product_id).collect::<Vec<_>>()
        };
        let mut hot = rankings.iter().find(|(scope, _)| *scope == RankingScope::Today).map(shown).unwrap_or_default();
        let mut ids: HashSet<ProductId> = rankings.iter().flat_map(shown).collect();
        ids.extend(held.most.iter().map(|(id, _)| *id));
        let mut quiet = Vec::new();
        if ids.len() < SHOWN_PRODUCTS {
            // Before a sale: what there is to sell.
            let catalogue = engine.products(0, SHOWN_PRODUCTS as i64, None).await?;
            quiet.extend(catalogue.products.into_iter().map(|product| product.product_id));
            ids.extend(&quiet);
        }
        let ids: Vec<ProductId> = ids.into_iter().collect();
        let shelves = engine.shelves(&ids).await?;
        let shelves: HashMap<ProductId, ShelvedProduct> =
            shelves.into_iter().map(|product| (product.product_id, product)).collect();
        let mut most: Vec<&ShelvedProduct> = shelves.values().filter(|product| product.held > 0).collect();
        most.sort_unstable_by_key(|product| (std::cmp::Reverse(product.held), product.product_id));
        for id in most.into_iter().map(|product| product.product_id).chain(quiet) {
            if hot.len() < SHOWN_PRODUCTS && !hot.contains(&id) {
                hot.push(id);
            }
        }
        Ok(Sales { rankings, hot, shelves, held })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn sales_keep_largest_and_drop_absent() {
        let id = |id: i64| ProductId::new(id).unwrap();
        let mut held = Held::default();
        held.learn((1..=1000).map(|n| (id(n), n)).collect(), vec!["7".to_owned()]);
        assert_eq!((held.most.len(), held.most[0], held.cursors[0].as_str()), (HELD_CANDIDATES, (id(1000), 1000), "7"));
        held.learn(vec![(id(1000), 0), (id(3), 5_000)], vec!["0".to_owned()]);
        assert_eq!(held.most[..2], [(id(3), 5_000), (id(999), 999)]);
        assert!(held.most.iter().all(|(product, _)| *product != id(1000)));
    }
}
