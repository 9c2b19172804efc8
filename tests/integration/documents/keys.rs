//! docs/operations.md says of every key of Redis what the audit checks.

use firstcome::{model::Partition, redis::keys::Keys};

use super::{page, spans_of};

/// The names in the first column of the table.
fn documented() -> Vec<String> {
    let page = page("docs/operations.md");
    let (_, table) = page.text.split_once("| keys of Redis |").unwrap();
    let rows = table.lines().skip(2).take_while(|line| line.starts_with("| "));
    let names: Vec<String> = rows.flat_map(|row| spans_of(row.split(" | ").next().unwrap())).collect();
    assert!(names.len() > 10, "{names:?}");
    names
}

/// Whether a name of the table, in which an ellipsis stands for ids, is that of a key without its partition.
fn names(name: &str, key: &str) -> bool {
    match name.split_once('…') {
        Some((before, after)) => {
            key.starts_with(before) && key.ends_with(after) && key.len() > name.len() - '…'.len_utf8()
        }
        None => key == name,
    }
}

#[test]
fn audit_table_names_every_key_and_no_other() {
    let samples = Keys(Partition(0)).samples();
    let keys: Vec<&str> = samples.iter().map(|key| key.split_once("}:").unwrap().1).collect();
    let documented = documented();
    for key in &keys {
        assert!(documented.iter().any(|name| names(name, key)), "the table has no {key}");
    }
    for name in &documented {
        assert!(keys.iter().any(|key| names(name, key)), "the service has no {name}");
    }
}
