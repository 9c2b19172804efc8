//! Answers that are dear to find out and may be a moment old.
//!
//! Whoever asks in a loop gets the same answer for a while; however many ask, one finds it out.

use std::time::{Duration, Instant};

use tokio::sync::Mutex;

/// The last answer, and for how long it is told again.
pub struct Recent<T> {
    told_again: Duration,
    /// Held by the one that finds it out.
    last: Mutex<Option<(Instant, T)>>,
}

impl<T: Clone> Recent<T> {
    pub fn new(told_again: Duration) -> Self {
        Recent { told_again, last: Mutex::new(None) }
    }

    /// The last answer, or a new one where that is too old.
    ///
    /// # Errors
    /// A new one can't be found out; the next who asks tries again.
    pub async fn get<E>(&self, find: impl AsyncFnOnce() -> Result<T, E>) -> Result<T, E> {
        let mut last = self.last.lock().await;
        if let Some((at, answer)) = last.as_ref()
            && at.elapsed() < self.told_again
        {
            return Ok(answer.clone());
        }
        let answer = find().await?;
        *last = Some((Instant::now(), answer.clone()));
        Ok(answer)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

    use futures_util::future::join_all;

    use super::*;

    #[tokio::test]
    async fn answer_is_found_once_however_many_ask() {
        let (recent, found) = (Recent::new(Duration::from_secs(3600)), AtomicU32::new(0));
        let ask = async || {
            let find = async || {
                tokio::task::yield_now().await;
                Ok::<_, ()>(found.fetch_add(1, Relaxed))
            };
            recent.get(find).await.unwrap()
        };
        assert_eq!(join_all((0..1_000).map(|_| ask())).await, [0; 1_000]);
        assert_eq!(recent.get(async || Err::<u32, ()>(())).await, Ok(0));
    }

    #[tokio::test]
    async fn answer_that_is_old_or_failed_is_found_again() {
        let recent = Recent::new(Duration::ZERO);
        assert_eq!(recent.get(async || Ok::<_, ()>(1)).await, Ok(1));
        assert_eq!(recent.get(async || Err::<u32, _>(())).await, Err(()));
        assert_eq!(recent.get(async || Ok::<_, ()>(2)).await, Ok(2));
    }
}
