//! Every command of docs/operations.md runs as printed, in the situation of its section, on private servers.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use firstcome::dev::ScratchDir;
use serde_json::{Value, json};

use crate::{
    process::binary::{ADMIN, Running, Servers, get, post, run},
    support::{
        fake_issuer::{CLIENT_SECRET, FakeIssuer, parameters},
        files::copy_dir,
        harness::until,
    },
};

const PAGE: &str = include_str!("../../../docs/operations.md");
/// The beginnings of commands in running text.
const PROGRAMS: [&str; 6] = ["curl ", "firstcome ", "redis-cli ", "pg_dump ", "ACL SETUSER ", "CONFIG SET "];
/// Inline code that mentions a command which the reader does not run.
const MENTIONS: [&str; 1] = ["firstcome project"];

/// A command and its section.
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
    assert!(block.is_none(), "unclosed fenced block");
    all
}

/// A terminal in an empty directory, and the commands of the page.
struct Operator {
    dir: ScratchDir,
    shop: String,
    redis_url: String,
    postgres_url: String,
    token: String,
    /// The commands that have not run yet.
    not_run: BTreeSet<Printed>,
}

/// The outcome of a command.
struct Outcome {
    code: Option<i32>,
    said: String,
}

impl Outcome {
    /// Asserts that the command succeeded. Returns its output.
    #[track_caller]
    fn success(self) -> String {
        assert_eq!(self.code, Some(0), "{}", self.said);
        self.said
    }

    /// Asserts that the command succeeded. Returns its output as JSON.
    #[track_caller]
    fn json(self) -> Value {
        let said = self.success();
        serde_json::from_str(&said).unwrap_or_else(|_| panic!("no JSON: {said}"))
    }
}

impl Operator {
    /// `socket`, `password`: how redis-cli reaches Redis.
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
            not_run: printed(),
        }
    }

    /// Runs a command line in bash.
    async fn run(&self, line: &str) -> Outcome {
        let path = format!("{}:{}", self.dir.path().join("bin").display(), std::env::var("PATH").unwrap());
        let mut shell = Command::new("bash");
        shell.args(["-c", &format!("exec 2>&1\n{line}")]).current_dir(self.dir.path()).env_clear().stdin(Stdio::null());
        shell.envs([("PATH", path.as_str()), ("SHOP", &self.shop), ("ADMIN_TOKEN", &self.token)]);
        shell.envs([("REDIS_URL", &self.redis_url), ("DATABASE_URL", &self.postgres_url)]);
        shell.env("NO_PROXY", "*").env("RUST_LOG", "error");
        let output = tokio::task::spawn_blocking(move || shell.output().expect("bash")).await.unwrap();
        Outcome { code: output.status.code(), said: String::from_utf8_lossy(&output.stdout).into_owned() }
    }

    /// The command of a section that begins with `begins`; it counts as run.
    #[track_caller]
    fn printed(&mut self, section: &str, begins: &str) -> String {
        let all = printed();
        let found = all.iter().find(|one| one.section == section && one.text.starts_with(begins));
        let found = found.unwrap_or_else(|| panic!("{section:?} prints no command that begins with {begins:?}"));
        self.not_run.remove(found);
        found.text.clone()
    }

    /// Runs the command as printed.
    async fn run_printed(&mut self, section: &str, begins: &str) -> Outcome {
        let line = self.printed(section, begins);
        self.run(&line).await
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
    // The page's commands are those of an operator who recovers by hand.
    let mut serve = servers.start_with(&["serve"], &[("RECOVERY", "manual")], name);
    let base = serve.base().await;
    (serve, base)
}

async fn sql(servers: &Servers, statement: &'static str) {
    let db = servers.db().await;
    sqlx::query(statement).execute(db.get_postgres_connection_pool()).await.unwrap();
    db.close().await.unwrap();
}

