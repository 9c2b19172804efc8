//! Every test that a page cites exists, every promise of the README cites a test, and every message that a page quotes
//! is in the program's sources.

use std::{fs, path::PathBuf};

use super::{Page, page, pages, spans_of};
use crate::{support::repository::files_below, test_names::all_tests};

/// Whether a test's path contains the cited segments, adjacent and in order.
fn names(test: &str, cited: &str) -> bool {
    format!("::{test}::").contains(&format!("::{cited}::"))
}

/// The tests in the page's `(*tests: …*)`.
fn cited(page: &Page) -> Vec<String> {
    let prose = page.prose();
    let mut cited = Vec::new();
    for marker in ["*test: ", "*tests: ", "*Test: ", "*Tests: "] {
        for rest in prose.split(marker).skip(1) {
            let citation = rest.split('*').next().unwrap();
            cited.extend(spans_of(citation).into_iter().filter(|span| !span.starts_with("make ")));
        }
    }
    cited
}

#[test]
fn every_cited_test_exists() {
    let (tests, mut count) = (all_tests(), 0);
    for page in pages() {
        for cited in cited(&page) {
            assert!(tests.iter().any(|test| names(test, &cited)), "{}: no test {cited}", page.name());
            count += 1;
        }
    }
    assert!(count > 20, "{count} citations");
}

#[test]
fn every_promise_cites_a_test() {
    let (tests, readme) = (all_tests(), page("README.md"));
    let rows = readme.section("Promises").lines().filter(|line| line.starts_with("| **"));
    let mut count = 0;
    for row in rows {
        let cited = spans_of(row.trim_end_matches(" |").rsplit(" | ").next().unwrap());
        assert!(!cited.is_empty(), "no test: {row}");
        for cited in cited {
            assert!(
                tests.iter().any(|test| test == &cited || test.ends_with(&format!("::{cited}"))),
                "no test {cited}"
            );
        }
        count += 1;
    }
    assert!(count >= 8, "{count} promises");
}

/// The sources of the program, with white space collapsed.
fn sources() -> Vec<String> {
    let flat = |path: PathBuf| {
        // A backslash at the end of a line continues a string literal.
        let text = fs::read_to_string(path).unwrap().replace("\\\n", " ");
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    files_below("src", ".rs").into_iter().map(flat).collect()
}

/// Inline code of three or more words is a message, unless it begins with a Redis command.
fn is_message(span: &str) -> bool {
    let is_word = |word: &str| word.trim_end_matches(',').chars().all(|c| c.is_alphabetic() || c == '\'');
    let first = span.split(' ').next().unwrap_or_default();
    let is_command = first.len() > 1 && first.chars().all(char::is_uppercase);
    span.split(' ').count() >= 3 && span.split(' ').all(is_word) && !is_command
}

#[test]
fn every_quoted_message_is_in_the_source() {
    let (texts, mut count) = (sources(), 0);
    for page in ["docs/operations.md", "docs/running.md"].map(page) {
        for message in page.spans().into_iter().filter(|span| is_message(span)) {
            assert!(texts.iter().any(|text| text.contains(&message)), "{}: no message {message:?}", page.name());
            count += 1;
        }
    }
    assert!(count > 10, "{count} messages");
}
