//! What the program prints: help, errors and their remedies.

use super::*;

/// Sets every variable to a value that no output may contain.
fn with_secrets(command: &mut Command) -> &mut Command {
    for name in [
        "REDIS_URL",
        "DATABASE_URL",
        "ADMIN_TOKEN",
        "ADMIN_TOKENS",
        "OPS_OIDC_CLIENT_SECRET",
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
    let roles: [(&str, Vec<&str>); 9] = [
        ("dev", [&["FIRSTCOME_DIR"][..], &shop, &gateway, &http].concat()),
        ("serve", serve),
        ("project", [&shop[..], &gateway, &stores, &["PROJECTOR_BATCH", "DRAIN_SECONDS"]].concat()),
        ("migrate", vec!["DATABASE_URL", "DATABASE_TIMEOUT_MS"]),
        ("seed", [&shop[..], &stores].concat()),
        ("import", [&shop[..], &stores].concat()),
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
        assert!(said.to_lowercase().contains("gateway"), "{gateway:?} : the gateway is not named in {said}");
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
        assert!(!data.exists(), "servers were started before the port was checked");
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
    // Without any server program the message says how to install them.
    let mut command = program(&["dev"]);
    command.env_remove("REDIS_SERVER_BIN").env_remove("POSTGRES_BIN_DIR").env("PATH", "/nonexistent");
    command.env("FIRSTCOME_CACHE_DIR", "/nonexistent").env("BIND_ADDR", "127.0.0.1:0");
    let (status, said) = run(command.env("FIRSTCOME_DIR", dir.path().join("none"))).await;
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("make install") && said.contains("apt-get install"), "{said}");
    until("no servers are left", async || servers_below(dir.path()).is_empty().then_some(())).await;
}
