//! The API page: the OpenAPI document, made of the handlers' own types and the error table, and the Swagger UI that
//! shows it.
//!
//! Handlers say what is theirs (`#[utoipa::path]`, `documented_errors!`); what is common to many (authorisation,
//! idempotency, the failures that any request can meet) is added here, once, by what kind of operation it is.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::Arc,
};

use axum::{
    Router,
    body::Bytes,
    extract::Path,
    http::header::{CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, X_FRAME_OPTIONS},
    response::{IntoResponse, Redirect, Response},
    routing::get,
};
use serde_json::{Value, json};
use utoipa::openapi::{
    Components, ContentBuilder, Header, HeaderBuilder, InfoBuilder, Object, ObjectBuilder, OpenApiBuilder, Ref, RefOr,
    Required, ResponseBuilder, Schema, ServerBuilder,
    example::ExampleBuilder,
    path::{Operation, ParameterBuilder, ParameterIn, PathItem},
    response::Response as DocumentedResponse,
    schema::{SchemaType, Type},
    security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
    tag::TagBuilder,
};
use utoipa_swagger_ui::Config;

use super::{
    auth::{session, user},
    error::{ApiError, Code},
    extract::decode::{PREFIX_PATTERN, TEXT_PATTERN, TIME_PATTERN},
    headers::X_UNKNOWN_FIELDS,
};
use crate::model::{
    CloseReason, CouponStatus, DiscountType, Error, OrderStatus, PaymentType, RankingScope, TransactionType,
};

/// Where the document is.
const DOCUMENT_PATH: &str = "/v3/api-docs";
/// The same for generators of clients, whose classes have names of Latin letters: its tags are those of [`GROUPS`].
const CLIENTS_PATH: &str = "/v3/api-docs/clients";
/// Where the page is.
const PAGE_PATH: &str = "/swagger-ui/index.html";
/// The names of the operators' security schemes: a token; or a browser's session, and the header that goes with it.
const BEARER: &str = "bearerAuth";
const SESSION: &str = "opsSession";
const FROM_PAGE: &str = "opsPage";
/// The name of the users'.
const USER: &str = "userToken";
const JSON: &str = "application/json";
/// Before the name of a schema, where it is referred to.
const SCHEMAS: &str = "#/components/schemas/";
/// May be kept, and is asked for again each time: it changes with the program.
const REVALIDATED: &str = "no-cache";

/// The groups of operations: the page's tag, the same in Latin letters, and what the page says of it.
const GROUPS: [(&str, &str, &str); 7] = [
    ("결제", "Payments", "결제 처리 API"),
    ("잔액", "Balances", "잔액 조회/충전/내역조회 API"),
    ("쿠폰", "Coupons", "쿠폰 조회/발급 API"),
    ("상품", "Products", "상품 조회/인기상품 조회 API"),
    ("주문", "Orders", "주문 API"),
    ("운영", "Operators", "운영자 API: Authorization 헤더에 운영자 토큰이 필요합니다."),
    ("상태", "Health", "서비스 상태 확인 API"),
];
/// Of an operation: its group in Latin letters. openapi-generator takes it instead of the tags where it is told to.
const LATIN_TAGS: &str = "x-tags";

/// A unit type for `responses(...)` that documents failures by their rows in the table, by description.
macro_rules! documented_errors {
    ($name:ident { $($description:literal => [$($code:ident),+ $(,)?]),+ $(,)? }) => {
        struct $name;

        impl utoipa::IntoResponses for $name {
            fn responses() -> std::collections::BTreeMap<
                String,
                utoipa::openapi::RefOr<utoipa::openapi::response::Response>,
            > {
                use crate::http::error::Code;
                $crate::http::openapi::failures(&[$(($description, &[$(Code::$code),+])),+])
            }
        }
    };
}
pub(super) use documented_errors;

