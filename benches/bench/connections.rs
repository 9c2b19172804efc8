//! One connection per request, taken from a pool, against a few shared multiplexed ones: the measurement behind
//! `store::lanes` (see docs/decisions.md).
//!
//! Both send the same script call (a balance charge, durable) to the same private Redis, in alternation, from the same
//! number of concurrent tasks. Reported per setting: requests per second, Redis CPU and commands per request, and the ratio
//! of the two rates in the same round, which is what counts on a machine that is not quiet.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::time::{Duration, Instant};

use firstcome::{
    config::{RedisConfig, Secret},
    dev::{self, RedisServer, ScratchDir},
    domain::{Call, MAX_SAFE_INTEGER, Millis, UserId},
    store::{
        Identity, Store,
        decisions::{Context, UserBatch},
        keys::{Keys, Partition},
        scripts,
    },
};
use futures_util::future::join_all;

const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_secs(2);
const USERS: i64 = 1000;
const POOL: usize = 64;

#[tokio::main]
async fn main() {
    // `cargo bench` passes `--bench`; `cargo test --benches` runs it too, and gets nothing to wait for.
    if !std::env::args().any(|arg| arg == "--bench") {
        return;
    }
    let dir = ScratchDir::new().unwrap();
    let mut redis = RedisServer::start(dev::RedisConfig::new(dir.path().join("redis"))).await.unwrap();
    let config = RedisConfig {
        redis_url: Secret::new(redis.url()),
        redis_lanes: 4,
        redis_timeout_ms: 60_000,
        allow_unsafe_redis: false,
    };
    let store = Store::connect(&config).await.unwrap();
    store.initialise(&Identity { store: "bench".into(), partitions: 1, epoch: 1 }).await.unwrap();
    let call = Call::default();
    let context = Context { now: Millis(1), call: &call };
    let batch =
        UserBatch { first: UserId::new(1).unwrap(), step: 1, count: USERS, name: "user-", prefixed: true, balance: 0 };
    store.users_create(context, Partition(0), &batch).await.unwrap();
    let pool = deadpool_redis::Config::from_url(redis.url())
        .builder()
        .unwrap()
        .max_size(POOL)
        .runtime(deadpool_redis::Runtime::Tokio1)
        .build()
        .unwrap();
    let hash = redis::Script::new(&scripts::BALANCE_CHARGE.source()).get_hash().to_owned();
    store.balance_charge(context, UserId::new(1).unwrap(), 1, MAX_SAFE_INTEGER).await.unwrap();

    println!(
        "| concurrent | lanes/s | pool/s | lanes ÷ pool | Redis µs/request lanes, pool | commands/request lanes, pool |"
    );
    println!("| ---: | ---: | ---: | ---: | ---: | ---: |");
    for concurrent in [1, 8, 64, 512] {
        let (mut lanes, mut pooled) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            lanes.push(
                round(&redis, concurrent, async |user| {
                    store.balance_charge(context, user, 1, MAX_SAFE_INTEGER).await.unwrap();
                })
                .await,
            );
            pooled.push(
                round(&redis, concurrent, async |user| {
                    let keys = Keys(Partition(0));
                    let mut link = pool.get().await.unwrap();
                    let mut command = redis::cmd("EVALSHA");
                    command
                        .arg(&hash)
                        .arg(4)
                        .arg(keys.meta())
                        .arg(keys.outbox())
                        .arg(keys.record(""))
                        .arg(keys.user(user));
                    command.arg(1).arg("").arg(1).arg("").arg(user.get()).arg(1).arg(MAX_SAFE_INTEGER);
                    command.query_async::<redis::Value>(&mut link).await.unwrap();
                })
                .await,
            );
        }
        let median = |rounds: &[Round], of: fn(&Round) -> f64| {
            let mut values: Vec<f64> = rounds.iter().map(of).collect();
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        let mut ratios: Vec<f64> = lanes.iter().zip(&pooled).map(|(a, b)| a.rate / b.rate).collect();
        ratios.sort_by(f64::total_cmp);
        println!(
            "| {concurrent} | {:.0} | {:.0} | {:.2} ({:.2}–{:.2}) | {:.1}, {:.1} | {:.2}, {:.2} |",
            median(&lanes, |r| r.rate),
            median(&pooled, |r| r.rate),
            ratios[ROUNDS / 2],
            ratios[0],
            ratios[ROUNDS - 1],
            median(&lanes, |r| r.cpu_us),
            median(&pooled, |r| r.cpu_us),
            median(&lanes, |r| r.commands),
            median(&pooled, |r| r.commands),
        );
    }
    redis.kill().await.unwrap();
}

struct Round {
    rate: f64,
    cpu_us: f64,
    commands: f64,
}

/// Runs `request` from `concurrent` tasks for a round.
async fn round(redis: &RedisServer, concurrent: usize, request: impl AsyncFn(UserId)) -> Round {
    let (cpu, commands) = usage(redis).await;
    let started = Instant::now();
    let counts = join_all((0..concurrent).map(async |task| {
        let mut done = 0i64;
        while started.elapsed() < ROUND {
            request(UserId::new((task as i64 * 7919 + done) % USERS + 1).unwrap()).await;
            done += 1;
        }
        done
    }))
    .await;
    let elapsed = started.elapsed().as_secs_f64();
    let done = counts.iter().sum::<i64>() as f64;
    let (cpu_after, commands_after) = usage(redis).await;
    Round { rate: done / elapsed, cpu_us: (cpu_after - cpu) * 1e6 / done, commands: (commands_after - commands) / done }
}

/// Redis's own CPU seconds, and commands processed.
async fn usage(redis: &RedisServer) -> (f64, f64) {
    let client = redis::Client::open(redis.url()).unwrap();
    let mut link = client.get_multiplexed_async_connection().await.unwrap();
    let info: String = redis::cmd("INFO").arg("everything").query_async(&mut link).await.unwrap();
    let number = |name: &str| -> f64 {
        info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap().trim().parse().unwrap()
    };
    // Calls from scripts count as calls too; `cmdstat_evalsha` and friends count what came over the wire.
    let wire: f64 = ["cmdstat_evalsha", "cmdstat_ping", "cmdstat_unwatch"]
        .iter()
        .filter_map(|name| info.lines().find_map(|line| line.strip_prefix(name)))
        .filter_map(|stat| stat.strip_prefix(":calls=")?.split(',').next()?.parse::<f64>().ok())
        .sum();
    (number("used_cpu_user") + number("used_cpu_sys"), wire)
}
