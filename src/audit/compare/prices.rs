//! The prices of products in partitions that do not own them.

use std::collections::HashMap;

use crate::{
    audit::{
        Audit,
        fields::{differ, number},
    },
    model::Partition,
    redis::keys::KeyKind,
};

impl Audit {
    /// Compares the prices. The relay brings a changed one soon. Returns the number of prices and the discrepancies.
    pub(in crate::audit) async fn prices(&self) -> anyhow::Result<(i64, Vec<String>)> {
        let (mut count, mut wrong) = (0, Vec::new());
        for here in self.store.all() {
            let mut cursor = Some("0".to_owned());
            while let Some(from) = cursor {
                let (fields, next) = self.store.field_page(here, &KeyKind::Price, &from).await?;
                cursor = next;
                let ids: Vec<i64> = fields.iter().filter_map(|(field, _)| number(field)).collect();
                let remote: Vec<i64> = ids.into_iter().filter(|id| self.store.owner(*id) != here).collect();
                if remote.is_empty() {
                    continue;
                }
                count += remote.len() as i64;
                let seen = self.store.prices_of(here, &remote).await?;
                let expected = self.owners_prices(&remote).await?;
                for (id, (price, version)) in remote.iter().zip(seen) {
                    let Some((expected, number)) = expected.get(id) else {
                        wrong.push(format!("partition {} has a price of product {id}, which does not exist", here.0));
                        continue;
                    };
                    let what = format!("partition {}: product {id}:", here.0);
                    wrong.extend(differ(&format!("{what} the price, with the terms of sale,"), price, expected));
                    wrong.extend(differ(&format!("{what} the number of the price"), version, number));
                }
            }
        }
        Ok((count, wrong))
    }

    /// The prices of these products, each with its number, in their owner partitions.
    async fn owners_prices(&self, ids: &[i64]) -> anyhow::Result<HashMap<i64, (String, String)>> {
        let mut by_owner: HashMap<Partition, Vec<i64>> = HashMap::new();
        for id in ids {
            by_owner.entry(self.store.owner(*id)).or_default().push(*id);
        }
        let mut prices = HashMap::new();
        for (owner, ids) in by_owner {
            let read = self.store.prices_of(owner, &ids).await?;
            let known = ids.into_iter().zip(read).filter(|(_, (price, _))| !price.is_empty());
            // A price that never changed has no number.
            let number = |version: String| if version.is_empty() { "0".to_owned() } else { version };
            prices.extend(known.map(|(id, (price, version))| (id, (price, number(version)))));
        }
        Ok(prices)
    }
}
