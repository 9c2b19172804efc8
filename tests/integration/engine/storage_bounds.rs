//! Bounds of the state that clients cause: a refused request adds none, for every error, with and without an idempotency key, on
//! one partition and on several; an accepted one adds no more than docs/limits.md documents.

use std::collections::BTreeMap;

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{
    api_kit::*,
    harness::{Options, Reply, TestApp},
};

/// Rows of every table, by its name.
async fn rows(test: &TestApp) -> BTreeMap<String, i64> {
    let pool = test.db.get_postgres_connection_pool();
    let tables: Vec<String> = sqlx::query_scalar(
        "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public' AND table_type = 'BASE TABLE'",
    )
    .fetch_all(pool)
    .await
    .unwrap();
    let mut rows = BTreeMap::new();
    for table in tables {
        // The names come from PostgreSQL's catalogue.
        let count = sqlx::query_scalar(sqlx::AssertSqlSafe(format!("SELECT count(*) FROM \"{table}\"")));
        rows.insert(table, count.fetch_one(pool).await.unwrap());
    }
    // Instances report their state in these tables without a request.
    rows.retain(|table, _| !table.starts_with("instance"));
    rows
}

/// Bytes of Redis by key.
async fn bytes(test: &TestApp) -> BTreeMap<String, i64> {
    let mut redis = test.raw().await;
    let keys: Vec<String> = redis::cmd("KEYS").arg("*").query_async(&mut redis).await.unwrap();
    let mut bytes = BTreeMap::new();
    for key in keys {
        let size = redis::cmd("MEMORY").arg("USAGE").arg(&key).arg("SAMPLES").arg(0).query_async(&mut redis).await;
        bytes.insert(key, size.unwrap());
    }
    bytes
}

struct Catalog {
    test: TestApp,
    rich: i64,
    poor: i64,
    /// One in every partition, with stock.
    products: Vec<i64>,
    sold_out: i64,
    /// Not on sale yet, and at most one per user.
    scheduled: i64,
    limited: i64,
    campaign: i64,
    issued: i64,
    closed: i64,
    paid: i64,
    cancelled: i64,
    pending: i64,
}

impl Catalog {
    async fn open(partitions: u16) -> Catalog {
        let test = TestApp::with(Options { partitions, max_open_orders: 1, ..Options::default() }).await;
        let mut users = Vec::new();
        for balance in [1_000_000, 0, 0] {
            users.push(test.user(balance).await);
        }
        let [rich, poor, winner] = users[..] else { panic!() };
        let mut products = Vec::new();
        for _ in 0..partitions {
            products.push(test.product(1_000, 100).await);
        }
        let sold_out = test.product(1_000, 0).await;
        let product = async |terms: Value| {
            let mut new = json!({"productName": "P", "price": 1_000, "stockQuantity": 9, "category": "TOP"});
            new.as_object_mut().unwrap().extend(terms.as_object().unwrap().clone());
            test.post("/admin/v1/products", new).await.created()["productId"].as_i64().unwrap()
        };
        let scheduled = product(json!({"opensAt": after(&test, 60_000)})).await;
        let limited = product(json!({"limitPerUser": 1, "limitGroup": "G"})).await;
        let (campaign, issued) = (test.campaign("FIXED", 10, 100).await, test.campaign("FIXED", 10, 1).await);
        test.issue(issued, winner).await.ok();
        test.issue(campaign, rich).await.ok();
        let opens = after(&test, 60_000);
        let closed = campaign_with(&test, json!({"opensAt": opens})).await;
        let order = async |product: i64| test.place(rich, product, 1).await;
        let paid = order(products[0]).await;
        test.pay(paid, rich, "CARD", 1_000).await.ok();
        let cancelled = order(products[0]).await;
        test.cancel(cancelled, rich).await.ok();
        let pending = order(products[0]).await;
        Catalog {
            test,
            rich,
            poor,
            products,
            sold_out,
            scheduled,
            limited,
            campaign,
            issued,
            closed,
            paid,
            cancelled,
            pending,
        }
    }

