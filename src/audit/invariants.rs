//! The invariants within PostgreSQL. Each is a query that returns the rows that violate it. An invariant only relates
//! rows that the outbox of one partition wrote, so that it holds at every moment. Those that relate two partitions are
//! in [`between_partitions`].

use super::{
    Audit,
    report::{AuditReport, Findings},
};
use crate::postgres::snapshot::Snapshot;

/// Discrepancies that a query returns per invariant.
const MAX_NAMED: usize = 20;
/// Pending steps between partitions that a query returns. More than of an invariant, because most of them disappear by
/// the next check.
const MAX_NAMED_STEPS: usize = 1000;

/// An invariant.
struct Invariant {
    name: &'static str,
    /// The rows that it is about, and the query that counts them.
    noun: &'static str,
    count: &'static str,
    /// The query of the violations: a column `what` with a text that has the ids. `$1`: the number of partitions.
    wrong: &'static str,
}

const INVARIANTS: [Invariant; 16] = [
    Invariant {
        name: "histories: each entry begins where the last one ended, without gaps",
        noun: "balance entries",
        count: "SELECT count(*) FROM balance_entries",
        wrong: "SELECT format('user %s, entry %s: begins with %s after %s', user_id, entry_no, before_balance, previous) AS what
                FROM (SELECT user_id, entry_no, before_balance, lag(after_balance, 1, 0) OVER w AS previous,
                          row_number() OVER w AS place
                      FROM balance_entries WINDOW w AS (PARTITION BY user_id ORDER BY entry_no)) AS e
                WHERE before_balance <> previous OR entry_no <> place",
    },
    Invariant {
        name: "balances: the sum of the history",
        noun: "users",
        count: "SELECT count(*) FROM users",
        wrong: "SELECT format('user %s: balance %s, history %s', id, balance, coalesce(sum, 0)) AS what
                FROM users LEFT JOIN (
                    SELECT user_id, sum(CASE transaction_type WHEN 'PAYMENT' THEN -amount ELSE amount END) AS sum
                    FROM balance_entries GROUP BY user_id) AS e ON user_id = id
                WHERE balance <> coalesce(sum, 0) OR balance < 0",
    },
    Invariant {
        name: "products: stocked = on sale + held + sold + withheld + quarantined + with other partitions",
        noun: "products",
        count: "SELECT count(*) FROM products",
        wrong: "SELECT format('product %s: %s + %s + %s + %s + %s + %s is not %s', id, on_sale, held, sold, withheld, quarantined,
                    allotted, stocked) AS what
                FROM products
                WHERE on_sale + held + sold + withheld + quarantined + allotted <> stocked
                   OR least(on_sale, held, sold, withheld, quarantined, allotted) < 0
                   OR allotted <> coalesce((SELECT sum(a.allotted - a.regained - a.recovered) FROM allotments AS a
                                            WHERE product_id = id), 0)",
    },
    Invariant {
        name: "units of other partitions: received = on sale + held + sold + withheld + quarantined + given back",
        noun: "products by partition",
        count: "SELECT count(*) FROM partition_stock",
        wrong: "SELECT format('product %s in partition %s: %s + %s + %s + %s + %s is not %s - %s - %s', product_id, partition, on_sale,
                    held, sold, withheld, quarantined, received, returned, surrendered) AS what
                FROM partition_stock
                WHERE on_sale + held + sold + withheld + quarantined <> received - returned - surrendered
                   OR least(on_sale, held, sold, withheld, quarantined) < 0",
    },
    Invariant {
        name: "products: held, sold and quarantined are the lines of PENDING, PAID and refunded orders",
        noun: "products by partition",
        count: "SELECT (SELECT count(*) FROM products) + (SELECT count(*) FROM partition_stock)",
        wrong: "SELECT format('product %s: held %s of %s, sold %s of %s, quarantined %s of %s in partition %s', product_id,
                    s.held, coalesce(l.held, 0), s.sold, coalesce(l.sold, 0), s.quarantined, coalesce(l.quarantined, 0),
                    partition) AS what
                FROM (
                    SELECT id AS product_id, (id % $1)::integer AS partition, held, sold, quarantined FROM products
                    UNION ALL SELECT product_id, partition, held, sold, quarantined FROM partition_stock) AS s
                FULL JOIN (
                    SELECT product_id, (id % $1)::integer AS partition,
                        coalesce(sum(quantity) FILTER (WHERE status = 'PENDING'), 0) AS held,
                        coalesce(sum(quantity - l.refunded) FILTER (WHERE status = 'PAID'), 0) AS sold,
                        sum(quarantined) AS quarantined
                    FROM orders JOIN order_lines AS l ON order_id = id
                    WHERE status IN ('PENDING', 'PAID') OR quarantined > 0 GROUP BY 1, 2) AS l
                    USING (product_id, partition)
                WHERE (coalesce(s.held, 0), coalesce(s.sold, 0), coalesce(s.quarantined, 0))
                    <> (coalesce(l.held, 0), coalesce(l.sold, 0), coalesce(l.quarantined, 0))",
    },
    Invariant {
        // A group has the limit that its first product gave it.
        name: "limits: products of a group have one limit per user",
        noun: "products",
        count: "SELECT count(*) FROM products WHERE limit_group IS NOT NULL",
        wrong: "SELECT format('group %s has the limits %s', limit_group, string_agg(DISTINCT limit_per_user::text, ', ')) AS what
                FROM products WHERE limit_group IS NOT NULL AND $1 > 0
                GROUP BY limit_group HAVING count(DISTINCT limit_per_user) > 1",
    },
    Invariant {
        name: "campaigns: issued is the number of coupons, and never more than there are",
        noun: "campaigns",
        count: "SELECT count(*) FROM campaigns",
        wrong: "SELECT format('campaign %s: issued %s, coupons %s, of %s', id, issued, coalesce(coupons, 0), total) AS what
                FROM campaigns LEFT JOIN (
                    SELECT coupon_id, count(*) AS coupons FROM (
                        SELECT coupon_id FROM user_coupons WHERE coupon_id % $1 = user_id % $1
                        UNION ALL SELECT coupon_id FROM remote_coupons) AS c GROUP BY coupon_id) AS c ON coupon_id = id
                WHERE issued <> coalesce(coupons, 0) OR issued + withheld > total",
    },
    Invariant {
        name: "orders: the total is the lines', the price is the total less the discount",
        noun: "orders",
        count: "SELECT count(*) FROM orders",
        wrong: "SELECT format('order %s: total %s, lines %s', id, total, lines) AS what
                FROM orders LEFT JOIN (
                    SELECT order_id, sum(quantity * price) AS lines FROM order_lines GROUP BY order_id) AS l ON order_id = id
                WHERE total IS DISTINCT FROM lines OR final_price <> total - discount",
    },
    Invariant {
        name: "order totals: as many of each status as there are orders",
        noun: "totals",
        count: "SELECT count(*) FROM order_totals",
        wrong: "SELECT format('partition %s: %s orders %s, and %s are there', partition, coalesce(orders, 0), status,
                    coalesce(counted, 0)) AS what
                FROM order_totals FULL JOIN (
                    SELECT (id % $1)::integer AS partition, status, count(*) AS counted FROM orders GROUP BY 1, 2) AS o
                    USING (partition, status)
                WHERE coalesce(orders, 0) <> coalesce(counted, 0)",
    },
    Invariant {
        name: "payments: each PAID order has one of its price, and each payment its entry",
        noun: "orders",
        count: "SELECT count(*) FROM orders WHERE paid_at IS NOT NULL",
        wrong: "SELECT format('order %s: %s, payment %s', o.id, o.status, p.status) AS what
                FROM orders AS o LEFT JOIN payments AS p ON p.order_id = o.id
                LEFT JOIN LATERAL (
                    SELECT count(*) FILTER (WHERE transaction_type = 'PAYMENT' AND amount = final_price) AS paid,
                        count(*) FILTER (WHERE transaction_type = 'REFUND') AS refunds,
                        coalesce(sum(amount) FILTER (WHERE transaction_type = 'REFUND'), 0) AS refunded,
                        count(*) AS entries
                    FROM balance_entries AS e WHERE e.user_id = o.user_id AND e.order_id = o.id) AS e ON true
                WHERE (o.paid_at IS NOT NULL AND (p.id IS NULL OR p.amount <> o.final_price
                        OR (o.status = 'PAID') <> (p.status IN ('PAID', 'UNCONFIRMED', 'DISPUTED'))))
                   OR (o.status IN ('PENDING', 'FAILED') AND p.status IN ('PAID', 'REFUNDED', 'REFUND_DUE')
                        AND p.method = 'BALANCE')
                   OR (p.status IN ('UNCONFIRMED', 'DISPUTED') AND (p.method <> 'GATEWAY' OR p.resolved_by IS NULL))
                   OR e.paid <> CASE WHEN p.method = 'BALANCE' AND o.paid_at IS NOT NULL AND o.final_price > 0 THEN 1 ELSE 0 END
                   OR e.refunded <> CASE WHEN p.method <> 'BALANCE' THEN 0 WHEN o.close_reason = 'REFUNDED' THEN o.final_price
                                         ELSE o.refunded END
                   OR e.refunds <> CASE WHEN p.method = 'BALANCE' THEN
                           (SELECT count(*) FROM order_refunds AS r WHERE o.refunds > 0 AND r.order_id = o.id AND r.amount > 0)
                               + CASE WHEN o.close_reason = 'REFUNDED' AND o.final_price > o.refunded THEN 1 ELSE 0 END
                       ELSE 0 END
                   OR e.entries <> e.paid + e.refunds",
    },
    Invariant {
        name: "refunds: the parts of each order are its refunded units, and their share of its price",
        noun: "orders",
        count: "SELECT count(*) FROM orders WHERE refunds > 0",
        wrong: "SELECT format('order %s: %s parts of %s won, refunded %s of %s in %s parts', o.id, o.refunds, o.refunded, r.amount,
                    l.share, r.parts) AS what
                FROM orders AS o LEFT JOIN LATERAL (
                    SELECT count(*) AS parts, coalesce(sum(amount), 0) AS amount, coalesce(max(part), 0) AS last,
                        count(*) FILTER (WHERE r.status = 'REFUND_DUE') AS due
                    FROM order_refunds AS r WHERE r.order_id = o.id) AS r ON true
                LEFT JOIN LATERAL (
                    SELECT coalesce(div(o.final_price::numeric * sum(l.refunded * price), NULLIF(o.total, 0)), 0) AS share,
                        sum(l.refunded) AS refunded, sum(quantity) AS quantity
                    FROM order_lines AS l WHERE l.order_id = o.id) AS l ON true
                LEFT JOIN LATERAL (
                    SELECT coalesce(sum(split_part(line, ':', 2)::bigint), 0) AS units
                    FROM order_refunds AS r, string_to_table(r.lines, ',') AS line WHERE r.order_id = o.id) AS u ON true
                WHERE o.id IN (SELECT id FROM orders WHERE refunds > 0 OR refunded > 0
                               UNION SELECT order_id FROM order_lines WHERE refunded > 0)
                   AND (r.parts <> o.refunds OR r.last <> o.refunds OR r.amount <> o.refunded OR l.share <> o.refunded
                        OR u.units <> l.refunded OR l.refunded >= l.quantity
                        OR NOT (o.status = 'PAID' OR o.close_reason = 'REFUNDED')
                        OR (r.due > 0 AND NOT EXISTS (
                            SELECT FROM payments AS p WHERE p.order_id = o.id AND p.method = 'GATEWAY')))
                UNION ALL
                SELECT format('order %s: there is no order of its part %s', order_id, part) FROM order_refunds AS r
                WHERE NOT EXISTS (SELECT FROM orders WHERE id = r.order_id AND refunds > 0)",
    },
    Invariant {
        name: "coupons: each says what its order says",
        noun: "coupons",
        count: "SELECT count(*) FROM user_coupons",
        wrong: "SELECT format('user %s, coupon %s: %s by order %s, which is %s', c.user_id, c.coupon_id, c.status, c.order_id,
                    o.status) AS what
                FROM user_coupons AS c LEFT JOIN orders AS o ON o.id = c.order_id
                WHERE (c.status = 'HELD') <> (coalesce(o.status, '') = 'PENDING')
                   OR (c.status = 'USED') <> (coalesce(o.status, '') = 'PAID')
                   OR (o.id IS NOT NULL AND (o.user_id <> c.user_id OR o.coupon_id <> c.coupon_id))
                UNION ALL
                SELECT format('order %s: its coupon %s is not its own', o.id, o.coupon_id)
                FROM orders AS o LEFT JOIN user_coupons AS c ON c.coupon_id = o.coupon_id AND c.user_id = o.user_id
                WHERE o.coupon_id IS NOT NULL AND o.status IN ('PENDING', 'PAID') AND c.order_id IS DISTINCT FROM o.id",
    },
    Invariant {
        name: "references: every user and order that a row names exists",
        noun: "orders, lines, payments, coupons and entries",
        count: "SELECT (SELECT count(*) FROM orders) + (SELECT count(*) FROM order_lines) + (SELECT count(*) FROM payments)
                    + (SELECT count(*) FROM user_coupons) + (SELECT count(*) FROM balance_entries)",
        wrong: "SELECT format('order %s: there is no user %s', id, user_id) AS what FROM orders AS t
                WHERE NOT EXISTS (SELECT FROM users WHERE id = t.user_id)
                UNION ALL
                SELECT format('a line of order %s, which is not there', order_id) FROM order_lines AS t
                WHERE NOT EXISTS (SELECT FROM orders WHERE id = t.order_id)
                UNION ALL
                SELECT format('payment %s: there is no order %s', id, order_id) FROM payments AS t
                WHERE NOT EXISTS (SELECT FROM orders WHERE id = t.order_id)
                UNION ALL
                SELECT format('coupon %s: there is no user %s', coupon_id, user_id) FROM user_coupons AS t
                WHERE NOT EXISTS (SELECT FROM users WHERE id = t.user_id)
                UNION ALL
                SELECT format('entry %s: there is no user %s', entry_no, user_id) FROM balance_entries AS t
                WHERE NOT EXISTS (SELECT FROM users WHERE id = t.user_id)",
    },
    Invariant {
        name: "lines: each of its order's own partition is of a product that exists",
        noun: "lines",
        count: "SELECT count(*) FROM order_lines",
        wrong: "SELECT format('order %s: there is no product %s', order_id, product_id) AS what FROM order_lines AS l
                WHERE product_id % $1 = order_id % $1 AND NOT EXISTS (SELECT FROM products WHERE id = l.product_id)",
    },
    Invariant {
        name: "dead letters: every decision could be applied",
        noun: "partitions",
        count: "SELECT count(*) FROM projection_positions",
        // Only those of the current epoch: a rebuild has withheld for the earlier ones.
        wrong: "SELECT format('partition %s, entry %s: %s', partition, d.stream_id, reason) AS what
                FROM dead_letters AS d JOIN projection_positions USING (partition, epoch)
                UNION ALL
                SELECT format('partition %s, entry %s: %s', partition, d.stream_id, reason)
                FROM dead_letters AS d WHERE epoch IS NULL",
    },
    Invariant {
        name: "events: each of the last 10,000 decisions of a partition is one event or a dead letter",
        noun: "partitions with events",
        count: "SELECT count(*) FROM projection_positions WHERE events_epoch = epoch AND events_seq = seq",
        // A process that keeps no events ends the row of events, and the next one that does begins another.
        wrong: "SELECT format('partition %s: %s of %s decisions up to %s are events, %s rows', p.partition, k.decisions,
                    p.seq - greatest(p.least, CASE WHEN p.is_partial THEN p.least ELSE k.first - 1 END), p.seq, k.rows) AS what
                FROM (SELECT partition, epoch, seq, events_after_epoch = epoch AS is_partial,
                          greatest(seq - 10000, CASE WHEN events_after_epoch = epoch THEN events_after_seq ELSE 0 END) AS least
                      FROM projection_positions WHERE events_epoch = epoch AND events_seq = seq) AS p
                CROSS JOIN LATERAL (
                    SELECT count(DISTINCT d.seq) AS decisions, count(*) AS rows, coalesce(min(d.seq), p.seq + 1) AS first FROM (
                        SELECT coalesce(e.late_seq, e.seq) AS seq FROM events AS e
                        WHERE e.partition = p.partition AND e.epoch = p.epoch AND e.seq > p.least
                        UNION ALL
                        SELECT l.seq FROM dead_letters AS l WHERE l.partition = p.partition AND l.epoch = p.epoch) AS d
                    WHERE d.seq > p.least AND d.seq <= p.seq) AS k
                WHERE k.rows <> k.decisions
                   OR k.decisions <> p.seq - greatest(p.least, CASE WHEN p.is_partial THEN p.least ELSE k.first - 1 END)",
    },
];

