//! The report, as Markdown: to the terminal during the run, and to a file at its end.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::{Context, Result};

#[derive(Default)]
pub struct Report(String);

impl Report {
    pub fn heading(&mut self, text: &str) {
        self.print(&format!("\n## {text}\n"));
    }

    pub fn text(&mut self, text: &str) {
        self.print(&format!("{text}\n"));
    }

    /// The first column is a name, the others are numbers.
    pub fn table(&mut self, head: &[&str], rows: &[Vec<String>]) {
        let line = |cells: &mut dyn Iterator<Item = &str>| format!("| {} |", cells.collect::<Vec<_>>().join(" | "));
        let mut table = line(&mut head.iter().copied());
        let rule = (0..head.len()).map(|column| if column == 0 { "---" } else { "---:" });
        let _ = write!(table, "\n{}", line(&mut rule.into_iter()));
        for row in rows {
            let _ = write!(table, "\n{}", line(&mut row.iter().map(String::as_str)));
        }
        self.print(&format!("{table}\n"));
    }

    fn print(&mut self, text: &str) {
        println!("{text}");
        self.0.push_str(text);
        self.0.push('\n');
    }

    pub fn write(&self, path: &Path) -> Result<()> {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        fs::write(path, self.0.trim_start()).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// The median; NaN of no value.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n => (values[(n - 1) / 2] + values[n / 2]) / 2.0,
    }
}

/// The median, with the minimum and the maximum in brackets.
pub fn spread(values: &[f64]) -> String {
    let (min, max) = values.iter().fold((f64::MAX, f64::MIN), |(a, b), value| (a.min(*value), b.max(*value)));
    format!("{:.2} ({min:.2}–{max:.2})", median(values.iter().copied()))
}

/// The machine, and the versions of Redis and PostgreSQL.
pub fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        text.lines().find_map(|line| line.strip_prefix(name)?.split(':').nth(1)).unwrap_or("?").trim().to_owned()
    };
    let (cpu, memory) = (read("/proc/cpuinfo"), read("/proc/meminfo"));
    let version = |program: std::path::PathBuf| {
        let output = std::process::Command::new(program).arg("--version").output();
        output.map_or("?".to_owned(), |output| {
            String::from_utf8_lossy(&output.stdout).split(" sha=").next().unwrap_or("?").trim().to_owned()
        })
    };
    let redis = firstcome::dev::redis_server().map_or("?".to_owned(), version);
    let postgres = firstcome::dev::postgres_bin_dir(None).map_or("?".to_owned(), |dir| version(dir.join("postgres")));
    format!(
        "{} × {}, {}, Linux {}; {redis}; {postgres}.",
        std::thread::available_parallelism().map_or(0, usize::from),
        field(&cpu, "model name"),
        field(&memory, "MemTotal"),
        read("/proc/sys/kernel/osrelease").trim(),
    )
}
