//! Reads of a snapshot page by page, for the audit: the memory is bounded by the page.

use std::collections::HashMap;

use sqlx::AssertSqlSafe;

use crate::postgres::snapshot::{
    AllotmentRow, CampaignRow, CouponRow, OrderRow, PartitionStockRow, ProductRow, RankRow, RecordRow, RemoteCouponRow,
    Snapshot, UserLimitRow, UserRow, orders_sql, terms_sql, user_limits_sql,
};

/// The kinds of records that the audit compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordKind {
    Users,
    Products,
    Campaigns,
    /// Coupons that campaigns of the partition issued to users of other ones, by the id of the user.
    RemoteCoupons,
    Orders,
    /// Units of products of other partitions, by the id of the product.
    PartitionStock,
}

/// A page of the records of one partition.
#[derive(Clone, Copy, Debug)]
pub struct RecordPage {
    pub partition: u16,
    pub partitions: u16,
    /// The last id of the previous page.
    pub after: i64,
    /// The last id of the last page, so that new records do not prolong the audit.
    pub until: i64,
    pub size: i64,
}

/// The first and the last of ids in ascending order that have few others between them: the rows of all in between are read
/// faster than those of each.
fn consecutive(ids: &[i64]) -> Option<(i64, i64)> {
    let (first, last) = (*ids.first()?, *ids.last()?);
    let all = last.checked_sub(first)?.checked_add(1)?;
    (ids.is_sorted() && all / 3 * 2 <= ids.len() as i64).then_some((first, last))
}

/// A price with packed terms of sale, as Redis keeps both.
pub fn priced(price: i64, terms: &str) -> String {
    if terms.is_empty() { price.to_string() } else { format!("{price}|{terms}") }
}

impl Snapshot {
    /// The ids of a page.
    ///
    /// # Errors
    /// PostgreSQL can't answer; the same holds for every method below.
    pub async fn ids(&mut self, kind: RecordKind, page: RecordPage) -> sqlx::Result<Vec<i64>> {
        let sql = match kind {
            RecordKind::Users => {
                "SELECT id FROM users WHERE id > $1 AND id % $2 = $3 AND id <= $5 ORDER BY id LIMIT $4"
            }
            RecordKind::Products => {
                "SELECT id FROM products WHERE id > $1 AND id % $2 = $3 AND id <= $5 ORDER BY id LIMIT $4"
            }
            RecordKind::Campaigns => {
                "SELECT id FROM campaigns WHERE id > $1 AND id % $2 = $3 AND id <= $5 ORDER BY id LIMIT $4"
            }
            RecordKind::RemoteCoupons => {
                "SELECT DISTINCT user_id FROM remote_coupons
                 WHERE user_id > $1 AND coupon_id % $2 = $3 AND user_id <= $5 ORDER BY user_id LIMIT $4"
            }
            RecordKind::Orders => {
                "SELECT id FROM orders WHERE id > $1 AND id % $2 = $3 AND id <= $5 ORDER BY id LIMIT $4"
            }
            RecordKind::PartitionStock => {
                "SELECT product_id FROM partition_stock
                 WHERE product_id > $1 AND $2 > 1 AND partition = $3 AND product_id <= $5 ORDER BY product_id LIMIT $4"
            }
        };
        let query = sqlx::query_scalar(sql).bind(page.after).bind(i64::from(page.partitions));
        query.bind(i64::from(page.partition)).bind(page.size).bind(page.until).fetch_all(self.connection()).await
    }

    /// The number of records that the pages of [`Snapshot::ids`] have, of all partitions.
    pub async fn count_of(&mut self, kind: RecordKind) -> sqlx::Result<i64> {
        self.count(match kind {
            RecordKind::Users => "SELECT count(*) FROM users",
            RecordKind::Products => "SELECT count(*) FROM products",
            RecordKind::Campaigns => "SELECT count(*) FROM campaigns",
            RecordKind::Orders => "SELECT count(*) FROM orders",
            RecordKind::PartitionStock => "SELECT count(*) FROM partition_stock",
            RecordKind::RemoteCoupons => "SELECT count(DISTINCT user_id) FROM remote_coupons",
        })
        .await
    }

    /// The number of idempotency records.
    pub async fn count_digests(&mut self) -> sqlx::Result<i64> {
        self.count("SELECT count(*) FROM idempotency_records").await
    }

