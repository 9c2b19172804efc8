//! The program as a user or an init system runs it: messages, start, stop, and the files that it leaves.

mod dev_command;
mod messages;
mod roles;

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

/// A secret that no output may contain.
const SECRET: &str = "hunter2-is-a-secret";
pub const ADMIN: &str = "a-token-for-tests";

/// The program under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_firstcome");

/// The program with these arguments; its environment has no variables of ours except for the paths of the servers'
/// programs.
pub fn program(args: &[&str]) -> Command {
    program_at(Path::new(PROGRAM), args)
}

/// As [`program`], for the program of any version.
pub fn program_at(program: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(args).env_clear().stdin(Stdio::null()).kill_on_drop(true);
    for name in ["PATH", "HOME", "TMPDIR", "REDIS_SERVER_BIN", "POSTGRES_BIN_DIR", "FIRSTCOME_CACHE_DIR"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command
}

/// Runs the program until it ends. Returns its status and output.
pub async fn run(command: &mut Command) -> (ExitStatus, String) {
    let output = command.output().await.unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status, String::from_utf8(said).unwrap())
}

/// A running process. Its output goes to files.
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
        let read =
            |line: &str| serde_json::from_str(line).unwrap_or_else(|_| panic!("a line of the log is not JSON: {line}"));
        // The last line may be incomplete.
        let log = self.err();
        log.rsplit_once('\n').map_or("", |(whole, _)| whole).lines().map(read).collect()
    }

    pub fn logged(&self, message: &str) -> Option<Value> {
        self.log().into_iter().find(|line| line["fields"]["message"] == message)
    }

    /// The base URL, once the log has the address. (`BIND_ADDR` with port 0 lets the system choose the port.)
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

    /// Stops the process as an init system does, and asserts that it succeeds.
    pub async fn stop(&mut self) {
        self.signal(Signal::TERM);
        let status = self.ended().await;
        assert!(status.success(), "{status}\n{}", self.err());
        assert!(self.logged("stopping").is_some(), "{}", self.err());
    }
}

/// The server processes whose working directory is below `dir`.
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

/// Redis and PostgreSQL with passwords, as in a deployment.
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
        let mut redis = dev::RedisServerConfig::new(dir.path().join("redis"));
        redis.extra_args = vec!["--requirepass".into(), SECRET.into()];
        let mut postgres = dev::PostgresServerConfig::new(dir.path().join("postgres"));
        postgres.fsync = false;
        postgres.port = Some(dev::free_port().unwrap());
        let (redis, postgres) = tokio::join!(RedisServer::start(redis), PostgresServer::start(postgres));
        let (redis, postgres) = (redis.unwrap(), postgres.unwrap());
        let redis_url = format!("{}?pass={SECRET}", redis.url());
        let postgres_url = postgres.url("postgres");
        Servers { redis, postgres, redis_url, postgres_url, dir }
    }

    pub fn role(&self, args: &[&str]) -> Command {
        self.role_of(Path::new(PROGRAM), args)
    }

    /// As [`Servers::role`], for the program of any version.
    pub fn role_of(&self, program: &Path, args: &[&str]) -> Command {
        let mut command = program_at(program, args);
        command.env("REDIS_URL", &self.redis_url).env("DATABASE_URL", &self.postgres_url);
        command.env("ADMIN_TOKEN", ADMIN).env("BIND_ADDR", "127.0.0.1:0").env("DRAIN_SECONDS", "300");
        command.env("DRAIN_DELAY_SECONDS", "0");
        // A test is one client, often with one user, so per-client limits are off.
        command.env("RATE_LIMIT_CLIENT_PER_SECOND", "0").env("RATE_LIMIT_USER_PER_SECOND", "0");
        // Timeouts longer than any stall of the machine.
        command.env("REDIS_TIMEOUT_MS", "300000").env("DATABASE_TIMEOUT_MS", "300000");
        command.env("REQUEST_TIMEOUT_MS", "300000").env("RUST_LOG", "debug,hyper=info,reqwest=info");
        command
    }

    pub fn start_role(&self, args: &[&str], name: &str) -> Running {
        self.start_with(args, &[], name)
    }

    /// Starts a role with additional variables.
    pub fn start_with(&self, args: &[&str], variables: &[(&str, &str)], name: &str) -> Running {
        Running::start(self.role(args).envs(variables.iter().copied()), &self.dir, name)
    }

    pub async fn db(&self) -> sea_orm::DatabaseConnection {
        postgres::connect(&harness::postgres_config(&self.postgres_url)).await.unwrap()
    }

    /// Asserts that none of these logs contains a password or token.
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

    /// Checks the invariants of a store with this many partitions, and stops the servers.
    pub async fn end_of(mut self, partitions: u16) {
        let db = self.db().await;
        invariants::check(&mut [harness::raw_redis(&self.redis_url).await], &db, partitions, 0).await;
        db.close().await.unwrap();
        self.redis.kill().await.unwrap();
        self.postgres.kill().await.unwrap();
    }
}
