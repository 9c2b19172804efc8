//! Fuzzes the whole router with random bytes and mutated requests. No reply is a 5xx, every reply matches the contract
//! and the OpenAPI document, and a body that the document forbids gets the 400 of its endpoint.
//!
//! `PROPTEST_CASES=100000` runs more cases.

use axum::{
    body::Body,
    http::{HeaderName, HeaderValue, Request},
};
use firstcome::config::{AuthConfig, BrowserConfig, HttpConfig, LimitsConfig, MetricsConfig, OperatorsConfig};
use http_body_util::BodyExt;
use proptest::{prelude::*, sample::Index, test_runner::TestRunner};
use reqwest::Method;
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::{
    api::{
        errors::{Kind, Write, shop},
        openapi::Document,
    },
    projector::fuzz_events::config,
    support::{
        api_kit::{document, in_contract},
        harness::{ADMIN, Reply, TestApp},
    },
};

/// A test app and its router, called without a network.
struct FuzzApp {
    test: TestApp,
    writes: Vec<Write>,
    router: axum::Router,
    document: &'static Document,
}

impl FuzzApp {
    async fn start() -> FuzzApp {
        let (test, mut writes) = shop().await;
        // The operators' listings wait for the projector.
        test.app.project();
        let one = Kind::Int(1, 1_000_000_000);
        let release = |path: &str| Write::new(Method::POST, path, "INVALID_REQUEST");
        writes.extend([
            release("/admin/v1/withheld/release"),
            release("/admin/v1/products/1/release").field("quantity", one, 1),
            release("/admin/v1/coupons/1/release").field("quantity", one, 1),
            release("/admin/v1/coupons/1").field("closesAt", Kind::Word, "\"2026-03-02T16:00:00\"").optional(false),
        ]);
        writes.last_mut().unwrap().method = Method::PATCH;
        let http = HttpConfig {
            bind_addr: "127.0.0.1:0".parse().unwrap(),
            ops_bind_addr: None,
            operators: OperatorsConfig::admin(ADMIN),
            request_timeout_ms: 300_000,
            body_limit_bytes: 65_536,
            max_connections: 1,
            listen_backlog: 16_384,
            header_timeout_ms: 1,
            drain_seconds: 0,
            drain_delay_seconds: None,
            limits: LimitsConfig::off(),
            browsers: BrowserConfig::default(),
            metrics: MetricsConfig::default(),
            auth: AuthConfig::default(),
        };
        let (router, document) = (test.app.router(&http).unwrap(), document(&test).await);
        FuzzApp { test, writes, router, document }
    }

    /// Sends a request and checks the reply against the contract and the OpenAPI document. `None` if the HTTP library
    /// can't represent the request.
    async fn send(&self, method: &Method, uri: &str, headers: &[(&str, Vec<u8>)], body: Vec<u8>) -> Option<Reply> {
        let mut request = Request::builder().method(method.clone()).uri(uri).body(Body::from(body)).ok()?;
        let host = request.uri().authority().map_or("fuzz", |authority| authority.as_str());
        let host = HeaderValue::from_str(host).ok()?;
        request.headers_mut().insert("host", host);
        for (name, value) in headers {
            let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
            request.headers_mut().append(name, HeaderValue::from_bytes(value).ok()?);
        }
        if uri.starts_with("/admin") {
            let token = HeaderValue::from_str(&format!("Bearer {ADMIN}")).unwrap();
            request.headers_mut().append("authorization", token);
        }
        // A client sends no fragment, so the check uses the URI without it.
        let sent = request.uri().to_string();
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let text = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
        let reply = Reply { status: parts.status, headers: parts.headers, text };
        assert!(!reply.status.is_server_error(), "{method} {uri}: {} {}", reply.status, reply.text);
        in_contract(&sent, &reply);
        self.document.check_reply(method.as_str(), &sent, &reply);
        Some(reply)
    }

