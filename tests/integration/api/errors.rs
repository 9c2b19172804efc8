//! Hostile requests: each gets the contract's own error, whatever is wrong with it, and changes nothing. And the request id
//! that every reply carries.

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

/// What a field of a request may be.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// A whole number in these bounds.
    Int(i64, i64),
    /// An enumeration's word, a category or a time.
    Word,
    /// A text of 1 to so many characters.
    Text(usize),
    /// A list of lines.
    Lines,
}

#[derive(Clone, Debug)]
pub struct Field {
    pub name: &'static str,
    /// JSON that is right.
    pub right: String,
    kind: Kind,
    optional: bool,
    nullable: bool,
}

/// A write of the API, and a body for it that is right.
#[derive(Clone, Debug)]
pub struct Write {
    pub method: Method,
    pub path: String,
    /// The endpoint's own 400.
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

    /// The last field may be left out, and be null if it is `nullable`.
    pub fn optional(mut self, nullable: bool) -> Self {
        let last = self.fields.last_mut().unwrap();
        (last.optional, last.nullable) = (true, nullable);
        self
    }

    /// The right body, with one field replaced (or, with nothing, left out).
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
            .field("category", Kind::Word, "\"TOP\""),
        Write::new(Method::PATCH, format!("/admin/v1/products/{product}"), admin)
            .field("productName", Kind::Text(200), "\"상품\"")
            .optional(false)
            .field("price", money, 10)
            .optional(false)
            .field("category", Kind::Word, "\"TOP\"")
            .optional(false)
            .field("stockDelta", Kind::Int(-1_000_000_000, 1_000_000_000), 5)
            .optional(false),
        post("/admin/v1/coupons", admin)
            .field("couponCode", Kind::Text(64), "\"OPEN\"")
            .field("discountType", Kind::Word, "\"PERCENTAGE\"")
            .field("discountAmount", Kind::Int(1, 100), 10)
            .field("totalQuantity", Kind::Int(1, 1_000_000_000), 10)
            .field("opensAt", Kind::Word, "\"2026-03-03T00:00:00\"")
            .optional(false)
            .field("closesAt", Kind::Word, "\"2026-03-04T00:00:00\"")
            .optional(false)
            .field("expiredAt", Kind::Word, "\"2026-03-05T00:00:00\""),
    ];
    (test, writes)
}

/// JSON that a field of this kind must not be.
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
            // 1e-400 is written nothing and read as 0.
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

#[tokio::test]
async fn request_refused_when_field_out_of_schema() {
    let (test, writes) = shop().await;
    let before = test.snapshot().await;
    for write in &writes {
        let refused = async |what: &str, body: String| {
            let reply = raw(&test, &write.method, &write.path, body.clone()).await;
            let code = reply.json()["errorCode"].as_str().map(str::to_owned);
            let right = (reply.status.as_u16(), code.as_deref()) == (400, Some(write.invalid));
            assert!(right, "{} {} {what} {body:.200}: {} {}", write.method, write.path, reply.status, reply.text);
        };
        for field in &write.fields {
            for json in wrong(field) {
                refused(field.name, write.body(Some((field.name, Some(&json))))).await;
            }
            if !field.optional {
                refused("without", write.body(Some((field.name, None)))).await;
                // The name of a field is what it is.
                refused(
                    "named otherwise",
                    write
                        .body(None)
                        .replace(&format!("\"{}\"", field.name), &format!("\"{}\"", field.name.to_uppercase())),
                )
                .await;
            }
            let twice = write.body(None).replacen('{', &format!("{{\"{}\":{},", field.name, field.right), 1);
            refused("twice", twice).await;
        }
    }
    assert_eq!(test.snapshot().await, before);

    // Each is right but for what was wrong with it; unknown fields of customers are ignored, however deep, and 1000.0 is 1000.
    for write in &writes {
        let unknown = format!("{{\"unknown\":{}{{}}{},\"amounts\":0.5,", "[".repeat(20_000), "]".repeat(20_000));
        let mut body = write.body(None);
        if !write.path.starts_with("/admin/") {
            body = body.replacen('{', &unknown, 1);
        }
        for field in write.fields.iter().filter(|field| matches!(field.kind, Kind::Int(..))) {
            let spelled = format!("\"{}\" :\n{}.0", field.name, field.right);
            body = body.replace(&format!("\"{}\":{}", field.name, field.right), &spelled);
        }
        let reply = raw(&test, &write.method, &write.path, body.clone()).await;
        assert!(reply.status.is_success(), "{} {}: {}", write.path, write.body(None), reply.text);
    }
    test.finish().await;
}

