//! The popular products: one pair of sorted sets (units, won) per day and partition, written by the scripts that sell and
//! refund, merged here over the days of a scope.

use std::collections::HashMap;

use chrono::{Days, NaiveDate};
use redis::{FromRedisValue, ParsingError, Value};

use crate::{
    model::{Error, RankedProduct, *},
    redis::{Store, keys::Keys},
};

/// Members of a sorted set with their scores: one after the other in RESP2, in pairs in RESP3.
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

/// When a day's rankings are in no scope any more, in any zone, and may go.
pub fn ranked_until(day: NaiveDate) -> Millis {
    // A day of slack on either side, because zones differ by less than a day from UTC.
    let until = day.checked_add_days(Days::new(u64::from(RankingScope::MAX_DAYS) + 2)).unwrap_or(NaiveDate::MAX);
    Millis(until.and_time(chrono::NaiveTime::MIN).and_utc().timestamp_millis())
}

impl Store {
    /// The products sold on the `days` calendar days up to `today`, ranked: units, then won, then the lower id. One round
    /// trip per partition. Products whose sales were all refunded are not in it.
    pub async fn ranking(&self, today: NaiveDate, days: u32, most: usize) -> Result<Vec<RankedProduct>, Error> {
        let window: Vec<NaiveDate> =
            (0..days).filter_map(|back| today.checked_sub_days(Days::new(back.into()))).collect();
        let mut ranked = Vec::new();
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
            let won: HashMap<i64, f64> = won.into_iter().collect();
            if units.is_empty() {
                self.check_partition(here).await?;
            }
            ranked.extend(units.into_iter().filter(|(_, units)| *units > 0.0).filter_map(|(id, units)| {
                let won = won.get(&id).copied().unwrap_or(0.0) as Won;
                Some(RankedProduct { product_id: ProductId::new(id)?, units: units as i64, won, position: 0 })
            }));
        }
        ranked.sort_unstable_by_key(|product| {
            (std::cmp::Reverse(product.units), std::cmp::Reverse(product.won), product.product_id)
        });
        ranked.truncate(most);
        for (place, product) in ranked.iter_mut().enumerate() {
            product.position = place as i64 + 1;
        }
        Ok(ranked)
    }
}
