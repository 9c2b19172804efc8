//! Every relative link of every page leads to a file, and to a heading in it.

use std::{
    collections::BTreeSet,
    path::{Component, Path, PathBuf},
};

use super::{Page, page, pages, root};

/// The page's headings as GitHub's anchors.
fn anchors(page: &Page) -> BTreeSet<String> {
    let prose = page.prose();
    let headings = prose.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    headings
        .map(|heading| {
            let kept = heading
                .to_lowercase()
                .chars()
                .filter(|c| c.is_alphanumeric() || "-_ ".contains(*c))
                .collect::<String>();
            kept.replace(' ', "-")
        })
        .collect()
}

/// The targets of the page's links, without those in code.
fn links(page: &Page) -> Vec<String> {
    let mut links = Vec::new();
    for paragraph in page.prose().split("\n\n") {
        let text: String = paragraph.split('`').step_by(2).collect::<Vec<_>>().join("`");
        links.extend(text.split("](").skip(1).map(|rest| rest.split([')', ' ']).next().unwrap().to_owned()));
    }
    links
}

/// The path without `.` and `..`.
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
            assert!(root().join(&target).exists(), "{}: {link} leads nowhere", from.name());
            if let Some(anchor) = anchor {
                let anchors = anchors(&page(target));
                assert!(anchors.contains(anchor), "{}: {link} has no heading", from.name());
            }
            count += 1;
        }
    }
    assert!(count > 50, "{count} links");
}
