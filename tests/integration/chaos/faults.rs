//! The kinds of faults, and which of them a run has.

use firstcome::config::{Ack, RecoveryMode};

use super::{history::Random, options::Options};

/// The part that a fault affects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    Redis,
    Postgres,
    /// The connections to either store, or the clients' connections to a service.
    RedisLink,
    PostgresLink,
    ClientLink,
    Gateway,
    /// Repaired last: a service does not start without the stores.
    Service,
    All,
}

/// How a link is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Link {
    Cut,
    Refuse,
    Delay,
    Stall,
    DropReplies,
    Silence,
}

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// `kill -9`.
    Kill(Target),
    /// SIGSTOP, and SIGCONT as the repair.
    Freeze(Target),
    /// SIGTERM, and a new start as the repair.
    Replace,
    On(Target, Link),
    /// Every write beyond the current size fails.
    DiskFull(Target),
    /// `maxmemory` at one byte.
    OutOfMemory,
    /// A script that runs until SCRIPT KILL.
    BusyScript,
    ClientPause,
    /// Redis as a replica of a server that does not exist.
    ReadOnly,
    ClientKill,
    ScriptFlush,
    /// The master is lost, and a replica takes its place that lacks its last decisions.
    Failover,
    /// The master is lost, and the Sentinels promote the replica.
    SentinelSwitch,
    /// The same as [`Failover`](Fault::Failover) with PostgreSQL and its standby.
    PostgresFailover,
    /// Redis's disk hangs; then what is not flushed is gone, but for a part of it.
    PowerLoss,
    /// A service's clock is a minute off.
    WrongClock,
    /// `firstcome rebuild` of a partition, killed in the middle and repeated.
    BrokenRebuild,
    /// The payment gateway hangs, replies with garbage, takes another amount, declines.
    LyingGateway,
}

pub use Fault::*;
pub use Link::*;
pub use Target::*;

impl Fault {
    pub const ALL: &[Fault] = &[
        Kill(Service),
        Kill(Redis),
        Kill(Postgres),
        Kill(All),
        Freeze(Service),
        Freeze(Redis),
        Freeze(Postgres),
        Replace,
        On(RedisLink, Cut),
        On(RedisLink, Refuse),
        On(RedisLink, Delay),
        On(RedisLink, Stall),
        On(RedisLink, DropReplies),
        On(RedisLink, Silence),
        On(PostgresLink, Cut),
        On(PostgresLink, Refuse),
        On(PostgresLink, Delay),
        On(PostgresLink, Stall),
        On(PostgresLink, DropReplies),
        On(PostgresLink, Silence),
        On(ClientLink, Cut),
        On(ClientLink, Delay),
        On(ClientLink, Stall),
        On(ClientLink, DropReplies),
        DiskFull(Redis),
        DiskFull(Postgres),
        OutOfMemory,
        BusyScript,
        ClientPause,
        ReadOnly,
        ClientKill,
        ScriptFlush,
        Failover,
        SentinelSwitch,
        PostgresFailover,
        PowerLoss,
        WrongClock,
        BrokenRebuild,
        LyingGateway,
    ];

    pub fn name(self) -> String {
        match self {
            Kill(target) => format!("kill -9 {target:?}"),
            Freeze(target) => format!("SIGSTOP {target:?}"),
            Replace => "SIGTERM Service".into(),
            On(target, link) => format!("{target:?}: {link:?}"),
            DiskFull(target) => format!("disk full: {target:?}"),
            Failover => "Redis fails over to a lagging replica".into(),
            SentinelSwitch => "Sentinels switch to the replica".into(),
            PostgresFailover => "PostgreSQL fails over to a lagging standby".into(),
            PowerLoss => "Redis loses its power".into(),
            WrongClock => "a clock is a minute off".into(),
            BrokenRebuild => "a rebuild is killed".into(),
            LyingGateway => "the gateway lies".into(),
            other => format!("Redis: {other:?}"),
        }
    }