    /// Requests that are refused, and their errors.
    fn refusals(&self) -> Vec<(&'static str, Method, String, Value)> {
        let Catalog { rich, poor, products, sold_out, campaign, issued, closed, paid, cancelled, pending, .. } = self;
        let Catalog { scheduled, limited, .. } = self;
        let nobody = 999_999;
        let everywhere: Vec<(i64, i64)> = products.iter().map(|product| (*product, 1)).collect();
        let with = |line: (i64, i64)| [&everywhere[..], &[line]].concat();
        let charge =
            |user: i64, amount: Value| (Method::PUT, format!("/api/v1/balances/{user}"), json!({"amount": amount}));
        let issue = |coupon: i64, user: i64| {
            (Method::POST, "/api/v1/coupons/issue".to_owned(), json!({"couponId": coupon, "userId": user}))
        };
        let order = |user: i64, lines: &[(i64, i64)], coupon: Option<i64>| {
            (Method::POST, "/api/v1/orders".to_owned(), order_of(user, lines, coupon))
        };
        let pay = |order: i64, user: i64, amount: i64| {
            let body = json!({"orderId": order, "userId": user, "paymentType": "CARD", "amount": amount});
            (Method::POST, "/api/v1/payments".to_owned(), body)
        };
        let cancel =
            |order: i64, user: i64| (Method::POST, format!("/api/v1/orders/{order}/cancel"), json!({"userId": user}));
        [
            ("USER_NOT_FOUND", charge(nobody, json!(5))),
            ("INVALID_AMOUNT", charge(*rich, json!(0))),
            ("INVALID_AMOUNT", charge(*rich, json!("5"))),
            ("USER_NOT_FOUND", issue(*campaign, nobody)),
            ("USER_NOT_FOUND", issue(nobody, nobody + 1)),
            ("INVALID_COUPON", issue(nobody, *poor)),
            ("INVALID_COUPON", issue(*closed, *poor)),
            ("INVALID_COUPON", issue(*campaign, *rich)),
            ("COUPON_OUT_OF_STOCK", issue(*issued, *poor)),
            ("USER_NOT_FOUND", order(nobody, &everywhere, None)),
            ("TOO_MANY_REQUESTS", order(*rich, &everywhere, None)),
            ("PRODUCT_NOT_FOUND", order(*poor, &with((nobody, 1)), None)),
            ("NOT_ON_SALE", order(*poor, &with((*scheduled, 1)), None)),
            ("PURCHASE_LIMIT_EXCEEDED", order(*poor, &with((*limited, 2)), None)),
            ("SOLD_OUT", order(*poor, &with((*sold_out, 1)), None)),
            ("INSUFFICIENT_STOCK", order(*poor, &[(products[0], 1_000)], None)),
            ("INSUFFICIENT_BALANCE", order(*poor, &everywhere, None)),
            ("INVALID_COUPON", order(*poor, &everywhere, Some(*campaign))),
            ("INVALID_ORDER", order(*poor, &[], None)),
            ("INVALID_ORDER", order(*poor, &[(products[0], 0)], None)),
            ("ORDER_NOT_FOUND", pay(nobody, *rich, 1)),
            ("ORDER_NOT_FOUND", pay(*pending, *poor, 1_000)),
            ("ORDER_NOT_FOUND", pay(*pending, nobody, 1_000)),
            ("INVALID_PAYMENT_REQUEST", pay(*pending, *rich, 999)),
            ("INVALID_PAYMENT_REQUEST", pay(*cancelled, *rich, 1_000)),
            ("ORDER_ALREADY_PAID", pay(*paid, *rich, 1_000)),
            ("ORDER_NOT_FOUND", cancel(nobody, *rich)),
            ("ORDER_NOT_FOUND", cancel(*pending, *poor)),
            ("ORDER_NOT_FOUND", cancel(*pending, nobody)),
            ("ORDER_ALREADY_CLOSED", cancel(*cancelled, *rich)),
        ]
        .into_iter()
        .map(|(code, (method, path, body))| (code, method, path, body))
        .collect()
    }
}

