//! docs/operations.md: every command on the page runs as printed, in the situation of its section, on private servers.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use firstcome::dev::ScratchDir;
use serde_json::{Value, json};

use crate::{
    process::binary::{ADMIN, Running, Servers, get, post, run},
    support::{files::copy_dir, harness::until},
};

const PAGE: &str = include_str!("../../../docs/operations.md");
/// The first words of a command in running text; arguments must follow.
const PROGRAMS: [&str; 6] = ["curl ", "firstcome ", "redis-cli ", "pg_dump ", "ACL SETUSER ", "CONFIG SET "];
/// Mentions, which are no commands to be typed there.
const MENTIONS: [&str; 1] = ["firstcome project"];

/// A command, where the page prints it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Printed {
    section: String,
    text: String,
}

/// Every command of the page, in blocks and in running text.
fn printed() -> BTreeSet<Printed> {
    let (mut all, mut section, mut block) = (BTreeSet::new(), String::new(), None::<String>);
    for line in PAGE.lines() {
        match (&mut block, line.trim()) {
            (Some(text), "```") => {
                all.insert(Printed { section: section.clone(), text: std::mem::take(text) });
                block = None;
            }
            (Some(text), code) => *text += &format!("{code}\n"),
            (None, "```sh") => block = Some(String::new()),
            (None, heading) if heading.starts_with('#') => section = heading.trim_start_matches('#').trim().to_owned(),
            (None, words) => {
                let spans = words.split('`').skip(1).step_by(2).filter(|span| !MENTIONS.contains(span));
                let commands = spans.filter(|span| PROGRAMS.iter().any(|program| span.starts_with(program)));
                all.extend(commands.map(|text| Printed { section: section.clone(), text: text.to_owned() }));
            }
        }
    }
    assert!(block.is_none(), "a block without an end");
    all
}

/// An operator at a terminal, in an empty directory, with the page open.
struct Operator {
    dir: ScratchDir,
    shop: String,
    redis_url: String,
    postgres_url: String,
    token: String,
    /// The commands not run yet.
    left: BTreeSet<Printed>,
}

/// The outcome of a command.
struct Came {
    code: Option<i32>,
    said: String,
}

impl Came {
    /// Asserts that the command succeeded. Returns its output.
    #[track_caller]
    fn well(self) -> String {
        assert_eq!(self.code, Some(0), "{}", self.said);
        self.said
    }

    /// The same, as JSON.
    #[track_caller]
    fn json(self) -> Value {
        let said = self.well();
        serde_json::from_str(&said).unwrap_or_else(|_| panic!("no JSON: {said}"))
    }
}

impl Operator {
    /// `socket`, `password`: of Redis, for its own program.
    fn new(servers: &Servers, socket: &Path, password: &str) -> Operator {
        let dir = ScratchDir::new().unwrap();
        let tools = dir.path().join("bin");
        std::fs::create_dir(&tools).unwrap();
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_firstcome"), tools.join("firstcome")).unwrap();
        let redis_cli = on_path("redis-cli").expect("redis-cli");
        let tool = tools.join("redis-cli");
        let script = format!(
            "#!/bin/sh\nREDISCLI_AUTH=\"${{REDISCLI_AUTH-{password}}}\" exec {} -s {} \"$@\"\n",
            redis_cli.display(),
            socket.display()
        );
        std::fs::write(&tool, script).unwrap();
        std::fs::set_permissions(&tool, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        Operator {
            dir,
            shop: String::new(),
            redis_url: servers.redis_url.clone(),
            postgres_url: servers.postgres_url.clone(),
            token: ADMIN.to_owned(),
            left: printed(),
        }
    }

    /// Runs a command line as an operator types it.
    async fn types(&self, line: &str) -> Came {
        let path = format!("{}:{}", self.dir.path().join("bin").display(), std::env::var("PATH").unwrap());
        let mut shell = Command::new("bash");
        shell.args(["-c", &format!("exec 2>&1\n{line}")]).current_dir(self.dir.path()).env_clear().stdin(Stdio::null());
        shell.envs([("PATH", path.as_str()), ("SHOP", &self.shop), ("ADMIN_TOKEN", &self.token)]);
        shell.envs([("REDIS_URL", &self.redis_url), ("DATABASE_URL", &self.postgres_url)]);
        shell.env("NO_PROXY", "*").env("RUST_LOG", "error");
        let output = tokio::task::spawn_blocking(move || shell.output().expect("bash")).await.unwrap();
        Came { code: output.status.code(), said: String::from_utf8_lossy(&output.stdout).into_owned() }
    }

    /// The command of a section that begins so, which is typed now.
    #[track_caller]
    fn printed(&mut self, section: &str, begins: &str) -> String {
        let all = printed();
        let there = all.iter().find(|one| one.section == section && one.text.starts_with(begins));
        let there = there.unwrap_or_else(|| panic!("{section:?} prints no command that begins with {begins:?}"));
        self.left.remove(there);
        there.text.clone()
    }

    /// Types it as printed.
    async fn does(&mut self, section: &str, begins: &str) -> Came {
        let line = self.printed(section, begins);
        self.types(&line).await
    }
}

fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}