    /// Whether a run with these settings may have the fault.
    pub fn suits(self, options: &Options) -> bool {
        if options.sentinels && matches!(self.target(), Redis | RedisLink | All) {
            // Sentinels make every other fault of Redis a switch, which the repair does not expect.
            return matches!(self, SentinelSwitch | WrongClock | BrokenRebuild);
        }
        match self {
            SentinelSwitch => false,
            // Only then processes make good what may be lost.
            Failover => options.replica && options.recovery == RecoveryMode::Automatic,
            PostgresFailover => options.standby && options.outbox_keep_seconds >= 60,
            PowerLoss => options.power_losses,
            LyingGateway => options.gateway.is_some(),
            _ => true,
        }
    }

    /// Changes settings so that a run with them may have the fault.
    pub fn enable(self, options: &mut Options) {
        match self {
            Failover => {
                (options.replica, options.sentinels, options.recovery) = (true, false, RecoveryMode::Automatic);
                // A replica that has each decision before its reply loses none.
                options.ack = if options.ack == Ack::Postgres { Ack::Postgres } else { Ack::Redis };
                // One may end while another one recovers.
                options.services = options.services.max(2);
            }
            SentinelSwitch => {
                (options.replica, options.sentinels, options.recovery) = (true, true, RecoveryMode::Automatic);
            }
            PostgresFailover => (options.standby, options.outbox_keep_seconds) = (true, 60),
            PowerLoss => (options.power_losses, options.sentinels) = (true, false),
            _ => {}
        }
    }

    /// Whether only few runs can have the fault: those draw it more often.
    pub fn is_rare(self) -> bool {
        matches!(self, Failover | SentinelSwitch | PostgresFailover | PowerLoss)
    }

    /// Whether a run may have both at once.
    pub fn goes_with(self, other: Fault) -> bool {
        let targets = [self.target(), other.target()];
        let fails_over = |fault: Fault| matches!(fault, Failover | SentinelSwitch | PostgresFailover);
        // What a replica and a standby lack at once is lost, whatever the replies waited for.
        !targets.contains(&All) && targets[0] != targets[1] && !(fails_over(self) && fails_over(other))
    }

    pub fn target(self) -> Target {
        match self {
            Kill(target) | Freeze(target) | On(target, _) | DiskFull(target) => target,
            Replace => Service,
            OutOfMemory | BusyScript | ClientPause | ReadOnly | ClientKill | ScriptFlush => Redis,
            Failover | SentinelSwitch | PowerLoss => Redis,
            PostgresFailover => Postgres,
            LyingGateway => Gateway,
            // These need the stores.
            WrongClock | BrokenRebuild => All,
        }
    }
}

/// The faults of a run, each kind as often as its weight says.
#[derive(Clone, Debug, PartialEq)]
pub struct Weights(pub Vec<(Fault, u64)>);

impl Weights {
    /// The sequence of this many faults: in each round every kind as often as its weight.
    pub fn plan(&self, faults: usize, random: &mut Random) -> Vec<Fault> {
        let round: Vec<Fault> = self.0.iter().flat_map(|(fault, weight)| vec![*fault; *weight as usize]).collect();
        assert!(!round.is_empty(), "no fault has a weight");
        let mut plan: Vec<Fault> = Vec::new();
        while plan.len() < faults {
            let mut round = round.clone();
            random.shuffle(&mut round);
            plan.extend(round);
        }
        plan.truncate(faults);
        plan
    }

    /// A kind that has a weight.
    pub fn pick(&self, random: &mut Random) -> Fault {
        let drawn: Vec<Fault> = self.0.iter().filter(|(_, weight)| *weight > 0).map(|(fault, _)| *fault).collect();
        *random.pick(&drawn)
    }

    /// Every fault that suits these settings once, but for rebuilds: goods that were withheld are not checked for linearizability.
    pub fn equal(options: &Options) -> Weights {
        let weight = |fault: Fault| u64::from(fault.suits(options) && fault != BrokenRebuild);
        Weights(Fault::ALL.iter().map(|fault| (*fault, weight(*fault))).collect())
    }
}
