//! Every way to reach Redis, with its master killed under load: served again without a command, and nothing acknowledged is lost.

mod address;
mod cluster;
mod load;
mod refused;
mod resharding;
mod sentinel;

use firstcome::{
    config::{Ack, DurabilityConfig},
    dev::RedisServer,
};

use crate::support::harness::{Options, raw_redis};

/// The service's settings under a load: its own clock, its projection and its sweeper, and timeouts as in production.
fn loaded(ack: Ack) -> Options {
    let durability = DurabilityConfig { ack, recovery_wait_seconds: 1, ..DurabilityConfig::default() };
    Options {
        clock: None,
        project: true,
        max_open_orders: 1_000_000,
        durability,
        redis_timeout_ms: 3_000,
        ..Options::default()
    }
}

/// Sends a command to a server.
async fn send(server: &RedisServer, command: &str) {
    let mut parts = command.split(' ');
    let mut sent = redis::cmd(parts.next().unwrap());
    parts.for_each(|part| {
        sent.arg(part);
    });
    sent.exec_async(&mut raw_redis(&server.url()).await).await.unwrap();
}
