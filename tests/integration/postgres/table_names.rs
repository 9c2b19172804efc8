//! Migration 15 renames tables while processes of the previous version still run: statements that they prepared before the
//! migration read and write the same rows after it.

use std::fs;

use firstcome::postgres::missing_grants;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::support::harness::{TestApp, admin_sql, drop_database, postgres_url};

const DATABASE: &str = "fc_table_names";
const MIGRATION: &str = "0015_table_names.sql";

/// The statements of the previous version, verbatim.
const LOG: &str = "INSERT INTO operator_acts (id, operator, act, target, detail, status, request_id, at)
               SELECT id::uuid, operator, act, target, detail, status, request_id, to_timestamp(at / 1000.0)
               FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::integer[], $7::text[], $8::bigint[])
                   AS new (id, operator, act, target, detail, status, request_id, at)
               ON CONFLICT DO NOTHING";
const READ_LOG: &str =
    "SELECT id::text, operator, act, target, detail, status, request_id, (extract(epoch FROM at) * 1000)::bigint
         FROM operator_acts WHERE $1::text IS NULL OR operator = $1
         ORDER BY operator_acts.at DESC, operator_acts.id DESC OFFSET $2 LIMIT $3";
const ACKNOWLEDGE: &str = "INSERT INTO watermarks (partition, epoch, seq, told_at)
               SELECT partition, epoch, seq, clock_timestamp()
               FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) AS new (partition, epoch, seq) ORDER BY partition
               ON CONFLICT (partition) DO UPDATE SET told_at = excluded.told_at,
                   epoch = greatest(watermarks.epoch, excluded.epoch),
                   seq = CASE WHEN watermarks.epoch > excluded.epoch THEN watermarks.seq
                              WHEN watermarks.epoch < excluded.epoch THEN excluded.seq
                              ELSE greatest(watermarks.seq, excluded.seq) END";
const READ_ACKNOWLEDGED: &str =
    "SELECT partition, epoch, seq, (extract(epoch FROM told_at) * 1000000)::bigint AS told_at
               FROM watermarks ORDER BY partition";
const ISSUE: &str = "INSERT INTO far_coupons (coupon_id, user_id, issue_no, issued_at)
         SELECT coupon, user_id, issue_no, to_timestamp(at::float8 / 1000)
         FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[]) AS new (coupon, user_id, issue_no, at)";
const READ_COUPONS: &str = "SELECT coupon_id, user_id, issue_no FROM far_coupons ORDER BY issue_no";

type Entry = (String, String, String, String, String, i32, String, i64);

/// A process of the previous version, on one connection that keeps its prepared statements.
struct OldProcess(PgConnection);

impl OldProcess {
    async fn log(&mut self, n: i64) {
        let text = |text: &str| vec![text.to_owned()];
        sqlx::query(LOG)
            .bind(text(&format!("00000000-0000-7000-8000-{n:012}")))
            .bind(text("kim"))
            .bind(text("POST /admin/v1/users"))
            .bind(text(""))
            .bind(text("{}"))
            .bind(vec![201])
            .bind(text("request"))
            .bind(vec![n])
            .execute(&mut self.0)
            .await
            .unwrap();
    }

    async fn logged(&mut self) -> Vec<i64> {
        let entries = sqlx::query_as::<_, Entry>(READ_LOG).bind(Some("kim")).bind(0_i64).bind(100_i64);
        entries.fetch_all(&mut self.0).await.unwrap().into_iter().map(|entry| entry.7).collect()
    }

    async fn acknowledge(&mut self, epoch: i64, seq: i64) {
        let statement = sqlx::query(ACKNOWLEDGE).bind(vec![0_i64]).bind(vec![epoch]).bind(vec![seq]);
        statement.execute(&mut self.0).await.unwrap();
    }

    async fn acknowledged(&mut self) -> (i64, i64) {
        let row: (i32, i64, i64, i64) = sqlx::query_as(READ_ACKNOWLEDGED).fetch_one(&mut self.0).await.unwrap();
        (row.1, row.2)
    }

