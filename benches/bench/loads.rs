//! The requests that several sections share, with the replies that they expect.

use std::cell::RefCell;

use crate::client::{self, Load, Read};

/// The price of every product.
pub const WON: u64 = 139_000;
/// The balance of every user: more than a run can spend.
pub const RICH: i64 = 1_000_000_000_000;

/// Orders to be paid: id and user.
pub type Unpaid = RefCell<Vec<(u64, u64)>>;

/// Users with consecutive ids.
#[derive(Clone, Copy, Debug)]
pub struct Users {
    pub first: u64,
    pub count: u64,
}

impl Users {
    /// One after the other, cyclically.
    pub fn nth(self, n: u64) -> u64 {
        self.first + n % self.count
    }

    /// Each once before any repeats, successive ones far apart: the worst case for a cache. The step is a prime that divides no
    /// count.
    pub fn scattered(self, n: u64) -> u64 {
        self.first + n.wrapping_mul(7919) % self.count
    }
}

/// Issues a coupon of `campaign` to the user of each request.
pub fn issue<'a>(campaign: u64, user: impl Fn(u64) -> u64 + 'a, status: u16) -> Load<'a> {
    let request = move |n, request: &mut Vec<u8>| {
        let body = format!("{{\"couponId\":{campaign},\"userId\":{}}}", user(n));
        client::send("POST", "/api/v1/coupons/issue", &body, request);
    };
    Load { request: Box::new(request), status, body: None }
}

/// A charge of a balance.
pub fn charge<'a>(user: impl Fn(u64) -> u64 + 'a) -> Load<'a> {
    let request = move |n, request: &mut Vec<u8>| {
        client::send("PUT", &format!("/api/v1/balances/{}", user(n)), "{\"amount\":1000}", request);
    };
    Load { request: Box::new(request), status: 200, body: None }
}

/// An issue at the baseline: no decision, no Redis.
pub fn baseline_post<'a>(user: impl Fn(u64) -> u64 + 'a) -> Load<'a> {
    let request = move |n, request: &mut Vec<u8>| {
        let body = format!("{{\"couponId\":1,\"userId\":{}}}", user(n));
        client::send("POST", "/baseline/coupons/issue", &body, request);
    };
    Load { request: Box::new(request), status: 200, body: None }
}

/// Places an order of `lines` distinct products, one unit each, optionally with the user's `coupon`. Adds it to `placed`.
pub fn order<'a>(
    user: impl Fn(u64) -> u64 + Copy + 'a,
    products: &'a [u64],
    lines: u64,
    coupon: Option<u64>,
    placed: Option<&'a Unpaid>,
) -> Load<'a> {
    let coupon = coupon.map_or_else(String::new, |campaign| format!(",\"userCouponId\":{campaign}"));
    order_with(user, products, lines, coupon, placed)
}

/// Places an order of a product, and pays it in the same step.
pub fn checkout<'a>(user: impl Fn(u64) -> u64 + Copy + 'a, products: &'a [u64]) -> Load<'a> {
    order_with(user, products, 1, ",\"payment\":{\"paymentType\":\"BALANCE\"}".to_owned(), None)
}

/// An order with these further fields.
fn order_with<'a>(
    user: impl Fn(u64) -> u64 + Copy + 'a,
    products: &'a [u64],
    lines: u64,
    more: String,
    placed: Option<&'a Unpaid>,
) -> Load<'a> {
    let request = move |n: u64, request: &mut Vec<u8>| {
        let product = |i: u64| products[((n + i) % products.len() as u64) as usize];
        let line = |i| format!("{{\"productId\":{},\"quantity\":1}}", product(i));
        let lines = (0..lines).map(line).collect::<Vec<_>>().join(",");
        let body = format!("{{\"userId\":{},\"orderProducts\":[{lines}]{more}}}", user(n));
        client::send("POST", "/api/v1/orders", &body, request);
    };
    let body = placed.map(|placed| -> Read<'a> {
        Box::new(move |n, body| {
            if let Some(order) = number(body, "\"orderId\"") {
                placed.borrow_mut().push((order, user(n)));
            }
        })
    });
    Load { request: Box::new(request), status: 200, body }
}

/// Pays the `n`-th of the orders from the balance.
pub fn pay(unpaid: &[(u64, u64)]) -> Load<'_> {
    let request = |n: u64, request: &mut Vec<u8>| {
        let (order, user) = unpaid[n as usize];
        let body = format!("{{\"orderId\":{order},\"userId\":{user},\"paymentType\":\"KAKAO_PAY\",\"amount\":{WON}}}");
        client::send("POST", "/api/v1/payments", &body, request);
    };
    Load { request: Box::new(request), status: 200, body: None }
}

pub fn gets<'a>(path: impl Fn(u64) -> String + 'a) -> Load<'a> {
    Load { request: Box::new(move |n, request| client::get(&path(n), request)), status: 200, body: None }
}

/// The number after `"name":` in a reply.
pub fn number(body: &[u8], name: &str) -> Option<u64> {
    let text = std::str::from_utf8(body).ok()?;
    let rest = &text[text.find(name)? + name.len()..];
    let digits = rest.trim_start_matches(['"', ':']);
    digits[..digits.find(|c: char| !c.is_ascii_digit())?].parse().ok()
}
