//! Writes the rows of PostgreSQL to Redis, as the scripts would have left them, except for orders that would be evicted
//! by now.

use std::collections::BTreeMap;

use chrono::{Days, NaiveDate};
use chrono_tz::Tz;
use futures_util::TryStreamExt;

use super::{findings::PossibleLosses, progress::Progress, sequences::LastIds};
use crate::{
    config::Retention,
    model::{CouponId, Millis, OrderId, Partition, ProductId, RankingScope, Scope, UserId, event::unpack_reply},
    postgres::{
        queries::page::priced,
        snapshot::{self, AllotmentRow, PartitionStockRow, RemoteCouponRow, Snapshot},
    },
    redis::{
        Store,
        bulk::Bulk,
        commands::{DAY_FORMAT, GROUPS_IN, OwnSequence, SHARED_IDS_FROM},
        keys::Keys,
        queries::ranking::ranked_until,
        records::pack_coupon,
    },
};

/// The partition that has the sequences of consecutive ids.
const FIRST: Partition = Partition(0);

pub(super) struct Loading<'a> {
    pub(super) store: &'a Store,
    /// The partitions that are loaded.
    pub(super) scope: &'a Scope,
    pub(super) zone: Tz,
    pub(super) now: Millis,
    /// How long closed orders stay in Redis; older ones are not loaded.
    pub(super) retention: Retention,
    pub(super) losses: &'a PossibleLosses,
}

/// An id of a row.
fn id<T>(new: fn(i64) -> Option<T>, id: i64) -> anyhow::Result<T> {
    new(id).ok_or_else(|| anyhow::anyhow!("{id} in PostgreSQL is no id"))
}

/// Writes a coupon that a campaign of partition `here` issued to a user of another one.
pub(super) async fn write_remote_coupon(
    bulk: &mut Bulk<'_>,
    here: Partition,
    row: &RemoteCouponRow,
) -> anyhow::Result<()> {
    let (coupon, user) = (id(CouponId::new, row.coupon_id)?, id(UserId::new, row.user_id)?);
    let record = pack_coupon(row.issue_no, Millis(row.issued_at), "A", None, None);
    bulk.member(here, Keys(here).holders(coupon), row.user_id).await?;
    Ok(bulk.field(here, Keys(here).issued(user), row.coupon_id, record).await?)
}

