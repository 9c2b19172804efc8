//! Every relative link of every page leads to a file, and its fragment to a heading; every path on a page exists.

use std::{
    collections::BTreeSet,
    fs,
    path::{Component, Path, PathBuf},
};

use super::{Page, page, pages};
use crate::support::repository::{files_below, root};

/// The top folders that a path of the repository begins with.
const FOLDERS: [&str; 9] =
    ["src/", "lua/", "migrations/", "tests/", "benches/", "load-tests/", "deploy/", "docs/", "scripts/"];
/// Load tests create this folder.
const RESULTS: &str = "load-tests/results/";

/// GitHub's anchor for a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase().chars().filter(|c| c.is_alphanumeric() || "-_ ".contains(*c)).collect::<String>();
    kept.replace(' ', "-")
}

/// The anchors of the page's headings.
fn anchors(page: &Page) -> BTreeSet<String> {
    let prose = page.prose();
    let headings = prose.lines().filter(|line| line.starts_with('#'));
    headings.map(|line| anchor(line.trim_start_matches('#').trim())).collect()
}

/// The targets of the page's links outside of code.
fn links(page: &Page) -> Vec<String> {
    let mut links = Vec::new();
    for paragraph in page.prose().split("\n\n") {
        let text: String = paragraph.split('`').step_by(2).collect::<Vec<_>>().join("`");
        links.extend(text.split("](").skip(1).map(|rest| rest.split([')', ' ']).next().unwrap().to_owned()));
    }
    links
}

/// The path with `.` and `..` resolved.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => assert!(normal.pop(), "{} leaves the repository", path.display()),
            Component::CurDir => {}
            part => normal.push(part),
        }
    }
    normal
}

#[test]
fn every_relative_link_resolves() {
    let mut count = 0;
    for from in pages() {
        for link in links(&from).into_iter().filter(|link| !link.contains("://")) {
            let (file, anchor) =
                link.split_once('#').map_or((link.as_str(), None), |(file, anchor)| (file, Some(anchor)));
            let target = match file {
                "" => from.path.clone(),
                file => normal(&from.path.parent().unwrap().join(file)),
            };
            assert!(root().join(&target).exists(), "{}: {link} has no target", from.name());
            if let Some(anchor) = anchor {
                let anchors = anchors(&page(target));
                assert!(anchors.contains(anchor), "{}: {link} has no such heading", from.name());
            }
            count += 1;
        }
    }
    assert!(count > 50, "{count} links");
}

#[test]
fn every_named_path_exists() {
    let (mut missing, mut count) = (Vec::new(), 0);
    for page in pages() {
        // Paths are in inline code and in drawings, which four spaces indent.
        let prose = page.prose();
        let drawn = prose.lines().filter(|line| line.starts_with("    ")).flat_map(str::split_whitespace);
        for named in page.spans().into_iter().chain(drawn.map(str::to_owned)) {
            if FOLDERS.iter().any(|folder| named.starts_with(folder)) && named != RESULTS {
                count += 1;
                if !root().join(&named).exists() {
                    missing.push(format!("{} names {named}", page.name()));
                }
            }
        }
    }
    assert_eq!(missing, Vec::<String>::new());
    assert!(count > 50, "{count} paths");
}

/// The pages of docs/ that a text cites, each with the text that follows the citation.
fn cited_pages(text: &str) -> Vec<(&str, &str)> {
    let word = |c: char| c.is_ascii_alphanumeric() || "/_-".contains(c);
    let starts = text.match_indices("docs/").map(|(at, _)| at);
    let starts = starts.filter(|at| !text[..*at].ends_with(|c: char| word(c) || c == '{'));
    starts
        .filter_map(|at| {
            let cited = &text[at..];
            let (path, rest) = cited.split_at(cited.find(|c: char| !word(c))?);
            let after = rest.strip_prefix(".md")?;
            Some((&cited[..path.len() + ".md".len()], after))
        })
        .collect()
}

/// A comment cites a page by its path, and a section as `docs/limits.md, "Memory"`.
#[test]
fn every_page_cited_by_code_exists() {
    let dirs = ["src", "lua", "migrations", "deploy", "scripts", "benches", "load-tests", "tests/integration"];
    let (mut files, mut count) = (dirs.map(|dir| files_below(dir, "")).concat(), 0);
    files.extend(["Makefile", "Dockerfile", "Cargo.toml", "compose.yaml"].map(|name| root().join(name)));
    for file in files {
        // Binary files cite nothing.
        let Ok(text) = fs::read_to_string(&file) else { continue };
        for (path, after) in cited_pages(&text) {
            assert!(root().join(path).exists(), "{} cites {path}", file.display());
            if let Some(heading) = after.strip_prefix(", \"").and_then(|rest| rest.split('"').next()) {
                assert!(anchors(&page(path)).contains(&anchor(heading)), "{} cites {heading:?}", file.display());
            }
            count += 1;
        }
    }
    assert!(count > 20, "{count} citations");
}
