//! `firstcome import`: users, products and campaigns from a file, under the ids that they have there.
//!
//! Works on the stores through the engine, as a server does, and not over HTTP: the same scripts decide, one at a time in each
//! partition, so that servers beside it see each record wholly or not at all, and sell meanwhile. It carries its decisions to
//! PostgreSQL itself, and ends when PostgreSQL has them. The operator log has its beginning and its end.

mod columns;
mod log;
mod rejected;
mod rows;
mod source;

use std::{
    fs::File,
    io::{IsTerminal, Read},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context;
use clap::Args;
use futures_util::{StreamExt, stream};
use indicatif::{HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};
use roaring::RoaringTreemap;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::{
    log::{ImportCounts, ImportRecorder},
    rejected::Rejections,
    rows::{Row, RowKind},
    source::{FileFormat, Source},
};
use super::{print, status, stop::stop_signal};
use crate::{
    app::App,
    config::{EngineConfig, ProjectorConfig},
    engine::{Engine, PreviewedGroups},
    model::{Call, Clock, Error, NewUser, PutOutcome, UserId},
};

/// The rows of a step.
const CHUNK: usize = 2000;
/// The steps at once; as many more are read ahead.
const CHUNKS_AT_ONCE: usize = 4;
/// The products, or campaigns, of a step at once.
const ROWS_AT_ONCE: usize = 32;
/// The pause before a step is repeated while a store is unavailable or far behind, and how often it is.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);
const MAX_RETRIES: u32 = 240;
/// The interval of the lines of progress where standard error is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);
/// The time for PostgreSQL to get the last decisions.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(600);

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
    /// Where rejected rows go, with their lines and the reasons (default: the file's name with .rejected; import.rejected for
    /// standard input)
    #[arg(long)]
    rejected: Option<PathBuf>,
    /// Say what would happen, and change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    engine: EngineConfig,
}

/// A row, or why it can't be taken, with what a rejection shows of it.
struct CheckedRow {
    line: u64,
    cells: Vec<String>,
    row: Result<Row, String>,
}

pub(super) async fn run(options: ImportArgs) -> anyhow::Result<ExitCode> {
    let stop = stop_signal()?;
    let app = App::open(&options.engine, &ProjectorConfig::default(), Clock::system()).await?.until(stop);
    if !options.dry_run {
        app.project();
        app.watch(true);
    }
    let log = (!options.dry_run).then(|| app.operator_log.clone());
    let (clock, file) = (app.engine.clock().clone(), options.file.to_string_lossy());
    let mut recorder = ImportRecorder::new(log, clock, options.kind, &file);
    let mut counts = ImportCounts::default();
    // Boxed: the future is large.
    let imported = Box::pin(import(&options, &app, &mut recorder, &mut counts)).await;
    recorder.end(&counts, &imported, app.stopping.is_cancelled());
    let projected = app.stop((!options.dry_run).then_some(DRAIN_TIMEOUT)).await;
    imported?;
    anyhow::ensure!(projected, "PostgreSQL does not have every row yet: a running service carries the rest to it");
    Ok(status(counts.rejected == 0))
}

