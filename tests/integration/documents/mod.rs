//! Tests of the documentation: commands run, and the settings, tests, links and paths on every page exist.
//! (`operators::runbook` runs the commands of docs/operations.md.)

mod citations;
mod commands;
mod console;
mod keys;
mod links;
mod moving;
mod running;
mod settings;
mod sign_in;

use std::{
    fs,
    path::{Path, PathBuf},
};

pub use settings::documented_variables;

use crate::support::repository::root;

/// A page in Markdown.
struct Page {
    /// Relative to the repository.
    path: PathBuf,
    text: String,
}

/// A line of a page. `block` is the language of the fenced block that contains it.
struct Line<'a> {
    block: Option<&'a str>,
    text: &'a str,
}

fn page(path: impl Into<PathBuf>) -> Page {
    let path = path.into();
    let text = fs::read_to_string(root().join(&path)).unwrap_or_else(|why| panic!("{}: {why}", path.display()));
    Page { path, text }
}

/// The Markdown files of the repository's root, docs/, docs/clients/, benches/ and load-tests/.
fn pages() -> Vec<Page> {
    let mut pages = Vec::new();
    for dir in ["", "docs", "docs/clients", "benches", "load-tests"] {
        for entry in fs::read_dir(root().join(dir)).unwrap() {
            let name = entry.unwrap().file_name();
            if Path::new(&name).extension().is_some_and(|extension| extension == "md") {
                pages.push(page(Path::new(dir).join(name)));
            }
        }
    }
    assert!(pages.len() > 8, "too few pages");
    pages
}

impl Page {
    fn name(&self) -> String {
        self.path.display().to_string()
    }

    /// Every line except the fences.
    fn lines(&self) -> Vec<Line<'_>> {
        let (mut lines, mut block) = (Vec::new(), None);
        for text in self.text.lines() {
            match (block, text.trim_start().strip_prefix("```")) {
                (None, Some(language)) => block = Some(language.trim()),
                (Some(_), Some(_)) => block = None,
                _ => lines.push(Line { block, text }),
            }
        }
        assert!(block.is_none(), "{}: unclosed fenced block", self.name());
        lines
    }

    /// The text outside of fenced blocks.
    fn prose(&self) -> String {
        self.lines().iter().filter(|line| line.block.is_none()).map(|line| format!("{}\n", line.text)).collect()
    }

    /// The inline code of the prose, with white space collapsed.
    fn spans(&self) -> Vec<String> {
        self.prose().split("\n\n").flat_map(spans_of).collect()
    }

    /// The text below a `##` heading, up to the next one.
    fn section(&self, heading: &str) -> &str {
        let (_, below) = self.text.split_once(&format!("\n## {heading}\n")).unwrap_or_else(|| panic!("no {heading:?}"));
        below.split("\n## ").next().unwrap()
    }
}

fn spans_of(paragraph: &str) -> Vec<String> {
    let spans = paragraph.split('`').skip(1).step_by(2);
    spans.map(|span| span.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

#[test]
fn readme_at_most_a_thousand_words() {
    let words = page("README.md").text.split_whitespace().filter(|word| word.contains(char::is_alphanumeric)).count();
    assert!(words <= 1000, "{words} words: move some of them to docs/");
}
