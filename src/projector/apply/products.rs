//! Products: descriptions, counters of units, and the transfers of units between partitions.

use super::{Apply, ApplyError, column, ms, operator_ms};
use crate::{
    model::{LimitGroup, Partition, SaleTerms},
    projector::batch::Batch,
    redis::commands::NumberedPrice,
};

fn group(terms: &SaleTerms) -> String {
    terms.limit_group.as_ref().map_or("", LimitGroup::as_str).to_owned()
}

pub(super) async fn products(
    db: &Apply<'_>,
    (here, partitions): (Partition, u16),
    batch: &Batch,
) -> Result<(), ApplyError> {
    let new = &batch.new_products;
    db.run(
        "new products",
        new.len(),
        "INSERT INTO products (id, name, category, price, on_sale, held, sold, stocked, created_at, opens_at, closes_at,
             limit_per_user, limit_group, price_version)
         SELECT id, name, category, price, 0, 0, 0, 0, to_timestamp(at::float8 / 1000),
             to_timestamp(NULLIF(opens, -1) / 1000.0), to_timestamp(NULLIF(closes, -1) / 1000.0), NULLIF(units, 0),
             NULLIF(of_group, ''), version
         FROM unnest($1::bigint[], $2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[],
                     $8::bigint[], $9::text[], $10::bigint[])
             AS new (id, name, category, price, at, opens, closes, units, of_group, version)",
        vec![
            column!(new, p => p.id),
            column!(new, p => p.name.clone()),
            column!(new, p => p.category.clone()),
            column!(new, p => p.price),
            column!(new, p => ms(p.at)),
            column!(new, p => operator_ms(p.terms.opens_at)),
            column!(new, p => operator_ms(p.terms.closes_at)),
            column!(new, p => p.terms.limit_per_user.unwrap_or(0)),
            column!(new, p => group(&p.terms)),
            column!(new, p => NumberedPrice::first(p.price, p.terms).version),
        ],
    )
    .await?;
    let described: Vec<_> = batch.descriptions.iter().collect();
    db.run(
        "products",
        described.len(),
        "UPDATE products SET name = new.name, price = new.price, category = new.category, price_version = new.version,
             opens_at = to_timestamp(NULLIF(opens, -1) / 1000.0), closes_at = to_timestamp(NULLIF(closes, -1) / 1000.0),
             limit_per_user = NULLIF(units, 0), limit_group = NULLIF(of_group, '')
         FROM unnest($1::bigint[], $2::text[], $3::bigint[], $4::text[], $5::bigint[], $6::bigint[], $7::bigint[],
                     $8::bigint[], $9::text[])
             AS new (id, name, price, category, version, opens, closes, units, of_group)
         WHERE products.id = new.id",
        vec![
            column!(described, (id, _) => **id),
            column!(described, (_, product) => product.name.clone()),
            column!(described, (_, product) => product.price),
            column!(described, (_, product) => product.category.clone()),
            column!(described, (_, product) => product.version),
            column!(described, (_, product) => operator_ms(product.terms.opens_at)),
            column!(described, (_, product) => operator_ms(product.terms.closes_at)),
            column!(described, (_, product) => product.terms.limit_per_user.unwrap_or(0)),
            column!(described, (_, product) => group(&product.terms)),
        ],
    )
    .await?;
    let is_own = |id: i64| partitions == 1 || id % i64::from(partitions) == i64::from(here.0);
    let units: Vec<_> = batch.units.iter().filter(|(id, _)| is_own(**id)).collect();
    db.run(
        "products",
        units.len(),
        "UPDATE products SET on_sale = products.on_sale + new.on_sale, held = products.held + new.held,
             sold = products.sold + new.sold, withheld = products.withheld + new.withheld,
             allotted = products.allotted + new.allotted, stocked = products.stocked + new.stocked,
             quarantined = products.quarantined + new.quarantined
         FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[],
                     $8::bigint[])
             AS new (id, on_sale, held, sold, withheld, allotted, stocked, quarantined)
         WHERE products.id = new.id",
        vec![
            column!(units, (id, _) => **id),
            column!(units, (_, u) => u.on_sale),
            column!(units, (_, u) => u.held),
            column!(units, (_, u) => u.sold),
            column!(units, (_, u) => u.withheld),
            column!(units, (_, u) => u.allotted),
            column!(units, (_, u) => u.stocked),
            column!(units, (_, u) => u.quarantined),
        ],
    )
    .await?;
    if partitions > 1 { transfers(db, here, batch, is_own).await } else { Ok(()) }
}

/// The units of products of other partitions, and what went from partition to partition.
async fn transfers(
    db: &Apply<'_>,
    here: Partition,
    batch: &Batch,
    is_own: impl Fn(i64) -> bool,
) -> Result<(), ApplyError> {
    let received: Vec<i64> =
        batch.transfers.iter().filter(|(_, transfer)| transfer.received > 0).map(|(id, _)| *id).collect();
    db.run_any(
        received.len(),
        "INSERT INTO partition_stock (product_id, partition) SELECT id, $1 FROM unnest($2::bigint[]) AS new (id)
         ON CONFLICT (product_id, partition) DO NOTHING",
        vec![i32::from(here.0).into(), received.into()],
    )
    .await?;
    let units: Vec<_> = batch.units.iter().filter(|(id, _)| !is_own(**id)).collect();
    let transfer = |id: &i64| batch.transfers.get(id).copied().unwrap_or_default();
    db.run(
        "units of other partitions' products",
        units.len(),
        "UPDATE partition_stock AS p SET on_sale = p.on_sale + new.on_sale, held = p.held + new.held,
             sold = p.sold + new.sold, withheld = p.withheld + new.withheld, received = p.received + new.received,
             returned = p.returned + new.returned, surrendered = p.surrendered + new.surrendered,
             quarantined = p.quarantined + new.quarantined
         FROM unnest($2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[],
                     $9::bigint[], $10::bigint[])
             AS new (id, on_sale, held, sold, withheld, received, returned, surrendered, quarantined)
         WHERE p.product_id = new.id AND p.partition = $1",
        vec![
            i32::from(here.0).into(),
            column!(units, (id, _) => **id),
            column!(units, (_, u) => u.on_sale),
            column!(units, (_, u) => u.held),
            column!(units, (_, u) => u.sold),
            column!(units, (_, u) => u.withheld),
            column!(units, (id, _) => transfer(id).received),
            column!(units, (id, _) => transfer(id).returned),
            column!(units, (id, _) => transfer(id).surrendered),
            column!(units, (_, u) => u.quarantined),
        ],
    )
    .await?;
    let allotments: Vec<_> = batch.allotments.iter().collect();
    db.run(
        "allotments",
        allotments.len(),
        "INSERT INTO allotments (product_id, partition, allotted, regained, recovered)
         SELECT * FROM unnest($1::bigint[], $2::integer[], $3::bigint[], $4::bigint[], $5::bigint[])
         ON CONFLICT (product_id, partition) DO UPDATE SET allotted = allotments.allotted + excluded.allotted,
             regained = allotments.regained + excluded.regained, recovered = allotments.recovered + excluded.recovered",
        vec![
            column!(allotments, ((product, _), _) => *product),
            column!(allotments, ((_, partition), _) => i32::from(*partition)),
            column!(allotments, (_, delta) => delta.allotted),
            column!(allotments, (_, delta) => delta.regained),
            column!(allotments, (_, delta) => delta.recovered),
        ],
    )
    .await
}
