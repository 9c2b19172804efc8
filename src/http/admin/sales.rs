//! Sales: what is on sale when, the units of a product, and the users at its limit.

use axum::{Json, extract::State};
use chrono_tz::Tz;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::AdminState;
use crate::{
    http::{
        error::{ApiError, Code},
        extract::{
            fields::LocalTime,
            params::{Params, PathId, QueryParams},
        },
        openapi::errors::documented_errors,
        page::PageParams,
        reply::Found,
        routes::coupons::CampaignResponse,
        state::AppState,
    },
    model::{
        CountedUser, LimitedUsers, Millis, Page, ProductId, SaleStatus, SaleTerms, SalesPlan, ShelvedProduct, UserId,
    },
};

/// The documented routes.
pub fn router() -> OpenApiRouter<AdminState> {
    OpenApiRouter::new().routes(routes!(sales)).routes(routes!(product)).routes(routes!(limited_users))
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(
    description = "상품과 상태별 수량: 입고 수량(stockedQuantity)은 판매 가능, 결제 대기, 판매, 보류 수량의 합입니다."
)]
struct ProductUnitsResponse {
    /// 상품 ID
    product_id: i64,
    /// 상품 이름
    product_name: String,
    /// 카테고리
    category: String,
    /// 가격(원)
    price: i64,
    /// 판매 상태
    sale_status: SaleStatus,
    /// 판매 시작 시각: null이면 제한이 없습니다
    #[schema(required = true, example = "2024-04-04T10:00:00")]
    opens_at: Option<String>,
    /// 판매 종료 시각: null이면 제한이 없습니다
    #[schema(required = true, example = "2024-04-05T10:00:00")]
    closes_at: Option<String>,
    /// 1인당 구매 가능 수량: null이면 제한이 없습니다
    #[schema(required = true)]
    limit_per_user: Option<i64>,
    /// 1인당 구매 가능 수량을 함께 쓰는 상품 그룹
    #[schema(required = true)]
    limit_group: Option<String>,
    /// 지금까지 입고된 수량
    stocked_quantity: i64,
    /// 판매 가능한 재고 수량
    stock_quantity: i64,
    /// 결제 대기(PENDING) 주문의 수량
    held_quantity: i64,
    /// 결제된(PAID) 주문의 수량
    sold_quantity: i64,
    /// 복구 후 판매가 보류된 수량
    withheld_quantity: i64,
    /// 환불되었으나 다시 판매하지 않는 수량
    quarantined_quantity: i64,
}

impl ProductUnitsResponse {
    fn new(product: ShelvedProduct, zone: Tz) -> Self {
        let ShelvedProduct {
            product_id,
            name,
            category,
            price,
            on_sale,
            held,
            sold,
            withheld,
            quarantined,
            terms,
            read_at,
        } = product;
        let sale_status = terms.status(on_sale, read_at);
        let SaleTerms { opens_at, closes_at, limit_per_user, limit_group } = terms;
        ProductUnitsResponse {
            product_id: product_id.get(),
            product_name: name,
            category,
            price,
            sale_status,
            opens_at: opens_at.map(|at| at.local(zone)),
            closes_at: closes_at.map(|at| at.local(zone)),
            limit_per_user,
            limit_group: limit_group.map(|group| group.to_string()),
            stocked_quantity: on_sale + held + sold + withheld + quarantined,
            stock_quantity: on_sale,
            held_quantity: held,
            sold_quantity: sold,
            withheld_quantity: withheld,
            quarantined_quantity: quarantined,
        }
    }
}

documented_errors! { ProductErrors {
    "상품을 찾을 수 없음" => [ProductNotFound],
}}