async fn projected(base: &str) {
    until("PostgreSQL has everything", async || {
        let projection = get(base, "/admin/v1/projection").await;
        (projection.status == 200 && projection.json()["lagEvents"] == 0).then_some(())
    })
    .await;
}

async fn ready(base: &str) {
    until("it is ready", async || (get(base, "/readyz").await.status == 200).then_some(())).await;
}

async fn bought(base: &str, user: i64, product: i64, quantity: i64) {
    let lines = json!([{"productId": product, "quantity": quantity}]);
    let order = post(base, "/api/v1/orders", json!({"userId": user, "orderProducts": lines})).await.ok();
    let pay =
        json!({"orderId": order["orderId"], "userId": user, "paymentType": "CARD", "amount": order["finalPrice"]});
    post(base, "/api/v1/payments", pay).await.ok();
}

async fn serve(servers: &Servers, name: &str) -> (Running, String) {
    let mut serve = servers.start_role(&["serve"], name);
    let base = serve.base().await;
    (serve, base)
}

async fn sql(servers: &Servers, statement: &'static str) {
    let db = servers.db().await;
    sqlx::query(statement).execute(db.get_postgres_connection_pool()).await.unwrap();
    db.close().await.unwrap();
}

/// Requests, reads and settings when nothing is lost.
async fn on_a_good_day(operator: &mut Operator, base: &str) {
    let exports = operator.printed("Operations", "export REDIS_URL");
    let set = operator.types(&format!("{exports}\necho \"$REDIS_URL $DATABASE_URL $ADMIN_TOKEN $SHOP\"")).await.well();
    assert!(set.starts_with("redis://redis.example:6379 postgres://") && set.trim().ends_with(":8080"), "{set}");

    let asks = "Four questions";
    assert_eq!(operator.does(asks, "curl -s $SHOP/readyz").await.json(), json!({"status": "UP"}));
    assert_eq!(operator.does("FirstcomeNotReady", "curl -s $SHOP/readyz").await.json(), json!({"status": "UP"}));
    assert_eq!(operator.does(asks, "curl -s $SHOP/admin/v1/projection").await.json()["deadLetters"], 0);
    assert!(operator.does(asks, "firstcome audit").await.well().contains("The books balance"));
    assert_eq!(operator.does(asks, "curl -s $SHOP/admin/v1/audit").await.json()["balanced"], true);
    let withheld = operator.does(asks, "curl -s $SHOP/admin/v1/withheld").await.json();
    assert_eq!(withheld, json!({"products": [], "coupons": []}));

    let memory = operator.does("Redis's memory grows", "redis-cli INFO memory").await.well();
    assert!(memory.contains("used_memory_human:") && memory.contains("mem_fragmentation_ratio:"), "{memory}");
    assert!(memory.contains("Sampled ") && !memory.contains("ERR"), "{memory}");
    let defragmented = operator.does("Redis's memory grows", "CONFIG SET activedefrag").await;
    assert_ne!(defragmented.code, Some(0), "it is typed to redis-cli");
    let defragmented = operator.types("redis-cli CONFIG SET activedefrag yes").await.well();
    assert!(defragmented.starts_with("OK") || defragmented.contains("cannot be enabled"), "{defragmented}");

    let slow = operator.printed("The disk is slow", "redis-cli CONFIG SET latency-monitor-threshold");
    let seen = operator.types(&slow.replace("sleep 10", "sleep 0")).await.well();
    assert!(seen.starts_with("OK") && seen.contains("aof_last_write_status:ok"), "{seen}");
    for section in ["The disk is slow", "The books do not balance"] {
        let rewritten = operator.does(section, "redis-cli BGREWRITEAOF").await.well();
        assert!(rewritten.contains("ackground append only file rewriting"), "{rewritten}");
    }
    let full = "Redis is out of memory, read-only, loading or busy";
    assert_eq!(operator.does(full, "redis-cli CONFIG SET maxmemory 8gb").await.well().trim(), "OK");
    assert_eq!(operator.types("redis-cli CONFIG SET busy-reply-threshold 50").await.well().trim(), "OK");
    let busy = operator.types("redis-cli EVAL 'while true do end' 0");
    let killed = until("the script is killed", async || {
        let killed = operator.types("redis-cli SCRIPT KILL").await.well();
        killed.contains("OK").then_some(killed)
    });
    let (ended, _) = tokio::join!(busy, killed);
    assert!(ended.said.contains("SCRIPT KILL") || ended.said.contains("killed"), "{}", ended.said);
    operator.printed(full, "redis-cli SCRIPT KILL");
    ready(base).await;

    // Words of Redis's own, typed to its program: `>` is no redirection there.
    let tokens = "Tokens and certificates change";
    let (adds, takes) =
        (operator.printed(tokens, "ACL SETUSER default >"), operator.printed(tokens, "ACL SETUSER default <"));
    let quoted = |line: &str| line.replace('>', "'>'").replace('<', "'<'");
    assert_eq!(operator.types(&format!("redis-cli {}", quoted(&adds))).await.well().trim(), "OK");
    assert_eq!(operator.types("REDISCLI_AUTH=new redis-cli PING").await.well().trim(), "PONG");
    // Once more, so that there is an old one to take away.
    assert_eq!(
        operator.types(&format!("redis-cli {}", quoted(&adds.replace(">new", ">old")))).await.well().trim(),
        "OK"
    );
    assert_eq!(operator.types(&format!("redis-cli {}", quoted(&takes))).await.well().trim(), "OK");
    assert!(!operator.types("REDISCLI_AUTH=old redis-cli PING").await.said.contains("PONG"));

    assert!(operator.does("The books do not balance", "firstcome audit").await.well().contains("The books balance"));
    operator.does("The books do not balance", "pg_dump").await.well();
    let dump = std::fs::read_to_string(operator.dir.path().join("before.sql")).unwrap();
    assert!(dump.contains("CREATE TABLE public.orders"), "{}", dump.len());
}

