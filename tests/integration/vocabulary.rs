//! A word that the code has given up does not come back: each idea has one word, the one that docs/glossary.md has.

use std::{fs, path::Path};

/// Words that no identifier, string or comment contains, in snake case, and the words in their place.
const ABANDONED: &[(&str, &str)] = &[
    ("act_log", "operator_log"),
    ("acting", "auth/user"),
    ("books_freeze", "partition_freeze"),
    ("bring_back", "restore"),
    ("campaign_stands", "campaign_status"),
    ("closed_books", "partition_closed"),
    ("coupon_reopen", "coupon_release_prepare"),
    ("doubts", "invalidations, possible_losses"),
    ("far_end", "remote_end"),
    ("far_hold", "remote hold"),
    ("far_holds", "remote holds"),
    ("far_stock", "remote stock"),
    ("from_page", "csrf_header"),
    ("hall", "test_app"),
    ("has_left", "is_archived"),
    ("key_claim", "idempotency_claim"),
    ("key_settle", "idempotency_settle"),
    ("knobs", "options"),
    ("lane", "shared_connection"),
    ("laws", "invariants"),
    ("leftover", "unread_body"),
    ("mark_life", "tombstone_ttl"),
    ("mergeable", "batchable"),
    ("open_books", "begin_decision"),
    ("operator_act", "operator_action"),
    ("order_retire", "order_evict"),
    ("order_verdict", "order_resolve"),
    ("retire", "evict"),
    ("store_doubts", "partition_invalidations"),
    ("store_looks", "partition_checks"),
    ("stories", "timelines"),
    ("story", "timeline"),
    ("telling", "acknowledged_positions"),
    ("testimony", "reported_progress"),
    ("ticket", "connection_handle"),
    ("told_so_far", "acknowledged"),
    ("vigil", "fencing, durability"),
    ("witness", "progress_source"),
];

/// `camelCase` and `snake_case` as `_camel_case_` and `_snake_case_`.
fn snake_case(word: &str) -> String {
    let mut snake = String::from("_");
    let mut lower = false;
    for letter in word.chars() {
        if letter.is_uppercase() && lower {
            snake.push('_');
        }
        lower = letter.is_lowercase() || letter.is_ascii_digit();
        snake.extend(letter.to_lowercase());
    }
    snake + "_"
}

/// The abandoned words in a text, each with the number of its line.
fn found(text: &str) -> Vec<(usize, &'static str, &'static str)> {
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        for word in line.split(|letter: char| !letter.is_alphanumeric() && letter != '_') {
            let word = snake_case(word);
            let abandoned = ABANDONED.iter().filter(|(old, _)| word.contains(&format!("_{old}_")));
            found.extend(abandoned.map(|(old, new)| (number + 1, *old, *new)));
        }
    }
    found
}

/// Checks every source file below `folder`. Returns the number of files.
fn check(folder: &Path) -> usize {
    let mut files = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files += check(&path);
        } else if path.extension().is_some_and(|extension| ["rs", "lua", "js"].iter().any(|known| extension == *known))
            && !path.ends_with("tests/integration/vocabulary.rs")
        {
            let found = found(&fs::read_to_string(&path).unwrap());
            assert!(found.is_empty(), "{}: line, abandoned word, its replacement: {found:?}", path.display());
            files += 1;
        }
    }
    files
}

#[test]
fn abandoned_words_absent_from_sources() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files: usize =
        ["src", "lua", "benches", "tests/integration"].iter().map(|folder| check(&root.join(folder))).sum();
    assert!(files > 200, "{files} files");
}

#[test]
fn abandoned_word_found_in_any_case() {
    for text in ["let lane = 1;", "struct FarEnd;", "const OPEN_BOOKS: u8 = 1;", "// A ticket.", "the_key_claim_of()"] {
        assert_eq!(found(text).len(), 1, "{text}");
    }
    assert!(found("plane, lanes, tickets, keyclaim").is_empty());
}
