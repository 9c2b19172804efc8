//! The pauses between queries to a gateway about a payment without an outcome.
//!
//! A pause is half of the time for which the payment has been in its state: 2 s at first, then 1.5 times the last one,
//! 15 minutes at most. Redis and PostgreSQL keep the start of that time with the payment, so that no restart, no other
//! process and no rebuild starts over. A random tenth at most is added, so that payments that a gateway lost together are
//! not queried together. `docs/operations.md` has the table.

use crate::model::Millis;

/// The shortest pause.
const MIN_PAUSE_MS: i64 = 2_000;
/// The longest pause.
const MAX_PAUSE_MS: i64 = 15 * 60 * 1_000;
/// The age from which a payment without an outcome counts as stuck.
const STUCK_AFTER_MS: i64 = 5 * 60 * 1_000;

/// A pause between two queries about one payment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pause {
    /// The end of the pause.
    pub until: Millis,
    /// Whether the payment counts as stuck.
    pub stuck: bool,
}

impl Pause {
    /// The pause after a query at `now` about a payment that has been in its state `since` then. `failed`: the gateway gave no
    /// usable answer.
    pub fn after(since: Millis, now: Millis, failed: bool) -> Pause {
        let chance = i64::from(uuid::Uuid::new_v4().as_bytes()[0]);
        Pause::with_chance(since, now, failed, chance)
    }

    /// `chance` is 0 to 255.
    fn with_chance(since: Millis, now: Millis, failed: bool, chance: i64) -> Pause {
        let age = now.0.saturating_sub(since.0).max(0);
        let pause = (age / 2).clamp(MIN_PAUSE_MS, MAX_PAUSE_MS);
        Pause { until: now.plus(pause + pause / 10 * chance / 255), stuck: failed && age >= STUCK_AFTER_MS }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The times of the queries within `ms`.
    fn queries_within(ms: i64, chance: i64) -> Vec<i64> {
        let mut queries = vec![7_000];
        while let Some(last) = queries.last().copied().filter(|last| *last < ms) {
            queries.push(Pause::with_chance(Millis(0), Millis(last), true, chance).until.0);
        }
        queries
    }

    #[test]
    fn pause_grows_up_to_cap() {
        for chance in [0, 128, 255] {
            let queries = queries_within(24 * 3_600_000, chance);
            let pauses: Vec<i64> = queries.windows(2).map(|pair| pair[1] - pair[0]).collect();
            assert!(pauses.is_sorted(), "{pauses:?}");
            assert!(pauses.iter().all(|pause| (MIN_PAUSE_MS..=MAX_PAUSE_MS * 11 / 10).contains(pause)), "{pauses:?}");
            // The numbers of docs/operations.md.
            let within = |ms: i64| queries.iter().filter(|at| **at < ms).count();
            assert!((5..=6).contains(&within(60_000)), "{}", within(60_000));
            assert!((15..=16).contains(&within(3_600_000)), "{}", within(3_600_000));
            assert!(within(24 * 3_600_000) <= 110, "{}", within(24 * 3_600_000));
        }
    }

    #[test]
    fn payment_stuck_after_five_minutes_without_reply() {
        let stuck = |now: i64, failed: bool| Pause::after(Millis(1_000), Millis(now), failed).stuck;
        assert!(!stuck(300_999, true) && stuck(301_000, true) && !stuck(86_400_000, false));
    }

    #[test]
    fn pause_bounded_when_clock_jumps() {
        for (since, now) in [(10_000, 0), (0, i64::MAX / 4), (i64::MAX, i64::MIN / 2)] {
            let pause = Pause::after(Millis(since), Millis(now), true).until.0 - now;
            assert!((MIN_PAUSE_MS..=MAX_PAUSE_MS * 11 / 10).contains(&pause), "{pause}");
        }
    }
}
