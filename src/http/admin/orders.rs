//! Listing orders.

use axum::{Json, extract::State};
use chrono_tz::Tz;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    http::{
        extract::{
            decode::{optional_query_id, optional_word, query_int},
            params::{LAST_PAGE, Params, QueryParams, default_size},
        },
        openapi::{documented_errors, order_status},
        reply::Found,
        routes::orders::OrderDetailResponse,
        state::AppState,
    },
    model::{OrderFilter, OrderPage, OrderStatus, UserId},
};

/// This resource's routes.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(orders))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
struct OrdersParams {
    /// 주문 상태
    #[serde(default, deserialize_with = "optional_word")]
    #[param(schema_with = order_status, required = false)]
    status: Option<OrderStatus>,
    /// 사용자 ID
    #[serde(default, deserialize_with = "optional_query_id")]
    #[param(value_type = Option<i64>, minimum = 1, maximum = 9007199254740991_i64, nullable = false)]
    user_id: Option<UserId>,
    /// 페이지 번호 (0부터)
    #[serde(default, deserialize_with = "query_int::<_, 0, LAST_PAGE>")]
    #[param(minimum = 0, maximum = 10000, default = 0)]
    page: i64,
    /// 페이지 크기
    #[serde(default = "default_size", deserialize_with = "query_int::<_, 1, 100>")]
    #[param(minimum = 1, maximum = 100, default = 20)]
    size: i64,
}

impl QueryParams for OrdersParams {
    // Operators look at anybody's.
    fn user(&self) -> Option<UserId> {
        None
    }
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(description = "주문 목록의 한 페이지")]
struct OrderPageResponse {
    /// 주문 목록
    content: Vec<OrderDetailResponse>,
    /// 페이지 번호 (0부터)
    page: i64,
    /// 페이지 크기
    size: i64,
    /// 전체 주문 수
    total_elements: i64,
}

impl OrderPageResponse {
    fn new(page: OrderPage, zone: Tz) -> Self {
        OrderPageResponse {
            content: page.orders.into_iter().map(|order| OrderDetailResponse::new(order, zone)).collect(),
            page: page.page,
            size: page.size,
            total_elements: page.total,
        }
    }
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
    params(OrdersParams),
    responses((status = 200, description = "주문 목록 조회 성공", body = OrderPageResponse), OrdersErrors)
)]
async fn orders(State(app): State<AppState>, params: Params<OrdersParams>) -> Found<OrderPageResponse> {
    let OrdersParams { status, user_id, page, size } = params.valid()?;
    let orders = app.engine.orders(OrderFilter { status, user_id, page, size }).await?;
    Ok(Json(OrderPageResponse::new(orders, app.engine.zone())))
}