/// Checks every invariant in one snapshot.
pub(super) async fn check(audit: &Audit, report: &mut AuditReport) -> anyhow::Result<()> {
    let mut snapshot = Snapshot::begin(&audit.db).await?;
    for invariant in &INVARIANTS {
        audit.tracker.begin(invariant.name);
        let mut findings = Findings::new(invariant.name, invariant.noun);
        findings.count(snapshot.count(invariant.count).await?);
        let (found, named) = snapshot.discrepancies(invariant.wrong, audit.store.partitions(), MAX_NAMED).await?;
        findings.add_all(found, named);
        report.add(findings);
    }
    snapshot.end().await?;
    Ok(())
}

/// The steps between two partitions that are pending in PostgreSQL, and the number of rows that were checked. The relay
/// takes a step soon, so only a step that stays pending is a discrepancy.
pub(super) async fn between_partitions(audit: &Audit) -> anyhow::Result<(i64, Vec<String>)> {
    let mut snapshot = Snapshot::begin(&audit.db).await?;
    let (_, found) = snapshot.discrepancies(BETWEEN, audit.store.partitions(), MAX_NAMED_STEPS).await?;
    let count =
        snapshot.count("SELECT (SELECT count(*) FROM allotments) + (SELECT count(*) FROM remote_coupons)").await?;
    snapshot.end().await?;
    Ok((count, found))
}

