//! Campaigns and their coupons.

use crate::{
    model::{CLOSED_BEFORE_NOW, Call, CampaignPatch, CampaignTerms, CouponId, Error, Millis, NO_WINDOW, Reply, UserId},
    redis::{
        Store,
        batchable::Batchable,
        keys::Keys,
        reply_code::ReplyCode,
        script::{self, Invocation, Script},
        script_reply::ScriptReply,
    },
};

/// An issued coupon: its place in the order of arrival, and the time.
#[derive(Clone, Copy, Debug)]
pub struct Issued {
    pub issue_no: i64,
    pub issued_at: Millis,
}

/// The reply of `coupon_release_prepare.lua`.
#[derive(Clone, Debug)]
pub enum ReleasePreparation {
    /// A release may follow, under this token.
    Prepared(String),
    /// The release under this idempotency key was done before, and left so many coupons withheld.
    Released(Reply<i64>),
}

/// A campaign after a move of its window.
#[derive(Clone, Copy, Debug)]
pub struct Moved {
    pub opens_at: Millis,
    pub closes_at: Millis,
    pub issued: i64,
    pub withheld: i64,
}

impl Moved {
    fn of(reply: &ScriptReply) -> Result<Self, Error> {
        let (opens_at, closes_at) = (Millis(reply.get(0)?), Millis(reply.get(1)?));
        Ok(Moved { opens_at, closes_at, issued: reply.get(2)?, withheld: reply.get(3)? })
    }
}

/// Whether a script created something, or found it and left it as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Created {
    Now,
    Before,
}

impl Created {
    pub(super) fn of(reply: &ScriptReply) -> Result<Self, Error> {
        match reply.code {
            ReplyCode::Created => Ok(Created::Now),
            ReplyCode::AlreadyExists => Ok(Created::Before),
            // A concurrent request under the same key found the record, and changed it.
            ReplyCode::Updated => Err(Error::InProgress),
            _ => Err(reply.unexpected()),
        }
    }
}

/// Issues a coupon to a user.
struct IssueCoupon {
    user_id: UserId,
    coupon_id: CouponId,
    /// Whether the campaign's partition owns the user.
    owns_user: bool,
}

impl Batchable for IssueCoupon {
    fn script(&self) -> &'static Script {
        &script::COUPON_ISSUE
    }

    fn subject(&self) -> i64 {
        self.coupon_id.get()
    }

    fn write_shared(&self, keys: Keys, invocation: &mut Invocation) {
        invocation.key(keys.campaign(self.coupon_id)).key(keys.holders(self.coupon_id)).arg(self.coupon_id.get());
    }

    fn write_own(&self, keys: Keys, invocation: &mut Invocation) {
        let (coupons, owned) =
            if self.owns_user { (keys.user(self.user_id), "1") } else { (keys.issued(self.user_id), "0") };
        invocation.key(coupons).arg(self.user_id.get()).arg(owned);
    }
}

impl Store {
    /// `coupon_issue.lua`. Where user and campaign are of different partitions, the caller checks the user before.
    ///
    /// # Errors
    /// [`Error::UserNotFound`], [`Error::InvalidCoupon`], [`Error::CouponOutOfStock`],
    /// and the [shared refusals](super#shared-refusals).
    pub async fn coupon_issue(&self, call: &Call, user: UserId, coupon: CouponId) -> Result<Reply<Issued>, Error> {
        let here = self.owner(coupon.get());
        let issue = IssueCoupon { user_id: user, coupon_id: coupon, owns_user: self.owner(user.get()) == here };
        let reply = self.run_batched(call, here, issue).await?;
        match reply.code {
            ReplyCode::Issued => {
                let issued = Issued { issue_no: reply.get(0)?, issued_at: Millis(reply.get(1)?) };
                Ok(reply.with(issued))
            }
            ReplyCode::UserNotFound => Err(Error::UserNotFound),
            ReplyCode::CampaignNotFound | ReplyCode::NotOpen | ReplyCode::AlreadyHolds => Err(Error::InvalidCoupon),
            ReplyCode::OutOfStock => Err(Error::CouponOutOfStock),
            _ => Err(reply.unexpected()),
        }
    }

    /// `coupon_grant.lua`: puts a coupon beside its user, before an order uses it. A repeat changes nothing.
    ///
    /// # Errors
    /// The [shared refusals](super#shared-refusals).
    pub async fn coupon_grant(&self, call: &Call, user: UserId, coupon: CouponId, issued: Issued) -> Result<(), Error> {
        let owner = self.owner(user.get());
        let mut invocation = self.begin_unrecorded(call, &script::COUPON_GRANT, owner);
        invocation
            .key(Keys(owner).user(user))
            .arg(user.get())
            .arg(coupon.get())
            .arg(issued.issue_no)
            .arg(issued.issued_at.0);
        let reply = self.decide(call, owner, &invocation).await?;
        match reply.code {
            ReplyCode::Granted | ReplyCode::AlreadyGranted => Ok(()),
            _ => Err(reply.unexpected()),
        }
    }

