//! The feed of events, and a webhook whose receiver often fails: in the end both have every decision, in order.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use reqwest::{Method, Response};
use serde_json::{Value, json};
use sqlx::PgPool;

use super::{
    elsewhere,
    facts::Facts,
    history::Random,
    losses::Losses,
    shop::{Shop, client},
};
use crate::{
    operators::webhooks::receiver::{Received, Receiver},
    process::binary,
    support::harness::{ADMIN, until},
};

/// Of so many requests to the receiver, the last ones find it down.
const PERIOD: u64 = 120;
const DOWN: u64 = 40;
/// How many percent of the others it refuses.
const REFUSED: u64 = 12;

/// An operator gives a change of the webhook up after this time.
const OPERATOR_TIMEOUT: Duration = Duration::from_secs(2);

/// Where an event is: partition, epoch, seq.
type Place = (u16, i64, i64);

/// The receiver of a run.
pub struct Hook {
    id: i64,
    receiver: Receiver,
    /// The secrets that signatures may be by; nothing is known of a signature after a rotation without a reply.
    secrets: std::sync::Mutex<Option<Vec<String>>>,
    /// The numbers of the requests that it took.
    taken: Arc<std::sync::Mutex<HashSet<usize>>>,
}

impl Hook {
    /// Starts a receiver that fails as the seed says, and has the service at `base` send it every event.
    pub async fn start(base: &str, seed: u64) -> Hook {
        let receiver = Receiver::start().await;
        let body = json!({"url": receiver.url, "types": ["*"]});
        let created = binary::post(base, "/admin/v1/webhooks", body).await.created();
        let secret = created["secret"].as_str().unwrap().to_owned();
        let id = created["webhookId"].as_i64().unwrap();
        let hook = Hook { id, receiver, secrets: std::sync::Mutex::new(Some(vec![secret])), taken: Arc::default() };
        hook.take(move |number| {
            let refuses = Random::new(seed ^ number).percent(REFUSED);
            !refuses && number % PERIOD < PERIOD - DOWN
        });
        hook
    }

    /// Sends a request of an operator to the service at `base`, which may be away.
    async fn operate(&self, method: Method, base: &str, path: &str, body: Value) -> Option<Response> {
        let url = format!("{base}/admin/v1/webhooks/{}{path}", self.id);
        let sent = client().request(method, url).timeout(OPERATOR_TIMEOUT).bearer_auth(ADMIN).json(&body).send().await;
        sent.ok().filter(|reply| !reply.status().is_server_error())
    }

    /// An operator changes the webhook, or has an event sent again, while a round may be under way.
    pub async fn change(&self, base: &str, random: &mut Random) {
        match random.within(0, 3) {
            0 => {
                self.operate(Method::PATCH, base, "", json!({"enabled": false})).await;
                self.operate(Method::PATCH, base, "", json!({"enabled": true})).await;
            }
            1 => {
                let url = format!("{}/{}", self.receiver.url, random.within(1, 9));
                self.operate(Method::PATCH, base, "", json!({"url": url})).await;
            }
            2 => {
                let body = json!({"validSeconds": random.within(0, 1)});
                let text = async { self.operate(Method::POST, base, "/rotate", body).await?.text().await.ok() }.await;
                let mut secrets = self.secrets.lock().unwrap();
                // A refusal has no secret, and changes nothing.
                *secrets = secrets.take().zip(text).map(|(mut secrets, text)| {
                    let reply: Value = serde_json::from_str(&text).unwrap();
                    secrets.extend(reply["secret"].as_str().map(str::to_owned));
                    secrets
                });
            }
            _ => {
                let received = self.receiver.received();
                if !received.is_empty() {
                    let event = &random.pick(&received).id;
                    self.operate(Method::POST, base, "/resend", json!({"eventId": event})).await;
                }
            }
        }
    }

    /// Takes the requests with these numbers, from now on.
    fn take(&self, takes: impl Fn(u64) -> bool + Send + Sync + 'static) {
        let (taken, next) = (self.taken.clone(), AtomicU64::new(self.receiver.received().len() as u64));
        self.receiver.answers(move |received| {
            // The receiver has this request already.
            if !takes(next.fetch_add(1, Ordering::Relaxed)) {
                return 503;
            }
            taken.lock().unwrap().insert(received.number);
            204
        });
    }

