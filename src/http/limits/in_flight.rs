//! How many requests may be under way at once: those beyond are turned away at the door, before anything is read of them.
//!
//! A request that waits for its client to send the body is no work and does not count: otherwise slow clients could keep
//! everybody else out. It steps outside meanwhile, and has to find room again.

use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

/// Counts who is inside, up to a bound.
pub struct Gate {
    inside: AtomicI64,
    /// `None`: no bound, and nobody is counted.
    most: Option<i64>,
}

/// Inside until dropped.
#[must_use]
pub struct Pass<'a>(Option<&'a Gate>);

/// Outside for a while: back inside when dropped.
#[must_use]
pub struct Outside<'a>(Option<&'a Gate>);

impl Gate {
    /// A gate for `most` at once; 0: any number.
    pub fn new(most: u32) -> Self {
        Gate { inside: AtomicI64::new(0), most: (most > 0).then_some(most.into()) }
    }

    /// Lets a request in, if there is room.
    pub fn enter(&self) -> Option<Pass<'_>> {
        let Some(most) = self.most else { return Some(Pass(None)) };
        let before = self.inside.fetch_add(1, Relaxed);
        // Counted either way until it is dropped.
        let pass = Pass(Some(self));
        (before < most).then_some(pass)
    }

    /// Steps outside, for a request that is inside.
    pub fn step_out(&self) -> Outside<'_> {
        let gate = self.most.map(|_| self);
        if let Some(gate) = gate {
            gate.inside.fetch_sub(1, Relaxed);
        }
        Outside(gate)
    }

    /// How many are inside; 0 without a bound.
    pub fn inside(&self) -> i64 {
        self.inside.load(Relaxed).max(0)
    }
}

impl Outside<'_> {
    /// Comes back in; `false` if others have taken the place meanwhile.
    pub fn has_room(self) -> bool {
        let Some((gate, most)) = self.0.and_then(|gate| Some((gate, gate.most?))) else { return true };
        drop(self);
        gate.inside.load(Relaxed) <= most
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if let Some(gate) = self.0 {
            gate.inside.fetch_sub(1, Relaxed);
        }
    }
}

impl Drop for Outside<'_> {
    fn drop(&mut self) {
        if let Some(gate) = self.0 {
            gate.inside.fetch_add(1, Relaxed);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn permits_bounded_by_capacity() {
        let gate = Gate::new(2);
        let first = gate.enter().unwrap();
        let _second = gate.enter().unwrap();
        assert!(gate.enter().is_none());
        assert_eq!(gate.inside(), 2, "who was turned away is not inside");
        drop(first);
        assert!(gate.enter().is_some());
    }

    #[test]
    fn waiting_request_takes_no_permit() {
        let gate = Gate::new(1);
        let first = gate.enter().unwrap();
        let outside = gate.step_out();
        let second = gate.enter().unwrap();
        assert!(!outside.has_room());
        drop((first, second));
        assert_eq!(gate.inside(), 0);

        let pass = gate.enter().unwrap();
        assert!(gate.step_out().has_room());
        drop(gate.step_out());
        assert_eq!(gate.inside(), 1);
        drop(pass);
        assert_eq!(gate.inside(), 0);
    }

    #[test]
    fn permits_unbounded_when_capacity_none() {
        let gate = Gate::new(0);
        let passes: Vec<_> = (0..100).map(|_| gate.enter().unwrap()).collect();
        assert!(gate.step_out().has_room());
        assert_eq!((passes.len(), gate.inside()), (100, 0));
    }
}