/// Responses for rows of the table; the codes of one description share their status.
pub fn failures(rows: &[(&str, &[Code])]) -> BTreeMap<String, RefOr<DocumentedResponse>> {
    let documented = |&(description, codes): &(&str, &[Code])| {
        let status = codes.first().map(|code| code.status().as_str().to_owned())?;
        Some((status, RefOr::T(failure(description, codes))))
    };
    rows.iter().filter_map(documented).collect()
}

/// One code is an example; several are named examples, as on the page.
fn failure(description: &str, codes: &[Code]) -> DocumentedResponse {
    let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("ErrorResponse")));
    let envelope = |code: &Code| json!({ "errorCode": code.as_str(), "message": code.message() });
    let content = match codes {
        [code] => content.example(Some(envelope(code))),
        codes => content.examples_from_iter(codes.iter().map(|code| {
            let example = ExampleBuilder::new().description(code.as_str()).value(Some(envelope(code)));
            (code.as_str(), example.build())
        })),
    };
    ResponseBuilder::new().description(description).content(JSON, content.build()).build()
}

/// What the document says before any resource is added to it.
pub fn base() -> utoipa::openapi::OpenApi {
    let tag = |(name, _, description): (&str, &str, &str)| {
        TagBuilder::new().name(name).description(Some(description)).build()
    };
    let bearer = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some("운영자 토큰 (ADMIN_TOKEN 또는 ADMIN_TOKENS)"));
    let session = ApiKeyValue::with_description(session::COOKIE_NAME, "운영 대시보드(/ops)에 로그인한 세션의 쿠키");
    let page = ApiKeyValue::with_description(
        crate::http::headers::CSRF_HEADER.as_str(),
        "세션 쿠키로 요청할 때 필요한 헤더: 값은 1",
    );
    let mut components = Components::new();
    components.add_security_scheme(BEARER, SecurityScheme::Http(bearer.build()));
    components.add_security_scheme(SESSION, SecurityScheme::ApiKey(ApiKey::Cookie(session)));
    components.add_security_scheme(FROM_PAGE, SecurityScheme::ApiKey(ApiKey::Header(page)));
    OpenApiBuilder::new()
        .info(
            InfoBuilder::new().title("E-commerce API").version("v1.0.0").description(Some("이커머스 API 문서")).build(),
        )
        .servers(Some([
            // First: wherever the document was found, the service is there, behind whatever name, port and TLS.
            ServerBuilder::new().url("/").description(Some("이 문서를 제공하는 서버")).build(),
            ServerBuilder::new().url("http://localhost:8080").description(Some("Generated server url")).build(),
        ]))
        .tags(Some(GROUPS.map(tag)))
        .components(Some(components))
        .build()
}

/// The envelope of every failure; its codes are the table's, without those that can't come.
fn error_schema(tokens: bool) -> RefOr<Schema> {
    let text = || ObjectBuilder::new().schema_type(Type::String);
    let codes = Code::ALL.iter().filter(|code| tokens || !code.is_of_tokens()).map(|code| code.as_str());
    let code = text().description(Some("오류 코드")).enum_values(Some(codes));
    ObjectBuilder::new()
        .schema_type(Type::Object)
        .description(Some("오류 응답"))
        .property("errorCode", code)
        .required("errorCode")
        .property("message", text().description(Some("오류 메시지")))
        .required("message")
        .into()
}

