//! What only providers with a page of their own have: preparations, tokens, messages, and money that is taken first.

use firstcome::{model::Partition, recovery::rebuild::RebuildOptions};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    gateway::flow::{GatewayShop, LONG_TIMEOUT_MS, SHORT_TIMEOUT_MS},
    recovery::rebuild::rebuilt,
    support::{
        exposition::Scrape,
        fake_gateway::{Behaviour, Protocol, QueryBehaviour, over_each_protocol},
        harness::{Reply, read, until},
    },
};

/// Runs a test over each provider.
async fn over_each_provider(test: impl AsyncFn(Protocol)) {
    for protocol in Protocol::PROVIDERS {
        eprintln!("through {protocol:?}");
        test(protocol).await;
    }
}

/// Sends a message of the provider.
pub async fn send(shop: &GatewayShop, payment_type: &str, headers: &[(&str, String)], body: &str) -> Reply {
    let url = format!("{}/gateways/{payment_type}/webhook", shop.test.base);
    let mut request = shop.test.client.request(Method::POST, url).header("content-type", "application/json");
    for (name, value) in headers {
        request = request.header(*name, value);
    }
    read(request.body(body.to_owned())).await
}

/// The provider says that the payment under `uid` has changed.
async fn hint(shop: &GatewayShop, uid: &str) -> Reply {
    let (headers, body) = shop.gateway.webhook(uid, shop.test.clock.now().0).unwrap();
    send(shop, "kakao_pay", &headers, &body).await
}

/// Another order of the shop's user, of one unit.
async fn another_order(shop: &GatewayShop) -> i64 {
    let lines = json!([{"productId": shop.product, "quantity": 1}]);
    let order = json!({"userId": shop.user, "orderProducts": lines});
    shop.test.post("/api/v1/orders", order).await.ok()["orderId"].as_i64().unwrap()
}

#[tokio::test]
async fn payment_prepared_as_provider_needs() {
    over_each_provider(async |protocol| {
        let shop = GatewayShop::start(protocol, LONG_TIMEOUT_MS).await;
        let before = shop.test.store.position(Partition(0)).await.unwrap();
        let prepared = shop.prepare(shop.order, None).await.ok();
        assert_eq!((&prepared["orderId"], &prepared["amount"]), (&json!(shop.order), &json!(5_000)));
        assert_eq!(prepared["paymentType"], "KAKAO_PAY");
        let name = prepared["merchantOrderId"].as_str().unwrap();
        assert!(name.ends_with(&format!("-{}", shop.order)) && (6..=40).contains(&name.len()), "{name}");
        assert!(!prepared["orderName"].as_str().unwrap().is_empty());
        assert_eq!(prepared["redirectUrl"].is_string(), protocol == Protocol::KakaoPay, "{prepared}");
        let position = shop.test.store.position(Partition(0)).await.unwrap();
        assert_eq!(position, before, "a preparation decides something");
        assert_eq!((shop.gateway.total_taken(), shop.status().await.0.as_str()), (0, "PENDING"));
        shop.pay(None).await.ok();
        shop.test.finish().await;
    })
    .await;
}

#[tokio::test]
async fn calls_measured_under_their_provider() {
    over_each_protocol(async |protocol| {
        let shop = GatewayShop::start(protocol, LONG_TIMEOUT_MS).await;
        let provider = match protocol {
            Protocol::Http => "http",
            Protocol::Toss => "toss",
            Protocol::KakaoPay => "kakaopay",
            Protocol::PortOne => "portone",
        };
        // Other tests count, too.
        let count = async |name: &str, call: &str| {
            let scrape = Scrape::parse(&shop.test.get("/metrics").await.text);
            let outcome = if call == "prepare" { "prepared" } else { "approved" };
            let labels = [("provider", provider), ("call", call), ("outcome", outcome)];
            scrape.one(name, if name.ends_with("_count") { &labels[..2] } else { &labels }).unwrap()
        };
        let calls = if protocol == Protocol::Http { &["pay"][..] } else { &["prepare", "pay"] };
        let names = ["firstcome_gateway_calls_total", "firstcome_gateway_call_duration_seconds_count"];
        let mut before = Vec::new();
        for (call, name) in calls.iter().flat_map(|call| names.map(|name| (*call, name))) {
            before.push((call, name, count(name, call).await));
        }
        shop.pay(None).await.ok();
        for (call, name, before) in before {
            // A scrape is reused for a moment.
            until("the call is counted", async || (count(name, call).await > before).then_some(())).await;
        }
        shop.test.finish().await;
    })
    .await;
}

