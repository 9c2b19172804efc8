//! Users, products and campaigns that are brought in from elsewhere, each under the id that it has there: created, or changed.
//!
//! And users that are forgotten, which stay so whatever is brought in later.
//!
//! First the sequence of new ids skips the id; then one script creates the record, or changes it. A repeat changes nothing. A
//! creation that has reserved the id before, and finds the record, takes another id: see [`creations`](super::creations).

use std::collections::BTreeMap;

use futures_util::future::try_join_all;

use super::{
    creations::{USERS_BATCH, new_campaign},
    operators::{CLOSING_GRACE_MS, INVALID_TERMS, UPDATE_ATTEMPTS},
    *,
};
use crate::{
    model::NO_WINDOW,
    redis::commands::{Created, Moved, NumberedPrice, PutUserOutcome, UserBatch},
};

/// The highest id from elsewhere. The ids above it are for new records.
pub const MAX_PUT_ID: i64 = MAX_SAFE_INTEGER - 1_000_000_000_000;

impl Engine {
    /// Creates a user under an id from elsewhere, or changes the name of one. A user without balance entries gets the opening
    /// balance; another one keeps its balance.
    ///
    /// # Errors
    /// [`Error::UserNotFound`] if the user was forgotten; [`Error::InvalidRequest`] if the id leaves no room for new ones.
    pub async fn put_user(&self, call: &Call, id: UserId, new: NewUser) -> Outcome<Put<Balance>> {
        let owner = self.store.owner(id.get());
        let work = async {
            self.store.check_key(call, owner).await?;
            self.skip_ids(call, "user", id.get()).await?;
            let put = self.store.users_put(call, owner, &[(id, &new)]).await?;
            let (outcome, balance) = put.value.first().copied().flatten().ok_or(Error::UserNotFound)?;
            let value = Balance { user_id: id, user_name: new.name, balance };
            Ok(Reply { value: Put { value, outcome }, replayed: put.replayed })
        };
        self.with_claimed_key(call, owner, work).await
    }

    /// The same for many users, each another, in batches. Returns what became of each, in their order; `None` of a user that was
    /// forgotten.
    ///
    /// # Errors
    /// As [`Engine::put_user`]. Users that were put before the error stay; a repeat puts the others.
    pub async fn put_users(&self, call: &Call, users: &[(UserId, NewUser)]) -> Result<Vec<PutUserOutcome>, Error> {
        let Some(last) = users.iter().map(|(id, _)| id.get()).max() else { return Ok(Vec::new()) };
        self.skip_ids(call, "user", last).await?;
        let mut by_owner = BTreeMap::<u16, Vec<usize>>::new();
        for (place, (id, _)) in users.iter().enumerate() {
            by_owner.entry(self.store.owner(id.get()).0).or_default().push(place);
        }
        let call = call.without_key();
        let puts = by_owner.iter().map(async |(owner, places)| {
            let mut outcomes = Vec::with_capacity(places.len());
            for places in places.chunks(USERS_BATCH as usize) {
                let batch: Vec<(UserId, &NewUser)> =
                    places.iter().filter_map(|place| users.get(*place)).map(|(id, new)| (*id, new)).collect();
                let put = self.store.users_put(&call, Partition(*owner), &batch).await?;
                outcomes.extend(places.iter().copied().zip(put.value));
            }
            Ok::<_, Error>(outcomes)
        });
        let mut outcomes: Vec<(usize, PutUserOutcome)> = try_join_all(puts).await?.into_iter().flatten().collect();
        outcomes.sort_unstable_by_key(|(place, _)| *place);
        Ok(outcomes.into_iter().map(|(_, outcome)| outcome).collect())
    }

