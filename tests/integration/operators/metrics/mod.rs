//! The metrics are exact and served while a store is down. The Grafana dashboard, the alerts and the documentation name
//! only metrics that exist.
//!
//! All tests in this process share its counters, so a test of exact counts starts its own process.

mod names;

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Stdio,
    time::{Duration, Instant},
};

use firstcome::dev::{self, RedisServer, ScratchDir, free_port};
use reqwest::Method;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use crate::{
    process::binary::program,
    projector::projection::{RestartableApp, poison},
    support::{
        exposition::{Family, Scrape},
        fake_gateway::FakeGateway,
        harness::{self, ADMIN, Options, Reply, TestApp, until},
        promql,
    },
};
const ALERTS: &str = include_str!("../../../../deploy/alerts.yml");

async fn scrape(test: &TestApp) -> Scrape {
    let reply = test.get("/metrics").await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert_eq!(reply.headers["content-type"], "text/plain; version=0.0.4");
    Scrape::parse(&reply.text)
}

/// The first scrape that fulfils a condition.
async fn scraped(test: &TestApp, what: &str, shows: impl Fn(&Scrape) -> bool) -> Scrape {
    until(what, async || Some(scrape(test).await).filter(&shows)).await
}

/// A process of the program with these servers.
struct Process {
    child: Child,
    base: String,
    client: reqwest::Client,
}

impl Process {
    async fn start(command: &mut Command, listens: &str) -> Process {
        let address = format!("127.0.0.1:{}", free_port().unwrap());
        command.env(listens, &address).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let (base, client) = (format!("http://{address}"), harness::client());
        until("it is ready", async || {
            assert!(child.try_wait().unwrap().is_none(), "it ended");
            let ready = client.get(format!("{base}/readyz")).send().await.ok()?;
            ready.status().is_success().then_some(())
        })
        .await;
        Process { child, base, client }
    }

    async fn send(&self, method: Method, path: &str, token: &str, body: Option<Value>) -> Reply {
        let request = self.client.request(method, format!("{}{path}", self.base)).bearer_auth(token);
        harness::read(if let Some(body) = &body { request.json(body) } else { request }).await
    }

    async fn post(&self, path: &str, body: Value) -> Reply {
        self.send(Method::POST, path, ADMIN, Some(body)).await
    }

    async fn scraped(&self, what: &str, shows: impl Fn(&Scrape) -> bool) -> Scrape {
        until(what, async || {
            let reply = self.send(Method::GET, "/metrics", SCRAPER, None).await;
            assert_eq!(reply.status, 200, "{}", reply.text);
            Some(Scrape::parse(&reply.text)).filter(&shows)
        })
        .await
    }

    async fn stop(mut self) {
        kill_process(Pid::from_raw(self.child.id().unwrap() as i32).unwrap(), Signal::TERM).unwrap();
        let ended = tokio::time::timeout(Duration::from_secs(300), self.child.wait()).await.expect("it does not end");
        assert!(ended.unwrap().success());
    }
}

/// The token for scrapes in [`metrics_count_every_event_exactly`].
const SCRAPER: &str = "a-token-for-prometheus";

