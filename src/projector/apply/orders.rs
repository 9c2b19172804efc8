//! Orders with their lines.

use std::collections::HashSet;

use super::{Apply, ApplyError, column, ms, optional_ms};
use crate::{
    model::{CountedLimit, event},
    projector::batch::{Batch, OrderState, PartInsert},
};

pub(super) async fn orders(db: &Apply<'_>, batch: &Batch) -> Result<(), ApplyError> {
    let new = &batch.new_orders;
    let state = |o: &event::OrderPlaced| batch.orders.get(&o.order.get()).cloned().unwrap_or(OrderState::PENDING);
    let (by, because) = (|state: &OrderState| refunded_by(state).0, |state: &OrderState| refunded_by(state).1);
    db.run(
        "new orders",
        new.len(),
        // The join replaces the foreign key to the users.
        "INSERT INTO orders (id, user_id, total, discount, final_price, coupon_id, placed_at, expires_at, status, paid_at,
             closed_at, close_reason, sold_on, refunded_by, refunded_because)
         SELECT new.id, user_id, total, discount, final, NULLIF(coupon, 0), to_timestamp(at::float8 / 1000),
             to_timestamp(expires::float8 / 1000), status, to_timestamp(NULLIF(paid_at, 0)::float8 / 1000),
             to_timestamp(NULLIF(closed_at, 0)::float8 / 1000), NULLIF(reason, ''), NULLIF(sold_on, '')::date,
             NULLIF(by_operator, ''), NULLIF(because, '')
         FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[],
                     $8::bigint[], $9::text[], $10::bigint[], $11::bigint[], $12::text[], $13::text[], $14::text[],
                     $15::text[])
             AS new (id, user_id, total, discount, final, coupon, at, expires, status, paid_at, closed_at, reason, sold_on,
                     by_operator, because)
         JOIN users ON users.id = new.user_id",
        vec![
            column!(new, (o, _) => o.order.get()),
            column!(new, (o, _) => o.user.get()),
            column!(new, (o, _) => o.total),
            column!(new, (o, _) => o.discount),
            column!(new, (o, _) => o.final_price),
            column!(new, (o, _) => o.coupon.map_or(0, |id| id.get())),
            column!(new, (_, at) => ms(*at)),
            column!(new, (o, _) => ms(o.expires_at)),
            column!(new, (o, _) => state(o).status.as_str().to_owned()),
            column!(new, (o, _) => optional_ms(state(o).paid_at)),
            column!(new, (o, _) => optional_ms(state(o).closed_at)),
            column!(new, (o, _) => state(o).reason.map_or("", |reason| reason.as_str()).to_owned()),
            column!(new, (o, _) => state(o).sold_on.map(|day| day.to_string()).unwrap_or_default()),
            column!(new, (o, _) => by(&state(o))),
            column!(new, (o, _) => because(&state(o))),
        ],
    )
    .await?;
    let lines_of = |o: &'_ event::OrderPlaced| {
        let lines = o.lines.iter().chain(&o.remote).copied().enumerate();
        lines.map(|(place, line)| (o.order.get(), place as i64, line)).collect::<Vec<_>>()
    };
    let lines: Vec<_> = new.iter().flat_map(|(o, _)| lines_of(o)).collect();
    db.run(
        "new order lines",
        lines.len(),
        "INSERT INTO order_lines (order_id, product_id, quantity, price, place, limit_group)
         SELECT id, product, quantity, price, place, NULLIF(of_group, '*')
         FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::text[])
             AS new (id, product, quantity, price, place, of_group)",
        vec![
            column!(lines, (order, ..) => *order),
            column!(lines, (.., line) => line.product_id.get()),
            column!(lines, (.., line) => line.quantity),
            column!(lines, (.., line) => line.price),
            column!(lines, (_, place, _) => *place),
            // No group has this name.
            column!(lines, (.., line) => line.limit.as_ref().map_or("*", CountedLimit::as_str).to_owned()),
        ],
    )
    .await?;
    let inserted: HashSet<i64> = new.iter().map(|(o, _)| o.order.get()).collect();
    let states: Vec<_> = batch.orders.iter().filter(|(id, _)| !inserted.contains(*id)).collect();
    db.run(
        "orders",
        states.len(),
        "UPDATE orders SET status = new.status,
             paid_at = coalesce(to_timestamp(NULLIF(new.paid_at, 0)::float8 / 1000), orders.paid_at),
             closed_at = to_timestamp(NULLIF(new.closed_at, 0)::float8 / 1000), close_reason = NULLIF(new.reason, ''),
             sold_on = coalesce(NULLIF(new.sold_on, '')::date, orders.sold_on),
             refunded_by = NULLIF(by_operator, ''), refunded_because = NULLIF(because, '')
         FROM unnest($1::bigint[], $2::text[], $3::bigint[], $4::bigint[], $5::text[], $6::text[], $7::text[], $8::text[])
             AS new (id, status, paid_at, closed_at, reason, sold_on, by_operator, because)
         WHERE orders.id = new.id",
        vec![
            column!(states, (id, _) => **id),
            column!(states, (_, state) => state.status.as_str().to_owned()),
            column!(states, (_, state) => optional_ms(state.paid_at)),
            column!(states, (_, state) => optional_ms(state.closed_at)),
            column!(states, (_, state) => state.reason.map_or("", |reason| reason.as_str()).to_owned()),
            column!(states, (_, state) => state.sold_on.map(|day| day.to_string()).unwrap_or_default()),
            column!(states, (_, state) => by(state)),
            column!(states, (_, state) => because(state)),
        ],
    )
    .await?;
    refunds(db, batch).await
}

