//! The program itself, as a person or an init system runs it: what it says, how it starts and ends, what it leaves behind.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use firstcome::{
    dev::{self, PostgresServer, RedisServer, ScratchDir},
    postgres,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use crate::{
    process::secrets,
    support::{
        harness::{self, until},
        invariants,
    },
};

/// What no output may show.
const SECRET: &str = "hunter2-is-a-secret";
pub const ADMIN: &str = "a-token-for-tests";

/// The program with these arguments, in an environment without our variables but for where the servers' programs are.
pub fn program(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_firstcome"));
    command.args(args).env_clear().stdin(Stdio::null()).kill_on_drop(true);
    for name in ["PATH", "HOME", "TMPDIR", "REDIS_SERVER_BIN", "POSTGRES_BIN_DIR", "FIRSTCOME_CACHE_DIR"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command
}

/// One run to its end: how it ended, and all that it said.
pub async fn run(command: &mut Command) -> (ExitStatus, String) {
    let output = command.output().await.unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status, String::from_utf8(said).unwrap())
}

/// One that runs until it is told to stop. What it says goes to files.
pub struct Running {
    pub child: Child,
    out: PathBuf,
    err: PathBuf,
}

impl Running {
    pub fn start(command: &mut Command, dir: &ScratchDir, name: &str) -> Running {
        let (out, err) = (dir.path().join(format!("{name}.out")), dir.path().join(format!("{name}.err")));
        command.stdout(fs::File::create(&out).unwrap()).stderr(fs::File::create(&err).unwrap());
        Running { child: command.spawn().unwrap(), out, err }
    }

    pub fn out(&self) -> String {
        fs::read_to_string(&self.out).unwrap()
    }

    pub fn err(&self) -> String {
        fs::read_to_string(&self.err).unwrap()
    }

    pub fn assert_alive(&mut self) {
        let ended = self.child.try_wait().unwrap();
        assert!(ended.is_none(), "it ended: {ended:?}\n{}\n{}", self.out(), self.err());
    }

    /// The lines of its log.
    pub fn log(&self) -> Vec<Value> {
        let read = |line: &str| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON in the log: {line}"));
        // The last line may be half written.
        let log = self.err();
        log.rsplit_once('\n').map_or("", |(whole, _)| whole).lines().map(read).collect()
    }

    pub fn logged(&self, message: &str) -> Option<Value> {
        self.log().into_iter().find(|line| line["fields"]["message"] == message)
    }

    /// Where it serves, once it does: its log says so. (`BIND_ADDR` with port 0 lets the system choose.)
    pub async fn base(&mut self) -> String {
        until("it serves", async || {
            self.assert_alive();
            let address = self.logged("serving")?["fields"]["address"].as_str().unwrap().to_owned();
            Some(format!("http://{address}"))
        })
        .await
    }

    pub fn pid(&self) -> u32 {
        self.child.id().unwrap()
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().unwrap() as i32).unwrap();
        kill_process(pid, signal).unwrap();
    }

    pub async fn ended(&mut self) -> ExitStatus {
        tokio::time::timeout(Duration::from_secs(300), self.child.wait()).await.expect("it does not end").unwrap()
    }

    /// Stops it as an init system does; it must end well.
    pub async fn stop(&mut self) {
        self.signal(Signal::TERM);
        let status = self.ended().await;
        assert!(status.success(), "{status}\n{}", self.err());
        assert!(self.logged("stopping").is_some(), "{}", self.err());
    }
}

/// The server processes that work below `dir`.
fn servers_below(dir: &Path) -> Vec<String> {
    let dir = dir.canonicalize().unwrap();
    let server = |pid: &str| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        let name = name.trim();
        let ours = fs::read_link(format!("/proc/{pid}/cwd")).ok()?.starts_with(&dir);
        let is_server =
            ["redis-server", "valkey-server", "postgres", "initdb"].iter().any(|server| name.contains(server));
        (ours && is_server).then(|| format!("{name} {pid}"))
    };
    let processes = fs::read_dir("/proc").unwrap().flatten();
    processes.filter_map(|process| server(process.file_name().to_str()?)).collect()
}

pub async fn get(base: &str, path: &str) -> harness::Reply {
    harness::read(harness::client().get(format!("{base}{path}")).bearer_auth(ADMIN)).await
}

pub async fn post(base: &str, path: &str, body: Value) -> harness::Reply {
    harness::read(harness::client().post(format!("{base}{path}")).bearer_auth(ADMIN).json(&body)).await
}

