//! A large store is rebuilt from PostgreSQL and audited, by the program itself, in bounded memory.
//!
//! `make test` uses a small one; `make test-large` uses a million users and 200,000 orders (`LARGE_USERS`, `LARGE_ORDERS`).

use std::{fs, process::Stdio, time::Instant};

use firstcome::dev::{self, RedisServer, ScratchDir};
use serde_json::Value;
use sqlx::{AssertSqlSafe, PgPool};
use tokio::{io::AsyncReadExt, process::Command};

use crate::support::{harness, harness::postgres_url};

fn size(name: &str, default: i64) -> i64 {
    std::env::var(name).ok().and_then(|size| size.parse().ok()).unwrap_or(default)
}

/// Writes the rows that the projector writes on a day: a charge for every user, a coupon for every tenth user, orders of one to
/// three lines, of which three in four are paid and the others are open or cancelled.
async fn fill(pool: &PgPool, users: i64, orders: i64) {
    let products = 1_000;
    let statements = [
        "INSERT INTO store (store, partitions, ack) VALUES ('large', 1, 'postgres')".to_owned(),
        "INSERT INTO projection_positions (partition, epoch, seq, stream_id) VALUES (0, 1, 5000000, '1772427600000-0')".into(),
        format!("INSERT INTO users SELECT n, '손님' || n, 1000000, now() FROM generate_series(1, {users}) AS n"),
        format!(
            "INSERT INTO balance_entries SELECT n, 1, 'CHARGE', 1000000, 0, 1000000, NULL, now() FROM generate_series(1, {users}) AS n"
        ),
        format!(
            "INSERT INTO products (id, name, category, price, on_sale, held, sold, stocked, created_at)
             SELECT n, '상품' || n, 'TOP', 100 + n, 100000, 0, 0, 100000, now() FROM generate_series(1, {products}) AS n"
        ),
        format!(
            "INSERT INTO campaigns (id, code, discount_type, discount_amount, total, issued, opens_at, closes_at, expires_at, created_at)
             SELECT n, 'C' || n, 'FIXED', 10, {users}, {users} / 100, now(), now() + interval '1 day', now() + interval '2 days', now()
             FROM generate_series(1, 10) AS n"
        ),
        format!(
            "INSERT INTO user_coupons (coupon_id, user_id, issue_no, status, issued_at)
             SELECT campaign, campaign + 100 * (n - 1), n, 'AVAILABLE', now()
             FROM generate_series(1, 10) AS campaign, generate_series(1, {users} / 100) AS n"
        ),
        format!(
            "INSERT INTO orders (id, user_id, status, total, discount, final_price, placed_at, expires_at, paid_at, closed_at,
                 close_reason, sold_on)
             SELECT n, 1 + n % {users}, CASE WHEN n % 4 > 0 THEN 'PAID' WHEN n % 8 = 0 THEN 'PENDING' ELSE 'CANCELLED' END, 0, 0, 0,
                 now(), now() + interval '1 hour', CASE WHEN n % 4 > 0 THEN now() END, CASE WHEN n % 8 = 4 THEN now() END,
                 CASE WHEN n % 8 = 4 THEN 'CANCELLED_BY_USER' END,
                 CASE WHEN n % 4 > 0 THEN (now() AT TIME ZONE 'Asia/Seoul')::date END
             FROM generate_series(1, {orders}) AS n"
        ),
        format!(
            "INSERT INTO order_lines SELECT id, 1 + (id * 7 + line) % {products}, 1 + line, 101 + (id * 7 + line) % {products}
             FROM orders, generate_series(0, 2) AS line WHERE line <= id % 3"
        ),
        "UPDATE orders SET total = l.total, final_price = l.total
         FROM (SELECT order_id, sum(quantity * price) AS total FROM order_lines GROUP BY 1) AS l WHERE order_id = id".into(),
        "UPDATE products SET on_sale = on_sale - h - s, held = h, sold = s FROM (
             SELECT product_id, sum(quantity) FILTER (WHERE status = 'PENDING') AS h, sum(quantity) FILTER (WHERE status = 'PAID') AS s
             FROM orders JOIN order_lines ON order_id = orders.id GROUP BY 1) AS l
         WHERE product_id = products.id AND h IS NOT NULL AND s IS NOT NULL".into(),
        "UPDATE products SET on_sale = on_sale - coalesce(h, 0) - coalesce(s, 0), held = coalesce(h, 0), sold = coalesce(s, 0) FROM (
             SELECT product_id, sum(quantity) FILTER (WHERE status = 'PENDING') AS h, sum(quantity) FILTER (WHERE status = 'PAID') AS s
             FROM orders JOIN order_lines ON order_id = orders.id GROUP BY 1) AS l
         WHERE product_id = products.id AND (h IS NULL OR s IS NULL)".into(),
        "INSERT INTO payments (id, order_id, user_id, payment_type, method, status, amount, receipt, started_at, paid_at)
         SELECT id, id, user_id, 'CARD', 'BALANCE', 'PAID', final_price, 'receipt-' || id, paid_at, paid_at FROM orders WHERE status = 'PAID'".into(),
        "INSERT INTO balance_entries
         SELECT user_id, 1 + row_number() OVER w, 'PAYMENT', final_price, 1000000 - sum(final_price) OVER w + final_price,
             1000000 - sum(final_price) OVER w, id, paid_at
         FROM orders WHERE status = 'PAID' WINDOW w AS (PARTITION BY user_id ORDER BY id)".into(),
        "UPDATE users SET balance = e.after_balance FROM (
             SELECT DISTINCT ON (user_id) user_id, after_balance FROM balance_entries ORDER BY user_id, entry_no DESC) AS e
         WHERE user_id = id".into(),
        "ANALYZE".into(),
    ];
    for statement in statements {
        sqlx::query(AssertSqlSafe(statement)).execute(pool).await.unwrap();
    }
}

