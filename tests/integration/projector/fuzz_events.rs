//! The event decoder and the projection with entries that no script writes: arbitrary fields, and mutated events of every kind.
//! Nothing panics, nothing grows without bound, and the projection continues.
//!
//! `PROPTEST_CASES=100000` runs more cases.

use std::collections::{BTreeSet, HashMap};

use firstcome::{
    model::{
        UserId,
        event::{
            Body, Event, MAX_USERS_PER_EVENT, decode, fields_of, is_newer, pack_lines, request_id, unpack_lines,
            unpack_reply,
        },
    },
    projector::batch::Batch,
    redis::script,
};
use proptest::{prelude::*, sample::Index, test_runner::TestRunner};
use serde_json::json;

use crate::{
    projector::projection::{busy_day, poison},
    support::{
        harness::{Options, TestApp},
        outbox,
    },
};

pub type Fields = Vec<(String, String)>;

/// The configuration of a property test: this many cases, or `PROPTEST_CASES` divided by `weight`.
pub fn config(cases: u32, weight: u32) -> ProptestConfig {
    let asked = std::env::var("PROPTEST_CASES").ok().and_then(|asked| asked.parse::<u32>().ok());
    let cases = asked.map_or(cases, |asked| (asked / weight).max(1));
    ProptestConfig { cases, failure_persistence: None, max_shrink_iters: 2_000, ..ProptestConfig::default() }
}

/// Kinds of events that [`busy_day`] does not cause: of gateways, rebuilds and reserved ids.
const RARE: &[&str] = &[
    "kind payment_started order 7 user 3 payment 9 type CARD amount 500 receipt r-1 key 0a print 0b reply 7:RUNNING",
    "kind payment_ended order 7 receipt r-1 outcome REFUNDED",
    "kind payment_ended order 7 receipt r-1 outcome SETTLED transaction tx-1",
    "kind refund_ended order 7 user 3 receipt r-1 part 1 refunds 2",
    "kind payment_resolved order 7 user 3 receipt r-1 outcome APPROVED operator kim why seen",
    "kind order_closed order 7 user 3 from PENDING status FAILED reason PAYMENT_DECLINED lines 1:2:300 coupon  \
     receipt r-1 watch 1 method GATEWAY credit 0 day ",
    "kind ids_reserved sequence user first 5 count 3 key 0a print 0b reply 8:RESERVED1:12:50",
    "kind rebuilt units 1:5,2:7 coupons 1:3",
    "kind stock_released product 1 units 5",
    "kind coupons_released coupon 1 count 3",
    "kind campaign_updated coupon 1 opens_at 1772427600000 closes_at 1772427600001",
    "kind stock_returned product 1 units 5 total 9 withheld 0",
    "kind stock_regained product 1 partition 2 units 5 total 9 withheld 1",
];

fn rare(n: usize) -> Fields {
    // An empty field is followed by two spaces, or by the end.
    let words: Vec<&str> = RARE[n].split(' ').collect();
    let pairs = words.chunks(2).map(|pair| (pair[0].to_owned(), pair[1].to_owned()));
    let position = [("v", "1".to_owned()), ("epoch", "1".to_owned()), ("seq", (1_000 + n).to_string())];
    let at = ("at".to_owned(), "1772427600000".to_owned());
    position.map(|(name, value)| (name.to_owned(), value)).into_iter().chain([at]).chain(pairs).collect()
}

/// Events of every kind as the scripts write them, each as the only one of an entry.
pub async fn real_events() -> Vec<Fields> {
    let entries = real_entries().await;
    let mut events: Vec<Fields> = entries.iter().map(|fields| fields_of(fields, 0)).collect();
    events.extend((0..RARE.len()).map(rare));
    let kind = |fields: &Fields| fields.iter().find(|(name, _)| name == "kind").unwrap().1.clone();
    let mut kinds: BTreeSet<String> = events.iter().map(kind).collect();
    // A packed event may be of a kind that is decoded as others.
    let packed = entries.iter().flatten().filter(|(name, _)| name == "events");
    kinds.extend(packed.filter_map(|(_, packed)| packed.split('\u{1f}').next()).map(str::to_owned));
    let missing: Vec<String> = emitted_kinds().difference(&kinds).cloned().collect();
    assert!(
        missing.is_empty(),
        "no event of {missing:?}: let busy_day cause one, or add one to RARE if a day has none"
    );
    events
}

