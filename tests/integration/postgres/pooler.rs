//! PostgreSQL behind PgBouncer: which modes work, and which are refused at the start.
//!
//! `make install` installs PgBouncer; `PGBOUNCER_BIN` names another one. Transaction mode needs PgBouncer 1.21, which tracks
//! prepared statements; with an older one the test expects a refusal.

use std::{fs, path::PathBuf, process::Stdio, time::Duration};

use firstcome::dev::{ScratchDir, free_port};
use serde_json::json;
use tokio::{net::TcpStream, process::Child};

use crate::{
    process::binary::{Servers, get, post, put, run},
    support::harness::until,
};

/// A running PgBouncer in front of a server.
struct Pooler {
    url: String,
    child: Child,
    log: PathBuf,
    _dir: ScratchDir,
}

/// PgBouncer's program and version.
fn pgbouncer() -> (PathBuf, (u32, u32)) {
    let given = std::env::var_os("PGBOUNCER_BIN").filter(|path| !path.is_empty()).map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).chain(["/usr/sbin".into()]).map(|dir| dir.join("pgbouncer"));
    let program = given.or_else(|| found.into_iter().find(|program| program.is_file()));
    let program =
        program.expect("PgBouncer is missing: `make install`, or `apt-get install pgbouncer`, or set PGBOUNCER_BIN");
    let output = std::process::Command::new(&program).arg("--version").output().unwrap();
    let output = String::from_utf8(output.stdout).unwrap();
    let version = output.split_whitespace().nth(1).unwrap().split('.').map(|number| number.parse().unwrap_or(0));
    let version: Vec<u32> = version.collect();
    (program, (version[0], version[1]))
}

/// Whether this PgBouncer can track prepared statements.
fn tracks_statements() -> bool {
    let (program, version) = pgbouncer();
    println!("{} {version:?}", program.display());
    version >= (1, 21)
}

impl Pooler {
    /// `tracked`: the number of prepared statements that PgBouncer tracks, from version 1.21 on.
    async fn start(servers: &Servers, mode: &str, tracked: u32, connections: u32) -> Pooler {
        let dir = ScratchDir::new().unwrap();
        let port = free_port().unwrap();
        let (user, rest) = servers.postgres_url.strip_prefix("postgres://").unwrap().split_once(':').unwrap();
        let (password, rest) = rest.split_once('@').unwrap();
        let (address, _) = rest.split_once('/').unwrap();
        let (host, server_port) = address.split_once(':').unwrap();
        let mut config = format!(
            "[databases]\n* = host={host} port={server_port} user={user} password={password}\n\
             [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n\
             pool_mode = {mode}\ndefault_pool_size = {connections}\nmax_client_conn = 200\n"
        );
        let (program, version) = pgbouncer();
        if version >= (1, 21) {
            config += &format!("max_prepared_statements = {tracked}\n");
        }
        if rustix::process::geteuid().is_root() {
            // PgBouncer refuses to run as root.
            config += "user = nobody\n";
        }
        let (file, log) = (dir.path().join("pgbouncer.ini"), dir.path().join("pgbouncer.log"));
        fs::write(&file, config).unwrap();
        let mut command = tokio::process::Command::new(program);
        command.arg(&file).stdin(Stdio::null()).kill_on_drop(true);
        command.stdout(fs::File::create(&log).unwrap()).stderr(fs::File::options().append(true).open(&log).unwrap());
        let mut child = command.spawn().unwrap();
        until("PgBouncer listens", async || {
            assert!(child.try_wait().unwrap().is_none(), "{}", fs::read_to_string(&log).unwrap());
            TcpStream::connect(("127.0.0.1", port)).await.ok()
        })
        .await;
        Pooler { url: format!("postgres://{user}@127.0.0.1:{port}/postgres"), child, log, _dir: dir }
    }

    async fn end(mut self) {
        self.child.kill().await.unwrap();
    }
}