pub async fn put(base: &str, path: &str, body: Value) -> harness::Reply {
    harness::read(harness::client().put(format!("{base}{path}")).bearer_auth(ADMIN).json(&body)).await
}

// --- what it says ----------------------------------------------------------------------------------------------------

/// Every variable with a value that must not be shown, or nothing.
fn with_secrets(command: &mut Command) -> &mut Command {
    for name in [
        "REDIS_URL",
        "DATABASE_URL",
        "ADMIN_TOKEN",
        "ADMIN_TOKENS",
        "METRICS_TOKEN",
        "PAYMENT_GATEWAY_CARD_URL",
        "PAYMENT_GATEWAY_KAKAO_PAY_URL",
        "PAYMENT_GATEWAY_TOSS_URL",
        "PAYMENT_GATEWAY_TOKEN",
        "AUTH_JWT_SECRET",
        "AUTH_JWKS_URL",
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    ] {
        command.env(name, SECRET);
    }
    command
}

#[tokio::test]
async fn help_names_every_variable_without_secrets() {
    let shop = ["TIME_ZONE", "ORDER_HOLD_SECONDS", "MAX_OPEN_ORDERS_PER_USER", "MAX_BALANCE", "PARTITIONS"];
    let gateway = ["PAYMENT_GATEWAY_CARD_URL", "PAYMENT_GATEWAY_KAKAO_PAY_URL", "PAYMENT_GATEWAY_TOSS_URL"];
    let http = [
        "BIND_ADDR",
        "ADMIN_TOKEN",
        "REQUEST_TIMEOUT_MS",
        "BODY_LIMIT_BYTES",
        "MAX_CONNECTIONS",
        "DRAIN_SECONDS",
        "DRAIN_DELAY_SECONDS",
        "OPS_BIND_ADDR",
        "TRUSTED_PROXIES",
        "RATE_LIMIT_CLIENT_BURST",
        "MAX_IN_FLIGHT",
        "CORS_ORIGINS",
    ];
    let stores = ["REDIS_URL", "REDIS_TIMEOUT_MS", "DATABASE_URL", "DATABASE_CONNECTIONS", "DATABASE_TIMEOUT_MS"];
    let serve = [&shop[..], &gateway, &http, &stores, &["PROJECTOR_BATCH", "NO_PROJECTOR"]].concat();
    let roles: [(&str, Vec<&str>); 8] = [
        ("dev", [&["FIRSTCOME_DIR"][..], &shop, &gateway, &http].concat()),
        ("serve", serve),
        ("project", [&shop[..], &gateway, &stores, &["PROJECTOR_BATCH", "DRAIN_SECONDS"]].concat()),
        ("migrate", vec!["DATABASE_URL", "DATABASE_TIMEOUT_MS"]),
        ("seed", [&shop[..], &stores].concat()),
        ("rebuild", [&["TIME_ZONE"][..], &stores].concat()),
        ("audit", [&["TIME_ZONE"][..], &stores].concat()),
        ("health", vec!["BIND_ADDR"]),
    ];
    for help in ["--help", "-h"] {
        let (status, said) = run(with_secrets(&mut program(&[help]))).await;
        assert!(status.success() && !said.contains(SECRET), "{said}");
        for (role, _) in &roles {
            assert!(said.contains(&format!("  {role} ")), "{role} is not in {said}");
        }
        if help == "--help" {
            for name in ["REDIS_URL", "DATABASE_URL", "RUST_LOG"] {
                assert!(said.contains(name), "{name} is not in {said}");
            }
        }
        for (role, names) in &roles {
            let (status, said) = run(with_secrets(&mut program(&[role, help]))).await;
            assert!(status.success() && !said.contains(SECRET), "{said}");
            for name in names {
                assert!(said.contains(&format!("env: {name}")), "{name} is not in {said}");
            }
        }
    }
    let (status, said) = run(&mut program(&["--version"])).await;
    assert!(status.success() && said.starts_with("firstcome "), "{said}");
}

