//! A value that is expensive to compute and may be a moment old.
//!
//! It is computed at a bounded rate. Below the rate each request computes it; beyond the rate requests get the last one, which is no
//! older than the rate's period. Concurrent requests compute it once.

use governor::{DefaultDirectRateLimiter, Quota};
use tokio::sync::Mutex;

/// The last value, and the rate at which it is replaced.
pub struct Recent<T> {
    rate: DefaultDirectRateLimiter,
    /// Locked while it is computed.
    last: Mutex<Option<T>>,
}

impl<T: Clone> Recent<T> {
    pub fn new(rate: Quota) -> Self {
        Recent { rate: DefaultDirectRateLimiter::direct(rate), last: Mutex::new(None) }
    }

    /// A new value, or the last one beyond the rate.
    ///
    /// # Errors
    /// It can't be computed; the next request tries again.
    pub async fn get<E>(&self, find: impl AsyncFnOnce() -> Result<T, E>) -> Result<T, E> {
        let mut last = self.last.lock().await;
        if self.rate.check().is_err()
            && let Some(answer) = last.as_ref()
        {
            return Ok(answer.clone());
        }
        // The old value is dropped also if this fails.
        *last = None;
        let answer = find().await?;
        *last = Some(answer.clone());
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        num::NonZeroU32,
        sync::atomic::{AtomicU32, Ordering::Relaxed},
        time::Duration,
    };

    use futures_util::future::join_all;

    use super::*;

    /// So many at once, and none after that during a test.
    fn recent(burst: u32) -> Recent<u32> {
        let rate = Quota::with_period(Duration::from_secs(3600)).unwrap();
        Recent::new(rate.allow_burst(NonZeroU32::new(burst).unwrap()))
    }

    #[tokio::test]
    async fn answer_computed_at_bounded_rate() {
        let (recent, found) = (recent(3), AtomicU32::new(0));
        let ask = async || {
            let find = async || {
                tokio::task::yield_now().await;
                Ok::<_, ()>(found.fetch_add(1, Relaxed))
            };
            recent.get(find).await.unwrap()
        };
        let answers = join_all((0..1_000).map(|_| ask())).await;
        assert_eq!(answers[..4], [0, 1, 2, 2]);
        assert!(answers[3..].iter().all(|answer| *answer == 2));
    }

    #[tokio::test]
    async fn answer_recomputed_after_failure() {
        let recent = recent(1);
        assert_eq!(recent.get(async || Ok::<_, ()>(1)).await, Ok(1));
        assert_eq!(recent.get(async || Err::<u32, _>(())).await, Ok(1));
        let recent = self::recent(2);
        assert_eq!(recent.get(async || Ok::<_, ()>(1)).await, Ok(1));
        assert_eq!(recent.get(async || Err::<u32, _>(())).await, Err(()));
        assert_eq!(recent.get(async || Ok::<_, ()>(2)).await, Ok(2), "the first is not told any more");
    }
}
