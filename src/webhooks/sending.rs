//! Sends the events of one round. Events of one subject go one after the other, subjects go at the same time.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use parking_lot::Mutex;
use reqwest::Url;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{
    Webhooks,
    sender::{Attempt, Sender},
};
use crate::{
    model::{Clock, LeasedWebhook, PendingEvent, WebhookDelivery, WebhookId, WebhookKeys},
    telemetry::metrics,
};

/// The requests to one receiver at the same time.
const CONCURRENCY: usize = 64;
/// The failures of a round without a success after which it sends nothing more.
const MAX_FAILURES: i64 = 16;
/// After this time a round begins no further request for a subject that has had one: other subjects wait for its end.
const SUBJECT_TIME: Duration = Duration::from_secs(2);
/// How long a stop waits for receivers that have not answered.
const STOP_TIME: Duration = Duration::from_secs(3);

/// What became of an event in a round.
pub enum Sent {
    Attempted(PendingEvent, WebhookDelivery, Attempt),
    /// An earlier event of its subject failed, or nothing is taken, or the round is over.
    Held(PendingEvent),
}

/// Where requests go, and how they are signed.
struct Target {
    /// `None`: it was admitted under other settings.
    url: Option<Url>,
    keys: WebhookKeys,
}

/// A round of one webhook.
pub struct Round<'a> {
    webhook: &'a LeasedWebhook,
    sender: &'a Sender,
    clock: &'a Clock,
    /// The stop of the process.
    stopping: &'a CancellationToken,
    target: Mutex<Arc<Target>>,
    /// By the clock's uptime.
    began_us: u64,
    delivered: AtomicI64,
    failed: AtomicI64,
    is_stopped: AtomicBool,
}

impl<'a> Round<'a> {
    pub fn new(webhooks: &'a Webhooks, webhook: &'a LeasedWebhook) -> Self {
        Round {
            webhook,
            sender: &webhooks.sender,
            clock: &webhooks.clock,
            stopping: &webhooks.stopping,
            target: Mutex::new(target(webhooks, webhook)),
            began_us: webhooks.clock.uptime_us(),
            delivered: AtomicI64::new(0),
            failed: AtomicI64::new(0),
            is_stopped: AtomicBool::new(webhooks.stopping.is_cancelled()),
        }
    }

    pub fn webhook(&self) -> WebhookId {
        self.webhook.id
    }

    /// Later requests go where operators have them go now.
    pub fn update(&self, webhooks: &Webhooks, webhook: &LeasedWebhook) {
        *self.target.lock() = target(webhooks, webhook);
    }

    /// Begins no further request.
    pub fn stop(&self) {
        self.is_stopped.store(true, Ordering::Relaxed);
    }

    pub fn is_stopped(&self) -> bool {
        self.is_stopped.load(Ordering::Relaxed)
    }

    pub fn elapsed(&self) -> Duration {
        Duration::from_micros(self.clock.uptime_us().saturating_sub(self.began_us))
    }

    fn is_hopeless(&self) -> bool {
        self.delivered.load(Ordering::Relaxed) == 0 && self.failed.load(Ordering::Relaxed) >= MAX_FAILURES
    }

    /// Sends the events of each group one after the other, and the groups at the same time.
    pub async fn send_all(&self, groups: Vec<Vec<PendingEvent>>) -> Vec<Sent> {
        let sent = stream::iter(groups).map(|group| self.send_group(group));
        sent.buffer_unordered(CONCURRENCY).concat().await
    }

    async fn send_group(&self, group: Vec<PendingEvent>) -> Vec<Sent> {
        let (mut sent, mut is_over) = (Vec::with_capacity(group.len()), false);
        for event in group {
            if is_over || self.is_stopped() || self.is_hopeless() {
                sent.push(Sent::Held(event));
                continue;
            }
            let attempted = self.attempt(event).await;
            let delivered = matches!(&attempted, Sent::Attempted(_, _, attempt) if attempt.failure.is_none());
            is_over = !delivered || self.elapsed() >= SUBJECT_TIME;
            sent.push(attempted);
        }
        sent
    }

    async fn attempt(&self, event: PendingEvent) -> Sent {
        let (at, began, target) = (self.clock.now(), Instant::now(), self.target.lock().clone());
        let attempt = match &target.url {
            Some(url) => tokio::select! {
                attempt = self.sender.send(url, &target.keys, &event, at, self.clock.own()) => attempt,
                () = self.given_up() => return Sent::Held(event),
            },
            None => Attempt { status: None, failure: Some("refused_address") },
        };
        let counter = if attempt.failure.is_some() { &self.failed } else { &self.delivered };
        counter.fetch_add(1, Ordering::Relaxed);
        metrics::WEBHOOK_DELIVERIES.with_label_values(&[attempt.result()]).inc();
        let delivery = WebhookDelivery {
            no: 0,
            event_id: event.id.clone(),
            kind: event.kind.clone(),
            attempt: event.attempts + 1 + if event.is_new() { self.webhook.failures } else { 0 },
            at,
            took_ms: began.elapsed().as_millis() as i64,
            status: attempt.status,
            failure: attempt.failure.map(str::to_owned),
            manual: event.manual,
        };
        Sent::Attempted(event, delivery, attempt)
    }

    /// Ends when the process stops, and has waited long enough for answers.
    async fn given_up(&self) {
        self.stopping.cancelled().await;
        sleep(STOP_TIME).await;
    }
}

fn target(webhooks: &Webhooks, webhook: &LeasedWebhook) -> Arc<Target> {
    Arc::new(Target { url: webhooks.policy.url(&webhook.url), keys: webhook.keys.clone() })
}

/// The events by subject, in their order. An event that an operator sends again stands alone.
pub fn grouped(events: impl IntoIterator<Item = PendingEvent>) -> Vec<Vec<PendingEvent>> {
    let (mut groups, mut places): (Vec<Vec<PendingEvent>>, HashMap<String, usize>) = Default::default();
    for event in events {
        let place =
            if event.manual { groups.len() } else { *places.entry(event.subject.clone()).or_insert(groups.len()) };
        match groups.get_mut(place) {
            Some(group) => group.push(event),
            None => groups.push(vec![event]),
        }
    }
    groups
}
