//! Opening the stores: a start creates a new store once, resumes an existing one, and refuses stores that do not match without
//! changing them.

use std::collections::BTreeMap;

use firstcome::{
    app::App,
    config::*,
    dev::{self, RedisServer, ScratchDir},
    model::{Clock, NewOrder, NewProduct, NewUser, SaleTerms, UserId},
    postgres,
    recovery::rebuild,
};
use futures_util::future::join_all;
use sea_orm::DatabaseConnection;

use crate::{
    redis::proxy::{Fault, Proxy},
    support::{
        harness::{self, Options, START, call},
        invariants,
    },
};

/// Redis and a PostgreSQL database without a service.
struct Stores {
    redis: RedisServer,
    database: String,
    db: DatabaseConnection,
    _dir: ScratchDir,
}

impl Stores {
    async fn new() -> Stores {
        let dir = ScratchDir::new().unwrap();
        let redis = RedisServer::start(dev::RedisServerConfig::new(dir.path().join("redis"))).await.unwrap();
        let database = harness::fresh_database().await;
        let db = postgres::connect(&harness::postgres_config(&harness::postgres_url(&database))).await.unwrap();
        Stores { redis, database, db, _dir: dir }
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

    /// The identity and the positions in PostgreSQL.
    async fn in_postgres(&self) -> (Vec<(String, i32)>, Vec<(i32, i64, i64, String)>) {
        let pool = self.db.get_postgres_connection_pool();
        let identities = sqlx::query_as("SELECT store, partitions FROM store").fetch_all(pool).await.unwrap();
        let positions =
            sqlx::query_as("SELECT partition, epoch, seq, stream_id FROM projection_positions ORDER BY partition");
        (identities, positions.fetch_all(pool).await.unwrap())
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
            panic!("the start succeeded");
        }
        Err(error) => format!("{error:#}"),
    }
}

/// Creates a user with this balance through this process.
async fn user(app: &App, balance: i64) -> UserId {
    let new = NewUser { name: "A".into(), balance };
    app.engine.create_user(&call(None), new).await.unwrap().value.user_id
}

