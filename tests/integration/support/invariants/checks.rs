//! The invariants.

use super::*;

fn int(hash: &Hash, field: &str) -> i64 {
    hash.get(field).unwrap_or_else(|| panic!("no {field} in {hash:?}")).parse().unwrap()
}

/// The units of a product in a partition, none of them negative.
fn units_of(all: &Redis, key: (u16, i64)) -> i64 {
    let counters = [&all.stock, &all.held, &all.sold, &all.withheld, &all.quarantined];
    let units = counters.map(|counters| counters.get(&key).copied().unwrap_or(0));
    assert!(units.iter().all(|units| *units >= 0), "product {key:?}: {units:?}");
    units.iter().sum()
}

/// The packed lines as they were ordered.
fn ordered(order: &Hash) -> &str {
    order.get("ordered").unwrap_or(&order["lines"])
}

pub(super) fn redis_against_itself(all: &Redis, partitions: u16) {
    let owner = |id: i64| (id % i64::from(partitions)) as u16;
    // Orders, and what they hold and sold.
    let (mut held, mut sold): (Counters, Counters) = Default::default();
    let (mut units, mut won): (BTreeMap<(String, i64), i64>, BTreeMap<(String, i64), i64>) = Default::default();
    let mut open: BTreeMap<i64, i64> = BTreeMap::new();
    let mut limits: BTreeMap<(i64, String), i64> = BTreeMap::new();
    let (mut expiry, mut gateway) = (BTreeSet::new(), BTreeSet::new());
    let (mut coupon_held, mut coupon_used) = (BTreeMap::new(), BTreeMap::new());
    for (id, order) in &all.orders {
        let every = lines(&order["lines"]);
        let worth = |lines: &[(i64, i64, i64)]| lines.iter().map(|(_, quantity, price)| quantity * price).sum::<i64>();
        let total = worth(&lines(ordered(order)));
        assert_eq!(int(order, "total"), total, "order {id}");
        // Of what was paid, the refunded lines have their share back, rounded down.
        let paid = total - int(order, "discount");
        let share = i128::from(paid) * i128::from(total - worth(&every));
        let refunded = share.checked_div(i128::from(total)).unwrap_or(0) as i64;
        assert_eq!(int(order, "final"), paid - refunded, "order {id}");
        assert!(int(order, "final") >= 0, "order {id}");
        let state = order.get("gateway").map(String::as_str);
        if matches!(state, Some("STARTED" | "WATCHED" | "REFUND_DUE" | "UNCONFIRMED")) || order.contains_key("due") {
            gateway.insert(*id);
        }
        let coupon = order["coupon"].parse::<i64>().ok().map(|coupon| (coupon, int(order, "user")));
        if matches!(order["status"].as_str(), "PENDING" | "PAID") {
            for (field, units) in limited(&order["lines"]) {
                *limits.entry((int(order, "user"), field)).or_default() += units;
            }
        }
        match order["status"].as_str() {
            "PENDING" => {
                for (product, quantity, _) in &every {
                    *held.entry((owner(*id), *product)).or_default() += quantity;
                }
                *open.entry(int(order, "user")).or_default() += 1;
                if state != Some("STARTED") {
                    expiry.insert(*id);
                }
                if let Some(coupon) = coupon {
                    assert!(coupon_held.insert(coupon, *id).is_none(), "coupon {coupon:?} is held twice");
                }
            }
            "PAID" => {
                for (product, quantity, price) in &every {
                    *sold.entry((owner(*id), *product)).or_default() += quantity;
                    *units.entry((order["day"].clone(), *product)).or_default() += quantity;
                    *won.entry((order["day"].clone(), *product)).or_default() += quantity * price;
                }
                if let Some(coupon) = coupon {
                    assert!(coupon_used.insert(coupon, *id).is_none(), "coupon {coupon:?} is used twice");
                }
            }
            "CANCELLED" | "FAILED" => assert!(order.contains_key("closed_at") && order.contains_key("reason")),
            other => panic!("order {id} is {other}"),
        }
    }
    let nonzero = |counters: &Counters| -> Counters {
        counters.iter().filter(|(_, n)| **n != 0).map(|(id, n)| (*id, *n)).collect()
    };
    assert_eq!(nonzero(&all.held), nonzero(&held), "held = lines of PENDING orders");
    assert_eq!(nonzero(&all.sold), nonzero(&sold), "sold = lines of PAID orders");
    let mut counted = all.limits.clone();
    counted.retain(|_, units| *units != 0);
    assert_eq!(counted, limits, "limits = lines of PENDING and PAID orders");
    assert_eq!(all.units, units, "rankings = paid order lines");
    // A score of 0 equals a missing member: units that cost nothing add none.
    won.retain(|_, won| *won != 0);
    let ranked: BTreeMap<_, _> =
        all.won.iter().filter(|(_, won)| **won != 0).map(|(k, won)| (k.clone(), *won)).collect();
    assert_eq!(ranked, won, "rankings = paid order lines");
    assert_eq!(all.expiry.keys().copied().collect::<BTreeSet<_>>(), expiry, "expiry = PENDING orders");
    assert_eq!(all.gateway.keys().copied().collect::<BTreeSet<_>>(), gateway, "gateway = unfinished payments");
    // Products, and what went from their partition to others.
    for (id, product) in &all.products {
        let here = owner(*id);
        assert!(all.price.contains_key(&(here, *id)), "product {id} has no price");
        let mut units = units_of(all, (here, *id));
        for other in (0..partitions).filter(|other| *other != here) {
            let count = |counters: &Counters| counters.get(&(other, *id)).copied().unwrap_or(0);
            let given = |counters: &BTreeMap<(i64, u16), i64>| counters.get(&(*id, other)).copied().unwrap_or(0);
            let (allotted, regained, recovered) = (given(&all.allotted), given(&all.regained), given(&all.recovered));
            let there = [count(&all.received), count(&all.returned), count(&all.surrendered)];
            assert_eq!(there, [allotted, regained, recovered], "product {id} between partitions {here} and {other}");
            let has = units_of(all, (other, *id));
            assert_eq!(has, allotted - regained - recovered, "product {id}: units in partition {other}");
            units += has;
            if has != 0 {
                assert_eq!(
                    all.price[&(other, *id)],
                    all.price[&(here, *id)],
                    "product {id}: price in partition {other}"
                );
            }
        }
        assert_eq!(
            int(product, "stocked"),
            units,
            "product {id}: stocked = on sale + held + sold + withheld + quarantined"
        );
    }
    for (here, id) in all.stock.keys() {
        assert!(all.products.contains_key(id), "partition {here} has units of product {id}, which does not exist");
    }
    // Campaigns and coupons.
    let mut records: BTreeMap<i64, BTreeMap<i64, i64>> = BTreeMap::new();
    let issued = |record: &str| record.split('|').take(2).map(str::to_owned).collect::<Vec<_>>();
    for (key, record) in &all.remote_coupons {
        assert_eq!(record.split('|').skip(2).collect::<Vec<_>>(), ["A", "", ""], "coupon {key:?} as it was issued");
        let granted = all.coupons.get(key).map(|record| issued(record));
        assert!(granted.is_none_or(|granted| granted == issued(record)), "coupon {key:?} as it was granted");
    }
    let unused = all.remote_coupons.iter().filter(|(key, _)| !all.coupons.contains_key(key));
    for ((coupon, user), record) in all.coupons.iter().chain(unused) {
        let parts: Vec<&str> = record.split('|').collect();
        let order = parts[3].parse::<i64>().ok();
        let clash = records.entry(*coupon).or_default().insert(parts[0].parse().unwrap(), *user);
        assert_eq!(clash, None, "two users at place {} of campaign {coupon}", parts[0]);
        let key = (*coupon, *user);
        match parts[2] {
            "A" => assert!(order.is_none() && parts[4].is_empty(), "{record}"),
            "H" => assert_eq!(coupon_held.remove(&key), order, "the held coupon {key:?}"),
            "U" => assert_eq!(coupon_used.remove(&key), order, "the used coupon {key:?}"),
            other => panic!("coupon {key:?} is {other}"),
        }
    }
    assert!(coupon_held.is_empty() && coupon_used.is_empty(), "orders without their coupon");
    for (id, campaign) in &all.campaigns {
        let issued = int(campaign, "issued");
        let withheld = withheld(campaign);
        assert!(withheld >= 0, "campaign {id} withheld {withheld}");
        assert!((0..=int(campaign, "total") - withheld).contains(&issued), "campaign {id} issued {issued}");
        let places: Vec<i64> = records.get(id).map(|places| places.keys().copied().collect()).unwrap_or_default();
        // After a loss, numbers that may have been acknowledged are skipped.
        let last = issued + campaign.get("skipped").map_or(0, |n| n.parse().unwrap());
        assert_eq!(places.len() as i64, issued, "campaign {id}: as many places as issued");
        assert!(places.iter().all(|place| (1..=last).contains(place)), "campaign {id}: {places:?} of 1 to {last}");
        let users: BTreeSet<i64> = records.get(id).map(|p| p.values().copied().collect()).unwrap_or_default();
        assert_eq!(all.holders.get(id).cloned().unwrap_or_default(), users, "campaign {id}: holders");
    }
    // Users.
    for (id, user) in &all.users {
        assert!(int(user, "balance") >= 0, "user {id}");
        assert_eq!(int(user, "open"), open.remove(id).unwrap_or(0), "user {id}: open orders");
    }
    assert!(open.is_empty(), "orders without their user");
}

