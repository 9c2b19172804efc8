//! Shared by the tests of the API: requests whose replies are checked against the contract's table of errors and the
//! service's OpenAPI document, and a snapshot of everything that a request may change.

use std::collections::{BTreeMap, BTreeSet};

use reqwest::{
    Method,
    header::{HeaderMap, HeaderName, HeaderValue},
};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use crate::{
    api::openapi::Document,
    support::harness::{ADMIN, Options, Reply, TestApp, read},
};

/// The contract's table: code, status, exact message (empty for codes that the page does not have).
const CODES: &[(&str, u16, &str)] = &[
    ("INVALID_PAYMENT_REQUEST", 400, "결제 요청 데이터가 유효하지 않습니다."),
    ("INSUFFICIENT_BALANCE", 402, "사용자의 잔액이 부족합니다."),
    ("ORDER_NOT_FOUND", 404, "해당 주문을 찾을 수 없습니다."),
    ("ORDER_ALREADY_PAID", 409, "해당 주문은 이미 결제되었습니다."),
    ("USER_NOT_FOUND", 404, "해당 사용자를 찾을 수 없습니다."),
    ("INVALID_AMOUNT", 400, "충전 금액은 1 이상 100,000 이하만 가능합니다."),
    ("INVALID_COUPON", 400, "해당 쿠폰을 발급할 수 없습니다."),
    ("COUPON_OUT_OF_STOCK", 409, "모든 쿠폰이 발급 완료되었습니다."),
    ("PRODUCT_NOT_FOUND", 404, "해당 상품을 찾을 수 없습니다."),
    ("INVALID_SCOPE", 400, "유효하지 않은 랭킹 범위입니다."),
    ("INVALID_ORDER", 400, "주문 요청 데이터가 유효하지 않습니다."),
    ("SOLD_OUT", 409, "해당 상품이 품절되었습니다."),
    ("INSUFFICIENT_STOCK", 409, "선택한 상품의 재고가 부족합니다."),
    ("INTERNAL_SERVER_ERROR", 500, "서버 내부 오류가 발생했습니다."),
    ("NOT_ON_SALE", 409, "지금은 판매 중인 상품이 아닙니다."),
    ("PURCHASE_LIMIT_EXCEEDED", 409, "1인당 구매 가능 수량을 초과했습니다."),
    ("REFUND_WINDOW_CLOSED", 409, "환불 가능 기간이 지났습니다."),
    ("UNAUTHORIZED", 401, ""),
    ("INVALID_TOKEN", 401, ""),
    ("FORBIDDEN", 403, ""),
    ("INSUFFICIENT_ROLE", 403, ""),
    ("TOO_MANY_REQUESTS", 429, ""),
    ("SERVICE_UNAVAILABLE", 503, ""),
    ("IDEMPOTENCY_KEY_REUSED", 422, ""),
    ("REQUEST_IN_PROGRESS", 409, ""),
    ("INVALID_IDEMPOTENCY_KEY", 400, ""),
    ("INVALID_REQUEST", 400, ""),
    ("COUPON_NOT_FOUND", 404, ""),
    ("ORDER_ALREADY_CLOSED", 409, ""),
    ("DEAD_LETTER_NOT_FOUND", 404, ""),
    ("DEAD_LETTER_REFUSED", 409, ""),
    ("NO_PAYMENT_UNDER_WAY", 409, ""),
    ("ORDERS_OPEN", 409, ""),
    ("BALANCE_LEFT", 409, ""),
    ("EVENTS_EXPIRED", 410, ""),
    ("EVENTS_OFF", 409, ""),
    ("WEBHOOK_NOT_FOUND", 404, ""),
    ("EVENT_NOT_FOUND", 404, ""),
    ("TOO_MANY_WEBHOOKS", 409, ""),
    ("SECRET_ROTATING", 409, ""),
    ("NOT_FOUND", 404, ""),
    ("METHOD_NOT_ALLOWED", 405, ""),
    ("REQUEST_TIMEOUT", 408, ""),
    ("PAYLOAD_TOO_LARGE", 413, ""),
    ("UNSUPPORTED_MEDIA_TYPE", 415, ""),
];

/// Runs a test on a store of one partition and on one of three.
pub async fn on_1_and_3(body: impl AsyncFn(&TestApp)) {
    for partitions in [1, 3] {
        println!("with {partitions} partitions");
        let test = TestApp::with(Options { partitions, ..Options::default() }).await;
        body(&test).await;
        test.finish().await;
    }
}

pub async fn get(test: &TestApp, path: &str) -> Reply {
    send(test, Method::GET, path, None, None).await
}

pub async fn post(test: &TestApp, path: &str, body: Value) -> Reply {
    send(test, Method::POST, path, Some(body), None).await
}