#[tokio::test]
async fn preparation_refused_when_order_can_not_be_paid() {
    over_each_provider(async |protocol| {
        let shop = GatewayShop::start(protocol, LONG_TIMEOUT_MS).await;
        let ask = async |order: i64, user: i64, kind: &str, url: &str| {
            let body = json!({"orderId": order, "userId": user, "paymentType": kind, "returnUrl": url});
            shop.test.send(Method::POST, "/api/v1/payments/prepare", Some(&body), None).await
        };
        let url = "https://shop.example/paid";
        let other = shop.test.user(0).await;
        ask(shop.order, other, "KAKAO_PAY", url).await.refused(404, "ORDER_NOT_FOUND");
        ask(987_654_321, shop.user, "KAKAO_PAY", url).await.refused(404, "ORDER_NOT_FOUND");
        for kind in ["CARD", "BALANCE", "COINS"] {
            ask(shop.order, shop.user, kind, url).await.refused(400, "INVALID_PAYMENT_REQUEST");
        }
        let long = format!("https://shop.example/{}", "x".repeat(230));
        for wrong in ["", "/paid", "javascript:alert(1)", "ftp://shop.example", "https://me:pw@shop.example", &long] {
            ask(shop.order, shop.user, "KAKAO_PAY", wrong).await.refused(400, "INVALID_PAYMENT_REQUEST");
        }
        shop.pay(None).await.ok();
        ask(shop.order, shop.user, "KAKAO_PAY", url).await.refused(409, "ORDER_ALREADY_PAID");
        let closed = another_order(&shop).await;
        shop.test.cancel(closed, shop.user).await.ok();
        ask(closed, shop.user, "KAKAO_PAY", url).await.refused(400, "INVALID_PAYMENT_REQUEST");
        shop.finish(5_000).await;
    })
    .await;
}

#[tokio::test]
async fn preparation_repeated_under_its_key() {
    let shop = GatewayShop::start(Protocol::KakaoPay, LONG_TIMEOUT_MS).await;
    let first = shop.prepare(shop.order, Some("k")).await;
    let again = shop.prepare(shop.order, Some("k")).await;
    assert!(again.replayed() && !first.replayed());
    assert_eq!(again.text, first.text);
    let other =
        json!({"orderId": shop.order, "userId": shop.user, "paymentType": "KAKAO_PAY", "returnUrl": "https://b"});
    let reused = shop.test.send(Method::POST, "/api/v1/payments/prepare", Some(&other), Some("k")).await;
    reused.refused(422, "IDEMPOTENCY_KEY_REUSED");
    shop.prepare(another_order(&shop).await, Some("k")).await.refused(422, "IDEMPOTENCY_KEY_REUSED");
    shop.pay_with(Some("pg"), Some("k")).await.refused(422, "IDEMPOTENCY_KEY_REUSED");
    // A refusal binds no key.
    shop.prepare(987_654_321, Some("free")).await.refused(404, "ORDER_NOT_FOUND");
    shop.prepare(another_order(&shop).await, Some("free")).await.ok();
    assert_eq!(shop.prepare(shop.order, Some("k")).await.text, first.text);
    // A new one replaces it.
    assert_ne!(shop.prepare(shop.order, None).await.ok()["redirectUrl"], first.ok()["redirectUrl"]);
    shop.test.finish().await;
}

