//! Prepares a rebuild: freezes its partitions, and compares the two stores before anything is emptied.
//!
//! **A rebuild of some partitions, while the others decide.** Rows of PostgreSQL that two partitions share are compared:
//! coupons, and units that went from one to the other. So the others are projected up to where they were after
//! the freeze; their effects of decisions of a frozen partition are then in PostgreSQL. A step that one of
//! them lacks is taken by its scripts ([`repair`](super::repair)).

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use futures_util::future::try_join_all;

use super::{
    convert::has_stock_holds,
    findings::{PartitionFinding, beyond},
    rebuild::{QUIET_PERIOD, REASON, Rebuild, RebuildOptions},
};
use crate::{
    model::{Identity, Partition, Position, Scope},
    postgres::{self, loss, progress},
    redis::{LAYOUT, bulk::PartitionState},
};

/// How long the catch-up of a partition may make no progress.
const CATCH_UP_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(30);

impl Rebuild {
    /// Freezes the partitions, projects their outboxes, and finds out what is lost. Adds to `frozen` those that have to be opened again if
    /// the rebuild ends here.
    pub(super) async fn prepare(
        &self,
        identity: &Identity,
        options: &RebuildOptions,
        scope: &Scope,
        frozen: &mut Vec<Partition>,
    ) -> anyhow::Result<Vec<PartitionFinding>> {
        let mut states = BTreeMap::new();
        self.freeze(identity, scope, &mut states, frozen).await?;
        self.check_layouts(scope, &states).await?;
        for (here, state) in &states {
            if !state.rebuilding
                && let Some(gap) = self.projector.project(*here).await?
            {
                // A gap is a loss: the partition stays frozen even if the rebuild is refused.
                self.store.keep_closed(*here, &gap).await?;
                frozen.retain(|frozen| frozen != here);
            }
        }
        let findings = self.findings(&states).await?;
        check_losses(&findings, options)?;
        if !scope.is_all() {
            if let Some(barrier) = &self.barrier {
                barrier(scope.clone()).await?;
            }
            self.catch_up_others(identity, scope).await?;
        }
        Ok(findings)
    }

    /// Checks that a store of an earlier layout is rebuilt as a whole: units that partitions held for each other's orders move.
    async fn check_layouts(&self, scope: &Scope, states: &BTreeMap<Partition, PartitionState>) -> anyhow::Result<()> {
        let is_earlier =
            |state: &PartitionState| state.layout.is_some_and(|layout| layout < LAYOUT) && !state.rebuilding;
        if !scope.is_all() && (states.values().any(is_earlier) || has_stock_holds(&self.db).await?) {
            bail!("the store was written by an earlier version: rebuild all partitions at once");
        }
        Ok(())
    }

    /// Freezes the partitions of the scope that are not in `states` yet, and adds their states.
    async fn freeze(
        &self,
        identity: &Identity,
        scope: &Scope,
        states: &mut BTreeMap<Partition, PartitionState>,
        frozen: &mut Vec<Partition>,
    ) -> anyhow::Result<()> {
        let mut newly = Vec::new();
        for here in scope.iter().filter(|here| !states.contains_key(here)).collect::<Vec<_>>() {
            let state = self.store.partition_state(here).await?;
            check_store(identity, &state)?;
            // A partition without a readable state accepts no decision anyway.
            if let Some(position) = state.position.filter(|_| state.store.is_some()) {
                self.store.close(here, identity, position, REASON).await?;
                if state.frozen.is_none() {
                    newly.push(here);
                }
            }
            states.insert(here, state);
        }
        frozen.extend(&newly);
        if !newly.is_empty() || !scope.is_all() {
            // Running processes must notice the freeze before their reads find emptied data, and before the others are
            // compared.
            tokio::time::sleep(QUIET_PERIOD).await;
        }
        for here in newly {
            // A decision may have come between the read of the state and the freeze.
            let position = self.store.partition_state(here).await?.position;
            if let Some(state) = states.get_mut(&here) {
                state.position = position;
            }
        }
        Ok(())
    }