#[tokio::test]
async fn metrics_count_every_event_exactly() {
    let dir = ScratchDir::new().unwrap();
    let redis = RedisServer::start(dev::RedisServerConfig::new(dir.path().join("redis"))).await.unwrap();
    let database = harness::fresh_database().await;
    let with_servers = |role: &str| {
        let mut command = program(&[role]);
        command.env("REDIS_URL", redis.url()).env("DATABASE_URL", harness::postgres_url(&database));
        command.env("METRICS_TOKEN", SCRAPER).env("SOLD_OUT_LEASE_MS", "0");
        command
    };
    let serve =
        Process::start(with_servers("serve").env("ADMIN_TOKEN", ADMIN).env("NO_PROJECTOR", "true"), "BIND_ADDR").await;
    let project = Process::start(&mut with_servers("project"), "OPS_BIND_ADDR").await;

    // Scrapes require the token, and a projector serves metrics only.
    for process in [&serve, &project] {
        for token in [ADMIN, "", "a-token-for-prometheuS"] {
            process.send(Method::GET, "/metrics", token, None).await.refused(401, "UNAUTHORIZED");
        }
        harness::read(process.client.get(format!("{}/metrics", process.base))).await.refused(401, "UNAUTHORIZED");
    }
    project.send(Method::GET, "/healthz", "", None).await.ok();
    project.send(Method::GET, "/api/v1/products", "", None).await.refused(404, "NOT_FOUND");

    let users = serve.post("/admin/v1/users/bulk", json!({"count": 20, "balance": 1_000})).await.created();
    let first = users["firstUserId"].as_i64().unwrap();
    let campaign = json!({"couponCode": "A", "discountType": "FIXED", "discountAmount": 5, "totalQuantity": 7,
        "expiredAt": "2099-01-01T00:00:00"});
    let coupon = serve.post("/admin/v1/coupons", campaign).await.created()["couponId"].clone();
    let product = json!({"productName": "A", "price": 100, "stockQuantity": 5, "category": "TOP"});
    let product = serve.post("/admin/v1/products", product).await.created()["productId"].clone();
    let issues = (0..20).map(|n| serve.post("/api/v1/coupons/issue", json!({"couponId": coupon, "userId": first + n})));
    let issued = futures_util::future::join_all(issues).await;
    assert_eq!(issued.iter().filter(|reply| reply.status == 200).count(), 7);
    let order = json!({"userId": first, "orderProducts": [{"productId": product, "quantity": 2}]});
    let mut orders = Vec::new();
    for _ in 0..2 {
        orders.push(serve.post("/api/v1/orders", order.clone()).await.ok()["orderId"].clone());
    }
    serve.post("/api/v1/orders", order).await.refused(409, "INSUFFICIENT_STOCK");
    let pay = json!({"orderId": orders[0], "userId": first, "paymentType": "CARD", "amount": 200});
    serve.post("/api/v1/payments", pay.clone()).await.ok();
    serve.post("/api/v1/payments", pay).await.refused(409, "ORDER_ALREADY_PAID");
    serve.send(Method::GET, "/nowhere/1", "", None).await.refused(404, "NOT_FOUND");
    serve.send(Method::GET, "/nowhere/2", "", None).await.refused(404, "NOT_FOUND");
    serve.send(Method::from_bytes(b"PROPFIND").unwrap(), "/healthz", "", None).await.refused(405, "METHOD_NOT_ALLOWED");

    let answered = |route: &str, status: &str, code: &str| {
        let labels =
            [("route", route), ("status", status), ("error_code", code)].map(|(k, v)| (k.to_owned(), v.to_owned()));
        labels.to_vec()
    };
    let exported = serve
        .scraped("all is exported", |exported| {
            exported.sum("firstcome_http_requests_total", &[("route", "-")]) == 2.0
                && exported.sum("firstcome_http_requests_total", &[("method", "other")]) == 1.0
        })
        .await;
    for (labels, count) in [
        (answered("/api/v1/coupons/issue", "200", ""), 7.0),
        (answered("/api/v1/coupons/issue", "409", "COUPON_OUT_OF_STOCK"), 13.0),
        (answered("/api/v1/orders", "200", ""), 2.0),
        (answered("/api/v1/orders", "409", "INSUFFICIENT_STOCK"), 1.0),
        (answered("/api/v1/payments", "200", ""), 1.0),
        (answered("/api/v1/payments", "409", "ORDER_ALREADY_PAID"), 1.0),
        (answered("-", "404", "NOT_FOUND"), 2.0),
        (answered("/healthz", "405", "METHOD_NOT_ALLOWED"), 1.0),
        (answered("/metrics", "401", "UNAUTHORIZED"), 4.0),
        (answered("/admin/v1/users/bulk", "201", ""), 1.0),
    ] {
        let labels: Vec<(&str, &str)> = labels.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(exported.one("firstcome_http_requests_total", &labels), Some(count), "{labels:?}");
    }
    // The histograms count every request once; only the scrape itself is in flight.
    let route = [("method", "POST"), ("route", "/api/v1/coupons/issue")];
    assert_eq!(exported.one("firstcome_http_request_duration_seconds_count", &route), Some(20.0));
    assert_eq!(exported.one("firstcome_http_requests_in_flight", &[]), Some(1.0));
    assert_eq!(exported.one("firstcome_http_requests_abandoned_total", &[]), Some(0.0));

    let script = |script: &'static str, code: &'static str| {
        exported.sum("firstcome_script_replies_total", &[("script", script), ("code", code)])
    };
    assert_eq!((script("coupon_issue", "ISSUED"), script("coupon_issue", "OUT_OF_STOCK")), (7.0, 13.0));
    assert_eq!((script("order_place", "PLACED"), script("order_place", "INSUFFICIENT_STOCK")), (2.0, 1.0));
    assert_eq!((script("order_pay", "PAID"), script("order_pay", "ALREADY_PAID")), (1.0, 1.0));
    let of = [("script", "coupon_issue")];
    let calls = exported.one("firstcome_script_call_duration_seconds_count", &of).unwrap();
    assert!((1.0..=20.0).contains(&calls), "{calls}");
    // The histogram of batched calls counts every request.
    assert_eq!(exported.one("firstcome_script_requests_per_call_count", &of), Some(calls));
    assert_eq!(exported.one("firstcome_script_requests_per_call_sum", &of), Some(20.0));
    assert_eq!(exported.sum("firstcome_script_failures_total", &[]), 0.0);
    assert!(exported.one("firstcome_redis_connections", &[("kind", "shared")]).unwrap() >= 1.0);
    assert!(exported.one("firstcome_redis_connections_made_total", &[]).unwrap() >= 1.0);
    assert_eq!(exported.one("firstcome_redis_connections_broken_total", &[]), Some(0.0));

    // Open holds, and the projection by the other process.
    assert_eq!(exported.one("firstcome_holds_open", &[("kind", "order")]), Some(1.0));
    assert_eq!(exported.one("firstcome_holds_overdue", &[("kind", "order")]), Some(0.0));
    assert_eq!(
        (exported.one("firstcome_ready", &[]), exported.one("firstcome_redis_unsafe_settings", &[])),
        (Some(1.0), Some(0.0))
    );
    assert_eq!(exported.one("firstcome_projector_partitions", &[]), Some(0.0));
    assert_eq!(exported.one("firstcome_projector_events_total", &[]), Some(0.0));
    let here = [("partition", "0")];
    let decisions = exported.one("firstcome_decisions_total", &here).unwrap();
    assert!(decisions >= 10.0, "{decisions}");
    let carried = project
        .scraped("all is carried", |exported| exported.one("firstcome_projector_events_total", &[]) == Some(decisions))
        .await;
    assert_eq!(carried.one("firstcome_projector_batch_events_sum", &[]), Some(decisions));
    assert_eq!(carried.one("firstcome_projector_partitions", &[]), Some(1.0));
    assert_eq!(carried.one("firstcome_dead_letters_filed_total", &[]), Some(0.0));
    let last_step = carried.one("firstcome_projector_last_step_timestamp_seconds", &here).unwrap();
    let began = carried.one("firstcome_process_start_time_seconds", &[]).unwrap();
    assert!(last_step + 2.0 >= began, "{began} {last_step}");
    for process in [&serve, &project] {
        let exported = process
            .scraped("nothing lags", |exported| exported.one("firstcome_outbox_lag_events", &here) == Some(0.0))
            .await;
        assert_eq!(exported.one("firstcome_decisions_total", &here), Some(decisions));
        assert_eq!(exported.one("firstcome_dead_letters", &here), Some(0.0));
        for (name, least) in [
            ("firstcome_process_resident_memory_bytes", 1e6),
            ("firstcome_process_open_fds", 3.0),
            ("firstcome_process_threads", 1.0),
            ("firstcome_process_cpu_seconds_total", 0.0),
        ] {
            assert!(exported.one(name, &[]).unwrap() >= least, "{name}");
        }
        assert_eq!(exported.one("firstcome_build_info", &[("version", env!("CARGO_PKG_VERSION"))]), Some(1.0));
    }
    serve.stop().await;
    project.stop().await;
    TestApp::on(Options { clock: None, ..Options::default() }, dir, redis, database).await.finish().await;
}