#[tokio::test]
async fn start_refused_and_setting_named_when_missing_or_invalid() {
    for (args, names) in [
        (&["serve"][..], &["--redis-url", "--database-url"][..]),
        (&["project"], &["--redis-url", "--database-url"]),
        (&["seed"], &["--redis-url", "--database-url"]),
        (&["migrate"], &["--database-url"]),
        (&["sell"], &["sell", "--help"]),
        (&[], &["Usage: firstcome"]),
    ] {
        let (status, said) = run(&mut program(args)).await;
        assert_eq!(status.code(), Some(2), "{args:?}: {said}");
        for name in names {
            assert!(said.contains(name), "{args:?}: {name} is not in {said}");
        }
    }
    let (status, said) = run(program(&["serve", "--redis-url", "redis://x"]).env("DATABASE_URL", "")).await;
    assert!(!status.success(), "{said}");
    for (name, value) in [
        ("PARTITIONS", "0"),
        ("PARTITIONS", "257"),
        ("TIME_ZONE", "Asia/Atlantis"),
        ("ORDER_HOLD_SECONDS", "0"),
        ("MAX_BALANCE", "9007199254740992"),
        ("BIND_ADDR", "8080"),
        ("PROJECTOR_BATCH", "none"),
        ("DATABASE_CONNECTIONS", "1"),
    ] {
        let mut serve = program(&["serve"]);
        let (status, said) = run(with_secrets(&mut serve).env(name, value)).await;
        assert_eq!(status.code(), Some(2), "{name}={value}: {said}");
        let option = format!("--{}", name.to_lowercase().replace('_', "-"));
        assert!(said.contains(&option) && said.contains(value), "{name}={value}: {said}");
        assert!(!said.contains(SECRET), "{said}");
    }
}

#[tokio::test]
async fn start_error_names_unreachable_store_without_password() {
    let nowhere = format!("postgres://user:{SECRET}@127.0.0.1:1/database");
    let serve = |redis: &str, postgres: &str| {
        let mut command = program(&["serve"]);
        command.env("REDIS_URL", redis).env("DATABASE_URL", postgres).env("BIND_ADDR", "127.0.0.1:0");
        command.env("REDIS_TIMEOUT_MS", "500").env("DATABASE_TIMEOUT_MS", "500").env("RUST_LOG", "debug");
        command
    };
    let dir = ScratchDir::new().unwrap();
    for postgres in [
        nowhere.as_str(),
        &format!("postgres://{SECRET}"),
        &format!("mysql://user:{SECRET}@127.0.0.1/database"),
        SECRET,
    ] {
        let said = secrets::said(&mut serve("redis://127.0.0.1:1", postgres), &dir).await;
        assert!(said.contains("DATABASE_URL") && !said.contains(SECRET), "{said}");
        let (status, said) =
            run(program(&["migrate"]).env("DATABASE_URL", postgres).env("DATABASE_TIMEOUT_MS", "500")).await;
        assert!(!status.success() && said.contains("DATABASE_URL") && !said.contains(SECRET), "{said}");
    }
    let database = harness::fresh_database().await;
    for redis in [
        format!("redis://:{SECRET}@127.0.0.1:1/"),
        format!("redis://user:{SECRET}@127.0.0.1:99999/"),
        format!("{SECRET}://127.0.0.1/"),
        SECRET.to_owned(),
    ] {
        let said = secrets::said(&mut serve(&redis, &harness::postgres_url(&database)), &dir).await;
        assert!(said.contains("REDIS_URL") && !said.contains(SECRET), "{said}");
    }
    for gateway in [SECRET.to_owned(), format!("ftp://user:{SECRET}@host"), format!("http://{SECRET} {SECRET}")] {
        let mut serve = serve("redis://127.0.0.1:1", &nowhere);
        let (status, said) = run(serve.env("PAYMENT_GATEWAY_CARD_URL", &gateway)).await;
        assert!(!status.success() && !said.contains(SECRET), "{said}");
        assert!(said.to_lowercase().contains("gateway"), "{gateway:?} is not what is wrong in {said}");
    }
    harness::drop_database(&database).await;
}

#[tokio::test]
async fn start_error_says_remedy_when_port_taken() {
    let dir = ScratchDir::new().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for role in ["dev", "serve"] {
        let data = dir.path().join("data");
        let mut command = program(&[role]);
        command.env("BIND_ADDR", &address).env("REDIS_URL", "redis://127.0.0.1:1");
        command.env("DATABASE_URL", "postgres://127.0.0.1:1/x").env("FIRSTCOME_DIR", &data);
        let (status, said) = run(&mut command).await;
        assert_eq!(status.code(), Some(1), "{said}");
        for part in [format!("{address} is taken"), "ss -ltnp".into(), "BIND_ADDR=127.0.0.1:".into()] {
            assert!(said.contains(&part), "{part:?} is not in {said}");
        }
        assert!(!data.exists(), "servers were started in vain");
    }
}

