//! docs/moving.md leads from the tables of a shop to a service that has its records: its commands run as printed, on the files that its
//! queries write.

use std::{fs, process::Stdio};

use serde_json::{Value, json};

use super::{Page, page};
use crate::{
    operators::webhooks::receiver::Receiver,
    process::binary::{Servers, get, post, run},
    support::harness::until,
};

/// What the queries of the page print of a small shop.
const FILES: [(&str, &str); 3] = [
    (
        "users.jsonl",
        "{\"userId\": 1, \"userName\": \"이다은\", \"balance\": 12000.00}\n\
         {\"userId\": 2, \"userName\": \"Kim, \\\"Sky\\\"\", \"balance\": 0}\n",
    ),
    (
        "products.jsonl",
        "{\"productId\": 9, \"productName\": \"양말\", \"price\": 9000.00, \"stockQuantity\": 50, \"category\": \"SOCKS\"}\n",
    ),
    (
        "coupons.jsonl",
        "{\"couponId\": 4, \"couponCode\": \"WELCOME\", \"discountType\": \"FIXED\", \"discountAmount\": 1000.00, \
          \"totalQuantity\": 30, \"expiredAt\": \"2030-01-01T00:00:00\"}\n",
    ),
];

/// The commands of the page that call the program and end, in their order.
fn commands(page: &Page) -> Vec<Vec<String>> {
    let lines = page.lines();
    let commands = lines.iter().filter(|line| line.block == Some("sh")).map(|line| line.text.trim().to_owned());
    let ours = commands.filter_map(|command| Some(command.strip_prefix("firstcome ")?.to_owned()));
    let ours = ours.filter(|command| command != "serve");
    ours.map(|command| command.split(' ').map(str::to_owned).collect()).collect()
}

/// The requests of the page that write: paths and bodies, in their order.
fn requests(page: &Page) -> Vec<(String, Value)> {
    let lines: Vec<&str> = page.lines().iter().filter(|line| line.block == Some("sh")).map(|line| line.text).collect();
    let script = lines.join("\n").replace("\\\n", " ");
    let request = |command: &str| {
        let (_, path) = command.strip_prefix("curl ")?.split_once(" localhost:8080")?;
        let (path, body) = path.split_once("-d '")?;
        Some((path.trim().to_owned(), serde_json::from_str(body.strip_suffix('\'')?).unwrap()))
    };
    script.lines().filter_map(request).collect()
}

#[tokio::test]
async fn moving_page_leads_to_the_shop() {
    let page = page("docs/moving.md");
    let commands = commands(&page);
    assert!(commands.len() >= 8, "{commands:?}");
    let servers = Servers::start().await;
    for (name, rows) in FILES {
        fs::write(servers.dir.path().join(name), rows).unwrap();
    }
    for command in &commands {
        let args: Vec<&str> = command.iter().map(String::as_str).collect();
        let mut role = servers.role(&args);
        let (status, said) =
            run(role.current_dir(servers.dir.path()).env("RUST_LOG", "warn").stdin(Stdio::null())).await;
        assert!(status.success(), "{command:?}: {said}");
        let rows = FILES.iter().find(|(name, _)| args.contains(name)).map_or(0, |(_, rows)| rows.lines().count());
        if rows > 0 {
            assert!(said.contains(&format!("{rows} rows: {rows} created")), "{command:?}: {said}");
        }
    }
    // The CSV of the page adds a user, and renames none.
    let csv: Vec<&str> = page.lines().iter().filter(|line| line.block == Some("csv")).map(|line| line.text).collect();
    fs::write(servers.dir.path().join("users.csv"), csv.join("\n") + "\n").unwrap();
    let mut import = servers.role(&["import", "users", "users.csv"]);
    let (status, said) = run(import.current_dir(servers.dir.path()).env("RUST_LOG", "warn")).await;
    assert!(status.success() && said.contains("3 rows: 1 created, 0 changed, 2 unchanged"), "{said}");

    let mut serve = servers.start_with(&["serve"], &[("WEBHOOK_ALLOW_PRIVATE", "true")], "serve");
    let base = serve.base().await;
    let shown = get(&base, "/api/v1/balances/1").await.ok();
    assert_eq!((shown["userName"].as_str(), shown["balance"].as_i64()), (Some("이다은"), Some(12_000)));
    assert_eq!(get(&base, "/api/v1/balances/2").await.ok()["userName"], "Kim, \"Sky\"");
    assert_eq!(get(&base, "/api/v1/products/9").await.ok()["price"], 9_000);
    assert_eq!(get(&base, "/admin/v1/coupons/4").await.ok()["remainingQuantity"], 30);

    let receiver = Receiver::start().await;
    let requests = requests(&page);
    assert_eq!(requests.len(), 3, "{requests:?}");
    for (path, mut body) in requests {
        if path.ends_with("/webhooks") {
            body["url"] = json!(receiver.url);
        }
        let reply = post(&base, &path, body).await;
        assert!(reply.status.is_success(), "{path}: {}", reply.text);
    }
    let is_paid = async || receiver.received().iter().any(|it| it.kind() == "order.paid").then_some(());
    until("the payment arrives", is_paid).await;
    assert_eq!(receiver.received()[0].kind(), "order.placed");
    serve.stop().await;
    servers.end().await;
}
