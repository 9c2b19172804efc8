//! Webhooks: creating, changing, listing and deleting them.

use std::str::FromStr;

use axum::{Json, extract::State};
use chrono_tz::Tz;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::AdminState;
use crate::{
    http::{
        error::{ApiError, Code},
        extract::{
            decode::not_null,
            fields::{Bounded, Prefix, Text, text_field},
            params::{Params, PathId},
            write::{RequestBody, Write},
        },
        openapi::errors::documented_errors,
        page::{Listed, PageParams, PageResponse},
        reply::{Answer, Done, Found, NoContent},
    },
    model::{NewWebhook, UserId, Webhook, WebhookId, WebhookPatch, WebhookStatus, public_event::EventType},
    webhooks::CreatedWebhook,
};

/// The documented routes.
pub fn router() -> OpenApiRouter<AdminState> {
    OpenApiRouter::new()
        .routes(routes!(webhooks, create))
        .routes(routes!(webhook, update, delete))
        .routes(routes!(rotate))
}

/// The most types that a request names.
const MAX_KINDS: usize = 50;
/// The longest time that two keys are valid: a week, in seconds.
const MAX_KEY_OVERLAP: i64 = 604_800;
const DEFAULT_KEY_OVERLAP: i64 = 86_400;

/// A type of events, or `*` for all.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct WebhookKind(String);

impl FromStr for WebhookKind {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        let is_known = name == "*" || EventType::ALL.iter().any(|kind| kind.as_str() == name);
        if is_known { Ok(WebhookKind(name.to_owned())) } else { Err(()) }
    }
}

text_field! { WebhookKind, r"^(\*|[a-z]+\.[a-z]+)$" }

/// The types of a webhook: none for all.
fn kinds_of(named: Vec<WebhookKind>) -> Option<Vec<String>> {
    let is_all = named.iter().any(|WebhookKind(name)| name == "*");
    if named.is_empty() || named.len() > MAX_KINDS || is_all && named.len() > 1 {
        return None;
    }
    let mut kinds: Vec<String> = named.into_iter().map(|WebhookKind(name)| name).filter(|name| name != "*").collect();
    kinds.sort_unstable();
    kinds.dedup();
    Some(kinds)
}

#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(
    description = "웹훅 생성 요청",
    example = json!({ "url": "https://shop.example.com/hooks", "types": ["order.paid", "order.closed"] }),
)]
struct CreateWebhookRequest {
    /// 받을 주소: https. 공인 주소만 가능합니다
    url: Text<2048>,
    /// 이벤트 종류: 모두 받으려면 ["*"]
    #[schema(min_items = 1, max_items = 50)]
    types: Vec<WebhookKind>,
    /// 설명
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false)]
    description: Option<Prefix<200>>,
}

impl RequestBody for CreateWebhookRequest {
    type Valid = NewWebhook;

    const INVALID: Code = Code::InvalidRequest;

    fn validate(self, _zone: Tz) -> Option<NewWebhook> {
        let description = self.description.map(String::from).unwrap_or_default();
        Some(NewWebhook { url: self.url.into(), kinds: kinds_of(self.types)?, description })
    }

    fn user(_: &Self::Valid) -> Option<UserId> {
        None
    }
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(description = "웹훅")]
struct WebhookResponse {
    /// 웹훅 ID
    webhook_id: i64,
    /// 받을 주소
    url: String,
    /// 이벤트 종류
    types: Vec<String>,
    /// 설명
    description: String,
    /// 상태: 사흘 동안 받지 못하면 FAILED가 되고, 더 보내지 않습니다
    status: WebhookStatus,
    /// 실패가 시작된 시각: 받고 있으면 null
    #[schema(required = true, example = "2024-04-04T14:45:00")]
    failing_since: Option<String>,
    /// 다음에 보낼 수 있는 시각
    #[schema(example = "2024-04-04T14:45:00")]
    next_attempt_at: String,
    /// 다시 보낼 이벤트 수
    retries: i64,
    /// 이전 비밀 키가 유효한 시각: 없으면 null
    #[schema(required = true, example = "2024-04-05T14:45:00")]
    old_secret_until: Option<String>,
    /// 생성 시각
    #[schema(example = "2024-04-04T14:45:00")]
    created_at: String,
    /// 비밀 키: 서명을 확인하는 데 씁니다. 생성할 때만 보여 줍니다
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, example = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")]
    secret: Option<String>,
}

