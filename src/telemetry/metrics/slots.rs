//! A small cache of counters by label value. A lookup takes no lock and computes no hash.

use std::sync::OnceLock;

use prometheus::IntCounter;

/// At most `N` counters, by key, filled from the front and never emptied.
pub(super) struct Slots<K, const N: usize>([OnceLock<(K, IntCounter)>; N]);

impl<K, const N: usize> Default for Slots<K, N> {
    fn default() -> Self {
        Slots([const { OnceLock::new() }; N])
    }
}

impl<K, const N: usize> Slots<K, N> {
    /// Increments the counter whose key `matches`, or the counter that `make` creates if none does.
    pub(super) fn count(&self, matches: impl Fn(&K) -> bool, make: impl Fn() -> (K, IntCounter)) {
        for slot in &self.0 {
            // Another thread may fill the slot first, also with another key.
            let (key, counter) = slot.get_or_init(&make);
            if matches(key) {
                return counter.inc();
            }
        }
        // Every slot is taken by another key: count without the cache.
        make().1.inc();
    }

    /// The cached keys.
    #[cfg(test)]
    pub(super) fn keys(&self) -> impl Iterator<Item = &K> {
        self.0.iter().filter_map(|slot| slot.get().map(|(key, _)| key))
    }
}

#[cfg(test)]
mod tests {
    use prometheus::{IntCounterVec, Opts};

    use super::*;

    #[test]
    fn counter_kept_per_key_beyond_slots() {
        let counters = IntCounterVec::new(Opts::new("test_total", "A test."), &["key"]).unwrap();
        let slots = Slots::<u8, 2>::default();
        for key in [1, 2, 3, 1, 3, 3] {
            let make = || (key, counters.with_label_values(&[key.to_string().as_str()]));
            slots.count(|known| *known == key, make);
        }
        let counted = |key: &str| counters.with_label_values(&[key]).get();
        assert_eq!((counted("1"), counted("2"), counted("3")), (2, 1, 3));
    }
}
