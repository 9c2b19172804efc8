//! The results of a run: printed, and appended to a file from which `scripts/chaos-long` makes its report.

use std::{fmt, io::Write, path::Path, time::Duration};

use serde_json::{Value, json};

use super::{Conclusion, Finding, history::Counts, nemesis::Chronicle, swarm::Draw};

/// Names the file that gets a line of JSON from each run.
const FILE: &str = "CHAOS_RESULTS";
/// The bytes of a violation in the file.
const MAX_TEXT: usize = 4000;

pub struct Results<'a> {
    draw: &'a Draw,
    chronicle: &'a Chronicle,
    conclusion: &'a Conclusion,
    counts: Counts,
    took: Duration,
}

impl<'a> Results<'a> {
    pub fn of(draw: &'a Draw, chronicle: &'a Chronicle, conclusion: &'a Conclusion, took: Duration) -> Results<'a> {
        Results { draw, chronicle, conclusion, counts: Counts::of(&conclusion.operations), took }
    }

    fn faults(&self) -> usize {
        self.chronicle.faults.values().map(|count| count.times).sum()
    }

    fn rows(&self) -> Vec<(&'static str, usize)> {
        let (counts, check_results) = (&self.counts, &self.conclusion.check_results);
        vec![
            ("operations", counts.operations),
            ("  attempts at them", counts.attempts),
            ("writes", counts.writes),
            ("  2xx", counts.done),
            ("  declined payments", counts.declined),
            ("  refused", counts.refused),
            ("  with an unknown outcome at first", counts.unknown),
            ("    settled: with the effect", counts.settled_done),
            ("    settled: refused", counts.settled_refused),
            ("    never settled", counts.open),
            ("  replayed replies", counts.replays),
            ("objects checked for linearizability", check_results.checked.values().sum()),
            ("  the longest history", check_results.longest),
            ("  undecided", check_results.undecided),
            ("faults", self.faults()),
        ]
    }

    fn json(&self) -> Value {
        let rows: Vec<Value> = self.rows().into_iter().map(|(name, count)| json!([name.trim(), count])).collect();
        let faults = self.chronicle.faults.iter().map(|(name, count)| {
            let (longest, total) = (count.longest.as_secs_f64(), count.total.as_secs_f64());
            (name.clone(), json!({"times": count.times, "longest": longest, "total": total}))
        });
        let cut = |text: &String| text.chars().take(MAX_TEXT).collect::<String>();
        let findings = self.conclusion.findings.iter().map(|Finding { by, what }| json!([by, cut(what)]));
        json!({
            "seed": self.draw.seed,
            "drawn": self.draw.to_string(),
            "seconds": self.took.as_secs_f64(),
            "operations": self.counts.operations,
            "faultCount": self.faults(),
            "counts": rows,
            "verbs": self.counts.verbs,
            "faults": faults.collect::<serde_json::Map<_, _>>(),
            "situations": self.conclusion.situations,
            "violations": findings.collect::<Vec<_>>(),
        })
    }

    /// Appends the results to the file that the environment names, if any.
    pub fn append(&self) {
        let Some(path) = std::env::var_os(FILE) else { return };
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(Path::new(&path)).unwrap();
        writeln!(file, "{}", self.json()).unwrap();
    }
}

impl fmt::Display for Results<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Draw { seed, options, .. } = self.draw;
        writeln!(f, "\n--- seed {seed}, {} partition(s), {:.0} s ---", options.partitions, self.took.as_secs_f64())?;
        for (name, count) in self.rows() {
            writeln!(f, "{name:<40}{count:>8}")?;
        }
        for (name, count) in &self.chronicle.faults {
            let seconds = count.longest.as_secs_f64();
            writeln!(f, "  {name:<38}{:>8}   recovered within {seconds:.1} s", count.times)?;
        }
        writeln!(f, "{:<40}{:>8}", "violations", self.conclusion.findings.len())?;
        writeln!(f, "by verb {:?}; by object {:?}", self.counts.verbs, self.conclusion.check_results.checked)?;
        for (name, count) in self.conclusion.situations.iter().filter(|(_, count)| **count > 0) {
            writeln!(f, "  {name:<78}{count:>8}")?;
        }
        Ok(())
    }
}
