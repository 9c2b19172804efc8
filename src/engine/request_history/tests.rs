use super::*;

/// A moment at the beginning of a slot.
const NOW: i64 = 1_700_000_000_000;
const ONE: &str = "0f8fad5b-d9cb-469f-a165-70867728950e";
const OTHER: &str = "7c9e6679-7425-40de-944b-e07fc1f90ae7";

fn sample(instance: &str, number: u64, ms: u64, counts: &[(&str, &str, u64)], times: &[(u64, u64)]) -> RequestSample {
    let counts = counts.iter().map(|(status, code, count)| ((*status).to_owned(), (*code).to_owned(), *count));
    RequestSample {
        instance: instance.to_owned(),
        name: format!("host-{}:8080", &instance[..1]),
        version: "0.2.0".to_owned(),
        started_at: NOW - 3_600_000,
        number,
        ms,
        counts: counts.collect(),
        shed: 0,
        times: times.to_vec(),
    }
}

fn entry(ms: i64, ago: i64, sample: &str) -> Entry {
    let fields = [("ago", ago.to_string()), ("sample", sample.to_owned())];
    let fields = fields.map(|(name, value)| (name.to_owned(), value));
    Entry { id: StreamId { ms: ms as u64, no: 0 }, fields: fields.to_vec() }
}

/// A history, of samples that were written at their ends, read at `now`.
fn history(now: i64, samples: &[(i64, RequestSample)]) -> RequestHistory {
    let entries: Vec<Entry> =
        samples.iter().map(|(end, sample)| entry(*end, 0, &sample.clone().write().unwrap())).collect();
    let mut history = RequestHistory::default();
    history.add(&SampleBatch::new(Millis(now), Millis(now), &entries));
    history
}

fn rates(slots: &[RequestSlot]) -> Vec<(i64, f64)> {
    slots.iter().map(|slot| (slot.at.0 - NOW, slot.rates.all)).collect()
}

#[test]
fn samples_of_two_instances_merged_exactly() {
    // The fast process has 300 of 1 ms at most, the slow one 100 of up to 0.1 s.
    let fast = sample(ONE, 1, 5_000, &[("200", "", 290), ("409", "SOLD_OUT", 10)], &[(1_000, 300)]);
    let slow = sample(
        OTHER,
        1,
        5_000,
        &[("200", "", 60), ("429", "TOO_MANY_REQUESTS", 15), ("503", "BUSY", 25)],
        &[(100_000, 100)],
    );
    let slow = RequestSample { shed: 20, ..slow };
    let history = history(NOW + 5_000, &[(NOW, fast), (NOW, slow)]);
    let all = history.slots(None);
    let merged = RequestClasses { all: 80.0, refused: 2.0, failed: 5.0, limited: 3.0, shed: 4.0 };
    assert_eq!((all.len(), all[0].at, all[0].rates), (1, Millis(NOW), merged));
    assert_eq!(all[0].rates.failed_otherwise(), 1.0);
    // Of 400, the 200th is in the bucket from 0.75 to 1 ms, and the slowest quarter is between 50 and 100 ms.
    let latency = all[0].latency.unwrap();
    assert_eq!(latency, Latency { p50_ms: 0.917, p95_ms: 90.0, p99_ms: 98.0 });
    // Each alone.
    let (one, other) = (history.slots(Some(ONE)), history.slots(Some(OTHER)));
    assert_eq!((one[0].rates.all, one[0].latency.unwrap().p50_ms), (60.0, 0.875));
    assert_eq!((other[0].rates.all, other[0].latency.unwrap().p50_ms), (20.0, 75.0));
    assert!(history.slots(Some("0")).is_empty());
    let codes = [("BUSY", 25), ("TOO_MANY_REQUESTS", 15), ("SOLD_OUT", 10)].map(|(code, n)| (code.to_owned(), n));
    assert_eq!(history.refusals(None), codes);
    assert_eq!(history.refusals(Some(ONE)), codes[2..]);
}

