//! Converts what earlier versions wrote to PostgreSQL, before a rebuild writes Redis anew.

use anyhow::Context;

use crate::postgres;

/// Whether PostgreSQL has stock that earlier versions held in one partition for orders of another.
pub(super) async fn has_stock_holds(db: &postgres::Connection) -> anyhow::Result<bool> {
    let sql = "SELECT EXISTS (SELECT FROM stock_holds)";
    sqlx::query_scalar(sql).fetch_one(db.get_postgres_connection_pool()).await.context("stock holds can't be read")
}

/// Gives the units that a partition held for an order of another one to the partition of the order. Units of an order that has ended, or
/// was never placed, go back on sale. Units of an order whose hold is lost count as put on sale, because the partition of the order has
/// sold them.
pub(super) async fn convert_stock_holds(db: &postgres::Connection, partitions: u16) -> anyhow::Result<()> {
    let mut transaction = db.get_postgres_connection_pool().begin().await.context("PostgreSQL can't be written")?;
    for sql in [
        "CREATE TEMPORARY TABLE moved_from ON COMMIT DROP AS
         SELECT split_part(line, ':', 1)::bigint AS product_id,
             coalesce(sum(split_part(line, ':', 2)::bigint) FILTER (WHERE h.state = 'HELD'), 0)::bigint AS held,
             coalesce(sum(split_part(line, ':', 2)::bigint) FILTER (WHERE h.state = 'SETTLED'), 0)::bigint AS sold
         FROM stock_holds AS h CROSS JOIN string_to_table(h.lines, ',') AS line
         WHERE h.state IN ('HELD', 'SETTLED') AND line <> '' AND $1 > 0 GROUP BY 1",
        "CREATE TEMPORARY TABLE moved_to ON COMMIT DROP AS
         SELECT l.product_id, (l.order_id % $1)::integer AS partition,
             coalesce(sum(l.quantity) FILTER (WHERE o.status = 'PENDING'), 0)::bigint AS held,
             coalesce(sum(l.quantity) FILTER (WHERE o.status = 'PAID'), 0)::bigint AS sold
         FROM order_lines AS l JOIN orders AS o ON o.id = l.order_id
         WHERE o.status IN ('PENDING', 'PAID') AND l.order_id % $1 <> l.product_id % $1 GROUP BY 1, 2",
        "INSERT INTO allotments (product_id, partition, allotted)
         SELECT product_id, partition, held + sold FROM moved_to WHERE $1 > 0",
        "INSERT INTO partition_stock (product_id, partition, held, sold, received)
         SELECT product_id, partition, held, sold, held + sold FROM moved_to WHERE $1 > 0",
        "UPDATE products AS p SET held = p.held - m.held, sold = p.sold - m.sold, allotted = p.allotted + m.moved,
             on_sale = greatest(0, p.on_sale + m.held + m.sold - m.moved),
             stocked = p.stocked + greatest(0, m.moved - p.on_sale - m.held - m.sold)
         FROM (SELECT product_id, coalesce(f.held, 0) AS held, coalesce(f.sold, 0) AS sold, coalesce(t.moved, 0) AS moved
               FROM moved_from AS f FULL JOIN (
                   SELECT product_id, sum(held + sold)::bigint AS moved FROM moved_to GROUP BY 1) AS t USING (product_id)) AS m
         WHERE p.id = m.product_id AND $1 > 0",
        "DELETE FROM stock_holds WHERE $1 > 0",
    ] {
        let query = sqlx::query(sql).bind(i64::from(partitions));
        query.execute(&mut *transaction).await.context("stock holds of an earlier version can't be converted")?;
    }
    transaction.commit().await.context("stock holds of an earlier version can't be converted")
}