fn code(reply: &Reply) -> String {
    reply.json()["errorCode"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn refused_request_leaves_nothing() {
    for partitions in [1, 4] {
        let shop = Catalog::open(partitions).await;
        let test = &shop.test;
        test.drain().await;
        let (before, rows_before) = (effects(test).await, rows(test).await);
        for (at, (wanted, method, path, body)) in shop.refusals().into_iter().enumerate() {
            for key in [None, Some(format!("key-{at}"))] {
                let reply = test.send(method.clone(), &path, Some(&body), key.as_deref()).await;
                assert_eq!(code(&reply), wanted, "{partitions}: {method} {path} {body} {}", reply.text);
                let after = effects(test).await;
                let new: Vec<_> = after.iter().filter(|(key, value)| before.get(*key) != Some(value)).collect();
                assert!(after == before, "{partitions}: {wanted} of {method} {path} under {key:?} leaves {new:?}");
            }
            // Malformed bodies.
            for body in ["", "{", "[]", "null", "{\"userId\":"] {
                let headers = [("content-type", &b"application/json"[..]), ("idempotency-key", b"malformed")];
                let reply = headed(test, &method, &path, &headers, body.to_owned()).await;
                assert!(reply.status.is_client_error(), "{method} {path} {body}: {}", reply.text);
            }
        }
        for path in [
            "/api/v1/balances/999999",
            "/api/v1/balances/999999/history",
            "/api/v1/coupons/999999",
            "/api/v1/products/999999",
            "/api/v1/orders/999999?userId=1",
            "/api/v1/products/popular?sortBy=x",
        ] {
            assert!(test.get(path).await.status.is_client_error(), "{path}");
        }
        assert!(effects(test).await == before, "{partitions}");
        test.drain().await;
        assert_eq!(rows(test).await, rows_before, "{partitions}");
        shop.test.finish().await;
    }
}

/// The bytes that an accepted request keeps in Redis on one partition, by kind, as docs/limits.md documents them.
fn documented() -> BTreeMap<String, i64> {
    let page = include_str!("../../../docs/limits.md");
    let section = page.split("## State that a client can cause").nth(1).unwrap().split("\n## ").next().unwrap();
    let row = |line: &str| {
        let cells: Vec<&str> = line.strip_prefix("| ")?.split(" | ").collect();
        Some((cells[0].to_owned(), cells.get(1)?.parse().ok()?))
    };
    section.lines().filter_map(row).collect()
}

#[tokio::test]
async fn accepted_request_keeps_no_more_than_documented() {
    let documented = documented();
    let shop = Catalog::open(1).await;
    let test = &shop.test;
    let (user, product) = (test.user(1_000_000).await, shop.products[0]);
    let order = order_of(user, &[(product, 1)], None);
    let coupon = json!({"couponId": shop.campaign, "userId": user});
    let mut placed = 0;
    for (kind, under_key) in [
        ("balance charged", false),
        ("balance charged", true),
        ("coupon issued", true),
        ("order placed, one line", true),
        ("order paid", true),
        ("order cancelled", true),
    ] {
        test.drain().await;
        let before = bytes(test).await;
        let cancel = json!({"userId": user});
        let pay = json!({"orderId": placed, "userId": user, "paymentType": "CARD", "amount": 1_000});
        let (method, path, body) = match kind {
            "balance charged" => (Method::PUT, format!("/api/v1/balances/{user}"), json!({"amount": 5})),
            "coupon issued" => (Method::POST, "/api/v1/coupons/issue".to_owned(), coupon.clone()),
            "order placed, one line" => (Method::POST, "/api/v1/orders".to_owned(), order.clone()),
            "order paid" => (Method::POST, "/api/v1/payments".to_owned(), pay),
            _ => (Method::POST, format!("/api/v1/orders/{placed}/cancel"), cancel),
        };
        // A key of the maximal length.
        let key = under_key.then(|| "k".repeat(255));
        let key = key.map(|key| format!("{kind}{key}")[..255].to_owned());
        for replayed in [false, true] {
            let reply = test.send(method.clone(), &path, Some(&body), key.as_deref()).await;
            if replayed && !under_key {
                break;
            }
            assert_eq!(reply.replayed(), replayed, "{kind}: {}", reply.text);
            let reply = reply.ok();
            placed = if kind == "order placed, one line" { reply["orderId"].as_i64().unwrap() } else { placed };
            test.drain().await;
            let after = bytes(test).await;
            let record = |key: &str| key.contains(":idem:");
            let grown = |of: &dyn Fn(&str) -> bool| -> i64 {
                let all =
                    after.iter().filter(|(key, _)| of(key) && !key.ends_with(":outbox") && !key.ends_with(":ids"));
                all.map(|(key, size)| size - before.get(key).copied().unwrap_or(0)).sum()
            };
            let (records, others) = (grown(&record), grown(&|key| !record(key)));
            let record_bound = documented["a request under an `Idempotency-Key`"];
            assert!(records <= record_bound, "{kind}: its record is {records} bytes, documented {record_bound}");
            let bound = documented[kind];
            assert!(others <= bound, "{kind} keeps {others} bytes, documented {bound}");
            println!("{kind}: {others} and {records} bytes");
        }
    }
    // The used memory of many records, with Redis's own structures for keys and expiry.
    let used = async || -> i64 {
        let info: String = redis::cmd("INFO").arg("memory").query_async(&mut test.raw().await).await.unwrap();
        info.lines().find_map(|line| line.strip_prefix("used_memory:")).unwrap().trim().parse().unwrap()
    };
    // The outbox keeps the decisions for a while.
    let settle = async || {
        test.drain().await;
        test.clock.advance(61_000);
        test.drain().await;
    };
    settle().await;
    let mut measured = Vec::new();
    for round in 0..2 {
        let before = used().await;
        for request in 0..500 {
            let (path, key) = (format!("/api/v1/balances/{user}"), format!("{round}-{request}"));
            test.send(Method::PUT, &path, Some(&json!({"amount": 5})), Some(&key)).await.ok();
        }
        settle().await;
        measured.push((used().await - before) / 500);
    }
    // The first round also fills the outbox's and the clients' buffers.
    let (bound, bytes) = (documented["a request under an `Idempotency-Key`"], measured[1]);
    println!("a request under a key: {bytes} bytes of used memory");
    assert!(bytes <= bound, "{measured:?}, documented {bound}");
    shop.test.finish().await;
}
