//! The program: parses the command line and runs the command. `src/cli/` has a file per command.

use std::process::ExitCode;

use firstcome::cli::Cli;

/// A fifth of the service's time was in glibc's allocator (docs/decisions.md).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match Cli::parse() {
        Ok(cli) => cli.run(),
        Err(code) => code,
    }
}
