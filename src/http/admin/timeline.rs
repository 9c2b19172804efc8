//! The timeline of a user or an order: the current state and the events that led to it.

use axum::{Json, extract::State};
use chrono_tz::Tz;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{AdminState, dead_letters::DeadLetterResponse};
use crate::{
    http::{
        extract::params::PathId,
        openapi::errors::documented_errors,
        reply::Found,
        routes::{balances::UserBalanceHistoryResponse, coupons::UserCouponResponse, orders::OrderDetailResponse},
        state::AppState,
    },
    model::{
        Balance, CloseReason, Millis, OrderId, OrderLine, OrderStatus, OrderTimeline, OrderTrace, PaymentTrace,
        RefundTrace, UserId, UserTimeline,
    },
};

/// The documented routes.
pub fn router() -> OpenApiRouter<AdminState> {
    OpenApiRouter::new().routes(routes!(user)).routes(routes!(user_timeline)).routes(routes!(order_timeline))
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(description = "사용자")]
struct UserResponse {
    /// 사용자 ID
    user_id: i64,
    /// 사용자 이름
    user_name: String,
    /// 잔액(원)
    balance: i64,
}

impl From<Balance> for UserResponse {
    fn from(user: Balance) -> Self {
        UserResponse { user_id: user.user_id.get(), user_name: user.user_name, balance: user.balance }
    }
}

documented_errors! { UserErrors {
    "사용자를 찾을 수 없음" => [UserNotFound],
}}

#[utoipa::path(
    get,
    path = "/admin/v1/users/{userId}",
    operation_id = "user",
    tag = "운영",
    summary = "사용자 조회",
    description = "사용자의 이름과 현재 잔액을 조회합니다.",
    params(("userId" = i64, Path, description = "userId")),
    responses((status = 200, description = "사용자 조회 성공", body = UserResponse), UserErrors)
)]
async fn user(State(app): State<AppState>, user: PathId<UserId>) -> Found<UserResponse> {
    Ok(Json(app.engine.balance(user.valid()?).await?.into()))
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(description = "사용자의 이력: 데이터베이스를 이용할 수 없으면 잔액 내역, 주문, 보관된 이벤트는 null입니다.")]
struct UserTimelineResponse {
    /// 사용자와 현재 잔액
    user: UserResponse,
    /// 보유 쿠폰: 최근 100장
    coupons: Vec<UserCouponResponse>,
    /// 보유 쿠폰 수
    coupons_in_all: i64,
    /// 최근 잔액 내역 20건
    #[schema(required = true)]
    entries: Option<Vec<UserBalanceHistoryResponse>>,
    /// 결제 대기(PENDING) 주문: 최근 20건
    #[schema(required = true)]
    open_orders: Option<Vec<OrderDetailResponse>>,
    /// 결제 대기(PENDING) 주문 수
    #[schema(required = true)]
    open_orders_in_all: Option<i64>,
    /// 최근 주문 20건
    #[schema(required = true)]
    orders: Option<Vec<OrderDetailResponse>>,
    /// 전체 주문 수
    #[schema(required = true)]
    orders_in_all: Option<i64>,
    /// 반영할 수 없어 따로 보관된 이벤트: 최대 20건
    #[schema(required = true)]
    dead_letters: Option<Vec<DeadLetterResponse>>,
}

impl UserTimelineResponse {
    fn new(timeline: UserTimeline, zone: Tz) -> Self {
        let orders = |orders: Vec<_>| orders.into_iter().map(|order| OrderDetailResponse::new(order, zone)).collect();
        let mut shown = UserTimelineResponse {
            user: timeline.balance.into(),
            coupons: timeline.coupons.into_iter().map(|coupon| UserCouponResponse::new(coupon, zone)).collect(),
            coupons_in_all: timeline.coupons_in_all,
            entries: None,
            open_orders: None,
            open_orders_in_all: None,
            orders: None,
            orders_in_all: None,
            dead_letters: None,
        };
        if let Some(written) = timeline.written {
            let entry = |entry| UserBalanceHistoryResponse::new(entry, zone);
            shown.entries = Some(written.entries.into_iter().map(entry).collect());
            shown.open_orders_in_all = Some(written.open.total);
            shown.open_orders = Some(orders(written.open.items));
            shown.orders_in_all = Some(written.last.total);
            shown.orders = Some(orders(written.last.items));
            let dead_letters = written.dead_letters.into_iter();
            shown.dead_letters = Some(dead_letters.map(|letter| DeadLetterResponse::new(letter, zone)).collect());
        }
        shown
    }
}

