//! Orders: listing them.

use axum::{Json, extract::State};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::AdminState;
use crate::{
    http::{
        extract::{
            decode::optional_parsed,
            params::{Params, QueryParams},
        },
        openapi::{document::order_status, errors::documented_errors},
        page::{Listed, PageParams, PageResponse},
        reply::Found,
        routes::orders::OrderDetailResponse,
        state::AppState,
    },
    model::{OrderFilter, OrderStatus, UserId},
};

/// The documented routes.
pub fn router() -> OpenApiRouter<AdminState> {
    OpenApiRouter::new().routes(routes!(orders))
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
