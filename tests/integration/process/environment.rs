//! Environment variables follow the same rules, whichever setting they are for.

use std::collections::BTreeMap;

use firstcome::dev::ScratchDir;
use serde_json::json;

use crate::{
    documents::documented_variables,
    process::binary::{Running, Servers, get, post, program, run},
};

/// The variables without which the program does not start.
const NEEDED: &[&str] = &["REDIS_URL", "DATABASE_URL", "BIND_ADDR"];

#[tokio::test]
async fn empty_variable_counts_as_unset() {
    let (servers, dir) = (Servers::start().await, ScratchDir::new().unwrap());
    assert!(run(&mut servers.role(&["migrate"])).await.0.success());
    let names = documented_variables();
    assert!(names.len() > 50, "{names:?}");
    for blank in ["", "  "] {
        let mut serve = program(&["serve", "--bind-addr", "127.0.0.1:0"]);
        for name in &names {
            let value = match name.as_str() {
                "REDIS_URL" => servers.redis_url.as_str(),
                "DATABASE_URL" => servers.postgres_url.as_str(),
                "RUST_LOG" if blank.is_empty() => "",
                _ => blank,
            };
            serve.env(name, value);
            serve.env(format!("{name}_FILE"), blank);
        }
        for name in ["PGSSLROOTCERT", "PGPORT", "PGHOST", "PGDATABASE", "PGSSLMODE", "OTEL_SERVICE_NAME"] {
            serve.env(name, "");
        }
        // RUST_LOG follows the same rule: the test reads the address from the log of the default level.
        let mut serve = Running::start(&mut serve, &dir, "empty");
        let base = serve.base().await;
        get(&base, "/readyz").await.ok();
        // No operator, no token issuer and no gateway is configured.
        get(&base, "/admin/v1/projection").await.refused(401, "UNAUTHORIZED");
        let order = json!({"userId": 1, "orderProducts": [{"productId": 1, "quantity": 1}]});
        post(&base, "/api/v1/orders", order).await.refused(404, "USER_NOT_FOUND");
        serve.stop().await;
    }
    for name in NEEDED.iter().filter(|name| name.ends_with("_URL")) {
        let (status, said) = run(servers.role(&["serve"]).env(name, "")).await;
        assert_eq!(status.code(), Some(2), "{said}");
        let option = format!("--{}", name.to_lowercase().replace('_', "-"));
        assert!(said.contains(&option), "{said}");
    }
    servers.end().await;
}

#[tokio::test]
async fn boolean_read_in_every_spelling() {
    let spellings = BTreeMap::from([
        (true, ["1", "yes", "Yes", "on", "ON", "true", "TRUE", "True"]),
        (false, ["0", "no", "No", "off", "OFF", "false", "FALSE", "False"]),
    ]);
    for name in ["NO_PROJECTOR", "OPS_COOKIE_SECURE"] {
        let serve = |value: &str| {
            let mut serve = program(&["serve", "--bind-addr", "127.0.0.1:0"]);
            serve.env("DATABASE_URL", "mysql://").env("REDIS_URL", "redis://127.0.0.1:1").env(name, value);
            serve
        };
        for value in spellings.values().flatten() {
            // The program gets as far as the check of the URL.
            let (status, said) = run(&mut serve(value)).await;
            assert_eq!(status.code(), Some(1), "{name}={value}: {said}");
            assert!(said.contains("DATABASE_URL is no PostgreSQL URL"), "{name}={value}: {said}");
        }
        let (status, said) = run(&mut serve("perhaps")).await;
        assert_eq!(status.code(), Some(2), "{said}");
        assert!(said.contains(&format!("--{}", name.to_lowercase().replace('_', "-"))), "{said}");
    }
}

#[tokio::test]
async fn start_refused_when_setting_has_its_old_name() {
    for (command, (name, value, reason)) in ["serve", "project", "migrate", "audit"].into_iter().flat_map(|command| {
        let renamed = [
            ("REDIS_LANES", "4", "REDIS_LANES has the new name REDIS_CONNECTIONS: rename the variable"),
            (
                "ALLOW_UNSAFE_REDIS",
                "true",
                "ALLOW_UNSAFE_REDIS has the new name REDIS_DURABILITY: instead of true set it to asserted, instead of false \
                 leave it out",
            ),
        ];
        renamed.map(|renamed| (command, renamed))
    }) {
        let with = |value: &str| {
            let mut program = program(&[command]);
            program
                .env("REDIS_URL", "redis://127.0.0.1:1")
                .env("DATABASE_URL", "mysql://")
                .env("BIND_ADDR", "127.0.0.1:0");
            program.env(name, value);
            program
        };
        let (status, said) = run(&mut with(value)).await;
        assert_eq!((status.code(), said), (Some(2), format!("error: {reason}\n")), "{command}");
        // A blank variable counts as not set: the program reaches its stores.
        let (_, said) = run(&mut with(" ")).await;
        assert!(!said.contains(name) && !said.is_empty(), "{command}: {said}");
    }
}

/// A `false` in any spelling disables the setting.
#[tokio::test]
async fn boolean_false_in_every_spelling_disables() {
    let servers = Servers::start().await;
    assert!(run(&mut servers.role(&["migrate"])).await.0.success());
    for (value, projects) in [("YES", false), ("1", false), ("no", true), ("0", true)] {
        let mut serve = servers.start_with(&["serve"], &[("NO_PROJECTOR", value)], value);
        let base = serve.base().await;
        post(&base, "/admin/v1/users", json!({"userName": "A"})).await.created();
        serve.stop().await;
        assert_eq!(serve.logged("the outbox is drained").is_some(), projects, "{value}: {}", serve.err());
    }
    servers.end().await;
}

#[tokio::test]
async fn start_error_names_invalid_log_filter() {
    let dir = ScratchDir::new().unwrap();
    let mut serve = program(&["serve", "--bind-addr", "127.0.0.1:0"]);
    serve.env("REDIS_URL", "redis://127.0.0.1:1").env("DATABASE_URL", "postgres://firstcome@127.0.0.1:1/db");
    let mut serve = Running::start(serve.env("RUST_LOG", "info,=x=[=nonsense"), &dir, "log");
    crate::support::harness::until("it says so", async || {
        serve.assert_alive();
        let said = serve.err();
        (said.contains("RUST_LOG can't be read") && said.contains("waiting for the stores")).then_some(())
    })
    .await;
    serve.stop().await;
}