#[utoipa::path(
    get,
    path = "/admin/v1/users/{userId}/timeline",
    operation_id = "userTimeline",
    tag = "운영",
    summary = "사용자 이력 조회",
    description = "사용자의 현재 잔액과 쿠폰, 최근 잔액 내역과 주문을 한 번에 조회합니다.",
    params(("userId" = i64, Path, description = "userId")),
    responses((status = 200, description = "이력 조회 성공", body = UserTimelineResponse), UserErrors)
)]
async fn user_timeline(State(app): State<AppState>, user: PathId<UserId>) -> Found<UserTimelineResponse> {
    let timeline = app.engine.user_timeline(user.valid()?).await?;
    Ok(Json(UserTimelineResponse::new(timeline, app.engine.zone())))
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(description = "주문의 이력: 데이터베이스를 이용할 수 없거나 아직 반영되지 않았으면 그 부분은 null입니다.")]
struct OrderTimelineResponse {
    /// 현재 주문
    order: OrderDetailResponse,
    /// Redis의 주문 상태: 종료 후 Redis를 떠났으면 null
    #[schema(required = true)]
    redis_status: Option<OrderStatus>,
    /// 데이터베이스의 주문 상태
    #[schema(required = true)]
    postgres_status: Option<String>,
    /// 결제
    #[schema(required = true)]
    payment: Option<PaymentTimelineResponse>,
    /// 부분 환불: 최근 100건
    #[schema(required = true)]
    refunds: Option<Vec<RefundTimelineResponse>>,
    /// 일어난 일: 시간순
    events: Vec<TimelineEventResponse>,
    /// 반영할 수 없어 따로 보관된 이벤트: 최대 20건
    #[schema(required = true)]
    dead_letters: Option<Vec<DeadLetterResponse>>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(description = "주문의 결제")]
struct PaymentTimelineResponse {
    /// 결제 ID
    payment_id: i64,
    /// 결제 수단
    payment_type: String,
    /// 결제 방법: BALANCE(잔액) 또는 GATEWAY(외부 결제)
    method: String,
    /// 결제 상태
    #[schema(example = "PAID")]
    status: String,
    /// 결제 금액(원)
    amount: i64,
    /// 영수증 번호
    receipt: String,
    /// 외부 결제의 거래 번호
    #[schema(required = true)]
    transaction_id: Option<String>,
    /// 결과를 알 수 없어 운영자가 처리했으면 그 운영자
    #[schema(required = true)]
    resolved_by: Option<String>,
    /// 그렇게 처리한 이유
    #[schema(required = true)]
    resolved_because: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(description = "주문의 부분 환불")]
struct RefundTimelineResponse {
    /// 번호: 1부터
    part: i32,
    /// 환불 금액(원)
    amount: i64,
    /// 환불된 상품
    products: Vec<RefundedProductResponse>,
    /// 다시 판매되는지 여부
    restock: bool,
    /// 운영자가 환불했으면 그 운영자
    #[schema(required = true)]
    refunded_by: Option<String>,
    /// 환불 이유
    #[schema(required = true)]
    reason: Option<String>,
    /// 환불 상태: REFUND_DUE(외부 결제에 환불 요청 중) 또는 REFUNDED
    #[schema(example = "REFUNDED")]
    status: String,
    /// 환불 시각
    #[schema(example = "2024-04-04T14:45:00")]
    refunded_at: String,
    /// 외부 결제가 환불을 마친 시각
    #[schema(required = true)]
    ended_at: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(description = "환불된 상품")]
struct RefundedProductResponse {
    /// 상품 ID
    product_id: i64,
    /// 환불된 수량
    quantity: i64,
}

impl RefundTimelineResponse {
    fn new(refund: RefundTrace, zone: Tz) -> Self {
        let (refunded_by, reason) = refund.operator.unzip();
        let product =
            |line: OrderLine| RefundedProductResponse { product_id: line.product_id.get(), quantity: line.quantity };
        RefundTimelineResponse {
            part: refund.part,
            amount: refund.amount,
            products: refund.lines.into_iter().map(product).collect(),
            restock: !refund.quarantined,
            refunded_by,
            reason: reason.filter(|reason| !reason.is_empty()),
            status: refund.status,
            refunded_at: refund.refunded_at.local(zone),
            ended_at: refund.ended_at.map(|at| at.local(zone)),
        }
    }
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(description = "주문에 일어난 일")]
struct TimelineEventResponse {
    /// 시각
    #[schema(example = "2024-04-04T14:30:00")]
    at: String,
    /// 일어난 일: ORDER_PLACED, PAYMENT_STARTED, ORDER_PAID, ORDER_REFUNDED(일부 환불), REFUND_ENDED(외부 결제의 환불), ORDER_CLOSED,
    /// PAYMENT_ENDED, BALANCE_CHANGED
    #[schema(example = "ORDER_PAID")]
    event: &'static str,
    /// 자세한 내용: 종료 사유, 결제 상태, 잔액 변동 등
    #[schema(required = true)]
    detail: Option<String>,
}

