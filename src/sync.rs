//! The locks and atomics of the shared state whose interleavings `tests/concurrency` explores: that test compiles the same files
//! with loom's primitives in the place of this module.

pub use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, atomic};
