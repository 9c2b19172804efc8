//! The operators' operations: restock, move windows, release what is withheld, list orders, read the projection's status.
//!
//! See [`creations`](super::creations) for new users, products and campaigns.

use futures_util::future::try_join_all;

use super::*;
use crate::redis::commands::{NumberedPrice, ReleasePreparation, ReturnedUnits};

/// The maximum number of products, and of campaigns, with withheld units or coupons that one request lists or releases.
const MAX_WITHHELD: u64 = 1000;
/// The number of attempts to change a product whose category changes concurrently.
pub(super) const UPDATE_ATTEMPTS: usize = 5;
/// The age up to which the end of a campaign's window means now: allows for different clocks and times in whole seconds.
pub(super) const CLOSING_GRACE_MS: i64 = 60_000;
/// The products of a group have one limit.
pub(super) const OTHER_LIMIT: &str = "the products of the group have another limit per user";
/// Why terms are refused.
pub(super) const INVALID_TERMS: &str = "the window is empty, or the group has no limit";
/// The number of attempts to release coupons while other releases of the campaign interfere.
const RELEASE_ATTEMPTS: usize = 5;

impl Engine {
    /// Changes a product.
    ///
    /// # Errors
    /// [`Error::ProductNotFound`]; [`Error::InsufficientStock`] if fewer units are on sale than the change takes off;
    /// [`Error::InvalidRequest`] if the window would be empty, a group would have no limit, or its products another one.
    pub async fn update_product(&self, call: &Call, id: ProductId, patch: ProductPatch) -> Outcome<Product> {
        let work = async {
            for _ in 0..UPDATE_ATTEMPTS {
                // Check the key before the product: it may belong to another request.
                self.store.check_key(call, self.store.owner(id.get())).await?;
                let product = self.store.product(id).await?;
                if let Some(updated) = self.update_found(call, &product, &patch).await? {
                    return Ok(updated);
                }
            }
            Err(Error::InProgress)
        };
        self.with_claimed_key(call, self.store.owner(id.get()), work).await
    }

    /// Changes a product as it was read. `None` if another request changes it concurrently.
    pub(super) async fn update_found(
        &self,
        call: &Call,
        product: &Product,
        patch: &ProductPatch,
    ) -> Result<Option<Reply<Product>>, Error> {
        let _operation = self.store.begin_operation();
        let id = product.product_id;
        let owner = self.store.owner(id.get());
        let terms = patch.terms.of(product.terms);
        // A repeat of a change is of the same terms.
        if terms != product.terms {
            let accepted = match terms.are_valid() {
                true => self.join_group(&terms).await,
                false => Err(Error::InvalidRequest(INVALID_TERMS)),
            };
            if let Err(refused) = accepted {
                // A repeat gets the first reply, whatever the product is now. No product is in this category, so nothing changes.
                let elsewhere = Product { category: String::new(), ..product.clone() };
                let before = self.store.product_update(call, &elsewhere, patch, 0).await?;
                return before.map(|before| Some(before.map(|(product, _)| product))).ok_or(refused);
            }
        }
        let mut elsewhere = self.store.on_sale_elsewhere(owner, &[id]).await?.first().copied().unwrap_or_default();
        let mut updated = self.store.product_update(call, product, patch, elsewhere).await;
        if self.store.partitions() > 1 && matches!(updated, Err(Error::InsufficientStock)) {
            self.check_units(call, id, -patch.stock_delta.unwrap_or_default()).await?;
            // Units that other partitions have on sale may be removed, too.
            let others = self.store.all_but(owner);
            try_join_all(others.map(|here| self.take_back(call, here, id, ReturnedUnits::OnSale))).await?;
            elsewhere = self.store.on_sale_elsewhere(owner, &[id]).await?.first().copied().unwrap_or_default();
            updated = self.store.product_update(call, product, patch, elsewhere).await;
        }
        let Some(updated) = updated? else { return Ok(None) };
        let (Product { price, terms, .. }, version) = &updated.value;
        if self.store.partitions() > 1 && (patch.price.is_some() || patch.terms != SaleTermsPatch::default()) {
            self.store.price_spread(id, NumberedPrice { price: *price, terms: *terms, version: *version }).await?;
        }
        Ok(Some(updated.map(|(product, _)| product)))
    }

