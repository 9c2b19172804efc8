//! Rebuilds that would discard decisions, or that find another store.

use super::*;

/// A rebuild without `--discard` does not discard decisions that only Redis has, and leaves Redis as it is.
#[tokio::test]
async fn rebuild_refused_when_redis_holds_unprojected_events() {
    let test = TestApp::start().await;
    let user = test.user(0).await;
    test.put_charge(user, 1).await.ok();
    test.put_charge(user, 2).await.ok();
    test.put_charge(user, 4).await.ok();
    // Without the second charge, the projector can't apply the events after it.
    let mut redis = test.raw().await;
    let entries = outbox::entries(&mut redis, 0).await;
    let _: i64 = redis::cmd("XDEL").arg("{p0}:outbox").arg(&entries[2].0).query_async(&mut redis).await.unwrap();
    let before = test.snapshot().await;
    let error = refused(&test, rebuild::RebuildOptions::default()).await;
    assert!(error.contains("discard 2 decisions") && error.contains("--discard"), "{error}");
    let after = test.snapshot().await;
    assert_eq!(before["{p0}:user:1"], after["{p0}:user:1"]);
    // The projector froze the partition because of the gap.
    assert!(after["{p0}:meta"].contains("decisions are lost"), "{}", after["{p0}:meta"]);
    let summary = rebuilt(&test, rebuild::RebuildOptions { discard: true, ..Default::default() }).await;
    assert_eq!((summary.discarded, summary.possible_losses), (2, vec![0]));
    ready(&test).await;
    assert_eq!(test.get(&format!("/api/v1/balances/{user}")).await.ok()["balance"], 1);
    test.put_charge(user, 8).await.ok();
    test.finish().await;
}

/// Only Redis has the effects of dead letters: a rebuild without `--discard` does not discard them.
#[tokio::test]
async fn rebuild_refused_when_dead_letters_exist() {
    let test = TestApp::with(Options { dead_letters: 1, ..Options::default() }).await;
    let user = test.user(0).await;
    test.drain().await;
    let pool = test.db.get_postgres_connection_pool();
    sqlx::query("UPDATE users SET balance = 5").execute(pool).await.unwrap();
    sqlx::query("ALTER TABLE balance_entries ADD CONSTRAINT no_sevens CHECK (amount <> 7)")
        .execute(pool)
        .await
        .unwrap();
    test.put_charge(user, 7).await.ok();
    test.drain().await;
    sqlx::query("UPDATE users SET balance = 0").execute(pool).await.unwrap();
    let error = refused(&test, rebuild::RebuildOptions::default()).await;
    assert!(error.contains("discard 1 decisions"), "{error}");
    // The refused rebuild has lifted its freeze.
    test.put_charge(user, 0).await.refused(400, "INVALID_AMOUNT");
    ready(&test).await;
    let summary = rebuilt(&test, rebuild::RebuildOptions { discard: true, ..Default::default() }).await;
    assert_eq!((summary.discarded, summary.possible_losses), (1, vec![0]));
    ready(&test).await;
    // The next rebuild ignores the dead letter, which belongs to an ended epoch.
    assert_eq!(rebuilt(&test, rebuild::RebuildOptions::default()).await.discarded, 0);
    ready(&test).await;
    assert_eq!(test.get(&format!("/api/v1/balances/{user}")).await.ok()["balance"], 0);
    test.finish().await;
}

#[tokio::test]
async fn rebuild_refused_when_redis_belongs_to_other_store() {
    let (test, other) = (TestApp::start().await, TestApp::start().await);
    test.user(0).await;
    let before = other.snapshot().await;
    let mut rebuild = test.rebuild().await;
    rebuild.store = Store::connect(&harness::redis_config(&other.redis.url())).await.unwrap();
    rebuild.projector = rebuild.projector.on(rebuild.store.clone());
    let error = rebuild.clone().run(rebuild::RebuildOptions::default()).await.expect_err("the rebuild succeeded");
    assert!(format!("{error:#}").contains("do not belong together"), "{error:#}");
    assert_eq!(before, other.snapshot().await);
    rebuild.db.close().await.unwrap();
    test.finish().await;
    other.finish().await;
}
