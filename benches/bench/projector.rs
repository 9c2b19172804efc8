//! The projector: the rate and the cost of projecting a backlog, and the lag of PostgreSQL while the API decides as fast as it can.

use std::{
    cell::{Cell, RefCell},
    time::{Duration, Instant},
};

use anyhow::Result;
use firstcome::{model::Partition, redis::keys::Keys};
use sea_orm::ConnectionTrait;

use crate::{
    Options, client, cpu,
    loads::{self, RICH, Users},
    measure::CONNECTIONS,
    report::{Report, median, spread},
    servers::{PROJECT, Process, SERVE, Servers},
    targets::{Target, Targets},
};

/// The projector does not keep up where its lag grows by more than this share of the rate of decisions.
pub const GROWING: f64 = 0.02;
const SAMPLE_INTERVAL: Duration = Duration::from_millis(100);

/// Variables of the projector's environment.
pub type Variables = [(&'static str, &'static str)];
pub const KEEPING: [(&str, &str); 1] = [("OUTBOX_KEEP_SECONDS", "60")];
/// How backlogs are projected, in alternation.
const MODES: [(&str, &Variables); 3] = [
    ("", &KEEPING),
    (", nothing kept of the outbox", &[("OUTBOX_KEEP_SECONDS", "0")]),
    (", no events", &[("OUTBOX_KEEP_SECONDS", "60"), ("EVENTS_KEEP_DAYS", "0")]),
];

/// The measurements of a backlog.
pub struct Backlog {
    /// Decisions, and the seconds that the API took for them.
    decided: u64,
    deciding: f64,
    /// Events to project when the projector was up, and the seconds that it took.
    projected: f64,
    projecting: f64,
    /// CPU-µs per event: projector, Redis, PostgreSQL.
    pub us: [f64; 3],
    /// Bytes of the outbox per event, afterwards.
    kept: f64,
}

impl Backlog {
    fn decision_rate(&self) -> f64 {
        self.decided as f64 / self.deciding
    }

    fn projection_rate(&self) -> f64 {
        self.projected / self.projecting
    }
}

