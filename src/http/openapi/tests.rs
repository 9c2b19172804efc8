//! Tests of the document as a whole.

use std::sync::Arc;

use serde_json::{Value, json};
use utoipa_swagger_ui::Config;

use super::{
    document::{GROUPS, LATIN_TAGS, USER, complete, for_clients, references},
    page::{DOCUMENT_PATH, asset},
};
use crate::{
    http::{auth::user, error::Code, roles, router},
    model::Role,
};

fn document() -> Value {
    documented(false)
}

/// As it is where users need tokens, or not.
fn documented(tokens: bool) -> Value {
    complete(router::document(), tokens)
}

/// Operations of the page, with every status that it documents.
const PAGE: [(&str, &str, &[&str]); 9] = [
    ("post", "/api/v1/payments", &["200", "400", "402", "404", "409", "500"]),
    ("get", "/api/v1/balances/{userId}", &["200", "404", "500"]),
    ("put", "/api/v1/balances/{userId}", &["200", "400", "404"]),
    ("get", "/api/v1/balances/{userId}/history", &["200", "404", "500"]),
    ("post", "/api/v1/coupons/issue", &["200", "400", "404", "409"]),
    ("get", "/api/v1/coupons/{userId}", &["200", "404"]),
    ("get", "/api/v1/products/{productId}", &["200", "404"]),
    ("get", "/api/v1/products/popular", &["200", "400", "500"]),
    ("post", "/api/v1/orders", &["200", "400", "402", "404", "409", "500"]),
];

/// Every operation: method, path and itself.
fn operations(document: &Value) -> impl Iterator<Item = (&String, &String, &Value)> {
    let paths = document["paths"].as_object().unwrap().iter();
    paths.flat_map(|(path, item)| item.as_object().unwrap().iter().map(move |(method, op)| (method, path, op)))
}

#[test]
fn contract_statuses_have_examples() {
    let document = document();
    for (method, path, statuses) in PAGE {
        let operation = &document["paths"][path][method];
        for status in statuses {
            let response = &operation["responses"][status];
            assert!(response["description"].is_string(), "{method} {path} {status}");
            let content = &response["content"]["application/json"];
            assert!(content["example"] != content["examples"], "{method} {path} {status} has no example");
        }
        if method != "get" {
            assert!(operation["requestBody"]["content"]["application/json"]["example"].is_object());
            assert_eq!(operation["requestBody"]["required"], true);
        }
    }
    let both =
        &document["paths"]["/api/v1/orders"]["post"]["responses"]["409"]["content"]["application/json"]["examples"];
    assert_eq!(both["SOLD_OUT"]["value"]["message"], "해당 상품이 품절되었습니다.");
    assert_eq!(both["INSUFFICIENT_STOCK"]["value"]["message"], "선택한 상품의 재고가 부족합니다.");
}

#[test]
fn schemas_have_bounds_and_patterns() {
    let document = document();
    let schemas = document["components"]["schemas"].as_object().unwrap();
    assert_eq!(schemas["PaymentType"]["enum"], json!(["CARD", "KAKAO_PAY", "TOSS", "BALANCE"]));
    assert_eq!(schemas["UserCouponResponse"]["properties"]["usedAt"]["type"], json!(["string", "null"]));
    assert_eq!(schemas["ChargeRequest"]["properties"]["amount"]["maximum"], 100_000);
    assert_eq!(schemas["ChargeRequest"]["properties"]["amount"]["format"], "int64");
    // Every text that a client may send, but for those of an enumeration, says what it looks like.
    for (name, schema) in schemas.iter().filter(|(name, _)| name.ends_with("Request")) {
        assert_eq!(schema.get("example"), None, "{name}: no field has this part of its example");
        for (field, schema) in schema["properties"].as_object().into_iter().flatten() {
            assert!(schema["type"] != "string" || schema["pattern"].is_string(), "{name}.{field}");
        }
    }
    assert!(!schemas.contains_key("i64"));
}

/// Whether there is a null where a schema or an object of the document has to be.
fn has_null(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.iter().any(has_null),
        Value::Object(fields) => {
            let data = ["example", "examples", "default", "enum", "const", "value"];
            fields.iter().any(|(name, value)| !data.contains(&name.as_str()) && has_null(value))
        }
        _ => false,
    }
}