    /// The count that a query without parameters returns.
    pub async fn count(&mut self, sql: &'static str) -> sqlx::Result<i64> {
        sqlx::query_scalar(sql).fetch_one(self.connection()).await
    }

    /// Runs `query`, which returns one row per discrepancy, with its description in the column `what`. Returns the
    /// number of rows and the first `limit` descriptions. `$1` of the query: the number of partitions.
    pub async fn discrepancies(
        &mut self,
        query: &'static str,
        partitions: u16,
        limit: usize,
    ) -> sqlx::Result<(i64, Vec<String>)> {
        // Safe: both parts are constants of the program.
        let sql = format!(
            "WITH wrong AS MATERIALIZED (SELECT what FROM ({query}) AS invariant WHERE $1 > 0)
             SELECT (SELECT count(*) FROM wrong), ARRAY(SELECT what FROM wrong ORDER BY what LIMIT {limit})"
        );
        sqlx::query_as(AssertSqlSafe(sql)).bind(i64::from(partitions)).fetch_one(self.connection()).await
    }

    /// The highest id of a kind.
    pub async fn last_id(&mut self, kind: RecordKind) -> sqlx::Result<i64> {
        let sql = match kind {
            RecordKind::Users | RecordKind::RemoteCoupons => "SELECT coalesce(max(id), 0) FROM users",
            RecordKind::Products | RecordKind::PartitionStock => "SELECT coalesce(max(id), 0) FROM products",
            RecordKind::Campaigns => "SELECT coalesce(max(id), 0) FROM campaigns",
            RecordKind::Orders => "SELECT coalesce(max(id), 0) FROM orders",
        };
        sqlx::query_scalar(sql).fetch_one(self.connection()).await
    }

    /// Those of `ids` that the pages of [`Snapshot::ids`] have, in ascending order.
    pub async fn existing(&mut self, kind: RecordKind, partition: u16, ids: &[i64]) -> sqlx::Result<Vec<i64>> {
        let sql = match kind {
            RecordKind::Users => "SELECT id FROM users WHERE id = ANY($1) AND $2 >= 0 ORDER BY id",
            RecordKind::Products => "SELECT id FROM products WHERE id = ANY($1) AND $2 >= 0 ORDER BY id",
            RecordKind::Campaigns => "SELECT id FROM campaigns WHERE id = ANY($1) AND $2 >= 0 ORDER BY id",
            // Compared by user, so that a coupon is found which PostgreSQL lacks.
            RecordKind::RemoteCoupons => "SELECT user_id FROM remote_coupons WHERE user_id = ANY($1) AND $2 < 0",
            RecordKind::Orders => "SELECT id FROM orders WHERE id = ANY($1) AND $2 >= 0 ORDER BY id",
            RecordKind::PartitionStock => {
                "SELECT product_id FROM partition_stock WHERE product_id = ANY($1) AND partition = $2 ORDER BY product_id"
            }
        };
        sqlx::query_scalar(sql).bind(ids).bind(i32::from(partition)).fetch_all(self.connection()).await
    }

    /// These users, and possibly others between them.
    pub async fn users_of(&mut self, ids: &[i64]) -> sqlx::Result<Vec<UserRow>> {
        if let Some((first, last)) = consecutive(ids) {
            let query = sqlx::query_as(
                "SELECT id, name, balance, coalesce(entries, 0) AS entries, coalesce(open, 0) AS open FROM users
                 LEFT JOIN (SELECT user_id, max(entry_no) AS entries FROM balance_entries
                            WHERE user_id >= $1 AND user_id <= $2 GROUP BY user_id) AS e ON e.user_id = id
                 LEFT JOIN (SELECT user_id, count(*) AS open FROM orders
                            WHERE user_id >= $1 AND user_id <= $2 AND status = 'PENDING' GROUP BY user_id) AS o
                     ON o.user_id = id
                 WHERE id >= $1 AND id <= $2",
            );
            return query.bind(first).bind(last).fetch_all(self.connection()).await;
        }
        sqlx::query_as(
            "SELECT id, name, balance,
                 coalesce((SELECT max(entry_no) FROM balance_entries WHERE user_id = users.id), 0) AS entries,
                 (SELECT count(*) FROM orders WHERE user_id = users.id AND status = 'PENDING') AS open
             FROM users WHERE id = ANY($1)",
        )
        .bind(ids)
        .fetch_all(self.connection())
        .await
    }

