//! `firstcome import`: files as shops have them, with their faults, beside running services and alone.

use std::{fs, path::PathBuf, process::Stdio};

use rustix::process::Signal;
use serde_json::json;
use tokio::io::AsyncWriteExt;

use super::binary::{Running, Servers, get, post, run};
use crate::support::harness::{raw_redis, until};

/// Writes a file, and imports it; the status, what was said, and the file of rejected rows if there is one.
async fn import(
    servers: &Servers,
    kind: &str,
    name: &str,
    rows: &[u8],
    more: &[&str],
) -> (i32, String, Option<String>) {
    let file = servers.dir.path().join(name);
    fs::write(&file, rows).unwrap();
    let args = [&["import", kind, file.to_str().unwrap()], more].concat();
    let (status, said) = run(servers.role(&args).env("RUST_LOG", "warn")).await;
    let rejected = PathBuf::from(format!("{}.rejected", file.display()));
    (status.code().unwrap(), said, fs::read_to_string(rejected).ok())
}

async fn migrated() -> Servers {
    let servers = Servers::start().await;
    let (status, said) = run(&mut servers.role(&["migrate"])).await;
    assert!(status.success(), "{said}");
    servers
}

async fn audited(servers: &Servers) {
    let (status, said) = run(&mut servers.role(&["audit"])).await;
    assert!(status.success(), "{said}");
}

async fn counted(servers: &Servers, sql: &'static str) -> i64 {
    let db = servers.db().await;
    let counted = sqlx::query_scalar(sql).fetch_one(db.get_postgres_connection_pool()).await.unwrap();
    db.close().await.unwrap();
    counted
}

#[tokio::test]
async fn faulty_rows_rejected_and_others_imported() {
    let servers = migrated().await;
    let rows = "\u{feff}id,name,\"balance\"\r\n\
        70001,이다은,12000000\r\n\
        70002,\"Kim, \"\"Sky\"\"\",1000.00\r\n\
        70003,x\r\n\
        70004,음수,-5\r\n\
        70001,다시,1\r\n\
        70005,,7\r\n\
        0,없음,7\r\n\
        abc,글자,7\r\n\
        70006,\"줄\r\n바꿈\",7\r\n\
        70007,NULL 아님,\\N\r\n\
        70008,반쪽,0.5\r\n\
        70009,잘린 파일,100";
    let (status, said, rejected) = import(&servers, "users", "users.csv", rows.as_bytes(), &[]).await;
    assert_eq!(status, 1, "{said}");
    assert!(said.contains("12 rows: 3 created, 0 changed, 0 unchanged, 9 rejected"), "{said}");
    let rejected = rejected.unwrap();
    assert!(rejected.starts_with("line,reason,id,name,balance\n"), "{rejected}");
    for (line, reason) in [
        (4, "2 fields, and the header 3"),
        (5, "balance: number out of bounds"),
        (6, "on an earlier line"),
        (7, "userName"),
        (8, "userId: not an id"),
        (9, "userId: "),
        (10, "line break"),
        (13, "balance: "),
        (14, "the file ends within this row"),
    ] {
        let start = format!("\n{line},");
        let at = rejected.find(&start).unwrap_or_else(|| panic!("line {line} is not in {rejected}"));
        assert!(rejected[at + 1..].split("\n70").next().unwrap().contains(reason), "{line} {reason}: {rejected}");
    }
    let entries = "SELECT count(*) FROM balance_entries WHERE transaction_type = 'CHARGE' AND entry_no = 1";
    assert_eq!(counted(&servers, entries).await, 2);
    audited(&servers).await;

    // Again: nothing changes. The file of rejected rows is a new one.
    let (status, said, _) = import(&servers, "users", "users.csv", rows.as_bytes(), &[]).await;
    assert!(status == 1 && said.contains("0 created, 0 changed, 3 unchanged, 9 rejected"), "{said}");
    // Mended, with names changed.
    let mended = "id,name,balance\n70001,이하늘,5\n70003,x,\n70009,잘린 파일,100000\n";
    let (status, said, rejected) = import(&servers, "users", "users.csv", mended.as_bytes(), &[]).await;
    assert!(status == 0 && said.contains("3 rows: 2 created, 1 changed, 0 unchanged, 0 rejected"), "{said}");
    assert_eq!(rejected, None);
    assert_eq!(counted(&servers, "SELECT balance FROM users WHERE id = 70001").await, 12_000_000);
    assert_eq!(counted(&servers, "SELECT balance FROM users WHERE id = 70009").await, 100_000);
    audited(&servers).await;
    servers.end().await;
}

