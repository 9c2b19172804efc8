//! Completes the steps between two partitions that are missing in PostgreSQL. With one partition there are none. A step in a partition
//! that is not rebuilt is its script's, as if the relay took it: a repeat changes nothing.
//!
//! Without a loss, these are the steps that the relay had not taken yet. After a loss, one partition may have a
//! decision that another has lost: a user has a coupon that the campaign did not issue, or a partition received units that their owner
//! partition did not give. What survived takes precedence.

use chrono_tz::Tz;
use futures_util::TryStreamExt;

use super::{load::write_remote_coupon, prepare::is_live};
use crate::{
    model::{Call, CouponId, Error, Millis, OrderId, Partition, ProductId, Scope, UserId, event::unpack_lines},
    postgres::snapshot::{OrderRow, RemoteCouponRow, Snapshot, UnsettledTransferRow},
    redis::{
        Store,
        bulk::Bulk,
        commands::{NumberedPrice, ReturnedUnits},
        keys::Keys,
        records::repack_coupon,
    },
};

pub(super) struct Repair<'a> {
    pub(super) store: &'a Store,
    /// The partitions that are rebuilt. The others decide: only their scripts write there.
    pub(super) scope: &'a Scope,
    pub(super) zone: Tz,
    pub(super) now: Millis,
}