/// The document as served: what the handlers say, and what is common to many of them. `tokens`: users need one.
fn complete(mut document: utoipa::openapi::OpenApi, tokens: bool) -> Value {
    for (path, item) in &mut document.paths.paths {
        for operation in operations(item) {
            complete_operation(path, operation, tokens && user::needs_user(path));
        }
    }
    if let Some(components) = &mut document.components {
        if tokens {
            let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("JWT");
            let bearer = bearer.description(Some("사용자 토큰: 토큰의 사용자 본인에 대한 요청만 허용됩니다."));
            components.add_security_scheme(USER, SecurityScheme::Http(bearer.build()));
        }
        components.schemas.insert("ErrorResponse".to_owned(), error_schema(tokens));
        components.schemas.extend([
            words("PaymentType", "결제 수단", PaymentType::ALL),
            words("OrderStatus", "주문 상태", OrderStatus::ALL),
            words("CloseReason", "주문 종료 사유", CloseReason::ALL),
            words("CouponStatus", "쿠폰 상태", CouponStatus::ALL),
            words("DiscountType", "할인 유형", DiscountType::ALL),
            words("TransactionType", "잔액 변동 유형", TransactionType::ALL),
            words("RankingScope", "랭킹 범위", RankingScope::ALL),
        ]);
    }
    let mut document = serde_json::to_value(document).unwrap_or_default();
    in_table_order(&mut document);
    let strict = strict_schemas(&document);
    let schemas = document["components"]["schemas"].as_object_mut();
    for (name, schema) in schemas.into_iter().flatten().filter(|(name, _)| name.ends_with("Request")) {
        let fields = schema.get_mut("properties").and_then(Value::as_object_mut);
        fields.into_iter().flatten().for_each(|(name, field)| say_what_is_let_in(name, field));
        if let Some(change) = strict.get(name) {
            schema["additionalProperties"] = false.into();
            if *change {
                schema["minProperties"] = 1.into();
            }
        }
    }
    for operation in operations_of(&mut document) {
        operation[LATIN_TAGS] = operation["tags"].clone();
        in_latin_letters(&mut operation[LATIN_TAGS]);
    }
    document
}

/// The schemas of operators' bodies and of what is in them, which have no other fields than these; whether it is that of a
/// change, which changes something.
fn strict_schemas(document: &Value) -> BTreeMap<String, bool> {
    let mut strict = BTreeMap::new();
    let paths = document["paths"].as_object().into_iter().flatten();
    for (_, item) in paths.filter(|(path, _)| path.starts_with("/admin/")) {
        for (method, operation) in item.as_object().into_iter().flatten() {
            let bodies = references(&operation["requestBody"]).into_iter();
            let mut found: Vec<_> = bodies.map(|name| (name, method == "patch")).collect();
            while let Some((name, change)) = found.pop() {
                if let Entry::Vacant(new) = strict.entry(name) {
                    let parts = references(&document["components"]["schemas"][new.key()]).into_iter();
                    found.extend(parts.map(|name| (name, false)));
                    new.insert(change);
                }
            }
        }
    }
    strict
}

/// The names of the schemas that this value refers to.
fn references(value: &Value) -> Vec<String> {
    match value {
        Value::Object(fields) => {
            let own = fields.get("$ref").and_then(Value::as_str).and_then(|to| to.strip_prefix(SCHEMAS));
            own.map(str::to_owned).into_iter().chain(fields.values().flat_map(references)).collect()
        }
        Value::Array(items) => items.iter().flat_map(references).collect(),
        _ => Vec::new(),
    }
}

/// Every operation of the document.
fn operations_of(document: &mut Value) -> impl Iterator<Item = &mut Value> {
    let items = document["paths"].as_object_mut().into_iter().flatten();
    items.flat_map(|(_, item)| item.as_object_mut().into_iter().flatten()).map(|(_, operation)| operation)
}

/// Puts the page's tags into Latin letters.
fn in_latin_letters(tags: &mut Value) {
    for tag in tags.as_array_mut().into_iter().flatten() {
        if let Some((_, latin, _)) = GROUPS.iter().find(|(name, ..)| tag == name) {
            *tag = (*latin).into();
        }
    }
}

/// The document with tags that generators can make names of; what the page calls them is their `x-displayName`.
fn for_clients(mut document: Value) -> Value {
    for operation in operations_of(&mut document) {
        in_latin_letters(&mut operation["tags"]);
    }
    document["tags"] = GROUPS
        .iter()
        .map(|(name, latin, description)| json!({ "name": latin, "description": description, "x-displayName": name }))
        .collect();
    document
}

