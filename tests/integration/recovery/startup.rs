//! Opening the store: a new store is created once, an existing one is resumed, stores that do not match are refused
//! unchanged.

use std::collections::BTreeMap;

use firstcome::{
    app::App,
    config::*,
    dev::{self, RedisServer, ScratchDir},
    model::{Clock, NewOrder, NewProduct, NewUser, UserId},
    postgres,
    recovery::rebuild,
};
use futures_util::future::join_all;
use sea_orm::DatabaseConnection;

use crate::support::{
    harness::{self, Options, START, call},
    invariants,
};

/// Two stores' servers, without a service on them.
struct Pair {
    redis: RedisServer,
    database: String,
    db: DatabaseConnection,
    _dir: ScratchDir,
}

impl Pair {
    async fn new() -> Pair {
        let dir = ScratchDir::new().unwrap();
        let redis = RedisServer::start(dev::RedisServerConfig::new(dir.path().join("redis"))).await.unwrap();
        let database = harness::fresh_database().await;
        let db = postgres::connect(&harness::postgres_config(&harness::postgres_url(&database))).await.unwrap();
        Pair { redis, database, db, _dir: dir }
    }

    async fn open(&self, partitions: Option<u16>) -> anyhow::Result<App> {
        open(&self.redis.url(), &harness::postgres_url(&self.database), partitions).await
    }

    /// Asserts that a start is refused with a reason that contains `words`, and changes nothing.
    async fn is_refused(&self, partitions: Option<u16>, words: &[&str]) {
        let before = (self.in_redis().await, self.in_postgres().await);
        let reason = refusal(self.open(partitions).await).await;
        for word in words {
            assert!(reason.contains(word), "{word:?} is not in {reason:?}");
        }
        assert_eq!(before, (self.in_redis().await, self.in_postgres().await));
    }

    async fn raw(&self) -> redis::aio::MultiplexedConnection {
        harness::raw_redis(&self.redis.url()).await
    }

    async fn in_redis(&self) -> BTreeMap<String, String> {
        invariants::snapshot(&mut self.raw().await).await
    }

    /// The identity in PostgreSQL, and its positions.
    async fn in_postgres(&self) -> (Vec<(String, i32)>, Vec<(i32, i64, i64, String)>) {
        let pool = self.db.get_postgres_connection_pool();
        let stores = sqlx::query_as("SELECT store, partitions FROM store").fetch_all(pool).await.unwrap();
        let positions =
            sqlx::query_as("SELECT partition, epoch, seq, stream_id FROM projection_positions ORDER BY partition");
        (stores, positions.fetch_all(pool).await.unwrap())
    }

    async fn end(mut self) {
        self.db.close().await.unwrap();
        self.redis.kill().await.unwrap();
        harness::drop_database(&self.database).await;
    }
}

async fn open(redis: &str, postgres: &str, partitions: Option<u16>) -> anyhow::Result<App> {
    let mut config = harness::engine_config(&Options::default(), redis, postgres);
    config.shop.partitions = partitions;
    App::open(&config, &ProjectorConfig::default(), Clock::standing(START)).await
}

async fn refusal(opened: anyhow::Result<App>) -> String {
    match opened {
        Ok(app) => {
            app.db.close().await.unwrap();
            panic!("it was opened");
        }
        Err(error) => format!("{error:#}"),
    }
}

/// A user with this balance, made by this process.
async fn user(app: &App, balance: i64) -> UserId {
    let new = NewUser { name: "A".into(), balance };
    app.engine.create_user(&call(None), new).await.unwrap().value.user_id
}

