//! Campaigns: creating, changing and listing them, and bringing one in under the id that it has elsewhere.

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
            decode::{not_null, parsed},
            fields::{Bounded, LocalTime, Text},
            params::PathId,
            write::{RequestBody, Write},
        },
        openapi::errors::documented_errors,
        reply::{Answer, Done, Found},
        routes::coupons::CampaignResponse,
        state::AppState,
    },
    model::{
        CampaignPatch, Category, CouponConditions, CouponId, Discount, DiscountType, NewCampaign, ProductId, UserId,
    },
};

/// The documented routes.
pub fn router() -> OpenApiRouter<AdminState> {
    OpenApiRouter::new().routes(routes!(create)).routes(routes!(campaign, update, put))
}

/// The largest fixed discount, in won.
const MAX_FIXED_DISCOUNT: i64 = 1_000_000_000_000;
/// The largest campaign, in coupons.
const MAX_CAMPAIGN: i64 = 1_000_000_000;

#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(
    description = "쿠폰 캠페인 생성 요청",
    example = json!({
        "couponCode": "HANGHAE8888", "discountType": "PERCENTAGE", "discountAmount": 10, "totalQuantity": 100,
        "opensAt": "2024-04-01T10:00:00", "closesAt": "2024-06-30T23:59:59", "expiredAt": "2024-06-30T23:59:59",
        "minOrderPrice": 30000, "maxDiscountPrice": 5000, "productIds": [1, 2], "categories": ["SHOES"]
    }),
)]
pub struct CreateCampaignRequest {
    /// 쿠폰 코드
    coupon_code: Text<64>,
    /// 할인 유형
    #[serde(deserialize_with = "parsed")]
    discount_type: DiscountType,
    /// 할인 값: PERCENTAGE는 1–100 퍼센트, FIXED는 원
    discount_amount: Bounded<1, { MAX_FIXED_DISCOUNT }>,
    /// 총 발급 수량
    total_quantity: Bounded<1, { MAX_CAMPAIGN }>,
    /// 발급 시작 시각: 없으면 지금부터
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false)]
    opens_at: Option<LocalTime>,
    /// 발급 종료 시각: 없으면 쿠폰 만료 시각까지
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false)]
    closes_at: Option<LocalTime>,
    /// 쿠폰 만료 시각
    expired_at: LocalTime,
    /// 쿠폰을 쓸 수 있는 최소 주문 금액(할인 전, 원): 없거나 null이면 제한하지 않습니다
    min_order_price: Option<Bounded<1, { MAX_FIXED_DISCOUNT }>>,
    /// 최대 할인 금액(원): PERCENTAGE만 가능하며, 없거나 null이면 제한하지 않습니다
    max_discount_price: Option<Bounded<1, { MAX_FIXED_DISCOUNT }>>,
    /// 할인 대상 상품: productIds와 categories 중 하나에 해당하는 상품만 할인합니다. 둘 다 없거나 null이면 모든 상품을 할인합니다
    #[schema(min_items = 1, max_items = 100)]
    product_ids: Option<Vec<ProductId>>,
    /// 할인 대상 카테고리
    #[schema(min_items = 1, max_items = 20)]
    categories: Option<Vec<Category>>,
}

impl RequestBody for CreateCampaignRequest {
    type Valid = NewCampaign;

    const INVALID: Code = Code::InvalidRequest;