#[tokio::test]
async fn payment_refused_without_usable_token() {
    over_each_provider(async |protocol| {
        let shop = GatewayShop::start(protocol, LONG_TIMEOUT_MS).await;
        let before = shop.test.store.position(Partition(0)).await.unwrap();
        let long = "t".repeat(256);
        for token in [None, Some(""), Some(" "), Some("a b"), Some("."), Some(".."), Some("토큰"), Some(long.as_str())]
        {
            shop.pay_with(token, Some("k")).await.refused(400, "INVALID_PAYMENT_REQUEST");
        }
        if protocol == Protocol::KakaoPay {
            // It was never prepared.
            shop.pay_with(Some("pg_token"), None).await.refused(400, "INVALID_PAYMENT_REQUEST");
        }
        let position = shop.test.store.position(Partition(0)).await.unwrap();
        assert_eq!(position, before, "a refused request decides something");
        assert_eq!(shop.gateway.total_posts(), 0);
        // An order with this type has to exist before its customer can approve anything.
        let checkout = json!({
            "userId": shop.user, "orderProducts": [{"productId": shop.product, "quantity": 1}],
            "payment": {"paymentType": "KAKAO_PAY"},
        });
        shop.test.post("/api/v1/orders", checkout).await.refused(400, "INVALID_ORDER");
        assert_eq!(shop.stock().await, 8);
        shop.pay(None).await.ok();
        shop.finish(5_000).await;
    })
    .await;
}

/// Somebody brings the approval of another order, of the same price.
#[tokio::test]
async fn approval_of_other_order_pays_nothing() {
    over_each_provider(async |protocol| {
        let shop = GatewayShop::start(protocol, LONG_TIMEOUT_MS).await;
        let lines = json!([{"productId": shop.product, "quantity": 2}]);
        let other = json!({"userId": shop.user, "orderProducts": lines});
        let other = shop.test.post("/api/v1/orders", other).await.ok()["orderId"].as_i64().unwrap();
        let stolen = shop.approve(other).await.unwrap();
        let own = shop.prepare(shop.order, None).await.ok();
        let refused = shop.pay_with(Some(&stolen), None).await;
        match protocol {
            Protocol::PortOne => refused.refused(400, "INVALID_PAYMENT_REQUEST"),
            _ => refused.refused(503, "SERVICE_UNAVAILABLE"),
        }
        for _ in 0..4 {
            shop.later(100).await;
        }
        let ended = if protocol == Protocol::PortOne { "PENDING" } else { "FAILED" };
        assert_eq!((shop.status().await.0.as_str(), shop.gateway.total_taken()), (ended, 0), "{own}");
        shop.test.finish().await;
    })
    .await;
}

/// The process ends between the begin of a payment and the provider's reply. Another one finds out by the id that was kept.
#[tokio::test]
async fn payment_found_again_by_its_id_after_rebuild() {
    over_each_provider(async |protocol| {
        let shop = GatewayShop::start(protocol, SHORT_TIMEOUT_MS).await;
        shop.gateway.next(Behaviour::ApproveThenHang);
        shop.pay(Some("k")).await.refused(503, "SERVICE_UNAVAILABLE");
        shop.test.drain().await;
        let kept: Option<String> = sqlx::query_scalar("SELECT transaction_id FROM payments WHERE order_id = $1")
            .bind(shop.order)
            .fetch_one(shop.test.db.get_postgres_connection_pool())
            .await
            .unwrap();
        assert_eq!(kept, Some(shop.uid()));
        shop.test.flush_redis().await;
        rebuilt(&shop.test, RebuildOptions::default()).await;
        until("the order is read again", async || (shop.test.get("/readyz").await.status == 200).then_some(())).await;
        shop.later(60).await;
        assert_eq!(shop.status().await, ("PAID".into(), None));
        shop.test.cancel(shop.order, shop.user).await.ok();
        shop.later(0).await;
        assert_eq!(shop.payment().await, "REFUNDED");
        shop.finish(0).await;
    })
    .await;
}

