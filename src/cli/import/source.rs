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
use serde::{Deserialize, Deserializer, de};
use serde_json::{Map, Value, value::RawValue};

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

/// The fields of an object as they are written, one that is there twice included.
struct WrittenFields<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for WrittenFields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FieldsVisitor;

        impl<'de> de::Visitor<'de> for FieldsVisitor {
            type Value = WrittenFields<'de>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<WrittenFields<'de>, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(WrittenFields(fields))
            }
        }

        deserializer.deserialize_map(FieldsVisitor)
    }
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
    /// The bytes read.
    total: Arc<AtomicU64>,
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
        let counted = CountedBytes { inner: file, left: left.clone(), last: last.clone(), read: read.clone() };
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
        let mut source = Source { reader, left, last, total: read, pending: None, fault: None, header };
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
                // The reader skips blank lines before the row: it is counted from its end.
                let (end, begin) = (csv.position(), record.position().map_or(0, csv::Position::line));
                let is_cut = self.last.get() != b'\n' && end.byte() == self.total.load(Ordering::Relaxed);
                let breaks = record.as_slice().iter().filter(|byte| **byte == b'\n').count() + usize::from(!is_cut);
                let line = begin.max(end.line().saturating_sub(breaks as u64));
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
                let fields = match serde_json::from_slice::<WrittenFields<'_>>(row) {
                    Ok(WrittenFields(fields)) => columns.named(&fields, ignored),
                    Err(error) => Err(format!("the line is no JSON object: {error}")),
                };
                return Ok(Some(SourceRow { line: *line, cells, fields }));
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::columns::{PRODUCTS, USERS},
        *,
    };

    /// The rows: line, and fields or reason.
    fn rows(format: FileFormat, columns: &'static Columns, text: &str) -> Vec<(u64, Result<Value, String>)> {
        let file = Box::new(io::Cursor::new(text.to_owned()));
        let mut source = Source::open(file, format, columns, &[], Arc::default()).unwrap();
        let mut rows = Vec::new();
        while let Some(row) = source.next(&[]).unwrap() {
            rows.push((row.line, row.fields.map(Value::Object)));
        }
        rows
    }

    #[test]
    fn lines_counted_after_blank_lines_and_line_breaks() {
        let lines = |text: &str| -> Vec<u64> {
            rows(FileFormat::Csv, &USERS, text).into_iter().map(|(line, _)| line).collect()
        };
        assert_eq!(lines("id,name\n1,a\n\n\n2,b\n3,c\n"), [2, 5, 6]);
        assert_eq!(lines("\u{feff}id,name\r\n\r\n1,a\r\n\r\n2,\"b\r\nc\"\r\n\r\n3,c\r\n"), [3, 5, 8]);
        assert_eq!(lines("\nid,name\n\n\n1,a"), [5]);
        assert_eq!(lines("id,name\n1,\"a\nb\nc\"\n\n2,\"a\nb\""), [2, 6]);
    }

    #[test]
    fn json_line_refused_when_field_twice_or_rounded() {
        let fields = |line: &str| rows(FileFormat::Jsonl, &USERS, &format!("{line}\n")).remove(0).1;
        for twice in [
            r#"{"id":1,"name":"a","balance":5,"balance":7}"#,
            r#"{"id":1,"name":"a","balance":null,"balance":7}"#,
            r#"{"id":1,"userId":2,"name":"a"}"#,
        ] {
            assert!(fields(twice).unwrap_err().contains("there twice"), "{twice}");
        }
        let rounded = fields(r#"{"id":1,"name":"a","balance":12000.000000000000001}"#).unwrap();
        assert_eq!(rounded["balance"], "12000.000000000000001");
        assert_eq!(fields(r#"{"id":1,"name":"a","balance":12000.00}"#).unwrap()["balance"], 12_000.0);
        assert!(fields(r#"{"id":1e400,"name":"a"}"#).unwrap_err().starts_with("userId: "));
        assert!(fields("[1]").unwrap_err().contains("no JSON object"));
    }

    #[test]
    fn term_left_out_stays_and_empty_one_goes() {
        let csv = "id,name,price,stock,category,limitPerUser,opensAt\n1,a,5,1,TOP,,\\N\n";
        let fields = rows(FileFormat::Csv, &PRODUCTS, csv).remove(0).1.unwrap();
        assert!(fields["limitPerUser"].is_null() && fields["opensAt"].is_null(), "{fields}");
        assert_eq!(fields.as_object().unwrap().len(), 7, "{fields}");
        let json = "{\"id\":1,\"limitGroup\":null,\"name\":null}\n";
        let fields = rows(FileFormat::Jsonl, &PRODUCTS, json).remove(0).1.unwrap();
        assert_eq!(fields, serde_json::json!({ "productId": 1, "limitGroup": null }));
    }
}
