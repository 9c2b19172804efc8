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
            decode::{int, optional_int, optional_text, optional_word, text, word},
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
#[schema(description = "상품 생성 요청")]
struct CreateProductRequest {
    /// 상품 이름
    #[serde(deserialize_with = "text::<_, 200>")]
    #[schema(min_length = 1, max_length = 200, example = "나이키 에어포스")]
    product_name: String,
    /// 가격(원)
    #[serde(deserialize_with = "int::<_, 0, MAX_PRICE>")]
    #[schema(minimum = 0, maximum = 1000000000000_i64, example = 990000)]
    price: i64,
    /// 처음 재고 수량
    #[serde(deserialize_with = "int::<_, 0, MAX_STOCK>")]
    #[schema(minimum = 0, maximum = 1000000000, example = 50)]
    stock_quantity: i64,
    /// 카테고리
    #[serde(deserialize_with = "word")]
    #[schema(value_type = String, pattern = "^[A-Z][A-Z0-9_]{0,31}$", example = "SHOES")]
    category: Category,
}

impl RequestBody for CreateProductRequest {
    type Valid = NewProduct;

    const INVALID: Code = Code::InvalidRequest;

    fn validate(self, _zone: Tz) -> Option<NewProduct> {
        let CreateProductRequest { product_name: name, price, stock_quantity: stock, category } = self;
        Some(NewProduct { name, price, stock, category })
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
#[schema(description = "상품 변경 요청: 보내지 않은 항목은 그대로 둡니다.")]
struct UpdateProductRequest {
    /// 상품 이름
    #[serde(default, deserialize_with = "optional_text::<_, 200>")]
    #[schema(min_length = 1, max_length = 200, nullable = false)]
    product_name: Option<String>,
    /// 가격(원)
    #[serde(default, deserialize_with = "optional_int::<_, 0, MAX_PRICE>")]
    #[schema(minimum = 0, maximum = 1000000000000_i64, nullable = false)]
    price: Option<i64>,
    /// 카테고리
    #[serde(default, deserialize_with = "optional_word")]
    #[schema(value_type = Option<String>, pattern = "^[A-Z][A-Z0-9_]{0,31}$", nullable = false)]
    category: Option<Category>,
    /// 재고 증감 수량
    #[serde(default, deserialize_with = "optional_int::<_, { -MAX_STOCK }, MAX_STOCK>")]
    #[schema(minimum = -1000000000, maximum = 1000000000, nullable = false, example = 10)]
    stock_delta: Option<i64>,
}

impl RequestBody for UpdateProductRequest {
    type Valid = ProductPatch;

    const INVALID: Code = Code::InvalidRequest;

    fn changes_nothing(&self) -> bool {
        let UpdateProductRequest { product_name, price, category, stock_delta } = self;
        product_name.is_none() && price.is_none() && category.is_none() && stock_delta.is_none()
    }

    fn validate(self, _zone: Tz) -> Option<ProductPatch> {
        let UpdateProductRequest { product_name: name, price, category, stock_delta } = self;
        Some(ProductPatch { name, price, category, stock_delta })
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