    async fn json(&self, write: &Write, body: Vec<u8>) -> Reply {
        let kind = ("content-type", b"application/json".to_vec());
        self.send(&write.method, &write.path, &[kind], body).await.unwrap()
    }
}

/// Whether the service must refuse a body, decided without the service's own decoder.
fn must_be_refused(fuzz: &FuzzApp, write: &Write, body: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(body) else { return true };
    match serde_json::from_str::<Value>(text) {
        Ok(value) => fuzz.document.rejects(write.method.as_str(), &write.path, &value),
        // `Value` refuses syntax that a skipped field may have: deep nesting, huge numbers, lone surrogates. The
        // service must refuse only text that is not JSON at all.
        Err(_) => serde_json::from_str::<IgnoredAny>(text).is_err(),
    }
}

/// Runs a property on one app.
fn run<S: Strategy>(config: ProptestConfig, strategy: &S, mut test: impl AsyncFnMut(&FuzzApp, S::Value)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let fuzz = runtime.block_on(FuzzApp::start());
    let test = std::cell::RefCell::new(&mut test);
    TestRunner::new(config)
        .run(strategy, |input| {
            runtime.block_on(test.borrow_mut()(&fuzz, input));
            Ok(())
        })
        .unwrap();
    runtime.block_on(fuzz.test.finish());
}

fn bytes(most: usize) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..most)
}

/// JSON of any shape as text, including numbers out of range and duplicate keys.
fn json_text() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        4 => prop::sample::select(&["null", "true", "0", "-0", "1", "1.0", "1e0", "0.5", "-1", "100", "101", "10001", "100001",
            "1e400", "-1e-400", "1e16", "9007199254740991", "9007199254740992", "9007199254740991.0", "9223372036854775807",
            "9223372036854775808", "18446744073709551616", "1E+2", "\"\"", "\"CARD\"", "\"TOP\"", "\"1\"", "\"\\u0000\"",
            "\"\\ud800\"", "\"\\udc00\\ud800\"", "\"2026-03-03T00:00:00\"", "\"2026-02-30T00:00:00\"", "\" \"", "01", "+1",
            "NaN", "{", "[", "]", "}", ",", ":", "\"", "\\", "/**/", "\u{feff}"][..]).prop_map(str::to_owned),
        1 => any::<i64>().prop_map(|number| number.to_string()),
        1 => any::<f64>().prop_map(|number| format!("{number:e}")),
        2 => any::<String>().prop_map(|text| serde_json::to_string(&text).unwrap()),
        1 => (1..3_000usize).prop_map(|depth| "[".repeat(depth) + &"]".repeat(depth)),
        1 => (1..1_000usize).prop_map(|depth| "{\"a\":".repeat(depth) + "0" + &"}".repeat(depth)),
    ];
    let name = prop_oneof![Just("amount"), Just("userId"), Just("productId"), Just("quantity"), Just("a")];
    leaf.prop_recursive(3, 24, 4, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(|items| format!("[{}]", items.join(","))),
            prop::collection::vec((name.clone(), inner), 0..4).prop_map(|fields| {
                let fields: Vec<_> = fields.iter().map(|(name, json)| format!("\"{name}\":{json}")).collect();
                format!("{{{}}}", fields.join(","))
            }),
        ]
    })
}

#[derive(Clone, Debug)]
enum Change {
    /// Replaces the value of a field.
    Value(Index, String),
    Without(Index),
    /// Repeats a field, before the others (`true`) or after them.
    Twice(Index, String, bool),
    /// Adds a field that the endpoint does not know.
    Unknown(String, String),
    /// Replaces bytes of the text.
    Splice(Index, usize, Vec<u8>),
}