/// The kinds that the headers of the scripts name, and the one that a rebuild writes.
fn emitted_kinds() -> BTreeSet<String> {
    let mut kinds = BTreeSet::from(["rebuilt".to_owned()]);
    for source in script::ALL.iter().map(|script| script.source()) {
        for line in source.lines().filter_map(|line| line.strip_prefix("-- Emits ")) {
            let words = line.split(|c: char| !c.is_ascii_alphabetic() && c != '_');
            let kind = |word: &&str| word.contains('_') && *word == word.to_ascii_lowercase();
            kinds.extend(words.filter(kind).map(str::to_owned));
        }
    }
    kinds
}

/// Entries as the scripts write them.
async fn real_entries() -> Vec<Fields> {
    let test = TestApp::with(Options { partitions: 3, ..Options::default() }).await;
    busy_day(&test).await;
    let (user, product) = (test.user(1_000).await, test.product(300, 5).await);
    let checkout = json!({"userId": user, "orderProducts": [{"productId": product, "quantity": 2}],
        "payment": {"paymentType": "CARD"}});
    test.post("/api/v1/orders", checkout).await.ok();
    let (mut redis, mut events) = (test.raw().await, Vec::new());
    for partition in 0..3 {
        events.extend(outbox::entries(&mut redis, partition).await.into_iter().map(|(_, fields)| fields));
    }
    test.finish().await;
    events
}

fn texts() -> impl Strategy<Value = String> {
    const NUMBERS: &[i64] = &[
        0,
        1,
        -1,
        100,
        10_000,
        10_001,
        1_000_000_000,
        1_000_000_001,
        1_000_000_000_000,
        253_402_300_799_999,
        253_402_300_800_000,
        9_007_199_254_740_991,
        -9_007_199_254_740_991,
        9_007_199_254_740_992,
        i64::MAX,
        i64::MIN,
    ];
    let line = "[0-9]{1,17}:[0-9]{1,6}:[0-9]{1,14}";
    prop_oneof![
        4 => prop::sample::select(NUMBERS).prop_map(|number| number.to_string()),
        1 => any::<i64>().prop_map(|number| number.to_string()),
        1 => prop::collection::vec(line, 0..4).prop_map(|lines| lines.join(",")),
        1 => "([0-9]{1,3}:[A-Z]{0,9}){0,4}",
        1 => prop::sample::select(&["", "\0", "+5", "-0", "1e3", "NaN", "PAID", "PENDING", "HELD", "CARD", "1", "2", "가",
            "20260302", "+2620000101", "GATEWAY"][..]).prop_map(str::to_owned),
        1 => any::<String>(),
        1 => prop::collection::vec(any::<char>(), 0..300).prop_map(|text| text.into_iter().collect()),
    ]
}

#[derive(Clone, Debug)]
enum Change {
    Replace(Index, String),
    Swap(Index, Index),
    Drop(Index),
    Twice(Index, String),
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let change = prop_oneof![
        6 => (any::<Index>(), texts()).prop_map(|(at, text)| Change::Replace(at, text)),
        1 => (any::<Index>(), any::<Index>()).prop_map(|(one, other)| Change::Swap(one, other)),
        1 => any::<Index>().prop_map(Change::Drop),
        1 => (any::<Index>(), texts()).prop_map(|(at, text)| Change::Twice(at, text)),
    ];
    prop::collection::vec(change, 0..4)
}

fn change(mut fields: Fields, changes: &[Change]) -> Fields {
    for change in changes {
        if fields.is_empty() {
            break;
        }
        let length = fields.len();
        match change {
            Change::Replace(at, text) => fields[at.index(length)].1.clone_from(text),
            Change::Swap(one, other) => {
                let (one, other) = (one.index(length), other.index(length));
                let text = fields[one].1.clone();
                fields[one].1 = std::mem::replace(&mut fields[other].1, text);
            }
            Change::Drop(at) => drop(fields.remove(at.index(length))),
            Change::Twice(at, text) => {
                let name = fields[at.index(length)].0.clone();
                fields.push((name, text.clone()));
            }
        }
    }
    fields
}

/// Decodes an entry in every way that the service does. Returns the event of a valid entry.
fn inspect(fields: &Fields) -> Option<Event> {
    let _ = (is_newer(fields), fields_of(fields, 0), fields_of(fields, 1));
    let event = decode(fields).pop().expect("at least one").event;
    let event = event.map_err(|bad| assert!(bad.to_string().chars().count() < 300, "{bad}")).ok()?;
    assert!(event.epoch >= 0 && event.seq >= 0);
    for user in [1, 2, 3, 9_007_199_254_740_991] {
        let entry = event.entry_of(UserId::new(user).unwrap());
        assert!(entry.is_none_or(|entry| !entry.at.local(chrono_tz::Asia::Seoul).is_empty()));
    }
    Some(event)
}

