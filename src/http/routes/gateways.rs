//! Messages of payment providers.

use axum::{
    Json,
    extract::{Path, Request, State},
};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    gateway::webhook::{MessageRefused, ProviderMessage},
    http::{
        error::{ApiError, Code},
        extract::write::{Decoding, read},
        openapi::errors::documented_errors,
        reply::Found,
        request_class::RequestClass,
        request_id::RequestId,
        state::AppState,
    },
    model::{AcknowledgedPositions, Call, PaymentType},
};

/// The documented routes.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(receive))
}

/// A message as its provider defines it.
#[derive(ToSchema)]
#[schema(as = GatewayMessage, description = "결제사의 메시지: 형식은 결제사가 정합니다")]
#[allow(dead_code, reason = "the document describes it")]
struct MessageBody {}

#[derive(Debug, Serialize, ToSchema)]
#[schema(description = "웹훅 수신 결과")]
struct HintResponse {
    /// 수신 여부
    received: bool,
}

documented_errors! { HintErrors {
    "읽을 수 없는 메시지" => [InvalidRequest],
    "서명이 유효하지 않거나 오래된 메시지" => [InvalidSignature],
    "웹훅을 받지 않는 결제 수단" => [NotFound],
}}

#[utoipa::path(
    post,
    path = "/gateways/{type}/webhook",
    operation_id = "receiveGatewayWebhook",
    tag = "결제",
    summary = "결제사 웹훅 수신",
    description = "결제사(토스페이먼츠, 포트원)가 결제 상태의 변경을 알립니다. 메시지의 내용은 믿지 않으며, 해당 주문의 결제 상태를 결제사에 다시 조회합니다. \
                   포트원의 메시지는 서명을 검증합니다. 503이면 결제사가 다시 보냅니다.",
    params(("type" = String, Path, description = "결제 수단: CARD, KAKAO_PAY, TOSS", example = "TOSS")),
    request_body(content = MessageBody),
    responses((status = 200, description = "수신함", body = HintResponse), HintErrors)
)]
async fn receive(
    State(app): State<AppState>,
    State(decoding): State<Decoding>,
    Path(payment_type): Path<String>,
    request: Request,
) -> Found<HintResponse> {
    let payment_type: PaymentType = payment_type.to_ascii_uppercase().parse().map_err(|_| Code::NotFound)?;
    let (parts, body) = request.into_parts();
    let class = RequestClass::of(&parts.extensions);
    let body = read(body, &decoding, class).await?.ok_or(Code::InvalidRequest)?;
    let request_id = RequestId::of(&parts.extensions);
    let acknowledged = parts.extensions.get::<AcknowledgedPositions>().cloned().unwrap_or_default();
    let call = Call { request_id, key: None, acknowledged };
    let header = |name: &str| Some(parts.headers.get(name)?.to_str().ok()?.to_owned());
    let webhook = ProviderMessage { body: &body, header: &header, now: app.engine.clock().now() };
    match Box::pin(app.engine.payment_hint(&call, payment_type, &webhook)).await? {
        Ok(()) => Ok(Json(HintResponse { received: true })),
        Err(refused) => {
            tracing::warn!(request_id = call.request_id, gateway = %payment_type, %refused, "a webhook is refused");
            Err(ApiError::from(match refused {
                MessageRefused::NotOffered => Code::NotFound,
                MessageRefused::Unverified(_) => Code::InvalidSignature,
                MessageRefused::Malformed => Code::InvalidRequest,
            }))
        }
    }
}