fn change() -> impl Strategy<Value = Change> {
    let pieces = prop_oneof![bytes(4), json_text().prop_map(String::into_bytes), Just(vec![0]), Just(b"\xff".to_vec())];
    prop_oneof![
        8 => (any::<Index>(), json_text()).prop_map(|(at, json)| Change::Value(at, json)),
        1 => any::<Index>().prop_map(Change::Without),
        2 => (any::<Index>(), json_text(), any::<bool>()).prop_map(|(at, json, first)| Change::Twice(at, json, first)),
        2 => (any::<String>(), json_text()).prop_map(|(name, json)| Change::Unknown(name, json)),
        3 => (any::<Index>(), 0..5usize, pieces).prop_map(|(at, length, bytes)| Change::Splice(at, length, bytes)),
    ]
}

/// The valid body of a write with these changes.
fn changed(write: &Write, changes: &[Change]) -> Vec<u8> {
    let mut fields: Vec<(String, String)> =
        write.fields.iter().map(|field| (field.name.to_owned(), field.right.clone())).collect();
    let names = fields.clone();
    for change in changes.iter().filter(|_| !names.is_empty()) {
        let name = |at: &Index| names[at.index(names.len())].0.clone();
        match change {
            Change::Value(at, json) => {
                let name = name(at);
                fields.iter_mut().filter(|field| field.0 == name).for_each(|field| field.1.clone_from(json));
            }
            Change::Without(at) => {
                let name = name(at);
                fields.retain(|field| field.0 != name);
            }
            Change::Twice(at, json, first) => {
                let place = if *first { 0 } else { fields.len() };
                fields.insert(place, (name(at), json.clone()));
            }
            Change::Unknown(name, json) => fields.push((name.clone(), json.clone())),
            Change::Splice(..) => {}
        }
    }
    let spelled = |(name, json): &(String, String)| format!("{}:{json}", serde_json::to_string(name).unwrap());
    let mut body = format!("{{{}}}", fields.iter().map(spelled).collect::<Vec<_>>().join(",")).into_bytes();
    for change in changes {
        if let Change::Splice(at, length, bytes) = change {
            let at = at.index(body.len() + 1);
            let end = (at + length).min(body.len());
            body.splice(at..end, bytes.iter().copied());
        }
    }
    body
}

/// Whether the body creates so many users that the case is slow without testing more.
fn creates_many_users(write: &Write, body: &[u8]) -> bool {
    let count = || serde_json::from_slice::<Value>(body).ok()?["count"].as_f64();
    write.path.ends_with("/bulk") && count().is_some_and(|count| count > 200.0)
}

#[test]
fn body_mutated_gets_documented_reply() {
    let input = (any::<Index>(), prop::collection::vec(change(), 0..4));
    run(config(1_024, 1), &input, async |fuzz, (at, changes)| {
        let write = at.get(&fuzz.writes);
        let body = changed(write, &changes);
        if creates_many_users(write, &body) {
            return;
        }
        let refused = must_be_refused(fuzz, write, &body);
        let shown = String::from_utf8_lossy(&body).into_owned();
        let reply = fuzz.json(write, body).await;
        if refused {
            let code = reply.json()["errorCode"].clone();
            let own = if reply.status == 413 { "PAYLOAD_TOO_LARGE" } else { write.invalid };
            assert_eq!(code, own, "{} {} {shown:.300}: {}", write.method, write.path, reply.text);
        } else if changes.is_empty() {
            assert_ne!(reply.json()["errorCode"], "INVALID_REQUEST", "{shown}");
        }
    });
}

#[test]
fn body_of_random_bytes_gets_documented_reply() {
    let input = prop_oneof![bytes(64), json_text().prop_map(String::into_bytes), Just(vec![b' '; 70_000])];
    run(config(256, 8), &input, async |fuzz, body| {
        for write in &fuzz.writes {
            if must_be_refused(fuzz, write, &body) || body.len() > 65_536 {
                let code = if body.len() > 65_536 { "PAYLOAD_TOO_LARGE" } else { write.invalid };
                assert_eq!(fuzz.json(write, body.clone()).await.json()["errorCode"], code, "{}", write.path);
            } else {
                fuzz.json(write, body.clone()).await;
            }
        }
    });
}