/// A request's texts and times are let in by their looks, which is said with them: texts have a length, times do not.
fn say_what_is_let_in(name: &str, field: &mut Value) {
    let Value::Object(field) = field else { return };
    if field.get("type") != Some(&json!("string")) || field.contains_key("pattern") {
        return;
    }
    let pattern = match (field.contains_key("maxLength"), field.contains_key("minLength")) {
        (true, true) => TEXT_PATTERN,
        (true, false) => PREFIX_PATTERN,
        (false, _) if name.ends_with("At") => TIME_PATTERN,
        _ => return,
    };
    field.insert("pattern".to_owned(), pattern.into());
}

/// Puts named examples into the order of the table, in which the one that the page shows comes first. (utoipa keeps
/// them by name; serde_json keeps the new order only with its `preserve_order`.)
fn in_table_order(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            if let Some(Value::Object(examples)) = fields.get_mut("examples") {
                let mut ordered = serde_json::Map::new();
                for code in Code::ALL {
                    ordered.extend(examples.remove(code.as_str()).map(|example| (code.as_str().to_owned(), example)));
                }
                ordered.append(examples);
                *examples = ordered;
            }
            fields.values_mut().for_each(in_table_order);
        }
        Value::Array(items) => items.iter_mut().for_each(in_table_order),
        _ => {}
    }
}

/// The schema of an enumeration of the domain, by the words that it really uses.
fn words<T: ToString>(name: &str, description: &str, all: &[T]) -> (String, RefOr<Schema>) {
    let schema = ObjectBuilder::new()
        .schema_type(Type::String)
        .description(Some(description))
        .enum_values(Some(all.iter().map(ToString::to_string)));
    (name.to_owned(), schema.into())
}

/// The schema of `sortBy`.
pub fn ranking_scope() -> Object {
    let words = RankingScope::ALL.iter().map(|scope| scope.as_str());
    let default = RankingScope::ThreeDays.as_str();
    ObjectBuilder::new()
        .schema_type(Type::String)
        .description(Some("랭킹 범위 (대소문자 구분 없음)"))
        .enum_values(Some(words))
        .default(Some(default.into()))
        .build()
}

/// The schema of an order's `status` in a query.
pub fn order_status() -> Object {
    let words = OrderStatus::ALL.iter().map(|status| status.as_str());
    ObjectBuilder::new().schema_type(Type::String).description(Some("주문 상태")).enum_values(Some(words)).build()
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [&mut item.get, &mut item.put, &mut item.post, &mut item.patch, &mut item.delete].into_iter().flatten()
}