impl Loading<'_> {
    pub(super) async fn load(
        &self,
        snapshot: &mut Snapshot,
        bulk: &mut Bulk<'_>,
        progress: &Progress,
    ) -> anyhow::Result<()> {
        let mut rows = snapshot.users(self.scope);
        let mut forgotten = BTreeMap::<Partition, i64>::new();
        while let Some(row) = rows.try_next().await? {
            self.user(bulk, &row).await?;
            if row.name.is_empty() {
                *forgotten.entry(self.store.owner(row.id)).or_default() += 1;
            }
            progress.row("users");
        }
        drop(rows);
        for (here, users) in forgotten {
            bulk.field(here, Keys(here).meta(), "forgotten", users).await?;
        }
        let mut rows = snapshot.user_limits(self.scope);
        while let Some(row) = rows.try_next().await? {
            let owner = self.store.owner(row.user_id);
            let user = Keys(owner).user(id(UserId::new, row.user_id)?);
            bulk.field(owner, user, &row.field, row.units).await?;
            progress.row("units that count against limits");
        }
        drop(rows);
        for (group, limit) in snapshot.limit_groups_of_products().await? {
            bulk.field(GROUPS_IN, Keys(GROUPS_IN).limit_groups(), group, limit).await?;
        }
        let mut rows = snapshot.products(self.scope);
        while let Some(row) = rows.try_next().await? {
            self.product(bulk, &row).await?;
            progress.row("products");
        }
        drop(rows);
        let mut rows = snapshot.campaigns(self.scope);
        while let Some(row) = rows.try_next().await? {
            self.campaign(bulk, &row).await?;
            progress.row("campaigns");
        }
        drop(rows);
        let mut rows = snapshot.coupons(self.scope);
        while let Some(row) = rows.try_next().await? {
            self.coupon(bulk, &row).await?;
            progress.row("coupons");
        }
        drop(rows);
        let mut rows = snapshot.remote_coupons(self.scope);
        while let Some(row) = rows.try_next().await? {
            write_remote_coupon(bulk, self.store.owner(row.coupon_id), &row).await?;
            progress.row("remote coupons");
        }
        drop(rows);
        let mut rows = snapshot.orders(self.scope, self.zone.name(), self.now.0, self.retention);
        while let Some(row) = rows.try_next().await? {
            self.order(bulk, &row).await?;
            progress.row("orders");
        }
        drop(rows);
        let mut rows = snapshot.allotments(self.scope);
        while let Some(row) = rows.try_next().await? {
            self.allotment(bulk, &row).await?;
            progress.row("allotments");
        }
        drop(rows);
        if self.store.partitions() > 1 {
            let mut rows = snapshot.changed_prices();
            while let Some((product, price, terms, version)) = rows.try_next().await? {
                self.changed_price(bulk, product, priced(price, &terms), version).await?;
            }
        }
        let mut rows = snapshot.partition_stock(self.scope);
        while let Some(row) = rows.try_next().await? {
            self.partition_stock(bulk, &row).await?;
            progress.row("units of other partitions");
        }
        drop(rows);
        let mut rows = snapshot.records(self.now.0);
        while let Some(row) = rows.try_next().await? {
            self.record(bulk, &row).await?;
            progress.row("idempotency records");
        }
        drop(rows);
        self.rankings(snapshot, bulk).await?;
        self.sequences(snapshot, bulk).await
    }

    async fn user(&self, bulk: &mut Bulk<'_>, row: &snapshot::UserRow) -> anyhow::Result<()> {
        let user = id(UserId::new, row.id)?;
        let owner = self.store.owner(row.id);
        let fields: &[(&str, Option<&(dyn std::fmt::Display + Sync)>)] = &[
            // One that was forgotten has none.
            ("name", Some(&row.name).filter(|name| !name.is_empty()).map(|name| name as _)),
            ("balance", Some(&row.balance)),
            ("entries", Some(&row.entries)),
            // Empty: PostgreSQL has the whole history.
            ("tail", Some(&"")),
            ("open", Some(&row.open)),
        ];
        Ok(bulk.hash(owner, Keys(owner).user(user), fields).await?)
    }

    async fn product(&self, bulk: &mut Bulk<'_>, row: &snapshot::ProductRow) -> anyhow::Result<()> {
        let product = id(ProductId::new, row.id)?;
        let here = self.store.owner(row.id);
        let keys = Keys(here);
        let fields: &[(&str, Option<&(dyn std::fmt::Display + Sync)>)] =
            &[("name", Some(&row.name)), ("category", Some(&row.category)), ("stocked", Some(&row.stocked))];
        bulk.hash(here, keys.product(product), fields).await?;
        bulk.field(here, keys.price(), row.id, priced(row.price, &row.terms)).await?;
        if row.price_version != 0 {
            bulk.field(here, keys.price_version(), row.id, row.price_version).await?;
        }
        bulk.field(here, keys.stock(), row.id, row.on_sale).await?;
        let counts = [
            (keys.held(), row.held),
            (keys.sold(), row.sold),
            (keys.withheld(), row.withheld),
            (keys.quarantined(), row.quarantined),
        ];
        for (key, units) in counts {
            if units != 0 {
                bulk.field(here, key, row.id, units).await?;
            }
        }
        bulk.ranked(here, keys.catalogue(), row.id, row.id).await?;
        Ok(bulk.ranked(here, keys.category(&row.category), row.id, row.id).await?)
    }

    async fn allotment(&self, bulk: &mut Bulk<'_>, row: &AllotmentRow) -> anyhow::Result<()> {
        let here = self.store.owner(row.product_id);
        let (keys, field) = (Keys(here), format!("{}:{}", row.product_id, row.partition));
        let counts =
            [(keys.allotted(), row.allotted), (keys.regained(), row.regained), (keys.recovered(), row.recovered)];
        for (key, units) in counts {
            if units != 0 {
                bulk.field(here, key, &field, units).await?;
            }
        }
        Ok(())
    }

    /// A price that was brought to every partition.
    async fn changed_price(
        &self,
        bulk: &mut Bulk<'_>,
        product: i64,
        price: String,
        version: i64,
    ) -> anyhow::Result<()> {
        let owner = self.store.owner(product);
        for here in self.scope.iter().filter(|here| *here != owner) {
            bulk.field(here, Keys(here).price(), product, &price).await?;
            bulk.field(here, Keys(here).price_version(), product, version).await?;
            bulk.field(here, Keys(here).stock(), product, 0).await?;
        }
        Ok(())
    }

    async fn partition_stock(&self, bulk: &mut Bulk<'_>, row: &PartitionStockRow) -> anyhow::Result<()> {
        let here = Partition(row.partition as u16);
        let keys = Keys(here);
        bulk.field(here, keys.price(), row.product_id, priced(row.price, &row.terms)).await?;
        bulk.field(here, keys.price_version(), row.product_id, row.price_version).await?;
        bulk.field(here, keys.stock(), row.product_id, row.on_sale).await?;
        let counts = [
            (keys.held(), row.held),
            (keys.sold(), row.sold),
            (keys.withheld(), row.withheld),
            (keys.quarantined(), row.quarantined),
            (keys.received(), row.received),
            (keys.returned(), row.returned),
            (keys.surrendered(), row.surrendered),
        ];
        for (key, units) in counts {
            if units != 0 {
                bulk.field(here, key, row.product_id, units).await?;
            }
        }
        Ok(())
    }

    async fn campaign(&self, bulk: &mut Bulk<'_>, row: &snapshot::CampaignRow) -> anyhow::Result<()> {
        let coupon = id(CouponId::new, row.id)?;
        let here = self.store.owner(row.id);
        let skipped = (row.last_no - row.issued).max(row.withheld);
        let nonzero = |n: &i64| (*n != 0).then_some(*n);
        let (withheld, skipped) = (nonzero(&row.withheld), nonzero(&skipped));
        let conditions = Some(&row.conditions).filter(|conditions| !conditions.is_empty());
        let fields: &[(&str, Option<&(dyn std::fmt::Display + Sync)>)] = &[
            ("code", Some(&row.code)),
            ("type", Some(&row.discount_type)),
            ("amount", Some(&row.discount_amount)),
            ("total", Some(&row.total)),
            ("issued", Some(&row.issued)),
            ("withheld", withheld.as_ref().map(|n| n as _)),
            ("skipped", skipped.as_ref().map(|n| n as _)),
            ("opens_at", Some(&row.opens_at)),
            ("closes_at", Some(&row.closes_at)),
            ("expires_at", Some(&row.expires_at)),
            ("conditions", conditions.map(|conditions| conditions as _)),
        ];
        bulk.hash(here, Keys(here).campaign(coupon), fields).await?;
        Ok(bulk.ranked(here, Keys(here).campaigns(), row.id, row.closes_at).await?)
    }

    async fn coupon(&self, bulk: &mut Bulk<'_>, row: &snapshot::CouponRow) -> anyhow::Result<()> {
        let user = id(UserId::new, row.user_id)?;
        let owner = self.store.owner(row.user_id);
        let state = match row.status.as_str() {
            "AVAILABLE" => "A",
            "HELD" => "H",
            _ => "U",
        };
        let record = pack_coupon(row.issue_no, Millis(row.issued_at), state, row.order_id, row.used_at.map(Millis));
        bulk.field(owner, Keys(owner).user(user), row.coupon_id, record).await?;
        self.holder(bulk, row.coupon_id, row.user_id).await
    }

    /// Adds a user to the holders of a campaign. Both partitions' rows lead here; the set takes each user once.
    async fn holder(&self, bulk: &mut Bulk<'_>, coupon: i64, user: i64) -> anyhow::Result<()> {
        let here = self.store.owner(coupon);
        Ok(bulk.member(here, Keys(here).holders(id(CouponId::new, coupon)?), user).await?)
    }

    async fn order(&self, bulk: &mut Bulk<'_>, row: &snapshot::OrderRow) -> anyhow::Result<()> {
        let order = id(OrderId::new, row.id)?;
        let owner = self.store.owner(row.id);
        let keys = Keys(owner);
        let mut fields = row.fields();
        if row.status == "PENDING" && self.losses.may_be_paid(owner, Some(row.placed_at)) {
            fields.push(("doubt", "1".to_owned()));
        }
        let values: Vec<(&str, Option<&(dyn std::fmt::Display + Sync)>)> =
            fields.iter().map(|(field, value)| (*field, Some(value as _))).collect();
        bulk.hash(owner, keys.order(order), &values).await?;
        if row.is_closed() {
            let refunded = row.refunds > 0 || row.close_reason.as_deref() == Some("REFUNDED");
            let retention_ms = if refunded { self.retention.refunded_ms() } else { self.retention.closed_ms() };
            let ttl_ms = self.remaining_ttl_ms(row.ended_at, retention_ms);
            return Ok(bulk.expire_after(owner, keys.order(order), ttl_ms).await?);
        }
        if row.is_watched() {
            // Due now: the gateway's outcome may be known meanwhile.
            bulk.ranked(owner, keys.gateway(), row.id, self.now.0).await?;
        }
        if row.status == "PENDING" && !row.is_watched() {
            bulk.ranked(owner, keys.expiry(), row.id, row.expires_at).await?;
        }
        Ok(())
    }

    /// The rest of a retention that began at `ended_at`; at least 1 ms.
    fn remaining_ttl_ms(&self, ended_at: Option<i64>, retention_ms: i64) -> i64 {
        (ended_at.unwrap_or(self.now.0) + retention_ms - self.now.0).max(1)
    }

    async fn record(&self, bulk: &mut Bulk<'_>, row: &snapshot::RecordRow) -> anyhow::Result<()> {
        let Some(mut record) = unpack_reply(&row.reply) else {
            anyhow::bail!("an idempotency record in PostgreSQL is {:?}", row.reply);
        };
        record.insert(0, &row.fingerprint);
        let (here, ttl_ms) = (Partition(row.partition as u16), row.expires_at - self.now.0);
        let key = Keys(here).record(&row.digest);
        bulk.list(here, key.clone(), &record).await?;
        bulk.expire_after(here, key, ttl_ms).await?;
        let owner = self.store.owner_of_key(&row.digest);
        if owner != here {
            let claim = Keys(owner).record(&row.digest);
            bulk.list(owner, claim.clone(), &[row.fingerprint.as_str(), "CLAIMED", "KEPT"]).await?;
            bulk.expire_after(owner, claim, ttl_ms).await?;
        }
        Ok(())
    }

    async fn rankings(&self, snapshot: &mut Snapshot, bulk: &mut Bulk<'_>) -> anyhow::Result<()> {
        let first = self.now.day(self.zone).checked_sub_days(Days::new(u64::from(RankingScope::MAX_DAYS)));
        let first = first.unwrap_or(NaiveDate::MIN).format(DAY_FORMAT).to_string();
        let mut rows = snapshot.ranks(self.scope, self.zone.name(), &first);
        while let Some(row) = rows.try_next().await? {
            let day = NaiveDate::parse_from_str(&row.day, DAY_FORMAT)?;
            let here = Partition(row.partition as u16);
            for (key, score) in [(Keys(here).rank_units(day), row.units), (Keys(here).rank_won(day), row.won)] {
                bulk.ranked(here, key.clone(), row.product_id, score).await?;
                bulk.expire_after(here, key, ranked_until(day).0 - self.now.0).await?;
            }
        }
        Ok(())
    }

    /// The sequences of the rebuild's partitions. Those of the others are where they are, and continue.
    async fn sequences(&self, snapshot: &mut Snapshot, bulk: &mut Bulk<'_>) -> anyhow::Result<()> {
        let partitions = self.store.partitions();
        for (name, last, own) in snapshot.last_ids(SHARED_IDS_FROM).await? {
            let ids = LastIds { last, own, partitions, lost: self.losses.ever() };
            let own = OwnSequence::ALL.into_iter().find(|sequence| sequence.shared_name() == name);
            let in_first = match own {
                None => ids.consecutive(),
                Some(_) => ids.shared_number(),
            };
            // Of a single partition, the sequence for all is its own.
            if (own.is_none() || partitions > 1) && in_first > 0 {
                bulk.field(FIRST, Keys(FIRST).ids(), &name, in_first).await?;
            }
            for here in self.scope.iter() {
                if let Some(sequence) = own {
                    bulk.field(here, Keys(here).ids(), sequence.name(partitions), ids.own_number()).await?;
                }
            }
        }
        Ok(())
    }
}
