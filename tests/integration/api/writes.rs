//! A request for each operation that writes.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{api_kit::*, harness::TestApp};

/// Operations that need a payment at a gateway, a dead letter or a rebuild, and those on webhooks, which decide nothing: the tests of
/// these have their requests.
const ELSEWHERE: &[&str] = &[
    "POST /admin/v1/orders/{orderId}/payment-outcome",
    "POST /api/v1/payments/prepare",
    "POST /gateways/{type}/webhook",
    "POST /admin/v1/dead-letters/retry",
    "POST /admin/v1/webhooks",
    "PATCH /admin/v1/webhooks/{webhookId}",
    "DELETE /admin/v1/webhooks/{webhookId}",
    "POST /admin/v1/webhooks/{webhookId}/rotate",
    "POST /admin/v1/webhooks/{webhookId}/resend",
    "POST /admin/v1/withheld/release",
    "POST /admin/v1/products/{productId}/release",
    "POST /admin/v1/coupons/{couponId}/release",
    // It can't be repeated.
    "DELETE /admin/v1/users/{userId}",
];

/// A write that succeeds once, and another request to the same endpoint by the same caller.
pub struct Write {
    pub method: Method,
    pub path: String,
    pub body: Value,
    pub other: (String, Value),
    /// The user that writes; `None` for an operator.
    pub user: Option<i64>,
}

/// One valid request per POST, PUT and PATCH.
pub async fn writes(test: &TestApp) -> Vec<Write> {
    let (user, product) = (test.user(1_000_000).await, test.product(1_000, 1_000).await);
    let campaign = test.campaign("FIXED", 100, 10).await;
    let [to_pay, to_cancel, to_refund, to_return] = [
        placed(test, user, &[(product, 2)], None).await,
        placed(test, user, &[(product, 3)], None).await,
        bought(test, user, product, 4).await,
        bought(test, user, product, 4).await,
    ];
    let write = |method: Method, path: String, body: Value, other: Value| {
        let user = path.starts_with("/api/").then_some(user);
        Write { method, other: (path.clone(), other), path, body, user }
    };
    let cancel = |order: i64| Write {
        method: Method::POST,
        path: format!("/api/v1/orders/{order}/cancel"),
        body: json!({"userId": user}),
        other: (format!("/api/v1/orders/{to_pay}/cancel"), json!({"userId": user})),
        user: Some(user),
    };
    let pay = |amount: i64| json!({"orderId": to_pay, "userId": user, "paymentType": "TOSS", "amount": amount});
    let new_product = |price: i64| json!({"productName": "x", "price": price, "stockQuantity": 3, "category": "TOP"});
    let new_campaign = |total: i64| {
        json!({"couponCode": "X", "discountType": "FIXED", "discountAmount": 1,
        "totalQuantity": total, "expiredAt": after(test, 3_600_000)})
    };
    let post = |path: &str, body: Value, other: Value| write(Method::POST, path.to_owned(), body, other);
    let part = |quantity: i64| json!({"lines": [{"productId": product, "quantity": quantity}], "restock": false});
    let writes = vec![
        write(Method::PUT, format!("/api/v1/balances/{user}"), json!({"amount": 1_000}), json!({"amount": 1_001})),
        post(
            "/api/v1/coupons/issue",
            json!({"couponId": campaign, "userId": user}),
            json!({"couponId": campaign + 3, "userId": user}),
        ),
        post("/api/v1/orders", order_of(user, &[(product, 5)], None), order_of(user, &[(product, 6)], None)),
        post("/api/v1/orders", checkout_of(user, &[(product, 2)], "CARD"), checkout_of(user, &[(product, 2)], "TOSS")),
        post("/api/v1/payments", pay(2_000), pay(2_001)),
        cancel(to_cancel),
        cancel(to_refund),
        post(&format!("/admin/v1/orders/{to_return}/refund"), part(1), part(2)),
        post("/admin/v1/users", json!({"userName": "x", "balance": 7}), json!({"userName": "y", "balance": 7})),
        post("/admin/v1/users/bulk", json!({"count": 600, "balance": 7}), json!({"count": 601, "balance": 7})),
        post("/admin/v1/products", new_product(1), new_product(2)),
        post("/admin/v1/coupons", new_campaign(1), new_campaign(2)),
        write(
            Method::PUT,
            "/admin/v1/users/70001".to_owned(),
            json!({"userName": "x", "balance": 7}),
            json!({"userName": "y", "balance": 7}),
        ),
        write(Method::PUT, "/admin/v1/products/70001".to_owned(), new_product(1), new_product(2)),
        write(Method::PUT, format!("/admin/v1/products/{product}"), new_product(1), new_product(2)),
        write(Method::PUT, "/admin/v1/coupons/70001".to_owned(), new_campaign(1), new_campaign(2)),
        write(
            Method::PATCH,
            format!("/admin/v1/products/{product}"),
            json!({"stockDelta": 5, "category": "TOP"}),
            json!({"stockDelta": 6, "category": "TOP"}),
        ),
        write(
            Method::PATCH,
            format!("/admin/v1/coupons/{campaign}"),
            json!({"closesAt": after(test, 3_600_000)}),
            json!({"closesAt": after(test, 3_700_000)}),
        ),
    ];
    let document = document(test).await;
    let mut missing = document.writes();
    for write in &writes {
        missing.remove(&document.name(write.method.as_str(), &write.path).unwrap());
    }
    missing.retain(|name| !ELSEWHERE.contains(&name.as_str()));
    assert!(missing.is_empty(), "add a request of {missing:?} to this list");
    writes
}