pub async fn run(servers: &Servers, options: &Options, report: &mut Report, targets: &mut Targets) -> Result<()> {
    let alone = servers.process(SERVE, &["alone"])?;
    let wanted = options.decisions();
    let users = Users { first: alone.users(wanted.max(300_000), RICH).await?, count: wanted.max(300_000) };
    let products = [alone.product(1_000_000_000).await?];
    // These decisions do not belong to a backlog.
    {
        let _projector = servers.process(PROJECT, &[])?;
        servers.drain().await?;
    }
    let (mut issues, mut sales) = (MODES.map(|_| Vec::new()), MODES.map(|_| Vec::new()));
    for round in 0..options.rounds() {
        for (at, (_, variables)) in in_turn(round, MODES.into_iter().enumerate().collect()) {
            let make = async || make_issues(&alone, users, wanted).await;
            issues[at].push(backlog(servers, &alone, make, variables).await?);
            let make = async || make_sales(&alone, users, &products, wanted).await;
            sales[at].push(backlog(servers, &alone, make, variables).await?);
        }
    }
    drop(alone);
    report.heading("The projector");
    report.text(&format!(
        "{wanted} decisions over HTTP by {CONNECTIONS} connections without a projector; then the projector alone, until PostgreSQL has \
         them all. CPU-µs are per decision, during the projection; the bytes are those of the outbox afterwards, which keeps decisions for a \
         minute after their commit, or not (`OUTBOX_KEEP_SECONDS=0`). Without events (`EVENTS_KEEP_DAYS=0`) nothing is written for other \
         systems. In alternation."
    ));
    let middle = |of: &[Backlog], value: &dyn Fn(&Backlog) -> f64| median(of.iter().map(value));
    let line = |name: &str, of: &[Backlog]| {
        let ratios: Vec<f64> = of.iter().map(|b| b.projection_rate() / b.decision_rate()).collect();
        vec![
            name.to_owned(),
            format!("{:.0}", middle(of, &Backlog::decision_rate)),
            format!("{:.0}", middle(of, &Backlog::projection_rate)),
            spread(&ratios),
            format!("{:.1}", middle(of, &|b| b.us[0])),
            format!("{:.1}", middle(of, &|b| b.us[1])),
            format!("{:.1}", middle(of, &|b| b.us[2])),
            format!("{:.1}", middle(of, &|b| b.us.iter().sum())),
            format!("{:.0}", middle(of, &|b| b.kept)),
        ]
    };
    report.table(
        &[
            "backlog",
            "decided per second",
            "projected per second",
            "projected ÷ decided",
            "projector µs",
            "Redis µs",
            "PostgreSQL µs",
            "sum µs",
            "bytes kept",
        ],
        &[("coupon issues", &issues), ("orders and payments", &sales)]
            .into_iter()
            .flat_map(|(name, of)| MODES.iter().zip(of).map(move |((mode, _), of)| (format!("{name}{mode}"), of)))
            .map(|(name, of)| line(&name, of))
            .collect::<Vec<_>>(),
    );
    let of_events = |of: &[Vec<Backlog>; 3]| -> Vec<f64> {
        of[0].iter().zip(&of[2]).map(|(with, without)| with.us[2] - without.us[2]).collect()
    };
    let (of_issues, of_sales) = (of_events(&issues), of_events(&sales));
    let note = format!("coupon issues {}, orders and payments {}", spread(&of_issues), spread(&of_sales));
    targets.measured(Target::EventsPostgres, median(of_issues.iter().chain(&of_sales).copied()), note);

    let service = servers.process(SERVE, &[])?;
    let seconds = if options.quick { 3.0 } else { 10.0 };
    let sustained = sustain(servers, &service, users, seconds).await?;
    servers.drain().await?;
    report.text(&format!(
        "The lag of PostgreSQL in decisions, while {CONNECTIONS} connections have coupons issued for {seconds} seconds ({:.0} per \
         second; the generator, the service, Redis and PostgreSQL share the cores).",
        sustained.rate
    ));
    let at = |share: f64| sustained.near(share).map_or_else(|| "–".to_owned(), |lag| format!("{lag:.0}"));
    let growth = sustained.growth() / sustained.rate;
    report.table(
        &["lag, in decisions", "at ¼", "at ½", "at ¾", "at the end", "max", "growth in the second half"],
        &[vec![
            "coupon issues".to_owned(),
            at(0.25),
            at(0.5),
            at(0.75),
            at(1.0),
            format!("{:.0}", sustained.lags.iter().map(|(_, lag)| *lag).fold(0.0, f64::max)),
            format!("{:+.1} % of the rate{}", growth * 100.0, if growth > GROWING { ": **growing**" } else { "" }),
        ]],
    );
    let note = format!("{:.0} issues per second for {seconds} s", sustained.rate);
    targets.measured(Target::ProjectorKeepsUp, growth.max(0.0), note);

    let campaign = service.campaign(users.count).await?;
    servers.drain().await?;
    servers.tidy().await?;
    let load = loads::issue(campaign, move |n| users.nth(n), 200);
    let all = client::run(service.address, CONNECTIONS, &load, 0..wanted, Duration::MAX).await?;
    let (lag, since) = (servers.lag().await?, Instant::now());
    servers.drain().await?;
    report.text(&format!(
        "After {wanted} issues in a closed loop ({:.0} per second, projecting) PostgreSQL lags by {lag} decisions, and has them all \
         {:.2} s later.",
        all.rate(),
        since.elapsed().as_secs_f64()
    ));
    Ok(())
}

/// What a round compares: the last first in every other round, because each leaves PostgreSQL something to do.
pub fn in_turn<T>(round: usize, mut compared: Vec<T>) -> Vec<T> {
    if round % 2 == 1 {
        compared.reverse();
    }
    compared
}

/// Creates a backlog, starts the projector, and waits until the backlog is projected.
pub async fn backlog(
    servers: &Servers,
    alone: &Process,
    make: impl AsyncFn() -> Result<(u64, f64)>,
    variables: &Variables,
) -> Result<Backlog> {
    // Nothing is kept of the one before, which is in PostgreSQL. Nor does PostgreSQL write its pages while this one is measured.
    let (mut link, outbox) = (servers.redis_link().await?, Keys(Partition(0)).outbox());
    redis::cmd("XTRIM").arg(&outbox).arg("MAXLEN").arg(0).exec_async(&mut link).await?;
    servers.tidy().await?;
    let (decided, deciding) = make().await?;
    servers.db.execute_unprepared("CHECKPOINT").await?;
    let projector = servers.process_with(PROJECT, &[], variables)?;
    let cpu = || (cpu::of(projector.pid()), servers.cpu(alone.pid()));
    let (lag, since, (own, before)) = (servers.lag().await? as f64, Instant::now(), cpu());
    servers.drain().await?;
    let projecting = since.elapsed().as_secs_f64();
    let (own_after, after) = cpu();
    let mut usage = redis::cmd("MEMORY");
    usage.arg("USAGE").arg(&outbox).arg("SAMPLES").arg(0);
    let kept: Option<f64> = usage.query_async(&mut link).await?;
    let (spent, us) = (after - before, |seconds: f64| seconds * 1e6 / lag);
    Ok(Backlog {
        decided,
        deciding,
        projected: lag,
        projecting,
        us: [us(own_after - own), us(spent.redis), us(spent.postgres)],
        kept: kept.unwrap_or(0.0) / lag,
    })
}