#[tokio::test]
async fn new_store_identical_in_redis_and_postgres() {
    for partitions in [1, 3] {
        let pair = Pair::new().await;
        let app = pair.open(Some(partitions)).await.unwrap();
        assert_eq!(app.store.partitions(), partitions);
        let (stores, positions) = pair.in_postgres().await;
        assert_eq!(stores.len(), 1);
        let (store, in_postgres) = &stores[0];
        assert_eq!(*in_postgres, i32::from(partitions));
        let expected: Vec<_> = (0..i32::from(partitions)).map(|n| (n, 1, 0, "0-0".to_owned())).collect();
        assert_eq!(positions, expected);
        let in_redis = pair.in_redis().await;
        assert_eq!(in_redis.len(), usize::from(partitions));
        for n in 0..partitions {
            let meta: BTreeMap<String, String> =
                redis::cmd("HGETALL").arg(format!("{{p{n}}}:meta")).query_async(&mut pair.raw().await).await.unwrap();
            let partitions = partitions.to_string();
            let layout = firstcome::redis::LAYOUT.to_string();
            let fields = [
                ("epoch", "1"),
                ("layout", layout.as_str()),
                ("partitions", partitions.as_str()),
                ("seq", "0"),
                ("store", store.as_str()),
            ];
            assert_eq!(meta, fields.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
        }
        app.db.close().await.unwrap();
        pair.end().await;
    }
}

#[tokio::test]
async fn restart_resumes_position() {
    let mut pair = Pair::new().await;
    let first = pair.open(Some(2)).await.unwrap();
    let before = (user(&first, 500).await, user(&first, 1_000).await);
    let new = NewProduct { name: "A".into(), price: 100, stock: 9, category: "TOP".parse().unwrap() };
    let product = first.engine.create_product(&call(None), new).await.unwrap().value.product_id;
    let order = |user| NewOrder { user_id: user, lines: vec![(product, 2)], coupon_id: None };
    let placed = first.engine.place_order(&call(None), order(before.0)).await.unwrap().value;
    first.projector.drain().await.unwrap();
    first.engine.charge(&call(None), before.0, 7).await.unwrap();
    let (state, positions) = (pair.in_redis().await, pair.in_postgres().await);
    first.db.close().await.unwrap();
    pair.redis.kill().await.unwrap();
    pair.redis.restart().await.unwrap();

    // How many partitions there are is the store's to say.
    for partitions in [None, Some(2)] {
        let app = pair.open(partitions).await.unwrap();
        assert_eq!(app.store.partitions(), 2);
        app.db.close().await.unwrap();
    }
    assert_eq!((state, positions), (pair.in_redis().await, pair.in_postgres().await), "a start changes nothing");
    let second = pair.open(None).await.unwrap();
    assert_eq!(second.engine.balance(before.0).await.unwrap().balance, 507);
    let after = user(&second, 0).await;
    assert!(after > before.1 && after > before.0, "{after} {before:?}");
    let again = second.engine.place_order(&call(None), order(before.0)).await.unwrap().value;
    assert!(again.order_id > placed.order_id, "{again:?} {placed:?}");
    second.engine.cancel_order(&call(None), placed.order_id, before.0).await.unwrap();
    second.projector.drain().await.unwrap();
    invariants::check(&mut [pair.raw().await], &pair.db, 2, 0).await;
    second.db.close().await.unwrap();
    pair.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_starts_of_new_store_agree() {
    for partitions in [1, 8] {
        for _ in 0..2 {
            let pair = Pair::new().await;
            let opened = join_all((0..6).map(|_| pair.open(Some(partitions)))).await;
            let apps: Vec<App> = opened.into_iter().map(Result::unwrap).collect();
            let (stores, positions) = pair.in_postgres().await;
            assert_eq!((stores.len(), positions.len()), (1, usize::from(partitions)));
            for app in &apps {
                assert_eq!(app.store.identity().await.unwrap().unwrap().store, stores[0].0);
            }
            // They share it: no id twice, and each sees what the others did.
            let mut users = Vec::new();
            for app in &apps {
                users.push(user(app, 5).await);
            }
            users.dedup();
            assert_eq!(users.len(), 6);
            for app in &apps {
                assert_eq!(app.engine.balance(users[0]).await.unwrap().balance, 5);
            }
            apps[0].projector.drain().await.unwrap();
            invariants::check(&mut [pair.raw().await], &pair.db, partitions, 0).await;
            for app in apps {
                app.db.close().await.unwrap();
            }
            pair.end().await;
        }
    }
}

#[tokio::test]
async fn start_finishes_interrupted_first_start() {
    // Postgres knew of the store, Redis did not yet; or not with every partition.
    for gone in [&["{p0}:meta", "{p1}:meta", "{p2}:meta"][..], &["{p0}:meta"]] {
        let pair = Pair::new().await;
        pair.open(Some(3)).await.unwrap().db.close().await.unwrap();
        let complete = pair.in_redis().await;
        let _: i64 = redis::cmd("DEL").arg(gone).query_async(&mut pair.raw().await).await.unwrap();
        let app = pair.open(Some(3)).await.unwrap();
        assert_eq!(complete, pair.in_redis().await);
        user(&app, 1).await;
        app.projector.drain().await.unwrap();
        invariants::check(&mut [pair.raw().await], &pair.db, 3, 0).await;
        app.db.close().await.unwrap();
        pair.end().await;
    }
}

#[tokio::test]
async fn start_refused_when_partitions_changed() {
    let pair = Pair::new().await;
    pair.open(Some(2)).await.unwrap().db.close().await.unwrap();
    for wanted in [1, 3] {
        pair.is_refused(Some(wanted), &[&format!("PARTITIONS is {wanted}"), "has 2"]).await;
    }
    pair.end().await;
}

/// A pair with a user in it, projected.
async fn used() -> Pair {
    let pair = Pair::new().await;
    let app = pair.open(Some(1)).await.unwrap();
    user(&app, 100).await;
    user(&app, 200).await;
    app.projector.drain().await.unwrap();
    app.db.close().await.unwrap();
    pair
}

#[tokio::test]
async fn start_refused_when_stores_mismatch() {
    let (mut one, mut other) = (used().await, used().await);
    std::mem::swap(&mut one.redis, &mut other.redis);
    for pair in [&one, &other] {
        pair.is_refused(None, &["Redis has store", "PostgreSQL has store", "do not belong together"]).await;
    }
    // Distinguished even before the first decision.
    let new = Pair::new().await;
    new.open(None).await.unwrap().db.close().await.unwrap();
    let reason = refusal(open(&new.redis.url(), &harness::postgres_url(&one.database), None).await).await;
    assert!(reason.contains("do not belong together"), "{reason}");
    std::mem::swap(&mut one.redis, &mut other.redis);
    for pair in [one, other, new] {
        pair.open(None).await.unwrap().db.close().await.unwrap();
        pair.end().await;
    }
}

#[tokio::test]
async fn start_refused_when_postgres_empty_and_redis_full() {
    let mut pair = used().await;
    let new = harness::fresh_database().await;
    let old = std::mem::replace(&mut pair.database, new);
    let db = postgres::connect(&harness::postgres_config(&harness::postgres_url(&pair.database))).await.unwrap();
    std::mem::replace(&mut pair.db, db).close().await.unwrap();
    pair.is_refused(None, &["this PostgreSQL database has none", "DATABASE_URL"]).await;
    assert_eq!(pair.in_postgres().await, (vec![], vec![]));
    harness::drop_database(&old).await;
    pair.end().await;
}

#[tokio::test]
async fn start_refused_when_redis_behind_postgres() {
    let pair = used().await;
    let mut redis = pair.raw().await;
    let mut set = async |field: &str, value: i64| {
        let _: i64 = redis::cmd("HSET").arg("{p0}:meta").arg(field).arg(value).query_async(&mut redis).await.unwrap();
    };
    for (field, back, right) in [("seq", 1, 2), ("epoch", 0, 1)] {
        set(field, back).await;
        pair.is_refused(None, &["partition 0", "behind PostgreSQL's (1, 2)", "lost decisions"]).await;
        set(field, right).await;
    }
    // Ahead is what an outbox is for, and it must have all of it.
    set("seq", 3).await;
    pair.is_refused(None, &["does not lead from (1, 2)", "to (1, 3)", "firstcome rebuild"]).await;
    set("seq", 2).await;
    pair.open(None).await.unwrap().db.close().await.unwrap();
    pair.end().await;
}

/// Another layout of Redis is not misread: the start is refused, and a rebuild writes the present layout.
#[tokio::test]
async fn start_rebuilds_redis_of_other_layout() {
    let pair = used().await;
    let mut redis = pair.raw().await;
    let _: i64 = redis::cmd("HDEL").arg("{p0}:meta").arg("layout").query_async(&mut redis).await.unwrap();
    pair.is_refused(None, &["as another version of this program keeps it", "firstcome rebuild"]).await;
    let (config, retention) = (harness::redis_config(&pair.redis.url()), RetentionConfig::default().retention());
    let rebuild = harness::rebuild(&config, &pair.database, Clock::standing(START), retention).await;
    rebuild.clone().run(rebuild::RebuildOptions::default()).await.unwrap();
    rebuild.db.close().await.unwrap();
    let app = pair.open(None).await.unwrap();
    user(&app, 5).await;
    app.stop(Some(std::time::Duration::from_secs(600))).await;
    invariants::check(&mut [redis], &pair.db, 1, 0).await;
    app.db.close().await.unwrap();
    pair.end().await;
}

#[tokio::test]
async fn start_refused_when_redis_incomplete() {
    let pair = used().await;
    let _: i64 = redis::cmd("HDEL").arg("{p0}:meta").arg("store").query_async(&mut pair.raw().await).await.unwrap();
    pair.is_refused(None, &["{p0}:meta", "incomplete"]).await;
    pair.end().await;

    let pair = Pair::new().await;
    let app = pair.open(Some(2)).await.unwrap();
    user(&app, 5).await;
    user(&app, 5).await;
    app.projector.drain().await.unwrap();
    app.db.close().await.unwrap();
    let _: i64 = redis::cmd("HSET")
        .arg("{p1}:meta")
        .arg("store")
        .arg("another")
        .query_async(&mut pair.raw().await)
        .await
        .unwrap();
    pair.is_refused(None, &["partition 1", "not of the same store"]).await;
    let _: i64 = redis::cmd("DEL").arg("{p1}:meta").query_async(&mut pair.raw().await).await.unwrap();
    pair.is_refused(None, &["partition 1"]).await;
    pair.end().await;
}

#[tokio::test]
async fn start_error_says_remedy_when_schema_missing() {
    let mut pair = Pair::new().await;
    let bare = format!("{}_bare", pair.database);
    postgres::create_database(&harness::postgres_config(&harness::postgres_url("postgres")), &bare).await.unwrap();
    let with_schema = std::mem::replace(&mut pair.database, bare);
    let reason = refusal(pair.open(Some(1)).await).await;
    assert!(reason.contains("`firstcome migrate`"), "{reason}");
    assert!(pair.in_redis().await.is_empty());
    let bare = postgres::connect(&harness::postgres_config(&harness::postgres_url(&pair.database))).await.unwrap();
    // An older schema than this program's.
    postgres::migrate(&bare).await.unwrap();
    let pool = bare.get_postgres_connection_pool();
    sqlx::query("UPDATE _sqlx_migrations SET success = false").execute(pool).await.unwrap();
    let reason = refusal(pair.open(Some(1)).await).await;
    assert!(reason.contains("older") && reason.contains("`firstcome migrate`"), "{reason}");
    sqlx::query("UPDATE _sqlx_migrations SET success = true").execute(pool).await.unwrap();
    pair.open(Some(1)).await.unwrap().db.close().await.unwrap();
    bare.close().await.unwrap();
    harness::drop_database(&with_schema).await;
    pair.end().await;
}

#[tokio::test]
async fn start_error_names_unreachable_store() {
    let mut pair = used().await;
    let postgres = harness::postgres_url(&pair.database);
    pair.redis.kill().await.unwrap();
    let reason = refusal(open(&pair.redis.url(), &postgres, None).await).await;
    assert!(reason.contains("REDIS_URL"), "{reason}");
    let nowhere = format!("postgres://firstcome@localhost/{}?host=/nonexistent", pair.database);
    let reason = refusal(open(&pair.redis.url(), &nowhere, None).await).await;
    assert!(reason.contains("DATABASE_URL"), "{reason}");
    let reason = refusal(open("no url", &postgres, None).await).await;
    assert!(reason.contains("REDIS_URL"), "{reason}");
    pair.redis.restart().await.unwrap();
    pair.open(None).await.unwrap().db.close().await.unwrap();
    pair.end().await;
}