#[test]
fn header_of_random_bytes_gets_documented_reply() {
    let value = || prop_oneof![bytes(20), bytes(300), "[ -~]{0,300}".prop_map(String::into_bytes)];
    let kind = prop_oneof![
        4 => Just(b"application/json".to_vec()),
        1 => "[aA]pplication/(json|x|[a-z]*\\+json)( *;[ -~]{0,9})?".prop_map(String::into_bytes),
        1 => value(),
    ];
    let keys = prop::collection::vec(value(), 0..3);
    run(config(512, 1), &(kind, keys, value(), value()), async |fuzz, (kind, keys, id, other)| {
        let write = &fuzz.writes[0];
        let mut headers = vec![("content-type", kind.clone()), ("x-request-id", id), ("expect", other.clone())];
        headers.extend(keys.iter().map(|key| ("idempotency-key", key.clone())));
        headers.push(("accept", other));
        let Some(reply) = fuzz.send(&write.method, &write.path, &headers, write.body(None).into_bytes()).await else {
            return;
        };
        let valid =
            |key: &Vec<u8>| (1..=255).contains(&key.len()) && key.iter().all(|byte| (0x20..0x7f).contains(byte));
        let json = kind == b"application/json";
        let expected = match &keys[..] {
            _ if !json => return,
            [] => 200,
            // The body is always the same, so a repeated key replays the first reply.
            [key] if valid(key) => 200,
            _ => 400,
        };
        assert_eq!(reply.status, expected, "{keys:?}: {}", reply.text);
        if expected == 400 {
            reply.refused(400, "INVALID_IDEMPOTENCY_KEY");
        }
    });
}

/// Prefix and suffix of a read by id, and the error code for an invalid id.
const BY_ID: &[(&str, &str, &str)] = &[
    ("/api/v1/balances/", "", "USER_NOT_FOUND"),
    ("/api/v1/balances/", "/history", "USER_NOT_FOUND"),
    ("/api/v1/coupons/", "", "USER_NOT_FOUND"),
    ("/api/v1/products/", "", "PRODUCT_NOT_FOUND"),
    ("/api/v1/orders/", "", "ORDER_NOT_FOUND"),
    ("/admin/v1/coupons/", "", "COUPON_NOT_FOUND"),
    ("/admin/v1/users/", "", "USER_NOT_FOUND"),
    ("/admin/v1/users/", "/timeline", "USER_NOT_FOUND"),
    ("/admin/v1/orders/", "/timeline", "ORDER_NOT_FOUND"),
];

/// Text for a URL: percent-encoded, or unchanged.
fn for_a_url() -> impl Strategy<Value = String> {
    let encoded = |bytes: Vec<u8>| bytes.iter().map(|byte| format!("%{byte:02X}")).collect::<String>();
    prop_oneof![
        2 => prop::sample::select(&["0", "1", "01", "-1", "+1", "1.0", "1e3", "100", "101", "1000", "1001", "10000", "10001",
            "9007199254740991", "9007199254740992", "9223372036854775808", "1152921504606846976000", "%31", "%00", "%FF",
            "%C3%28", "%", "%zz", "%2F", "..", ".", "%2E%2E", "null", "PAID", "paid", "TOP", "WEEKLY", "wEEkly", "", " "][..])
            .prop_map(str::to_owned),
        1 => any::<u64>().prop_map(|number| number.to_string()),
        1 => bytes(20).prop_map(encoded),
        1 => any::<String>().prop_map(move |text| encoded(text.into_bytes())),
        1 => "[!-~]{0,30}",
    ]
}

#[test]
fn path_of_random_text_gets_documented_reply() {
    run(config(512, 1), &(any::<Index>(), for_a_url()), async |fuzz, (at, segment)| {
        let (before, after, unknown) = *at.get(BY_ID);
        let Some(reply) = fuzz.send(&Method::GET, &format!("{before}{segment}{after}"), &[], Vec::new()).await else {
            return;
        };
        let plain = !segment.is_empty() && segment.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if plain && segment.parse::<i64>().is_err() && segment != "popular" {
            reply.refused(404, unknown);
        }
        // Text with a slash leads to an unknown path, which gets a 404.
        assert!(reply.status == 200 || reply.status == 404 || reply.status == 400, "{}", reply.text);
    });
}