    /// Gives the group of these terms their limit, if it has none yet.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] if it has another one.
    pub(super) async fn join_group(&self, terms: &SaleTerms) -> Result<(), Error> {
        let Some((group, limit)) = terms.limit_group.zip(terms.limit_per_user) else { return Ok(()) };
        match self.store.limit_group_set(group, limit).await? {
            true => Ok(()),
            false => Err(Error::InvalidRequest(OTHER_LIMIT)),
        }
    }

    /// Moves a campaign's window. Issued coupons stay issued. For a moment after the campaign is closed, other processes may
    /// still reply "out of stock": see [`sold_out`](super::sold_out).
    ///
    /// # Errors
    /// [`Error::CampaignNotFound`]; [`Error::InvalidRequest`] if the new window is empty, ends after the coupons expire, or
    /// ended before now.
    pub async fn update_campaign(&self, call: &Call, id: CouponId, patch: CampaignPatch) -> Outcome<Campaign> {
        let work = async {
            // Read before the decision: after it, nothing that the reply needs may fail.
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

    /// A page of dead letters, newest first.
    ///
    /// # Errors
    /// [`Error::Unavailable`] while PostgreSQL is.
    pub async fn dead_letters(&self, page: i64, size: i64) -> Result<Page<DeadLetter>, Error> {
        postgres::queries::dead_letters::page(&self.db, page, size).await
    }

    /// The units and coupons that a rebuild keeps off sale. Waits for the projection, at most [`PROJECTION_TIMEOUT`].
    ///
    /// # Errors
    /// [`Error::Unavailable`] while PostgreSQL is.
    pub async fn withheld(&self) -> Result<Withheld, Error> {
        self.wait_for_projection().await?;
        postgres::queries::resources::withheld(&self.db, MAX_WITHHELD).await
    }

    /// Puts withheld units of a product back on sale. Returns the number of units still withheld.
    ///
    /// # Errors
    /// [`Error::ProductNotFound`]; [`Error::InsufficientStock`] if fewer units are withheld.
    pub async fn release_units(&self, call: &Call, product: ProductId, units: i64) -> Outcome<i64> {
        let owner = self.store.owner(product.get());
        let work = async {
            let _operation = self.store.begin_operation();
            // The owner partition releases what the others withhold, too.
            self.take_all_back(call, product, ReturnedUnits::Withheld).await?;
            self.store.stock_release(call, product, units).await
        };
        self.with_claimed_key(call, owner, work).await
    }

    /// Makes withheld coupons of a campaign available again. Returns the number of coupons still withheld. Takes a good second:
    /// see [`sold_out`](super::sold_out).
    ///
    /// # Errors
    /// [`Error::CampaignNotFound`]; [`Error::InsufficientStock`] if fewer coupons are withheld; [`Error::InProgress`] if
    /// concurrent releases of the campaign defeat every attempt.
    pub async fn release_coupons(&self, call: &Call, coupon: CouponId, count: i64) -> Outcome<i64> {
        let work = async {
            for _ in 0..RELEASE_ATTEMPTS {
                let token = match self.store.coupon_release_prepare(call, coupon, count).await? {
                    ReleasePreparation::Prepared(token) => token,
                    ReleasePreparation::Released(before) => return Ok(before),
                };
                self.clock.sleep(sold_out::LEASE_EXPIRES_AFTER).await;
                if let Some(released) = self.store.coupon_release(call, coupon, count, &token).await? {
                    return Ok(released);
                }
            }
            Err(Error::InProgress)
        };
        self.with_claimed_key(call, self.store.owner(coupon.get()), work).await
    }

    /// Releases everything withheld, up to [`MAX_WITHHELD`] products and campaigns. Returns the rest; a repeat releases more.
    ///
    /// # Errors
    /// Those of every write. Releases before the error stay in effect.
    pub async fn release_all(&self, call: &Call) -> Result<Withheld, Error> {
        let call = call.without_key();
        let withheld = self.withheld().await?;
        for (product, units) in withheld.products {
            match self.release_units(&call, product, units).await {
                // Another operator released it.
                Ok(_) | Err(Error::InsufficientStock) => {}
                Err(error) => return Err(error),
            }
        }
        // Prepare all releases first, so that they share one wait.
        let mut prepared = Vec::with_capacity(withheld.coupons.len());
        for (coupon, count) in withheld.coupons {
            match self.store.coupon_release_prepare(&call, coupon, count).await {
                Ok(ReleasePreparation::Prepared(token)) => prepared.push((coupon, count, token)),
                Ok(ReleasePreparation::Released(_)) | Err(Error::InsufficientStock) => {}
                Err(error) => return Err(error),
            }
        }
        if !prepared.is_empty() {
            self.clock.sleep(sold_out::LEASE_EXPIRES_AFTER).await;
        }
        for (coupon, count, token) in prepared {
            match self.store.coupon_release(&call, coupon, count, &token).await {
                // `None`: another operator released it.
                Ok(_) | Err(Error::InsufficientStock) => {}
                Err(error) => return Err(error),
            }
        }
        self.withheld().await
    }

    /// A page of orders from PostgreSQL, newest first. Waits for the projection, at most [`PROJECTION_TIMEOUT`].
    ///
    /// # Errors
    /// [`Error::Unavailable`] while PostgreSQL is.
    pub async fn orders(&self, filter: OrderFilter) -> Result<Page<Order>, Error> {
        self.wait_for_projection().await?;
        postgres::queries::resources::orders(&self.db, &filter).await
    }

    /// The lag of the projection behind the decisions.
    ///
    /// # Errors
    /// [`Error::Unavailable`] while Redis or PostgreSQL is.
    pub async fn projection(&self) -> Result<ProjectionStatus, Error> {
        let projected = self.projected_positions().await?;
        self.lag(&projected).await
    }

    /// Whether requests can be served: a partition decides. Returns the reasons of those that do not. An unavailable PostgreSQL does
    /// not count: the API goes on, and the outbox keeps the decisions.
    ///
    /// # Errors
    /// No partition can serve: the reason of each.
    pub async fn ready(&self) -> Result<Vec<String>, Vec<String>> {
        let closed = self.closed_partitions().await;
        let reasons: Vec<String> =
            closed.into_iter().map(|(here, reason)| format!("partition {}: {reason}", here.0)).collect();
        if reasons.len() < usize::from(self.store.partitions()) { Ok(reasons) } else { Err(reasons) }
    }

    /// The partitions that do not decide now, and why.
    pub async fn closed_partitions(&self) -> Vec<(Partition, String)> {
        let mut closed = Vec::new();
        for here in self.store.all() {
            if let Err(error) = self.store.check(here).await {
                let reason = match error {
                    Error::Unavailable { reason, .. } => reason,
                    other => other.to_string(),
                };
                closed.push((here, reason));
            } else if let Some(reason) = self.store.no_writes(here) {
                closed.push((here, reason));
            }
        }
        closed
    }

    /// A page of the log of recoveries, newest first. `page`: from 0.
    ///
    /// # Errors
    /// [`Error::Unavailable`] while PostgreSQL is.
    pub async fn recoveries(&self, page: i64, size: i64) -> Result<Page<Recovery>, Error> {
        postgres::recoveries::page(&self.db, page, size).await
    }
}
