//! Coupons: issue, listing, and the terms of campaigns.

use std::{
    collections::HashMap,
    sync::{Arc, RwLock},
};

use super::*;
use crate::redis::{commands::Issued, records::CouponRecord};

/// The maximum number of cached campaigns.
const MAX_CACHED_CAMPAIGNS: usize = 10_000;

/// A cache of campaigns' terms. Entries never expire, because only the window of a campaign can change, and no decision uses
/// the cached window: the script has its own, and [`sold_out`](super::sold_out) reads it.
#[derive(Default)]
pub(super) struct CampaignCache(RwLock<HashMap<CouponId, Arc<CampaignTerms>>>);

impl CampaignCache {
    fn get(&self, id: CouponId) -> Option<Arc<CampaignTerms>> {
        self.0.read().unwrap_or_else(|poisoned| poisoned.into_inner()).get(&id).cloned()
    }

    fn insert(&self, terms: CampaignTerms) -> Arc<CampaignTerms> {
        let terms = Arc::new(terms);
        let mut cached = self.0.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        if cached.len() >= MAX_CACHED_CAMPAIGNS {
            cached.clear();
        }
        cached.insert(terms.coupon_id, terms.clone());
        terms
    }
}

impl Engine {
    /// Issues the next coupon of a campaign to a user. Rejects without a call to Redis if the campaign is certain to be sold
    /// out: see [`sold_out`](super::sold_out).
    ///
    /// # Errors
    /// [`Error::UserNotFound`]; [`Error::InvalidCoupon`] if the campaign is unknown or not open, or if the user holds a coupon
    /// of it; [`Error::CouponOutOfStock`].
    pub async fn issue_coupon(&self, call: &Call, user: UserId, coupon: CouponId) -> Outcome<IssuedCoupon> {
        // With a key, the idempotency record may have another reply.
        if call.key.is_none() && self.sold_out.refuses(user, coupon) {
            return Err(Error::CouponOutOfStock);
        }
        let _operation = self.store.begin_operation();
        let (owner, here) = (self.store.owner(user.get()), self.store.owner(coupon.get()));
        if owner != here {
            // Check the key before the user: it may belong to another request.
            self.store.check_key(call, owner).await?;
            self.check_user(user).await?;
        }
        // Read before the decision: after it, nothing that the reply needs may fail.
        let terms = self.terms(coupon).await?;
        let issued = self.with_claimed_key(call, here, self.store.coupon_issue(call, user, coupon)).await.inspect_err(
            |error| {
                if let (Error::CouponOutOfStock, Some(terms)) = (error, &terms) {
                    self.sold_out.refused_by_redis(user, terms);
                }
            },
        )?;
        let terms =
            terms.ok_or_else(|| Error::Internal(anyhow::anyhow!("coupon {coupon} was issued without terms")))?;
        let (issue_no, issued_at) = (issued.value.issue_no, issued.value.issued_at);
        Ok(Reply { value: IssuedCoupon { terms, issue_no, issued_at }, replayed: issued.replayed })
    }

    /// Checks that a user exists.
    pub(super) async fn check_user(&self, user: UserId) -> Result<(), Error> {
        if self.sold_out.knows(user) {
            return Ok(());
        }
        self.store.balance(user).await?;
        self.sold_out.learn(user);
        Ok(())
    }

    /// Puts a coupon, which a campaign of another partition issued, beside its user, so that an order can use it.
    pub(super) async fn grant_coupon(&self, call: &Call, user: UserId, coupon: CouponId) -> Result<(), Error> {
        let Some(CouponRecord { issue_no, issued_at, .. }) = self.store.issued_coupon(user, coupon).await? else {
            return Ok(());
        };
        self.store.coupon_grant(call, user, coupon, Issued { issue_no, issued_at }).await
    }

    /// A user's coupons, in the order of their issue.
    ///
    /// # Errors
    /// [`Error::UserNotFound`].
    pub async fn user_coupons(&self, user: UserId) -> Result<Vec<UserCoupon>, Error> {
        let now = self.store.now(self.store.owner(user.get()));
        let mut coupons = Vec::new();
        for record in self.store.user_coupons(user).await? {
            let terms = self.terms(record.coupon_id).await?;
            let terms =
                terms.ok_or_else(|| Error::Internal(anyhow::anyhow!("coupon {} has no campaign", record.coupon_id)))?;
            coupons.push(user_coupon(record, terms, now));
        }
        coupons.sort_unstable_by_key(|coupon| (coupon.issued_at, coupon.terms.coupon_id));
        Ok(coupons)
    }

    /// Campaigns that are open now, in the order of their closing.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn open_campaigns(&self, page: i64, size: i64) -> Result<Vec<Campaign>, Error> {
        // Reads more than a page, because campaigns that have not opened yet are dropped afterwards.
        let max = (page + 1).saturating_mul(size).saturating_mul(4).clamp(1000, 10_000);
        let campaigns = self.store.campaigns_closing_after(0, max).await?;
        let now = |campaign: &Campaign| self.store.now(self.store.owner(campaign.terms.coupon_id.get()));
        let open = campaigns.into_iter().filter(|campaign| campaign.terms.opens_at <= now(campaign));
        Ok(open.skip((page * size) as usize).take(size as usize).collect())
    }

    /// A campaign and the number of its issued coupons.
    ///
    /// # Errors
    /// [`Error::CampaignNotFound`].
    pub async fn campaign(&self, coupon: CouponId) -> Result<Campaign, Error> {
        self.store.campaign(coupon).await?.ok_or(Error::CampaignNotFound)
    }

    /// A campaign's terms, cached; `None` if there is no such campaign.
    pub(super) async fn terms(&self, coupon: CouponId) -> Result<Option<Arc<CampaignTerms>>, Error> {
        if let Some(terms) = self.campaigns.get(coupon) {
            return Ok(Some(terms));
        }
        let campaign = self.store.campaign(coupon).await?;
        Ok(campaign.map(|campaign| self.campaigns.insert(campaign.terms)))
    }
}

fn user_coupon(record: CouponRecord, terms: Arc<CampaignTerms>, now: Millis) -> UserCoupon {
    let status = match record.free {
        true if now < terms.expires_at => CouponStatus::Available,
        true => CouponStatus::Expired,
        false => CouponStatus::Used,
    };
    UserCoupon {
        terms,
        issue_no: record.issue_no,
        issued_at: record.issued_at,
        status,
        used_at: record.used_at,
        held_by: record.held_by,
    }
}
