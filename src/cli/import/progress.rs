//! The progress of an import.

use std::{
    io::IsTerminal,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use indicatif::{HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::log::ImportCounts;

/// The interval of the lines of progress where standard error is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// The progress on standard error: a bar with the time that is left on a terminal, a line now and then elsewhere.
pub(super) struct ImportProgress {
    bar: ProgressBar,
    read: Arc<AtomicU64>,
    is_terminal: bool,
    shown: std::cell::Cell<Instant>,
}

impl ImportProgress {
    pub fn new(size: Option<u64>, read: Arc<AtomicU64>) -> Self {
        let bar = match size {
            Some(size) => ProgressBar::new(size),
            None => ProgressBar::no_length(),
        };
        let template = if size.is_some() { "{wide_bar} {percent} % {msg}, {eta} left" } else { "{spinner} {msg}" };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        let is_terminal = std::io::stderr().is_terminal();
        // Where it is not drawn, it still estimates.
        bar.set_draw_target(if is_terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() });
        ImportProgress { bar, read, is_terminal, shown: std::cell::Cell::new(Instant::now()) }
    }

    pub fn show(&self, counts: &ImportCounts) {
        self.bar.set_position(self.read.load(Ordering::Relaxed));
        if self.is_terminal {
            self.bar.set_message(format!("{} rows", HumanCount(counts.all())));
        } else if self.shown.get().elapsed() >= LINE_INTERVAL {
            self.shown.set(Instant::now());
            let left = self.bar.length().map(|_| self.bar.eta().as_secs());
            tracing::info!(rows = counts.all(), rejected = counts.rejected, eta_seconds = left, "importing");
        }
    }

    pub fn end(&self) {
        self.bar.finish_and_clear();
    }
}
