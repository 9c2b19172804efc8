//! The words with which scripts answer: those that tell of a decision, and all others.

use crate::telemetry::metrics;

/// The words that say that something was decided: epoch and seq follow each.
pub const DECIDED: &[&str] = &[
    "CHARGED",
    "CLOSED",
    "COUPONS_RELEASED",
    "CREATED",
    "DECLINED",
    "FINISHED",
    "GRANTED",
    "HELD",
    "ISSUED",
    "MOVED",
    "PAID",
    "PLACED",
    "RESERVED",
    "RESOLVED",
    "STARTED",
    "UNITS_RELEASED",
    "UPDATED",
];

/// The words that say that nothing was decided by this call: what was decided before, what was looked up, what was refused
/// and why.
pub const UNDECIDED: &[&str] = &[
    "ABANDONED",
    "ACCEPTABLE",
    "ALREADY_CLOSED",
    "ALREADY_EXISTS",
    "ALREADY_GRANTED",
    "ALREADY_HOLDS",
    "ALREADY_PAID",
    "CLAIMED",
    "PARTITION_CLOSED",
    "FROZEN",
    "HOLD_NOT_FOUND",
    "ALREADY_HELD",
    "INSUFFICIENT_BALANCE",
    "INSUFFICIENT_STOCK",
    "INVALID_COUPON",
    "IN_PROGRESS",
    "KEY_REUSED",
    "LIMIT_EXCEEDED",
    "TOMBSTONED",
    "NOT_DUE",
    "NOT_OPEN",
    "RELEASE_NOT_PREPARED",
    "INVALID_WINDOW",
    "ORDER_NOT_FOUND",
    "OTHER_DAY",
    "OUT_OF_STOCK",
    "OVERFLOW",
    "PAID_BEFORE",
    "CLOSES_IN_PAST",
    "POSTPONED",
    "PRODUCT_NOT_FOUND",
    "RELEASED",
    "RELEASE_PREPARED",
    "REPLAYED",
    "RESTORED",
    "EVICTED",
    "SETTLED",
    "SOLD_OUT",
    "STALE",
    "ENTRIES",
    "ALLOCATED",
    "ALREADY_PRESENT",
    "TOO_MANY_OPEN",
    "UNCHANGED",
    "CAMPAIGN_NOT_FOUND",
    "USER_NOT_FOUND",
    "ORDER_STATUS",
    "WRONG_AMOUNT",
];

/// A word as a label of the metrics.
pub fn label(word: &str) -> &'static str {
    let known = DECIDED.iter().chain(UNDECIDED).find(|known| **known == word);
    known.copied().unwrap_or(metrics::scripts::OTHER)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::script;

    #[test]
    fn reply_codes_of_scripts_known() {
        for script in script::ALL {
            let source = script.source();
            // A reply is a list that starts with its word.
            let replies = source.split("{ '").skip(1).filter_map(|rest| rest.split_once('\'').map(|(word, _)| word));
            for word in replies.filter(|word| word.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_')) {
                // A command, and what is filed of a payment that has begun: no answers.
                assert!(label(word) == word || ["EXISTS", "RUNNING"].contains(&word), "{} says {word}", script.name);
            }
        }
        assert_eq!(label("no word"), metrics::scripts::OTHER);
    }
}
