//! The metrics of script calls: durations, requests per call, and reply codes.

use std::{sync::OnceLock, time::Duration};

use prometheus::Histogram;

use super::{SCRIPT_FAILURES, SCRIPT_REPLIES, SCRIPT_REQUESTS, SCRIPT_SECONDS, slots::Slots};

/// Why a call has no reply.
#[derive(Clone, Copy, Debug)]
pub enum Failed {
    /// Redis can't answer: the script may have run.
    Unavailable,
    /// The partition is closed.
    Closed,
    /// The reply shows that decisions are lost.
    Lost,
    /// The call was wrong.
    Error,
}

impl Failed {
    fn kind(self) -> &'static str {
        match self {
            Failed::Unavailable => "unavailable",
            Failed::Closed => "closed",
            Failed::Lost => "lost",
            Failed::Error => "error",
        }
    }
}

/// The metrics of one script.
pub struct Meter {
    script: &'static str,
    seconds: Histogram,
    /// Only of scripts that decide batches.
    requests: OnceLock<Histogram>,
    /// Counters by reply code.
    replies: Slots<&'static str, 16>,
}

impl Meter {
    pub fn new(script: &'static str) -> Self {
        // Creates the counters, so that they are exported as 0.
        for reason in [Failed::Unavailable, Failed::Closed, Failed::Lost, Failed::Error] {
            SCRIPT_FAILURES.with_label_values(&[script, reason.kind()]);
        }
        let seconds = SCRIPT_SECONDS.with_label_values(&[script]);
        Meter { script, seconds, requests: OnceLock::new(), replies: Slots::default() }
    }

    /// Counts a call of any outcome.
    pub fn called(&self, took: Duration) {
        self.seconds.observe(took.as_secs_f64());
    }

    /// Counts the requests of a call.
    pub fn batched(&self, requests: usize) {
        self.requests.get_or_init(|| SCRIPT_REQUESTS.with_label_values(&[self.script])).observe(requests as f64);
    }

    /// Counts the reply code of one request.
    pub fn replied(&self, code: &'static str) {
        self.replies
            .count(|counted| *counted == code, || (code, SCRIPT_REPLIES.with_label_values(&[self.script, code])));
    }

    /// Counts a call without a reply.
    pub fn failed(&self, reason: Failed) {
        SCRIPT_FAILURES.with_label_values(&[self.script, reason.kind()]).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_counted_by_code() {
        let meter = Meter::new("metrics_test");
        for code in ["YES", "NO", "YES"] {
            meter.replied(code);
        }
        let counted = |code: &str| SCRIPT_REPLIES.with_label_values(&["metrics_test", code]).get();
        assert_eq!((counted("YES"), counted("NO")), (2, 1));
        assert_eq!(meter.replies.keys().copied().collect::<Vec<_>>(), ["YES", "NO"]);
    }
}
