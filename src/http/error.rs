//! The status table: every failure of a request, with its status, its `errorCode` and its Korean message.
//!
//! Owns the table, the row of each [`Error`](crate::model::Error), and the reply of a row. The OpenAPI document takes its
//! examples from the same rows. The [pipeline](super::middleware::pipeline), which knows the request's id, logs failures.

use std::{borrow::Cow, sync::Arc, time::Duration};

use axum::{
    http::{
        HeaderValue, StatusCode,
        header::{CONNECTION, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE},
    },
    response::{IntoResponse, Response},
};
use serde_json::json;

use super::headers::IDEMPOTENT_REPLAYED;
use crate::model::Error;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $status:ident $code:literal $message:literal;)*) => {
        /// A row of the table.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Code { $($(#[$doc])* $name,)* }

        impl Code {
            /// Every row: the contract's first. Several rows of one status and operation have this order.
            pub const ALL: &[Code] = &[$(Code::$name),*];

            /// The HTTP status.
            pub const fn status(self) -> StatusCode {
                match self { $(Code::$name => StatusCode::$status,)* }
            }

            /// The `errorCode`.
            pub const fn as_str(self) -> &'static str {
                match self { $(Code::$name => $code,)* }
            }

            /// The `message`.
            pub const fn message(self) -> &'static str {
                match self { $(Code::$name => $message,)* }
            }

            /// The body of the reply. No text of the table needs escaping (a test checks it).
            const fn body(self) -> &'static str {
                match self {
                    $(Code::$name => concat!("{\"errorCode\":\"", $code, "\",\"message\":\"", $message, "\"}"),)*
                }
            }
        }
    };
}