    /// Creates a product under an id from elsewhere, or changes it to the name, price, category and terms of `new`. The units of a
    /// product that exists stay, and so do the terms that `new` leaves out.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] if the window would be empty, a group would have no limit, or its products another one; or if the
    /// id leaves no room for new ones.
    pub async fn put_product(&self, call: &Call, id: ProductId, new: ProductUpsert) -> Outcome<Put<Product>> {
        let owner = self.store.owner(id.get());
        let work = async {
            for _ in 0..UPDATE_ATTEMPTS {
                if let Some(Reply { value, replayed }) = self.store.product_put_before(call, id).await? {
                    let outcome = if value.is_some() { PutOutcome::Changed } else { PutOutcome::Created };
                    let value = value.unwrap_or_else(|| self.new_product(id, &new.created()));
                    return Ok(Reply { value: Put { value, outcome }, replayed });
                }
                let found = match self.store.product(id).await {
                    Ok(product) => product,
                    Err(Error::ProductNotFound) => {
                        let new = new.created();
                        check_room(id.get())?;
                        if !new.terms.are_valid() {
                            return Err(Error::InvalidRequest(INVALID_TERMS));
                        }
                        self.join_group(&new.terms).await?;
                        self.skip_ids(call, "product", id.get()).await?;
                        let created = self.store.product_create(call, id, &new).await?;
                        if created.value == Created::Before {
                            continue;
                        }
                        if self.store.partitions() > 1 && new.terms != SaleTerms::default() {
                            self.store.price_spread(id, NumberedPrice::first(new.price, new.terms)).await?;
                        }
                        let value = self.new_product(id, &new);
                        return Ok(created.map(|_| Put { value, outcome: PutOutcome::Created }));
                    }
                    Err(error) => return Err(error),
                };
                let Some(patch) = difference(&found, &new) else {
                    // A concurrent request under the same key may have made it so.
                    if call.key.is_some() && self.store.product_put_before(call, id).await?.is_some() {
                        continue;
                    }
                    return Ok(Reply::first(Put { value: found, outcome: PutOutcome::Unchanged }));
                };
                if let Some(updated) = self.update_found(call, &found, &patch).await? {
                    return Ok(updated.map(|value| Put { value, outcome: PutOutcome::Changed }));
                }
            }
            Err(Error::InProgress)
        };
        self.with_claimed_key(call, owner, work).await
    }

    /// A new product as its creation shows it.
    pub(super) fn new_product(&self, product_id: ProductId, new: &NewProduct) -> Product {
        let NewProduct { name, price, stock, category, terms } = new.clone();
        let read_at = self.store.now(self.store.owner(product_id.get()));
        Product { product_id, name, price, stock, category: category.as_str().to_owned(), terms, read_at }
    }

    /// Creates a campaign under an id from elsewhere, or moves the window of one. A bound of the window that `new` leaves out stays.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] if the campaign exists with other terms; as [`Engine::create_campaign`] and
    /// [`Engine::update_campaign`]; if the id leaves no room for new ones.
    pub async fn put_campaign(&self, call: &Call, id: CouponId, new: NewCampaign) -> Outcome<Put<Campaign>> {
        let owner = self.store.owner(id.get());
        let work = async {
            if let Some(put) = self.put_campaign_before(call, id, &new).await? {
                return Ok(put);
            }
            let found = match self.store.campaign(id).await? {
                Some(found) => found,
                None => {
                    let now = self.clock.now();
                    // Nothing is skipped for a campaign that is refused.
                    if !new.has_window(now) {
                        return Err(Error::InvalidRequest(NO_WINDOW));
                    }
                    let terms = new_campaign(id, &new, new.opens_at.unwrap_or(now)).terms;
                    self.skip_ids(call, "coupon", id.get()).await?;
                    match self.store.campaign_create(call, &terms, new.opens_at).await? {
                        Some(opens_at) => {
                            return Ok(opens_at.map(|opens_at| Put {
                                value: new_campaign(id, &new, opens_at),
                                outcome: PutOutcome::Created,
                            }));
                        }
                        None => self.campaign(id).await?,
                    }
                }
            };
            let Some(patch) = moved_window(&found.terms, &new)? else {
                // A concurrent request under the same key may have made it so.
                if let Some(put) = self.put_campaign_before(call, id, &new).await? {
                    return Ok(put);
                }
                return Ok(Reply::first(Put { value: found, outcome: PutOutcome::Unchanged }));
            };
            let moved = self.store.campaign_update(call, id, patch, CLOSING_GRACE_MS).await?;
            self.sold_out.moved(id);
            let outcome = PutOutcome::Changed;
            Ok(moved.map(|moved| Put { value: moved_campaign(id, &new, moved), outcome }))
        };
        self.with_claimed_key(call, owner, work).await
    }

