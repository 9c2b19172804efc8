//! New users, products and campaigns, under ids of our own.
//!
//! A creation has two steps: reserve the id under the idempotency key, if there is one, so that a repeat gets the same id;
//! then create the resource, under a key of that step. A repeat therefore completes an interrupted creation, and creates nothing
//! twice.
//!
//! Between the two steps an operator may have brought in a resource under the very id: see [`upserts`](super::upserts). It stays,
//! and the creation goes on under another id.

use super::*;
use crate::{
    model::Partition,
    redis::commands::{Created, NumberedPrice, ReservedIds, UserBatch},
};

/// The number of users that one script creates: some hundred microseconds of Redis's time.
pub(super) const USERS_BATCH: i64 = 250;
/// The number of ids that a creation tries.
const ID_ATTEMPTS: usize = 5;

/// What the second step of a creation does, after the first one reserved the ids.
struct Creation<T> {
    /// The first step's reply; `replayed` is of the request.
    reserved: Reply<T>,
    attempt: Call,
    /// The next attempt's call, if the id is taken.
    next: Call,
    creation_is_recorded: bool,
}

impl<T> Creation<T> {
    /// The second step's call, of the record with this id.
    fn call(&self, id: i64) -> Call {
        if self.creation_is_recorded { self.attempt.of_creation(id) } else { self.attempt.without_key() }
    }

    /// Whether the resource belongs to this request. What an earlier version created has no record.
    fn is_own(&self, created: Created) -> bool {
        created == Created::Now || !self.creation_is_recorded
    }
}

impl Engine {
    /// Creates a user.
    ///
    /// # Errors
    /// Those of every write.
    pub async fn create_user(&self, call: &Call, new: NewUser) -> Outcome<Balance> {
        let work = async {
            let NewUser { name, balance } = new;
            let mut attempt = call.clone();
            let mut replayed = None;
            for _ in 0..ID_ATTEMPTS {
                let reserved = self.store.ids_reserve(&attempt, "user", 1).await?;
                let creation = creation(&attempt, reserved, UserId::new, &mut replayed)?;
                let first = creation.reserved.value;
                let batch = UserBatch { first, step: 1, count: 1, name: name.clone(), prefixed: false, balance };
                let created =
                    self.store.users_create(&creation.call(first.get()), self.store.owner(first.get()), &batch).await?;
                if creation.is_own(created) {
                    return Ok(creation.reserved.map(|user_id| Balance { user_id, user_name: batch.name, balance }));
                }
                attempt = creation.next;
            }
            Err(Error::InProgress)
        };
        self.with_claimed_key(call, Partition(0), work).await
    }

    /// Creates users with consecutive ids, in batches.
    ///
    /// # Errors
    /// Those of every write; [`Error::InvalidRequest`] if another user was brought in under one of the ids meanwhile. Users created
    /// before the error stay; a repeat under the same idempotency key creates the rest.
    pub async fn create_users(&self, call: &Call, new: NewUsers) -> Outcome<CreatedUsers> {
        let work = async {
            let mut attempt = call.clone();
            let mut replayed = None;
            for _ in 0..ID_ATTEMPTS {
                let reserved = self.store.ids_reserve(&attempt, "user", new.count).await?;
                let creation = creation(&attempt, reserved, UserId::new, &mut replayed)?;
                if self.create_batches(&creation, &new).await? {
                    return Ok(creation.reserved.map(|first| CreatedUsers { first, count: new.count }));
                }
                attempt = creation.next;
            }
            Err(Error::InProgress)
        };
        self.with_claimed_key(call, Partition(0), work).await
    }

    /// Creates the users of reserved ids. False, and no user, if one of the first batch exists.
    async fn create_batches(&self, creation: &Creation<UserId>, new: &NewUsers) -> Result<bool, Error> {
        let step = i64::from(self.store.partitions());
        let first = creation.reserved.value.get();
        let end = first + new.count;
        for offset in 0..step.min(new.count) {
            let mut next = first + offset;
            let owner: Partition = self.store.owner(next);
            while next < end {
                let left = (end - next + step - 1) / step;
                let batch = UserBatch {
                    first: UserId::new(next).ok_or_else(ids_used_up)?,
                    step,
                    count: left.min(USERS_BATCH),
                    name: new.prefix.clone(),
                    prefixed: true,
                    balance: new.balance,
                };
                let created = self.store.users_create(&creation.call(next), owner, &batch).await?;
                if !creation.is_own(created) {
                    return match next == first {
                        true => Ok(false),
                        false => Err(Error::InvalidRequest("another user has one of the ids: create the rest anew")),
                    };
                }
                next += batch.count * step;
            }
        }
        Ok(true)
    }

