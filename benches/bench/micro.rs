//! The code that runs per request, part by part: the path of a request without its socket, decoding an event, folding a batch,
//! hashing an idempotency key, counting metrics. divan measures the time; callgrind counts instructions, which do not depend on the
//! load of the machine.
//!
//! Both run in a child process (role `micro`), connected to servers with a few hundred decisions in the outbox, so that the
//! events are those of the current scripts.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fmt, fs,
    hint::black_box,
    net::SocketAddr,
    path::Path,
    process::Command,
    sync::OnceLock,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use axum::{
    Router,
    body::Body,
    extract::ConnectInfo,
    http::{Request, StatusCode, header::CONTENT_TYPE},
};
use divan::Bencher;
use firstcome::{
    app::App,
    model::{
        IdempotencyKey, KeyOwner, Partition, UserId,
        event::{self, Event},
    },
    projector::batch::Batch,
    redis::outbox::{Entry, StreamId},
    telemetry::metrics::{self, http::Running, scripts::Meter},
};
use http_body_util::BodyExt;
use tokio::runtime::Runtime;
use tower::ServiceExt;

use crate::{
    Options, client,
    loads::{self, RICH, Users},
    report::Report,
    servers::{self, MICRO, PROJECT, SERVE, Servers},
};

/// Decisions of each kind in the outbox.
const SAMPLE: u64 = 250;

const TIMED: &str = "timed";
const COUNTED: &str = "counted";
/// Iterations of the first count; the second has twice as many, and the report has the difference.
const ITERATIONS: u64 = 200;

pub async fn run(servers: &Servers, options: &Options, report: &mut Report) -> Result<()> {
    let service = servers.process(SERVE, &["alone"])?;
    let users = Users { first: service.users(1000, RICH).await?, count: 1000 };
    let products: Vec<u64> = [service.product(1_000_000).await?, service.product(1_000_000).await?].into();
    let campaign = service.campaign(1000).await?;
    let placed = RefCell::default();
    let (issue, order) = (
        loads::issue(campaign, move |n| users.nth(n), 200),
        loads::order(move |n| users.nth(n), &products, 1, None, Some(&placed)),
    );
    for load in [&issue, &order] {
        client::run(service.address, 8, load, 0..SAMPLE, Duration::MAX).await?;
    }
    let due = placed.take();
    client::run(service.address, 8, &loads::pay(&due), 0..SAMPLE, Duration::MAX).await?;

    report.heading("Per request, in our own code");
    let program = std::env::current_exe()?;
    let mut timed = Command::new(&program);
    timed.args([MICRO, TIMED, if options.quick { "0.2" } else { "1" }]);
    report.text(
        "By divan: time on one thread. `request …` is the router with every layer, from a request in memory to the last byte \
         of its reply, without hyper and sockets; `baseline` makes no decision, so the difference to a request is the cost of the stores.",
    );
    report.text(&format!("```\n{}\n```", output(servers, &mut timed)?.trim_end()));
    count(servers, &program, report)?;

    // Leaves no backlog.
    let _projector = servers.process(PROJECT, &[])?;
    servers.drain().await
}

fn output(servers: &Servers, command: &mut Command) -> Result<String> {
    let output = servers.with_servers(command, "firstcome").output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    ensure!(output.status.success(), "{:?} failed: {}", command.get_program(), text(&output.stderr));
    Ok(text(&output.stdout))
}

/// Instructions per iteration, by callgrind.
fn count(servers: &Servers, program: &Path, report: &mut Report) -> Result<()> {
    if Command::new("valgrind").arg("--version").output().is_err() {
        report.text("Instructions are not counted: there is no `valgrind` (Debian has it under that name).");
        return Ok(());
    }
    let dir = firstcome::dev::ScratchDir::new()?;
    let mut counted = Command::new("valgrind");
    // Counts within `counted_iterations` only, and dumps the count at each return. (callgrind honours the last option of one name
    // or pattern only: hence one of each.)
    counted
        .args(["--tool=callgrind", "--toggle-collect=*counted_iterations*"])
        .arg(concat!("--dump-after=", module_path!(), "::counted_iterations"))
        .arg(format!("--callgrind-out-file={}", dir.path().join("out").display()))
        .arg(program)
        .args([MICRO, COUNTED]);
    let names = output(servers, &mut counted)?;
    let mut lines = Vec::new();
    for (at, name) in names.lines().enumerate() {
        let instructions = |dump: usize| -> Result<f64> {
            let path = dir.path().join(format!("out.{dump}"));
            let text = fs::read_to_string(&path).with_context(|| format!("callgrind wrote no {}", path.display()))?;
            let total = text.lines().find_map(|line| line.strip_prefix("totals:").or(line.strip_prefix("summary:")));
            Ok(total.context("no total in the output of callgrind")?.trim().parse()?)
        };
        let more = instructions(2 * at + 2)? - instructions(2 * at + 1)?;
        lines.push(vec![name.to_owned(), format!("{:.0}", more / ITERATIONS as f64)]);
    }
    report.text(
        "By callgrind: instructions per iteration. Its simulated processor has no instructions for SHA-256, so hashing counts for \
         more than it costs.",
    );
    report.table(&["", "instructions"], &lines);
    Ok(())
}

/// A part of the code to measure.
struct Piece {
    name: String,
    work: Box<dyn Fn() + Send + Sync>,
}

impl fmt::Display for Piece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

static PIECES: OnceLock<Vec<Piece>> = OnceLock::new();

