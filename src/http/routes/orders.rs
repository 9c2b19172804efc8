//! 주문: placing, showing and cancelling orders.

use axum::{Json, extract::State};
use chrono_tz::Tz;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    http::{
        auth::user::Caller,
        error::Code,
        extract::{
            decode::{Object, not_null, optional_parsed, parsed},
            fields::Bounded,
            params::{Params, PathId, QueryParams},
            write::{RequestBody, Write},
        },
        limits::costs,
        openapi::errors::documented_errors,
        reply::{Answer, Done, Found},
        state::AppState,
    },
    model::{
        CloseReason, CouponId, MAX_LINE_QUANTITY, MAX_ORDER_LINES, NewOrder, Order, OrderId, OrderStatus, PaymentType,
        PlacedOrder, ProductId, UserId,
    },
};

/// The documented routes.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(place)).routes(routes!(order)).routes(routes!(cancel))
}

#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(description = "주문 상품", example = json!({ "productId": 1, "quantity": 2 }))]
struct OrderProductRequest {
    /// 상품 ID
    product_id: ProductId,
    /// 주문 수량
    quantity: Bounded<1, { MAX_LINE_QUANTITY }>,
}

#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(
    description = "주문 생성 요청",
    example = json!({ "userId": 1, "orderProducts": [{ "productId": 1, "quantity": 2 }], "userCouponId": 1 }),
)]
pub struct OrderCreateRequest {
    /// 주문하는 사용자 ID
    user_id: UserId,
    /// 주문 상품 목록: 같은 상품은 수량을 더합니다.
    #[schema(value_type = Vec<OrderProductRequest>, min_items = 1, max_items = 100)]
    order_products: Vec<Object<OrderProductRequest>>,
    /// 사용할 쿠폰 ID
    user_coupon_id: Option<CouponId>,
    /// 결제 정보: 지정하면 주문과 동시에 결제하고 orderStatus, paymentId, receipt를 함께 반환합니다. 잔액이 부족하면 주문이 생성되지 않습니다.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<OrderPaymentRequest>, inline)]
    payment: Option<Object<OrderPaymentRequest>>,
}

#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(description = "주문과 동시에 하는 결제", example = json!({ "paymentType": "BALANCE" }))]
struct OrderPaymentRequest {
    /// 결제 수단
    #[serde(deserialize_with = "parsed")]
    payment_type: PaymentType,
}

impl RequestBody for OrderCreateRequest {
    type Valid = NewOrder;

    const INVALID: Code = Code::InvalidOrder;

    fn validate(self, _zone: Tz) -> Option<NewOrder> {
        let lines = summed(products(&self.order_products))?;
        let payment_type = self.payment.map(|Object(payment)| payment.payment_type);
        Some(NewOrder { user_id: self.user_id, lines, coupon_id: self.user_coupon_id, payment_type })
    }

    fn user(order: &Self::Valid) -> Option<UserId> {
        Some(order.user_id)
    }

    fn cost(order: &Self::Valid) -> u32 {
        costs::of_lines(order.lines.len())
    }
}

/// The lines of an order or of a part of one, one per product, at its first place; `None` if there are none, more than
/// [`MAX_ORDER_LINES`], or more than [`MAX_LINE_QUANTITY`] units of a product. The list is short, so scanning it beats hashing.
pub fn summed(products: impl ExactSizeIterator<Item = (ProductId, i64)>) -> Option<Vec<(ProductId, i64)>> {
    if !(1..=MAX_ORDER_LINES).contains(&products.len()) {
        return None;
    }
    let mut lines: Vec<(ProductId, i64)> = Vec::with_capacity(products.len());
    for (product_id, quantity) in products {
        match lines.iter_mut().find(|(product, _)| *product == product_id) {
            Some((_, units)) => *units = units.checked_add(quantity)?,
            None => lines.push((product_id, quantity)),
        }
    }
    lines.iter().all(|(_, units)| *units <= MAX_LINE_QUANTITY).then_some(lines)
}

/// The products of a request.
fn products(lines: &[Object<OrderProductRequest>]) -> impl ExactSizeIterator<Item = (ProductId, i64)> {
    lines.iter().map(|Object(line)| (line.product_id, line.quantity.get()))
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(description = "생성된 주문")]
struct OrderResponse {
    /// 주문 ID
    order_id: i64,
    /// 최종 결제 금액(원)
    final_price: i64,
    /// 주문 시각
    #[schema(example = "2024-04-04T14:30:00")]
    ordered_at: String,
    /// 주문 상태: 주문과 동시에 결제한 경우
    #[serde(skip_serializing_if = "Option::is_none")]
    order_status: Option<OrderStatus>,
    /// 결제 ID: 주문과 동시에 결제한 경우
    #[serde(skip_serializing_if = "Option::is_none")]
    payment_id: Option<i64>,
    /// 영수증 번호: 주문과 동시에 결제한 경우
    #[serde(skip_serializing_if = "Option::is_none")]
    receipt: Option<String>,
}

