//! Products: descriptions and counters of units.

use super::{Apply, ApplyError, column, ms};
use crate::projector::batch::Batch;

pub(super) async fn products(db: &Apply<'_>, batch: &Batch) -> Result<(), ApplyError> {
    let new = &batch.new_products;
    db.run(
        "new products",
        new.len(),
        "INSERT INTO products (id, name, category, price, on_sale, held, sold, stocked, created_at)
         SELECT id, name, category, price, 0, 0, 0, 0, to_timestamp(at::float8 / 1000)
         FROM unnest($1::bigint[], $2::text[], $3::text[], $4::bigint[], $5::bigint[])
             AS new (id, name, category, price, at)",
        vec![
            column!(new, p => p.id),
            column!(new, p => p.name.clone()),
            column!(new, p => p.category.clone()),
            column!(new, p => p.price),
            column!(new, p => ms(p.at)),
        ],
    )
    .await?;
    let described: Vec<_> = batch.descriptions.iter().collect();
    db.run(
        "products",
        described.len(),
        "UPDATE products SET name = new.name, price = new.price, category = new.category
         FROM unnest($1::bigint[], $2::text[], $3::bigint[], $4::text[]) AS new (id, name, price, category)
         WHERE products.id = new.id",
        vec![
            column!(described, (id, _) => **id),
            column!(described, (_, (name, ..)) => name.clone()),
            column!(described, (_, (_, price, _)) => *price),
            column!(described, (.., (_, _, category)) => category.clone()),
        ],
    )
    .await?;
    let units: Vec<_> = batch.units.iter().collect();
    db.run(
        "products",
        units.len(),
        "UPDATE products SET on_sale = products.on_sale + new.on_sale, held = products.held + new.held,
             sold = products.sold + new.sold, withheld = products.withheld + new.withheld,
             stocked = products.stocked + new.stocked
         FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[])
             AS new (id, on_sale, held, sold, withheld, stocked)
         WHERE products.id = new.id",
        vec![
            column!(units, (id, _) => **id),
            column!(units, (_, u) => u.on_sale),
            column!(units, (_, u) => u.held),
            column!(units, (_, u) => u.sold),
            column!(units, (_, u) => u.withheld),
            column!(units, (_, u) => u.stocked),
        ],
    )
    .await
}
