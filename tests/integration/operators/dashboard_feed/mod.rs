//! The server side of the dashboard: its files and its feed, which stays exact while a store is down.

mod snapshots;
mod stream;

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use firstcome::postgres;
use futures_util::future::join_all;
use reqwest::{Method, StatusCode, header::HeaderMap};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::{
    projector::projection::{RestartableApp, busy_day},
    support::{
        api_kit::{after, fields, now},
        harness::{self, ADMIN, Options, Reply, TestApp, client, until},
    },
};

const CSP: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
                   base-uri 'none'; form-action 'self'; frame-ancestors 'none'";
/// More snapshots than any condition takes, on any machine.
const MAX_SNAPSHOTS: usize = 300;

/// The start of the event with the last fifteen minutes.
const HISTORY: &str = "event: history\ndata: ";

/// The cookie of a new session.
async fn sign_in(base: &str) -> String {
    let reply = harness::read(client().post(format!("{base}/ops/session")).json(&json!({"token": ADMIN}))).await;
    assert_eq!(reply.status, 204, "{}", reply.text);
    reply.headers["set-cookie"].to_str().unwrap().split(';').next().unwrap().to_owned()
}

/// A request for the feed on a new connection, as browsers send it.
fn feed_request(base: &str, cookie: &str) -> reqwest::RequestBuilder {
    client().get(format!("{base}/ops/feed")).header("cookie", cookie)
}

/// A client of the feed.
pub struct Watch {
    response: reqwest::Response,
    read: Vec<u8>,
}

impl Watch {
    pub async fn open(base: &str) -> Watch {
        Watch::with(base, &sign_in(base).await).await
    }

    async fn with(base: &str, cookie: &str) -> Watch {
        let response = feed_request(base, cookie).send().await.unwrap();
        assert_eq!(response.status(), 200);
        Watch { response, read: Vec::new() }
    }

    /// The next block of the stream; `None` at its end.
    async fn block(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.read.windows(2).position(|two| two == b"\n\n") {
                let block: Vec<u8> = self.read.drain(..end + 2).collect();
                return Some(String::from_utf8(block).unwrap());
            }
            self.read.extend(self.response.chunk().await.unwrap()?);
        }
    }

    /// The history, which precedes the first snapshot after it is known; none if it is not known yet.
    pub async fn history(&mut self) -> Option<Value> {
        assert_eq!(self.block().await.unwrap(), "retry: 1000\n\n");
        let block = self.block().await.unwrap();
        let history = block.strip_prefix(HISTORY).map(|text| serde_json::from_str(text).unwrap());
        if history.is_none() {
            assert!(block.starts_with("event: snapshot\n"), "{block}");
        }
        history
    }

    /// The history, on a stream that began without it.
    pub async fn late_history(&mut self) -> Value {
        loop {
            let block = self.block().await.unwrap();
            if let Some(text) = block.strip_prefix(HISTORY) {
                return serde_json::from_str(text).unwrap();
            }
        }
    }

    /// The text of the next snapshot.
    async fn text(&mut self) -> Option<String> {
        loop {
            let block = self.block().await?;
            if block.starts_with(HISTORY) {
                continue;
            }
            if let Some(event) = block.strip_prefix("event: snapshot\ndata: ") {
                return Some(event.trim_end().to_owned());
            }
            assert_eq!(block, "retry: 1000\n\n");
        }
    }

    pub async fn next(&mut self) -> Option<Value> {
        Some(serde_json::from_str(&self.text().await?).unwrap())
    }

    /// The first snapshot that fulfils a condition.
    pub async fn until(&mut self, what: &str, is: impl Fn(&Value) -> bool) -> Value {
        let mut seen = Value::Null;
        for _ in 0..MAX_SNAPSHOTS {
            seen = self.next().await.unwrap();
            if is(&seen) {
                return seen;
            }
        }
        panic!("never seen: {what}: {seen:#}")
    }
}

fn guarded(headers: &HeaderMap) {
    for (name, value) in [
        ("content-security-policy", CSP),
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "DENY"),
        ("referrer-policy", "no-referrer"),
    ] {
        assert_eq!(headers[name], value);
    }
}
