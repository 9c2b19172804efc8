//! The ways to reach Redis: RESP3, TLS with client certificates, Sentinels, a cluster whose certificates have host
//! names.

use std::{fs, path::PathBuf};

use firstcome::{
    app::App,
    config::{RedisConfig, Secret},
    dev::{self, RedisServer, ScratchDir},
    model::Clock,
    recovery::rebuild,
};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use reqwest::Method;
use serde_json::json;

use crate::{
    operators::dashboard_feed::Watch,
    projector::projection::busy_day,
    recovery::rebuild::rebuilt,
    redis::failover::{in_sync, port, server},
    support::harness::{self, Options, START, TestApp, fresh_database, postgres_url, raw_redis, until},
};

/// Runs one of everything that the service does with Redis.
pub async fn everything(test: &TestApp) {
    busy_day(test).await;
    let first = test.get("/api/v1/products?size=1").await.ok()["products"][0]["productId"].as_i64().unwrap_or(1);
    let (path, stock) = (format!("/admin/v1/products/{first}"), json!({"stockDelta": 1}));
    test.send(Method::PATCH, &path, Some(&stock), Some("a-key")).await.ok();
    assert!(test.send(Method::PATCH, &path, Some(&stock), Some("a-key")).await.replayed());
    for path in [
        "/api/v1/products/popular",
        "/api/v1/products/popular?sortBy=MONTHLY",
        "/api/v1/campaigns",
        "/api/v1/balances/1",
        "/api/v1/balances/1/history",
        "/api/v1/coupons/1",
        "/admin/v1/projection",
        "/admin/v1/orders",
        "/admin/v1/audit",
        "/readyz",
        "/metrics",
    ] {
        let reply = test.get(path).await;
        assert_eq!(reply.status, 200, "{path}: {}", reply.text);
    }
    let popular = test.get("/api/v1/products/popular?sortBy=TODAY").await.ok();
    assert!(popular.as_array().is_some_and(|popular| !popular.is_empty()), "{popular}");
    let shown = |seen: &serde_json::Value| {
        let all = |list: &serde_json::Value| list.as_array().is_some_and(|list| !list.is_empty());
        all(&seen["products"])
            && all(&seen["rankings"]["TODAY"])
            && seen["redis"]["servers"] == 1
            && seen["redis"]["appendfsync"] == "always"
    };
    Watch::open(&test.base).await.until("everything", shown).await;
    test.clock.advance(700_000);
    test.engine.sweep().await.unwrap();
    test.drain().await;
    rebuilt(test, rebuild::RebuildOptions { lost_at_most: rebuild::LossBounds::Each(0), ..Default::default() }).await;
    test.engine.check().await;
    let user = test.user(1_000).await;
    test.put_charge(user, 5).await.ok();
    // The projector reads the event with a blocking command.
    test.app.project();
    until("PostgreSQL has every event", async || {
        (test.get("/admin/v1/projection").await.ok()["lagEvents"] == 0).then_some(())
    })
    .await;
}

async fn plain(dir: &ScratchDir, args: &[&str]) -> RedisServer {
    let mut config = dev::RedisServerConfig::new(dir.path().join("redis"));
    config.extra_args = args.iter().map(|arg| (*arg).to_owned()).collect();
    RedisServer::start(config).await.unwrap()
}

