//! Starts from Redis: the members of every index, and every key.

use std::collections::BTreeSet;

use super::{
    Audit, PAGE,
    compared::ComparedIds,
    coverage::{INDEXES, KEYS, RECORDS},
    delta::Moment,
    fields::number,
    report::{Findings, UNKNOWN},
};
use crate::{
    model::Partition,
    postgres::{queries::page::RecordKind, snapshot::Snapshot},
    redis::{
        keys::KeyKind,
        queries::audit::{Scanned, sort_keys},
    },
};

impl Audit {
    /// Checks that every member of an index is of a record that belongs there.
    pub(super) async fn indexed(&self) -> anyhow::Result<Findings> {
        let mut findings = Findings::new(INDEXES, "entries");
        for here in self.store.all() {
            for (set, kind) in [
                (KeyKind::Expiry, RecordKind::Orders),
                (KeyKind::Gateway, RecordKind::Orders),
                (KeyKind::Catalogue, RecordKind::Products),
                (KeyKind::Campaigns, RecordKind::Campaigns),
            ] {
                let mut offset = 0;
                loop {
                    let page = self.store.scored_page(here, &set, offset, PAGE).await?;
                    if page.is_empty() {
                        break;
                    }
                    offset += page.len();
                    findings.count(page.len() as i64);
                    let members: Vec<String> = page.into_iter().map(|(member, _)| member).collect();
                    self.members(kind, here, &set, &members, &mut findings).await?;
                }
            }
            for hash in [
                KeyKind::Price,
                KeyKind::PriceVersion,
                KeyKind::Stock,
                KeyKind::Held,
                KeyKind::Sold,
                KeyKind::Withheld,
                KeyKind::Quarantined,
                KeyKind::Freed,
                KeyKind::Received,
                KeyKind::Returned,
                KeyKind::Surrendered,
                KeyKind::Allotted,
                KeyKind::Regained,
                KeyKind::Recovered,
            ] {
                let mut cursor = Some("0".to_owned());
                while let Some(from) = cursor {
                    let (fields, next) = self.store.field_page(here, &hash, &from).await?;
                    cursor = next;
                    findings.count(fields.len() as i64);
                    if hash == KeyKind::Freed {
                        // No row has this count. Where it is no count, nothing is sold out.
                        let strange = fields.iter().filter(|(_, units)| number(units).is_none_or(|units| units < 0));
                        let strange: Vec<_> = strange.collect();
                        if !strange.is_empty() {
                            findings.add(format!("partition {}: {hash:?} has {strange:?}", here.0));
                        }
                    }
                    let fields = fields.into_iter().map(|(field, _)| field).collect();
                    self.units(here, &hash, fields, &mut findings).await?;
                }
            }
        }
        Ok(findings)
    }

    /// Compares the members of an index whose records PostgreSQL lacks; of orders, all, because the index says something of each.
    async fn members(
        &self,
        kind: RecordKind,
        here: Partition,
        index: &KeyKind,
        members: &[String],
        findings: &mut Findings,
    ) -> anyhow::Result<()> {
        let mut ids = Vec::new();
        for member in members {
            match number(member).filter(|id| *id > 0 && self.store.owner(*id) == here) {
                Some(id) => ids.push(id),
                None => findings.add(format!("partition {}: {index:?} has {member:?}", here.0)),
            }
        }
        if kind != RecordKind::Orders {
            self.retain_unknown(kind, here, &mut ids).await?;
        }
        let mut unknown = Findings::new("", "");
        self.compare(kind, here, &ids, &mut unknown).await?;
        findings.take(unknown);
        Ok(())
    }

