//! The ids of the records that an audit has compared, so that a scan of Redis need not ask PostgreSQL for each of them.

use crate::{model::Partition, postgres::queries::page::RecordKind};

/// The most ranges that are kept: 16 bytes each.
const MAX_RANGES: usize = 1_000_000;

/// Ids of a partition in ascending order, as ranges. Ids without a gap are one range.
struct IdRanges {
    of: (RecordKind, Partition),
    /// The first and the last id of each.
    ranges: Vec<(i64, i64)>,
}

/// The compared ids, in bounded memory: of records whose ids have many gaps, only some are known.
pub(super) struct ComparedIds {
    /// The difference between two successive ids of a partition.
    step: i64,
    kinds: Vec<IdRanges>,
    room: usize,
}

impl ComparedIds {
    pub(super) fn new(partitions: u16) -> Self {
        ComparedIds { step: partitions.into(), kinds: Vec::new(), room: MAX_RANGES }
    }

    /// Adds compared ids, in ascending order, above those added before.
    pub(super) fn add(&mut self, of: (RecordKind, Partition), ids: &[i64]) {
        let known = match self.kinds.iter().position(|kind| kind.of == of) {
            Some(at) => &mut self.kinds[at].ranges,
            None => {
                self.kinds.push(IdRanges { of, ranges: Vec::new() });
                let Some(last) = self.kinds.last_mut() else { return };
                &mut last.ranges
            }
        };
        for id in ids {
            match known.last_mut() {
                Some((_, last)) if last.checked_add(self.step) == Some(*id) => *last = *id,
                _ if self.room > 0 => {
                    self.room -= 1;
                    known.push((*id, *id));
                }
                _ => return,
            }
        }
    }

    /// Removes the ids that are compared, if that is known.
    pub(super) fn remove_from(&self, of: (RecordKind, Partition), ids: &mut Vec<i64>) {
        let Some(known) = self.kinds.iter().find(|kind| kind.of == of) else { return };
        ids.retain(|id| {
            let at = known.ranges.partition_point(|(first, _)| first <= id);
            let range = at.checked_sub(1).and_then(|at| known.ranges.get(at));
            !range.is_some_and(|(first, last)| id <= last && (id - first) % self.step == 0)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USERS: (RecordKind, Partition) = (RecordKind::Users, Partition(1));

    fn unknown(compared: &ComparedIds, of: (RecordKind, Partition), ids: &[i64]) -> Vec<i64> {
        let mut ids = ids.to_vec();
        compared.remove_from(of, &mut ids);
        ids
    }

    #[test]
    fn compared_id_known_and_no_other() {
        let mut compared = ComparedIds::new(3);
        compared.add(USERS, &[1, 4, 7]);
        compared.add(USERS, &[10, 19]);
        assert_eq!(compared.room, MAX_RANGES - 2);
        let all: Vec<i64> = (-2..24).collect();
        let others: Vec<i64> = all.iter().copied().filter(|id| ![1, 4, 7, 10, 19].contains(id)).collect();
        assert_eq!(unknown(&compared, USERS, &all), others);
        assert_eq!(unknown(&compared, (RecordKind::Orders, Partition(1)), &all), all);
        assert_eq!(unknown(&compared, (RecordKind::Users, Partition(2)), &all), all);
    }

    #[test]
    fn ids_beyond_room_unknown() {
        let mut compared = ComparedIds { room: 1, ..ComparedIds::new(1) };
        compared.add(USERS, &[1, 2, 9, 10]);
        compared.add(USERS, &[3]);
        assert_eq!(unknown(&compared, USERS, &[1, 2, 3, 9, 10]), [9, 10]);
    }
}