#[tokio::test]
async fn hint_settles_payment_before_its_next_check() {
    for protocol in [Protocol::Toss, Protocol::PortOne] {
        let shop = GatewayShop::start(protocol, SHORT_TIMEOUT_MS).await;
        shop.gateway.next(Behaviour::ApproveThenHang);
        shop.pay(Some("k")).await.refused(503, "SERVICE_UNAVAILABLE");
        shop.later(0).await;
        assert_eq!(shop.status().await.0, "PENDING", "not due yet");
        // A hint is no proof: the provider is asked.
        shop.gateway.status_queries_are(QueryBehaviour::ServerError);
        assert_eq!(hint(&shop, &shop.uid()).await.ok(), json!({"received": true}));
        shop.later(0).await;
        assert_eq!(shop.status().await.0, "PENDING", "{protocol:?}");
        shop.gateway.status_queries_are(QueryBehaviour::Truthful);
        hint(&shop, &shop.uid()).await.ok();
        shop.later(0).await;
        assert_eq!(shop.status().await.0, "PAID", "{protocol:?}");
        // A repeat changes nothing.
        let before = shop.test.snapshot().await;
        hint(&shop, &shop.uid()).await.ok();
        shop.later(0).await;
        assert!(shop.test.snapshot().await == before, "a repeated hint has an effect");
        shop.finish(5_000).await;
    }
}

#[tokio::test]
async fn forged_hint_has_no_effect() {
    over_each_provider(async |protocol| {
        let shop = GatewayShop::start(protocol, LONG_TIMEOUT_MS).await;
        let name = shop.prepare(shop.order, None).await.ok()["merchantOrderId"].as_str().unwrap().to_owned();
        let before = shop.test.snapshot().await;
        let toss = json!({"eventType": "PAYMENT_STATUS_CHANGED", "data": {"orderId": name, "status": "DONE"}});
        let portone = json!({"type": "Transaction.Paid", "data": {"paymentId": name}});
        for body in [toss.to_string(), portone.to_string(), "{}".to_owned(), String::new(), "[]".to_owned()] {
            let reply = send(&shop, "KAKAO_PAY", &[], &body).await;
            match protocol {
                Protocol::Toss if body.starts_with('{') => assert_eq!(reply.ok(), json!({"received": true})),
                Protocol::Toss => reply.refused(400, "INVALID_REQUEST"),
                Protocol::PortOne => reply.refused(403, "INVALID_SIGNATURE"),
                _ => reply.refused(404, "NOT_FOUND"),
            }
        }
        for path in ["CARD", "BALANCE", "COINS", "%00"] {
            send(&shop, path, &[], "{}").await.refused(404, "NOT_FOUND");
        }
        shop.later(0).await;
        assert!(shop.test.snapshot().await == before, "a forged hint has an effect");
        assert_eq!(shop.gateway.total_posts(), 0);
        shop.test.finish().await;
    })
    .await;
}

#[tokio::test]
async fn hint_refused_when_old_or_altered() {
    let shop = GatewayShop::start(Protocol::PortOne, LONG_TIMEOUT_MS).await;
    let name = shop.approve(shop.order).await.unwrap();
    shop.gateway.customer_pays(&name, 5_000);
    let now = shop.test.clock.now().0;
    let (headers, body) = shop.gateway.webhook(&name, now - 301_000).unwrap();
    send(&shop, "KAKAO_PAY", &headers, &body).await.refused(403, "INVALID_SIGNATURE");
    let (headers, body) = shop.gateway.webhook(&name, now).unwrap();
    send(&shop, "KAKAO_PAY", &headers, &body.replace("Paid", "Ready")).await.refused(403, "INVALID_SIGNATURE");
    assert_eq!((shop.status().await.0.as_str(), shop.gateway.total_posts()), ("PENDING", 0));
    send(&shop, "KAKAO_PAY", &headers, &body).await.ok();
    assert_eq!(shop.status().await.0, "PAID");
    shop.finish(5_000).await;
}

