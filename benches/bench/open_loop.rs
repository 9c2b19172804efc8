//! An open load: requests arrive at random at a given rate, whether or not earlier ones are answered, as customers do who know nothing
//! of each other. A latency starts when its request should have been sent, so that it includes what it waited for a connection: a closed
//! loop would omit just the requests that a slow service delays.

use std::{
    cell::RefCell,
    collections::VecDeque,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::Result;
use futures_util::future::try_join_all;
use hdrhistogram::Histogram;
use tokio::sync::Semaphore;

use crate::client::{Connection, Load};

/// An arrival that no connection could send for this long is dropped: the customer has gone.
const SEND_TIMEOUT: Duration = Duration::from_secs(1);
/// The statuses with which an overloaded service sheds a request.
const SHED: [u16; 2] = [429, 503];

/// Arrivals at one rate.
pub struct Arrivals {
    /// Microseconds from the intended send time to the last byte of the reply.
    pub latencies: Histogram<u64>,
    pub answered: u64,
    /// Not sent, because no connection was free in time.
    pub dropped: u64,
    /// Answered 429 or 503.
    pub shed: u64,
    pub seconds: f64,
}

/// The requests that no connection has sent yet, each with its number and its intended time.
struct Queue {
    waiting: RefCell<VecDeque<(u64, Instant)>>,
    permits: Semaphore,
}

/// Sends requests at `rate` per second on average for `duration`, with exponential times between them, and waits for every reply.
pub async fn offer(
    address: SocketAddr,
    connections: usize,
    load: &Load<'_>,
    rate: f64,
    duration: Duration,
) -> Result<Arrivals> {
    let open = try_join_all((0..connections).map(|_| Connection::open(address))).await?;
    let queue = Queue { waiting: RefCell::default(), permits: Semaphore::new(0) };
    let arrivals =
        RefCell::new(Arrivals { latencies: Histogram::new(3)?, answered: 0, dropped: 0, shed: 0, seconds: 0.0 });
    let began = Instant::now();
    let arriving = arrive(&queue, began, rate, duration);
    let sending = try_join_all(open.into_iter().map(|connection| send(connection, load, &queue, &arrivals)));
    let ((), sent) = tokio::join!(arriving, sending);
    sent?;
    let mut arrivals = arrivals.into_inner();
    arrivals.seconds = began.elapsed().as_secs_f64();
    Ok(arrivals)
}

/// Queues each request when its time comes.
async fn arrive(queue: &Queue, began: Instant, rate: f64, duration: Duration) {
    let (mut random, mut at) = (Random(0x9e37_79b9_7f4a_7c15), Duration::ZERO);
    for number in 0.. {
        at += Duration::from_secs_f64(-random.next().ln() / rate);
        if at >= duration {
            break;
        }
        if let Some(early) = at.checked_sub(began.elapsed()).filter(|early| !early.is_zero()) {
            tokio::time::sleep(early).await;
        }
        queue.waiting.borrow_mut().push_back((number, began + at));
        queue.permits.add_permits(1);
        // The connections need their turn while arrivals are late.
        if number % 64 == 0 {
            tokio::task::yield_now().await;
        }
    }
    while !queue.waiting.borrow().is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    queue.permits.close();
}

/// Sends queued requests on one connection until there are no more.
async fn send(mut connection: Connection, load: &Load<'_>, queue: &Queue, arrivals: &RefCell<Arrivals>) -> Result<()> {
    while let Ok(permit) = queue.permits.acquire().await {
        permit.forget();
        let Some((number, intended)) = queue.waiting.borrow_mut().pop_front() else { continue };
        if intended.elapsed() > SEND_TIMEOUT {
            arrivals.borrow_mut().dropped += 1;
            continue;
        }
        connection.request.clear();
        (load.request)(number, &mut connection.request);
        let (status, body) = connection.ask().await?;
        if SHED.contains(&status) {
            arrivals.borrow_mut().shed += 1;
            continue;
        }
        connection.check(load, number, status, body)?;
        let mut arrivals = arrivals.borrow_mut();
        arrivals.latencies.record(intended.elapsed().as_micros() as u64)?;
        arrivals.answered += 1;
    }
    Ok(())
}

/// A xorshift generator: the same arrivals in each run.
struct Random(u64);

impl Random {
    /// From 0, exclusive, to 1.
    fn next(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 11) as f64 + 1.0) / (1u64 << 53) as f64
    }
}