codes! {
    InvalidPaymentRequest = BAD_REQUEST "INVALID_PAYMENT_REQUEST" "결제 요청 데이터가 유효하지 않습니다.";
    InsufficientBalance = PAYMENT_REQUIRED "INSUFFICIENT_BALANCE" "사용자의 잔액이 부족합니다.";
    OrderNotFound = NOT_FOUND "ORDER_NOT_FOUND" "해당 주문을 찾을 수 없습니다.";
    OrderAlreadyPaid = CONFLICT "ORDER_ALREADY_PAID" "해당 주문은 이미 결제되었습니다.";
    UserNotFound = NOT_FOUND "USER_NOT_FOUND" "해당 사용자를 찾을 수 없습니다.";
    InvalidAmount = BAD_REQUEST "INVALID_AMOUNT" "충전 금액은 1 이상 100,000 이하만 가능합니다.";
    InvalidOrder = BAD_REQUEST "INVALID_ORDER" "주문 요청 데이터가 유효하지 않습니다.";
    InvalidCoupon = BAD_REQUEST "INVALID_COUPON" "해당 쿠폰을 발급할 수 없습니다.";
    CouponOutOfStock = CONFLICT "COUPON_OUT_OF_STOCK" "모든 쿠폰이 발급 완료되었습니다.";
    ProductNotFound = NOT_FOUND "PRODUCT_NOT_FOUND" "해당 상품을 찾을 수 없습니다.";
    InvalidScope = BAD_REQUEST "INVALID_SCOPE" "유효하지 않은 랭킹 범위입니다.";
    SoldOut = CONFLICT "SOLD_OUT" "해당 상품이 품절되었습니다.";
    InsufficientStock = CONFLICT "INSUFFICIENT_STOCK" "선택한 상품의 재고가 부족합니다.";
    Internal = INTERNAL_SERVER_ERROR "INTERNAL_SERVER_ERROR" "서버 내부 오류가 발생했습니다.";
    // Not in the contract.
    NotOnSale = CONFLICT "NOT_ON_SALE" "지금은 판매 중인 상품이 아닙니다.";
    PurchaseLimitExceeded = CONFLICT "PURCHASE_LIMIT_EXCEEDED" "1인당 구매 가능 수량을 초과했습니다.";
    OrderAlreadyClosed = CONFLICT "ORDER_ALREADY_CLOSED" "해당 주문은 이미 종료되었습니다.";
    RefundWindowClosed = CONFLICT "REFUND_WINDOW_CLOSED" "환불 가능 기간이 지났습니다.";
    NoPaymentUnderWay = CONFLICT "NO_PAYMENT_UNDER_WAY" "진행 중인 결제가 없는 주문입니다.";
    OrdersOpen = CONFLICT "ORDERS_OPEN" "진행 중인 주문이 있는 사용자입니다.";
    BalanceLeft = CONFLICT "BALANCE_LEFT" "잔액이 남아 있는 사용자입니다.";
    CouponNotFound = NOT_FOUND "COUPON_NOT_FOUND" "해당 쿠폰을 찾을 수 없습니다.";
    InvalidRequest = BAD_REQUEST "INVALID_REQUEST" "요청 데이터가 유효하지 않습니다.";
    DeadLetterNotFound = NOT_FOUND "DEAD_LETTER_NOT_FOUND" "해당 이벤트를 찾을 수 없습니다.";
    DeadLetterRefused = CONFLICT "DEAD_LETTER_REFUSED" "이벤트를 반영할 수 없습니다.";
    WebhookNotFound = NOT_FOUND "WEBHOOK_NOT_FOUND" "해당 웹훅을 찾을 수 없습니다.";
    EventNotFound = NOT_FOUND "EVENT_NOT_FOUND" "해당 이벤트를 찾을 수 없습니다.";
    TooManyWebhooks = CONFLICT "TOO_MANY_WEBHOOKS" "웹훅을 더 만들 수 없습니다.";
    KeyRotating = CONFLICT "SECRET_ROTATING" "이전 비밀 키가 아직 유효합니다.";
    EventsExpired = GONE "EVENTS_EXPIRED" "보관 기간이 지난 이벤트가 있습니다.";
    EventsOff = CONFLICT "EVENTS_OFF" "이벤트 보관이 꺼져 있습니다.";
    InvalidIdempotencyKey = BAD_REQUEST "INVALID_IDEMPOTENCY_KEY" "멱등성 키가 유효하지 않습니다.";
    IdempotencyKeyReused = UNPROCESSABLE_ENTITY "IDEMPOTENCY_KEY_REUSED" "이미 다른 요청에 사용된 멱등성 키입니다.";
    RequestInProgress = CONFLICT "REQUEST_IN_PROGRESS" "동일한 요청이 아직 처리 중입니다.";
    Unauthorized = UNAUTHORIZED "UNAUTHORIZED" "운영자 인증이 필요합니다.";
    InvalidToken = UNAUTHORIZED "INVALID_TOKEN" "사용자 인증 토큰이 없거나 유효하지 않습니다.";
    InvalidSignature = FORBIDDEN "INVALID_SIGNATURE" "웹훅 서명이 유효하지 않습니다.";
    Forbidden = FORBIDDEN "FORBIDDEN" "다른 사용자를 대신하여 요청할 수 없습니다.";
    InsufficientRole = FORBIDDEN "INSUFFICIENT_ROLE" "이 작업을 할 수 있는 운영자 역할이 아닙니다.";
    NotFound = NOT_FOUND "NOT_FOUND" "요청한 경로를 찾을 수 없습니다.";
    MethodNotAllowed = METHOD_NOT_ALLOWED "METHOD_NOT_ALLOWED" "지원하지 않는 요청 메서드입니다.";
    RequestTimeout = REQUEST_TIMEOUT "REQUEST_TIMEOUT" "요청 본문이 제한 시간 안에 도착하지 않았습니다.";
    PayloadTooLarge = PAYLOAD_TOO_LARGE "PAYLOAD_TOO_LARGE" "요청 본문이 너무 큽니다.";
    UnsupportedMediaType = UNSUPPORTED_MEDIA_TYPE "UNSUPPORTED_MEDIA_TYPE" "지원하지 않는 콘텐츠 형식입니다.";
    TooManyRequests = TOO_MANY_REQUESTS "TOO_MANY_REQUESTS" "요청이 너무 많습니다. 잠시 후 다시 시도해 주세요.";
    Unavailable = SERVICE_UNAVAILABLE "SERVICE_UNAVAILABLE" "서비스를 일시적으로 이용할 수 없습니다. 잠시 후 다시 시도해 주세요.";
}

