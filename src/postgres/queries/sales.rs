//! The products with terms of sale, and the users whose units count against a limit.

use sqlx::Row as _;

use crate::{
    model::{CountedLimit, CountedUser, Error, LimitedUsers, Millis, Page, ProductId, SaleTerms, UserId},
    postgres::{Connection, translate_sqlx},
};

/// The maximum number of lines of orders that one request counts: about a second of PostgreSQL's time.
pub const MAX_COUNTED_LINES: i64 = 100_000;

/// The products with terms of sale whose window includes a moment of `from..until`, the last to open first; at most `limit`.
///
/// # Errors
/// [`Error::Unavailable`] while PostgreSQL is.
pub async fn products_with_terms(
    db: &Connection,
    from: Millis,
    until: Millis,
    limit: i64,
) -> Result<Vec<ProductId>, Error> {
    let ids: Vec<i64> = sqlx::query_scalar(
        "SELECT id FROM products
         WHERE (opens_at IS NOT NULL OR closes_at IS NOT NULL OR limit_per_user IS NOT NULL)
             AND (opens_at IS NULL OR opens_at < to_timestamp($2 / 1000.0))
             AND (closes_at IS NULL OR closes_at > to_timestamp($1 / 1000.0))
         ORDER BY opens_at DESC NULLS LAST, id DESC LIMIT $3",
    )
    .bind(from.0)
    .bind(until.0)
    .bind(limit)
    .fetch_all(db.get_postgres_connection_pool())
    .await
    .map_err(translate_sqlx)?;
    Ok(ids.into_iter().filter_map(ProductId::new).collect())
}

/// A query for a page of the users with units, of the lines that `$filter` finds by `$1`. `$2`: the maximum number of lines, those of
/// the newest orders; `$3`: the limit per user; `$4` and `$5`: the offset and the size of the page. Each row has the totals, too;
/// an empty page is one row without a user.
macro_rules! users_sql {
    ($filter:literal) => {
        concat!(
            "WITH counted AS MATERIALIZED (
                 SELECT order_id, quantity - refunded AS quantity FROM order_lines WHERE quantity > refunded AND ",
            $filter,
            " ORDER BY order_id DESC LIMIT $2),
             of_users AS MATERIALIZED (
                 SELECT o.user_id, sum(c.quantity)::bigint AS units FROM counted AS c
                 -- LIMIT: looks up each order by its id. A join could read every order of the shop.
                 CROSS JOIN LATERAL (SELECT user_id FROM orders
                                     WHERE id = c.order_id AND status IN ('PENDING', 'PAID') LIMIT 1) AS o
                 GROUP BY o.user_id),
             totals AS (
                 SELECT count(*) AS users, count(*) FILTER (WHERE units >= $3) AS at_limit,
                     (SELECT count(*) FROM counted) AS lines
                 FROM of_users),
             page AS (SELECT user_id, units FROM of_users ORDER BY units DESC, user_id OFFSET $4 LIMIT $5)
             SELECT totals.users, totals.at_limit, totals.lines, page.user_id, page.units, u.name
             FROM totals LEFT JOIN page ON true LEFT JOIN users AS u ON u.id = page.user_id
             ORDER BY page.units DESC, page.user_id"
        )
    };
}

/// A page of the users with units that count against the limit of a product with these terms, those with the most units first. Counts
/// the newest [`MAX_COUNTED_LINES`] lines of orders.
///
/// # Errors
/// [`Error::Unavailable`] while PostgreSQL is.
pub async fn limited_users(
    db: &Connection,
    product: ProductId,
    terms: SaleTerms,
    page: i64,
    size: i64,
) -> Result<LimitedUsers, Error> {
    let query = match terms.counted() {
        CountedLimit::Product => sqlx::query(users_sql!("limit_group = '' AND product_id = $1")).bind(product.get()),
        CountedLimit::Group(group) => {
            sqlx::query(users_sql!("limit_group > '' AND limit_group = $1")).bind(group.to_string())
        }
    };
    // Without a limit no user is at it.
    let query =
        query.bind(MAX_COUNTED_LINES + 1).bind(terms.limit_per_user.unwrap_or(i64::MAX)).bind(page * size).bind(size);
    let rows = query.fetch_all(db.get_postgres_connection_pool()).await.map_err(translate_sqlx)?;
    let mut found = LimitedUsers {
        terms,
        users: Page { items: Vec::with_capacity(rows.len()), page, size, total: 0 },
        at_limit: 0,
        complete: true,
    };
    for row in rows {
        let column = |name: &str| row.try_get::<i64, _>(name).map_err(translate_sqlx);
        found.users.total = column("users")?;
        found.at_limit = column("at_limit")?;
        found.complete = column("lines")? <= MAX_COUNTED_LINES;
        let user: Option<i64> = row.try_get("user_id").map_err(translate_sqlx)?;
        let Some(user_id) = user.and_then(UserId::new) else { continue };
        // A user's events may be projected later than its name is read.
        let name: Option<String> = row.try_get("name").map_err(translate_sqlx)?;
        found.users.items.push(CountedUser { user_id, name: name.unwrap_or_default(), units: column("units")? });
    }
    Ok(found)
}
