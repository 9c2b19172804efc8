//! The clients: they send random requests under idempotency keys, and record the replies.
//!
//! They share users, products, campaigns and orders, so that their requests conflict; the seed decides every request. Each
//! object is replaced after a number of requests, so that its history stays short enough for the check. Some requests aim at a
//! moment: that of an order's expiry, of its eviction, or of a campaign's end.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use serde_json::Value;
use tokio::sync::Semaphore;

use super::{
    elsewhere::{self, BroughtKind},
    history::{Attempt, History, Operation, Outcome, Random, Request, now},
    shop::{self, Goods, Shop},
    windows::Windows,
};
use crate::support::{
    fake_gateway::FakeGateway,
    harness::{ADMIN, until},
};

/// Objects of a kind that are in use at a time, and the number of requests after which one is replaced.
const USERS: (usize, u32) = (10, 50);
const PRODUCTS: (usize, u32) = (3, 40);
const CAMPAIGNS: (usize, u32) = (2, 30);
/// The newest orders, which requests may name.
const ORDERS: usize = 24;
/// One order in so many is left alone until the moment of its expiry, or of its eviction.
const AIMED: i64 = 5;
/// A client takes an aimed request this long before its moment, in nanoseconds, and begins it within this distance of it.
const AHEAD: u64 = 120_000_000;
const SPREAD: i64 = 8_000_000;

/// Objects of a kind, of which a few are in use at a time.
struct Rotation {
    ids: Vec<i64>,
    uses: Vec<AtomicU32>,
    at_once: usize,
    max_uses: u32,
}

impl Rotation {
    fn new(ids: &[i64], (at_once, max_uses): (usize, u32)) -> Self {
        Rotation { ids: ids.to_vec(), uses: ids.iter().map(|_| AtomicU32::new(0)).collect(), at_once, max_uses }
    }

    fn pick(&self, random: &mut Random) -> i64 {
        let fresh = |place: &usize| self.uses[*place].load(Ordering::Relaxed) < self.max_uses;
        let mut open: Vec<usize> = (0..self.ids.len()).filter(fresh).take(self.at_once).collect();
        if open.is_empty() {
            open = (0..self.ids.len()).collect();
        }
        let place = *random.pick(&open);
        self.uses[place].fetch_add(1, Ordering::Relaxed);
        self.ids[place]
    }
}

#[derive(Clone, Copy)]
struct Placed {
    order: i64,
    user: i64,
    price: i64,
    /// One of its products, and its units.
    line: (i64, i64),
}

/// The state that the clients share.
pub struct Market {
    pub history: History,
    /// The attempts that the clients may still make; closed at the end of the run.
    pub permits: Semaphore,
    bases: Vec<String>,
    users: Rotation,
    products: Rotation,
    campaigns: Rotation,
    orders: Mutex<Vec<Placed>>,
    /// The campaigns that a user has a coupon of.
    wallets: Mutex<HashMap<i64, Vec<i64>>>,
    /// Requests by the moment that they aim at, in nanoseconds since 1970.
    aimed: Mutex<BTreeMap<u64, Request>>,
    /// The campaigns, and the sales of products, that operators have ended.
    closed: Mutex<BTreeSet<i64>>,
    ended: Mutex<BTreeSet<i64>>,
    /// Whether operators end sales, and bring records in.
    terms: bool,
    doors: bool,
    /// What was last created under an id of the service's own, and how many versions there are of what is brought in.
    created: AtomicI64,
    versions: AtomicI64,
    /// Operations to repeat.
    again: Mutex<Vec<usize>>,
    /// How long an order holds its goods, and how long Redis keeps one that has closed, in nanoseconds; `None`: no request aims at
    /// these moments.
    moments: Option<(u64, u64)>,
    /// Where customers approve payments, if a provider has a page of its own.
    windows: Option<Windows>,
    seed: u64,
    keys: AtomicU64,
}

