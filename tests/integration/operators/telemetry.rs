//! Logs and traces: the id of a request appears in the log, at the gateway and in the projection; its trace reaches the
//! collector. Neither contains a secret.

use std::sync::{Arc, Mutex};

use axum::{Router, body::Bytes, extract::State, http::HeaderMap, routing::post};
use firstcome::dev::ScratchDir;
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{KeyValue, any_value::Value as Any},
    trace::v1::Span,
};
use prost::Message;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::{
    api::tokens::token_of,
    process::binary::{Running, program},
    support::{
        fake_gateway::FakeGateway,
        harness::{Reply, client, read, until},
    },
};

/// Secrets that no log may contain, each used in a different place.
const JWT_SECRET: &str = "hunter1-is-a-secret-of-enough-bytes";
const ADMIN: &str = "hunter2-is-the-operators-token";
const GATEWAY: &str = "hunter3-is-the-gateway-s-token";
const API_KEY: &str = "hunter4-is-the-collector-s-key";

/// Concurrent charges.
const MANY: usize = 40;

const TRACE_ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT_ID: &str = "00f067aa0ba902b7";

/// An OpenTelemetry collector: the exports that it received, and the headers of the last one.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<(Vec<ExportTraceServiceRequest>, HeaderMap)>>);

impl Collector {
    /// Its base URL.
    async fn start(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let take = async |State(Collector(got)): State<Collector>, headers: HeaderMap, body: Bytes| {
            let mut got = got.lock().unwrap();
            got.0.push(ExportTraceServiceRequest::decode(body).unwrap());
            got.1 = headers;
        };
        let router = Router::new().route("/v1/traces", post(take)).with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        format!("http://{address}")
    }

    fn spans(&self) -> Vec<Span> {
        let got = self.0.lock().unwrap();
        let scopes = got.0.iter().flat_map(|export| &export.resource_spans).flat_map(|spans| &spans.scope_spans);
        scopes.flat_map(|scope| scope.spans.clone()).collect()
    }
}

