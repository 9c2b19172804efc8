//! The conservation laws, recomputed from scratch: Redis against itself, Postgres against itself, and the two against each
//! other. Reads the raw keys and tables, not through the code under test.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use redis::aio::MultiplexedConnection;
use sea_orm::DatabaseConnection;
use sqlx::{PgPool, Row};

use crate::{
    projector::projection::busy_day,
    support::harness::{Options, TestApp},
};

type Hash = HashMap<String, String>;

/// Everything in Redis, by kind, from all partitions.
#[derive(Default)]
pub struct Redis {
    pub users: BTreeMap<i64, Hash>,
    pub coupons: BTreeMap<(i64, i64), String>,
    pub campaigns: BTreeMap<i64, Hash>,
    pub holders: BTreeMap<i64, BTreeSet<i64>>,
    pub products: BTreeMap<i64, Hash>,
    pub price: BTreeMap<i64, i64>,
    pub stock: BTreeMap<i64, i64>,
    pub held: BTreeMap<i64, i64>,
    pub sold: BTreeMap<i64, i64>,
    pub withheld: BTreeMap<i64, i64>,
    pub orders: BTreeMap<i64, Hash>,
    pub expiry: BTreeMap<i64, f64>,
    pub gateway: BTreeMap<i64, f64>,
    pub holds: BTreeMap<(u16, i64), Hash>,
    pub due_holds: BTreeSet<(u16, i64)>,
    /// By day and product.
    pub units: BTreeMap<(String, i64), i64>,
    pub won: BTreeMap<(String, i64), i64>,
    pub seqs: BTreeMap<u16, (i64, i64)>,
    pub outbox: i64,
    /// Orders, and far holds, that will leave.
    pub leaving: BTreeSet<i64>,
    pub leaving_holds: BTreeSet<(u16, i64)>,
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
    for key in keys(redis).await {
        let kind: String = get(redis, "TYPE", &[&key]).await;
        let value = match kind.as_str() {
            // Its life ended after it was listed.
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

/// How much longer each order and each far hold stays (ms), -1 for ever.
pub async fn lives(redis: &mut MultiplexedConnection) -> BTreeMap<String, i64> {
    let mut lives = BTreeMap::new();
    for key in keys(redis).await {
        if key.contains("}:order:") || key.contains("}:hold:") {
            let life = get(redis, "PTTL", &[&key]).await;
            lives.insert(key, life);
        }
    }
    lives
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

/// A hash and the rest of its life (ms, -1 without end), as of one moment; `None` where it has left Redis since it was listed.
async fn leaving_hash(redis: &mut MultiplexedConnection, key: &str) -> Option<(Hash, i64)> {
    let mut both = redis::pipe();
    both.atomic().cmd("HGETALL").arg(key).cmd("PTTL").arg(key);
    let (fields, life): (Hash, i64) = both.query_async(redis).await.unwrap();
    (!fields.is_empty()).then_some((fields, life))
}

/// Reads these keys. Orders and far holds have a life that may end between the listing and the reading: those are taken as
/// PostgreSQL has them, like all that left before.
async fn read_keys(all: &mut Redis, redis: &mut MultiplexedConnection, listed: BTreeSet<String>) {
    for key in listed {
        let (tag, rest) = key.split_once(':').unwrap();
        let partition: u16 = tag.trim_start_matches("{p").trim_end_matches('}').parse().unwrap();
        let parts: Vec<&str> = rest.split(':').collect();
        let id = |text: &str| text.parse::<i64>().unwrap();
        let counters = |hash: BTreeMap<i64, i64>| hash;
        match parts.as_slice() {
            ["meta"] => {
                let meta: Hash = get(redis, "HGETALL", &[&key]).await;
                all.seqs.insert(partition, (id(&meta["epoch"]), id(&meta["seq"])));
            }
            ["outbox"] => all.outbox += get::<i64>(redis, "XLEN", &[&key]).await,
            ["user", user] => {
                let mut fields: Hash = get(redis, "HGETALL", &[&key]).await;
                let coupons = fields.extract_if(|name, _| name.parse::<i64>().is_ok());
                all.coupons.extend(coupons.map(|(coupon, record)| ((id(&coupon), id(user)), record)));
                all.users.insert(id(user), fields);
            }
            ["coupon", coupon] => drop(all.campaigns.insert(id(coupon), get(redis, "HGETALL", &[&key]).await)),
            ["coupon", coupon, "holders"] => {
                all.holders.insert(id(coupon), get(redis, "SMEMBERS", &[&key]).await);
            }
            ["product", product] => drop(all.products.insert(id(product), get(redis, "HGETALL", &[&key]).await)),
            ["price"] => all.price.extend(counters(get(redis, "HGETALL", &[&key]).await)),
            ["stock"] => all.stock.extend(counters(get(redis, "HGETALL", &[&key]).await)),
            ["held"] => all.held.extend(counters(get(redis, "HGETALL", &[&key]).await)),
            ["sold"] => all.sold.extend(counters(get(redis, "HGETALL", &[&key]).await)),
            ["withheld"] => all.withheld.extend(counters(get(redis, "HGETALL", &[&key]).await)),
            ["order", order] => {
                let Some((fields, life)) = leaving_hash(redis, &key).await else { continue };
                all.orders.insert(id(order), fields);
                // A life of 0 ms is one that ends now.
                if life >= 0 {
                    all.leaving.insert(id(order));
                }
            }
            ["expiry"] => all.expiry.extend(scores(redis, &key).await),
            ["gateway"] => all.gateway.extend(scores(redis, &key).await),
            ["hold", order] => {
                let Some((fields, life)) = leaving_hash(redis, &key).await else { continue };
                all.holds.insert((partition, id(order)), fields);
                if life >= 0 {
                    all.leaving_holds.insert((partition, id(order)));
                }
            }
            ["holds"] => {
                let members: Vec<String> = get(redis, "ZRANGE", &[&key, "0", "-1"]).await;
                all.due_holds.extend(members.iter().map(|m| (partition, id(m.split_once(':').unwrap().0))));
            }
            ["rank", "units", day] => {
                let day_units = scores(redis, &key).await;
                all.units
                    .extend(day_units.into_iter().map(|(product, units)| ((day.to_string(), product), units as i64)));
            }
            ["rank", "won", day] => {
                let day_won = scores(redis, &key).await;
                all.won.extend(day_won.into_iter().map(|(product, won)| ((day.to_string(), product), won as i64)));
            }
            ["ids"] | ["coupons"] | ["catalogue"] | ["catalogue", _] | ["idem", _] | ["claim", _] => {}
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

fn int(hash: &Hash, field: &str) -> i64 {
    hash.get(field).unwrap_or_else(|| panic!("no {field} in {hash:?}")).parse().unwrap()
}

/// Coupons that a rebuild keeps back.
fn withheld(campaign: &Hash) -> i64 {
    campaign.get("withheld").map_or(0, |n| n.parse().unwrap())
}

/// Checks every law. The outbox must be empty.
pub async fn check(servers: &mut [MultiplexedConnection], db: &DatabaseConnection, partitions: u16, dead_letters: i64) {
    let all = read(servers).await;
    check_read(all, db, partitions, dead_letters).await;
}

async fn check_read(mut all: Redis, db: &DatabaseConnection, partitions: u16, dead_letters: i64) {
    assert_eq!(all.outbox, 0, "the outbox is not drained");
    if dead_letters == 0 {
        what_is_over_leaves(&all);
    }
    let pool = db.get_postgres_connection_pool();
    bring_back_what_has_left(&mut all, pool, partitions).await;
    redis_against_itself(&all, partitions);
    let letters: i64 = sqlx::query_scalar("SELECT count(*) FROM dead_letters").fetch_one(pool).await.unwrap();
    assert_eq!(letters, dead_letters, "dead letters");
    postgres_against_itself(pool).await;
    redis_against_postgres(&all, pool).await;
}

fn under_way(order: &Hash) -> bool {
    matches!(order.get("gateway").map(String::as_str), Some("STARTED" | "WATCHED" | "REFUND_DUE" | "UNCONFIRMED"))
}

/// With everything in Postgres, what is over leaves Redis, and nothing else does.
fn what_is_over_leaves(all: &Redis) {
    for (id, order) in &all.orders {
        let over = order["status"] != "PENDING" && !under_way(order);
        assert_eq!(all.leaving.contains(id), over, "order {id} leaves: {order:?}");
    }
    for (key, hold) in &all.holds {
        assert_eq!(all.leaving_holds.contains(key), hold["state"] != "HELD", "the far hold {key:?} leaves: {hold:?}");
    }
}

/// Adds the orders, and the far holds, that Redis does not have any more, as Postgres has them: the laws are about all. Only
/// what is over may be missing.
async fn bring_back_what_has_left(all: &mut Redis, pool: &PgPool, partitions: u16) {
    let home = |id: i64| id % i64::from(partitions);
    let known: Vec<i64> =
        all.orders.iter().filter(|(_, order)| order["status"] != "ABANDONED").map(|(id, _)| *id).collect();
    let rows = sqlx::query(
        "SELECT o.id, o.user_id, o.status, o.total, o.discount, o.final_price, coalesce(o.coupon_id::text, ''),
             to_char(coalesce(o.sold_on, (o.paid_at AT TIME ZONE 'Asia/Seoul')::date), 'YYYYMMDD'), o.close_reason,
             p.status, p.method
         FROM orders AS o LEFT JOIN payments AS p ON p.order_id = o.id WHERE NOT o.id = ANY($1)",
    );
    for row in rows.bind(&known).fetch_all(pool).await.unwrap() {
        let (id, status): (i64, String) = (row.get(0), row.get(2));
        let payment: Option<String> = row.get(9);
        assert_ne!(status, "PENDING", "order {id} is not in Redis");
        assert!(
            !matches!(payment.as_deref(), Some("STARTED" | "WATCHED" | "REFUND_DUE" | "UNCONFIRMED")),
            "order {id} is not in Redis"
        );
        let of: Vec<(i64, i64, i64)> = sqlx::query_as(
            "SELECT product_id, quantity, price FROM order_lines WHERE order_id = $1 ORDER BY place, product_id",
        )
        .bind(id)
        .fetch_all(pool)
        .await
        .unwrap();
        let packed = |near: bool| {
            let mine = of.iter().filter(|(product, ..)| (home(*product) == home(id)) == near);
            mine.map(|(product, quantity, price)| format!("{product}:{quantity}:{price}")).collect::<Vec<_>>().join(",")
        };
        let mut order: Hash = [
            ("user", row.get::<i64, _>(1).to_string()),
            ("status", status.clone()),
            ("total", row.get::<i64, _>(3).to_string()),
            ("discount", row.get::<i64, _>(4).to_string()),
            ("final", row.get::<i64, _>(5).to_string()),
            ("coupon", row.get(6)),
            ("lines", packed(true)),
            ("far", packed(false)),
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
    let sold: Vec<(i32, i64, i64, String)> =
        sqlx::query_as("SELECT partition, order_id, user_id, lines FROM stock_holds WHERE state = 'SETTLED'")
            .fetch_all(pool)
            .await
            .unwrap();
    for (partition, order, user, lines) in sold {
        let hold = [("state", "SETTLED".to_owned()), ("lines", lines), ("user", user.to_string())];
        let hold = || hold.into_iter().map(|(field, value)| (field.to_owned(), value)).collect();
        all.holds.entry((partition as u16, order)).or_insert_with(hold);
    }
}

fn redis_against_itself(all: &Redis, partitions: u16) {
    let home = |id: i64| (id % i64::from(partitions)) as u16;
    // Orders, and what they hold and sold.
    let (mut held, mut sold): (BTreeMap<i64, i64>, BTreeMap<i64, i64>) = Default::default();
    let (mut units, mut won): (BTreeMap<(String, i64), i64>, BTreeMap<(String, i64), i64>) = Default::default();
    let mut open: BTreeMap<i64, i64> = BTreeMap::new();
    let (mut expiry, mut gateway) = (BTreeSet::new(), BTreeSet::new());
    let (mut coupon_held, mut coupon_used) = (BTreeMap::new(), BTreeMap::new());
    let mut far_state: BTreeMap<(u16, i64), &str> = BTreeMap::new();
    for (id, order) in all.orders.iter().filter(|(_, order)| order["status"] != "ABANDONED") {
        let mut every = lines(&order["lines"]);
        let far = lines(&order["far"]);
        assert!(every.iter().all(|(product, ..)| home(*product) == home(*id)), "order {id} has a near line from afar");
        assert!(far.iter().all(|(product, ..)| home(*product) != home(*id)), "order {id} has a far line from near");
        for (product, ..) in &far {
            let state = match (order["status"].as_str(), order.get("reason").map(String::as_str)) {
                ("PENDING", _) => "HELD",
                ("PAID", _) => "SETTLED",
                (_, Some("REFUNDED")) => "REFUNDED",
                _ => "RELEASED",
            };
            far_state.insert((home(*product), *id), state);
        }
        every.extend(far);
        let total: i64 = every.iter().map(|(_, quantity, price)| quantity * price).sum();
        assert_eq!(int(order, "total"), total, "order {id}");
        assert_eq!(int(order, "final"), total - int(order, "discount"), "order {id}");
        assert!(int(order, "final") >= 0, "order {id}");
        let state = order.get("gateway").map(String::as_str);
        if matches!(state, Some("STARTED" | "WATCHED" | "REFUND_DUE" | "UNCONFIRMED")) {
            gateway.insert(*id);
        }
        let coupon = order["coupon"].parse::<i64>().ok().map(|coupon| (coupon, int(order, "user")));
        match order["status"].as_str() {
            "PENDING" => {
                every.iter().for_each(|(product, quantity, _)| *held.entry(*product).or_default() += quantity);
                *open.entry(int(order, "user")).or_default() += 1;
                if state != Some("STARTED") {
                    expiry.insert(*id);
                }
                if let Some(coupon) = coupon {
                    assert!(coupon_held.insert(coupon, *id).is_none(), "coupon {coupon:?} is held twice");
                }
            }
            "PAID" => {
                for (product, quantity, price) in &every {
                    *sold.entry(*product).or_default() += quantity;
                    *units.entry((order["day"].clone(), *product)).or_default() += quantity;
                    *won.entry((order["day"].clone(), *product)).or_default() += quantity * price;
                }
                if let Some(coupon) = coupon {
                    assert!(coupon_used.insert(coupon, *id).is_none(), "coupon {coupon:?} is used twice");
                }
            }
            "CANCELLED" | "FAILED" => assert!(order.contains_key("closed_at") && order.contains_key("reason")),
            other => panic!("order {id} is {other}"),
        }
    }
    let nonzero = |counters: &BTreeMap<i64, i64>| -> BTreeMap<i64, i64> {
        counters.iter().filter(|(_, n)| **n != 0).map(|(id, n)| (*id, *n)).collect()
    };
    assert_eq!(nonzero(&all.held), nonzero(&held), "held = lines of PENDING orders");
    assert_eq!(nonzero(&all.sold), nonzero(&sold), "sold = lines of PAID orders");
    assert_eq!(all.units, units, "rankings = paid order lines");
    // What was given away for nothing is worth nothing, in the set or not.
    won.retain(|_, won| *won != 0);
    let ranked: BTreeMap<_, _> =
        all.won.iter().filter(|(_, won)| **won != 0).map(|(k, won)| (k.clone(), *won)).collect();
    assert_eq!(ranked, won, "rankings = paid order lines");
    assert_eq!(all.expiry.keys().copied().collect::<BTreeSet<_>>(), expiry, "expiry = PENDING orders");
    assert_eq!(all.gateway.keys().copied().collect::<BTreeSet<_>>(), gateway, "gateway = payments under way");
    // Far holds: those of orders that are there say what the order says; there are no others but released ones.
    for (key, hold) in &all.holds {
        let state = hold["state"].as_str();
        assert_eq!(state, far_state.remove(key).unwrap_or("RELEASED"), "the far hold {key:?}");
        assert_eq!(all.due_holds.contains(key), state == "HELD", "the far hold {key:?}");
    }
    far_state.retain(|_, state| !matches!(*state, "RELEASED" | "REFUNDED"));
    assert!(far_state.is_empty(), "orders without their far holds: {far_state:?}");
    // Products.
    for (id, product) in &all.products {
        let counter = |counters: &BTreeMap<i64, i64>| counters.get(id).copied().unwrap_or(0);
        let (on_sale, held, sold) = (all.stock[id], counter(&all.held), counter(&all.sold));
        let withheld = counter(&all.withheld);
        assert!(on_sale >= 0 && held >= 0 && sold >= 0 && withheld >= 0, "product {id}: {on_sale} {held} {sold}");
        let units = on_sale + held + sold + withheld;
        assert_eq!(int(product, "stocked"), units, "product {id}: stocked = on sale + held + sold + withheld");
        assert!(all.price.contains_key(id), "product {id} has no price");
    }
    assert_eq!(all.stock.len(), all.products.len());
    // Campaigns and coupons.
    let mut records: BTreeMap<i64, BTreeMap<i64, i64>> = BTreeMap::new();
    for ((coupon, user), record) in &all.coupons {
        let parts: Vec<&str> = record.split('|').collect();
        let order = parts[3].parse::<i64>().ok();
        let clash = records.entry(*coupon).or_default().insert(parts[0].parse().unwrap(), *user);
        assert_eq!(clash, None, "two users at place {} of campaign {coupon}", parts[0]);
        let key = (*coupon, *user);
        match parts[2] {
            "A" => assert!(order.is_none() && parts[4].is_empty(), "{record}"),
            "H" => assert_eq!(coupon_held.remove(&key), order, "the held coupon {key:?}"),
            "U" => assert_eq!(coupon_used.remove(&key), order, "the used coupon {key:?}"),
            other => panic!("coupon {key:?} is {other}"),
        }
    }
    assert!(coupon_held.is_empty() && coupon_used.is_empty(), "orders without their coupon");
    for (id, campaign) in &all.campaigns {
        let issued = int(campaign, "issued");
        let withheld = withheld(campaign);
        assert!(withheld >= 0, "campaign {id} withheld {withheld}");
        assert!((0..=int(campaign, "total") - withheld).contains(&issued), "campaign {id} issued {issued}");
        let places: Vec<i64> = records.get(id).map(|places| places.keys().copied().collect()).unwrap_or_default();
        // After a loss, places are skipped that somebody may have been told.
        let last = issued + campaign.get("skipped").map_or(0, |n| n.parse().unwrap());
        assert_eq!(places.len() as i64, issued, "campaign {id}: as many places as issued");
        assert!(places.iter().all(|place| (1..=last).contains(place)), "campaign {id}: {places:?} of 1 to {last}");
        let users: BTreeSet<i64> = records.get(id).map(|p| p.values().copied().collect()).unwrap_or_default();
        assert_eq!(all.holders.get(id).cloned().unwrap_or_default(), users, "campaign {id}: holders");
    }
    // Users.
    for (id, user) in &all.users {
        assert!(int(user, "balance") >= 0, "user {id}");
        assert_eq!(int(user, "open"), open.remove(id).unwrap_or(0), "user {id}: open orders");
    }
    assert!(open.is_empty(), "orders without their user");
}

async fn postgres_against_itself(pool: &PgPool) {
    // Each of these finds nothing in balanced books.
    for (law, sql) in [
        (
            "a history's sum is the balance, without gaps, each entry's before the previous one's after",
            "SELECT user_id FROM (
                 SELECT user_id, entry_no, before_balance, after_balance,
                     lag(after_balance, 1, 0) OVER w AS previous, row_number() OVER w AS place
                 FROM balance_entries WINDOW w AS (PARTITION BY user_id ORDER BY entry_no)) AS e
             WHERE before_balance <> previous OR entry_no <> place
             UNION
             SELECT users.id FROM users LEFT JOIN LATERAL (
                 SELECT after_balance FROM balance_entries WHERE user_id = users.id ORDER BY entry_no DESC LIMIT 1
             ) AS last ON true WHERE users.balance <> coalesce(last.after_balance, 0)",
        ),
        (
            "held and sold are the lines of PENDING and PAID orders",
            "SELECT products.id FROM products LEFT JOIN (
                 SELECT product_id, sum(quantity) FILTER (WHERE status = 'PENDING') AS held,
                     sum(quantity) FILTER (WHERE status = 'PAID') AS sold
                 FROM order_lines JOIN orders ON orders.id = order_id GROUP BY product_id) AS l ON l.product_id = products.id
             WHERE products.held <> coalesce(l.held, 0) OR products.sold <> coalesce(l.sold, 0)",
        ),
        (
            "issued is the number of coupons",
            "SELECT campaigns.id FROM campaigns LEFT JOIN (SELECT coupon_id, count(*) AS n FROM user_coupons GROUP BY 1) AS c
                 ON c.coupon_id = campaigns.id WHERE issued <> coalesce(n, 0)",
        ),
        (
            "an order's total is its lines'",
            "SELECT id FROM orders WHERE total <> (SELECT sum(quantity * price) FROM order_lines WHERE order_id = orders.id)",
        ),
        (
            "a PAID order has its payment and its entry",
            "SELECT orders.id FROM orders LEFT JOIN payments ON payments.order_id = orders.id
             WHERE orders.paid_at IS NOT NULL AND (payments.id IS NULL OR payments.amount <> final_price
                 OR (orders.status = 'PAID') <> (payments.status IN ('PAID', 'UNCONFIRMED', 'DISPUTED'))
                 OR (payments.status IN ('UNCONFIRMED', 'DISPUTED') AND payments.resolved_by IS NULL)
                 OR (payments.method = 'BALANCE' AND final_price > 0) <> EXISTS (
                     SELECT FROM balance_entries AS e WHERE e.order_id = orders.id AND transaction_type = 'PAYMENT'
                         AND e.amount = final_price)
                 OR (payments.method = 'BALANCE' AND final_price > 0 AND orders.status = 'CANCELLED') <> EXISTS (
                     SELECT FROM balance_entries AS e WHERE e.order_id = orders.id AND transaction_type = 'REFUND'
                         AND e.amount = final_price))",
        ),
        (
            "coupons say what their orders say",
            "SELECT c.user_id FROM user_coupons AS c LEFT JOIN orders ON orders.id = c.order_id
             WHERE (c.status = 'HELD') <> (coalesce(orders.status, '') = 'PENDING')
                OR (c.status = 'USED') <> (coalesce(orders.status, '') = 'PAID')",
        ),
        ("lines are of products that exist", "SELECT product_id FROM order_lines EXCEPT SELECT id FROM products"),
        ("coupons are of campaigns that exist", "SELECT coupon_id FROM user_coupons EXCEPT SELECT id FROM campaigns"),
    ] {
        let ids: Vec<i64> = sqlx::query_scalar(sql).fetch_all(pool).await.unwrap();
        assert!(ids.is_empty(), "{law}: not so for {ids:?}");
    }
}

async fn redis_against_postgres(all: &Redis, pool: &PgPool) {
    let rows = sqlx::query("SELECT partition, epoch, seq FROM projection_positions").fetch_all(pool).await.unwrap();
    let positions: BTreeMap<u16, (i64, i64)> =
        rows.iter().map(|row| (row.get::<i32, _>(0) as u16, (row.get(1), row.get(2)))).collect();
    assert_eq!(all.seqs, positions, "positions");

    let rows = sqlx::query("SELECT id, name, balance FROM users").fetch_all(pool).await.unwrap();
    let there: BTreeMap<i64, (String, i64)> = rows.iter().map(|row| (row.get(0), (row.get(1), row.get(2)))).collect();
    let here: BTreeMap<i64, (String, i64)> =
        all.users.iter().map(|(id, user)| (*id, (user["name"].clone(), int(user, "balance")))).collect();
    assert_eq!(here, there, "users");

    let entries: Vec<(i64, i64)> =
        sqlx::query_as("SELECT user_id, count(*) FROM balance_entries GROUP BY 1").fetch_all(pool).await.unwrap();
    let entries: BTreeMap<i64, i64> = entries.into_iter().collect();
    for (id, user) in &all.users {
        assert_eq!(int(user, "entries"), entries.get(id).copied().unwrap_or(0), "user {id}: entries");
    }

    type ProductRow = (i64, String, String, i64, i64, i64, i64, i64, i64);
    let there: Vec<ProductRow> = sqlx::query_as(
        "SELECT id, name, category, price, on_sale, held, sold, withheld, stocked FROM products ORDER BY id",
    )
    .fetch_all(pool)
    .await
    .unwrap();
    let counter = |counters: &BTreeMap<i64, i64>, id: &i64| counters.get(id).copied().unwrap_or(0);
    let here: Vec<ProductRow> = all
        .products
        .iter()
        .map(|(id, p)| {
            let (on_sale, held, sold) = (all.stock[id], counter(&all.held, id), counter(&all.sold, id));
            let (name, category, back) = (p["name"].clone(), p["category"].clone(), counter(&all.withheld, id));
            (*id, name, category, all.price[id], on_sale, held, sold, back, int(p, "stocked"))
        })
        .collect();
    assert_eq!(here, there, "products");

    let there: Vec<(i64, i64, i64, i64)> =
        sqlx::query_as("SELECT id, total, issued, withheld FROM campaigns ORDER BY id").fetch_all(pool).await.unwrap();
    let here: Vec<(i64, i64, i64, i64)> =
        all.campaigns.iter().map(|(id, c)| (*id, int(c, "total"), int(c, "issued"), withheld(c))).collect();
    assert_eq!(here, there, "campaigns");

    type CouponRow = (i64, i64, i64, String, Option<i64>);
    let there: Vec<CouponRow> = sqlx::query_as(
        "SELECT coupon_id, user_id, issue_no, status, order_id FROM user_coupons ORDER BY coupon_id, user_id",
    )
    .fetch_all(pool)
    .await
    .unwrap();
    let here: Vec<CouponRow> = all
        .coupons
        .iter()
        .map(|((coupon, user), record)| {
            let parts: Vec<&str> = record.split('|').collect();
            let status = match parts[2] {
                "A" => "AVAILABLE",
                "H" => "HELD",
                _ => "USED",
            };
            (*coupon, *user, parts[0].parse().unwrap(), status.to_owned(), parts[3].parse().ok())
        })
        .collect();
    assert_eq!(here, there, "coupons");

    type OrderRow = (i64, i64, String, i64, i64, Option<String>);
    let there: Vec<OrderRow> =
        sqlx::query_as("SELECT id, user_id, status, total, final_price, close_reason FROM orders ORDER BY id")
            .fetch_all(pool)
            .await
            .unwrap();
    let orders: Vec<_> = all.orders.iter().filter(|(_, order)| order["status"] != "ABANDONED").collect();
    let here: Vec<OrderRow> = orders
        .iter()
        .map(|(id, o)| {
            (**id, int(o, "user"), o["status"].clone(), int(o, "total"), int(o, "final"), o.get("reason").cloned())
        })
        .collect();
    assert_eq!(here, there, "orders");
    let there: Vec<(i64, i64, i64, i64)> =
        sqlx::query_as("SELECT order_id, product_id, quantity, price FROM order_lines ORDER BY 1, 2")
            .fetch_all(pool)
            .await
            .unwrap();
    let mut here: Vec<(i64, i64, i64, i64)> = orders
        .iter()
        .flat_map(|(id, o)| {
            let every = lines(&o["lines"]).into_iter().chain(lines(&o["far"]));
            every.map(|(product, quantity, price)| (**id, product, quantity, price))
        })
        .collect();
    here.sort_unstable();
    assert_eq!(here, there, "order lines");
}

#[tokio::test]
async fn invariants_hold_while_orders_evicted() {
    for partitions in [1, 3] {
        let test = TestApp::with(Options { partitions, ..Options::default() }).await;
        busy_day(&test).await;
        test.drain().await;
        let mut redis = test.raw().await;
        let listed = keys(&mut redis).await;
        // The ends of their lives fall between the listing and the reading.
        let gone = test.leave().await;
        assert!(gone.iter().any(|key| key.contains("}:order:")) && gone.is_subset(&listed), "{gone:?}");
        let mut all = Redis::default();
        read_keys(&mut all, &mut redis, listed).await;
        check_read(all, &test.db, partitions, 0).await;
        test.finish().await;
    }
}
