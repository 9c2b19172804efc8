//! Coupon campaigns and the coupons that users hold.

use super::{CouponConditions, CouponId, CouponStatus, Discount, Millis, OrderId};

/// A campaign's terms. Only the window can change once the campaign exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CampaignTerms {
    pub coupon_id: CouponId,
    pub code: String,
    pub discount: Discount,
    pub conditions: CouponConditions,
    pub total: i64,
    /// First instant of the window.
    pub opens_at: Millis,
    /// First instant after the window.
    pub closes_at: Millis,
    /// First instant at which its coupons can no longer be used.
    pub expires_at: Millis,
}

impl CampaignTerms {
    /// Whether the window has an instant, and ends before the coupons expire.
    pub fn has_window(&self) -> bool {
        is_window(self.opens_at, self.closes_at, self.expires_at)
    }
}

fn is_window(opens_at: Millis, closes_at: Millis, expires_at: Millis) -> bool {
    opens_at < closes_at && closes_at <= expires_at
}

/// Why a campaign is refused whose terms have no window.
pub const NO_WINDOW: &str = "the campaign's window is no window";

/// Why the end of a window is refused that is in the past, but for a moment.
pub const CLOSED_BEFORE_NOW: &str = "a campaign can't have closed before now";

/// A campaign and the number of its issued coupons.
#[derive(Clone, Debug)]
pub struct Campaign {
    pub terms: CampaignTerms,
    pub issued: i64,
    /// Coupons that a rebuild withheld, until an operator releases them.
    pub withheld: i64,
}

/// A campaign to create. It opens at once unless `opens_at` is set, and closes at `expires_at` unless `closes_at` is set.
#[derive(Clone, Debug)]
pub struct NewCampaign {
    /// 1–64 characters.
    pub code: String,
    pub discount: Discount,
    pub conditions: CouponConditions,
    /// 1–1,000,000,000.
    pub total: i64,
    pub opens_at: Option<Millis>,
    pub closes_at: Option<Millis>,
    pub expires_at: Millis,
}

impl NewCampaign {
    /// As [`CampaignTerms::has_window`], created at `now`.
    pub fn has_window(&self, now: Millis) -> bool {
        is_window(self.opens_at.unwrap_or(now), self.closes_at.unwrap_or(self.expires_at), self.expires_at)
    }
}

/// A change of a campaign's window. `None` leaves a field unchanged.
#[derive(Clone, Copy, Debug, Default)]
pub struct CampaignPatch {
    pub opens_at: Option<Millis>,
    /// A time in the recent past means now.
    pub closes_at: Option<Millis>,
}

/// A coupon that was just issued.
#[derive(Clone, Debug)]
pub struct IssuedCoupon {
    pub terms: std::sync::Arc<CampaignTerms>,
    /// The rank of the issue within the campaign, from 1.
    pub issue_no: i64,
    pub issued_at: Millis,
}

/// A coupon that a user holds.
#[derive(Clone, Debug)]
pub struct UserCoupon {
    pub terms: std::sync::Arc<CampaignTerms>,
    pub issue_no: i64,
    pub issued_at: Millis,
    /// A held or used coupon is USED; an unused coupon past `expires_at` is EXPIRED.
    pub status: CouponStatus,
    pub used_at: Option<Millis>,
    /// The PENDING order that holds it.
    pub held_by: Option<OrderId>,
}