async fn import(
    options: &ImportArgs,
    app: &App,
    recorder: &mut ImportRecorder,
    counts: &mut ImportCounts,
) -> anyhow::Result<()> {
    let began = Instant::now();
    let read = Arc::new(AtomicU64::new(0));
    let progress = ImportProgress::new(size_of(&options.file), read.clone());
    let (checked, mut chunks) = mpsc::channel(CHUNKS_AT_ONCE);
    let (opened, header) = tokio::sync::oneshot::channel();
    let reading = {
        let (reader, stopping) = (Reading::new(options, app.engine.zone(), read), app.stopping.clone());
        tokio::task::spawn_blocking(move || reader.run(opened, &checked, &stopping))
    };
    if let Ok(header) = header.await {
        recorder.begin();
        let step = ImportStep {
            engine: &app.engine,
            call: Call::new(&recorder.request_id, None),
            dry_run: options.dry_run,
            groups: PreviewedGroups::default(),
        };
        let step = &step;
        let mut rejections = Rejections::new(rejected_path(options), format_of(options), header)?;
        let ahead = stream::poll_fn(|context| chunks.poll_recv(context))
            .map(async |chunk: Vec<CheckedRow>| step.put(chunk).await)
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
    reading.await??;
    anyhow::ensure!(!app.stopping.is_cancelled(), "stopped: run it again, it goes on where it was");
    Ok(())
}

/// The reading of a file, on a thread of its own.
struct Reading {
    kind: RowKind,
    file: PathBuf,
    format: FileFormat,
    ignored: Vec<String>,
    zone: chrono_tz::Tz,
    read: Arc<AtomicU64>,
}

impl Reading {
    fn new(options: &ImportArgs, zone: chrono_tz::Tz, read: Arc<AtomicU64>) -> Self {
        let ImportArgs { kind, file, ignore, .. } = options;
        Reading { kind: *kind, file: file.clone(), format: format_of(options), ignored: ignore.clone(), zone, read }
    }

    fn run(
        self,
        opened: tokio::sync::oneshot::Sender<Vec<String>>,
        checked: &mpsc::Sender<Vec<CheckedRow>>,
        stopping: &CancellationToken,
    ) -> anyhow::Result<()> {
        let file: Box<dyn Read> = match is_standard_input(&self.file) {
            true => Box::new(std::io::stdin().lock()),
            false => {
                Box::new(File::open(&self.file).with_context(|| format!("{} can't be read", self.file.display()))?)
            }
        };
        let mut source = Source::open(file, self.format, self.kind.columns(), &self.ignored, self.read.clone())?;
        // Nobody waits for it where the import has ended.
        let _ = opened.send(source.header.clone());
        let (mut seen, mut chunk) = (RoaringTreemap::new(), Vec::with_capacity(CHUNK));
        let fault = loop {
            let row = match source.next(&self.ignored) {
                Ok(Some(row)) => row,
                Ok(None) => break None,
                Err(fault) => break Some(fault),
            };
            let checked_row = row.fields.and_then(|fields| self.kind.row(fields, self.zone)).and_then(|row| {
                let is_new = seen.insert(row.id().unsigned_abs());
                is_new.then_some(row).ok_or_else(|| "the id is on an earlier line, too".to_owned())
            });
            chunk.push(CheckedRow { line: row.line, cells: row.cells, row: checked_row });
            if chunk.len() == CHUNK {
                let full = std::mem::replace(&mut chunk, Vec::with_capacity(CHUNK));
                if stopping.is_cancelled() || checked.blocking_send(full).is_err() {
                    return Ok(());
                }
            }
        };
        // An import that has ended says why.
        let _ = checked.blocking_send(chunk);
        fault.map_or(Ok(()), Err)
    }
}

/// The line and the cells of a row, and what became of it.
type RowOutcome = (u64, Vec<String>, Result<PutOutcome, String>);

/// Brings the rows of a step in, or says what would happen.
struct ImportStep<'a> {
    engine: &'a Engine,
    call: Call,
    dry_run: bool,
    groups: PreviewedGroups,
}