/// The operators and their actions.
async fn operators_act(operator: &mut Operator, servers: &Servers) {
    let (who, closing) = ("Operators and the operator log", "Opening and closing a campaign");
    let tokens = operator.printed(who, "export ADMIN_TOKENS");
    let tokens = operator.types(&format!("{tokens}\necho \"$ADMIN_TOKENS\"")).await.well();
    let kim = tokens.trim().split(',').find_map(|one| one.strip_prefix("kim:")).unwrap().to_owned();
    let mut theirs = servers.start_with(&["serve"], &[("ADMIN_TOKENS", tokens.trim())], "theirs");
    let shop = std::mem::replace(&mut operator.shop, theirs.base().await);
    let token = std::mem::replace(&mut operator.token, kim);
    let closed = operator.does(closing, "# Close it now").await.json();
    assert_eq!(closed["couponId"], 1, "{closed}");
    let actions = operator.does(who, "curl -s \"$SHOP/admin/v1/operator-log").await.json();
    assert_eq!(actions["content"][0]["action"], "PATCH /admin/v1/coupons/{couponId}", "{actions}");
    assert_eq!((&actions["content"][0]["operator"], &actions["totalElements"]), (&json!("kim"), &json!(1)));
    (operator.shop, operator.token) = (shop, token);
    theirs.stop().await;
}

