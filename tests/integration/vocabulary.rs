//! Each idea has one word, the one in docs/glossary.md. The words that it replaced stay out of the repository.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The folders and files that are checked. CHANGELOG.md maps old words to new ones, so it is not.
const CHECKED: &[&str] = &[
    "src",
    "lua",
    "migrations",
    "tests",
    "benches",
    "load-tests",
    "deploy",
    "scripts",
    "docs",
    ".ci",
    "README.md",
    "CONTRIBUTING.md",
    "Makefile",
    "Dockerfile",
    "compose.yaml",
    "compose.scaled.yaml",
    "Cargo.toml",
    "deny.toml",
];

/// Paths that are not checked, each with the reason.
const UNCHECKED: &[(&str, &str)] = &[
    ("tests/integration/vocabulary.rs", "lists the words"),
    ("tests/integration/recovery/release/", "data of earlier releases"),
    ("load-tests/results/", "output of load tests"),
];

/// The first migration that is checked; earlier ones are frozen, since PostgreSQL has their checksums.
const FIRST_CHECKED_MIGRATION: &str = "migrations/0015";

/// Words that a file may contain, each with the reason.
const EXEMPT: &[(&str, &str, &str)] = &[
    ("lua/hold_suspect.lua", "doubt", STORED_FIELD),
    ("lua/order_close.lua", "doubt", STORED_FIELD),
    ("lua/order_pay.lua", "doubt", STORED_FIELD),
    ("lua/stock_settle.lua", "doubt", STORED_FIELD),
    ("src/recovery/load.rs", "doubt", STORED_FIELD),
    ("src/redis/keys.rs", "doubt", STORED_FIELD),
    ("src/postgres/loss.rs", "doubt", "the columns in_doubt and doubted_at of projection_positions"),
    ("src/postgres/loss.rs", "doubted", "the columns in_doubt and doubted_at of projection_positions"),
    ("src/config/environment.rs", "lane", "names the old variable REDIS_LANES"),
    ("migrations/0015_table_names.sql", "operator_act", "renames the table operator_acts"),
    ("src/postgres/mod.rs", "operator_act", "names the view operator_acts of earlier versions"),
    ("tests/integration/postgres/table_names.rs", "operator_act", "tests the renaming of operator_acts"),
    ("tests/integration/process/environment.rs", "lane", "names the old variable REDIS_LANES"),
];

const STORED_FIELD: &str = "the field doubt of an order's or hold's hash in Redis";

/// Words that no text contains, in snake case and singular, and the words in their place.
const ABANDONED: &[(&str, &str)] = &[
    ("act_log", "operator_log"),
    ("acting", "auth/user"),
    ("books_freeze", "partition_freeze"),
    ("bring_back", "restore"),
    ("campaign_stands", "campaign_status"),
    ("closed_books", "partition_closed"),
    ("coupon_reopen", "coupon_release_prepare"),
    ("doubt", "invalidate, possible_loss"),
    ("doubted", "invalidated, possibly_lost"),
    ("far_end", "remote_end"),
    ("far_hold", "remote hold"),
    ("far_stock", "remote stock"),
    ("from_page", "csrf_header"),
    ("hall", "test_app"),
    ("has_left", "is_archived"),
    ("key_claim", "idempotency_claim"),
    ("key_settle", "idempotency_settle"),
    ("knobs", "options"),
    ("lane", "shared_connection"),
    ("laws", "invariants"),
    ("mark_life", "tombstone_ttl"),
    ("mergeable", "batchable"),
    ("open_books", "begin_decision"),
    ("operator_act", "operator_action"),
    ("order_retire", "order_evict"),
    ("order_verdict", "order_resolve"),
    ("party", "batch"),
    ("patience", "timeout"),
    ("retire", "evict"),
    ("store_doubts", "partition_invalidations"),
    ("store_looks", "partition_checks"),
    ("stories", "timelines"),
    ("story", "timeline"),
    ("stranger", "unauthenticated"),
    ("telling", "acknowledged_positions"),
    ("testimony", "reported_progress"),
    ("ticket", "connection_handle"),
    ("told_so_far", "acknowledged"),
    ("vigil", "fencing, durability"),
    ("witness", "progress_source"),
    ("witnesses", "progress_sources"),
];

/// Names that nothing declares, in snake case, and the words in their place. The words are English too, so texts may
/// contain them.
const ABANDONED_NAMES: &[(&str, &str)] = &[
    ("act", "operator_action"),
    ("acts", "operator_log"),
    ("asked", "request"),
    ("away", "unavailable"),
    ("books", "partition_state, invariants"),
    ("care", "apply_mode"),
    ("carry", "project, forward"),
    ("edge", "middleware"),
    ("far", "remote"),
    ("floor", "baseline"),
    ("gate", "in_flight"),
    ("gather", "batcher"),
    ("home", "owner"),
    ("keep", "retention"),
    ("leave", "eviction"),
    ("leftover", "unread_body"),
    ("letters", "dead_letters"),
    ("look", "check"),
    ("looked", "checked"),
    ("made", "operator_action"),
    ("mark", "tombstone"),
    ("merge", "run_batched"),
    ("note", "record"),
    ("notes", "operator_log"),
    ("over", "eviction_candidate"),
    ("overtaken", "superseded"),
    ("pass", "permit"),
    ("patient", "write_timeout"),
    ("peer", "lock_based"),
    ("raise", "advance"),
    ("seat", "connection_permit"),
    ("side", "listener"),
    ("silent", "timeout"),
    ("stands", "status"),
    ("tell", "report"),
    ("told", "acknowledged"),
    ("verdict", "order_resolve"),
    ("world", "test_app"),
];