/// The customer pays and never comes back: PortOne's message pays the order.
#[tokio::test]
async fn order_paid_by_hint_when_customer_does_not_return() {
    let shop = GatewayShop::start(Protocol::PortOne, LONG_TIMEOUT_MS).await;
    let name = shop.approve(shop.order).await.unwrap();
    // Nothing is paid yet.
    shop.gateway.next(Behaviour::Answer(404, json!({"type": "PAYMENT_NOT_FOUND"}).to_string()));
    hint(&shop, &name).await.ok();
    assert_eq!(shop.status().await.0, "PENDING");
    shop.gateway.customer_pays(&name, 5_000);
    shop.gateway.status_queries_are(QueryBehaviour::ServerError);
    hint(&shop, &name).await.refused(503, "SERVICE_UNAVAILABLE");
    shop.gateway.status_queries_are(QueryBehaviour::Truthful);
    hint(&shop, &name).await.ok();
    assert_eq!(shop.status().await.0, "PAID");
    shop.pay_with(Some(&name), None).await.refused(409, "ORDER_ALREADY_PAID");
    hint(&shop, &name).await.ok();
    assert_eq!(shop.gateway.total_kept(), 5_000);
    shop.test.finish().await;
}

#[tokio::test]
async fn other_amount_given_back_when_hint_brings_it() {
    let shop = GatewayShop::start(Protocol::PortOne, LONG_TIMEOUT_MS).await;
    let name = shop.approve(shop.order).await.unwrap();
    shop.gateway.customer_pays(&name, 100);
    hint(&shop, &name).await.ok();
    assert_eq!(shop.status().await, ("FAILED".into(), Some("PAYMENT_DECLINED".into())));
    shop.later(0).await;
    assert_eq!((shop.gateway.total_kept(), shop.payment().await.as_str()), (0, "REFUNDED"));
    shop.test.finish().await;
}

/// The money of an order that is closed by the time it is paid goes back, by the customer's request or by a message.
#[tokio::test]
async fn money_given_back_when_order_closed_before() {
    for by_hint in [false, true] {
        let shop = GatewayShop::start(Protocol::PortOne, LONG_TIMEOUT_MS).await;
        let name = shop.approve(shop.order).await.unwrap();
        shop.test.cancel(shop.order, shop.user).await.ok();
        shop.gateway.customer_pays(&name, 5_000);
        let ask = async || match by_hint {
            true => hint(&shop, &name).await,
            false => shop.pay_with(Some(&name), None).await,
        };
        shop.gateway.cancels_are(QueryBehaviour::ServerError);
        ask().await.refused(503, "SERVICE_UNAVAILABLE");
        assert_eq!(shop.gateway.total_kept(), 5_000);
        shop.gateway.cancels_are(QueryBehaviour::Truthful);
        match by_hint {
            true => drop(ask().await.ok()),
            false => ask().await.refused(400, "INVALID_PAYMENT_REQUEST"),
        }
        assert_eq!(shop.gateway.total_kept(), 0);
        let cancels = shop.gateway.cancels(&name);
        hint(&shop, &name).await.ok();
        assert_eq!(shop.gateway.cancels(&name), cancels, "it is given back again");
        assert_eq!(shop.status().await.0, "CANCELLED");
        shop.test.finish().await;
    }
}

#[tokio::test]
async fn hint_of_other_deployment_ignored() {
    let shop = GatewayShop::start(Protocol::PortOne, LONG_TIMEOUT_MS).await;
    let foreign = format!("000000000000-{}", shop.order);
    shop.gateway.customer_pays(&foreign, 5_000);
    hint(&shop, &foreign).await.ok();
    assert_eq!((shop.status().await.0.as_str(), shop.gateway.cancels(&foreign)), ("PENDING", 0));
    let unnamed: [Value; 3] = [json!("x"), json!(format!("{foreign}x")), json!("-")];
    for name in unnamed {
        shop.gateway.customer_pays(name.as_str().unwrap(), 5_000);
        hint(&shop, name.as_str().unwrap()).await.ok();
    }
    assert_eq!(shop.status().await.0, "PENDING");
    shop.test.finish().await;
}