    /// What these users have of limits.
    pub async fn user_limits_of(&mut self, users: &[i64]) -> sqlx::Result<Vec<UserLimitRow>> {
        sqlx::query_as(user_limits_sql!("o.user_id = ANY($1)")).bind(users).fetch_all(self.connection()).await
    }

    /// The coupons of these users, and possibly of others between them.
    pub async fn coupons_of(&mut self, users: &[i64]) -> sqlx::Result<Vec<CouponRow>> {
        if let Some((first, last)) = consecutive(users) {
            let query = sqlx::query_as(
                "SELECT coupon_id, user_id, issue_no, status, order_id,
                     (extract(epoch FROM issued_at) * 1000)::bigint AS issued_at,
                     (extract(epoch FROM used_at) * 1000)::bigint AS used_at
                 FROM user_coupons WHERE user_id >= $1 AND user_id <= $2",
            );
            return query.bind(first).bind(last).fetch_all(self.connection()).await;
        }
        sqlx::query_as(
            "SELECT coupon_id, user_id, issue_no, status, order_id,
                 (extract(epoch FROM issued_at) * 1000)::bigint AS issued_at,
                 (extract(epoch FROM used_at) * 1000)::bigint AS used_at
             FROM user_coupons WHERE user_id = ANY($1)",
        )
        .bind(users)
        .fetch_all(self.connection())
        .await
    }

    /// The coupons that campaigns of a partition issued to these users of other ones.
    pub async fn remote_coupons_of(
        &mut self,
        users: &[i64],
        partition: u16,
        partitions: u16,
    ) -> sqlx::Result<Vec<RemoteCouponRow>> {
        sqlx::query_as(
            "SELECT coupon_id, user_id, issue_no, (extract(epoch FROM issued_at) * 1000)::bigint AS issued_at
             FROM remote_coupons WHERE user_id = ANY($1) AND coupon_id % $2 = $3",
        )
        .bind(users)
        .bind(i64::from(partitions))
        .bind(i64::from(partition))
        .fetch_all(self.connection())
        .await
    }

    pub async fn products_of(&mut self, ids: &[i64]) -> sqlx::Result<Vec<ProductRow>> {
        sqlx::query_as(concat!(
            "SELECT id, name, category, price, on_sale, held, sold, withheld, quarantined, allotted, stocked, price_version, ",
            terms_sql!(""),
            " FROM products WHERE id = ANY($1)"
        ))
        .bind(ids)
        .fetch_all(self.connection())
        .await
    }

    /// The category of each of these products.
    pub async fn categories_of(&mut self, ids: &[i64]) -> sqlx::Result<HashMap<i64, String>> {
        let query = sqlx::query_as("SELECT id, category FROM products WHERE id = ANY($1)").bind(ids);
        Ok(query.fetch_all(self.connection()).await?.into_iter().collect())
    }

    pub async fn campaigns_of(&mut self, ids: &[i64]) -> sqlx::Result<Vec<CampaignRow>> {
        sqlx::query_as(
            "SELECT id, code, discount_type, discount_amount, total, issued, withheld,
                 (extract(epoch FROM opens_at) * 1000)::bigint AS opens_at,
                 (extract(epoch FROM closes_at) * 1000)::bigint AS closes_at,
                 (extract(epoch FROM expires_at) * 1000)::bigint AS expires_at,
                 greatest((SELECT max(issue_no) FROM user_coupons WHERE coupon_id = id),
                          (SELECT max(issue_no) FROM remote_coupons WHERE coupon_id = id), 0) AS last_no, conditions
             FROM campaigns WHERE id = ANY($1)",
        )
        .bind(ids)
        .fetch_all(self.connection())
        .await
    }

    pub async fn orders_of(&mut self, ids: &[i64], zone: &str) -> sqlx::Result<Vec<OrderRow>> {
        let query = sqlx::query_as(orders_sql!("WHERE o.id = ANY($2)"));
        query.bind(zone).bind(ids).fetch_all(self.connection()).await
    }

    /// The units that a partition has of these products of others.
    pub async fn partition_stock_of(
        &mut self,
        partition: u16,
        products: &[i64],
    ) -> sqlx::Result<Vec<PartitionStockRow>> {
        sqlx::query_as(
            "SELECT product_id, partition, on_sale, held, sold, withheld, quarantined, received, returned, surrendered, 0::bigint AS price,
                 0::bigint AS price_version, '' AS terms
             FROM partition_stock WHERE partition = $1 AND product_id = ANY($2)",
        )
        .bind(i32::from(partition))
        .bind(products)
        .fetch_all(self.connection())
        .await
    }

