//! Withheld units and coupons, which a rebuild keeps off sale: listing and releasing them.

use axum::{Json, extract::State};
use chrono_tz::Tz;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::AdminState;
use crate::{
    http::{
        error::Code,
        extract::{
            fields::Bounded,
            params::PathId,
            write::{RequestBody, Write},
        },
        openapi::errors::documented_errors,
        reply::{Answer, Done, Found},
        state::AppState,
    },
    model::{CouponId, ProductId, Reply, UserId, Withheld},
};

/// The documented routes.
pub fn router() -> OpenApiRouter<AdminState> {
    OpenApiRouter::new()
        .routes(routes!(withheld))
        .routes(routes!(release_all))
        .routes(routes!(release_units))
        .routes(routes!(release_coupons))
}

/// The most units or coupons that one request releases.
const MAX_RELEASE: i64 = 1_000_000_000;

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(description = "복구 후 판매가 보류된 수량: 상품과 쿠폰 각각 앞의 1,000건")]
struct WithheldResponse {
    /// 상품별 보류 수량
    products: Vec<WithheldUnitsResponse>,
    /// 쿠폰별 보류 수량
    coupons: Vec<WithheldCouponsResponse>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(description = "상품의 보류 수량")]
struct WithheldUnitsResponse {
    /// 상품 ID
    product_id: i64,
    /// 보류 수량
    withheld_quantity: i64,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(description = "쿠폰의 보류 수량")]
struct WithheldCouponsResponse {
    /// 쿠폰 ID
    coupon_id: i64,
    /// 보류 수량
    withheld_quantity: i64,
}

impl WithheldUnitsResponse {
    fn new(product: ProductId, units: i64) -> Self {
        WithheldUnitsResponse { product_id: product.get(), withheld_quantity: units }
    }
}

impl WithheldCouponsResponse {
    fn new(coupon: CouponId, count: i64) -> Self {
        WithheldCouponsResponse { coupon_id: coupon.get(), withheld_quantity: count }
    }
}

impl From<Withheld> for WithheldResponse {
    fn from(withheld: Withheld) -> Self {
        let Withheld { products, coupons } = withheld;
        WithheldResponse {
            products: products.into_iter().map(|(id, units)| WithheldUnitsResponse::new(id, units)).collect(),
            coupons: coupons.into_iter().map(|(id, count)| WithheldCouponsResponse::new(id, count)).collect(),
        }
    }
}

#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(description = "보류 해제 요청", example = json!({ "quantity": 10 }))]
struct ReleaseRequest {
    /// 해제할 수량
    quantity: Bounded<1, { MAX_RELEASE }>,
}

impl RequestBody for ReleaseRequest {
    type Valid = i64;

    const INVALID: Code = Code::InvalidRequest;

    fn validate(self, _zone: Tz) -> Option<i64> {
        Some(self.quantity.get())
    }

    fn user(_: &Self::Valid) -> Option<UserId> {
        None
    }
}

#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[schema(description = "전체 보류 해제 요청")]
struct ReleaseAllRequest {}

impl RequestBody for ReleaseAllRequest {
    type Valid = ();

    const INVALID: Code = Code::InvalidRequest;

    fn validate(self, _zone: Tz) -> Option<()> {
        Some(())
    }

    fn user(_: &Self::Valid) -> Option<UserId> {
        None
    }
}

#[utoipa::path(
    get,
    path = "/admin/v1/withheld",
    tag = "운영",
    summary = "판매 보류 수량 조회",
    description = "데이터 유실 복구 후, 유실된 주문과 쿠폰 발급에 쓰였을 수 있어 판매가 보류된 수량을 조회합니다.",
    responses((status = 200, description = "보류 수량 조회 성공", body = WithheldResponse))
)]
async fn withheld(State(app): State<AppState>) -> Found<WithheldResponse> {
    Ok(Json(app.engine.withheld().await?.into()))
}

documented_errors! { ReleaseAllErrors {
    "잘못된 요청 (입력값 오류, 유효성 검사 실패)" => [InvalidRequest],
}}

#[utoipa::path(
    post,
    path = "/admin/v1/withheld/release",
    operation_id = "releaseAll",
    tag = "운영",
    summary = "전체 보류 해제",
    description = "보류된 수량을 모두(한 번에 상품과 쿠폰 각각 1,000건까지) 다시 판매하고, 남은 보류 수량을 반환합니다. 반복해도 안전합니다.",
    request_body(content = ReleaseAllRequest),
    responses((status = 200, description = "보류 해제 성공", body = WithheldResponse), ReleaseAllErrors)
)]
async fn release_all(
    State(app): State<AppState>,
    Write { call, body: () }: Write<ReleaseAllRequest>,
) -> Done<WithheldResponse> {
    let left = app.engine.release_all(&call).await?;
    Ok(Answer::ok(Reply::first(left.into())))
}

documented_errors! { ReleaseUnitsErrors {
    "잘못된 요청 (입력값 오류, 유효성 검사 실패)" => [InvalidRequest],
    "상품을 찾을 수 없음" => [ProductNotFound],
    "보류 수량 부족" => [InsufficientStock],
}}

#[utoipa::path(
    post,
    path = "/admin/v1/products/{productId}/release",
    operation_id = "releaseUnits",
    tag = "운영",
    summary = "상품 보류 해제",
    description = "보류된 상품 수량을 다시 판매합니다.",
    params(("productId" = i64, Path, description = "productId")),
    request_body(content = ReleaseRequest),
    responses((status = 200, description = "보류 해제 성공", body = WithheldUnitsResponse), ReleaseUnitsErrors)
)]
async fn release_units(
    State(app): State<AppState>,
    product: PathId<ProductId>,
    Write { call, body: units }: Write<ReleaseRequest>,
) -> Done<WithheldUnitsResponse> {
    let product = product.valid()?;
    let left = app.engine.release_units(&call, product, units).await?;
    Ok(Answer::ok(left.map(|left| WithheldUnitsResponse::new(product, left))))
}

documented_errors! { ReleaseCouponsErrors {
    "잘못된 요청 (입력값 오류, 유효성 검사 실패)" => [InvalidRequest],
    "쿠폰을 찾을 수 없음" => [CouponNotFound],
    "보류 수량 부족" => [InsufficientStock],
}}

#[utoipa::path(
    post,
    path = "/admin/v1/coupons/{couponId}/release",
    operation_id = "releaseCoupons",
    tag = "운영",
    summary = "쿠폰 보류 해제",
    description = "보류된 쿠폰 수량을 다시 발급합니다.",
    params(("couponId" = i64, Path, description = "couponId")),
    request_body(content = ReleaseRequest),
    responses((status = 200, description = "보류 해제 성공", body = WithheldCouponsResponse), ReleaseCouponsErrors)
)]
async fn release_coupons(
    State(app): State<AppState>,
    coupon: PathId<CouponId>,
    Write { call, body: count }: Write<ReleaseRequest>,
) -> Done<WithheldCouponsResponse> {
    let coupon = coupon.valid()?;
    let left = app.engine.release_coupons(&call, coupon, count).await?;
    Ok(Answer::ok(left.map(|left| WithheldCouponsResponse::new(coupon, left))))
}