#[test]
fn sample_spread_over_its_period() {
    // A period from one second before a slot to four seconds into it; and one of ten seconds.
    let (late, long) =
        (sample(ONE, 1, 5_000, &[("200", "", 50)], &[]), sample(OTHER, 1, 10_000, &[("200", "", 200)], &[]));
    let slots = history(NOW + 10_000, &[(NOW + 4_000, late)]).slots(None);
    assert_eq!(rates(&slots), [(0, 2.0), (5_000, 8.0)]);
    assert_eq!(slots[0].latency, None, "nothing is counted");
    let slots = history(NOW + 10_000, &[(NOW + 5_000, long.clone())]).slots(None);
    assert_eq!(rates(&slots), [(0, 20.0), (5_000, 20.0)]);
    // The slot that a process may not have reported yet is left out.
    assert_eq!(rates(&history(NOW + 9_999, &[(NOW + 5_000, long.clone())]).slots(None)), [(0, 20.0)]);
    // Without a sample there is no slot: a gap, not a zero.
    let later = sample(OTHER, 2, 5_000, &[], &[]);
    let slots = history(NOW + 30_000, &[(NOW + 5_000, long), (NOW + 20_000, later)]).slots(None);
    assert_eq!(rates(&slots), [(0, 20.0), (5_000, 20.0), (20_000, 0.0)]);
}

#[test]
fn ended_instance_seen_for_fifteen_minutes() {
    let ended = || sample(OTHER, 9, 5_000, &[("200", "", 5)], &[]);
    let mut history = history(NOW + 10_000, &[(NOW, ended()), (NOW + 9_000, sample(ONE, 1, 5_000, &[], &[]))]);
    let names = |history: &RequestHistory| history.instances().into_iter().map(|one| one.id).collect::<Vec<_>>();
    let running =
        |history: &RequestHistory| history.running().iter().map(|one| one.instance.clone()).collect::<Vec<_>>();
    assert_eq!((names(&history), running(&history)), (vec![ONE.into(), OTHER.into()], vec![ONE.into(), OTHER.into()]));
    assert_eq!(history.instances()[1].sampled_at, Millis(NOW));
    let mut at = |ms: i64| {
        history.add(&SampleBatch::new(Millis(ms), Millis(ms), &[]));
        (names(&history), running(&history).len(), history.slots(Some(OTHER)).len())
    };
    assert_eq!(at(NOW + 15_000), (vec![ONE.into(), OTHER.into()], 1, 1));
    assert_eq!(at(NOW + KEPT_MS - 5_001), (vec![ONE.into(), OTHER.into()], 0, 1));
    assert_eq!(at(NOW + KEPT_MS - 1), (vec![ONE.into(), OTHER.into()], 0, 0));
    assert_eq!(at(NOW + KEPT_MS), (vec![ONE.into()], 0, 0));
    assert_eq!(at(NOW + KEPT_MS + 9_000), (Vec::new(), 0, 0));
}