#[tokio::test]
async fn file_refused_before_its_first_row() {
    let servers = migrated().await;
    for (rows, more, why) in [
        (&b""[..], &[][..], "userId is missing"),
        (b"id,balance\n1,2\n", &[], "userName is missing"),
        (b"id,name,name\n1,2,3\n", &[], "userName is there twice"),
        (b"id,name,balanse\n1,2,3\n", &[], "balanse"),
        (b"1,x,3\n", &[], "\"1\""),
    ] {
        let (status, said, rejected) = import(&servers, "users", "users.csv", rows, more).await;
        assert!(status == 1 && said.contains(why) && rejected.is_none(), "{why}: {said}");
    }
    let (status, said) = run(&mut servers.role(&["import", "users", "/nowhere.csv"])).await;
    assert!(!status.success() && said.contains("/nowhere.csv can't be read"), "{said}");
    // The place of the rejected rows can't be written, or is the file itself.
    let rows = b"id,name\n1,x\n";
    for (path, why) in [("/nowhere/rejected", "can't be written"), ("users.csv", "is the file that is read")] {
        let path = servers.dir.path().join(path);
        let (status, said, _) =
            import(&servers, "users", "users.csv", rows, &["--rejected", path.to_str().unwrap()]).await;
        assert!(status == 1 && said.contains(why), "{said}");
    }
    let file = servers.dir.path().join("users.csv");
    let input = fs::File::open(&file).unwrap();
    let from_standard_input = ["import", "users", "-", "--rejected", file.to_str().unwrap()];
    let (status, said) = run(servers.role(&from_standard_input).stdin(Stdio::from(input))).await;
    assert!(!status.success() && said.contains("is the file that is read"), "{said}");
    assert_eq!(fs::read(&file).unwrap(), rows);
    assert_eq!(counted(&servers, "SELECT count(*) FROM users").await, 0);
    // What the file says beyond is left out by name.
    let rows = b"id,name,email,password\n1,x,x@example.com,y\n";
    let (status, said, _) = import(&servers, "users", "users.csv", rows, &["--ignore", "email,password"]).await;
    assert!(status == 0 && said.contains("1 created"), "{said}");
    // A quote that nothing closes ends the import, and keeps what was before.
    let mut open = b"id,name\n2,y\n3,\"".to_vec();
    open.extend(b"z".repeat(3 << 20));
    let (status, said, _) = import(&servers, "users", "users.csv", &open, &[]).await;
    assert!(status == 1 && said.contains("is a quote opened that nothing closes"), "{said}");
    assert!(said.contains("after line 2"), "{said}");
    assert_eq!(counted(&servers, "SELECT count(*) FROM users").await, 2);
    audited(&servers).await;
    servers.end().await;
}