/// Bytes that are no UTF-8, or no part of a JSON text.
const GARBAGE: &[&[u8]] = &[b"\xff", b"\xc3\x28", b"\xed\xa0\x80", b"\0"];

#[tokio::test]
async fn request_refused_when_ignored_field_not_utf8() {
    let (test, writes) = shop().await;
    let before = test.snapshot().await;
    for write in &writes {
        for garbage in GARBAGE {
            let body = [b"{\"unknown\":\"", *garbage, b"\",", &write.body(None).as_bytes()[1..]].concat();
            raw(&test, &write.method, &write.path, body).await.refused(400, write.invalid);
        }
    }
    assert_eq!(test.snapshot().await, before);
    test.finish().await;
}

#[tokio::test]
async fn request_refused_when_body_not_json_object() {
    let (test, writes) = shop().await;
    let before = test.snapshot().await;
    for write in &writes {
        let right = write.body(None);
        let deep = |open: &str, close: &str, depth: usize| open.repeat(depth) + &close.repeat(depth);
        let unknown = |json: String| right.replacen('{', &format!("{{\"unknown\":{json},"), 1);
        let mut bodies: Vec<Vec<u8>> = [
            String::new(),
            " ".to_owned(),
            "{".to_owned(),
            "{}".to_owned() + &right,
            right.clone() + &right,
            right.clone() + "x",
            right.replace(':', "="),
            right.replace('"', "'"),
            right.replacen('}', ",}", 1),
            format!("[{right}]"),
            format!("\u{feff}{right}"),
            format!("/* */{right}"),
            format!("{}0", right),
            right[..right.len() - 1].to_owned(),
            "null".to_owned(),
            "true".to_owned(),
            "1".to_owned(),
            "\"\"".to_owned(),
            "[]".to_owned(),
            "amount=1&userId=1".to_owned(),
            deep("[", "]", 20_000),
            deep("{\"a\":", "}", 5_000),
            "[".repeat(60_000),
            "{\"unknown\":".repeat(5_000),
            unknown("\"\\x\"".to_owned()),
            unknown("01".to_owned()),
        ]
        .map(String::into_bytes)
        .into();
        // Everything may be left out of a change, but not all at once.
        bodies.push(b"{}".to_vec());
        for garbage in GARBAGE {
            bodies.push([right.as_bytes(), *garbage].concat());
            bodies.push([b"{\"", *garbage, b"\":0,", &right.as_bytes()[1..]].concat());
        }
        for utf16 in [
            right.encode_utf16().flat_map(u16::to_le_bytes).collect(),
            right.encode_utf16().flat_map(u16::to_be_bytes).collect(),
        ] {
            bodies.push(utf16);
        }
        for body in bodies {
            let shown = String::from_utf8_lossy(&body[..body.len().min(120)]).into_owned();
            let reply = raw(&test, &write.method, &write.path, body).await;
            let right = reply.status == 400 && reply.json()["errorCode"] == write.invalid;
            assert!(right, "{} {shown}: {} {}", write.path, reply.status, reply.text);
        }
    }
    assert_eq!(test.snapshot().await, before);
    test.finish().await;
}

