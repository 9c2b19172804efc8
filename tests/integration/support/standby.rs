//! A PostgreSQL with a streaming standby, at an address that moves from one to the other.

use std::{
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use firstcome::dev::{PostgresServer, PostgresServerConfig, ScratchDir};
use sqlx::PgPool;

use super::harness::until;

/// The standby of a primary.
pub struct Standby {
    pub server: PostgresServer,
    /// The directory whose socket leads to one of the two.
    address: PathBuf,
}

async fn pool(url: &str) -> PgPool {
    PgPool::connect(url).await.unwrap()
}

fn config(dir: &ScratchDir, name: &str, durable: bool) -> PostgresServerConfig {
    let mut config = PostgresServerConfig::new(dir.path().join(name));
    config.fsync = durable;
    config.settings = vec![("wal_retrieve_retry_interval".to_owned(), "100ms".to_owned())];
    config
}

/// Starts a primary and its standby in a directory. The address leads to the primary. `durable`: whether their data survive full disks.
pub async fn pair(dir: &ScratchDir, durable: bool) -> (PostgresServer, Standby) {
    let mut primary = PostgresServer::start(config(dir, "primary", durable)).await.unwrap();
    let standby = Standby::of(&mut primary, dir, "standby", durable).await;
    (primary, standby)
}

impl Standby {
    /// Gives a primary a standby of this name, in the same directory, as durable. Restarts the primary. The address leads to the primary.
    pub async fn of(primary: &mut PostgresServer, dir: &ScratchDir, name: &str, durable: bool) -> Standby {
        let socket = primary.socket_dir().display().to_string();
        let admin = pool(&primary.url("postgres")).await;
        let sql = format!("ALTER SYSTEM SET primary_conninfo = 'host={socket} port=5432 user=firstcome'");
        sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&admin).await.unwrap();
        admin.close().await;
        primary.stop().await.unwrap();
        // A copy of a stopped server is what a base backup is.
        let signal = primary.data_dir().join("standby.signal");
        std::fs::write(&signal, "").unwrap();
        let mut copy = config(dir, name, durable);
        copy.template = Some(primary.data_dir().to_owned());
        let server = PostgresServer::start(copy).await.unwrap();
        std::fs::remove_file(&signal).unwrap();
        primary.restart().await.unwrap();
        let address = dir.path().join("address");
        std::fs::create_dir_all(&address).unwrap();
        let standby = Standby { server, address };
        standby.lead_to(primary);
        standby
    }

    /// The URL of a database at the address, which the failover does not change.
    pub fn url(&self, primary: &PostgresServer, database: &str) -> String {
        let path = |path: &Path| path.to_str().unwrap().to_owned();
        let direct = primary.url(database);
        let url = direct.replace(&path(primary.socket_dir()), &path(&self.address));
        assert_ne!(url, direct);
        url
    }

    /// Leads the address to this server.
    pub fn lead_to(&self, server: &PostgresServer) {
        let name = ".s.PGSQL.5432";
        let next = self.address.join("next");
        symlink(server.socket_dir().join(name), &next).unwrap();
        std::fs::rename(next, self.address.join(name)).unwrap();
    }

    /// Waits until the standby has everything that the primary has.
    pub async fn caught_up(&self, primary: &PostgresServer) {
        let primary = pool(&primary.url("postgres")).await;
        until("the standby has caught up", async || {
            let sql = "SELECT coalesce(bool_and(replay_lsn >= pg_current_wal_lsn()), false) FROM pg_stat_replication";
            let caught_up: bool = sqlx::query_scalar(sql).fetch_one(&primary).await.unwrap();
            caught_up.then_some(())
        })
        .await;
        primary.close().await;
    }

    /// From now on the standby gets nothing more, and the primary goes on without it.
    pub async fn cut(&self) {
        let admin = pool(&self.server.url("postgres")).await;
        for sql in ["ALTER SYSTEM SET primary_conninfo = ''", "SELECT pg_reload_conf()"] {
            sqlx::query(sql).execute(&admin).await.unwrap();
        }
        until("the standby is cut off", async || {
            let receivers: i64 =
                sqlx::query_scalar("SELECT count(*) FROM pg_stat_wal_receiver").fetch_one(&admin).await.unwrap();
            (receivers == 0).then_some(())
        })
        .await;
        admin.close().await;
    }

    /// The standby becomes the primary, and the address leads to it.
    pub async fn promote(self) -> PostgresServer {
        let admin = pool(&self.server.url("postgres")).await;
        let promoted: bool = sqlx::query_scalar("SELECT pg_promote()").fetch_one(&admin).await.unwrap();
        assert!(promoted);
        admin.close().await;
        self.lead_to(&self.server);
        self.server
    }
}