#[tokio::test]
async fn json_lines_imported_from_standard_input_beside_a_service() {
    let servers = migrated().await;
    let mut serve = servers.start_role(&["serve"], "serve");
    let base = serve.base().await;
    let products = "{\"id\": 70001, \"name\": \"에어포스\", \"price\": 990.0, \"stock\": 5, \"category\": \"SHOES\"}\n\
        \n\
        {\"productId\": 70002, \"productName\": \"x\", \"price\": 1, \"stockQuantity\": 1, \"category\": \"top\"}\n\
        [1]\n\
        {\"productId\": 70003, \"productName\": \"창\", \"price\": 1, \"stockQuantity\": 1, \"category\": \"TOP\",\
          \"opensAt\": \"2020-01-01 10:00:00\", \"limitPerUser\": 1, \"color\": \"red\"}\n\
        {\"productId\": 70003, \"productName\": \"창\", \"price\": 1, \"stockQuantity\": 1, \"category\": \"TOP\",\
          \"opensAt\": \"2020-01-01 10:00:00\", \"limitPerUser\": null}\n";
    let standard_input = async |dry_run: bool| {
        let rejected = servers.dir.path().join("rejected");
        let mut args = vec!["import", "products", "-", "--format", "jsonl", "--rejected", rejected.to_str().unwrap()];
        args.extend(dry_run.then_some("--dry-run"));
        let mut command = servers.role(&args);
        let piped = command.env("RUST_LOG", "warn").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = piped.spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        input.write_all(products.as_bytes()).await.unwrap();
        drop(input);
        let output = child.wait_with_output().await.unwrap();
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        (said, fs::read_to_string(rejected).unwrap())
    };
    let (said, _) = standard_input(true).await;
    assert!(said.contains("This would happen: 5 rows: 2 created, 0 changed, 0 unchanged, 3 rejected"), "{said}");
    get(&base, "/api/v1/products/70001").await.refused(404, "PRODUCT_NOT_FOUND");
    let (said, rejected) = standard_input(false).await;
    assert!(said.contains("5 rows: 2 created, 0 changed, 0 unchanged, 3 rejected"), "{said}");
    let reasons: Vec<serde_json::Value> = rejected.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |at: usize| (reasons[at]["line"].as_u64().unwrap(), reasons[at]["reason"].as_str().unwrap());
    assert!(of(0).0 == 3 && of(0).1.starts_with("category"), "{rejected}");
    assert!(of(1).0 == 4 && of(1).1.starts_with("the line is no JSON object"), "{rejected}");
    assert_eq!(of(2), (5, "the field \"color\" is unknown"));

    // It sells at once, and a second import leaves the units.
    let (_, said, _) = import(&servers, "users", "users.csv", b"id,name,balance\n70001,u,5000\n", &[]).await;
    assert!(said.contains("1 created"), "{said}");
    let lines = json!([{"productId": 70_001, "quantity": 2}]);
    let order = json!({"userId": 70_001, "orderProducts": lines, "payment": {"paymentType": "BALANCE"}});
    assert_eq!(post(&base, "/api/v1/orders", order).await.ok()["finalPrice"], 1_980);
    let (said, _) = standard_input(false).await;
    assert!(said.contains("0 created, 0 changed, 2 unchanged"), "{said}");
    assert_eq!(get(&base, "/api/v1/products/70001").await.ok()["stockQuantity"], 3);

    let coupons = b"id,code,type,amount,quantity,expired_at,categories,product_ids\n\
        70001,WELCOME,PERCENTAGE,10,100,2030-01-01 00:00:00,SHOES|TOP,70001|70003\n\
        70002,BAD,PERCENTAGE,101,100,2030-01-01 00:00:00,,\n";
    let (status, said, rejected) = import(&servers, "coupons", "coupons.csv", coupons, &[]).await;
    assert!(
        status == 1 && said.contains("1 created") && rejected.unwrap().contains("PERCENTAGE is above 100"),
        "{said}"
    );
    post(&base, "/api/v1/coupons/issue", json!({"couponId": 70_001, "userId": 70_001})).await.ok();
    let changed = "id,code,type,amount,quantity,expired_at,categories,product_ids\n\
        70001,WELCOME,PERCENTAGE,10,999,2030-01-01 00:00:00,SHOES|TOP,70001|70003\n";
    let (status, said, rejected) = import(&servers, "coupons", "coupons.csv", changed.as_bytes(), &[]).await;
    assert!(status == 1 && rejected.unwrap().contains("only the window"), "{said}");
    // New ids are above.
    let new = json!({"userName": "new"});
    assert_eq!(post(&base, "/admin/v1/users", new).await.created()["userId"], 70_002);
    serve.stop().await;
    audited(&servers).await;
    servers.end().await;
}

/// What the operator log has of imports, oldest first: status, target, request id and detail.
async fn logged(base: &str) -> Vec<(u64, String, String, serde_json::Value)> {
    let log = get(base, "/admin/v1/operator-log?operator=command-line&size=100").await.ok();
    let entry = |entry: &serde_json::Value| {
        assert!(entry["role"].is_null() && entry["action"] == "firstcome import", "{entry}");
        let text = |field: &str| entry[field].as_str().unwrap().to_owned();
        let detail = serde_json::from_str(&text("detail")).unwrap();
        (entry["status"].as_u64().unwrap(), text("target"), text("requestId"), detail)
    };
    log["content"].as_array().unwrap().iter().rev().map(entry).collect()
}