impl Code {
    /// The row of a bare status, from axum or a layer.
    pub fn of_status(status: StatusCode) -> Code {
        match status {
            StatusCode::UNAUTHORIZED => Code::Unauthorized,
            StatusCode::FORBIDDEN => Code::Forbidden,
            StatusCode::NOT_FOUND => Code::NotFound,
            StatusCode::METHOD_NOT_ALLOWED => Code::MethodNotAllowed,
            StatusCode::REQUEST_TIMEOUT => Code::RequestTimeout,
            StatusCode::PAYLOAD_TOO_LARGE => Code::PayloadTooLarge,
            StatusCode::UNSUPPORTED_MEDIA_TYPE => Code::UnsupportedMediaType,
            StatusCode::TOO_MANY_REQUESTS => Code::TooManyRequests,
            StatusCode::GATEWAY_TIMEOUT | StatusCode::SERVICE_UNAVAILABLE => Code::Unavailable,
            status if status.is_server_error() => Code::Internal,
            _ => Code::InvalidRequest,
        }
    }

    /// The value of `WWW-Authenticate`.
    const fn challenge(self) -> Option<&'static str> {
        match self {
            Code::Unauthorized => Some("Bearer"),
            Code::InvalidToken => Some("Bearer error=\"invalid_token\""),
            _ => None,
        }
    }

    /// Whether the row occurs only if users need tokens.
    pub const fn is_of_tokens(self) -> bool {
        matches!(self, Code::InvalidToken | Code::Forbidden)
    }

    /// The default of `Retry-After`, in seconds.
    const fn retry_after(self) -> Option<u64> {
        match self {
            Code::RequestInProgress | Code::TooManyRequests | Code::Unavailable => Some(1),
            _ => None,
        }
    }
}

impl From<&Error> for Code {
    fn from(error: &Error) -> Code {
        match error {
            Error::InvalidPayment => Code::InvalidPaymentRequest,
            Error::InsufficientBalance | Error::PaymentDeclined { .. } => Code::InsufficientBalance,
            Error::OrderNotFound => Code::OrderNotFound,
            Error::OrderAlreadyPaid => Code::OrderAlreadyPaid,
            Error::OrderAlreadyClosed => Code::OrderAlreadyClosed,
            Error::RefundWindowClosed => Code::RefundWindowClosed,
            Error::NoPaymentUnderWay => Code::NoPaymentUnderWay,
            Error::UserNotFound => Code::UserNotFound,
            Error::OrdersOpen => Code::OrdersOpen,
            Error::BalanceLeft => Code::BalanceLeft,
            Error::InvalidAmount => Code::InvalidAmount,
            Error::InvalidCoupon => Code::InvalidCoupon,
            Error::CampaignNotFound => Code::CouponNotFound,
            Error::CouponOutOfStock => Code::CouponOutOfStock,
            Error::ProductNotFound => Code::ProductNotFound,
            Error::InvalidOrder => Code::InvalidOrder,
            Error::SoldOut => Code::SoldOut,
            Error::InsufficientStock => Code::InsufficientStock,
            Error::NotOnSale => Code::NotOnSale,
            Error::PurchaseLimitExceeded => Code::PurchaseLimitExceeded,
            Error::TooManyOpenOrders => Code::TooManyRequests,
            Error::InvalidRequest(_) => Code::InvalidRequest,
            Error::WebhookNotFound => Code::WebhookNotFound,
            Error::TooManyWebhooks => Code::TooManyWebhooks,
            Error::KeyRotating => Code::KeyRotating,
            Error::EventNotFound => Code::EventNotFound,
            Error::EventsExpired => Code::EventsExpired,
            Error::IdempotencyKeyReused => Code::IdempotencyKeyReused,
            Error::InProgress => Code::RequestInProgress,
            Error::Unavailable { .. } => Code::Unavailable,
            Error::Internal(_) => Code::Internal,
        }
    }
}