/// The operator who refunded an order, and the reason; empty without one.
fn refunded_by(state: &OrderState) -> (String, String) {
    state.refunded_by.clone().unwrap_or_default()
}

/// The refunded parts of orders.
async fn refunds(db: &Apply<'_>, batch: &Batch) -> Result<(), ApplyError> {
    let refunds: Vec<_> = batch.refunds.iter().collect();
    db.run(
        "refunded orders",
        refunds.len(),
        "UPDATE orders SET refunded = orders.refunded + new.amount, refunds = orders.refunds + new.parts
         FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) AS new (id, amount, parts) WHERE orders.id = new.id",
        vec![
            column!(refunds, (id, _) => **id),
            column!(refunds, (_, delta) => delta.amount),
            column!(refunds, (_, delta) => delta.parts),
        ],
    )
    .await?;
    let lines: Vec<_> = batch.refunded_lines.iter().collect();
    db.run(
        "refunded lines",
        lines.len(),
        "UPDATE order_lines AS l SET refunded = l.refunded + new.refunded, quarantined = l.quarantined + new.quarantined
         FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[]) AS new (id, product, refunded, quarantined)
         WHERE l.order_id = new.id AND l.product_id = new.product",
        vec![
            column!(lines, ((order, _), _) => *order),
            column!(lines, ((_, product), _) => *product),
            column!(lines, (_, delta) => delta.refunded),
            column!(lines, (_, delta) => delta.quarantined),
        ],
    )
    .await?;
    let parts: Vec<_> = batch.parts.iter().collect();
    let operator = |part: &PartInsert| part.operator.clone().unwrap_or_default();
    db.run(
        "refunded parts",
        parts.len(),
        // The join replaces a foreign key.
        "INSERT INTO order_refunds (order_id, part, amount, lines, quarantined, refunded_by, reason, status, refunded_at, ended_at)
         SELECT new.id, part, amount, lines, new.quarantined, NULLIF(by_operator, ''), NULLIF(because, ''),
             CASE WHEN due THEN 'REFUND_DUE' ELSE 'REFUNDED' END, to_timestamp(at::float8 / 1000),
             to_timestamp(NULLIF(ended_at, 0)::float8 / 1000)
         FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::text[], $5::boolean[], $6::text[], $7::text[],
                     $8::boolean[], $9::bigint[], $10::bigint[])
             AS new (id, part, amount, lines, quarantined, by_operator, because, due, at, ended_at)
         JOIN orders ON orders.id = new.id",
        vec![
            column!(parts, ((order, _), _) => *order),
            column!(parts, ((_, part), _) => *part),
            column!(parts, (_, part) => part.amount),
            column!(parts, (_, part) => part.lines.clone()),
            column!(parts, (_, part) => part.quarantined),
            column!(parts, (_, part) => operator(part).0),
            column!(parts, (_, part) => operator(part).1),
            column!(parts, (_, part) => part.due),
            column!(parts, (_, part) => ms(part.at)),
            column!(parts, (_, part) => optional_ms(part.ended_at)),
        ],
    )
    .await?;
    let ended: Vec<_> = batch.ended_parts.iter().collect();
    db.run(
        "ended parts",
        ended.len(),
        "UPDATE order_refunds AS r SET status = 'REFUNDED', ended_at = to_timestamp(at::float8 / 1000)
         FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) AS new (id, part, at)
         WHERE r.order_id = new.id AND r.part = new.part",
        vec![
            column!(ended, ((order, _), _) => *order),
            column!(ended, ((_, part), _) => *part),
            column!(ended, (_, at) => ms(**at)),
        ],
    )
    .await
}