#[tokio::test]
async fn metrics_served_when_redis_hangs() {
    let mut test = TestApp::start().await;
    let user = test.user(1).await;
    test.put_charge(user, 1).await.ok();
    let here = [("partition", "0")];
    let exported = scraped(&test, "all is well", |exported| exported.one("firstcome_ready", &[]) == Some(1.0)).await;
    assert_eq!(exported.one("firstcome_outbox_lag_events", &here), Some(2.0));
    assert_eq!(exported.one("firstcome_backlog_events", &[]), Some(2.0));
    assert!(exported.one("firstcome_outbox_entries", &here).unwrap() >= 1.0);

    test.redis.pause().unwrap();
    let exported =
        scraped(&test, "it is noticed", |exported| exported.one("firstcome_up", &[("part", "redis")]) == Some(0.0))
            .await;
    assert_eq!(exported.one("firstcome_up", &[("part", "postgres")]), Some(1.0));
    assert_eq!(exported.one("firstcome_ready", &[]), Some(0.0));
    for absent in ["firstcome_outbox_lag_events", "firstcome_outbox_lag_seconds", "firstcome_holds_open"] {
        assert!(!exported.0.contains_key(absent), "{absent}");
    }
    // Metrics that need no call are exported.
    assert_eq!(exported.one("firstcome_backlog_events", &[]), Some(2.0));
    assert_eq!(exported.one("firstcome_backlog_limit_events", &[]), Some(1_000_000.0));
    test.redis.resume().unwrap();
    scraped(&test, "it is well again", |exported| exported.one("firstcome_ready", &[]) == Some(1.0)).await;
    // A stopping process is not ready.
    test.app.stopping.cancel();
    scraped(&test, "it is stopping", |exported| exported.one("firstcome_ready", &[]) == Some(0.0)).await;
    test.finish().await;
}

