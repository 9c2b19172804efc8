//! Changes over time: the rate of a counter, and the movement of places in a ranking.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use crate::model::{ProductId, RankedProduct, RankingScope};

/// The time over which a rate is taken.
const RATE_WINDOW: Duration = Duration::from_secs(5);
/// Places are compared with those of so long ago, and recorded in this interval.
const PLACES_WINDOW: Duration = Duration::from_secs(60);
const PLACES_INTERVAL: Duration = Duration::from_secs(5);

/// The rate of a counter over the last seconds.
#[derive(Default)]
pub struct Rate {
    counts: VecDeque<(Instant, i64)>,
    per_second: f64,
}

impl Rate {
    /// Records the counter.
    pub fn record(&mut self, at: Instant, count: i64) {
        while self.counts.get(1).is_some_and(|(then, _)| at.duration_since(*then) >= RATE_WINDOW) {
            self.counts.pop_front();
        }
        self.per_second = self.counts.front().map_or(0.0, |(then, before)| {
            let seconds = at.duration_since(*then).as_secs_f64();
            if seconds > 0.0 { count.saturating_sub(*before).max(0) as f64 / seconds } else { 0.0 }
        });
        self.counts.push_back((at, count));
    }

    /// The rate at the last record.
    pub fn per_second(&self) -> f64 {
        self.per_second
    }
}

/// The positions of products, by ranking.
type Ranks = HashMap<(RankingScope, ProductId), i64>;

/// The past positions of products.
#[derive(Default)]
pub struct Places(VecDeque<(Instant, Ranks)>);

impl Places {
    /// Records the rankings, once per interval.
    pub fn record(&mut self, at: Instant, rankings: &[(RankingScope, Vec<RankedProduct>)]) {
        if self.0.back().is_some_and(|(then, _)| at.duration_since(*then) < PLACES_INTERVAL) {
            return;
        }
        while self.0.get(1).is_some_and(|(then, _)| at.duration_since(*then) >= PLACES_WINDOW) {
            self.0.pop_front();
        }
        let places = rankings
            .iter()
            .flat_map(|(scope, ranked)| ranked.iter().map(|product| ((*scope, product.product_id), product.rank)));
        self.0.push_back((at, places.collect()));
    }

    /// The position of a product about a minute ago, or at the first record.
    pub fn before(&self, scope: RankingScope, product: ProductId) -> Option<i64> {
        self.0.front().and_then(|(_, places)| places.get(&(scope, product)).copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_covers_last_seconds() {
        let (mut rate, begun) = (Rate::default(), Instant::now());
        let mut noted = |ms: u64, count: i64| {
            rate.record(begun + Duration::from_millis(ms), count);
            rate.per_second()
        };
        let rates = [(0, 100), (0, 200), (1_000, 300), (2_000, 300), (8_000, 300), (9_000, 290)];
        assert_eq!(rates.map(|(ms, count)| noted(ms, count)), [0.0, 0.0, 200.0, 100.0, 0.0, 0.0]);
    }

    #[test]
    fn ranks_compared_with_minute_ago() {
        let (mut places, begun) = (Places::default(), Instant::now());
        let product = |id: i64| ProductId::new(id).unwrap();
        let mut noted = |seconds: u64, order: &[i64]| {
            let ranked = order.iter().zip(1..).map(|(id, rank)| RankedProduct {
                product_id: product(*id),
                units: 1,
                won: 1,
                rank,
            });
            places.record(begun + Duration::from_secs(seconds), &[(RankingScope::Today, ranked.collect())]);
            (1..=3).map(|id| places.before(RankingScope::Today, product(id))).collect::<Vec<_>>()
        };
        assert_eq!(noted(0, &[1, 2]), [Some(1), Some(2), None]);
        // Too soon to be recorded, and then too recent to be compared with.
        assert_eq!(noted(1, &[3]), [Some(1), Some(2), None]);
        assert_eq!(noted(10, &[2, 1, 3]), [Some(1), Some(2), None]);
        assert_eq!(noted(65, &[3]), [Some(1), Some(2), None]);
        assert_eq!(noted(75, &[3]), [Some(2), Some(1), Some(3)]);
        assert_eq!(places.before(RankingScope::Weekly, product(1)), None);
    }
}
