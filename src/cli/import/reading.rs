//! The reading of a file, on a thread of its own.

use std::{
    fs::File,
    io::Read,
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicU64},
};

use anyhow::Context;
use roaring::RoaringTreemap;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::{
    rows::{Row, RowKind},
    source::{FileFormat, Source},
};

/// The most rows of a step, and the bytes, about, of which it has no more than another row's.
const CHUNK: usize = 2000;
const CHUNK_BYTES: usize = 1 << 20;

/// A row, or why it can't be taken, with what a rejection shows of it.
pub(super) struct CheckedRow {
    pub line: u64,
    pub cells: Vec<String>,
    pub row: Result<Row, String>,
}

impl CheckedRow {
    /// The bytes of memory, about.
    fn size(&self) -> usize {
        self.cells.iter().map(|cell| cell.len() + size_of::<String>()).sum::<usize>() + size_of::<Self>()
    }
}

/// What is read, and how.
pub(super) struct Reading {
    pub kind: RowKind,
    pub file: PathBuf,
    pub format: FileFormat,
    pub ignored: Vec<String>,
    pub zone: chrono_tz::Tz,
    /// Counts the bytes.
    pub read: Arc<AtomicU64>,
}

impl Reading {
    /// Reads until the end, or until it is stopped. `opened` gets the header, and `checked` the rows in steps.
    ///
    /// # Errors
    /// The file can't be read to its end.
    pub fn run(
        self,
        opened: oneshot::Sender<Vec<String>>,
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
        let (mut seen, mut chunk, mut bytes) = (RoaringTreemap::new(), Vec::new(), 0);
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
            let row = CheckedRow { line: row.line, cells: row.cells, row: checked_row };
            bytes += row.size();
            chunk.push(row);
            if chunk.len() == CHUNK || bytes >= CHUNK_BYTES {
                bytes = 0;
                if stopping.is_cancelled() || checked.blocking_send(std::mem::take(&mut chunk)).is_err() {
                    return Ok(());
                }
            }
        };
        // An import that has ended says why.
        let _ = checked.blocking_send(chunk);
        fault.map_or(Ok(()), Err)
    }
}

pub(super) fn is_standard_input(file: &Path) -> bool {
    file == Path::new("-")
}

/// What the system knows of the file.
///
/// # Errors
/// There is none.
pub(super) fn metadata_of(file: &Path) -> std::io::Result<std::fs::Metadata> {
    match is_standard_input(file) {
        true => File::from(std::io::stdin().as_fd().try_clone_to_owned()?).metadata(),
        false => std::fs::metadata(file),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dev::ScratchDir;

    #[test]
    fn step_ends_at_its_rows_or_bytes() {
        let dir = ScratchDir::new().unwrap();
        let file = dir.path().join("users.csv");
        let steps = |rows: i64, ignored: usize| -> Vec<usize> {
            let wide = "x".repeat(ignored);
            let rows: String = (1..=rows).map(|id| format!("{id},a,{wide}\n")).collect();
            std::fs::write(&file, format!("id,name,wide\n{rows}")).unwrap();
            let (opened, _header) = oneshot::channel();
            let (checked, mut chunks) = mpsc::channel(1000);
            let reading = Reading {
                kind: RowKind::Users,
                file: file.clone(),
                format: FileFormat::Csv,
                ignored: vec!["wide".to_owned()],
                zone: chrono_tz::Asia::Seoul,
                read: Arc::default(),
            };
            reading.run(opened, &checked, &CancellationToken::new()).unwrap();
            drop(checked);
            std::iter::from_fn(|| chunks.blocking_recv()).map(|chunk| chunk.len()).collect()
        };
        assert_eq!(steps(4_500, 0), [CHUNK, CHUNK, 500]);
        assert_eq!(steps(40, 60_000), [18, 18, 4]);
    }
}