impl Repair<'_> {
    /// Completes the missing steps. Returns their number.
    pub(super) async fn run(&self, snapshot: &mut Snapshot, bulk: &mut Bulk<'_>) -> anyhow::Result<i64> {
        if self.store.partitions() == 1 {
            return Ok(0);
        }
        let mut repaired = 0;
        let mut rows = snapshot.unissued(self.scope);
        while let Some(row) = rows.try_next().await? {
            repaired += i64::from(self.issue(bulk, &row).await?);
        }
        drop(rows);
        let transfers: Vec<UnsettledTransferRow> = snapshot.unsettled_transfers(self.scope).try_collect().await?;
        for row in &transfers {
            repaired += self.allotment(bulk, row).await?;
            repaired += self.returned(snapshot, bulk, row).await?;
            repaired += self.surrendered(bulk, row).await?;
        }
        Ok(repaired)
    }

    /// Whether a step in a partition outside the scope was taken. One that does not decide is left to its own rebuild,
    /// which finds the step missing.
    async fn is_taken(&self, here: Partition, step: Result<(), Error>) -> anyhow::Result<i64> {
        let Err(error) = step else { return Ok(1) };
        if is_live(&self.store.partition_state(here).await?) {
            return Err(error.into());
        }
        tracing::warn!(partition = here.0, %error, "a step is left to the rebuild of its partition");
        Ok(0)
    }

    /// Counts a coupon that a user has as issued by its campaign.
    async fn issue(&self, bulk: &mut Bulk<'_>, row: &RemoteCouponRow) -> anyhow::Result<bool> {
        let here = self.store.owner(row.coupon_id);
        if !self.scope.contains(here) {
            let (coupon, user) = (row.coupon_id, row.user_id);
            tracing::warn!(coupon, user, "a user has a coupon that its campaign, in another partition, did not issue");
            return Ok(false);
        }
        let Some(coupon) = CouponId::new(row.coupon_id) else {
            anyhow::bail!("coupon {} in PostgreSQL", row.coupon_id)
        };
        let fields = [
            ("coupon", row.coupon_id.to_string()),
            ("user", row.user_id.to_string()),
            ("issue_no", row.issue_no.to_string()),
            ("at_home", "0".to_owned()),
        ];
        // At the time of the original issue: the user's coupon has it, and the two must agree.
        bulk.emit(here, Millis(row.issued_at), "coupon_issued", &fields).await?;
        let campaign = Keys(here).campaign(coupon);
        bulk.count(here, campaign, "issued", 1).await?;
        write_remote_coupon(bulk, here, row).await?;
        Ok(true)
    }

    /// Makes the two counts of the units equal that an owner partition gave to another one.
    async fn allotment(&self, bulk: &mut Bulk<'_>, row: &UnsettledTransferRow) -> anyhow::Result<i64> {
        let Transfer { product, owner, other, price } = self.transfer(row)?;
        let units = row.allotted - row.received;
        if units == 0 {
            return Ok(0);
        }
        if units > 0 && !self.scope.contains(other) {
            let received = self.store.stock_receive(&call(), other, product, row.allotted, price).await;
            return self.is_taken(other, received).await;
        }
        if units > 0 {
            let fields =
                [("product", product.to_string()), ("units", units.to_string()), ("total", row.allotted.to_string())];
            bulk.emit(other, self.now, "stock_received", &fields).await?;
            let keys = Keys(other);
            bulk.field(other, keys.price(), product, price.packed()).await?;
            bulk.field(other, keys.price_version(), product, price.version).await?;
            bulk.count(other, keys.stock(), product, units).await?;
            bulk.field(other, keys.received(), product, row.allotted).await?;
            return Ok(1);
        }
        if !self.scope.contains(owner) {
            tracing::error!(%product, partition = other.0, "a partition received units that nobody gave to it");
            return Ok(0);
        }
        // The owner partition has lost the decision that gave the units, and perhaps the one that put them on sale.
        let given = -units;
        let missing = given - self.on_sale(bulk, owner, product).await?;
        if missing > 0 {
            self.restock(bulk, row, missing).await?;
        }
        let fields = [
            ("product", product.to_string()),
            ("partition", other.0.to_string()),
            ("units", given.to_string()),
            ("total", row.received.to_string()),
            ("price", price.price.to_string()),
            ("version", price.version.to_string()),
            ("terms", row.terms.clone()),
        ];
        bulk.emit(owner, self.now, "stock_allotted", &fields).await?;
        bulk.count(owner, Keys(owner).stock(), product, units).await?;
        bulk.field(owner, Keys(owner).allotted(), format!("{product}:{}", other.0), row.received).await?;
        Ok(1)
    }

    /// Counts units as put on sale that another partition has, and whose decision is lost.
    async fn restock(&self, bulk: &mut Bulk<'_>, row: &UnsettledTransferRow, units: i64) -> anyhow::Result<()> {
        let Transfer { product, owner, price, .. } = self.transfer(row)?;
        tracing::warn!(%product, units, "units were put on sale by a decision that is lost");
        let fields = [
            ("product", product.to_string()),
            ("name", row.name.clone()),
            ("price", price.price.to_string()),
            ("category", row.category.clone()),
            ("delta", units.to_string()),
            ("version", price.version.to_string()),
            ("terms", row.terms.clone()),
        ];
        bulk.emit(owner, self.now, "product_updated", &fields).await?;
        bulk.count(owner, Keys(owner).product(product), "stocked", units).await?;
        Ok(bulk.count(owner, Keys(owner).stock(), product, units).await?)
    }

    /// Makes the two counts of the units on sale equal that a partition gave back.
    async fn returned(
        &self,
        snapshot: &mut Snapshot,
        bulk: &mut Bulk<'_>,
        row: &UnsettledTransferRow,
    ) -> anyhow::Result<i64> {
        let Transfer { product, owner, other, .. } = self.transfer(row)?;
        let units = row.returned - row.regained;
        if units == 0 {
            return Ok(0);
        }
        if units > 0 {
            return self.regain(bulk, row, ReturnedUnits::OnSale, units).await;
        }
        if !self.scope.contains(other) {
            tracing::error!(%product, partition = owner.0, "a partition took back units that nobody gave back");
            return Ok(0);
        }
        // The other partition has lost the decision that gave the units back, and perhaps those that closed orders before.
        let given_back = -units;
        let mut on_sale = self.on_sale(bulk, other, product).await?;
        if on_sale < given_back {
            let orders = snapshot.newest_pending(
                (other, self.store.partitions()),
                row.product_id,
                given_back - on_sale,
                self.zone.name(),
            );
            for order in orders.await? {
                on_sale += self.expire(bulk, other, &order, product).await?;
            }
        }
        if on_sale < given_back {
            tracing::error!(%product, partition = other.0, units = given_back - on_sale, "units were given back and sold again elsewhere");
        }
        let units = given_back.min(on_sale);
        if units > 0 {
            self.give_back(bulk, row, ReturnedUnits::OnSale, units).await?;
        }
        Ok(1)
    }

    /// Makes the two counts of the withheld units equal that a partition gave back.
    async fn surrendered(&self, bulk: &mut Bulk<'_>, row: &UnsettledTransferRow) -> anyhow::Result<i64> {
        let units = row.surrendered - row.recovered;
        if units > 0 {
            return self.regain(bulk, row, ReturnedUnits::Withheld, units).await;
        }
        let units = (-units).min(row.withheld);
        if units > 0 && self.scope.contains(Partition(row.partition as u16)) {
            self.give_back(bulk, row, ReturnedUnits::Withheld, units).await?;
            return Ok(1);
        }
        Ok(0)
    }

    /// Takes units back in their owner partition.
    async fn regain(
        &self,
        bulk: &mut Bulk<'_>,
        row: &UnsettledTransferRow,
        kind: ReturnedUnits,
        units: i64,
    ) -> anyhow::Result<i64> {
        let Transfer { product, owner, other, .. } = self.transfer(row)?;
        let (total, keys) = (if kind == ReturnedUnits::OnSale { row.returned } else { row.surrendered }, Keys(owner));
        if !self.scope.contains(owner) {
            let regained = self.store.stock_regain(&call(), product, other, total, kind).await;
            return self.is_taken(owner, regained).await;
        }
        let fields = [
            ("product", product.to_string()),
            ("partition", other.0.to_string()),
            ("units", units.to_string()),
            ("total", total.to_string()),
            ("withheld", kind.flag().to_owned()),
        ];
        bulk.emit(owner, self.now, "stock_regained", &fields).await?;
        let (counter, regained) = match kind {
            ReturnedUnits::OnSale => (keys.stock(), keys.regained()),
            ReturnedUnits::Withheld => (keys.withheld(), keys.recovered()),
        };
        bulk.count(owner, counter, product, units).await?;
        bulk.field(owner, regained, format!("{product}:{}", other.0), total).await?;
        Ok(1)
    }

    /// Gives units back in the other partition, which has lost the decision.
    async fn give_back(
        &self,
        bulk: &mut Bulk<'_>,
        row: &UnsettledTransferRow,
        kind: ReturnedUnits,
        units: i64,
    ) -> anyhow::Result<()> {
        let Transfer { product, other, .. } = self.transfer(row)?;
        let keys = Keys(other);
        let (counter, returned, before) = match kind {
            ReturnedUnits::OnSale => (keys.stock(), keys.returned(), row.returned),
            ReturnedUnits::Withheld => (keys.withheld(), keys.surrendered(), row.surrendered),
        };
        let fields = [
            ("product", product.to_string()),
            ("units", units.to_string()),
            ("total", (before + units).to_string()),
            ("withheld", kind.flag().to_owned()),
        ];
        bulk.emit(other, self.now, "stock_returned", &fields).await?;
        bulk.count(other, counter, product, -units).await?;
        Ok(bulk.field(other, returned, product, before + units).await?)
    }

    /// Closes a PENDING order whose units were given back: a decision that is lost had closed it, or a newer one. Returns its units of the
    /// product.
    async fn expire(
        &self,
        bulk: &mut Bulk<'_>,
        here: Partition,
        row: &OrderRow,
        product: ProductId,
    ) -> anyhow::Result<i64> {
        let (Some(order), Some(user), Some(lines)) =
            (OrderId::new(row.id), UserId::new(row.user_id), unpack_lines(&row.lines))
        else {
            anyhow::bail!("order {} in PostgreSQL is unreadable", row.id);
        };
        if row.is_watched() {
            return Ok(0);
        }
        tracing::warn!(%order, "an order is closed, because its units were given back by decisions that are lost");
        let keys = Keys(here);
        let fields = [
            ("order", order.to_string()),
            ("user", user.to_string()),
            ("from", "PENDING".to_owned()),
            ("status", "CANCELLED".to_owned()),
            ("reason", "EXPIRED".to_owned()),
            ("lines", row.lines.clone()),
            ("coupon", row.coupon_id.map(|id| id.to_string()).unwrap_or_default()),
            ("receipt", String::new()),
            ("method", String::new()),
            ("day", String::new()),
            ("watch", "0".to_owned()),
            ("withheld", "0".to_owned()),
            ("credit", "0".to_owned()),
            ("before", "0".to_owned()),
            ("after", "0".to_owned()),
            ("entry_no", "0".to_owned()),
            ("prev", String::new()),
        ];
        bulk.emit(here, self.now, "order_closed", &fields).await?;
        let closed: &[(&str, Option<&(dyn std::fmt::Display + Sync)>)] =
            &[("status", Some(&"CANCELLED")), ("reason", Some(&"EXPIRED")), ("closed_at", Some(&self.now.0))];
        bulk.hash(here, keys.order(order), closed).await?;
        bulk.unranked(here, keys.expiry(), row.id).await?;
        bulk.count(here, keys.user(user), "open", -1).await?;
        if let Some(coupon) = row.coupon_id {
            bulk.flush().await?;
            if let Some(record) = self.store.coupon_field(here, user, coupon).await? {
                bulk.field(here, keys.user(user), coupon, repack_coupon(&record, "A")).await?;
            }
        }
        let mut units = 0;
        for line in &lines {
            if let Some(limit) = line.limit {
                bulk.count(here, keys.user(user), limit.field(line.product_id), -line.quantity).await?;
            }
            bulk.count(here, keys.held(), line.product_id, -line.quantity).await?;
            bulk.count(here, keys.stock(), line.product_id, line.quantity).await?;
            units += if line.product_id == product { line.quantity } else { 0 };
        }
        Ok(units)
    }

    /// The units that a partition of the scope has on sale.
    async fn on_sale(&self, bulk: &mut Bulk<'_>, here: Partition, product: ProductId) -> anyhow::Result<i64> {
        bulk.flush().await?;
        Ok(self.store.stock_of(here, &[product.get()]).await?.first().copied().unwrap_or_default())
    }

    fn transfer(&self, row: &UnsettledTransferRow) -> anyhow::Result<Transfer> {
        let Some(product) = ProductId::new(row.product_id) else {
            anyhow::bail!("{} in PostgreSQL is no id", row.product_id);
        };
        let Ok(terms) = row.terms.parse() else {
            anyhow::bail!("product {product} has the terms {:?} in PostgreSQL", row.terms);
        };
        Ok(Transfer {
            product,
            owner: self.store.owner(row.product_id),
            other: Partition(row.partition as u16),
            price: NumberedPrice { price: row.price, terms, version: row.price_version },
        })
    }
}

/// A transfer between the owner partition of a product and another one.
struct Transfer {
    product: ProductId,
    owner: Partition,
    other: Partition,
    price: NumberedPrice,
}

/// The steps that the rebuild takes in partitions outside its scope, as their events name it.
fn call() -> Call {
    Call::new("rebuild", None)
}
