//! Products: creating and changing them.

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
            decode::not_null,
            fields::{Bounded, Text},
            params::PathId,
            write::{RequestBody, Write},
        },
        openapi::errors::documented_errors,
        reply::{Answer, Done},
        routes::products::ProductResponse,
        state::AppState,
    },
    model::{Category, MAX_PRICE, MAX_STOCK, NewProduct, ProductId, ProductPatch, UserId},
};

/// The documented routes.
pub fn router() -> OpenApiRouter<AdminState> {
    OpenApiRouter::new().routes(routes!(create)).routes(routes!(update))
}

#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(
    description = "상품 생성 요청",
    example = json!({ "productName": "나이키 에어포스", "price": 990000, "stockQuantity": 50, "category": "SHOES" }),
)]
struct CreateProductRequest {
    /// 상품 이름
    product_name: Text<200>,
    /// 가격(원)
    price: Bounded<0, { MAX_PRICE }>,
    /// 처음 재고 수량
    stock_quantity: Bounded<0, { MAX_STOCK }>,
    /// 카테고리
    category: Category,
}

impl RequestBody for CreateProductRequest {
    type Valid = NewProduct;

    const INVALID: Code = Code::InvalidRequest;

    fn validate(self, _zone: Tz) -> Option<NewProduct> {
        let CreateProductRequest { product_name, price, stock_quantity, category } = self;
        Some(NewProduct { name: product_name.into(), price: price.get(), stock: stock_quantity.get(), category })
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
    description = "상품을 생성합니다.",
    request_body(content = CreateProductRequest),
    responses((status = 201, description = "상품 생성 성공", body = ProductResponse), CreateErrors)
)]
async fn create(
    State(app): State<AppState>,
    Write { call, body: product }: Write<CreateProductRequest>,
) -> Done<ProductResponse> {
    let created = app.engine.create_product(&call, product).await?;
    let id = created.value.product_id.get();
    Ok(Answer::created(created.map(ProductResponse::from)).naming("productId", id))
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
}

impl RequestBody for UpdateProductRequest {
    type Valid = ProductPatch;

    const INVALID: Code = Code::InvalidRequest;

    fn changes_nothing(&self) -> bool {
        let UpdateProductRequest { product_name, price, category, stock_delta } = self;
        product_name.is_none() && price.is_none() && category.is_none() && stock_delta.is_none()
    }

    fn validate(self, _zone: Tz) -> Option<ProductPatch> {
        let UpdateProductRequest { product_name, price, category, stock_delta } = self;
        Some(ProductPatch {
            name: product_name.map(String::from),
            price: price.map(Bounded::get),
            category,
            stock_delta: stock_delta.map(Bounded::get),
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
    description = "상품의 이름, 가격, 카테고리를 바꾸거나 재고를 늘리고 줄입니다.",
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
    Ok(Answer::ok(updated.map(ProductResponse::from)))
}
