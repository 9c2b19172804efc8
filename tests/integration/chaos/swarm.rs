//! What the seed of a run draws: the settings of the processes, the kinds of faults, and the load.
//!
//! A run with every fault at once hides what needs many of one kind, and one kind of settings hides the others. So each seed draws
//! its own, and leaves kinds of faults out; many seeds together cover everything.

use firstcome::config::{Ack, RecoveryMode};

use super::{
    faults::{Fault, Weights},
    history::Random,
    options::Options,
};
use crate::support::fake_gateway::Protocol;

/// The largest weight of a fault.
const MAX_WEIGHT: u64 = 9;
/// What distinguishes the draw from the other uses of a seed.
const STREAM: u64 = 0x5357_4152_4D00_0000;

/// Faults that need settings of their own: of as many seeds in a row, each has another one for certain.
const CERTAIN: [Option<Fault>; 5] =
    [None, Some(Fault::Failover), Some(Fault::PowerLoss), Some(Fault::PostgresFailover), Some(Fault::SentinelSwitch)];

/// A run: everything that a seed decides but the requests and the moments.
#[derive(Clone, Debug, PartialEq)]
pub struct Draw {
    pub seed: u64,
    pub options: Options,
    pub weights: Weights,
    pub faults: usize,
    pub clients: u64,
    /// Attempts that the clients may make in 50 ms of a fault.
    pub load: usize,
}

impl Draw {
    /// A run with each kind of fault equally often, and these settings.
    pub fn fixed(seed: u64, options: Options, faults: usize, clients: u64) -> Draw {
        let weights = Weights::equal(&options);
        Draw { seed, options: options.with_goods_for(100 * faults as i64), weights, faults, clients, load: 3 }
    }

    /// The draw of a seed.
    pub fn of(seed: u64, faults: usize) -> Draw {
        let mut random = Random::new(seed ^ STREAM);
        let sentinels = random.percent(15);
        let replica = random.percent(50) || sentinels;
        let acks = [Ack::Redis, Ack::Postgres, if replica { Ack::Replica } else { Ack::Redis }];
        // A failover may lose what the replica lacked.
        let modes = [RecoveryMode::Automatic, RecoveryMode::Automatic, RecoveryMode::Lossless, RecoveryMode::Manual];
        let load = *random.pick(&[3, 6, 12]);
        let mut options = Options {
            partitions: *random.pick(&[1, 3, 8, 16]),
            services: *random.pick(&[1, 2, 2, 3]),
            hold_seconds: *random.pick(&[1, 2, 3, 5]),
            outbox_keep_seconds: *random.pick(&[0, 5, 60, 60]),
            ack: *random.pick(&acks),
            replica,
            standby: random.percent(40),
            sentinels,
            gateway: random.percent(60).then(|| *random.pick(&Protocol::ALL)),
            power_losses: random.percent(50),
            batch: *random.pick(&[1, 7, 100, 1000]),
            linger_ms: *random.pick(&[0, 50, 300]),
            sold_out_lease_ms: *random.pick(&[0, 200, 1000]),
            closed_keep_seconds: *random.pick(&[60, 61, 90]),
            recovery: *random.pick(if sentinels { &modes[..1] } else { &modes }),
            recovery_wait_seconds: *random.pick(&[0, 1, 3]),
            ..Options::default()
        };
        let certain = CERTAIN[(seed % CERTAIN.len() as u64) as usize];
        if let Some(fault) = certain {
            fault.enable(&mut options);
        }
        let options = options.with_goods_for(35 * (faults * load) as i64);
        let mut weights = Vec::new();
        for fault in Fault::ALL {
            let weight = if random.percent(35) { 0 } else { random.within(1, 3) as u64 };
            let weight = if fault.is_rare() { 3 * weight } else { weight };
            let weight = if certain == Some(*fault) { MAX_WEIGHT } else { weight };
            weights.push((*fault, if fault.suits(&options) { weight } else { 0 }));
        }
        if weights.iter().all(|(_, weight)| *weight == 0) {
            weights[0].1 = 1;
        }
        let clients = *random.pick(&[4, 8, 16]);
        Draw { seed, options, weights: Weights(weights), faults, clients, load }
    }

