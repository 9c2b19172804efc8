//! Explores the shared state with loom: every interleaving of a few threads at every lock and atomic, with up to two
//! preemptions.
//!
//! This target compiles the files under test once more, with loom's primitives in the place of `crate::sync`.
#![allow(clippy::unwrap_used)]

mod batcher_model;
mod campaigns_model;
mod watermark_model;

/// Takes the place of `src/sync.rs`.
mod sync {
    pub use std::sync::PoisonError;

    pub use loom::sync::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, atomic};
}

use firstcome::model;

#[allow(unused)]
#[path = "../../src/redis/batcher.rs"]
mod batcher;
#[allow(unused)]
#[path = "../../src/engine/sold_out/campaigns.rs"]
mod campaigns;
#[allow(unused)]
#[path = "../../src/redis/progress.rs"]
mod progress;

/// Runs `model` in every interleaving.
fn explore(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(2);
    builder.check(model);
}

/// A name, and what it explores.
type Model = (&'static str, fn());

/// Runs the models whose names contain one of the arguments; without arguments, all of them.
///
/// The models are no `#[test]`s: loom's primitives work in a model only, and a test harness would also run the unit tests of the
/// files under test.
fn main() {
    let filters: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    for (name, model) in [batcher_model::MODELS, campaigns_model::MODELS, watermark_model::MODELS].concat() {
        if filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str())) {
            let begun = std::time::Instant::now();
            model();
            eprintln!("model {name} ... ok ({:.1} s)", begun.elapsed().as_secs_f64());
        }
    }
}
