//! Slots that move between the nodes of a cluster under load.

use firstcome::{
    config::Ack,
    dev::{RedisServer, ScratchDir},
};

use super::{load::Load, loaded};
use crate::{
    redis::cluster::{cluster, move_partition},
    support::harness::{Options, TestApp, fresh_database},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_half_done_when_partitions_move_under_load() {
    let dir = ScratchDir::new().unwrap();
    let mut nodes = cluster(&dir, &[]).await;
    let urls: Vec<String> = nodes.iter().map(RedisServer::url).collect();
    let first = nodes.remove(0);
    let options = Options { partitions: 4, ..loaded(Ack::Redis) };
    let mut test = TestApp::on(options, dir, first, fresh_database().await).await;
    test.others = nodes;
    test.app.watch(true);
    let load = Load::new(&test, 6).await;
    let requests = load
        .during(async || {
            // Each partition twice, so that one node gets what it has just given away to another.
            for moved in 1..=2 {
                for partition in 0..4 {
                    load.progress().await;
                    move_partition(&urls, partition, moved).await;
                }
            }
            load.progress().await;
        })
        .await;
    load.assert_kept(&test, &requests).await;
    test.finish().await;
}