    /// Waits until the receiver, which fails no more, has taken every one of these events. No client is active.
    pub async fn caught_up(&self, base: &str, pool: &PgPool, feed: &[Value]) {
        self.take(|_| true);
        until("the webhook is on", async || {
            let reply = self.operate(Method::PATCH, base, "", json!({"enabled": true})).await?;
            reply.error_for_status().ok().map(drop)
        })
        .await;
        until("the webhook has caught up", async || {
            // The pauses are over.
            for sql in ["UPDATE webhooks SET next_at = now()", "UPDATE webhook_retries SET due_at = now()"] {
                sqlx::query(sql).execute(pool).await.unwrap();
            }
            let taken: HashSet<String> = self.taken().into_iter().map(|received| received.id).collect();
            feed.iter().all(|event| taken.contains(event["id"].as_str().unwrap())).then_some(())
        })
        .await;
    }

    fn taken(&self) -> Vec<Received> {
        let taken = self.taken.lock().unwrap();
        self.receiver.received().into_iter().filter(|received| taken.contains(&received.number)).collect()
    }

    /// Deliveries that no correct service makes: an event that the feed does not have or has otherwise, one that comes before an
    /// earlier one of its subject was taken, one with the signature of nobody.
    pub fn contradictions(&self, feed: &[Value], losses: &Losses) -> Vec<String> {
        let taken = self.taken.lock().unwrap();
        let received = self.receiver.received();
        let deliveries = received.iter().map(|received| (&received.event, taken.contains(&received.number)));
        let mut contradictions = contradictions_of(deliveries, feed, &|partition| losses.concern(i64::from(partition)));
        if let Some(secrets) = &*self.secrets.lock().unwrap() {
            let is_signed = |received: &&Received| secrets.iter().any(|secret| received.is_signed_by(secret));
            let forged = received.iter().filter(|received| !is_signed(received));
            contradictions
                .extend(forged.map(|received| format!("{} is signed by no secret of the webhook", received.id)));
        }
        contradictions
    }
}

fn contradictions_of<'a>(
    deliveries: impl Iterator<Item = (&'a Value, bool)>,
    feed: &[Value],
    is_lossy: &dyn Fn(u16) -> bool,
) -> Vec<String> {
    let known: HashMap<&str, &Value> = feed.iter().map(|event| (event["id"].as_str().unwrap(), event)).collect();
    // What a subject of a partition has to send, in order; and how much of that was taken.
    let mut due: HashMap<(u16, &str), Vec<&str>> = HashMap::new();
    for event in feed {
        let id = event["id"].as_str().unwrap();
        due.entry((place(id).0, event["subject"].as_str().unwrap())).or_default().push(id);
    }
    let end: HashMap<u16, Place> =
        feed.iter().map(|event| place(event["id"].as_str().unwrap())).map(|at| (at.0, at)).collect();
    let mut taken: HashMap<(u16, &str), usize> = HashMap::new();
    let mut contradictions = Vec::new();
    for (event, is_taken) in deliveries {
        let (id, subject) = (event["id"].as_str().unwrap(), event["subject"].as_str().unwrap());
        let partition = place(id).0;
        if is_lossy(partition) {
            continue;
        }
        // Decided since the feed was read.
        if !known.contains_key(id) && place(id) > end.get(&partition).copied().unwrap_or_default() {
            continue;
        }
        if known.get(id) != Some(&event) {
            contradictions.push(format!("{event} was sent, and the feed has {:?}", known.get(id)));
            continue;
        }
        let (due, taken) = (&due[&(partition, subject)], taken.entry((partition, subject)).or_default());
        let nth = due.iter().position(|other| *other == id).unwrap();
        if nth > *taken {
            contradictions.push(format!("{id} of {subject} was sent before {} was taken", due[*taken]));
        }
        if is_taken && nth == *taken {
            *taken += 1;
        }
    }
    contradictions
}

/// Reads the feed to its end, in small pages.
pub async fn read(shop: &Shop) -> Vec<Value> {
    let (http, base) = (client(), shop.bases()[0].clone());
    let (mut events, mut after) = (Vec::new(), String::new());
    loop {
        let page = until("a page of the feed", async || {
            let url = format!("{base}/admin/v1/events?limit=100{after}");
            let reply = http.get(url).bearer_auth(ADMIN).send().await.ok()?;
            reply.error_for_status().ok()?.json::<Value>().await.ok()
        })
        .await;
        events.extend(page["events"].as_array().unwrap().iter().cloned());
        if page["more"] == false {
            return events;
        }
        after = format!("&after={}", page["next"].as_str().unwrap());
    }
}

fn place(id: &str) -> Place {
    let mut parts = id.split('-').map(|part| part.parse::<i64>().unwrap());
    let (epoch, partition, seq) = (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap());
    (partition as u16, epoch, seq)
}

/// The last decision of each partition that PostgreSQL has now.
pub async fn last_decisions(pool: &PgPool) -> BTreeMap<u16, i64> {
    let sql = "SELECT partition, seq FROM projection_positions";
    let rows: Vec<(i32, i64)> = sqlx::query_as(sql).fetch_all(pool).await.unwrap();
    rows.into_iter().map(|(partition, seq)| (partition as u16, seq)).collect()
}