pub(super) async fn postgres_against_itself(pool: &PgPool) {
    // In a sound database each query returns no row.
    for (invariant, sql) in [
        (
            "a history's sum is the balance, without gaps, each entry's before the previous one's after",
            "SELECT user_id FROM (
                 SELECT user_id, entry_no, before_balance, after_balance,
                     lag(after_balance, 1, 0) OVER w AS previous, row_number() OVER w AS place
                 FROM balance_entries WINDOW w AS (PARTITION BY user_id ORDER BY entry_no)) AS e
             WHERE before_balance <> previous OR entry_no <> place
             UNION
             SELECT users.id FROM users LEFT JOIN LATERAL (
                 SELECT after_balance FROM balance_entries WHERE user_id = users.id ORDER BY entry_no DESC LIMIT 1
             ) AS last ON true WHERE users.balance <> coalesce(last.after_balance, 0)",
        ),
        (
            "held, sold and quarantined are the lines of PENDING, PAID and refunded orders",
            "SELECT products.id FROM (
                 SELECT id, held + coalesce(sum_held, 0) AS held, sold + coalesce(sum_sold, 0) AS sold,
                     quarantined + coalesce(sum_quarantined, 0) AS quarantined FROM products LEFT JOIN (
                     SELECT product_id, sum(held) AS sum_held, sum(sold) AS sum_sold, sum(quarantined) AS sum_quarantined
                     FROM partition_stock GROUP BY 1) AS s ON s.product_id = id) AS products LEFT JOIN (
                 SELECT product_id, sum(quantity) FILTER (WHERE status = 'PENDING') AS held,
                     sum(quantity - l.refunded) FILTER (WHERE status = 'PAID') AS sold, sum(quarantined) AS quarantined
                 FROM order_lines AS l JOIN orders ON orders.id = order_id GROUP BY product_id) AS l
                     ON l.product_id = products.id
             WHERE products.held <> coalesce(l.held, 0) OR products.sold <> coalesce(l.sold, 0)
                OR products.quarantined <> coalesce(l.quarantined, 0)",
        ),
        (
            "the parts of an order are its refunded units and money",
            "SELECT id FROM orders WHERE (refunded, refunds) <> (
                 SELECT coalesce(sum(amount), 0), count(*) FROM order_refunds WHERE order_id = orders.id)
             UNION SELECT order_id FROM order_lines AS l WHERE refunded <> (
                 SELECT coalesce(sum(split_part(line, ':', 2)::bigint), 0)
                 FROM order_refunds AS r, string_to_table(r.lines, ',') AS line
                 WHERE r.order_id = l.order_id AND split_part(line, ':', 1)::bigint = l.product_id)
             UNION SELECT id FROM orders WHERE refunds > 0 AND refunded <> (
                 SELECT coalesce(div(final_price::numeric * sum(l.refunded * price), NULLIF(total, 0)), 0)
                 FROM order_lines AS l WHERE order_id = orders.id)",
        ),
        (
            "issued is the number of coupons",
            "SELECT campaigns.id FROM campaigns LEFT JOIN (
                 SELECT coupon_id, count(*) AS n FROM (
                     SELECT coupon_id, user_id FROM user_coupons UNION SELECT coupon_id, user_id FROM remote_coupons) AS all_of_them
                 GROUP BY 1) AS c ON c.coupon_id = campaigns.id WHERE issued <> coalesce(n, 0)",
        ),
        (
            "an order's total is its lines'",
            "SELECT id FROM orders WHERE total <> (SELECT sum(quantity * price) FROM order_lines WHERE order_id = orders.id)",
        ),
        (
            "a PAID order has its payment and its entry",
            "SELECT orders.id FROM orders LEFT JOIN payments ON payments.order_id = orders.id
             WHERE orders.paid_at IS NOT NULL AND (payments.id IS NULL OR payments.amount <> final_price
                 OR (orders.status = 'PAID') <> (payments.status IN ('PAID', 'UNCONFIRMED', 'DISPUTED'))
                 OR (payments.status IN ('UNCONFIRMED', 'DISPUTED') AND payments.resolved_by IS NULL)
                 OR (payments.method = 'BALANCE' AND final_price > 0) <> EXISTS (
                     SELECT FROM balance_entries AS e WHERE e.order_id = orders.id AND transaction_type = 'PAYMENT'
                         AND e.amount = final_price)
                 OR CASE WHEN payments.method <> 'BALANCE' THEN 0 WHEN orders.status = 'CANCELLED' THEN final_price
                         ELSE orders.refunded END <> (
                     SELECT coalesce(sum(e.amount), 0) FROM balance_entries AS e
                     WHERE e.order_id = orders.id AND transaction_type = 'REFUND'))",
        ),
        (
            "coupons say what their orders say",
            "SELECT c.user_id FROM user_coupons AS c LEFT JOIN orders ON orders.id = c.order_id
             WHERE (c.status = 'HELD') <> (coalesce(orders.status, '') = 'PENDING')
                OR (c.status = 'USED') <> (coalesce(orders.status, '') = 'PAID')",
        ),
        (
            "every decision is one event, unless it is a dead letter",
            "SELECT partition::bigint FROM projection_positions AS p
             WHERE events_epoch = epoch AND events_seq = seq AND events_after_epoch = epoch AND seq - events_after_seq <> (
                 SELECT count(*) FROM events AS e WHERE e.partition = p.partition AND e.epoch = p.epoch
                     AND coalesce(late_seq, e.seq) > events_after_seq) + (
                 SELECT count(*) FROM dead_letters AS d WHERE d.partition = p.partition AND d.epoch = p.epoch
                     AND d.seq > events_after_seq)
             UNION SELECT partition::bigint FROM events GROUP BY partition, epoch, coalesce(late_seq, seq) HAVING count(*) > 1",
        ),
        ("lines are of products that exist", "SELECT product_id FROM order_lines EXCEPT SELECT id FROM products"),
        ("coupons are of campaigns that exist", "SELECT coupon_id FROM user_coupons EXCEPT SELECT id FROM campaigns"),
    ] {
        let ids: Vec<i64> = sqlx::query_scalar(sql).fetch_all(pool).await.unwrap();
        assert!(ids.is_empty(), "{invariant}: not so for {ids:?}");
    }
}