#[tokio::test]
async fn import_stands_in_operator_log() {
    let servers = migrated().await;
    let mut serve = servers.start_role(&["serve"], "serve");
    let base = serve.base().await;
    let rows = b"id,name,balance\n70001,secret,5\n70002,y,-1\n70003,z,0\n";
    import(&servers, "users", "users.csv", rows, &["--dry-run"]).await;
    import(&servers, "users", "users.csv", b"id,name,balanse\n70001,x,5\n", &[]).await;
    assert_eq!(logged(&base).await, [], "nothing began");
    let (status, said, _) = import(&servers, "users", "users.csv", rows, &[]).await;
    assert!(status == 1, "{said}");
    let entries = logged(&base).await;
    let [(202, began, request, begun), (200, ended, same_request, end)] = &entries[..] else { panic!("{entries:?}") };
    assert_eq!((began.as_str(), ended.as_str(), request), ("users", "users", same_request));
    assert_eq!(begun["outcome"], "BEGUN");
    assert!(begun["file"].as_str().unwrap().ends_with("users.csv") && begun["file"] == end["file"], "{begun} {end}");
    assert_eq!((&end["outcome"], &end["reason"]), (&json!("COMPLETE"), &json!(null)));
    for (count, of) in [("rows", 3), ("created", 2), ("changed", 0), ("unchanged", 0), ("rejected", 1)] {
        assert_eq!(end[count], of, "{count}: {end}");
    }
    assert!(!format!("{entries:?}").contains("secret"), "{entries:?}");
    let decided = "SELECT count(*) FROM events WHERE data::text LIKE '%70001%'";
    assert!(counted(&servers, decided).await > 0);

    // A fault of the file that shows later: the rows before it stay.
    let mut open = b"id,name\n70004,y\n70005,\"".to_vec();
    open.extend(b"z".repeat(3 << 20));
    import(&servers, "users", "open.csv", &open, &[]).await;
    let entries = logged(&base).await;
    let (status, _, _, end) = entries.last().unwrap();
    assert_eq!(
        (entries.len(), *status, &end["outcome"], &end["created"]),
        (4, 503, &json!("FAILED"), &json!(1)),
        "{end}"
    );
    assert!(end["reason"].as_str().unwrap().contains("nothing closes"), "{end}");
    serve.stop().await;
    servers.end().await;
}

/// Imports a file; the status, the numbers of rows, and the file of rejected rows if there is one.
async fn outcome(
    servers: &Servers,
    kind: &str,
    name: &str,
    rows: &str,
    more: &[&str],
) -> (i32, Option<String>, Option<String>) {
    let (status, said, rejected) = import(servers, kind, name, rows.as_bytes(), more).await;
    let outcome = said.split(" rows: ").nth(1).and_then(|said| said.split(", in ").next()).map(str::to_owned);
    (status, outcome, rejected)
}

/// A rehearsal says what the import says, also of campaigns that are over.
#[tokio::test]
async fn dry_run_rejects_what_the_import_rejects() {
    let servers = migrated().await;
    let file = |second: &str| {
        format!(
            "{{\"id\":1,\"code\":\"KEPT\",\"type\":\"FIXED\",\"amount\":1000,\"quantity\":5,\"opensAt\":\"2026-01-01T00:00:00\",\
             \"expiredAt\":\"2099-01-01T00:00:00\"}}\n{second}\n"
        )
    };
    let coupon = |closes: &str, expires: &str| {
        format!(
            "{{\"id\":2,\"code\":\"OVER\",\"type\":\"FIXED\",\"amount\":1000,\"quantity\":5{closes},\"expiredAt\":\"{expires}\"}}"
        )
    };
    let expired = file(&coupon("", "2025-12-31T23:59:59"));
    let said = async |rows: &str, more: &[&str]| outcome(&servers, "coupons", "coupons.jsonl", rows, more).await;
    let rehearsed = said(&expired, &["--dry-run"]).await;
    assert!(rehearsed.2.as_ref().is_some_and(|rejected| rejected.contains("window is no window")), "{rehearsed:?}");
    assert_eq!(said(&expired, &[]).await, rehearsed);
    // The window of a campaign that exists can't have ended in the past either.
    let open = file(&coupon("", "2099-01-01T00:00:00"));
    assert_eq!(said(&open, &[]).await.0, 0);
    let closed = file(&coupon(",\"closesAt\":\"2025-12-31T23:59:59\"", "2099-01-01T00:00:00"));
    let rehearsed = said(&closed, &["--dry-run"]).await;
    assert_eq!((rehearsed.0, said(&closed, &[]).await), (1, rehearsed.clone()));
    servers.end().await;
}

