//! The roll call: who decides on a partition, and what each of them acknowledged.
//!
//! Every process keeps its *word* in the partition: the history that it works with, the last position that it acknowledged, and
//! the time. It renews the word twice a second, by its checks. A *history* is that of one server: it ends when the partition
//! moves to another server (a failover, a restart, a resharding), or when the server has lost decisions. A partition with a new
//! history decides only after every process has given its word for it: a replica that was promoted may lack decisions that another
//! process has acknowledged and has not reported to PostgreSQL yet.
//!
//! The first word for a history is final for the history before: from then on the process acknowledges no reply that it had asked
//! for before. A process acknowledges only within [`VERIFIED_FOR`] of a successful check, so that a word older than [`RECENT`]
//! before the newest one belongs to a process that had ended by then; the newer words cover what it acknowledged. What it confirmed to
//! clients is at most the position at the first check after its end: every process that lives adds that to its own word.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use redis::{RedisError, aio::MultiplexedConnection};

use super::{Store, keys::Keys, progress::Checked};
use crate::{
    config::Ack,
    model::{Error, Millis, Partition, Position, Word},
};

/// The time after a successful check for which a process acknowledges decisions without another check.
pub(super) const VERIFIED_FOR: Duration = Duration::from_secs(2);
/// The age, before the newest word, up to which the process of a word may still acknowledge decisions. Also the time for which a
/// process that gives no word holds up the others.
pub(super) const RECENT: Duration = Duration::from_secs(3);
/// The age from which a check renews a word that says the same: just below the interval of a process's own checks. A probe of
/// readiness checks more often, and writes nothing.
const RENEWED_AFTER: Duration = Duration::from_millis(400);
// Whoever may still acknowledge has a recent word.
const _: () = assert!(VERIFIED_FOR.as_millis() + RENEWED_AFTER.as_millis() < RECENT.as_millis());
/// How long a stop waits for Redis to forget this process.
const WITHDRAWAL_TIMEOUT: Duration = Duration::from_secs(1);
/// The age at which a word is removed.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(3600);

fn pack(word: &Word) -> String {
    let Word { history, acknowledged, confirmed, at, drained, before_postgres } = word;
    let (drained, before_postgres) = (i64::from(*drained), i64::from(*before_postgres));
    let numbers =
        [acknowledged.epoch, acknowledged.seq, confirmed.epoch, confirmed.seq, at.0, drained, before_postgres];
    numbers.iter().fold(history.clone(), |packed, number| format!("{packed} {number}"))
}

fn unpack(packed: &str) -> Option<Word> {
    let mut parts = packed.split(' ');
    let history = parts.next()?.to_owned();
    let mut number = || parts.next()?.parse::<i64>().ok();
    let acknowledged = Position { epoch: number()?, seq: number()? };
    let confirmed = Position { epoch: number()?, seq: number()? };
    let (at, drained) = (Millis(number()?), number()? == 1);
    // Earlier versions do not say it.
    let before_postgres = number() == Some(1);
    Some(Word { history, acknowledged, confirmed, at, drained, before_postgres })
}

/// A word that says nothing else than its text, in the form of this version or of an earlier one.
pub(super) fn unpack_exactly(packed: &str) -> Option<Word> {
    unpack(packed).filter(|word| {
        let text = pack(word);
        text == packed || text.strip_suffix(" 0") == Some(packed)
    })
}

/// The words of a partition's processes, by the id of the process.
type Words = HashMap<String, Word>;

/// The history of a partition on a server: it changes with a restart, with a promotion, and when the server has `lost` decisions.
pub(super) fn history(run_id: &str, replication_id: &str, lost: bool) -> String {
    format!("{run_id}:{replication_id}{}", if lost { "!" } else { "" })
}

/// Whether a check has to give this word, after `last` of the same process.
fn is_due(last: &Word, word: &Word) -> bool {
    let same = (&last.history, last.drained) == (&word.history, word.drained);
    !same || !(0..RENEWED_AFTER.as_millis() as i64).contains(&(word.at.0 - last.at.0))
}