#[tokio::test]
async fn start_error_says_remedy_when_server_programs_missing() {
    let dir = ScratchDir::new().unwrap();
    for name in ["REDIS_SERVER_BIN", "POSTGRES_BIN_DIR"] {
        let mut command = program(&["dev"]);
        command.env("FIRSTCOME_DIR", dir.path().join(name)).env("BIND_ADDR", "127.0.0.1:0");
        let (status, said) = run(command.env(name, "/nonexistent")).await;
        assert_eq!(status.code(), Some(1), "{said}");
        assert!(said.contains(&format!("{name}=/nonexistent")), "{said}");
    }
    // None at all: how to get them.
    let mut command = program(&["dev"]);
    command.env_remove("REDIS_SERVER_BIN").env_remove("POSTGRES_BIN_DIR").env("PATH", "/nonexistent");
    command.env("FIRSTCOME_CACHE_DIR", "/nonexistent").env("BIND_ADDR", "127.0.0.1:0");
    let (status, said) = run(command.env("FIRSTCOME_DIR", dir.path().join("none"))).await;
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("make install") && said.contains("apt-get install"), "{said}");
    until("no servers are left", async || servers_below(dir.path()).is_empty().then_some(())).await;
}

// --- dev -------------------------------------------------------------------------------------------------------------

fn dev_in(data: &Path) -> Command {
    let mut command = program(&["dev", "--dir", data.to_str().unwrap()]);
    command.env("BIND_ADDR", "127.0.0.1:0").env("ADMIN_TOKEN", ADMIN);
    command
}

/// The quick start: up, seeded, stopped without a trace but its data, which the next start goes on with, also after it
/// was killed.
#[tokio::test]
async fn dev_command_keeps_data_between_starts() {
    let dir = ScratchDir::new().unwrap();
    let data = dir.path().join("data");
    let mut first = Running::start(&mut dev_in(&data), &dir, "first");
    let base = first.base().await;
    get(&base, "/readyz").await.ok();
    let products = get(&base, "/api/v1/products").await.ok();
    assert_eq!(
        (products["totalElements"].as_i64(), products["content"].as_array().map(Vec::len)),
        (Some(6), Some(6)),
        "{products}"
    );
    assert_eq!(get(&base, "/api/v1/campaigns").await.ok().as_array().map_or(0, Vec::len), 2);
    assert_eq!(get(&base, "/api/v1/balances/1").await.ok()["balance"], 10_000);
    get(&base, "/swagger-ui/index.html").await.status.is_success().then_some(()).unwrap();
    let told = first.out();
    for part in [base.as_str(), "/swagger-ui/index.html", "redis-cli -s ", "psql -h ", "Ctrl-C"] {
        assert!(told.contains(part), "{part:?} is not in {told}");
    }
    let names = servers_below(&data);
    for server in [&["redis-server", "valkey-server"][..], &["postgres"]] {
        assert!(names.iter().any(|name| server.iter().any(|server| name.contains(server))), "{names:?}");
    }
    // A second one in the same place is told who has it.
    let (status, said) = run(&mut dev_in(&data)).await;
    assert_eq!(status.code(), Some(1), "{said}");
    let pid = first.child.id().unwrap();
    assert!(said.contains(&format!("already running (pid {pid})")), "{said}");
    get(&base, "/readyz").await.ok();

    put(&base, "/api/v1/balances/1", json!({"amount": 1})).await.ok();
    let lines = json!([{"productId": 5, "quantity": 1}]);
    let order =
        post(&base, "/api/v1/orders", json!({"userId": 2, "orderProducts": lines})).await.ok()["orderId"].clone();
    first.stop().await;
    assert!(first.logged("the outbox is drained").is_some(), "{}", first.err());
    assert!(servers_below(dir.path()).is_empty(), "{:?}", servers_below(dir.path()));
    assert!(!first.err().contains(ADMIN), "the token is in the log");

    // The second goes on with it, and is killed.
    let mut second = Running::start(&mut dev_in(&data), &dir, "second");
    let base = second.base().await;
    assert_eq!(get(&base, "/api/v1/balances/1").await.ok()["balance"], 10_001);
    assert_eq!(get(&base, "/api/v1/products").await.ok()["totalElements"], 6, "it was seeded again");
    let path = format!("/api/v1/orders/{order}?userId=2");
    assert_eq!(get(&base, &path).await.ok()["orderStatus"], "PENDING");
    put(&base, "/api/v1/balances/1", json!({"amount": 2})).await.ok();
    post(&base, "/api/v1/payments", json!({"orderId": order, "userId": 2, "paymentType": "CARD", "amount": 39_900}))
        .await
        .ok();
    second.child.kill().await.unwrap();
    until("no servers are left", async || servers_below(dir.path()).is_empty().then_some(())).await;

    let mut third = Running::start(&mut dev_in(&data), &dir, "third");
    let base = third.base().await;
    assert_eq!(get(&base, "/api/v1/balances/1").await.ok()["balance"], 10_003);
    assert_eq!(get(&base, &path).await.ok()["orderStatus"], "PAID");
    let history = get(&base, "/api/v1/balances/1/history").await.ok();
    assert_eq!(history.as_array().unwrap().len(), 3, "{history}");
    until("what was in the outbox is projected", async || {
        let projection = get(&base, "/admin/v1/projection").await.ok();
        assert_eq!(projection["deadLetters"], 0);
        (projection["lagEvents"] == 0).then_some(())
    })
    .await;
    // Started right after a kill, before the servers that it left behind are gone.
    third.child.kill().await.unwrap();
    let mut fourth = Running::start(&mut dev_in(&data), &dir, "fourth");
    let base = fourth.base().await;
    assert_eq!(get(&base, "/api/v1/balances/1").await.ok()["balance"], 10_003);
    fourth.stop().await;
    assert!(servers_below(dir.path()).is_empty());
}

