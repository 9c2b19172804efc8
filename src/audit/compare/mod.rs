//! Compares the records of Redis with those of PostgreSQL, kind by kind.

mod campaigns;
mod limit_groups;
mod orders;
mod partition_stock;
mod prices;
mod products;
mod rankings;
mod records;
mod remote_coupons;
mod users;

use super::{Audit, PAGE, PAGES, report::Findings};
use crate::{
    model::Partition,
    postgres::{queries::page::RecordKind, snapshot::Snapshot},
};

impl Audit {
    /// Compares the records of a partition with these ids.
    pub(super) async fn compare(
        &self,
        kind: RecordKind,
        here: Partition,
        ids: &[i64],
        findings: &mut Findings,
    ) -> anyhow::Result<()> {
        // Users read several pages at a time.
        let size = if kind == RecordKind::Users { PAGE * PAGES } else { PAGE };
        for page in ids.chunks(size) {
            self.compare_page(kind, here, page, findings).await?;
        }
        Ok(())
    }

    async fn compare_page(
        &self,
        kind: RecordKind,
        here: Partition,
        ids: &[i64],
        findings: &mut Findings,
    ) -> anyhow::Result<()> {
        match kind {
            RecordKind::Users => self.users(here, ids, findings).await,
            RecordKind::Products => {
                let mut snapshot = Snapshot::begin(&self.db).await?;
                let known = snapshot.categories_of(ids).await?;
                snapshot.end().await?;
                let listed: Vec<(i64, String)> =
                    ids.iter().map(|id| (*id, known.get(id).cloned().unwrap_or_default())).collect();
                self.products(here, &listed, findings).await
            }
            RecordKind::Campaigns => self.campaigns(here, ids, findings).await,
            RecordKind::Orders => self.orders(here, ids, findings).await,
            RecordKind::PartitionStock => self.partition_stock(here, ids, findings).await,
            RecordKind::RemoteCoupons => self.remote_coupons(here, ids, findings).await,
        }
    }
}
