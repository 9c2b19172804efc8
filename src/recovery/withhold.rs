//! Withholds the units and coupons that lost decisions may have sold or issued, until an operator releases them. Emits
//! the event that begins the new epoch in each partition.

use std::collections::{BTreeMap, HashSet};

use super::findings::{Bound, PossibleLosses};
use crate::{
    model::{CouponId, MAX_LINE_QUANTITY, Millis, Partition, Scope},
    redis::{Store, bulk::Bulk, keys::Keys},
};

/// Products or campaigns in one event.
const BATCH: usize = 1000;

pub(super) struct Withhold<'a> {
    pub(super) store: &'a Store,
    pub(super) scope: &'a Scope,
    pub(super) now: Millis,
    pub(super) losses: &'a PossibleLosses,
}

/// The positive counts of a page, each at most `max`.
fn at_most(page: Vec<(i64, i64)>, max: i64) -> Vec<(i64, i64)> {
    page.into_iter().map(|(id, count)| (id, count.min(max))).filter(|(_, count)| *count > 0).collect()
}

impl Withhold<'_> {
    /// Withholds by the bounds of the possible losses. Returns the withheld units and coupons by partition.
    pub(super) async fn run(&self, bulk: &mut Bulk<'_>) -> anyhow::Result<BTreeMap<Partition, (i64, i64)>> {
        bulk.flush().await?;
        let mut withheld = BTreeMap::new();
        for here in self.scope.iter() {
            let (mut begun, mut units, mut coupons) = (false, 0, 0);
            if let Some(bound) = self.losses.bound(here) {
                let (mut cursor, mut seen) = (Some("0".to_owned()), HashSet::new());
                while let Some(from) = cursor {
                    let (mut page, next) = self.store.stock_page(here, &from, BATCH).await?;
                    cursor = next;
                    page.retain(|(product, _)| seen.insert(*product));
                    if !page.is_empty() {
                        units += self.units(bulk, here, page, bound).await?;
                        begun = true;
                    }
                }
                let mut offset = 0;
                loop {
                    let page = self.store.campaign_page(here, offset, BATCH).await?;
                    offset += page.len();
                    if page.is_empty() {
                        break;
                    }
                    coupons += self.coupons(bulk, here, page, bound).await?;
                    begun = true;
                }
            }
            if !begun {
                self.emit(bulk, here, &[], &[]).await?;
            }
            withheld.insert(here, (units, coupons));
        }
        Ok(withheld)
    }

    async fn units(
        &self,
        bulk: &mut Bulk<'_>,
        here: Partition,
        page: Vec<(i64, i64)>,
        bound: Bound,
    ) -> anyhow::Result<i64> {
        // A decision sells at most MAX_LINE_QUANTITY units of one product.
        let kept = at_most(page, bound.map_or(i64::MAX, |lost| lost.saturating_mul(MAX_LINE_QUANTITY)));
        self.emit(bulk, here, &kept, &[]).await?;
        for (id, kept) in &kept {
            bulk.count(here, Keys(here).stock(), *id, -kept).await?;
            bulk.count(here, Keys(here).withheld(), *id, *kept).await?;
        }
        Ok(kept.iter().map(|(_, kept)| kept).sum())
    }

    async fn coupons(
        &self,
        bulk: &mut Bulk<'_>,
        here: Partition,
        page: Vec<(i64, i64)>,
        bound: Bound,
    ) -> anyhow::Result<i64> {
        let kept = at_most(page, bound.unwrap_or(i64::MAX));
        self.emit(bulk, here, &[], &kept).await?;
        for (coupon, kept) in kept.iter().filter_map(|(id, kept)| Some((CouponId::new(*id)?, *kept))) {
            let campaign = Keys(here).campaign(coupon);
            bulk.count(here, campaign.clone(), "withheld", kept).await?;
            // The issue numbers of the lost coupons are not issued again.
            bulk.count(here, campaign, "skipped", kept).await?;
        }
        Ok(kept.iter().map(|(_, kept)| kept).sum())
    }

    async fn emit(
        &self,
        bulk: &mut Bulk<'_>,
        here: Partition,
        units: &[(i64, i64)],
        coupons: &[(i64, i64)],
    ) -> anyhow::Result<()> {
        let packed = |counts: &[(i64, i64)]| {
            counts.iter().map(|(id, count)| format!("{id}:{count}")).collect::<Vec<_>>().join(",")
        };
        let fields = [("units", packed(units)), ("coupons", packed(coupons))];
        Ok(bulk.emit(here, self.now, "rebuilt", &fields).await?)
    }
}