impl ImportStep<'_> {
    async fn put(&self, chunk: Vec<CheckedRow>) -> anyhow::Result<Vec<RowOutcome>> {
        let (mut users, mut others, mut done) = (Vec::new(), Vec::new(), Vec::with_capacity(chunk.len()));
        let mut of_users = Vec::new();
        for CheckedRow { line, cells, row } in chunk {
            match row {
                Ok(Row::User(id, new)) => {
                    users.push((id, new));
                    of_users.push((line, cells));
                }
                Ok(other) => others.push((line, cells, other)),
                Err(reason) => done.push((line, cells, Err(reason))),
            }
        }
        let outcomes = self.put_users(&users).await?;
        done.extend(
            std::iter::zip(of_users, outcomes).map(|((line, cells), outcome)| {
                (line, cells, outcome.ok_or_else(|| "the user was forgotten".to_owned()))
            }),
        );
        let others = stream::iter(others).map(async |(line, cells, row)| {
            let outcome = with_retries(self.engine, async || self.put_one(&row).await).await;
            match outcome {
                Err(error) if error.leaves_outcome_unknown() => Err(error),
                outcome => Ok((line, cells, outcome.map_err(|error| error.to_string()))),
            }
        });
        let mut others = std::pin::pin!(others.buffer_unordered(ROWS_AT_ONCE));
        while let Some(other) = others.next().await {
            done.push(other?);
        }
        done.sort_unstable_by_key(|(line, ..)| *line);
        Ok(done)
    }

    /// What became of each user; `None` of one that was forgotten.
    async fn put_users(&self, users: &[(UserId, NewUser)]) -> Result<Vec<Option<PutOutcome>>, Error> {
        if self.dry_run {
            return self.engine.preview_users(users).await;
        }
        let put = with_retries(self.engine, async || self.engine.put_users(&self.call, users).await).await?;
        Ok(put.into_iter().map(|put| put.map(|(outcome, _)| outcome)).collect())
    }

    async fn put_one(&self, row: &Row) -> Result<PutOutcome, Error> {
        let (engine, call) = (self.engine, &self.call);
        match (row, self.dry_run) {
            (Row::User(..), _) => Err(Error::Internal(anyhow::anyhow!("users are put together"))),
            (Row::Product(id, new), true) => engine.preview_product(*id, new, &self.groups).await,
            (Row::Campaign(id, new), true) => engine.preview_campaign(*id, new).await,
            (Row::Product(id, new), false) => {
                engine.put_product(call, *id, new.clone()).await.map(|put| put.value.outcome)
            }
            (Row::Campaign(id, new), false) => {
                engine.put_campaign(call, *id, new.clone()).await.map(|put| put.value.outcome)
            }
        }
    }
}

/// Runs a step, which a repeat finds done, until the stores take it: they may be away for a while, or PostgreSQL far behind.
async fn with_retries<T>(engine: &Engine, step: impl AsyncFn() -> Result<T, Error>) -> Result<T, Error> {
    let mut retries = 0;
    loop {
        let done = match engine.admit_write() {
            Ok(_) => step().await,
            Err(error) => Err(error),
        };
        match done {
            Err(Error::Unavailable { reason, .. }) if retries < MAX_RETRIES => {
                if retries == 0 {
                    tracing::warn!(reason, "the import waits");
                }
                retries += 1;
                tokio::time::sleep(RETRY_INTERVAL).await;
            }
            done => return done,
        }
    }
}

fn is_standard_input(file: &Path) -> bool {
    file == Path::new("-")
}

fn size_of(file: &Path) -> Option<u64> {
    if is_standard_input(file) { None } else { std::fs::metadata(file).ok().map(|file| file.len()) }
}

fn format_of(options: &ImportArgs) -> FileFormat {
    let name = options.file.to_string_lossy();
    let is_lines = name.ends_with(".jsonl") || name.ends_with(".ndjson");
    options.format.unwrap_or(if is_lines { FileFormat::Jsonl } else { FileFormat::Csv })
}

fn rejected_path(options: &ImportArgs) -> PathBuf {
    options.rejected.clone().unwrap_or_else(|| match is_standard_input(&options.file) {
        true => PathBuf::from("import.rejected"),
        false => {
            let mut name = options.file.clone().into_os_string();
            name.push(".rejected");
            PathBuf::from(name)
        }
    })
}

/// The progress on standard error: a bar with the time that is left on a terminal, a line now and then elsewhere.
struct ImportProgress {
    bar: ProgressBar,
    read: Arc<AtomicU64>,
    is_terminal: bool,
    shown: std::cell::Cell<Instant>,
}

impl ImportProgress {
    fn new(size: Option<u64>, read: Arc<AtomicU64>) -> Self {
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

    fn show(&self, counts: &ImportCounts) {
        self.bar.set_position(self.read.load(Ordering::Relaxed));
        if self.is_terminal {
            self.bar.set_message(format!("{} rows", HumanCount(counts.all())));
        } else if self.shown.get().elapsed() >= LINE_INTERVAL {
            self.shown.set(Instant::now());
            let left = self.bar.length().map(|_| self.bar.eta().as_secs());
            tracing::info!(rows = counts.all(), rejected = counts.rejected, eta_seconds = left, "importing");
        }
    }

    fn end(&self) {
        self.bar.finish_and_clear();
    }
}
