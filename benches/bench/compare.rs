//! Compares the reports of two commits, figure by figure: for `make bench-compare`, which runs both in alternation.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result, ensure};

use crate::report::{Report, spread};

/// A table of a report.
#[derive(Clone)]
struct Table {
    heading: String,
    /// Among the tables below the heading.
    number: usize,
    head: Vec<String>,
    rows: Vec<Vec<String>>,
}

/// Its figures would be those of other tables again.
const TARGETS: &str = "Targets";

/// Prints the ratios of the reports in a directory: `head-N.md` ÷ `base-N.md`.
pub fn run(args: &[String]) -> Result<()> {
    let dir = Path::new(args.first().context("no directory")?);
    let mut pairs = Vec::new();
    for pair in 1.. {
        let read = |side: &str| fs::read_to_string(dir.join(format!("{side}-{pair}.md")));
        match (read("base"), read("head")) {
            (Ok(base), Ok(head)) => pairs.push((figures(&tables(&base)), tables(&head))),
            _ => break,
        }
    }
    ensure!(!pairs.is_empty(), "{} has no pair of reports", dir.display());
    let mut report = Report::default();
    report.text(&format!("The second commit ÷ the first: medians of {} pairs, with minimum and maximum.", pairs.len()));
    for (at, table) in pairs[0].1.iter().enumerate() {
        let ratio = |row: &str, column: &str| {
            let key = (table.heading.clone(), table.number, row.to_owned(), column.to_owned());
            let of_pair = |(base, head): &(Figures, Vec<Table>)| {
                let head = figures(std::slice::from_ref(head.get(at)?));
                let (head, base) = (*head.get(&key)?, *base.get(&key)?);
                (base != 0.0).then(|| head / base)
            };
            let ratios: Vec<f64> = pairs.iter().filter_map(of_pair).collect();
            if ratios.is_empty() { "–".to_owned() } else { spread(&ratios) }
        };
        let line = |row: &Vec<String>| {
            let name = row.first().cloned().unwrap_or_default();
            let ratios = table.head.iter().skip(1).map(|column| ratio(&name, column));
            std::iter::once(name.clone()).chain(ratios).collect()
        };
        let lines: Vec<Vec<String>> = table.rows.iter().map(line).collect();
        report.heading(&table.heading);
        report.table(&table.head.iter().map(String::as_str).collect::<Vec<_>>(), &lines);
    }
    Ok(())
}

/// The figures by heading, table, row and column.
type Figures = BTreeMap<(String, usize, String, String), f64>;

fn figures(tables: &[Table]) -> Figures {
    let mut figures = Figures::new();
    for table in tables {
        for row in &table.rows {
            for (column, cell) in table.head.iter().zip(row).skip(1) {
                if let Some(figure) = figure(cell) {
                    figures.insert((table.heading.clone(), table.number, row[0].clone(), column.clone()), figure);
                }
            }
        }
    }
    figures
}

/// The number at the start of a cell.
fn figure(cell: &str) -> Option<f64> {
    let digits = cell.trim_start_matches(['*', '+']);
    digits.split_whitespace().next()?.trim_end_matches('*').parse().ok()
}

/// The tables of a report, but that of the targets.
fn tables(report: &str) -> Vec<Table> {
    let (mut tables, mut heading, mut within) = (Vec::<Table>::new(), String::new(), false);
    for line in report.lines() {
        if let Some(name) = line.strip_prefix("## ") {
            name.clone_into(&mut heading);
        }
        let Some(cells) = line.strip_prefix("| ").and_then(|line| line.strip_suffix(" |")) else {
            within = false;
            continue;
        };
        let cells: Vec<String> = cells.split(" | ").map(str::to_owned).collect();
        let is_rule = cells.iter().all(|cell| cell.trim_end_matches(':').chars().all(|c| c == '-'));
        match tables.last_mut().filter(|_| within) {
            None if heading != TARGETS => {
                let number = tables.iter().filter(|table| table.heading == heading).count();
                tables.push(Table { heading: heading.clone(), number, head: cells, rows: Vec::new() });
                within = true;
            }
            Some(table) if !is_rule => table.rows.push(cells),
            _ => {}
        }
    }
    tables
}
