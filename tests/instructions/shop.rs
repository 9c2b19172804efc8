//! A shop behind a router in this process, without sockets and without background work: what runs is a request's.

use std::{cell::RefCell, net::SocketAddr};

use anyhow::{Result, ensure};
use axum::{
    Router,
    body::Body,
    extract::ConnectInfo,
    http::{Request, header::CONTENT_TYPE},
};
use firstcome::{app::App, config::*, model::Clock};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::runtime::{Builder, Runtime};
use tower::ServiceExt;

const TOKEN: &str = "a-token-of-the-count";
const USERS: u64 = 1000;
const WON: u64 = 1000;

pub struct Shop {
    /// One thread, so that the count has all of it.
    pub runtime: Runtime,
    pub app: App,
    router: Router,
    first_user: u64,
    product: u64,
    product_with_terms: u64,
    campaign: u64,
    /// The orders to be paid: id and user.
    placed: RefCell<Vec<(u64, u64)>>,
}

/// A kind of request.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    Issue,
    Order,
    /// Of a product with a window and a limit per user.
    OrderWithTerms,
    Checkout,
    Pay,
    Charge,
}

impl Kind {
    /// Payments follow the orders that they pay.
    pub const ALL: [(Kind, &str); 6] = [
        (Kind::Issue, "coupon issue"),
        (Kind::Order, "order"),
        (Kind::Pay, "payment"),
        (Kind::Charge, "balance charge"),
        (Kind::Checkout, "checkout"),
        (Kind::OrderWithTerms, "order with window and limit"),
    ];
}

