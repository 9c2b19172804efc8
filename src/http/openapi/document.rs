//! The document: what the handlers describe, completed with what many operations have in common.

use std::collections::{BTreeMap, btree_map::Entry};

use serde_json::{Value, json};
use utoipa::openapi::{
    Components, Header, HeaderBuilder, InfoBuilder, Object, ObjectBuilder, OpenApi, OpenApiBuilder, RefOr, Required,
    Schema, ServerBuilder,
    path::{Operation, ParameterBuilder, ParameterIn, PathItem},
    response::Response,
    schema::{SchemaType, Type},
    security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
    tag::TagBuilder,
};

use super::{errors::failures, fields};
use crate::{
    http::{
        auth::{session, user},
        error::Code,
        headers::{CSRF_HEADER, X_UNKNOWN_FIELDS},
        roles,
    },
    model::{
        CloseReason, CouponStatus, DiscountType, OrderStatus, PaymentType, RankingScope, Role, SaleStatus,
        TransactionType, WebhookStatus,
    },
};

/// The names of the operators' security schemes: a token; or a session's cookie and the header that goes with it.
const BEARER: &str = "bearerAuth";
const SESSION: &str = "opsSession";
const CSRF: &str = "opsPage";
/// The name of the users' security scheme.
pub const USER: &str = "userToken";
/// What references to schemas begin with.
pub(super) const SCHEMAS: &str = "#/components/schemas/";

/// The groups of operations: the tag, the tag in Latin letters, and the description.
pub const GROUPS: [(&str, &str, &str); 7] = [
    ("결제", "Payments", "결제 처리 API"),
    ("잔액", "Balances", "잔액 조회/충전/내역조회 API"),
    ("쿠폰", "Coupons", "쿠폰 조회/발급 API"),
    ("상품", "Products", "상품 조회/인기상품 조회 API"),
    ("주문", "Orders", "주문 API"),
    ("운영", "Operators", "운영자 API: Authorization 헤더에 운영자 토큰이 필요합니다."),
    ("상태", "Health", "서비스 상태 확인 API"),
];
/// An operation's extension: its group in Latin letters. openapi-generator can take it instead of the tags.
pub const LATIN_TAGS: &str = "x-tags";

/// The document without operations.
pub fn base() -> OpenApi {
    let tag = |(name, _, description): (&str, &str, &str)| {
        TagBuilder::new().name(name).description(Some(description)).build()
    };
    let bearer = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some("운영자 토큰 (ADMIN_TOKEN 또는 ADMIN_TOKENS)"));
    let session = ApiKeyValue::with_description(session::COOKIE_NAME, "운영 대시보드(/ops)에 로그인한 세션의 쿠키");
    let page = ApiKeyValue::with_description(CSRF_HEADER.as_str(), "세션 쿠키로 요청할 때 필요한 헤더: 값은 1");
    let mut components = Components::new();
    components.add_security_scheme(BEARER, SecurityScheme::Http(bearer.build()));
    components.add_security_scheme(SESSION, SecurityScheme::ApiKey(ApiKey::Cookie(session)));
    components.add_security_scheme(CSRF, SecurityScheme::ApiKey(ApiKey::Header(page)));
    OpenApiBuilder::new()
        .info(
            InfoBuilder::new().title("E-commerce API").version("v1.0.0").description(Some("이커머스 API 문서")).build(),
        )
        .servers(Some([
            // First: the service is where the document is, behind any name, port and TLS.
            ServerBuilder::new().url("/").description(Some("이 문서를 제공하는 서버")).build(),
            ServerBuilder::new().url("http://localhost:8080").description(Some("Generated server url")).build(),
        ]))
        .tags(Some(GROUPS.map(tag)))
        .components(Some(components))
        .build()
}

/// The envelope of every failure. Its codes are those of the table that can occur.
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