impl WebhookResponse {
    fn new(webhook: Webhook, zone: Tz) -> Self {
        let types = if webhook.kinds.is_empty() { vec!["*".to_owned()] } else { webhook.kinds };
        WebhookResponse {
            webhook_id: webhook.id.get(),
            url: webhook.url,
            types,
            description: webhook.description,
            status: webhook.status,
            failing_since: webhook.failing_since.map(|at| at.local(zone)),
            next_attempt_at: webhook.next_at.local(zone),
            retries: webhook.retries,
            old_secret_until: webhook.old_key_until.map(|at| at.local(zone)),
            created_at: webhook.created_at.local(zone),
            secret: None,
        }
    }
}

documented_errors! { CreateWebhookErrors {
    "잘못된 요청 (입력값 오류, 유효성 검사 실패, 받을 수 없는 주소)" => [InvalidRequest],
    "이벤트 보관이 꺼져 있거나 웹훅이 너무 많음" => [EventsOff, TooManyWebhooks],
}}

#[utoipa::path(
    post,
    path = "/admin/v1/webhooks",
    operation_id = "createWebhook",
    tag = "운영",
    summary = "웹훅 생성",
    description = "지금부터 결정되는 이벤트를 받을 주소를 등록합니다. 요청은 Standard Webhooks 규격으로 서명됩니다. 응답의 secret은 다시 \
        조회할 수 없습니다.",
    request_body(content = CreateWebhookRequest),
    responses((status = 201, description = "웹훅 생성 성공", body = WebhookResponse), CreateWebhookErrors)
)]
async fn create(
    State(admin): State<AdminState>,
    Write { call, body: new }: Write<CreateWebhookRequest>,
) -> Done<WebhookResponse> {
    if !admin.projector.keeps_events() {
        return Err(Code::EventsOff.into());
    }
    let created = admin.webhooks.create(&call, new).await?;
    let (zone, id) = (admin.app.engine.zone(), created.value.webhook.id.get());
    let response = |CreatedWebhook { webhook, key }: CreatedWebhook| WebhookResponse {
        secret: Some(key),
        ..WebhookResponse::new(webhook, zone)
    };
    Ok(Answer::created(created.map(response)).naming("webhookId", id))
}

type WebhookPageResponse = PageResponse<WebhookResponse>;

impl Listed for WebhookResponse {
    const PAGE: &str = "WebhookPageResponse";
    const DESCRIPTION: &str = "웹훅의 한 페이지";
    const CONTENT: &str = "웹훅 목록";
    const TOTAL: &str = "전체 웹훅 수";
}

documented_errors! { WebhooksErrors {
    "잘못된 요청 (유효하지 않은 조회 조건)" => [InvalidRequest],
}}

#[utoipa::path(
    get,
    path = "/admin/v1/webhooks",
    operation_id = "webhooks",
    tag = "운영",
    summary = "웹훅 목록 조회",
    description = "웹훅을 생성된 순서로 조회합니다.",
    params(PageParams),
    responses((status = 200, description = "조회 성공", body = WebhookPageResponse), WebhooksErrors)
)]
async fn webhooks(State(admin): State<AdminState>, page: Params<PageParams>) -> Found<WebhookPageResponse> {
    let PageParams { page, size } = page.valid()?;
    let (webhooks, zone) = (admin.webhooks.page(page.get(), size.get()).await?, admin.app.engine.zone());
    Ok(Json(PageResponse::new(webhooks, |webhook| WebhookResponse::new(webhook, zone))))
}

