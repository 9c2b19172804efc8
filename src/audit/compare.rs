//! Compares the records of Redis with those of PostgreSQL, kind by kind.

use std::collections::{BTreeMap, HashMap};

use chrono::{Days, NaiveDate};

use super::{
    Audit,
    delta::Moment,
    expected::{
        evictable_holds, evictable_orders, expected_campaigns, expected_coupons, expected_holds, expected_orders,
        expected_products, expected_users,
    },
    report::Findings,
};
use crate::{
    model::{
        CouponId, OrderLine, OrderStatus, Partition, RankingScope,
        event::{Body, unpack_lines},
    },
    postgres::{queries::page::RecordKind, snapshot::Snapshot},
    redis::{
        commands::DAY_FORMAT,
        queries::audit::{CampaignSeen, HashFields, HoldSeen, OrderSeen, ProductSeen, UserSeen},
    },
};

/// The discrepancy of a field; `None` if both sides agree.
fn differ<A: ToString, B: ToString>(what: &str, redis: A, postgres: B) -> Option<String> {
    let (redis, postgres) = (redis.to_string(), postgres.to_string());
    (redis != postgres).then(|| format!("{what} is {redis:?} in Redis and {postgres:?} in PostgreSQL"))
}

fn field<'f>(fields: &'f HashFields, name: &str) -> &'f str {
    fields.get(name).map_or("", String::as_str)
}

fn int(fields: &HashFields, name: &str) -> i64 {
    field(fields, name).parse().unwrap_or(0)
}

/// Counts a record, and adds its discrepancies.
fn add_record(findings: &mut Findings, noun: &str, id: impl std::fmt::Display, wrong: Vec<Option<String>>) {
    findings.count_one();
    for wrong in wrong.into_iter().flatten() {
        findings.add(format!("{noun} {id}: {wrong}"));
    }
}

/// The discrepancy of a record that is on one side only.
fn one_sided(in_redis: bool, in_postgres: bool) -> Option<String> {
    match (in_redis, in_postgres) {
        (true, false) => Some("it is in Redis and not in PostgreSQL".into()),
        (false, true) => Some("it is in PostgreSQL and not in Redis".into()),
        _ => None,
    }
}

impl Audit {
    /// Compares the records of a partition with these ids (of remote holds: the ids of their orders).
    pub(super) async fn compare(
        &self,
        kind: RecordKind,
        here: Partition,
        ids: &[i64],
        findings: &mut Findings,
    ) -> anyhow::Result<()> {
        if ids.is_empty() {
            return Ok(());
        }
        match kind {
            RecordKind::Users => self.users(here, ids, findings).await,
            RecordKind::Products => self.products(here, ids, findings).await,
            RecordKind::Campaigns => self.campaigns(here, ids, findings).await,
            RecordKind::Orders => self.orders(here, ids, findings).await,
            RecordKind::Holds => self.holds(here, ids, findings).await,
        }
    }

    async fn users(&self, here: Partition, ids: &[i64], findings: &mut Findings) -> anyhow::Result<()> {
        let Moment { rows: (users, coupons), seen, since } = self
            .moment(
                here,
                async |snapshot| Ok((snapshot.users_of(ids).await?, snapshot.coupons_of(ids).await?)),
                async |outbox| self.store.inspect_users(here, outbox, ids).await,
            )
            .await?;
        let expected = expected_users(users, &since);
        let mut expected_coupons = expected_coupons(coupons, &since);
        // Users by coupon. Each must be among the holders of the campaign, a set that only grows.
        let mut holders: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
        for (id, UserSeen { fields, coupons }) in ids.iter().zip(&seen) {
            let row = expected.get(id);
            let mut wrong = vec![one_sided(!fields.is_empty(), row.is_some())];
            if let (Some(row), false) = (row, fields.is_empty()) {
                wrong.extend([
                    differ("the name", field(fields, "name"), &row.name),
                    differ("the balance", field(fields, "balance"), row.balance),
                    differ("the number of balance entries", field(fields, "entries"), row.entries),
                    differ("the number of open orders", field(fields, "open"), row.open),
                    (row.balance < 0).then(|| "the balance is negative".to_owned()),
                ]);
            }
            let expected: BTreeMap<i64, String> = expected_coupons.remove(id).unwrap_or_default();
            for coupon in coupons.keys().chain(expected.keys().filter(|coupon| !coupons.contains_key(coupon))) {
                let (redis, postgres) = (coupons.get(coupon), expected.get(coupon));
                let shown = |record: Option<&String>| record.cloned().unwrap_or_default();
                wrong.push(differ(&format!("coupon {coupon}"), shown(redis), shown(postgres)));
                if redis.is_some() {
                    holders.entry(*coupon).or_default().push(*id);
                }
            }
            add_record(findings, "user", id, wrong);
        }
        for (coupon, users) in holders {
            let Some(id) = CouponId::new(coupon) else { continue };
            for (user, holds) in users.iter().zip(self.store.are_holders(id, &users).await?) {
                if !holds {
                    findings.add(format!("user {user}: has coupon {coupon} and is not among its holders"));
                }
            }
        }
        Ok(())
    }

