//! What bringing records in would do, without doing it: see [`upserts`](super::upserts).

use std::collections::HashMap;

use parking_lot::Mutex;

use super::{
    operators::{CLOSING_GRACE_MS, INVALID_TERMS, OTHER_LIMIT},
    upserts::{difference, moved_window},
    *,
};
use crate::{
    model::{CLOSED_BEFORE_NOW, NO_WINDOW},
    redis::queries::resources::NamedUser,
};

/// A store as it is, and what it would be after the records that were previewed. Only reads.
pub struct Preview {
    /// `None`: there is no store yet.
    store: Option<Store>,
    clock: Clock,
    /// The limits per user that groups would have.
    groups: Mutex<HashMap<LimitGroup, i64>>,
}

impl Preview {
    pub fn new(store: Option<Store>, clock: Clock) -> Self {
        Preview { store, clock, groups: Mutex::default() }
    }

    /// What [`Engine::put_users`] would do with each user.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn users(&self, users: &[(UserId, NewUser)]) -> Result<Vec<Option<PutOutcome>>, Error> {
        let Some(store) = &self.store else { return Ok(vec![Some(PutOutcome::Created); users.len()]) };
        let ids: Vec<UserId> = users.iter().map(|(id, _)| *id).collect();
        let seen = store.named_users(&ids).await?;
        let outcome = |((_, new), seen): (&(UserId, NewUser), Option<NamedUser>)| match seen {
            None => Some(PutOutcome::Created),
            Some(NamedUser { name: None, .. }) => None,
            Some(NamedUser { name: Some(name), entries }) => {
                let changes = name != new.name || (entries == 0 && new.balance > 0);
                Some(if changes { PutOutcome::Changed } else { PutOutcome::Unchanged })
            }
        };
        Ok(users.iter().zip(seen).map(outcome).collect())
    }

    /// What [`Engine::put_product`] would do.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] as there; [`Error::Unavailable`].
    pub async fn product(&self, id: ProductId, new: &ProductUpsert) -> Result<PutOutcome, Error> {
        let found = match &self.store {
            None => None,
            Some(store) => match store.product(id).await {
                Ok(found) => Some(found),
                Err(Error::ProductNotFound) => None,
                Err(error) => return Err(error),
            },
        };
        let has = found.as_ref().map(|found| found.terms);
        let terms = new.terms.of(has.unwrap_or_default());
        if has != Some(terms) {
            if !terms.are_valid() {
                return Err(Error::InvalidRequest(INVALID_TERMS));
            }
            self.join_group(&terms).await?;
        }
        Ok(match found {
            None => PutOutcome::Created,
            Some(found) if difference(&found, new).is_some() => PutOutcome::Changed,
            Some(_) => PutOutcome::Unchanged,
        })
    }

    async fn join_group(&self, terms: &SaleTerms) -> Result<(), Error> {
        let Some((group, limit)) = terms.limit_group.zip(terms.limit_per_user) else { return Ok(()) };
        let has = match &self.store {
            None => None,
            Some(store) => store.group_limit(group).await?,
        };
        let would_have = *self.groups.lock().entry(group).or_insert(has.unwrap_or(limit));
        if would_have == limit { Ok(()) } else { Err(Error::InvalidRequest(OTHER_LIMIT)) }
    }

    /// What [`Engine::put_campaign`] would do.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] if it has other terms, or would have no window; [`Error::Unavailable`].
    pub async fn campaign(&self, id: CouponId, new: &NewCampaign) -> Result<PutOutcome, Error> {
        let now = self.clock.now();
        let found = match &self.store {
            None => None,
            Some(store) => store.campaign(id).await?,
        };
        let Some(found) = found else {
            return if new.has_window(now) { Ok(PutOutcome::Created) } else { Err(Error::InvalidRequest(NO_WINDOW)) };
        };
        let Some(CampaignPatch { opens_at, closes_at }) = moved_window(&found.terms, new)? else {
            return Ok(PutOutcome::Unchanged);
        };
        if closes_at.is_some_and(|at| at.plus(CLOSING_GRACE_MS) < now) {
            return Err(Error::InvalidRequest(CLOSED_BEFORE_NOW));
        }
        let opens_at = opens_at.unwrap_or(found.terms.opens_at);
        let closes_at = closes_at.map_or(found.terms.closes_at, |at| at.max(now));
        let moved = CampaignTerms { opens_at, closes_at, ..found.terms };
        if moved.has_window() { Ok(PutOutcome::Changed) } else { Err(Error::InvalidRequest(NO_WINDOW)) }
    }
}