pub async fn put(test: &TestApp, path: &str, body: Value) -> Reply {
    send(test, Method::PUT, path, Some(body), None).await
}

pub async fn delete(test: &TestApp, path: &str) -> Reply {
    send(test, Method::DELETE, path, None, None).await
}

pub async fn patch(test: &TestApp, path: &str, body: Value) -> Reply {
    send(test, Method::PATCH, path, Some(body), None).await
}

/// A request under an idempotency key.
pub async fn keyed(test: &TestApp, method: &Method, path: &str, body: &Value, key: &str) -> Reply {
    send(test, method.clone(), path, Some(body.clone()), Some(key)).await
}

pub async fn send(test: &TestApp, method: Method, path: &str, body: Option<Value>, key: Option<&str>) -> Reply {
    let reply = test.send(method.clone(), path, body.as_ref(), key).await;
    let document = document(test).await;
    if let Some(body) = body.filter(|_| reply.status.is_success()) {
        document.check_request(method.as_str(), path, &body);
    }
    document.check_reply(method.as_str(), path, &reply);
    in_contract(path, &reply);
    reply
}

/// A request with exactly these bytes as its JSON; operators' requests carry their token.
pub async fn raw(test: &TestApp, method: &Method, path: &str, body: impl Into<reqwest::Body>) -> Reply {
    headed(test, method, path, &[("content-type", b"application/json")], body).await
}

/// A request with exactly these headers; operators' requests also carry their token.
pub async fn headed(
    test: &TestApp,
    method: &Method,
    path: &str,
    headers: &[(&str, &[u8])],
    body: impl Into<reqwest::Body>,
) -> Reply {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_bytes(value).unwrap());
    }
    let mut request = test.client.request(method.clone(), format!("{}{path}", test.base)).headers(map).body(body);
    if path.starts_with("/admin") {
        request = request.bearer_auth(ADMIN);
    }
    let reply = read(request).await;
    document(test).await.check_reply(method.as_str(), path, &reply);
    in_contract(path, &reply);
    reply
}

/// The service's OpenAPI document; every test app serves the same one.
pub async fn document(test: &TestApp) -> &'static Document {
    static DOCUMENT: OnceCell<Document> = OnceCell::const_new();
    DOCUMENT.get_or_init(async || Document::new(test.get("/v3/api-docs").await.ok())).await
}

/// Asserts what holds for every reply: a valid request id, JSON, and for an error exactly the envelope of the table.
#[track_caller]
pub fn in_contract(path: &str, reply: &Reply) {
    let id = reply.headers["x-request-id"].to_str().unwrap();
    assert!((1..=64).contains(&id.len()), "{path}: {id}");
    if reply.status.is_success() && !["/api/", "/admin/"].iter().any(|api| path.starts_with(api)) {
        return;
    }
    if reply.status == 204 {
        return assert_eq!(reply.text, "", "{path}");
    }
    let kind = &reply.headers["content-type"];
    if reply.status.is_success() && kind == "text/event-stream" {
        return;
    }
    assert_eq!(kind, "application/json", "{path}: {}", reply.text);
    if reply.status.is_success() {
        return;
    }
    let body = reply.json();
    if path != "/readyz" {
        fields(&body, "errorCode message");
    }
    let code = body["errorCode"].as_str().unwrap();
    let row = CODES.iter().find(|(known, ..)| *known == code);
    let (_, status, message) = row.unwrap_or_else(|| panic!("{path}: {} is no code of the contract", reply.text));
    assert_eq!(reply.status, *status, "{path}: {}", reply.text);
    match *message {
        "" => assert!(body["message"].as_str().is_some_and(|message| !message.is_empty()), "{path}: {}", reply.text),
        message => assert_eq!(body["message"], message, "{path}"),
    }
    let again = matches!(code, "REQUEST_IN_PROGRESS" | "TOO_MANY_REQUESTS" | "SERVICE_UNAVAILABLE");
    let retry_after = reply.headers.get("retry-after").map(|seconds| seconds.to_str().unwrap().parse::<u64>().unwrap());
    assert_eq!(retry_after.is_some_and(|seconds| seconds >= 1), again, "{path}: {}", reply.text);
}

/// The object has these fields (separated by spaces), all of them and no others.
#[track_caller]
pub fn fields(object: &Value, names: &str) {
    let there: BTreeSet<&str> = object.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(there, names.split_whitespace().collect::<BTreeSet<_>>(), "{object}");
}

/// Everything in Redis that a request may change, without the ids that a process reserves in blocks.
pub async fn effects(test: &TestApp) -> BTreeMap<String, String> {
    let mut all = test.snapshot().await;
    all.retain(|key, _| !key.ends_with(":ids"));
    all
}

