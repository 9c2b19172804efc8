//! Products, with their counters and the lists that they are in.

use std::collections::BTreeMap;

use crate::{
    audit::{
        Audit,
        delta::Moment,
        expected::{expected_allotments, expected_products},
        fields::{add_record, differ, field, int, one_sided, other_score, unknown_fields},
        report::Findings,
    },
    model::Partition,
    postgres::queries::page::priced,
    redis::queries::audit::ProductSeen,
};

const FIELDS: &[&str] = &["name", "category", "stocked"];

impl Audit {
    /// `ids`: each with the category in whose list the product is looked up.
    pub(in crate::audit) async fn products(
        &self,
        here: Partition,
        ids: &[(i64, String)],
        findings: &mut Findings,
    ) -> anyhow::Result<()> {
        let numbers: Vec<i64> = ids.iter().map(|(id, _)| *id).collect();
        let Moment { rows: (rows, allotments), seen, since, .. } = self
            .moment(
                here,
                async |snapshot| Ok((snapshot.products_of(&numbers).await?, snapshot.allotments_of(&numbers).await?)),
                async |outbox| self.store.inspect_products(here, outbox, ids).await,
            )
            .await?;
        let expected = expected_products(rows, &since);
        let allotments = expected_allotments(allotments, &since);
        for ((id, category), seen) in ids.iter().zip(&seen) {
            let ProductSeen { fields, counters, given, listed, listed_in_category } = seen;
            let row = expected.get(id);
            let mut wrong = vec![one_sided(!fields.is_empty(), row.is_some())];
            let [price, on_sale, held, sold, withheld, quarantined, version] =
                counters.each_ref().map(|counter| counter.as_deref().unwrap_or_default());
            let or_zero = |units| if str::is_empty(units) { "0" } else { units };
            let (held, sold) = (or_zero(held), or_zero(sold));
            let (withheld, quarantined) = (or_zero(withheld), or_zero(quarantined));
            if let (Some(row), false) = (row, fields.is_empty()) {
                let (with_others, more) = self.allotted(*id, given, &allotments);
                wrong.extend(more);
                let [of_sale, of_holds, of_sales, of_loss, of_refunds] =
                    [on_sale, held, sold, withheld, quarantined].map(|units| units.parse::<i64>().unwrap_or(i64::MIN));
                let units = [of_sale, of_holds, of_sales, of_loss, of_refunds, with_others];
                let sum = units.iter().fold(0i64, |sum, units| sum.saturating_add(*units));
                wrong.extend([
                    differ("the name", field(fields, "name"), &row.name),
                    differ("the category", field(fields, "category"), &row.category),
                    differ("the price, with the terms of sale,", price, priced(row.price, &row.terms)),
                    differ("the number of the price", or_zero(version), row.price_version),
                    differ("on sale", on_sale, row.on_sale),
                    differ("held", held, row.held),
                    differ("sold", sold, row.sold),
                    differ("withheld", withheld, row.withheld),
                    differ("quarantined", quarantined, row.quarantined),
                    differ("with other partitions", with_others, row.allotted),
                    differ("stocked", field(fields, "stocked"), row.stocked),
                    (sum != int(fields, "stocked")).then(|| {
                        format!(
                            "{units:?} on sale, held, sold, withheld, quarantined and with other partitions are not {} stocked",
                            field(fields, "stocked")
                        )
                    }),
                    units.iter().any(|units| *units < 0).then(|| format!("{units:?} has a negative number of units")),
                    listed.is_none().then(|| "it is not in the catalogue".to_owned()),
                    other_score("it is in the catalogue", *listed, *id),
                    other_score("it is in the list of its category", *listed_in_category, *id),
                ]);
                wrong.extend(unknown_fields(fields, FIELDS));
                let belongs = field(fields, "category") == category;
                match (belongs, listed_in_category.is_some()) {
                    (true, false) => wrong.push(Some(format!("it is not in the list of category {category:?}"))),
                    (false, true) => wrong.push(Some(format!("it is in the list of category {category:?}"))),
                    _ => {}
                }
            }
            let is_counted = counters.iter().any(Option::is_some);
            if fields.is_empty() && row.is_none() && (is_counted || listed.is_some() || listed_in_category.is_some()) {
                wrong.push(Some("it has counters or is listed, and there is no such product".to_owned()));
            }
            add_record(findings, "product", id, wrong);
        }
        Ok(())
    }

    /// The units of a product with other partitions, and the discrepancies of the counts.
    fn allotted(
        &self,
        product: i64,
        given: &[[Option<String>; 3]],
        expected: &BTreeMap<(i64, u16), [i64; 3]>,
    ) -> (i64, Vec<Option<String>>) {
        let (mut sum, mut wrong) = (0i64, Vec::new());
        for (other, counts) in self.store.all().zip(given) {
            let expected = expected.get(&(product, other.0)).copied().unwrap_or_default();
            let mut units = [0; 3];
            for (((noun, count), expected), units) in ["given to", "taken back from", "taken back, withheld, from"]
                .iter()
                .zip(counts)
                .zip(expected)
                .zip(&mut units)
            {
                let text = count.as_deref().unwrap_or("0");
                wrong.push(differ(&format!("{noun} partition {}", other.0), text, expected));
                *units = text.parse().unwrap_or(i64::MIN);
            }
            sum = sum.saturating_add(units[0]).saturating_sub(units[1]).saturating_sub(units[2]);
        }
        (sum, wrong)
    }
}