    async fn issue(&mut self, issue_no: i64) {
        let statement =
            sqlx::query(ISSUE).bind(vec![1_i64]).bind(vec![issue_no]).bind(vec![issue_no]).bind(vec![0_i64]);
        statement.execute(&mut self.0).await.unwrap();
    }

    async fn issued(&mut self) -> Vec<i64> {
        let rows: Vec<(i64, i64, i64)> = sqlx::query_as(READ_COUPONS).fetch_all(&mut self.0).await.unwrap();
        rows.into_iter().map(|row| row.2).collect()
    }
}

#[tokio::test]
async fn old_process_reads_and_writes_when_tables_have_new_names() {
    tokio::task::spawn_blocking(|| postgres_url(DATABASE)).await.unwrap();
    admin_sql(format!("CREATE DATABASE {DATABASE}")).await;
    let connect = async || PgConnection::connect(&postgres_url(DATABASE)).await.unwrap();
    let (mut old, mut new) = (OldProcess(connect().await), connect().await);

    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/migrations");
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    let here = names.iter().position(|name| name == MIGRATION).unwrap();
    let migrate = async |connection: &mut PgConnection, name: &str| {
        let sql = fs::read_to_string(format!("{dir}/{name}")).unwrap();
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await.unwrap();
    };
    for name in &names[..here] {
        migrate(&mut new, name).await;
    }
    old.log(1).await;
    old.acknowledge(1, 5).await;
    old.issue(1).await;
    assert_eq!((old.logged().await, old.acknowledged().await, old.issued().await), (vec![1], (1, 5), vec![1]));

    migrate(&mut new, MIGRATION).await;
    old.log(1).await;
    old.log(2).await;
    old.acknowledge(1, 7).await;
    old.acknowledge(1, 6).await;
    old.issue(2).await;
    assert_eq!((old.logged().await, old.acknowledged().await, old.issued().await), (vec![2, 1], (1, 7), vec![1, 2]));

    // The renamed tables have the rows, and old processes read what new ones write.
    let entries: i64 = sqlx::query_scalar("SELECT count(*) FROM operator_log WHERE action = 'POST /admin/v1/users'")
        .fetch_one(&mut new)
        .await
        .unwrap();
    let coupons: i64 = sqlx::query_scalar("SELECT count(*) FROM remote_coupons").fetch_one(&mut new).await.unwrap();
    assert_eq!((entries, coupons), (2, 2));
    let advance =
        "UPDATE acknowledged_positions SET epoch = 2, seq = 1, acknowledged_at = now() WHERE (epoch, seq) = (1, 7)";
    assert_eq!(sqlx::query(advance).execute(&mut new).await.unwrap().rows_affected(), 1);
    assert_eq!(old.acknowledged().await, (2, 1));

    drop_database(DATABASE).await;
}

#[tokio::test]
async fn grants_named_when_role_lacks_views() {
    let test = TestApp::start().await;
    let pool = test.db.get_postgres_connection_pool();
    assert!(missing_grants(pool).await.unwrap().is_empty());

    // Roles belong to the whole server: the rollback removes this one.
    let mut transaction = pool.begin().await.unwrap();
    let role = "CREATE ROLE fc_without_views;
                GRANT SELECT, INSERT, UPDATE ON operator_log, acknowledged_positions TO fc_without_views;
                GRANT SELECT ON watermarks TO fc_without_views;
                SET LOCAL ROLE fc_without_views";
    sqlx::raw_sql(role).execute(&mut *transaction).await.unwrap();
    let missing = missing_grants(&mut *transaction).await.unwrap();
    let expected = [
        "GRANT INSERT, SELECT, UPDATE ON operator_acts TO fc_without_views",
        "GRANT INSERT, UPDATE ON watermarks TO fc_without_views",
    ];
    assert_eq!(missing, expected);
    transaction.rollback().await.unwrap();
    test.finish().await;
}