    /// Compares the products in the fields of a hash of units, if PostgreSQL lacks them: those of the partition, and those of others.
    async fn units(
        &self,
        here: Partition,
        hash: &KeyKind,
        fields: Vec<String>,
        findings: &mut Findings,
    ) -> anyhow::Result<()> {
        let is_given = matches!(hash, KeyKind::Allotted | KeyKind::Regained | KeyKind::Recovered);
        let is_received = matches!(hash, KeyKind::Received | KeyKind::Returned | KeyKind::Surrendered);
        let (mut own, mut remote) = (Vec::new(), Vec::new());
        for field in fields {
            // Given units are named by product and partition.
            let product = match field.split_once(':') {
                Some((product, other)) if is_given => {
                    let other = number(other).and_then(|other| u16::try_from(other).ok());
                    let is_other = other.is_some_and(|other| other != here.0 && other < self.store.partitions());
                    if is_other { product.to_owned() } else { field }
                }
                _ => field,
            };
            let is_own = number(&product).is_some_and(|id| self.store.owner(id) == here);
            if is_given && !is_own {
                findings.add(format!("partition {}: {hash:?} has {product:?}", here.0));
            } else if is_own && !is_received {
                own.push(product);
            } else {
                remote.push(product);
            }
        }
        let ids =
            remote.iter().filter_map(|product| number(product).filter(|id| *id > 0 && self.store.owner(*id) != here));
        let mut ids: Vec<i64> = ids.collect();
        if ids.len() < remote.len() {
            let strange: Vec<&String> =
                remote.iter().filter(|product| number(product).is_none_or(|id| !ids.contains(&id))).collect();
            findings.add(format!("partition {}: {hash:?} has {strange:?}", here.0));
        }
        self.retain_unknown(RecordKind::PartitionStock, here, &mut ids).await?;
        let mut unknown = Findings::new("", "");
        self.compare(RecordKind::PartitionStock, here, &ids, &mut unknown).await?;
        findings.take(unknown);
        self.members(RecordKind::Products, here, hash, &own, findings).await
    }

    /// Keeps the ids that PostgreSQL does not have.
    async fn retain_unknown(&self, kind: RecordKind, here: Partition, ids: &mut Vec<i64>) -> anyhow::Result<()> {
        if ids.is_empty() {
            return Ok(());
        }
        ids.sort_unstable();
        ids.dedup();
        let mut snapshot = Snapshot::begin(&self.db).await?;
        let existing = snapshot.existing(kind, here.0, ids).await?;
        snapshot.end().await?;
        ids.retain(|id| existing.binary_search(id).is_err());
        Ok(())
    }

    /// Compares the idempotency records of PostgreSQL, and those that it does not have yet.
    pub(super) async fn recorded(&self) -> anyhow::Result<Findings> {
        let mut findings = Findings::new(RECORDS, "records");
        for here in self.store.all() {
            let clocks_agree = self.clocks_agree(here).await?;
            let mut after = String::new();
            loop {
                let mut snapshot = Snapshot::begin(&self.db).await?;
                let digests = snapshot.digests(here.0, &after, PAGE as i64).await?;
                snapshot.end().await?;
                let Some(last) = digests.last() else { break };
                after.clone_from(last);
                self.records((here, clocks_agree), &digests, &mut findings).await?;
                self.tracker.records(digests.len());
            }
            let Moment { since, .. } = self
                .moment(here, async |_| Ok(()), async |outbox| self.store.inspect_records(here, outbox, &[]).await)
                .await?;
            let decided: Vec<String> = since.batch.records.into_keys().collect();
            for digests in decided.chunks(PAGE) {
                self.records((here, clocks_agree), digests, &mut findings).await?;
            }
        }
        Ok(findings)
    }

    /// Scans every key of Redis. Compares the records that PostgreSQL lacks, and reports unknown keys and keys in a
    /// wrong partition.
    pub(super) async fn scanned(&self, compared: &ComparedIds) -> anyhow::Result<Findings> {
        let mut findings = Findings::new(KEYS, "keys");
        let mut categories = BTreeSet::new();
        for server in self.store.servers().await? {
            let mut cursor = Some("0".to_owned());
            while let Some(from) = cursor {
                let (keys, next) = self.store.scan_page(server, &from).await?;
                cursor = next;
                findings.count(keys.len() as i64);
                self.tracker.keys(keys.len());
                for (partition, mut scanned) in sort_keys(&keys, self.store.partitions()) {
                    let here = Partition(partition);
                    categories.extend(std::mem::take(&mut scanned.categories).into_iter().map(|name| (here, name)));
                    self.scanned_page(here, scanned, compared, &mut findings).await?;
                }
            }
        }
        for (here, category) in categories {
            self.listed(here, &category, &mut findings).await?;
        }
        Ok(findings)
    }

