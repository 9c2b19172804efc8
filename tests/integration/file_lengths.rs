//! A file has one subject, and so few lines that it is read in one sitting.

use std::fs;

use crate::support::repository::{files_below, root};

const MAX_LINES: usize = 500;

#[test]
fn files_at_most_500_lines_long() {
    let folders = [("src", ".rs"), ("tests", ".rs"), ("benches", ".rs"), ("lua", ".lua")];
    let (mut count, mut long) = (0, Vec::new());
    for path in folders.iter().flat_map(|(folder, extension)| files_below(folder, extension)) {
        count += 1;
        let lines = fs::read_to_string(&path).unwrap().lines().count();
        if lines > MAX_LINES {
            long.push(format!("{}: {lines} lines", path.strip_prefix(root()).unwrap().display()));
        }
    }
    assert!(long.is_empty(), "files to divide by subject: {long:#?}");
    assert!(count > 300, "{count} files");
}
