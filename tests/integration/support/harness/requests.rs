//! Requests to the service under test, and their replies.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::{ADMIN, TestApp};

/// A reply, read whole.
#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub headers: reqwest::header::HeaderMap,
    pub text: String,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("no JSON: {} {}", self.status, self.text))
    }

    /// The reply, which must be a 200.
    #[track_caller]
    pub fn ok(self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text);
        self.json()
    }

    /// The reply, which must be a 201.
    #[track_caller]
    pub fn created(self) -> Value {
        assert_eq!(self.status, 201, "{}", self.text);
        self.json()
    }

    /// Asserts that the reply is an error with this status and errorCode, in the contract's envelope.
    #[track_caller]
    pub fn refused(&self, status: u16, code: &str) {
        let body = self.json();
        assert_eq!((self.status.as_u16(), body["errorCode"].as_str()), (status, Some(code)), "{}", self.text);
        assert!(body["message"].as_str().is_some_and(|message| !message.is_empty()), "{}", self.text);
    }

    pub fn replayed(&self) -> bool {
        self.headers.get("idempotent-replayed").is_some_and(|value| value == "true")
    }
}

impl TestApp {
    /// A request; `key` is its Idempotency-Key.
    pub async fn send(&self, method: Method, path: &str, body: Option<&Value>, key: Option<&str>) -> Reply {
        let mut request = self.client.request(method, format!("{}{path}", self.base));
        if path.starts_with("/admin") {
            request = request.bearer_auth(ADMIN);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        if let Some(key) = key {
            request = request.header("Idempotency-Key", key);
        }
        read(request).await
    }

    pub async fn get(&self, path: &str) -> Reply {
        self.send(Method::GET, path, None, None).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Reply {
        self.send(Method::POST, path, Some(&body), None).await
    }

    pub async fn put(&self, path: &str, body: Value) -> Reply {
        self.send(Method::PUT, path, Some(&body), None).await
    }

    /// A new user's id.
    pub async fn user(&self, balance: i64) -> i64 {
        let body = json!({"userName": "이다은", "balance": balance});
        self.post("/admin/v1/users", body).await.created()["userId"].as_i64().unwrap()
    }

    /// The ids of new users.
    pub async fn users(&self, count: i64, balance: i64) -> Vec<i64> {
        let body = json!({"count": count, "balance": balance});
        let first = self.post("/admin/v1/users/bulk", body).await.created()["firstUserId"].as_i64().unwrap();
        (first..first + count).collect()
    }

    /// A new product's id.
    pub async fn product(&self, price: i64, stock: i64) -> i64 {
        let body =
            json!({"productName": "나이키 에어포스", "price": price, "stockQuantity": stock, "category": "SHOES"});
        self.post("/admin/v1/products", body).await.created()["productId"].as_i64().unwrap()
    }

    /// A new campaign's id: open now, its coupons good for a day.
    pub async fn campaign(&self, kind: &str, amount: i64, total: i64) -> i64 {
        let expires = self.clock.now().plus(86_400_000).local(self.engine.zone());
        let body = json!({"couponCode": "HANGHAE8888", "discountType": kind, "discountAmount": amount,
            "totalQuantity": total, "expiredAt": expires});
        self.post("/admin/v1/coupons", body).await.created()["couponId"].as_i64().unwrap()
    }

    pub async fn issue(&self, coupon: i64, user: i64) -> Reply {
        self.post("/api/v1/coupons/issue", json!({"couponId": coupon, "userId": user})).await
    }

    /// Orders one product, without a coupon.
    pub async fn order(&self, user: i64, product: i64, quantity: i64) -> Reply {
        let lines = json!([{"productId": product, "quantity": quantity}]);
        self.post("/api/v1/orders", json!({"userId": user, "orderProducts": lines})).await
    }

    pub async fn pay(&self, order: i64, user: i64, kind: &str, amount: i64) -> Reply {
        let body = json!({"orderId": order, "userId": user, "paymentType": kind, "amount": amount});
        self.post("/api/v1/payments", body).await
    }

    pub async fn put_charge(&self, user: i64, amount: i64) -> Reply {
        self.put(&format!("/api/v1/balances/{user}"), json!({"amount": amount})).await
    }

    pub async fn cancel(&self, order: i64, user: i64) -> Reply {
        self.post(&format!("/api/v1/orders/{order}/cancel"), json!({"userId": user})).await
    }

    /// Refunds these units of an order, as its user.
    pub async fn refund_lines(&self, order: i64, user: i64, lines: &[(i64, i64)]) -> Reply {
        let line = |(product, quantity): &(i64, i64)| json!({"productId": product, "quantity": quantity});
        let lines: Vec<Value> = lines.iter().map(line).collect();
        self.post(&format!("/api/v1/orders/{order}/cancel"), json!({"userId": user, "lines": lines})).await
    }

    /// Refunds an order, as an operator.
    pub async fn refund(&self, order: i64, body: Value) -> Reply {
        self.post(&format!("/admin/v1/orders/{order}/refund"), body).await
    }

    /// Orders one product, without a coupon. Returns the order's id.
    pub async fn place(&self, user: i64, product: i64, quantity: i64) -> i64 {
        self.order(user, product, quantity).await.ok()["orderId"].as_i64().unwrap()
    }

    /// The units of a product on sale.
    pub async fn stock(&self, product: i64) -> i64 {
        self.get(&format!("/api/v1/products/{product}")).await.ok()["stockQuantity"].as_i64().unwrap()
    }
}

/// A client with connections of its own.
pub fn client() -> reqwest::Client {
    client_builder().build().unwrap()
}

/// A client that follows no redirects, as a browser whose every step a test sees.
pub fn browser() -> reqwest::Client {
    client_builder().redirect(reqwest::redirect::Policy::none()).build().unwrap()
}

fn client_builder() -> reqwest::ClientBuilder {
    // Fails in every test but the first, which installs the provider.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy()
}

/// A client whose connections come from a local address. It replaces an idle connection long before a service with short time
/// limits closes it.
pub fn client_at(address: &str) -> reqwest::Client {
    let address: std::net::IpAddr = address.parse().unwrap();
    let idle = std::time::Duration::from_secs(1);
    reqwest::Client::builder().no_proxy().local_address(address).pool_idle_timeout(idle).build().unwrap()
}

/// Sends a request and reads the reply whole.
pub async fn read(request: reqwest::RequestBuilder) -> Reply {
    let response = request.send().await.unwrap();
    let (status, headers) = (response.status(), response.headers().clone());
    Reply { status, headers, text: response.text().await.unwrap() }
}