/// Runs behind the pooler, twice: instances, a sale, its projection, an audit, rebuilds.
async fn whole_sale(mode: &str, tracked: u32, connections: u32) {
    let servers = Servers::start().await;
    let pooler = Pooler::start(&servers, mode, tracked, connections).await;
    let through =
        [("DATABASE_URL", pooler.url.as_str()), ("DATABASE_CONNECTIONS", "6"), ("DATABASE_TIMEOUT_MS", "60000")];
    let succeeds = async |args: &[&str]| {
        let mut command = servers.role(args);
        let ended = tokio::time::timeout(Duration::from_secs(300), run(command.envs(through))).await;
        let (status, output) = ended.unwrap_or_else(|_| panic!("{args:?} hangs"));
        assert!(status.success(), "{mode} {args:?}: {output}\n{}", fs::read_to_string(&pooler.log).unwrap());
        output
    };
    for _ in 0..2 {
        succeeds(&["migrate"]).await;
    }
    succeeds(&["seed"]).await;
    for round in 0..2 {
        // Two instances, so that server connections pass from one to the other.
        let mut all = Vec::new();
        for n in 0..2 {
            all.push(servers.start_with(&["serve"], &through, &format!("serve-{round}-{n}")));
        }
        let mut bases = Vec::new();
        for serve in &mut all {
            bases.push(serve.base().await);
        }
        let users = post(&bases[0], "/admin/v1/users/bulk", json!({"count": 20, "balance": 1_000_000})).await.created();
        let first = users["firstUserId"].as_i64().unwrap();
        let shopping = (first..first + 20).map(|user| {
            let base = &bases[(user % 2) as usize];
            async move {
                put(base, &format!("/api/v1/balances/{user}"), json!({"amount": 1000})).await.ok();
                post(base, "/api/v1/coupons/issue", json!({"couponId": 1, "userId": user})).await.ok();
                let lines = json!([{"productId": 5, "quantity": 1}, {"productId": 6, "quantity": 1}]);
                let order = json!({"userId": user, "orderProducts": lines, "userCouponId": 1});
                let order = post(base, "/api/v1/orders", order).await.ok();
                let pay = json!({"orderId": order["orderId"], "userId": user, "paymentType": "CARD",
                    "amount": order["finalPrice"]});
                post(base, "/api/v1/payments", pay).await.ok();
                get(base, &format!("/api/v1/balances/{user}/history")).await.ok();
                get(base, "/admin/v1/orders?size=5").await.ok();
            }
        });
        futures_util::future::join_all(shopping).await;
        let audit = succeeds(&["audit"]).await;
        assert!(!audit.contains("mixes up"), "{audit}");
        for serve in &mut all {
            serve.stop().await;
            assert!(serve.logged("the outbox is drained").is_some(), "{}", serve.err());
            assert!(!serve.err().contains("mixes up") && !serve.err().contains("sqlx_s_"), "{}", serve.err());
        }
        // The pooler's connections hold no lock: a second rebuild would wait for it.
        for _ in 0..2 {
            succeeds(&["rebuild"]).await;
        }
        let db = servers.db().await;
        let locks: i64 = sqlx::query_scalar("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")
            .fetch_one(db.get_postgres_connection_pool())
            .await
            .unwrap();
        assert_eq!(locks, 0, "{mode}");
        db.close().await.unwrap();
        succeeds(&["audit"]).await;
    }
    pooler.end().await;
    servers.end().await;
}

/// Every command that needs PostgreSQL fails at once with an error that names the remedy.
async fn commands_refused(mode: &str, tracked: u32, connections: u32, expected: &[&str]) {
    let servers = Servers::start().await;
    let direct = async |args: &[&str]| assert!(run(&mut servers.role(args)).await.0.success(), "{args:?}");
    direct(&["migrate"]).await;
    direct(&["seed"]).await;
    let pooler = Pooler::start(&servers, mode, tracked, connections).await;
    for role in ["migrate", "serve", "project", "rebuild", "audit", "serve"] {
        let mut command = servers.role(&[role]);
        command.env("DATABASE_URL", &pooler.url).env("DATABASE_TIMEOUT_MS", "60000");
        let (status, output) = run(&mut command).await;
        assert!(!status.success(), "{role} behind {mode} {tracked}: {output}");
        for part in expected {
            assert!(output.contains(part), "{role}: {part:?} is not in {output}");
        }
    }
    pooler.end().await;
    let mut project = servers.start_role(&["project"], "project");
    until("the projector runs", async || project.logged("projecting")).await;
    project.stop().await;
    servers.end().await;
}

const UNTRACKED: &[&str] = &["transaction mode", "max_prepared_statements", "session mode"];

#[tokio::test]
async fn sale_runs_when_pooler_in_session_mode() {
    whole_sale("session", 0, 30).await;
}

#[tokio::test]
async fn sale_runs_when_pooler_in_transaction_mode_tracks_statements() {
    if tracks_statements() {
        // Fewer server connections than client connections: every transaction may get another one.
        whole_sale("transaction", 200, 4).await;
    } else {
        commands_refused("transaction", 200, 4, UNTRACKED).await;
    }
}

#[tokio::test]
async fn start_refused_when_pooler_in_transaction_mode_tracks_no_statements() {
    for connections in [1, 2, 20] {
        commands_refused("transaction", 0, connections, UNTRACKED).await;
    }
}

#[tokio::test]
async fn start_refused_when_pooler_in_statement_mode() {
    commands_refused("statement", 200, 5, &["statement mode"]).await;
}
