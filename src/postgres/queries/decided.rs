//! What PostgreSQL has of decisions that are still in the outbox, for the audit. Only what no later decision changes.

use sqlx::{FromRow, Row, postgres::PgRow};

use crate::{
    model::{BalanceEntry, Partition, Position},
    postgres::snapshot::{Snapshot, row},
};

row! {
    /// When a user, a product or a campaign was created (ms), and its name. Empty: the user was renamed since.
    CreatedRow { id: i64, name: String, created_at: i64, }
}

row! {
    /// A coupon as it was issued.
    IssuedRow { coupon_id: i64, user_id: i64, issue_no: i64, issued_at: i64, }
}

row! {
    /// An operator's decision on the payment of an order.
    ResolutionRow { order_id: i64, operator: String, reason: String, }
}

row! {
    /// A refunded part of an order, with its order and payment.
    PartRow {
        order_id: i64, part: i32, amount: i64, lines: String, quarantined: bool, refunded_by: Option<String>,
        reason: Option<String>, status: String, refunded_at: i64, ended_at: Option<i64>, user_id: i64, refunds: i32,
        day: Option<String>, receipt: String, method: String,
    }
}

/// The tables of records that are created by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CreatedKind {
    User,
    Product,
    Campaign,
}

impl Snapshot {
    /// The last decision of a partition that this snapshot has, and its entry of the outbox; `None` without a position.
    ///
    /// # Errors
    /// PostgreSQL can't answer; the same holds for every method below.
    pub async fn projected(&mut self, here: Partition) -> sqlx::Result<Option<(Position, String)>> {
        let query = sqlx::query_as("SELECT epoch, seq, stream_id FROM projection_positions WHERE partition = $1");
        let row: Option<(i64, i64, String)> = query.bind(i32::from(here.0)).fetch_optional(self.connection()).await?;
        Ok(row.map(|(epoch, seq, stream_id)| (Position { epoch, seq }, stream_id)))
    }

    /// The dead letters of these entries: the entry, and the seq of the decision if it is known.
    pub async fn dead_letters_of(
        &mut self,
        here: Partition,
        entries: &[String],
    ) -> sqlx::Result<Vec<(String, Option<i64>)>> {
        let query =
            sqlx::query_as("SELECT stream_id, seq FROM dead_letters WHERE partition = $1 AND stream_id = ANY($2)");
        query.bind(i32::from(here.0)).bind(entries).fetch_all(self.connection()).await
    }

    /// The refunded parts of these orders.
    pub async fn parts(&mut self, orders: &[i64]) -> sqlx::Result<Vec<PartRow>> {
        let query = sqlx::query_as(
            "SELECT order_id, part, r.amount, lines, quarantined, r.refunded_by, reason, r.status,
                 (extract(epoch FROM refunded_at) * 1000)::bigint AS refunded_at,
                 (extract(epoch FROM r.ended_at) * 1000)::bigint AS ended_at, o.user_id, refunds,
                 to_char(sold_on, 'YYYYMMDD') AS day, receipt, method
             FROM order_refunds AS r JOIN orders AS o ON o.id = r.order_id JOIN payments AS p USING (order_id)
             WHERE order_id = ANY($1)",
        );
        query.bind(orders).fetch_all(self.connection()).await
    }

    /// Those of these balance entries that PostgreSQL does not have as they are: user and number.
    pub async fn other_entries(&mut self, entries: &[&BalanceEntry]) -> sqlx::Result<Vec<(i64, i64)>> {
        let column = |value: fn(&BalanceEntry) -> i64| entries.iter().map(|entry| value(entry)).collect::<Vec<i64>>();
        let query = sqlx::query_as(
            "SELECT user_id, entry_no
             FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[],
                         $8::bigint[]) AS entry (user_id, entry_no, type, amount, before, after, order_id, at)
             WHERE NOT EXISTS (
                 SELECT FROM balance_entries AS e
                 WHERE (e.user_id, e.entry_no) = (entry.user_id, entry.entry_no) AND transaction_type = type
                    AND e.amount = entry.amount AND before_balance = before AND after_balance = after
                    AND coalesce(e.order_id, 0) = entry.order_id AND (extract(epoch FROM created_at) * 1000)::bigint = at)",
        );
        query
            .bind(column(|entry| entry.user_id.get()))
            .bind(column(|entry| entry.entry_no))
            .bind(entries.iter().map(|entry| entry.kind.as_str()).collect::<Vec<_>>())
            .bind(column(|entry| entry.amount))
            .bind(column(|entry| entry.before))
            .bind(column(|entry| entry.after))
            .bind(column(|entry| entry.order_id.map_or(0, |order| order.get())))
            .bind(column(|entry| entry.at.0))
            .fetch_all(self.connection())
            .await
    }

    /// These users, products or campaigns (with their codes).
    pub async fn created(&mut self, kind: CreatedKind, ids: &[i64]) -> sqlx::Result<Vec<CreatedRow>> {
        let sql = match kind {
            CreatedKind::User => {
                "SELECT id, CASE WHEN renamed_at IS NULL THEN name ELSE '' END AS name,
                     (extract(epoch FROM created_at) * 1000)::bigint AS created_at
                 FROM users WHERE id = ANY($1)"
            }
            CreatedKind::Product => {
                "SELECT id, name, (extract(epoch FROM created_at) * 1000)::bigint AS created_at FROM products WHERE id = ANY($1)"
            }
            CreatedKind::Campaign => {
                "SELECT id, code AS name, (extract(epoch FROM created_at) * 1000)::bigint AS created_at
                 FROM campaigns WHERE id = ANY($1)"
            }
        };
        sqlx::query_as(sql).bind(ids).fetch_all(self.connection()).await
    }

    /// The coupons of these campaigns and users, pair by pair: as users have them or, `remote`, as campaigns issued them to users of
    /// other partitions.
    pub async fn issued(&mut self, remote: bool, coupons: &[i64], users: &[i64]) -> sqlx::Result<Vec<IssuedRow>> {
        let sql = match remote {
            false => {
                "SELECT coupon_id, user_id, issue_no, (extract(epoch FROM issued_at) * 1000)::bigint AS issued_at
                 FROM user_coupons JOIN unnest($1::bigint[], $2::bigint[]) AS pair (coupon, holder)
                     ON coupon_id = coupon AND user_id = holder"
            }
            true => {
                "SELECT coupon_id, user_id, issue_no, (extract(epoch FROM issued_at) * 1000)::bigint AS issued_at
                 FROM remote_coupons JOIN unnest($1::bigint[], $2::bigint[]) AS pair (coupon, holder)
                     ON coupon_id = coupon AND user_id = holder"
            }
        };
        sqlx::query_as(sql).bind(coupons).bind(users).fetch_all(self.connection()).await
    }

    /// The operators' decisions on payments of these orders.
    pub async fn resolutions(&mut self, orders: &[i64]) -> sqlx::Result<Vec<ResolutionRow>> {
        let query = sqlx::query_as(
            "SELECT order_id, resolved_by AS operator, coalesce(resolved_because, '') AS reason
             FROM payments WHERE order_id = ANY($1) AND resolved_by IS NOT NULL",
        );
        query.bind(orders).fetch_all(self.connection()).await
    }

    /// The highest id of each sequence that was reserved under an idempotency key.
    pub async fn reserved_ids(&mut self) -> sqlx::Result<Vec<(String, i64)>> {
        sqlx::query_as("SELECT name, last FROM id_sequences").fetch_all(self.connection()).await
    }
}
