//! No output contains a secret, however the setting is mistyped; and the sources of secrets.

use std::{fs, time::Duration};

use firstcome::{dev::ScratchDir, model::Clock};
use reqwest::header::{COOKIE, LOCATION, SET_COOKIE};
use serde_json::json;
use tokio::process::Command;

use crate::{
    process::binary::{ADMIN, Running, Servers, get, program, run},
    support::{
        fake_issuer::{CLIENT_ID, CLIENT_SECRET, FakeIssuer, parameters},
        harness::{browser, read, until},
    },
};

/// Secrets that no output may contain. There are two, since an error may quote a part of its input.
const SECRET: &str = "hunter2-is-a-secret";
const OTHER_HALF: &str = "correct-horse-battery";

/// Every secret setting that is a URL, with its schemes.
const URLS: &[(&str, &[&str])] = &[
    ("DATABASE_URL", &["postgres", "postgresql"]),
    ("REDIS_URL", &["redis", "rediss", "redis+unix", "redis+sentinel"]),
    ("PAYMENT_GATEWAY_CARD_URL", &["http", "https"]),
    ("PAYMENT_GATEWAY_KAKAO_PAY_URL", &["http"]),
    ("PAYMENT_GATEWAY_TOSS_URL", &["http"]),
    ("AUTH_JWKS_URL", &["https"]),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", &["http"]),
    ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", &["https"]),
];
const TOKENS: &[&str] = &[
    "ADMIN_TOKEN",
    "ADMIN_TOKENS",
    "OPS_OIDC_CLIENT_SECRET",
    "METRICS_TOKEN",
    "PAYMENT_GATEWAY_TOKEN",
    "AUTH_JWT_SECRET",
    "TOSS_SECRET_KEY",
    "KAKAOPAY_SECRET_KEY",
    "PORTONE_API_SECRET",
    "PORTONE_WEBHOOK_SECRET",
];
const COMMANDS: &[&str] = &["serve", "project", "seed", "rebuild", "audit", "migrate"];

/// URLs mistyped so that a parser finds the password elsewhere.
fn mistyped(scheme: &str) -> Vec<String> {
    [
        "{scheme}://user:{a}/{b}@127.0.0.1:1/db",
        "{scheme}://user:12/{a}@127.0.0.1:1/db",
        "{scheme}://user:{a}#{b}@127.0.0.1:1/db",
        "{scheme}://user:12#{a}@127.0.0.1:1/db",
        "{scheme}://user:{a}?{b}@127.0.0.1:1/db",
        "{scheme}://user:12?{a}={b}@127.0.0.1:1/db",
        "{scheme}://user:{a}@{b}@127.0.0.1:1/db",
        "{scheme}://user:{a}%zz{b}@127.0.0.1:1/db",
        "{scheme}://user:{a} {b}@127.0.0.1:1/db",
        "{scheme}://user:{a}[{b}@127.0.0.1:1/db",
        "{scheme}://user:{a}@127.0.0.1:99999/db",
        "{scheme}://user:{a}@127.0.0.1:{b}/db",
        "{scheme}://user:{a}@/",
        "{scheme}://127.0.0.1:1/db?sslpassword={a}&password={b}",
        "{scheme}://127.0.0.1:1/db?{a}={b}",
        "{scheme}://127.0.0.1:1/db?sslmode={a}&port={b}",
        "{scheme}://{a}:{b}",
        "{scheme}:{a}",
        "{a}://{b}",
        "{a}",
    ]
    .map(|url| url.replace("{scheme}", scheme).replace("{a}", SECRET).replace("{b}", OTHER_HALF))
    .into()
}

fn assert_hidden(said: &str, what: &str) {
    for secret in [SECRET, OTHER_HALF] {
        assert!(!said.contains(secret), "{what}: {said}");
    }
}

fn command(role: &str) -> Command {
    let mut command = program(&[role]);
    command.env("BIND_ADDR", "127.0.0.1:0").env("RUST_LOG", "trace").env("DATABASE_TIMEOUT_MS", "500");
    command.env("REDIS_TIMEOUT_MS", "500");
    command.env("REDIS_URL", "redis://127.0.0.1:1").env("DATABASE_URL", "postgres://firstcome@127.0.0.1:1/db");
    command
}

/// The output until the program ends or waits for its stores; no mistyped URL leads to a store.
pub async fn said(command: &mut Command, dir: &ScratchDir) -> String {
    let mut running = Running::start(command, dir, "said");
    until("it ends or waits", async || {
        let ended = running.child.try_wait().unwrap().is_some();
        (ended || running.err().contains("waiting for the stores")).then_some(())
    })
    .await;
    let _ = running.child.kill().await;
    running.out() + &running.err()
}

