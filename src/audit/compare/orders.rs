//! Orders, with their places in the indexes of due times.

use std::collections::BTreeSet;

use crate::{
    audit::{
        Audit, MAX_CHECKS, RECHECK_INTERVAL,
        delta::Moment,
        expected::{evictable_orders, expected_orders},
        fields::{add_record, field, int, number, one_sided, other_score, sorted},
        report::{Findings, UNKNOWN},
    },
    model::{OrderId, OrderStatus, Partition, event::unpack_lines, share_of},
    postgres::{queries::archived_orders, snapshot::OrderRow},
    redis::queries::{
        audit::{HashFields, OrderSeen},
        due::STUCK_OFFSET,
    },
};

/// The fields that PostgreSQL has too, as it names them to operators.
const FIELDS: &[(&str, &str)] = &[
    ("user", "the user"),
    ("status", "the status"),
    ("reason", "the reason of its end"),
    ("total", "the total"),
    ("discount", "the discount"),
    ("final", "the price"),
    ("coupon", "the coupon"),
    ("lines", "the lines"),
    ("ordered", "the lines as they were ordered"),
    ("refunds", "the number of refunded parts"),
    ("due", "the parts that its gateway has to refund"),
    ("placed_at", "the time of its placement"),
    ("expires_at", "the end of its hold"),
    ("closed_at", "the time of its end"),
    ("receipt", "the receipt"),
    ("payment", "the payment, with its type, method, time and day of the sale,"),
    ("transaction", "the gateway's transaction"),
    ("gateway", "the state of its gateway payment"),
    ("gateway_at", "the start of its gateway payment"),
    ("key", "the idempotency key of its payment"),
    ("fingerprint", "the request of its payment"),
];

/// The fields that only Redis has.
const OTHER_FIELDS: &[&str] = &["gateway_asks", "gateway_said", "doubt", "prepared", "prepared_ids"];

/// How far ahead the next check of a gateway payment may be: longer than any pause, and than any check takes.
const MAX_PAUSE_MS: i64 = 60 * 60 * 1000;

impl Audit {
    pub(super) async fn orders(&self, here: Partition, ids: &[i64], findings: &mut Findings) -> anyhow::Result<()> {
        let zone = self.zone.name();
        let Moment { rows, seen, since, evicted, .. } = self
            .moment(
                here,
                async |snapshot| snapshot.orders_of(ids, zone).await,
                async |outbox| self.store.inspect_orders(here, outbox, ids).await,
            )
            .await?;
        let evictable = evictable_orders(&rows, &since);
        let expected = expected_orders(rows, &since);
        let mut staying = BTreeSet::new();
        for (id, seen) in ids.iter().zip(&seen) {
            let OrderSeen { fields, expires, watched, leaves } = seen;
            let row = expected.get(id);
            let exists = !fields.is_empty();
            let evictable = evictable.contains(id);
            let mut wrong = vec![
                one_sided(exists, row.is_some()).filter(|_| exists || !evictable),
                (exists && *leaves && !evictable)
                    .then(|| "it is about to be evicted from Redis, and is not closed".to_owned()),
            ];
            if exists && !leaves && evictable && evicted {
                staying.insert(*id);
            }
            if let (Some(row), true) = (row, exists) {
                wrong.extend(against_postgres(row, fields));
            }
            if exists {
                wrong.extend(by_itself(fields));
                wrong.extend(self.in_indexes(fields, *expires, *watched));
            } else {
                if expires.is_some() || watched.is_some() {
                    wrong.push(Some("something comes due, and there is no such order".into()));
                }
            }
            add_record(findings, "order", id, wrong);
        }
        self.staying(here, staying.iter().filter_map(|id| OrderId::new(*id)).collect(), findings).await
    }