/// Folds events into one batch, and asserts that the events' size bounds the batch's.
fn fold(events: &[Event]) {
    let batch = Batch::fold(events);
    assert!(batch.new_users.len() <= events.len() * MAX_USERS_PER_EVENT as usize);
    assert!(batch.entries.len() <= batch.new_users.len() + events.len());
    assert!(batch.orders.len() + batch.new_orders.len() + batch.new_payments.len() <= 2 * events.len());
}

#[tokio::test]
async fn event_mutated_leaves_projection_running() {
    let real = real_events().await;
    for fields in &real {
        // A packed event decodes and packs again to the same bytes.
        let event = inspect(fields).unwrap_or_else(|| panic!("{fields:?}"));
        let text: HashMap<&str, &str> = fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let lines = match &event.body {
            Body::OrderPlaced(placed) => &placed.lines,
            Body::OrderPaid(paid) => &paid.lines,
            Body::OrderClosed(closed) => &closed.lines,
            _ => continue,
        };
        assert_eq!(pack_lines(lines), text["lines"]);
    }
    fold(&real.iter().filter_map(inspect).collect::<Vec<_>>());

    let changed = (any::<Index>(), changes()).prop_map(|(at, changes)| change(at.get(&real).clone(), &changes));
    let name = prop_oneof![
        4 => (any::<Index>(), any::<Index>()).prop_map(|(at, name)| {
            let fields = at.get(&real);
            fields[name.index(fields.len())].0.clone()
        }),
        1 => any::<String>(),
    ];
    let made_up = prop::collection::vec((name, texts()), 0..20);
    let batches = prop::collection::vec(prop_oneof![3 => changed, 1 => made_up], 1..16);
    TestRunner::new(config(256, 1))
        .run(&batches, |batch| {
            let events: Vec<Event> = batch.iter().filter_map(inspect).collect();
            fold(&events);
            Ok(())
        })
        .unwrap();
}

/// Entries of several decisions, some of them mutated: each decision is applied or refused on its own.
#[tokio::test]
async fn packed_event_mutated_leaves_others_applied() {
    let packed = |fields: &Fields| fields.iter().find(|(name, _)| name == "events").map(|(_, packed)| packed.clone());
    let real: Vec<String> = real_entries().await.iter().filter_map(packed).collect();
    let kind = |packed: &str| packed.split('\u{1f}').next().unwrap().to_owned();
    let (checkouts, real): (Vec<String>, Vec<String>) =
        real.into_iter().partition(|packed| kind(packed) == "order_checked_out");
    let kinds: BTreeSet<String> = real.iter().map(|packed| kind(packed)).collect();
    assert_eq!(kinds.len(), 5, "{kinds:?}");
    run_mutated(&real, "3");
    // Each is two decisions, or one that has no number.
    run_mutated(&checkouts, "6");
}