impl Shop {
    /// Opens the stores, and creates what the requests need.
    pub fn open(redis_url: String, database_url: String) -> Result<Shop> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let redis = RedisConfig {
            redis_timeout_ms: 120_000,
            redis_durability: RedisDurability::Asserted,
            // Which connection a request takes would depend on the time.
            redis_connections: 1,
            ..RedisConfig::at(redis_url)
        };
        let config = EngineConfig {
            redis,
            postgres: PostgresConfig {
                database_url: Secret::new(database_url),
                database_connections: 2,
                database_timeout_ms: 120_000,
            },
            shop: ShopConfig {
                time_zone: "Asia/Seoul".parse()?,
                order_hold_seconds: 24 * 3600,
                refund_window_seconds: 604_800,
                max_open_orders_per_user: u32::MAX,
                max_balance: 9_007_199_254_740_991,
                sold_out_lease_ms: 200,
                partitions: None,
            },
            gateway: GatewayConfig::default(),
            retention: RetentionConfig::default(),
            durability: DurabilityConfig { max_backlog: 100_000_000, ..DurabilityConfig::default() },
            webhooks: WebhookConfig::default(),
        };
        let app = runtime.block_on(App::open(&config, &ProjectorConfig::default(), Clock::system()))?;
        let router = {
            let _entered = runtime.enter();
            app.router(&http_config())?
        };
        let (first_user, product, campaign, placed) = (0, 0, 0, RefCell::default());
        let mut shop = Shop { runtime, app, router, first_user, product, product_with_terms: 0, campaign, placed };
        let made = |path: &str, id: &str, body: Value| -> Result<u64> {
            let reply = shop.runtime.block_on(shop.send("POST", &format!("/admin/v1/{path}"), body.to_string()));
            number(&reply?, id)
        };
        let users = json!({ "count": USERS, "namePrefix": "user-", "balance": 1_000_000_000 });
        let first_user = made("users/bulk", "firstUserId", users)?;
        let product =
            json!({ "productName": "나이키 에어포스", "price": WON, "stockQuantity": 1_000_000, "category": "SHOES" });
        let mut with_terms = product.clone();
        with_terms["opensAt"] = json!("2020-01-01T00:00:00");
        with_terms["closesAt"] = json!("2099-12-31T23:59:59");
        with_terms["limitPerUser"] = json!(10_000);
        let product = made("products", "productId", product)?;
        let product_with_terms = made("products", "productId", with_terms)?;
        let campaign = json!({
            "couponCode": "HANGHAE8888", "discountType": "FIXED", "discountAmount": 1000, "totalQuantity": USERS,
            "expiredAt": "2099-12-31T23:59:59",
        });
        let campaign = made("coupons", "couponId", campaign)?;
        (shop.first_user, shop.campaign) = (first_user, campaign);
        (shop.product, shop.product_with_terms) = (product, product_with_terms);
        Ok(shop)
    }

    /// The request of a kind by the `n`-th user.
    pub async fn ask(&self, kind: Kind, n: u64) -> Result<()> {
        let user = self.first_user + n % USERS;
        let campaign = self.campaign;
        let product = if let Kind::OrderWithTerms = kind { self.product_with_terms } else { self.product };
        let (method, path, body) = match kind {
            Kind::Issue => ("POST", "/api/v1/coupons/issue", format!("{{\"couponId\":{campaign},\"userId\":{user}}}")),
            Kind::Order | Kind::OrderWithTerms => (
                "POST",
                "/api/v1/orders",
                format!("{{\"userId\":{user},\"orderProducts\":[{{\"productId\":{product},\"quantity\":1}}]}}"),
            ),
            Kind::Checkout => (
                "POST",
                "/api/v1/orders",
                format!(
                    "{{\"userId\":{user},\"orderProducts\":[{{\"productId\":{product},\"quantity\":1}}],\
                     \"payment\":{{\"paymentType\":\"BALANCE\"}}}}"
                ),
            ),
            Kind::Pay => {
                let Some((order, user)) = self.placed.borrow_mut().pop() else { anyhow::bail!("no order to pay") };
                let body =
                    format!("{{\"orderId\":{order},\"userId\":{user},\"paymentType\":\"KAKAO_PAY\",\"amount\":{WON}}}");
                ("POST", "/api/v1/payments", body)
            }
            Kind::Charge => {
                let path = format!("/api/v1/balances/{user}");
                self.send("PUT", &path, "{\"amount\":1000}".to_owned()).await?;
                return Ok(());
            }
        };
        let reply = self.send(method, path, body).await?;
        if let Kind::Order = kind {
            self.placed.borrow_mut().push((number(&reply, "orderId")?, user));
        }
        Ok(())
    }

    /// Sends a request, and returns the body of its reply. Fails unless it succeeds.
    async fn send(&self, method: &str, path: &str, body: String) -> Result<String> {
        let request = Request::builder().method(method).uri(path).header("host", "count");
        let request = request.header(CONTENT_TYPE, "application/json").header("content-length", body.len());
        let request = match path.starts_with("/admin") {
            true => request.header("authorization", format!("Bearer {TOKEN}")),
            false => request,
        };
        let mut request = request.body(Body::from(body))?;
        request.extensions_mut().insert(ConnectInfo(SocketAddr::from(([127, 0, 0, 1], 1))));
        let Ok(reply) = self.router.clone().oneshot(request).await;
        let status = reply.status();
        let body = String::from_utf8(reply.into_body().collect().await?.to_bytes().to_vec())?;
        ensure!(status.is_success(), "{method} {path}: {status} {body}");
        Ok(body)
    }
}

/// The number after `"name":` in a reply.
fn number(body: &str, name: &str) -> Result<u64> {
    let rest = body.split(&format!("\"{name}\":")).nth(1).unwrap_or_default();
    let digits: String = rest.trim_start_matches('"').chars().take_while(char::is_ascii_digit).collect();
    Ok(digits.parse()?)
}

fn http_config() -> HttpConfig {
    HttpConfig {
        bind_addr: ([127, 0, 0, 1], 0).into(),
        ops_bind_addr: None,
        operators: OperatorsConfig::admin(TOKEN),
        request_timeout_ms: 600_000,
        body_limit_bytes: 65_536,
        max_connections: 20_000,
        listen_backlog: 16,
        header_timeout_ms: 600_000,
        drain_seconds: 1,
        drain_delay_seconds: Some(0),
        limits: LimitsConfig::off(),
        browsers: BrowserConfig::default(),
        metrics: MetricsConfig::default(),
        auth: AuthConfig::default(),
    }
}