fn complete_operation(path: &str, operation: &mut Operation, needs_user: bool) {
    let operators = path.starts_with("/admin/");
    let writes = operation.request_body.is_some();
    let mut common: Vec<(&str, &[Code])> = Vec::new();
    if writes {
        common.push(("잘못된 요청", &[Code::InvalidIdempotencyKey]));
        common.push(("같은 요청이 처리 중", &[Code::RequestInProgress]));
        common.push(("요청 본문이 제한 시간 안에 도착하지 않음", &[Code::RequestTimeout]));
        common.push(("요청 본문이 너무 큼", &[Code::PayloadTooLarge]));
        common.push(("지원하지 않는 콘텐츠 형식", &[Code::UnsupportedMediaType]));
        common.push(("다른 요청에 사용된 멱등성 키", &[Code::IdempotencyKeyReused]));
        let key = ParameterBuilder::new()
            .name("Idempotency-Key")
            .parameter_in(ParameterIn::Header)
            .required(Required::False)
            .description(Some(
                "멱등성 키: 같은 키로 24시간 안에 다시 보낸 요청은 한 번만 처리되고, 첫 응답이 `Idempotent-Replayed: true`와 함께 \
                 그대로 반환됩니다. 형식이 잘못되면 400 `INVALID_IDEMPOTENCY_KEY`, 첫 요청이 처리 중이면 409 \
                 `REQUEST_IN_PROGRESS`, 다른 요청에 쓰인 키이면 422 `IDEMPOTENCY_KEY_REUSED`입니다.",
            ))
            .schema(Some(
                ObjectBuilder::new()
                    .schema_type(Type::String)
                    .min_length(Some(1))
                    .max_length(Some(255))
                    .pattern(Some("^[ -~]+$")),
            ));
        operation.parameters.get_or_insert_default().push(RefOr::T(key.build()));
    }
    if operators {
        // Any may have a parameter that it does not know.
        common.push(("잘못된 요청", &[Code::InvalidRequest]));
        common.push(("운영자 인증 실패", &[Code::Unauthorized]));
        let none: [&str; 0] = [];
        let session = SecurityRequirement::new(SESSION, none).add(FROM_PAGE, none);
        operation.security = Some(vec![SecurityRequirement::new(BEARER, none), session]);
    }
    if needs_user {
        common.push(("사용자 인증 실패", &[Code::InvalidToken]));
        common.push(("다른 사용자에 대한 요청", &[Code::Forbidden]));
        operation.security = Some(vec![SecurityRequirement::new::<_, [&str; 0], &str>(USER, [])]);
    }
    if operators || path.starts_with("/api/") {
        common.push(("요청이 너무 많음", &[Code::TooManyRequests]));
        common.push(("서버 오류", &[Code::Internal]));
        common.push(("일시적으로 이용할 수 없음", &[Code::Unavailable]));
    }
    let responses = &mut operation.responses.responses;
    for (status, response) in failures(&common) {
        responses.entry(status).or_insert(response);
    }
    for (status, response) in responses.iter_mut() {
        if let RefOr::T(response) = response {
            add_headers(status, response, writes, path.starts_with("/api/"));
        }
    }
}

fn add_headers(status: &str, response: &mut DocumentedResponse, writes: bool, public: bool) {
    let header = |kind: Type, description: &str| -> RefOr<Header> {
        let schema = ObjectBuilder::new().schema_type(SchemaType::Type(kind)).build();
        RefOr::T(HeaderBuilder::new().schema(Some(schema)).description(Some(description)).build())
    };
    let headers = &mut response.headers;
    headers.insert("x-request-id".to_owned(), header(Type::String, "요청 ID"));
    if public {
        let description = "알 수 없어 무시한 요청 항목과 조회 조건의 이름: 쉼표로 구분";
        headers.insert(X_UNKNOWN_FIELDS.as_str().to_owned(), header(Type::String, description));
    }
    if matches!(status, "429" | "503") {
        headers.insert("Retry-After".to_owned(), header(Type::Integer, "다시 시도하기까지 기다릴 시간(초)"));
    }
    if writes && matches!(status, "200" | "201" | "402") {
        headers.insert("Idempotent-Replayed".to_owned(), header(Type::String, "멱등성 키로 다시 받은 응답이면 true"));
    }
}

/// Serves the document and the page; the page's assets are in the binary. `tokens`: users need one.
pub fn router<S: Clone + Send + Sync + 'static>(document: utoipa::openapi::OpenApi, tokens: bool) -> Router<S> {
    let document = complete(document, tokens);
    let clients = Bytes::from(for_clients(document.clone()).to_string());
    let document = Bytes::from(document.to_string());
    let json = |document: Bytes| get(async move || ([(CONTENT_TYPE, JSON), (CACHE_CONTROL, REVALIDATED)], document));
    // Without a validator: the page must not ask the network for anything.
    let config = Arc::new(Config::new([DOCUMENT_PATH]).validator_url("none").use_base_layout());
    Router::new()
        .route(DOCUMENT_PATH, json(document))
        .route(CLIENTS_PATH, json(clients))
        .route("/swagger-ui", get(to_page))
        .route("/swagger-ui/", get(to_page))
        .route("/swagger-ui.html", get(to_page))
        .route("/swagger-ui/{*file}", get(async move |Path(file): Path<String>| asset(&file, config)))
}

async fn to_page() -> Redirect {
    Redirect::to(PAGE_PATH)
}