#[tokio::test]
async fn metrics_served_with_lag_when_postgres_hangs() {
    let mut shop = RestartableApp::open().await;
    let (postgres, here) = ([("part", "postgres")], [("partition", "0")]);
    let well = |exported: &Scrape| {
        exported.one("firstcome_up", &postgres) == Some(1.0)
            && exported.one("firstcome_outbox_lag_events", &here) == Some(0.0)
    };
    shop.post("/admin/v1/users", json!({"userName": "A", "balance": 1_000})).await.created();
    scraped_from(&shop, "all is carried", well).await;

    shop.postgres.pause().unwrap();
    shop.post("/admin/v1/users", json!({"userName": "B", "balance": 1_000})).await.created();
    let down = scraped_from(&shop, "the lag grows", |exported| {
        exported.one("firstcome_up", &postgres) == Some(0.0)
            && exported.one("firstcome_outbox_lag_events", &here) == Some(1.0)
            && exported.one("firstcome_outbox_lag_seconds", &here).is_some_and(|seconds| seconds > 0.0)
    })
    .await;
    assert!(!down.0.contains_key("firstcome_dead_letters"), "a count that only PostgreSQL knows is exported");
    assert_eq!(down.one("firstcome_ready", &[]), Some(1.0));
    // Scrapes share a pending read, so many of them take no longer than two timeouts.
    let begun = Instant::now();
    for _ in 0..200 {
        shop.get("/metrics").await;
    }
    assert!(begun.elapsed() < Duration::from_secs(200), "{:?}", begun.elapsed());
    shop.postgres.resume().unwrap();
    scraped_from(&shop, "it catches up", well).await;
    shop.finish().await;
}

/// The first scrape of this shop that fulfils a condition.
async fn scraped_from(shop: &RestartableApp, what: &str, shows: impl Fn(&Scrape) -> bool) -> Scrape {
    until(what, async || {
        let reply = shop.get("/metrics").await;
        assert_eq!(reply.status, 200, "{}", reply.text);
        Some(Scrape::parse(&reply.text)).filter(&shows)
    })
    .await
}

/// The rules of `deploy/alerts.yml`: the fields of each, written as `key: value` or as a block after `key: |`.
fn alerts() -> Vec<BTreeMap<String, String>> {
    let mut rules: Vec<BTreeMap<String, String>> = Vec::new();
    // The key of the current block, and its indentation.
    let mut block: Option<(String, usize)> = None;
    for line in ALERTS.lines() {
        let (indent, text) = (line.len() - line.trim_start().len(), line.trim());
        if let Some((key, of)) = &block {
            if indent > *of || text.is_empty() {
                let value = rules.last_mut().unwrap().get_mut(key).unwrap();
                value.push_str(text);
                value.push('\n');
                continue;
            }
            block = None;
        }
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        if let Some(name) = text.strip_prefix("- alert: ") {
            rules.push(BTreeMap::from([("alert".to_owned(), name.to_owned())]));
            continue;
        }
        let Some(rule) = rules.last_mut() else { continue };
        let (key, value) = text.split_once(':').unwrap_or_else(|| panic!("{line}"));
        let value = value.trim();
        if value == "|" {
            block = Some((key.to_owned(), indent));
        }
        let value = if value == "|" { String::new() } else { value.trim_matches('\'').to_owned() };
        assert!(rule.insert(key.to_owned(), value).is_none(), "{line}");
    }
    rules
}

/// A limit counts the requests that it refuses.
#[tokio::test]
async fn metrics_count_shed_writes() {
    let mut options = Options::default();
    options.durability.max_backlog = 3;
    let test = TestApp::with(options).await;
    let before = scrape(&test).await.sum("firstcome_shed_total", &[("reason", "backlog")]);
    let user = test.user(1_000).await;
    let mut shed = 0.0;
    for _ in 0..20 {
        shed += f64::from(u8::from(test.put_charge(user, 1).await.status == 503));
    }
    assert!(shed > 0.0);
    let more = |exported: &Scrape| exported.sum("firstcome_shed_total", &[("reason", "backlog")]) >= before + shed;
    scraped(&test, "they are counted", more).await;
    test.finish().await;
}
