//! A strict parser of the Prometheus text format.

use std::collections::{BTreeMap, BTreeSet};

/// One metric of a scrape.
#[derive(Debug, Default)]
pub struct Family {
    pub help: String,
    pub kind: String,
    /// Labels, without a histogram's `le`.
    pub labels: BTreeSet<String>,
    /// Name (of a histogram: with `_bucket`, `_sum` or `_count`), labels, value.
    pub samples: Vec<(String, BTreeMap<String, String>, f64)>,
}

/// A whole scrape, by metric.
#[derive(Debug)]
pub struct Scrape(pub BTreeMap<String, Family>);

impl Scrape {
    /// Panics on text that Prometheus refuses, or that no client library writes.
    pub fn parse(text: &str) -> Scrape {
        assert!(text.ends_with('\n'), "the last line has no line feed");
        let mut families: BTreeMap<String, Family> = BTreeMap::new();
        let mut current = String::new();
        // Of the current metric: a scrape has thousands of samples.
        let mut seen = BTreeSet::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').unwrap_or_else(|| panic!("no help: {line}"));
                name.clone_into(&mut current);
                seen.clear();
                let before = families.insert(name.to_owned(), Family { help: help.to_owned(), ..Family::default() });
                assert!(before.is_none(), "{name} occurs twice");
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                assert_eq!(name, current, "{line}");
                assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
                kind.clone_into(&mut families.get_mut(name).unwrap().kind);
            } else {
                let (name, labels, value) = sample(line);
                let family = families.get_mut(&current).unwrap_or_else(|| panic!("a sample before its metric: {line}"));
                let part = name.strip_prefix(current.as_str()).unwrap_or_else(|| panic!("not of {current}: {line}"));
                let parts: &[&str] = if family.kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
                assert!(parts.contains(&part), "{line}");
                assert_eq!(labels.contains_key("le"), part == "_bucket", "{line}");
                family.labels.extend(labels.keys().filter(|label| *label != "le").cloned());
                assert!(seen.insert((name.clone(), labels.clone())), "twice: {line}");
                family.samples.push((name, labels, value));
            }
        }
        for (name, family) in &families {
            family.check(name);
        }
        Scrape(families)
    }

    /// The sum of all samples of this name that have these labels.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.find(name, labels).into_iter().sum()
    }

    /// The one sample of this name that has these labels, if there is one.
    #[track_caller]
    pub fn one(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let found = self.find(name, labels);
        assert!(found.len() <= 1, "{name} {labels:?}: {found:?}");
        found.first().copied()
    }

    fn find(&self, name: &str, labels: &[(&str, &str)]) -> Vec<f64> {
        let has = |of: &BTreeMap<String, String>| {
            labels.iter().all(|(label, value)| of.get(*label).is_some_and(|its| its == value))
        };
        let samples = self.0.values().flat_map(|family| &family.samples);
        samples.filter(|(its, of, _)| its == name && has(of)).map(|(.., value)| *value).collect()
    }
}

impl Family {
    fn check(&self, name: &str) {
        assert!(!self.samples.is_empty(), "{name} has no sample");
        assert!(!self.kind.is_empty() && self.help.ends_with('.'), "{name}");
        for (_, labels, value) in &self.samples {
            let own = labels.keys().filter(|label| *label != "le");
            assert_eq!(own.count(), self.labels.len(), "{name}: not all samples have the same labels");
            assert!(self.kind == "gauge" || *value >= 0.0, "{name}: {value}");
        }
        if self.kind != "histogram" {
            return;
        }
        // The buckets' counts do not decrease, and the last one equals `_count`.
        let mut series = BTreeMap::<_, (Vec<(f64, f64)>, Option<f64>)>::new();
        for (part, labels, value) in &self.samples {
            let mut of = labels.clone();
            let le = of.remove("le");
            let (buckets, count) = series.entry(of).or_default();
            match le {
                Some(le) => buckets.push((le.replace("+Inf", "inf").parse().unwrap(), *value)),
                None if part.ends_with("_count") => *count = Some(*value),
                None => {}
            }
        }
        for (of, (mut buckets, count)) in series {
            buckets.sort_by(|one, other| one.0.total_cmp(&other.0));
            assert!(buckets.windows(2).all(|pair| pair[0].1 <= pair[1].1), "{name} {of:?}: {buckets:?}");
            let last = buckets.last().map(|(le, all)| (le.is_infinite(), Some(*all)));
            assert!(count.is_some() && last == Some((true, count)), "{name} {of:?}: {buckets:?}, {count:?}");
        }
    }
}

/// `name{label="value",…} number`.
fn sample(line: &str) -> (String, BTreeMap<String, String>, f64) {
    let bad = || -> ! { panic!("no sample: {line}") };
    let end = line.find(['{', ' ']).unwrap_or_else(|| bad());
    let (name, mut rest) = line.split_at(end);
    let good = |name: &str| {
        let fine = |c: char| c.is_ascii_alphanumeric() || c == '_';
        !name.is_empty() && !name.starts_with(|c: char| c.is_ascii_digit()) && name.chars().all(fine)
    };
    assert!(good(name), "{line}");
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            let (label, after) = rest.split_once("=\"").unwrap_or_else(|| bad());
            assert!(good(label), "{line}");
            let (mut value, mut escaped, mut length) = (String::new(), false, None);
            for (at, c) in after.char_indices() {
                match (escaped, c) {
                    (false, '\\') => escaped = true,
                    (false, '"') => {
                        length = Some(at + 1);
                        break;
                    }
                    (_, c) => {
                        value.push(if escaped && c == 'n' { '\n' } else { c });
                        escaped = false;
                    }
                }
            }
            rest = &after[length.unwrap_or_else(|| bad())..];
            assert!(labels.insert(label.to_owned(), value).is_none(), "{line}");
            rest = rest.strip_prefix(',').unwrap_or(rest);
        }
        rest = &rest[1..];
    }
    let value = rest.strip_prefix(' ').unwrap_or_else(|| bad());
    (name.to_owned(), labels, value.parse().unwrap_or_else(|_| bad()))
}
