//! Writes decisions as events of other systems, in the transaction that projects them, and removes those that are kept no longer.
//!
//! The table has a slot per week, in turn. A week ends as a whole: its slot is truncated, which costs nothing per event.

use std::time::Duration;

use sea_orm::{ConnectionTrait, DatabaseTransaction, DbBackend, DbErr, Statement};

use super::{Projector, apply::ApplyError};
use crate::{
    model::{Clock, Millis, Partition, event::Event, public_event::PublicEvent},
    postgres::{self, events::SLOTS},
    worker::{Worker, Workers},
};

/// How often the slots of past weeks are looked for.
const PURGE_INTERVAL: Duration = Duration::from_secs(600);
const DAY_MS: i64 = 86_400_000;
const WEEK_MS: i64 = 7 * DAY_MS;
/// The slot of this week, by PostgreSQL's clock, or by the time in `$1`. Decisions have the time of Redis, which may be wrong for a while.
const SLOT: &str = "mod(floor(coalesce($1::bigint, extract(epoch FROM now()) * 1000) / 604800000)::bigint, 16)";
const _: () = assert!(SLOTS == 16 && WEEK_MS == 604_800_000);
/// Seconds since 2020 by PostgreSQL's clock.
const SECONDS: &str = "least(extract(epoch FROM clock_timestamp()) - 1577836800, 2000000000)::integer";

/// Writes the events of a process.
#[derive(Clone)]
pub(super) struct EventSink {
    /// 0: no events are written.
    keep_days: i64,
    clock: Clock,
}

impl EventSink {
    pub(super) fn new(keep_days: u32, clock: Clock) -> Self {
        EventSink { keep_days: keep_days.into(), clock }
    }

    pub(super) fn is_on(&self) -> bool {
        self.keep_days > 0
    }

    /// Writes the events of decisions of a partition, in their sequence, unless events are off.
    pub(super) async fn write<'a>(
        &self,
        transaction: &DatabaseTransaction,
        here: Partition,
        events: impl Iterator<Item = &'a Event>,
    ) -> Result<(), ApplyError> {
        if !self.is_on() {
            return Ok(());
        }
        let (mut epochs, mut seqs, mut times) = (Vec::new(), Vec::new(), Vec::new());
        let (mut kinds, mut subjects, mut data) = (Vec::new(), Vec::new(), Vec::new());
        for event in events {
            let public = PublicEvent::of(event);
            epochs.push(event.epoch);
            seqs.push(event.seq);
            times.push(event.at.0);
            kinds.push(public.kind.as_str().to_owned());
            subjects.push(public.subject);
            data.push(public.data);
        }
        if seqs.is_empty() {
            return Ok(());
        }
        let sql = format!(
            "INSERT INTO events (slot, partition, epoch, seq, type, subject, at, data)
             SELECT (SELECT {SLOT}), $2, unnest($3::bigint[]), unnest($4::bigint[]), unnest($5::text[]), unnest($6::text[]),
                 to_timestamp(unnest($7::bigint[])::float8 / 1000), unnest($8::text[])"
        );
        let values = [
            self.standing_at().into(),
            i32::from(here.0).into(),
            epochs.into(),
            seqs.into(),
            kinds.into(),
            subjects.into(),
            times.into(),
            data.into(),
        ];
        transaction.execute_raw(Statement::from_sql_and_values(DbBackend::Postgres, sql, values)).await?;
        Ok(())
    }

    /// Writes the event of a dead letter of the current epoch that is applied now, after the newest one. The transaction has locked the
    /// partition's position. A place is not used again, also if a standby that takes over lacks this transaction.
    pub(super) async fn write_late(
        &self,
        transaction: &DatabaseTransaction,
        here: Partition,
        (seq, event): (i64, PublicEvent),
    ) -> Result<(), DbErr> {
        if !self.is_on() {
            // Its event is missing: every reader up to here has a gap.
            let sql = format!(
                "UPDATE projection_positions SET events_epoch = NULL, events_seq = NULL, events_after_epoch = epoch,
                     events_after_seq = seq, (events_late, events_after_late) = (SELECT late, late
                         FROM (SELECT greatest(events_late + 1, {SECONDS}) AS late) AS next)
                 WHERE partition = $1"
            );
            let values = [i32::from(here.0).into()];
            return transaction
                .execute_raw(Statement::from_sql_and_values(DbBackend::Postgres, sql, values))
                .await
                .map(drop);
        }
        let sql = format!(
            "WITH place AS (
                 UPDATE projection_positions AS p SET events_epoch = p.epoch, events_seq = p.seq,
                     (events_late, events_after_epoch, events_after_seq, events_after_late) = (SELECT
                         greatest(p.events_late + 1, {SECONDS}),
                         CASE WHEN kept THEN p.events_after_epoch ELSE p.epoch END,
                         CASE WHEN kept THEN p.events_after_seq ELSE p.seq END,
                         CASE WHEN kept THEN p.events_after_late ELSE p.events_late END
                         FROM (SELECT coalesce(p.events_epoch = p.epoch AND p.events_seq = p.seq, false) AS kept) AS run)
                 WHERE p.partition = $2 RETURNING epoch, seq, events_late
             )
             INSERT INTO events (slot, partition, epoch, seq, late, late_seq, type, subject, at, data)
             SELECT {SLOT}, $2, epoch, seq, events_late, $3, $4, $5, to_timestamp($6::float8 / 1000), $7 FROM place"
        );
        let values = [
            self.standing_at().into(),
            i32::from(here.0).into(),
            seq.into(),
            event.kind.as_str().into(),
            event.subject.into(),
            event.at.0.into(),
            event.data.into(),
        ];
        transaction.execute_raw(Statement::from_sql_and_values(DbBackend::Postgres, sql, values)).await?;
        Ok(())
    }

    /// The time that a test has set, which also PostgreSQL goes by.
    fn standing_at(&self) -> Option<i64> {
        self.clock.standing_at().map(|at| at.0)
    }

    /// The slots of the weeks that are not kept, by PostgreSQL's clock. The next week's is kept free.
    fn past_slots(&self, now: Millis) -> Vec<i16> {
        let from = if self.is_on() { (now.0 - self.keep_days * DAY_MS).div_euclid(WEEK_MS) } else { i64::MAX };
        let kept = (from..=now.0.div_euclid(WEEK_MS)).map(|week| slot_at(week * WEEK_MS));
        let kept: Vec<i16> = kept.collect();
        (0..SLOTS).filter(|slot| !kept.contains(slot)).collect()
    }

    /// The time from which every decision is kept, by the clock that is behind the other: one that ran ahead removes nothing.
    fn kept_from(&self, now: Millis) -> Option<Millis> {
        self.is_on().then(|| now.min(self.clock.now()).plus(-self.keep_days * DAY_MS))
    }
}

