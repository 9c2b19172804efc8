//! Invalid requests: each gets the error of the contract and changes nothing. Every reply carries a request id.

mod bodies;
mod fields;
mod heads;

use std::collections::BTreeSet;

use reqwest::Method;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::{
    api_kit::*,
    harness::{ADMIN, Options, TestApp, read},
};

/// The values that a field of a request may have.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// An integer within these inclusive bounds.
    Int(i64, i64),
    /// An enumeration value, a category or a time.
    Word,
    /// A text of 1 to this many characters.
    Text(usize),
    /// A list of order lines.
    Lines,
}

#[derive(Clone, Debug)]
pub struct Field {
    pub name: &'static str,
    /// A valid value, as JSON.
    pub right: String,
    kind: Kind,
    optional: bool,
    nullable: bool,
}

/// A write of the API with a valid body.
#[derive(Clone, Debug)]
pub struct Write {
    pub method: Method,
    pub path: String,
    /// The error code for an invalid body.
    pub invalid: &'static str,
    pub fields: Vec<Field>,
}

impl Write {
    pub fn new(method: Method, path: impl Into<String>, invalid: &'static str) -> Self {
        Write { method, path: path.into(), invalid, fields: Vec::new() }
    }

    pub fn field(mut self, name: &'static str, kind: Kind, right: impl ToString) -> Self {
        let right = right.to_string();
        self.fields.push(Field { name, right, kind, optional: false, nullable: false });
        self
    }

    /// Makes the last field optional, and nullable if `nullable`.
    pub fn optional(mut self, nullable: bool) -> Self {
        let last = self.fields.last_mut().unwrap();
        (last.optional, last.nullable) = (true, nullable);
        self
    }

    /// Adds the terms of sale of a product.
    fn terms_of_sale(self) -> Self {
        self.field("opensAt", Kind::Word, "\"2026-03-03T00:00:00\"")
            .optional(true)
            .field("closesAt", Kind::Word, "\"2026-03-04T00:00:00\"")
            .optional(true)
            .field("limitPerUser", Kind::Int(1, 10_000), 2)
            .optional(true)
    }

    /// The valid body. `other` replaces the value of one field, or removes the field if it has no value.
    pub fn body(&self, other: Option<(&str, Option<&str>)>) -> String {
        let fields = self.fields.iter().filter_map(|field| match other {
            Some((name, json)) if name == field.name => json.map(|json| format!("\"{name}\":{json}")),
            _ => Some(format!("\"{}\":{}", field.name, field.right)),
        });
        format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
    }
}

const ID: Kind = Kind::Int(1, 9_007_199_254_740_991);

/// A test app with data, and every write request of the API.
pub async fn shop() -> (TestApp, Vec<Write>) {
    let test = TestApp::start().await;
    let (user, product) = (test.user(1_000_000).await, test.product(1_000, 1_000).await);
    let campaign = test.campaign("FIXED", 100, 10).await;
    let used = test.campaign("FIXED", 100, 10).await;
    test.issue(used, user).await.ok();
    let open = id(&test.order(user, product, 2).await.ok(), "orderId");
    let other = id(&test.order(user, product, 3).await.ok(), "orderId");
    let (post, admin) = (|path: &str, invalid| Write::new(Method::POST, path, invalid), "INVALID_REQUEST");
    let money = Kind::Int(0, 1_000_000_000_000);
    let writes = vec![
        Write::new(Method::PUT, format!("/api/v1/balances/{user}"), "INVALID_AMOUNT").field(
            "amount",
            Kind::Int(1, 100_000),
            1_000,
        ),
        post("/api/v1/coupons/issue", "INVALID_COUPON").field("couponId", ID, campaign).field("userId", ID, user),
        post("/api/v1/orders", "INVALID_ORDER")
            .field("userId", ID, user)
            .field("orderProducts", Kind::Lines, json!([{"productId": product, "quantity": 1}]))
            .field("userCouponId", ID, used)
            .optional(true),
        post("/api/v1/payments", "INVALID_PAYMENT_REQUEST")
            .field("orderId", ID, open)
            .field("userId", ID, user)
            .field("paymentType", Kind::Word, "\"CARD\"")
            .field("amount", Kind::Int(0, 9_007_199_254_740_991), 2_000),
        post(&format!("/api/v1/orders/{other}/cancel"), "INVALID_ORDER").field("userId", ID, user),
        post("/admin/v1/users", admin)
            .field("userName", Kind::Text(100), "\"이다은\"")
            .field("balance", money, 10)
            .optional(false),
        post("/admin/v1/users/bulk", admin)
            .field("count", Kind::Int(1, 1_000_000), 2)
            .field("namePrefix", Kind::Text(80), "\"u\"")
            .optional(false)
            .field("balance", money, 10)
            .optional(false),
        post("/admin/v1/products", admin)
            .field("productName", Kind::Text(200), "\"상품\"")
            .field("price", money, 10)
            .field("stockQuantity", Kind::Int(0, 1_000_000_000), 10)
            .field("category", Kind::Word, "\"TOP\"")
            .terms_of_sale(),
        Write::new(Method::PATCH, format!("/admin/v1/products/{product}"), admin)
            .field("productName", Kind::Text(200), "\"상품\"")
            .optional(false)
            .field("price", money, 10)
            .optional(false)
            .field("category", Kind::Word, "\"TOP\"")
            .optional(false)
            .field("stockDelta", Kind::Int(-1_000_000_000, 1_000_000_000), 5)
            .optional(false)
            .terms_of_sale(),
        post("/admin/v1/coupons", admin)
            .field("couponCode", Kind::Text(64), "\"OPEN\"")
            .field("discountType", Kind::Word, "\"PERCENTAGE\"")
            .field("discountAmount", Kind::Int(1, 100), 10)
            .field("totalQuantity", Kind::Int(1, 1_000_000_000), 10)
            .field("opensAt", Kind::Word, "\"2026-03-03T00:00:00\"")
            .optional(false)
            .field("closesAt", Kind::Word, "\"2026-03-04T00:00:00\"")
            .optional(false)
            .field("expiredAt", Kind::Word, "\"2026-03-05T00:00:00\"")
            .field("minOrderPrice", Kind::Int(1, 1_000_000_000_000), 10)
            .optional(true)
            .field("maxDiscountPrice", Kind::Int(1, 1_000_000_000_000), 10)
            .optional(true),
    ];
    (test, writes)
}

