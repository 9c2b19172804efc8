//! Coupons: giving them out, listing them, and the terms of their campaigns.

use std::{
    collections::HashMap,
    sync::{Arc, RwLock},
};

use super::*;
use crate::redis::records::CouponRecord;

/// Campaigns whose terms a process keeps in memory.
const CACHED_CAMPAIGNS: usize = 10_000;

/// Of a campaign's terms only the window is ever changed, so what was read once stays true but for that. (Nobody goes by the
/// window that is kept here: the script knows, and [`sold_out`](super::sold_out) finds out.)
#[derive(Default)]
pub(super) struct CampaignCache(RwLock<HashMap<CouponId, Arc<CampaignTerms>>>);

impl CampaignCache {
    fn get(&self, id: CouponId) -> Option<Arc<CampaignTerms>> {
        self.0.read().unwrap_or_else(|poisoned| poisoned.into_inner()).get(&id).cloned()
    }

    fn keep(&self, terms: CampaignTerms) -> Arc<CampaignTerms> {
        let terms = Arc::new(terms);
        let mut kept = self.0.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        if kept.len() >= CACHED_CAMPAIGNS {
            kept.clear();
        }
        kept.insert(terms.coupon_id, terms.clone());
        terms
    }
}

impl Engine {
    /// Gives the next coupon of a campaign to a user. Whoever is certain to be too late is told so without Redis being asked:
    /// see [`sold_out`](super::sold_out).
    ///
    /// # Errors
    /// [`Error::UserNotFound`]; [`Error::InvalidCoupon`] where the campaign is unknown or not open, or the user holds one;
    /// [`Error::CouponOutOfStock`].
    pub async fn issue_coupon(&self, call: &Call, user: UserId, coupon: CouponId) -> Outcome<IssuedCoupon> {
        // Under a key the answer may be another one than now: its record's.
        if call.key.is_none() && self.sold_out.refuses(user, coupon) {
            return Err(Error::CouponOutOfStock);
        }
        let (home, here) = (self.store.owner(user.get()), self.store.owner(coupon.get()));
        let far = home != here;
        if far {
            // The key comes before the user: it may belong to another request.
            self.store.check_key(call, home).await?;
            self.store.balance(user).await?;
        }
        // Read before the decision: afterwards nothing may fail that the answer needs.
        let terms = self.terms(coupon).await?;
        let issued = self.with_claimed_key(call, here, self.store.coupon_issue(call, user, coupon)).await.inspect_err(
            |error| {
                if let (Error::CouponOutOfStock, Some(terms)) = (error, &terms) {
                    self.sold_out.refused_by_redis(user, terms);
                }
            },
        )?;
        if far {
            // If this fails the coupon is issued all the same, and the relay grants it.
            self.store.coupon_grant(call, user, coupon, issued.value).await?;
        }
        let terms =
            terms.ok_or_else(|| Error::Internal(anyhow::anyhow!("coupon {coupon} was issued without terms")))?;
        let (issue_no, issued_at) = (issued.value.issue_no, issued.value.issued_at);
        Ok(Reply { value: IssuedCoupon { terms, issue_no, issued_at }, replayed: issued.replayed })
    }

    /// A user's coupons, in the order they were issued.
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
            coupons.push(as_shown(record, terms, now));
        }
        coupons.sort_unstable_by_key(|coupon| (coupon.issued_at, coupon.terms.coupon_id));
        Ok(coupons)
    }

    /// Campaigns that are open now, soonest to close first.
    ///
    /// # Errors
    /// Redis can't answer.
    pub async fn open_campaigns(&self, page: i64, size: i64) -> Result<Vec<Campaign>, Error> {
        // Those that have not opened yet are skipped afterwards, so more are read than are shown; bounded all the same.
        let most = (page + 1).saturating_mul(size).saturating_mul(4).clamp(1000, 10_000);
        let campaigns = self.store.campaigns_closing_after(0, most).await?;
        let now = |campaign: &Campaign| self.store.now(self.store.owner(campaign.terms.coupon_id.get()));
        let open = campaigns.into_iter().filter(|campaign| campaign.terms.opens_at <= now(campaign));
        Ok(open.skip((page * size) as usize).take(size as usize).collect())
    }

    /// A campaign and how far it is given out.
    ///
    /// # Errors
    /// [`Error::CampaignNotFound`].
    pub async fn campaign(&self, coupon: CouponId) -> Result<Campaign, Error> {
        self.store.campaign(coupon).await?.ok_or(Error::CampaignNotFound)
    }

    /// A campaign's terms, from memory if they were read before; `None` if there is no such campaign.
    pub(super) async fn terms(&self, coupon: CouponId) -> Result<Option<Arc<CampaignTerms>>, Error> {
        if let Some(terms) = self.campaigns.get(coupon) {
            return Ok(Some(terms));
        }
        let campaign = self.store.campaign(coupon).await?;
        Ok(campaign.map(|campaign| self.campaigns.keep(campaign.terms)))
    }
}

fn as_shown(record: CouponRecord, terms: Arc<CampaignTerms>, now: Millis) -> UserCoupon {
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