/// Runs the program to its end. Returns its exit status, its output, its log, and its peak memory in MiB.
async fn run(args: &[&str], redis: &str, postgres: &str) -> (i32, String, String, u64) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_firstcome"));
    command.args(args).env_clear().env("REDIS_URL", redis).env("DATABASE_URL", postgres);
    command.env("REDIS_TIMEOUT_MS", "600000").env("DATABASE_TIMEOUT_MS", "600000");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().unwrap();
    let status_file = format!("/proc/{}/status", child.id().unwrap());
    let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let reading = tokio::spawn(async move {
        let (mut printed, mut log) = (String::new(), String::new());
        let (one, other) = tokio::join!(out.read_to_string(&mut printed), err.read_to_string(&mut log));
        one.unwrap();
        other.unwrap();
        (printed, log)
    });
    let mut peak = 0;
    let mut ticks = tokio::time::interval(std::time::Duration::from_millis(20));
    let status = loop {
        tokio::select! {
            status = child.wait() => break status.unwrap(),
            _ = ticks.tick() => {
                let status = fs::read_to_string(&status_file).unwrap_or_default();
                let peak_kib = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
                let kib = peak_kib.and_then(|kib| kib.trim().trim_end_matches(" kB").parse::<u64>().ok());
                peak = peak.max(kib.unwrap_or(0) / 1024);
            }
        }
    };
    let (printed, log) = reading.await.unwrap();
    (status.code().unwrap(), printed, log, peak)
}

#[tokio::test]
async fn large_store_rebuilt_and_audited_in_bounded_memory() {
    let (users, orders) = (size("LARGE_USERS", 20_000), size("LARGE_ORDERS", 4_000));
    let dir = ScratchDir::new().unwrap();
    let mut redis = RedisServer::start(dev::RedisServerConfig::new(dir.path().join("redis"))).await.unwrap();
    let database = harness::fresh_database().await;
    let (redis_url, postgres) = (redis.url(), postgres_url(&database));
    let db = firstcome::postgres::connect(&harness::postgres_config(&postgres)).await.unwrap();
    fill(db.get_postgres_connection_pool(), users, orders).await;

    let started = Instant::now();
    let (status, printed, log, peak) = run(&["rebuild"], &redis_url, &postgres).await;
    println!(
        "rebuild of {users} users, {orders} orders: {:.1} s, {peak} MiB\n{printed}",
        started.elapsed().as_secs_f64()
    );
    assert_eq!(status, 0, "{printed}\n{log}");
    assert!(printed.contains("Epoch 2 has begun") && printed.contains("everything is on sale"), "{printed}");
    assert!(peak < 200, "{peak} MiB");
    if users >= 1_000_000 {
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let progress: Vec<Value> = lines.filter(|line| line["fields"]["message"] == "rebuilding").collect();
        assert!(!progress.is_empty(), "no progress in the log: {log}");
        assert!(progress.iter().all(|line| line["fields"]["eta_seconds"].is_i64()), "{progress:?}");
        println!("{}", progress[progress.len() / 2]["fields"]);
    }

    let started = Instant::now();
    let (status, printed, log, peak) = run(&["audit"], &redis_url, &postgres).await;
    println!("audit: {:.1} s, {peak} MiB\n{printed}", started.elapsed().as_secs_f64());
    assert_eq!(status, 0, "{printed}\n{log}");
    assert!(printed.contains(&format!("{users} users")) && printed.contains("The books balance"), "{printed}");
    assert!(peak < 200, "{peak} MiB");

    // The exit status and the report show a single missing won.
    let mut raw = harness::raw_redis(&redis_url).await;
    let _: i64 = redis::cmd("HINCRBY").arg("{p0}:user:7").arg("balance").arg(-1).query_async(&mut raw).await.unwrap();
    let (status, printed, log, _) = run(&["audit", "--json"], &redis_url, &postgres).await;
    assert_eq!(status, 1, "{printed}\n{log}");
    let report: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(report["balanced"], false);
    let failed: Vec<&Value> =
        report["checks"].as_array().unwrap().iter().filter(|check| check["ok"] == false).collect();
    assert_eq!(failed.len(), 1);
    assert!(failed[0]["detail"].as_str().unwrap().contains("user 7: the balance is"), "{failed:?}");
    // An audit that can't run has another exit status.
    redis.kill().await.unwrap();
    let (status, ..) = run(&["audit"], &redis_url, &postgres).await;
    assert_eq!(status, 2);
    db.close().await.unwrap();
    harness::drop_database(&database).await;
}