#[tokio::test]
async fn dev_command_keeps_token_private() {
    use std::os::unix::fs::MetadataExt;
    let dir = ScratchDir::new().unwrap();
    let data = dir.path().join("data");
    let mut tokens = Vec::new();
    for name in ["first", "second"] {
        let mut command = dev_in(&data);
        let mut dev = Running::start(command.env_remove("ADMIN_TOKEN"), &dir, name);
        let base = dev.base().await;
        let file = data.join("admin-token");
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
        let token = fs::read_to_string(&file).unwrap().trim().to_owned();
        assert!(token.len() >= 32 && dev.out().contains(&token), "{}", dev.out());
        assert!(!dev.err().contains(&token), "the token is in the log");
        get(&base, "/admin/v1/projection").await.refused(401, "UNAUTHORIZED");
        let path = format!("{base}/admin/v1/projection");
        harness::read(harness::client().get(path).bearer_auth(&token)).await.ok();
        // Ctrl-C.
        dev.signal(Signal::INT);
        assert!(dev.ended().await.success(), "{}", dev.err());
        tokens.push(token);
    }
    assert_eq!(tokens[0], tokens[1]);
    assert!(servers_below(dir.path()).is_empty());
}

// --- the roles of a deployment ---------------------------------------------------------------------------------------

/// Servers with passwords, as in a deployment.
pub struct Servers {
    pub redis: RedisServer,
    pub postgres: PostgresServer,
    pub redis_url: String,
    pub postgres_url: String,
    pub dir: ScratchDir,
}

impl Servers {
    pub async fn start() -> Servers {
        let dir = ScratchDir::new().unwrap();
        let mut redis = dev::RedisConfig::new(dir.path().join("redis"));
        redis.extra_args = vec!["--requirepass".into(), SECRET.into()];
        let mut postgres = dev::PostgresConfig::new(dir.path().join("postgres"));
        postgres.fsync = false;
        postgres.port = Some(dev::free_port().unwrap());
        let (redis, postgres) = tokio::join!(RedisServer::start(redis), PostgresServer::start(postgres));
        let (redis, postgres) = (redis.unwrap(), postgres.unwrap());
        let redis_url = format!("{}?pass={SECRET}", redis.url());
        let postgres_url = postgres.url("postgres");
        Servers { redis, postgres, redis_url, postgres_url, dir }
    }