    async fn products(&self, here: Partition, ids: &[i64], findings: &mut Findings) -> anyhow::Result<()> {
        let Moment { rows, seen, since } = self
            .moment(
                here,
                async |snapshot| snapshot.products_of(ids).await,
                async |outbox| self.store.inspect_products(here, outbox, ids).await,
            )
            .await?;
        let expected = expected_products(rows, &since);
        for (id, seen) in ids.iter().zip(&seen) {
            let ProductSeen { fields, price, on_sale, held, sold, withheld, listed } = seen;
            let row = expected.get(id);
            let mut wrong = vec![one_sided(!fields.is_empty(), row.is_some())];
            if let (Some(row), false) = (row, fields.is_empty()) {
                let on_sale = on_sale.unwrap_or(i64::MIN);
                let units = [on_sale, *held, *sold, *withheld];
                let sum = units.iter().fold(0i64, |sum, units| sum.saturating_add(*units));
                wrong.extend([
                    differ("the name", field(fields, "name"), &row.name),
                    differ("the category", field(fields, "category"), &row.category),
                    differ("the price", price.unwrap_or(-1), row.price),
                    differ("on sale", on_sale, row.on_sale),
                    differ("held", held, row.held),
                    differ("sold", sold, row.sold),
                    differ("withheld", withheld, row.withheld),
                    differ("stocked", field(fields, "stocked"), row.stocked),
                    (sum != int(fields, "stocked")).then(|| {
                        format!(
                            "{units:?} on sale, held, sold and withheld are not {} stocked",
                            field(fields, "stocked")
                        )
                    }),
                    units.iter().any(|units| *units < 0).then(|| format!("{units:?} has a negative number of units")),
                    (!listed).then(|| "it is not in the catalogue".to_owned()),
                ]);
            }
            add_record(findings, "product", id, wrong);
        }
        Ok(())
    }

    async fn campaigns(&self, here: Partition, ids: &[i64], findings: &mut Findings) -> anyhow::Result<()> {
        let Moment { rows, seen, since } = self
            .moment(
                here,
                async |snapshot| snapshot.campaigns_of(ids).await,
                async |outbox| self.store.inspect_campaigns(here, outbox, ids).await,
            )
            .await?;
        let expected = expected_campaigns(rows, &since);
        for (id, CampaignSeen { fields, holders, listed }) in ids.iter().zip(&seen) {
            let row = expected.get(id);
            let mut wrong = vec![one_sided(!fields.is_empty(), row.is_some())];
            if let (Some(row), false) = (row, fields.is_empty()) {
                let (issued, withheld) = (int(fields, "issued"), int(fields, "withheld"));
                wrong.extend([
                    differ("the code", field(fields, "code"), &row.code),
                    differ("the discount", field(fields, "type"), &row.discount_type),
                    differ("the discount", field(fields, "amount"), row.discount_amount),
                    differ("the total", field(fields, "total"), row.total),
                    differ("issued", issued, row.issued),
                    differ("withheld", withheld, row.withheld),
                    differ("the opening", field(fields, "opens_at"), row.opens_at),
                    differ("the closing", field(fields, "closes_at"), row.closes_at),
                    differ("the end", field(fields, "expires_at"), row.expires_at),
                    (issued != *holders).then(|| format!("{issued} coupons are issued to {holders} holders")),
                    (issued + withheld > int(fields, "total"))
                        .then(|| format!("{issued} issued and {withheld} withheld are more than there are")),
                    (!listed).then(|| "it is not among the campaigns".to_owned()),
                ]);
            }
            add_record(findings, "campaign", id, wrong);
        }
        Ok(())
    }