/// Reads the words of a partition.
async fn read_words(link: &mut MultiplexedConnection, here: Partition) -> Result<Words, RedisError> {
    let packed = redis::cmd("HGETALL").arg(Keys(here).instances()).query_async(link).await?;
    Ok(unpack_all(packed))
}

fn unpack_all(packed: HashMap<String, String>) -> Words {
    packed.into_iter().filter_map(|(id, word)| Some((id, unpack(&word)?))).collect()
}

/// Gives the word of process `id`. Returns the words before, its own included.
async fn give_word(
    link: &mut MultiplexedConnection,
    here: Partition,
    id: &str,
    word: &Word,
) -> Result<Words, RedisError> {
    let key = Keys(here).instances();
    let mut give = redis::pipe();
    give.atomic();
    give.cmd("HGETALL").arg(&key);
    give.cmd("HSET").arg(&key).arg(id).arg(pack(word)).ignore();
    let (packed,): (HashMap<String, String>,) = give.query_async(link).await?;
    let words = unpack_all(packed);
    let horizon = word.at.0 - FORGOTTEN_AFTER.as_millis() as i64;
    let forgotten: Vec<&String> = words.iter().filter(|(_, word)| word.at.0 < horizon).map(|(id, _)| id).collect();
    if !forgotten.is_empty() {
        redis::cmd("HDEL").arg(&key).arg(forgotten).query_async::<()>(link).await?;
    }
    Ok(words)
}

/// The command that withdraws the word of process `id`.
fn withdrawal(here: Partition, id: &str) -> redis::Cmd {
    redis::cmd("HDEL").arg(Keys(here).instances()).arg(id).to_owned()
}

/// The result of a roll call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RollCall {
    /// The highest position in the words for the history.
    pub acknowledged: Position,
    /// The highest position that a word says to be confirmed, also for an earlier history.
    pub confirmed: Position,
    /// The processes that worked with an earlier history until it ended, and have not given their word for this one, sorted.
    pub silent: Vec<String>,
    /// Whether an operation is in progress that a process had begun before its word.
    pub draining: bool,
}

/// Calls the roll of a history. `before`: the words as this process knew them before the history changed, which a server that lost
/// its data does not have.
fn call(history: &str, id: &str, words: &Words, before: &Words) -> RollCall {
    let mut roll = RollCall::default();
    let newest = words.values().map(|word| word.at.0).max().unwrap_or(0);
    let recent = |at: Millis, newest: i64| at.0 >= newest - RECENT.as_millis() as i64;
    for word in words.values().filter(|word| word.history == history) {
        roll.acknowledged = roll.acknowledged.max(word.acknowledged);
        roll.draining |= !word.drained && recent(word.at, newest);
    }
    let confirmed = before.values().chain(words.values()).map(|word| word.confirmed);
    roll.confirmed = confirmed.max().unwrap_or_default();
    let spoken = |other: &String| words.get(other).is_some_and(|word| word.history == history);
    let earlier: HashMap<&String, Millis> = before
        .iter()
        .chain(words)
        .filter(|(_, word)| word.history != history)
        .fold(HashMap::new(), |mut latest, (other, word)| {
            latest.entry(other).and_modify(|at: &mut Millis| *at = (*at).max(word.at)).or_insert(word.at);
            latest
        });
    let newest = earlier.values().max().map_or(0, |at| at.0);
    let silent = earlier.into_iter().filter(|(other, at)| *other != id && recent(*at, newest) && !spoken(other));
    roll.silent = silent.map(|(other, _)| other.clone()).collect();
    roll.silent.sort_unstable();
    roll
}

/// The processes that had ended when the newest of these words was given, and may have confirmed what PostgreSQL lacks.
fn ended(words: &Words) -> HashSet<String> {
    let newest = words.values().map(|word| word.at.0).max().unwrap_or(0);
    let horizon = newest - RECENT.as_millis() as i64;
    let ended = words.iter().filter(|(_, word)| word.before_postgres && word.at.0 < horizon);
    ended.map(|(id, _)| id.clone()).collect()
}

