//! 쿠폰: first-come coupons, and the campaigns that give them out.

use axum::{Json, extract::State};
use chrono_tz::Tz;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    http::{
        error::Code,
        extract::{
            params::{Params, PathUser},
            write::{RequestBody, Write},
        },
        openapi::errors::documented_errors,
        page::PageParams,
        reply::{Answer, Done, Found},
        state::AppState,
    },
    model::{
        Campaign, CouponConditions, CouponId, CouponStatus, DiscountType, IssuedCoupon, Millis, OrderId, UserCoupon,
        UserId,
    },
};

/// The documented routes.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(issue)).routes(routes!(list)).routes(routes!(campaigns))
}

#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(description = "쿠폰 발급 요청", example = json!({ "couponId": 123, "userId": 1 }))]
pub struct UserCouponRequest {
    /// 발급받을 쿠폰 ID
    coupon_id: CouponId,
    /// 발급받는 사용자 ID
    user_id: UserId,
}

impl RequestBody for UserCouponRequest {
    type Valid = (UserId, CouponId);

    const INVALID: Code = Code::InvalidCoupon;

    fn validate(self, _zone: Tz) -> Option<Self::Valid> {
        Some((self.user_id, self.coupon_id))
    }

    fn user((user, _): &Self::Valid) -> Option<UserId> {
        Some(*user)
    }
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(description = "발급된 쿠폰")]
pub struct CouponIssueResponse {
    /// 쿠폰 ID
    coupon_id: i64,
    /// 쿠폰 코드
    coupon_code: String,
    /// 쿠폰 상태
    coupon_status: CouponStatus,
    /// 할인 유형
    discount_type: DiscountType,
    /// 할인 값: PERCENTAGE는 퍼센트, FIXED는 원
    discount_amount: i64,
    /// 만료 시각
    #[schema(example = "2024-06-30T23:59:59")]
    expired_at: String,
    /// 발급 시각
    #[schema(example = "2024-04-01T10:00:00")]
    created_at: String,
    /// 주문 시 사용하는 쿠폰 ID: couponId와 같은 값입니다.
    user_coupon_id: i64,
    /// 선착순 번호: 1부터 시작합니다.
    issue_no: i64,
}

impl CouponIssueResponse {
    pub fn new(coupon: IssuedCoupon, zone: Tz) -> Self {
        CouponIssueResponse {
            coupon_id: coupon.terms.coupon_id.get(),
            coupon_code: coupon.terms.code.clone(),
            coupon_status: CouponStatus::Available,
            discount_type: coupon.terms.discount.kind,
            discount_amount: coupon.terms.discount.amount,
            expired_at: coupon.terms.expires_at.local(zone),
            created_at: coupon.issued_at.local(zone),
            user_coupon_id: coupon.terms.coupon_id.get(),
            issue_no: coupon.issue_no,
        }
    }
}

documented_errors! { IssueErrors {
    "유효하지 않은 쿠폰" => [InvalidCoupon],
    "사용자를 찾을 수 없음" => [UserNotFound],
    "발급 가능한 쿠폰 수량 부족" => [CouponOutOfStock],
}}

#[utoipa::path(
    post,
    path = "/api/v1/coupons/issue",
    operation_id = "issueCoupon",
    tag = "쿠폰",
    summary = "(선착순) 쿠폰 발급",
    description = "(선착순) 쿠폰을 발급합니다.",
    request_body(content = UserCouponRequest, example = json!({ "couponId": 123, "userId": 1 })),
    responses(
        (status = 200, description = "쿠폰 발급 성공", body = CouponIssueResponse, example = json!({
            "couponId": 1, "couponCode": "HANGHAE8888", "couponStatus": "AVAILABLE", "discountType": "FIXED",
            "discountAmount": 1000, "expiredAt": "2024-06-30T23:59:59", "createdAt": "2024-04-01T10:00:00",
            "userCouponId": 1, "issueNo": 1
        })),
        IssueErrors,
    )
)]
async fn issue(
    State(app): State<AppState>,
    Write { call, body: (user, coupon) }: Write<UserCouponRequest>,
) -> Done<CouponIssueResponse> {
    let issued = app.engine.issue_coupon(&call, user, coupon).await?;
    Ok(Answer::ok(issued.map(|coupon| CouponIssueResponse::new(coupon, app.engine.zone()))))
}

