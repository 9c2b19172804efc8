//! Coupon campaigns and the coupons that users hold.

use super::{CouponId, CouponStatus, Discount, Millis, OrderId};

/// A campaign's terms. Only its window may be moved once it exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CampaignTerms {
    pub coupon_id: CouponId,
    pub code: String,
    pub discount: Discount,
    pub total: i64,
    /// First instant of the window.
    pub opens_at: Millis,
    /// First instant after the window.
    pub closes_at: Millis,
    /// First instant at which its coupons can no longer be used.
    pub expires_at: Millis,
}

/// A campaign and how far it is given out.
#[derive(Clone, Debug)]
pub struct Campaign {
    pub terms: CampaignTerms,
    pub issued: i64,
    /// Kept back by a rebuild, until an operator releases them.
    pub withheld: i64,
}

/// A campaign to create. Times that were left out: open at once, and until `expires_at`.
#[derive(Clone, Debug)]
pub struct NewCampaign {
    /// 1–64 characters.
    pub code: String,
    pub discount: Discount,
    /// 1–1,000,000,000.
    pub total: i64,
    pub opens_at: Option<Millis>,
    pub closes_at: Option<Millis>,
    pub expires_at: Millis,
}

/// A change of a campaign's window; what is left out stays as it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct CampaignPatch {
    pub opens_at: Option<Millis>,
    /// A time just past means now.
    pub closes_at: Option<Millis>,
}

/// A coupon just given out.
#[derive(Clone, Debug)]
pub struct IssuedCoupon {
    pub terms: std::sync::Arc<CampaignTerms>,
    /// The place in the order of arrival, from 1.
    pub issue_no: i64,
    pub issued_at: Millis,
}

/// A coupon that a user holds.
#[derive(Clone, Debug)]
pub struct UserCoupon {
    pub terms: std::sync::Arc<CampaignTerms>,
    pub issue_no: i64,
    pub issued_at: Millis,
    /// As shown now: held or used coupons are USED, unused ones past their time EXPIRED.
    pub status: CouponStatus,
    pub used_at: Option<Millis>,
    /// The PENDING order that holds it.
    pub held_by: Option<OrderId>,
}
