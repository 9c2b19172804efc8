//! The dashboard of one instance shows the requests of every instance: each publishes its counts while it runs.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use serde_json::Value;

use crate::{
    operators::dashboard_feed::Watch,
    process::binary::{Running, Servers, get, run},
    support::harness::{ADMIN, until},
};

fn serve(servers: &Servers, name: &str) -> Running {
    servers.start_with(&["serve"], &[("ADMIN_TOKEN", ADMIN), ("RATE_LIMIT_CLIENT_PER_SECOND", "0")], name)
}

/// The instances of a snapshot, by port.
fn ports(snapshot: &Value) -> Vec<u16> {
    let name = |instance: &Value| instance["name"].as_str().unwrap().rsplit(':').next().unwrap().parse().unwrap();
    snapshot["instances"].as_array().map_or_else(Vec::new, |all| all.iter().map(name).collect())
}

fn port(base: &str) -> u16 {
    base.rsplit(':').next().unwrap().parse().unwrap()
}

/// Whether this instance listens there.
fn is_of(instance: &Value, base: &str) -> bool {
    instance["name"].as_str().unwrap().ends_with(&format!(":{}", port(base)))
}

/// The rate of 404 replies of one instance, or of all.
fn missing(requests: &Value) -> f64 {
    let refusals = requests["refusals"].as_array().into_iter().flatten();
    refusals
        .filter(|refusal| refusal["errorCode"] == "PRODUCT_NOT_FOUND")
        .filter_map(|one| one["perSecond"].as_f64())
        .sum()
}

/// Sends requests that get a 404 until `look` has its result.
async fn busy<T>(base: &str, reading: impl Future<Output = T>) -> T {
    let over = AtomicBool::new(false);
    let ask = async {
        while !over.load(SeqCst) {
            get(base, "/api/v1/products/9").await.refused(404, "PRODUCT_NOT_FOUND");
        }
    };
    let reading = async {
        let seen = reading.await;
        over.store(true, SeqCst);
        seen
    };
    tokio::join!(ask, reading).1
}

#[tokio::test]
async fn dashboard_shows_requests_of_every_instance() {
    let servers = Servers::start().await;
    let (status, said) = run(&mut servers.role(&["migrate"])).await;
    assert!(status.success(), "{said}");
    let (mut first, mut second, mut third) =
        (serve(&servers, "first"), serve(&servers, "second"), serve(&servers, "third"));
    let (one, other, last) = (first.base().await, second.base().await, third.base().await);
    let mut watch = Watch::open(&one).await;
    watch.until("all three", |seen| ports(seen).len() == 3).await;

    // The first instance shows replies of the second one in the sum and in the row of the second one only.
    let all =
        busy(&other, watch.until("the other's", |seen| ports(seen).len() == 3 && missing(&seen["requests"]) > 0.0))
            .await;
    assert_eq!(ports(&all)[0], port(&one), "the reporting instance is not the first");
    for instance in all["instances"].as_array().unwrap() {
        let its = is_of(instance, &other);
        assert_eq!(missing(&instance["requests"]) > 0.0, its, "{instance}");
        assert!(instance["startedAt"].as_i64().is_some() && instance["version"].is_string(), "{instance}");
    }
    let mine = busy(&one, watch.until("its own", |seen| missing(&seen["instances"][0]["requests"]) > 0.0)).await;
    assert!(missing(&mine["requests"]) > 0.0);

    // Each instance has the past of every other one, and of each alone.
    let id =
        all["instances"].as_array().unwrap().iter().find(|instance| is_of(instance, &other)).unwrap()["instanceId"]
            .clone();
    let alone = format!("/admin/v1/requests?instanceId={}", id.as_str().unwrap());
    let missed = async |path: &str| -> Option<u64> {
        let history = get(&one, path).await.ok();
        let refusals = history["refusals"].as_array().unwrap();
        refusals.iter().find(|refusal| refusal["errorCode"] == "PRODUCT_NOT_FOUND")?["count"].as_u64()
    };
    let its = until("the past of the other", async || missed(&alone).await).await;
    until("its own past", async || missed("/admin/v1/requests").await.filter(|all| *all > its)).await;

    // A killed instance disappears after a while, a stopped one immediately; its past stays.
    second.child.kill().await.unwrap();
    let left = watch.until("the dead one is gone", |seen| ports(seen).len() == 2).await;
    assert!(!ports(&left).contains(&port(&other)));
    assert!(missed(&alone).await >= Some(its));
    let mut opened = Watch::open(&one).await;
    let history = opened.history().await.unwrap();
    let shown = history["instances"].as_array().unwrap().iter().find(|instance| instance["instanceId"] == id).unwrap();
    assert!(is_of(shown, &other) && !shown["requests"]["at"].as_array().unwrap().is_empty(), "{shown}");
    drop(opened);
    third.stop().await;
    let left = watch.until("it is alone", |seen| ports(seen).len() == 1).await;
    assert!(!ports(&left).contains(&port(&last)));
    let reports: i64 = {
        let db = servers.db().await;
        let left =
            "SELECT count(*) FROM instance_requests WHERE reported_at > clock_timestamp() - interval '5 seconds'";
        let count = sqlx::query_scalar(left).fetch_one(db.get_postgres_connection_pool()).await.unwrap();
        db.close().await.unwrap();
        count
    };
    assert_eq!(reports, 1);
    drop(watch);
    first.stop().await;
    servers.end().await;
}
