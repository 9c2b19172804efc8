//! A power loss tears the last transaction of the append-only file: the half of it that is on the disk never takes effect.

use std::{fs, io::Write};

use crate::support::{
    files::append_only_log,
    harness::{TestApp, until},
};

/// The first commands of a transaction that sets a user's balance, and a part of the last one.
fn torn(user: i64) -> String {
    let command = |words: &[&str]| -> String {
        let words: String = words.iter().map(|word| format!("${}\r\n{word}\r\n", word.len())).collect();
        format!("*{}\r\n{words}", words.matches('$').count())
    };
    let key = format!("{{p0}}:user:{user}");
    let exec = command(&["EXEC"]);
    command(&["MULTI"]) + &command(&["HSET", &key, "balance", "1"]) + &exec[..exec.len() - 4]
}

#[tokio::test]
async fn half_decision_without_effect_when_redis_restarted_again() {
    let mut test = TestApp::start().await;
    let user = test.user(100).await;
    test.redis.kill().await.unwrap();
    let mut log = fs::File::options().append(true).open(append_only_log(&test.redis.data_dir())).unwrap();
    log.write_all(torn(user).as_bytes()).unwrap();
    test.redis.restart().await.unwrap();
    until("the partition is open", async || test.store.check(firstcome::model::Partition(0)).await.ok()).await;
    test.put_charge(user, 5).await.ok();
    until("the log is written anew", async || {
        let info: String = redis::cmd("INFO").arg("persistence").query_async(&mut test.raw().await).await.unwrap();
        (info.contains("aof_rewrites:1\r") && info.contains("aof_rewrite_in_progress:0")).then_some(())
    })
    .await;
    test.redis.restart().await.unwrap();
    until("the partition is open", async || test.store.check(firstcome::model::Partition(0)).await.ok()).await;
    assert_eq!(test.get(&format!("/api/v1/balances/{user}")).await.ok()["balance"], 105);
    test.finish().await;
}