    async fn orders(&self, here: Partition, ids: &[i64], findings: &mut Findings) -> anyhow::Result<()> {
        let (partitions, zone) = (self.store.partitions(), self.zone.name());
        let Moment { rows, seen, since } = self
            .moment(
                here,
                async |snapshot| snapshot.orders_of(ids, partitions, zone).await,
                async |outbox| self.store.inspect_orders(here, outbox, ids).await,
            )
            .await?;
        let evictable = evictable_orders(&rows, &since);
        let expected = expected_orders(rows, &since);
        for (id, OrderSeen { fields, expires, watched, leaves }) in ids.iter().zip(&seen) {
            let row = expected.get(id);
            // A hash without a user is a tombstone.
            let exists = fields.contains_key("user");
            let evictable = evictable.contains(id);
            let mut wrong = vec![
                one_sided(exists, row.is_some()).filter(|_| exists || !evictable),
                (exists && *leaves && !evictable)
                    .then(|| "it is about to be evicted from Redis, and is not closed".to_owned()),
            ];
            if let (Some(row), true) = (row, exists) {
                wrong.extend([
                    differ("the user", field(fields, "user"), row.user),
                    differ("the status", field(fields, "status"), &row.status),
                    differ("the reason of its end", field(fields, "reason"), &row.reason),
                    differ("the total", field(fields, "total"), row.total),
                    differ("the price", field(fields, "final"), row.final_price),
                    differ("the coupon", field(fields, "coupon"), &row.coupon),
                    differ("the lines", sorted(field(fields, "lines")), sorted(&row.own)),
                    differ("the remote lines", sorted(field(fields, "far")), sorted(&row.remote)),
                    differ("the time of payment", field(fields, "paid_at"), &row.paid_at),
                    differ("the time of its end", field(fields, "closed_at"), &row.closed_at),
                ]);
            }
            if exists {
                let lines =
                    [field(fields, "lines"), field(fields, "far")].map(|lines| unpack_lines(lines).unwrap_or_default());
                let sum: i64 = lines.iter().flatten().map(|line| line.quantity.saturating_mul(line.price)).sum();
                let gateway = field(fields, "gateway");
                let pending = field(fields, "status") == OrderStatus::Pending.as_str();
                wrong.extend([
                    (sum != int(fields, "total"))
                        .then(|| format!("its lines are worth {sum}, and its total is another")),
                    (int(fields, "total") - int(fields, "discount") != int(fields, "final"))
                        .then(|| "its price is not its total less its discount".to_owned()),
                    (*expires != (pending && gateway != "STARTED")).then(|| match expires {
                        true => "the clock will end it, and must not".to_owned(),
                        false => "it is PENDING, and the clock will not end it".to_owned(),
                    }),
                    (*watched != matches!(gateway, "STARTED" | "WATCHED" | "REFUND_DUE" | "UNCONFIRMED")).then(|| {
                        match watched {
                            true => "its gateway is asked about a payment that has ended".to_owned(),
                            false => "its gateway is not asked about a payment that has not ended".to_owned(),
                        }
                    }),
                ]);
            } else if *expires || *watched {
                wrong.push(Some("something comes due, and there is no such order".into()));
            }
            add_record(findings, "order", id, wrong);
        }
        Ok(())
    }