/// Requests, reads and settings of a healthy deployment.
async fn healthy_deployment(operator: &mut Operator, base: &str) {
    let exports = operator.printed("Operations", "export REDIS_URL");
    let set = operator.run(&format!("{exports}\necho \"$REDIS_URL $DATABASE_URL $ADMIN_TOKEN $SHOP\"")).await.success();
    assert!(set.starts_with("redis://redis.example:6379 postgres://") && set.trim().ends_with(":8080"), "{set}");

    let asks = "Four questions";
    assert_eq!(operator.run_printed(asks, "curl -s $SHOP/readyz").await.json(), json!({"status": "UP"}));
    assert_eq!(operator.run_printed("FirstcomeNotReady", "curl -s $SHOP/readyz").await.json(), json!({"status": "UP"}));
    assert_eq!(operator.run_printed(asks, "curl -s $SHOP/admin/v1/projection").await.json()["deadLetters"], 0);
    assert!(operator.run_printed(asks, "firstcome audit").await.success().contains("The books balance"));
    assert_eq!(operator.run_printed(asks, "curl -s $SHOP/admin/v1/audit").await.json()["balanced"], true);
    let events = operator.run_printed(asks, "curl -sN $SHOP/admin/v1/audit/events").await.success();
    assert!(events.starts_with("event: progress\n") && events.contains("event: report\ndata: {"), "{events}");
    let withheld = operator.run_printed(asks, "curl -s $SHOP/admin/v1/withheld").await.json();
    assert_eq!(withheld, json!({"products": [], "coupons": []}));

    let memory = operator.run_printed("Redis's memory grows", "redis-cli INFO memory").await.success();
    assert!(memory.contains("used_memory_human:") && memory.contains("mem_fragmentation_ratio:"), "{memory}");
    assert!(memory.contains("Sampled ") && !memory.contains("ERR"), "{memory}");
    let defragmented = operator.run_printed("Redis's memory grows", "CONFIG SET activedefrag").await;
    assert_ne!(defragmented.code, Some(0), "a Redis command ran in the shell");
    let defragmented = operator.run("redis-cli CONFIG SET activedefrag yes").await.success();
    assert!(defragmented.starts_with("OK") || defragmented.contains("cannot be enabled"), "{defragmented}");

    let slow = operator.printed("The disk is slow", "redis-cli CONFIG SET latency-monitor-threshold");
    let seen = operator.run(&slow.replace("sleep 10", "sleep 0")).await.success();
    assert!(seen.starts_with("OK") && seen.contains("aof_last_write_status:ok"), "{seen}");
    for section in ["The disk is slow", "The books do not balance"] {
        let rewritten = operator.run_printed(section, "redis-cli BGREWRITEAOF").await.success();
        assert!(rewritten.contains("ackground append only file rewriting"), "{rewritten}");
    }
    let full = "Redis is out of memory, read-only, loading or busy";
    assert_eq!(operator.run_printed(full, "redis-cli CONFIG SET maxmemory 8gb").await.success().trim(), "OK");
    assert_eq!(operator.run("redis-cli CONFIG SET busy-reply-threshold 50").await.success().trim(), "OK");
    let busy = operator.run("redis-cli EVAL 'while true do end' 0");
    let killed = until("the script is killed", async || {
        let killed = operator.run("redis-cli SCRIPT KILL").await.success();
        killed.contains("OK").then_some(killed)
    });
    let (ended, _) = tokio::join!(busy, killed);
    assert!(ended.said.contains("SCRIPT KILL") || ended.said.contains("killed"), "{}", ended.said);
    operator.printed(full, "redis-cli SCRIPT KILL");
    ready(base).await;

    // Redis commands, entered in redis-cli, where `>` is not a redirection.
    let tokens = "Tokens and certificates change";
    let (adds, takes) =
        (operator.printed(tokens, "ACL SETUSER default >"), operator.printed(tokens, "ACL SETUSER default <"));
    let quoted = |line: &str| line.replace('>', "'>'").replace('<', "'<'");
    assert_eq!(operator.run(&format!("redis-cli {}", quoted(&adds))).await.success().trim(), "OK");
    assert_eq!(operator.run("REDISCLI_AUTH=new redis-cli PING").await.success().trim(), "PONG");
    // Adds an old password, so that there is one to remove.
    assert_eq!(
        operator.run(&format!("redis-cli {}", quoted(&adds.replace(">new", ">old")))).await.success().trim(),
        "OK"
    );
    assert_eq!(operator.run(&format!("redis-cli {}", quoted(&takes))).await.success().trim(), "OK");
    assert!(!operator.run("REDISCLI_AUTH=old redis-cli PING").await.said.contains("PONG"));

    assert!(
        operator
            .run_printed("The books do not balance", "firstcome audit")
            .await
            .success()
            .contains("The books balance")
    );
    operator.run_printed("The books do not balance", "pg_dump").await.success();
    let dump = std::fs::read_to_string(operator.dir.path().join("before.sql")).unwrap();
    assert!(dump.contains("CREATE TABLE public.orders"), "{}", dump.len());
}

