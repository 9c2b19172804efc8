//! The baseline of the benchmarks: the same layers, the same decoding and a reply of the same size, without a decision and without a
//! call of Redis. Built for `benches/` only, with the feature `baseline`.

use std::sync::{Arc, LazyLock};

use axum::{
    Json, Router,
    extract::State,
    routing::{get, post},
};

use super::{
    coupons::{CouponIssueResponse, UserCouponRequest},
    products::ProductResponse,
};
use crate::{
    http::{
        extract::{params::PathId, write::Write},
        reply::{Answer, Done, Found},
        state::AppState,
    },
    model::{
        CampaignTerms, CouponConditions, CouponId, Discount, DiscountType, Error, IssuedCoupon, Millis, Product,
        ProductId, Reply, SaleTerms,
    },
};

pub fn router() -> Router<AppState> {
    Router::new().route("/baseline/coupons/issue", post(issue)).route("/baseline/products/{productId}", get(product))
}

static TERMS: LazyLock<Option<Arc<CampaignTerms>>> = LazyLock::new(|| {
    let coupon_id = CouponId::new(1)?;
    let discount = Discount { kind: DiscountType::Fixed, amount: 1000 };
    let (opens_at, closes_at) = (Millis(1_772_427_600_000), Millis(1_782_427_600_000));
    let code = "BASELINE".to_owned();
    let conditions = CouponConditions::default();
    let (total, expires_at) = (1, closes_at);
    Some(Arc::new(CampaignTerms { coupon_id, code, discount, conditions, total, opens_at, closes_at, expires_at }))
});

async fn issue(
    State(app): State<AppState>,
    Write { body: (user, _), .. }: Write<UserCouponRequest>,
) -> Done<CouponIssueResponse> {
    let terms = TERMS.clone().ok_or(Error::InvalidCoupon)?;
    let value = IssuedCoupon { terms, issue_no: user.get(), issued_at: app.engine.clock().now() };
    Ok(Answer::ok(Reply { value: CouponIssueResponse::new(value, app.engine.zone()), replayed: false }))
}

async fn product(State(app): State<AppState>, product: PathId<ProductId>) -> Found<ProductResponse> {
    let (name, category) = ("나이키 에어포스".to_owned(), "SHOES".to_owned());
    let (product_id, terms, read_at) = (product.valid()?, SaleTerms::default(), app.engine.clock().now());
    let product = Product { product_id, name, price: 139_000, stock: 100_000, category, terms, read_at };
    Ok(Json(ProductResponse::new(product, app.engine.zone())))
}