    async fn holds(&self, here: Partition, ids: &[i64], findings: &mut Findings) -> anyhow::Result<()> {
        // Redis indexes a hold by order and user. The user never changes, so an earlier snapshot can name it.
        let mut snapshot = Snapshot::begin(&self.db).await?;
        let known = snapshot.holds_of(here.0, ids).await?;
        snapshot.end().await?;
        let users: HashMap<i64, i64> = known.iter().map(|hold| (hold.order_id, hold.user_id)).collect();
        let pairs: Vec<(i64, i64)> = ids.iter().map(|order| (*order, users.get(order).copied().unwrap_or(0))).collect();
        let Moment { rows, seen, since } = self
            .moment(
                here,
                async |snapshot| snapshot.holds_of(here.0, ids).await,
                async |outbox| self.store.inspect_holds(here, outbox, &pairs).await,
            )
            .await?;
        let evictable = evictable_holds(&rows, &since);
        let expected = expected_holds(rows, &since);
        for (id, HoldSeen { fields, due, leaves }) in ids.iter().zip(&seen) {
            // A released hold expires after a while: missing is the same as released.
            let released = |state: &str| !matches!(state, "HELD" | "SETTLED");
            let (state, row) = (field(fields, "state"), expected.get(id));
            let expected_state = row.map_or("", |(state, _)| state.as_str());
            let evictable = evictable.contains(id);
            let mut wrong = vec![
                (!released(state) && *leaves && !evictable)
                    .then(|| "it is about to be evicted from Redis, and is not closed".to_owned()),
            ];
            let evicted = evictable && fields.is_empty();
            if !(evicted || released(state) && released(expected_state)) {
                wrong.push(differ("the hold", state, expected_state));
                wrong.push(differ("its lines", field(fields, "lines"), row.map_or("", |(_, lines)| lines.as_str())));
            }
            if users.contains_key(id) {
                wrong.push((*due != (state == "HELD")).then(|| "the clock does not look at it as it must".to_owned()));
            }
            add_record(findings, "stock held for order", id, wrong);
        }
        Ok(())
    }

    /// Compares the rankings of every day that a scope covers. Returns the number of ranked products and the
    /// discrepancies.
    pub(super) async fn rankings(&self) -> anyhow::Result<(i64, Vec<String>)> {
        let today = self.clock.now().day(self.zone);
        let days: Vec<NaiveDate> =
            (0..u64::from(RankingScope::MAX_DAYS)).filter_map(|back| today.checked_sub_days(Days::new(back))).collect();
        let first = days.last().copied().unwrap_or(today).format(DAY_FORMAT).to_string();
        let (partitions, zone) = (self.store.partitions(), self.zone.name());
        let (mut moments, mut sales) = (Vec::new(), Vec::new());
        for here in self.store.all() {
            let Moment { rows, seen, since } = self
                .moment(
                    here,
                    async |snapshot| snapshot.ranks_of(here.0, partitions, zone, &first).await,
                    async |outbox| self.store.inspect_ranks(here, outbox, &days).await,
                )
                .await?;
            for event in since.events {
                sales.extend(match event.body {
                    Body::OrderPaid(paid) => Some((paid.day, paid.lines, paid.remote, 1)),
                    Body::OrderClosed(closed) if closed.from == OrderStatus::Paid => {
                        Some((closed.day, closed.lines, closed.remote, -1))
                    }
                    _ => None,
                });
            }
            moments.push((here, rows, seen));
        }
        let (mut places, mut wrong) = (0, Vec::new());
        for (here, rows, seen) in moments {
            // Units and won, by day and product.
            let mut expected: BTreeMap<(String, i64), (i64, i64)> =
                rows.into_iter().map(|row| ((row.day, row.product_id), (row.units, row.won))).collect();
            for (day, own, remote, sign) in &sales {
                let lines = own.iter().chain(remote).filter(|line| self.store.owner(line.product_id.get()) == here);
                for OrderLine { product_id, quantity, price } in lines {
                    let (units, won) = expected.entry((day.clone(), product_id.get())).or_default();
                    *units += sign * quantity;
                    *won += sign * quantity * price;
                }
            }
            for (day, seen) in days.iter().zip(seen) {
                let day = day.format(DAY_FORMAT).to_string();
                for (product, units) in seen.units {
                    places += 1;
                    let won = seen.won.get(&product).copied().unwrap_or(0);
                    let (expected_units, expected_won) = expected.remove(&(day.clone(), product)).unwrap_or_default();
                    let what = format!("product {product} on {day}:");
                    wrong.extend(differ(&format!("{what} units"), units, expected_units));
                    wrong.extend(differ(&format!("{what} won"), won, expected_won));
                }
            }
            let counts = |day: &String| days.iter().any(|counted| counted.format(DAY_FORMAT).to_string() == *day);
            for ((day, product), (units, _)) in expected {
                if units != 0 && counts(&day) {
                    wrong.extend(differ(&format!("product {product} on {day}: units"), 0, units));
                }
            }
        }
        Ok((places, wrong))
    }
}

fn sorted(lines: &str) -> String {
    let mut lines: Vec<&str> = lines.split(',').collect();
    lines.sort_unstable();
    lines.join(",")
}