/// Operators' tokens and the operator log.
async fn operator_tokens(operator: &mut Operator, servers: &Servers) {
    let (who, closing) = ("Operators and the operator log", "Opening and closing a campaign");
    let tokens = operator.printed(who, "export ADMIN_TOKENS");
    let tokens = operator.run(&format!("{tokens}\necho \"$ADMIN_TOKENS\"")).await.success();
    let kim = tokens.trim().split(',').find_map(|one| one.strip_prefix("kim:operator:")).unwrap().to_owned();
    let mut theirs = servers.start_with(&["serve"], &[("ADMIN_TOKENS", tokens.trim())], "theirs");
    let shop = std::mem::replace(&mut operator.shop, theirs.base().await);
    let token = std::mem::replace(&mut operator.token, kim);
    let closed = operator.run_printed(closing, "# Close it now").await.json();
    assert_eq!(closed["couponId"], 1, "{closed}");
    let actions = operator.run_printed(who, "curl -s \"$SHOP/admin/v1/operator-log").await.json();
    assert_eq!(actions["content"][0]["action"], "PATCH /admin/v1/coupons/{couponId}", "{actions}");
    assert_eq!((&actions["content"][0]["operator"], &actions["totalElements"]), (&json!("kim"), &json!(1)));
    (operator.shop, operator.token) = (shop, token);
    theirs.stop().await;
}

/// The settings of the company's identity provider.
async fn company_account(operator: &mut Operator, servers: &Servers) {
    let issuer = FakeIssuer::start().await;
    let settings = operator.printed("Signing in with the company's account", "export OPS_OIDC_ISSUER");
    let settings = settings
        .replace("https://id.shop.example/realms/shop", &issuer.url)
        .replace("SECRET=...", &format!("SECRET={CLIENT_SECRET}"));
    let settings = operator.run(&format!("{settings}\nenv | grep ^OPS_")).await.success();
    let variables: Vec<_> = settings.lines().filter_map(|line| line.split_once('=')).collect();
    assert_eq!(variables.len(), 4, "{settings}");
    let mut theirs = servers.start_with(&["serve"], &variables, "accounts");
    let begin = format!("{}/ops/oidc", theirs.base().await);
    let began = operator.run(&format!("curl -s -o /dev/null -w '%{{redirect_url}}' {begin}")).await.success();
    assert!(began.starts_with(&format!("{}/authorize?", issuer.url)), "{began}");
    assert!(parameters(&began)["redirect_uri"].starts_with("https://"), "{began}");
    theirs.stop().await;
}

/// Applies a dead letter after its cause is removed, and discards another one.
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
    let dead_letters = operator.run_printed(section, "curl -s $SHOP/admin/v1/dead-letters -H").await.json();
    let dead_letter = &dead_letters["content"][0];
    assert!(dead_letter["reason"].as_str().unwrap().contains("in_the_way"), "{dead_letters}");
    assert_eq!(operator.run_printed(section, "firstcome audit").await.code, Some(1));
    let retry = operator.printed(section, "curl -s -X POST $SHOP/admin/v1/dead-letters/retry");
    let named = format!("{{\"partition\":0,\"streamId\":{},\"seq\":{}}}", dead_letter["streamId"], dead_letter["seq"]);
    let retry = retry.replace("{\"partition\":0,\"streamId\":\"1772427600000-0\",\"seq\":42}", &named);
    let again = operator.run(&retry).await.json();
    assert_eq!(again["errorCode"], "DEAD_LETTER_REFUSED", "a dead letter is applied before its cause is removed");
    sql(servers, "ALTER TABLE users DROP CONSTRAINT in_the_way").await;
    assert_eq!(operator.run(&retry).await.success(), "");
    assert_eq!(operator.run("firstcome audit").await.code, Some(0));
    // A dead letter whose cause stays.
    refused(users[1]).await;
    let discarded = operator.run_printed(section, "firstcome rebuild --discard").await.success();
    assert!(discarded.contains("Redis is rebuilt from PostgreSQL"), "{discarded}");
    sql(servers, "ALTER TABLE users DROP CONSTRAINT in_the_way").await;
    sql(servers, "DELETE FROM dead_letters").await;
    ready(base).await;
}

