//! Paths, methods, ids in paths, idempotency keys and request ids.

use super::*;

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
        ("/admin/v1/products/1", "GET,HEAD,PATCH,PUT"),
        ("/admin/v1/products/1/buyers", "GET,HEAD"),
        ("/admin/v1/sales", "GET,HEAD"),
        ("/admin/v1/coupons", "POST"),
        ("/admin/v1/coupons/1", "GET,HEAD,PATCH,PUT"),
        ("/admin/v1/users/1", "GET,HEAD,PUT,DELETE"),
        ("/admin/v1/users/1/timeline", "GET,HEAD"),
        ("/admin/v1/orders/1/timeline", "GET,HEAD"),
        ("/admin/v1/operator-log", "GET,HEAD"),
        ("/admin/v1/dead-letters", "GET,HEAD"),
        ("/admin/v1/dead-letters/retry", "POST"),
        ("/admin/v1/recoveries", "GET,HEAD"),
        ("/admin/v1/requests", "GET,HEAD"),
        ("/admin/v1/orders", "GET,HEAD"),
        ("/admin/v1/projection", "GET,HEAD"),
        ("/admin/v1/events", "GET,HEAD"),
        ("/admin/v1/webhooks", "GET,HEAD,POST"),
        ("/admin/v1/webhooks/1", "GET,HEAD,PATCH,DELETE"),
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
            let listed: BTreeSet<&str> = reply.headers["allow"].to_str().unwrap().split(',').map(str::trim).collect();
            assert_eq!(listed, allowed, "{method} {path}");
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
            // The body is validated before the id.
            raw(&test, &write.method, &path, "{").await.refused(400, write.invalid);
        }
    }
    assert_eq!(test.snapshot().await, before);
    // Percent-encoded digits are digits.
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
            // HTTP strips blanks around a header's value, so the key is empty.
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
    let mut generated = BTreeSet::new();
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
        let request_id = async |id: Option<&[u8]>| {
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
            assert_eq!(request_id(Some(id.as_bytes())).await, id);
        }
        let long = "x".repeat(65);
        for id in
            [None, Some(&b""[..]), Some(b"a b"), Some(b"a\"b"), Some(b"<script>"), Some(b"\xff"), Some(long.as_bytes())]
        {
            assert!(generated.insert(request_id(id).await), "a request id repeats");
        }
    }
    // A request that fails authentication carries its request id, too.
    let request = test.client.get(format!("{}/admin/v1/orders", test.base)).header("x-request-id", "mine");
    let reply = read(request).await;
    assert_eq!((reply.status.as_u16(), reply.headers["x-request-id"].to_str().unwrap()), (401, "mine"));
    test.finish().await;
}