    /// Prints the command that repeats the run.
    pub fn print_command(&self) {
        let Draw { seed, faults, clients, .. } = self;
        println!("repeat with: CHAOS_SEED={seed} CHAOS_FAULTS={faults} CHAOS_CLIENTS={clients} make chaos");
    }
}

impl std::fmt::Display for Draw {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Draw { seed, options, weights, faults, clients, load } = self;
        writeln!(f, "seed {seed}: {faults} faults, {clients} clients, {load} attempts in 50 ms")?;
        writeln!(f, "{options}")?;
        let (drawn, left_out): (Vec<_>, Vec<_>) = weights.0.iter().partition(|(_, weight)| *weight > 0);
        let drawn: Vec<String> = drawn.iter().map(|(fault, weight)| format!("{} ×{weight}", fault.name())).collect();
        write!(f, "faults: {}; {} kinds left out", drawn.join(", "), left_out.len())
    }
}

#[test]
fn seed_draws_the_same_run_again() {
    for seed in 0..50 {
        let draw = Draw::of(seed, 20);
        assert_eq!(draw, Draw::of(seed, 20));
        let plan = |draw: &Draw| draw.weights.plan(20, &mut Random::new(seed));
        assert_eq!(plan(&draw), plan(&Draw::of(seed, 20)));
        assert_eq!(format!("{draw}"), format!("{}", Draw::of(seed, 20)));
    }
}

#[test]
fn seeds_in_a_row_have_each_rare_fault() {
    for seed in 0..100 {
        let draw = Draw::of(seed, 20);
        let weights = draw.weights.0.iter().filter(|(_, weight)| *weight > 0);
        let certain = CERTAIN[(seed % 5) as usize];
        assert!(certain.is_none_or(|fault| weights.clone().any(|(drawn, _)| *drawn == fault)), "{draw}");
        assert!(weights.clone().all(|(drawn, _)| drawn.suits(&draw.options)), "{draw}");
    }
}

#[test]
fn seeds_cover_every_setting_and_leave_every_fault_out() {
    let draws: Vec<Draw> = (0..300).map(|seed| Draw::of(seed, 20)).collect();
    for number in 0..draws[0].options.environment().len() {
        let value = |draw: &Draw| draw.options.environment()[number].clone();
        let values: std::collections::BTreeSet<_> = draws.iter().map(value).collect();
        let constant = ["ACK_REPLICA_TIMEOUT_MS", "REDIS_DURABILITY"].contains(&value(&draws[0]).0);
        assert_eq!(values.len() == 1, constant, "{values:?}");
    }
    for (number, fault) in Fault::ALL.iter().enumerate() {
        let weights: std::collections::BTreeSet<u64> = draws.iter().map(|draw| draw.weights.0[number].1).collect();
        let scale = if fault.is_rare() { 3 } else { 1 };
        assert_eq!(weights, [0, scale, 2 * scale, 3 * scale].into(), "{fault:?}");
    }
    for protocol in Protocol::ALL {
        assert!(draws.iter().any(|draw| draw.options.gateway == Some(protocol)), "{protocol:?}");
    }
    assert!(draws.iter().any(|draw| draw.options.gateway.is_none()));
    assert!(draws.iter().all(|draw| draw.options.ack != Ack::Replica || draw.options.replica));
}

#[test]
fn plan_has_the_drawn_faults_alone() {
    let weights = Weights(vec![(Fault::Replace, 2), (Fault::BusyScript, 0), (Fault::OutOfMemory, 1)]);
    let plan = weights.plan(30, &mut Random::new(1));
    let count = |fault: Fault| plan.iter().filter(|other| **other == fault).count();
    assert_eq!((count(Fault::Replace), count(Fault::BusyScript), count(Fault::OutOfMemory)), (20, 0, 10));
}
