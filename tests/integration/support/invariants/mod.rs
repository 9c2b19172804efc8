//! The invariants, recomputed from the raw keys and tables without the code under test: within Redis, within PostgreSQL, and
//! between the two.

mod checks;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use redis::aio::MultiplexedConnection;
use sea_orm::DatabaseConnection;
use sqlx::{PgPool, Row};

use crate::{
    projector::projection::busy_day,
    support::harness::{Options, TestApp},
};
use checks::{postgres_against_itself, redis_against_itself, redis_against_postgres};

type Hash = HashMap<String, String>;

/// By partition and product.
pub type Counters = BTreeMap<(u16, i64), i64>;

/// Everything in Redis, by kind, from all partitions.
#[derive(Default)]
pub struct Redis {
    pub users: BTreeMap<i64, Hash>,
    /// What users have of limits, by user and field.
    pub limits: BTreeMap<(i64, String), i64>,
    /// By campaign and user, as all the following of coupons.
    pub coupons: BTreeMap<(i64, i64), String>,
    /// Those that campaigns issued to users of other partitions.
    pub remote_coupons: BTreeMap<(i64, i64), String>,
    pub campaigns: BTreeMap<i64, Hash>,
    pub holders: BTreeMap<i64, BTreeSet<i64>>,
    pub products: BTreeMap<i64, Hash>,
    pub price: Counters,
    pub stock: Counters,
    pub held: Counters,
    pub sold: Counters,
    pub withheld: Counters,
    pub quarantined: Counters,
    pub received: Counters,
    pub returned: Counters,
    pub surrendered: Counters,
    /// What owner partitions gave to others and took back, by product and other partition.
    pub allotted: BTreeMap<(i64, u16), i64>,
    pub regained: BTreeMap<(i64, u16), i64>,
    pub recovered: BTreeMap<(i64, u16), i64>,
    pub orders: BTreeMap<i64, Hash>,
    pub expiry: BTreeMap<i64, f64>,
    pub gateway: BTreeMap<i64, f64>,
    /// By day and product.
    pub units: BTreeMap<(String, i64), i64>,
    pub won: BTreeMap<(String, i64), i64>,
    pub seqs: BTreeMap<u16, (i64, i64)>,
    /// The ids of the newest entries of the outboxes, by partition.
    pub newest: BTreeMap<u16, String>,
    /// Orders that have a TTL.
    pub expiring: BTreeSet<i64>,
}

async fn get<T: redis::FromRedisValue>(redis: &mut MultiplexedConnection, command: &str, args: &[&str]) -> T {
    redis::cmd(command).arg(args).query_async(redis).await.unwrap()
}

async fn keys(redis: &mut MultiplexedConnection) -> BTreeSet<String> {
    let (mut cursor, mut keys) = ("0".to_owned(), BTreeSet::new());
    loop {
        let (next, page): (String, Vec<String>) = get(redis, "SCAN", &[&cursor, "COUNT", "1000"]).await;
        keys.extend(page);
        cursor = next;
        if cursor == "0" {
            return keys;
        }
    }
}

/// Every key with its whole value, as text: to tell that nothing changed.
pub async fn snapshot(redis: &mut MultiplexedConnection) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    // The words of the processes change with every check, the samples of their requests every five seconds.
    let of_processes = |key: &String| key.ends_with("}:instances") || key.ends_with("}:requests");
    for key in keys(redis).await.into_iter().filter(|key| !of_processes(key)) {
        let kind: String = get(redis, "TYPE", &[&key]).await;
        let value = match kind.as_str() {
            // It expired after it was listed.
            "none" => continue,
            "string" => format!("{:?}", get::<String>(redis, "GET", &[&key]).await),
            "hash" => format!("{:?}", get::<BTreeMap<String, String>>(redis, "HGETALL", &[&key]).await),
            "list" => format!("{:?}", get::<Vec<String>>(redis, "LRANGE", &[&key, "0", "-1"]).await),
            "set" => format!("{:?}", get::<BTreeSet<String>>(redis, "SMEMBERS", &[&key]).await),
            "zset" => {
                format!("{:?}", get::<Vec<(String, f64)>>(redis, "ZRANGE", &[&key, "0", "-1", "WITHSCORES"]).await)
            }
            "stream" => format!("{:?}", get::<redis::Value>(redis, "XRANGE", &[&key, "-", "+"]).await),
            other => panic!("{key} is a {other}"),
        };
        all.insert(key, value);
    }
    all
}

