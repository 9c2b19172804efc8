//! The dashboard, the alerts and docs/metrics.md name only metrics that exist.

use super::*;

const DASHBOARD: &str = include_str!("../../../../deploy/grafana-dashboard.json");
const LIST: &str = include_str!("../../../../docs/metrics.md");

/// The state of partition 0.
const META: &str = "{p0}:meta";

/// A scrape after every kind of event.
async fn everything() -> Scrape {
    let provider = FakeGateway::start().await;
    let options =
        Options { project: true, sweep: true, dead_letters: 1, gateway: provider.config(), ..Options::default() };
    let test = TestApp::with(options).await;
    test.app.watch(true);
    let (user, late, product) = (test.user(10_000).await, test.user(0).await, test.product(100, 3).await);
    let coupon = test.campaign("FIXED", 10, 1).await;
    test.issue(coupon, user).await.ok();
    test.issue(coupon, late).await.refused(409, "COUPON_OUT_OF_STOCK");
    let paid = test.order(user, product, 1).await.ok();
    test.pay(paid["orderId"].as_i64().unwrap(), user, "CARD", 100).await.ok();
    test.order(user, product, 1).await.ok();
    test.order(user, product, 5).await.refused(409, "INSUFFICIENT_STOCK");
    test.get("/nowhere").await.refused(404, "NOT_FOUND");
    // An event that PostgreSQL refuses.
    let mut redis = test.raw().await;
    poison(&mut redis, true, &[("kind", b"nonsense"), ("v", b"1")]).await;
    let dead = |exported: &Scrape| exported.one("firstcome_dead_letters", &[("partition", "0")]) == Some(1.0);
    scraped(&test, "the dead letter is filed", dead).await;
    // A partition that is frozen for a while.
    let _: i64 = redis::cmd("HSET").arg(META).arg("frozen").arg("a test").query_async(&mut redis).await.unwrap();
    let closed = |exported: &Scrape| {
        exported.one("firstcome_partition_open", &[("partition", "0")]) == Some(0.0)
            && exported.one("firstcome_ready", &[]) == Some(0.0)
    };
    scraped(&test, "it is closed", closed).await;
    test.put_charge(user, 1).await.refused(503, "SERVICE_UNAVAILABLE");
    let _: i64 = redis::cmd("HDEL").arg(META).arg("frozen").query_async(&mut redis).await.unwrap();
    let exported =
        scraped(&test, "it is open again", |exported| exported.one("firstcome_ready", &[]) == Some(1.0)).await;
    test.finish().await;
    exported
}

/// The labels that Prometheus adds, and the label of histogram buckets.
const ADDED: [&str; 3] = ["instance", "job", "le"];

/// The faults of an expression: a metric that does not exist, or a label that it does not have.
fn faults(exported: &BTreeMap<String, Family>, expression: &str) -> Vec<String> {
    let names = match promql::parse(expression) {
        Ok(names) => names,
        Err(fault) => return vec![fault],
    };
    let mut faults = Vec::new();
    let mut labels: BTreeSet<&str> = ADDED.into();
    for (name, matched) in &names.selectors {
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|part| name.strip_suffix(part));
        let base = base.filter(|base| exported.get(*base).is_some_and(|family| family.kind == "histogram"));
        let Some(family) = exported.get(base.unwrap_or(name)) else {
            faults.push(format!("there is no {name}"));
            continue;
        };
        if (family.kind == "histogram") != base.is_some() {
            faults.push(format!("{name} is a histogram as a whole"));
        }
        let has = |label: &String| family.labels.contains(label) || ADDED.contains(&label.as_str());
        faults.extend(matched.iter().filter(|label| !has(label)).map(|label| format!("{name} has no {label}")));
        labels.extend(family.labels.iter().map(String::as_str));
    }
    let strange = names.grouped.iter().filter(|label| !labels.contains(label.as_str()));
    faults.extend(strange.map(|label| format!("none of its metrics has {label}")));
    faults
}