documented_errors! { WebhookErrors {
    "웹훅을 찾을 수 없음" => [WebhookNotFound],
}}

#[utoipa::path(
    get,
    path = "/admin/v1/webhooks/{webhookId}",
    operation_id = "webhook",
    tag = "운영",
    summary = "웹훅 조회",
    description = "웹훅과 그 상태를 조회합니다.",
    params(("webhookId" = i64, Path, description = "webhookId")),
    responses((status = 200, description = "조회 성공", body = WebhookResponse), WebhookErrors)
)]
async fn webhook(State(admin): State<AdminState>, id: PathId<WebhookId>) -> Found<WebhookResponse> {
    let webhook = admin.webhooks.find(id.valid()?).await?;
    Ok(Json(WebhookResponse::new(webhook, admin.app.engine.zone())))
}

#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(
    description = "웹훅 변경 요청: 보내지 않은 항목은 그대로 둡니다.",
    example = json!({ "types": ["order.paid"], "enabled": true }),
)]
struct UpdateWebhookRequest {
    /// 받을 주소
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false)]
    url: Option<Text<2048>>,
    /// 이벤트 종류
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false, min_items = 1, max_items = 50)]
    types: Option<Vec<WebhookKind>>,
    /// 설명
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false)]
    description: Option<Prefix<200>>,
    /// 보낼지 여부: 다시 켜면 멈춘 곳부터 보냅니다
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false)]
    enabled: Option<bool>,
}

impl RequestBody for UpdateWebhookRequest {
    type Valid = WebhookPatch;

    const INVALID: Code = Code::InvalidRequest;

    fn changes_nothing(&self) -> bool {
        self.url.is_none() && self.types.is_none() && self.description.is_none() && self.enabled.is_none()
    }

    fn validate(self, _zone: Tz) -> Option<WebhookPatch> {
        let kinds = match self.types {
            Some(types) => Some(kinds_of(types)?),
            None => None,
        };
        let description = self.description.map(String::from);
        Some(WebhookPatch { url: self.url.map(String::from), kinds, description, enabled: self.enabled })
    }

    fn user(_: &Self::Valid) -> Option<UserId> {
        None
    }
}

documented_errors! { UpdateWebhookErrors {
    "잘못된 요청 (입력값 오류, 유효성 검사 실패, 받을 수 없는 주소)" => [InvalidRequest],
    "웹훅을 찾을 수 없음" => [WebhookNotFound],
}}

#[utoipa::path(
    patch,
    path = "/admin/v1/webhooks/{webhookId}",
    operation_id = "updateWebhook",
    tag = "운영",
    summary = "웹훅 변경",
    description = "웹훅의 주소, 이벤트 종류, 설명을 바꾸거나 켜고 끕니다. FAILED인 웹훅을 다시 켜면 남은 이벤트를 이어서 보냅니다.",
    params(("webhookId" = i64, Path, description = "webhookId")),
    request_body(content = UpdateWebhookRequest),
    responses((status = 200, description = "웹훅 변경 성공", body = WebhookResponse), UpdateWebhookErrors)
)]
async fn update(
    State(admin): State<AdminState>,
    id: PathId<WebhookId>,
    Write { body: patch, .. }: Write<UpdateWebhookRequest>,
) -> Found<WebhookResponse> {
    let webhook = admin.webhooks.update(id.valid()?, &patch).await?;
    Ok(Json(WebhookResponse::new(webhook, admin.app.engine.zone())))
}

#[utoipa::path(
    delete,
    path = "/admin/v1/webhooks/{webhookId}",
    operation_id = "deleteWebhook",
    tag = "운영",
    summary = "웹훅 삭제",
    description = "웹훅을 삭제합니다. 남은 이벤트는 보내지 않습니다.",
    params(("webhookId" = i64, Path, description = "webhookId")),
    responses((status = 204, description = "삭제 성공"), WebhookErrors)
)]
async fn delete(State(admin): State<AdminState>, id: PathId<WebhookId>) -> Result<NoContent, ApiError> {
    admin.webhooks.delete(id.valid()?).await?;
    Ok(NoContent)
}

