//! The ranking of the most sold products. The scripts write two sorted sets (units, won) per day and partition; this module
//! merges them over the days of a scope.

use std::collections::HashMap;

use chrono::{Days, NaiveDate};
use redis::{FromRedisValue, ParsingError, Value};

use crate::{
    model::{Error, RankedProduct, *},
    redis::{Store, keys::Keys},
};

/// Members of a sorted set with their scores: a flat list in RESP2, pairs in RESP3.
pub(super) struct Scores(pub(super) Vec<(i64, f64)>);

impl FromRedisValue for Scores {
    fn from_redis_value(value: Value) -> Result<Self, ParsingError> {
        let flat = match value {
            Value::Array(items) => Value::Array(
                items
                    .into_iter()
                    .flat_map(|item| match item {
                        Value::Array(pair) => pair,
                        other => vec![other],
                    })
                    .collect(),
            ),
            other => other,
        };
        FromRedisValue::from_redis_value(flat).map(Scores)
    }
}

/// The time from which no scope, in any zone, includes a day's rankings any more.
pub fn ranked_until(day: NaiveDate) -> Millis {
    // One day more on either side, because zones differ from UTC by less than a day.
    let until = day.checked_add_days(Days::new(u64::from(RankingScope::MAX_DAYS) + 2)).unwrap_or(NaiveDate::MAX);
    Millis(until.and_time(chrono::NaiveTime::MIN).and_utc().timestamp_millis())
}

impl Store {
    /// The products sold on the `days` calendar days up to `today`, ranked by units, then won, then the lower id; at most `max`.
    /// Omits products whose sales were all refunded. One round trip per partition.
    pub async fn ranking(&self, today: NaiveDate, days: u32, max: usize) -> Result<Vec<RankedProduct>, Error> {
        let window: Vec<NaiveDate> =
            (0..days).filter_map(|back| today.checked_sub_days(Days::new(back.into()))).collect();
        // Each partition ranks the sales of its own orders.
        let mut sales: HashMap<i64, (f64, f64)> = HashMap::new();
        for here in self.all() {
            let keys = Keys(here);
            let mut read = redis::pipe();
            for key in [Keys::rank_units as fn(Keys, NaiveDate) -> String, Keys::rank_won] {
                let union = read.cmd("ZUNION").arg(window.len());
                for day in &window {
                    union.arg(key(keys, *day));
                }
                union.arg("WITHSCORES");
            }
            let (Scores(units), Scores(won)): (Scores, Scores) = self.pipe(here, &read).await?;
            if units.is_empty() {
                self.check_partition(here).await?;
            }
            units.into_iter().for_each(|(id, units)| sales.entry(id).or_default().0 += units);
            won.into_iter().for_each(|(id, won)| sales.entry(id).or_default().1 += won);
        }
        let ranked = sales.into_iter().filter(|(_, (units, _))| *units > 0.0).filter_map(|(id, (units, won))| {
            Some(RankedProduct { product_id: ProductId::new(id)?, units: units as i64, won: won as Won, rank: 0 })
        });
        let mut ranked: Vec<RankedProduct> = ranked.collect();
        ranked.sort_unstable_by_key(|product| {
            (std::cmp::Reverse(product.units), std::cmp::Reverse(product.won), product.product_id)
        });
        ranked.truncate(max);
        for (index, product) in ranked.iter_mut().enumerate() {
            product.rank = index as i64 + 1;
        }
        Ok(ranked)
    }
}