/// Gaps, repeats, and events that the stores do not have the effect of. `last`: the last decision of each partition.
pub fn contradictions(feed: &[Value], last: &BTreeMap<u16, i64>, facts: &Facts, losses: &Losses) -> Vec<String> {
    let mut contradictions = Vec::new();
    let mut at: BTreeMap<u16, (i64, i64)> = BTreeMap::new();
    for event in feed {
        let (partition, epoch, seq) = place(event["id"].as_str().unwrap());
        let (last_epoch, last_seq) = at.insert(partition, (epoch, seq)).unwrap_or_default();
        if !losses.concern(partition.into()) && (epoch < last_epoch || seq != last_seq + 1) {
            contradictions.push(format!("after {last_epoch}-{partition}-{last_seq} the feed has {}", event["id"]));
        }
    }
    for (partition, seq) in last.iter().filter(|(partition, _)| !losses.concern(i64::from(**partition))) {
        let (_, end) = at.get(partition).copied().unwrap_or_default();
        if end < *seq {
            contradictions.push(format!("the feed of partition {partition} ends at {end}, and its decisions at {seq}"));
        }
    }
    if (0..last.len() as i64).any(|partition| losses.concern(partition)) {
        return contradictions;
    }
    let charges = facts.entries.iter().filter(|(_, (kind, ..))| kind == "CHARGE");
    let own = charges.filter(|((user, entry), _)| *user < elsewhere::FIRST && *entry > 1).count();
    let brought: usize = facts.brought.entries.values().flatten().filter(|(kind, ..)| kind == "CHARGE").count();
    let paid = facts.orders.values().filter(|order| order.paid_at > 0).count();
    let closed = facts.orders.values().filter(|order| order.closed_at > 0).count();
    let of = |kind: &str| feed.iter().filter(|event| event["type"] == kind).count();
    // What a creation gives is in the event of the creation.
    let created = feed.iter().filter(|event| event["type"] == "user.created");
    let created = created.filter(|event| event["data"]["firstUserId"].as_i64().unwrap() >= elsewhere::FIRST).count();
    for (kind, stored) in [
        ("coupon.issued", facts.coupons.len()),
        ("order.placed", facts.orders.len()),
        ("order.paid", paid),
        ("order.closed", closed),
        ("balance.charged", own + brought - created),
    ] {
        if of(kind) != stored {
            contradictions.push(format!("the feed has {} {kind}, and the stores {stored}", of(kind)));
        }
    }
    contradictions
}

#[test]
fn delivery_out_of_order_found() {
    let event = |id: &str, subject: &str| json!({"id": id, "subject": subject, "type": "t"});
    let feed = [event("1-0-1", "a"), event("1-0-2", "b"), event("1-0-3", "a"), event("1-1-1", "a")];
    let found = |deliveries: &[(usize, bool)]| {
        let deliveries = deliveries.iter().map(|(nth, is_taken)| (&feed[*nth], *is_taken));
        contradictions_of(deliveries, &feed, &|_| false).len()
    };
    // Repeats are fine, and subjects and partitions wait for no other.
    assert_eq!(found(&[(1, true), (3, true), (0, false), (0, true), (2, true), (0, true), (2, false)]), 0);
    assert_eq!(found(&[(0, false), (2, true)]), 1);
    let unknown = event("1-0-2", "a");
    let later = event("1-0-4", "a");
    assert_eq!(contradictions_of([(&later, true)].into_iter(), &feed, &|_| false).len(), 0);
    assert_eq!(contradictions_of([(&unknown, true)].into_iter(), &feed, &|_| false).len(), 1);
    assert_eq!(contradictions_of([(&unknown, true)].into_iter(), &feed, &|partition| partition == 0).len(), 0);
}

#[test]
fn gap_in_feed_found() {
    let event = |id: &str| json!({"id": id, "subject": "a", "type": "t"});
    let losses = Losses::none(&Default::default(), &Default::default());
    let found = |ids: &[&str], end: i64| {
        let feed: Vec<Value> = ids.iter().map(|id| event(id)).collect();
        contradictions(&feed, &[(0, end)].into(), &Facts::default(), &losses).len()
    };
    assert_eq!(found(&["1-0-1", "1-0-2", "2-0-3"], 3), 0);
    assert_eq!(found(&["1-0-1", "1-0-3"], 3), 1);
    assert_eq!(found(&["1-0-1", "1-0-1"], 1), 1);
    assert_eq!(found(&["1-0-1"], 2), 1);
}