/// The products of conditions; `None` if they name none.
fn shown_products(conditions: &CouponConditions) -> Option<Vec<i64>> {
    let products: Vec<i64> = conditions.product_ids.iter().map(|product| product.get()).collect();
    (!products.is_empty()).then_some(products)
}

/// The categories of conditions; `None` if they name none.
fn shown_categories(conditions: &CouponConditions) -> Option<Vec<String>> {
    let categories: Vec<String> = conditions.categories.iter().map(|category| category.as_str().to_owned()).collect();
    (!categories.is_empty()).then_some(categories)
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(description = "사용자 쿠폰")]
pub struct UserCouponResponse {
    /// 쿠폰 ID
    coupon_id: i64,
    /// 쿠폰 코드
    coupon_code: String,
    /// 쿠폰 상태
    coupon_status: CouponStatus,
    /// 할인 유형
    discount_type: DiscountType,
    /// 할인 값: PERCENTAGE는 퍼센트, FIXED는 원
    discount_amount: i64,
    /// 발급 시각
    #[schema(example = "2024-04-01T10:00:00")]
    created_at: String,
    /// 사용 시각: 사용 전에는 null입니다.
    #[schema(required = true)]
    used_at: Option<String>,
    /// 만료 시각
    #[schema(example = "2024-06-30T23:59:59")]
    expired_at: String,
    /// 주문 시 사용하는 쿠폰 ID: couponId와 같은 값입니다.
    user_coupon_id: i64,
    /// 이 쿠폰을 잡고 있는 결제 대기(PENDING) 주문 ID
    #[schema(required = true)]
    held_by_order_id: Option<i64>,
    /// 선착순 번호: 1부터 시작합니다.
    issue_no: i64,
    /// 쿠폰을 쓸 수 있는 최소 주문 금액(할인 전, 원): null이면 제한이 없습니다
    #[schema(required = true)]
    min_order_price: Option<i64>,
    /// 최대 할인 금액(원): null이면 제한이 없습니다
    #[schema(required = true)]
    max_discount_price: Option<i64>,
    /// 할인 대상 상품: productIds와 categories 중 하나에 해당하는 상품만 할인합니다. 둘 다 null이면 모든 상품을 할인합니다
    #[schema(required = true)]
    product_ids: Option<Vec<i64>>,
    /// 할인 대상 카테고리
    #[schema(required = true)]
    categories: Option<Vec<String>>,
}

impl UserCouponResponse {
    pub fn new(coupon: UserCoupon, zone: Tz) -> Self {
        let conditions = &coupon.terms.conditions;
        UserCouponResponse {
            min_order_price: conditions.min_order_price,
            max_discount_price: conditions.max_discount_price,
            product_ids: shown_products(conditions),
            categories: shown_categories(conditions),
            coupon_id: coupon.terms.coupon_id.get(),
            coupon_code: coupon.terms.code.clone(),
            coupon_status: coupon.status,
            discount_type: coupon.terms.discount.kind,
            discount_amount: coupon.terms.discount.amount,
            created_at: coupon.issued_at.local(zone),
            used_at: coupon.used_at.map(|time: Millis| time.local(zone)),
            expired_at: coupon.terms.expires_at.local(zone),
            user_coupon_id: coupon.terms.coupon_id.get(),
            held_by_order_id: coupon.held_by.map(OrderId::get),
            issue_no: coupon.issue_no,
        }
    }
}

documented_errors! { ListErrors {
    "사용자를 찾을 수 없음" => [UserNotFound],
}}