#[tokio::test]
async fn new_store_identical_in_redis_and_postgres() {
    for partitions in [1, 3] {
        let stores = Stores::new().await;
        let app = stores.open(Some(partitions)).await.unwrap();
        assert_eq!(app.store.partitions(), partitions);
        let (identities, positions) = stores.in_postgres().await;
        assert_eq!(identities.len(), 1);
        let (store, in_postgres) = &identities[0];
        assert_eq!(*in_postgres, i32::from(partitions));
        let expected: Vec<_> = (0..i32::from(partitions)).map(|n| (n, 1, 0, "0-0".to_owned())).collect();
        assert_eq!(positions, expected);
        // Of several partitions, each has its own sequences of ids.
        let kinds = if partitions > 1 { 2 } else { 1 };
        assert_eq!(stores.in_redis().await.len(), kinds * usize::from(partitions));
        for n in 0..partitions {
            let meta: BTreeMap<String, String> =
                redis::cmd("HGETALL").arg(format!("{{p{n}}}:meta")).query_async(&mut stores.raw().await).await.unwrap();
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
        stores.end().await;
    }
}

#[tokio::test]
async fn restart_resumes_position() {
    let mut stores = Stores::new().await;
    let first = stores.open(Some(2)).await.unwrap();
    let before = (user(&first, 500).await, user(&first, 1_000).await);
    let new = NewProduct {
        name: "A".into(),
        price: 100,
        stock: 9,
        category: "TOP".parse().unwrap(),
        terms: SaleTerms::default(),
    };
    let product = first.engine.create_product(&call(None), new).await.unwrap().value.product_id;
    let order = |user| NewOrder { user_id: user, lines: vec![(product, 2)], coupon_id: None, payment_type: None };
    let placed = first.engine.place_order(&call(None), order(before.0)).await.unwrap().value;
    first.projector.drain().await.unwrap();
    first.engine.charge(&call(None), before.0, 7).await.unwrap();
    let (state, positions) = (stores.in_redis().await, stores.in_postgres().await);
    first.db.close().await.unwrap();
    stores.redis.kill().await.unwrap();
    stores.redis.restart().await.unwrap();

    // The store keeps its number of partitions.
    for partitions in [None, Some(2)] {
        let app = stores.open(partitions).await.unwrap();
        assert_eq!(app.store.partitions(), 2);
        app.db.close().await.unwrap();
    }
    assert_eq!((state, positions), (stores.in_redis().await, stores.in_postgres().await), "a start changes nothing");
    let second = stores.open(None).await.unwrap();
    assert_eq!(second.engine.balance(before.0).await.unwrap().balance, 507);
    let after = user(&second, 0).await;
    assert!(after > before.1 && after > before.0, "{after} {before:?}");
    let again = second.engine.place_order(&call(None), order(before.0)).await.unwrap().value;
    assert!(again.order_id > placed.order_id, "{again:?} {placed:?}");
    second.engine.cancel_order(&call(None), placed.order_id, before.0, None).await.unwrap();
    second.projector.drain().await.unwrap();
    invariants::check(&mut [stores.raw().await], &stores.db, 2, 0).await;
    second.db.close().await.unwrap();
    stores.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_starts_of_new_store_agree() {
    for partitions in [1, 8] {
        for _ in 0..2 {
            let stores = Stores::new().await;
            let opened = join_all((0..6).map(|_| stores.open(Some(partitions)))).await;
            let apps: Vec<App> = opened.into_iter().map(Result::unwrap).collect();
            let (identities, positions) = stores.in_postgres().await;
            assert_eq!((identities.len(), positions.len()), (1, usize::from(partitions)));
            for app in &apps {
                assert_eq!(app.store.identity().await.unwrap().unwrap().store, identities[0].0);
            }
            // The processes share the store: no id is used twice, and each reads what the others wrote.
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
            invariants::check(&mut [stores.raw().await], &stores.db, partitions, 0).await;
            for app in apps {
                app.db.close().await.unwrap();
            }
            stores.end().await;
        }
    }
}

#[tokio::test]
async fn start_agrees_when_another_creates_store_between_its_reads() {
    let stores = Stores::new().await;
    let proxy = Proxy::before(stores.redis.socket_path()).await;
    let through_proxy = proxy.url();
    // The read of the identity, after that of PostgreSQL.
    proxy.set(Fault::Hold("\r\npartitions\r\n"));
    let postgres = harness::postgres_url(&stores.database);
    let second = open(&through_proxy, &postgres, Some(2));
    let first = async {
        proxy.held().await;
        let first = stores.open(Some(2)).await.unwrap();
        proxy.set(Fault::None);
        first
    };
    let (first, second) = tokio::join!(first, second);
    let second = second.unwrap();
    let user = user(&first, 5).await;
    assert_eq!(second.engine.balance(user).await.unwrap().balance, 5);
    for app in [first, second] {
        app.db.close().await.unwrap();
    }
    stores.end().await;
}

#[tokio::test]
async fn start_finishes_interrupted_first_start() {
    // PostgreSQL has the store; Redis lacks it, or lacks one partition.
    for gone in [&["{p0}:meta", "{p1}:meta", "{p2}:meta"][..], &["{p0}:meta"]] {
        let stores = Stores::new().await;
        stores.open(Some(3)).await.unwrap().db.close().await.unwrap();
        let complete = stores.in_redis().await;
        let _: i64 = redis::cmd("DEL").arg(gone).query_async(&mut stores.raw().await).await.unwrap();
        let app = stores.open(Some(3)).await.unwrap();
        assert_eq!(complete, stores.in_redis().await);
        user(&app, 1).await;
        app.projector.drain().await.unwrap();
        invariants::check(&mut [stores.raw().await], &stores.db, 3, 0).await;
        app.db.close().await.unwrap();
        stores.end().await;
    }
}

#[tokio::test]
async fn start_refused_when_partitions_changed() {
    let stores = Stores::new().await;
    stores.open(Some(2)).await.unwrap().db.close().await.unwrap();
    for wanted in [1, 3] {
        stores.is_refused(Some(wanted), &[&format!("PARTITIONS is {wanted}"), "has 2"]).await;
    }
    stores.end().await;
}

/// Stores with two users, projected.
async fn used_stores() -> Stores {
    let stores = Stores::new().await;
    let app = stores.open(Some(1)).await.unwrap();
    user(&app, 100).await;
    user(&app, 200).await;
    app.projector.drain().await.unwrap();
    app.db.close().await.unwrap();
    stores
}

#[tokio::test]
async fn start_refused_when_stores_mismatch() {
    let (mut one, mut other) = (used_stores().await, used_stores().await);
    std::mem::swap(&mut one.redis, &mut other.redis);
    for stores in [&one, &other] {
        stores.is_refused(None, &["Redis has store", "PostgreSQL has store", "do not belong together"]).await;
    }
    // Two new stores differ before their first decision.
    let new = Stores::new().await;
    new.open(None).await.unwrap().db.close().await.unwrap();
    let reason = refusal(open(&new.redis.url(), &harness::postgres_url(&one.database), None).await).await;
    assert!(reason.contains("do not belong together"), "{reason}");
    std::mem::swap(&mut one.redis, &mut other.redis);
    for stores in [one, other, new] {
        stores.open(None).await.unwrap().db.close().await.unwrap();
        stores.end().await;
    }
}

#[tokio::test]
async fn start_refused_when_postgres_empty_and_redis_full() {
    let mut stores = used_stores().await;
    let new = harness::fresh_database().await;
    let old = std::mem::replace(&mut stores.database, new);
    let db = postgres::connect(&harness::postgres_config(&harness::postgres_url(&stores.database))).await.unwrap();
    std::mem::replace(&mut stores.db, db).close().await.unwrap();
    stores.is_refused(None, &["this PostgreSQL database has none", "DATABASE_URL"]).await;
    assert_eq!(stores.in_postgres().await, (vec![], vec![]));
    harness::drop_database(&old).await;
    stores.end().await;
}

#[tokio::test]
async fn start_refused_when_redis_behind_postgres() {
    let stores = used_stores().await;
    let mut redis = stores.raw().await;
    let mut set = async |field: &str, value: i64| {
        let _: i64 = redis::cmd("HSET").arg("{p0}:meta").arg(field).arg(value).query_async(&mut redis).await.unwrap();
    };
    for (field, back, right) in [("seq", 1, 2), ("epoch", 0, 1)] {
        set(field, back).await;
        stores.is_refused(None, &["partition 0", "behind PostgreSQL's (1, 2)", "lost decisions"]).await;
        set(field, right).await;
    }
    // Redis may be ahead of PostgreSQL, if the outbox has every event in between.
    set("seq", 3).await;
    stores.is_refused(None, &["does not lead from (1, 2)", "to (1, 3)", "firstcome rebuild"]).await;
    set("seq", 2).await;
    stores.open(None).await.unwrap().db.close().await.unwrap();
    stores.end().await;
}

/// A start refuses Redis data in another layout; a rebuild writes the current layout.
#[tokio::test]
async fn start_rebuilds_redis_of_other_layout() {
    let stores = used_stores().await;
    let mut redis = stores.raw().await;
    let _: i64 = redis::cmd("HDEL").arg("{p0}:meta").arg("layout").query_async(&mut redis).await.unwrap();
    stores.is_refused(None, &["as another version of this program keeps it", "firstcome rebuild"]).await;
    let (config, retention) = (harness::redis_config(&stores.redis.url()), RetentionConfig::default().retention());
    let rebuild = harness::rebuild(&config, &stores.database, Clock::standing(START), retention).await;
    rebuild.clone().run(rebuild::RebuildOptions::default()).await.unwrap();
    rebuild.db.close().await.unwrap();
    let app = stores.open(None).await.unwrap();
    user(&app, 5).await;
    app.stop(Some(std::time::Duration::from_secs(600))).await;
    invariants::check(&mut [redis], &stores.db, 1, 0).await;
    app.db.close().await.unwrap();
    stores.end().await;
}

#[tokio::test]
async fn start_refused_when_redis_incomplete() {
    let stores = used_stores().await;
    let _: i64 = redis::cmd("HDEL").arg("{p0}:meta").arg("store").query_async(&mut stores.raw().await).await.unwrap();
    stores.is_refused(None, &["{p0}:meta", "incomplete"]).await;
    stores.end().await;

    let stores = Stores::new().await;
    let app = stores.open(Some(2)).await.unwrap();
    user(&app, 5).await;
    user(&app, 5).await;
    app.projector.drain().await.unwrap();
    app.db.close().await.unwrap();
    let _: i64 = redis::cmd("HSET")
        .arg("{p1}:meta")
        .arg("store")
        .arg("another")
        .query_async(&mut stores.raw().await)
        .await
        .unwrap();
    stores.is_refused(None, &["partition 1", "not of the same store"]).await;
    let _: i64 = redis::cmd("DEL").arg("{p1}:meta").query_async(&mut stores.raw().await).await.unwrap();
    // A partition without a state is a lost one, and is rebuilt.
    stores.open(None).await.unwrap().db.close().await.unwrap();
    stores.end().await;
}

#[tokio::test]
async fn start_error_says_remedy_when_schema_missing() {
    let mut stores = Stores::new().await;
    let empty = format!("{}_empty", stores.database);
    postgres::create_database(&harness::postgres_config(&harness::postgres_url("postgres")), &empty).await.unwrap();
    let with_schema = std::mem::replace(&mut stores.database, empty);
    let reason = refusal(stores.open(Some(1)).await).await;
    assert!(reason.contains("`firstcome migrate`"), "{reason}");
    assert!(stores.in_redis().await.is_empty());
    let empty = postgres::connect(&harness::postgres_config(&harness::postgres_url(&stores.database))).await.unwrap();
    // An older schema than that of this program.
    postgres::migrate(&empty).await.unwrap();
    let pool = empty.get_postgres_connection_pool();
    sqlx::query("UPDATE _sqlx_migrations SET success = false").execute(pool).await.unwrap();
    let reason = refusal(stores.open(Some(1)).await).await;
    assert!(reason.contains("older") && reason.contains("`firstcome migrate`"), "{reason}");
    sqlx::query("UPDATE _sqlx_migrations SET success = true").execute(pool).await.unwrap();
    stores.open(Some(1)).await.unwrap().db.close().await.unwrap();
    empty.close().await.unwrap();
    harness::drop_database(&with_schema).await;
    stores.end().await;
}

#[tokio::test]
async fn start_error_names_unreachable_store() {
    let mut stores = used_stores().await;
    let postgres = harness::postgres_url(&stores.database);
    stores.redis.kill().await.unwrap();
    let reason = refusal(open(&stores.redis.url(), &postgres, None).await).await;
    assert!(reason.contains("REDIS_URL"), "{reason}");
    let unreachable = format!("postgres://firstcome@localhost/{}?host=/nonexistent", stores.database);
    let reason = refusal(open(&stores.redis.url(), &unreachable, None).await).await;
    assert!(reason.contains("DATABASE_URL"), "{reason}");
    let reason = refusal(open("no url", &postgres, None).await).await;
    assert!(reason.contains("REDIS_URL"), "{reason}");
    stores.redis.restart().await.unwrap();
    stores.open(None).await.unwrap().db.close().await.unwrap();
    stores.end().await;
}
