//! The costs of requests, in tokens of their client.
//!
//! Limits on numbers of requests alone would admit the most expensive request at the rate of the cheapest. One token is about the
//! cost of an ordinary request: 0.05 ms of this process and as much of Redis. These tables are the only place with higher costs;
//! `docs/limits.md` repeats them.

use crate::http::error::Code;

/// The tokens of a request to these routes. A request to any other costs one.
const ROUTES: &[(&str, u32)] = &[
    // Read from PostgreSQL once the order has left Redis.
    ("/api/v1/orders/{orderId}", 2),
    // A quarter of a megabyte and more.
    ("/swagger-ui/{*file}", 5),
    ("/v3/api-docs", 5),
    ("/v3/event-docs", 5),
];

/// Further tokens if the reply is this refusal: PostgreSQL was asked for it.
const REFUSALS: &[(Code, u32)] = &[(Code::OrderNotFound, 2)];

/// The lines of an order, items of a page and entries of a history that a further token pays for. The first token pays for as many.
const LINES: usize = 10;
const PAGE: i64 = 20;
const ENTRIES: i64 = 50;

/// The cost of a request to this route.
pub fn of_route(route: &str) -> u32 {
    ROUTES.iter().find(|(named, _)| *named == route).map_or(1, |(_, tokens)| *tokens)
}

/// The further cost of a refusal.
pub fn of_refusal(code: Code) -> u32 {
    REFUSALS.iter().find(|(named, _)| *named == code).map_or(0, |(_, tokens)| *tokens)
}

/// The further cost of an order of so many lines.
pub fn of_lines(lines: usize) -> u32 {
    (lines.saturating_sub(1) / LINES) as u32
}

/// The further cost of a page of so many products or campaigns.
pub fn of_page(size: i64) -> u32 {
    ((size.max(1) - 1) / PAGE) as u32
}

/// The further cost of a history of so many entries.
pub fn of_entries(limit: i64) -> u32 {
    ((limit.max(1) - 1) / ENTRIES) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_cost_grows_with_size() {
        assert_eq!(of_route("/api/v1/coupons/issue"), 1);
        assert_eq!(of_route("/api/v1/orders/{orderId}"), 2);
        assert_eq!([1, 10, 11, 100].map(of_lines), [0, 0, 1, 9]);
        assert_eq!([1, 20, 21, 100].map(of_page), [0, 0, 1, 4]);
        assert_eq!([1, 50, 51, 100, 1_000].map(of_entries), [0, 0, 1, 1, 19]);
        assert_eq!((of_refusal(Code::OrderNotFound), of_refusal(Code::SoldOut)), (2, 0));
    }
}