#[tokio::test]
async fn request_refused_when_content_type_not_json() {
    let (test, writes) = shop().await;
    let before = test.snapshot().await;
    for write in &writes {
        for kinds in [
            &[][..],
            &[""],
            &["text/plain"],
            &["application/x-www-form-urlencoded"],
            &["multipart/form-data; boundary=x"],
            &["application/jsonp"],
            &["text/json"],
            &["application"],
            &["application/json", "application/json"],
            &["application/json, text/plain"],
            &["\u{e9}"],
        ] {
            let headers: Vec<(&str, &[u8])> = kinds.iter().map(|kind| ("content-type", kind.as_bytes())).collect();
            for body in [write.body(None), String::new(), "{".to_owned()] {
                let reply = headed(&test, &write.method, &write.path, &headers, body).await;
                reply.refused(415, "UNSUPPORTED_MEDIA_TYPE");
            }
        }
    }
    assert_eq!(test.snapshot().await, before);
    let path = &writes[0].path;
    for kind in [
        "application/json;charset=UTF-8",
        "Application/JSON",
        "application/vnd.shop+json",
        "application/json ; a=\"b\"",
    ] {
        let reply = headed(&test, &Method::PUT, path, &[("content-type", kind.as_bytes())], "{\"amount\":1}").await;
        assert_eq!(reply.status, 200, "{kind}");
    }
    test.finish().await;
}

/// Sends a request head and as much of the body as the service takes, and returns the whole reply.
async fn by_hand(test: &TestApp, head: &str, body: impl Iterator<Item = Vec<u8>>) -> String {
    let mut stream = TcpStream::connect(test.base.trim_start_matches("http://")).await.unwrap();
    let (mut from, mut to) = stream.split();
    let send = async {
        to.write_all(head.as_bytes()).await?;
        for part in body {
            to.write_all(&part).await?;
        }
        std::io::Result::Ok(())
    };
    let mut reply = Vec::new();
    // The service may close before it has everything; what it said before must still arrive.
    let (_sent, received) = tokio::join!(send, from.read_to_end(&mut reply));
    let text = String::from_utf8_lossy(&reply).into_owned();
    assert!(!text.is_empty(), "no reply: {received:?}");
    text
}

