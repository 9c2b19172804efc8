//! Rebuilds of Redis from PostgreSQL: a rebuild restores everything that PostgreSQL has, withholds units that may have been
//! sold, and discards data only with `--discard`.

mod partial;
mod refusals;
mod restoring;
mod starts;
mod withholding;

use std::collections::{BTreeMap, BTreeSet};

use firstcome::{
    config::{Ack, DurabilityConfig},
    recovery::rebuild::{self, Summary},
    redis::Store,
};
use reqwest::Method;
use serde_json::json;

use crate::{
    projector::projection::busy_day,
    support::{
        fake_gateway::{Behaviour, FakeGateway},
        harness::{self, Options, TestApp, until},
        outbox,
    },
};

/// `ACK=postgres`: no acknowledged decision is lost with Redis.
pub fn ack_postgres() -> Options {
    Options { durability: DurabilityConfig { ack: Ack::Postgres, ..DurabilityConfig::default() }, ..projecting() }
}

pub fn projecting() -> Options {
    Options { project: true, ..Options::default() }
}

pub async fn rebuilt(test: &TestApp, options: rebuild::RebuildOptions) -> Summary {
    let rebuild = test.rebuild().await;
    let summary = rebuild.clone().run(options).await.unwrap();
    rebuild.db.close().await.unwrap();
    summary
}

pub async fn refused(test: &TestApp, options: rebuild::RebuildOptions) -> String {
    let rebuild = test.rebuild().await;
    let error = rebuild.clone().run(options).await.expect_err("the rebuild succeeded");
    rebuild.db.close().await.unwrap();
    format!("{error:#}")
}

pub async fn ready(test: &TestApp) {
    until("the service is ready", async || (test.get("/readyz").await.status == 200).then_some(())).await;
}

/// Waits until the background projector has carried every event to PostgreSQL.
pub async fn projected(test: &TestApp) {
    until("PostgreSQL has every event", async || {
        let status = test.get("/admin/v1/projection").await.ok();
        (status["lagEvents"] == 0).then_some(())
    })
    .await;
}

/// The contents of Redis without the parts that a rebuild may change: the epoch, the sequences of ids, the order of lines, and the
/// entry that a user's history points to.
fn comparable(snapshot: BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for (key, value) in snapshot {
        let kind = key.split(':').nth(1).unwrap().to_owned();
        if matches!(kind.as_str(), "meta" | "ids" | "outbox" | "claim" | "freed") {
            continue;
        }
        let fields = value.trim_matches(['{', '}']);
        let value = match (kind.as_str(), key.matches(':').count()) {
            ("user", 2) => {
                let tail = fields.split(", ").find(|field| field.starts_with("\"tail\"")).unwrap().to_owned();
                value.replace(&tail, "\"tail\": \"\"")
            }
            ("order", _) => {
                let lines = |name: &str| {
                    let start = format!("\"{name}\": \"");
                    let lines = value.split_once(&start).map_or("", |(_, rest)| rest.split('"').next().unwrap());
                    let mut sorted: Vec<&str> = lines.split(',').collect();
                    sorted.sort_unstable();
                    (lines.to_owned(), sorted.join(","))
                };
                let mut value = value.clone();
                let (lines, sorted) = lines("lines");
                value = value.replace(&format!("\"{lines}\""), &format!("\"{sorted}\""));
                value
            }
            // A counter of 0 equals a missing one.
            ("held" | "sold" | "withheld" | "price_version", _) => {
                let mut counters: Vec<&str> = fields.split(", ").filter(|field| !field.ends_with(": \"0\"")).collect();
                counters.sort_unstable();
                counters.join(", ")
            }
            // Without the scores: the times of the next checks.
            ("gateway", _) => {
                let orders: BTreeSet<&str> =
                    value.split("(\"").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
                format!("{orders:?}")
            }
            // A score of 0 equals a missing member: units that cost nothing add none.
            ("rank", _) => {
                let mut ranked: Vec<&str> =
                    value.split("(\"").skip(1).filter(|rest| !rest.contains(", 0.0)")).collect();
                ranked.sort_unstable();
                ranked.join("")
            }
            _ => value,
        };
        if !value.is_empty() {
            all.insert(key, value);
        }
    }
    all
}