    /// Creates a product.
    ///
    /// # Errors
    /// Those of every write; [`Error::InvalidRequest`] if the products of its group have another limit.
    pub async fn create_product(&self, call: &Call, new: NewProduct) -> Outcome<Product> {
        let work = async {
            if new.terms.limit_group.is_some() {
                // Check the key before the group: it may belong to another request.
                self.store.check_key(call, Partition(0)).await?;
                self.join_group(&new.terms).await?;
            }
            let mut attempt = call.clone();
            let mut replayed = None;
            for _ in 0..ID_ATTEMPTS {
                let reserved = self.store.ids_reserve(&attempt, "product", 1).await?;
                let creation = creation(&attempt, reserved, ProductId::new, &mut replayed)?;
                let id = creation.reserved.value;
                let created = self.store.product_create(&creation.call(id.get()), id, &new).await?;
                if creation.is_own(created.value) {
                    if self.store.partitions() > 1 && new.terms != SaleTerms::default() {
                        self.store.price_spread(id, NumberedPrice::first(new.price, new.terms)).await?;
                    }
                    return Ok(creation.reserved.map(|id| self.new_product(id, &new)));
                }
                attempt = creation.next;
            }
            Err(Error::InProgress)
        };
        self.with_claimed_key(call, Partition(0), work).await
    }

    /// Creates a campaign.
    ///
    /// # Errors
    /// Those of every write; [`Error::InvalidRequest`] if the window, with the defaults of its omitted ends, is empty.
    pub async fn create_campaign(&self, call: &Call, new: NewCampaign) -> Outcome<Campaign> {
        // Only for the check below: the store's clock sets the beginning of a campaign that opens at once.
        let now = self.clock.now();
        // Not for a repeat, which may come after the end of the window.
        let before = self.store.ids_reserved_before(call).await?;
        if before.is_none() && !new.has_window(now) {
            return Err(Error::InvalidRequest("the campaign's window is empty"));
        }
        let mut reserved = match before {
            Some(value) => Reply { value, replayed: true },
            None => self.with_claimed_key(call, Partition(0), self.store.ids_reserve(call, "coupon", 1)).await?,
        };
        let mut attempt = call.clone();
        let mut replayed = None;
        for _ in 0..ID_ATTEMPTS {
            let creation = creation(&attempt, reserved, CouponId::new, &mut replayed)?;
            let id = creation.reserved.value;
            let terms = new_campaign(id, &new, new.opens_at.unwrap_or(now)).terms;
            let opens_at = match self.store.campaign_create(&creation.call(id.get()), &terms, new.opens_at).await? {
                Some(Reply { value: opens_at, .. }) => Some(opens_at),
                None if !creation.is_own(Created::Before) => None,
                // For an omitted beginning the first reply had the time of the request. A repeat has the current beginning.
                None => Some(match new.opens_at {
                    Some(opens_at) => opens_at,
                    None => self.campaign(id).await?.terms.opens_at,
                }),
            };
            if let Some(opens_at) = opens_at {
                return Ok(creation.reserved.map(|id| new_campaign(id, &new, opens_at)));
            }
            attempt = creation.next;
            reserved = self.store.ids_reserve(&attempt, "coupon", 1).await?;
        }
        Err(Error::InProgress)
    }
}

/// The second step of an attempt, whose ids are reserved. `replayed`: whether the request is a repeat, by its first attempt.
fn creation<T>(
    attempt: &Call,
    reserved: Reply<ReservedIds>,
    new: fn(i64) -> Option<T>,
    replayed: &mut Option<bool>,
) -> Result<Creation<T>, Error> {
    let ReservedIds { first, creation_is_recorded } = reserved.value;
    let value = new(first).ok_or_else(ids_used_up)?;
    let replayed = *replayed.get_or_insert(reserved.replayed);
    let next = attempt.of_step(&format!("after-{first}"));
    Ok(Creation { reserved: Reply { value, replayed }, attempt: attempt.clone(), next, creation_is_recorded })
}

/// A new campaign as its creation shows it.
pub(super) fn new_campaign(id: CouponId, new: &NewCampaign, opens_at: Millis) -> Campaign {
    let NewCampaign { code, discount, conditions, total, closes_at, expires_at, .. } = new.clone();
    let closes_at = closes_at.unwrap_or(expires_at);
    let terms = CampaignTerms { coupon_id: id, code, discount, conditions, total, opens_at, closes_at, expires_at };
    Campaign { terms, issued: 0, withheld: 0 }
}

fn ids_used_up() -> Error {
    Error::Internal(anyhow::anyhow!("ids are used up"))
}
