//! Unknown fields and parameters: the operators' API refuses them by name on every route; the public API accepts the
//! request and names them in its reply.

use reqwest::Method;
use serde_json::{Map, Value, json};

use crate::support::{
    api_kit::*,
    harness::{Reply, TestApp, client, read},
};

/// The name of a field and a parameter that no operation has.
const UNKNOWN: &str = "notAField";

/// Ids of existing objects, for path parameters.
#[derive(Clone, Copy)]
struct Ids {
    user: i64,
    product: i64,
    order: i64,
    paid: i64,
    coupon: i64,
    webhook: i64,
}

impl Ids {
    async fn new(test: &TestApp) -> Ids {
        let (user, product) = (test.user(10_000).await, test.product(10, 10).await);
        let webhook = json!({"url": "https://shop.example.com/hooks", "types": ["order.paid"]});
        let webhook = test.post("/admin/v1/webhooks", webhook).await.created();
        Ids {
            user,
            product,
            order: placed(test, user, &[(product, 1)], None).await,
            paid: bought(test, user, product, 2).await,
            coupon: test.campaign("FIXED", 10, 10).await,
            webhook: webhook["webhookId"].as_i64().unwrap(),
        }
    }

    fn fill(&self, template: &str) -> String {
        // A refund is of a paid order.
        let order = if template.ends_with("/refund") { self.paid } else { self.order };
        let ids = [
            ("userId", self.user),
            ("productId", self.product),
            ("orderId", order),
            ("couponId", self.coupon),
            ("webhookId", self.webhook),
        ];
        let filled = ids
            .iter()
            .fold(template.to_owned(), |path, (name, id)| path.replace(&format!("{{{name}}}"), &id.to_string()));
        assert!(!filled.contains('{'), "{filled}");
        filled
    }
}

/// Every operation below this path: method, path template, operation object.
fn operations<'d>(document: &'d Value, below: &str) -> Vec<(Method, &'d str, &'d Value)> {
    let paths = document["paths"].as_object().unwrap().iter().filter(|(path, _)| path.starts_with(below));
    paths
        .flat_map(|(path, item)| {
            let method = |name: &str| Method::from_bytes(name.to_ascii_uppercase().as_bytes()).unwrap();
            item.as_object().unwrap().iter().map(move |(name, operation)| (method(name), path.as_str(), operation))
        })
        .collect()
}

/// A value that fits the schema: its example if it has one.
fn example(test: &TestApp, document: &Value, name: &str, schema: &Value) -> Value {
    if let Some(to) = schema["$ref"].as_str() {
        return example(test, document, name, document.pointer(to.trim_start_matches('#')).unwrap());
    }
    match name {
        "opensAt" => return now(test).into(),
        "discountType" => return "PERCENTAGE".into(),
        "url" => return "https://shop.example.com/hooks".into(),
        "closesAt" | "expiredAt" => return after(test, 3_600_000).into(),
        _ => {}
    }
    if let Some(fields) = schema["properties"].as_object() {
        let values = fields.iter().map(|(name, schema)| (name.clone(), example(test, document, name, schema)));
        return values.collect::<Map<_, _>>().into();
    }
    match schema["type"].as_str() {
        _ if schema["example"] != Value::Null => schema["example"].clone(),
        _ if schema["enum"].is_array() => schema["enum"][0].clone(),
        Some("array") => json!([example(test, document, name, &schema["items"])]),
        Some("object") => json!({}),
        Some("boolean") => json!(true),
        Some("integer") => schema["minimum"].as_i64().map_or(json!(1), |minimum| minimum.max(1).into()),
        Some("string") => "SHOES".into(),
        _ => Value::Null,
    }
}

fn body(test: &TestApp, document: &Value, operation: &Value) -> Option<Value> {
    let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
    (!schema.is_null()).then(|| example(test, document, "", schema))
}

/// Copies of `body`, each with an unknown field in one of its objects.
fn with_unknown(body: &Value) -> Vec<Value> {
    let mut all = Vec::new();
    match body {
        Value::Object(fields) => {
            let mut more = fields.clone();
            more.insert(UNKNOWN.to_owned(), 1.into());
            all.push(more.into());
            for (name, value) in fields {
                for value in with_unknown(value) {
                    let mut more = fields.clone();
                    more.insert(name.clone(), value);
                    all.push(more.into());
                }
            }
        }
        Value::Array(items) => {
            for (place, item) in items.iter().enumerate() {
                for item in with_unknown(item) {
                    let mut more = items.clone();
                    more[place] = item;
                    all.push(more.into());
                }
            }
        }
        _ => {}
    }
    all
}

#[track_caller]
fn refused_by_name(what: &str, reply: &Reply, name: &str) {
    reply.refused(400, "INVALID_REQUEST");
    assert!(reply.json()["message"].as_str().unwrap().contains(name), "{what}: {}", reply.text);
}

async fn send(test: &TestApp, method: &Method, path: &str, body: Option<&Value>) -> Reply {
    let reply = test.send(method.clone(), path, body, None).await;
    document(test).await.check_reply(method.as_str(), path, &reply);
    in_contract(path, &reply);
    reply
}

