//! What a partition has of products of others.

use crate::{
    audit::{
        Audit,
        delta::Moment,
        expected::expected_partition_stock,
        fields::{add_record, differ, number},
        report::Findings,
    },
    model::Partition,
};

impl Audit {
    pub(super) async fn partition_stock(
        &self,
        here: Partition,
        ids: &[i64],
        findings: &mut Findings,
    ) -> anyhow::Result<()> {
        let Moment { rows, seen, since, .. } = self
            .moment(
                here,
                async |snapshot| snapshot.partition_stock_of(here.0, ids).await,
                async |outbox| self.store.inspect_partition_stock(here, outbox, ids).await,
            )
            .await?;
        let expected = expected_partition_stock(rows, &since);
        for (id, counters) in ids.iter().zip(&seen) {
            let row = expected.get(id).cloned().unwrap_or_default();
            let named = [
                ("on sale", row.on_sale),
                ("held", row.held),
                ("sold", row.sold),
                ("withheld", row.withheld),
                ("quarantined", row.quarantined),
                ("received", row.received),
                ("given back", row.returned),
                ("withheld units given back", row.surrendered),
            ];
            let text = |counter: &Option<String>| counter.clone().unwrap_or_else(|| "0".to_owned());
            let mut wrong: Vec<Option<String>> =
                named.iter().zip(counters).map(|((noun, units), counter)| differ(noun, text(counter), units)).collect();
            let units: Vec<i64> = counters.iter().map(|counter| number(&text(counter)).unwrap_or(i64::MIN)).collect();
            let has: i64 = units.iter().take(5).fold(0, |sum, units| sum.saturating_add(*units));
            let given = units.iter().skip(6).fold(units[5], |rest, back| rest.saturating_sub(*back));
            wrong.push((has != given).then(|| {
                format!(
                    "{has} on sale, held, sold, withheld and quarantined are not the {given} that it received and did not give back"
                )
            }));
            wrong.push(
                units.iter().any(|units| *units < 0).then(|| format!("{units:?} has a negative number of units")),
            );
            add_record(findings, &format!("partition {}: product", here.0), id, wrong);
        }
        Ok(())
    }
}
