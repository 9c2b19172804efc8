//! Coupons: opening a campaign, giving one out.

use redis::Cmd;

use super::key_parts;
use crate::{
    model::{Call, CampaignPatch, CampaignTerms, CouponId, Error, Millis, Reply, UserId},
    redis::{
        Store,
        batchable::Mergeable,
        keys::Keys,
        script::{self, Answer, Invocation, Script},
    },
};

/// A coupon given out: its place in the order of arrival, and when.
#[derive(Clone, Copy, Debug)]
pub struct Issued {
    pub issue_no: i64,
    pub issued_at: Millis,
}

/// What comes before a release.
#[derive(Clone, Debug)]
pub enum Reopening {
    /// It is announced, under this token.
    Announced(String),
    /// It was done before, under this idempotency key: how many coupons were then still kept back.
    Released(Reply<i64>),
}

/// A campaign after its window was moved.
#[derive(Clone, Copy, Debug)]
pub struct Moved {
    pub opens_at: Millis,
    pub closes_at: Millis,
    pub issued: i64,
    pub withheld: i64,
}

/// Whether a thing was created, or was there already (and was left as it is).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Created {
    Now,
    Before,
}

impl Created {
    pub(super) fn read(answer: &Answer) -> Result<Self, Error> {
        match answer.word.as_str() {
            "CREATED" => Ok(Created::Now),
            "ALREADY_EXISTS" => Ok(Created::Before),
            _ => Err(answer.unknown()),
        }
    }
}

struct Issue {
    user: UserId,
    coupon: CouponId,
    at_home: bool,
}

impl Mergeable for Issue {
    fn script(&self) -> &'static Script {
        &script::COUPON_ISSUE
    }

    fn of(&self) -> i64 {
        self.coupon.get()
    }

    fn key_counts(&self) -> (usize, usize) {
        (2, 1)
    }

    fn shared_keys(&self, keys: Keys, call: &mut Cmd) {
        call.arg(keys.campaign(self.coupon)).arg(keys.holders(self.coupon));
    }

    fn keys(&self, keys: Keys, call: &mut Cmd) {
        // Of one who is at home elsewhere it is named, in this partition, but not touched.
        call.arg(keys.user(self.user));
    }

    fn shared_args(&self, call: &mut Cmd) {
        call.arg(self.coupon.get());
    }

    fn args(&self, call: &mut Cmd) {
        call.arg(self.user.get()).arg(if self.at_home { "1" } else { "0" });
    }
}

impl Store {
    /// `coupon_issue.lua`. Where user and campaign share no partition, the user must have been looked up before, and gets
    /// the coupon by [`Store::coupon_grant`] after.
    ///
    /// # Errors
    /// [`Error::UserNotFound`], [`Error::InvalidCoupon`], [`Error::CouponOutOfStock`], and the shared refusals.
    pub async fn coupon_issue(&self, call: &Call, user: UserId, coupon: CouponId) -> Result<Reply<Issued>, Error> {
        let (home, here) = (self.owner(user.get()), self.owner(coupon.get()));
        let answer = self.merged(call, here, Issue { user, coupon, at_home: home == here }).await?;
        match answer.word.as_str() {
            "ISSUED" => {
                let issued = Issued { issue_no: answer.get(2)?, issued_at: Millis(answer.get(3)?) };
                Ok(answer.reply(issued))
            }
            "USER_NOT_FOUND" => Err(Error::UserNotFound),
            "CAMPAIGN_NOT_FOUND" | "NOT_OPEN" | "ALREADY_HOLDS" => Err(Error::InvalidCoupon),
            "OUT_OF_STOCK" => Err(Error::CouponOutOfStock),
            _ => Err(answer.unknown()),
        }
    }

    /// `coupon_release_prepare.lua`: the announcement that [`Store::coupon_release`] may follow, once nobody refuses this campaign by
    /// himself any more.
    ///
    /// # Errors
    /// [`Error::CampaignNotFound`], [`Error::InsufficientStock`] where less is kept back, and the shared refusals.
    pub async fn coupon_release_prepare(&self, call: &Call, id: CouponId, count: i64) -> Result<Reopening, Error> {
        let here = self.owner(id.get());
        let (digest, fingerprint) = key_parts(call);
        let call = Invocation::new(&script::COUPON_RELEASE_PREPARE)
            .key(Keys(here).meta())
            .key(Keys(here).record(digest))
            .key(Keys(here).campaign(id))
            .arg(fingerprint)
            .arg(uuid::Uuid::new_v4().simple().to_string())
            .arg(count);
        let answer = self.call(here, &call).await?;
        match answer.word.as_str() {
            "RELEASE_PREPARED" => Ok(Reopening::Announced(answer.get(0)?)),
            "COUPONS_RELEASED" => Ok(Reopening::Released(answer.reply(answer.get(2)?))),
            "CAMPAIGN_NOT_FOUND" => Err(Error::CampaignNotFound),
            "INSUFFICIENT_STOCK" => Err(Error::InsufficientStock),
            _ => Err(answer.unknown()),
        }
    }

