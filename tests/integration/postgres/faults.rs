//! Errors of PostgreSQL: a permanent one makes a dead letter; a temporary one is reported while the projection waits.

use firstcome::postgres;
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;

use crate::{
    process::binary::{program, run},
    support::harness::{self, Options, TestApp},
};

/// A name that most encodings can't represent.
const NAME: &str = "한정판 🎟";

#[tokio::test]
async fn start_refused_when_database_not_utf8() {
    let admin = postgres::connect(&harness::postgres_config(&harness::postgres_url("postgres"))).await.unwrap();
    let template = harness::fresh_database().await;
    for encoding in ["LATIN1", "SQL_ASCII", "EUC_KR"] {
        let name = format!("{template}_{}", encoding.to_lowercase());
        let sql = format!("CREATE DATABASE {name} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0");
        sqlx::query(AssertSqlSafe(sql)).execute(admin.get_postgres_connection_pool()).await.unwrap();
        let url = harness::postgres_url(&name);
        let reason = format!("{:#}", postgres::connect(&harness::postgres_config(&url)).await.unwrap_err());
        for word in [encoding, "UTF8", "CREATE DATABASE", &name] {
            assert!(reason.contains(word), "{word} is not in {reason}");
        }
        for role in ["migrate", "serve", "project"] {
            let mut command = program(&[role]);
            command.env("DATABASE_URL", &url).env("REDIS_URL", "redis://127.0.0.1:1").env("BIND_ADDR", "127.0.0.1:0");
            let (status, output) = run(&mut command).await;
            assert!(!status.success() && output.contains("must be UTF8"), "{role}: {output}");
        }
        harness::drop_database(&name).await;
    }
    admin.close().await.unwrap();
    harness::drop_database(&template).await;
}

async fn count(test: &TestApp, what: &str) -> i64 {
    let sql = AssertSqlSafe(format!("SELECT count(*) FROM {what}"));
    sqlx::query_scalar(sql).fetch_one(test.db.get_postgres_connection_pool()).await.unwrap()
}

/// Makes the server refuse every user named [`NAME`] with this SQLSTATE.
async fn refuse(test: &TestApp, state: &str) {
    test.sql(
        &format!(
            "CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN RAISE EXCEPTION 'not {NAME}' USING ERRCODE = '{state}'; END $$;
             DROP TRIGGER IF EXISTS refuse ON users;
             CREATE TRIGGER refuse BEFORE INSERT ON users FOR EACH ROW WHEN (NEW.name = '{NAME}') EXECUTE FUNCTION refuse()"
        ),
    )
    .await;
}

async fn user(test: &TestApp, name: &str) -> Value {
    test.post("/admin/v1/users", json!({"userName": name})).await.created()["userId"].clone()
}

/// SQLSTATEs: a value too long or out of range, a character that the encoding lacks, a constraint, the same row twice in a
/// statement, an index entry too large, an error of a trigger.
#[tokio::test]
async fn event_becomes_dead_letter_when_postgres_refuses_for_good() {
    let test = TestApp::start().await;
    let states = ["22001", "22003", "22008", "22021", "22P05", "23514", "23505", "21000", "54000", "P0001"];
    for (n, state) in (1..).zip(states) {
        refuse(&test, state).await;
        user(&test, "before").await;
        user(&test, NAME).await;
        user(&test, "after").await;
        test.drain().await;
        assert_eq!(count(&test, "dead_letters").await, n, "{state}");
        assert_eq!(count(&test, "users").await, 2 * n, "{state}");
    }
    let audit = test.get("/admin/v1/audit").await.ok();
    assert_eq!(audit["balanced"], false, "{audit}");
    // Without the trigger, PostgreSQL accepts each of them.
    test.sql("DROP TRIGGER refuse ON users").await;
    let dead_letters = test.get("/admin/v1/dead-letters?size=100").await.ok();
    for dead_letter in dead_letters["content"].as_array().unwrap() {
        let body = json!({"partition": 0, "streamId": dead_letter["streamId"], "seq": dead_letter["seq"]});
        assert_eq!(test.post("/admin/v1/dead-letters/retry", body).await.status, 204);
    }
    test.finish().await;
}

