//! The rights of the service's user at Redis: the documented ones suffice; without one, the start and later checks fail with its
//! name, before any write.

use std::{collections::BTreeSet, fs};

use firstcome::{
    config::RedisConfig,
    dev::{self, RedisServer, ScratchDir},
    redis::permissions::{KEY_PATTERN, PERMISSIONS, REPLICA_PERMISSIONS, REWRITE_PERMISSION},
};
use redis::aio::MultiplexedConnection;

use crate::{
    redis::{addresses::everything, script_failures::Writes},
    support::{
        harness::{self, Options, TestApp, fresh_database, postgres_url},
        repository::{files_below, root},
    },
};

/// The documented command that creates the user, with a password.
fn documented(password: &str) -> Vec<String> {
    let docs = fs::read_to_string(root().join("docs/running.md")).unwrap();
    let begin = docs.find("ACL SETUSER firstcome").expect("the docs have the line");
    let line = docs[begin..].split("```").next().unwrap().replace('\\', " ").replace("PASSWORD", password);
    line.split_whitespace().skip(1).map(str::to_owned).collect()
}

async fn acl(link: &mut MultiplexedConnection, words: &[impl AsRef<str>]) {
    let mut acl = redis::cmd("ACL");
    for word in words {
        acl.arg(word.as_ref());
    }
    acl.exec_async(link).await.unwrap();
}

/// The settings of Redis with the documented user.
fn as_user(redis: &RedisServer) -> RedisConfig {
    harness::redis_config(&format!("{}?user=firstcome&pass=secret", redis.url()))
}

async fn servers(dir: &ScratchDir) -> (RedisServer, MultiplexedConnection) {
    let redis = RedisServer::start(dev::RedisServerConfig::new(dir.path().join("redis"))).await.unwrap();
    let mut link = harness::raw_redis(&redis.url()).await;
    acl(&mut link, &documented("secret")).await;
    (redis, link)
}

/// A test app that connects to Redis as the documented user.
async fn test(options: Options) -> TestApp {
    let dir = ScratchDir::new().unwrap();
    let (redis, _) = servers(&dir).await;
    let options = Options { redis: Some(as_user(&redis)), ..options };
    TestApp::on(options, dir, redis, fresh_database().await).await
}