    pub fn role(&self, args: &[&str]) -> Command {
        let mut command = program(args);
        command.env("REDIS_URL", &self.redis_url).env("DATABASE_URL", &self.postgres_url);
        command.env("ADMIN_TOKEN", ADMIN).env("BIND_ADDR", "127.0.0.1:0").env("DRAIN_SECONDS", "300");
        command.env("DRAIN_DELAY_SECONDS", "0");
        // A test is one client, often of one user.
        command.env("RATE_LIMIT_CLIENT_PER_SECOND", "0").env("RATE_LIMIT_USER_PER_SECOND", "0");
        // Timeouts that a stalled machine does not reach.
        command.env("REDIS_TIMEOUT_MS", "300000").env("DATABASE_TIMEOUT_MS", "300000");
        command.env("REQUEST_TIMEOUT_MS", "300000").env("RUST_LOG", "debug,hyper=info,reqwest=info");
        command
    }

    pub fn start_role(&self, args: &[&str], name: &str) -> Running {
        self.start_with(args, &[], name)
    }

    /// With these variables on top.
    pub fn start_with(&self, args: &[&str], variables: &[(&str, &str)], name: &str) -> Running {
        Running::start(self.role(args).envs(variables.iter().copied()), &self.dir, name)
    }

    pub async fn db(&self) -> sea_orm::DatabaseConnection {
        postgres::connect(&harness::postgres_config(&self.postgres_url)).await.unwrap()
    }

    /// Passwords and tokens are in none of these logs.
    fn no_secret_in(&self, roles: &[&Running]) {
        let password = self.postgres_url.split(':').nth(2).unwrap().split('@').next().unwrap();
        assert!(password.len() > 8);
        for role in roles {
            let said = role.out() + &role.err();
            for secret in [SECRET, ADMIN, password] {
                assert!(!said.contains(secret), "{secret} is in {}", role.err.display());
            }
        }
    }

    pub async fn end(self) {
        self.end_of(1).await;
    }

    /// Checks the books of a store of that many partitions, and ends.
    pub async fn end_of(mut self, partitions: u16) {
        let db = self.db().await;
        invariants::check(&mut [harness::raw_redis(&self.redis_url).await], &db, partitions, 0).await;
        db.close().await.unwrap();
        self.redis.kill().await.unwrap();
        self.postgres.kill().await.unwrap();
    }
}

#[tokio::test]
async fn roles_run_as_separate_processes() {
    let servers = Servers::start().await;
    for role in ["serve", "project", "seed"] {
        let (status, said) = run(&mut servers.role(&[role])).await;
        assert_eq!(status.code(), Some(1), "{said}");
        assert!(said.contains("firstcome migrate"), "{role}: {said}");
    }
    let (first, second) = (&mut servers.role(&["migrate"]), &mut servers.role(&["migrate"]));
    for (status, said) in <[_; 2]>::from(tokio::join!(run(first), run(second))) {
        assert!(status.success(), "two at once: {said}");
    }
    let (status, said) = run(&mut servers.role(&["migrate"])).await;
    assert!(status.success(), "a third time: {said}");
    for told in ["The demo catalogue is in.", "nothing was changed"] {
        let (status, said) = run(&mut servers.role(&["seed"])).await;
        assert!(status.success() && said.contains(told), "{said}");
    }

    let mut serve = servers.start_role(&["serve", "--no-projector"], "serve");
    let base = serve.base().await;
    let lines = json!([{"productId": 5, "quantity": 2}]);
    let order = post(&base, "/api/v1/orders", json!({"userId": 2, "orderProducts": lines})).await.ok();
    let order = order["orderId"].as_i64().unwrap();
    let pay = json!({"orderId": order, "userId": 2, "paymentType": "TOSS", "amount": 79_800});
    post(&base, "/api/v1/payments", pay).await.ok();
    // A token that is not ours, in the header, is no less of a secret.
    let wrong = harness::client().get(format!("{base}/admin/v1/projection")).bearer_auth(SECRET);
    harness::read(wrong).await.refused(401, "UNAUTHORIZED");
    let projection = get(&base, "/admin/v1/projection").await.ok();
    assert_eq!(projection["partitions"][0]["projectedSeq"], 0, "{projection}");
    assert!(projection["lagEvents"].as_i64().unwrap() > 10);

    let mut project = servers.start_role(&["project"], "project");
    let db = servers.db().await;
    until("the order is in Postgres", async || {
        project.assert_alive();
        let status: Option<String> = sqlx::query_scalar("SELECT status FROM orders WHERE id = $1")
            .bind(order)
            .fetch_optional(db.get_postgres_connection_pool())
            .await
            .unwrap();
        (status? == "PAID").then_some(())
    })
    .await;
    let listed = get(&base, "/admin/v1/orders").await.ok();
    assert_eq!(listed["content"][0]["orderId"], order, "{listed}");
    // Without a projector it ends at once; what it decided last is the other's to carry.
    put(&base, "/api/v1/balances/1", json!({"amount": 5})).await.ok();
    serve.stop().await;
    project.stop().await;
    assert!(project.logged("the outbox is drained").is_some(), "{}", project.err());
    servers.no_secret_in(&[&serve, &project]);
    db.close().await.unwrap();
    servers.end().await;
}

