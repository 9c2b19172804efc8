//! Sends to a webhook in rounds: reads what is next, sends it, and writes what became of it in one transaction.
//!
//! A round sends new events after the cursor, and what failed before and is due ([`sending`](super::sending) has how). An event that fails
//! is kept to be sent again, with those of its subject behind it, and the cursor moves on. If nothing is taken, and more than a few
//! events were refused, the receiver is down: the cursor stays, and a few events try it again after growing pauses. So a dead receiver
//! costs no more than a few rows.
//!
//! A process that dies in a round leaves the cursor where it was: its events are sent again. One that is stopped ends its rounds first.

use std::{
    collections::HashSet,
    future::pending,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use tokio::time::{interval, sleep, timeout};
use tokio_util::task::TaskTracker;

use super::{
    Webhooks,
    schedule::{is_over, next_attempt, next_probe},
    sending::{Round, Sent, grouped},
};
use crate::{
    model::{
        Error, LeasedWebhook, Millis, PendingEvent, RoundOutcome, WebhookId,
        public_event::{EventCursor, EventPage, EventQuery, EventStart, KeptEvent},
    },
    postgres::{
        events,
        webhooks::{self, rounds},
    },
    telemetry::metrics,
    worker::{Worker, Workers},
};

/// How often webhooks are looked for that have something to send.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// How often webhooks that fail are counted, and old attempts removed.
const COUNT_INTERVAL: Duration = Duration::from_secs(5);
const PURGE_INTERVAL: Duration = Duration::from_secs(600);
/// How long a lease holds. While a round goes on it is renewed, and what operators have changed is read.
const LEASE_TIME: Duration = Duration::from_secs(15);
const RENEW_INTERVAL: Duration = Duration::from_secs(1);
/// Days that attempts are kept in the log.
const LOG_DAYS: i64 = 14;
/// The new events of a round: at first, at most, and to a receiver that is down.
const FIRST_WINDOW: usize = 64;
const MAX_WINDOW: usize = 1000;
const PROBES: usize = 8;
/// A round shall take about as long as this: then its window is right.
const ROUND_TIME: Duration = Duration::from_secs(1);
/// The failed events, those kept included, up to which a receiver that takes nothing else either may only refuse these.
const MAX_REFUSED: i64 = 8;
/// The events that are kept to be sent again to one receiver. With more, new events wait.
const MAX_RETRIES: i64 = 1000;
/// Events that are sent again in one round.
const RETRY_BATCH: i64 = 100;

/// A webhook's rounds in this process.
struct Run {
    holder: String,
    /// When the lease was asked for.
    leased: Instant,
    window: usize,
    /// Read while the last round was sending: the events after this cursor.
    prefetched: Option<(EventCursor, EventPage)>,
}

impl Webhooks {
    /// Starts the worker that sends. A stop ends its rounds, which write what became of the events that were sent.
    pub fn keep_sending(&self, workers: &Workers) {
        let (this, runs) = (self.clone(), TaskTracker::new());
        let (stopping, running) = (self.stopping.clone(), runs.clone());
        workers.at_stop(async move {
            stopping.cancel();
            running.close();
            running.wait().await;
        });
        workers.spawn(Worker::Webhooks, move || {
            let (this, runs) = (this.clone(), runs.clone());
            async move { this.dispatch(&runs).await }
        });
    }

    /// Runs the rounds of every webhook for ever, each in a task of its own.
    async fn dispatch(&self, runs: &TaskTracker) {
        let mut ticks = interval(POLL_INTERVAL);
        let (mut counted, mut purged) = (None::<Instant>, None::<Instant>);
        loop {
            ticks.tick().await;
            match self.with_something_to_send().await {
                Ok(due) => due.into_iter().for_each(|id| {
                    let this = self.clone();
                    runs.spawn(async move { this.run(id).await });
                }),
                Err(error) => tracing::debug!(%error, "webhooks are not looked for"),
            }
            if counted.is_none_or(|at| at.elapsed() >= COUNT_INTERVAL) {
                counted = Some(Instant::now());
                if let Ok((failed, failing)) = rounds::failing(&self.db).await {
                    metrics::WEBHOOKS_FAILED.set(failed);
                    metrics::WEBHOOKS_FAILING.set(failing);
                }
            }
            if purged.is_none_or(|at| at.elapsed() >= PURGE_INTERVAL) {
                purged = Some(Instant::now());
                let now = self.clock.now();
                let removed = async {
                    rounds::purge_log(&self.db, now, LOG_DAYS).await?;
                    webhooks::purge_requests(&self.db, now).await
                };
                if let Err(error) = removed.await {
                    tracing::debug!(%error, "old attempts of webhooks are not removed yet");
                }
            }
        }
    }

    /// Sends what every webhook has to be sent now, one after the other.
    ///
    /// # Errors
    /// [`Error::Unavailable`] while PostgreSQL is.
    pub async fn send_due(&self) -> Result<(), Error> {
        for id in self.with_something_to_send().await? {
            self.run_rounds(id).await?;
        }
        Ok(())
    }

    async fn with_something_to_send(&self) -> Result<Vec<WebhookId>, Error> {
        let due = rounds::due(&self.db, self.clock.now()).await?;
        if due.is_empty() {
            return Ok(Vec::new());
        }
        let ranges = events::ranges(&self.db).await?;
        let is_behind = |cursor: &EventCursor| ranges.iter().any(|range| range.last > cursor.place(range.partition));
        let due = due.into_iter().filter(|webhook| webhook.has_retries || is_behind(&webhook.cursor));
        Ok(due.map(|webhook| webhook.id).collect())
    }

    async fn run(&self, id: WebhookId) {
        if let Err(error) = self.run_rounds(id).await {
            tracing::debug!(webhook = id.get(), %error, "a webhook waits");
        }
    }

    /// Runs rounds until nothing is left to send now.
    async fn run_rounds(&self, id: WebhookId) -> Result<(), Error> {
        static RUNS: AtomicU64 = AtomicU64::new(0);
        let holder = format!("{}/{}", self.process, RUNS.fetch_add(1, Ordering::Relaxed));
        let mut run = Run { holder, leased: Instant::now(), window: FIRST_WINDOW, prefetched: None };
        while let Some(leased) = rounds::lease(&self.db, id, &run.holder, LEASE_TIME).await? {
            if !self.round(&leased, &mut run).await? {
                return rounds::release(&self.db, id, &run.holder).await;
            }
            run.leased = Instant::now();
        }
        Ok(())
    }

    /// One round. Returns whether another one has something to do.
    async fn round(&self, webhook: &LeasedWebhook, run: &mut Run) -> Result<bool, Error> {
        let now = self.clock.now();
        let is_down = webhook.failures > 0;
        let (window, batch) = if is_down { (PROBES, PROBES as i64) } else { (run.window, RETRY_BATCH) };
        let retries = rounds::retries(&self.db, webhook.id, now, batch).await?;
        let room = usize::try_from(MAX_RETRIES - webhook.retries).unwrap_or_default();
        let page = match self.next_page(webhook, run, window.min(room)).await? {
            Some(page) => page,
            None => EventPage { events: Vec::new(), next: webhook.cursor.clone(), has_more: false },
        };
        let waiting: HashSet<String> = if webhook.retries > 0 {
            rounds::waiting_subjects(&self.db, webhook.id).await?.into_iter().collect()
        } else {
            HashSet::new()
        };
        let (new, retried) = (page.events.len(), retries.len());
        let mut new_events = Vec::with_capacity(new);
        for event in page.events {
            new_events.push(self.pending(event).await?);
        }
        let (held, free): (Vec<_>, Vec<_>) = new_events.into_iter().partition(|event| waiting.contains(&event.subject));
        let round = Round::new(self, webhook);
        // New events first: what failed before says nothing about the receiver.
        let sending = round.send_all(grouped(free.into_iter().chain(retries)));
        let query = self.query(webhook, &page.next, run.window);
        let prefetching =
            async { if page.has_more { self.engine.events(query, Duration::ZERO).await.ok() } else { None } };
        let both = async { tokio::join!(sending, prefetching) };
        let (mut sent, prefetched) = self.renewing(&round, (&run.holder, run.leased), both).await;
        let attempted = sent.iter().any(|sent| matches!(sent, Sent::Attempted(..)));
        if round.is_stopped() && !attempted {
            return Ok(false);
        }
        let is_left = sent.iter().any(|sent| matches!(sent, Sent::Held(_)));
        sent.extend(held.into_iter().map(Sent::Held));
        let (outcome, is_up) = self.outcome(webhook, &page.next, sent);
        if new >= window {
            run.window = if round.elapsed() < ROUND_TIME { run.window * 2 } else { run.window / 2 };
            run.window = run.window.clamp(PROBES, MAX_WINDOW);
        }
        run.prefetched = prefetched.filter(|_| is_up).map(|next| (page.next, next));
        let Some(is_current) = rounds::finish(&self.db, webhook, &run.holder, &outcome, now).await? else {
            return Ok(false);
        };
        if outcome.gives_up && is_current {
            tracing::error!(webhook = webhook.id.get(), "a webhook is switched off: its receiver takes nothing");
        }
        let goes_on = is_up && !outcome.gives_up && !round.is_stopped();
        Ok(!is_current || goes_on && (page.has_more || retried > 0 || is_left))
    }

    /// The next new events; `None` if there is no room for one that fails.
    async fn next_page(
        &self,
        webhook: &LeasedWebhook,
        run: &mut Run,
        limit: usize,
    ) -> Result<Option<EventPage>, Error> {
        if limit == 0 {
            return Ok(None);
        }
        if let Some((cursor, page)) = run.prefetched.take()
            && cursor == webhook.cursor
            && page.events.len() <= limit
            && (webhook.kinds.is_empty() || page.events.iter().all(|event| webhook.kinds.contains(&event.kind)))
        {
            return Ok(Some(page));
        }
        match self.engine.events(self.query(webhook, &webhook.cursor, limit), Duration::ZERO).await {
            Err(Error::EventsExpired) => {
                let next = self.engine.skip_expired_events(&webhook.cursor).await?;
                metrics::WEBHOOK_EVENTS_EXPIRED.inc();
                tracing::error!(webhook = webhook.id.get(), "events were removed before a webhook was sent them");
                Ok(Some(EventPage { events: Vec::new(), next, has_more: true }))
            }
            page => page.map(Some),
        }
    }

    fn query(&self, webhook: &LeasedWebhook, after: &EventCursor, limit: usize) -> EventQuery {
        EventQuery { after: EventStart::At(after.clone()), kinds: webhook.kinds.clone(), limit: limit as i64 }
    }

    async fn pending(&self, event: KeptEvent) -> Result<PendingEvent, Error> {
        Ok(PendingEvent {
            partition: event.partition,
            place: event.place,
            id: event.id(),
            kind: event.kind.clone(),
            subject: event.subject.clone(),
            attempts: 0,
            first_failed_at: None,
            manual: false,
            body: self.body(event).await?,
        })
    }

    /// Runs `work`, and keeps the lease meanwhile, which was taken at `leased`. The round begins nothing more at a stop, or if the lease
    /// is not kept; what is under way ends.
    async fn renewing<T>(
        &self,
        round: &Round<'_>,
        (holder, leased): (&str, Instant),
        work: impl Future<Output = T>,
    ) -> T {
        let mut work = std::pin::pin!(work);
        let stopping = async {
            self.stopping.cancelled().await;
            round.stop();
            pending().await
        };
        tokio::select! {
            done = &mut work => done,
            done = stopping => done,
            () = self.keep_lease(round, holder, leased) => work.await,
        }
    }

    /// Renews the lease as long as the webhook is on and the lease is not another's, and has the round use what operators change. If
    /// PostgreSQL has not renewed it for half of its time, the round begins nothing more.
    async fn keep_lease(&self, round: &Round<'_>, holder: &str, mut renewed: Instant) {
        loop {
            sleep(RENEW_INTERVAL).await;
            let (begun, left) = (Instant::now(), (LEASE_TIME / 2).saturating_sub(renewed.elapsed()));
            match timeout(left.max(RENEW_INTERVAL), rounds::renew(&self.db, round.webhook(), holder, LEASE_TIME)).await
            {
                Ok(Ok(Some(changed))) => {
                    renewed = begun;
                    round.update(self, &changed);
                }
                Ok(Ok(None)) => return round.stop(),
                Ok(Err(error)) => tracing::debug!(%error, "the lease of a webhook is not renewed"),
                Err(_) => tracing::debug!("PostgreSQL does not answer to the renewal of a webhook's lease"),
            }
            if renewed.elapsed() >= LEASE_TIME / 2 {
                round.stop();
            }
        }
    }

    /// What a round changes, and whether the receiver is up.
    fn outcome(&self, webhook: &LeasedWebhook, next: &EventCursor, sent: Vec<Sent>) -> (RoundOutcome, bool) {
        let now = self.clock.now();
        let (mut delivered, mut refused) = (false, 0);
        for sent in &sent {
            match sent {
                Sent::Attempted(_, _, attempt) if attempt.failure.is_none() => delivered = true,
                Sent::Attempted(event, ..) if event.is_new() => refused += 1,
                _ => {}
            }
        }
        let is_up = match webhook.failures {
            0 => delivered || refused == 0 || webhook.retries + refused <= MAX_REFUSED,
            _ => delivered,
        };
        let is_gone = sent.iter().any(|sent| matches!(sent, Sent::Attempted(_, _, attempt) if attempt.is_gone()));
        let mut outcome = RoundOutcome {
            cursor: next.clone(),
            failed: Vec::new(),
            recovered: Vec::new(),
            deliveries: Vec::new(),
            failing_since: None,
            failures: 0,
            next_at: now,
            gives_up: is_gone,
        };
        if !is_up {
            let since = webhook.failing_since.unwrap_or(now);
            outcome.cursor = webhook.cursor.clone();
            outcome.failing_since = Some(since);
            // What failed before says nothing about the receiver.
            outcome.failures = if refused > 0 { webhook.failures + 1 } else { webhook.failures };
            outcome.next_at = next_probe(outcome.failures, now);
            outcome.gives_up |= is_over(since, now);
        }
        for sent in sent {
            let (event, delivery, attempt) = match sent {
                Sent::Attempted(event, delivery, attempt) => (event, Some(delivery), Some(attempt)),
                Sent::Held(event) => (event, None, None),
            };
            outcome.deliveries.extend(delivery);
            let was_kept = event.first_failed_at.is_some();
            match attempt.map(|attempt| attempt.failure) {
                Some(None) if was_kept => outcome.recovered.push((event.partition, event.place, event.manual)),
                Some(None) => {}
                Some(Some(_)) if was_kept || is_up => self.keep_failed(&mut outcome, event, now),
                None if !was_kept && is_up => {
                    outcome.failed.push((PendingEvent { first_failed_at: Some(now), ..event }, now));
                }
                // The cursor stays before it, or it is kept as it was.
                Some(Some(_)) | None => {}
            }
        }
        (outcome, is_up)
    }

    /// Keeps an event that failed, to be sent again.
    fn keep_failed(&self, outcome: &mut RoundOutcome, event: PendingEvent, now: Millis) {
        let first_failed_at = event.first_failed_at.unwrap_or(now);
        let attempts = event.attempts + 1;
        match (is_over(first_failed_at, now), event.manual) {
            (true, true) => outcome.recovered.push((event.partition, event.place, true)),
            (is_over, _) => {
                outcome.gives_up |= is_over;
                let due = next_attempt(attempts, now);
                let event = PendingEvent { attempts, first_failed_at: Some(first_failed_at), ..event };
                outcome.failed.push((event, due));
            }
        }
    }
}