    fn validate(self, zone: Tz) -> Option<NewCampaign> {
        if self.discount_type == DiscountType::Percentage && self.discount_amount.get() > 100 {
            return None;
        }
        let instant = |time: LocalTime| time.instant(zone);
        let opens_at = self.opens_at.map(|time| instant(time).ok_or(())).transpose().ok()?;
        let closes_at = self.closes_at.map(|time| instant(time).ok_or(())).transpose().ok()?;
        let expires_at = instant(self.expired_at)?;
        let closing = closes_at.unwrap_or(expires_at);
        if closing > expires_at || opens_at.is_some_and(|opening| opening >= closing) {
            return None;
        }
        // An empty list would be of no product.
        if self.product_ids.as_ref().is_some_and(Vec::is_empty) || self.categories.as_ref().is_some_and(Vec::is_empty) {
            return None;
        }
        let discount = Discount { kind: self.discount_type, amount: self.discount_amount.get() };
        let conditions = CouponConditions {
            min_order_price: self.min_order_price.map(Bounded::get),
            max_discount_price: self.max_discount_price.map(Bounded::get),
            product_ids: self.product_ids.unwrap_or_default(),
            categories: self.categories.unwrap_or_default(),
        };
        conditions.are_valid(discount).then_some(NewCampaign {
            code: self.coupon_code.into(),
            discount,
            conditions,
            total: self.total_quantity.get(),
            opens_at,
            closes_at,
            expires_at,
        })
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
    path = "/admin/v1/coupons",
    operation_id = "createCampaign",
    tag = "운영",
    summary = "쿠폰 캠페인 생성",
    description = "선착순 쿠폰 캠페인을 생성합니다. 발급 기간을 지정하지 않으면 바로 시작되어 쿠폰이 만료될 때까지 발급됩니다. 쿠폰을 쓸 수 있는 \
        주문의 조건을 정할 수 있습니다.",
    request_body(content = CreateCampaignRequest),
    responses((status = 201, description = "캠페인 생성 성공", body = CampaignResponse), CreateErrors)
)]
async fn create(
    State(app): State<AppState>,
    Write { call, body: campaign }: Write<CreateCampaignRequest>,
) -> Done<CampaignResponse> {
    let created = app.engine.create_campaign(&call, campaign).await?;
    let id = created.value.terms.coupon_id.get();
    let answer = Answer::created(created.map(|campaign| CampaignResponse::new(campaign, app.engine.zone())));
    Ok(answer.naming("couponId", id))
}

#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(
    description = "쿠폰 캠페인 발급 기간 변경 요청: 보내지 않은 항목은 그대로 둡니다.",
    example = json!({ "opensAt": "2024-04-01T10:00:00", "closesAt": "2024-06-30T23:59:59" }),
)]
struct UpdateCampaignRequest {
    /// 발급 시작 시각
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false)]
    opens_at: Option<LocalTime>,
    /// 발급 종료 시각: 지난 시각이면 1분 이내만 가능하며, 지금 종료합니다
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false)]
    closes_at: Option<LocalTime>,
}

impl RequestBody for UpdateCampaignRequest {
    type Valid = CampaignPatch;

    const INVALID: Code = Code::InvalidRequest;

    fn changes_nothing(&self) -> bool {
        self.opens_at.is_none() && self.closes_at.is_none()
    }

    fn validate(self, zone: Tz) -> Option<CampaignPatch> {
        let instant = |time: Option<LocalTime>| time.map(|time| time.instant(zone).ok_or(())).transpose().ok();
        let patch = CampaignPatch { opens_at: instant(self.opens_at)?, closes_at: instant(self.closes_at)? };
        let empty = patch.opens_at.zip(patch.closes_at).is_some_and(|(opens_at, closes_at)| opens_at >= closes_at);
        (!empty).then_some(patch)
    }

    fn user(_: &Self::Valid) -> Option<UserId> {
        None
    }
}

documented_errors! { UpdateErrors {
    "잘못된 요청 (입력값 오류, 유효성 검사 실패)" => [InvalidRequest],
    "쿠폰을 찾을 수 없음" => [CouponNotFound],
}}

