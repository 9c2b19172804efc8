//! Calls of scripts: how long they took, how many requests each decided, and what they answered.

use std::{sync::OnceLock, time::Duration};

use prometheus::Histogram;

use super::{SCRIPT_ANSWERS, SCRIPT_FAILURES, SCRIPT_REQUESTS, SCRIPT_SECONDS, slots::Slots};

/// Why a call has no answer.
#[derive(Clone, Copy, Debug)]
pub enum Failed {
    /// Redis can't answer: the script may have run or not.
    Unavailable,
    /// The partition may not decide.
    Closed,
    /// The answer shows that decisions are lost.
    Lost,
    /// We asked for something wrong.
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
    /// Of scripts that decide many requests.
    requests: OnceLock<Histogram>,
    /// By word.
    answers: Slots<&'static str, 16>,
}

impl Meter {
    pub fn new(script: &'static str) -> Self {
        // Told as 0 until it happens.
        for why in [Failed::Unavailable, Failed::Closed, Failed::Lost, Failed::Error] {
            SCRIPT_FAILURES.with_label_values(&[script, why.kind()]);
        }
        let seconds = SCRIPT_SECONDS.with_label_values(&[script]);
        Meter { script, seconds, requests: OnceLock::new(), answers: Slots::default() }
    }

    /// A call was made, with whatever outcome.
    pub fn called(&self, took: Duration) {
        self.seconds.observe(took.as_secs_f64());
    }

    /// It was one for this many requests.
    pub fn batched(&self, requests: usize) {
        self.requests.get_or_init(|| SCRIPT_REQUESTS.with_label_values(&[self.script])).observe(requests as f64);
    }

    /// It replied to one request with this code.
    pub fn replied(&self, code: &'static str) {
        self.answers
            .count(|counted| *counted == code, || (code, SCRIPT_ANSWERS.with_label_values(&[self.script, code])));
    }

    /// It gave no answer.
    pub fn failed(&self, why: Failed) {
        SCRIPT_FAILURES.with_label_values(&[self.script, why.kind()]).inc();
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
        let counted = |code: &str| SCRIPT_ANSWERS.with_label_values(&["metrics_test", code]).get();
        assert_eq!((counted("YES"), counted("NO")), (2, 1));
        assert_eq!(meter.answers.keys().copied().collect::<Vec<_>>(), ["YES", "NO"]);
    }
}