    /// The discrepancies of an order's places in the indexes.
    fn in_indexes(&self, fields: &HashFields, expires: Option<f64>, watched: Option<f64>) -> [Option<String>; 4] {
        let gateway = field(fields, "gateway");
        let pending = field(fields, "status") == OrderStatus::Pending.as_str();
        let asks =
            matches!(gateway, "STARTED" | "WATCHED" | "REFUND_DUE" | "UNCONFIRMED") || !field(fields, "due").is_empty();
        let latest = (self.clock.now().0 + MAX_PAUSE_MS) as f64;
        let next_check = |score: f64| if score >= STUCK_OFFSET as f64 { score - STUCK_OFFSET as f64 } else { score };
        [
            (expires.is_some() != (pending && gateway != "STARTED")).then(|| match expires {
                Some(_) => "the clock will end it, and must not".to_owned(),
                None => "it is PENDING, and the clock will not end it".to_owned(),
            }),
            other_score("the clock will end it", expires, int(fields, "expires_at")),
            (watched.is_some() != asks).then(|| match watched {
                Some(_) => "its gateway is asked about a payment that has ended".to_owned(),
                None => "its gateway is not asked about a payment that has not ended".to_owned(),
            }),
            watched
                .filter(|score| score.fract() != 0.0 || !(0.0..=latest).contains(&next_check(*score)))
                .map(|score| format!("its gateway is asked again at {score}, which is no time soon")),
        ]
    }

    /// Adds the orders or holds that should have been set to expire from Redis, and still are not. A dead letter keeps its
    /// order, and an order that a late dead letter closes is evicted a moment after.
    async fn staying(&self, here: Partition, mut staying: Vec<OrderId>, findings: &mut Findings) -> anyhow::Result<()> {
        for check in 0..MAX_CHECKS {
            if staying.is_empty() {
                return Ok(());
            }
            if check > 0 {
                tokio::time::sleep(RECHECK_INTERVAL).await;
            }
            let ids: Vec<i64> = staying.iter().map(|order| order.get()).collect();
            let dead_letters = archived_orders::orders_in_dead_letters(&self.db, here.0, &ids).await?;
            let stays = self.store.stays(here, &staying).await?;
            let mut stays = stays.into_iter();
            staying.retain(|order| stays.next().unwrap_or_default() && !dead_letters.contains(&order.get()));
        }
        for order in staying {
            findings.add(format!("order {order}: it is closed in PostgreSQL, and never leaves Redis"));
        }
        Ok(())
    }
}

fn against_postgres(row: &OrderRow, fields: &HashFields) -> Vec<Option<String>> {
    let expected: HashFields = row.fields().into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    let shown = |fields: &HashFields, name: &str| match name {
        "lines" | "ordered" => sorted(field(fields, name)),
        _ => field(fields, name).to_owned(),
    };
    let compared = |(name, noun): &(&str, &str)| {
        let (redis, postgres) = (shown(fields, name), shown(&expected, name));
        (redis != postgres).then(|| format!("{noun} is {redis:?} in Redis and {postgres:?} in PostgreSQL"))
    };
    FIELDS.iter().map(compared).collect()
}

fn by_itself(fields: &HashFields) -> Vec<Option<String>> {
    let worth = |name: &str| -> i64 {
        let lines = unpack_lines(field(fields, name)).unwrap_or_default();
        lines.iter().map(|line| line.quantity.saturating_mul(line.price)).sum()
    };
    let is_whole = !fields.contains_key("ordered");
    let sum = worth(if is_whole { "lines" } else { "ordered" });
    let (total, paid) = (int(fields, "total"), int(fields, "total").saturating_sub(int(fields, "discount")));
    // Of what was paid, the refunded lines have their share back.
    let refunded = if is_whole { 0 } else { share_of(paid, sum.saturating_sub(worth("lines")), total) };
    let known = |name: &&String| FIELDS.iter().any(|(known, _)| known == name) || OTHER_FIELDS.contains(&name.as_str());
    let asks = fields.get("gateway_asks").filter(|asks| number(asks).is_none_or(|asks| asks < 0));
    let suspect = fields.get("doubt").filter(|suspect| *suspect != "1");
    let unknown = fields.keys().filter(|name| !known(name)).map(|name| Some(format!("the field {name:?} {UNKNOWN}")));
    let mut wrong: Vec<Option<String>> = unknown.collect();
    wrong.extend([
        (sum != total).then(|| format!("its lines are worth {sum}, and its total is another")),
        (paid.saturating_sub(refunded) != int(fields, "final"))
            .then(|| "its price is not its total less its discount and the share of what was refunded".to_owned()),
        asks.map(|asks| format!("its gateway was asked {asks:?} times, which is no number")),
        suspect.map(|suspect| format!("it may have been paid before a loss: {suspect:?} is not 1")),
    ]);
    wrong
}
