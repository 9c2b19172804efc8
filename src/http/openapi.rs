//! The API page: the OpenAPI document, made of the handlers' own types and the error table, and the Swagger UI that
//! shows it.
//!
//! Handlers say what is theirs (`#[utoipa::path]`, `documented_errors!`); what is common to many (authorisation,
//! idempotency, the failures that any request can meet) is added here, once, by what kind of operation it is.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Router,
    extract::Path,
    http::header::{CONTENT_ENCODING, CONTENT_TYPE},
    response::{IntoResponse, Redirect, Response},
    routing::get,
};
use serde_json::json;
use utoipa::openapi::{
    Components, ContentBuilder, Header, HeaderBuilder, InfoBuilder, ObjectBuilder, OpenApiBuilder, Ref, RefOr,
    Required, ResponseBuilder, Schema, ServerBuilder,
    example::ExampleBuilder,
    path::{Operation, ParameterBuilder, ParameterIn, PathItem},
    response::Response as DocumentedResponse,
    schema::{SchemaType, Type},
    security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
    tag::TagBuilder,
};
use utoipa_swagger_ui::Config;

use super::error::{ApiError, Code};
use crate::domain::Error;

/// Where the document is.
const DOCUMENT_PATH: &str = "/v3/api-docs";
/// Where the page is.
const PAGE_PATH: &str = "/swagger-ui/index.html";
/// The name of the operators' security scheme.
const BEARER: &str = "bearerAuth";
const JSON: &str = "application/json";

/// A unit type for `responses(...)` that documents failures by their rows in the table, by description.
macro_rules! documented_errors {
    ($name:ident { $($description:literal => [$($code:ident),+ $(,)?]),+ $(,)? }) => {
        struct $name;

        impl utoipa::IntoResponses for $name {
            fn responses() -> std::collections::BTreeMap<
                String,
                utoipa::openapi::RefOr<utoipa::openapi::response::Response>,
            > {
                use $crate::http::error::Code;
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
    let tag = |name: &str, description: &str| TagBuilder::new().name(name).description(Some(description)).build();
    let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some("운영자 토큰 (ADMIN_TOKEN)"));
    let mut components = Components::new();
    components.add_security_scheme(BEARER, SecurityScheme::Http(bearer.build()));
    components.schemas.insert("ErrorResponse".to_owned(), error_schema());
    OpenApiBuilder::new()
        .info(
            InfoBuilder::new().title("E-commerce API").version("v1.0.0").description(Some("이커머스 API 문서")).build(),
        )
        .servers(Some([ServerBuilder::new()
            .url("http://localhost:8080")
            .description(Some("Generated server url"))
            .build()]))
        .tags(Some([
            tag("결제", "결제 처리 API"),
            tag("잔액", "잔액 조회/충전/내역조회 API"),
            tag("쿠폰", "쿠폰 조회/발급 API"),
            tag("상품", "상품 조회/인기상품 조회 API"),
            tag("주문", "주문 API"),
            tag("운영", "운영자 API: Authorization 헤더에 운영자 토큰이 필요합니다."),
            tag("상태", "서비스 상태 확인 API"),
        ]))
        .components(Some(components))
        .build()
}

/// The envelope of every failure; its codes are the table's.
fn error_schema() -> RefOr<Schema> {
    let text = || ObjectBuilder::new().schema_type(Type::String);
    let code = text().description(Some("오류 코드")).enum_values(Some(Code::ALL.iter().map(|code| code.as_str())));
    ObjectBuilder::new()
        .schema_type(Type::Object)
        .description(Some("오류 응답"))
        .property("errorCode", code)
        .required("errorCode")
        .property("message", text().description(Some("오류 메시지")))
        .required("message")
        .into()
}

/// Adds what is common to many operations.
pub fn complete(mut document: utoipa::openapi::OpenApi) -> utoipa::openapi::OpenApi {
    for (path, item) in &mut document.paths.paths {
        for operation in operations(item) {
            complete_operation(path, operation);
        }
    }
    for (name, description) in [
        ("PaymentType", "결제 수단"),
        ("OrderStatus", "주문 상태"),
        ("CloseReason", "주문 종료 사유"),
        ("CouponStatus", "쿠폰 상태"),
        ("DiscountType", "할인 유형"),
        ("TransactionType", "잔액 변동 유형"),
        ("RankingScope", "랭킹 범위"),
    ] {
        let schema = document.components.as_mut().and_then(|components| components.schemas.get_mut(name));
        if let Some(RefOr::T(Schema::Object(object))) = schema {
            object.description = Some(description.to_owned());
        }
    }
    document
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [&mut item.get, &mut item.put, &mut item.post, &mut item.patch, &mut item.delete].into_iter().flatten()
}

fn complete_operation(path: &str, operation: &mut Operation) {
    let operators = path.starts_with("/admin/");
    let writes = operation.request_body.is_some();
    let mut common: Vec<(&str, &[Code])> = Vec::new();
    if writes {
        common.push(("잘못된 요청", &[Code::InvalidIdempotencyKey]));
        common.push(("같은 요청이 처리 중", &[Code::RequestInProgress]));
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
        common.push(("운영자 인증 실패", &[Code::Unauthorized]));
        operation.security = Some(vec![SecurityRequirement::new::<_, [&str; 0], &str>(BEARER, [])]);
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
            add_headers(status, response, writes);
        }
    }
}

fn add_headers(status: &str, response: &mut DocumentedResponse, writes: bool) {
    let header = |kind: Type, description: &str| -> RefOr<Header> {
        let schema = ObjectBuilder::new().schema_type(SchemaType::Type(kind)).build();
        RefOr::T(HeaderBuilder::new().schema(Some(schema)).description(Some(description)).build())
    };
    let headers = &mut response.headers;
    headers.insert("x-request-id".to_owned(), header(Type::String, "요청 ID"));
    if matches!(status, "429" | "503") {
        headers.insert("Retry-After".to_owned(), header(Type::Integer, "다시 시도하기까지 기다릴 시간(초)"));
    }
    if writes && matches!(status, "200" | "201" | "402") {
        headers.insert("Idempotent-Replayed".to_owned(), header(Type::String, "멱등성 키로 다시 받은 응답이면 true"));
    }
}

/// Serves the document and the page; the page's assets are in the binary.
pub fn router<S: Clone + Send + Sync + 'static>(document: &utoipa::openapi::OpenApi) -> Router<S> {
    let document: Arc<str> = serde_json::to_string(document).unwrap_or_default().into();
    // Without a validator: the page must not ask the network for anything.
    let config = Arc::new(Config::new([DOCUMENT_PATH]).validator_url("none").use_base_layout());
    Router::new()
        .route(DOCUMENT_PATH, get(async move || ([(CONTENT_TYPE, JSON)], document.to_string())))
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
            let mut response = ([(CONTENT_TYPE, file.content_type)], file.bytes).into_response();
            if file.gzpipped {
                response.headers_mut().insert(CONTENT_ENCODING, axum::http::HeaderValue::from_static("gzip"));
            }
            response
        }
        Ok(None) => ApiError::from(Code::NotFound).into_response(),
        Err(error) => ApiError::from(Error::Internal(anyhow::anyhow!("{error}"))).into_response(),
    }
}
