//! The service on the open internet: hostile clients do not affect honest ones.
//!
//! The service identifies clients by address. Loopback has many addresses, and each client here connects from its own.
//! No test is bounded by time: a flood ends when it has been refused often enough and the honest clients are done.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use firstcome::dev::ScratchDir;
use reqwest::{Client, Method};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::{
    process::binary::{Running, program},
    support::harness::{ADMIN, Options, Reply, TestApp, client_at, postgres_url, read, until},
};

const RATE: u64 = 50;
const BURST: u64 = 100;
const CONNECTIONS: usize = 64;
const IN_FLIGHT: usize = 100;
/// A trusted proxy.
const PROXY: &str = "127.0.9.1";

/// The program, serving this test's stores.
pub struct Service {
    pub running: Running,
    pub address: SocketAddr,
    _dir: ScratchDir,
}

impl Service {
    pub async fn start(test: &TestApp, settings: &[(&str, &str)]) -> Service {
        let dir = ScratchDir::new().unwrap();
        let mut command = program(&["serve"]);
        command.env("REDIS_URL", test.redis.url()).env("DATABASE_URL", postgres_url(&test.database));
        command.env("ADMIN_TOKEN", ADMIN).env("BIND_ADDR", "127.0.0.1:0");
        command.env("REDIS_TIMEOUT_MS", "300000").env("DATABASE_TIMEOUT_MS", "300000");
        command.env("REQUEST_TIMEOUT_MS", "300000").env("DRAIN_SECONDS", "300");
        command.envs(settings.iter().copied());
        let mut running = Running::start(&mut command, &dir, "serve");
        let address = running.base().await.strip_prefix("http://").unwrap().parse().unwrap();
        Service { running, address, _dir: dir }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.running.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }
}

async fn connect(from: &str, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(from.parse().unwrap(), 0))?;
    socket.connect(to).await
}

/// The replies to a flood, by status.
#[derive(Clone, Default)]
struct Tally(Arc<Mutex<BTreeMap<u16, u64>>>);

impl Tally {
    fn add(&self, status: u16) {
        *self.0.lock().unwrap().entry(status).or_default() += 1;
    }

    fn of(&self, status: u16) -> u64 {
        self.0.lock().unwrap().get(&status).copied().unwrap_or_default()
    }

    fn total(&self) -> u64 {
        self.0.lock().unwrap().values().sum()
    }
}

/// An honest client, at its own address or behind the proxy.
struct Shopper {
    client: Client,
    behind: Option<String>,
    base: String,
}