#[divan::bench(args = PIECES.get().into_iter().flatten())]
fn per_request(bencher: Bencher<'_, '_>, piece: &'static Piece) {
    bencher.bench_local(|| (piece.work)());
}

/// In the process of its own.
pub fn role(args: &[String]) -> Result<()> {
    let runtime: &'static Runtime =
        Box::leak(Box::new(tokio::runtime::Builder::new_current_thread().enable_all().build()?));
    let app = runtime.block_on(servers::open())?;
    let entries = runtime.block_on(app.store.outbox_page(Partition(0), StreamId::ZERO, 10_000))?;
    let router = app.router(&servers::http_config()).unwrap();
    let pieces = PIECES.get_or_init(|| pieces(runtime, &app, router, entries));
    match args {
        [how, seconds] if how == TIMED => {
            let max_time = Duration::from_secs_f64(seconds.parse()?);
            divan::Divan::default().color(false).sample_count(2000).max_time(max_time).run_benches();
        }
        _ => {
            for piece in pieces {
                (piece.work)();
                counted_iterations(piece, ITERATIONS);
                counted_iterations(piece, 2 * ITERATIONS);
                println!("{piece}");
            }
        }
    }
    Ok(())
}

/// callgrind finds the function by its name.
#[inline(never)]
fn counted_iterations(piece: &Piece, iterations: u64) {
    for _ in 0..black_box(iterations) {
        (piece.work)();
    }
}

fn pieces(runtime: &'static Runtime, app: &App, router: Router, entries: Vec<Entry>) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut piece = |name: &str, work: Box<dyn Fn() + Send + Sync>| pieces.push(Piece { name: name.to_owned(), work });

    for (name, method, path, key, body, status) in [
        ("request: baseline, coupon issue", "POST", "/baseline/coupons/issue", None, ISSUE, StatusCode::OK),
        (
            "request: baseline, coupon issue with an idempotency key",
            "POST",
            "/baseline/coupons/issue",
            Some("micro-1"),
            ISSUE,
            StatusCode::OK,
        ),
        ("request: baseline, product", "GET", "/baseline/products/1", None, "", StatusCode::OK),
        ("request: order of 5 lines, the last refused", "POST", "/api/v1/orders", None, ORDER, StatusCode::BAD_REQUEST),
    ] {
        let router = router.clone();
        let work = move || {
            let mut request = Request::builder().method(method).uri(path).header("host", "bench");
            if !body.is_empty() {
                request = request.header(CONTENT_TYPE, "application/json").header("content-length", body.len());
            }
            if let Some(key) = key {
                request = request.header("idempotency-key", key);
            }
            let mut request = request.body(Body::from(body)).unwrap();
            request.extensions_mut().insert(ConnectInfo(SocketAddr::from(([127, 0, 0, 1], 1))));
            // The same call as in the accept loop.
            let (router, request) = (black_box(router.clone()), black_box(request));
            let reply = runtime.block_on(async { router.oneshot(request).await });
            let Ok(reply) = reply;
            assert_eq!(reply.status(), status);
            black_box(runtime.block_on(reply.into_body().collect()).unwrap());
        };
        piece(name, Box::new(work));
    }

    let owner = KeyOwner::User(UserId::new(1).unwrap());
    piece(
        "idempotency key: digest and fingerprint",
        Box::new(move || {
            drop(black_box(IdempotencyKey::new(owner, black_box("5f0c1c53-micro"), black_box(ORDER.as_bytes()))))
        }),
    );

    let began = Instant::now();
    let (method, route) = ("POST", "/api/v1/coupons/issue");
    let count =
        move || Running::begin(began, black_box(method), black_box(route)).answered(black_box(200), "", Duration::ZERO);
    piece("metrics: the start and the end of a request", Box::new(count));
    let meter = Meter::new("micro");
    piece("metrics: a reply code of a script", Box::new(move || meter.replied(black_box("ISSUED"))));
    let observed = runtime.block_on(app.engine.observe());
    let scrape = move || drop(black_box(metrics::text(black_box(&observed)).unwrap()));
    piece("metrics: the text of the metrics endpoint", Box::new(scrape));

    let mut kinds: BTreeMap<String, Vec<Vec<(String, String)>>> = BTreeMap::new();
    for entry in entries {
        let first = event::fields_of(&entry.fields, 0);
        let kind = first.into_iter().find(|(name, _)| name == "kind").map(|(_, kind)| kind);
        kinds.entry(kind.unwrap_or_default()).or_default().push(entry.fields);
    }
    // Only the events of requests: an event that happened once is not one.
    kinds.retain(|_, entries| entries.len() > 10);
    for (kind, entries) in kinds {
        let decoded = entries.iter().flat_map(|fields| event::decode(fields));
        let events: Vec<Event> = decoded.filter_map(|decoded| decoded.event.ok()).collect();
        let (first, count) = (entries[0].clone(), events.len());
        let several = event::decode(&first).len();
        let name = format!("event: decode an entry of {several} {kind}");
        piece(&name, Box::new(move || drop(black_box(event::decode(black_box(&first))))));
        let work = move || drop(black_box(Batch::fold(black_box(&events))));
        piece(&format!("batch: fold {count} of {kind}"), Box::new(work));
    }
    pieces
}

const ISSUE: &str = r#"{"couponId":1,"userId":123456}"#;
/// Decodes completely, and is then refused.
const ORDER: &str = concat!(
    r#"{"userId":123456,"orderProducts":[{"productId":1,"quantity":1},{"productId":2,"quantity":1},"#,
    r#"{"productId":3,"quantity":1},{"productId":4,"quantity":1},{"productId":5,"quantity":0}]}"#
);
