//! What requests cost, in tokens of their client.
//!
//! Limits on numbers of requests alone would let a client ask for the dearest thing at the rate of the cheapest. One token is
//! about what an ordinary request costs: 0.05 ms of this process and as much of Redis. The tables here are the only place that
//! says what costs more; `docs/limits.md` repeats them.

use crate::http::error::Code;

/// Tokens of a request to these routes; to all others: one.
const ROUTES: &[(&str, u32)] = &[
    // Read from PostgreSQL, where Redis does not have the order any more.
    ("/api/v1/orders/{orderId}", 2),
    // A quarter of a megabyte and more.
    ("/swagger-ui/{*file}", 5),
    ("/v3/api-docs", 5),
];

/// Tokens more where the reply is this refusal: it took PostgreSQL to know that there is nothing.
const REFUSALS: &[(Code, u32)] = &[(Code::OrderNotFound, 2)];

/// Lines of an order, things of a page and entries of a history that one token more pays for; those of an ordinary request
/// are paid for.
const LINES: usize = 10;
const PAGE: i64 = 20;
const ENTRIES: i64 = 50;

/// What a request to this route costs, whatever is in it.
pub fn of_route(route: &str) -> u32 {
    ROUTES.iter().find(|(named, _)| *named == route).map_or(1, |(_, tokens)| *tokens)
}

/// What a refusal costs more.
pub fn of_refusal(code: Code) -> u32 {
    REFUSALS.iter().find(|(named, _)| *named == code).map_or(0, |(_, tokens)| *tokens)
}

/// What an order of so many lines costs more.
pub fn of_lines(lines: usize) -> u32 {
    (lines.saturating_sub(1) / LINES) as u32
}

/// What a page of so many products or campaigns costs more.
pub fn of_page(size: i64) -> u32 {
    ((size.max(1) - 1) / PAGE) as u32
}

/// What a history of so many entries costs more.
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
