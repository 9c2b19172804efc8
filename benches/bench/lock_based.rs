//! The lock-based designs that the engine replaces: one PostgreSQL transaction per request with `SELECT … FOR UPDATE` on the hot
//! row; and the same transaction inside a lock in Redis, as Redisson implements it (a key with a token and a TTL, waiters woken by a
//! message).
//!
//! The comparison is fair: the same schema and indexes, the same axum and accept loop, pooled connections, prepared statements, the
//! fewest statements, and no more checks than the engine makes. Used by the benchmarks only.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context, Result};
use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{post, put},
};
use futures_util::StreamExt;
use serde::Deserialize;
use serde_json::{Value, json};
use sqlx::{PgConnection, PgPool, Postgres, Transaction, postgres::PgPoolOptions};
use tokio::sync::Notify;
use uuid::Uuid;

use crate::servers;

/// Several times HikariCP's recommendation for this many cores; measured as the fastest. More connections wait for each other.
const CONNECTIONS: u32 = 16;
/// TTL of a lock in milliseconds: frees the lock of a crashed holder.
const LEASE_MS: u64 = 30_000;

struct LockBased {
    pool: PgPool,
    locks: Option<Locks>,
}

type App = State<Arc<LockBased>>;

/// Why a request has no result: a refusal of the shop, or a failure.
enum Refusal {
    Rejected(StatusCode, &'static str),
    Failed(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Refusal {
    fn from(error: E) -> Self {
        Refusal::Failed(error.into())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (status, code) = match self {
            Refusal::Rejected(status, code) => (status, code),
            Refusal::Failed(error) => {
                eprintln!("lock_based: {error:#}");
                (StatusCode::INTERNAL_SERVER_ERROR, "INTERNAL_SERVER_ERROR")
            }
        };
        (status, Json(json!({ "errorCode": code, "message": code }))).into_response()
    }
}

type Reply = Result<Json<Value>, Refusal>;

fn refuse<T>(status: StatusCode, code: &'static str) -> Result<T, Refusal> {
    Err(Refusal::Rejected(status, code))
}

/// Serves until the parent process ends.
pub async fn serve(locked: bool) -> Result<()> {
    let pool = PgPoolOptions::new()
        .min_connections(CONNECTIONS)
        .max_connections(CONNECTIONS)
        .acquire_timeout(Duration::from_secs(600))
        .test_before_acquire(false)
        .connect(&std::env::var("DATABASE_URL")?)
        .await?;
    for sequence in ["lock_based_orders", "lock_based_payments"] {
        let create = format!("CREATE SEQUENCE IF NOT EXISTS {sequence} CACHE 100");
        sqlx::query(sqlx::AssertSqlSafe(create)).execute(&pool).await?;
    }
    let locks = if locked { Some(Locks::connect(&std::env::var("REDIS_URL")?).await?) } else { None };
    let router = Router::new()
        .route("/api/v1/coupons/issue", post(issue))
        .route("/api/v1/balances/{userId}", put(charge))
        .route("/api/v1/orders", post(order))
        .route("/api/v1/payments", post(pay))
        .with_state(Arc::new(LockBased { pool, locks }));
    let limits = firstcome::http::server::ServerLimits::default();
    let listener = servers::listen().await?;
    firstcome::http::server::serve(listener, router, limits, servers::stop_with_parent()).await?;
    Ok(())
}

/// The rows that `prepare` inserts: the first user and the first product.
pub struct Data {
    pub first_user: u64,
    pub product: u64,
}

/// Inserts users and products into the database of the lock-based designs, as the engine's projection would.
pub async fn prepare(url: &str, users: u64, balance: i64) -> Result<Data> {
    let pool = PgPool::connect(url).await?;
    sqlx::query("INSERT INTO users (id, name, balance, created_at) SELECT n, 'user-' || n, $2, now() FROM generate_series(1, $1) n")
        .bind(users as i64)
        .bind(balance)
        .execute(&pool)
        .await?;
    let insert = "INSERT INTO products (id, name, category, price, on_sale, held, sold, stocked, created_at)
                  SELECT n, '나이키 에어포스', 'SHOES', 139000, 1000000000, 0, 0, 1000000000, now() FROM generate_series(1, 10) n";
    sqlx::query(insert).execute(&pool).await?;
    sqlx::query("ANALYZE").execute(&pool).await?;
    Ok(Data { first_user: 1, product: 1 })
}

/// Inserts a campaign into the database of the lock-based designs.
pub async fn campaign(url: &str, id: u64, total: u64) -> Result<()> {
    let pool = PgPool::connect(url).await?;
    let insert = "INSERT INTO campaigns (id, code, discount_type, discount_amount, total, issued, opens_at, closes_at,
                      expires_at, created_at)
                  VALUES ($1, 'HANGHAE8888', 'FIXED', 1000, $2, 0, now() - interval '1 day', now() + interval '1 year',
                      now() + interval '1 year', now())";
    sqlx::query(insert).bind(id as i64).bind(total as i64).execute(&pool).await?;
    Ok(())
}

impl LockBased {
    async fn begin(&self) -> Result<Transaction<'static, Postgres>, Refusal> {
        Ok(self.pool.begin().await?)
    }

    async fn lock(&self, what: &str, id: i64) -> Result<Option<Held<'_>>, Refusal> {
        match &self.locks {
            Some(locks) => Ok(Some(locks.take(format!("lock:{what}:{id}")).await?)),
            None => Ok(None),
        }
    }
}