#[tokio::test]
async fn secret_not_printed_when_url_mistyped() {
    let dir = ScratchDir::new().unwrap();
    for (name, schemes) in URLS {
        let commands = if name.starts_with("DATABASE") || name.starts_with("REDIS") { COMMANDS } else { &["serve"] };
        for (n, scheme) in schemes.iter().enumerate() {
            // Every command runs with the first scheme; the other schemes run with one command.
            for role in if n == 0 { commands } else { &commands[..1] } {
                for url in mistyped(scheme) {
                    let mut command = command(role);
                    command.env(name, &url);
                    if name.starts_with("AUTH") {
                        command.env("AUTH", "jwt");
                    }
                    let said = said(&mut command, &dir).await;
                    assert_hidden(&said, &format!("{role} {name}={url}"));
                    assert!(!said.is_empty());
                }
            }
        }
    }
}

#[tokio::test]
async fn secret_not_printed_when_token_mistyped() {
    let dir = ScratchDir::new().unwrap();
    for name in TOKENS {
        for token in [
            SECRET.to_owned(),
            format!("{SECRET} {OTHER_HALF}"),
            format!("{SECRET}\n{OTHER_HALF}"),
            format!("{SECRET},{OTHER_HALF}"),
            format!("kim:{SECRET},{OTHER_HALF}:"),
            format!("{SECRET}:{OTHER_HALF}"),
            format!("kim:{SECRET}:é{OTHER_HALF}"),
        ] {
            for auth in ["none", "jwt"] {
                let mut command = command("serve");
                command.env(name, &token).env("AUTH", auth).env("PAYMENT_GATEWAY_CARD_URL", "http://127.0.0.1:1");
                assert_hidden(&said(&mut command, &dir).await, &format!("{name}={token}"));
            }
        }
    }
}

/// A server gives a reason for its refusal, and a driver may quote its input.
#[tokio::test]
async fn secret_not_printed_when_server_refuses_it() {
    let servers = Servers::start().await;
    let password = servers.postgres_url.split(':').nth(2).unwrap().split('@').next().unwrap();
    let database = servers.postgres_url.replacen(password, SECRET, 1);
    let redis = format!("{}?pass={OTHER_HALF}", servers.redis.url());
    for role in COMMANDS {
        for (name, url, word) in [("DATABASE_URL", &database, "does not let us in"), ("REDIS_URL", &redis, "REDIS_URL")]
        {
            if name == "REDIS_URL" && *role == "migrate" {
                continue;
            }
            let (status, said) = run(servers.role(&[role]).env(name, url).env("RUST_LOG", "trace")).await;
            assert!(!status.success() && said.contains(word), "{role} {name}: {said}");
            assert_hidden(&said, &format!("{role} {name}"));
        }
    }
    for role in ["migrate", "seed"] {
        assert!(run(&mut servers.role(&[role])).await.0.success());
    }
    let mut project = servers.start_role(&["project"], "project");
    until("what was decided is there", async || project.logged("projecting")).await;
    project.stop().await;
    servers.end().await;
}

#[tokio::test]
async fn secret_refused_on_command_line() {
    for (option, value, name) in [
        ("--admin-token", SECRET, "ADMIN_TOKEN"),
        ("--metrics-token", SECRET, "METRICS_TOKEN"),
        ("--auth-jwt-secret", SECRET, "AUTH_JWT_SECRET"),
        ("--database-url", &format!("postgres://user:{SECRET}@127.0.0.1/db"), "DATABASE_URL"),
        ("--redis-url", &format!("redis+unix:///run/redis?pass={SECRET}"), "REDIS_URL"),
    ] {
        for given in [vec![option.to_owned(), value.to_owned()], vec![format!("{option}={value}")]] {
            let (status, said) = run(command("serve").args(given)).await;
            assert_eq!(status.code(), Some(2), "{said}");
            assert!(said.contains(&format!("{name}_FILE")) && !said.contains(SECRET), "{said}");
        }
    }
    // An error quotes an unknown option, which may be a secret.
    let (status, said) = run(command("serve").arg(format!("redis://:{SECRET}@127.0.0.1"))).await;
    assert_eq!(status.code(), Some(2), "{said}");
    assert_hidden(&said, "an argument");
    // A URL without a password is not a secret.
    let (_, said) = run(command("migrate").args(["--database-url", "postgres://firstcome@127.0.0.1:1/db"])).await;
    assert!(said.contains("can't be reached"), "{said}");
}