/// The TTL of each order (ms), -1 for none.
pub async fn ttls(redis: &mut MultiplexedConnection) -> BTreeMap<String, i64> {
    let mut ttls = BTreeMap::new();
    for key in keys(redis).await {
        if key.contains("}:order:") || key.contains("}:hold:") {
            let ttl = get(redis, "PTTL", &[&key]).await;
            ttls.insert(key, ttl);
        }
    }
    ttls
}

/// Reads every server's keys.
pub async fn read(servers: &mut [MultiplexedConnection]) -> Redis {
    let mut all = Redis::default();
    for redis in servers {
        let listed = keys(redis).await;
        read_keys(&mut all, redis, listed).await;
    }
    all
}

/// A hash and its TTL (ms, -1 for none), read atomically; `None` if it has expired since the listing.
async fn hash_with_ttl(redis: &mut MultiplexedConnection, key: &str) -> Option<(Hash, i64)> {
    let mut both = redis::pipe();
    both.atomic().cmd("HGETALL").arg(key).cmd("PTTL").arg(key);
    let (fields, ttl): (Hash, i64) = both.query_async(redis).await.unwrap();
    (!fields.is_empty()).then_some((fields, ttl))
}

/// Reads these keys, without orders that have expired since the listing: PostgreSQL has those.
async fn read_keys(all: &mut Redis, redis: &mut MultiplexedConnection, listed: BTreeSet<String>) {
    for key in listed {
        let (tag, rest) = key.split_once(':').unwrap();
        let partition: u16 = tag.trim_start_matches("{p").trim_end_matches('}').parse().unwrap();
        let parts: Vec<&str> = rest.split(':').collect();
        let id = |text: &str| text.parse::<i64>().unwrap();
        let counters = |hash: BTreeMap<i64, i64>| hash.into_iter().map(move |(id, n)| ((partition, id), n));
        let given = |hash: BTreeMap<String, i64>| {
            hash.into_iter().map(|(field, units)| {
                let (product, other) = field.split_once(':').unwrap();
                ((product.parse::<i64>().unwrap(), other.parse::<u16>().unwrap()), units)
            })
        };
        match parts.as_slice() {
            // Of processes: what they say while PostgreSQL is away, and their requests.
            ["serving"] | ["requests"] => {}
            ["meta"] => {
                let meta: Hash = get(redis, "HGETALL", &[&key]).await;
                all.seqs.insert(partition, (id(&meta["epoch"]), id(&meta["seq"])));
            }
            ["outbox"] => {
                let newest: Vec<(String, Vec<String>)> = get(redis, "XREVRANGE", &[&key, "+", "-", "COUNT", "1"]).await;
                all.newest.extend(newest.into_iter().map(|(id, _)| (partition, id)));
            }
            ["user", user] => {
                let mut fields: Hash = get(redis, "HGETALL", &[&key]).await;
                let coupons = fields.extract_if(|name, _| name.parse::<i64>().is_ok());
                all.coupons.extend(coupons.map(|(coupon, record)| ((id(&coupon), id(user)), record)));
                let limits = fields.extract_if(|name, _| name.starts_with("limit:") || name.starts_with("group:"));
                all.limits.extend(limits.map(|(field, units)| ((id(user), field), id(&units))));
                all.users.insert(id(user), fields);
            }
            ["issued", user] => {
                let issued: BTreeMap<i64, String> = get(redis, "HGETALL", &[&key]).await;
                all.remote_coupons.extend(issued.into_iter().map(|(coupon, record)| ((coupon, id(user)), record)));
            }
            ["coupon", coupon] => drop(all.campaigns.insert(id(coupon), get(redis, "HGETALL", &[&key]).await)),
            ["coupon", coupon, "holders"] => {
                all.holders.insert(id(coupon), get(redis, "SMEMBERS", &[&key]).await);
            }
            ["product", product] => drop(all.products.insert(id(product), get(redis, "HGETALL", &[&key]).await)),
            ["price"] => {
                let priced: BTreeMap<i64, String> = get(redis, "HGETALL", &[&key]).await;
                let won = |price: String| id(price.split('|').next().unwrap());
                all.price.extend(counters(priced.into_iter().map(|(id, price)| (id, won(price))).collect()));
            }
            ["stock"] => all.stock.extend(counters(get(redis, "HGETALL", &[&key]).await)),
            ["held"] => all.held.extend(counters(get(redis, "HGETALL", &[&key]).await)),
            ["sold"] => all.sold.extend(counters(get(redis, "HGETALL", &[&key]).await)),
            ["quarantined"] => all.quarantined.extend(counters(get(redis, "HGETALL", &[&key]).await)),
            ["withheld"] => all.withheld.extend(counters(get(redis, "HGETALL", &[&key]).await)),
            ["received"] => all.received.extend(counters(get(redis, "HGETALL", &[&key]).await)),
            ["returned"] => all.returned.extend(counters(get(redis, "HGETALL", &[&key]).await)),
            ["surrendered"] => all.surrendered.extend(counters(get(redis, "HGETALL", &[&key]).await)),
            ["allotted"] => all.allotted.extend(given(get(redis, "HGETALL", &[&key]).await)),
            ["regained"] => all.regained.extend(given(get(redis, "HGETALL", &[&key]).await)),
            ["recovered"] => all.recovered.extend(given(get(redis, "HGETALL", &[&key]).await)),
            ["freed"] | ["price_version"] | ["limit_groups"] => {}
            ["order", order] => {
                let Some((mut fields, ttl)) = hash_with_ttl(redis, &key).await else { continue };
                if let Some(day) = fields.get("payment").and_then(|payment| payment.rsplit('|').next()) {
                    fields.insert("day".to_owned(), day.to_owned());
                }
                all.orders.insert(id(order), fields);
                // A TTL of 0 ms ends now.
                if ttl >= 0 {
                    all.expiring.insert(id(order));
                }
            }
            ["expiry"] => all.expiry.extend(scores(redis, &key).await),
            ["gateway"] => all.gateway.extend(scores(redis, &key).await),
            ["rank", "units", day] => {
                for (product, units) in scores(redis, &key).await {
                    *all.units.entry((day.to_string(), product)).or_default() += units as i64;
                }
            }
            ["rank", "won", day] => {
                for (product, won) in scores(redis, &key).await {
                    *all.won.entry((day.to_string(), product)).or_default() += won as i64;
                }
            }
            ["ids"] | ["instances"] | ["coupons"] | ["catalogue"] | ["catalogue", _] | ["idem", _] | ["claim", _] => {}
            _ => panic!("an unknown key {key}"),
        }
    }
}

