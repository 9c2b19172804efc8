//! Token buckets, one per client or user, in bounded memory.
//!
//! The arithmetic is governor's (GCRA): a bucket is one number, the time at which it will be full. A full bucket is the same as none
//! and is forgotten within a second, so that only the keys of the last seconds are kept. Beyond a number of keys, new keys share one
//! bucket: an attacker with very many addresses slows down other new keys, but can neither fill the memory nor take tokens of known
//! keys.

use std::{
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use governor::{
    Quota, RateLimiter,
    clock::{Clock, MonotonicClock, Reference},
    middleware::NoOpMiddleware,
    nanos::Nanos,
    state::{
        InMemoryState, NotKeyed, StateStore,
        keyed::{DashMapStateStore, ShrinkableKeyedStateStore},
    },
};

/// Buckets of one size, by key.
pub struct Buckets<C: Clock = MonotonicClock> {
    limiter: RateLimiter<u64, SharedStates, C, NoOpMiddleware<C::Instant>>,
    /// The clock of the limiter.
    keys: SharedStates,
    /// The start of the limiter's time.
    start: C::Instant,
    /// The nanoseconds until a token is back.
    interval: u64,
    /// The tokens of a full bucket.
    burst: NonZeroU32,
}

impl Buckets {
    /// Buckets that hold `burst` tokens and fill by `per_second`, for at most `most` keys; `None` if either is 0: no limit.
    pub fn new(per_second: u32, burst: u32, most: u32) -> Option<Self> {
        Buckets::per_second(per_second, burst, most, MonotonicClock)
    }

    /// Buckets that hold `per_minute` tokens and fill by as many in a minute; `None` for 0: no limit.
    pub fn per_minute(per_minute: u32, most: u32) -> Option<Self> {
        Some(Buckets::of(Quota::per_minute(NonZeroU32::new(per_minute)?), most, MonotonicClock))
    }
}

impl<C: Clock> Buckets<C> {
    fn per_second(per_second: u32, burst: u32, most: u32, clock: C) -> Option<Self> {
        let quota = Quota::per_second(NonZeroU32::new(per_second)?).allow_burst(NonZeroU32::new(burst)?);
        Some(Buckets::of(quota, most, clock))
    }

    fn of(quota: Quota, most: u32, clock: C) -> Self {
        let (start, burst) = (clock.now(), quota.burst_size());
        let interval = quota.replenish_interval().as_nanos().max(1) as u64;
        let keys = SharedStates(Arc::new(KeyStates::at_most(most as usize)));
        Buckets { limiter: RateLimiter::new(quota, keys.clone(), clock), keys, start, interval, burst }
    }

    /// Takes `tokens` of this key; at most those of a full bucket.
    ///
    /// # Errors
    /// The time until there are as many. Nothing is taken.
    pub fn take(&self, key: u64, tokens: u32) -> Result<(), Duration> {
        let taken = match NonZeroU32::new(tokens) {
            None => return Ok(()),
            Some(NonZeroU32::MIN) => self.limiter.check_key(&key),
            // Never more than a bucket holds.
            Some(tokens) => self.limiter.check_key_n(&key, tokens.min(self.burst)).unwrap_or(Ok(())),
        };
        taken.map_err(|until| until.wait_time_from(self.limiter.clock().now()))
    }

    /// Whether this key has a token; takes none.
    ///
    /// # Errors
    /// The time until it has one.
    pub fn has_token(&self, key: u64) -> Result<(), Duration> {
        let now = self.now();
        // The bucket of an unknown key is full. This changes no bucket.
        let full_at = self.keys.full_at(&key).unwrap_or(0);
        let token_at = full_at.saturating_sub(self.interval * (u64::from(self.burst.get()) - 1));
        if now < token_at { Err(Duration::from_nanos(token_at - now)) } else { Ok(()) }
    }

    /// Takes `tokens` of this key, also tokens that it does not have yet: it owes them, up to those of another full bucket.
    pub fn charge(&self, key: u64, tokens: u32) {
        let now = self.now();
        let (price, most) = (self.interval * u64::from(tokens), self.interval * 2 * u64::from(self.burst.get()));
        let _: Result<(), ()> = self.keys.measure_and_replace(&key, |full_at| {
            let full_at = full_at.map_or(0, Nanos::as_u64).max(now);
            // Earlier debts stay.
            Ok(((), Nanos::from((full_at + price).min((now + most).max(full_at)))))
        });
    }

    /// Nanoseconds since the limiter was made.
    fn now(&self) -> u64 {
        self.limiter.clock().now().duration_since(self.start).as_u64()
    }

    /// Forgets the buckets that are full. Takes 2 to 20 milliseconds for a million keys.
    pub fn forget_full(&self) {
        self.limiter.retain_recent();
    }

    /// Gives back memory that was not needed since the last call.
    pub fn shrink(&self) {
        self.limiter.shrink_to_fit();
    }

    /// The number of known keys.
    pub fn len(&self) -> usize {
        self.limiter.len()
    }
}

/// The state of each key, for a bounded number of keys.
struct KeyStates {
    states: DashMapStateStore<u64>,
    /// The number of keys: counting them would take every lock.
    count: AtomicUsize,
    most: usize,
    /// The largest number of keys since memory was last given back.
    peak: AtomicUsize,
    /// The shared bucket of keys beyond the bound.
    newcomers: InMemoryState,
}

impl KeyStates {
    fn at_most(most: usize) -> Self {
        KeyStates {
            states: DashMapStateStore::default(),
            count: AtomicUsize::new(0),
            most,
            peak: AtomicUsize::new(0),
            newcomers: InMemoryState::default(),
        }
    }

    /// The time at which this key's bucket is full (ns); `None` if it is.
    fn full_at(&self, key: &u64) -> Option<u64> {
        let full_at = |state: &InMemoryState| {
            let kept = state.measure_and_replace(&NotKeyed::NonKey, Err::<((), Nanos), _>);
            kept.err().flatten().map(Nanos::as_u64)
        };
        match self.states.get(key) {
            Some(state) => full_at(&state),
            None if self.count.load(Relaxed) >= self.most => full_at(&self.newcomers),
            None => None,
        }
    }
}

/// The keys of a limiter, which keeps them to itself.
#[derive(Clone)]
struct SharedStates(Arc<KeyStates>);

impl std::ops::Deref for SharedStates {
    type Target = KeyStates;

    fn deref(&self) -> &KeyStates {
        &self.0
    }
}

impl StateStore for SharedStates {
    type Key = u64;

    fn measure_and_replace<T, F, E>(&self, key: &u64, decide: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        if let Some(state) = self.states.get(key) {
            return state.measure_and_replace(&NotKeyed::NonKey, decide);
        }
        // Counted before it is added, so that there are never more keys than the count.
        if self.count.fetch_add(1, Relaxed) >= self.most {
            self.count.fetch_sub(1, Relaxed);
            return self.newcomers.measure_and_replace(&NotKeyed::NonKey, decide);
        }
        let mut new = false;
        let state = self.states.entry(*key).or_insert_with(|| {
            new = true;
            InMemoryState::default()
        });
        if !new {
            self.count.fetch_sub(1, Relaxed);
        }
        state.measure_and_replace(&NotKeyed::NonKey, decide)
    }
}

impl ShrinkableKeyedStateStore<u64> for SharedStates {
    fn retain_recent(&self, drop_below: Nanos) {
        self.peak.fetch_max(self.count.load(Relaxed), Relaxed);
        let mut gone = 0;
        self.states.retain(|_, state| {
            let full_at = state.measure_and_replace(&NotKeyed::NonKey, Err::<((), Nanos), _>);
            let recent = full_at.is_err_and(|at| at.is_some_and(|at| at > drop_below));
            gone += usize::from(!recent);
            recent
        });
        self.count.fetch_sub(gone, Relaxed);
    }

    fn shrink_to_fit(&self) {
        let peak = self.peak.swap(0, Relaxed).max(self.count.load(Relaxed));
        // Not the memory of keys that come and go: it would be allocated again.
        if self.states.capacity() > 4 * peak + 1024 {
            self.states.shrink_to_fit();
        }
    }

    fn len(&self) -> usize {
        self.count.load(Relaxed)
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use governor::clock::FakeRelativeClock;

    use super::*;

    fn buckets(per_second: u32, burst: u32, most: u32) -> (Buckets<FakeRelativeClock>, FakeRelativeClock) {
        let clock = FakeRelativeClock::default();
        // Governor's zero is also the state of an unknown key.
        clock.advance(Duration::from_secs(3600));
        (Buckets::per_second(per_second, burst, most, clock.clone()).unwrap(), clock)
    }

    fn taken(buckets: &Buckets<FakeRelativeClock>, key: u64) -> u32 {
        std::iter::repeat_with(|| buckets.take(key, 1)).take_while(Result::is_ok).count() as u32
    }

    #[test]
    fn bucket_allows_burst_then_rate_per_key() {
        let (buckets, clock) = buckets(10, 30, 100);
        assert_eq!(taken(&buckets, 1), 30);
        assert_eq!(taken(&buckets, 2), 30);
        clock.advance(Duration::from_secs(1));
        assert_eq!(taken(&buckets, 1), 10);
        clock.advance(Duration::from_secs(60));
        assert_eq!(taken(&buckets, 1), 30, "no more than a burst is saved up");
    }

    #[test]
    fn bucket_refusal_names_wait_and_takes_no_token() {
        let (buckets, clock) = buckets(2, 1, 100);
        assert_eq!(buckets.take(1, 1), Ok(()));
        for _ in 0..100 {
            assert_eq!(buckets.take(1, 1), Err(Duration::from_millis(500)));
        }
        clock.advance(Duration::from_millis(300));
        assert_eq!(buckets.take(1, 1), Err(Duration::from_millis(200)));
        clock.advance(Duration::from_millis(200));
        assert_eq!(buckets.take(1, 1), Ok(()));
    }

    #[test]
    fn bucket_charge_capped_at_burst() {
        let (buckets, clock) = buckets(10, 30, 100);
        assert_eq!(buckets.take(1, 21), Ok(()));
        assert_eq!(buckets.take(1, 21), Err(Duration::from_millis(1_200)), "nine are left");
        assert_eq!(taken(&buckets, 1), 9, "and nothing was taken of them");
        clock.advance(Duration::from_secs(60));
        assert_eq!(buckets.take(1, 1_000), Ok(()));
        assert_eq!(taken(&buckets, 1), 0);
        assert_eq!(buckets.take(1, 0), Ok(()));
    }

    #[test]
    fn bucket_debt_bounded() {
        let (buckets, clock) = buckets(10, 30, 100);
        buckets.charge(1, 10);
        assert_eq!(taken(&buckets, 1), 20);
        buckets.charge(1, 5);
        assert_eq!(buckets.take(1, 1), Err(Duration::from_millis(600)));
        for _ in 0..1_000 {
            buckets.charge(1, 30);
        }
        assert_eq!(buckets.take(1, 1), Err(Duration::from_millis(3_100)), "one more than another bucket");
        clock.advance(Duration::from_millis(3_100));
        assert_eq!(taken(&buckets, 1), 1);
        assert_eq!(taken(&buckets, 2), 30, "other keys owe nothing");
    }

    #[test]
    fn bucket_check_takes_no_token_and_stores_no_key() {
        let (buckets, clock) = buckets(10, 3, 100);
        for _ in 0..100 {
            assert_eq!(buckets.has_token(1), Ok(()));
        }
        assert_eq!(buckets.len(), 0);
        for left in (0..3).rev() {
            buckets.charge(1, 1);
            assert_eq!(buckets.has_token(1).is_ok(), left > 0);
        }
        assert_eq!(buckets.has_token(1), Err(Duration::from_millis(100)));
        clock.advance(Duration::from_millis(99));
        assert!(buckets.has_token(1).is_err());
        clock.advance(Duration::from_millis(1));
        assert_eq!((buckets.has_token(1), taken(&buckets, 1)), (Ok(()), 1));
    }

    #[test]
    fn bucket_check_of_new_key_uses_shared_bucket_when_full() {
        let (buckets, _) = buckets(10, 1, 1);
        buckets.charge(1, 1);
        assert_eq!(buckets.has_token(2), Ok(()));
        buckets.charge(2, 1);
        assert!(buckets.has_token(3).is_err());
        assert_eq!(buckets.len(), 1);
    }

    #[test]
    fn bucket_unlimited_when_rate_none() {
        assert!(Buckets::new(0, 10, 10).is_none());
        assert!(Buckets::new(10, 0, 10).is_none());
        assert!(Buckets::new(10, 10, 0).is_some());
        assert!(Buckets::per_minute(0, 10).is_none());
    }

    #[test]
    fn bucket_dropped_when_full() {
        let (buckets, clock) = buckets(10, 10, 100);
        buckets.take(1, 1).unwrap();
        clock.advance(Duration::from_millis(50));
        assert_eq!(taken(&buckets, 2), 10);
        clock.advance(Duration::from_millis(160));
        buckets.forget_full();
        assert_eq!(buckets.len(), 1, "the first had only one token to get back");
        assert_eq!(taken(&buckets, 2), 1, "the second has not had time for more");
        assert_eq!(taken(&buckets, 1), 10);
        clock.advance(Duration::from_secs(2));
        buckets.forget_full();
        assert_eq!(buckets.len(), 0);
    }

    #[test]
    fn bucket_shared_by_new_keys_beyond_bound() {
        let (buckets, clock) = buckets(10, 5, 100);
        for key in 0..100 {
            buckets.take(key, 1).unwrap();
        }
        let let_in = (1_000..1_000_000).filter(|key| buckets.take(*key, 1).is_ok()).count();
        assert_eq!(let_in, 5);
        assert_eq!(buckets.len(), 100);
        assert!((0..100).all(|key| taken(&buckets, key) == 4));
        clock.advance(Duration::from_secs(1));
        buckets.forget_full();
        assert_eq!((buckets.len(), taken(&buckets, 1_000)), (0, 5), "there is room again");
    }

    #[test]
    fn bucket_count_exact_when_concurrent() {
        let buckets = Buckets::new(1, 1_000_000, 5_000).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let buckets = &buckets;
                scope.spawn(move || {
                    for key in 0..20_000 {
                        // Half of them are everybody's.
                        let key = if key % 2 == 0 { key } else { key * 4 + thread };
                        let _ = buckets.take(key, 1);
                        assert!(buckets.len() <= 5_000 + 4);
                        if key % 5_000 == 0 {
                            buckets.forget_full();
                        }
                    }
                });
            }
        });
        let keys = buckets.keys;
        assert_eq!((keys.count.load(Relaxed), keys.states.len()), (5_000, 5_000));
    }

    /// hashbrown keeps a key, its state and a byte for each bucket of a table of a power of two, at most 7/8 full.
    fn bytes(keys: &KeyStates) -> usize {
        keys.states.capacity() * 8 / 7 * (size_of::<(u64, InMemoryState)>() + 1)
    }

    #[test]
    fn bucket_memory_below_40_bytes_per_key() {
        let (buckets, clock) = buckets(10, 10, 1_000_000);
        for key in 0..1_500_000_u64 {
            // As scattered as addresses are.
            let _ = buckets.take(key.wrapping_mul(0x9E37_79B9_7F4A_7C15), 1);
        }
        let keys = buckets.keys.clone();
        assert_eq!(keys.states.len(), 1_000_000);
        let each = bytes(&keys) as f64 / 1e6;
        assert!(each < 40.0, "{each}");

        clock.advance(Duration::from_secs(3600 * 24));
        buckets.forget_full();
        buckets.shrink();
        buckets.shrink();
        assert_eq!(keys.states.len(), 0);
        assert!(bytes(&keys) < 100_000, "{}", bytes(&keys));
    }
}