/// All products of a group have one limit: those that are there, and those that a file brings.
#[tokio::test]
async fn dry_run_rejects_products_whose_group_has_another_limit() {
    let servers = migrated().await;
    let said = async |rows: &[&str], more: &[&str]| {
        let rows = ["id,name,price,stock,category,limitPerUser,limitGroup", &rows.join("\n"), ""].join("\n");
        outcome(&servers, "products", "products.csv", &rows, more).await
    };
    assert_eq!(said(&["1,a,10,5,SHOES,2,SIZES", "2,b,10,5,SHOES,,"], &[]).await.0, 0);
    let of_store =
        ["1,a,10,5,SHOES,2,SIZES", "2,b,10,5,SHOES,3,SIZES", "3,c,10,5,SHOES,3,SIZES", "4,d,10,5,SHOES,2,SIZES"];
    let rehearsed = said(&of_store, &["--dry-run"]).await;
    assert_eq!(rehearsed.1.as_deref(), Some("1 created, 0 changed, 1 unchanged, 2 rejected"));
    let rejected = rehearsed.2.as_deref().unwrap();
    assert_eq!(rejected.matches("another limit").count(), 2, "{rejected}");
    assert_eq!(said(&of_store, &[]).await, rehearsed);
    // Whichever is taken first gives the group its limit.
    let of_file = ["5,e,10,5,SHOES,1,COLORS", "6,f,10,5,SHOES,4,COLORS", "7,g,10,5,SHOES,4,"];
    let rehearsed = said(&of_file, &["--dry-run"]).await;
    assert_eq!(rehearsed.1.as_deref(), Some("2 created, 0 changed, 0 unchanged, 1 rejected"));
    assert_eq!(said(&of_file, &[]).await.1, rehearsed.1);
    servers.end().await;
}

#[tokio::test]
async fn many_users_imported_in_several_steps() {
    let servers = migrated().await;
    let mut rows = String::from("id,name,balance\n");
    for id in 1..=9_000 {
        rows += &format!("{id},user {id},{}\n", id % 3 * 1_000);
    }
    let (status, said, _) = import(&servers, "users", "users.csv", rows.as_bytes(), &[]).await;
    assert!(status == 0 && said.contains("9,000 rows: 9,000 created"), "{said}");
    assert_eq!(counted(&servers, "SELECT count(*) FROM users WHERE name = 'user ' || id").await, 9_000);
    assert_eq!(counted(&servers, "SELECT count(*) FROM balance_entries").await, 6_000);
    // Cut in the middle of a row.
    let cut = &rows.as_bytes()[..rows.len() / 2];
    let (status, said, _) = import(&servers, "users", "users.csv", cut, &[]).await;
    assert!(status == 1 && said.contains("0 created, 0 changed") && said.contains("1 rejected"), "{said}");
    audited(&servers).await;
    servers.end().await;
}

#[tokio::test]
async fn import_again_keeps_terms_without_their_columns() {
    let servers = migrated().await;
    let said = async |rows: &str, more: &[&str]| {
        let (_, outcome, rejected) = outcome(&servers, "products", "products.csv", rows, more).await;
        (outcome.unwrap(), rejected)
    };
    let plain = "id,name,price,stock,category\n1,a,10,5,SHOES\n";
    let limited =
        "id,name,price,stock,category,opensAt,limitPerUser,limitGroup\n1,a,10,5,SHOES,2020-01-01 10:00:00,2,G\n";
    let unlimited = "id,name,price,stock,category,limitPerUser,limitGroup\n1,a,10,5,SHOES,,NULL\n";
    let limit = "SELECT COALESCE(limit_per_user, 0)::bigint FROM products";
    for (rows, would, then) in [
        (plain, "1 created, 0 changed, 0 unchanged, 0 rejected", 0),
        (limited, "0 created, 1 changed, 0 unchanged, 0 rejected", 2),
        (plain, "0 created, 0 changed, 1 unchanged, 0 rejected", 2),
        (unlimited, "0 created, 1 changed, 0 unchanged, 0 rejected", 0),
        (plain, "0 created, 0 changed, 1 unchanged, 0 rejected", 0),
    ] {
        let expected = (would.to_owned(), None);
        assert_eq!(said(rows, &["--dry-run"]).await, expected, "{rows}");
        assert_eq!(said(rows, &[]).await, expected, "{rows}");
        assert_eq!(counted(&servers, limit).await, then, "{rows}");
    }
    // A window that the new and the old bound leave empty.
    let closed = "id,name,price,stock,category,closesAt\n1,a,10,5,SHOES,2020-01-01 09:00:00\n";
    let rehearsed = said(closed, &["--dry-run"]).await;
    assert!(rehearsed.1.as_deref().unwrap().contains("the window is empty"), "{rehearsed:?}");
    assert_eq!(said(closed, &[]).await, rehearsed);
    servers.end().await;
}

async fn keys_in_redis(servers: &Servers) -> i64 {
    let mut redis = raw_redis(&servers.redis_url).await;
    redis::cmd("DBSIZE").query_async(&mut redis).await.unwrap()
}

