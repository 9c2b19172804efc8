//! What decisions that were lost may have taken, kept off sale until an operator releases it; and the event that begins
//! the new epoch in each partition.

use crate::{
    domain::{
        model::MAX_LINE_QUANTITY,
        types::{CouponId, Millis},
    },
    store::{
        Store,
        bulk::Bulk,
        keys::{Keys, Partition},
    },
};

/// Products, or campaigns, in one event.
const AT_ONCE: usize = 1000;

pub(super) struct Withhold<'a> {
    pub(super) store: &'a Store,
    pub(super) now: Millis,
    pub(super) doubt: &'a [bool],
    /// Decisions that a doubtful partition lost at most; `None`: nobody knows.
    pub(super) lost_at_most: Option<i64>,
}

impl Withhold<'_> {
    /// Returns the units and the coupons that are kept off sale.
    pub(super) async fn run(&self, bulk: &mut Bulk<'_>) -> anyhow::Result<(i64, i64)> {
        bulk.flush().await?;
        let (mut units, mut coupons) = (0, 0);
        for here in self.store.all() {
            let mut begun = false;
            if self.doubt[usize::from(here.0)] {
                let mut offset = 0;
                loop {
                    let page = self.store.stock_page(here, offset, AT_ONCE).await?;
                    offset += page.len();
                    if page.is_empty() {
                        break;
                    }
                    units += self.units(bulk, here, page).await?;
                    begun = true;
                }
                let mut offset = 0;
                loop {
                    let page = self.store.campaign_page(here, offset, AT_ONCE).await?;
                    offset += page.len();
                    if page.is_empty() {
                        break;
                    }
                    coupons += self.coupons(bulk, here, page).await?;
                    begun = true;
                }
            }
            if !begun {
                self.emit(bulk, here, &[], &[]).await?;
            }
        }
        Ok((units, coupons))
    }

    /// A decision takes at most this many units of one product.
    fn most_units(&self) -> i64 {
        self.lost_at_most.map_or(i64::MAX, |lost| lost.saturating_mul(MAX_LINE_QUANTITY))
    }

    async fn units(&self, bulk: &mut Bulk<'_>, here: Partition, page: Vec<(i64, i64)>) -> anyhow::Result<i64> {
        let most = self.most_units();
        let kept: Vec<(i64, i64)> = page.into_iter().map(|(id, on_sale)| (id, on_sale.min(most))).collect();
        let kept: Vec<(i64, i64)> = kept.into_iter().filter(|(_, kept)| *kept > 0).collect();
        self.emit(bulk, here, &kept, &[]).await?;
        for (id, kept) in &kept {
            bulk.count(here, Keys(here).stock(), *id, -kept).await?;
            bulk.count(here, Keys(here).withheld(), *id, *kept).await?;
        }
        Ok(kept.iter().map(|(_, kept)| kept).sum())
    }

    async fn coupons(&self, bulk: &mut Bulk<'_>, here: Partition, page: Vec<(i64, i64)>) -> anyhow::Result<i64> {
        let most = self.lost_at_most.unwrap_or(i64::MAX);
        let kept: Vec<(i64, i64)> = page.into_iter().map(|(id, left)| (id, left.min(most))).collect();
        let kept: Vec<(i64, i64)> = kept.into_iter().filter(|(_, kept)| *kept > 0).collect();
        self.emit(bulk, here, &[], &kept).await?;
        for (coupon, kept) in kept.iter().filter_map(|(id, kept)| Some((CouponId::new(*id)?, *kept))) {
            let campaign = Keys(here).campaign(coupon);
            bulk.count(here, campaign.clone(), "withheld", kept).await?;
            // Nor are the places given out again that whoever got these coupons was told.
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
