//! The watermark of a partition: its positions go back only where PostgreSQL did, and an obsolete check does not open the partition.

use loom::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use crate::{
    Model, explore,
    model::{Position, Projection},
    progress::{State, Watermark},
};

pub const MODELS: &[Model] = &[
    ("watermark_never_goes_back", never_goes_back),
    ("watermark_goes_back_with_postgres", goes_back),
    ("watermark_notifies_waiting_replies", notifies_waiting),
    ("watermark_closed_with_its_reason", closed_with_reason),
    ("watermark_word_covers_every_acknowledgement", word_covers_acknowledgements),
    ("watermark_stays_unchecked_when_invalidated_during_check", invalidated_during_check),
    ("watermark_stays_closed_when_closed_during_check", closed_during_check),
];

fn at(seq: i64) -> Position {
    Position { epoch: 1, seq }
}

fn projection(seq: i64, last_dead_letter: i64) -> Projection {
    Projection { position: at(seq), last_dead_letter }
}

fn never_goes_back() {
    explore(|| {
        let watermark = Arc::new(Watermark::default());
        let (decides, reads) = (watermark.clone(), watermark.clone());
        let deciding = thread::spawn(move || {
            decides.advance(at(5));
            assert!(decides.acknowledged() >= at(5));
            decides.advance(at(9));
        });
        let reading = thread::spawn(move || {
            let before = reads.projected_position();
            reads.observe_projection(projection(7, 3), before);
            assert!(reads.acknowledged() >= at(7));
        });
        watermark.record_projected(at(6), 2);
        assert!(watermark.projected_position() >= at(6));
        deciding.join().unwrap();
        reading.join().unwrap();
        assert_eq!(watermark.acknowledged(), at(9));
        assert_eq!(*watermark.projection().borrow(), projection(7, 3));
        assert_eq!(watermark.backlog(), 2);
    });
}

/// PostgreSQL goes back from 9 to 4, and is projected again: readings from before and after arrive in any order.
fn goes_back() {
    explore(|| {
        let watermark = Arc::new(Watermark::default());
        watermark.record_projected(at(9), 0);
        let (lost, late) = (watermark.clone(), watermark.clone());
        let reading = thread::spawn(move || {
            let before = lost.projected_position();
            lost.observe_projection(projection(4, 0), before);
        });
        // Of before the failover: it was slow, and proves nothing.
        let slow = thread::spawn(move || late.observe_projection(projection(7, 0), at(7)));
        reading.join().unwrap();
        slow.join().unwrap();
        assert!(watermark.projected_position() < at(9), "a reply is released by a position that PostgreSQL has lost");
        assert_eq!(watermark.acknowledged(), at(9), "what was acknowledged stays so");
        watermark.record_projected(at(10), 0);
        assert_eq!(watermark.projected_position(), at(10));
    });
}

fn word_covers_acknowledgements() {
    explore(|| {
        let watermark = Arc::new(Watermark::default());
        let (speaks, before) = (watermark.clone(), watermark.before_call());
        let speaking = thread::spawn(move || speaks.give_word());
        let acknowledged = watermark.acknowledge(before, at(5));
        let word = speaking.join().unwrap();
        assert!(!acknowledged || word == at(5), "a decision was acknowledged after the word {word:?}");
        assert!(!watermark.acknowledge(before, at(6)));
        assert!(watermark.acknowledge(watermark.before_call(), at(7)));
    });
}

fn notifies_waiting() {
    explore(|| {
        let watermark = Arc::new(Watermark::default());
        let waiting = watermark.projection();
        let (projects, reads) = (watermark.clone(), watermark.clone());
        let projecting = thread::spawn(move || projects.record_projected(at(2), 0));
        let reading = thread::spawn(move || reads.observe_projection(projection(1, 0), at(0)));
        projecting.join().unwrap();
        reading.join().unwrap();
        assert!(waiting.has_changed().unwrap(), "a reply waits though its decision is projected");
        assert_eq!(waiting.borrow().position, at(2));
    });
}

fn closed_with_reason() {
    explore(|| {
        let watermark = Arc::new(Watermark::default());
        let closes = watermark.clone();
        let closing = thread::spawn(move || closes.close("lost".to_owned()));
        if let State::Closed(reason) = watermark.state() {
            assert_eq!(reason, "lost");
        }
        closing.join().unwrap();
        assert_eq!(watermark.state(), State::Closed("lost".to_owned()));
    });
}

fn invalidated_during_check() {
    explore(|| {
        let watermark = Arc::new(Watermark::default());
        // Which of two servers is in use.
        let server = Arc::new(AtomicU64::new(1));
        let (replaced, invalidates) = (server.clone(), watermark.clone());
        let replacing = thread::spawn(move || {
            replaced.store(2, Ordering::SeqCst);
            invalidates.invalidate();
        });
        let generation = watermark.begin_check();
        let checked = server.load(Ordering::SeqCst);
        watermark.end_check(generation, State::Open);
        replacing.join().unwrap();
        assert!(!watermark.is_open() || checked == 2, "open by a check of a server that is not in use");
    });
}

fn closed_during_check() {
    explore(|| {
        let watermark = Arc::new(Watermark::default());
        let closes = watermark.clone();
        let closing = thread::spawn(move || closes.close("frozen".to_owned()));
        let generation = watermark.begin_check();
        let closed_before = matches!(watermark.state(), State::Closed(_));
        watermark.end_check(generation, State::Open);
        closing.join().unwrap();
        // A check that began after the closing reads Redis for itself.
        assert!(closed_before || !watermark.is_open(), "open though frozen");
    });
}