pub(super) async fn redis_against_postgres(all: &Redis, pool: &PgPool, partitions: u16) {
    let partitions = i64::from(partitions);
    let rows = sqlx::query("SELECT partition, epoch, seq FROM projection_positions").fetch_all(pool).await.unwrap();
    let positions: BTreeMap<u16, (i64, i64)> =
        rows.iter().map(|row| (row.get::<i32, _>(0) as u16, (row.get(1), row.get(2)))).collect();
    assert_eq!(all.seqs, positions, "positions");

    let rows = sqlx::query("SELECT id, name, balance FROM users").fetch_all(pool).await.unwrap();
    let there: BTreeMap<i64, (String, i64)> = rows.iter().map(|row| (row.get(0), (row.get(1), row.get(2)))).collect();
    let here: BTreeMap<i64, (String, i64)> = all
        .users
        .iter()
        .map(|(id, user)| (*id, (user.get("name").cloned().unwrap_or_default(), int(user, "balance"))))
        .collect();
    assert_eq!(here, there, "users");

    let entries: Vec<(i64, i64)> =
        sqlx::query_as("SELECT user_id, count(*) FROM balance_entries GROUP BY 1").fetch_all(pool).await.unwrap();
    let entries: BTreeMap<i64, i64> = entries.into_iter().collect();
    for (id, user) in &all.users {
        assert_eq!(int(user, "entries"), entries.get(id).copied().unwrap_or(0), "user {id}: entries");
    }

    type ProductRow = (i64, String, String, i64, i64, i64, i64, [i64; 2], i64, i64);
    let there: Vec<ProductRow> = sqlx::query_as(
        "SELECT id, name, category, price, on_sale, held, sold, ARRAY[withheld, quarantined], allotted, stocked FROM products
         ORDER BY id",
    )
    .fetch_all(pool)
    .await
    .unwrap();
    let here: Vec<ProductRow> = all
        .products
        .iter()
        .map(|(id, p)| {
            let key = ((*id % partitions) as u16, *id);
            let counter = |counters: &Counters| counters.get(&key).copied().unwrap_or(0);
            let given = |counters: &BTreeMap<(i64, u16), i64>| {
                counters.iter().filter(|((product, _), _)| product == id).map(|(_, units)| units).sum::<i64>()
            };
            let allotted = given(&all.allotted) - given(&all.regained) - given(&all.recovered);
            let (on_sale, held, sold) = (all.stock[&key], counter(&all.held), counter(&all.sold));
            let (name, category, back) =
                (p["name"].clone(), p["category"].clone(), [&all.withheld, &all.quarantined].map(counter));
            (*id, name, category, all.price[&key], on_sale, held, sold, back, allotted, int(p, "stocked"))
        })
        .collect();
    assert_eq!(here, there, "products");

    type StockRow = (i64, i32, i64, i64, i64, [i64; 2], i64, i64, i64);
    let there: Vec<StockRow> = sqlx::query_as(
        "SELECT product_id, partition, on_sale, held, sold, ARRAY[withheld, quarantined], received, returned, surrendered
         FROM partition_stock ORDER BY product_id, partition",
    )
    .fetch_all(pool)
    .await
    .unwrap();
    let mut here: Vec<StockRow> = all
        .received
        .keys()
        .map(|key| {
            let count = |counters: &Counters| counters.get(key).copied().unwrap_or(0);
            let [on_sale, held, sold] = [&all.stock, &all.held, &all.sold].map(count);
            let off_sale = [&all.withheld, &all.quarantined].map(count);
            let [received, returned, surrendered] = [&all.received, &all.returned, &all.surrendered].map(count);
            (key.1, key.0.into(), on_sale, held, sold, off_sale, received, returned, surrendered)
        })
        .collect();
    here.sort_unstable();
    assert_eq!(here, there, "units of other partitions' products");

    let there: Vec<(i64, i64, i64, i64)> =
        sqlx::query_as("SELECT id, total, issued, withheld FROM campaigns ORDER BY id").fetch_all(pool).await.unwrap();
    let here: Vec<(i64, i64, i64, i64)> =
        all.campaigns.iter().map(|(id, c)| (*id, int(c, "total"), int(c, "issued"), withheld(c))).collect();
    assert_eq!(here, there, "campaigns");

    type CouponRow = (i64, i64, i64, String, Option<i64>);
    let there: Vec<CouponRow> = sqlx::query_as(
        "SELECT coupon_id, user_id, issue_no, status, order_id FROM user_coupons ORDER BY coupon_id, user_id",
    )
    .fetch_all(pool)
    .await
    .unwrap();
    let here: Vec<CouponRow> = all
        .coupons
        .iter()
        .map(|((coupon, user), record)| {
            let parts: Vec<&str> = record.split('|').collect();
            let status = match parts[2] {
                "A" => "AVAILABLE",
                "H" => "HELD",
                _ => "USED",
            };
            (*coupon, *user, parts[0].parse().unwrap(), status.to_owned(), parts[3].parse().ok())
        })
        .collect();
    assert_eq!(here, there, "coupons");

    let there: Vec<(i64, i64, i64)> =
        sqlx::query_as("SELECT coupon_id, user_id, issue_no FROM remote_coupons ORDER BY coupon_id, user_id")
            .fetch_all(pool)
            .await
            .unwrap();
    let issue_no = |record: &str| record.split('|').next().unwrap().parse().unwrap();
    let here: Vec<(i64, i64, i64)> =
        all.remote_coupons.iter().map(|((coupon, user), record)| (*coupon, *user, issue_no(record))).collect();
    assert_eq!(here, there, "coupons of users of other partitions");

    type OrderRow = (i64, i64, String, i64, i64, Option<String>);
    let there: Vec<OrderRow> = sqlx::query_as(
        "SELECT id, user_id, status, total, final_price - refunded, close_reason FROM orders ORDER BY id",
    )
    .fetch_all(pool)
    .await
    .unwrap();
    let here: Vec<OrderRow> = all
        .orders
        .iter()
        .map(|(id, o)| {
            (*id, int(o, "user"), o["status"].clone(), int(o, "total"), int(o, "final"), o.get("reason").cloned())
        })
        .collect();
    assert_eq!(here, there, "orders");
    let there: Vec<(i64, i64, i64, i64, i64)> =
        sqlx::query_as("SELECT order_id, product_id, quantity, price, refunded FROM order_lines ORDER BY 1, 2")
            .fetch_all(pool)
            .await
            .unwrap();
    let mut here: Vec<(i64, i64, i64, i64, i64)> = all
        .orders
        .iter()
        .flat_map(|(id, o)| {
            let left: BTreeMap<i64, i64> = lines(&o["lines"]).iter().map(|line| (line.0, line.1)).collect();
            let line = move |(product, quantity, price): (i64, i64, i64)| {
                (*id, product, quantity, price, quantity - left.get(&product).unwrap_or(&0))
            };
            lines(ordered(o)).into_iter().map(line)
        })
        .collect();
    here.sort_unstable();
    assert_eq!(here, there, "order lines");
}