#[utoipa::path(
    patch,
    path = "/admin/v1/coupons/{couponId}",
    operation_id = "updateCampaign",
    tag = "운영",
    summary = "쿠폰 캠페인 발급 기간 변경",
    description = "쿠폰 캠페인을 지금 시작하거나 종료하고, 또는 발급 기간을 옮깁니다. 발급 기간은 쿠폰이 만료되기 전에 끝나야 합니다. 이미 \
        발급된 쿠폰은 그대로입니다.",
    params(("couponId" = i64, Path, description = "couponId")),
    request_body(content = UpdateCampaignRequest),
    responses((status = 200, description = "발급 기간 변경 성공", body = CampaignResponse), UpdateErrors)
)]
async fn update(
    State(app): State<AppState>,
    coupon: PathId<CouponId>,
    Write { call, body: patch }: Write<UpdateCampaignRequest>,
) -> Done<CampaignResponse> {
    let moved = app.engine.update_campaign(&call, coupon.valid()?, patch).await?;
    Ok(Answer::ok(moved.map(|campaign| CampaignResponse::new(campaign, app.engine.zone()))))
}

documented_errors! { PutErrors {
    "잘못된 요청 (입력값 오류, 유효성 검사 실패)" => [InvalidRequest],
    "쿠폰을 찾을 수 없음 (잘못된 ID)" => [CouponNotFound],
}}

#[utoipa::path(
    put,
    path = "/admin/v1/coupons/{couponId}",
    operation_id = "putCampaign",
    tag = "운영",
    summary = "쿠폰 캠페인 가져오기",
    description = "다른 시스템의 ID 그대로 쿠폰 캠페인을 생성하거나 발급 기간을 변경합니다. 이미 있는 캠페인은 발급 기간만 바꿀 수 있으며, 보내지 않은 시각은 \
        그대로 둡니다. 같은 요청을 반복해도 결과는 같습니다. 이후 새로 만드는 캠페인의 ID는 항상 더 큽니다.",
    params(("couponId" = i64, Path, description = "couponId")),
    request_body(content = CreateCampaignRequest),
    responses(
        (status = 200, description = "발급 기간 변경 성공, 또는 변경 없음", body = CampaignResponse),
        (status = 201, description = "캠페인 생성 성공", body = CampaignResponse),
        PutErrors,
    )
)]
async fn put(
    State(app): State<AppState>,
    coupon: PathId<CouponId>,
    Write { call, body }: Write<CreateCampaignRequest>,
) -> Done<CampaignResponse> {
    let put = app.engine.put_campaign(&call, coupon.valid()?, body).await?;
    Ok(Answer::put(put.map(|put| put.map(|campaign| CampaignResponse::new(campaign, app.engine.zone())))))
}

documented_errors! { CampaignErrors {
    "쿠폰을 찾을 수 없음" => [CouponNotFound],
}}

