//! Each idea has one word, the one in docs/glossary.md. The words that it replaced stay out of the repository.

use std::{collections::BTreeSet, fs, path::PathBuf};

use proc_macro2::{TokenStream, TokenTree};

use crate::support::repository::{files_below, root};

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
    ("lua/order_close.lua", "doubt", STORED_FIELD),
    ("lua/order_pay.lua", "doubt", STORED_FIELD),
    ("src/audit/compare/orders.rs", "doubt", STORED_FIELD),
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

const STORED_FIELD: &str = "the field doubt of an order's hash in Redis";

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
    ("from_page", "csrf_header"),
    ("hall", "test_app"),
    ("has_left", "is_archived"),
    ("key_claim", "idempotency_claim"),
    ("key_settle", "idempotency_settle"),
    ("knobs", "options"),
    ("lane", "shared_connection"),
    ("laws", "invariants"),
    ("mergeable", "batchable"),
    ("open_books", "begin_decision"),
    ("operator_act", "operator_action"),
    ("order_retire", "order_evict"),
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
/// contain them, and locals may have those that mean something else there.
const ABANDONED_NAMES: &[(&str, &str)] = &[
    ("asked", "request"),
    ("away", "unavailable"),
    ("carry", "project, forward"),
    ("edge", "middleware"),
    ("floor", "baseline"),
    ("gather", "batcher"),
    ("keep", "retention"),
    ("leave", "eviction"),
    ("made", "operator_action"),
    ("merge", "run_batched"),
    ("note", "record"),
    ("pass", "permit"),
    ("peer", "lock_based"),
    ("raise", "advance"),
    ("side", "listener"),
    ("silent", "timeout"),
];

/// Names that nothing has, locals and fields included. Texts may contain them too.
const ABANDONED_IDENTIFIERS: &[(&str, &str)] = &[
    ("act", "operator_action"),
    ("acts", "operator_log"),
    ("books", "partition_state, invariants"),
    ("care", "apply_mode"),
    ("far", "remote"),
    ("gate", "in_flight"),
    ("home", "owner"),
    ("leftover", "unread_body"),
    ("letters", "dead_letters"),
    ("look", "check"),
    ("looked", "checked"),
    ("notes", "operator_log"),
    ("overtaken", "superseded"),
    ("patient", "write_timeout"),
    ("seat", "connection_permit"),
    ("stands", "status"),
    ("tell", "report"),
    ("told", "acknowledged"),
    ("world", "test_app"),
];

/// What precedes a declared name in Rust, JavaScript, Python and Lua.
const DECLARES: &[&str] =
    &["struct", "enum", "fn", "mod", "const", "static", "type", "trait", "function", "class", "def", "local"];

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
    let comment = |line: &str| ["//", "#", "--"].iter().any(|mark| line.trim_start().starts_with(mark));
    for (number, line) in source.lines().enumerate().filter(|(_, line)| !comment(line)) {
        let tokens: Vec<&str> = line.split_whitespace().collect();
        for declared in tokens.windows(2).filter(|pair| DECLARES.contains(&pair[0])) {
            let Some(name) = words(declared[1]).next().map(snake_case) else { continue };
            let names = ABANDONED_NAMES.iter().chain(ABANDONED_IDENTIFIERS);
            let abandoned = names.filter(|(old, _)| name.trim_matches('_') == *old);
            found.extend(abandoned.map(|(old, new)| (number + 1, *old, *new)));
        }
    }
    found
}

/// The abandoned identifiers in a source of Rust, each with the first line that has the word.
fn abandoned_identifiers(source: &str) -> Vec<Finding> {
    let (mut identifiers, mut streams) = (BTreeSet::new(), vec![source.parse::<TokenStream>().unwrap()]);
    while let Some(stream) = streams.pop() {
        for token in stream {
            match token {
                TokenTree::Group(group) => streams.push(group.stream()),
                TokenTree::Ident(identifier) => drop(identifiers.insert(identifier.to_string())),
                TokenTree::Punct(_) | TokenTree::Literal(_) => {}
            }
        }
    }
    let mut found = Vec::new();
    for identifier in identifiers {
        let name = snake_case(&identifier);
        let abandoned = ABANDONED_IDENTIFIERS.iter().filter(|(old, _)| name.trim_matches('_') == *old);
        let line = || source.lines().position(|line| words(line).any(|word| word == identifier)).unwrap_or_default();
        found.extend(abandoned.map(|(old, new)| (line() + 1, *old, *new)));
    }
    found
}

/// The checked files at or below a path in the repository, by their paths there.
fn files(path: &str) -> Vec<String> {
    let relative = |file: PathBuf| file.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
    let all = if root().join(path).is_dir() { files_below(path, "") } else { vec![root().join(path)] };
    all.into_iter().map(relative).filter(|path| is_checked(path)).collect()
}

fn is_checked(path: &str) -> bool {
    !UNCHECKED.iter().any(|(unchecked, _)| path.starts_with(unchecked))
        && (!path.starts_with("migrations/") || path >= FIRST_CHECKED_MIGRATION)
}

#[test]
fn abandoned_words_absent_from_repository() {
    let (mut count, mut findings) = (0, Vec::new());
    for path in CHECKED.iter().flat_map(|path| files(path)) {
        // A file that is not UTF-8 is an image.
        let Ok(text) = fs::read_to_string(root().join(&path)) else { continue };
        count += 1;
        let exempt = |word: &str| EXEMPT.iter().any(|(file, exempt, _)| *file == path && *exempt == word);
        let mut found = abandoned_words(&text);
        let source = [".rs", ".js", ".py", ".lua"].iter().any(|extension| path.ends_with(extension));
        if source {
            found.extend(abandoned_names(&text));
        }
        if path.ends_with(".rs") {
            found.extend(abandoned_identifiers(&text));
        }
        let found = found.into_iter().filter(|(_, word, _)| !exempt(word));
        findings.extend(found.map(|(line, old, new)| format!("{path}:{line}: {old}, now {new}")));
    }
    assert!(findings.is_empty(), "{findings:#?}");
    assert!(count > 400, "{count} files");
}

#[test]
fn exemptions_are_needed() {
    for (path, word, _) in EXEMPT {
        let found = abandoned_words(&fs::read_to_string(root().join(path)).unwrap());
        assert!(found.iter().any(|(_, old, _)| old == word), "{path} does not contain {word}");
    }
}

#[test]
fn abandoned_word_found_in_any_case_and_number() {
    for text in ["let lane = 1;", "struct FromPage;", "const OPEN_BOOKS: u8 = 1;", "// Tickets.", "the_key_claim_of()"]
    {
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

#[test]
fn abandoned_identifier_found_in_code_only() {
    let source = "
        // At home.
        fn place() { let far = \"told\"; close(home, |look| look); format!(\"{far}\") }";
    let found = abandoned_identifiers(source);
    assert_eq!(
        found.iter().map(|(line, old, _)| (*line, *old)).collect::<Vec<_>>(),
        [(3, "far"), (2, "home"), (3, "look")]
    );
    assert!(abandoned_identifiers("let far_away = 'a'; // told").is_empty());
}
