//! CPU time of the processes, user and system, from `/proc`.

use std::{fs, ops::Sub};

/// Seconds of CPU of each process since its start.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cpu {
    pub service: f64,
    pub redis: f64,
    pub postgres: f64,
    pub generator: f64,
}

impl Cpu {
    /// Service, Redis and Postgres together.
    pub fn servers(self) -> f64 {
        self.service + self.redis + self.postgres
    }
}

impl Sub for Cpu {
    type Output = Cpu;

    fn sub(self, before: Cpu) -> Cpu {
        Cpu {
            service: self.service - before.service,
            redis: self.redis - before.redis,
            postgres: self.postgres - before.postgres,
            generator: self.generator - before.generator,
        }
    }
}

/// Seconds of CPU of a process, its reaped children and its live children.
pub fn of_family(pid: u32) -> f64 {
    let own = stat(pid).map_or(0.0, |stat| stat.own + stat.reaped);
    let children = fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| {
        let child = stat(entry.file_name().to_str()?.parse().ok()?)?;
        (child.parent == pid).then_some(child.own + child.reaped)
    });
    own + children.sum::<f64>()
}

/// Seconds of CPU of a process and its reaped children.
pub fn of(pid: u32) -> f64 {
    stat(pid).map_or(0.0, |stat| stat.own + stat.reaped)
}

/// Ticks per second of the CPU times in `/proc`: the same on every supported architecture.
const USER_HZ: f64 = 100.0;

struct Stat {
    parent: u32,
    own: f64,
    reaped: f64,
}

fn stat(pid: u32) -> Option<Stat> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may contain spaces and parentheses.
    let fields: Vec<&str> = stat[stat.rfind(')')? + 1..].split_whitespace().collect();
    let ticks = |index: usize| fields.get(index)?.parse::<f64>().ok();
    Some(Stat {
        parent: fields.get(1)?.parse().ok()?,
        own: (ticks(11)? + ticks(12)?) / USER_HZ,
        reaped: (ticks(13)? + ticks(14)?) / USER_HZ,
    })
}