/// The document as served: completes what the handlers describe. `tokens`: users need one.
pub fn complete(mut document: OpenApi, tokens: bool) -> Value {
    for (path, item) in &mut document.paths.paths {
        for (method, operation) in operations(item) {
            fields::merge_defaults(operation);
            let role = roles::needed(method, path).flatten();
            complete_operation(path, operation, role, tokens && user::needs_user(path));
        }
    }
    if let Some(components) = &mut document.components {
        fields::inline(components);
        if tokens {
            let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("JWT");
            let bearer = bearer.description(Some("사용자 토큰: 토큰의 사용자 본인에 대한 요청만 허용됩니다."));
            components.add_security_scheme(USER, SecurityScheme::Http(bearer.build()));
        }
        components.schemas.insert("ErrorResponse".to_owned(), error_schema(tokens));
        components.schemas.extend(enumerations());
    }
    let mut document = serde_json::to_value(document).unwrap_or_default();
    in_table_order(&mut document);
    let strict = strict_schemas(&document);
    let schemas = document["components"]["schemas"].as_object_mut();
    for (name, schema) in schemas.into_iter().flatten().filter(|(name, _)| name.ends_with("Request")) {
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

/// The names of the schemas of operators' bodies, nested ones included, which have no further fields; and whether each is the
/// body of a change, which has at least one field.
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

/// The names of the schemas to which this value refers.
pub fn references(value: &Value) -> Vec<String> {
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

/// Replaces tags by their Latin letters.
fn in_latin_letters(tags: &mut Value) {
    for tag in tags.as_array_mut().into_iter().flatten() {
        if let Some((_, latin, _)) = GROUPS.iter().find(|(name, ..)| tag == name) {
            *tag = (*latin).into();
        }
    }
}

/// The document for generators of clients: its tags have Latin letters, and their Korean names are `x-displayName`.
pub fn for_clients(mut document: Value) -> Value {
    for operation in operations_of(&mut document) {
        in_latin_letters(&mut operation["tags"]);
    }
    document["tags"] = GROUPS
        .iter()
        .map(|(name, latin, description)| json!({ "name": latin, "description": description, "x-displayName": name }))
        .collect();
    document
}

/// Sorts named examples in the order of the table: the page shows the first. (utoipa sorts them by name; serde_json keeps this
/// order only with its feature `preserve_order`.)
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

/// The schemas of the enumerations of the model, by name.
pub(super) fn enumerations() -> Vec<(String, RefOr<Schema>)> {
    vec![
        words("PaymentType", "결제 수단", PaymentType::ALL),
        words("OrderStatus", "주문 상태", OrderStatus::ALL),
        words("SaleStatus", "판매 상태", SaleStatus::ALL),
        words("CloseReason", "주문 종료 사유", CloseReason::ALL),
        words("CouponStatus", "쿠폰 상태", CouponStatus::ALL),
        words("DiscountType", "할인 유형", DiscountType::ALL),
        words("TransactionType", "잔액 변동 유형", TransactionType::ALL),
        words("RankingScope", "랭킹 범위", RankingScope::ALL),
        words("Role", "운영자 역할: 조회(viewer), 판매(operator), 전체(admin)", Role::ALL),
        words("WebhookStatus", "웹훅 상태: 사용(ON), 중지(OFF), 연속 실패로 중지(FAILED)", WebhookStatus::ALL),
    ]
}

/// The schema of an enumeration of the model, with the words of its values.
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

/// The operations of a path, each with its method.
fn operations(item: &mut PathItem) -> impl Iterator<Item = (&'static str, &mut Operation)> {
    let PathItem { get, put, post, patch, delete, .. } = item;
    let all = [("GET", get), ("PUT", put), ("POST", post), ("PATCH", patch), ("DELETE", delete)];
    all.into_iter().filter_map(|(method, operation)| Some((method, operation.as_mut()?)))
}

/// `role`: the one that an operator needs.
fn complete_operation(path: &str, operation: &mut Operation, role: Option<Role>, needs_user: bool) {
    let operators = path.starts_with("/admin/");
    // A provider sends no key of ours.
    let writes = operation.request_body.is_some() && !path.starts_with("/gateways/");
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
        // Any request may have an unknown parameter.
        common.push(("잘못된 요청", &[Code::InvalidRequest]));
        common.push(("운영자 인증 실패", &[Code::Unauthorized]));
        match role {
            Some(Role::Viewer) => {}
            Some(Role::Operator) => {
                common.push(("권한 부족 (operator 또는 admin 역할 필요)", &[Code::InsufficientRole]))
            }
            Some(Role::Admin) | None => common.push(("권한 부족 (admin 역할 필요)", &[Code::InsufficientRole])),
        }
        // The requirement of a scheme without scopes may name roles.
        let roles = || role.map(Role::as_str);
        let none: [&str; 0] = [];
        let session = SecurityRequirement::new(SESSION, roles()).add(CSRF, none);
        operation.security = Some(vec![SecurityRequirement::new(BEARER, roles()), session]);
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

fn add_headers(status: &str, response: &mut Response, writes: bool, public: bool) {
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