impl Market {
    /// The clients of a shop, some of whose requests aim at the moments of its orders.
    pub fn of(shop: &Shop, seed: u64) -> Arc<Market> {
        let ns = |seconds: u64| seconds * 1_000_000_000;
        let moments = (ns(shop.options.hold_seconds.into()), ns(shop.options.closed_keep_seconds as u64));
        Market::aiming(&shop.goods, shop.bases(), seed, Some(moments), shop.gateway.clone())
    }

    pub fn new(goods: &Goods, bases: Vec<String>, seed: u64) -> Arc<Market> {
        Market::aiming(goods, bases, seed, None, None)
    }

    fn aiming(
        goods: &Goods,
        bases: Vec<String>,
        seed: u64,
        moments: Option<(u64, u64)>,
        gateway: Option<Arc<FakeGateway>>,
    ) -> Arc<Market> {
        Arc::new(Market {
            history: History::default(),
            permits: Semaphore::new(0),
            bases,
            users: Rotation::new(&goods.users, USERS),
            products: Rotation::new(&goods.products, PRODUCTS),
            campaigns: Rotation::new(&goods.campaigns, CAMPAIGNS),
            orders: Mutex::default(),
            wallets: Mutex::default(),
            aimed: Mutex::default(),
            closed: Mutex::default(),
            ended: Mutex::default(),
            terms: goods.terms,
            doors: goods.doors,
            created: AtomicI64::new(elsewhere::FIRST),
            versions: AtomicI64::new(0),
            again: Mutex::default(),
            moments,
            windows: gateway.and_then(Windows::of),
            seed,
            keys: AtomicU64::new(0),
        })
    }

    /// Starts this many clients; they end when the permits are closed.
    pub fn start(self: &Arc<Self>, clients: u64) -> Vec<tokio::task::JoinHandle<()>> {
        let client = |number: u64| tokio::spawn(self.clone().client(Random::new(self.seed ^ ((number + 1) << 32))));
        (0..clients).map(client).collect()
    }

    async fn client(self: Arc<Self>, mut random: Random) {
        let http = shop::client();
        loop {
            let Ok(permit) = self.permits.acquire().await else { return };
            permit.forget();
            let waiting = { self.again.lock().unwrap().pop() };
            let number = match waiting.filter(|_| random.percent(50)) {
                Some(number) => number,
                None => {
                    self.again.lock().unwrap().extend(waiting);
                    let request = match self.take_aimed() {
                        Some((moment, request)) => {
                            let begin = moment.saturating_add_signed(random.within(-SPREAD, SPREAD));
                            tokio::time::sleep(Duration::from_nanos(begin.saturating_sub(now()))).await;
                            request
                        }
                        None => self.choose(&mut random),
                    };
                    self.begin(request)
                }
            };
            let known = self.attempt(&http, number, &mut random).await.is_known();
            // Repeats half of the operations with an unknown outcome, and some with a known one.
            if (!known && random.percent(50)) || (known && random.percent(8)) {
                let request = self.history.get(number).request;
                if request.is_write() {
                    self.again.lock().unwrap().push(number);
                }
            }
        }
    }

    /// Takes the aimed request whose moment is next, if it is near. Those that are missed are left out.
    fn take_aimed(&self) -> Option<(u64, Request)> {
        let mut aimed = self.aimed.lock().unwrap();
        let now = now();
        *aimed = aimed.split_off(&now);
        aimed.first_entry().filter(|next| next.key() - now < AHEAD).map(|next| next.remove_entry())
    }

    pub fn begin(&self, request: Request) -> usize {
        let key = format!("{:x}-{}", self.seed, self.keys.fetch_add(1, Ordering::Relaxed));
        self.history.begin(Operation::new(request, key))
    }