    /// Compares the state of each partition with the positions in PostgreSQL.
    async fn findings(&self, states: &BTreeMap<Partition, PartitionState>) -> anyhow::Result<Vec<PartitionFinding>> {
        let (projected, acknowledged) = (progress::projected(&self.db).await?, progress::acknowledged(&self.db).await?);
        let dead_letters = postgres::queries::dead_letters::counts_of_current_epoch(&self.db).await?;
        let losses = loss::read(&self.db).await?;
        let mut findings = Vec::new();
        for (here, state) in states.iter().map(|(here, state)| (*here, state.clone())) {
            let projected = projected.iter().find(|projected| projected.partition == here);
            let projected = projected.with_context(|| format!("PostgreSQL has no position of partition {}", here.0))?;
            let (projected, entry) = (projected.position, projected.stream_id.parse()?);
            let acknowledged = acknowledged.iter().find(|acknowledged| acknowledged.partition == here);
            let acknowledged = acknowledged.map(|acknowledged| acknowledged.position).unwrap_or_default();
            let (entries, highest) = self.store.unprojected(here, projected, entry).await?;
            let mut decided = highest.max(acknowledged).max(projected);
            let (mut known, mut unprojected) = (beyond(acknowledged, projected), 0);
            // A rebuilding partition has the state and the outbox of an interrupted rebuild: they count for nothing.
            if !state.rebuilding {
                decided = decided.max(state.position.unwrap_or_default());
                known = beyond(decided, projected);
                // A decision that the state counts and the outbox lacks is discarded too.
                unprojected = beyond(state.position.unwrap_or_default(), projected).max(entries as i64);
            }
            findings.push(PartitionFinding {
                here,
                state,
                projected,
                acknowledged,
                decided,
                unprojected,
                dead_letters: dead_letters.get(&here.0).copied().unwrap_or(0),
                lost: (known - unprojected).max(0),
                suspected: losses.iter().any(|loss| loss.partition == here.0 && loss.suspected),
            });
        }
        Ok(findings)
    }

    /// Projects the partitions outside the scope up to where they are now.
    async fn catch_up_others(&self, identity: &Identity, scope: &Scope) -> anyhow::Result<()> {
        let catch_up = async |here| {
            let state = self.store.partition_state(here).await?;
            check_store(identity, &state)?;
            match state.position.filter(|_| !state.rebuilding) {
                Some(decided) if is_live(&state) => self.projector.project_up_to(here, decided, CATCH_UP_TIMEOUT).await,
                // Its own rebuild gives it what PostgreSQL has: all that can still be projected.
                Some(_) => self.projector.project(here).await.map(drop),
                None => Ok(()),
            }
        };
        try_join_all(scope.others().map(catch_up)).await.map(drop)
    }
}

/// Whether a partition decides, by its state.
pub(super) fn is_live(state: &PartitionState) -> bool {
    state.position.is_some() && state.store.is_some() && state.frozen.is_none() && !state.rebuilding
}

fn check_store(identity: &Identity, state: &PartitionState) -> anyhow::Result<()> {
    if let Some(other) = state.store.as_ref().filter(|store| **store != identity.store) {
        bail!("Redis has store {other}, and PostgreSQL has store {}: they do not belong together", identity.store);
    }
    Ok(())
}

/// Checks that the options allow what the rebuild would discard, and that no bound is lower than a known loss.
fn check_losses(findings: &[PartitionFinding], options: &RebuildOptions) -> anyhow::Result<()> {
    let discarded: i64 = findings.iter().map(PartitionFinding::discarded).sum();
    if discarded > 0 && !options.discard {
        let describe = |finding: &PartitionFinding| {
            let PartitionFinding { here, unprojected, dead_letters, .. } = finding;
            format!("{} in partition {}, dead letters {dead_letters}", unprojected + dead_letters, here.0)
        };
        let each: Vec<String> = findings.iter().filter(|finding| finding.discarded() > 0).map(describe).collect();
        bail!(
            "a rebuild would discard {discarded} decisions that PostgreSQL does not have ({}): look at the dead letters and at \
             the projector's log first, and if PostgreSQL was restored from a backup, at whether a later one exists; \
             `firstcome rebuild --discard` goes back to what PostgreSQL has, and keeps off sale what the discarded decisions \
             may have sold",
            each.join("; ")
        );
    }
    for finding in findings {
        if let Some(bound) = options.lost_at_most.of(finding.here)
            && finding.lost > bound
        {
            bail!(
                "partition {} is known to have lost {} decisions that neither Redis nor PostgreSQL has: --lost-at-most {bound} \
                 can't be right",
                finding.here.0,
                finding.lost
            );
        }
    }
    Ok(())
}

/// The positions from which the partitions continue, in the next epoch of all of them.
pub(super) fn continuations(findings: &[PartitionFinding]) -> Vec<(Partition, Position)> {
    let epoch = findings.iter().map(|finding| finding.decided.epoch).max().unwrap_or(0) + 1;
    findings.iter().map(|finding| (finding.here, Position { epoch, seq: finding.decided.seq })).collect()
}