#[utoipa::path(
    get,
    path = "/admin/v1/products/{productId}",
    operation_id = "productUnits",
    tag = "운영",
    summary = "상품 수량 조회",
    description = "상품의 판매 조건과 상태별 수량을 조회합니다.",
    params(("productId" = i64, Path, description = "productId")),
    responses((status = 200, description = "상품 수량 조회 성공", body = ProductUnitsResponse), ProductErrors)
)]
async fn product(State(app): State<AppState>, product: PathId<ProductId>) -> Found<ProductUnitsResponse> {
    let product = app.engine.shelved_product(product.valid()?).await?;
    Ok(Json(ProductUnitsResponse::new(product, app.engine.zone())))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct SalesParams {
    /// 기간의 시작: 없으면 하루 전
    #[param(inline)]
    from: Option<LocalTime>,
    /// 기간의 끝: 없으면 시작부터 8일
    #[param(inline)]
    until: Option<LocalTime>,
}

impl QueryParams for SalesParams {
    fn user(&self) -> Option<UserId> {
        None
    }
}

impl SalesParams {
    /// The ends of the range; the zone may skip one.
    fn range(self, zone: Tz) -> Result<(Option<Millis>, Option<Millis>), ApiError> {
        let instant = |time: Option<LocalTime>| {
            time.map(|time| time.instant(zone).ok_or(ApiError::from(Code::InvalidRequest))).transpose()
        };
        Ok((instant(self.from)?, instant(self.until)?))
    }
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(description = "기간 안의 판매")]
struct SalesPlanResponse {
    /// 기간의 시작
    #[schema(example = "2024-04-04T00:00:00")]
    from: String,
    /// 기간의 끝
    #[schema(example = "2024-04-12T00:00:00")]
    until: String,
    /// 판매 조건이 있는 상품: 늦게 시작하는 순서로 최대 500개
    products: Vec<ProductUnitsResponse>,
    /// 쿠폰 캠페인: 먼저 끝나는 순서로 최대 200개
    campaigns: Vec<CampaignResponse>,
    /// 빠진 판매가 있으면 false
    complete: bool,
}

impl SalesPlanResponse {
    fn new(plan: SalesPlan, zone: Tz) -> Self {
        SalesPlanResponse {
            from: plan.from.local(zone),
            until: plan.until.local(zone),
            products: plan.products.into_iter().map(|product| ProductUnitsResponse::new(product, zone)).collect(),
            campaigns: plan.campaigns.into_iter().map(|campaign| CampaignResponse::new(campaign, zone)).collect(),
            complete: plan.complete,
        }
    }
}

documented_errors! { SalesErrors {
    "잘못된 요청 (유효하지 않은 조회 조건)" => [InvalidRequest],
}}

#[utoipa::path(
    get,
    path = "/admin/v1/sales",
    operation_id = "sales",
    tag = "운영",
    summary = "판매 계획 조회",
    description = "기간 안에 판매하는, 판매 기간이나 구매 제한이 있는 상품과 쿠폰 캠페인을 조회합니다.",
    params(SalesParams),
    responses((status = 200, description = "판매 계획 조회 성공", body = SalesPlanResponse), SalesErrors)
)]
async fn sales(State(app): State<AppState>, params: Params<SalesParams>) -> Found<SalesPlanResponse> {
    let zone = app.engine.zone();
    let (from, until) = params.valid()?.range(zone)?;
    let plan = app.engine.sales_plan(from, until).await?;
    Ok(Json(SalesPlanResponse::new(plan, zone)))
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(description = "구매 제한에 집계된 사용자")]
struct LimitedUserResponse {
    /// 사용자 ID
    user_id: i64,
    /// 사용자 이름
    user_name: String,
    /// 구매 제한에 집계된 수량: 결제 대기와 결제된 주문의 합
    quantity: i64,
}

impl From<CountedUser> for LimitedUserResponse {
    fn from(user: CountedUser) -> Self {
        LimitedUserResponse { user_id: user.user_id.get(), user_name: user.name, quantity: user.units }
    }
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(description = "구매 제한에 집계된 사용자의 한 페이지: 수량이 많은 순서")]
struct LimitedUsersResponse {
    /// 1인당 구매 가능 수량: null이면 제한이 없습니다
    #[schema(required = true)]
    limit_per_user: Option<i64>,
    /// 1인당 구매 가능 수량을 함께 쓰는 상품 그룹: 그룹이면 그룹 전체를 집계합니다
    #[schema(required = true)]
    limit_group: Option<String>,
    /// 더 구매할 수 없는 사용자 수
    users_at_limit: i64,
    /// 최근 주문 10만 건까지 집계합니다: 빠진 주문이 있으면 false
    complete: bool,
    /// 사용자 목록
    content: Vec<LimitedUserResponse>,
    /// 페이지 번호 (0부터)
    page: i64,
    /// 페이지 크기
    size: i64,
    /// 전체 사용자 수
    total_elements: i64,
}

impl From<LimitedUsers> for LimitedUsersResponse {
    fn from(found: LimitedUsers) -> Self {
        let Page { items, page, size, total } = found.users;
        LimitedUsersResponse {
            limit_per_user: found.terms.limit_per_user,
            limit_group: found.terms.limit_group.map(|group| group.to_string()),
            users_at_limit: found.at_limit,
            complete: found.complete,
            content: items.into_iter().map(LimitedUserResponse::from).collect(),
            page,
            size,
            total_elements: total,
        }
    }
}

documented_errors! { LimitedUsersErrors {
    "잘못된 요청 (유효하지 않은 조회 조건)" => [InvalidRequest],
    "상품을 찾을 수 없음" => [ProductNotFound],
}}

#[utoipa::path(
    get,
    path = "/admin/v1/products/{productId}/buyers",
    operation_id = "limitedUsers",
    tag = "운영",
    summary = "구매 제한 현황 조회",
    description = "상품의 1인당 구매 제한에 집계된 사용자를 수량이 많은 순서로 조회합니다. 제한이 있는 동안의 주문만 집계합니다.",
    params(("productId" = i64, Path, description = "productId"), PageParams),
    responses((status = 200, description = "구매 제한 현황 조회 성공", body = LimitedUsersResponse), LimitedUsersErrors)
)]
async fn limited_users(
    State(app): State<AppState>,
    product: PathId<ProductId>,
    page: Params<PageParams>,
) -> Found<LimitedUsersResponse> {
    let product = product.valid()?;
    let PageParams { page, size } = page.valid()?;
    Ok(Json(app.engine.limited_users(product, page.get(), size.get()).await?.into()))
}
