//! The metrics of the process itself, from `/proc`; none on a system without it.

use std::{fs, sync::LazyLock};

use prometheus::proto::MetricFamily;
use rustix::param::{clock_ticks_per_second, page_size};

use super::{
    now_seconds,
    state::{family, one},
};

/// The start time of the process, by the system's clock at the first scrape.
static BEGAN: LazyLock<f64> = LazyLock::new(|| now_seconds() - uptime_seconds().unwrap_or(0.0));

/// Seconds since the start of the process.
fn uptime_seconds() -> Option<f64> {
    let uptime: f64 = fs::read_to_string("/proc/uptime").ok()?.split_whitespace().next()?.parse().ok()?;
    let began: f64 = Stat::read()?.began as f64 / clock_ticks_per_second() as f64;
    Some((uptime - began).max(0.0))
}

/// Fields of `/proc/self/stat`. Times are in clock ticks.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    cpu: u64,
    threads: u64,
    began: u64,
    resident_pages: u64,
}

impl Stat {
    fn read() -> Option<Stat> {
        Stat::parse(&fs::read_to_string("/proc/self/stat").ok()?)
    }

    /// Parses the line (see proc(5)). The name in parentheses may contain spaces and parentheses.
    fn parse(stat: &str) -> Option<Stat> {
        let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split_whitespace().collect();
        // The first of `fields` is field 3 of the manual page.
        let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        Some(Stat {
            cpu: number(14)? + number(15)?,
            threads: number(20)?,
            began: number(22)?,
            resident_pages: number(24)?,
        })
    }
}

/// The soft limit of open files.
fn max_fds() -> Option<f64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

pub(super) fn families() -> Vec<MetricFamily> {
    let version = vec![(vec![("version", env!("CARGO_PKG_VERSION").to_owned())], 1.0)];
    let of = |value: Option<f64>| value.map_or_else(Vec::new, one);
    let stat = Stat::read();
    let stat = |value: fn(&Stat) -> f64| of(stat.as_ref().map(value));
    let open_fds = fs::read_dir("/proc/self/fd").ok().map(|entries| entries.count() as f64);
    let families = [
        family("firstcome_build_info", "The version of the program.", version),
        family("firstcome_process_start_time_seconds", "Unix time of the start of the process.", one(*BEGAN)),
        family(
            "firstcome_process_cpu_seconds_total",
            "Seconds of CPU of the process, user and system.",
            stat(|stat| stat.cpu as f64 / clock_ticks_per_second() as f64),
        ),
        family(
            "firstcome_process_resident_memory_bytes",
            "Resident memory of the process.",
            stat(|stat| (stat.resident_pages * page_size() as u64) as f64),
        ),
        family("firstcome_process_threads", "Threads of the process.", stat(|stat| stat.threads as f64)),
        family("firstcome_process_open_fds", "Open file descriptors.", of(open_fds)),
        family("firstcome_process_max_fds", "Maximum number of open file descriptors.", of(max_fds())),
    ];
    families.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_stat_parsed_with_any_name() {
        let line = "42 (a (b) c) S 1 42 42 0 -1 4194560 9 0 0 0 150 50 7 8 20 0 5 0 12345 4096000 321 184 1 1 0 0 0";
        assert_eq!(Stat::parse(line), Some(Stat { cpu: 200, threads: 5, began: 12345, resident_pages: 321 }));
        assert_eq!(Stat::parse("42 (short) S 1"), None);
    }

    #[test]
    fn process_stat_of_self_found() {
        assert_eq!(families().len(), 7);
        assert!(uptime_seconds().unwrap() < 3600.0 * 24.0);
        assert!(max_fds().unwrap() > 1.0);
    }
}
