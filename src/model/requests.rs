//! Requests in numbers: their classes and durations, and the sample of them that a process writes for the others.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The most bytes of a sample's text, and the most kinds of replies and of durations in it.
pub const MAX_SAMPLE_LEN: usize = 16 * 1024;
const MAX_SAMPLE_ENTRIES: usize = 128;
/// The largest number in a sample: exact as a float.
const MAX_SAMPLE_COUNT: u64 = 1 << 53;
/// The longest period of a sample, in ms.
const MAX_SAMPLE_MS: u64 = 3_600_000;
/// The latest start of a process that a sample may name, in ms.
const MAX_SAMPLE_START: i64 = 253_402_300_799_999;

/// Requests by class: numbers, or rates.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RequestClasses {
    pub all: f64,
    /// 4xx without 429.
    pub refused: f64,
    /// 5xx, with shed ones.
    pub failed: f64,
    /// 429.
    pub limited: f64,
    /// Shed under overload.
    pub shed: f64,
}

impl RequestClasses {
    /// Adds requests with this status.
    pub fn add(&mut self, status: &str, count: f64) {
        self.all += count;
        match (status, status.as_bytes().first()) {
            ("429", _) => self.limited += count,
            (_, Some(b'4')) => self.refused += count,
            (_, Some(b'5')) => self.failed += count,
            _ => {}
        }
    }

    /// 5xx without shed ones.
    pub fn failed_otherwise(&self) -> f64 {
        (self.failed - self.shed).max(0.0)
    }
}

/// The durations of requests, in ms.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Latency {
    pub p50_ms: f64,
    pub p95_ms: f64,
    pub p99_ms: f64,
}

impl Latency {
    /// Of a histogram: its rising `bounds` in seconds, and the requests within each, cumulative; the last count is all of them.
    /// `None` if nothing is counted.
    pub fn of(bounds: &[f64], cumulative: &[f64]) -> Option<Self> {
        let ms = |share| Some(rounded(quantile(bounds, cumulative, share)? * 1000.0));
        Some(Latency { p50_ms: ms(0.5)?, p95_ms: ms(0.95)?, p99_ms: ms(0.99)? })
    }
}

/// As `histogram_quantile` of Prometheus: interpolates linearly within a bucket; beyond the last bound, that bound.
fn quantile(bounds: &[f64], cumulative: &[f64], share: f64) -> Option<f64> {
    let all = cumulative.last().copied().filter(|count| *count > 0.0)?;
    let wanted = share * all;
    let (mut lower, mut below) = (0.0, 0.0);
    for (upper, count) in bounds.iter().zip(cumulative) {
        if *count >= wanted && *count > below {
            return Some(lower + (upper - lower) * (wanted - below) / (count - below));
        }
        (lower, below) = (*upper, *count);
    }
    Some(lower)
}

/// Rounded to a thousandth.
pub fn rounded(number: f64) -> f64 {
    (number * 1000.0).round() / 1000.0
}

/// The requests that a process answered in a period. Other processes read it from Redis, where any program may have written it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RequestSample {
    /// Unique to one run of the process.
    pub instance: String,
    pub name: String,
    pub version: String,
    /// Epoch ms.
    pub started_at: i64,
    /// Counts the samples of the process: two with the same number are one.
    pub number: u64,
    /// The length of the period.
    pub ms: u64,
    /// Requests by status and error code, which is empty for a success.
    pub counts: Vec<(String, String, u64)>,
    pub shed: u64,
    /// Requests by the bucket of their duration: its upper bound in µs, 0 beyond the last.
    pub times: Vec<(u64, u64)>,
}

impl RequestSample {
    /// Parses the text of a sample. `None` if it is none: nothing of it counts then.
    pub fn read(text: &str) -> Option<Self> {
        if text.len() > MAX_SAMPLE_LEN {
            return None;
        }
        serde_json::from_str(text).ok().filter(Self::is_sound)
    }

    fn is_sound(&self) -> bool {
        let RequestSample { instance, name, version, started_at, number: _, ms, counts, shed, times } = self;
        let is_id = |id: &str| Uuid::try_parse(id).is_ok_and(|parsed| parsed.to_string() == id);
        let is_name = |name: &str| (1..=128).contains(&name.len()) && !name.chars().any(char::is_control);
        let is_status = |status: &str| status.len() == 3 && status.bytes().all(|byte| byte.is_ascii_digit());
        let is_code =
            |code: &str| code.len() <= 64 && code.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_');
        is_id(instance)
            && is_name(name)
            && is_name(version)
            && (0..=MAX_SAMPLE_START).contains(started_at)
            && (1..=MAX_SAMPLE_MS).contains(ms)
            && counts.len() <= MAX_SAMPLE_ENTRIES
            && times.len() <= MAX_SAMPLE_ENTRIES
            && counts
                .iter()
                .all(|(status, code, count)| is_status(status) && is_code(code) && *count <= MAX_SAMPLE_COUNT)
            && times.iter().all(|(_, count)| *count <= MAX_SAMPLE_COUNT)
            && *shed <= MAX_SAMPLE_COUNT
    }