    /// `coupon_release_prepare.lua`: announces [`Store::coupon_release`], which may follow once no process refuses this campaign by
    /// itself any more.
    ///
    /// # Errors
    /// [`Error::CampaignNotFound`], [`Error::InsufficientStock`] where fewer are withheld,
    /// and the [shared refusals](super#shared-refusals).
    pub async fn coupon_release_prepare(
        &self,
        call: &Call,
        id: CouponId,
        count: i64,
    ) -> Result<ReleasePreparation, Error> {
        let here = self.owner(id.get());
        let (digest, fingerprint) = call.key_parts();
        let mut invocation = Invocation::new(&script::COUPON_RELEASE_PREPARE);
        invocation
            .key(Keys(here).meta())
            .key(Keys(here).record(digest))
            .key(Keys(here).campaign(id))
            .arg(fingerprint)
            .arg(uuid::Uuid::new_v4().simple().to_string())
            .arg(count);
        let reply = self.decide(call, here, &invocation).await?;
        match reply.code {
            ReplyCode::ReleasePrepared => Ok(ReleasePreparation::Prepared(reply.get(0)?)),
            ReplyCode::CouponsReleased => Ok(ReleasePreparation::Released(reply.with(reply.get(0)?))),
            ReplyCode::CampaignNotFound => Err(Error::CampaignNotFound),
            ReplyCode::InsufficientStock => Err(Error::InsufficientStock),
            _ => Err(reply.unexpected()),
        }
    }

    /// `coupon_release.lua`: the coupons that are still withheld; `None`, and no change, if the release has to be prepared again.
    /// `token` is the preparation's.
    ///
    /// # Errors
    /// [`Error::CampaignNotFound`], [`Error::InsufficientStock`] where fewer are withheld,
    /// and the [shared refusals](super#shared-refusals).
    pub async fn coupon_release(
        &self,
        call: &Call,
        id: CouponId,
        count: i64,
        token: &str,
    ) -> Result<Option<Reply<i64>>, Error> {
        let here = self.owner(id.get());
        let mut invocation = self.begin(call, &script::COUPON_RELEASE, here);
        invocation.key(Keys(here).campaign(id)).arg(id.get()).arg(count).arg(token);
        let reply = self.decide(call, here, &invocation).await?;
        match reply.code {
            ReplyCode::CouponsReleased => Ok(Some(reply.with(reply.get(0)?))),
            ReplyCode::ReleaseNotPrepared => Ok(None),
            ReplyCode::CampaignNotFound => Err(Error::CampaignNotFound),
            ReplyCode::InsufficientStock => Err(Error::InsufficientStock),
            _ => Err(reply.unexpected()),
        }
    }

    /// `campaign_create.lua`: when the campaign opens; `None` if the campaign exists. Without `opens_at` it opens immediately.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] where the window is empty, or ends after the coupons expire;
    /// and the [shared refusals](super#shared-refusals).
    pub async fn campaign_create(
        &self,
        call: &Call,
        terms: &CampaignTerms,
        opens_at: Option<Millis>,
    ) -> Result<Option<Reply<Millis>>, Error> {
        let here = self.owner(terms.coupon_id.get());
        let keys = Keys(here);
        let mut invocation = self.begin(call, &script::CAMPAIGN_CREATE, here);
        invocation
            .key(keys.campaign(terms.coupon_id))
            .key(keys.campaigns())
            .arg(terms.coupon_id.get())
            .arg(&terms.code)
            .arg(terms.discount.kind.as_str())
            .arg(terms.discount.amount)
            .arg(terms.total)
            .arg(opens_at.map(|at| at.0.to_string()).unwrap_or_default())
            .arg(terms.closes_at.0)
            .arg(terms.expires_at.0)
            .arg(terms.conditions.to_string());
        let reply = self.decide(call, here, &invocation).await?;
        match reply.code {
            ReplyCode::Created => Ok(Some(reply.with(Millis(reply.get(0)?)))),
            ReplyCode::AlreadyExists => Ok(None),
            // A concurrent request under the same key found the campaign, and moved its window.
            ReplyCode::Moved => Err(Error::InProgress),
            ReplyCode::InvalidWindow => Err(Error::InvalidRequest(NO_WINDOW)),
            _ => Err(reply.unexpected()),
        }
    }

    /// The reply of `campaign_create.lua`, when the campaign opens, or of `campaign_update.lua` to an earlier request under the
    /// call's idempotency key.
    ///
    /// # Errors
    /// The [shared refusals](super#shared-refusals).
    pub async fn campaign_put_before(
        &self,
        call: &Call,
        id: CouponId,
    ) -> Result<Option<Reply<Result<Moved, Millis>>>, Error> {
        let here = self.owner(id.get());
        let Some(reply) = self.recorded(call, here, &script::CAMPAIGN_UPDATE).await? else { return Ok(None) };
        match reply.code {
            ReplyCode::Created => Ok(Some(reply.with(Err(Millis(reply.get(0)?))))),
            ReplyCode::Moved => Ok(Some(reply.with(Ok(Moved::of(&reply)?)))),
            _ => Err(reply.unexpected()),
        }
    }

    /// `campaign_update.lua`: the new window, and the coupons issued and withheld. An end of the window that is past by at most
    /// `grace_ms` means now.
    ///
    /// # Errors
    /// [`Error::CampaignNotFound`]; [`Error::InvalidRequest`] where the window would end in the past, or be empty; and the
    /// [shared refusals](super#shared-refusals).
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
        let mut invocation = self.begin(call, &script::CAMPAIGN_UPDATE, here);
        invocation
            .key(keys.campaign(id))
            .key(keys.campaigns())
            .arg(id.get())
            .arg(shown(patch.opens_at))
            .arg(shown(patch.closes_at))
            .arg(grace_ms);
        let reply = self.decide(call, here, &invocation).await?;
        match reply.code {
            ReplyCode::Moved => Ok(reply.with(Moved::of(&reply)?)),
            // A concurrent request under the same key has created the campaign.
            ReplyCode::Created => Err(Error::InProgress),
            ReplyCode::CampaignNotFound => Err(Error::CampaignNotFound),
            ReplyCode::ClosesInPast => Err(Error::InvalidRequest(CLOSED_BEFORE_NOW)),
            ReplyCode::InvalidWindow => Err(Error::InvalidRequest(NO_WINDOW)),
            _ => Err(reply.unexpected()),
        }
    }
}
