//! Orders: listing and refunding them.

use axum::{Extension, Json, extract::State};
use chrono_tz::Tz;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::AdminState;
use crate::{
    http::{
        auth::operator::Operator,
        error::Code,
        extract::{
            decode::{Object, not_null, optional_parsed},
            fields::{Bounded, Text},
            params::{Params, PathId, QueryParams},
            write::{RequestBody, Write},
        },
        openapi::{document::order_status, errors::documented_errors},
        page::{Listed, PageParams, PageResponse},
        reply::{Answer, Done, Found},
        routes::orders::{OrderDetailResponse, summed},
        state::AppState,
    },
    model::{MAX_LINE_QUANTITY, NewRefund, OrderFilter, OrderId, OrderStatus, ProductId, RefundTerms, UserId},
};

/// The documented routes.
pub fn router() -> OpenApiRouter<AdminState> {
    OpenApiRouter::new().routes(routes!(orders)).routes(routes!(refund_order))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
struct OrdersParams {
    /// 주문 상태
    #[serde(default, deserialize_with = "optional_parsed")]
    #[param(schema_with = order_status, required = false)]
    status: Option<OrderStatus>,
    /// 사용자 ID
    #[serde(default, deserialize_with = "optional_parsed")]
    #[param(inline)]
    user_id: Option<UserId>,
}

impl QueryParams for OrdersParams {
    // Operators see the orders of any user.
    fn user(&self) -> Option<UserId> {
        None
    }
}

type OrderPageResponse = PageResponse<OrderDetailResponse>;

impl Listed for OrderDetailResponse {
    const PAGE: &str = "OrderPageResponse";
    const DESCRIPTION: &str = "주문 목록의 한 페이지";
    const CONTENT: &str = "주문 목록";
    const TOTAL: &str = "전체 주문 수";
}

documented_errors! { OrdersErrors {
    "잘못된 요청 (유효하지 않은 조회 조건)" => [InvalidRequest],
}}

#[utoipa::path(
    get,
    path = "/admin/v1/orders",
    operation_id = "orders",
    tag = "운영",
    summary = "주문 목록 조회",
    description = "주문 목록을 최신순으로 조회합니다. 데이터베이스에 반영된 주문만 보입니다.",
    params(OrdersParams, PageParams),
    responses((status = 200, description = "주문 목록 조회 성공", body = OrderPageResponse), OrdersErrors)
)]
async fn orders(
    State(app): State<AppState>,
    params: Params<OrdersParams>,
    page: Params<PageParams>,
) -> Found<OrderPageResponse> {
    let OrdersParams { status, user_id } = params.valid()?;
    let PageParams { page, size } = page.valid()?;
    let orders = app.engine.orders(OrderFilter { status, user_id, page: page.get(), size: size.get() }).await?;
    let zone = app.engine.zone();
    Ok(Json(PageResponse::new(orders, |order| OrderDetailResponse::new(order, zone))))
}

#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(description = "환불할 상품", example = json!({ "productId": 1, "quantity": 1 }))]
struct RefundProductRequest {
    /// 상품 ID
    product_id: ProductId,
    /// 환불할 수량
    quantity: Bounded<1, { MAX_LINE_QUANTITY }>,
}

#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(
    description = "주문 환불 요청",
    example = json!({ "lines": [{ "productId": 1, "quantity": 1 }], "restock": false, "reason": "착용 흔적이 있는 반품" }),
)]
struct OrderRefundRequest {
    /// 환불할 상품 목록: 생략하면 남은 주문 전체입니다. 같은 상품은 수량을 더합니다.
    #[serde(default, deserialize_with = "not_null", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<RefundProductRequest>>, nullable = false, min_items = 1, max_items = 100)]
    lines: Option<Vec<Object<RefundProductRequest>>>,
    /// 환불된 수량을 다시 판매할지 여부(기본값 true): false이면 판매하지 않고 따로 셉니다.
    #[serde(default, deserialize_with = "not_null", skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, default = true)]
    restock: Option<bool>,
    /// 환불 이유: 주문 이력에 남습니다
    #[serde(default, deserialize_with = "not_null", skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    reason: Option<Text<500>>,
}

/// A refund, but for the operator who asks for it.
#[derive(Debug)]
struct ValidRefund {
    lines: Option<Vec<(ProductId, i64)>>,
    restock: bool,
    reason: String,
}

impl RequestBody for OrderRefundRequest {
    type Valid = ValidRefund;

    const INVALID: Code = Code::InvalidOrder;

    fn validate(self, _zone: Tz) -> Option<ValidRefund> {
        let product = |Object(line): &Object<RefundProductRequest>| (line.product_id, line.quantity.get());
        let lines = match &self.lines {
            None => None,
            Some(lines) => Some(summed(lines.iter().map(product))?),
        };
        let reason = self.reason.map(String::from).unwrap_or_default();
        Some(ValidRefund { lines, restock: self.restock.unwrap_or(true), reason })
    }

    fn user(_: &Self::Valid) -> Option<UserId> {
        None
    }
}

documented_errors! { RefundErrors {
    "잘못된 환불 요청 (남은 수량보다 많은 환불, 결제되지 않은 주문)" => [InvalidOrder, InvalidRequest],
    "주문을 찾을 수 없음" => [OrderNotFound],
    "이미 종료되었거나 처리 중인 주문" => [OrderAlreadyClosed, RequestInProgress],
}}

#[utoipa::path(
    post,
    path = "/admin/v1/orders/{orderId}/refund",
    operation_id = "refundOrder",
    tag = "운영",
    summary = "주문 환불",
    description = "결제된(PAID) 주문의 전체 또는 일부를 결제한 수단으로 환불합니다. 기간의 제한이 없습니다. restock이 false이면 환불된 수량은 \
                   다시 판매되지 않습니다.",
    params(("orderId" = i64, Path, description = "orderId")),
    request_body(content = OrderRefundRequest),
    responses((status = 200, description = "환불 성공", body = OrderDetailResponse), RefundErrors)
)]
async fn refund_order(
    State(app): State<AppState>,
    Extension(operator): Extension<Operator>,
    order: PathId<OrderId>,
    Write { call, body }: Write<OrderRefundRequest>,
) -> Done<OrderDetailResponse> {
    let ValidRefund { lines, restock, reason } = body;
    let terms = RefundTerms { within_ms: None, restock, operator: Some((operator.name().to_owned(), reason)) };
    let refunded = app.engine.refund_order(&call, order.valid()?, &NewRefund { lines, terms }).await?;
    Ok(Answer::ok(refunded.map(|order| OrderDetailResponse::new(order, app.engine.zone()))))
}
