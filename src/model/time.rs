//! Instants, calendar days and the clock.

use std::{
    sync::{
        Arc, LazyLock,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use chrono::{DateTime, Datelike, NaiveDate, TimeZone, Timelike, Utc};
use chrono_tz::Tz;

/// An instant in milliseconds since the Unix epoch, UTC. Redis and PostgreSQL keep times at this resolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Millis(pub i64);

impl Millis {
    /// The latest accepted instant: the end of the year 9999.
    pub const MAX: Millis = Millis(253_402_300_799_999);

    /// The instant as chrono's type. Times outside chrono's range, which the crate never produces, become the epoch.
    pub fn to_utc(self) -> DateTime<Utc> {
        DateTime::from_timestamp_millis(self.0).unwrap_or_default()
    }

    /// The calendar day of this instant in `zone`.
    pub fn day(self, zone: Tz) -> NaiveDate {
        self.to_utc().with_timezone(&zone).date_naive()
    }

    /// The wall-clock time in `zone`, in whole seconds, as the API shows it: `2024-04-04T14:45:00`.
    pub fn local(self, zone: Tz) -> String {
        let local = self.to_utc().with_timezone(&zone).naive_local();
        // Nearly every reply has a time. chrono parses its format string on every call; this code does not.
        let mut text = String::with_capacity(19);
        let mut digits = |number: u32, width: u32, end: &str| {
            for place in (0..width).rev() {
                text.push(char::from(b'0' + (number / 10u32.pow(place) % 10) as u8));
            }
            text.push_str(end);
        };
        // `Millis::MAX` is in year 9999.
        digits(local.year().clamp(0, 9999) as u32, 4, "-");
        digits(local.month(), 2, "-");
        digits(local.day(), 2, "T");
        digits(local.hour(), 2, ":");
        digits(local.minute(), 2, ":");
        digits(local.second(), 2, "");
        text
    }

    /// The instant `milliseconds` later.
    pub fn plus(self, milliseconds: i64) -> Millis {
        Millis(self.0.saturating_add(milliseconds))
    }
}

impl From<DateTime<Utc>> for Millis {
    fn from(time: DateTime<Utc>) -> Self {
        Millis(time.timestamp_millis())
    }
}

/// A calendar day in a time zone, as a half-open range of instants.
#[derive(Clone, Copy, Debug)]
pub struct CalendarDay {
    pub date: NaiveDate,
    pub from: Millis,
    /// The first instant after the day.
    pub until: Millis,
}

impl CalendarDay {
    /// The day in `zone` that includes `now`.
    pub fn of(now: Millis, zone: Tz) -> Self {
        let date = now.day(zone);
        let until = date.succ_opt().map_or(Millis::MAX, |next| first_instant(next, zone));
        CalendarDay { date, from: first_instant(date, zone), until }
    }

    /// Whether the day includes `now`.
    pub fn includes(&self, now: Millis) -> bool {
        self.from <= now && now < self.until
    }
}

/// The first instant of a day: midnight, or the first quarter of an hour after it that the zone's clocks do not skip.
fn first_instant(day: NaiveDate, zone: Tz) -> Millis {
    let midnight = day.and_time(chrono::NaiveTime::MIN);
    let quarters = (0..=100).map(|quarter| midnight + chrono::TimeDelta::minutes(15 * quarter));
    let instant = quarters.filter_map(|at| zone.from_local_datetime(&at).earliest()).next();
    instant.map_or(Millis(midnight.and_utc().timestamp_millis()), |at| Millis(at.timestamp_millis()))
}

/// The source of the time: the system's clock, corrected to the store's, or a clock that a test sets.
#[derive(Clone, Debug)]
pub struct Clock(ClockSource);

#[derive(Clone, Debug)]
enum ClockSource {
    System(Arc<SystemClock>),
    Standing(Arc<StandingClock>),
}

#[derive(Debug, Default)]
struct SystemClock {
    /// An error that a test adds to the system's clock.
    skew_ms: i64,
    /// The store's clock minus this one.
    offset_ms: AtomicI64,
}

#[derive(Debug)]
struct StandingClock {
    now_ms: AtomicI64,
    uptime_us: AtomicU64,
}

impl Default for Clock {
    fn default() -> Self {
        Clock::system()
    }
}

impl Clock {
    /// The system's clock.
    pub fn system() -> Self {
        Clock::skewed(0)
    }

    /// The system's clock with an error of `skew_ms`; a negative one puts it behind.
    pub fn skewed(skew_ms: i64) -> Self {
        Clock(ClockSource::System(Arc::new(SystemClock { skew_ms, offset_ms: AtomicI64::new(0) })))
    }

    /// A clock that stands at `at` until a test advances it. Clones share the time.
    pub fn standing(at: Millis) -> Self {
        Clock(ClockSource::Standing(Arc::new(StandingClock { now_ms: at.0.into(), uptime_us: AtomicU64::default() })))
    }

    /// The time by the store's clock, for replies and records. Decisions use the store's clock itself.
    pub fn now(&self) -> Millis {
        match &self.0 {
            ClockSource::Standing(standing) => Millis(standing.now_ms.load(Ordering::SeqCst)),
            ClockSource::System(system) => self.own().plus(system.offset_ms.load(Ordering::Relaxed)),
        }
    }

    /// The time by this process's own clock.
    pub fn own(&self) -> Millis {
        match &self.0 {
            ClockSource::Standing(_) => self.now(),
            ClockSource::System(system) => Millis::from(Utc::now()).plus(system.skew_ms),
        }
    }

    /// Sets the offset of the store's clock from this process's own clock.
    pub fn correct(&self, offset_ms: i64) {
        if let ClockSource::System(system) = &self.0 {
            system.offset_ms.store(offset_ms, Ordering::Relaxed);
        }
    }

    /// The time of a standing clock; `None` for the system's.
    pub fn standing_at(&self) -> Option<Millis> {
        matches!(self.0, ClockSource::Standing(_)).then(|| self.now())
    }

    /// Microseconds since an arbitrary moment of this process. Monotonic: use it for durations.
    pub fn uptime_us(&self) -> u64 {
        static ORIGIN: LazyLock<Instant> = LazyLock::new(Instant::now);
        match &self.0 {
            ClockSource::Standing(standing) => standing.uptime_us.load(Ordering::SeqCst),
            // A u64 of microseconds lasts half a million years.
            ClockSource::System(_) => ORIGIN.elapsed().as_micros() as u64,
        }
    }

    /// Sleeps for `time`. A standing clock returns at once, and advances its uptime only.
    pub async fn sleep(&self, time: Duration) {
        match &self.0 {
            ClockSource::Standing(standing) => {
                let _ = standing.uptime_us.fetch_add(time.as_micros() as u64, Ordering::SeqCst);
            }
            ClockSource::System(_) => tokio::time::sleep(time).await,
        }
    }

    /// Advances a standing clock; does nothing to the system's.
    pub fn advance(&self, milliseconds: i64) {
        if let ClockSource::Standing(standing) = &self.0 {
            standing.now_ms.fetch_add(milliseconds, Ordering::SeqCst);
            standing.uptime_us.fetch_add(milliseconds.max(0) as u64 * 1000, Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn local_time_matches_chrono(ms in 0..=Millis::MAX.0 - 86_400_000) {
            for zone in [chrono_tz::Asia::Seoul, chrono_tz::America::New_York, chrono_tz::UTC] {
                let local = Millis(ms).to_utc().with_timezone(&zone).naive_local();
                prop_assert_eq!(Millis(ms).local(zone), local.format("%Y-%m-%dT%H:%M:%S").to_string());
            }
        }

        #[test]
        fn day_contains_exactly_the_instants_of_its_date(hours in 0..=700_000i64) {
            let now = Millis(hours * 3_600_000 + 1);
            // Cairo's and Beirut's clocks skip midnight, London's do not.
            for zone in [chrono_tz::Africa::Cairo, chrono_tz::Asia::Beirut, chrono_tz::Europe::London, chrono_tz::Asia::Seoul] {
                let day = CalendarDay::of(now, zone);
                prop_assert!(day.includes(now));
                prop_assert_eq!(day.from.day(zone), day.date);
                prop_assert_eq!(Millis(day.until.0 - 1).day(zone), day.date);
                prop_assert_ne!(Millis(day.from.0 - 1).day(zone), day.date);
                prop_assert_ne!(day.until.day(zone), day.date);
            }
        }
    }
}