/// A decision that PostgreSQL refuses, applied after all; and one that is left out.
async fn dead_letters(operator: &mut Operator, servers: &Servers, base: &str, users: &[i64]) {
    let section = "Dead letters";
    let refused = async |user: i64| {
        sql(servers, "ALTER TABLE users ADD CONSTRAINT in_the_way CHECK (balance <> 1007) NOT VALID").await;
        crate::process::binary::put(base, &format!("/api/v1/balances/{user}"), json!({"amount": 7})).await.ok();
        until("it is put aside", async || {
            (get(base, "/admin/v1/projection").await.ok()["deadLetters"] == 1).then_some(())
        })
        .await;
    };
    refused(users[0]).await;
    let letters = operator.does(section, "curl -s $SHOP/admin/v1/dead-letters -H").await.json();
    let letter = &letters["content"][0];
    assert!(letter["reason"].as_str().unwrap().contains("in_the_way"), "{letters}");
    assert_eq!(operator.does(section, "firstcome audit").await.code, Some(1));
    let retry = operator.printed(section, "curl -s -X POST $SHOP/admin/v1/dead-letters/retry");
    let named = format!("{{\"partition\":0,\"streamId\":{},\"seq\":{}}}", letter["streamId"], letter["seq"]);
    let retry = retry.replace("{\"partition\":0,\"streamId\":\"1772427600000-0\",\"seq\":42}", &named);
    let again = operator.types(&retry).await.json();
    assert_eq!(again["errorCode"], "DEAD_LETTER_REFUSED", "as long as its cause is there");
    sql(servers, "ALTER TABLE users DROP CONSTRAINT in_the_way").await;
    assert_eq!(operator.types(&retry).await.well(), "");
    assert_eq!(operator.types("firstcome audit").await.code, Some(0));
    // One that stays.
    refused(users[1]).await;
    let discarded = operator.does(section, "firstcome rebuild --discard").await.well();
    assert!(discarded.contains("Redis is rebuilt from PostgreSQL"), "{discarded}");
    sql(servers, "ALTER TABLE users DROP CONSTRAINT in_the_way").await;
    sql(servers, "DELETE FROM dead_letters").await;
    ready(base).await;
}

/// A payment whose gateway has closed down, settled by hand.
async fn stuck_payment(operator: &mut Operator, servers: &Servers, user: i64) {
    // No process listens there.
    let nobody = ("PAYMENT_GATEWAY_CARD_URL", "http://127.0.0.1:1");
    let mut serving = servers.start_with(&["serve"], &[nobody], "with a gateway");
    let base = serving.base().await;
    operator.shop.clone_from(&base);
    let lines = json!([{"productId": 1, "quantity": 1}]);
    let order = post(&base, "/api/v1/orders", json!({"userId": user, "orderProducts": lines})).await.ok();
    let id = order["orderId"].to_string();
    let pay =
        json!({"orderId": order["orderId"], "userId": user, "paymentType": "CARD", "amount": order["finalPrice"]});
    assert_eq!(post(&base, "/api/v1/payments", pay).await.status, 503);
    let settle = operator.printed("A payment's outcome stays unknown", "curl -s $SHOP/admin/v1/payments");
    let settle = settle.replace("/orders/7/", &format!("/orders/{id}/"));
    // Two replies, one behind the other.
    let said = operator.types(&settle).await.well();
    let replies = serde_json::Deserializer::from_str(&said).into_iter::<Value>().collect::<Result<Vec<_>, _>>();
    let replies = replies.unwrap_or_else(|_| panic!("no JSON: {said}"));
    assert!(replies[0]["content"].is_array(), "{said}");
    assert_eq!((replies[1]["orderId"].to_string(), &replies[1]["orderStatus"]), (id, &json!("PAID")), "{said}");
    projected(&base).await;
    serving.stop().await;
}