fn slot_at(ms: i64) -> i16 {
    ms.div_euclid(WEEK_MS).rem_euclid(i64::from(SLOTS)) as i16
}

impl Projector {
    /// Whether decisions are kept as events.
    pub fn keeps_events(&self) -> bool {
        self.events.is_on()
    }

    /// Starts the worker that removes events.
    pub(super) fn keep_purging_events(&self, workers: &Workers) {
        let this = self.clone();
        workers.every(Worker::EventPurge, PURGE_INTERVAL, move || {
            let this = this.clone();
            async move {
                if let Err(error) = this.purge_events().await {
                    tracing::debug!(%error, "past events are not removed yet");
                }
            }
        });
    }

    /// Removes the events that are kept no longer.
    ///
    /// # Errors
    /// PostgreSQL is unavailable, or a reader holds a slot.
    pub async fn purge_events(&self) -> sqlx::Result<()> {
        let now = match self.events.clock.standing_at() {
            Some(at) => at,
            None => postgres::events::now(&self.db).await?,
        };
        for slot in self.events.past_slots(now) {
            postgres::events::purge(&self.db, slot, self.events.kept_from(now)).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_of_kept_weeks_remain() {
        for keep_days in [1, 7, 30, 98] {
            for hours in 0..24 * 7 * i64::from(SLOTS) {
                let now = 1_772_427_600_000 + hours * 3_600_000;
                let sink = EventSink::new(keep_days, Clock::standing(Millis(now)));
                let past = sink.past_slots(Millis(now));
                for days in 0..=i64::from(keep_days) {
                    assert!(!past.contains(&slot_at(now - days * DAY_MS)), "{keep_days} days, {days} ago");
                }
                assert!(past.contains(&slot_at(now + WEEK_MS)), "the next week has room");
            }
        }
        let off = EventSink::new(0, Clock::standing(Millis(1_772_427_600_000)));
        assert_eq!(off.past_slots(Millis(1_772_427_600_000)).len(), SLOTS as usize);
        assert_eq!(off.kept_from(Millis(0)), None);
    }

    #[test]
    fn decisions_kept_by_clock_that_is_behind() {
        let now = Millis::from(chrono::Utc::now());
        for (skew_days, postgres_days) in [(31, 0), (0, 31), (31, 40), (0, 0)] {
            let sink = EventSink::new(30, Clock::skewed(skew_days * DAY_MS));
            let kept_from = sink.kept_from(now.plus(postgres_days * DAY_MS)).unwrap();
            let least = skew_days.min(postgres_days) - 30;
            assert!((kept_from.0 - now.plus(least * DAY_MS).0).abs() < DAY_MS, "{skew_days} {postgres_days}");
        }
    }
}