/// A failure, ready to be a reply.
#[derive(Debug)]
pub struct ApiError {
    code: Code,
    /// Seconds for `Retry-After`.
    retry_after: Option<u64>,
    replayed: bool,
    cause: Option<Arc<Error>>,
    /// Appended to the row's message.
    reason: Option<String>,
}

/// In the extensions of every reply of a failure: its row, and the cause for the log.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The row.
    pub code: Code,
    /// Not part of the reply. Present for [`Code::Internal`] and [`Code::Unavailable`].
    pub cause: Option<Arc<Error>>,
}

impl ApiError {
    /// The row with a reason, which the reply shows.
    pub fn because(code: Code, reason: &str) -> Self {
        ApiError { reason: Some(reason.to_owned()), ..ApiError::from(code) }
    }

    /// The row of this failure.
    pub fn code(&self) -> Code {
        self.code
    }

    /// Too many requests: the next is admitted after `wait`.
    pub fn too_many(wait: Duration) -> Self {
        ApiError { retry_after: Some(whole_seconds(wait)), ..Code::TooManyRequests.into() }
    }
}

impl From<Code> for ApiError {
    fn from(code: Code) -> Self {
        ApiError { code, retry_after: code.retry_after(), replayed: false, cause: None, reason: None }
    }
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        let mut failed = ApiError::from(Code::from(&error));
        match error {
            Error::PaymentDeclined { replayed } => failed.replayed = replayed,
            Error::Unavailable { retry_after, .. } => {
                failed.retry_after = Some(whole_seconds(retry_after));
                failed.cause = Some(Arc::new(error));
            }
            Error::Internal(_) => failed.cause = Some(Arc::new(error)),
            Error::InvalidRequest(why) => failed.reason = Some(why.to_owned()),
            _ => {}
        }
        failed
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = match &self.reason {
            None => Cow::Borrowed(self.code.body()),
            Some(reason) => {
                let message = format!("{} ({reason})", self.code.message());
                json!({ "errorCode": self.code.as_str(), "message": message }).to_string().into()
            }
        };
        let mut response =
            (self.code.status(), [(CONTENT_TYPE, HeaderValue::from_static("application/json"))], body).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.replayed {
            headers.insert(IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"));
        }
        if let Some(challenge) = self.code.challenge() {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        if self.code == Code::RequestTimeout {
            // The rest of the body is not read.
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response.extensions_mut().insert(Failure { code: self.code, cause: self.cause });
        response
    }
}

/// The handler of paths that do not exist.
pub(crate) async fn not_found() -> ApiError {
    Code::NotFound.into()
}

/// Whole seconds, rounded up, at least one.
fn whole_seconds(duration: Duration) -> u64 {
    let up = u64::from(duration.subsec_nanos() > 0);
    duration.as_secs().saturating_add(up).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The contract's table, copied from it: code, message.
    const CONTRACT: [(&str, &str); 14] = [
        ("INVALID_PAYMENT_REQUEST", "결제 요청 데이터가 유효하지 않습니다."),
        ("INSUFFICIENT_BALANCE", "사용자의 잔액이 부족합니다."),
        ("ORDER_NOT_FOUND", "해당 주문을 찾을 수 없습니다."),
        ("ORDER_ALREADY_PAID", "해당 주문은 이미 결제되었습니다."),
        ("USER_NOT_FOUND", "해당 사용자를 찾을 수 없습니다."),
        ("INVALID_AMOUNT", "충전 금액은 1 이상 100,000 이하만 가능합니다."),
        ("INVALID_COUPON", "해당 쿠폰을 발급할 수 없습니다."),
        ("COUPON_OUT_OF_STOCK", "모든 쿠폰이 발급 완료되었습니다."),
        ("PRODUCT_NOT_FOUND", "해당 상품을 찾을 수 없습니다."),
        ("INVALID_SCOPE", "유효하지 않은 랭킹 범위입니다."),
        ("INVALID_ORDER", "주문 요청 데이터가 유효하지 않습니다."),
        ("SOLD_OUT", "해당 상품이 품절되었습니다."),
        ("INSUFFICIENT_STOCK", "선택한 상품의 재고가 부족합니다."),
        ("INTERNAL_SERVER_ERROR", "서버 내부 오류가 발생했습니다."),
    ];

    #[test]
    fn error_table_matches_contract() {
        for (code, message) in CONTRACT {
            let row = Code::ALL.iter().find(|row| row.as_str() == code).unwrap();
            assert_eq!(row.message(), message, "{code}");
        }
    }

    #[test]
    fn error_body_is_envelope() {
        for code in Code::ALL {
            let body: serde_json::Value = serde_json::from_str(code.body()).unwrap();
            assert_eq!(body, serde_json::json!({ "errorCode": code.as_str(), "message": code.message() }));
        }
    }

    #[test]
    fn error_codes_distinct_and_kept_without_body() {
        let distinct: std::collections::HashSet<_> = Code::ALL.iter().map(|code| code.as_str()).collect();
        assert_eq!(distinct.len(), Code::ALL.len());
        for status in [401, 403, 404, 405, 408, 413, 415, 429, 500, 503] {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(Code::of_status(status).status(), status);
        }
    }

    #[tokio::test]
    async fn error_message_contains_reason() {
        let refused = ApiError::because(Code::DeadLetterRefused, "no \"place\"").into_response();
        let body = http_body_util::BodyExt::collect(refused.into_body()).await.unwrap().to_bytes();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let message = format!("{} (no \"place\")", Code::DeadLetterRefused.message());
        assert_eq!(body, serde_json::json!({ "errorCode": "DEAD_LETTER_REFUSED", "message": message }));
    }

    #[test]
    fn error_headers_carry_retry_after_and_replayed() {
        let retry_after = Duration::from_millis(2_500);
        let unavailable = Error::Unavailable { reason: "Redis".into(), retry_after };
        let response = ApiError::from(unavailable).into_response();
        assert_eq!(response.headers()[RETRY_AFTER], "3");
        assert_eq!(ApiError::from(Error::TooManyOpenOrders).into_response().headers()[RETRY_AFTER], "1");
        assert_eq!(ApiError::from(Error::InProgress).into_response().headers()[RETRY_AFTER], "1");
        for (wait, seconds) in [(0, "1"), (1, "1"), (1_000, "1"), (1_001, "2"), (59_999, "60")] {
            let limited = ApiError::too_many(Duration::from_millis(wait)).into_response();
            assert_eq!((limited.status().as_u16(), &limited.headers()[RETRY_AFTER]), (429, &seconds.parse().unwrap()));
        }
        assert_eq!(ApiError::from(Code::RequestTimeout).into_response().headers()[CONNECTION], "close");

        let declined = ApiError::from(Error::PaymentDeclined { replayed: true }).into_response();
        assert_eq!(declined.status(), 402);
        assert_eq!(declined.headers()[IDEMPOTENT_REPLAYED], "true");
        let declined = ApiError::from(Error::PaymentDeclined { replayed: false }).into_response();
        assert!(!declined.headers().contains_key(IDEMPOTENT_REPLAYED));
    }
}