impl OrderResponse {
    fn new(order: PlacedOrder, zone: Tz) -> Self {
        let (payment_id, receipt) = order.payment.map(|payment| (payment.payment_id.get(), payment.receipt)).unzip();
        OrderResponse {
            order_id: order.order_id.get(),
            final_price: order.final_price,
            ordered_at: order.ordered_at.local(zone),
            order_status: payment_id.map(|_| OrderStatus::Paid),
            payment_id,
            receipt,
        }
    }
}

documented_errors! { PlaceErrors {
    "잘못된 주문 요청 (입력값 오류, 유효성 검사 실패)" => [InvalidOrder, InvalidCoupon],
    "잔액 부족" => [InsufficientBalance],
    "사용자를 찾을 수 없음" => [UserNotFound, ProductNotFound],
    "재고 부족" => [SoldOut, InsufficientStock, NotOnSale, PurchaseLimitExceeded],
    "서버 오류" => [Internal],
}}

#[utoipa::path(
    post,
    path = "/api/v1/orders",
    operation_id = "placeOrder",
    tag = "주문",
    summary = "주문 생성 및 결제 요청",
    description = "상품 주문과 결제를 처리합니다. 주문 생성 후 결제를 시도하며, 결제 시도 시 주문은 PENDING 상태로 생성됩니다.\n\n\
프로세스\n\n\
1. 상품 재고 확인\n\
2. 쿠폰 적용 및 할인 계산\n\
3. 주문 정보 저장 (주문 PENDING 상태)",
    request_body(content = OrderCreateRequest, example = json!({
        "userId": 1, "orderProducts": [{ "productId": 1, "quantity": 2 }], "userCouponId": 1
    })),
    responses(
        (status = 200, description = "주문 생성 성공", body = OrderResponse, example = json!({
            "orderId": 12345, "finalPrice": 49900, "orderedAt": "2024-04-04T14:30:00"
        })),
        PlaceErrors,
    )
)]
async fn place(
    State(app): State<AppState>,
    Write { call, body: order }: Write<OrderCreateRequest>,
) -> Done<OrderResponse> {
    let placed = app.engine.place_order(&call, order).await?;
    Ok(Answer::ok(placed.map(|order| OrderResponse::new(order, app.engine.zone()))))
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(description = "주문 상품과 주문 시점의 가격")]
struct OrderLineResponse {
    /// 상품 ID
    product_id: i64,
    /// 주문 수량
    quantity: i64,
    /// 주문 시점의 상품 한 개 가격(원)
    price: i64,
    /// 환불된 수량
    refunded_quantity: i64,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(description = "주문 상세")]
pub struct OrderDetailResponse {
    /// 주문 ID
    order_id: i64,
    /// 사용자 ID
    user_id: i64,
    /// 주문 상태
    order_status: OrderStatus,
    /// 주문 상품 목록
    order_products: Vec<OrderLineResponse>,
    /// 할인 전 금액(원)
    total_price: i64,
    /// 할인 금액(원)
    discount_price: i64,
    /// 최종 결제 금액(원)
    final_price: i64,
    /// 환불된 금액(원)
    refunded_price: i64,
    /// 사용한 쿠폰 ID
    #[schema(required = true)]
    user_coupon_id: Option<i64>,
    /// 주문 시각
    #[schema(example = "2024-04-04T14:30:00")]
    ordered_at: String,
    /// 결제 기한: 이때까지 결제되지 않으면 취소됩니다.
    #[schema(example = "2024-04-04T14:40:00")]
    expires_at: String,
    /// 결제 시각
    #[schema(required = true)]
    paid_at: Option<String>,
    /// 결제 ID
    #[schema(required = true)]
    payment_id: Option<i64>,
    /// 결제 수단
    #[schema(required = true)]
    payment_type: Option<PaymentType>,
    /// 영수증 번호
    #[schema(required = true)]
    receipt: Option<String>,
    /// 종료 시각
    #[schema(required = true)]
    closed_at: Option<String>,
    /// 종료 사유
    #[schema(required = true)]
    close_reason: Option<CloseReason>,
}