/// PostgreSQL refuses the event, and its text as a dead letter: the projector stores the text in ASCII, which any database accepts.
#[tokio::test]
async fn dead_letter_filed_in_ascii_when_postgres_refuses_its_text() {
    let test = TestApp::start().await;
    refuse(&test, "22P05").await;
    test.sql(r"ALTER TABLE dead_letters ADD CHECK (fields::text ~ '^[ -~]*$' AND reason ~ '^[ -~]*$')").await;
    user(&test, NAME).await;
    user(&test, "after").await;
    test.drain().await;
    assert_eq!((count(&test, "dead_letters").await, count(&test, "users").await), (1, 1));
    let dead_letters = test.get("/admin/v1/dead-letters").await.ok();
    let dead_letter = &dead_letters["content"][0];
    assert!(dead_letter["fields"]["escaped"].as_str().is_some_and(|text| text.contains("1f39f")), "{dead_letter}");
    // A retry is refused: it would write the escaped name.
    test.sql("DROP TRIGGER refuse ON users").await;
    let body = json!({"partition": 0, "streamId": dead_letter["streamId"], "seq": dead_letter["seq"]});
    test.post("/admin/v1/dead-letters/retry", body).await.refused(409, "DEAD_LETTER_REFUSED");
    test.finish_unchecked().await;
}

/// SQLSTATEs: a missing right, a full disk, an I/O error, a missing column, a read-only transaction, too many connections.
#[tokio::test]
async fn projection_waits_and_reports_when_postgres_refuses_for_now() {
    let test = TestApp::start().await;
    for (n, state) in (1..).zip(["42501", "53100", "58030", "42703", "25006", "53300"]) {
        refuse(&test, state).await;
        user(&test, NAME).await;
        let failed = test.app.projector.drain().await.unwrap_err().to_string();
        assert!(failed.contains("not "), "{failed}");
        assert_eq!((count(&test, "dead_letters").await, count(&test, "users").await), (0, n - 1), "{state}");
        // A short delay is no stall; a minute without progress is one.
        let ready = async || test.get("/readyz").await.ok();
        test.engine.check().await;
        assert_eq!(ready().await, json!({"status": "UP"}), "{state}");
        test.clock.advance(61_000);
        test.engine.check().await;
        let stalled = ready().await;
        assert_eq!(stalled["status"], "DEGRADED", "{stalled}");
        assert!(
            stalled["reasons"][0].as_str().unwrap().starts_with("partition 0: the projection has made no progress"),
            "{stalled}"
        );
        // The service decides meanwhile.
        test.put("/api/v1/balances/1", json!({"amount": 1})).await.ok();
        test.sql("DROP TRIGGER refuse ON users").await;
        test.drain().await;
        test.engine.check().await;
        assert_eq!(ready().await, json!({"status": "UP"}), "{state}");
        assert_eq!(count(&test, "users").await, n);
    }
    test.finish().await;
}

/// The stores agree but for the backlog; the audit fails once the backlog has waited too long.
#[tokio::test]
async fn audit_balanced_until_backlog_too_old() {
    // The clock must agree with Redis's, which dates the events.
    let test =
        TestApp::with(Options { clock: Some(firstcome::model::Clock::system().now()), ..Options::default() }).await;
    user(&test, "A").await;
    let audit = test.get("/admin/v1/audit").await.ok();
    assert_eq!(audit["balanced"], true, "{audit}");
    test.clock.advance(400_000);
    let report = test.app.audit().run().await.unwrap();
    let check = report.checks.iter().find(|check| check.name.starts_with("projection:")).unwrap();
    assert!(!report.balanced && !check.ok, "{check:?}");
    test.drain().await;
    assert!(test.app.audit().run().await.unwrap().balanced);
    test.finish().await;
}
