//! Coupons that campaigns issued to users of other partitions.

use std::collections::BTreeSet;

use crate::{
    audit::{
        Audit,
        delta::Moment,
        expected::expected_remote_coupons,
        fields::{add_record, differ},
        report::Findings,
    },
    model::Partition,
};

impl Audit {
    pub(super) async fn remote_coupons(
        &self,
        here: Partition,
        ids: &[i64],
        findings: &mut Findings,
    ) -> anyhow::Result<()> {
        let partitions = self.store.partitions();
        let Moment { rows, seen, since, .. } = self
            .moment(
                here,
                async |snapshot| snapshot.remote_coupons_of(ids, here.0, partitions).await,
                async |outbox| self.store.inspect_remote_coupons(here, outbox, ids).await,
            )
            .await?;
        let mut expected = expected_remote_coupons(rows, &since);
        for (user, seen) in ids.iter().zip(&seen) {
            let expected = expected.remove(user).unwrap_or_default();
            let expected = expected.into_iter().map(|(coupon, record)| (coupon.to_string(), record));
            let expected: crate::redis::queries::audit::HashFields = expected.collect();
            let all: BTreeSet<&String> = seen.keys().chain(expected.keys()).collect();
            let shown = |record: Option<&String>| record.cloned().unwrap_or_default();
            let wrong = all.into_iter().map(|coupon| {
                differ(&format!("coupon {coupon}, as issued,"), shown(seen.get(coupon)), shown(expected.get(coupon)))
            });
            add_record(findings, &format!("partition {}: user", here.0), user, wrong.collect());
        }
        Ok(())
    }
}
