//! Compares the fields of records, and reads numbers that must have the one form in which the service writes them.

use super::report::{Findings, UNKNOWN};
use crate::redis::queries::audit::HashFields;

/// The discrepancy of a field; `None` if both sides agree.
pub(super) fn differ<A: ToString, B: ToString>(what: &str, redis: A, postgres: B) -> Option<String> {
    let (redis, postgres) = (redis.to_string(), postgres.to_string());
    (redis != postgres).then(|| format!("{what} is {redis:?} in Redis and {postgres:?} in PostgreSQL"))
}

/// A field; empty if there is none.
pub(super) fn field<'f>(fields: &'f HashFields, name: &str) -> &'f str {
    fields.get(name).map_or("", String::as_str)
}

/// A counter; 0 if there is none.
pub(super) fn counter<'f>(fields: &'f HashFields, name: &str) -> &'f str {
    fields.get(name).map_or("0", String::as_str)
}

/// A number as the service writes it; `None` for any other text.
pub(super) fn number(text: &str) -> Option<i64> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let is_plain = text == "0" || !digits.starts_with('0') && digits.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| is_plain)
}

/// The discrepancy of a field that is a text; `None` if both sides agree.
pub(super) fn differ_text(what: &str, redis: &str, postgres: &str) -> Option<String> {
    if redis == postgres { None } else { differ(what, redis, postgres) }
}

/// The discrepancy of a field that is a number; `None` if both sides agree.
pub(super) fn differ_number(what: &str, redis: &str, postgres: i64) -> Option<String> {
    if number(redis) == Some(postgres) { None } else { differ(what, redis, postgres) }
}

/// A number in a field; 0 if there is none, or another text. For sums of fields that are compared by themselves.
pub(super) fn int(fields: &HashFields, name: &str) -> i64 {
    field(fields, name).parse().unwrap_or(0)
}

/// The discrepancy of a score; `None` if it is this number.
pub(super) fn other_score(what: &str, score: Option<f64>, expected: i64) -> Option<String> {
    let score = score.filter(|score| *score != expected as f64)?;
    Some(format!("{what} with the score {score}, and not with {expected}"))
}

/// The discrepancies of fields that the service does not write.
pub(super) fn unknown_fields<'f>(
    fields: &'f HashFields,
    known: &'f [&str],
) -> impl Iterator<Item = Option<String>> + 'f {
    let unknown = fields.keys().filter(|name| !known.contains(&name.as_str()));
    unknown.map(|name| Some(format!("the field {name:?} {UNKNOWN}")))
}

/// Counts a record, and adds its discrepancies.
pub(super) fn add_record(findings: &mut Findings, noun: &str, id: impl std::fmt::Display, wrong: Vec<Option<String>>) {
    findings.count_one();
    for wrong in wrong.into_iter().flatten() {
        findings.add(format!("{noun} {id}: {wrong}"));
    }
}

/// The discrepancy of a record that is on one side only.
pub(super) fn one_sided(in_redis: bool, in_postgres: bool) -> Option<String> {
    match (in_redis, in_postgres) {
        (true, false) => Some("it is in Redis and not in PostgreSQL".into()),
        (false, true) => Some("it is in PostgreSQL and not in Redis".into()),
        _ => None,
    }
}

/// Packed lines, in an order that does not depend on when they were written.
pub(super) fn sorted(lines: &str) -> String {
    let mut lines: Vec<&str> = lines.split(',').collect();
    lines.sort_unstable();
    lines.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_read_only_in_form_of_service() {
        for number in [0, 5, -5, 10, i64::MAX, i64::MIN] {
            assert_eq!(super::number(&number.to_string()), Some(number));
            assert_eq!(differ_number("it", &number.to_string(), number), None);
        }
        for text in ["", "-", "-0", "00", "05", "-05", "+5", " 5", "5 ", "5.0", "9223372036854775808", "x"] {
            assert_eq!(number(text), None, "{text:?}");
        }
        assert_eq!(differ_number("it", "05", 5), differ("it", "05", 5));
        assert!(differ_number("it", "05", 5).is_some());
    }
}
