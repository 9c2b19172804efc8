//! What was sent to webhooks, and sending it again.

use std::str::FromStr;

use axum::{Json, extract::State};
use chrono_tz::Tz;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::AdminState;
use crate::{
    http::{
        error::{ApiError, Code},
        extract::{
            decode::{optional_parsed, parsed},
            fields::{Bounded, text_field},
            params::{Params, PathId, QueryParams},
            write::{RequestBody, Write},
        },
        openapi::errors::documented_errors,
        reply::{Found, NoContent},
    },
    model::{DeliveryFilter, MAX_SAFE_INTEGER, UserId, WebhookDelivery, WebhookId},
};

/// The documented routes.
pub fn router() -> OpenApiRouter<AdminState> {
    OpenApiRouter::new().routes(routes!(deliveries)).routes(routes!(resend))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct DeliveryParams {
    /// 이 번호보다 앞선 시도만
    #[serde(default, deserialize_with = "optional_parsed")]
    #[param(inline)]
    before: Option<Bounded<1, { MAX_SAFE_INTEGER }>>,
    /// 실패한 시도만
    #[serde(default, deserialize_with = "parsed")]
    #[param(inline, default = false)]
    failed: bool,
    /// 최대 시도 수
    #[serde(default = "default_limit", deserialize_with = "parsed")]
    #[param(inline, default = 20)]
    limit: Bounded<1, 100>,
}

fn default_limit() -> Bounded<1, 100> {
    const { Bounded::constant(20) }
}

impl QueryParams for DeliveryParams {
    fn user(&self) -> Option<UserId> {
        None
    }
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(description = "웹훅 전송 시도")]
pub(super) struct DeliveryResponse {
    /// 시도 번호
    delivery_no: i64,
    /// 이벤트 ID
    #[schema(example = "1-0-42")]
    event_id: String,
    /// 이벤트 종류
    #[schema(example = "order.paid")]
    r#type: String,
    /// 이 이벤트의 몇 번째 시도인지
    attempt: i64,
    /// 시도한 시각
    #[schema(example = "2024-04-04T14:45:00")]
    at: String,
    /// 걸린 시간(밀리초)
    took_ms: i64,
    /// 응답 상태 코드: 응답이 없으면 null
    #[schema(required = true, example = 200)]
    status: Option<u16>,
    /// 실패한 이유: rejected, timeout, unreachable, refused_address. 전송되었으면 null
    #[schema(required = true)]
    failure: Option<String>,
    /// 운영자가 다시 보냈는지 여부
    resent: bool,
}

impl DeliveryResponse {
    pub(super) fn new(delivery: WebhookDelivery, zone: Tz) -> Self {
        DeliveryResponse {
            delivery_no: delivery.no,
            event_id: delivery.event_id,
            r#type: delivery.kind,
            attempt: delivery.attempt,
            at: delivery.at.local(zone),
            took_ms: delivery.took_ms,
            status: delivery.status,
            failure: delivery.failure,
            resent: delivery.manual,
        }
    }
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(description = "웹훅 전송 시도 목록: 최신순")]
struct DeliveriesResponse {
    /// 시도 목록
    content: Vec<DeliveryResponse>,
    /// 더 앞선 시도를 조회할 before 값: 없으면 null
    #[schema(required = true)]
    next: Option<i64>,
}

documented_errors! { DeliveriesErrors {
    "잘못된 요청 (유효하지 않은 조회 조건)" => [InvalidRequest],
    "웹훅을 찾을 수 없음" => [WebhookNotFound],
}}

#[utoipa::path(
    get,
    path = "/admin/v1/webhooks/{webhookId}/deliveries",
    operation_id = "webhookDeliveries",
    tag = "운영",
    summary = "웹훅 전송 기록 조회",
    description = "웹훅으로 보낸 모든 시도를 최신순으로 조회합니다. 기록은 14일 동안 보관합니다.",
    params(("webhookId" = i64, Path, description = "webhookId"), DeliveryParams),
    responses((status = 200, description = "조회 성공", body = DeliveriesResponse), DeliveriesErrors)
)]
async fn deliveries(
    State(admin): State<AdminState>,
    id: PathId<WebhookId>,
    params: Params<DeliveryParams>,
) -> Found<DeliveriesResponse> {
    let id = id.valid()?;
    let DeliveryParams { before, failed, limit } = params.valid()?;
    let filter = DeliveryFilter { before: before.map(Bounded::get), failed, limit: limit.get() };
    let deliveries = admin.webhooks.deliveries(id, filter).await?;
    let is_full = deliveries.len() as i64 == limit.get();
    let next = deliveries.last().map(|delivery| delivery.no).filter(|_| is_full);
    let zone = admin.app.engine.zone();
    let content = deliveries.into_iter().map(|delivery| DeliveryResponse::new(delivery, zone)).collect();
    Ok(Json(DeliveriesResponse { content, next }))
}

/// The id of an event: `epoch-partition-seq`.
#[derive(Debug, Serialize)]
#[serde(transparent)]
struct EventId(String);

impl FromStr for EventId {
    type Err = ();

    fn from_str(id: &str) -> Result<Self, ()> {
        let is_number = |part: &str| (1..=16).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit());
        let is_id = id.split('-').count() == 3 && id.split('-').all(is_number);
        if is_id { Ok(EventId(id.to_owned())) } else { Err(()) }
    }
}

text_field! { EventId, "^[0-9]{1,16}-[0-9]{1,16}-[0-9]{1,16}$" }

#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(description = "웹훅 재전송 요청", example = json!({ "eventId": "1-0-42" }))]
struct ResendRequest {
    /// 이벤트 ID
    event_id: EventId,
}

impl RequestBody for ResendRequest {
    type Valid = String;

    const INVALID: Code = Code::InvalidRequest;

    fn validate(self, _zone: Tz) -> Option<String> {
        let EventId(id) = self.event_id;
        Some(id)
    }

    fn user(_: &Self::Valid) -> Option<UserId> {
        None
    }
}

documented_errors! { ResendErrors {
    "잘못된 요청 (입력값 오류, 유효성 검사 실패)" => [InvalidRequest],
    "웹훅이나 이벤트를 찾을 수 없음" => [WebhookNotFound, EventNotFound],
}}

/// Needs no idempotency key: a repeat sends the same event with the same id.
#[utoipa::path(
    post,
    path = "/admin/v1/webhooks/{webhookId}/resend",
    operation_id = "resendWebhookEvent",
    tag = "운영",
    summary = "웹훅 이벤트 재전송",
    description = "보관된 이벤트를 다른 이벤트와 상관없이 바로 다시 보냅니다. 웹훅이 꺼져 있으면 켜질 때 보냅니다.",
    params(("webhookId" = i64, Path, description = "webhookId")),
    request_body(content = ResendRequest),
    responses((status = 204, description = "재전송 예약 성공"), ResendErrors)
)]
async fn resend(
    State(admin): State<AdminState>,
    id: PathId<WebhookId>,
    Write { body: event_id, .. }: Write<ResendRequest>,
) -> Result<NoContent, ApiError> {
    admin.webhooks.resend(id.valid()?, &event_id).await?;
    Ok(NoContent)
}