impl Store {
    /// Takes over what processes may have confirmed that have ended since the last check: at most this position of the partition,
    /// which was read after their ends.
    pub(super) fn cover_ended(&self, here: Partition, position: Position, checked: &mut Checked) {
        let ended = ended(&checked.words);
        if !ended.is_subset(&checked.ended) {
            self.watermark(here).record_confirmed_by_others(position);
        }
        checked.ended = ended;
    }

    /// Gives this process's word for the history, and calls the roll.
    pub(super) async fn call_roll(
        &self,
        instance: &str,
        here: Partition,
        link: &mut MultiplexedConnection,
        (history, at): (String, Millis),
        checked: &mut Checked,
    ) -> Result<RollCall, RedisError> {
        let watermark = self.watermark(here);
        let changed = checked.history.as_ref().is_none_or(|(known, _)| *known != history);
        let acknowledged = if changed { watermark.give_word() } else { watermark.acknowledged() };
        if changed {
            checked.begun_before = Some(self.shared.operations.replace());
        }
        let drained = checked.begun_before.as_ref().is_none_or(|begun| Arc::strong_count(begun) == 1);
        let confirmed = self.confirmed(here);
        let before_postgres = self.shared.guard.get().is_some_and(|guard| guard.ack != Ack::Postgres);
        let word = Word { history: history.clone(), acknowledged, confirmed, at, drained, before_postgres };
        let (words, word) = match checked.words.get(instance) {
            Some(last) if !is_due(last, &word) => (read_words(link, here).await?, last.clone()),
            _ => (give_word(link, here, instance, &word).await?, word),
        };
        if changed {
            checked.words_before.extend(std::mem::take(&mut checked.words));
            checked.history = Some((history.clone(), Instant::now()));
        }
        checked.words = words;
        checked.words.insert(instance.to_owned(), word);
        let roll = call(&history, instance, &checked.words, &checked.words_before);
        watermark.advance(roll.acknowledged);
        watermark.record_confirmed_by_others(roll.confirmed);
        Ok(roll)
    }

