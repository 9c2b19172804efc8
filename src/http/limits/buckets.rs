//! Token buckets, one per client or user, in bounded memory.
//!
//! The arithmetic is governor's: a bucket is one number, the time at which it will be full. A full one is no different from
//! none, so it is forgotten within a second: what is kept are those who asked for something in the last seconds. Beyond a
//! number of keys, newcomers share one bucket: an attacker with very many addresses slows down other newcomers, and can
//! neither fill the memory nor take anything from those who are known.

use std::{
    num::NonZeroU32,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

use governor::{
    Quota, RateLimiter,
    clock::{Clock, MonotonicClock},
    middleware::NoOpMiddleware,
    nanos::Nanos,
    state::{
        InMemoryState, NotKeyed, StateStore,
        keyed::{DashMapStateStore, ShrinkableKeyedStateStore},
    },
};

/// Buckets of one size, by key.
pub struct Buckets<C: Clock = MonotonicClock> {
    limiter: RateLimiter<u64, Keys, C, NoOpMiddleware<C::Instant>>,
}

impl Buckets {
    /// Buckets that hold `burst` tokens and fill by `per_second`, for at most `most` keys; `None` if either is 0: no limit.
    pub fn new(per_second: u32, burst: u32, most: u32) -> Option<Self> {
        Buckets::with_clock(per_second, burst, most, MonotonicClock)
    }
}

impl<C: Clock> Buckets<C> {
    fn with_clock(per_second: u32, burst: u32, most: u32, clock: C) -> Option<Self> {
        let quota = Quota::per_second(NonZeroU32::new(per_second)?).allow_burst(NonZeroU32::new(burst)?);
        Some(Buckets { limiter: RateLimiter::new(quota, Keys::at_most(most as usize), clock) })
    }

    /// Takes a token of this key.
    ///
    /// # Errors
    /// There is none: how long until there is.
    pub fn take(&self, key: u64) -> Result<(), Duration> {
        self.limiter.check_key(&key).map_err(|until| until.wait_time_from(self.limiter.clock().now()))
    }

    /// Forgets the buckets that are full. Takes 2 to 20 milliseconds for a million keys.
    pub fn forget_full(&self) {
        self.limiter.retain_recent();
    }

    /// Gives back memory that was not needed since this was last called.
    pub fn shrink(&self) {
        self.limiter.shrink_to_fit();
    }

    /// How many keys are known.
    pub fn len(&self) -> usize {
        self.limiter.len()
    }
}

/// The state of each key, for a bounded number of keys.
struct Keys {
    states: DashMapStateStore<u64>,
    /// How many there are: counting them would take every lock.
    count: AtomicUsize,
    most: usize,
    /// The most there were when last looked at, since memory was last given back.
    peak: AtomicUsize,
    /// Of those who came when there were `most` others.
    newcomers: InMemoryState,
}

impl Keys {
    fn at_most(most: usize) -> Self {
        Keys {
            states: DashMapStateStore::default(),
            count: AtomicUsize::new(0),
            most,
            peak: AtomicUsize::new(0),
            newcomers: InMemoryState::default(),
        }
    }
}

impl StateStore for Keys {
    type Key = u64;

    fn measure_and_replace<T, F, E>(&self, key: &u64, decide: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        if let Some(state) = self.states.get(key) {
            return state.measure_and_replace(&NotKeyed::NonKey, decide);
        }
        // Counted before it is there, so that there are never more than the count says.
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

impl ShrinkableKeyedStateStore<u64> for Keys {
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
        // Not what comes and goes: it would only be asked for again.
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
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use governor::clock::FakeRelativeClock;

    use super::*;

    fn buckets(per_second: u32, burst: u32, most: u32) -> (Buckets<FakeRelativeClock>, FakeRelativeClock) {
        let clock = FakeRelativeClock::default();
        // Governor's zero is also the state of a key that it has never seen.
        clock.advance(Duration::from_secs(3600));
        (Buckets::with_clock(per_second, burst, most, clock.clone()).unwrap(), clock)
    }

    fn taken(buckets: &Buckets<FakeRelativeClock>, key: u64) -> u32 {
        std::iter::repeat_with(|| buckets.take(key)).take_while(Result::is_ok).count() as u32
    }

    #[test]
    fn a_burst_and_then_the_rate_and_nobody_takes_another_s() {
        let (buckets, clock) = buckets(10, 30, 100);
        assert_eq!(taken(&buckets, 1), 30);
        assert_eq!(taken(&buckets, 2), 30);
        clock.advance(Duration::from_secs(1));
        assert_eq!(taken(&buckets, 1), 10);
        clock.advance(Duration::from_secs(60));
        assert_eq!(taken(&buckets, 1), 30, "no more than a burst is saved up");
    }

    #[test]
    fn a_refusal_says_how_long_and_costs_nothing() {
        let (buckets, clock) = buckets(2, 1, 100);
        assert_eq!(buckets.take(1), Ok(()));
        for _ in 0..100 {
            assert_eq!(buckets.take(1), Err(Duration::from_millis(500)));
        }
        clock.advance(Duration::from_millis(300));
        assert_eq!(buckets.take(1), Err(Duration::from_millis(200)));
        clock.advance(Duration::from_millis(200));
        assert_eq!(buckets.take(1), Ok(()));
    }

    #[test]
    fn none_is_no_limit() {
        assert!(Buckets::new(0, 10, 10).is_none());
        assert!(Buckets::new(10, 0, 10).is_none());
        assert!(Buckets::new(10, 10, 0).is_some());
    }

    #[test]
    fn full_buckets_are_forgotten_and_others_are_not() {
        let (buckets, clock) = buckets(10, 10, 100);
        buckets.take(1).unwrap();
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
    fn beyond_the_bound_newcomers_share_one_bucket_and_the_known_keep_theirs() {
        let (buckets, clock) = buckets(10, 5, 100);
        for key in 0..100 {
            buckets.take(key).unwrap();
        }
        let let_in = (1_000..1_000_000).filter(|key| buckets.take(*key).is_ok()).count();
        assert_eq!(let_in, 5);
        assert_eq!(buckets.len(), 100);
        assert!((0..100).all(|key| taken(&buckets, key) == 4));
        clock.advance(Duration::from_secs(1));
        buckets.forget_full();
        assert_eq!((buckets.len(), taken(&buckets, 1_000)), (0, 5), "there is room again");
    }

    #[test]
    fn the_count_is_exact_whoever_comes_at_once() {
        let buckets = Buckets::new(1, 1_000_000, 5_000).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let buckets = &buckets;
                scope.spawn(move || {
                    for key in 0..20_000 {
                        // Half of them are everybody's.
                        let key = if key % 2 == 0 { key } else { key * 4 + thread };
                        let _ = buckets.take(key);
                        assert!(buckets.len() <= 5_000 + 4);
                        if key % 5_000 == 0 {
                            buckets.forget_full();
                        }
                    }
                });
            }
        });
        let Buckets { limiter } = buckets;
        let keys = limiter.into_state_store();
        assert_eq!((keys.count.load(Relaxed), keys.states.len()), (5_000, 5_000));
    }

    /// hashbrown keeps a key, its state and a byte for each bucket of a table of a power of two, at most 7/8 full.
    fn bytes(keys: &Keys) -> usize {
        keys.states.capacity() * 8 / 7 * (size_of::<(u64, InMemoryState)>() + 1)
    }

    #[test]
    fn a_million_keys_take_less_than_40_bytes_each_and_give_them_back() {
        let (buckets, clock) = buckets(10, 10, 1_000_000);
        for key in 0..1_500_000_u64 {
            // As scattered as addresses are.
            let _ = buckets.take(key.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        }
        let keys = buckets.limiter.into_state_store();
        assert_eq!(keys.states.len(), 1_000_000);
        let each = bytes(&keys) as f64 / 1e6;
        assert!(each < 40.0, "{each}");

        let limiter =
            RateLimiter::<_, _, _, NoOpMiddleware<Nanos>>::new(Quota::per_second(NonZeroU32::MIN), keys, clock.clone());
        let buckets = Buckets { limiter };
        clock.advance(Duration::from_secs(3600 * 24));
        buckets.forget_full();
        buckets.shrink();
        buckets.shrink();
        let keys = buckets.limiter.into_state_store();
        assert_eq!(keys.states.len(), 0);
        assert!(bytes(&keys) < 100_000, "{}", bytes(&keys));
    }
}
