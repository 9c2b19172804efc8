//! What operators do: create users, products and campaigns, restock, list orders, watch the projection.
//!
//! Creating takes two steps: reserve the id (under the idempotency key, if there is one: a repeat gets the same id), then
//! create under it (which leaves alone what is there already). So a repeat finishes what the first left unfinished, and
//! nothing is created twice.

use super::*;
use crate::{
    model::Partition,
    redis::commands::{Reopening, UserBatch},
};

/// Users created by one script: some hundred microseconds of Redis's time.
const USERS_BATCH: i64 = 250;
/// What is shown, and released at once, of the products and of the campaigns that a rebuild keeps something of.
const MAX_WITHHELD: u64 = 1000;
/// How often a product's change is tried when its category changes under our eyes.
const UPDATE_ATTEMPTS: usize = 5;
/// How long ago the end of a campaign's window may be and mean now: for clocks that do not agree, and times of whole seconds.
const CLOSING_GRACE_MS: i64 = 60_000;
/// How often a release is announced when another one comes in between.
const RELEASE_ATTEMPTS: usize = 5;

impl Engine {
    /// Creates a user.
    ///
    /// # Errors
    /// The shared refusals.
    pub async fn create_user(&self, call: &Call, new: NewUser) -> Outcome<Balance> {
        let work = async {
            let reserved = self.store.ids_reserve(call, "user", 1).await?;
            let user_id = UserId::new(reserved.value).ok_or_else(ids_used_up)?;
            let batch =
                UserBatch { first: user_id, step: 1, count: 1, name: &new.name, prefixed: false, balance: new.balance };
            self.store.users_create(call, self.store.owner(user_id.get()), &batch).await?;
            Ok(reserved.map(|_| Balance { user_id, user_name: new.name, balance: new.balance }))
        };
        self.with_claimed_key(call, Partition(0), work).await
    }

    /// Creates users with consecutive ids, a few at a time.
    ///
    /// # Errors
    /// The shared refusals. Users created before the error stay; a repeat under the same idempotency key creates the rest.
    pub async fn create_users(&self, call: &Call, new: NewUsers) -> Outcome<CreatedUsers> {
        let work = async {
            let reserved = self.store.ids_reserve(call, "user", new.count).await?;
            let first = UserId::new(reserved.value).ok_or_else(ids_used_up)?;
            let step = i64::from(self.store.partitions());
            let end = first.get() + new.count;
            for offset in 0..step.min(new.count) {
                let mut next = first.get() + offset;
                let home: Partition = self.store.owner(next);
                while next < end {
                    let left = (end - next + step - 1) / step;
                    let batch = UserBatch {
                        first: UserId::new(next).ok_or_else(ids_used_up)?,
                        step,
                        count: left.min(USERS_BATCH),
                        name: &new.prefix,
                        prefixed: true,
                        balance: new.balance,
                    };
                    self.store.users_create(call, home, &batch).await?;
                    next += batch.count * step;
                }
            }
            Ok(reserved.map(|_| CreatedUsers { first, count: new.count }))
        };
        self.with_claimed_key(call, Partition(0), work).await
    }

    /// Creates a product.
    ///
    /// # Errors
    /// The shared refusals.
    pub async fn create_product(&self, call: &Call, new: NewProduct) -> Outcome<Product> {
        let work = async {
            let reserved = self.store.ids_reserve(call, "product", 1).await?;
            let product_id = ProductId::new(reserved.value).ok_or_else(ids_used_up)?;
            self.store.product_create(call, product_id, &new).await?;
            let NewProduct { name, price, stock, category } = new;
            Ok(reserved.map(|_| Product { product_id, name, price, stock, category: category.as_str().to_owned() }))
        };
        self.with_claimed_key(call, Partition(0), work).await
    }

    /// Changes a product.
    ///
    /// # Errors
    /// [`Error::ProductNotFound`]; [`Error::InsufficientStock`] where there is less on sale than is to be taken off.
    pub async fn update_product(&self, call: &Call, id: ProductId, patch: ProductPatch) -> Outcome<Product> {
        let work = async {
            for _ in 0..UPDATE_ATTEMPTS {
                // The key comes before the product: it may belong to another request.
                self.store.check_key(call, self.store.owner(id.get())).await?;
                let had = self.store.product(id).await?.category;
                if let Some(updated) = self.store.product_update(call, id, &had, &patch).await? {
                    return Ok(updated);
                }
            }
            Err(Error::InProgress)
        };
        self.with_claimed_key(call, self.store.owner(id.get()), work).await
    }