    /// Sends a request to one of the services, and records the outcome.
    pub async fn attempt(&self, http: &reqwest::Client, number: usize, random: &mut Random) -> Outcome {
        let operation = self.history.get(number);
        let (method, path, mut body) = operation.request.to_http();
        let base = random.pick(&self.bases);
        let began = now();
        if let Some(windows) = &self.windows {
            match windows.token(http, base, &operation.request).await {
                Ok(Some(token)) => body.as_mut().unwrap()["gatewayToken"] = token.into(),
                Ok(None) => {}
                Err(outcome) => {
                    self.history.add(number, Attempt { began, ended: now(), outcome: outcome.clone() });
                    return outcome;
                }
            }
        }
        let mut request = http.request(method, format!("{base}{path}"));
        if path.starts_with("/admin") {
            request = request.bearer_auth(ADMIN);
        }
        if let Some(body) = &body {
            request = request.json(body).header("Idempotency-Key", &operation.key);
        }
        let outcome = match send(request).await {
            Ok((status, text, replayed)) => Outcome::read(&operation.request, status, &text, replayed),
            Err(error) => Outcome::Unknown(format!("{error:?}")),
        };
        if let Outcome::Done { body, .. } = &outcome {
            self.remember(&operation.request, body, began);
        }
        self.history.add(number, Attempt { began, ended: now(), outcome: outcome.clone() });
        outcome
    }

    /// Lets a client make a request at every interval, until the permits are closed.
    pub async fn pace(self: Arc<Self>, interval: Duration) {
        let mut interval = tokio::time::interval(interval);
        while !self.permits.is_closed() {
            interval.tick().await;
            // Clients that wait for a reply do not save up requests.
            if self.permits.available_permits() == 0 {
                self.permits.add_permits(1);
            }
        }
    }

    /// Repeats each request whose outcome is unknown until it is known. No client is active.
    pub async fn settle_open(&self) {
        let http = shop::client();
        for number in self.history.open() {
            until("an open request is settled", async || {
                let outcome = self.attempt(&http, number, &mut Random::new(0)).await;
                (!matches!(outcome, Outcome::Unknown(_))).then_some(())
            })
            .await;
            self.history.settle(number);
        }
    }

    /// Sends one request once: for runs without randomness.
    pub async fn send(&self, http: &reqwest::Client, request: Request) -> Outcome {
        let number = self.begin(request);
        self.attempt(http, number, &mut Random::new(0)).await
    }

    /// Remembers what later requests may name, and the moments to aim at.
    fn remember(&self, request: &Request, body: &Value, began: u64) {
        // The decision was between the request and the reply.
        let decided = began + (now() - began) / 2;
        let aim = |moment: u64, request: Request| drop(self.aimed.lock().unwrap().insert(moment, request));
        match request {
            Request::Place { user, pays, lines, .. } => {
                let (order, price) = (body["orderId"].as_i64().unwrap(), body["finalPrice"].as_i64().unwrap());
                if let Some((_, keep)) = self.moments.filter(|_| *pays && order % AIMED == 1) {
                    return aim(decided + keep, Request::Cancel { order, user: *user });
                }
                if let Some((hold, _)) = self.moments.filter(|_| order % AIMED == 0) {
                    return aim(decided + hold, Request::Pay { order, user: *user, price, amount: price });
                }
                let mut orders = self.orders.lock().unwrap();
                if orders.iter().all(|placed| placed.order != order) {
                    orders.push(Placed { order, user: *user, price, line: lines[0] });
                }
                let surplus = orders.len().saturating_sub(ORDERS);
                orders.drain(..surplus);
            }
            Request::Create { .. } => {
                self.created.fetch_max(body["userId"].as_i64().unwrap(), Ordering::Relaxed);
            }
            Request::Issue { campaign, user } => {
                self.wallets.lock().unwrap().entry(*user).or_default().push(*campaign);
            }
            Request::Pay { order, user, .. } if order % AIMED == 1 => {
                if let Some((_, keep)) = self.moments {
                    aim(decided + keep, Request::Cancel { order: *order, user: *user });
                }
            }
            Request::Close { campaign, at } => {
                for (nth, user) in self.users.ids.iter().rev().take(4).enumerate() {
                    aim(at + nth as u64, Request::Issue { campaign: *campaign, user: *user });
                }
            }
            _ => {}
        }
    }