impl OrderTimelineResponse {
    fn new(timeline: OrderTimeline, zone: Tz) -> Self {
        let events = timeline.trace.as_ref().map_or_else(|| events_of(&timeline), traced);
        let dead_letters = |dead_letters: Vec<_>| {
            dead_letters.into_iter().map(|letter| DeadLetterResponse::new(letter, zone)).collect()
        };
        let postgres_status = timeline.trace.as_ref().map(|trace| trace.status.clone());
        let (payment, refunds) = timeline.trace.map(|trace| (trace.payment, trace.refunds)).unzip();
        let payment = payment.flatten();
        let refund = |refund| RefundTimelineResponse::new(refund, zone);
        OrderTimelineResponse {
            order: OrderDetailResponse::new(timeline.order, zone),
            redis_status: timeline.in_redis,
            postgres_status,
            payment: payment.map(PaymentTimelineResponse::from),
            refunds: refunds.map(|refunds| refunds.into_iter().map(refund).collect()),
            events: events
                .into_iter()
                .map(|(at, event, detail)| TimelineEventResponse { at: at.local(zone), event, detail })
                .collect(),
            dead_letters: timeline.dead_letters.map(dead_letters),
        }
    }
}

impl From<PaymentTrace> for PaymentTimelineResponse {
    fn from(payment: PaymentTrace) -> Self {
        let (resolved_by, resolved_because) = payment.resolved.unzip();
        PaymentTimelineResponse {
            payment_id: payment.payment_id,
            payment_type: payment.payment_type,
            method: payment.method,
            status: payment.status,
            amount: payment.amount,
            receipt: payment.receipt,
            transaction_id: payment.transaction_id,
            resolved_by,
            resolved_because,
        }
    }
}

type TimelineEvent = (Millis, &'static str, Option<String>);

/// The events that the order in Redis has, for when PostgreSQL has none.
fn events_of(timeline: &OrderTimeline) -> Vec<TimelineEvent> {
    let order = &timeline.order;
    let mut events = vec![(order.ordered_at, "ORDER_PLACED", None)];
    events.extend(order.payment.as_ref().map(|payment| (payment.paid_at, "ORDER_PAID", None)));
    let reason = order.close_reason.map(CloseReason::as_str).map(str::to_owned);
    events.extend(order.closed_at.map(|at| (at, "ORDER_CLOSED", reason)));
    events
}

/// The operator who refunded, and the reason, behind the detail of an event.
fn by_operator((operator, reason): &(String, String)) -> String {
    if reason.is_empty() { format!(" ({operator})") } else { format!(" ({operator}: {reason})") }
}

/// The events in PostgreSQL, in the order of their times.
fn traced(trace: &OrderTrace) -> Vec<TimelineEvent> {
    let mut events = vec![(trace.placed_at, "ORDER_PLACED", None)];
    if let Some(payment) = &trace.payment {
        if payment.method == "GATEWAY" {
            events.push((payment.started_at, "PAYMENT_STARTED", Some(payment.payment_type.clone())));
        }
        events.extend(payment.ended_at.map(|at| (at, "PAYMENT_ENDED", Some(payment.status.clone()))));
    }
    let entries = trace.entries.iter();
    events.extend(entries.map(|(_, kind, amount, at)| (*at, "BALANCE_CHANGED", Some(format!("{kind} {amount}")))));
    events.extend(trace.paid_at.map(|at| (at, "ORDER_PAID", None)));
    for refund in trace.refunds.iter().rev() {
        let by = refund.operator.as_ref().map(by_operator).unwrap_or_default();
        events.push((refund.refunded_at, "ORDER_REFUNDED", Some(format!("{}{by}", refund.amount))));
        events.extend(refund.ended_at.map(|at| (at, "REFUND_ENDED", Some(refund.amount.to_string()))));
    }
    let by = trace.refunded_by.as_ref().map(by_operator).unwrap_or_default();
    let closed = trace.close_reason.as_ref().map(|reason| format!("{reason}{by}"));
    events.extend(trace.closed_at.map(|at| (at, "ORDER_CLOSED", closed)));
    // A stable sort: simultaneous events keep this order.
    events.sort_by_key(|(at, ..)| *at);
    events
}

documented_errors! { OrderErrors {
    "주문을 찾을 수 없음" => [OrderNotFound],
}}

#[utoipa::path(
    get,
    path = "/admin/v1/orders/{orderId}/timeline",
    operation_id = "orderTimeline",
    tag = "운영",
    summary = "주문 이력 조회",
    description = "주문과 결제의 현재 상태, 지금까지 일어난 일을 한 번에 조회합니다.",
    params(("orderId" = i64, Path, description = "orderId")),
    responses((status = 200, description = "이력 조회 성공", body = OrderTimelineResponse), OrderErrors)
)]
async fn order_timeline(State(app): State<AppState>, order: PathId<OrderId>) -> Found<OrderTimelineResponse> {
    let timeline = app.engine.order_timeline(order.valid()?).await?;
    Ok(Json(OrderTimelineResponse::new(timeline, app.engine.zone())))
}
