//! The file of rejected rows.

use std::{
    fs::{File, Metadata},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};

use super::source::FileFormat;

/// Whether a path is one of the system's, such as `/dev/null` or `/dev/fd/63`: what it leads to is of others. `/dev/shm` has files of
/// everybody's.
pub(super) fn is_of_system(path: &Path) -> bool {
    (path.starts_with("/dev") && !path.starts_with("/dev/shm")) || path.starts_with("/proc")
}

/// Writes each rejected row with its line and the reason: of CSV before its columns, so that the file can be mended and imported
/// with `--ignore line,reason`; of JSON Lines as an object with the line as text.
pub(super) struct Rejections {
    path: PathBuf,
    format: FileFormat,
    header: Vec<String>,
    file: csv::Writer<File>,
    /// Whether it has a row.
    is_used: bool,
    /// Whether it is emptied, and goes where it has no row: a device or a pipe stays.
    is_own: bool,
}

impl Rejections {
    /// Opens the file, and empties that of an earlier import. A device or a pipe is opened as it is.
    ///
    /// # Errors
    /// It can't be written, or is the `input` itself.
    pub fn open(
        path: PathBuf,
        format: FileFormat,
        header: Vec<String>,
        input: Option<&Metadata>,
    ) -> anyhow::Result<Self> {
        let why = || format!("{} can't be written", path.display());
        // Not emptied before it is known which file it is.
        let file = File::options().append(true).create(true).open(&path).with_context(why)?;
        let opened = file.metadata().with_context(why)?;
        let is_input = input.is_some_and(|input| (input.dev(), input.ino()) == (opened.dev(), opened.ino()));
        ensure!(
            !(is_input && opened.is_file()),
            "{} is the file that is read: pass another one as --rejected",
            path.display()
        );
        let is_own = opened.is_file() && !is_of_system(&path);
        if is_own {
            file.set_len(0).with_context(why)?;
        }
        let quoting = match format {
            FileFormat::Csv => csv::QuoteStyle::Necessary,
            FileFormat::Jsonl => csv::QuoteStyle::Never,
        };
        let file = csv::WriterBuilder::new().flexible(true).quote_style(quoting).from_writer(file);
        Ok(Rejections { path, format, header, file, is_used: false, is_own })
    }

    /// # Errors
    /// The file can't be written.
    pub fn add(&mut self, line: u64, reason: &str, cells: &[String]) -> anyhow::Result<()> {
        let file = &mut self.file;
        let is_first = !std::mem::replace(&mut self.is_used, true);
        let line_text = line.to_string();
        let written = match self.format {
            FileFormat::Csv => {
                let names = ["line", "reason"].into_iter().chain(self.header.iter().map(String::as_str));
                let named = if is_first { file.write_record(names) } else { Ok(()) };
                let row = [line_text.as_str(), reason].into_iter().chain(cells.iter().map(String::as_str));
                named.and_then(|()| file.write_record(row))
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
    pub fn finish(mut self) -> anyhow::Result<Option<PathBuf>> {
        self.file.flush().with_context(|| format!("{} can't be written", self.path.display()))?;
        Ok(self.is_used.then(|| self.path.clone()))
    }
}

/// No file stays without a row.
impl Drop for Rejections {
    fn drop(&mut self) {
        if self.is_own && !self.is_used {
            // One that can't be removed stays empty.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;
    use crate::dev::ScratchDir;

    fn open(path: &Path, input: Option<&Path>) -> anyhow::Result<Rejections> {
        let input = input.map(|input| fs::metadata(input).unwrap());
        Rejections::open(path.to_owned(), FileFormat::Csv, vec!["id".to_owned()], input.as_ref())
    }

    #[test]
    fn rejections_refused_where_the_input_is() {
        let dir = ScratchDir::new().unwrap();
        let [input, other, link] = ["input", "other", "link"].map(|name| dir.path().join(name));
        fs::write(&input, "id\n1\n").unwrap();
        fs::hard_link(&input, &link).unwrap();
        for same in [&input, &link] {
            let refused = open(same, Some(&input)).err().unwrap().to_string();
            assert!(refused.contains("is the file that is read"), "{refused}");
        }
        assert_eq!(fs::read_to_string(&input).unwrap(), "id\n1\n");
        assert!(open(&dir.path().join("nowhere").join("x"), Some(&input)).is_err());
        assert!(open(dir.path(), Some(&input)).is_err());
        let mut rejections = open(&other, Some(&input)).unwrap();
        rejections.add(2, "why", &["1".to_owned()]).unwrap();
        assert_eq!(rejections.finish().unwrap().as_deref(), Some(other.as_path()));
        assert_eq!(fs::read_to_string(&other).unwrap(), "line,reason,id\n2,why,1\n");
        // Without a rejected row that of an earlier import goes.
        assert_eq!(open(&other, Some(&input)).unwrap().finish().unwrap(), None);
        assert!(!other.exists());
    }

    #[test]
    fn paths_of_the_system_told_from_files() {
        let found = |path: &str| is_of_system(Path::new(path));
        assert!(found("/dev/null") && found("/dev/fd/63") && found("/proc/self/fd/0"));
        assert!(!found("/dev/shm/users.csv") && !found("/device/users.csv") && !found("users.csv"));
    }

    #[test]
    fn rejections_of_a_pipe_leave_it() {
        let dir = ScratchDir::new().unwrap();
        let pipe = dir.path().join("pipe");
        mknodat(CWD, &pipe, FileType::Fifo, Mode::RWXU, 0).unwrap();
        // Both ends, so that it opens at once.
        let _ends = File::options().read(true).write(true).open(&pipe).unwrap();
        assert_eq!(open(&pipe, None).unwrap().finish().unwrap(), None);
        assert!(!fs::metadata(&pipe).unwrap().is_file());
    }
}