/// What was answered is carried to Postgres before the process ends, even if the projection hung until then.
#[tokio::test]
async fn stop_drains_outbox() {
    let servers = Servers::start().await;
    assert!(run(&mut servers.role(&["migrate"])).await.0.success());
    let mut serve = servers.start_role(&["serve"], "serve");
    let base = serve.base().await;
    let user = post(&base, "/admin/v1/users", json!({"userName": "A", "balance": 0})).await.created()["userId"].clone();
    // Nothing can be projected while somebody else has the position's row.
    let db = servers.db().await;
    let mut lock = db.get_postgres_connection_pool().begin().await.unwrap();
    sqlx::query("SELECT 1 FROM projection_positions FOR UPDATE").execute(&mut *lock).await.unwrap();
    for n in 1..=20 {
        let charged = put(&base, &format!("/api/v1/balances/{user}"), json!({"amount": 1})).await.ok();
        assert_eq!(charged["balance"], n);
    }
    serve.signal(Signal::TERM);
    until("it takes no more requests", async || {
        harness::client().get(format!("{base}/healthz")).send().await.err().map(drop)
    })
    .await;
    serve.assert_alive();
    lock.rollback().await.unwrap();
    let status = serve.ended().await;
    assert!(status.success(), "{status}\n{}", serve.err());
    assert!(serve.logged("the outbox is drained").is_some(), "{}", serve.err());
    let balance: i64 =
        sqlx::query_scalar("SELECT balance FROM users").fetch_one(db.get_postgres_connection_pool()).await.unwrap();
    assert_eq!(balance, 20);
    db.close().await.unwrap();
    servers.no_secret_in(&[&serve]);
    servers.end().await;
}

/// Killed in the middle of its work, it loses nothing that it answered, and a repeat under its key is no second time.
#[tokio::test]
async fn kill_loses_no_acknowledged_decision() {
    const REQUESTS: u32 = 200;
    let servers = Servers::start().await;
    assert!(run(&mut servers.role(&["migrate"])).await.0.success());
    let mut serve = servers.start_role(&["serve"], "first");
    let mut base = serve.base().await;
    let user = post(&base, "/admin/v1/users", json!({"userName": "A", "balance": 0})).await.created()["userId"].clone();
    let path = format!("/api/v1/balances/{user}");
    let mut balance = 0;
    for round in 0..3_u32 {
        let (client, answered) = (harness::client(), tokio::sync::Semaphore::new(0));
        let requests = (0..REQUESTS).map(|n| {
            let request = client.put(format!("{base}{path}")).header("Idempotency-Key", format!("{round}-{n}"));
            let sent = request.json(&json!({"amount": 1})).send();
            let answered = &answered;
            async move {
                let answer = sent.await;
                answered.add_permits(1);
                answer
            }
        });
        let requests = futures_util::future::join_all(requests);
        let kill = async {
            drop(answered.acquire_many(REQUESTS / 4).await.unwrap());
            serve.child.kill().await.unwrap();
        };
        let (answers, ()) = tokio::join!(requests, kill);
        let answered = answers.iter().flatten().filter(|answer| answer.status() == 200).count() as i64;
        serve = servers.start_role(&["serve"], &format!("after-{round}"));
        base = serve.base().await;
        let now = get(&base, &path).await.ok()["balance"].as_i64().unwrap();
        assert!(
            (balance + answered..=balance + i64::from(REQUESTS)).contains(&now),
            "{balance} + {answered} answered, {now} there"
        );
        for n in 0..REQUESTS {
            let request =
                harness::client().put(format!("{base}{path}")).header("Idempotency-Key", format!("{round}-{n}"));
            harness::read(request.json(&json!({"amount": 1}))).await.ok();
        }
        balance += i64::from(REQUESTS);
        assert_eq!(get(&base, &path).await.ok()["balance"], balance);
    }
    serve.stop().await;
    servers.end().await;
}