#[utoipa::path(
    get,
    path = "/admin/v1/coupons/{couponId}",
    operation_id = "campaign",
    tag = "운영",
    summary = "쿠폰 캠페인 조회",
    description = "쿠폰 캠페인의 조건과 발급 현황을 조회합니다.",
    params(("couponId" = i64, Path, description = "couponId")),
    responses((status = 200, description = "캠페인 조회 성공", body = CampaignResponse), CampaignErrors)
)]
async fn campaign(State(app): State<AppState>, coupon: PathId<CouponId>) -> Found<CampaignResponse> {
    let campaign = app.engine.campaign(coupon.valid()?).await?;
    Ok(Json(CampaignResponse::new(campaign, app.engine.zone())))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn campaign(changes: Value) -> Option<NewCampaign> {
        let mut body = json!({
            "couponCode": "OPEN", "discountType": "FIXED", "discountAmount": 1000, "totalQuantity": 10,
            "opensAt": "2024-04-01T10:00:00", "closesAt": "2024-04-02T10:00:00", "expiredAt": "2024-04-03T10:00:00",
        });
        let fields = body.as_object_mut().unwrap();
        for (name, value) in changes.as_object().unwrap() {
            if value == "absent" {
                fields.remove(name)
            } else {
                fields.insert(name.clone(), value.clone())
            };
        }
        let request: CreateCampaignRequest = serde_json::from_value(body).ok()?;
        request.validate(chrono_tz::Asia::Seoul)
    }

    #[test]
    fn campaign_window_optional() {
        assert!(campaign(json!({})).is_some());
        let open = campaign(json!({ "opensAt": "absent", "closesAt": "absent" })).unwrap();
        assert!(open.opens_at.is_none() && open.closes_at.is_none());
        assert!(campaign(json!({ "closesAt": "2024-04-03T10:00:00" })).is_some());
    }

    #[test]
    fn campaign_window_updated_in_part_or_whole() {
        let patch = |body: Value| {
            let request: UpdateCampaignRequest = serde_json::from_value(body).ok()?;
            request.validate(chrono_tz::Asia::Seoul)
        };
        let (early, late) = ("2024-04-01T10:00:00", "2024-04-02T10:00:00");
        assert!(patch(json!({})).unwrap().opens_at.is_none());
        assert!(patch(json!({ "opensAt": late })).unwrap().closes_at.is_none());
        assert!(patch(json!({ "opensAt": early, "closesAt": late })).is_some());
        for hostile in [
            json!({ "opensAt": early, "closesAt": early }),
            json!({ "opensAt": late, "closesAt": early }),
            json!({ "closesAt": null }),
            json!({ "opensAt": "2024-04-01" }),
            json!({ "opensAt": 0 }),
        ] {
            assert!(patch(hostile.clone()).is_none(), "{hostile}");
        }
    }

    #[test]
    fn campaign_refused_when_out_of_bounds() {
        for hostile in [
            json!({ "opensAt": "2024-04-02T10:00:00" }),
            json!({ "opensAt": "2024-04-03T10:00:00", "closesAt": "absent" }),
            json!({ "closesAt": "2024-04-03T10:00:01" }),
            json!({ "expiredAt": "2024-04-03" }),
            json!({ "expiredAt": "absent" }),
            json!({ "opensAt": null }),
            json!({ "discountType": "PERCENTAGE", "discountAmount": 101 }),
            json!({ "discountAmount": 0 }),
            json!({ "discountAmount": 1_000_000_000_001_i64 }),
            json!({ "totalQuantity": 0 }),
            json!({ "totalQuantity": 1_000_000_001 }),
            json!({ "couponCode": "" }),
            json!({ "couponCode": " " }),
            json!({ "couponCode": "A\u{0}" }),
            json!({ "couponCode": "쿠".repeat(65) }),
            json!({ "minOrderPrice": 0 }),
            json!({ "minOrderPrice": 1_000_000_000_001_i64 }),
            json!({ "minOrderPrice": "1000" }),
            json!({ "maxDiscountPrice": 1 }),
            json!({ "discountType": "PERCENTAGE", "discountAmount": 10, "maxDiscountPrice": 0 }),
            json!({ "productIds": [] }),
            json!({ "productIds": [0] }),
            json!({ "productIds": [1, null] }),
            json!({ "productIds": 1 }),
            json!({ "productIds": (1..=101).collect::<Vec<_>>() }),
            json!({ "categories": [] }),
            json!({ "categories": ["shoes"] }),
            json!({ "categories": "SHOES" }),
            json!({ "categories": vec!["SHOES"; 21] }),
        ] {
            assert!(campaign(hostile.clone()).is_none(), "{hostile}");
        }
        assert!(campaign(json!({ "discountType": "PERCENTAGE", "discountAmount": 100 })).is_some());
        let most = json!({ "minOrderPrice": 1_000_000_000_000_i64, "productIds": (1..=100).collect::<Vec<_>>(),
            "categories": vec!["SHOES"; 20], "maxDiscountPrice": null });
        assert!(campaign(most).is_some());
        assert!(campaign(json!({ "couponCode": "쿠".repeat(64) })).is_some());
    }
}