/// A payment whose gateway no longer exists, resolved by the operator.
async fn stuck_payment(operator: &mut Operator, servers: &Servers, user: i64) {
    // No process listens on this port.
    let gateway = ("PAYMENT_GATEWAY_CARD_URL", "http://127.0.0.1:1");
    let mut serving = servers.start_with(&["serve"], &[gateway], "with a gateway");
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
    // The section's commands print two replies in a row.
    let said = operator.run(&settle).await.success();
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
    let left = operator.run(all).await.json();
    assert_eq!(left, json!({"products": [], "coupons": []}));
}

#[tokio::test]
async fn operations_page_commands_run_as_printed() {
    // Debian's packages of the servers include these programs; servers that `scripts/install-servers` fetched do not.
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

    healthy_deployment(&mut operator, &base).await;
    operator_tokens(&mut operator, &servers).await;
    company_account(&mut operator, &servers).await;
    // Users without an order, with a balance of 1,000.
    dead_letters(&mut operator, &servers, &base, &users[1..3]).await;

    // Redis returns with less than it had; PostgreSQL has everything.
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
    operator.run_printed(less, "firstcome rebuild\n").await.success();
    ready(&base).await;
    let log = operator.run_printed(less, "curl").await.json();
    let newest = &log["content"][0];
    assert!(newest["begunBy"] == "OPERATOR" && newest["endedAt"].is_string(), "{log}");
    operator.run_printed(less, "firstcome rebuild --partition").await.success();
    ready(&base).await;
    operator.run_printed(less, "firstcome rebuild --discard").await.success();
    operator.run_printed("The books do not balance", "firstcome rebuild").await.success();
    ready(&base).await;

    // Redis's disk is lost, so the rebuild withholds what may be missing.
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
        let rebuilt = operator.run(line).await.success();
        assert_eq!(rebuilt.contains("kept off sale"), off, "{line}: {rebuilt}");
    }
    wiped(&mut servers).await;
    operator.run_printed("Moving to another Redis", "firstcome rebuild --lost-at-most 0").await.success();
    wiped(&mut servers).await;
    let (mut serving, base) = serve(&servers, "third").await;
    operator.shop.clone_from(&base);
    let kept = get(&base, "/admin/v1/withheld").await.ok();
    assert!(kept["products"][0]["withheldQuantity"].as_i64().unwrap() >= 40, "{kept}");
    let released = operator.run_printed(gone, "curl -s $SHOP/admin/v1/withheld").await.success();
    assert!(!released.contains("errorCode"), "{released}");
    assert!(released.ends_with("{\"products\":[],\"coupons\":[]}"), "{released}");

    // PostgreSQL returns to an earlier state; Redis is whole.
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
    // The outbox keeps projected events for a while; the test removes them.
    operator.run("redis-cli XTRIM '{p0}:outbox' MAXLEN 0").await.success();
    servers.postgres.stop().await.unwrap();
    copy_dir(&postgres_copy, servers.postgres.data_dir());
    servers.postgres.restart().await.unwrap();
    let restored = "PostgreSQL's disk is gone";
    assert_ne!(
        operator.run("firstcome rebuild").await.code,
        Some(0),
        "a rebuild that discards decisions needs --discard"
    );
    operator.run_printed(restored, "firstcome rebuild --discard").await.success();
    let (mut serving, base) = serve(&servers, "fifth").await;
    operator.shop.clone_from(&base);
    release(&operator).await;
    projected(&base).await;
    assert_eq!(operator.run("firstcome audit").await.code, Some(0));
    serving.stop().await;

    // PostgreSQL returns to an earlier state, and Redis is lost.
    assert_eq!(operator.run_printed(restored, "psql ").await.success().trim(), "UPDATE 1");
    wiped(&mut servers).await;
    let (mut serving, base) = serve(&servers, "sixth").await;
    operator.shop.clone_from(&base);
    let kept = get(&base, "/admin/v1/withheld").await.ok();
    assert_eq!(kept["products"][0]["productId"], 1, "{kept}");
    release(&operator).await;
    projected(&base).await;
    serving.stop().await;

    stuck_payment(&mut operator, &servers, users[3]).await;

    assert_eq!(operator.not_run, BTreeSet::new(), "commands of the page that did not run");
    servers.end().await;
}
