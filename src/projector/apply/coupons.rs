//! Campaigns, and the coupons of users.

use super::{Apply, ApplyError, column, ms, optional_ms};
use crate::projector::batch::Batch;

pub(super) async fn campaigns(db: &Apply<'_>, batch: &Batch) -> Result<(), ApplyError> {
    let new = &batch.new_campaigns;
    db.run(
        "new campaigns",
        new.len(),
        "INSERT INTO campaigns
             (id, code, discount_type, discount_amount, total, issued, opens_at, closes_at, expires_at, created_at,
              conditions)
         SELECT id, code, type, amount, total, 0, to_timestamp(opens / 1000.0), to_timestamp(closes / 1000.0),
             to_timestamp(expires / 1000.0), to_timestamp(at / 1000.0), conditions
         FROM unnest($1::bigint[], $2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[],
                     $8::bigint[], $9::bigint[], $10::text[])
             AS new (id, code, type, amount, total, opens, closes, expires, at, conditions)",
        vec![
            column!(new, (t, _) => t.coupon_id.get()),
            column!(new, (t, _) => t.code.clone()),
            column!(new, (t, _) => t.discount.kind.as_str().to_owned()),
            column!(new, (t, _) => t.discount.amount),
            column!(new, (t, _) => t.total),
            column!(new, (t, _) => ms(t.opens_at)),
            column!(new, (t, _) => ms(t.closes_at)),
            column!(new, (t, _) => ms(t.expires_at)),
            column!(new, (_, at) => ms(*at)),
            column!(new, (t, _) => t.conditions.to_string()),
        ],
    )
    .await?;
    let windows: Vec<_> = batch.windows.iter().collect();
    db.run(
        "campaigns",
        windows.len(),
        "UPDATE campaigns SET opens_at = to_timestamp(opens / 1000.0), closes_at = to_timestamp(closes / 1000.0)
         FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) AS new (id, opens, closes)
         WHERE campaigns.id = new.id",
        vec![
            column!(windows, (id, _) => **id),
            column!(windows, (_, (opens, _)) => ms(*opens)),
            column!(windows, (_, (_, closes)) => ms(*closes)),
        ],
    )
    .await?;
    let issued: Vec<_> = batch.issued.iter().collect();
    db.run(
        "campaigns",
        issued.len(),
        "UPDATE campaigns SET issued = campaigns.issued + new.issued, withheld = campaigns.withheld + new.withheld
         FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) AS new (id, issued, withheld)
         WHERE campaigns.id = new.id",
        vec![
            column!(issued, (id, _) => **id),
            column!(issued, (_, n) => n.issued),
            column!(issued, (_, n) => n.withheld),
        ],
    )
    .await
}

pub(super) async fn coupons(db: &Apply<'_>, batch: &Batch) -> Result<(), ApplyError> {
    let new = &batch.new_coupons;
    db.run(
        "new coupons",
        new.len(),
        // The join replaces the foreign key to the users. The status is not yet that of the batch: hardly any coupon is
        // used in the batch that issued it.
        "INSERT INTO user_coupons (coupon_id, user_id, issue_no, status, issued_at)
         SELECT coupon, user_id, issue_no, 'AVAILABLE', to_timestamp(at::float8 / 1000)
         FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[]) AS new (coupon, user_id, issue_no, at)
         JOIN users ON users.id = new.user_id",
        vec![
            column!(new, c => c.coupon),
            column!(new, c => c.user),
            column!(new, c => c.issue_no),
            column!(new, c => ms(c.at)),
        ],
    )
    .await?;
    let remote = &batch.remote_coupons;
    db.run(
        "remote coupons",
        remote.len(),
        "INSERT INTO remote_coupons (coupon_id, user_id, issue_no, issued_at)
         SELECT coupon, user_id, issue_no, to_timestamp(at::float8 / 1000)
         FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[]) AS new (coupon, user_id, issue_no, at)",
        vec![
            column!(remote, c => c.coupon),
            column!(remote, c => c.user),
            column!(remote, c => c.issue_no),
            column!(remote, c => ms(c.at)),
        ],
    )
    .await?;
    let states: Vec<_> = batch.coupons.iter().collect();
    db.run(
        "coupons",
        states.len(),
        "UPDATE user_coupons SET status = new.status, order_id = NULLIF(new.order_id, 0),
             used_at = to_timestamp(NULLIF(new.used_at, 0)::float8 / 1000)
         FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::bigint[], $5::bigint[])
             AS new (coupon, user_id, status, order_id, used_at)
         WHERE user_coupons.coupon_id = new.coupon AND user_coupons.user_id = new.user_id",
        vec![
            column!(states, ((coupon, _), _) => *coupon),
            column!(states, ((_, user), _) => *user),
            column!(states, (_, state) => state.status.to_owned()),
            column!(states, (_, state) => state.order.unwrap_or(0)),
            column!(states, (_, state) => optional_ms(state.used_at)),
        ],
    )
    .await
}