    /// Withdraws this process's word from every partition, after its last acknowledgement: no process waits for it any more. A word
    /// that stays, because Redis does not answer, holds the others up for a moment only.
    pub async fn withdraw_word(&self) {
        if self.shared.guard.get().is_none() {
            return;
        }
        let instance = self.instance().to_string();
        let withdrawing = async {
            for here in self.all() {
                self.query_unchecked::<i64>(here, &withdrawal(here, &instance)).await?;
            }
            Ok::<_, Error>(())
        };
        match tokio::time::timeout(WITHDRAWAL_TIMEOUT, withdrawing).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "the word of this process stays in Redis"),
            Err(_) => tracing::debug!("the word of this process stays in Redis, which does not answer"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(history: &str, seq: i64, at: i64) -> Word {
        let (acknowledged, confirmed) = (Position { epoch: 1, seq }, Position { epoch: 1, seq: seq - 1 });
        let at = Millis(at);
        Word { history: history.to_owned(), acknowledged, confirmed, at, drained: true, before_postgres: true }
    }

    fn roll(acknowledged: i64, confirmed: i64, silent: &[&str]) -> RollCall {
        let silent = silent.iter().map(|id| (*id).to_owned()).collect();
        let [acknowledged, confirmed] = [acknowledged, confirmed].map(|seq| Position { epoch: 1, seq });
        RollCall { acknowledged, confirmed, silent, draining: false }
    }

    fn words(words: &[(&str, Word)]) -> Words {
        words.iter().map(|(id, word)| ((*id).to_owned(), word.clone())).collect()
    }

    #[test]
    fn word_unpacked_as_packed() {
        let given = word("0d12ab:77fe", 42, 1_700_000_000_123);
        let packed = pack(&given);
        // Of an earlier version.
        let shorter = packed.rsplit_once(' ').unwrap().0;
        for unpack in [unpack, unpack_exactly] {
            assert_eq!(unpack(&packed), Some(given.clone()));
            assert_eq!(unpack(shorter), Some(Word { before_postgres: false, ..given.clone() }));
        }
        for other in
            [format!("{packed} 1"), format!("{packed} "), packed.replace(" 42", " 042"), format!("{shorter} 2")]
        {
            assert_eq!(unpack_exactly(&other), None, "{other}");
        }
        for bad in ["", "a", "a 1", "a 1 2 3 4 5", "a 1 2 3 4 5 x"] {
            assert_eq!(unpack(bad), None, "{bad}");
        }
    }

    #[test]
    fn word_due_when_it_says_more_than_the_last_or_the_last_is_old() {
        let last = word("same", 5, 10_000);
        let renewed_after = RENEWED_AFTER.as_millis() as i64;
        for (at, due) in
            [(10_000, false), (9_999 + renewed_after, false), (10_000 + renewed_after, true), (9_999, true)]
        {
            assert_eq!(is_due(&last, &word("same", 6, at)), due, "{at}");
        }
        assert!(is_due(&last, &word("new", 5, 10_001)));
        assert!(is_due(&Word { drained: false, ..last.clone() }, &last));
    }

    #[test]
    fn process_silent_when_it_gave_its_word_for_the_history_before_only() {
        let known =
            words(&[("me", word("new", 5, 10_000)), ("b", word("old", 9, 9_800)), ("c", word("new", 7, 9_000))]);
        assert_eq!(call("new", "me", &known, &Words::new()), roll(7, 8, &["b"]));
    }

    #[test]
    fn process_covered_when_it_ended_before_the_newest_word() {
        let recent = RECENT.as_millis() as i64;
        let known = words(&[("ended", word("old", 9, 10_000)), ("b", word("old", 9, 10_001 + recent))]);
        assert_eq!(call("new", "me", &known, &Words::new()).silent, ["b"]);
        let known = words(&[("ended", word("old", 9, 10_000)), ("b", word("old", 9, 10_000 + recent))]);
        assert_eq!(call("new", "me", &known, &Words::new()).silent, ["b", "ended"]);
    }

    #[test]
    fn process_ended_when_its_word_is_older_than_that_of_another() {
        let recent = RECENT.as_millis() as i64;
        let of = |at| ended(&words(&[("me", word("same", 9, 10_000)), ("b", word("same", 9, at))]));
        assert!(of(10_000 - recent).is_empty());
        assert_eq!(of(9_999 - recent), HashSet::from(["b".to_owned()]));
        let waits = Word { before_postgres: false, ..word("same", 9, 1) };
        assert!(ended(&words(&[("me", word("same", 9, 10_000)), ("b", waits)])).is_empty(), "PostgreSQL has it all");
    }

    #[test]
    fn own_word_before_covers_processes_that_had_ended() {
        let known = words(&[("ended", word("old", 9, 1_000)), ("me", word("old", 9, 9_000))]);
        assert_eq!(call("new", "me", &known, &Words::new()).silent, Vec::<String>::new());
    }

    #[test]
    fn processes_called_from_memory_when_the_server_is_empty() {
        let before = words(&[("me", word("old", 4, 9_000)), ("b", word("old", 6, 8_900))]);
        assert_eq!(call("new", "me", &Words::new(), &before).silent, ["b"]);
        let spoken = words(&[("b", word("new", 8, 100))]);
        assert_eq!(call("new", "me", &spoken, &before), roll(8, 7, &[]));
    }

    #[test]
    fn no_process_silent_when_history_unchanged() {
        let known = words(&[("b", word("same", 9, 1)), ("c", word("same", 3, 9_000_000))]);
        assert_eq!(call("same", "me", &known, &known), roll(9, 8, &[]));
    }

    #[test]
    fn roll_draining_while_process_that_lives_has_operations_from_before() {
        let begun = |at: i64| Word { drained: false, ..word("new", 5, at) };
        let ended = 10_000 - RECENT.as_millis() as i64 - 1;
        for (at, draining) in [(10_000, true), (9_000, true), (ended, false)] {
            let known = words(&[("me", word("new", 5, 10_000)), ("b", begun(at))]);
            assert_eq!(call("new", "me", &known, &Words::new()).draining, draining, "{at}");
        }
    }
}