/// What precedes a declared name in Rust, JavaScript and Python.
const DECLARES: &[&str] =
    &["struct", "enum", "fn", "mod", "const", "static", "type", "trait", "function", "class", "def"];

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

/// An abandoned word in a text: the number of its line, the word, the words in its place.
type Finding = (usize, &'static str, &'static str);

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|letter: char| !letter.is_alphanumeric() && letter != '_').filter(|word| !word.is_empty())
}

/// The abandoned words in a text.
fn abandoned_words(text: &str) -> Vec<Finding> {
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        for word in words(line).map(snake_case) {
            let contains = |old: &str| word.contains(&format!("_{old}_")) || word.contains(&format!("_{old}s_"));
            let abandoned = ABANDONED.iter().filter(|(old, _)| contains(old));
            found.extend(abandoned.map(|(old, new)| (number + 1, *old, *new)));
        }
    }
    found
}

/// The abandoned names that a source declares.
fn abandoned_names(source: &str) -> Vec<Finding> {
    let mut found = Vec::new();
    let comment = |line: &str| ["//", "#"].iter().any(|mark| line.trim_start().starts_with(mark));
    for (number, line) in source.lines().enumerate().filter(|(_, line)| !comment(line)) {
        let tokens: Vec<&str> = line.split_whitespace().collect();
        for declared in tokens.windows(2).filter(|pair| DECLARES.contains(&pair[0])) {
            let Some(name) = words(declared[1]).next().map(snake_case) else { continue };
            let abandoned = ABANDONED_NAMES.iter().filter(|(old, _)| name.trim_matches('_') == *old);
            found.extend(abandoned.map(|(old, new)| (number + 1, *old, *new)));
        }
    }
    found
}

/// The files at or below `path`, by their paths in the repository.
fn files(path: PathBuf) -> Vec<String> {
    if path.is_dir() {
        return fs::read_dir(path).unwrap().flat_map(|entry| files(entry.unwrap().path())).collect();
    }
    let relative = path.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap();
    vec![relative.to_str().unwrap().to_owned()]
}

fn is_checked(path: &str) -> bool {
    !UNCHECKED.iter().any(|(unchecked, _)| path.starts_with(unchecked))
        && (!path.starts_with("migrations/") || path >= FIRST_CHECKED_MIGRATION)
}

#[test]
fn abandoned_words_absent_from_repository() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut count, mut findings) = (0, Vec::new());
    for path in CHECKED.iter().flat_map(|path| files(root.join(path))).filter(|path| is_checked(path)) {
        // A file that is not UTF-8 is an image.
        let Ok(text) = fs::read_to_string(root.join(&path)) else { continue };
        count += 1;
        let exempt = |word: &str| EXEMPT.iter().any(|(file, exempt, _)| *file == path && *exempt == word);
        let mut found = abandoned_words(&text);
        let source = [".rs", ".js", ".py"].iter().any(|extension| path.ends_with(extension));
        if source {
            found.extend(abandoned_names(&text));
        }
        let found = found.into_iter().filter(|(_, word, _)| !exempt(word));
        findings.extend(found.map(|(line, old, new)| format!("{path}:{line}: {old}, now {new}")));
    }
    assert!(findings.is_empty(), "{findings:#?}");
    assert!(count > 400, "{count} files");
}

#[test]
fn exemptions_are_needed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (path, word, _) in EXEMPT {
        let found = abandoned_words(&fs::read_to_string(root.join(path)).unwrap());
        assert!(found.iter().any(|(_, old, _)| old == word), "{path} does not contain {word}");
    }
}

#[test]
fn abandoned_word_found_in_any_case_and_number() {
    for text in ["let lane = 1;", "struct FarEnd;", "const OPEN_BOOKS: u8 = 1;", "// Tickets.", "the_key_claim_of()"] {
        assert_eq!(abandoned_words(text).len(), 1, "{text}");
    }
    assert!(abandoned_words("plane, landed, keyclaim").is_empty());
}

#[test]
fn abandoned_name_found_in_declarations_only() {
    for source in
        ["pub struct Seat {", "async fn look(&self) {", "mod letters;", "function note() {", "const FAR: u8 = 1;"]
    {
        assert_eq!(abandoned_names(source).len(), 1, "{source}");
    }
    assert!(abandoned_names("// a look at the seat; fn look_up(); let note = 1;").is_empty());
}