#[tokio::test]
async fn dry_run_neither_makes_a_store_nor_recovers_one() {
    let servers = migrated().await;
    let users = b"id,name,balance\n1,a,5\n2,b,0\n";
    let (status, said, _) = import(&servers, "users", "users.csv", users, &["--dry-run"]).await;
    assert!(status == 0 && said.contains("2 created, 0 changed, 0 unchanged, 0 rejected"), "{said}");
    let products = "id,name,price,stock,category,limitPerUser,limitGroup\n1,a,1,1,TOP,1,G\n2,b,1,1,TOP,2,G\n";
    let (_, said, _) = outcome(&servers, "products", "products.csv", products, &["--dry-run"]).await;
    assert_eq!(said.as_deref(), Some("1 created, 0 changed, 0 unchanged, 1 rejected"));
    let coupons = "id,code,type,amount,quantity,expiredAt\n1,A,FIXED,1,1,2099-01-01 00:00:00\n2,B,FIXED,1,1,2020-01-01 00:00:00\n";
    let (_, said, _) = outcome(&servers, "coupons", "coupons.csv", coupons, &["--dry-run"]).await;
    assert_eq!(said.as_deref(), Some("1 created, 0 changed, 0 unchanged, 1 rejected"));
    assert_eq!(keys_in_redis(&servers).await, 0);
    // The first start still chooses the partitions.
    let (status, said) = run(servers
        .role(&["import", "users", servers.dir.path().join("users.csv").to_str().unwrap()])
        .env("PARTITIONS", "3"))
    .await;
    assert!(status.success() && said.contains("2 created"), "{said}");
    let (status, said, _) = import(&servers, "users", "users.csv", users, &["--dry-run"]).await;
    assert!(status == 0 && said.contains("2 unchanged"), "{said}");

    let mut redis = raw_redis(&servers.redis_url).await;
    let () = redis::cmd("FLUSHALL").query_async(&mut redis).await.unwrap();
    let (status, said, _) = import(&servers, "users", "users.csv", users, &["--dry-run"]).await;
    assert!(status == 1 && said.contains("nothing is recovered here"), "{said}");
    assert_eq!(keys_in_redis(&servers).await, 0);
    // The import itself recovers it.
    let (status, said, _) = import(&servers, "users", "users.csv", users, &[]).await;
    assert!(status == 0 && said.contains("2 unchanged"), "{said}");
    servers.end_of(3).await;
}

/// Starts an import of users from standard input, whose header it has read.
async fn begun(servers: &Servers, name: &str, variables: &[(&str, &str)]) -> (Running, tokio::process::ChildStdin) {
    let rejected = servers.dir.path().join(format!("{name}.rejected"));
    let mut command = servers.role(&["import", "users", "-", "--rejected", rejected.to_str().unwrap()]);
    command.envs(variables.iter().copied()).stdin(Stdio::piped());
    let mut import = Running::start(&mut command, &servers.dir, name);
    let mut input = import.child.stdin.take().unwrap();
    // The first row is read before the header is taken.
    input.write_all(b"id,name,balance\n1,a,5\n").await.unwrap();
    until("it begins", async || {
        import.assert_alive();
        rejected.exists().then_some(())
    })
    .await;
    (import, input)
}

#[tokio::test]
async fn import_waits_for_postgres_at_its_end() {
    let mut servers = migrated().await;
    let (mut import, mut input) = begun(&servers, "import", &[("DATABASE_TIMEOUT_MS", "1000")]).await;
    servers.postgres.kill().await.unwrap();
    input.write_all(b"2,b,7\n").await.unwrap();
    drop(input);
    let waits = "PostgreSQL does not have every decision yet: waiting";
    until("it waits", async || {
        import.assert_alive();
        import.logged(waits)
    })
    .await;
    servers.postgres.restart().await.unwrap();
    let status = import.ended().await;
    assert!(status.success(), "{status}\n{}", import.err());
    assert_eq!(counted(&servers, "SELECT sum(balance)::bigint FROM users").await, 12);
    servers.end().await;
}

#[tokio::test]
async fn import_stops_while_standard_input_is_silent() {
    let servers = migrated().await;
    let (mut import, input) = begun(&servers, "import", &[]).await;
    import.signal(Signal::TERM);
    let status = import.ended().await;
    assert_eq!(status.code(), Some(1), "{}", import.err());
    assert!(import.err().contains("stopped: run it again"), "{}", import.err());
    drop(input);
    servers.end().await;
}
