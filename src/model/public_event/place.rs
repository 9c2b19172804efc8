//! The order of the events, and how far a reader is.

use std::{fmt, str::FromStr};

use crate::model::{MAX_PARTITIONS, MAX_SAFE_INTEGER, Partition, Position, UnknownName};

/// The place of an event among those of its partition: that of its decision. A dead letter that is applied later comes after the newest
/// decision of that moment, with a number that no other one gets there: the seconds since 2020, or more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventPlace {
    pub epoch: i64,
    pub seq: i64,
    pub late: i64,
}

impl From<Position> for EventPlace {
    fn from(position: Position) -> Self {
        EventPlace { epoch: position.epoch, seq: position.seq, late: 0 }
    }
}

/// How far a reader of all partitions is. Its text is opaque to readers: the partition to read first, and the last place of each, as in
/// `0~1-17_1-4-1`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventCursor {
    first: u16,
    places: Vec<EventPlace>,
}

impl EventCursor {
    /// A cursor at these places, one of each partition.
    pub fn new(places: Vec<EventPlace>) -> Self {
        EventCursor { first: 0, places }
    }

    /// The number of partitions.
    pub fn partitions(&self) -> usize {
        self.places.len()
    }

    /// The last place of a partition.
    pub fn place(&self, here: Partition) -> EventPlace {
        self.places.get(usize::from(here.0)).copied().unwrap_or_default()
    }

    /// The partitions in the order in which they are to be read next: each is first in turn, so that none waits for another.
    pub fn order(&self) -> impl Iterator<Item = Partition> + use<> {
        let (first, n) = (self.first, self.places.len() as u16);
        (0..n).map(move |next| Partition((first + next) % n))
    }

    /// Moves one partition on.
    pub fn advance(&mut self, here: Partition, to: EventPlace) {
        if let Some(place) = self.places.get_mut(usize::from(here.0)) {
            *place = to;
        }
    }

    /// Reads this partition first next time.
    pub fn begin_with(&mut self, here: Partition) {
        self.first = here.0 % (self.places.len().max(1) as u16);
    }
}

impl fmt::Display for EventCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.first)?;
        for (n, EventPlace { epoch, seq, late }) in self.places.iter().enumerate() {
            write!(f, "{}{epoch}-{seq}", if n == 0 { '~' } else { '_' })?;
            if *late > 0 {
                write!(f, "-{late}")?;
            }
        }
        Ok(())
    }
}

impl FromStr for EventCursor {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, UnknownName> {
        let (first, places) = text.split_once('~').ok_or(UnknownName)?;
        let places: Vec<EventPlace> = places
            .split('_')
            .take(usize::from(MAX_PARTITIONS) + 1)
            .map(place)
            .collect::<Option<_>>()
            .ok_or(UnknownName)?;
        let first = number(first).and_then(|first| u16::try_from(first).ok()).ok_or(UnknownName)?;
        let fits = places.len() <= usize::from(MAX_PARTITIONS) && usize::from(first) < places.len();
        if fits { Ok(EventCursor { first, places }) } else { Err(UnknownName) }
    }
}

fn place(text: &str) -> Option<EventPlace> {
    let mut parts = text.split('-');
    let (epoch, seq) = (number(parts.next()?)?, number(parts.next()?)?);
    let late = parts.next().map_or(Some(0), number).filter(|late| *late <= i64::from(i32::MAX))?;
    parts.next().is_none().then_some(EventPlace { epoch, seq, late })
}

fn number(text: &str) -> Option<i64> {
    let is_decimal = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|number| is_decimal && *number <= MAX_SAFE_INTEGER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursor_text_round_trips_and_hostile_refused() {
        let mut cursor = EventCursor::new(vec![EventPlace { epoch: 1, seq: 17, late: 0 }, EventPlace::default()]);
        cursor.advance(Partition(1), EventPlace { epoch: 2, seq: 4, late: 3 });
        cursor.advance(Partition(9), EventPlace { epoch: 9, seq: 9, late: 9 });
        cursor.begin_with(Partition(3));
        assert_eq!(cursor.to_string(), "1~1-17_2-4-3");
        assert_eq!("1~1-17_2-4-3".parse(), Ok(cursor.clone()));
        assert_eq!(cursor.order().collect::<Vec<_>>(), [Partition(1), Partition(0)]);
        let longest = format!("0~{}", vec!["9007199254740991-9007199254740991-2147483647"; 256].join("_"));
        assert_eq!(longest.parse::<EventCursor>().unwrap().to_string(), longest);
        for hostile in [
            "",
            "0",
            "0~",
            "~1-1",
            "1~1-1",
            "0~1",
            "0~1-",
            "0~1-1-",
            "0~1-1-1-1",
            "0~+1-1",
            "0~1-१",
            "0~9007199254740992-1",
            "0~1-1-2147483648",
            "0~1-1_",
            "-1~1-1",
            "99999~1-1",
            &format!("{longest}_1-1"),
        ] {
            assert_eq!(hostile.parse::<EventCursor>(), Err(UnknownName), "{hostile}");
        }
    }

    #[test]
    fn places_ordered_by_epoch_then_decision_then_lateness() {
        let place = |epoch, seq, late| EventPlace { epoch, seq, late };
        let sorted = [place(1, 500, 0), place(1, 500, 1), place(1, 501, 0), place(2, 480, 0)];
        assert!(sorted.is_sorted());
    }
}
