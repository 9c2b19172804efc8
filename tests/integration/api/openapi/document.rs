//! The OpenAPI document matches the contract.

use super::*;

/// The operations beyond the contract, by method and path, without `/metrics` and `/ops`, which are not JSON.
const OURS: &[(&str, &str)] = &[
    ("get", "/api/v1/orders/{orderId}"),
    ("post", "/api/v1/orders/{orderId}/cancel"),
    ("get", "/api/v1/products"),
    ("get", "/api/v1/campaigns"),
    ("post", "/admin/v1/users"),
    ("post", "/admin/v1/users/bulk"),
    ("post", "/admin/v1/products"),
    ("patch", "/admin/v1/products/{productId}"),
    ("post", "/admin/v1/coupons"),
    ("get", "/admin/v1/coupons/{couponId}"),
    ("get", "/admin/v1/orders"),
    ("get", "/admin/v1/projection"),
    ("get", "/admin/v1/withheld"),
    ("post", "/admin/v1/withheld/release"),
    ("post", "/admin/v1/products/{productId}/release"),
    ("post", "/admin/v1/coupons/{couponId}/release"),
    ("get", "/healthz"),
    ("get", "/readyz"),
];

/// The schemas of the contract: name, fields.
const SCHEMAS: &[(&str, &str)] = &[
    ("ChargeRequest", "amount"),
    ("UserBalanceResponse", "userId userName amount balance"),
    ("ErrorResponse", "errorCode message"),
    ("PaymentRequest", "orderId userId paymentType amount"),
    ("PaymentResponse", "paymentId orderId userId paymentType amount receipt createdAt orderStatus"),
    ("OrderCreateRequest", "userId orderProducts userCouponId"),
    ("OrderProductRequest", "productId quantity"),
    ("OrderResponse", "orderId finalPrice orderedAt"),
    ("UserCouponRequest", "couponId userId"),
    ("CouponIssueResponse", "couponId couponCode couponStatus discountType discountAmount expiredAt createdAt"),
    ("ProductResponse", "productId productName price stockQuantity category"),
    ("ProductSalesRankResponse", "productId salesCount totalSalesPrice rankingScope rankPosition"),
    ("UserCouponResponse", "couponId couponCode couponStatus discountType discountAmount createdAt usedAt expiredAt"),
    ("UserBalanceHistoryResponse", "userId transactionType amount before_balance after_balance createdAt"),
];

/// The text with white space collapsed, as in [`PAGE`].
fn flat(text: &Value) -> String {
    text.as_str().unwrap().split_whitespace().collect::<Vec<_>>().join(" ")
}

#[tokio::test]
async fn document_matches_contract() {
    let test = TestApp::start().await;
    let reply = test.get("/v3/api-docs").await;
    assert_eq!(reply.headers["content-type"], "application/json");
    let api = reply.ok();
    assert!(api["openapi"].as_str().unwrap().starts_with("3.1."));
    fields(&api["info"], "title version description");
    assert_eq!(api["info"]["title"], "E-commerce API");
    assert_eq!(api["info"]["version"], "v1.0.0");
    assert_eq!(api["info"]["description"], "이커머스 API 문서");
    let page_server = json!({"url": "http://localhost:8080", "description": "Generated server url"});
    assert_eq!((&api["servers"][0]["url"], &api["servers"][1]), (&json!("/"), &page_server));
    let tags: Vec<(&Value, &Value)> =
        api["tags"].as_array().unwrap().iter().map(|tag| (&tag["name"], &tag["description"])).collect();
    let page_tags = [
        ("결제", "결제 처리 API"),
        ("잔액", "잔액 조회/충전/내역조회 API"),
        ("쿠폰", "쿠폰 조회/발급 API"),
        ("상품", "상품 조회/인기상품 조회 API"),
        ("주문", "주문 API"),
    ];
    for (tag, (name, description)) in tags.iter().zip(page_tags) {
        assert_eq!((tag.0.as_str(), tag.1.as_str()), (Some(name), Some(description)));
    }

    for (method, path, tag, summary, description, statuses) in PAGE {
        let operation = &api["paths"][path][method];
        assert_eq!(operation["tags"], json!([tag]), "{method} {path}");
        assert_eq!(operation["summary"], *summary, "{method} {path}");
        assert_eq!(flat(&operation["description"]), *description, "{method} {path}");
        for (status, description) in *statuses {
            assert_eq!(operation["responses"][status]["description"], *description, "{method} {path} {status}");
        }
    }
    let sort_by = &api["paths"]["/api/v1/products/popular"]["get"]["parameters"][0];
    assert_eq!((&sort_by["name"], &sort_by["schema"]["default"]), (&json!("sortBy"), &json!("THREE_DAYS")));

    let documented: BTreeSet<(&str, &str)> = api["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, item)| item.as_object().unwrap().keys().map(move |method| (method.as_str(), path.as_str())))
        .collect();
    for (method, path) in PAGE.iter().map(|(method, path, ..)| (*method, *path)).chain(OURS.iter().copied()) {
        assert!(documented.contains(&(method, path)), "{method} {path}");
    }

    let schemas = &api["components"]["schemas"];
    for (name, shown) in SCHEMAS {
        let properties = schemas[name]["properties"].as_object().unwrap_or_else(|| panic!("{name}"));
        assert!(shown.split(' ').all(|field| properties.contains_key(field)), "{name}: {properties:?}");
        // Every field of the contract is required, in requests and replies.
        for field in shown.split(' ').filter(|field| *field != "userCouponId") {
            let required = schemas[name]["required"].as_array().unwrap();
            assert!(required.iter().any(|name| name == field), "{name}.{field}");
        }
        for (field, schema) in properties {
            assert!(schema["type"] != json!(["string", "null"]) || field == "usedAt", "{name}.{field}");
        }
    }
    test.finish().await;
}

#[tokio::test]
async fn document_examples_valid() {
    let test = TestApp::start().await;
    let api = document(&test).await;
    let mut checked = 0;
    let mut check = |what: &str, content: &Value, strict: bool| {
        for example in examples(content) {
            checked += 1;
            if let Err(fault) = api.check(&content["schema"], example, strict) {
                panic!("{what}{fault}: {example}");
            }
        }
    };
    for (path, item) in api.0["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            check(&format!("{method} {path}"), &operation["requestBody"]["content"]["application/json"], true);
            for (status, response) in operation["responses"].as_object().unwrap() {
                check(&format!("{method} {path} {status}"), &response["content"]["application/json"], true);
            }
        }
    }
    assert!(checked > 100, "{checked}");
    test.finish().await;
}