/// Values, as JSON, that are invalid for the field.
fn wrong(field: &Field) -> Vec<String> {
    let mut wrong: Vec<String> =
        ["true", "false", "{}", "[]", "[1]", "{\"a\":1}", "0.5", "-0.5", "1e400", "-1e400", "1e-400", "1e308"]
            .map(str::to_owned)
            .into();
    if !field.nullable {
        wrong.push("null".to_owned());
    }
    match field.kind {
        Kind::Int(least, most) => {
            wrong.extend([least - 1, most + 1, i64::MAX, i64::MIN].map(|number| number.to_string()));
            wrong.extend(
                ["9007199254740992", "9223372036854775808", "18446744073709551616", "1e30", "NaN"].map(str::to_owned),
            );
            wrong.extend([format!("\"{}\"", field.right), "\"\"".to_owned(), "\"abc\"".to_owned(), "1.0.0".to_owned()]);
            // A parser reads 1e-400 as 0, which is valid here.
            if least <= 0 {
                wrong.retain(|json| json != "1e-400");
            }
        }
        Kind::Word => wrong.extend(
            [
                "0",
                "1",
                "\"\"",
                "\" \"",
                "\"card\"",
                "\"CARD \"",
                "\"CARD\\u0000\"",
                "\"2024-13-01T00:00:00\"",
                "\"한글\"",
            ]
            .map(str::to_owned),
        ),
        Kind::Text(most) => {
            wrong.extend(["0", "1", "\"\\u0000\"", "\"a\\nb\"", "\"\\ud800\""].map(str::to_owned));
            wrong.push(format!("\"{}\"", "가".repeat(most + 1)));
            if field.name != "namePrefix" {
                wrong.extend(["\"\"", "\"  \""].map(str::to_owned));
            }
        }
        Kind::Lines => {
            wrong.extend(["0", "\"\"", "[null]", "[[]]", "[[1,1]]", "[{}]", "\"[]\""].map(str::to_owned));
            let right: Value = serde_json::from_str(&field.right).unwrap();
            let product = &right[0]["productId"];
            for line in [
                format!("{{\"productId\":{product}}}"),
                "{\"quantity\":1}".to_owned(),
                format!("{{\"productId\":{product},\"productId\":{product},\"quantity\":1}}"),
                format!("{{\"productId\":\"{product}\",\"quantity\":1}}"),
                "{\"productId\":0,\"quantity\":1}".to_owned(),
                "{\"productId\":null,\"quantity\":1}".to_owned(),
            ] {
                wrong.extend([format!("[{line}]"), format!("[{{\"productId\":{product},\"quantity\":1}},{line}]")]);
            }
            for quantity in ["0", "-1", "0.5", "10001", "\"1\"", "null", "1e400", "9223372036854775808", "true", "[1]"]
            {
                wrong.push(format!("[{{\"productId\":{product},\"quantity\":{quantity}}}]"));
            }
            let one = format!("{{\"productId\":{product},\"quantity\":1}}");
            wrong.push(format!("[{}]", vec![one; 101].join(",")));
        }
    }
    wrong
}

/// Bytes that are not UTF-8, or not valid within JSON.
const GARBAGE: &[&[u8]] = &[b"\xff", b"\xc3\x28", b"\xed\xa0\x80", b"\0"];