    async fn scanned_page(
        &self,
        here: Partition,
        scanned: Scanned,
        compared: &ComparedIds,
        findings: &mut Findings,
    ) -> anyhow::Result<()> {
        for key in scanned.unknown {
            findings.add(format!("{key} {UNKNOWN}"));
        }
        let kinds = [
            (RecordKind::Users, scanned.users),
            (RecordKind::Products, scanned.products),
            (RecordKind::Campaigns, scanned.campaigns),
            (RecordKind::Orders, scanned.orders),
            (RecordKind::RemoteCoupons, scanned.remote_coupons),
        ];
        let mut unknown = Findings::new("", "");
        for (kind, mut ids) in kinds {
            if kind != RecordKind::RemoteCoupons {
                for id in ids.extract_if(.., |id| self.store.owner(*id) != here) {
                    let owner = self.store.owner(id).0;
                    unknown.add(format!("{kind:?} {id} is in partition {} instead of {owner}", here.0));
                }
            }
            compared.remove_from((kind, here), &mut ids);
            self.retain_unknown(kind, here, &mut ids).await?;
            self.compare(kind, here, &ids, &mut unknown).await?;
        }
        let mut digests = scanned.records;
        if !digests.is_empty() {
            let mut snapshot = Snapshot::begin(&self.db).await?;
            let known: BTreeSet<String> =
                snapshot.records_of(here.0, &digests).await?.into_iter().map(|row| row.digest).collect();
            snapshot.end().await?;
            digests.retain(|digest| !known.contains(digest));
        }
        if !digests.is_empty() {
            let clocks_agree = self.clocks_agree(here).await?;
            self.records((here, clocks_agree), &digests, &mut unknown).await?;
        }
        findings.take(unknown);
        let counted = self.ranked_days();
        for day in scanned.days.into_iter().filter(|day| !counted.contains(day)) {
            let tomorrow = counted.first().and_then(|today| today.succ_opt());
            if tomorrow.is_none_or(|tomorrow| day > tomorrow) {
                findings.add(format!("partition {}: there are rankings of {day}, which has not begun", here.0));
            } else if self.store.ranks_stay(here, day).await? {
                findings.add(format!("partition {}: the rankings of {day} do not expire", here.0));
            }
        }
        Ok(())
    }

    /// Checks the products in the list of a category that PostgreSQL has in another one, or does not have.
    async fn listed(&self, here: Partition, category: &str, findings: &mut Findings) -> anyhow::Result<()> {
        let (set, mut offset) = (KeyKind::Category(category.to_owned()), 0);
        loop {
            let page = self.store.scored_page(here, &set, offset, PAGE).await?;
            if page.is_empty() {
                return Ok(());
            }
            offset += page.len();
            let mut ids = Vec::new();
            for (member, _) in &page {
                match number(member).filter(|id| *id > 0) {
                    Some(id) => ids.push(id),
                    None => findings.add(format!("partition {}: category {category:?} has {member:?}", here.0)),
                }
            }
            let mut snapshot = Snapshot::begin(&self.db).await?;
            let known = snapshot.categories_of(&ids).await?;
            snapshot.end().await?;
            let others = ids.into_iter().filter(|id| known.get(id).is_none_or(|known| known != category));
            let others: Vec<(i64, String)> = others.map(|id| (id, category.to_owned())).collect();
            if !others.is_empty() {
                let mut unknown = Findings::new("", "");
                self.products(here, &others, &mut unknown).await?;
                findings.take(unknown);
            }
        }
    }
}