#[tokio::test]
async fn secret_read_from_file_without_its_newline() {
    let (servers, dir) = (Servers::start().await, ScratchDir::new().unwrap());
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    assert!(run(&mut servers.role(&["migrate"])).await.0.success());
    let mut serve = servers.role(&["serve"]);
    for (name, text) in [
        ("ADMIN_TOKEN", format!("{ADMIN}\n")),
        ("DATABASE_URL", format!("  {}\r\n", servers.postgres_url)),
        ("REDIS_URL", format!("{}\n\n", servers.redis_url)),
    ] {
        serve.env_remove(name).env(format!("{name}_FILE"), file(name, &text));
    }
    let mut serve = Running::start(&mut serve, &dir, "serve");
    let base = serve.base().await;
    get(&base, "/admin/v1/projection").await.ok();
    serve.stop().await;
    assert!(!(serve.out() + &serve.err()).contains(ADMIN));
    // A newline at the end of a variable is not part of the secret.
    let mut serve = servers.role(&["serve"]);
    let mut serve = Running::start(serve.env("ADMIN_TOKEN", format!(" {ADMIN}\n")), &dir, "newline");
    get(&serve.base().await, "/admin/v1/projection").await.ok();
    serve.stop().await;

    let long = "x".repeat(70_000);
    for (text, word) in [("", "empty"), (" \n", "empty"), (long.as_str(), "more than")] {
        let path = file("bad", text);
        let (status, said) = run(command("serve").env("ADMIN_TOKEN_FILE", &path)).await;
        assert_eq!(status.code(), Some(2), "{said}");
        assert!(said.contains("ADMIN_TOKEN_FILE") && said.contains(word), "{said}");
    }
    let (status, said) = run(command("serve").env("ADMIN_TOKEN_FILE", "/nonexistent")).await;
    assert_eq!(status.code(), Some(2), "{said}");
    assert!(said.contains("ADMIN_TOKEN_FILE") && said.contains("can't be read"), "{said}");
    let both = file("both", SECRET);
    let (status, said) = run(command("serve").env("ADMIN_TOKEN_FILE", both).env("ADMIN_TOKEN", ADMIN)).await;
    assert_eq!(status.code(), Some(2), "{said}");
    assert!(said.contains("ADMIN_TOKEN and ADMIN_TOKEN_FILE are both set"), "{said}");
    assert_hidden(&said, "both");
    servers.end().await;
}

/// At the most verbose level: the client's secret, the code, the tokens, what binds the sign-in to its browser, the session.
#[tokio::test]
async fn secret_not_printed_when_account_signs_in() {
    let (dir, issuer) = (ScratchDir::new().unwrap(), FakeIssuer::start().await);
    let mut command = program(&["dev", "--dir", dir.path().join("data").to_str().unwrap()]);
    command.envs([("BIND_ADDR", "127.0.0.1:0"), ("RUST_LOG", "trace"), ("OPS_OIDC_CLIENT_ID", CLIENT_ID)]);
    let mut dev = Running::start(
        command.env("OPS_OIDC_ISSUER", &issuer.url).env("OPS_OIDC_CLIENT_SECRET", CLIENT_SECRET),
        &dir,
        "dev",
    );
    let base = dev.base().await;
    let browser = browser();
    let mut secrets = vec![CLIENT_SECRET.to_owned(), "an-access-token".to_owned(), "eyJ".to_owned()];
    for (claims, to) in [(json!({}), "/ops"), (json!({"nonce": "another"}), "/ops#sign-in-nonce")] {
        let began = read(browser.get(format!("{base}/ops/oidc"))).await;
        let cookie = began.headers[SET_COOKIE].to_str().unwrap().split(';').next().unwrap().to_owned();
        let url = began.headers[LOCATION].to_str().unwrap();
        let (code, asked) = (issuer.code(url, Clock::system().own().0, &claims), parameters(url));
        let back = format!("{base}/ops/oidc/callback?code={code}&state={}", asked["state"]);
        let ended = read(browser.get(back).header(COOKIE, &cookie)).await;
        assert_eq!(ended.headers[LOCATION], to);
        secrets.extend([code, asked["state"].clone(), asked["nonce"].clone()]);
        secrets.extend(
            [&cookie, ended.headers[SET_COOKIE].to_str().unwrap()]
                .map(|cookie| cookie.split(';').next().unwrap().split_once('=').unwrap().1.to_owned()),
        );
    }
    dev.stop().await;
    let said = dev.out() + &dev.err();
    assert!(said.contains("the ID token is of another sign-in") && said.contains("reqwest::connect"), "{said}");
    for secret in secrets.iter().filter(|secret| !secret.is_empty()) {
        assert!(!said.contains(secret), "{secret}");
    }
}

#[tokio::test]
async fn secret_not_printed_when_health_check_unreachable() {
    let url = format!("http://user:{SECRET}@127.0.0.1:1/readyz");
    let mut health = program(&["health", "--url", &url]);
    let asked = run(health.env("RUST_LOG", "trace"));
    let (status, said) = tokio::time::timeout(Duration::from_secs(300), asked).await.unwrap();
    assert_eq!(status.code(), Some(1), "{said}");
    assert_hidden(&said, "health");
}
