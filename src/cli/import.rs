//! `firstcome import`: users, products and campaigns from a file, under the ids that they have there.
//!
//! Works on the stores through the engine, as a server does, and not over HTTP: the same scripts decide, one at a time in each
//! partition, so that servers beside it see each record wholly or not at all, and sell meanwhile. It carries its decisions to
//! PostgreSQL itself, and ends when PostgreSQL has them. The operator log has its beginning and its end.

mod columns;
mod log;
mod progress;
mod reading;
mod rejected;
mod rows;
mod source;
mod step;

use std::{
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, atomic::AtomicU64},
    time::{Duration, Instant},
};

use clap::Args;
use futures_util::{StreamExt, stream};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use self::{
    log::{ImportCounts, ImportRecorder},
    progress::ImportProgress,
    reading::{CheckedRow, Reading, is_standard_input, metadata_of},
    rejected::{Rejections, is_of_system},
    rows::RowKind,
    source::FileFormat,
    step::ImportStep,
};
use super::{print, status, stop::stop_signal};
use crate::{
    app::App,
    config::{EngineConfig, ProjectorConfig},
    model::{Call, Clock},
};

/// The steps at once; as many more are read ahead.
const CHUNKS_AT_ONCE: usize = 4;
/// The time for PostgreSQL to get the last decisions.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(600);
/// The time for the operator log's last entry where PostgreSQL did not get the decisions.
const LOG_TIMEOUT: Duration = Duration::from_secs(10);
/// The status of an import that is in Redis, and not in PostgreSQL yet.
const NOT_PROJECTED: u8 = 3;

#[derive(Args)]
pub(super) struct ImportArgs {
    /// What the rows are
    kind: RowKind,
    /// The file: CSV with a header, or JSON Lines if its name ends with .jsonl or .ndjson; - for standard input
    file: PathBuf,
    /// The form of the file, if its name does not tell
    #[arg(long, value_enum)]
    format: Option<FileFormat>,
    /// Columns to leave out, separated by commas
    #[arg(long, value_delimiter = ',')]
    ignore: Vec<String>,
    /// Where rejected rows go, with their lines and the reasons: not the file that is read (default: its name with .rejected;
    /// import.rejected for standard input)
    #[arg(long)]
    rejected: Option<PathBuf>,
    /// Say what would happen, and change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    engine: EngineConfig,
}

pub(super) async fn run(options: ImportArgs) -> anyhow::Result<ExitCode> {
    let (stopping, mut counts) = (stop_signal()?, ImportCounts::default());
    if options.dry_run {
        let preview = App::preview(&options.engine, Clock::system()).await?;
        Box::pin(import(&options, &ImportStep::Preview(&preview), || {}, &stopping, &mut counts)).await?;
        return Ok(status(counts.rejected == 0));
    }
    let app = App::open(&options.engine, &ProjectorConfig::default(), Clock::system()).await?.until(stopping);
    app.project();
    app.watch(true);
    let (clock, file) = (app.engine.clock().clone(), options.file.to_string_lossy());
    let mut recorder = ImportRecorder::new(app.operator_log.clone(), clock, options.kind, &file);
    let step = ImportStep::Put(&app.engine, Call::new(&recorder.request_id, None));
    // Boxed: the future is large.
    let importing = Box::pin(import(&options, &step, || recorder.begin(), &app.stopping, &mut counts));
    let imported = importing.await;
    let is_projected = match imported {
        Ok(()) => app.project_decided(DRAIN_TIMEOUT).await,
        Err(_) => false,
    };
    recorder.end(&counts, &imported, app.stopping.is_cancelled(), is_projected);
    match (imported, is_projected) {
        (Ok(()), true) => {
            app.stop(None).await;
            Ok(status(counts.rejected == 0))
        }
        (Ok(()), false) => {
            app.stop_within(LOG_TIMEOUT, false).await;
            tracing::error!("PostgreSQL does not have every row yet: a running service carries the rest to it");
            Ok(ExitCode::from(NOT_PROJECTED))
        }
        (Err(error), _) => {
            app.stop(Some(DRAIN_TIMEOUT)).await;
            Err(error)
        }
    }
}

async fn import(
    options: &ImportArgs,
    step: &ImportStep<'_>,
    begin: impl FnOnce(),
    stopping: &CancellationToken,
    counts: &mut ImportCounts,
) -> anyhow::Result<()> {
    let began = Instant::now();
    let read = Arc::new(AtomicU64::new(0));
    let input = metadata_of(&options.file).ok();
    let size = input.as_ref().filter(|input| input.is_file()).map(std::fs::Metadata::len);
    let progress = ImportProgress::new(size, read.clone());
    let (checked, mut chunks) = mpsc::channel(CHUNKS_AT_ONCE);
    let (opened, header) = oneshot::channel();
    let reading = {
        let reader = Reading {
            kind: options.kind,
            file: options.file.clone(),
            format: format_of(options),
            ignored: options.ignore.clone(),
            zone: options.engine.shop.time_zone,
            read,
        };
        let stopping = stopping.clone();
        tokio::task::spawn_blocking(move || reader.run(opened, &checked, &stopping))
    };
    // The input may be silent.
    let header = tokio::select! {
        header = header => header.ok(),
        () = stopping.cancelled() => None,
    };
    if let Some(header) = header {
        let mut rejections = Rejections::open(rejected_path(options), format_of(options), header, input.as_ref())?;
        begin();
        let ahead = stream::poll_fn(|context| chunks.poll_recv(context))
            .take_until(stopping.cancelled())
            .map(async |chunk: Vec<CheckedRow>| step.run(chunk).await)
            .buffered(CHUNKS_AT_ONCE);
        let mut ahead = std::pin::pin!(ahead);
        while let Some(chunk) = ahead.next().await {
            for (line, cells, outcome) in chunk? {
                match outcome {
                    Ok(outcome) => counts.add(outcome),
                    Err(reason) => {
                        counts.rejected += 1;
                        rejections.add(line, &reason, &cells)?;
                    }
                }
            }
            progress.show(counts);
        }
        progress.end();
        let would = if options.dry_run { "This would happen: " } else { "" };
        print(&format!("{would}{counts}, in {:.1} s.", began.elapsed().as_secs_f64()))?;
        if let Some(path) = rejections.finish()? {
            print(&format!("The rejected rows are in {}.", path.display()))?;
        }
    }
    // Its thread may wait for the input for ever.
    anyhow::ensure!(!stopping.is_cancelled(), "stopped: run it again, it goes on where it was");
    reading.await?
}

fn format_of(options: &ImportArgs) -> FileFormat {
    let name = options.file.to_string_lossy();
    let is_lines = name.ends_with(".jsonl") || name.ends_with(".ndjson");
    options.format.unwrap_or(if is_lines { FileFormat::Jsonl } else { FileFormat::Csv })
}

fn rejected_path(options: &ImportArgs) -> PathBuf {
    options.rejected.clone().unwrap_or_else(|| match is_standard_input(&options.file) || is_of_system(&options.file) {
        true => PathBuf::from("import.rejected"),
        false => {
            let mut name = options.file.clone().into_os_string();
            name.push(".rejected");
            PathBuf::from(name)
        }
    })
}