/// Runs batches of these packed events, some of them mutated, as entries of a version.
fn run_mutated(real: &[String], version: &str) {
    let change = prop_oneof![
        3 => (any::<Index>(), texts()).prop_map(|(at, text)| (at, Some(text))),
        1 => any::<Index>().prop_map(|at| (at, None)),
    ];
    let event = (any::<Index>(), prop::collection::vec(change, 0..3)).prop_map(|(at, changes)| {
        let mut parts: Vec<String> = at.get(real).split('\u{1f}').map(str::to_owned).collect();
        let touched = !changes.is_empty();
        for (at, text) in changes {
            match (at.index(parts.len()), text) {
                (at, Some(text)) => parts[at] = text,
                (at, None) => drop(parts.remove(at)),
            }
            if parts.is_empty() {
                break;
            }
        }
        (parts.join("\u{1f}"), touched)
    });
    TestRunner::new(config(256, 1))
        .run(&prop::collection::vec(event, 0..8), |events| {
            let pair = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
            let head = [("v", version), ("epoch", "1")].map(pair);
            // A part that contains the separator splits one event in two.
            let plain = |(event, _): &&(String, bool)| !event.contains('\u{1e}');
            let events: Vec<_> = events.iter().filter(plain).collect();
            let packed = events.iter().map(|(event, _)| event.as_str()).collect::<Vec<_>>().join("\u{1e}");
            let fields: Fields = head.into_iter().chain([pair(("events", &packed))]).collect();
            let decoded = decode(&fields);
            let numbered = |event: &str| {
                event
                    .split('\u{1f}')
                    .nth(1)
                    .is_some_and(|seq| seq.parse().is_ok_and(|seq| (0..i64::MAX).contains(&seq)))
            };
            let of_each = |(event, touched): &&(String, bool)| {
                let halves = if version == "6" && numbered(event) { 2 } else { 1 };
                vec![*touched; halves]
            };
            let touched: Vec<bool> = events.iter().flat_map(of_each).collect();
            prop_assert_eq!(decoded.len(), touched.len().max(1));
            for (nth, (touched, decoded)) in touched.iter().zip(&decoded).enumerate() {
                prop_assert!(*touched || decoded.event.is_ok(), "{:?}", decoded);
                // By itself it says the same.
                let alone = fields_of(&fields, nth);
                let id = request_id(&alone).map(str::to_owned);
                let alone = decode(&alone).pop().unwrap();
                if let Ok(event) = &alone.event {
                    prop_assert_eq!(id.as_deref().unwrap_or_default(), event.request_id.as_str());
                }
                prop_assert_eq!(format!("{:?}", &alone), format!("{decoded:?}"));
            }
            fold(&decoded.into_iter().filter_map(|decoded| decoded.event.ok()).collect::<Vec<_>>());
            Ok(())
        })
        .unwrap();
}

/// The largest decodable numbers, as many as fit in a batch.
#[tokio::test]
async fn sum_of_largest_numbers_fits() {
    const EXTREMES: [i64; 6] =
        [i64::MIN, i64::MAX, 9_007_199_254_740_991, -9_007_199_254_740_991, 1_000_000_000, -1_000_000_000];
    for fields in real_events().await {
        for at in 0..fields.len() {
            for extreme in EXTREMES {
                let mut fields = fields.clone();
                fields[at].1 = extreme.to_string();
                if let Some(event) = inspect(&fields) {
                    let times = if matches!(event.body, Body::UsersCreated { .. }) { 2 } else { 5_000 };
                    fold(&vec![event; times]);
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(config(256, 1))]

    #[test]
    fn packed_text_decoded_or_refused(text in texts()) {
        if let Some(lines) = unpack_lines(&text) {
            prop_assert!(lines.len() <= 100);
            prop_assert_eq!(unpack_lines(&pack_lines(&lines)), Some(lines));
        }
        if let Some(words) = unpack_reply(&text) {
            prop_assert!(words.iter().map(|word| word.len() + 2).sum::<usize>() <= text.len());
        }
    }

    #[test]
    fn packed_reply_decoded_whole(words in prop::collection::vec(any::<String>(), 0..12)) {
        let packed: String = words.iter().map(|word| format!("{}:{word}", word.len())).collect();
        prop_assert_eq!(unpack_reply(&packed).unwrap(), words);
    }
}

/// PostgreSQL refuses an event that the decoder accepts: the projection continues.
#[test]
fn projection_continues_when_postgres_refuses_event() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let real = runtime.block_on(real_events());
    let events = prop::collection::vec((any::<Index>(), changes()), 40);
    let project = async |events: Vec<(Index, Vec<Change>)>| {
        let test = TestApp::start().await;
        busy_day(&test).await;
        let mut redis = test.raw().await;
        for (at, changes) in events {
            // The position and the version are not mutated: a gap or a newer version stops the projection.
            let kept = |(name, _): &(String, String)| !["epoch", "seq", "v"].contains(&name.as_str());
            let fields: Fields = at.get(&real).iter().filter(|field| kept(field)).cloned().collect();
            let fields: Vec<_> =
                [("v".to_owned(), "1".to_owned())].into_iter().chain(change(fields, &changes)).collect();
            let fields: Vec<(&str, &[u8])> =
                fields.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
            poison(&mut redis, true, &fields).await;
        }
        test.drain().await;
        let projection = test.get("/admin/v1/projection").await.ok();
        assert_eq!(projection["lagEvents"], 0, "{projection}");
        test.finish_unchecked().await;
    };
    TestRunner::new(ProptestConfig { max_shrink_iters: 40, ..config(3, 256) })
        .run(&events, |events| {
            runtime.block_on(project(events));
            Ok(())
        })
        .unwrap();
}