fn attribute(attributes: &[KeyValue], key: &str) -> Value {
    let found = attributes.iter().find(|attribute| attribute.key == key);
    fn json(value: &Any) -> Value {
        match value {
            Any::StringValue(text) => json!(text),
            Any::IntValue(number) => json!(number),
            Any::ArrayValue(all) => {
                all.values.iter().map(|value| value.value.as_ref().map_or(Value::Null, json)).collect()
            }
            other => panic!("{other:?}"),
        }
    }
    found.and_then(|found| found.value.as_ref()?.value.as_ref()).map_or(Value::Null, json)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Sends a user's request with a request id and a trace context.
async fn send(base: &str, method: Method, path: &str, body: Value, token: &str, id: &str) -> Reply {
    let request = client().request(method, format!("{base}{path}")).json(&body).bearer_auth(token);
    let parent = format!("00-{TRACE_ID}-{PARENT_ID}-01");
    read(request.header("x-request-id", id).header("traceparent", parent)).await
}

fn user_token(user: i64) -> String {
    token_of(JWT_SECRET, &json!({"sub": user, "exp": 4_102_444_800_i64}))
}

#[tokio::test]
async fn request_traced_without_secrets() {
    let (dir, gateway, collector) = (ScratchDir::new().unwrap(), FakeGateway::start().await, Collector::default());
    let mut command = program(&["dev", "--dir", dir.path().join("data").to_str().unwrap()]);
    command.envs([
        ("BIND_ADDR", "127.0.0.1:0"),
        ("RUST_LOG", "debug"),
        ("ADMIN_TOKEN", ADMIN),
        ("AUTH", "jwt"),
        ("AUTH_JWT_SECRET", JWT_SECRET),
        ("PAYMENT_GATEWAY_KAKAO_PAY_URL", gateway.url()),
        ("PAYMENT_GATEWAY_TOKEN", GATEWAY),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.start().await),
        ("OTEL_EXPORTER_OTLP_HEADERS", &format!("x-api-key={API_KEY}")),
        ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test"),
        ("OTEL_BSP_SCHEDULE_DELAY", "100"),
    ]);
    let mut dev = Running::start(&mut command, &dir, "dev");
    let base = dev.base().await;
    let (user, other) = (user_token(1), user_token(2));
    let order = json!({"userId": 1, "orderProducts": [{"productId": 5, "quantity": 1}]});
    let placed = send(&base, Method::POST, "/api/v1/orders", order, &user, "follow-1").await.ok();
    let pay =
        json!({"orderId": placed["orderId"], "userId": 1, "paymentType": "KAKAO_PAY", "amount": placed["finalPrice"]});
    send(&base, Method::POST, "/api/v1/payments", pay, &user, "follow-2").await.ok();
    assert_eq!(gateway.header("x-request-id").as_deref(), Some("follow-2"));
    let traceparent = gateway.header("traceparent").unwrap();
    assert!(traceparent.starts_with(&format!("00-{TRACE_ID}-")) && !traceparent.contains(PARENT_ID), "{traceparent}");
    send(&base, Method::PUT, "/api/v1/balances/1", json!({"amount": 5}), &user, "follow-3").await.ok();
    send(&base, Method::PUT, "/api/v1/balances/1", json!({"amount": 5}), &other, "follow-4")
        .await
        .refused(403, "FORBIDDEN");
    send(&base, Method::PUT, "/api/v1/balances/1", json!({"amount": 5}), "hunter6", "follow-5")
        .await
        .refused(401, "INVALID_TOKEN");
    let projection = client().get(format!("{base}/admin/v1/projection")).header("x-request-id", "follow-6");
    read(projection.bearer_auth(ADMIN)).await.ok();
    // Each of the batched requests appears in the trace.
    let charge = |n: usize| {
        let (base, user) = (base.clone(), user.clone());
        async move {
            let id = format!("many-{n}");
            send(&base, Method::PUT, "/api/v1/balances/1", json!({"amount": 1}), &user, &id).await.ok()
        }
    };
    futures_util::future::join_all((0..MANY).map(charge)).await;
    until("what was done is projected", async || {
        let projection = read(client().get(format!("{base}/admin/v1/projection")).bearer_auth(ADMIN)).await.ok();
        (projection["lagEvents"] == 0).then_some(())
    })
    .await;
    // The program exports the remaining spans when it stops.
    dev.stop().await;

    let spans = collector.spans();
    let of = |id: &str| {
        let found =
            spans.iter().find(|span| attribute(&span.attributes, "firstcome.request_id") == id && span.kind == 2);
        found.unwrap_or_else(|| panic!("{id} has no span in {spans:#?}"))
    };
    for (id, name, status, error) in [
        ("follow-1", "POST /api/v1/orders", 200, Value::Null),
        ("follow-2", "POST /api/v1/payments", 200, Value::Null),
        ("follow-3", "PUT /api/v1/balances/{userId}", 200, Value::Null),
        ("follow-4", "PUT /api/v1/balances/{userId}", 403, json!("FORBIDDEN")),
        ("follow-5", "PUT /api/v1/balances/{userId}", 401, json!("INVALID_TOKEN")),
    ] {
        let span = of(id);
        assert_eq!((span.name.as_str(), hex(&span.trace_id).as_str()), (name, TRACE_ID), "{id}");
        assert_eq!(hex(&span.parent_span_id), PARENT_ID, "{id}");
        assert_eq!(attribute(&span.attributes, "http.response.status_code"), status, "{id}");
        assert_eq!(attribute(&span.attributes, "error.type"), error, "{id}");
        assert_eq!(attribute(&span.attributes, "network.peer.address"), "127.0.0.1", "{id}");
        assert!(span.end_time_unix_nano >= span.start_time_unix_nano);
    }
    let below = |id: &str, name: &str| {
        let parent = &of(id).span_id;
        let found = spans.iter().find(|span| span.parent_span_id == *parent && span.name == name);
        found.unwrap_or_else(|| panic!("{id} has no {name} in {spans:#?}"))
    };
    let script = below("follow-1", "EVALSHA order_place");
    assert_eq!(attribute(&script.attributes, "firstcome.requests"), 1);
    assert_eq!(hex(&script.trace_id), TRACE_ID);
    below("follow-3", "EVALSHA balance_charge");
    let mut charges = 0;
    for call in spans.iter().filter(|span| span.name == "EVALSHA balance_charge") {
        let requests = attribute(&call.attributes, "firstcome.requests").as_u64().unwrap() as usize;
        assert_eq!(call.links.len() + 1, requests, "each request is its parent or linked to it");
        assert!(call.links.iter().all(|link| hex(&link.trace_id) == TRACE_ID && link.span_id != call.parent_span_id));
        charges += requests;
    }
    assert_eq!(charges, MANY + 1);
    let paid = below("follow-2", "POST /payments");
    assert_eq!(attribute(&paid.attributes, "firstcome.gateway"), "KAKAO_PAY");
    assert_eq!(traceparent, format!("00-{TRACE_ID}-{}-01", hex(&paid.span_id)));
    for id in ["follow-1", "follow-2", "follow-3"] {
        let carried = spans.iter().filter(|span| span.name == "project");
        let mut ids = carried.map(|span| attribute(&span.attributes, "firstcome.request_ids"));
        assert!(ids.any(|ids| ids.as_array().unwrap().contains(&json!(id))), "{id} is in no batch");
    }
    {
        let got = collector.0.lock().unwrap();
        let resource = got.0[0].resource_spans[0].resource.as_ref().unwrap();
        assert_eq!(attribute(&resource.attributes, "service.name"), "firstcome");
        assert_eq!(attribute(&resource.attributes, "service.version"), env!("CARGO_PKG_VERSION"));
        assert_eq!(attribute(&resource.attributes, "deployment.environment"), "test");
        assert_eq!(got.1["x-api-key"], API_KEY);
    }

    let log = dev.log();
    let line = |id: &str| {
        let mut lines = log.iter().filter(|line| line["target"] == "firstcome::access");
        let found = lines.find(|line| line["fields"]["request_id"] == id);
        found.unwrap_or_else(|| panic!("{id} has no line in {}", dev.err()))["fields"].clone()
    };
    let paid = line("follow-2");
    assert_eq!(
        (&paid["method"], &paid["route"], &paid["status"], &paid["client"]),
        (&json!("POST"), &json!("/api/v1/payments"), &json!(200), &json!("127.0.0.1"))
    );
    assert!(paid["ms"].as_f64().unwrap() > 0.0 && paid.get("error_code").is_none() && paid.get("operator").is_none());
    assert_eq!(line("follow-4")["error_code"], "FORBIDDEN");
    assert!(line("follow-6")["operator"].is_string());
    let log = dev.err();
    for secret in [JWT_SECRET, ADMIN, GATEWAY, API_KEY, "hunter", user.as_str(), other.as_str()] {
        assert!(!log.contains(secret), "{secret} is in {log}");
    }
    // The log does not even contain the token's signature.
    let signature = user.rsplit('.').next().unwrap();
    assert!(!log.contains(signature));
    assert!(gateway.faults().is_empty());
}