async fn release(held: Option<Held<'_>>) -> Result<(), Refusal> {
    match held {
        Some(held) => Ok(held.release().await?),
        None => Ok(()),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Issue {
    coupon_id: i64,
    user_id: i64,
}

async fn issue(State(shop): App, Json(Issue { coupon_id, user_id }): Json<Issue>) -> Reply {
    let held = shop.lock("coupon", coupon_id).await?;
    let issued = issue_locked(&shop, coupon_id, user_id).await;
    release(held).await?;
    issued
}

async fn issue_locked(shop: &LockBased, coupon: i64, user: i64) -> Reply {
    let mut db = shop.begin().await?;
    let found: Option<(i64, i64, String)> = sqlx::query_as(
        "SELECT total, issued, code FROM campaigns WHERE id = $1 AND now() >= opens_at AND now() < closes_at FOR UPDATE",
    )
    .bind(coupon)
    .fetch_optional(&mut *db)
    .await?;
    let Some((total, issued, code)) = found else { return refuse(StatusCode::BAD_REQUEST, "INVALID_COUPON") };
    let holds: Option<(i32,)> = sqlx::query_as("SELECT 1 FROM user_coupons WHERE coupon_id = $1 AND user_id = $2")
        .bind(coupon)
        .bind(user)
        .fetch_optional(&mut *db)
        .await?;
    if holds.is_some() {
        return refuse(StatusCode::BAD_REQUEST, "INVALID_COUPON");
    }
    if issued >= total {
        return refuse(StatusCode::CONFLICT, "COUPON_OUT_OF_STOCK");
    }
    // A coupon of an unknown user is not checked for: no load of the benchmarks sends one.
    sqlx::query(
        "INSERT INTO user_coupons (coupon_id, user_id, issue_no, status, issued_at) VALUES ($1, $2, $3, 'AVAILABLE', now())",
    )
    .bind(coupon)
    .bind(user)
    .bind(issued + 1)
    .execute(&mut *db)
    .await?;
    sqlx::query("UPDATE campaigns SET issued = issued + 1 WHERE id = $1").bind(coupon).execute(&mut *db).await?;
    db.commit().await?;
    Ok(Json(json!({
        "couponId": coupon, "couponCode": code, "couponStatus": "AVAILABLE", "discountType": "FIXED",
        "discountAmount": 1000, "expiredAt": "2099-12-31T23:59:59", "createdAt": "2026-03-02T14:00:00",
        "userCouponId": coupon, "issueNo": issued + 1,
    })))
}

#[derive(Deserialize)]
struct Charge {
    amount: i64,
}

async fn charge(State(shop): App, Path(user): Path<i64>, Json(Charge { amount }): Json<Charge>) -> Reply {
    let held = shop.lock("user", user).await?;
    let charged = charge_locked(&shop, user, amount).await;
    release(held).await?;
    charged
}

async fn charge_locked(shop: &LockBased, user: i64, amount: i64) -> Reply {
    let mut db = shop.begin().await?;
    let found: Option<(String, i64)> = sqlx::query_as("SELECT name, balance FROM users WHERE id = $1 FOR UPDATE")
        .bind(user)
        .fetch_optional(&mut *db)
        .await?;
    let Some((name, before)) = found else { return refuse(StatusCode::NOT_FOUND, "USER_NOT_FOUND") };
    move_money(&mut db, user, "CHARGE", amount, before, None).await?;
    db.commit().await?;
    let balance = before + amount;
    Ok(Json(json!({ "userId": user, "userName": name, "amount": balance, "balance": balance })))
}

async fn move_money(
    db: &mut PgConnection,
    user: i64,
    kind: &str,
    amount: i64,
    before: i64,
    order: Option<i64>,
) -> Result<(), Refusal> {
    let after = if kind == "CHARGE" { before + amount } else { before - amount };
    sqlx::query("UPDATE users SET balance = $2 WHERE id = $1").bind(user).bind(after).execute(&mut *db).await?;
    sqlx::query(
        "INSERT INTO balance_entries
             (user_id, entry_no, transaction_type, amount, before_balance, after_balance, order_id, created_at)
         SELECT $1, coalesce(max(entry_no), 0) + 1, $2, $3, $4, $5, $6, now() FROM balance_entries WHERE user_id = $1",
    )
    .bind(user)
    .bind(kind)
    .bind(amount)
    .bind(before)
    .bind(after)
    .bind(order)
    .execute(&mut *db)
    .await?;
    Ok(())
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Order {
    user_id: i64,
    order_products: Vec<Line>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    product_id: i64,
    quantity: i64,
}

async fn order(State(shop): App, Json(mut order): Json<Order>) -> Reply {
    order.order_products.sort_by_key(|line| line.product_id);
    let mut held = Vec::new();
    for line in &order.order_products {
        held.push(shop.lock("product", line.product_id).await?);
    }
    let placed = order_locked(&shop, &order).await;
    for lock in held {
        release(lock).await?;
    }
    placed
}

async fn order_locked(shop: &LockBased, order: &Order) -> Reply {
    let ids: Vec<i64> = order.order_products.iter().map(|line| line.product_id).collect();
    let quantities: Vec<i64> = order.order_products.iter().map(|line| line.quantity).collect();
    let mut db = shop.begin().await?;
    let user: Option<(i64,)> =
        sqlx::query_as("SELECT balance FROM users WHERE id = $1").bind(order.user_id).fetch_optional(&mut *db).await?;
    let Some((balance,)) = user else { return refuse(StatusCode::NOT_FOUND, "USER_NOT_FOUND") };
    let products: Vec<(i64, i64, i64)> =
        sqlx::query_as("SELECT id, price, on_sale FROM products WHERE id = ANY($1) ORDER BY id FOR UPDATE")
            .bind(&ids)
            .fetch_all(&mut *db)
            .await?;
    if products.len() != ids.len() {
        return refuse(StatusCode::NOT_FOUND, "PRODUCT_NOT_FOUND");
    }
    let mut total = 0;
    for ((_, price, on_sale), quantity) in products.iter().zip(&quantities) {
        if on_sale < quantity {
            return refuse(StatusCode::CONFLICT, "SOLD_OUT");
        }
        total += price * quantity;
    }
    if balance < total {
        return refuse(StatusCode::PAYMENT_REQUIRED, "INSUFFICIENT_BALANCE");
    }
    let (id,): (i64,) = sqlx::query_as(
        "INSERT INTO orders (id, user_id, status, total, discount, final_price, placed_at, expires_at)
         VALUES (nextval('lock_based_orders'), $1, 'PENDING', $2, 0, $2, now(), now() + interval '10 minutes') RETURNING id",
    )
    .bind(order.user_id)
    .bind(total)
    .fetch_one(&mut *db)
    .await?;
    let prices: Vec<i64> = products.iter().map(|(_, price, _)| *price).collect();
    sqlx::query(
        "INSERT INTO order_lines (order_id, product_id, quantity, price)
         SELECT $1, * FROM unnest($2::bigint[], $3::bigint[], $4::bigint[])",
    )
    .bind(id)
    .bind(&ids)
    .bind(&quantities)
    .bind(&prices)
    .execute(&mut *db)
    .await?;
    sqlx::query(
        "UPDATE products SET on_sale = on_sale - quantity, held = held + quantity
         FROM unnest($1::bigint[], $2::bigint[]) AS line (product, quantity) WHERE products.id = product",
    )
    .bind(&ids)
    .bind(&quantities)
    .execute(&mut *db)
    .await?;
    db.commit().await?;
    Ok(Json(json!({ "orderId": id, "finalPrice": total, "orderedAt": "2026-03-02T14:00:00" })))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Payment {
    order_id: i64,
    user_id: i64,
    payment_type: String,
    amount: i64,
}

async fn pay(State(shop): App, Json(payment): Json<Payment>) -> Reply {
    let held = shop.lock("user", payment.user_id).await?;
    let paid = pay_locked(&shop, &payment).await;
    release(held).await?;
    paid
}

async fn pay_locked(shop: &LockBased, payment: &Payment) -> Reply {
    let Payment { order_id, user_id, payment_type, amount } = payment;
    let mut db = shop.begin().await?;
    let order: Option<(String, i64)> =
        sqlx::query_as("SELECT status, final_price FROM orders WHERE id = $1 AND user_id = $2 FOR UPDATE")
            .bind(order_id)
            .bind(user_id)
            .fetch_optional(&mut *db)
            .await?;
    match order {
        None => return refuse(StatusCode::NOT_FOUND, "ORDER_NOT_FOUND"),
        Some((status, _)) if status == "PAID" => return refuse(StatusCode::CONFLICT, "ORDER_ALREADY_PAID"),
        Some((status, price)) if status != "PENDING" || price != *amount => {
            return refuse(StatusCode::BAD_REQUEST, "INVALID_PAYMENT_REQUEST");
        }
        Some(_) => {}
    }
    let (balance,): (i64,) =
        sqlx::query_as("SELECT balance FROM users WHERE id = $1 FOR UPDATE").bind(user_id).fetch_one(&mut *db).await?;
    if balance < *amount {
        return refuse(StatusCode::PAYMENT_REQUIRED, "INSUFFICIENT_BALANCE");
    }
    move_money(&mut db, *user_id, "PAYMENT", *amount, balance, Some(*order_id)).await?;
    sqlx::query("UPDATE orders SET status = 'PAID', paid_at = now() WHERE id = $1")
        .bind(order_id)
        .execute(&mut *db)
        .await?;
    let receipt = Uuid::now_v7().to_string();
    let (id,): (i64,) = sqlx::query_as(
        "INSERT INTO payments (id, order_id, user_id, payment_type, method, status, amount, receipt, started_at, paid_at)
         VALUES (nextval('lock_based_payments'), $1, $2, $3, 'BALANCE', 'PAID', $4, $5, now(), now()) RETURNING id",
    )
    .bind(order_id)
    .bind(user_id)
    .bind(payment_type)
    .bind(amount)
    .bind(&receipt)
    .fetch_one(&mut *db)
    .await?;
    sqlx::query(
        "UPDATE products SET held = held - quantity, sold = sold + quantity
         FROM order_lines WHERE order_id = $1 AND products.id = product_id",
    )
    .bind(order_id)
    .execute(&mut *db)
    .await?;
    db.commit().await?;
    Ok(Json(json!({
        "paymentId": id, "orderId": order_id, "userId": user_id, "paymentType": payment_type, "amount": amount,
        "receipt": receipt, "createdAt": "2026-03-02T14:00:00", "orderStatus": "PAID",
    })))
}

/// Locks in Redis.
struct Locks {
    link: redis::aio::MultiplexedConnection,
    unlock: redis::Script,
    /// Waiters of this process, by lock: a message wakes one of them.
    waiting: Arc<Mutex<HashMap<String, Arc<Notify>>>>,
}

const CHANNEL: &str = "lock:released";

struct Held<'a> {
    locks: &'a Locks,
    name: String,
    token: String,
}

impl Locks {
    async fn connect(url: &str) -> Result<Self> {
        let client = redis::Client::open(url)?;
        let config = redis::AsyncConnectionConfig::new().set_response_timeout(None).set_pipeline_buffer_size(10_000);
        let link = client.get_multiplexed_async_connection_with_config(&config).await?;
        let waiting = Arc::<Mutex<HashMap<String, Arc<Notify>>>>::default();
        let mut messages = client.get_async_pubsub().await?;
        messages.subscribe(CHANNEL).await?;
        let woken = waiting.clone();
        tokio::spawn(async move {
            let mut messages = messages.into_on_message();
            while let Some(message) = messages.next().await {
                let Ok(name) = message.get_payload::<String>() else { continue };
                if let Ok(woken) = woken.lock()
                    && let Some(waiter) = woken.get(&name)
                {
                    waiter.notify_one();
                }
            }
        });
        let unlock = redis::Script::new(
            "if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
             redis.call('DEL', KEYS[1])
             redis.call('PUBLISH', ARGV[2], KEYS[1])
             return 1",
        );
        Ok(Locks { link, unlock, waiting })
    }

    async fn take(&self, name: String) -> Result<Held<'_>> {
        let token = Uuid::now_v7().simple().to_string();
        let unlocked = {
            let mut waiting = self.waiting.lock().map_err(|_| anyhow::anyhow!("poisoned"))?;
            waiting.entry(name.clone()).or_default().clone()
        };
        loop {
            let mut link = self.link.clone();
            let mut set = redis::cmd("SET");
            set.arg(&name).arg(&token).arg("NX").arg("PX").arg(LEASE_MS);
            let taken: Option<String> = set.query_async(&mut link).await.context("the lock request failed")?;
            if taken.is_some() {
                return Ok(Held { locks: self, name, token });
            }
            let _ = tokio::time::timeout(Duration::from_millis(LEASE_MS), unlocked.notified()).await;
        }
    }
}

impl Held<'_> {
    async fn release(self) -> Result<()> {
        let mut link = self.locks.link.clone();
        self.locks.unlock.key(&self.name).arg(&self.token).arg(CHANNEL).invoke_async::<i64>(&mut link).await?;
        Ok(())
    }
}
