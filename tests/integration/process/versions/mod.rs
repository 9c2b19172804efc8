//! Two versions of the program on the same stores, under load, as docs/running.md ("A new version") allows it: an upgrade and the
//! way back, one process after the other; both versions for a while, with processes and Redis killed; an upgrade with a stop.
//!
//! `make test-versions` runs the ignored tests with the program of the last release, or of BASE. `make test` runs the same
//! steps with one program in both places, so that they stay whole.

mod base;
mod fleet;

use firstcome::model::RecoveryOutcome;

use fleet::{
    Fleet, Pair,
    Version::{New, Old},
};

/// Starts the old version, if the new one may work beside it; otherwise prints why not.
async fn open_side_by_side(pair: Pair, partitions: u16) -> Option<Fleet> {
    let mut fleet = Fleet::open(pair, partitions).await;
    let reason = fleet.needs_a_stop().await;
    if let Some(reason) = reason {
        println!("BASE must not work beside this version: {reason}");
        fleet.close_shop().await;
        fleet.stop().await;
        return None;
    }
    Some(fleet)
}

/// Projectors first, then services; back the other way round, so that no old projector reads the events of a new service before
/// the way back is complete; and forward again.
async fn upgrade_and_roll_back(pair: Pair) {
    let Some(mut fleet) = open_side_by_side(pair, 2).await else { return };
    fleet.phase().await;
    fleet.migrate(New).await;
    fleet.phase().await;
    fleet.replace_projectors(New).await;
    fleet.replace_services(New).await;
    fleet.audit(&[Old, New]).await;
    fleet.replace_services(Old).await;
    fleet.replace_projectors(Old).await;
    fleet.audit(&[Old, New]).await;
    if !fleet.pair.is_equal {
        // New services beside old projectors.
        fleet.replace_services(New).await;
        fleet.replace_projectors(New).await;
    }
    assert_eq!(fleet.unavailable(), Vec::<String>::new(), "a customer noticed the replacement of a process");
    fleet.end(&[Old, New]).await;
}

/// Both versions serve and project; one process of each, and Redis, are killed.
async fn kill_while_mixed(pair: Pair) {
    // With several partitions, what a killed service held elsewhere ends after a minute.
    let partitions = if pair.is_equal { 1 } else { 3 };
    let Some(mut fleet) = open_side_by_side(pair, partitions).await else { return };
    fleet.migrate(New).await;
    fleet.start(New).await;
    fleet.phase().await;
    for version in [Old, New] {
        fleet.kill_service(version).await;
        fleet.kill_projector(version).await;
        fleet.kill_redis().await;
        fleet.phase().await;
    }
    fleet.end(&[Old, New]).await;
}

/// Redis loses everything while both versions serve. Nothing acknowledged is missing; that is known of processes that gave their
/// words, and of no others.
async fn lose_redis_while_mixed(pair: Pair) {
    let Some(mut fleet) = open_side_by_side(pair, 2).await else { return };
    fleet.migrate(New).await;
    fleet.start(New).await;
    fleet.phase().await;
    fleet.close_shop().await;
    let without_word = fleet.without_word().await;
    println!("{} services give no word", without_word.len());
    for recovery in fleet.empty_redis().await {
        let is_expected = match recovery.outcome {
            RecoveryOutcome::Complete => without_word.is_empty(),
            // BASE may give its words under other ids than its reports have.
            RecoveryOutcome::Withheld if without_word.is_empty() => !fleet.pair.is_equal,
            RecoveryOutcome::Withheld => recovery.silent == without_word,
            _ => false,
        };
        assert!(is_expected, "{recovery:?}; without a word: {without_word:?}");
    }
    fleet.release_withheld().await;
    fleet.open_shop();
    fleet.phase().await;
    fleet.end(&[Old, New]).await;
}

/// Every process is stopped before the first of the new version starts. One with another layout is refused until Redis is rebuilt.
async fn upgrade_with_stop(pair: Pair) {
    let mut fleet = Fleet::open(pair, 2).await;
    fleet.phase().await;
    fleet.close_shop().await;
    fleet.stop().await;
    fleet.migrate(New).await;
    if fleet.pair.is_equal {
        fleet.set_earlier_layout().await;
    }
    if fleet.layout().await != Some(firstcome::redis::LAYOUT) {
        for role in ["serve", "project"] {
            let (started, said) = fleet.run(New, &[role]).await;
            assert!(
                !started && said.contains("Redis is as another version of this program keeps it"),
                "{role}: {said}"
            );
        }
        let rebuilt = fleet.succeed(New, &["rebuild", "--lost-at-most", "0"]).await;
        assert!(rebuilt.contains("everything is on sale"), "{rebuilt}");
    }
    fleet.start(New).await;
    fleet.open_shop();
    fleet.phase().await;
    fleet.end(&[New]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upgrade_and_rollback_keep_everything_when_versions_equal() {
    upgrade_and_roll_back(Pair::equal()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make test-versions"]
async fn upgrade_and_rollback_keep_everything() {
    upgrade_and_roll_back(Pair::base()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_while_mixed_lose_nothing_when_versions_equal() {
    kill_while_mixed(Pair::equal()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make test-versions"]
async fn kills_while_mixed_lose_nothing() {
    kill_while_mixed(Pair::base()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recovery_while_mixed_withholds_nothing_when_versions_equal() {
    lose_redis_while_mixed(Pair::equal()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make test-versions"]
async fn recovery_while_mixed_withholds_unless_every_process_gave_its_word() {
    lose_redis_while_mixed(Pair::base()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upgrade_with_stop_keeps_everything_when_versions_equal() {
    upgrade_with_stop(Pair::equal()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make test-versions"]
async fn upgrade_with_stop_keeps_everything() {
    upgrade_with_stop(Pair::base()).await;
}
