//! The OpenAPI document matches the contract.

use super::*;

/// The operations beyond the contract, by method and path, without `/metrics` and `/ops`, which are not JSON.
const OURS: &[(&str, &str)] = &[
    ("post", "/api/v1/payments/prepare"),
    ("post", "/gateways/{type}/webhook"),
    ("get", "/admin/v1/audit"),
    ("get", "/admin/v1/audit/events"),
    ("get", "/admin/v1/audit/progress"),
    ("get", "/admin/v1/coupons/{couponId}"),
    ("get", "/admin/v1/dead-letters"),
    ("delete", "/admin/v1/webhooks/{webhookId}"),
    ("get", "/admin/v1/events"),
    ("get", "/admin/v1/operator-log"),
    ("get", "/admin/v1/orders"),
    ("get", "/admin/v1/orders/{orderId}/timeline"),
    ("get", "/admin/v1/payments/stuck"),
    ("get", "/admin/v1/projection"),
    ("get", "/admin/v1/recoveries"),
    ("get", "/admin/v1/requests"),
    ("get", "/admin/v1/sales"),
    ("get", "/admin/v1/products/{productId}"),
    ("get", "/admin/v1/products/{productId}/buyers"),
    ("get", "/admin/v1/users/{userId}"),
    ("get", "/admin/v1/users/{userId}/timeline"),
    ("get", "/admin/v1/webhooks"),
    ("get", "/admin/v1/webhooks/{webhookId}"),
    ("get", "/admin/v1/webhooks/{webhookId}/deliveries"),
    ("get", "/admin/v1/withheld"),
    ("get", "/api/v1/campaigns"),
    ("get", "/api/v1/orders/{orderId}"),
    ("get", "/api/v1/products"),
    ("get", "/healthz"),
    ("get", "/readyz"),
    ("delete", "/admin/v1/users/{userId}"),
    ("patch", "/admin/v1/coupons/{couponId}"),
    ("patch", "/admin/v1/products/{productId}"),
    ("post", "/admin/v1/coupons"),
    ("post", "/admin/v1/coupons/{couponId}/release"),
    ("post", "/admin/v1/dead-letters/retry"),
    ("post", "/admin/v1/orders/{orderId}/payment-outcome"),
    ("post", "/admin/v1/orders/{orderId}/refund"),
    ("post", "/admin/v1/products"),
    ("post", "/admin/v1/products/{productId}/release"),
    ("post", "/admin/v1/users"),
    ("post", "/admin/v1/users/bulk"),
    ("patch", "/admin/v1/webhooks/{webhookId}"),
    ("post", "/admin/v1/webhooks"),
    ("post", "/admin/v1/webhooks/{webhookId}/resend"),
    ("post", "/admin/v1/webhooks/{webhookId}/rotate"),
    ("post", "/admin/v1/withheld/release"),
    ("post", "/api/v1/orders/{orderId}/cancel"),
    ("put", "/admin/v1/coupons/{couponId}"),
    ("put", "/admin/v1/products/{productId}"),
    ("put", "/admin/v1/users/{userId}"),
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

/// Every operation: method, path, and itself.
fn operations(api: &Value) -> impl Iterator<Item = (&str, &str, &Value)> {
    let paths = api["paths"].as_object().unwrap().iter();
    paths.flat_map(|(path, item)| {
        item.as_object().unwrap().iter().map(move |(method, operation)| (method.as_str(), path.as_str(), operation))
    })
}

/// Adds the names of the schemas to which a part of the document refers, and to which these refer in turn.
fn collect_schemas(api: &Value, part: &Value, names: &mut BTreeSet<String>) {
    match part {
        Value::Array(items) => items.iter().for_each(|item| collect_schemas(api, item, names)),
        Value::Object(fields) => fields.values().for_each(|field| collect_schemas(api, field, names)),
        Value::String(text) => {
            let Some(name) = text.strip_prefix("#/components/schemas/") else { return };
            if names.insert(name.to_owned()) {
                collect_schemas(api, &api["components"]["schemas"][name], names);
            }
        }
        _ => {}
    }
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

    let documented = operations(&api).map(|(method, path, _)| (method, path)).collect::<BTreeSet<_>>();
    let listed = PAGE.iter().map(|(method, path, ..)| (*method, *path)).chain(OURS.iter().copied()).collect();
    let missing = |these: &BTreeSet<_>, those: &BTreeSet<_>| these.difference(those).copied().collect::<Vec<_>>();
    assert_eq!(missing(&documented, &listed), [], "operations that OURS does not list");
    assert_eq!(missing(&listed, &documented), [], "operations that are not documented");

    let schemas = &api["components"]["schemas"];
    for (name, shown) in SCHEMAS {
        let properties = schemas[name]["properties"].as_object().unwrap_or_else(|| panic!("{name}"));
        assert!(shown.split(' ').all(|field| properties.contains_key(field)), "{name}: {properties:?}");
        // Every field of the contract is required, in requests and replies.
        for field in shown.split(' ').filter(|field| *field != "userCouponId") {
            let required = schemas[name]["required"].as_array().unwrap();
            assert!(required.iter().any(|name| name == field), "{name}.{field}");
        }
        for field in shown.split(' ') {
            let kind = &properties[field]["type"];
            assert!(*kind != json!(["string", "null"]) || field == "usedAt", "{name}.{field}");
        }
    }
    test.finish().await;
}

/// The contract's operations use the contract's objects alone: nothing of ours takes the place of one. No schema is unused.
#[tokio::test]
async fn schemas_of_contract_are_those_its_operations_use() {
    let test = TestApp::start().await;
    let api = &document(&test).await.0;
    let used = |of_contract: bool| {
        let listed = |method: &str, path: &str| PAGE.iter().any(|row| (row.0, row.1) == (method, path));
        let mut used = BTreeSet::new();
        for (.., operation) in operations(api).filter(|(method, path, _)| !of_contract || listed(method, path)) {
            collect_schemas(api, operation, &mut used);
        }
        used
    };
    let schemas = &api["components"]["schemas"];
    let objects = used(true).into_iter().filter(|name| schemas[name]["type"] == "object");
    let contract: BTreeSet<String> = SCHEMAS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(objects.collect::<BTreeSet<_>>(), contract);
    assert_eq!(used(false), schemas.as_object().unwrap().keys().cloned().collect());
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
    for (method, path, operation) in operations(&api.0) {
        check(&format!("{method} {path}"), &operation["requestBody"]["content"]["application/json"], true);
        for (status, response) in operation["responses"].as_object().unwrap() {
            check(&format!("{method} {path} {status}"), &response["content"]["application/json"], true);
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