    /// The text of the sample, within the bounds: only its most frequent replies, if they are too many.
    ///
    /// # Errors
    /// None that a sample of this process can cause.
    pub fn write(mut self) -> serde_json::Result<String> {
        self.counts.sort_by_key(|(.., count)| std::cmp::Reverse(*count));
        self.counts.truncate(MAX_SAMPLE_ENTRIES);
        serde_json::to_string(&self)
    }

    /// The requests by class.
    pub fn classes(&self) -> RequestClasses {
        let mut classes = RequestClasses { shed: self.shed as f64, ..RequestClasses::default() };
        self.counts.iter().for_each(|(status, _, count)| classes.add(status, *count as f64));
        classes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn quantile_interpolated_between_bounds() {
        assert_eq!(quantile(&[], &[], 0.5), None);
        assert_eq!(quantile(&[1.0], &[0.0, 0.0], 0.5), None);
        assert_eq!(quantile(&[1.0, 3.0], &[0.0, 4.0, 4.0], 0.5), Some(2.0));
        assert_eq!(quantile(&[1.0, 3.0], &[1.0, 1.0, 9.0], 0.99), Some(3.0));
    }

    fn sample() -> RequestSample {
        RequestSample {
            instance: "0f8fad5b-d9cb-469f-a165-70867728950e".to_owned(),
            name: "shop-1:8080".to_owned(),
            version: "0.2.0".to_owned(),
            started_at: 1_700_000_000_000,
            number: 7,
            ms: 5_000,
            counts: vec![("200".to_owned(), String::new(), 90), ("409".to_owned(), "SOLD_OUT".to_owned(), 10)],
            shed: 0,
            times: vec![(1_000, 99), (0, 1)],
        }
    }

    #[test]
    fn sample_read_as_written() {
        let text = sample().write().unwrap();
        assert_eq!(RequestSample::read(&text), Some(sample()));
        let classes = RequestClasses { all: 100.0, refused: 10.0, ..RequestClasses::default() };
        assert_eq!(sample().classes(), classes);
        // A later version may say more.
        let mut more: Value = serde_json::from_str(&text).unwrap();
        more["more"] = json!(1);
        assert_eq!(RequestSample::read(&more.to_string()), Some(sample()));
        let many = (0..1_000).map(|n| ("400".to_owned(), "A".repeat(n % 60), n as u64)).collect();
        let many = RequestSample { counts: many, ..sample() }.write().unwrap();
        let read = RequestSample::read(&many).unwrap();
        assert_eq!((read.counts.len(), read.counts[0].2), (MAX_SAMPLE_ENTRIES, 999));
    }

    #[test]
    fn sample_with_wrong_field_is_none() {
        for (field, wrong) in [
            ("instance", json!("me")),
            ("instance", json!("0F8FAD5B-D9CB-469F-A165-70867728950E")),
            ("name", json!("")),
            ("name", json!("a\nb")),
            ("name", json!("a".repeat(129))),
            ("version", json!(2)),
            ("startedAt", json!(-1)),
            ("number", json!(-1)),
            ("ms", json!(0)),
            ("ms", json!(3_600_001)),
            ("ms", json!(1.5)),
            ("counts", json!([["200", "", -1]])),
            ("counts", json!([["2000", "", 1]])),
            ("counts", json!([["200", "<b>", 1]])),
            ("counts", json!([["200", "", u64::MAX]])),
            ("counts", json!(vec![json!(["200", "", 1]); 129])),
            ("shed", json!(u64::MAX)),
            ("times", json!([[1_000, u64::MAX]])),
            ("times", json!([[1_000]])),
            ("times", Value::Null),
        ] {
            let mut text = serde_json::to_value(sample()).unwrap();
            text[field] = wrong.clone();
            assert_eq!(RequestSample::read(&text.to_string()), None, "{field}: {wrong}");
        }
        let long = format!("{}{}", sample().write().unwrap(), " ".repeat(MAX_SAMPLE_LEN));
        assert_eq!(RequestSample::read(&long), None);
    }

    proptest! {
        #[test]
        fn any_text_read_without_panic(text in "\\PC{0,200}") {
            prop_assert_eq!(RequestSample::read(&text), None);
        }
    }
}