/// Listings with their parameters, each with the inclusive bounds of its value; a parameter that is not a number has
/// the empty range 0..=-1.
const LISTINGS: &[(&str, &[(&str, i64, i64)])] = &[
    ("/api/v1/products", &[("page", 0, 10_000), ("size", 1, 100), ("category", 0, -1)]),
    ("/api/v1/campaigns", &[("page", 0, 10_000), ("size", 1, 100)]),
    ("/api/v1/products/popular", &[("sortBy", 0, -1), ("limit", 1, 100)]),
    ("/api/v1/balances/1/history", &[("limit", 1, 1_000), ("before", 1, 9_007_199_254_740_991)]),
    ("/api/v1/orders/1", &[("userId", 1, 9_007_199_254_740_991)]),
    ("/admin/v1/operator-log", &[("page", 0, 10_000), ("size", 1, 100), ("operator", 0, -1)]),
    ("/admin/v1/dead-letters", &[("page", 0, 10_000), ("size", 1, 100)]),
    ("/admin/v1/recoveries", &[("page", 0, 10_000), ("size", 1, 100)]),
    ("/admin/v1/requests", &[("instanceId", 0, -1)]),
    ("/admin/v1/sales", &[("from", 0, -1), ("until", 0, -1)]),
    ("/admin/v1/products/1/buyers", &[("page", 0, 10_000), ("size", 1, 100)]),
    (
        "/admin/v1/orders",
        &[("page", 0, 10_000), ("size", 1, 100), ("status", 0, -1), ("userId", 1, 9_007_199_254_740_991)],
    ),
];

#[test]
fn query_of_random_text_gets_documented_reply() {
    let pairs = prop::collection::vec((any::<Index>(), for_a_url(), any::<bool>()), 0..4);
    run(config(512, 1), &(any::<Index>(), pairs, for_a_url()), async |fuzz, (at, pairs, rest)| {
        let (path, parameters) = *at.get(LISTINGS);
        let mut query = Vec::new();
        for (at, value, known) in &pairs {
            let (name, ..) = *at.get(parameters);
            query.push(if *known { format!("{name}={value}") } else { format!("{value}={name}&{value}") });
        }
        if pairs.len() > 2 {
            query.push(rest);
        }
        let alone = match &pairs[..] {
            [(at, value, true)] => Some((*at.get(parameters), value)),
            _ => None,
        };
        let Some(reply) = fuzz.send(&Method::GET, &format!("{path}?{}", query.join("&")), &[], Vec::new()).await else {
            return;
        };
        // The bounds decide if the only parameter is an alphanumeric text.
        if let Some(((_, least, most), value)) = alone
            && least <= most
            && value.bytes().all(|byte| byte.is_ascii_alphanumeric())
        {
            // Leading zeros are invalid.
            let spelled = |number: i64| (least..=most).contains(&number) && number.to_string() == *value;
            let fits = value.parse().is_ok_and(spelled);
            assert_eq!(reply.status == 400, !fits, "{path} {query:?}: {}", reply.text);
        }
    });
}

#[test]
fn checker_detects_undocumented_replies() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let fuzz = runtime.block_on(FuzzApp::start());
    for write in &fuzz.writes {
        assert!(!must_be_refused(&fuzz, write, write.body(None).as_bytes()), "{}", write.path);
        for wrong in ["", "{", "[]", "\u{feff}{}", "{\"a\":\"\\x\"}"] {
            assert!(must_be_refused(&fuzz, write, wrong.as_bytes()), "{}: {wrong}", write.path);
        }
    }
    let charge = json!({"amount": 100_001}).to_string();
    assert!(must_be_refused(&fuzz, &fuzz.writes[0], charge.as_bytes()));
    runtime.block_on(fuzz.test.finish());
}
