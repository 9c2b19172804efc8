//! Products: creating and changing them, and bringing one in under the id that it has elsewhere.

use axum::extract::State;
use chrono_tz::Tz;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::AdminState;
use crate::{
    http::{
        error::Code,
        extract::{
            decode::{not_null, nullable},
            fields::{Bounded, LocalTime, Text},
            params::PathId,
            write::{RequestBody, Write},
        },
        openapi::errors::documented_errors,
        reply::{Answer, Done},
        routes::products::ProductResponse,
        state::AppState,
    },
    model::{
        Category, LimitGroup, MAX_LIMIT_PER_USER, MAX_PRICE, MAX_STOCK, Millis, NewProduct, ProductId, ProductPatch,
        ProductUpsert, SaleTerms, SaleTermsPatch, UserId,
    },
};

/// A limit of units per user.
type PerUser = Bounded<1, { MAX_LIMIT_PER_USER }>;

/// The instant of a time that may be absent; `None` if the zone skips it.
fn instant(time: Option<LocalTime>, zone: Tz) -> Option<Option<Millis>> {
    time.map(|time| time.instant(zone).ok_or(())).transpose().ok()
}

/// A change of terms; `None` if its window is empty, or the zone skips a time.
fn changed_terms(
    (opens_at, closes_at): (Option<Option<LocalTime>>, Option<Option<LocalTime>>),
    limit_per_user: Option<Option<PerUser>>,
    limit_group: Option<Option<LimitGroup>>,
    zone: Tz,
) -> Option<SaleTermsPatch> {
    let moved = |time: Option<Option<LocalTime>>| time.map(|time| instant(time, zone).ok_or(())).transpose().ok();
    let (opens_at, closes_at) = (moved(opens_at)?, moved(closes_at)?);
    let window = SaleTerms { opens_at: opens_at.flatten(), closes_at: closes_at.flatten(), ..SaleTerms::default() };
    let limit_per_user = limit_per_user.map(|limit| limit.map(Bounded::get));
    window.are_valid().then_some(SaleTermsPatch { opens_at, closes_at, limit_per_user, limit_group })
}

/// The documented routes.
pub fn router() -> OpenApiRouter<AdminState> {
    OpenApiRouter::new().routes(routes!(create)).routes(routes!(update, put))
}

#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(
    description = "상품 생성 요청",
    example = json!({
        "productName": "나이키 에어포스", "price": 990000, "stockQuantity": 50, "category": "SHOES",
        "opensAt": "2024-04-04T10:00:00", "closesAt": "2024-04-05T10:00:00", "limitPerUser": 1, "limitGroup": "AIR-FORCE"
    }),
)]
pub struct CreateProductRequest {
    /// 상품 이름
    product_name: Text<200>,
    /// 가격(원)
    price: Bounded<0, { MAX_PRICE }>,
    /// 처음 재고 수량
    stock_quantity: Bounded<0, { MAX_STOCK }>,
    /// 카테고리
    category: Category,
    /// 판매 시작 시각: 없거나 null이면 바로 판매합니다
    opens_at: Option<LocalTime>,
    /// 판매 종료 시각: 없거나 null이면 계속 판매합니다
    closes_at: Option<LocalTime>,
    /// 1인당 구매 가능 수량: 없거나 null이면 제한하지 않습니다
    limit_per_user: Option<PerUser>,
    /// 1인당 구매 가능 수량을 함께 쓰는 상품 그룹: 같은 그룹의 상품은 수량 제한이 같아야 합니다
    limit_group: Option<LimitGroup>,
}

impl RequestBody for CreateProductRequest {
    type Valid = NewProduct;

    const INVALID: Code = Code::InvalidRequest;

    fn validate(self, zone: Tz) -> Option<NewProduct> {
        let CreateProductRequest { product_name, price, stock_quantity, category, .. } = self;
        let terms = SaleTerms {
            opens_at: instant(self.opens_at, zone)?,
            closes_at: instant(self.closes_at, zone)?,
            limit_per_user: self.limit_per_user.map(Bounded::get),
            limit_group: self.limit_group,
        };
        let (name, price, stock) = (product_name.into(), price.get(), stock_quantity.get());
        terms.are_valid().then_some(NewProduct { name, price, stock, category, terms })
    }

