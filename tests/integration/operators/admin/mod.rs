//! The operators' API and the status endpoints: authentication, every operation, readiness.

mod catalog;
mod forgetting;
mod orders;
mod reserved_ids;
mod sales;
mod status;
mod terms;
mod upserts;

use reqwest::Method;
use serde_json::{Value, json};

use firstcome::model::{NewOrder, ProductId, UserId};

use crate::support::{
    api_kit::*,
    harness::{ADMIN, Options, TestApp, call, open, postgres_url, read},
};

#[tokio::test]
async fn admin_request_refused_without_token() {
    let test = TestApp::start().await;
    let product = test.product(10, 10).await;
    let one = format!("/admin/v1/products/{product}");
    let user = json!({"userName": "x"});
    let new = json!({"productName": "x", "price": 1, "stockQuantity": 1, "category": "TOP"});
    let coupon = json!({"couponCode": "x", "discountType": "FIXED", "discountAmount": 1, "totalQuantity": 1,
        "expiredAt": "2030-01-01T00:00:00"});
    let before = test.snapshot().await;
    for (method, path, body) in [
        (Method::POST, "/admin/v1/users", &user),
        (Method::POST, "/admin/v1/users/bulk", &json!({"count": 1})),
        (Method::POST, "/admin/v1/products", &new),
        (Method::PATCH, &one, &json!({"stockDelta": 1})),
        (Method::POST, "/admin/v1/coupons", &coupon),
        (Method::GET, "/admin/v1/coupons/1", &Value::Null),
        (Method::PATCH, "/admin/v1/coupons/1", &json!({})),
        (Method::GET, "/admin/v1/operator-log", &Value::Null),
        (Method::GET, "/admin/v1/dead-letters", &Value::Null),
        (Method::POST, "/admin/v1/dead-letters/retry", &json!({"partition": 0, "streamId": "1-1", "seq": 1})),
        (Method::GET, "/admin/v1/sales", &Value::Null),
        (Method::GET, &one, &Value::Null),
        (Method::GET, "/admin/v1/products/1/buyers", &Value::Null),
        (Method::GET, "/admin/v1/users/1", &Value::Null),
        (Method::GET, "/admin/v1/users/1/timeline", &Value::Null),
        (Method::GET, "/admin/v1/orders/1/timeline", &Value::Null),
        (Method::GET, "/admin/v1/orders", &Value::Null),
        (Method::GET, "/admin/v1/projection", &Value::Null),
        (Method::GET, "/admin/v1/withheld", &Value::Null),
        (Method::POST, "/admin/v1/withheld/release", &json!({})),
        (Method::POST, "/admin/v1/products/1/release", &json!({"quantity": 1})),
        (Method::POST, "/admin/v1/coupons/1/release", &json!({"quantity": 1})),
        // A request without a token does not learn which paths exist.
        (Method::GET, "/admin/v1/nothing", &Value::Null),
        (Method::GET, "/admin", &Value::Null),
        (Method::DELETE, "/admin/v1/users", &Value::Null),
        (Method::POST, "/admin/v1/users", &json!({"userName": 1})),
    ] {
        let wrong = [None, Some("Bearer"), Some("Bearer "), Some("Bearer wrong"), Some("Basic YTpi"), Some(ADMIN)];
        let longer = format!("Bearer {ADMIN}x");
        for authorization in wrong.into_iter().chain([Some(longer.as_str()), Some(&longer[..longer.len() - 2])]) {
            let mut request = test.client.request(method.clone(), format!("{}{path}", test.base)).json(body);
            if let Some(authorization) = authorization {
                request = request.header("authorization", authorization);
            }
            let reply = read(request).await;
            reply.refused(401, "UNAUTHORIZED");
            in_contract(path, &reply);
            document(&test).await.check_reply(method.as_str(), path, &reply);
            assert_eq!(reply.headers["www-authenticate"], "Bearer");
        }
    }
    assert_eq!(test.snapshot().await, before);
    test.send(Method::GET, "/admin/v1/nothing", None, None).await.refused(404, "NOT_FOUND");
    // The public paths ignore operators' tokens.
    let request = test.client.get(format!("{}/api/v1/products/{product}", test.base)).bearer_auth("wrong");
    read(request).await.ok();
    test.finish().await;
}