#[test]
fn malformed_sample_skipped_and_counted() {
    let good = sample(ONE, 1, 5_000, &[("200", "", 50)], &[(1_000, 50)]);
    let text = good.clone().write().unwrap();
    let mut history = history(NOW + 10_000, &[(NOW, good)]);
    let other = Entry { id: StreamId { ms: NOW as u64, no: 9 }, fields: vec![("more".to_owned(), text.clone())] };
    let entries = vec![
        entry(NOW, 0, ""),
        entry(NOW, 0, "{}"),
        entry(NOW, -1, &text),
        entry(NOW, 0, &text.replace("5000", "0")),
        entry(NOW, 0, &text.replace("[1000,50]", "[1000,18446744073709551615]")),
        entry(NOW, 0, &"[".repeat(100_000)),
        other,
    ];
    let bad = entries.len() as u64;
    history.add(&SampleBatch::new(Millis(NOW + 10_000), Millis(NOW + 10_000), &entries));
    assert_eq!((history.skipped(), history.last().no), (bad, 9));
    assert_eq!(rates(&history.slots(None)), [(0, 10.0)]);
    // Extremes that are well-formed.
    let entries = vec![
        // From a clock that was ahead: it would hide all that follow.
        entry(i64::MAX, 0, &text.replace("\"number\":1", "\"number\":2")),
        entry(NOW, i64::from(u32::MAX), &text.replace("\"number\":1", "\"number\":3")),
        entry(NOW, 0, &text.replace("\"number\":1", "\"number\":4").replace("5000", "3600000")),
    ];
    history.add(&SampleBatch::new(Millis(NOW + 10_000), Millis(NOW + 10_000), &entries));
    assert_eq!((history.skipped(), history.last().ms), (bad + 1, NOW as u64));
    assert_eq!(history.slots(None).len(), 177, "an hour is spread over the slots that are shown");
}

#[test]
fn sample_written_again_counts_once_and_late_one_at_its_time() {
    let (first, second) =
        (sample(ONE, 1, 5_000, &[("200", "", 50)], &[]), sample(ONE, 2, 5_000, &[("200", "", 100)], &[]));
    let mut history = history(NOW + 60_000, &[(NOW, first.clone())]);
    // Redis was away: both are written together, the first one again.
    let entries = vec![
        entry(NOW + 30_000, 30_000, &first.write().unwrap()),
        entry(NOW + 30_000, 25_000, &second.write().unwrap()),
    ];
    history.add(&SampleBatch::new(Millis(NOW + 60_000), Millis(NOW + 60_000), &entries));
    assert_eq!(rates(&history.slots(None)), [(0, 10.0), (5_000, 20.0)]);
}

#[test]
fn times_are_those_of_the_reading_process() {
    let mut history = RequestHistory::default();
    let text = sample(ONE, 1, 5_000, &[("200", "", 50)], &[]).write().unwrap();
    let entries = vec![entry(NOW, 0, &text)];
    // This process's clock is an hour ahead of Redis's.
    history.add(&SampleBatch::new(Millis(NOW + 10_000), Millis(NOW + 3_610_000), &entries));
    assert_eq!(rates(&history.slots(None)), [(3_600_000, 10.0)]);
    assert_eq!(history.instances()[0].sampled_at, Millis(NOW + 3_600_000));
}

#[test]
fn durations_with_bounds_of_another_version_left_out() {
    let (own, newer) = (
        sample(ONE, 1, 5_000, &[("200", "", 5)], &[(1_000, 5)]),
        sample(OTHER, 1, 5_000, &[("200", "", 5)], &[(1_234, 5)]),
    );
    let history = history(NOW + 5_000, &[(NOW, own), (NOW, newer)]);
    let all = history.slots(None);
    assert_eq!((all[0].rates.all, all[0].latency), (2.0, history.slots(Some(ONE))[0].latency));
    assert_eq!(history.slots(Some(OTHER))[0].latency, None);
}

#[test]
fn history_of_many_instances_bounded() {
    let id = |n: u64| uuid::Uuid::from_u64_pair(1, n).to_string();
    let samples = (0..MAX_SAMPLES as u64 + 500)
        .map(|n| (NOW + (n % 7) as i64, sample(&id(n % 100), n, 5_000, &[("200", "", 1)], &[])));
    let history = history(NOW + 10_000, &samples.collect::<Vec<_>>());
    assert_eq!((history.of(None).count(), history.instances().len()), (MAX_SAMPLES, MAX_SAMPLED_INSTANCES));
    let counted: f64 = history.slots(None).iter().map(|slot| slot.rates.all * 5.0).sum();
    assert!((counted - MAX_SAMPLES as f64).abs() < 1.0, "{counted}");
}
