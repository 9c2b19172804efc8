//! The rankings of every day that a scope covers.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{Days, NaiveDate};

use crate::{
    audit::{
        Audit,
        delta::Moment,
        fields::{differ, number},
    },
    model::{OrderLine, OrderStatus, RankingScope, event::Body},
    redis::{commands::DAY_FORMAT, queries::audit::RanksSeen},
};

impl Audit {
    /// The days that a scope covers, the last one first.
    pub(in crate::audit) fn ranked_days(&self) -> Vec<NaiveDate> {
        let today = self.clock.now().day(self.zone);
        (0..u64::from(RankingScope::MAX_DAYS)).filter_map(|back| today.checked_sub_days(Days::new(back))).collect()
    }

    /// Compares the rankings. Returns the number of ranked products and the discrepancies.
    pub(in crate::audit) async fn rankings(&self) -> anyhow::Result<(i64, Vec<String>)> {
        let days = self.ranked_days();
        let first = days.last().copied().unwrap_or_default().format(DAY_FORMAT).to_string();
        let (partitions, zone) = (self.store.partitions(), self.zone.name());
        let mut moments = Vec::new();
        for here in self.store.all() {
            let Moment { rows, seen, since, .. } = self
                .moment(
                    here,
                    async |snapshot| snapshot.ranks_of(here.0, partitions, zone, &first).await,
                    async |outbox| self.store.inspect_ranks(here, outbox, &days).await,
                )
                .await?;
            let mut sales = Vec::new();
            for event in since.events {
                sales.extend(match event.body {
                    Body::OrderPaid(paid) => Some((paid.day, paid.lines, 1)),
                    Body::OrderClosed(closed) if closed.from == OrderStatus::Paid => {
                        Some((closed.day, closed.lines, -1))
                    }
                    Body::OrderRefunded(part) => Some((part.day, part.lines, -1)),
                    _ => None,
                });
            }
            moments.push((here, rows, seen, sales));
        }
        let (mut places, mut wrong) = (0, Vec::new());
        for (here, rows, seen, sales) in moments {
            // Units and won, by day and product.
            let mut expected: BTreeMap<(String, i64), (i64, i64)> =
                rows.into_iter().map(|row| ((row.day, row.product_id), (row.units, row.won))).collect();
            for (day, lines, sign) in &sales {
                for OrderLine { product_id, quantity, price, .. } in lines {
                    let (units, won) = expected.entry((day.clone(), product_id.get())).or_default();
                    *units += sign * quantity;
                    *won += sign * quantity * price;
                }
            }
            for (day, RanksSeen { units, won, stays }) in days.iter().zip(seen) {
                let day = day.format(DAY_FORMAT).to_string();
                if stays {
                    wrong.push(format!("the rankings of {day} in partition {} do not expire", here.0));
                }
                let [units, won] = [units, won].map(|scores| {
                    let (readable, others): (Vec<_>, Vec<_>) =
                        scores.into_iter().partition(|(product, _)| number(product).is_some());
                    wrong.extend(others.into_iter().map(|(product, _)| format!("{product:?} on {day} is no product")));
                    let scores = readable.into_iter().filter_map(|(product, score)| Some((number(&product)?, score)));
                    scores.collect::<BTreeMap<i64, f64>>()
                });
                for product in units.keys().chain(won.keys()).collect::<BTreeSet<_>>() {
                    places += 1;
                    let score = |scores: &BTreeMap<i64, f64>| scores.get(product).copied().unwrap_or(0.0);
                    let (expected_units, expected_won) = expected.remove(&(day.clone(), *product)).unwrap_or_default();
                    let what = format!("product {product} on {day}:");
                    wrong.extend(differ(&format!("{what} units"), score(&units), expected_units as f64));
                    wrong.extend(differ(&format!("{what} won"), score(&won), expected_won as f64));
                }
            }
            let counts = |day: &String| days.iter().any(|counted| counted.format(DAY_FORMAT).to_string() == *day);
            for ((day, product), (units, won)) in expected {
                if (units, won) != (0, 0) && counts(&day) {
                    wrong.extend(differ(&format!("product {product} on {day}: units"), 0, units));
                }
            }
        }
        Ok((places, wrong))
    }
}