/// Releases the units that a rebuild withholds.
async fn release(operator: &Operator) {
    let all = "curl -s -X POST $SHOP/admin/v1/withheld/release -H \"Authorization: Bearer $ADMIN_TOKEN\" \
               -H 'content-type: application/json' -d '{}'";
    let left = operator.types(all).await.json();
    assert_eq!(left, json!({"products": [], "coupons": []}));
}

#[tokio::test]
async fn operations_page_commands_run_as_printed() {
    // The stores' own programs come with Debian's packages of the servers, and not with servers that were fetched.
    let fetched = ["REDIS_SERVER_BIN", "POSTGRES_BIN_DIR"].iter().any(|name| std::env::var_os(name).is_some());
    let missing: Vec<_> = ["redis-cli", "psql", "pg_dump"].into_iter().filter(|tool| on_path(tool).is_none()).collect();
    if fetched && !missing.is_empty() {
        return println!("the page's commands need {missing:?}");
    }
    assert!(missing.is_empty(), "the page's commands need {missing:?}: packages redis-tools and postgresql-client");
    let mut servers = Servers::start().await;
    let (status, said) = run(&mut servers.role(&["migrate"])).await;
    assert!(status.success(), "{said}");
    let password = servers.redis_url.split("?pass=").nth(1).unwrap().to_owned();
    let mut operator = Operator::new(&servers, &servers.redis.socket_path(), &password);
    let copies = ScratchDir::new().unwrap();
    let (redis_copy, postgres_copy) = (copies.path().join("redis"), copies.path().join("postgres"));

    let (mut serving, base) = serve(&servers, "first").await;
    operator.shop.clone_from(&base);
    let user = json!({"userName": "A", "balance": 1_000});
    let mut users = Vec::new();
    for _ in 0..4 {
        users.push(post(&base, "/admin/v1/users", user.clone()).await.created()["userId"].as_i64().unwrap());
    }
    let shoes = json!({"productName": "P", "price": 1, "stockQuantity": 50, "category": "SHOES"});
    assert_eq!(post(&base, "/admin/v1/products", shoes).await.created()["productId"], 1);
    let campaign = json!({"couponCode": "C", "discountType": "FIXED", "discountAmount": 1, "totalQuantity": 8,
        "expiredAt": "2099-01-01T00:00:00"});
    assert_eq!(post(&base, "/admin/v1/coupons", campaign).await.created()["couponId"], 1);
    post(&base, "/api/v1/coupons/issue", json!({"couponId": 1, "userId": users[0]})).await.ok();
    bought(&base, users[0], 1, 2).await;
    projected(&base).await;

    on_a_good_day(&mut operator, &base).await;
    operators_act(&mut operator, &servers).await;
    // Users without an order, with a balance of 1,000.
    dead_letters(&mut operator, &servers, &base, &users[1..3]).await;

    // Redis comes back with less than it had; PostgreSQL has it all.
    release(&operator).await;
    serving.stop().await;
    servers.redis.stop().await.unwrap();
    copy_dir(&servers.redis.data_dir(), &redis_copy);
    servers.redis.restart().await.unwrap();
    let (mut serving, base) = serve(&servers, "second").await;
    operator.shop.clone_from(&base);
    bought(&base, users[3], 1, 1).await;
    projected(&base).await;
    servers.redis.kill().await.unwrap();
    copy_dir(&redis_copy, &servers.redis.data_dir());
    servers.redis.restart().await.unwrap();
    until("it says what is missing", async || get(&base, "/readyz").await.text.contains("behind").then_some(())).await;
    let less = "Redis came back with less than it had";
    operator.does(less, "firstcome rebuild\n").await.well();
    ready(&base).await;
    operator.does(less, "firstcome rebuild --discard").await.well();
    operator.does("The books do not balance", "firstcome rebuild").await.well();
    ready(&base).await;

    // Redis's disk is gone, and what may be missing is kept off sale.
    projected(&base).await;
    serving.stop().await;
    let wiped = async |servers: &mut Servers| {
        servers.redis.kill().await.unwrap();
        let data = servers.redis.data_dir();
        assert!(Command::new("find").arg(&data).args(["-mindepth", "1", "-delete"]).status().unwrap().success());
        servers.redis.restart().await.unwrap();
    };
    wiped(&mut servers).await;
    let gone = "Redis's disk is gone";
    let bounds = operator.printed(gone, "firstcome rebuild --lost-at-most 200");
    for (line, off) in bounds.lines().zip([true, false]) {
        let rebuilt = operator.types(line).await.well();
        assert_eq!(rebuilt.contains("kept off sale"), off, "{line}: {rebuilt}");
    }
    wiped(&mut servers).await;
    operator.does("Moving to another Redis", "firstcome rebuild --lost-at-most 0").await.well();
    wiped(&mut servers).await;
    let (mut serving, base) = serve(&servers, "third").await;
    operator.shop.clone_from(&base);
    let kept = get(&base, "/admin/v1/withheld").await.ok();
    assert!(kept["products"][0]["withheldQuantity"].as_i64().unwrap() >= 40, "{kept}");
    let released = operator.does(gone, "curl -s $SHOP/admin/v1/withheld").await.well();
    assert!(!released.contains("errorCode"), "{released}");
    assert!(released.ends_with("{\"products\":[],\"coupons\":[]}"), "{released}");

    // PostgreSQL is put back to an earlier state, beside a Redis that is whole.
    projected(&base).await;
    serving.stop().await;
    servers.postgres.stop().await.unwrap();
    copy_dir(servers.postgres.data_dir(), &postgres_copy);
    servers.postgres.restart().await.unwrap();
    let (mut serving, base) = serve(&servers, "fourth").await;
    operator.shop.clone_from(&base);
    bought(&base, users[3], 1, 3).await;
    projected(&base).await;
    serving.stop().await;
    // The outbox keeps what PostgreSQL has for a while; then it is gone.
    operator.types("redis-cli XTRIM '{p0}:outbox' MAXLEN 0").await.well();
    servers.postgres.stop().await.unwrap();
    copy_dir(&postgres_copy, servers.postgres.data_dir());
    servers.postgres.restart().await.unwrap();
    let restored = "PostgreSQL's disk is gone";
    assert_ne!(operator.types("firstcome rebuild").await.code, Some(0), "it would discard decisions");
    operator.does(restored, "firstcome rebuild --discard").await.well();
    let (mut serving, base) = serve(&servers, "fifth").await;
    operator.shop.clone_from(&base);
    release(&operator).await;
    projected(&base).await;
    assert_eq!(operator.types("firstcome audit").await.code, Some(0));
    serving.stop().await;

    // And beside one that is lost, too.
    assert_eq!(operator.does(restored, "psql ").await.well().trim(), "UPDATE 1");
    wiped(&mut servers).await;
    let (mut serving, base) = serve(&servers, "sixth").await;
    operator.shop.clone_from(&base);
    let kept = get(&base, "/admin/v1/withheld").await.ok();
    assert_eq!(kept["products"][0]["productId"], 1, "{kept}");
    release(&operator).await;
    projected(&base).await;
    serving.stop().await;

    stuck_payment(&mut operator, &servers, users[3]).await;

    assert_eq!(operator.left, BTreeSet::new(), "commands of the page that nobody typed");
    servers.end().await;
}