    fn user(_: &Self::Valid) -> Option<UserId> {
        None
    }
}

documented_errors! { CreateErrors {
    "잘못된 요청 (입력값 오류, 유효성 검사 실패)" => [InvalidRequest],
}}

#[utoipa::path(
    post,
    path = "/admin/v1/products",
    operation_id = "createProduct",
    tag = "운영",
    summary = "상품 생성",
    description = "상품을 생성합니다. 판매 기간과 1인당 구매 가능 수량을 정할 수 있습니다.",
    request_body(content = CreateProductRequest),
    responses((status = 201, description = "상품 생성 성공", body = ProductResponse), CreateErrors)
)]
async fn create(
    State(app): State<AppState>,
    Write { call, body: product }: Write<CreateProductRequest>,
) -> Done<ProductResponse> {
    let created = app.engine.create_product(&call, product).await?;
    let id = created.value.product_id.get();
    let zone = app.engine.zone();
    Ok(Answer::created(created.map(|product| ProductResponse::new(product, zone))).naming("productId", id))
}

#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(
    description = "상품 가져오기 요청: 이미 있는 상품의 판매 기간과 수량 제한은 보내지 않으면 그대로 둡니다.",
    example = json!({
        "productName": "나이키 에어포스", "price": 990000, "stockQuantity": 50, "category": "SHOES", "limitPerUser": 1
    }),
)]
pub struct PutProductRequest {
    /// 상품 이름
    product_name: Text<200>,
    /// 가격(원)
    price: Bounded<0, { MAX_PRICE }>,
    /// 처음 재고 수량: 생성할 때만 쓰입니다
    stock_quantity: Bounded<0, { MAX_STOCK }>,
    /// 카테고리
    category: Category,
    /// 판매 시작 시각: null이면 바로 판매합니다
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<LocalTime>)]
    opens_at: Option<Option<LocalTime>>,
    /// 판매 종료 시각: null이면 계속 판매합니다
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<LocalTime>)]
    closes_at: Option<Option<LocalTime>>,
    /// 1인당 구매 가능 수량: null이면 제한하지 않습니다
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<PerUser>)]
    limit_per_user: Option<Option<PerUser>>,
    /// 1인당 구매 가능 수량을 함께 쓰는 상품 그룹: 같은 그룹의 상품은 수량 제한이 같아야 합니다
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<LimitGroup>)]
    limit_group: Option<Option<LimitGroup>>,
}

impl RequestBody for PutProductRequest {
    type Valid = ProductUpsert;

    const INVALID: Code = Code::InvalidRequest;

    fn validate(self, zone: Tz) -> Option<ProductUpsert> {
        let PutProductRequest { product_name, price, stock_quantity, category, .. } = self;
        let terms = changed_terms((self.opens_at, self.closes_at), self.limit_per_user, self.limit_group, zone)?;
        let (name, price, stock) = (product_name.into(), price.get(), stock_quantity.get());
        Some(ProductUpsert { name, price, stock, category, terms })
    }

    fn user(_: &Self::Valid) -> Option<UserId> {
        None
    }
}

documented_errors! { PutErrors {
    "잘못된 요청 (입력값 오류, 유효성 검사 실패)" => [InvalidRequest],
    "상품을 찾을 수 없음 (잘못된 ID)" => [ProductNotFound],
}}

#[utoipa::path(
    put,
    path = "/admin/v1/products/{productId}",
    operation_id = "putProduct",
    tag = "운영",
    summary = "상품 가져오기",
    description = "다른 시스템의 ID 그대로 상품을 생성하거나, 이름, 가격, 카테고리, 판매 기간, 1인당 구매 가능 수량을 요청대로 변경합니다. 보내지 않은 판매 기간과 \
        수량 제한은 그대로 두며, null이면 없앱니다. 처음 재고 수량은 생성할 때만 쓰이며, 이미 있는 상품의 재고는 그대로입니다. 같은 요청을 반복해도 결과는 같습니다. 이후 새로 만드는 상품의 ID는 항상 더 큽니다.",
    params(("productId" = i64, Path, description = "productId")),
    request_body(content = PutProductRequest),
    responses(
        (status = 200, description = "상품 변경 성공, 또는 변경 없음", body = ProductResponse),
        (status = 201, description = "상품 생성 성공", body = ProductResponse),
        PutErrors,
    )
)]
async fn put(
    State(app): State<AppState>,
    product: PathId<ProductId>,
    Write { call, body }: Write<PutProductRequest>,
) -> Done<ProductResponse> {
    let put = app.engine.put_product(&call, product.valid()?, body).await?;
    Ok(Answer::put(put.map(|put| put.map(|product| ProductResponse::new(product, app.engine.zone())))))
}

