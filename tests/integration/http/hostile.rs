//! Hostile requests on the program's sockets: ambiguous heads, bodies that never arrive, guessed tokens, and requests
//! that cost more than they seem to.

use std::{net::SocketAddr, time::Instant};

use firstcome::config::{Auth, AuthConfig, LimitsConfig, Secret};
use reqwest::Client;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};

use crate::{
    api::tokens::token_of,
    http::flood::Service,
    process::binary::{program, run},
    support::harness::{ADMIN, Options, TestApp, client_at, raw_redis, read, until},
};

const SCRAPER: &str = "a-token-of-the-scraper";

/// All that the service sends in reply to these bytes, until the connection ends.
async fn said(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut said = Vec::new();
    // Some connections end with a reset; the bytes before it count.
    let _ = stream.read_to_end(&mut said).await;
    String::from_utf8(said).unwrap()
}

fn statuses(said: &str) -> Vec<u16> {
    said.split("HTTP/1.1 ").skip(1).map(|reply| reply[..3].parse().unwrap()).collect()
}

#[tokio::test]
async fn ambiguous_head_refused_and_connection_closed() {
    let test = TestApp::with(Options { clock: None, ..Options::default() }).await;
    let mut service = Service::start(&test, &[("CORS_ORIGINS", "*"), ("HEADER_TIMEOUT_MS", "300000")]).await;
    // A parser that finds another end of the first request serves this one.
    const NEXT: &str = "GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let preflight = "origin: http://a\r\naccess-control-request-method: PUT\r\n";
    // `ours`: the reply is the service's error; otherwise the HTTP library's bare 400.
    for (head, ours) in [
        ("GET /healthz HTTP/1.1\r\n\r\n".to_owned(), true),
        ("GET /healthz HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n".to_owned(), true),
        ("GET /healthz HTTP/1.1\r\nhost: a\r\nhost: a\r\n\r\n".to_owned(), true),
        ("GET /healthz HTTP/1.1\r\nhost:\r\n\r\n".to_owned(), true),
        ("GET /healthz HTTP/1.1\r\nhost: a/b\r\n\r\n".to_owned(), true),
        ("GET http://b/healthz HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(), true),
        ("GET /nowhere HTTP/1.1\r\n\r\n".to_owned(), true),
        (format!("OPTIONS /api/v1/products HTTP/1.1\r\nhost: a\r\nhost: b\r\n{preflight}\r\n"), true),
        ("POST /api/v1/orders HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n".to_owned(), true),
        ("GET /healthz HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n".to_owned(), true),
        ("GET /healthz HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n".to_owned(), true),
        ("GET /healthz HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n".to_owned(), true),
        ("GET /healthz HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, gzip\r\n\r\n".to_owned(), false),
        ("GET /healthz HTTP/1.1\r\nhost: a\r\ntransfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n".to_owned(), false),
        ("GET /healthz HTTP/1.1\r\nhost: a\r\ntransfer-encoding : chunked\r\n\r\n0\r\n\r\n".to_owned(), false),
        ("GET /healthz HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n".to_owned(), false),
        ("GET /healthz HTTP/1.1\r\nhost: a\r\nx: a\r\n folded\r\n\r\n".to_owned(), false),
        ("GET /healthz HTTP/1.1\r\n host: a\r\n\r\n".to_owned(), false),
        ("GET /healthz HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nxx".to_owned(), false),
        ("GET /healthz HTTP/1.1\r\nhost: a\r\ncontent-length: 0, 0\r\n\r\n".to_owned(), false),
        ("GET /healthz HTTP/1.1\r\nhost: a\r\ncontent-length: +1\r\n\r\nx".to_owned(), false),
        ("GET /healthz HTTP/1.1\r\nhost: a\r\ncontent-length: 0x1\r\n\r\nx".to_owned(), false),
        ("GET /healthz HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n".to_owned(), false),
        ("GET /healthz HTTP/1.1\r\nhost: a\r\nx: a\rb\r\n\r\n".to_owned(), false),
        ("GET /healthz HTTP/1.1\r\nhost: a\r\nx: a\0b\r\n\r\n".to_owned(), false),
        ("GET  /healthz HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(), false),
        ("GET /healthz HTTP/2.0\r\nhost: a\r\n\r\n".to_owned(), false),
        ("GET /healthz\r\n\r\n".to_owned(), false),
    ] {
        let reply = said(service.address, format!("{head}{NEXT}").as_bytes()).await;
        assert_eq!(statuses(&reply), [400], "{head:?}: {reply}");
        assert_eq!(reply.contains("\"errorCode\":\"INVALID_REQUEST\""), ours, "{head:?}: {reply}");
        assert!(!ours || reply.contains("connection: close\r\n") && reply.contains("x-request-id: "), "{reply}");
    }
    // Bodies of ambiguous length: one reply, and the bytes behind the body are never served as a request.
    for body in [
        "content-length: 6\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nG",
        "transfer-encoding: chunked\r\ncontent-length: 6\r\n\r\n0\r\n\r\nG",
        "transfer-encoding: chunked\r\n\r\n1\nx\r\n0\r\n\r\n",
        "transfer-encoding: chunked\r\n\r\n1;a\nb\r\nx\r\n0\r\n\r\n",
        "transfer-encoding: chunked\r\n\r\n0x1\r\nx\r\n0\r\n\r\n",
        "transfer-encoding: chunked\r\n\r\n-1\r\nx\r\n0\r\n\r\n",
        "transfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\nx\r\n0\r\n\r\n",
        "transfer-encoding: chunked\r\n\r\n1\r\nxy\r\n0\r\n\r\n",
    ] {
        let head = "POST /api/v1/coupons/issue HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n";
        let reply = said(service.address, format!("{head}{body}{NEXT}").as_bytes()).await;
        assert!(statuses(&reply).len() <= 1 && !reply.contains(" 200 "), "{body:?}: {reply}");
    }
    // An unusual but unambiguous head is served, and so is the next request.
    for sound in [
        "GET /healthz HTTP/1.1\r\nHOST: a:8080\r\n\r\n",
        "GET http://A/healthz HTTP/1.1\r\nhost: a\r\n\r\n",
        "\r\nGET /healthz HTTP/1.1\r\nhost: a\r\n\r\n",
        // RFC 9112, 2.2 allows a line to end without a carriage return.
        "GET /healthz HTTP/1.1\nhost: a\n\n",
        "GET /healthz HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\nx",
        "GET /healthz HTTP/1.1\r\nhost: a\r\ntransfer-encoding: Chunked\r\n\r\n1;x=y\r\nx\r\n0\r\nt: u\r\n\r\n",
    ] {
        let reply = said(service.address, format!("{sound}{NEXT}").as_bytes()).await;
        assert_eq!(statuses(&reply), [200, 200], "{sound:?}: {reply}");
    }
    let old = said(service.address, b"GET /healthz HTTP/1.0\r\n\r\n").await;
    assert!(old.starts_with("HTTP/1.0 200"), "a health check in HTTP/1.0 has no Host header: {old}");
    service.running.stop().await;
    test.finish().await;
}

/// A refused request whose body never arrives ends within the body timeout, regardless of the request timeout, and a
/// stop does not wait for it.
#[tokio::test]
async fn refused_request_without_body_ends_and_delays_no_stop() {
    let test = TestApp::with(Options { clock: None, ..Options::default() }).await;
    let document = test.get("/v3/api-docs").await.json();
    let mut routes = Vec::new();
    for (template, item) in document["paths"].as_object().unwrap() {
        let mut path = String::new();
        for (nth, part) in template.split(['{', '}']).enumerate() {
            path.push_str(if nth % 2 == 1 { "1" } else { part });
        }
        for method in item.as_object().unwrap().keys() {
            routes.push((method.to_uppercase(), path.clone()));
        }
    }
    routes.push(("POST".to_owned(), "/ops/session".to_owned()));
    routes.push(("GET".to_owned(), "/metrics".to_owned()));
    routes.push(("POST".to_owned(), "/nowhere".to_owned()));
    for path in ["/admin/v1/users/bulk", "/admin/v1/audit"] {
        assert!(routes.iter().any(|(_, route)| route == path), "{path}");
    }
    let started = async |body_timeout: &str| {
        let settings = [
            ("METRICS_TOKEN", SCRAPER),
            // An hour for ordinary requests and ten minutes for heads.
            ("REQUEST_TIMEOUT_MS", "3600000"),
            ("HEADER_TIMEOUT_MS", "600000"),
            ("BODY_TIMEOUT_MS", body_timeout),
            ("MAX_CONNECTIONS_PER_CLIENT", "0"),
            ("RATE_LIMIT_CLIENT_PER_SECOND", "0"),
        ];
        Service::start(&test, &settings).await
    };
    let ask = |address: SocketAddr, method: &str, path: &str| {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
        );
        async move { (said(address, head.as_bytes()).await, head) }
    };
    let mut service = started("2000").await;
    let began = Instant::now();
    let mut asked = JoinSet::new();
    for (method, path) in &routes {
        asked.spawn(ask(service.address, method, path));
    }
    while let Some(answered) = asked.join_next().await {
        let (reply, head) = answered.unwrap();
        assert_eq!(statuses(&reply).len(), 1, "{head}: {reply}");
    }
    // Far less than the request timeout.
    assert!(began.elapsed().as_secs() < 120, "{:?}", began.elapsed());
    service.running.stop().await;

    // A stop while bodies are missing does not wait for their timeout of almost an hour.
    let mut service = started("3500000").await;
    let mut asked = JoinSet::new();
    for (method, path) in routes.iter().filter(|(_, path)| path.starts_with("/admin")) {
        asked.spawn(ask(service.address, method, path));
    }
    let address = service.address;
    until("all of them wait", async || {
        let request = client_at("127.0.0.1").get(format!("http://{address}/metrics")).bearer_auth(SCRAPER);
        let text = read(request).await.text;
        let under_way = text.lines().find_map(|line| line.strip_prefix("firstcome_http_connections "));
        let open: f64 = under_way.unwrap().parse().unwrap();
        (open >= asked.len() as f64).then_some(())
    })
    .await;
    // These requests count with status 0.
    service.running.stop().await;
    while let Some(answered) = asked.join_next().await {
        let (reply, head) = answered.unwrap();
        assert_eq!(statuses(&reply), [401], "{head}: {reply}");
    }
    test.finish().await;
}

#[tokio::test]
async fn token_guesses_refused_and_other_clients_served() {
    let test = TestApp::with(Options { clock: None, ..Options::default() }).await;
    let settings = [("METRICS_TOKEN", SCRAPER), ("RATE_LIMIT_GUESSES_PER_MINUTE", "10")];
    let mut service = Service::start(&test, &settings).await;
    let doors = [("/admin/v1/projection", ADMIN), ("/metrics", SCRAPER)];
    for (nth, (path, right)) in doors.into_iter().enumerate() {
        let guesser = client_at(&format!("127.0.4.{}", nth + 1));
        let ask = async |client: &Client, token: &str| {
            read(client.get(service.url(path)).bearer_auth(token)).await.status.as_u16()
        };
        let began = Instant::now();
        let mut verified = 0;
        // Guesses until many are refused; the right token is tried only while guesses are refused.
        let mut refused = 0;
        while refused < 100 {
            match ask(&guesser, &format!("a-wrong-token-{verified}")).await {
                401 => verified += 1,
                429 => refused += 1,
                other => panic!("{path}: {other}"),
            }
        }
        let most = 10 + began.elapsed().as_secs() / 6 + 1;
        assert!((10..=most).contains(&verified), "{path}: {verified} guesses were verified");
        // The limit refuses right tokens, too: it admits one attempt every six seconds.
        let mut replies = Vec::new();
        for _ in 0..20 {
            replies.push(ask(&guesser, right).await);
            ask(&guesser, "a-wrong-token-in-between").await;
        }
        assert!(replies.iter().filter(|status| **status == 429).count() >= 10, "{path}: {replies:?}");
        assert_eq!(ask(&client_at("127.0.4.9"), right).await, 200, "{path}: another client is refused");
        // Public routes have limits of their own.
        assert_eq!(read(guesser.get(service.url("/api/v1/products"))).await.status, 200);
    }
    service.running.stop().await;
    test.finish().await;
}

#[tokio::test]
async fn start_refused_when_token_guessable() {
    for (role, name, value) in [
        ("serve", "ADMIN_TOKEN", "a"),
        ("serve", "ADMIN_TOKEN", "fifteen-letters"),
        ("serve", "METRICS_TOKEN", "fifteen-letters"),
        ("dev", "ADMIN_TOKEN", "fifteen-letters"),
        ("dev", "METRICS_TOKEN", "fifteen-letters"),
        ("project", "METRICS_TOKEN", "fifteen-letters"),
    ] {
        let mut command = program(&[role]);
        command.env("REDIS_URL", "redis://127.0.0.1:1").env("DATABASE_URL", "postgres://127.0.0.1:1/x");
        command.env("FIRSTCOME_DIR", "/nonexistent").env("BIND_ADDR", "127.0.0.1:0");
        let (status, said) = run(command.env(name, value)).await;
        assert_eq!(status.code(), Some(1), "{role} {name}: {said}");
        assert!(said.contains(&format!("{name} is not 16 or more")) && said.contains("openssl rand"), "{said}");
        assert!(value == "a" || !said.contains(value), "{said}");
    }
}

/// The number of commands that Redis has processed.
async fn commands(redis: &mut redis::aio::MultiplexedConnection) -> u64 {
    let stats: String = redis::cmd("INFO").arg("stats").query_async(redis).await.unwrap();
    let line = stats.lines().find_map(|line| line.strip_prefix("total_commands_processed:"));
    line.unwrap().trim().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readiness_polled_often_costs_redis_little() {
    let test = TestApp::start().await;
    let mut redis = raw_redis(&test.redis.url()).await;
    let (before, began) = (commands(&mut redis).await, Instant::now());
    let asked = 8_000;
    let mut asking = JoinSet::new();
    for _ in 0..16 {
        let (client, url) = (test.client.clone(), format!("{}/readyz", test.base));
        asking.spawn(async move {
            for _ in 0..asked / 16 {
                read(client.get(&url)).await.ok();
            }
        });
    }
    asking.join_all().await;
    // At most a hundred probes at once and a hundred per second reach Redis, each with a few commands; the process adds
    // its own.
    let most = 800 * (began.elapsed().as_secs() + 2);
    let sent = commands(&mut redis).await - before;
    assert!(sent <= most, "{sent} commands for {asked} questions in {:?}", began.elapsed());
    test.finish().await;
}

#[tokio::test]
async fn requests_charged_to_client_by_cost() {
    const BURST: u64 = 40;
    let limits = LimitsConfig {
        rate_limit_client_per_second: 1,
        rate_limit_client_burst: BURST as u32,
        rate_limit_keys: 100,
        trusted_proxies: "127.0.0.1".parse().unwrap(),
        ..LimitsConfig::off()
    };
    let test = TestApp::with(Options { limits, ..Options::default() }).await;
    let user = test.user(1_000_000).await;
    let mut products = Vec::new();
    for _ in 0..100 {
        products.push(test.product(1, 1_000_000).await);
    }
    let lines: Vec<Value> = products.iter().map(|id| json!({"productId": id, "quantity": 1})).collect();
    let large = json!({"userId": user, "orderProducts": lines});
    let small = json!({"userId": user, "orderProducts": lines[..10]});
    let mut clients = 0;
    for (path, body, tokens) in [
        ("/api/v1/products/1".to_owned(), None, 1),
        (format!("/api/v1/balances/{user}"), None, 1),
        (format!("/api/v1/balances/{user}/history?limit=50"), None, 1),
        (format!("/api/v1/balances/{user}/history"), None, 2),
        (format!("/api/v1/balances/{user}/history?limit=1000"), None, 20),
        ("/api/v1/products".to_owned(), None, 1),
        ("/api/v1/products?size=100".to_owned(), None, 5),
        ("/api/v1/campaigns?size=100".to_owned(), None, 5),
        ("/api/v1/orders/4000000000".to_owned(), None, 4),
        ("/api/v1/orders".to_owned(), Some(&small), 1),
        ("/api/v1/orders".to_owned(), Some(&large), 10),
        ("/v3/api-docs".to_owned(), None, 5),
        ("/swagger-ui/swagger-ui-bundle.js".to_owned(), None, 5),
    ] {
        clients += 1;
        let (from, began) = (format!("198.51.100.{clients}"), Instant::now());
        let of_client = |request: reqwest::RequestBuilder| read(request.header("x-forwarded-for", &from));
        let reply = match body {
            None => of_client(test.client.get(format!("{}{path}", test.base))).await,
            Some(body) => of_client(test.client.post(format!("{}{path}", test.base)).json(body)).await,
        };
        assert!(matches!(reply.status.as_u16(), 200 | 404), "{path}: {} {}", reply.status, reply.text);
        // Counts the remaining tokens by requests that cost one token, of which one returns per second.
        let mut left = 0;
        while of_client(test.client.get(format!("{}/api/v1/products/1", test.base))).await.status != 429 {
            left += 1;
        }
        let back = began.elapsed().as_secs();
        assert!((BURST - tokens..=BURST - tokens + back).contains(&left), "{path}: {left} left of {BURST}");
    }
    test.finish().await;
}

/// The documentation and the dashboard share an origin, so a foreign script could act as an operator.
#[tokio::test]
async fn documentation_runs_no_foreign_script() {
    let test = TestApp::start().await;
    for path in ["/swagger-ui/index.html", "/swagger-ui/swagger-ui-bundle.js", "/swagger-ui", "/v3/api-docs"] {
        let client = Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build().unwrap();
        let reply = read(client.get(format!("{}{path}", test.base))).await;
        let policy = reply.headers["content-security-policy"].to_str().unwrap().to_owned();
        for part in ["default-src 'none'", "script-src 'self';", "connect-src 'self'", "frame-ancestors 'none'"] {
            assert!(policy.contains(part), "{path}: {policy}");
        }
    }
    // The page has no inline scripts, which its policy forbids.
    let page = test.get("/swagger-ui/index.html").await.text;
    for script in page.split("<script").skip(1) {
        let (tag, rest) = script.split_once('>').unwrap();
        assert!(tag.contains("src=") && rest.trim_start().starts_with("</script>"), "{script}");
    }
    test.finish().await;
}

#[tokio::test]
async fn token_of_nine_kilobytes_accepted() {
    const SECRET: &str = "a secret of more than thirty-two bytes";
    let auth = AuthConfig { auth: Auth::Jwt, auth_jwt_secret: Some(Secret::new(SECRET)), ..AuthConfig::default() };
    let test = TestApp::with(Options { auth, ..Options::default() }).await;
    let user = test.user(0).await;
    for groups in [0, 6_000, 11_000] {
        let claims =
            json!({"sub": user.to_string(), "exp": test.clock.now().0 / 1000 + 3600, "groups": "g".repeat(groups)});
        let token = token_of(SECRET, &claims);
        let request = test.client.get(format!("{}/api/v1/balances/{user}", test.base)).bearer_auth(&token);
        let reply = read(request).await;
        assert_eq!(reply.status, 200, "{} bytes: {}", token.len(), reply.text);
    }
    test.finish().await;
}