    /// `coupon_release.lua`: how many coupons are still kept back; `None` where the announcement no longer stands, and nothing
    /// was changed.
    ///
    /// # Errors
    /// [`Error::CampaignNotFound`], [`Error::InsufficientStock`] where less is kept back, and the shared refusals.
    pub async fn coupon_release(
        &self,
        call: &Call,
        id: CouponId,
        count: i64,
        announcement: &str,
    ) -> Result<Option<Reply<i64>>, Error> {
        let here = self.owner(id.get());
        let call = self
            .begin(call, &script::COUPON_RELEASE, here)
            .key(Keys(here).campaign(id))
            .arg(id.get())
            .arg(count)
            .arg(announcement);
        let answer = self.call(here, &call).await?;
        match answer.word.as_str() {
            "COUPONS_RELEASED" => Ok(Some(answer.reply(answer.get(2)?))),
            "RELEASE_NOT_PREPARED" => Ok(None),
            "CAMPAIGN_NOT_FOUND" => Err(Error::CampaignNotFound),
            "INSUFFICIENT_STOCK" => Err(Error::InsufficientStock),
            _ => Err(answer.unknown()),
        }
    }

    /// `campaign_create.lua`: when the campaign opens; `None` where there is such a campaign already. Without `opens_at` it opens
    /// at once.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] where the window would be none, or outlast the coupons; and the shared refusals.
    pub async fn campaign_create(
        &self,
        call: &Call,
        terms: &CampaignTerms,
        opens_at: Option<Millis>,
    ) -> Result<Option<Millis>, Error> {
        let here = self.owner(terms.coupon_id.get());
        let keys = Keys(here);
        let call = self
            .begin_unrecorded(call, &script::CAMPAIGN_CREATE, here)
            .key(keys.campaign(terms.coupon_id))
            .key(keys.campaigns())
            .arg(terms.coupon_id.get())
            .arg(&terms.code)
            .arg(terms.discount.kind.as_str())
            .arg(terms.discount.amount)
            .arg(terms.total)
            .arg(opens_at.map(|at| at.0.to_string()).unwrap_or_default())
            .arg(terms.closes_at.0)
            .arg(terms.expires_at.0);
        let answer = self.call(here, &call).await?;
        match answer.word.as_str() {
            "CREATED" => Ok(Some(Millis(answer.get(2)?))),
            "ALREADY_EXISTS" => Ok(None),
            "INVALID_WINDOW" => Err(Error::InvalidRequest("the campaign's window is no window")),
            _ => Err(answer.unknown()),
        }
    }

    /// `campaign_update.lua`: the window as it now is, and how far the campaign is given out. An end of the window that is past,
    /// but by no more than `grace_ms`, means now.
    ///
    /// # Errors
    /// [`Error::CampaignNotFound`]; [`Error::InvalidRequest`] where the window would end in the past, or be none; and the shared
    /// refusals.
    pub async fn campaign_update(
        &self,
        call: &Call,
        id: CouponId,
        patch: CampaignPatch,
        grace_ms: i64,
    ) -> Result<Reply<Moved>, Error> {
        let here = self.owner(id.get());
        let keys = Keys(here);
        let shown = |at: Option<Millis>| at.map(|at| at.0.to_string()).unwrap_or_default();
        let call = self
            .begin(call, &script::CAMPAIGN_UPDATE, here)
            .key(keys.campaign(id))
            .key(keys.campaigns())
            .arg(id.get())
            .arg(shown(patch.opens_at))
            .arg(shown(patch.closes_at))
            .arg(grace_ms);
        let answer = self.call(here, &call).await?;
        match answer.word.as_str() {
            "MOVED" => {
                let (opens_at, closes_at) = (Millis(answer.get(2)?), Millis(answer.get(3)?));
                let moved = Moved { opens_at, closes_at, issued: answer.get(4)?, withheld: answer.get(5)? };
                Ok(answer.reply(moved))
            }
            "CAMPAIGN_NOT_FOUND" => Err(Error::CampaignNotFound),
            "CLOSES_IN_PAST" => Err(Error::InvalidRequest("a campaign can't have closed before now")),
            "INVALID_WINDOW" => Err(Error::InvalidRequest("the campaign's window would be none")),
            _ => Err(answer.unknown()),
        }
    }
}