    /// Creates a campaign.
    ///
    /// # Errors
    /// The shared refusals; [`Error::InvalidRequest`] where a window that was left out in part is no window.
    pub async fn create_campaign(&self, call: &Call, new: NewCampaign) -> Outcome<Campaign> {
        // The store's clock says when a campaign opens that is to open at once: this is only for a window that is none anyhow.
        let opens_at = new.opens_at.unwrap_or(self.clock.now());
        let closes_at = new.closes_at.unwrap_or(new.expires_at);
        // A repeat may come when the window is over that was open the first time.
        let before = self.store.ids_reserved_before(call).await?;
        if before.is_none() && (opens_at >= closes_at || closes_at > new.expires_at) {
            return Err(Error::InvalidRequest("the campaign's window is no window"));
        }
        let reserved = match before {
            Some(first) => Reply { value: first, replayed: true },
            None => self.with_claimed_key(call, Partition(0), self.store.ids_reserve(call, "coupon", 1)).await?,
        };
        let coupon_id = CouponId::new(reserved.value).ok_or_else(ids_used_up)?;
        let given = new.opens_at;
        let NewCampaign { code, discount, total, expires_at, .. } = new;
        let terms = CampaignTerms { coupon_id, code, discount, total, opens_at, closes_at, expires_at };
        // A repeat is answered as the first time, whatever was issued or moved since. (But for a beginning that was left out: it
        // was the time of the first request, and is now where it was moved to.)
        let opens_at = match (self.store.campaign_create(call, &terms, given).await?, given) {
            (Some(opens_at), _) | (None, Some(opens_at)) => opens_at,
            (None, None) => self.campaign(coupon_id).await?.terms.opens_at,
        };
        let terms = CampaignTerms { opens_at, ..terms };
        Ok(reserved.map(|_| Campaign { terms, issued: 0, withheld: 0 }))
    }

    /// Moves a campaign's window: opens it, closes it, or puts off either. Coupons that were given out stay given out. Who comes
    /// too late for any may be told so by other processes for a moment after the campaign is closed: see
    /// [`sold_out`](super::sold_out).
    ///
    /// # Errors
    /// [`Error::CampaignNotFound`]; [`Error::InvalidRequest`] where the window would be none, outlast the coupons, or have ended
    /// before now.
    pub async fn update_campaign(&self, call: &Call, id: CouponId, patch: CampaignPatch) -> Outcome<Campaign> {
        let work = async {
            // Read before the decision: afterwards nothing may fail that the answer needs.
            let terms = self.terms(id).await?;
            let moved = self.store.campaign_update(call, id, patch, CLOSING_GRACE_MS).await?;
            self.sold_out.moved(id);
            let terms = terms.ok_or_else(|| Error::Internal(anyhow::anyhow!("coupon {id} was moved without terms")))?;
            Ok(moved.map(|moved| Campaign {
                terms: CampaignTerms { opens_at: moved.opens_at, closes_at: moved.closes_at, ..terms.as_ref().clone() },
                issued: moved.issued,
                withheld: moved.withheld,
            }))
        };
        self.with_claimed_key(call, self.store.owner(id.get()), work).await
    }

    /// A page of what could not be applied to Postgres, newest first.
    ///
    /// # Errors
    /// [`Error::Unavailable`] while Postgres is.
    pub async fn dead_letters(&self, page: i64, size: i64) -> Result<DeadLetterPage, Error> {
        postgres::queries::dead_letters::page(&self.db, page, size).await
    }

    /// What a rebuild keeps off sale, once Postgres has what was decided before (or two seconds later).
    ///
    /// # Errors
    /// [`Error::Unavailable`] while Postgres is.
    pub async fn withheld(&self) -> Result<Withheld, Error> {
        self.wait_for_projection().await?;
        postgres::queries::resources::withheld(&self.db, MAX_WITHHELD).await
    }

    /// Puts units of a product back on sale that a rebuild kept off it: how many it still keeps.
    ///
    /// # Errors
    /// [`Error::ProductNotFound`]; [`Error::InsufficientStock`] where it keeps less.
    pub async fn release_units(&self, call: &Call, product: ProductId, units: i64) -> Outcome<i64> {
        let work = async { self.store.stock_release(call, product, units).await };
        self.with_claimed_key(call, self.store.owner(product.get()), work).await
    }

