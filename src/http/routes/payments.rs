//! 결제: paying an order.

use axum::extract::State;
use chrono_tz::Tz;
use reqwest::Url;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    http::{
        error::Code,
        extract::{
            decode::{not_null, parsed},
            fields::{Bounded, Text},
            write::{RequestBody, Write},
        },
        openapi::errors::documented_errors,
        reply::{Answer, Done},
        state::AppState,
    },
    model::{
        MAX_SAFE_INTEGER, NewPayment, OrderId, OrderStatus, Payment, PaymentToPrepare, PaymentType, Preparation, UserId,
    },
};

/// The documented routes.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(pay)).routes(routes!(prepare))
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
    /// 결제사가 결제 페이지에서 돌려준 값: 토스페이먼츠의 paymentKey, 카카오페이의 pg_token, 포트원의 paymentId. 그 외의 결제에는 필요하지 않습니다.
    #[serde(default, deserialize_with = "not_null", skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    gateway_token: Option<Text<{ MAX_TOKEN_CHARS }>>,
}

/// The maximum length of a provider's token.
const MAX_TOKEN_CHARS: usize = 255;

impl RequestBody for PaymentRequest {
    type Valid = (NewPayment, Option<String>);

    const INVALID: Code = Code::InvalidPaymentRequest;

    fn validate(self, _zone: Tz) -> Option<Self::Valid> {
        let PaymentRequest { order_id, user_id, payment_type, amount, gateway_token } = self;
        let payment = NewPayment { order_id, user_id, payment_type, amount: amount.get() };
        Some((payment, gateway_token.map(String::from)))
    }

    fn user((payment, _): &Self::Valid) -> Option<UserId> {
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
    Write { call, body: (payment, token) }: Write<PaymentRequest>,
) -> Done<PaymentResponse> {
    let paid = app.engine.pay_order(&call, payment, token.as_deref()).await?;
    Ok(Answer::ok(paid.map(|payment| PaymentResponse::new(payment, app.engine.zone()))))
}

/// The maximum length of the URL to return to: KakaoPay takes 255 characters, of which the result needs some.
const MAX_RETURN_URL_CHARS: usize = 230;

#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(
    description = "결제 준비 요청",
    example = json!({ "orderId": 123, "userId": 1, "paymentType": "KAKAO_PAY", "returnUrl": "https://shop.example/paid" }),
)]
pub struct PaymentPrepareRequest {
    /// 결제할 주문 ID
    order_id: OrderId,
    /// 주문한 사용자 ID
    user_id: UserId,
    /// 결제 수단
    #[serde(deserialize_with = "parsed")]
    payment_type: PaymentType,
    /// 결제 페이지에서 돌아올 http 또는 https 주소
    return_url: Text<{ MAX_RETURN_URL_CHARS }>,
}

impl RequestBody for PaymentPrepareRequest {
    type Valid = PaymentToPrepare;

    const INVALID: Code = Code::InvalidPaymentRequest;

    fn validate(self, _zone: Tz) -> Option<PaymentToPrepare> {
        let PaymentPrepareRequest { order_id, user_id, payment_type, return_url } = self;
        let return_url = String::from(return_url);
        let url = Url::parse(&return_url).ok()?;
        let is_plain =
            matches!(url.scheme(), "http" | "https") && url.username().is_empty() && url.password().is_none();
        is_plain.then_some(PaymentToPrepare { order_id, user_id, payment_type, return_url })
    }

    fn user(payment: &Self::Valid) -> Option<UserId> {
        Some(payment.user_id)
    }
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(description = "준비된 결제")]
struct PaymentPrepareResponse {
    /// 주문 ID
    order_id: i64,
    /// 결제 수단
    payment_type: PaymentType,
    /// 결제사에서 쓰는 주문 번호: 토스페이먼츠의 orderId, 포트원의 paymentId
    #[schema(example = "5f2c9a0b1d3e-123")]
    merchant_order_id: String,
    /// 결제 페이지에 보이는 주문 이름
    #[schema(example = "러닝화 외 1건")]
    order_name: String,
    /// 결제 금액(원)
    amount: i64,
    /// 결제를 승인할 PC 페이지: 결제사가 요구하는 경우(카카오페이)
    #[serde(skip_serializing_if = "Option::is_none")]
    redirect_url: Option<String>,
    /// 모바일 웹 페이지
    #[serde(skip_serializing_if = "Option::is_none")]
    redirect_mobile_url: Option<String>,
    /// 모바일 앱 페이지
    #[serde(skip_serializing_if = "Option::is_none")]
    redirect_app_url: Option<String>,
}

impl PaymentPrepareResponse {
    fn new(order_id: OrderId, payment_type: PaymentType, prepared: Preparation) -> Self {
        PaymentPrepareResponse {
            order_id: order_id.get(),
            payment_type,
            merchant_order_id: prepared.merchant_order_id,
            order_name: prepared.order_name,
            amount: prepared.amount,
            redirect_url: prepared.redirect_url,
            redirect_mobile_url: prepared.redirect_mobile_url,
            redirect_app_url: prepared.redirect_app_url,
        }
    }
}

documented_errors! { PrepareErrors {
    "잘못된 요청 (입력값 오류, 종료된 주문, 외부 결제가 아닌 결제 수단)" => [InvalidPaymentRequest],
    "주문을 찾을 수 없음" => [OrderNotFound],
    "이미 결제된 주문" => [OrderAlreadyPaid],
    "서버 오류" => [Internal],
}}

#[utoipa::path(
    post,
    path = "/api/v1/payments/prepare",
    operation_id = "preparePayment",
    tag = "결제",
    summary = "결제 준비",
    description = "결제사의 결제 페이지를 열기 전에 결제를 준비합니다. 아직 결제되지 않으며, 다시 준비하면 마지막 준비만 유효합니다.\n\n\
카카오페이는 redirectUrl로 이동하고, 토스페이먼츠와 포트원은 merchantOrderId와 amount로 결제창을 엽니다. 결제 페이지에서 돌아온 뒤 \
POST /api/v1/payments에 gatewayToken을 보내면 결제됩니다.",
    request_body(
        content = PaymentPrepareRequest,
        example = json!({ "orderId": 123, "userId": 1, "paymentType": "KAKAO_PAY", "returnUrl": "https://shop.example/paid" })
    ),
    responses((status = 200, description = "준비 성공", body = PaymentPrepareResponse), PrepareErrors)
)]
async fn prepare(
    State(app): State<AppState>,
    Write { call, body: payment }: Write<PaymentPrepareRequest>,
) -> Done<PaymentPrepareResponse> {
    let prepared = Box::pin(app.engine.prepare_payment(&call, &payment)).await?;
    let reply = |prepared| PaymentPrepareResponse::new(payment.order_id, payment.payment_type, prepared);
    Ok(Answer::ok(prepared.map(reply)))
}