    /// What these products' owner partition gave to others.
    pub async fn allotments_of(&mut self, products: &[i64]) -> sqlx::Result<Vec<AllotmentRow>> {
        sqlx::query_as(
            "SELECT product_id, partition, allotted, regained, recovered FROM allotments WHERE product_id = ANY($1)",
        )
        .bind(products)
        .fetch_all(self.connection())
        .await
    }

    /// The highest id below `bound` of each owner partition's orders, or with `payment` payments.
    pub async fn last_owned(&mut self, name: &str, partitions: u16, bound: i64) -> sqlx::Result<HashMap<i32, i64>> {
        let sql = match name {
            "payment" => "SELECT (id % $1)::integer, max(id) FROM payments WHERE id < $2 GROUP BY 1",
            _ => "SELECT (id % $1)::integer, max(id) FROM orders WHERE id < $2 GROUP BY 1",
        };
        let query = sqlx::query_as(sql).bind(i64::from(partitions)).bind(bound);
        Ok(query.fetch_all(self.connection()).await?.into_iter().collect())
    }

    /// A page of the digests of a partition's idempotency records, after `after`.
    pub async fn digests(&mut self, partition: u16, after: &str, size: i64) -> sqlx::Result<Vec<String>> {
        let query = sqlx::query_scalar(
            "SELECT digest FROM idempotency_records WHERE partition = $1 AND digest > $2 ORDER BY digest LIMIT $3",
        );
        query.bind(i32::from(partition)).bind(after).bind(size).fetch_all(self.connection()).await
    }

    /// The idempotency records of a partition under these digests, expired ones too.
    pub async fn records_of(&mut self, partition: u16, digests: &[String]) -> sqlx::Result<Vec<RecordRow>> {
        let query = sqlx::query_as(
            "SELECT partition, digest, fingerprint, reply, (extract(epoch FROM expires_at) * 1000)::bigint AS expires_at
             FROM idempotency_records WHERE partition = $1 AND digest = ANY($2)",
        );
        query.bind(i32::from(partition)).bind(digests).fetch_all(self.connection()).await
    }

    /// The fingerprints of the requests that other partitions decided under these digests, and that live after `until` (ms).
    pub async fn fingerprints_of(
        &mut self,
        partitions: &[i32],
        digests: &[String],
        until: i64,
    ) -> sqlx::Result<Vec<(String, String)>> {
        let query = sqlx::query_as(
            "SELECT digest, fingerprint FROM idempotency_records
             WHERE partition = ANY($1) AND digest = ANY($2) AND expires_at > to_timestamp($3 / 1000.0)",
        );
        query.bind(partitions).bind(digests).bind(until).fetch_all(self.connection()).await
    }

    /// Sales by day and product from the day `first` (`YYYYMMDD`) on, of the orders of a partition.
    pub async fn ranks_of(
        &mut self,
        partition: u16,
        partitions: u16,
        zone: &str,
        first: &str,
    ) -> sqlx::Result<Vec<RankRow>> {
        let query = sqlx::query_as(
            "SELECT to_char(day, 'YYYYMMDD') AS day, $4::integer AS partition, product_id,
                 sum(quantity - refunded)::bigint AS units, sum((quantity - refunded) * price)::bigint AS won
             FROM (SELECT id, coalesce(sold_on, (paid_at AT TIME ZONE $1)::date) AS day FROM orders WHERE status = 'PAID') AS o
             JOIN order_lines ON order_id = o.id
             WHERE day >= to_date($2, 'YYYYMMDD') AND id % $3 = $4
             GROUP BY 1, 3 HAVING sum(quantity - refunded) > 0",
        );
        let query = query.bind(zone).bind(first).bind(i64::from(partitions)).bind(i32::from(partition));
        query.fetch_all(self.connection()).await
    }
}

#[cfg(test)]
mod tests {
    use super::consecutive;

    #[test]
    fn ids_consecutive_when_two_thirds_of_all_between() {
        assert_eq!(consecutive(&[]), None);
        assert_eq!(consecutive(&[7]), Some((7, 7)));
        assert_eq!(consecutive(&[1, 2, 3, 4, 6]), Some((1, 6)));
        assert_eq!(consecutive(&[1, 3, 5, 7, 9, 11, 13]), None);
        assert_eq!(consecutive(&[2, 1]), None);
        assert_eq!(consecutive(&[i64::MIN, i64::MAX]), None);
    }
}
