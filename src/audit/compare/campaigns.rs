//! Campaigns.

use crate::{
    audit::{
        Audit,
        delta::Moment,
        expected::expected_campaigns,
        fields::{add_record, counter, differ, field, int, number, one_sided, other_score, unknown_fields},
        report::Findings,
    },
    model::Partition,
    redis::queries::audit::CampaignSeen,
};

const FIELDS: &[&str] = &[
    "code",
    "type",
    "amount",
    "total",
    "issued",
    "opens_at",
    "closes_at",
    "expires_at",
    "conditions",
    "withheld",
    "skipped",
    "reopening",
];

impl Audit {
    pub(super) async fn campaigns(&self, here: Partition, ids: &[i64], findings: &mut Findings) -> anyhow::Result<()> {
        let Moment { rows, seen, since, .. } = self
            .moment(
                here,
                async |snapshot| snapshot.campaigns_of(ids).await,
                async |outbox| self.store.inspect_campaigns(here, outbox, ids).await,
            )
            .await?;
        let expected = expected_campaigns(rows, &since);
        for (id, CampaignSeen { fields, holders, listed }) in ids.iter().zip(&seen) {
            let row = expected.get(id);
            let mut wrong = vec![one_sided(!fields.is_empty(), row.is_some())];
            if let (Some(row), false) = (row, fields.is_empty()) {
                let (issued, withheld) = (int(fields, "issued"), int(fields, "withheld"));
                let skipped = number(counter(fields, "skipped")).filter(|skipped| *skipped >= 0);
                wrong.extend([
                    differ("the code", field(fields, "code"), &row.code),
                    differ("the discount", field(fields, "type"), &row.discount_type),
                    differ("the discount", field(fields, "amount"), row.discount_amount),
                    differ("the conditions", field(fields, "conditions"), &row.conditions),
                    differ("the total", field(fields, "total"), row.total),
                    differ("issued", field(fields, "issued"), row.issued),
                    differ("withheld", counter(fields, "withheld"), row.withheld),
                    differ("the opening", field(fields, "opens_at"), row.opens_at),
                    differ("the closing", field(fields, "closes_at"), row.closes_at),
                    differ("the end", field(fields, "expires_at"), row.expires_at),
                    (issued != *holders).then(|| format!("{issued} coupons are issued to {holders} holders")),
                    (issued + withheld > int(fields, "total"))
                        .then(|| format!("{issued} issued and {withheld} withheld are more than there are")),
                    // The next coupon gets the number after these.
                    skipped.is_none_or(|skipped| issued.saturating_add(skipped) < row.last_no).then(|| {
                        let skipped = counter(fields, "skipped");
                        format!(
                            "{issued} issued and {skipped:?} skipped numbers do not reach the last one, {}",
                            row.last_no
                        )
                    }),
                    listed.is_none().then(|| "it is not among the campaigns".to_owned()),
                    other_score("it is among the campaigns", *listed, row.closes_at),
                ]);
                wrong.extend(unknown_fields(fields, FIELDS));
            } else if row.is_none() && (listed.is_some() || *holders > 0) {
                wrong.push(Some("it is listed or has holders, and there is no such campaign".to_owned()));
            }
            add_record(findings, "campaign", id, wrong);
        }
        Ok(())
    }
}