#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(description = "웹훅 비밀 키 교체 요청", example = json!({ "validSeconds": 86400 }))]
struct RotateSecretRequest {
    /// 이전 비밀 키가 유효한 시간(초): 그동안 두 키로 서명합니다. 0이면 바로 무효가 됩니다
    #[serde(default = "default_overlap")]
    #[schema(default = 86400)]
    valid_seconds: Bounded<0, { MAX_KEY_OVERLAP }>,
}

fn default_overlap() -> Bounded<0, { MAX_KEY_OVERLAP }> {
    const { Bounded::constant(DEFAULT_KEY_OVERLAP) }
}

impl RequestBody for RotateSecretRequest {
    /// Milliseconds.
    type Valid = i64;

    const INVALID: Code = Code::InvalidRequest;

    fn validate(self, _zone: Tz) -> Option<i64> {
        Some(self.valid_seconds.get() * 1000)
    }

    fn user(_: &Self::Valid) -> Option<UserId> {
        None
    }
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(description = "교체된 웹훅 비밀 키")]
struct RotatedSecretResponse {
    /// 새 비밀 키: 다시 보여 주지 않습니다
    #[schema(example = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")]
    secret: String,
    /// 이전 비밀 키가 유효한 시각
    #[schema(required = true, example = "2024-04-05T14:45:00")]
    old_secret_until: Option<String>,
}

documented_errors! { RotateErrors {
    "잘못된 요청 (입력값 오류, 유효성 검사 실패)" => [InvalidRequest],
    "웹훅을 찾을 수 없음" => [WebhookNotFound],
    "이전 비밀 키가 아직 유효함" => [KeyRotating],
}}

#[utoipa::path(
    post,
    path = "/admin/v1/webhooks/{webhookId}/rotate",
    operation_id = "rotateWebhookSecret",
    tag = "운영",
    summary = "웹훅 비밀 키 교체",
    description = "새 비밀 키를 만듭니다. 이전 키는 정한 시간 동안 함께 유효하며, 그동안은 validSeconds가 0인 교체만 다시 할 수 있습니다.",
    params(("webhookId" = i64, Path, description = "webhookId")),
    request_body(content = RotateSecretRequest),
    responses((status = 200, description = "교체 성공", body = RotatedSecretResponse), RotateErrors)
)]
async fn rotate(
    State(admin): State<AdminState>,
    id: PathId<WebhookId>,
    Write { call, body: valid_ms }: Write<RotateSecretRequest>,
) -> Done<RotatedSecretResponse> {
    let rotated = admin.webhooks.rotate(&call, id.valid()?, valid_ms).await?;
    let zone = admin.app.engine.zone();
    Ok(Answer::ok(rotated.map(|rotated| RotatedSecretResponse {
        secret: rotated.key,
        old_secret_until: rotated.old_key_until.map(|at| at.local(zone)),
    })))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn types_of_webhook_named_or_all() {
        let kinds = |types: Value| {
            let body = json!({ "url": "https://shop.example.com", "types": types });
            let request: CreateWebhookRequest = serde_json::from_value(body).ok()?;
            request.validate(chrono_tz::UTC).map(|new| new.kinds)
        };
        assert_eq!(kinds(json!(["*"])), Some(Vec::new()));
        let named = json!(["order.paid", "order.closed", "order.paid"]);
        assert_eq!(kinds(named), Some(vec!["order.closed".to_owned(), "order.paid".to_owned()]));
        for hostile in [
            json!([]),
            json!(["*", "order.paid"]),
            json!(["order.lost"]),
            json!([""]),
            json!("*"),
            json!(null),
            json!(vec!["order.paid"; 51]),
        ] {
            assert!(kinds(hostile.clone()).is_none(), "{hostile}");
        }
    }
}