#[utoipa::path(
    get,
    path = "/api/v1/coupons/{userId}",
    operation_id = "userCoupons",
    tag = "쿠폰",
    summary = "사용자 쿠폰 리스트 조회",
    description = "사용자의 쿠폰 목록을 조회합니다. discountType가 FIXED인 경우 usedAt는 null",
    params(("userId" = i64, Path, description = "userId")),
    responses(
        (status = 200, description = "쿠폰 조회 성공", body = Vec<UserCouponResponse>, example = json!([
            {
                "couponId": 1, "couponCode": "HANGHAE8888", "couponStatus": "AVAILABLE", "discountType": "FIXED",
                "discountAmount": 1000, "createdAt": "2024-04-01T10:00:00", "usedAt": null,
                "expiredAt": "2024-06-30T23:59:59", "userCouponId": 1, "heldByOrderId": null, "issueNo": 1,
                "minOrderPrice": 30000, "maxDiscountPrice": null, "productIds": null, "categories": null
            },
            {
                "couponId": 2, "couponCode": "SPARTA1000", "couponStatus": "USED", "discountType": "PERCENTAGE",
                "discountAmount": 20, "createdAt": "2024-03-20T12:00:00", "usedAt": "2024-03-25T14:45:00",
                "expiredAt": "2024-04-30T23:59:59", "userCouponId": 2, "heldByOrderId": null, "issueNo": 1,
                "minOrderPrice": null, "maxDiscountPrice": 5000, "productIds": [1, 2], "categories": ["SHOES"]
            }
        ])),
        ListErrors,
    )
)]
async fn list(State(app): State<AppState>, user: PathUser) -> Found<Vec<UserCouponResponse>> {
    let coupons = app.engine.user_coupons(user.valid()?).await?;
    let zone = app.engine.zone();
    Ok(Json(coupons.into_iter().map(|coupon| UserCouponResponse::new(coupon, zone)).collect()))
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(description = "쿠폰 발급 캠페인")]
pub struct CampaignResponse {
    /// 쿠폰 ID
    coupon_id: i64,
    /// 쿠폰 코드
    coupon_code: String,
    /// 할인 유형
    discount_type: DiscountType,
    /// 할인 값: PERCENTAGE는 퍼센트, FIXED는 원
    discount_amount: i64,
    /// 총 발급 수량
    total_quantity: i64,
    /// 발급된 수량
    issued_quantity: i64,
    /// 남은 수량
    remaining_quantity: i64,
    /// 발급 시작 시각
    #[schema(example = "2024-04-01T10:00:00")]
    opens_at: String,
    /// 발급 종료 시각
    #[schema(example = "2024-06-30T23:59:59")]
    closes_at: String,
    /// 쿠폰 만료 시각
    #[schema(example = "2024-06-30T23:59:59")]
    expired_at: String,
    /// 쿠폰을 쓸 수 있는 최소 주문 금액(할인 전, 원): null이면 제한이 없습니다
    #[schema(required = true)]
    min_order_price: Option<i64>,
    /// 최대 할인 금액(원): null이면 제한이 없습니다
    #[schema(required = true)]
    max_discount_price: Option<i64>,
    /// 할인 대상 상품: productIds와 categories 중 하나에 해당하는 상품만 할인합니다. 둘 다 null이면 모든 상품을 할인합니다
    #[schema(required = true)]
    product_ids: Option<Vec<i64>>,
    /// 할인 대상 카테고리
    #[schema(required = true)]
    categories: Option<Vec<String>>,
}

impl CampaignResponse {
    pub fn new(campaign: Campaign, zone: Tz) -> Self {
        let Campaign { terms, issued, withheld } = campaign;
        CampaignResponse {
            min_order_price: terms.conditions.min_order_price,
            max_discount_price: terms.conditions.max_discount_price,
            product_ids: shown_products(&terms.conditions),
            categories: shown_categories(&terms.conditions),
            coupon_id: terms.coupon_id.get(),
            discount_type: terms.discount.kind,
            discount_amount: terms.discount.amount,
            total_quantity: terms.total,
            issued_quantity: issued,
            remaining_quantity: terms.total - issued - withheld,
            opens_at: terms.opens_at.local(zone),
            closes_at: terms.closes_at.local(zone),
            expired_at: terms.expires_at.local(zone),
            coupon_code: terms.code,
        }
    }
}

documented_errors! { CampaignsErrors {
    "잘못된 요청 (유효하지 않은 조회 조건)" => [InvalidRequest],
}}

#[utoipa::path(
    get,
    path = "/api/v1/campaigns",
    tag = "쿠폰",
    summary = "진행 중인 쿠폰 캠페인 조회",
    description = "지금 쿠폰을 발급받을 수 있는 캠페인 목록을 조회합니다.",
    params(PageParams),
    responses(
        (status = 200, description = "캠페인 조회 성공", body = Vec<CampaignResponse>),
        CampaignsErrors,
    )
)]
async fn campaigns(State(app): State<AppState>, page: Params<PageParams>) -> Found<Vec<CampaignResponse>> {
    let PageParams { page, size } = page.valid()?;
    let campaigns = app.engine.open_campaigns(page.get(), size.get()).await?;
    let zone = app.engine.zone();
    Ok(Json(campaigns.into_iter().map(|campaign| CampaignResponse::new(campaign, zone)).collect()))
}
