//! Stuck payments: listing them and resolving one.

use axum::{Extension, Json, extract::State};
use chrono_tz::Tz;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::AdminState;
use crate::{
    gateway::reply::TRANSACTION_ID_CHARS,
    http::{
        auth::operator::Operator,
        error::Code,
        extract::{
            decode::not_null,
            fields::Text,
            params::PathId,
            write::{RequestBody, Write},
        },
        openapi::{document::order_status, errors::documented_errors},
        reply::{Answer, Done, Found},
        state::AppState,
    },
    model::{OrderId, OrderStatus, PaymentResolution, PaymentType, ResolvedPayment, StuckPayments, UserId},
};

/// The documented routes.
pub fn router() -> OpenApiRouter<AdminState> {
    OpenApiRouter::new().routes(routes!(stuck_payments)).routes(routes!(resolve_payment))
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(description = "결과가 확인되지 않는 결제 목록: 가장 오래된 100건")]
struct StuckPaymentsResponse {
    /// 결제 목록
    content: Vec<StuckPaymentResponse>,
    /// 전체 건수
    total_elements: i64,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(description = "결과가 확인되지 않는 결제")]
struct StuckPaymentResponse {
    /// 주문 ID
    order_id: i64,
    /// 사용자 ID
    user_id: i64,
    /// 결제 수단
    payment_type: PaymentType,
    /// 금액(원): 주문 금액, 부분 환불을 요청 중이면 그 금액
    amount: i64,
    /// 영수증 번호: 외부 결제의 merchantUid
    receipt: String,
    /// 결제 상태: STARTED(결과 모름), WATCHED(실패한 주문의 늦은 결제 확인), REFUND_DUE(환불 요청 중), UNCONFIRMED(운영자가 승인, 외부 결제 확인 중)
    #[schema(example = "STARTED")]
    payment_status: &'static str,
    /// 이 상태가 된 시각
    #[schema(example = "2024-04-04T14:45:00")]
    since: String,
    /// 다시 물은 횟수
    ask_count: i64,
    /// 외부 결제의 마지막 응답
    #[schema(required = true, example = "HTTP 401 decides nothing")]
    last_answer: Option<String>,
}

impl StuckPaymentsResponse {
    fn new(stuck: StuckPayments, zone: Tz) -> Self {
        let content = stuck.payments.into_iter().map(|payment| StuckPaymentResponse {
            order_id: payment.order_id.get(),
            user_id: payment.user_id.get(),
            payment_type: payment.payment_type,
            amount: payment.amount,
            receipt: payment.receipt,
            payment_status: payment.state,
            since: payment.since.local(zone),
            ask_count: payment.queries,
            last_answer: payment.last_answer,
        });
        StuckPaymentsResponse { content: content.collect(), total_elements: stuck.total }
    }
}

#[utoipa::path(
    get,
    path = "/admin/v1/payments/stuck",
    operation_id = "stuckPayments",
    tag = "운영",
    summary = "결과가 확인되지 않는 결제 조회",
    description = "외부 결제가 5분 넘게 결과를 알려 주지 않는 결제를 오래된 순으로 조회합니다.",
    responses((status = 200, description = "조회 성공", body = StuckPaymentsResponse))
)]
async fn stuck_payments(State(app): State<AppState>) -> Found<StuckPaymentsResponse> {
    Ok(Json(StuckPaymentsResponse::new(app.engine.stuck_payments().await?, app.engine.zone())))
}

/// The outcome of a payment, as an operator knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[schema(as = PaymentOutcome, description = "결제 결과")]
enum ConfirmedOutcome {
    Approved,
    Declined,
}

#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(
    description = "결제 결과 처리 요청",
    example = json!({ "outcome": "APPROVED", "reason": "PG사 관리자 화면에서 승인 확인" }),
)]
struct PaymentOutcomeRequest {
    /// 결제 결과: APPROVED(승인됨) 또는 DECLINED(승인되지 않음)
    outcome: ConfirmedOutcome,
    /// 외부 결제의 거래 번호
    #[serde(default, deserialize_with = "not_null", skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    transaction_id: Option<Text<{ TRANSACTION_ID_CHARS }>>,
    /// 그렇게 판단한 이유: 작업 기록에 남습니다
    reason: Text<500>,
}

impl RequestBody for PaymentOutcomeRequest {
    type Valid = PaymentOutcomeRequest;

    const INVALID: Code = Code::InvalidRequest;

    fn validate(self, _zone: Tz) -> Option<Self> {
        // A declined payment has no transaction.
        (self.outcome == ConfirmedOutcome::Approved || self.transaction_id.is_none()).then_some(self)
    }

    fn user(_: &Self::Valid) -> Option<UserId> {
        None
    }
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(description = "처리된 결제")]
struct PaymentOutcomeResponse {
    /// 주문 ID
    order_id: i64,
    /// 주문 상태: PAID 또는 FAILED
    #[schema(schema_with = order_status)]
    order_status: OrderStatus,
    /// 처리 시각
    #[schema(example = "2024-04-04T14:45:00")]
    resolved_at: String,
}

impl PaymentOutcomeResponse {
    fn new(resolved: ResolvedPayment, zone: Tz) -> Self {
        PaymentOutcomeResponse {
            order_id: resolved.order_id.get(),
            order_status: resolved.status,
            resolved_at: resolved.resolved_at.local(zone),
        }
    }
}

documented_errors! { ResolveErrors {
    "잘못된 요청 (입력값 오류, 유효성 검사 실패)" => [InvalidRequest],
    "주문을 찾을 수 없음" => [OrderNotFound],
    "진행 중인 결제가 없음" => [NoPaymentUnderWay],
}}

#[utoipa::path(
    post,
    path = "/admin/v1/orders/{orderId}/payment-outcome",
    operation_id = "resolvePayment",
    tag = "운영",
    summary = "결과를 알 수 없는 결제 처리",
    description = "외부 결제가 결과를 알려 주지 못하는 결제를 운영자가 확인한 결과로 처리합니다. APPROVED이면 주문이 PAID가 되고, \
                   DECLINED이면 FAILED가 되어 재고와 쿠폰이 되돌아갑니다. 외부 결제에는 계속 확인하며, DECLINED로 처리한 뒤 결제가 확인되면 \
                   외부 결제를 통해 환불합니다.",
    params(("orderId" = i64, Path, description = "orderId")),
    request_body(content = PaymentOutcomeRequest),
    responses((status = 200, description = "처리 성공", body = PaymentOutcomeResponse), ResolveErrors)
)]
async fn resolve_payment(
    State(app): State<AppState>,
    Extension(operator): Extension<Operator>,
    order: PathId<OrderId>,
    Write { call, body }: Write<PaymentOutcomeRequest>,
) -> Done<PaymentOutcomeResponse> {
    let resolution = PaymentResolution {
        approved: body.outcome == ConfirmedOutcome::Approved,
        transaction: body.transaction_id.map(String::from),
        operator: operator.name().to_owned(),
        reason: body.reason.into(),
    };
    let resolved = app.engine.resolve_payment(&call, order.valid()?, &resolution).await?;
    Ok(Answer::ok(resolved.map(|resolved| PaymentOutcomeResponse::new(resolved, app.engine.zone()))))
}