/// The error of a start with this Redis.
pub async fn refusal(redis: RedisConfig) -> String {
    let database = fresh_database().await;
    let mut config = harness::engine_config(&Options::default(), "", &postgres_url(&database));
    config.redis = redis;
    let opened = App::open(&config, &Default::default(), Clock::standing(START)).await;
    let Err(error) = opened else { panic!("it starts") };
    harness::drop_database(&database).await;
    format!("{error:#}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sale_runs_over_resp3() {
    for partitions in [1, 3] {
        let dir = ScratchDir::new().unwrap();
        let redis = plain(&dir, &[]).await;
        let redis_config = harness::redis_config(&format!("{}?protocol=resp3", redis.url()));
        let options = Options { partitions, redis: Some(redis_config), ..Options::default() };
        let test = TestApp::on(options, dir, redis, fresh_database().await).await;
        everything(&test).await;
        test.finish().await;
    }
}

/// The certificates of a test's own authority.
struct Authority {
    dir: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new(dir: &ScratchDir, name: &str) -> Authority {
        let (key, mut params) = (KeyPair::generate().unwrap(), CertificateParams::default());
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let (dir, own) = (dir.path().to_owned(), params.self_signed(&key).unwrap().pem());
        fs::write(dir.join(format!("{name}.pem")), own).unwrap();
        Authority { dir, issuer: Issuer::new(params, key) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Writes `name.pem` and `name.key`.
    fn issue(&self, name: &str, host: &str) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([host.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        fs::write(self.path(&format!("{name}.pem")), certificate.pem()).unwrap();
        fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
    }

    /// A server with TLS only, a certificate for this host, and its port.
    async fn server(&self, dir: &ScratchDir, host: &str, args: &[&str]) -> (RedisServer, u16) {
        self.issue("server", host);
        let port = dev::free_port().unwrap();
        let file = |name: &str| self.path(name).display().to_string();
        let (number, certificate, key, ca) =
            (port.to_string(), file("server.pem"), file("server.key"), file("authority.pem"));
        let tls = ["--tls-port", &number, "--tls-cert-file", &certificate, "--tls-key-file", &key];
        let all: Vec<&str> = tls.into_iter().chain(["--tls-ca-cert-file", &ca]).chain(args.iter().copied()).collect();
        (plain(dir, &all).await, port)
    }

    /// The settings of a server on this port that requires a client certificate.
    fn config(&self, port: u16) -> RedisConfig {
        RedisConfig {
            redis_tls_ca: Some(self.path("authority.pem")),
            redis_tls_cert: Some(self.path("client.pem")),
            redis_tls_key: Some(self.path("client.key")),
            ..harness::redis_config(&format!("rediss://localhost:{port}"))
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sale_runs_with_client_certificates() {
    // Installs the process's TLS provider.
    harness::client();
    let dir = ScratchDir::new().unwrap();
    let (ours, other) = (Authority::new(&dir, "authority"), Authority::new(&dir, "another"));
    ours.issue("client", "a-client");
    other.issue("foreign", "a-client");
    let (redis, port) = ours.server(&dir, "localhost", &["--tls-auth-clients", "yes"]).await;
    let config = ours.config(port);
    // Without a certificate, with one of another authority, and with a server certificate that is not trusted or has
    // another name.
    let none = RedisConfig { redis_tls_cert: None, redis_tls_key: None, ..config.clone() };
    let (certificate, key) = (Some(other.path("foreign.pem")), Some(other.path("foreign.key")));
    let strange = RedisConfig { redis_tls_cert: certificate, redis_tls_key: key, ..config.clone() };
    let unbelieved = RedisConfig { redis_tls_ca: Some(other.path("another.pem")), ..config.clone() };
    let mismatched = RedisConfig { redis_tls_key: Some(other.path("foreign.key")), ..config.clone() };
    let misnamed = RedisConfig { redis_url: Secret::new(format!("rediss://127.0.0.1:{port}")), ..config.clone() };
    for refused in [none, strange, unbelieved, mismatched, misnamed] {
        let reason = refusal(refused).await;
        assert!(reason.contains("can't reach Redis at REDIS_URL"), "{reason}");
        println!("{reason}");
    }
    let options = Options { redis: Some(config), ..Options::default() };
    let test = TestApp::on(options, dir, redis, fresh_database().await).await;
    everything(&test).await;
    test.finish().await;
}

/// A node that announces its host name, and one that does not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cluster_found_by_announced_host_names() {
    harness::client();
    for announced in [true, false] {
        let dir = ScratchDir::new().unwrap();
        let ours = Authority::new(&dir, "authority");
        ours.issue("client", "a-client");
        let bus = dev::free_port().unwrap().to_string();
        let cluster = ["--cluster-enabled", "yes", "--cluster-port", &bus, "--tls-cluster", "yes"];
        // The default: the other nodes know this one by its IP address.
        let address = ["--cluster-preferred-endpoint-type", "ip", "--cluster-announce-ip", "127.0.0.1"];
        let name: &[&str] = if announced { &["--cluster-announce-hostname", "localhost"] } else { &[] };
        let (redis, port) = ours.server(&dir, "localhost", &[&cluster[..], &address[..], name].concat()).await;
        let mut link = raw_redis(&redis.url()).await;
        redis::cmd("CLUSTER").arg("ADDSLOTSRANGE").arg(0).arg(16_383).exec_async(&mut link).await.unwrap();
        until("the cluster is up", async || {
            let info: String = redis::cmd("CLUSTER").arg("INFO").query_async(&mut link).await.unwrap();
            info.contains("cluster_state:ok").then_some(())
        })
        .await;
        if !announced {
            let reason = refusal(ours.config(port)).await;
            assert!(reason.contains("cluster-announce-hostname"), "{reason}");
            continue;
        }
        let options = Options { partitions: 3, redis: Some(ours.config(port)), ..Options::default() };
        let test = TestApp::on(options, dir, redis, fresh_database().await).await;
        everything(&test).await;
        test.finish().await;
    }
}

pub const SENTINEL_PASSWORD: &str = "of-the-sentinels";

/// A Sentinel that watches a master.
pub async fn sentinel(dir: &ScratchDir, n: usize, master: &str) -> RedisServer {
    let mut config = dev::RedisServerConfig::new(dir.path().join(format!("sentinel-{n}")));
    config.port = Some(dev::free_port().unwrap());
    config.sentinel = vec![
        format!("sentinel monitor mymaster 127.0.0.1 {master} 2"),
        "sentinel down-after-milliseconds mymaster 1000".to_owned(),
        "sentinel failover-timeout mymaster 5000".to_owned(),
        format!("requirepass {SENTINEL_PASSWORD}"),
        format!("sentinel sentinel-pass {SENTINEL_PASSWORD}"),
    ];
    RedisServer::start(config).await.unwrap()
}

/// Three Sentinels that watch a master.
pub async fn sentinels(dir: &ScratchDir, master: &str) -> Vec<RedisServer> {
    let mut sentinels = Vec::new();
    for n in 0..3 {
        sentinels.push(sentinel(dir, n, master).await);
    }
    sentinels
}

/// The service's address of the master of these Sentinels.
pub fn sentinel_url(sentinels: &[RedisServer]) -> String {
    let hosts: Vec<String> = sentinels.iter().map(|sentinel| format!("127.0.0.1:{}", port(sentinel))).collect();
    format!("redis+sentinel://{}/mymaster?sentinel_password={SENTINEL_PASSWORD}", hosts.join(","))
}

/// Waits until the Sentinels know each other and so many replicas.
pub async fn know_each_other(sentinels: &[RedisServer], replicas: usize) {
    let replicas = format!("slaves={replicas},");
    for sentinel in sentinels {
        let mut link = signed_in(sentinel).await;
        until("the Sentinels know each other and the replicas", async || {
            let info: String = redis::cmd("INFO").arg("sentinel").query_async(&mut link).await.unwrap();
            info.contains("status=ok").then_some(())?;
            (info.contains(&replicas) && info.contains("sentinels=3")).then_some(())
        })
        .await;
    }
}

/// Waits until this Sentinel names one of these servers as the master. Returns its index.
pub async fn elected(sentinel: &RedisServer, servers: &[RedisServer]) -> usize {
    let mut link = signed_in(sentinel).await;
    until("the Sentinels elect a master", async || {
        let ask = redis::cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg("mymaster").clone();
        let (_, named): (String, String) = ask.query_async(&mut link).await.unwrap();
        servers.iter().position(|server| port(server) == named)
    })
    .await
}

pub async fn signed_in(sentinel: &RedisServer) -> redis::aio::MultiplexedConnection {
    raw_redis(&format!("redis://:{SENTINEL_PASSWORD}@127.0.0.1:{}", port(sentinel))).await
}

/// A test app that finds its Redis through Sentinels, and the replica.
async fn watched_over() -> (TestApp, RedisServer, Vec<RedisServer>) {
    let dir = ScratchDir::new().unwrap();
    let master = server(&dir, "master", None).await;
    let replica = server(&dir, "replica", Some(&master)).await;
    let sentinels = sentinels(&dir, &port(&master)).await;
    know_each_other(&sentinels, 1).await;
    let redis = RedisConfig { redis_timeout_ms: 5_000, ..harness::redis_config(&sentinel_url(&sentinels)) };
    let options = Options { project: true, redis: Some(redis), ..Options::default() };
    let test = TestApp::on(options, dir, master, fresh_database().await).await;
    test.app.watch(true);
    (test, replica, sentinels)
}

/// TLS with client certificates on every connection: to the Sentinels, from them to the master, and to the master, which has a
/// password of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sale_runs_with_sentinels_over_tls() {
    harness::client();
    let dir = ScratchDir::new().unwrap();
    let ours = Authority::new(&dir, "authority");
    ours.issue("client", "a-client");
    let args = ["--tls-auth-clients", "yes", "--tls-replication", "yes", "--requirepass", "of-the-master"];
    // The Sentinels announce the master by its address, so that its certificate must name it.
    let (redis, master) = ours.server(&dir, "127.0.0.1", &args).await;
    let ports: Vec<u16> = (0..3).map(|_| dev::free_port().unwrap()).collect();
    let file = |name: &str| ours.path(name).display().to_string();
    let mut sentinels = Vec::new();
    for (n, port) in ports.iter().enumerate() {
        let mut config = dev::RedisServerConfig::new(dir.path().join(format!("sentinel-{n}")));
        config.sentinel = vec![
            format!("tls-port {port}"),
            format!("tls-cert-file {}", file("server.pem")),
            format!("tls-key-file {}", file("server.key")),
            format!("tls-ca-cert-file {}", file("authority.pem")),
            "tls-replication yes".to_owned(),
            "tls-auth-clients yes".to_owned(),
            format!("sentinel monitor mymaster 127.0.0.1 {master} 2"),
            "sentinel auth-pass mymaster of-the-master".to_owned(),
            format!("requirepass {SENTINEL_PASSWORD}"),
            format!("sentinel sentinel-pass {SENTINEL_PASSWORD}"),
        ];
        sentinels.push(RedisServer::start(config).await.unwrap());
    }
    let hosts: Vec<String> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
    let url = |password: &str| {
        let sentinel = format!("?sentinel_password={SENTINEL_PASSWORD}&protocol=resp3");
        format!("rediss+sentinel://:{password}@{}/mymaster{sentinel}", hosts.join(","))
    };
    let wrong = RedisConfig { redis_url: Secret::new(url("hunter2")), ..ours.config(0) };
    let reason = refusal(wrong).await;
    assert!(reason.contains("can't reach Redis at REDIS_URL") && !reason.contains("hunter2"), "{reason}");
    let config = RedisConfig { redis_url: Secret::new(url("of-the-master")), ..ours.config(0) };
    let own = format!("{}?pass=of-the-master", redis.url());
    let options = Options { redis: Some(config), raw_url: Some(own), ..Options::default() };
    let test = TestApp::on(options, dir, redis, fresh_database().await).await;
    everything(&test).await;
    test.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn master_followed_when_sentinels_elect_after_kill() {
    let (mut test, replica, sentinels) = watched_over().await;
    let user = test.user(0).await;
    for _ in 0..20 {
        test.put_charge(user, 1).await.ok();
    }
    in_sync(&test.redis, &replica).await;
    let mut old = std::mem::replace(&mut test.redis, replica);
    old.kill().await.unwrap();
    let body = json!({"amount": 1});
    let path = format!("/api/v1/balances/{user}");
    let reply = until("the new master is found", async || {
        let reply = test.send(Method::PUT, &path, Some(&body), Some("a-key")).await;
        (reply.status != 503).then_some(reply)
    })
    .await;
    assert_eq!(reply.ok()["balance"], 21);
    test.get("/readyz").await.ok();
    // The service works with one Sentinel less, and with the old master back as a replica.
    let mut sentinels = sentinels;
    sentinels[0].kill().await.unwrap();
    old.restart().await.unwrap();
    test.put_charge(user, 1).await.ok();
    test.finish().await;
}

/// Makes the Sentinels name this server.
pub async fn name_another(sentinels: &[RedisServer], server: &RedisServer) {
    for sentinel in sentinels {
        let mut link = signed_in(sentinel).await;
        let sentinel = |word: &str| redis::cmd("SENTINEL").arg(word).arg("mymaster").clone();
        sentinel("REMOVE").exec_async(&mut link).await.unwrap();
        let monitor = sentinel("MONITOR").arg("127.0.0.1").arg(port(server)).arg(2).clone();
        monitor.exec_async(&mut link).await.unwrap();
    }
}

/// The old master runs, replies, and reports itself as master: only the Sentinels name another one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn master_followed_when_sentinels_name_another() {
    let (mut test, replica, sentinels) = watched_over().await;
    let user = test.user(0).await;
    test.put_charge(user, 1).await.ok();
    in_sync(&test.redis, &replica).await;
    let mut new = raw_redis(&replica.url()).await;
    redis::cmd("REPLICAOF").arg("NO").arg("ONE").exec_async(&mut new).await.unwrap();
    name_another(&sentinels, &replica).await;
    let old = std::mem::replace(&mut test.redis, replica);
    let mut link = raw_redis(&old.url()).await;
    until("the old master is left", async || {
        let list = redis::cmd("CLIENT").arg("LIST").arg("TYPE").arg("normal").clone();
        let list: String = list.query_async(&mut link).await.unwrap();
        (list.lines().count() == 1).then_some(())
    })
    .await;
    test.put_charge(user, 1).await.ok();
    let there: Option<String> =
        redis::cmd("HGET").arg(format!("{{p0}}:user:{user}")).arg("balance").query_async(&mut new).await.unwrap();
    assert_eq!(there.as_deref(), Some("2"));
    test.finish().await;
}