#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(description = "상품 변경 요청: 보내지 않은 항목은 그대로 둡니다.", example = json!({ "stockDelta": 10 }))]
struct UpdateProductRequest {
    /// 상품 이름
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false)]
    product_name: Option<Text<200>>,
    /// 가격(원)
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false)]
    price: Option<Bounded<0, { MAX_PRICE }>>,
    /// 카테고리
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false)]
    category: Option<Category>,
    /// 재고 증감 수량
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false)]
    stock_delta: Option<Bounded<{ -MAX_STOCK }, { MAX_STOCK }>>,
    /// 판매 시작 시각: null이면 바로 판매합니다
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<LocalTime>)]
    opens_at: Option<Option<LocalTime>>,
    /// 판매 종료 시각: null이면 계속 판매합니다
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<LocalTime>)]
    closes_at: Option<Option<LocalTime>>,
    /// 1인당 구매 가능 수량: null이면 제한하지 않습니다. 제한이 있는 동안의 주문만 셉니다
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<PerUser>)]
    limit_per_user: Option<Option<PerUser>>,
    /// 1인당 구매 가능 수량을 함께 쓰는 상품 그룹: 같은 그룹의 상품은 수량 제한이 같아야 합니다
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<LimitGroup>)]
    limit_group: Option<Option<LimitGroup>>,
}

impl RequestBody for UpdateProductRequest {
    type Valid = ProductPatch;

    const INVALID: Code = Code::InvalidRequest;

    fn changes_nothing(&self) -> bool {
        let UpdateProductRequest { product_name, price, category, stock_delta, .. } = self;
        let UpdateProductRequest { opens_at, closes_at, limit_per_user, limit_group, .. } = self;
        let keeps_terms =
            opens_at.is_none() && closes_at.is_none() && limit_per_user.is_none() && limit_group.is_none();
        keeps_terms && product_name.is_none() && price.is_none() && category.is_none() && stock_delta.is_none()
    }

    fn validate(self, zone: Tz) -> Option<ProductPatch> {
        let UpdateProductRequest { product_name, price, category, stock_delta, .. } = self;
        let terms = changed_terms((self.opens_at, self.closes_at), self.limit_per_user, self.limit_group, zone)?;
        Some(ProductPatch {
            name: product_name.map(String::from),
            price: price.map(Bounded::get),
            category,
            stock_delta: stock_delta.map(Bounded::get),
            terms,
        })
    }

    fn user(_: &Self::Valid) -> Option<UserId> {
        None
    }
}

documented_errors! { UpdateErrors {
    "잘못된 요청 (입력값 오류, 유효성 검사 실패)" => [InvalidRequest],
    "상품을 찾을 수 없음" => [ProductNotFound],
    "재고 부족" => [InsufficientStock],
}}

#[utoipa::path(
    patch,
    path = "/admin/v1/products/{productId}",
    operation_id = "updateProduct",
    tag = "운영",
    summary = "상품 변경",
    description = "상품의 이름, 가격, 카테고리, 판매 기간, 1인당 구매 가능 수량을 바꾸거나 재고를 늘리고 줄입니다.",
    params(("productId" = i64, Path, description = "productId")),
    request_body(content = UpdateProductRequest),
    responses((status = 200, description = "상품 변경 성공", body = ProductResponse), UpdateErrors)
)]
async fn update(
    State(app): State<AppState>,
    product: PathId<ProductId>,
    Write { call, body: patch }: Write<UpdateProductRequest>,
) -> Done<ProductResponse> {
    let updated = app.engine.update_product(&call, product.valid()?, patch).await?;
    Ok(Answer::ok(updated.map(|product| ProductResponse::new(product, app.engine.zone()))))
}