    /// Creates the user of a token, if no user has this id. A user that was forgotten stays so.
    ///
    /// # Errors
    /// Those of every write; only for a user that does not exist.
    pub async fn ensure_user(
        &self,
        request_id: &str,
        user: UserId,
        name: impl FnOnce() -> Option<String>,
    ) -> Result<(), Error> {
        match self.check_user(user).await {
            Err(Error::UserNotFound) if user.get() <= MAX_PUT_ID => {}
            // An id that leaves no room for new ones is nobody's.
            Err(Error::UserNotFound) => return Ok(()),
            known => return known,
        }
        let call = Call { acknowledged: self.admit_write()?, ..Call::new(request_id, None) };
        self.skip_ids(&call, "user", user.get()).await?;
        let name = name().unwrap_or_else(|| format!("user-{user}"));
        let batch = UserBatch { first: user, step: 1, count: 1, name, prefixed: false, balance: 0 };
        self.store.users_create(&call, self.store.owner(user.get()), &batch).await?;
        self.wait_until_durable(&call.acknowledged).await
    }

    /// Forgets a user: the name is gone, amounts stay under the number. Takes a good second: see [`sold_out`](super::sold_out).
    ///
    /// # Errors
    /// [`Error::UserNotFound`]; [`Error::OrdersOpen`]; [`Error::BalanceLeft`] unless `forfeits`.
    pub async fn forget_user(&self, call: &Call, user: UserId, forfeits: bool) -> Result<(), Error> {
        self.store.user_forget(call, user, forfeits).await?;
        self.clock.sleep(sold_out::LEASE_EXPIRES_AFTER).await;
        Ok(())
    }

    /// The reply to an earlier request under the call's idempotency key.
    async fn put_campaign_before(
        &self,
        call: &Call,
        id: CouponId,
        new: &NewCampaign,
    ) -> Result<Option<Reply<Put<Campaign>>>, Error> {
        let before = self.store.campaign_put_before(call, id).await?;
        Ok(before.map(|before| {
            before.map(|before| match before {
                Err(opens_at) => Put { value: new_campaign(id, new, opens_at), outcome: PutOutcome::Created },
                Ok(moved) => Put { value: moved_campaign(id, new, moved), outcome: PutOutcome::Changed },
            })
        }))
    }

    /// Makes the next new id of a sequence one above `id`.
    async fn skip_ids(&self, call: &Call, sequence: &str, id: i64) -> Result<(), Error> {
        check_room(id)?;
        self.store.ids_skip(call, sequence, id).await
    }
}

/// New ids must have room above those from elsewhere.
fn check_room(id: i64) -> Result<(), Error> {
    if id <= MAX_PUT_ID { Ok(()) } else { Err(Error::InvalidRequest("the id leaves no room for new ones")) }
}

/// The change that makes a product what `new` says; `None` if it is so.
pub(super) fn difference(found: &Product, new: &ProductUpsert) -> Option<ProductPatch> {
    let keeps_terms = new.terms.of(found.terms) == found.terms;
    let patch = ProductPatch {
        name: Some(&new.name).filter(|name| **name != found.name).cloned(),
        price: Some(new.price).filter(|price| *price != found.price),
        category: Some(&new.category).filter(|category| category.as_str() != found.category).cloned(),
        stock_delta: None,
        terms: if keeps_terms { SaleTermsPatch::default() } else { new.terms },
    };
    let changes = patch.name.is_some() || patch.price.is_some() || patch.category.is_some() || !keeps_terms;
    changes.then_some(patch)
}

/// The change of the window that makes a campaign what `new` says; `None` if it is so.
///
/// # Errors
/// [`Error::InvalidRequest`] if anything else differs.
pub(super) fn moved_window(has: &CampaignTerms, new: &NewCampaign) -> Result<Option<CampaignPatch>, Error> {
    let is_same = (has.code.as_str(), has.discount, has.total, has.expires_at)
        == (new.code.as_str(), new.discount, new.total, new.expires_at);
    if !is_same || has.conditions.to_string() != new.conditions.to_string() {
        return Err(Error::InvalidRequest("only the window of a campaign that exists can change"));
    }
    let opens_at = new.opens_at.filter(|at| *at != has.opens_at);
    let closes_at = new.closes_at.filter(|at| *at != has.closes_at);
    Ok((opens_at.is_some() || closes_at.is_some()).then_some(CampaignPatch { opens_at, closes_at }))
}

fn moved_campaign(coupon_id: CouponId, new: &NewCampaign, moved: Moved) -> Campaign {
    let Campaign { terms, .. } = new_campaign(coupon_id, new, moved.opens_at);
    let Moved { opens_at, closes_at, issued, withheld } = moved;
    Campaign { terms: CampaignTerms { opens_at, closes_at, ..terms }, issued, withheld }
}