impl Shopper {
    async fn send(&self, method: Method, path: &str, body: Option<Value>) -> Reply {
        let mut request = self.client.request(method, format!("{}{path}", self.base));
        if let Some(forwarded) = &self.behind {
            request = request.header("x-forwarded-for", forwarded);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        let reply = read(request).await;
        let fair = reply.status.is_success() || reply.status == 409;
        assert!(fair, "an honest client was refused: {path} {} {}", reply.status, reply.text);
        reply
    }

    /// Browses, charges, takes a coupon, orders, pays, and reads the balance: seven requests.
    async fn shop(&self, user: i64, product: i64, campaign: i64) {
        self.send(Method::GET, &format!("/api/v1/products/{product}"), None).await;
        let balance = format!("/api/v1/balances/{user}");
        self.send(Method::PUT, &balance, Some(json!({"amount": 100_000}))).await;
        let issue = json!({"couponId": campaign, "userId": user});
        self.send(Method::POST, "/api/v1/coupons/issue", Some(issue)).await;
        self.send(Method::GET, &format!("/api/v1/coupons/{user}"), None).await;
        let order = json!({"userId": user, "orderProducts": [{"productId": product, "quantity": 1}]});
        let order = self.send(Method::POST, "/api/v1/orders", Some(order)).await.json();
        if let Some(id) = order["orderId"].as_i64() {
            let pay = json!({"orderId": id, "userId": user, "paymentType": "CARD", "amount": order["finalPrice"]});
            self.send(Method::POST, "/api/v1/payments", Some(pay)).await;
        }
        self.send(Method::GET, &balance, None).await;
    }
}

/// Sends requests as fast as possible until `stop`. `forged`: the X-Forwarded-For header of the n-th request.
async fn flood(
    service: SocketAddr,
    address: &'static str,
    forged: Option<fn(u64) -> String>,
    tally: Tally,
    stop: CancellationToken,
) {
    let (client, count) = (client_at(address), Arc::new(AtomicU64::new(0)));
    let mut workers = JoinSet::new();
    for _ in 0..4 {
        let (client, count, tally, stop) = (client.clone(), count.clone(), tally.clone(), stop.clone());
        workers.spawn(async move {
            while !stop.is_cancelled() {
                let n = count.fetch_add(1, Relaxed);
                let mut request = match n % 2 {
                    0 => client.get(format!("http://{service}/api/v1/products/1")),
                    _ => client
                        .post(format!("http://{service}/api/v1/coupons/issue"))
                        .json(&json!({"couponId": 1, "userId": 1_000_000 + n})),
                };
                if let Some(forged) = forged {
                    request = request.header("x-forwarded-for", forged(n));
                }
                let reply = read(request).await;
                let status = reply.status.as_u16();
                assert!(matches!(status, 200 | 404 | 429), "{status} {}", reply.text);
                if status == 429 {
                    reply.refused(429, "TOO_MANY_REQUESTS");
                    assert!(reply.headers["retry-after"].to_str().unwrap().parse::<u64>().unwrap() >= 1);
                }
                tally.add(status);
            }
        });
    }
    while let Some(ended) = workers.join_next().await {
        ended.unwrap();
    }
}

/// Opens more connections than a client may have, sends only `unfinished` on each, and replaces each closed one. Counts the
/// replies by status; 0 stands for a connection without a reply.
async fn hold_unfinished_requests(
    service: SocketAddr,
    address: &'static str,
    unfinished: &'static str,
    tally: Tally,
    stop: CancellationToken,
) {
    let mut connections = JoinSet::new();
    // A refused connection is replaced at once; two in excess are enough to keep the machine busy.
    for _ in 0..CONNECTIONS + 2 {
        let (tally, stop) = (tally.clone(), stop.clone());
        connections.spawn(async move {
            let once = async || {
                let mut stream = connect(address, service).await.ok()?;
                stream.write_all(unfinished.as_bytes()).await.ok()?;
                let mut said = Vec::new();
                stream.read_to_end(&mut said).await.ok()?;
                String::from_utf8(said).unwrap().split(' ').nth(1)?.parse().ok()
            };
            while let Some(status) = stop.run_until_cancelled(once()).await {
                tally.add(status.unwrap_or(0));
                // Leaves time for the other tasks of this test.
                tokio::task::yield_now().await;
            }
        });
    }
    connections.join_all().await;
}

/// Fails if a flood has ended, so that the test does not wait for it.
#[track_caller]
fn assert_none_ended(floods: &mut JoinSet<()>) {
    if let Some(ended) = floods.try_join_next() {
        ended.unwrap();
        panic!("a flood has ended");
    }
}

/// Guesses operators' tokens.
async fn guess_tokens(service: SocketAddr, tally: Tally, stop: CancellationToken) {
    let client = client_at("127.0.0.8");
    for n in 0_u64.. {
        if stop.is_cancelled() {
            return;
        }
        let request = client.post(format!("http://{service}/admin/v1/users")).bearer_auth(format!("guess-{n}"));
        tally.add(read(request.json(&json!({}))).await.status.as_u16());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_clients_refused_and_honest_ones_served() {
    let test = TestApp::with(Options { clock: None, ..Options::default() }).await;
    let (rate, burst) = (RATE.to_string(), BURST.to_string());
    let service = Service::start(
        &test,
        &[
            ("RATE_LIMIT_CLIENT_PER_SECOND", &rate),
            ("RATE_LIMIT_CLIENT_BURST", &burst),
            ("RATE_LIMIT_USER_PER_SECOND", "1"),
            ("RATE_LIMIT_USER_BURST", "20"),
            ("TRUSTED_PROXIES", PROXY),
            ("MAX_CONNECTIONS_PER_CLIENT", &CONNECTIONS.to_string()),
            ("MAX_IN_FLIGHT", &IN_FLIGHT.to_string()),
            // Longer than a slow machine keeps an honest client from sending its next head.
            ("HEADER_TIMEOUT_MS", "15000"),
            ("BODY_TIMEOUT_MS", "15000"),
        ],
    )
    .await;
    let (address, stop) = (service.address, CancellationToken::new());
    let product = test.product(10_000, 25).await;
    let campaign = test.campaign("FIXED", 1_000, 25).await;
    let mut users = Vec::new();
    for _ in 0..6 * 10 {
        users.push(test.user(0).await);
    }

    let began = Instant::now();
    let mut hostile = JoinSet::new();
    let tallies: [Tally; 7] = std::array::from_fn(|_| Tally::default());
    let [plain, forging, proxied, heads, bodies, more_bodies, guesses] = tallies.clone();
    // Three floods: from one address, with a different forged address per request, and the same behind a proxy that
    // appends the true address.
    hostile.spawn(flood(address, "127.0.0.2", None, plain.clone(), stop.clone()));
    let forged_address = |n: u64| format!("198.51.{}.{}", n / 256 % 256, n % 256);
    hostile.spawn(flood(address, "127.0.0.3", Some(forged_address), forging.clone(), stop.clone()));
    let through_proxy = |n: u64| format!("198.51.{}.{}, 203.0.113.66", n / 256 % 256, n % 256);
    hostile.spawn(flood(address, PROXY, Some(through_proxy), proxied.clone(), stop.clone()));
    // Unfinished heads, and more unfinished bodies than requests may be in flight.
    hostile.spawn(hold_unfinished_requests(
        address,
        "127.0.0.4",
        "GET /api/v1/products/1 HTTP/1.1\r\nhost: x\r\nx-",
        heads.clone(),
        stop.clone(),
    ));
    let body =
        "POST /api/v1/orders HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{";
    hostile.spawn(hold_unfinished_requests(address, "127.0.0.5", body, bodies.clone(), stop.clone()));
    hostile.spawn(hold_unfinished_requests(address, "127.0.0.6", body, more_bodies.clone(), stop.clone()));
    hostile.spawn(guess_tokens(address, guesses.clone(), stop.clone()));
    let floods = [&plain, &forging, &proxied];
    until("the floods are refused", async || {
        assert_none_ended(&mut hostile);
        floods.iter().all(|tally| tally.of(429) > BURST).then_some(())
    })
    .await;
    let resident = service.resident_bytes();

    // Operators and load balancers, at the same address as the public.
    let answered = Arc::new(AtomicU64::new(0));
    hostile.spawn({
        let (answered, stop, base) = (answered.clone(), stop.clone(), service.url(""));
        async move {
            let client = client_at("127.0.0.1");
            while !stop.is_cancelled() {
                for path in ["/readyz", "/healthz", "/admin/v1/projection"] {
                    let reply = read(client.get(format!("{base}{path}")).bearer_auth(ADMIN)).await;
                    assert_eq!(reply.status, 200, "{path}: {}", reply.text);
                }
                answered.fetch_add(1, Relaxed);
            }
        }
    });
    let mut honest = JoinSet::new();
    for (n, users) in users.chunks(10).enumerate() {
        let (base, users) = (service.url(""), users.to_vec());
        let at = if n % 2 == 0 { format!("127.0.1.{n}") } else { PROXY.to_owned() };
        let behind = (n % 2 == 1).then(|| format!("10.0.0.1, 203.0.113.{n}"));
        let shopper = Shopper { client: client_at(&at), behind, base };
        honest.spawn(async move {
            for user in users {
                shopper.shop(user, product, campaign).await;
            }
        });
    }
    honest.join_all().await;
    until("slow clients are cut, and all is answered meanwhile", async || {
        assert_none_ended(&mut hostile);
        let slow = heads.total() > 100 && bodies.of(408) > 10 && more_bodies.of(408) > 10;
        (slow && guesses.of(429) > 10 && answered.load(Relaxed) > 10).then_some(())
    })
    .await;
    stop.cancel();
    while let Some(ended) = hostile.join_next().await {
        ended.unwrap();
    }

    let most = BURST + (began.elapsed().as_secs() + 1) * RATE;
    for tally in floods {
        let let_in = tally.of(200) + tally.of(404);
        assert!(let_in >= BURST && let_in <= most, "{let_in} of at most {most}");
    }
    // The limit admits thirty guesses at once, then one every two seconds.
    let max_verified = 30 + began.elapsed().as_secs() / 2 + 1;
    assert!((30..=max_verified).contains(&guesses.of(401)), "{} guesses were verified", guesses.of(401));
    assert_eq!(guesses.of(401) + guesses.of(429), guesses.total());
    assert!(bodies.of(503) + more_bodies.of(503) == 0, "a request counts as in flight before its body has arrived");
    let grown = service.resident_bytes().saturating_sub(resident);
    assert!(grown < 64 * 1024 * 1024, "{grown} bytes of growth");

    // A user has the same limit at every address: the burst, then one request per second.
    let shopper = client_at("127.0.2.1");
    let (user, other) = (users[0], users[1]);
    let began = Instant::now();
    let mut fine = 0;
    loop {
        let reply = read(shopper.get(service.url(&format!("/api/v1/balances/{user}")))).await;
        if reply.status != 200 {
            reply.refused(429, "TOO_MANY_REQUESTS");
            break;
        }
        fine += 1;
        assert!(fine <= 20 + began.elapsed().as_secs() + 1);
    }
    let body = json!({"couponId": campaign, "userId": user});
    read(client_at("127.0.2.2").post(service.url("/api/v1/coupons/issue")).json(&body))
        .await
        .refused(429, "TOO_MANY_REQUESTS");
    read(shopper.get(service.url(&format!("/api/v1/balances/{other}")))).await.ok();

    let Service { mut running, .. } = service;
    running.stop().await;
    test.finish().await;
}

#[tokio::test]
async fn operators_served_on_own_address_when_public_flooded() {
    let test = TestApp::with(Options { clock: None, ..Options::default() }).await;
    let mut service = Service::start(
        &test,
        &[("OPS_BIND_ADDR", "127.0.0.1:0"), ("MAX_CONNECTIONS", "2"), ("HEADER_TIMEOUT_MS", "600000")],
    )
    .await;
    let operators = service.running.logged("serving operators").unwrap();
    let operators: SocketAddr = operators["fields"]["address"].as_str().unwrap().parse().unwrap();
    let (public, client) = (service.address, crate::support::harness::client());
    let ask = async |listener: SocketAddr, path: &str| {
        // Each on its own connection, since the limit of connections is tested.
        let request = client.get(format!("http://{listener}{path}")).header("connection", "close");
        read(request.bearer_auth(ADMIN)).await.status.as_u16()
    };
    for (path, at_public, at_operators) in [
        ("/readyz", 200, 200),
        ("/healthz", 200, 200),
        ("/admin/v1/projection", 404, 200),
        ("/admin", 404, 404),
        ("/api/v1/products", 200, 404),
        ("/swagger-ui/index.html", 200, 404),
        ("/nowhere", 404, 404),
    ] {
        assert_eq!((ask(public, path).await, ask(operators, path).await), (at_public, at_operators), "{path}");
    }
    // All public connections are taken; the operators' listener still has room.
    let mut taken = Vec::new();
    for _ in 0..2 {
        let mut stream = connect("127.0.0.2", public).await.unwrap();
        stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut reply = [0; 12];
        stream.read_exact(&mut reply).await.unwrap();
        assert_eq!(&reply, b"HTTP/1.1 200");
        taken.push(stream);
    }
    let waiting = ask(public, "/healthz");
    tokio::pin!(waiting);
    assert!(futures_util::poll!(&mut waiting).is_pending());
    assert_eq!(ask(operators, "/readyz").await, 200);
    assert_eq!(ask(operators, "/admin/v1/projection").await, 200);
    let none = tokio::time::timeout(Duration::from_millis(200), &mut waiting).await;
    assert!(none.is_err(), "a connection beyond the limit was served");
    drop(taken);
    assert_eq!(waiting.await, 200);
    service.running.stop().await;
    test.finish().await;
}
