//! The file of rejected rows.

use std::{fs::File, path::PathBuf};

use anyhow::Context;

use super::source::FileFormat;

/// Writes each rejected row with its line and the reason: of CSV before its columns, so that the file can be mended and imported
/// with `--ignore line,reason`; of JSON Lines as an object with the line as text.
pub(super) struct Rejections {
    path: PathBuf,
    format: FileFormat,
    header: Vec<String>,
    file: Option<csv::Writer<File>>,
}

impl Rejections {
    /// Removes the file of an earlier import.
    ///
    /// # Errors
    /// It can't be removed.
    pub fn new(path: PathBuf, format: FileFormat, header: Vec<String>) -> anyhow::Result<Self> {
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("{} can't be removed", path.display()))
            }
            _ => Ok(Rejections { path, format, header, file: None }),
        }
    }

    /// # Errors
    /// The file can't be written.
    pub fn add(&mut self, line: u64, reason: &str, cells: &[String]) -> anyhow::Result<()> {
        let why = || format!("{} can't be written", self.path.display());
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                let quoting = match self.format {
                    FileFormat::Csv => csv::QuoteStyle::Necessary,
                    FileFormat::Jsonl => csv::QuoteStyle::Never,
                };
                let file = File::create(&self.path).with_context(why)?;
                let mut file = csv::WriterBuilder::new().flexible(true).quote_style(quoting).from_writer(file);
                if self.format == FileFormat::Csv {
                    let names = ["line", "reason"].into_iter().chain(self.header.iter().map(String::as_str));
                    file.write_record(names).with_context(why)?;
                }
                self.file.insert(file)
            }
        };
        let line_text = line.to_string();
        let written = match self.format {
            FileFormat::Csv => {
                file.write_record([line_text.as_str(), reason].into_iter().chain(cells.iter().map(String::as_str)))
            }
            FileFormat::Jsonl => {
                let row = cells.first().map(String::as_str).unwrap_or_default();
                file.write_record([serde_json::json!({ "line": line, "reason": reason, "row": row }).to_string()])
            }
        };
        written.with_context(|| format!("{} can't be written", self.path.display()))
    }

    /// The file, if a row was rejected.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn finish(self) -> anyhow::Result<Option<PathBuf>> {
        let Some(mut file) = self.file else { return Ok(None) };
        file.flush().with_context(|| format!("{} can't be written", self.path.display()))?;
        Ok(Some(self.path))
    }
}