#[tokio::test]
async fn request_refused_when_body_too_large() {
    let (test, writes) = shop().await;
    let before = test.snapshot().await;
    for write in &writes {
        // Just over the limit, then far over it, in one piece and in chunks of no length told.
        let over = write.body(None).replacen('{', &format!("{{{}", " ".repeat(65_536)), 1);
        raw(&test, &write.method, &write.path, over).await.refused(413, "PAYLOAD_TOO_LARGE");
        let admin = format!("authorization: Bearer {ADMIN}\r\n");
        let head = format!(
            "{} {} HTTP/1.1\r\nhost: a\r\nconnection: close\r\nx-request-id: big-1\r\n\
             content-type: application/json\r\n{admin}",
            write.method, write.path
        );
        let ten = || (0..160).map(|_| vec![b' '; 65_536]);
        let whole = by_hand(&test, &format!("{head}content-length: {}\r\n\r\n", 160 * 65_536), ten()).await;
        let chunk = |part: Vec<u8>| [b"10000\r\n", &part[..], b"\r\n"].concat();
        let chunked = ten().map(chunk).chain([b"0\r\n\r\n".to_vec()]);
        let chunked = by_hand(&test, &format!("{head}transfer-encoding: chunked\r\n\r\n"), chunked).await;
        for reply in [whole, chunked] {
            assert!(reply.starts_with("HTTP/1.1 413 "), "{reply}");
            assert!(reply.contains("\"PAYLOAD_TOO_LARGE\"") && reply.contains("x-request-id: big-1"), "{reply}");
        }
    }
    assert_eq!(test.snapshot().await, before);
    // Exactly at the limit it is let in.
    let write = &writes[0];
    let body = write.body(None);
    let at = body.replacen('{', &format!("{{{}", " ".repeat(65_536 - body.len())), 1);
    assert_eq!(raw(&test, &write.method, &write.path, at).await.status, 200);
    test.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn client_reads_reply_when_body_too_large() {
    let (test, writes) = shop().await;
    let before = test.snapshot().await;
    let ten_megabytes = || vec![b' '; 10_000_000];
    for _ in 0..5 {
        for write in &writes {
            raw(&test, &write.method, &write.path, ten_megabytes()).await.refused(413, "PAYLOAD_TOO_LARGE");
        }
        // So it is where nobody ever looks at the body.
        raw(&test, &Method::POST, "/nothing", ten_megabytes()).await.refused(404, "NOT_FOUND");
        raw(&test, &Method::PATCH, "/api/v1/orders", ten_megabytes()).await.refused(405, "METHOD_NOT_ALLOWED");
        let untyped = headed(&test, &Method::POST, "/api/v1/orders", &[], ten_megabytes()).await;
        untyped.refused(415, "UNSUPPORTED_MEDIA_TYPE");
        let stranger = test.client.post(format!("{}/admin/v1/users", test.base)).body(ten_megabytes());
        read(stranger).await.refused(401, "UNAUTHORIZED");
    }
    assert_eq!(test.snapshot().await, before);
    test.finish().await;
}

#[tokio::test]
async fn request_changes_nothing_when_body_breaks_off() {
    let (test, writes) = shop().await;
    let before = test.snapshot().await;
    for write in &writes {
        let body = write.body(None);
        let head = format!(
            "{} {} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n\
             authorization: Bearer {ADMIN}\r\ncontent-length: {}\r\n\r\n{body}",
            write.method,
            write.path,
            body.len() + 1
        );
        let mut stream = TcpStream::connect(test.base.trim_start_matches("http://")).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await.unwrap();
        assert!(reply.is_empty() || reply.contains(write.invalid), "{reply}");
    }
    assert_eq!(test.snapshot().await, before);
    test.finish().await;
}

#[tokio::test]
async fn request_refused_when_path_or_method_unknown() {
    let (test, _) = shop().await;
    let before = test.snapshot().await;
    for path in [
        "/",
        "/api",
        "/api/v1",
        "/api/v1/nothing",
        "/api/v2/products/1",
        "/api/v1/orders/",
        "/api/v1/balances",
        "/api/v1/balances/",
        "/api/v1/balances/1/",
        "/api/v1/products/1/2",
        "/API/v1/orders",
        "//api/v1/orders",
        "/api/v1/coupons/1/2",
        "/favicon.ico",
        "/api/v1/%6frders/x/y",
        "/api/v1/..%2forders",
    ] {
        for method in [Method::GET, Method::POST, Method::PUT, Method::DELETE, Method::from_bytes(b"BREW").unwrap()] {
            let reply = headed(&test, &method, path, &[], "{").await;
            assert_eq!(reply.json()["errorCode"], "NOT_FOUND", "{method} {path}");
        }
    }
    for (path, allowed) in [
        ("/api/v1/orders", "POST"),
        ("/api/v1/payments", "POST"),
        ("/api/v1/orders/1/cancel", "POST"),
        ("/api/v1/orders/1", "GET,HEAD"),
        ("/api/v1/products", "GET,HEAD"),
        ("/api/v1/products/popular", "GET,HEAD"),
        ("/api/v1/products/1", "GET,HEAD"),
        ("/api/v1/campaigns", "GET,HEAD"),
        ("/api/v1/coupons/1", "GET,HEAD"),
        ("/api/v1/balances/1", "GET,HEAD,PUT"),
        ("/api/v1/balances/1/history", "GET,HEAD"),
        ("/admin/v1/users", "POST"),
        ("/admin/v1/users/bulk", "POST"),
        ("/admin/v1/products", "POST"),
        ("/admin/v1/products/1", "PATCH"),
        ("/admin/v1/coupons", "POST"),
        ("/admin/v1/coupons/1", "GET,HEAD,PATCH"),
        ("/admin/v1/users/1", "GET,HEAD"),
        ("/admin/v1/users/1/timeline", "GET,HEAD"),
        ("/admin/v1/orders/1/timeline", "GET,HEAD"),
        ("/admin/v1/operator-log", "GET,HEAD"),
        ("/admin/v1/dead-letters", "GET,HEAD"),
        ("/admin/v1/dead-letters/retry", "POST"),
        ("/admin/v1/orders", "GET,HEAD"),
        ("/admin/v1/projection", "GET,HEAD"),
        ("/healthz", "GET,HEAD"),
        ("/readyz", "GET,HEAD"),
    ] {
        let allowed: BTreeSet<&str> = allowed.split(',').collect();
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "BREW"]
            .iter()
            .filter(|method| !allowed.contains(*method))
        {
            let reply = raw(&test, &Method::from_bytes(method.as_bytes()).unwrap(), path, "{}").await;
            reply.refused(405, "METHOD_NOT_ALLOWED");
            let told: BTreeSet<&str> = reply.headers["allow"].to_str().unwrap().split(',').map(str::trim).collect();
            assert_eq!(told, allowed, "{method} {path}");
        }
    }
    let head = read(test.client.head(format!("{}/api/v1/products", test.base))).await;
    assert_eq!((head.status.as_u16(), head.text.as_str()), (200, ""));
    assert!(head.headers.contains_key("x-request-id"));
    assert_eq!(test.snapshot().await, before);
    test.finish().await;
}

