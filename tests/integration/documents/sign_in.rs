//! docs/operations.md explains each reason for which a sign-in with a company's account is refused.

use std::collections::BTreeSet;

use firstcome::telemetry::metrics::{self, state::Observed};

use super::{page, spans_of};

#[test]
fn sign_in_table_names_every_reason_and_no_other() {
    let page = page("docs/operations.md");
    let (_, table) = page.text.split_once("`firstcome_account_sign_ins_total` counts it:\n").unwrap();
    let rows = table.lines().skip(3).take_while(|line| line.starts_with("| "));
    let documented: Vec<String> = rows.flat_map(|row| spans_of(row.split(" | ").next().unwrap())).collect();
    let exported = metrics::text(&Observed::default()).unwrap();
    let outcomes = exported.split("firstcome_account_sign_ins_total{outcome=\"").skip(1);
    let reasons: BTreeSet<&str> = outcomes.map(|rest| rest.split('"').next().unwrap()).collect();
    let counted: Vec<&str> = reasons.into_iter().filter(|reason| *reason != "signed_in").collect();
    let mut sorted = documented.clone();
    sorted.sort();
    assert_eq!(sorted, counted);
}
