//! 상품: products and the popular ones.

use axum::{Json, extract::State};
use chrono_tz::Tz;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    http::{
        error::{ApiError, Code},
        extract::{
            fields::Bounded,
            params::{Params, PathId, QueryParams},
        },
        openapi::{document::ranking_scope, errors::documented_errors},
        page::{Listed, PageParams, PageResponse},
        reply::Found,
        state::AppState,
    },
    model::{Category, Product, ProductId, RankedProduct, RankingScope, SaleStatus, SaleTerms, UserId},
};

/// The documented routes.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(product)).routes(routes!(popular)).routes(routes!(products))
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(description = "상품")]
pub struct ProductResponse {
    /// 상품 ID
    product_id: i64,
    /// 상품 이름
    product_name: String,
    /// 가격(원)
    price: i64,
    /// 판매 가능한 재고 수량
    stock_quantity: i64,
    /// 카테고리: OUTER, TOP, BOTTOM, SHOES 또는 그 밖의 분류
    category: String,
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
}

impl ProductResponse {
    pub fn new(product: Product, zone: Tz) -> Self {
        let sale_status = product.sale_status();
        let SaleTerms { opens_at, closes_at, limit_per_user, limit_group } = product.terms;
        ProductResponse {
            product_id: product.product_id.get(),
            product_name: product.name,
            price: product.price,
            stock_quantity: product.stock,
            category: product.category,
            sale_status,
            opens_at: opens_at.map(|at| at.local(zone)),
            closes_at: closes_at.map(|at| at.local(zone)),
            limit_per_user,
            limit_group: limit_group.map(|group| group.to_string()),
        }
    }
}

documented_errors! { ProductErrors {
    "상품을 찾을 수 없음" => [ProductNotFound],
}}

#[utoipa::path(
    get,
    path = "/api/v1/products/{productId}",
    tag = "상품",
    summary = "상품 조회",
    description = "특정 상품 정보를 조회합니다.",
    params(("productId" = i64, Path, description = "productId")),
    responses(
        (status = 200, description = "상품 조회 성공", body = ProductResponse, example = json!({
            "productId": 123, "productName": "나이키 에어포스", "price": 990000, "stockQuantity": 50,
            "category": "SHOES", "saleStatus": "ON_SALE", "opensAt": "2024-04-04T10:00:00",
            "closesAt": "2024-04-05T10:00:00", "limitPerUser": 1, "limitGroup": "AIR-FORCE"
        })),
        ProductErrors,
    )
)]
async fn product(State(app): State<AppState>, product: PathId<ProductId>) -> Found<ProductResponse> {
    let product = app.engine.product(product.valid()?).await?;
    Ok(Json(ProductResponse::new(product, app.engine.zone())))
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(description = "상품 판매 순위")]
struct ProductSalesRankResponse {
    /// 상품 ID
    product_id: i64,
    /// 판매 수량
    sales_count: i64,
    /// 총 판매 금액(원)
    total_sales_price: i64,
    /// 랭킹 범위
    ranking_scope: RankingScope,
    /// 순위
    rank_position: i64,
}

impl ProductSalesRankResponse {
    fn new(ranked: RankedProduct, scope: RankingScope) -> Self {
        ProductSalesRankResponse {
            product_id: ranked.product_id.get(),
            sales_count: ranked.units,
            total_sales_price: ranked.won,
            ranking_scope: scope,
            rank_position: ranked.rank,
        }
    }
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
struct PopularParams {
    /// 랭킹 범위 (대소문자 구분 없음)
    #[serde(default)]
    #[param(schema_with = ranking_scope, required = false)]
    sort_by: Option<String>,
    /// 조회할 최대 상품 수
    #[serde(default = "popular_limit")]
    #[param(inline, value_type = PopularLimit, default = 5)]
    limit: String,
}

/// The products of a reply, at most.
type PopularLimit = Bounded<1, 100>;

fn popular_limit() -> String {
    "5".to_owned()
}

impl QueryParams for PopularParams {
    /// Only a repeated parameter is invalid here.
    const INVALID: Code = Code::InvalidScope;

    fn user(&self) -> Option<UserId> {
        None
    }
}

impl PopularParams {
    /// Checks the scope first: the contract has its 400.
    fn decode(&self) -> Result<(RankingScope, usize), ApiError> {
        let scope = match &self.sort_by {
            None => RankingScope::ThreeDays,
            Some(word) => word.to_ascii_uppercase().parse().map_err(|_| Code::InvalidScope)?,
        };
        let limit: PopularLimit = self.limit.parse().map_err(|()| Code::InvalidRequest)?;
        Ok((scope, limit.get() as usize))
    }
}

documented_errors! { PopularErrors {
    "잘못된 요청 (유효하지 않은 랭킹 범위)" => [InvalidScope, InvalidRequest],
    "서버 내부 오류" => [Internal],
}}

#[utoipa::path(
    get,
    path = "/api/v1/products/popular",
    tag = "상품",
    summary = "인기 상품 조회",
    description = "특정 기간 동안 가장 많이 판매된 인기 상품 목록을 조회합니다.",
    params(PopularParams),
    responses(
        (status = 200, description = "인기 상품 조회 성공", body = Vec<ProductSalesRankResponse>, example = json!([
            {
                "productId": 101, "salesCount": 150, "totalSalesPrice": 14850000, "rankingScope": "THREE_DAYS",
                "rankPosition": 1
            },
            {
                "productId": 102, "salesCount": 120, "totalSalesPrice": 10800000, "rankingScope": "THREE_DAYS",
                "rankPosition": 2
            }
        ])),
        PopularErrors,
    )
)]
async fn popular(State(app): State<AppState>, params: Params<PopularParams>) -> Found<Vec<ProductSalesRankResponse>> {
    let (scope, limit) = params.valid()?.decode()?;
    let ranked = app.engine.popular(scope, limit).await?;
    Ok(Json(ranked.into_iter().map(|product| ProductSalesRankResponse::new(product, scope)).collect()))
}

