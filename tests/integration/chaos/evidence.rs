//! What a failed run leaves: the command that repeats it, and a file with every operation and every log.

use std::{fs, io::Write, path::PathBuf, sync::Arc};

use super::{clients::Market, shop::Shop, swarm::Draw};

/// Names the file.
const FILE: &str = "CHAOS_EVIDENCE";

/// Dropped, also by a panic, it prints the command and writes the file, unless the run is clean.
pub struct Evidence {
    draw: Draw,
    market: Arc<Market>,
    logs: Vec<PathBuf>,
    pub clean: bool,
}

impl Evidence {
    pub fn of(draw: &Draw, shop: &Shop, market: &Arc<Market>) -> Evidence {
        Evidence { draw: draw.clone(), market: market.clone(), logs: shop.log_paths(), clean: false }
    }

    fn write(&self, path: PathBuf) -> std::io::Result<()> {
        let mut file = fs::File::create(path)?;
        for operation in self.market.history.all() {
            writeln!(file, "{:?} {} settled={}", operation.request, operation.key, operation.settled)?;
            for attempt in operation.attempts {
                writeln!(file, "  {}–{} {:?}", attempt.began, attempt.ended, attempt.outcome)?;
            }
        }
        for log in &self.logs {
            writeln!(file, "--- {}", log.display())?;
            file.write_all(&fs::read(log).unwrap_or_default())?;
        }
        Ok(())
    }
}

impl Drop for Evidence {
    fn drop(&mut self) {
        if self.clean {
            return;
        }
        self.draw.print_command();
        if let Some(path) = std::env::var_os(FILE)
            && let Err(error) = self.write(path.into())
        {
            println!("no evidence: {error}");
        }
    }
}