async fn scores(redis: &mut MultiplexedConnection, key: &str) -> Vec<(i64, f64)> {
    get(redis, "ZRANGE", &[key, "0", "-1", "WITHSCORES"]).await
}

fn lines(packed: &str) -> Vec<(i64, i64, i64)> {
    let number = |text: Option<&str>| text.unwrap().parse::<i64>().unwrap();
    packed
        .split(',')
        .filter(|line| !line.is_empty())
        .map(|line| {
            let mut parts = line.split(':');
            (number(parts.next()), number(parts.next()), number(parts.next()))
        })
        .collect()
}

/// The units of lines that count against limits, by the user's field.
fn limited(packed: &str) -> Vec<(String, i64)> {
    let parts = packed.split(',').map(|line| line.split(':').collect::<Vec<_>>());
    parts
        .filter_map(|parts| match parts.as_slice() {
            [product, units, _, ""] => Some((format!("limit:{product}"), units.parse().unwrap())),
            [_, units, _, group] => Some((format!("group:{group}"), units.parse().unwrap())),
            _ => None,
        })
        .collect()
}

/// Coupons that a rebuild withholds.
fn withheld(campaign: &Hash) -> i64 {
    campaign.get("withheld").map_or(0, |n| n.parse().unwrap())
}

/// Checks every invariant. PostgreSQL must have everything of the outbox.
pub async fn check(servers: &mut [MultiplexedConnection], db: &DatabaseConnection, partitions: u16, dead_letters: i64) {
    let all = read(servers).await;
    check_read(all, db, partitions, dead_letters).await;
}

async fn check_read(mut all: Redis, db: &DatabaseConnection, partitions: u16, dead_letters: i64) {
    let pool = db.get_postgres_connection_pool();
    for (partition, newest) in &all.newest {
        let sql = "SELECT stream_id FROM projection_positions WHERE partition = $1";
        let at: String = sqlx::query_scalar(sql).bind(i32::from(*partition)).fetch_one(pool).await.unwrap();
        assert_eq!(&at, newest, "the outbox of partition {partition} is not drained");
    }
    if dead_letters == 0 {
        closed_orders_expire(&all);
    }
    restore_archived(&mut all, pool).await;
    redis_against_itself(&all, partitions);
    let found: i64 = sqlx::query_scalar("SELECT count(*) FROM dead_letters").fetch_one(pool).await.unwrap();
    assert_eq!(found, dead_letters, "dead letters");
    postgres_against_itself(pool).await;
    redis_against_postgres(&all, pool, partitions).await;
}