/// The commands that the server has refused since its start, as `user command`.
async fn denied(test: &TestApp) -> BTreeSet<String> {
    type Entry = std::collections::HashMap<String, redis::Value>;
    let log: Vec<Entry> = redis::cmd("ACL").arg("LOG").query_async(&mut test.raw().await).await.unwrap();
    log.iter().map(|entry| format!("{:?} {:?}", entry["username"], entry["object"])).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sale_runs_with_documented_user() {
    for partitions in [1, 3] {
        let test = test(Options { partitions, ..Options::default() }).await;
        everything(&test).await;
        assert_eq!(denied(&test).await, BTreeSet::new());
        test.finish().await;
    }
}

#[tokio::test]
async fn start_refused_and_right_named_when_missing() {
    let dir = ScratchDir::new().unwrap();
    let (redis, mut link) = servers(&dir).await;
    let database = fresh_database().await;
    let mut config = harness::engine_config(&Options::default(), &redis.url(), &postgres_url(&database));
    config.redis = as_user(&redis);
    let keys: i64 = redis::cmd("DBSIZE").query_async(&mut link).await.unwrap();
    assert_eq!(keys, 0);
    let mut refusals = Vec::new();
    // Used with certain settings only, or on a cluster.
    let elsewhere = ["hello", "select", "cluster|slots", "cluster|keyslot", "ping", "unwatch"];
    for right in PERMISSIONS.iter().filter(|right| !elsewhere.contains(&right.name)) {
        // `AUTH` can't be denied to a user.
        if right.name == "auth" {
            continue;
        }
        acl(&mut link, &["SETUSER", "firstcome", &format!("-{}", right.name)]).await;
        refusals.push((right.name.to_owned(), start(&config).await));
        acl(&mut link, &["SETUSER", "firstcome", &format!("+{}", right.name)]).await;
    }
    let patterns = ["~{p0}:user:*", "%R~{p*}:*", "~{p1}:*"];
    for pattern in patterns {
        acl(&mut link, &["SETUSER", "firstcome", "resetkeys", pattern]).await;
        refusals.push((KEY_PATTERN.to_owned(), start(&config).await));
    }
    for (name, refusal) in refusals {
        let refusal = refusal.unwrap_or_else(|| panic!("it starts without {name}"));
        // A setting decides whether Redis's settings must be readable.
        let explained = refusal.contains("docs/running.md") || name == "config|get";
        assert!(refusal.contains(&name) && explained, "{name}: {refusal}");
    }
    // No refused start wrote anything.
    let keys: i64 = redis::cmd("DBSIZE").query_async(&mut link).await.unwrap();
    assert_eq!(keys, 0);
    acl(&mut link, &documented("secret")).await;
    assert_eq!(start(&config).await, None);
    harness::drop_database(&database).await;
}

/// The error of the start, if it fails.
async fn start(config: &firstcome::config::EngineConfig) -> Option<String> {
    let opened =
        firstcome::app::App::open(config, &Default::default(), firstcome::model::Clock::standing(harness::START)).await;
    match opened {
        Ok(app) => {
            app.stop(None).await;
            app.db.close().await.unwrap();
            None
        }
        Err(error) => Some(format!("{error:#}")),
    }
}

#[tokio::test]
async fn partition_closed_before_write_when_right_revoked() {
    for taken in ["-expire", "-zadd", "-xadd", "-evalsha", "resetkeys"] {
        let writes = Writes::on(test(Options::default()).await).await;
        let (mut link, mut again) = (writes.test.raw().await, writes.test.raw().await);
        let degrade = async || {
            acl(&mut link, &["SETUSER", "firstcome", taken]).await;
            // The watch checks twice a second; the test checks at once.
            writes.test.store.recheck_permissions();
            writes.test.engine.check().await;
            let reply = writes.test.get("/readyz").await;
            reply.refused(503, "SERVICE_UNAVAILABLE");
            let named = if taken == "resetkeys" { KEY_PATTERN } else { &taken[1..] };
            assert!(reply.text.contains(named) && reply.text.contains("lacks permissions"), "{taken}: {}", reply.text);
        };
        writes.assert_writes_unavailable(degrade, async || acl(&mut again, &documented("secret")).await).await;
        writes.test.finish().await;
    }
}

/// Redis refuses a command for a missing right: the client gets a 503, and the partition closes at once.
#[tokio::test]
async fn partition_closed_when_command_lacks_right() {
    let test = test(Options::default()).await;
    let user = test.user(100).await;
    let mut link = test.raw().await;
    acl(&mut link, &["SETUSER", "firstcome", "-evalsha"]).await;
    let before = test.snapshot().await;
    test.put_charge(user, 5).await.refused(503, "SERVICE_UNAVAILABLE");
    // The partition stays closed without another check.
    test.get(&format!("/api/v1/balances/{user}")).await.refused(503, "SERVICE_UNAVAILABLE");
    assert!(before == test.snapshot().await);
    acl(&mut link, &documented("secret")).await;
    test.engine.check().await;
    test.put_charge(user, 5).await.ok();
    test.finish().await;
}

/// A key with a type that the service does not write closes the partition before a script fails on it.
#[tokio::test]
async fn partition_closed_when_key_has_other_type() {
    let writes = Writes::on(TestApp::start().await).await;
    let (mut link, mut again) = (writes.test.raw().await, writes.test.raw().await);
    let rename = |from: &str, to: &str| redis::cmd("RENAME").arg(from).arg(to).to_owned();
    let degrade = async || {
        rename("{p0}:expiry", "{p0}:idem:aside").exec_async(&mut link).await.unwrap();
        redis::cmd("SET").arg("{p0}:expiry").arg("x").exec_async(&mut link).await.unwrap();
        writes.test.store.recheck_permissions();
        writes.test.engine.check().await;
        let reply = writes.test.get("/readyz").await;
        assert!(reply.text.contains("{p0}:expiry is a string, not a zset"), "{}", reply.text);
    };
    let restore = async || {
        rename("{p0}:idem:aside", "{p0}:expiry").exec_async(&mut again).await.unwrap();
    };
    writes.assert_writes_unavailable(degrade, restore).await;
    writes.test.finish().await;
}

/// The list of rights has every command of the program and its scripts, and the docs have the list.
#[test]
fn documented_rights_cover_every_command() {
    let mut used = BTreeSet::new();
    for path in [files_below("lua", ".lua"), files_below("src", ".rs")].concat() {
        // A list goes to Redis in chunks.
        let text = fs::read_to_string(&path).unwrap().replace("_in_chunks('", "redis.call('");
        let (starts, end): (&[&str], char) = match path.extension().and_then(|end| end.to_str()) {
            // The second one: functions that pass long lists to a command in their arguments.
            Some("lua") => (&["redis.call(", "_in_chunks("], '\''),
            _ => (&["cmd("], '"'),
        };
        for call in starts.iter().flat_map(|start| text.split(start).skip(1)) {
            let Some(call) = call.strip_prefix(end) else {
                let given = path.ends_with("lua/lib/lists.lua") && call.starts_with("command, ");
                assert!(end == '"' || given, "{}: a command that is not written out: {call:.40}", path.display());
                continue;
            };
            let name = call.split(end).next().unwrap().to_lowercase();
            let sub = call.split_once(".arg(\"").map(|(_, rest)| rest.split('"').next().unwrap().to_lowercase());
            let has_sub = ["script", "config", "cluster", "acl", "client"].contains(&name.as_str());
            used.insert(if has_sub { format!("{name}|{}", sub.unwrap()) } else { name });
        }
    }
    // A right at the Sentinels.
    assert!(used.remove("sentinel"));
    let always = || PERMISSIONS.iter().chain([&REWRITE_PERMISSION]);
    let all = always().chain(&REPLICA_PERMISSIONS);
    let listed: BTreeSet<String> = all.map(|right| right.name.to_owned()).collect();
    let missing: Vec<_> = used.difference(&listed).collect();
    assert!(missing.is_empty(), "not in RIGHTS: {missing:?}");
    // The commands of the libraries, and of transactions.
    let of_libraries = ["auth", "exec", "hello", "multi", "ping", "select", "unwatch"];
    let idle = listed.iter().filter(|name| !used.contains(*name));
    let idle: Vec<_> = idle.map(String::as_str).collect();
    assert_eq!(idle, of_libraries, "unused rights");
    let documented: BTreeSet<String> = documented("secret").into_iter().collect();
    let of_docs: BTreeSet<&str> = documented.iter().filter_map(|word| word.strip_prefix('+')).collect();
    assert_eq!(of_docs, always().map(|right| right.name).collect::<BTreeSet<_>>());
    assert!(documented.contains(KEY_PATTERN));
    let docs = fs::read_to_string(root().join("docs/running.md")).unwrap();
    for right in REPLICA_PERMISSIONS {
        assert!(docs.contains(&format!("`+{}`", right.name)), "{}", right.name);
    }
}
