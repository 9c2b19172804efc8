//! The invariants.

use super::*;

fn int(hash: &Hash, field: &str) -> i64 {
    hash.get(field).unwrap_or_else(|| panic!("no {field} in {hash:?}")).parse().unwrap()
}

pub(super) fn redis_against_itself(all: &Redis, partitions: u16) {
    let owner = |id: i64| (id % i64::from(partitions)) as u16;
    // Orders, and what they hold and sold.
    let (mut held, mut sold): (BTreeMap<i64, i64>, BTreeMap<i64, i64>) = Default::default();
    let (mut units, mut won): (BTreeMap<(String, i64), i64>, BTreeMap<(String, i64), i64>) = Default::default();
    let mut open: BTreeMap<i64, i64> = BTreeMap::new();
    let (mut expiry, mut gateway) = (BTreeSet::new(), BTreeSet::new());
    let (mut coupon_held, mut coupon_used) = (BTreeMap::new(), BTreeMap::new());
    let mut remote_states: BTreeMap<(u16, i64), &str> = BTreeMap::new();
    for (id, order) in all.orders.iter().filter(|(_, order)| order["status"] != "ABANDONED") {
        let mut every = lines(&order["lines"]);
        let remote = lines(&order["far"]);
        assert!(
            every.iter().all(|(product, ..)| owner(*product) == owner(*id)),
            "order {id} has a local line of another partition"
        );
        assert!(
            remote.iter().all(|(product, ..)| owner(*product) != owner(*id)),
            "order {id} has a remote line of its own partition"
        );
        for (product, ..) in &remote {
            let state = match (order["status"].as_str(), order.get("reason").map(String::as_str)) {
                ("PENDING", _) => "HELD",
                ("PAID", _) => "SETTLED",
                (_, Some("REFUNDED")) => "REFUNDED",
                _ => "RELEASED",
            };
            remote_states.insert((owner(*product), *id), state);
        }
        every.extend(remote);
        let total: i64 = every.iter().map(|(_, quantity, price)| quantity * price).sum();
        assert_eq!(int(order, "total"), total, "order {id}");
        assert_eq!(int(order, "final"), total - int(order, "discount"), "order {id}");
        assert!(int(order, "final") >= 0, "order {id}");
        let state = order.get("gateway").map(String::as_str);
        if matches!(state, Some("STARTED" | "WATCHED" | "REFUND_DUE" | "UNCONFIRMED")) {
            gateway.insert(*id);
        }
        let coupon = order["coupon"].parse::<i64>().ok().map(|coupon| (coupon, int(order, "user")));
        match order["status"].as_str() {
            "PENDING" => {
                every.iter().for_each(|(product, quantity, _)| *held.entry(*product).or_default() += quantity);
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
                    *sold.entry(*product).or_default() += quantity;
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
    let nonzero = |counters: &BTreeMap<i64, i64>| -> BTreeMap<i64, i64> {
        counters.iter().filter(|(_, n)| **n != 0).map(|(id, n)| (*id, *n)).collect()
    };
    assert_eq!(nonzero(&all.held), nonzero(&held), "held = lines of PENDING orders");
    assert_eq!(nonzero(&all.sold), nonzero(&sold), "sold = lines of PAID orders");
    assert_eq!(all.units, units, "rankings = paid order lines");
    // A score of 0 equals a missing member: units that cost nothing add none.
    won.retain(|_, won| *won != 0);
    let ranked: BTreeMap<_, _> =
        all.won.iter().filter(|(_, won)| **won != 0).map(|(k, won)| (k.clone(), *won)).collect();
    assert_eq!(ranked, won, "rankings = paid order lines");
    assert_eq!(all.expiry.keys().copied().collect::<BTreeSet<_>>(), expiry, "expiry = PENDING orders");
    assert_eq!(all.gateway.keys().copied().collect::<BTreeSet<_>>(), gateway, "gateway = unfinished payments");
    // Remote holds: the hold of an existing order has the order's state; any other is released.
    for (key, hold) in &all.holds {
        let state = hold["state"].as_str();
        assert_eq!(state, remote_states.remove(key).unwrap_or("RELEASED"), "the remote hold {key:?}");
        assert_eq!(all.due_holds.contains(key), state == "HELD", "the remote hold {key:?}");
    }
    remote_states.retain(|_, state| !matches!(*state, "RELEASED" | "REFUNDED"));
    assert!(remote_states.is_empty(), "orders without their remote holds: {remote_states:?}");
    // Products.
    for (id, product) in &all.products {
        let counter = |counters: &BTreeMap<i64, i64>| counters.get(id).copied().unwrap_or(0);
        let (on_sale, held, sold) = (all.stock[id], counter(&all.held), counter(&all.sold));
        let withheld = counter(&all.withheld);
        assert!(on_sale >= 0 && held >= 0 && sold >= 0 && withheld >= 0, "product {id}: {on_sale} {held} {sold}");
        let units = on_sale + held + sold + withheld;
        assert_eq!(int(product, "stocked"), units, "product {id}: stocked = on sale + held + sold + withheld");
        assert!(all.price.contains_key(id), "product {id} has no price");
    }
    assert_eq!(all.stock.len(), all.products.len());
    // Campaigns and coupons.
    let mut records: BTreeMap<i64, BTreeMap<i64, i64>> = BTreeMap::new();
    for ((coupon, user), record) in &all.coupons {
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
            "held and sold are the lines of PENDING and PAID orders",
            "SELECT products.id FROM products LEFT JOIN (
                 SELECT product_id, sum(quantity) FILTER (WHERE status = 'PENDING') AS held,
                     sum(quantity) FILTER (WHERE status = 'PAID') AS sold
                 FROM order_lines JOIN orders ON orders.id = order_id GROUP BY product_id) AS l ON l.product_id = products.id
             WHERE products.held <> coalesce(l.held, 0) OR products.sold <> coalesce(l.sold, 0)",
        ),
        (
            "issued is the number of coupons",
            "SELECT campaigns.id FROM campaigns LEFT JOIN (SELECT coupon_id, count(*) AS n FROM user_coupons GROUP BY 1) AS c
                 ON c.coupon_id = campaigns.id WHERE issued <> coalesce(n, 0)",
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
                 OR (payments.method = 'BALANCE' AND final_price > 0 AND orders.status = 'CANCELLED') <> EXISTS (
                     SELECT FROM balance_entries AS e WHERE e.order_id = orders.id AND transaction_type = 'REFUND'
                         AND e.amount = final_price))",
        ),
        (
            "coupons say what their orders say",
            "SELECT c.user_id FROM user_coupons AS c LEFT JOIN orders ON orders.id = c.order_id
             WHERE (c.status = 'HELD') <> (coalesce(orders.status, '') = 'PENDING')
                OR (c.status = 'USED') <> (coalesce(orders.status, '') = 'PAID')",
        ),
        ("lines are of products that exist", "SELECT product_id FROM order_lines EXCEPT SELECT id FROM products"),
        ("coupons are of campaigns that exist", "SELECT coupon_id FROM user_coupons EXCEPT SELECT id FROM campaigns"),
    ] {
        let ids: Vec<i64> = sqlx::query_scalar(sql).fetch_all(pool).await.unwrap();
        assert!(ids.is_empty(), "{invariant}: not so for {ids:?}");
    }
}