#[test]
fn document_has_what_client_generators_need() {
    let latin = |name: &str| {
        name.starts_with(|c: char| c.is_ascii_alphabetic()) && name.bytes().all(|byte| byte.is_ascii_alphanumeric())
    };
    for document in [document(), documented(true)] {
        assert!(!has_null(&document), "a null");
        for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
            assert!(latin(name), "{name}");
            let fields = schema.get("properties").map(|fields| fields.as_object().is_some());
            assert!(fields != Some(false), "{name}");
        }
        let clients = for_clients(document.clone());
        for ((method, path, operation), (.., client)) in operations(&document).zip(operations(&clients)) {
            let named = format!("{method} {path}");
            assert!(latin(operation["operationId"].as_str().unwrap()), "{named}");
            let [tag] = operation["tags"].as_array().unwrap().as_slice() else { panic!("{named}") };
            let (_, group, _) = GROUPS.iter().find(|(name, ..)| tag == name).unwrap_or_else(|| panic!("{named}"));
            assert!(latin(group), "{named}");
            assert_eq!((&operation[LATIN_TAGS], &client["tags"]), (&json!([group]), &json!([group])), "{named}");
            let in_path = path.matches('{').count();
            let parameters = operation["parameters"].as_array().into_iter().flatten();
            let mut names: Vec<_> = parameters.map(|one| (one["in"].as_str(), one["name"].as_str())).collect();
            assert_eq!(names.iter().filter(|(place, _)| *place == Some("path")).count(), in_path, "{named}");
            names.sort_unstable();
            assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{named}");
        }
        let tags = |document: &Value| -> Vec<Value> {
            document["tags"].as_array().unwrap().iter().map(|tag| tag["name"].clone()).collect()
        };
        assert_eq!(tags(&document), GROUPS.map(|(name, ..)| json!(name)));
        assert_eq!(tags(&clients), GROUPS.map(|(_, latin, _)| json!(latin)));
    }
}

#[test]
fn admin_bodies_closed_and_patches_not_empty() {
    let document = document();
    let schemas = document["components"]["schemas"].as_object().unwrap();
    let closed = |name: &str| schemas[name].get("additionalProperties") == Some(&json!(false));
    for (method, path, operation) in operations(&document) {
        let Some(name) = references(&operation["requestBody"]).pop() else { continue };
        assert_eq!(closed(&name), path.starts_with("/admin/"), "{name}");
        let minimum = schemas[&name].get("minProperties");
        assert_eq!(minimum, (method == "patch").then_some(&json!(1)), "{name}");
    }
    assert!(closed("ReleaseAllRequest") && !closed("OrderProductRequest") && !closed("ProductResponse"));
}

#[test]
fn document_references_resolve_and_operation_ids_distinct() {
    let document = document();
    let text = document.to_string();
    for reference in text.split("\"$ref\":\"#/components/schemas/").skip(1) {
        let name = reference.split('"').next().unwrap();
        assert!(document["components"]["schemas"].get(name).is_some(), "{name}");
    }
    let mut ids: Vec<_> = operations(&document).map(|(.., op)| op["operationId"].as_str().unwrap()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), operations(&document).count());
}

#[test]
fn document_has_common_errors_of_every_operation() {
    let document = document();
    // A provider's message has a signature of its own, and no key of ours.
    for (method, path, operation) in operations(&document).filter(|(_, path, _)| !path.starts_with("/gateways/")) {
        let has = |status: &str| operation["responses"].get(status).is_some();
        if path.starts_with("/api/") || path.starts_with("/admin/") {
            assert!(has("429") && has("500") && has("503"), "{method} {path}");
        }
        assert_eq!(path.starts_with("/admin/"), has("401"), "{method} {path}");
        assert_eq!(path.starts_with("/admin/"), operation.get("security").is_some(), "{method} {path}");
        let role = roles::needed(&method.to_ascii_uppercase(), path).flatten();
        assert_eq!(role.is_some_and(|role| !Role::Viewer.includes(role)), has("403"), "{method} {path}");
        // A repeated DELETE changes nothing more, so it needs no key; it has no body.
        let writes = !["get", "delete"].contains(&method.as_str());
        assert_eq!(writes, ["408", "409", "413", "415", "422"].into_iter().all(has), "{method} {path}");
        let keyed = operation["parameters"].to_string().contains("Idempotency-Key");
        assert_eq!(writes, keyed, "{method} {path}");
    }
}

#[test]
fn document_has_token_security_when_jwt() {
    let (plain, mut tokens) = (document(), documented(true));
    for code in [Code::InvalidToken, Code::Forbidden] {
        assert!(!plain.to_string().contains(code.as_str()), "{}", code.as_str());
    }
    let mut asking = 0;
    for (path, item) in tokens["paths"].as_object_mut().unwrap() {
        for (method, operation) in item.as_object_mut().unwrap() {
            let named = format!("{method} {path}");
            let users = operation["security"].to_string().contains(USER);
            assert_eq!(users, user::needs_user(path), "{named}");
            if users {
                let responses = operation["responses"].as_object_mut().unwrap();
                assert!(responses.remove("401").is_some() && responses.remove("403").is_some(), "{named}");
                operation.as_object_mut().unwrap().remove("security");
                asking += 1;
            }
        }
    }
    assert_eq!(asking, 10);
    let components = tokens["components"].as_object_mut().unwrap();
    assert!(components["securitySchemes"].as_object_mut().unwrap().remove(USER).is_some());
    let codes = components["schemas"]["ErrorResponse"]["properties"]["errorCode"]["enum"].as_array_mut().unwrap();
    codes.retain(|code| !Code::ALL.iter().any(|row| row.is_of_tokens() && code == row.as_str()));
    assert_eq!(tokens, plain);
}

#[test]
fn documentation_assets_embedded() {
    let config = Arc::new(Config::new([DOCUMENT_PATH]));
    for file in ["index.html", "swagger-ui-bundle.js", "swagger-ui.css", "swagger-initializer.js"] {
        assert_eq!(asset(file, config.clone()).status(), 200, "{file}");
    }
    assert_eq!(asset("../Cargo.toml", config).status(), 404);
}