/// The queries of the dashboard with Grafana's variables replaced: panel, expression.
fn queries(dashboard: &Value) -> Vec<(String, String)> {
    fn panels<'a>(of: &'a Value, found: &mut Vec<&'a Value>) {
        for panel in of["panels"].as_array().into_iter().flatten() {
            found.push(panel);
            panels(panel, found);
        }
    }
    let mut found = Vec::new();
    panels(dashboard, &mut found);
    let mut queries = Vec::new();
    for panel in found {
        let title = panel["title"].as_str().unwrap();
        let targets = panel["targets"].as_array();
        assert_eq!(targets.is_some(), panel["type"] != "row", "{title}");
        for target in targets.into_iter().flatten() {
            let expression = target["expr"].as_str().unwrap();
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{title}");
            assert!(expression.contains("instance=~\"$instance\""), "{title}: {expression}");
            let filled = expression.replace("$__rate_interval", "5m").replace("$instance", ".*");
            assert!(!filled.contains('$'), "{title}: {filled}");
            queries.push((title.to_owned(), filled));
        }
    }
    queries
}

/// GitHub's anchor for a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase().replace(' ', "-");
    kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_')).collect()
}

#[test]
fn alerts_have_runbook_sections() {
    let alerts = alerts();
    let names: BTreeSet<&str> = alerts.iter().map(|alert| alert["alert"].as_str()).collect();
    assert_eq!(names.len(), alerts.len());
    for alert in &alerts {
        let name = &alert["alert"];
        assert!(name.starts_with("Firstcome"), "{name}");
        for field in ["expr", "labels", "severity", "annotations", "summary", "description", "runbook"] {
            assert!(alert.contains_key(field), "{name} has no {field}");
        }
        assert!(["critical", "warning", "info"].contains(&alert["severity"].as_str()), "{name}");
        let (page, section) = alert["runbook"].split_once('#').unwrap();
        let page = std::fs::read_to_string(format!("{}/{page}", env!("CARGO_MANIFEST_DIR"))).unwrap();
        let headings = page.lines().filter_map(|line| Some(line.trim_start_matches('#')).filter(|rest| *rest != line));
        assert!(headings.map(|heading| anchor(heading.trim())).any(|there| there == section), "{name}: no #{section}");
    }
}

#[tokio::test]
async fn dashboard_alerts_and_docs_name_existing_metrics() {
    let Scrape(exported) = everything().await;
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let queries = queries(&dashboard);
    assert!(queries.len() > 30, "{}", queries.len());
    let alerts = alerts();
    assert!(alerts.len() > 10);
    let alerts = alerts.into_iter().map(|rule| (rule["alert"].clone(), rule["expr"].clone()));
    let all: Vec<(String, String)> = queries.into_iter().chain(alerts).collect();
    let wrong: Vec<_> =
        all.iter().map(|(of, expr)| (of, expr, faults(&exported, expr))).filter(|(.., f)| !f.is_empty()).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    // The check detects faults.
    assert_eq!(faults(&exported, "firstcome_nothing"), ["there is no firstcome_nothing"]);
    assert_eq!(faults(&exported, "firstcome_up{colour=\"red\"}"), ["firstcome_up has no colour"]);
    assert_eq!(faults(&exported, "sum by (colour) (firstcome_up)"), ["none of its metrics has colour"]);
    assert_eq!(faults(&exported, "firstcome_projector_batch_events").len(), 1);

    // docs/metrics.md documents exactly the exported metrics.
    let row = |line: &str| -> Option<(String, String, BTreeSet<String>, String)> {
        let cells: Vec<&str> = line.strip_prefix("| `")?.strip_suffix(" |")?.split(" | ").collect();
        let [name, kind, labels, meaning] = cells.as_slice() else { panic!("{line}") };
        let labels = labels.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        Some((name.trim_end_matches('`').to_owned(), (*kind).to_owned(), labels, (*meaning).to_owned()))
    };
    let listed: BTreeSet<_> = LIST.lines().filter_map(row).collect();
    let there: BTreeSet<_> = exported
        .iter()
        .map(|(name, family)| (name.clone(), family.kind.clone(), family.labels.clone(), family.help.clone()))
        .collect();
    let missing: Vec<_> = there.difference(&listed).collect();
    let invented: Vec<_> = listed.difference(&there).collect();
    assert!(
        missing.is_empty() && invented.is_empty(),
        "not in docs/metrics.md: {missing:#?}\nonly there: {invented:#?}"
    );
}
