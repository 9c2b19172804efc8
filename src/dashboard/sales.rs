//! Sales: the rankings, and the products of interest during a sale.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use futures_util::future::{try_join, try_join_all};

use crate::{
    engine::Engine,
    model::{Error, ProductId, RankedProduct, RankingScope, ShelvedProduct},
};

/// The places of a ranking that are shown, and those that are read, so that movement from further below is seen.
pub const SHOWN_PLACES: usize = 10;
const KNOWN_PLACES: usize = 100;
/// The most products in a snapshot.
const SHOWN_PRODUCTS: usize = 12;
/// The products that are candidates for the most held units.
const HELD_CANDIDATES: usize = 48;

/// The sales of one read.
pub struct Sales {
    /// The first places of each ranking, by scope.
    pub rankings: Vec<(RankingScope, Vec<RankedProduct>)>,
    /// The products to show, in this order.
    pub hot: Vec<ProductId>,
    /// The shown products, and those in the rankings' shown places.
    pub shelves: HashMap<ProductId, ShelvedProduct>,
    /// Kept for the next read.
    pub held: MostHeld,
}

/// The products with the most held units. Every read looks at some products.
#[derive(Clone, Default)]
pub struct MostHeld {
    /// How far the search has come, by partition.
    cursors: Vec<String>,
    /// The last known held units of the candidates.
    most: Vec<(ProductId, i64)>,
}

impl MostHeld {
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
    /// Reads the sales.
    ///
    /// # Errors
    /// Redis can't answer.
    pub async fn read(engine: Arc<Engine>, mut held: MostHeld) -> Result<Self, Error> {
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
            // Before a sale there are no rankings: the first products.
            let catalogue = engine.products(0, SHOWN_PRODUCTS as i64, None).await?;
            quiet.extend(catalogue.items.into_iter().map(|product| product.product_id));
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
mod tests {
    use super::*;

    #[test]
    fn sales_keep_largest_and_drop_absent() {
        let id = |id: i64| ProductId::new(id).unwrap();
        let mut held = MostHeld::default();
        held.learn((1..=1000).map(|n| (id(n), n)).collect(), vec!["7".to_owned()]);
        assert_eq!((held.most.len(), held.most[0], held.cursors[0].as_str()), (HELD_CANDIDATES, (id(1000), 1000), "7"));
        held.learn(vec![(id(1000), 0), (id(3), 5_000)], vec!["0".to_owned()]);
        assert_eq!(held.most[..2], [(id(3), 5_000), (id(999), 999)]);
        assert!(held.most.iter().all(|(product, _)| *product != id(1000)));
    }
}