fn asset(file: &str, config: Arc<Config<'static>>) -> Response {
    match utoipa_swagger_ui::serve(file, config) {
        Ok(Some(file)) => {
            let fixed = [(CACHE_CONTROL, REVALIDATED), (X_FRAME_OPTIONS, "DENY")];
            let mut response = ([(CONTENT_TYPE, file.content_type)], fixed, file.bytes).into_response();
            if file.gzpipped {
                response.headers_mut().insert(CONTENT_ENCODING, axum::http::HeaderValue::from_static("gzip"));
            }
            response
        }
        Ok(None) => ApiError::from(Code::NotFound).into_response(),
        Err(error) => ApiError::from(Error::Internal(anyhow::anyhow!("{error}"))).into_response(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use crate::{
        config::LimitsConfig,
        http::{
            auth::{operator::Operators, session::Sessions},
            limits::Limits,
            middleware::operator_log::Notes,
        },
        model::Clock,
    };

    fn document() -> Value {
        documented(false)
    }

    /// As it is where users need tokens, or not.
    fn documented(tokens: bool) -> Value {
        let limits = Arc::new(Limits::new(&LimitsConfig::off()));
        let sessions = Sessions::new(Operators::default(), Clock::system(), false, limits);
        let notes = Notes { log: Arc::default(), clock: Clock::system() };
        let (_, document) = crate::http::router::routes(Arc::new(sessions), notes).split_for_parts();
        complete(document, tokens)
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
    fn document_matches_contract() {
        let document = document();
        assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
        assert_eq!(document["info"]["title"], "E-commerce API");
        assert_eq!(document["info"]["version"], "v1.0.0");
        assert_eq!(document["info"]["description"], "이커머스 API 문서");
        let servers = document["servers"].as_array().unwrap().iter().map(|server| server["url"].as_str().unwrap());
        assert_eq!(servers.collect::<Vec<_>>(), ["/", "http://localhost:8080"]);
        let tags: Vec<_> =
            document["tags"].as_array().unwrap().iter().map(|tag| tag["name"].as_str().unwrap()).collect();
        assert_eq!(tags[..5], ["결제", "잔액", "쿠폰", "상품", "주문"]);
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
    fn document_has_every_schema_of_contract() {
        let document = document();
        let schemas = document["components"]["schemas"].as_object().unwrap();
        for name in [
            "ChargeRequest",
            "UserBalanceResponse",
            "ErrorResponse",
            "PaymentRequest",
            "PaymentResponse",
            "OrderCreateRequest",
            "OrderProductRequest",
            "OrderResponse",
            "UserCouponRequest",
            "CouponIssueResponse",
            "ProductResponse",
            "ProductSalesRankResponse",
            "UserCouponResponse",
            "UserBalanceHistoryResponse",
        ] {
            assert_eq!(schemas[name]["type"], "object", "{name}");
        }
        assert_eq!(schemas["PaymentType"]["enum"], json!(["CARD", "KAKAO_PAY", "TOSS", "BALANCE"]));
        assert_eq!(schemas["UserCouponResponse"]["properties"]["usedAt"]["type"], json!(["string", "null"]));
        assert_eq!(schemas["ChargeRequest"]["properties"]["amount"]["maximum"], 100_000);
        assert_eq!(schemas["ChargeRequest"]["properties"]["amount"]["format"], "int64");
        // Every text that a client may send, but for those of an enumeration, says what it looks like.
        for (name, schema) in schemas.iter().filter(|(name, _)| name.ends_with("Request")) {
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
        for (method, path, operation) in operations(&document) {
            let has = |status: &str| operation["responses"].get(status).is_some();
            if path.starts_with("/api/") || path.starts_with("/admin/") {
                assert!(has("429") && has("500") && has("503"), "{method} {path}");
            }
            assert_eq!(path.starts_with("/admin/"), has("401"), "{method} {path}");
            assert_eq!(path.starts_with("/admin/"), operation.get("security").is_some(), "{method} {path}");
            let writes = method != "get";
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
        assert_eq!(asking, 9);
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
}
