//! Counters at hand: those of one thing, by the few values that one of their labels takes, found without a lock and without
//! hashing anything.

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
    /// Counts one under the key that `is` says it is; where there is none yet, under the one that `make` makes.
    pub(super) fn count(&self, is: impl Fn(&K) -> bool, make: impl Fn() -> (K, IntCounter)) {
        for slot in &self.0 {
            // Another may have filled it meanwhile, with the same or another key.
            let (key, counter) = slot.get_or_init(&make);
            if is(key) {
                return counter.inc();
            }
        }
        // More keys than there are slots: counted all the same, only not as quickly.
        make().1.inc();
    }

    /// The keys that have a slot.
    #[cfg(test)]
    pub(super) fn keys(&self) -> impl Iterator<Item = &K> {
        self.0.iter().filter_map(|slot| slot.get().map(|(key, _)| key))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
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