#[tokio::test]
async fn request_refused_when_path_id_invalid() {
    let (test, writes) = shop().await;
    let before = test.snapshot().await;
    let bad = [
        "abc",
        "0",
        "-1",
        "1.5",
        "1.0",
        "1e3",
        "+1",
        "%2B1",
        "0x1",
        "%201",
        "1%20",
        "1%00",
        "%00",
        "%FF",
        "%E0%A4%A",
        "%zz",
        "1%2F2",
        "%EF%BC%91",
        "1152921504606846976",
        "9007199254740992",
        "9223372036854775807",
        "9223372036854775808",
        "18446744073709551617",
        "99999999999999999999999999",
        "null",
        "1,2",
        "*",
        "'1'",
        "1;2",
        "$%7B1%7D",
    ];
    let long = "1".repeat(5_000);
    for bad in bad.into_iter().chain([long.as_str()]) {
        for (path, code) in [
            (format!("/api/v1/balances/{bad}"), "USER_NOT_FOUND"),
            (format!("/api/v1/balances/{bad}/history"), "USER_NOT_FOUND"),
            (format!("/api/v1/coupons/{bad}"), "USER_NOT_FOUND"),
            (format!("/api/v1/products/{bad}"), "PRODUCT_NOT_FOUND"),
            (format!("/api/v1/orders/{bad}"), "ORDER_NOT_FOUND"),
            (format!("/admin/v1/coupons/{bad}"), "COUPON_NOT_FOUND"),
        ] {
            raw(&test, &Method::GET, &path, "").await.refused(404, code);
        }
        for (write, path, code) in [
            (&writes[0], format!("/api/v1/balances/{bad}"), "USER_NOT_FOUND"),
            (&writes[4], format!("/api/v1/orders/{bad}/cancel"), "ORDER_NOT_FOUND"),
            (&writes[8], format!("/admin/v1/products/{bad}"), "PRODUCT_NOT_FOUND"),
        ] {
            raw(&test, &write.method, &path, write.body(None)).await.refused(404, code);
            // What is wrong with the body is told first.
            raw(&test, &write.method, &path, "{").await.refused(400, write.invalid);
        }
    }
    assert_eq!(test.snapshot().await, before);
    // A number is the same however its digits are written into the URL; leading zeros are digits.
    let user = id(&test.post("/admin/v1/users", json!({"userName": "x"})).await.created(), "userId");
    let spelled: String = user.to_string().bytes().map(|byte| format!("%{byte:02X}")).collect();
    assert_eq!(get(&test, &format!("/api/v1/balances/{spelled}")).await.ok()["userId"], user);
    test.finish().await;
}

#[tokio::test]
async fn request_refused_when_idempotency_key_invalid() {
    let (test, writes) = shop().await;
    let before = test.snapshot().await;
    let long = "k".repeat(256);
    let json = ("content-type", &b"application/json"[..]);
    for write in &writes {
        for keys in [
            &[&b""[..]][..],
            &[long.as_bytes()],
            &["키".as_bytes()],
            &[b"\xff"],
            &[b"a\tb"],
            &[b"a", b"a"],
            &[b"a", b"b"],
        ] {
            let headers: Vec<(&str, &[u8])> = keys.iter().map(|key| ("idempotency-key", *key)).chain([json]).collect();
            let reply = headed(&test, &write.method, &write.path, &headers, write.body(None)).await;
            reply.refused(400, "INVALID_IDEMPOTENCY_KEY");
        }
    }
    assert_eq!(test.snapshot().await, before);
    for (write, key) in writes.iter().zip([" ", "k", "~", &long[1..], "a b", "{p0}:meta", "*", "../..", "'", "\\"]) {
        let headers = [("idempotency-key", key.as_bytes()), json];
        let reply = headed(&test, &write.method, &write.path, &headers, write.body(None)).await;
        if key == " " {
            // A header's value loses its outer blanks on the way.
            reply.refused(400, "INVALID_IDEMPOTENCY_KEY");
        } else {
            assert!(reply.status.is_success(), "{key}: {}", reply.text);
        }
    }
    test.finish().await;
}