type ProductPageResponse = PageResponse<ProductResponse>;

impl Listed for ProductResponse {
    const PAGE: &str = "ProductPageResponse";
    const DESCRIPTION: &str = "상품 목록의 한 페이지";
    const CONTENT: &str = "상품 목록";
    const TOTAL: &str = "전체 상품 수";
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct ProductsParams {
    /// 카테고리
    #[param(inline)]
    category: Option<Category>,
}

impl QueryParams for ProductsParams {
    fn user(&self) -> Option<UserId> {
        None
    }
}

documented_errors! { ProductsErrors {
    "잘못된 요청 (유효하지 않은 조회 조건)" => [InvalidRequest],
}}

#[utoipa::path(
    get,
    path = "/api/v1/products",
    tag = "상품",
    summary = "상품 목록 조회",
    description = "상품 목록을 상품 ID 순으로 조회합니다.",
    params(PageParams, ProductsParams),
    responses((status = 200, description = "상품 목록 조회 성공", body = ProductPageResponse), ProductsErrors)
)]
async fn products(
    State(app): State<AppState>,
    page: Params<PageParams>,
    params: Params<ProductsParams>,
) -> Found<ProductPageResponse> {
    let PageParams { page, size } = page.valid()?;
    let ProductsParams { category } = params.valid()?;
    let products = app.engine.products(page.get(), size.get(), category).await?;
    let zone = app.engine.zone();
    Ok(Json(PageResponse::new(products, |product| ProductResponse::new(product, zone))))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use axum::{
        extract::FromRequestParts,
        http::{Request, Uri},
    };

    use super::*;
    use crate::{config::LimitsConfig, http::limits::Limits};

    async fn params<T: QueryParams>(query: &str) -> Result<T, Code> {
        let uri: Uri = format!("/api/v1/products?{query}").parse().unwrap();
        let (mut parts, ()) = Request::builder().uri(uri).body(()).unwrap().into_parts();
        let limits = Arc::new(Limits::new(&LimitsConfig::off()));
        let Ok(params) = Params::<T>::from_request_parts(&mut parts, &limits).await;
        params.valid().map_err(|error| error.code())
    }

    async fn popular(query: &str) -> Result<(RankingScope, usize), Code> {
        params::<PopularParams>(query).await?.decode().map_err(|error| error.code())
    }

    #[tokio::test]
    async fn scope_checked_before_limit() {
        assert_eq!(popular("").await, Ok((RankingScope::ThreeDays, 5)));
        assert_eq!(popular("sortBy=wEEkly&limit=100&other=1").await, Ok((RankingScope::Weekly, 100)));
        assert_eq!(popular("sortBy=three%5Fdays").await, Ok((RankingScope::ThreeDays, 5)));
        for query in ["sortBy=", "sortBy=YEARLY", "sortBy=%FF&limit=0", "sortBy=%zz", "sortBy=TODAY&sortBy=TODAY"] {
            assert_eq!(popular(query).await, Err(Code::InvalidScope), "{query}");
        }
        for query in
            ["limit=0", "limit=101", "limit=-1", "limit=", "limit=5.0", "limit=%00", "limit=99999999999999999999"]
        {
            assert_eq!(popular(query).await, Err(Code::InvalidRequest), "{query}");
        }
    }

    #[tokio::test]
    async fn page_size_bounded() {
        let first = params::<PageParams>("").await.unwrap();
        assert_eq!((first.page.get(), first.size.get()), (0, 20));
        let deepest = params::<PageParams>("page=10000&size=100&category=SHOES").await.unwrap();
        assert_eq!((deepest.page.get(), deepest.size.get()), (10_000, 100));
        for query in ["page=10001&size=1", "page=-1", "size=0", "size=101", "page=", "page=1&page=1"] {
            assert_eq!(params::<PageParams>(query).await.unwrap_err(), Code::InvalidRequest, "{query}");
        }
    }

    #[tokio::test]
    async fn category_refused_when_no_word() {
        let category = async |query: &str| params::<ProductsParams>(query).await.map(|params| params.category);
        assert_eq!(category("").await, Ok(None));
        assert!(category("category=SHOES&page=1").await.unwrap().is_some());
        for query in ["category=shoes", "category="] {
            assert_eq!(category(query).await, Err(Code::InvalidRequest), "{query}");
        }
    }
}