    /// Lets coupons be issued again that a rebuild kept back: how many it still keeps. Takes a good second: see
    /// [`sold_out`](super::sold_out).
    ///
    /// # Errors
    /// [`Error::CampaignNotFound`]; [`Error::InsufficientStock`] where it keeps less; [`Error::InProgress`] where others release
    /// coupons of the same campaign all the while.
    pub async fn release_coupons(&self, call: &Call, coupon: CouponId, count: i64) -> Outcome<i64> {
        let work = async {
            for _ in 0..RELEASE_ATTEMPTS {
                let announcement = match self.store.coupon_release_prepare(call, coupon, count).await? {
                    Reopening::Announced(announcement) => announcement,
                    Reopening::Released(before) => return Ok(before),
                };
                self.clock.pass(sold_out::LEASE_EXPIRES_AFTER).await;
                if let Some(released) = self.store.coupon_release(call, coupon, count, &announcement).await? {
                    return Ok(released);
                }
            }
            Err(Error::InProgress)
        };
        self.with_claimed_key(call, self.store.owner(coupon.get()), work).await
    }

    /// Releases all that a rebuild keeps, or as much of it as is released at once: what is left. Repeating it goes on.
    ///
    /// # Errors
    /// The shared refusals; what was released before stays so.
    pub async fn release_all(&self, call: &Call) -> Result<Withheld, Error> {
        let call = Call { request_id: call.request_id.clone(), key: None };
        let withheld = self.withheld().await?;
        for (product, units) in withheld.products {
            match self.release_units(&call, product, units).await {
                // Another operator was at it.
                Ok(_) | Err(Error::InsufficientStock) => {}
                Err(error) => return Err(error),
            }
        }
        // All are announced first, so that one wait does for all.
        let mut announced = Vec::with_capacity(withheld.coupons.len());
        for (coupon, count) in withheld.coupons {
            match self.store.coupon_release_prepare(&call, coupon, count).await {
                Ok(Reopening::Announced(announcement)) => announced.push((coupon, count, announcement)),
                Ok(Reopening::Released(_)) | Err(Error::InsufficientStock) => {}
                Err(error) => return Err(error),
            }
        }
        if !announced.is_empty() {
            self.clock.pass(sold_out::LEASE_EXPIRES_AFTER).await;
        }
        for (coupon, count, announcement) in announced {
            match self.store.coupon_release(&call, coupon, count, &announcement).await {
                // `None`, too, is another operator who was at it.
                Ok(_) | Err(Error::InsufficientStock) => {}
                Err(error) => return Err(error),
            }
        }
        self.withheld().await
    }

    /// A page of orders, newest first, from Postgres, once it has what was decided before (or two seconds later).
    ///
    /// # Errors
    /// [`Error::Unavailable`] while Postgres is.
    pub async fn orders(&self, filter: OrderFilter) -> Result<OrderPage, Error> {
        self.wait_for_projection().await?;
        postgres::queries::resources::orders(&self.db, &filter).await
    }

    /// How far the projection is behind the decisions.
    ///
    /// # Errors
    /// [`Error::Unavailable`] while Redis or Postgres is.
    pub async fn projection(&self) -> Result<ProjectionStatus, Error> {
        let projected = self.projected_positions().await?;
        self.lag(&projected).await
    }

    /// `Ok` when requests can be served; otherwise every reason why not. Postgres being away is none: the API goes on, and
    /// the outbox keeps what it misses.
    pub async fn ready(&self) -> Result<(), Vec<String>> {
        let mut reasons = Vec::new();
        for here in self.store.all() {
            if let Err(error) = self.store.check(here).await {
                let reason = match error {
                    Error::Unavailable { reason, .. } => reason,
                    other => other.to_string(),
                };
                reasons.push(format!("partition {}: {reason}", here.0));
            } else if let Some(reason) = self.store.no_writes(here) {
                reasons.push(format!("partition {}: {reason}", here.0));
            }
        }
        if reasons.is_empty() { Ok(()) } else { Err(reasons) }
    }
}

fn ids_used_up() -> Error {
    Error::Internal(anyhow::anyhow!("ids are used up"))
}