const BETWEEN: &str = "
        SELECT format('product %s: partition %s was given %s, received %s, gave back %s and %s, of which %s and %s were taken back',
            p.id, coalesce(a.partition, s.partition), coalesce(a.allotted, 0), coalesce(s.received, 0), coalesce(s.returned, 0),
            coalesce(s.surrendered, 0), coalesce(a.regained, 0), coalesce(a.recovered, 0)) AS what
        FROM allotments AS a FULL JOIN partition_stock AS s ON s.product_id = a.product_id AND s.partition = a.partition
        JOIN products AS p ON p.id = coalesce(a.product_id, s.product_id)
        WHERE (coalesce(a.allotted, 0), coalesce(a.regained, 0), coalesce(a.recovered, 0))
            <> (coalesce(s.received, 0), coalesce(s.returned, 0), coalesce(s.surrendered, 0))
        UNION ALL
        SELECT format('coupon %s is in the hands of user %s, to whom it was not issued', coupon_id, user_id)
        FROM user_coupons AS c WHERE coupon_id % $1 <> user_id % $1 AND NOT EXISTS (
            SELECT FROM remote_coupons AS f WHERE f.coupon_id = c.coupon_id AND f.user_id = c.user_id)
        UNION ALL
        SELECT format('order %s: there is no product %s', order_id, product_id) FROM order_lines AS l
        WHERE NOT EXISTS (SELECT FROM products WHERE id = l.product_id)";