pub(super) async fn redis_against_postgres(all: &Redis, pool: &PgPool) {
    let rows = sqlx::query("SELECT partition, epoch, seq FROM projection_positions").fetch_all(pool).await.unwrap();
    let positions: BTreeMap<u16, (i64, i64)> =
        rows.iter().map(|row| (row.get::<i32, _>(0) as u16, (row.get(1), row.get(2)))).collect();
    assert_eq!(all.seqs, positions, "positions");

    let rows = sqlx::query("SELECT id, name, balance FROM users").fetch_all(pool).await.unwrap();
    let there: BTreeMap<i64, (String, i64)> = rows.iter().map(|row| (row.get(0), (row.get(1), row.get(2)))).collect();
    let here: BTreeMap<i64, (String, i64)> =
        all.users.iter().map(|(id, user)| (*id, (user["name"].clone(), int(user, "balance")))).collect();
    assert_eq!(here, there, "users");

    let entries: Vec<(i64, i64)> =
        sqlx::query_as("SELECT user_id, count(*) FROM balance_entries GROUP BY 1").fetch_all(pool).await.unwrap();
    let entries: BTreeMap<i64, i64> = entries.into_iter().collect();
    for (id, user) in &all.users {
        assert_eq!(int(user, "entries"), entries.get(id).copied().unwrap_or(0), "user {id}: entries");
    }

    type ProductRow = (i64, String, String, i64, i64, i64, i64, i64, i64);
    let there: Vec<ProductRow> = sqlx::query_as(
        "SELECT id, name, category, price, on_sale, held, sold, withheld, stocked FROM products ORDER BY id",
    )
    .fetch_all(pool)
    .await
    .unwrap();
    let counter = |counters: &BTreeMap<i64, i64>, id: &i64| counters.get(id).copied().unwrap_or(0);
    let here: Vec<ProductRow> = all
        .products
        .iter()
        .map(|(id, p)| {
            let (on_sale, held, sold) = (all.stock[id], counter(&all.held, id), counter(&all.sold, id));
            let (name, category, back) = (p["name"].clone(), p["category"].clone(), counter(&all.withheld, id));
            (*id, name, category, all.price[id], on_sale, held, sold, back, int(p, "stocked"))
        })
        .collect();
    assert_eq!(here, there, "products");

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

    type OrderRow = (i64, i64, String, i64, i64, Option<String>);
    let there: Vec<OrderRow> =
        sqlx::query_as("SELECT id, user_id, status, total, final_price, close_reason FROM orders ORDER BY id")
            .fetch_all(pool)
            .await
            .unwrap();
    let orders: Vec<_> = all.orders.iter().filter(|(_, order)| order["status"] != "ABANDONED").collect();
    let here: Vec<OrderRow> = orders
        .iter()
        .map(|(id, o)| {
            (**id, int(o, "user"), o["status"].clone(), int(o, "total"), int(o, "final"), o.get("reason").cloned())
        })
        .collect();
    assert_eq!(here, there, "orders");
    let there: Vec<(i64, i64, i64, i64)> =
        sqlx::query_as("SELECT order_id, product_id, quantity, price FROM order_lines ORDER BY 1, 2")
            .fetch_all(pool)
            .await
            .unwrap();
    let mut here: Vec<(i64, i64, i64, i64)> = orders
        .iter()
        .flat_map(|(id, o)| {
            let every = lines(&o["lines"]).into_iter().chain(lines(&o["far"]));
            every.map(|(product, quantity, price)| (**id, product, quantity, price))
        })
        .collect();
    here.sort_unstable();
    assert_eq!(here, there, "order lines");
}