#[tokio::test]
async fn documentation_page_loads_without_network() {
    let test = TestApp::start().await;
    let page = "/swagger-ui/index.html";
    let html = test.get(page).await;
    assert_eq!(html.status, 200);
    assert!(html.headers["content-type"].to_str().unwrap().starts_with("text/html"));

    // The page and its initializer refer to files of this service only.
    let mut seen = BTreeSet::new();
    let attributes = |text: &str| -> Vec<String> {
        let named = ["src=\"", "href=\""].iter().flat_map(|mark| text.split(mark).skip(1));
        named.map(|rest| rest.split('"').next().unwrap().to_owned()).collect()
    };
    for asset in attributes(&html.text) {
        assert!(!asset.contains("//") && !asset.starts_with("data:"), "{asset}");
        let reply = test.get(&format!("/swagger-ui/{}", asset.trim_start_matches("./"))).await;
        assert_eq!(reply.status, 200, "{asset}");
        let kind = reply.headers["content-type"].to_str().unwrap();
        let expected = match asset.rsplit('.').next().unwrap() {
            "js" => "javascript",
            "css" => "css",
            "png" => "image/png",
            other => panic!("{other}"),
        };
        assert!(kind.contains(expected), "{asset}: {kind}");
        assert!(!reply.text.is_empty() && reply.headers.contains_key("x-request-id"), "{asset}");
        seen.insert(asset);
    }
    assert!(seen.iter().any(|asset| asset.ends_with("swagger-ui-bundle.js")), "{seen:?}");
    assert!(seen.iter().any(|asset| asset.ends_with("swagger-ui.css")), "{seen:?}");
    let initializer = test.get("/swagger-ui/swagger-initializer.js").await;
    assert!(initializer.text.contains("/v3/api-docs"), "{}", initializer.text);
    for text in [&html.text, &initializer.text] {
        for rest in text.split("http").skip(1) {
            assert!(!rest.starts_with("://") && !rest.starts_with("s://"), "{}", &rest[..40]);
        }
    }
    assert!(
        initializer.text.contains("\"validatorUrl\": \"none\"") || initializer.text.contains("validatorUrl\":\"none\"")
    );

    // Every alias leads to the page, and only the page's files are below it.
    for alias in ["/swagger-ui", "/swagger-ui/", "/swagger-ui.html"] {
        assert_eq!(test.get(alias).await.text, html.text, "{alias}");
    }
    for stray in ["/swagger-ui/nothing.js", "/swagger-ui/..%2f..%2fCargo.toml", "/v3/api-docs/"] {
        test.get(stray).await.refused(404, "NOT_FOUND");
    }
    test.finish().await;
}