#[tokio::test]
async fn collector_outage_logged_once() {
    let dir = ScratchDir::new().unwrap();
    let mut command = program(&["dev", "--dir", dir.path().join("data").to_str().unwrap()]);
    command.envs([
        ("BIND_ADDR", "127.0.0.1:0"),
        ("ADMIN_TOKEN", ADMIN),
        ("LOG_FORMAT", "json"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://127.0.0.1:1/v1/traces"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "1"),
        ("OTEL_BSP_SCHEDULE_DELAY", "10"),
    ]);
    let mut dev = Running::start(&mut command, &dir, "dev");
    let base = dev.base().await;
    let traceparent = "the collector does not take traces: they are dropped until it does";
    until("the collector is missed", async || {
        read(client().get(format!("{base}/api/v1/products"))).await.ok();
        dev.logged(traceparent)
    })
    .await;
    for _ in 0..200 {
        read(client().get(format!("{base}/api/v1/products"))).await.ok();
    }
    dev.stop().await;
    assert_eq!(dev.err().matches(traceparent).count(), 1, "{}", dev.err());
    assert!(!dev.err().contains("firstcome::access"), "{}", dev.err());
}

#[tokio::test]
async fn log_format_follows_setting() {
    let run = async |format: &str| {
        let mut command = program(&["migrate"]);
        command.env("DATABASE_URL", "postgres://127.0.0.1:1/x").env("DATABASE_TIMEOUT_MS", "100");
        let output = command.env("LOG_FORMAT", format).env("RUST_LOG", "debug").output().await.unwrap();
        String::from_utf8(output.stderr).unwrap()
    };
    for (format, json) in [("json", true), ("auto", true), ("text", false)] {
        let log = run(format).await;
        let first = log.lines().next().unwrap();
        assert_eq!(serde_json::from_str::<Value>(first).is_ok(), json, "{format}: {log}");
        assert!(!log.contains('\u{1b}'), "colours in a file: {log}");
    }
    assert!(run("xml").await.contains("LOG_FORMAT"));
}