fn is_open(order: &Hash) -> bool {
    matches!(order.get("gateway").map(String::as_str), Some("STARTED" | "WATCHED" | "REFUND_DUE" | "UNCONFIRMED"))
        || order.contains_key("due")
}

/// Once PostgreSQL has every event, exactly the closed orders have a TTL.
fn closed_orders_expire(all: &Redis) {
    for (id, order) in &all.orders {
        let over = order["status"] != "PENDING" && !is_open(order);
        assert_eq!(all.expiring.contains(id), over, "the TTL of order {id}: {order:?}");
    }
}

/// Adds the orders that only PostgreSQL has, since the invariants count all of them. Only closed ones may
/// be missing from Redis.
async fn restore_archived(all: &mut Redis, pool: &PgPool) {
    let known: Vec<i64> = all.orders.keys().copied().collect();
    let rows = sqlx::query(
        "SELECT o.id, o.user_id, o.status, o.total, o.discount, o.final_price, coalesce(o.coupon_id::text, ''),
             to_char(coalesce(o.sold_on, (o.paid_at AT TIME ZONE 'Asia/Seoul')::date), 'YYYYMMDD'), o.close_reason,
             p.status, p.method, o.refunded, EXISTS (
                 SELECT FROM order_refunds AS r WHERE r.order_id = o.id AND r.status = 'REFUND_DUE')
         FROM orders AS o LEFT JOIN payments AS p ON p.order_id = o.id WHERE NOT o.id = ANY($1)",
    );
    for row in rows.bind(&known).fetch_all(pool).await.unwrap() {
        let (id, status): (i64, String) = (row.get(0), row.get(2));
        let payment: Option<String> = row.get(9);
        assert_ne!(status, "PENDING", "order {id} is not in Redis");
        assert!(
            !matches!(payment.as_deref(), Some("STARTED" | "WATCHED" | "REFUND_DUE" | "UNCONFIRMED"))
                && !row.get::<bool, _>(12),
            "order {id} is not in Redis"
        );
        let of: Vec<(i64, i64, i64, String, i64)> = sqlx::query_as(
            "SELECT product_id, quantity, price, coalesce(':' || limit_group, ''), refunded FROM order_lines
             WHERE order_id = $1 ORDER BY place, product_id",
        )
        .bind(id)
        .fetch_all(pool)
        .await
        .unwrap();
        let packed = |refunds: bool| {
            let units = |quantity: i64, refunded: i64| if refunds { quantity - refunded } else { quantity };
            let lines = of.iter().filter(|(_, quantity, .., refunded)| units(*quantity, *refunded) > 0);
            let lines = lines.map(|(product, quantity, price, limit, refunded)| {
                format!("{product}:{}:{price}{limit}", units(*quantity, *refunded))
            });
            lines.collect::<Vec<_>>().join(",")
        };
        let mut order: Hash = [
            ("user", row.get::<i64, _>(1).to_string()),
            ("status", status.clone()),
            ("total", row.get::<i64, _>(3).to_string()),
            ("discount", row.get::<i64, _>(4).to_string()),
            ("final", (row.get::<i64, _>(5) - row.get::<i64, _>(11)).to_string()),
            ("coupon", row.get(6)),
            ("lines", packed(true)),
            ("ordered", packed(false)),
        ]
        .map(|(field, value)| (field.to_owned(), value))
        .into();
        if let Some(day) = row.get::<Option<String>, _>(7) {
            order.insert("day".to_owned(), day);
        }
        if let Some(reason) = row.get::<Option<String>, _>(8) {
            order.insert("reason".to_owned(), reason);
            order.insert("closed_at".to_owned(), "in PostgreSQL".to_owned());
        }
        all.orders.insert(id, order);
    }
}

#[tokio::test]
async fn invariants_hold_while_orders_evicted() {
    for partitions in [1, 3] {
        let test = TestApp::with(Options { partitions, ..Options::default() }).await;
        busy_day(&test).await;
        test.drain().await;
        let mut redis = test.raw().await;
        let listed = keys(&mut redis).await;
        // Keys expire between the listing and the reads.
        let gone = test.expire_evicted().await;
        assert!(gone.iter().any(|key| key.contains("}:order:")) && gone.is_subset(&listed), "{gone:?}");
        let mut all = Redis::default();
        read_keys(&mut all, &mut redis, listed).await;
        check_read(all, &test.db, partitions, 0).await;
        test.finish().await;
    }
}