#[tokio::test]
async fn reply_carries_request_id() {
    let test = TestApp::with(Options { max_open_orders: 1, ..Options::default() }).await;
    let (user, product) = (test.user(1_000).await, test.product(10, 10).await);
    test.order(user, product, 1).await.ok();
    let order = order_of(user, &[(product, 1)], None).to_string();
    let kind: (&str, &[u8]) = ("content-type", b"application/json");
    let mut minted = BTreeSet::new();
    for (method, path, headers, body, status) in [
        (Method::GET, "/api/v1/products".to_owned(), vec![], String::new(), 200),
        (Method::PUT, format!("/api/v1/balances/{user}"), vec![kind], "{\"amount\":1}".to_owned(), 200),
        (Method::POST, "/admin/v1/users".to_owned(), vec![kind], "{\"userName\":\"x\"}".to_owned(), 201),
        (Method::PUT, format!("/api/v1/balances/{user}"), vec![kind], "{".to_owned(), 400),
        (Method::GET, "/api/v1/products?page=x".to_owned(), vec![], String::new(), 400),
        (Method::GET, "/api/v1/products/0".to_owned(), vec![], String::new(), 404),
        (Method::GET, "/nothing".to_owned(), vec![], String::new(), 404),
        (Method::DELETE, "/api/v1/orders".to_owned(), vec![], String::new(), 405),
        (Method::POST, "/api/v1/orders".to_owned(), vec![kind], " ".repeat(70_000), 413),
        (Method::POST, "/api/v1/orders".to_owned(), vec![], order.clone(), 415),
        (Method::POST, "/api/v1/orders".to_owned(), vec![kind], order, 429),
        (Method::GET, "/healthz".to_owned(), vec![], String::new(), 200),
        (Method::GET, "/v3/api-docs".to_owned(), vec![], String::new(), 200),
        (Method::GET, "/swagger-ui/index.html".to_owned(), vec![], String::new(), 200),
    ] {
        let asked = async |id: Option<&[u8]>| {
            let headers: Vec<_> = headers.iter().copied().chain(id.map(|id| ("x-request-id", id))).collect();
            let mut request = test.client.request(method.clone(), format!("{}{path}", test.base)).body(body.clone());
            for (name, value) in headers {
                request = request.header(name, value);
            }
            if path.starts_with("/admin") {
                request = request.bearer_auth(ADMIN);
            }
            let reply = read(request).await;
            assert_eq!(reply.status, status, "{method} {path}: {}", reply.text);
            let ids: Vec<_> = reply.headers.get_all("x-request-id").iter().collect();
            assert_eq!(ids.len(), 1, "{method} {path}");
            ids[0].to_str().unwrap().to_owned()
        };
        let sixty_four = "Aa0._-xy".repeat(8);
        for id in ["client-1.A_z", "1", &sixty_four] {
            assert_eq!(asked(Some(id.as_bytes())).await, id);
        }
        let long = "x".repeat(65);
        for id in
            [None, Some(&b""[..]), Some(b"a b"), Some(b"a\"b"), Some(b"<script>"), Some(b"\xff"), Some(long.as_bytes())]
        {
            assert!(minted.insert(asked(id).await), "an id was minted twice");
        }
    }
    // The operators' door.
    let request = test.client.get(format!("{}/admin/v1/orders", test.base)).header("x-request-id", "mine");
    let reply = read(request).await;
    assert_eq!((reply.status.as_u16(), reply.headers["x-request-id"].to_str().unwrap()), (401, "mine"));
    test.finish().await;
}
