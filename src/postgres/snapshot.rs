//! A consistent read of PostgreSQL: for a rebuild, which streams every row in bounded memory, and for the audit.
//!
//! Times are milliseconds since 1970. Lines and terms of sale are packed as in Redis.

use anyhow::Context;
use futures_util::stream::BoxStream;
use sqlx::{Executor, FromRow, PgConnection, Postgres, Row, postgres::PgRow};

use super::{Connection, progress::ProjectedPosition};
use crate::{
    config::Retention,
    model::{Partition, Position, Scope},
};

/// Declares a row whose fields have the names of the columns.
macro_rules! row {
    ($(#[$doc:meta])* $name:ident { $($(#[$fdoc:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default)]
        pub struct $name { $($(#[$fdoc])* pub $field: $type,)* }

        impl FromRow<'_, PgRow> for $name {
            fn from_row(row: &PgRow) -> sqlx::Result<Self> {
                Ok($name { $($field: row.try_get(stringify!($field))?,)* })
            }
        }
    };
}

pub(super) use row;

/// The query of the orders that pass `filter`. `$1`: the time zone of the days.
macro_rules! orders_sql {
    ($filter:literal) => {
        concat!(
            "SELECT o.id, o.user_id, o.status, o.total, o.discount, o.final_price, o.coupon_id, o.refunded, o.refunds, o.refunded_by, o.refunded_because,
                 (extract(epoch FROM o.placed_at) * 1000)::bigint AS placed_at,
                 (extract(epoch FROM o.expires_at) * 1000)::bigint AS expires_at,
                 (extract(epoch FROM o.closed_at) * 1000)::bigint AS closed_at, o.close_reason,
                 (extract(epoch FROM greatest(o.paid_at, o.closed_at, p.ended_at, r.ended_at)) * 1000)::bigint AS ended_at,
                 to_char(coalesce(o.sold_on, (o.paid_at AT TIME ZONE $1)::date), 'YYYYMMDD') AS day,
                 coalesce(l.lines, '') AS lines, coalesce(l.ordered, '') AS ordered, coalesce(r.due, '') AS due,
                 p.id AS payment_id, p.payment_type, p.method, p.status AS payment_status, p.receipt, p.transaction_id,
                 (extract(epoch FROM p.started_at) * 1000)::bigint AS started_at,
                 (extract(epoch FROM p.paid_at) * 1000)::bigint AS paid_at, p.key_digest, p.key_fingerprint
             FROM orders AS o
             LEFT JOIN payments AS p ON p.order_id = o.id
             LEFT JOIN LATERAL (
                 SELECT string_agg(product_id || ':' || quantity - refunded || ':' || price || coalesce(':' || limit_group, ''),
                                   ',' ORDER BY place, product_id) FILTER (WHERE quantity > refunded) AS lines,
                     string_agg(product_id || ':' || quantity || ':' || price || coalesce(':' || limit_group, ''), ','
                                ORDER BY place, product_id) AS ordered
                 FROM order_lines WHERE order_id = o.id) AS l ON true
             LEFT JOIN LATERAL (
                 SELECT string_agg(part || ':' || amount || ':' || (extract(epoch FROM refunded_at) * 1000)::bigint, ',' ORDER BY part)
                         FILTER (WHERE status = 'REFUND_DUE') AS due, max(greatest(refunded_at, ended_at)) AS ended_at
                 FROM order_refunds WHERE o.refunds > 0 AND order_id = o.id) AS r ON true ",
            $filter
        )
    };
}
pub(super) use orders_sql;

/// The column `terms` of the products whose columns have this prefix: see [`SaleTerms`](crate::model::SaleTerms).
macro_rules! terms_sql {
    ($of:literal) => {
        concat!(
            "coalesce(NULLIF(concat((extract(epoch FROM ",
            $of,
            "opens_at) * 1000)::bigint, '|',
                 (extract(epoch FROM ",
            $of,
            "closes_at) * 1000)::bigint, '|', ",
            $of,
            "limit_per_user, '|', ",
            $of,
            "limit_group), '|||'), '') AS terms"
        )
    };
}
pub(super) use terms_sql;

/// The query of what users have of limits, held and paid, by the orders that pass `filter`.
macro_rules! user_limits_sql {
    ($filter:literal) => {
        concat!(
            "SELECT o.user_id, CASE l.limit_group WHEN '' THEN 'limit:' || l.product_id ELSE 'group:' || l.limit_group END AS field,
                 sum(l.quantity - l.refunded)::bigint AS units
             FROM order_lines AS l JOIN orders AS o ON o.id = l.order_id
             WHERE l.limit_group IS NOT NULL AND o.status IN ('PENDING', 'PAID') AND ",
            $filter,
            " GROUP BY 1, 2 HAVING sum(l.quantity - l.refunded) > 0"
        )
    };
}
pub(super) use user_limits_sql;

row! {
    /// A user; `entries` is the number of balance entries, `open` the number of PENDING orders.
    UserRow { id: i64, name: String, balance: i64, entries: i64, open: i64, }
}

row! {
    /// The units that a user has of a limit, by the field that counts them in Redis.
    UserLimitRow { user_id: i64, field: String, units: i64, }
}

row! {
    /// A product, with its counters of units.
    ProductRow {
        id: i64, name: String, category: String, price: i64,
        on_sale: i64, held: i64, sold: i64, withheld: i64, quarantined: i64, allotted: i64, stocked: i64, price_version: i64,
        terms: String,
    }
}

row! {
    /// What a product's owner partition ever gave to another partition and took back: on sale (`regained`) and withheld (`recovered`).
    AllotmentRow { product_id: i64, partition: i32, allotted: i64, regained: i64, recovered: i64, }
}

row! {
    /// The units that a partition has of a product of another one, and what it ever received and gave back. The price is the product's.
    PartitionStockRow {
        product_id: i64, partition: i32, on_sale: i64, held: i64, sold: i64, withheld: i64, quarantined: i64,
        received: i64, returned: i64, surrendered: i64, price: i64, price_version: i64, terms: String,
    }
}

row! {
    /// A transfer of units of which the two partitions have different counts.
    UnsettledTransferRow {
        product_id: i64, partition: i32, allotted: i64, regained: i64, recovered: i64, received: i64, returned: i64,
        surrendered: i64, withheld: i64,
        /// Of the product.
        name: String, category: String, price: i64, price_version: i64, terms: String,
    }
}

row! {
    /// A campaign; `last_no` is the highest known issue number.
    CampaignRow {
        id: i64, code: String, discount_type: String, discount_amount: i64, total: i64, issued: i64, withheld: i64,
        opens_at: i64, closes_at: i64, expires_at: i64, last_no: i64, conditions: String,
    }
}

row! {
    /// A coupon, as its user holds it.
    CouponRow {
        coupon_id: i64, user_id: i64, issue_no: i64, status: String, order_id: Option<i64>,
        issued_at: i64, used_at: Option<i64>,
    }
}

row! {
    /// A coupon that a campaign issued to a user of another partition.
    RemoteCouponRow { coupon_id: i64, user_id: i64, issue_no: i64, issued_at: i64, }
}

row! {
    /// An order with its payment and its lines.
    OrderRow {
        id: i64, user_id: i64, status: String, total: i64, discount: i64, final_price: i64, coupon_id: Option<i64>,
        placed_at: i64, expires_at: i64, closed_at: Option<i64>, close_reason: Option<String>,
        /// The last change of an order that is paid or closed, or of its payment.
        ended_at: Option<i64>,
        /// The day of the sale, `YYYYMMDD`.
        day: Option<String>,
        /// What parts have not refunded.
        lines: String,
        ordered: String,
        /// The won, and the number, of the parts that were refunded, and those that the gateway owes, as Redis keeps them.
        refunded: i64, refunds: i32, due: String,
        /// The operator who refunded what was left, and the reason.
        refunded_by: Option<String>, refunded_because: Option<String>,
        payment_id: Option<i64>, payment_type: Option<String>, method: Option<String>, payment_status: Option<String>,
        receipt: Option<String>, transaction_id: Option<String>, started_at: Option<i64>, paid_at: Option<i64>,
        key_digest: Option<String>, key_fingerprint: Option<String>,
    }
}

row! {
    /// An idempotency record that has not expired.
    RecordRow { partition: i32, digest: String, fingerprint: String, reply: String, expires_at: i64, }
}

row! {
    /// The sales of a product on one day, `YYYYMMDD`, by the orders of a partition: units and won.
    RankRow { day: String, partition: i32, product_id: i64, units: i64, won: i64, }
}

/// The result of a read.
pub type ReadResult<T> = sqlx::Result<T>;
/// A stream of rows.
pub type Rows<'c, T> = BoxStream<'c, sqlx::Result<T>>;

/// A transaction whose reads are consistent.
pub struct Snapshot(sqlx::Transaction<'static, Postgres>);

impl Snapshot {
    /// Begins a snapshot of the whole database.
    ///
    /// # Errors
    /// PostgreSQL can't answer.
    pub async fn begin(db: &Connection) -> anyhow::Result<Self> {
        let pool = db.get_postgres_connection_pool();
        let begun = pool.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await;
        Ok(Snapshot(begun.context("PostgreSQL can't be read")?))
    }

    /// Begins a transaction that blocks the projection of a partition until it ends, so that the rows can be compared
    /// with the rest of the outbox. Only the rows that this partition decides are consistent.
    ///
    /// # Errors
    /// PostgreSQL can't answer, or a projector holds the position for longer than 30 seconds.
    pub async fn with_projection_blocked(
        db: &Connection,
        partition: Partition,
    ) -> anyhow::Result<(Self, ProjectedPosition)> {
        let pool = db.get_postgres_connection_pool();
        let mut snapshot = Snapshot(pool.begin().await.context("PostgreSQL can't be read")?);
        snapshot.0.execute("SET LOCAL lock_timeout = '30s'").await?;
        let row: Option<(i64, i64, String)> =
            sqlx::query_as("SELECT epoch, seq, stream_id FROM projection_positions WHERE partition = $1 FOR SHARE")
                .bind(i32::from(partition.0))
                .fetch_optional(&mut *snapshot.0)
                .await?;
        let (epoch, seq, stream_id) =
            row.with_context(|| format!("PostgreSQL has no position of partition {}", partition.0))?;
        let position = Position { epoch, seq };
        Ok((snapshot, ProjectedPosition { partition, position, stream_id, last_dead_letter: 0 }))
    }

    /// The connection, for further reads.
    pub fn connection(&mut self) -> &mut PgConnection {
        &mut self.0
    }

    fn rows<'c, T>(
        &'c mut self,
        query: sqlx::query::QueryAs<'c, Postgres, T, sqlx::postgres::PgArguments>,
    ) -> Rows<'c, T>
    where
        T: for<'r> FromRow<'r, PgRow> + Send + Unpin + 'c,
    {
        query.fetch(&mut *self.0)
    }

    /// The rows of a query that selects a scope. `$1`: the number of partitions. `$2`: the selected ones, NULL for all.
    fn scoped<'c, T>(&'c mut self, scope: &Scope, sql: &'static str) -> Rows<'c, T>
    where
        T: for<'r> FromRow<'r, PgRow> + Send + Unpin + 'c,
    {
        self.rows(sqlx::query_as(sql).bind(i64::from(scope.partitions())).bind(scope.selected()))
    }

    /// The approximate number of rows that a rebuild reads: the retention of refunded orders is ignored.
    ///
    /// # Errors
    /// PostgreSQL can't answer.
    pub async fn size(&mut self, now: i64, retention: Retention) -> sqlx::Result<i64> {
        let sql =
            "SELECT (SELECT count(*) FROM users) + (SELECT count(*) FROM products) + (SELECT count(*) FROM campaigns)
                       + (SELECT count(*) FROM user_coupons) + (SELECT count(*) FROM remote_coupons)
                       + (SELECT count(*) FROM orders WHERE status = 'PENDING'
                              OR greatest(paid_at, closed_at) > to_timestamp(($1 - $2) / 1000.0))
                       + (SELECT count(*) FROM partition_stock)
                       + (SELECT count(*) FROM idempotency_records)";
        sqlx::query_scalar(sql).bind(now).bind(retention.closed_ms()).fetch_one(&mut *self.0).await
    }

    pub fn users(&mut self, scope: &Scope) -> Rows<'_, UserRow> {
        self.scoped(
            scope,
            "SELECT id, name, balance, coalesce(entries, 0) AS entries, coalesce(open, 0) AS open FROM users
             LEFT JOIN (SELECT user_id, max(entry_no) AS entries FROM balance_entries
                        WHERE $2::bigint[] IS NULL OR user_id % $1 = ANY($2) GROUP BY 1) AS e ON e.user_id = id
             LEFT JOIN (SELECT user_id, count(*) AS open FROM orders
                        WHERE status = 'PENDING' AND ($2::bigint[] IS NULL OR user_id % $1 = ANY($2)) GROUP BY 1) AS o
                 ON o.user_id = id
             WHERE $2::bigint[] IS NULL OR id % $1 = ANY($2)",
        )
    }

    pub fn products(&mut self, scope: &Scope) -> Rows<'_, ProductRow> {
        self.scoped(
            scope,
            concat!(
                "SELECT id, name, category, price, on_sale, held, sold, withheld, quarantined, allotted, stocked, price_version, ",
                terms_sql!(""),
                " FROM products WHERE $2::bigint[] IS NULL OR id % $1 = ANY($2)"
            ),
        )
    }

    /// The products whose prices or terms of sale were changed, each with both and their number: other partitions know these.
    pub fn changed_prices(&mut self) -> Rows<'_, (i64, i64, String, i64)> {
        self.rows(sqlx::query_as(concat!(
            "SELECT id, price, ",
            terms_sql!(""),
            ", price_version FROM products WHERE price_version > 0"
        )))
    }

    /// What the users of the scope have of limits.
    pub fn user_limits(&mut self, scope: &Scope) -> Rows<'_, UserLimitRow> {
        self.scoped(scope, user_limits_sql!("($2::bigint[] IS NULL OR o.user_id % $1 = ANY($2))"))
    }

    /// The groups of products that share a limit per user, each with its limit.
    ///
    /// # Errors
    /// PostgreSQL can't answer.
    pub async fn limit_groups_of_products(&mut self) -> sqlx::Result<Vec<(String, i64)>> {
        let sql = "SELECT limit_group, min(limit_per_user) FROM products WHERE limit_group IS NOT NULL GROUP BY 1";
        sqlx::query_as(sql).fetch_all(&mut *self.0).await
    }

    /// What the products of the scope gave to other partitions.
    pub fn allotments(&mut self, scope: &Scope) -> Rows<'_, AllotmentRow> {
        self.scoped(
            scope,
            "SELECT product_id, partition, allotted, regained, recovered FROM allotments
             WHERE $2::bigint[] IS NULL OR product_id % $1 = ANY($2)",
        )
    }

    /// The units that the partitions of the scope have of products of others.
    pub fn partition_stock(&mut self, scope: &Scope) -> Rows<'_, PartitionStockRow> {
        let query = sqlx::query_as(concat!(
            "SELECT s.product_id, s.partition, s.on_sale, s.held, s.sold, s.withheld, s.quarantined, s.received, s.returned, s.surrendered,
                 p.price, p.price_version, ",
            terms_sql!("p."),
            " FROM partition_stock AS s JOIN products AS p ON p.id = s.product_id
             WHERE $1::bigint[] IS NULL OR s.partition = ANY($1)"
        ));
        self.rows(query.bind(scope.selected()))
    }

    /// The transfers of which the two partitions have different counts: a step is missing. Of a scope, those with either partition in
    /// it.
    pub fn unsettled_transfers(&mut self, scope: &Scope) -> Rows<'_, UnsettledTransferRow> {
        self.scoped(
            scope,
            concat!("SELECT p.id AS product_id, coalesce(a.partition, s.partition) AS partition, coalesce(a.allotted, 0) AS allotted,
                 coalesce(a.regained, 0) AS regained, coalesce(a.recovered, 0) AS recovered,
                 coalesce(s.received, 0) AS received, coalesce(s.returned, 0) AS returned,
                 coalesce(s.surrendered, 0) AS surrendered, coalesce(s.withheld, 0) AS withheld, p.name, p.category, p.price,
                 p.price_version, ", terms_sql!("p."), "
             FROM allotments AS a FULL JOIN partition_stock AS s
                 ON s.product_id = a.product_id AND s.partition = a.partition
             JOIN products AS p ON p.id = coalesce(a.product_id, s.product_id)
             WHERE (coalesce(a.allotted, 0), coalesce(a.regained, 0), coalesce(a.recovered, 0))
                     <> (coalesce(s.received, 0), coalesce(s.returned, 0), coalesce(s.surrendered, 0))
                AND ($2::bigint[] IS NULL OR p.id % $1 = ANY($2) OR coalesce(a.partition, s.partition) = ANY($2))
             ORDER BY p.id, 2"),
        )
    }

    pub fn campaigns(&mut self, scope: &Scope) -> Rows<'_, CampaignRow> {
        self.scoped(
            scope,
            "SELECT id, code, discount_type, discount_amount, total, issued, withheld,
                 (extract(epoch FROM opens_at) * 1000)::bigint AS opens_at,
                 (extract(epoch FROM closes_at) * 1000)::bigint AS closes_at,
                 (extract(epoch FROM expires_at) * 1000)::bigint AS expires_at,
                 greatest((SELECT max(issue_no) FROM user_coupons WHERE coupon_id = id),
                          (SELECT max(issue_no) FROM remote_coupons WHERE coupon_id = id), 0) AS last_no, conditions
             FROM campaigns WHERE $2::bigint[] IS NULL OR id % $1 = ANY($2)",
        )
    }

    /// The coupons of users of the scope, and those of its campaigns.
    pub fn coupons(&mut self, scope: &Scope) -> Rows<'_, CouponRow> {
        self.scoped(
            scope,
            "SELECT coupon_id, user_id, issue_no, status, order_id,
                 (extract(epoch FROM issued_at) * 1000)::bigint AS issued_at,
                 (extract(epoch FROM used_at) * 1000)::bigint AS used_at
             FROM user_coupons
             WHERE $2::bigint[] IS NULL OR user_id % $1 = ANY($2) OR coupon_id % $1 = ANY($2)",
        )
    }

    /// The coupons that campaigns of the scope issued to users of other partitions than theirs.
    pub fn remote_coupons(&mut self, scope: &Scope) -> Rows<'_, RemoteCouponRow> {
        self.scoped(
            scope,
            "SELECT coupon_id, user_id, issue_no, (extract(epoch FROM issued_at) * 1000)::bigint AS issued_at
             FROM remote_coupons WHERE $2::bigint[] IS NULL OR coupon_id % $1 = ANY($2)",
        )
    }

    /// The orders of the scope that Redis keeps at `now`: open ones, and closed ones within their retention. `zone`
    /// gives the day of a sale whose event did not name the day.
    pub fn orders(&mut self, scope: &Scope, zone: &str, now: i64, retention: Retention) -> Rows<'_, OrderRow> {
        let query = sqlx::query_as(orders_sql!(
            "WHERE ($6::bigint[] IS NULL OR o.id % $2 = ANY($6))
                AND (o.status = 'PENDING' OR p.status IN ('STARTED', 'WATCHED', 'REFUND_DUE') OR r.due IS NOT NULL
                    OR greatest(o.paid_at, o.closed_at, p.ended_at, r.ended_at)
                        > to_timestamp(($3 - CASE WHEN o.close_reason = 'REFUNDED' OR o.refunds > 0 THEN $4 ELSE $5 END) / 1000.0))"
        ));
        let query = query.bind(zone.to_owned()).bind(i64::from(scope.partitions())).bind(now);
        self.rows(query.bind(retention.refunded_ms()).bind(retention.closed_ms()).bind(scope.selected()))
    }

    /// The newest PENDING orders of a partition with this product, as many as hold `units` of it.
    ///
    /// # Errors
    /// PostgreSQL can't answer.
    pub async fn newest_pending(
        &mut self,
        (partition, partitions): (Partition, u16),
        product: i64,
        units: i64,
        zone: &str,
    ) -> sqlx::Result<Vec<OrderRow>> {
        sqlx::query_as(orders_sql!(
            "JOIN (SELECT order_id, sum(quantity) OVER (ORDER BY order_id DESC) - quantity AS newer
                   FROM order_lines JOIN orders ON orders.id = order_id
                   WHERE product_id = $2 AND status = 'PENDING' AND order_id % $3 = $4) AS holding
                 ON holding.order_id = o.id
             WHERE newer < $5 ORDER BY o.id DESC"
        ))
        .bind(zone.to_owned())
        .bind(product)
        .bind(i64::from(partitions))
        .bind(i64::from(partition.0))
        .bind(units)
        .fetch_all(&mut *self.0)
        .await
    }

    /// Coupons that a user has, and that the campaign of another partition did not issue. Of a scope, those with the
    /// campaign or the user in it.
    pub fn unissued(&mut self, scope: &Scope) -> Rows<'_, RemoteCouponRow> {
        self.scoped(
            scope,
            "SELECT c.coupon_id, c.user_id, c.issue_no, (extract(epoch FROM c.issued_at) * 1000)::bigint AS issued_at
             FROM user_coupons AS c LEFT JOIN remote_coupons AS f USING (coupon_id, user_id)
             WHERE f.user_id IS NULL AND c.coupon_id % $1 <> c.user_id % $1
                AND ($2::bigint[] IS NULL OR c.coupon_id % $1 = ANY($2) OR c.user_id % $1 = ANY($2))
             ORDER BY c.coupon_id, c.issue_no",
        )
    }

    /// Idempotency records of every partition that expire after `now`.
    pub fn records(&mut self, now: i64) -> Rows<'_, RecordRow> {
        let query = sqlx::query_as(
            "SELECT partition, digest, fingerprint, reply, (extract(epoch FROM expires_at) * 1000)::bigint AS expires_at
             FROM idempotency_records WHERE expires_at > to_timestamp($1 / 1000.0)",
        );
        self.rows(query.bind(now))
    }

    /// Sales by day and product of the orders of the scope, from the day `first` (`YYYYMMDD`) on.
    pub fn ranks(&mut self, scope: &Scope, zone: &str, first: &str) -> Rows<'_, RankRow> {
        let query = sqlx::query_as(
            "SELECT to_char(day, 'YYYYMMDD') AS day, (id % $3)::integer AS partition, product_id,
                 sum(quantity - refunded)::bigint AS units, sum((quantity - refunded) * price)::bigint AS won
             FROM (SELECT id, coalesce(sold_on, (paid_at AT TIME ZONE $1)::date) AS day FROM orders WHERE status = 'PAID') AS o
             JOIN order_lines ON order_id = o.id
             WHERE day >= to_date($2, 'YYYYMMDD') AND ($4::bigint[] IS NULL OR id % $3 = ANY($4))
             GROUP BY 1, 2, 3 HAVING sum(quantity - refunded) > 0",
        );
        let query = query.bind(zone.to_owned()).bind(first.to_owned());
        self.rows(query.bind(i64::from(scope.partitions())).bind(scope.selected()))
    }

    /// Of each sequence its name, the highest id that is used or reserved, and the highest below `bound` that is used.
    ///
    /// # Errors
    /// PostgreSQL can't answer.
    pub async fn last_ids(&mut self, bound: i64) -> sqlx::Result<Vec<(String, i64, i64)>> {
        sqlx::query_as(
            "SELECT name, greatest(used, last, 0), coalesce(below, 0) FROM (VALUES
                 ('user', (SELECT max(id) FROM users), (SELECT max(id) FROM users WHERE id < $1)),
                 ('product', (SELECT max(id) FROM products), (SELECT max(id) FROM products WHERE id < $1)),
                 ('coupon', (SELECT max(id) FROM campaigns), (SELECT max(id) FROM campaigns WHERE id < $1)),
                 ('order', (SELECT max(id) FROM orders), (SELECT max(id) FROM orders WHERE id < $1)),
                 ('payment', (SELECT max(id) FROM payments), (SELECT max(id) FROM payments WHERE id < $1)))
                 AS known (name, used, below)
             LEFT JOIN id_sequences USING (name)",
        )
        .bind(bound)
        .fetch_all(&mut *self.0)
        .await
    }

    /// Ends the snapshot.
    ///
    /// # Errors
    /// PostgreSQL can't answer.
    pub async fn end(self) -> sqlx::Result<()> {
        // A lock of a row is a write, and its commit would wait for the disk.
        self.0.rollback().await
    }
}