impl OrderDetailResponse {
    pub fn new(order: Order, zone: Tz) -> Self {
        let payment = order.payment.as_ref();
        let lines = order.lines.iter().map(|line| OrderLineResponse {
            product_id: line.product_id.get(),
            quantity: line.quantity,
            price: line.price,
            refunded_quantity: order.refunded_quantity(line),
        });
        OrderDetailResponse {
            order_id: order.order_id.get(),
            user_id: order.user_id.get(),
            order_status: order.status,
            order_products: lines.collect(),
            total_price: order.total,
            discount_price: order.discount,
            final_price: order.final_price,
            refunded_price: order.refunded_price(),
            user_coupon_id: order.coupon_id.map(CouponId::get),
            ordered_at: order.ordered_at.local(zone),
            expires_at: order.expires_at.local(zone),
            paid_at: payment.map(|payment| payment.paid_at.local(zone)),
            payment_id: payment.map(|payment| payment.payment_id.get()),
            payment_type: payment.map(|payment| payment.payment_type),
            receipt: payment.map(|payment| payment.receipt.clone()),
            closed_at: order.closed_at.map(|time| time.local(zone)),
            close_reason: order.close_reason,
        }
    }
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
struct OrderParams {
    /// 주문한 사용자 ID: 지정하면 이 사용자의 주문만 조회합니다.
    #[serde(default, deserialize_with = "optional_parsed")]
    #[param(inline)]
    user_id: Option<UserId>,
}

impl QueryParams for OrderParams {
    fn user(&self) -> Option<UserId> {
        self.user_id
    }
}

documented_errors! { OrderErrors {
    "잘못된 요청 (유효하지 않은 조회 조건)" => [InvalidRequest],
    "주문을 찾을 수 없음" => [OrderNotFound],
}}

#[utoipa::path(
    get,
    path = "/api/v1/orders/{orderId}",
    operation_id = "order",
    tag = "주문",
    summary = "주문 조회",
    description = "주문의 상태, 상품, 가격, 쿠폰, 결제 정보를 조회합니다.",
    params(("orderId" = i64, Path, description = "orderId"), OrderParams),
    responses((status = 200, description = "주문 조회 성공", body = OrderDetailResponse), OrderErrors)
)]
async fn order(
    State(app): State<AppState>,
    order: PathId<OrderId>,
    params: Params<OrderParams>,
    caller: Caller,
) -> Found<OrderDetailResponse> {
    let order = order.valid()?;
    // A user with a token sees its own orders only.
    let user = caller.or(params.valid()?.user_id);
    let order = app.engine.order(order, user).await?;
    Ok(Json(OrderDetailResponse::new(order, app.engine.zone())))
}

#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(
    description = "주문 취소 요청",
    example = json!({ "userId": 1, "lines": [{ "productId": 1, "quantity": 1 }] }),
)]
struct OrderCancelRequest {
    /// 주문한 사용자 ID
    user_id: UserId,
    /// 환불할 상품 목록: 결제된(PAID) 주문의 일부만 환불합니다. 생략하면 남은 주문 전체입니다. 같은 상품은 수량을 더합니다.
    #[serde(default, deserialize_with = "not_null", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<OrderProductRequest>>, nullable = false, min_items = 1, max_items = 100)]
    lines: Option<Vec<Object<OrderProductRequest>>>,
}

/// The user and the lines of a cancellation.
#[derive(Debug)]
struct Cancellation {
    user: UserId,
    lines: Option<Vec<(ProductId, i64)>>,
}

impl RequestBody for OrderCancelRequest {
    type Valid = Cancellation;

    const INVALID: Code = Code::InvalidOrder;

    fn validate(self, _zone: Tz) -> Option<Cancellation> {
        let lines = match &self.lines {
            None => None,
            Some(lines) => Some(summed(products(lines))?),
        };
        Some(Cancellation { user: self.user_id, lines })
    }

    fn user(cancellation: &Self::Valid) -> Option<UserId> {
        Some(cancellation.user)
    }

    fn cost(cancellation: &Self::Valid) -> u32 {
        cancellation.lines.as_ref().map_or(1, |lines| costs::of_lines(lines.len()))
    }
}

documented_errors! { CancelErrors {
    "잘못된 취소 요청 (남은 수량보다 많은 환불, 결제되지 않은 주문의 부분 환불)" => [InvalidOrder],
    "주문을 찾을 수 없음" => [OrderNotFound],
    "이미 종료되었거나 처리 중이거나 환불 기간이 지난 주문" => [OrderAlreadyClosed, RefundWindowClosed, RequestInProgress],
}}

#[utoipa::path(
    post,
    path = "/api/v1/orders/{orderId}/cancel",
    operation_id = "cancelOrder",
    tag = "주문",
    summary = "주문 취소 및 환불",
    description = "결제 대기(PENDING) 주문은 취소하고, 결제된(PAID) 주문은 결제한 수단으로 환불합니다. 재고와 쿠폰은 반환됩니다.\n\n\
lines를 보내면 결제된 주문의 그 상품만 환불합니다. 환불 금액은 결제 금액 중 그 상품의 몫이며, 남은 것이 없을 때까지 주문은 PAID이고 쿠폰은 \
마지막에 반환됩니다. 결제 후 환불 기간이 지나면 환불할 수 없습니다.",
    params(("orderId" = i64, Path, description = "orderId")),
    request_body(content = OrderCancelRequest, example = json!({ "userId": 1 })),
    responses((status = 200, description = "주문 취소 성공", body = OrderDetailResponse), CancelErrors)
)]
async fn cancel(
    State(app): State<AppState>,
    order: PathId<OrderId>,
    Write { call, body }: Write<OrderCancelRequest>,
) -> Done<OrderDetailResponse> {
    let Cancellation { user, lines } = body;
    let cancelled = app.engine.cancel_order(&call, order.valid()?, user, lines).await?;
    Ok(Answer::ok(cancelled.map(|order| OrderDetailResponse::new(order, app.engine.zone()))))
}
