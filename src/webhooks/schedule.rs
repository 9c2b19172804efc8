//! When a delivery that failed is tried again, and when a receiver is given up.

use crate::model::Millis;

/// How long a receiver may fail.
pub const GIVE_UP_MS: i64 = 3 * 24 * 60 * 60 * 1000;
/// The pauses after each failure; the last one repeats.
const PAUSES_MS: [i64; 9] = [5_000, 30_000, 120_000, 600_000, 1_800_000, 3_600_000, 7_200_000, 10_800_000, 14_400_000];

/// The time of the next attempt after this many failures, the last of which is now.
pub fn next_attempt(failures: i64, now: Millis) -> Millis {
    let nth = usize::try_from(failures.saturating_sub(1)).unwrap_or_default();
    now.plus(PAUSES_MS.get(nth).or(PAUSES_MS.last()).copied().unwrap_or_default())
}

/// The longest pause of a receiver that takes nothing: events that it would take wait for it.
const MAX_PROBE_PAUSE_MS: i64 = 600_000;

/// The time at which a receiver that takes nothing is tried again, after this many rounds.
pub fn next_probe(failures: i64, now: Millis) -> Millis {
    next_attempt(failures, now).min(now.plus(MAX_PROBE_PAUSE_MS))
}

/// Whether a receiver that has failed since then is given up.
pub fn is_over(failing_since: Millis, now: Millis) -> bool {
    now.0 - failing_since.0 >= GIVE_UP_MS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_over_three_days() {
        let (mut now, mut failures, mut pauses) = (Millis(0), 0, Vec::new());
        while !is_over(Millis(0), now) {
            failures += 1;
            let next = next_attempt(failures, now);
            pauses.push(next.0 - now.0);
            now = next;
        }
        assert!(pauses.is_sorted() && pauses[0] == 5_000, "{pauses:?}");
        assert!((20..30).contains(&failures), "{failures}");
        assert_eq!(next_attempt(0, Millis(0)), next_attempt(1, Millis(0)));
        assert_eq!(
            [1, 4, 5, 100].map(|failures| next_probe(failures, Millis(0)).0),
            [5_000, 600_000, 600_000, 600_000]
        );
    }
}