/// The wall-clock time of a standing clock in Seoul, as the API spells it.
pub fn now(test: &TestApp) -> String {
    test.clock.now().local(test.engine.zone())
}

/// The same, `ms` from now.
pub fn after(test: &TestApp, ms: i64) -> String {
    test.clock.now().plus(ms).local(test.engine.zone())
}

pub fn id(value: &Value, field: &str) -> i64 {
    value[field].as_i64().unwrap_or_else(|| panic!("no {field}: {value}"))
}

/// A product's description with the terms of one that has none.
pub fn with_terms(mut product: Value) -> Value {
    let none =
        json!({"saleStatus": "ON_SALE", "opensAt": null, "closesAt": null, "limitPerUser": null, "limitGroup": null});
    product.as_object_mut().unwrap().extend(none.as_object().unwrap().clone());
    product
}

/// A campaign, or a coupon of a user, with the conditions of one that has none.
pub fn with_conditions(mut coupon: Value) -> Value {
    let none = json!({"minOrderPrice": null, "maxDiscountPrice": null, "productIds": null, "categories": null});
    coupon.as_object_mut().unwrap().extend(none.as_object().unwrap().clone());
    coupon
}

/// A new product's id.
pub async fn product(test: &TestApp, name: &str, category: &str, price: i64, stock: i64) -> i64 {
    let body = json!({"productName": name, "price": price, "stockQuantity": stock, "category": category});
    id(&post(test, "/admin/v1/products", body).await.created(), "productId")
}

/// An order of these lines, product and quantity.
pub fn order_of(user: i64, lines: &[(i64, i64)], coupon: Option<i64>) -> Value {
    let lines: Vec<Value> =
        lines.iter().map(|(product, quantity)| json!({"productId": product, "quantity": quantity})).collect();
    match coupon {
        None => json!({"userId": user, "orderProducts": lines}),
        Some(coupon) => json!({"userId": user, "orderProducts": lines, "userCouponId": coupon}),
    }
}

/// An order of these lines that is paid in the same step.
pub fn checkout_of(user: i64, lines: &[(i64, i64)], payment_type: &str) -> Value {
    let mut order = order_of(user, lines, None);
    order["payment"] = json!({"paymentType": payment_type});
    order
}

/// Places an order; its id.
pub async fn placed(test: &TestApp, user: i64, lines: &[(i64, i64)], coupon: Option<i64>) -> i64 {
    id(&post(test, "/api/v1/orders", order_of(user, lines, coupon)).await.ok(), "orderId")
}

/// Pays an order from the balance.
pub async fn pay(test: &TestApp, order: i64, user: i64, amount: i64) -> Reply {
    let body = json!({"orderId": order, "userId": user, "paymentType": "CARD", "amount": amount});
    post(test, "/api/v1/payments", body).await
}

/// Places an order and pays it; its id.
pub async fn bought(test: &TestApp, user: i64, product: i64, quantity: i64) -> i64 {
    let order = post(test, "/api/v1/orders", order_of(user, &[(product, quantity)], None)).await.ok();
    pay(test, id(&order, "orderId"), user, id(&order, "finalPrice")).await.ok();
    id(&order, "orderId")
}

pub async fn cancel(test: &TestApp, order: i64, user: i64) -> Reply {
    post(test, &format!("/api/v1/orders/{order}/cancel"), json!({"userId": user})).await
}

pub async fn issue(test: &TestApp, coupon: i64, user: i64) -> Reply {
    post(test, "/api/v1/coupons/issue", json!({"couponId": coupon, "userId": user})).await
}

pub async fn detail(test: &TestApp, order: i64) -> Value {
    get(test, &format!("/api/v1/orders/{order}")).await.ok()
}

pub async fn stock(test: &TestApp, product: i64) -> i64 {
    id(&get(test, &format!("/api/v1/products/{product}")).await.ok(), "stockQuantity")
}

pub async fn balance(test: &TestApp, user: i64) -> i64 {
    id(&get(test, &format!("/api/v1/balances/{user}")).await.ok(), "balance")
}

/// A user's one coupon of a campaign, as listed.
pub async fn coupon(test: &TestApp, user: i64, campaign: i64) -> Value {
    let coupons = get(test, &format!("/api/v1/coupons/{user}")).await.ok();
    coupons.as_array().unwrap().iter().find(|coupon| coupon["couponId"] == campaign).unwrap().clone()
}

/// A new campaign's id, with these fields besides the usual ones.
pub async fn campaign_with(test: &TestApp, more: Value) -> i64 {
    let mut body = json!({"couponCode": "HANGHAE8888", "discountType": "FIXED", "discountAmount": 1_000,
        "totalQuantity": 10, "expiredAt": after(test, 86_400_000)});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    id(&post(test, "/admin/v1/coupons", body).await.created(), "couponId")
}
