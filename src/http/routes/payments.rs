//! 결제: paying an order.

use axum::extract::State;
use chrono_tz::Tz;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    http::{
        error::Code,
        extract::{
            decode::parsed,
            fields::Bounded,
            write::{RequestBody, Write},
        },
        openapi::errors::documented_errors,
        reply::{Answer, Done},
        state::AppState,
    },
    model::{MAX_SAFE_INTEGER, NewPayment, OrderId, OrderStatus, Payment, PaymentType, UserId},
};

/// The documented routes.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(pay))
}

#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(
    description = "결제 요청",
    example = json!({ "orderId": 123, "userId": 1, "paymentType": "CARD", "amount": 49900 }),
)]
pub struct PaymentRequest {
    /// 결제할 주문 ID
    order_id: OrderId,
    /// 주문한 사용자 ID
    user_id: UserId,
    /// 결제 수단
    #[serde(deserialize_with = "parsed")]
    payment_type: PaymentType,
    /// 결제 금액(원): 주문의 finalPrice와 같아야 합니다.
    amount: Bounded<0, { MAX_SAFE_INTEGER }>,
}

impl RequestBody for PaymentRequest {
    type Valid = NewPayment;

    const INVALID: Code = Code::InvalidPaymentRequest;

    fn validate(self, _zone: Tz) -> Option<NewPayment> {
        let PaymentRequest { order_id, user_id, payment_type, amount } = self;
        Some(NewPayment { order_id, user_id, payment_type, amount: amount.get() })
    }

    fn user(payment: &Self::Valid) -> Option<UserId> {
        Some(payment.user_id)
    }
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(description = "결제 결과")]
struct PaymentResponse {
    /// 결제 ID
    payment_id: i64,
    /// 주문 ID
    order_id: i64,
    /// 사용자 ID
    user_id: i64,
    /// 결제 수단
    payment_type: PaymentType,
    /// 결제 금액(원)
    amount: i64,
    /// 결제마다 유일한 영수증 번호
    receipt: String,
    /// 결제 시각
    #[schema(example = "2024-04-04T14:45:00")]
    created_at: String,
    /// 주문 상태
    order_status: OrderStatus,
}

impl PaymentResponse {
    fn new(payment: Payment, zone: Tz) -> Self {
        PaymentResponse {
            payment_id: payment.payment_id.get(),
            order_id: payment.order_id.get(),
            user_id: payment.user_id.get(),
            payment_type: payment.payment_type,
            amount: payment.amount,
            receipt: payment.receipt,
            created_at: payment.paid_at.local(zone),
            order_status: OrderStatus::Paid,
        }
    }
}

documented_errors! { PayErrors {
    "잘못된 요청 (입력값 오류, 유효성 검사 실패)" => [InvalidPaymentRequest],
    "잔액 부족" => [InsufficientBalance],
    "주문을 찾을 수 없음" => [OrderNotFound],
    "이미 결제된 주문" => [OrderAlreadyPaid],
    "서버 오류" => [Internal],
}}

#[utoipa::path(
    post,
    path = "/api/v1/payments",
    tag = "결제",
    summary = "결제 처리",
    description = "주문에 대한 결제를 진행합니다. 사용자가 선택한 결제 방법을 이용하여 주문을 결제하며, 결제 성공 시 주문 상태를 PAID 상태로 변경합니다.\n\n\
프로세스\n\n\
1. orderId를 기반으로 주문 정보 조회\n\
2. 사용자의 결제 수단 및 잔액 확인\n\
3. 결제 진행 (카드, 카카오페이 등 외부 결제 시스템 연동 가능)\n\
4. 결제 성공 시 주문 상태 PAID 상태로 업데이트 (PENDING → PAID)\n\
5. 결제 실패 시 주문 상태 FAILED 상태로 변경 (PENDING → FAILED)",
    request_body(
        content = PaymentRequest,
        example = json!({ "orderId": 123, "userId": 1, "paymentType": "KAKAO_PAY", "amount": 49900 })
    ),
    responses(
        (status = 200, description = "결제 성공", body = PaymentResponse, example = json!({
            "paymentId": 3001, "orderId": 123, "userId": 1, "paymentType": "KAKAO_PAY", "amount": 49900,
            "receipt": "re123-cei123-pt", "createdAt": "2024-04-04T14:45:00", "orderStatus": "PAID"
        })),
        PayErrors,
    )
)]
async fn pay(
    State(app): State<AppState>,
    Write { call, body: payment }: Write<PaymentRequest>,
) -> Done<PaymentResponse> {
    let paid = app.engine.pay_order(&call, payment).await?;
    Ok(Answer::ok(paid.map(|payment| PaymentResponse::new(payment, app.engine.zone()))))
}
