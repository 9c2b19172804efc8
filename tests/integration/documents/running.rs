//! The commands of docs/running.md and docs/limits.md work as printed.

use std::fs;

use serde_json::json;

use super::{Page, commands::words, page};
use crate::process::binary::{Servers, get, post, run};

/// The first inline code of a page that begins with `begins`.
#[track_caller]
fn printed(page: &Page, begins: &str) -> String {
    let found = page.spans().into_iter().find(|span| span.starts_with(begins));
    found.unwrap_or_else(|| panic!("{} prints no {begins:?}", page.name()))
}

/// Runs a command of the program as printed, asserts that it succeeds, and returns its output.
async fn succeeds(servers: &Servers, command: &str, variables: &[(&str, &str)]) -> String {
    let words = words(command);
    let arguments: Vec<&str> = words[1..].iter().map(String::as_str).collect();
    let (status, said) = run(servers.role(&arguments).envs(variables.iter().copied())).await;
    assert!(status.success(), "{command}: {said}");
    said
}

#[tokio::test]
async fn deployment_and_upgrade_commands_succeed_as_printed() {
    let running = page("docs/running.md");
    let mut servers = Servers::start().await;
    let db = servers.db().await;
    let create = sqlx::AssertSqlSafe(printed(&running, "CREATE DATABASE shop "));
    sqlx::query(create).execute(db.get_postgres_connection_pool()).await.unwrap();
    db.close().await.unwrap();
    servers.postgres_url = servers.postgres.url("shop");

    succeeds(&servers, &printed(&running, "firstcome migrate"), &[]).await;
    let mut serving = servers.start_role(&["serve"], "first");
    let base = serving.base().await;
    let user = json!({"userName": "A", "balance": 1_000});
    post(&base, "/admin/v1/users", user).await.created();
    let address = base.strip_prefix("http://").unwrap();
    succeeds(&servers, &printed(&running, "firstcome health"), &[("BIND_ADDR", address)]).await;
    succeeds(&servers, &printed(&running, "firstcome audit"), &[]).await;
    serving.stop().await;
    let rebuilt = succeeds(&servers, &printed(&running, "firstcome rebuild --lost-at-most 0"), &[]).await;
    assert!(rebuilt.contains("Redis is rebuilt from PostgreSQL"), "{rebuilt}");
    let mut serving = servers.start_role(&["serve"], "second");
    let base = serving.base().await;
    assert_eq!(get(&base, "/api/v1/balances/1").await.ok()["balance"], 1_000);
    serving.stop().await;
    servers.end().await;
}

#[test]
fn kernel_settings_and_counters_of_the_limits_page_exist() {
    let limits = page("docs/limits.md");
    let setting = printed(&limits, "sysctl -w ");
    let (name, _) = setting.trim_start_matches("sysctl -w ").split_once('=').unwrap();
    let file = format!("/proc/sys/{}", name.replace('.', "/"));
    assert!(fs::exists(&file).unwrap(), "{file}");
    let counter = printed(&limits, "nstat -az ");
    let name = counter.trim_start_matches("nstat -az TcpExt");
    assert!(fs::read_to_string("/proc/net/netstat").unwrap().split_whitespace().any(|word| word == name), "{name}");
}