    fn choose(&self, random: &mut Random) -> Request {
        let user = self.users.pick(random);
        let placed = {
            let orders = self.orders.lock().unwrap();
            (!orders.is_empty()).then(|| *random.pick(&orders))
        };
        match (random.within(0, 99), placed) {
            (0..18, _) => Request::Issue { campaign: self.campaigns.pick(random), user },
            (18..32, _) => Request::Charge { user, amount: random.within(1, 400) },
            (32..48, Some(Placed { order, user, price, .. })) => {
                let amount = if random.percent(4) { price + 1 } else { price };
                Request::Pay { order, user, price, amount }
            }
            (48..54, Some(Placed { order, user, .. })) => Request::Cancel { order, user },
            (54..58, Some(Placed { order, user, line: (product, units), .. })) if self.terms => {
                let line = (product, random.within(1, units));
                Request::Refund { order, user, line, by_operator: random.percent(30) }
            }
            (54..64, _) => Request::Balance { user },
            (64..66, _) => Request::Entries { user },
            (66..71, _) => Request::Product { product: self.products.pick(random) },
            (71..74, Some(Placed { order, user, .. })) => Request::Order { order, user },
            (74..77, _) => Request::Coupons { user },
            (77..79, _) if self.moments.is_some() => self.operate(random).unwrap_or(Request::Balance { user }),
            (79..84, _) if self.doors => self.bring(random),
            _ => self.place(user, random),
        }
    }

    /// What an operator does with records from elsewhere.
    fn bring(&self, random: &mut Random) -> Request {
        let version = self.versions.fetch_add(1, Ordering::Relaxed) + 1;
        let kind = *random.pick(&[BroughtKind::User, BroughtKind::User, BroughtKind::Product, BroughtKind::Campaign]);
        // A few at a time; each is left alone after some requests.
        let id = elsewhere::FIRST + version / 24 + random.within(0, 2);
        match random.within(0, 99) {
            0..15 => Request::Create { version },
            // Perhaps the one that the service gives a new user at this moment.
            15..30 => {
                let id = self.created.load(Ordering::Relaxed) + random.within(0, 2);
                Request::Bring { kind: BroughtKind::User, id, version }
            }
            30..40 => Request::Forget { user: id },
            40..75 => Request::Bring { kind, id, version },
            _ => Request::Brought { kind, id },
        }
    }

    /// An operator's act.
    fn operate(&self, random: &mut Random) -> Option<Request> {
        if random.percent(60) {
            return Some(Request::Restock { product: self.products.pick(random), units: random.within(1, 5) });
        }
        // A window ends at a whole second.
        let at = (now() / 1_000_000_000 + random.within(1, 3) as u64) * 1_000_000_000;
        if self.terms && random.percent(30) {
            let product = self.products.pick(random);
            // Most of them go on.
            let ends = product % 4 == 0 && self.ended.lock().unwrap().insert(product);
            return ends.then_some(Request::EndSale { product, at });
        }
        let campaign = self.campaigns.pick(random);
        // Half of them go on, each of the others ends once.
        let ends = campaign % 2 == 0 && self.closed.lock().unwrap().insert(campaign);
        ends.then_some(Request::Close { campaign, at })
    }

    fn place(&self, user: i64, random: &mut Random) -> Request {
        let mut lines: Vec<(i64, i64)> = Vec::new();
        for _ in 0..[1, 1, 1, 2, 3][random.within(0, 4) as usize] {
            let line = (self.products.pick(random), random.within(1, 3));
            if lines.iter().all(|(product, _)| *product != line.0) {
                lines.push(line);
            }
        }
        let wallets = self.wallets.lock().unwrap();
        let coupon = wallets.get(&user).filter(|_| random.percent(40)).map(|mine| *random.pick(mine));
        Request::Place { user, lines, coupon, pays: random.percent(25) }
    }
}

pub(super) async fn send(request: reqwest::RequestBuilder) -> reqwest::Result<(u16, String, bool)> {
    let response = request.send().await?;
    let status = response.status().as_u16();
    let replayed = response.headers().get("idempotent-replayed").is_some_and(|value| value == "true");
    Ok((status, response.text().await?, replayed))
}
