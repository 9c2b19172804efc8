//! Bounds the requests in flight: further ones are shed before their body is read.
//!
//! A request that waits for its body does not count: otherwise slow clients could use up the bound. Its permit is suspended
//! meanwhile and must find room again.

use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

/// Counts requests in flight, up to a bound.
pub struct InFlight {
    count: AtomicI64,
    /// `None`: no bound and no count.
    max: Option<i64>,
}

/// Counts a request until it is dropped.
#[must_use]
pub struct Permit<'a>(Option<&'a InFlight>);

/// A permit that does not count: it counts again once this is dropped.
#[must_use]
pub struct Suspended<'a>(Option<&'a InFlight>);

impl InFlight {
    /// Lets `max` requests be in flight; 0: any number.
    pub fn new(max: u32) -> Self {
        InFlight { count: AtomicI64::new(0), max: (max > 0).then_some(max.into()) }
    }

    /// A permit for a request, if there is room.
    pub fn acquire(&self) -> Option<Permit<'_>> {
        let Some(max) = self.max else { return Some(Permit(None)) };
        let before = self.count.fetch_add(1, Relaxed);
        // Undoes the count if it is dropped here.
        let permit = Permit(Some(self));
        (before < max).then_some(permit)
    }

    /// Suspends a permit that is held.
    pub fn suspend(&self) -> Suspended<'_> {
        let counted = self.max.map(|_| self);
        if let Some(counted) = counted {
            counted.count.fetch_sub(1, Relaxed);
        }
        Suspended(counted)
    }

    /// The requests in flight; 0 without a bound.
    pub fn count(&self) -> i64 {
        self.count.load(Relaxed).max(0)
    }
}

impl Suspended<'_> {
    /// Makes the permit count again; `false` if others have taken its room meanwhile.
    pub fn resume(self) -> bool {
        let Some((counted, max)) = self.0.and_then(|counted| Some((counted, counted.max?))) else { return true };
        drop(self);
        counted.count.load(Relaxed) <= max
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        if let Some(counted) = self.0 {
            counted.count.fetch_sub(1, Relaxed);
        }
    }
}

impl Drop for Suspended<'_> {
    fn drop(&mut self) {
        if let Some(counted) = self.0 {
            counted.count.fetch_add(1, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permits_bounded_by_capacity() {
        let in_flight = InFlight::new(2);
        let first = in_flight.acquire().unwrap();
        let _second = in_flight.acquire().unwrap();
        assert!(in_flight.acquire().is_none());
        assert_eq!(in_flight.count(), 2, "a refused request is not counted");
        drop(first);
        assert!(in_flight.acquire().is_some());
    }

    #[test]
    fn waiting_request_takes_no_permit() {
        let in_flight = InFlight::new(1);
        let first = in_flight.acquire().unwrap();
        let suspended = in_flight.suspend();
        let second = in_flight.acquire().unwrap();
        assert!(!suspended.resume());
        drop((first, second));
        assert_eq!(in_flight.count(), 0);

        let permit = in_flight.acquire().unwrap();
        assert!(in_flight.suspend().resume());
        drop(in_flight.suspend());
        assert_eq!(in_flight.count(), 1);
        drop(permit);
        assert_eq!(in_flight.count(), 0);
    }

    #[test]
    fn permits_unbounded_when_capacity_none() {
        let in_flight = InFlight::new(0);
        let permits: Vec<_> = (0..100).map(|_| in_flight.acquire().unwrap()).collect();
        assert!(in_flight.suspend().resume());
        assert_eq!((permits.len(), in_flight.count()), (100, 0));
    }
}