#[tokio::test]
async fn unknown_field_or_parameter_refused_by_name_on_every_admin_route() {
    let test = TestApp::start().await;
    let ids = Ids::new(&test).await;
    let document = &document(&test).await.0;
    let operations = operations(document, "/admin/");
    assert!(operations.len() >= 20, "{}", operations.len());
    let (before, mut bodies) = (effects(&test).await, 0);
    for (method, template, operation) in &operations {
        let (path, what) = (ids.fill(template), format!("{method} {template}"));
        let right = body(&test, document, operation);
        for wrong in right.iter().flat_map(with_unknown) {
            bodies += 1;
            refused_by_name(&what, &send(&test, method, &path, Some(&wrong)).await, UNKNOWN);
        }
        for query in
            [format!("{UNKNOWN}=1"), format!("page=0&{UNKNOWN}"), "%6eotAField=%00".to_owned(), "Page=0".to_owned()]
        {
            let name = if query == "Page=0" { "Page" } else { UNKNOWN };
            refused_by_name(&what, &send(&test, method, &format!("{path}?{query}"), right.as_ref()).await, name);
        }
        if method == Method::PATCH {
            refused_by_name(&what, &send(&test, method, &path, Some(&json!({}))).await, "변경할 항목이 없습니다");
        }
    }
    assert!(bodies >= 10, "{bodies}");
    assert_eq!(effects(&test).await, before);

    // Without the unknown field every request is valid.
    for (method, template, operation) in &operations {
        // A campaign keeps its terms, so it is put under a new id.
        let ids = if method == Method::PUT { Ids { coupon: 1_000_000, ..ids } } else { ids };
        let reply = send(&test, method, &ids.fill(template), body(&test, document, operation).as_ref()).await;
        assert!(reply.status != 400, "{method} {template}: {}", reply.text);
    }
    test.finish().await;
}

#[tokio::test]
async fn admin_request_with_misspelled_field_changes_nothing() {
    let test = TestApp::start().await;
    let ids = Ids::new(&test).await;
    let before = effects(&test).await;
    let (coupon, product) = (ids.fill("/admin/v1/coupons/{couponId}"), ids.fill("/admin/v1/products/{productId}"));
    let new = json!({"couponCode": "A", "discountType": "FIXED", "discountAmount": 1, "totalQuantity": 1,
        "expiredAt": after(&test, 1_000), "openAt": after(&test, 500)});
    let mistyped = json!({"couponCode": "A", "discountType": "FIXED", "discountAmount": 1, "totalQuantty": 1,
        "expiredAt": after(&test, 1_000)});
    for (method, path, body, name) in [
        (Method::POST, "/admin/v1/withheld/release", json!({"productId": 1}), "productId"),
        (Method::PATCH, &coupon, json!({"closeAt": now(&test)}), "closeAt"),
        (Method::POST, "/admin/v1/coupons", new, "openAt"),
        // A misspelled name of a required field.
        (Method::POST, "/admin/v1/coupons", mistyped, "totalQuantty"),
        (Method::PATCH, &product, json!({"stockDelat": 100}), "stockDelat"),
        (Method::POST, "/admin/v1/users", json!({"userName": "x", "balanse": 5}), "balanse"),
        (Method::POST, "/admin/v1/users", json!({"userName": "x", "a\u{0}\"b\n": {"c": [1]}}), "a\u{fffd}\"b\u{fffd}"),
        (Method::GET, "/admin/v1/orders?statuss=PAID", Value::Null, "statuss"),
    ] {
        let body = (!body.is_null()).then_some(&body);
        refused_by_name(path, &send(&test, &method, path, body).await, name);
    }
    // The message names only some of many unknown fields, and shortens long names.
    let many: Map<String, Value> = (0..500).map(|n| (format!("{n}{}", "x".repeat(100)), Value::Null)).collect();
    let reply = send(&test, &Method::PATCH, &product, Some(&many.into())).await;
    refused_by_name("many", &reply, "0xxx");
    assert!(reply.text.len() < 1_000, "{}", reply.text.len());
    assert_eq!(effects(&test).await, before);
    test.finish().await;
}

#[tokio::test]
async fn api_request_with_unknown_field_accepted_and_named_in_reply() {
    let test = TestApp::start().await;
    let ids = Ids::new(&test).await;
    let named = |reply: &Reply| reply.headers.get("x-unknown-fields").map(|names| names.to_str().unwrap().to_owned());
    let mut order = order_of(ids.user, &[(ids.product, 1)], None);
    order["userCouponID"] = ids.coupon.into();
    order["orderProducts"][0]["price"] = 1.into();
    let reply = send(&test, &Method::POST, "/api/v1/orders", Some(&order)).await;
    let names = named(&reply).unwrap();
    assert!(names.contains("userCouponID") && names.contains("orderProducts.0.price"), "{names}");
    assert_eq!(id(&reply.ok(), "finalPrice"), 10);
    // The header comes with refusals, too.
    order.as_object_mut().unwrap().remove("userId");
    let reply = send(&test, &Method::POST, "/api/v1/orders?dryRun=true", Some(&order)).await;
    reply.refused(400, "INVALID_ORDER");
    assert!(named(&reply).unwrap().contains("dryRun"), "{:?}", reply.headers);
    let product = ids.fill("/api/v1/products/{productId}");
    for (path, expected) in [
        ("/api/v1/products?pag=1&size=1", Some("pag")),
        ("/api/v1/products/popular?sortby=WEEKLY", Some("sortby")),
        ("/api/v1/orders?statuss=PAID", None),
        (
            &*format!("{product}?utm_source=a%0d%0ab&%0d%0aset-cookie:%20x=1"),
            Some("utm_source, %EF%BF%BD%EF%BF%BDset-cookie:%20x"),
        ),
        ("/api/v1/products?page=0&size=1", None),
        (&*product, None),
    ] {
        let reply = read(client().get(format!("{}{path}", test.base))).await;
        assert_eq!(named(&reply).as_deref(), expected, "{path}");
    }
    // A request without unknown fields gets no header.
    let reply =
        send(&test, &Method::POST, "/api/v1/orders", Some(&order_of(ids.user, &[(ids.product, 1)], None))).await;
    assert_eq!((reply.status.as_u16(), named(&reply)), (200, None));
    test.finish().await;
}
