//! The rows of a file, CSV with a header or JSON Lines, one at a time.
//!
//! Memory is counted: a row that is too long ends the reading, because nothing tells where the next one begins. The last row counts
//! only if a line break ends it, because a file that was cut may end anywhere.

use std::{
    cell::Cell,
    io::{self, BufRead, BufReader, Read},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::Context;
use serde_json::{Map, Value};

use super::columns::{Columns, Header};

/// The longest row in bytes.
const MAX_ROW_LEN: u64 = 1 << 20;
/// The bytes that are read at once, which may be those of later rows.
const BUFFER_LEN: usize = 1 << 16;
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
const CUT: &str = "the file ends within this row, or without a line break after it";

/// The form of a file.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FileFormat {
    /// With a header
    Csv,
    /// An object per line
    Jsonl,
}

/// One row: its fields by their names in the API, or why it has none.
pub(super) struct SourceRow {
    /// From 1.
    pub line: u64,
    /// As the file has them; of JSON Lines, the line.
    pub cells: Vec<String>,
    pub fields: Result<Map<String, Value>, String>,
}

/// The bytes of a file, counted.
struct CountedBytes<R> {
    inner: R,
    /// What may be read before the next row begins.
    left: Rc<Cell<u64>>,
    last: Rc<Cell<u8>>,
    read: Arc<AtomicU64>,
}

impl<R: Read> Read for CountedBytes<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left.get() == 0 {
            return Err(io::Error::other(format!(
                "a row has more than {MAX_ROW_LEN} bytes: is a quote opened that nothing closes?"
            )));
        }
        let room = buffer.len().min(usize::try_from(self.left.get()).unwrap_or(usize::MAX));
        let length = self.inner.read(buffer.get_mut(..room).unwrap_or_default())?;
        if let Some(last) = length.checked_sub(1).and_then(|last| buffer.get(last)) {
            self.last.set(*last);
        }
        self.left.set(self.left.get() - length as u64);
        self.read.fetch_add(length as u64, Ordering::Relaxed);
        Ok(length)
    }
}

enum RowReader<R> {
    Csv { csv: csv::Reader<R>, header: Header },
    Jsonl { lines: BufReader<R>, columns: &'static Columns, line: u64 },
}

/// The rows of a file.
pub(super) struct Source {
    reader: RowReader<CountedBytes<Box<dyn Read>>>,
    left: Rc<Cell<u64>>,
    last: Rc<Cell<u8>>,
    /// Read, but not handed out: the next one shows whether it is the last.
    pending: Option<SourceRow>,
    /// Why the rows after that one can't be read.
    fault: Option<anyhow::Error>,
    /// The names of the columns as the file has them; empty of JSON Lines.
    pub header: Vec<String>,
}

impl Source {
    /// Begins to read. `read` counts the bytes.
    ///
    /// # Errors
    /// The header does not have the columns that it must have, or has one that is unknown and not `ignored`.
    pub fn open(
        file: Box<dyn Read>,
        format: FileFormat,
        columns: &'static Columns,
        ignored: &[String],
        read: Arc<AtomicU64>,
    ) -> anyhow::Result<Self> {
        let (left, last) = (Rc::new(Cell::new(MAX_ROW_LEN)), Rc::new(Cell::new(b'\n')));
        let counted = CountedBytes { inner: file, left: left.clone(), last: last.clone(), read };
        let (reader, header) = match format {
            FileFormat::Csv => {
                let mut csv = csv::ReaderBuilder::new()
                    .flexible(true)
                    .terminator(csv::Terminator::Any(b'\n'))
                    .buffer_capacity(BUFFER_LEN)
                    .from_reader(counted);
                let names = csv.byte_headers().context("the header can't be read")?;
                let names: Vec<String> =
                    names.iter().map(|name| String::from_utf8_lossy(name).trim().to_owned()).collect();
                let header = columns.header(&names, ignored)?;
                (RowReader::Csv { csv, header }, names)
            }
            FileFormat::Jsonl => {
                let lines = BufReader::with_capacity(BUFFER_LEN, counted);
                (RowReader::Jsonl { lines, columns, line: 0 }, Vec::new())
            }
        };
        let mut source = Source { reader, left, last, pending: None, fault: None, header };
        source.pending = source.read(ignored)?;
        Ok(source)
    }

    /// The next row; `None` after the last.
    ///
    /// # Errors
    /// The file can't be read, or a row is too long.
    pub fn next(&mut self, ignored: &[String]) -> anyhow::Result<Option<SourceRow>> {
        let Some(mut row) = self.pending.take() else { return self.fault.take().map_or(Ok(None), Err) };
        match self.read(ignored) {
            Ok(Some(next)) => self.pending = Some(next),
            Ok(None) if self.last.get() != b'\n' => row.fields = Err(CUT.to_owned()),
            Ok(None) => {}
            Err(fault) => self.fault = Some(fault.context(format!("after line {}", row.line))),
        }
        Ok(Some(row))
    }

    fn read(&mut self, ignored: &[String]) -> anyhow::Result<Option<SourceRow>> {
        self.left.set(MAX_ROW_LEN + BUFFER_LEN as u64);
        match &mut self.reader {
            RowReader::Csv { csv, header } => loop {
                let mut record = csv::ByteRecord::new();
                if !csv.read_byte_record(&mut record)? {
                    return Ok(None);
                }
                let line = record.position().map_or(0, csv::Position::line);
                let mut cells: Vec<&[u8]> = record.iter().collect();
                // The reader ends a row at the line feed alone, so that it counts lines.
                if let Some(last) = cells.pop() {
                    cells.push(last.strip_suffix(b"\r").unwrap_or(last));
                }
                if cells.len() == 1 && cells.first().is_some_and(|cell| cell.is_empty()) {
                    continue;
                }
                let texts = cells.iter().map(|cell| String::from_utf8_lossy(cell).into_owned()).collect();
                return Ok(Some(SourceRow { line, cells: texts, fields: header.fields(&cells) }));
            },
            RowReader::Jsonl { lines, columns, line } => loop {
                let mut bytes = Vec::new();
                if lines.read_until(b'\n', &mut bytes)? == 0 {
                    return Ok(None);
                }
                *line += 1;
                let mut row = bytes.as_slice();
                if *line == 1 {
                    row = row.strip_prefix(BYTE_ORDER_MARK).unwrap_or(row);
                }
                let row = row.trim_ascii();
                if row.is_empty() {
                    continue;
                }
                let cells = vec![String::from_utf8_lossy(row).into_owned()];
                let fields = match serde_json::from_slice(row) {
                    Ok(Value::Object(object)) => columns.named(object, ignored),
                    Ok(_) => Err("the line is no JSON object".to_owned()),
                    Err(error) => Err(format!("the line is no JSON object: {error}")),
                };
                return Ok(Some(SourceRow { line: *line, cells, fields }));
            },
        }
    }
}