pub async fn make_issues(alone: &Process, users: Users, count: u64) -> Result<(u64, f64)> {
    let campaign = alone.campaign(users.count).await?;
    let load = loads::issue(campaign, move |n| users.nth(n), 200);
    let round = client::run(alone.address, CONNECTIONS, &load, 0..count, Duration::MAX).await?;
    Ok((round.requests, round.seconds))
}

async fn make_sales(alone: &Process, users: Users, products: &[u64], count: u64) -> Result<(u64, f64)> {
    let unpaid = RefCell::default();
    let load = loads::order(move |n| users.nth(n), products, 1, None, Some(&unpaid));
    let placed = client::run(alone.address, CONNECTIONS, &load, 0..count / 2, Duration::MAX).await?;
    let unpaid = unpaid.take();
    let load = loads::pay(&unpaid);
    let paid = client::run(alone.address, CONNECTIONS, &load, 0..unpaid.len() as u64, Duration::MAX).await?;
    Ok((placed.requests + paid.requests, placed.seconds + paid.seconds))
}

/// The lag during a run of decisions.
struct Sustained {
    rate: f64,
    seconds: f64,
    /// Seconds from the start, and the lag in decisions at that time.
    lags: Vec<(f64, f64)>,
}

impl Sustained {
    /// The median lag around a point of the run: a single sample depends on its place within a batch.
    fn near(&self, share: f64) -> Option<f64> {
        let near = |(at, _): &&(f64, f64)| (at / self.seconds - share).abs() <= 0.05;
        let lags: Vec<f64> = self.lags.iter().filter(near).map(|(_, lag)| *lag).collect();
        (!lags.is_empty()).then(|| median(lags))
    }

    /// The slope of the second half, in decisions per second.
    fn growth(&self) -> f64 {
        let half: Vec<(f64, f64)> = self.lags.iter().copied().filter(|(at, _)| *at >= self.seconds / 2.0).collect();
        let n = half.len() as f64;
        let mean = |of: fn(&(f64, f64)) -> f64| half.iter().map(of).sum::<f64>() / n;
        let (at, lag) = (mean(|sample| sample.0), mean(|sample| sample.1));
        let both: f64 = half.iter().map(|sample| (sample.0 - at) * (sample.1 - lag)).sum();
        let slope = both / half.iter().map(|sample| (sample.0 - at).powi(2)).sum::<f64>();
        if slope.is_finite() { slope } else { 0.0 }
    }
}

async fn sustain(servers: &Servers, service: &Process, users: Users, seconds: f64) -> Result<Sustained> {
    // Several campaigns, in case one is too small for the run.
    let mut campaigns = Vec::new();
    for _ in 0..3 {
        campaigns.push(service.campaign(users.count).await?);
    }
    servers.drain().await?;
    servers.tidy().await?;
    let campaign = |n: u64| campaigns[((n / users.count) as usize).min(campaigns.len() - 1)];
    let request = move |n: u64, request: &mut Vec<u8>| {
        let body = format!("{{\"couponId\":{},\"userId\":{}}}", campaign(n), users.nth(n));
        client::send("POST", "/api/v1/coupons/issue", &body, request);
    };
    let load = client::Load { request: Box::new(request), status: 200, body: None };
    let numbers = 0..users.count * campaigns.len() as u64;
    let (over, started) = (Cell::new(false), Instant::now());
    let sampling = async {
        let mut lags = Vec::new();
        while !over.get() {
            let lag = servers.lag().await? as f64;
            lags.push((started.elapsed().as_secs_f64(), lag));
            tokio::time::sleep(SAMPLE_INTERVAL).await;
        }
        anyhow::Ok(lags)
    };
    let issuing = async {
        let round = client::run(service.address, CONNECTIONS, &load, numbers, Duration::from_secs_f64(seconds)).await;
        over.set(true);
        round
    };
    let (round, lags) = futures_util::future::join(issuing, sampling).await;
    let round = round?;
    Ok(Sustained { rate: round.rate(), seconds: round.seconds, lags: lags? })
}
