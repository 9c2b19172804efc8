//! One PostgreSQL server for all tests of a run, and a database for each test.

use super::*;

const TEMPLATE: &str = "fc_template";

/// The URL of the database `postgres` of the shared server, which a thread owns until the process ends.
fn postgres_server() -> &'static str {
    static URL: OnceLock<String> = OnceLock::new();
    URL.get_or_init(|| {
        let (send, receive) = mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let dir = ScratchDir::new().unwrap();
                let mut config = dev::PostgresServerConfig::new(dir.path().join("postgres"));
                config.fsync = false;
                config.max_connections = 300;
                let server = PostgresServer::start(config).await.unwrap();
                let admin = postgres_config(&server.url("postgres"));
                postgres::create_database(&admin, TEMPLATE).await.unwrap();
                let template = postgres::connect(&postgres_config(&server.url(TEMPLATE))).await.unwrap();
                postgres::migrate(&template).await.unwrap();
                template.close().await.unwrap();
                send.send(server.url("postgres")).unwrap();
                // At the end of the process the reaper ends the server and removes the directory.
                std::future::pending::<()>().await;
                drop((server, dir));
            });
        });
        receive.recv().unwrap()
    })
}

/// The URL of one of the shared server's databases.
pub fn postgres_url(database: &str) -> String {
    postgres_server().replacen("/postgres?", &format!("/{database}?"), 1)
}

pub async fn admin_sql(sql: String) {
    // PostgreSQL copies a template for one database at a time.
    static ONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    let _one = ONE.lock().await;
    let db = postgres::connect(&postgres_config(postgres_server())).await.unwrap();
    sqlx::query(sqlx::AssertSqlSafe(sql)).execute(db.get_postgres_connection_pool()).await.unwrap();
    db.close().await.unwrap();
}

/// A new database with the schema in it.
pub async fn fresh_database() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let name = format!("fc_test_{}", COUNT.fetch_add(1, Ordering::Relaxed));
    tokio::task::spawn_blocking(postgres_server).await.unwrap();
    admin_sql(format!("CREATE DATABASE {name} TEMPLATE {TEMPLATE}")).await;
    name
}

pub async fn drop_database(name: &str) {
    admin_sql(format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)")).await;
}
