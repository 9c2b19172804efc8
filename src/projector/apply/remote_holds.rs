//! Units that partitions held for orders of others, in releases whose orders had remote lines. A rebuild converts the rows.

use super::{Apply, ApplyError, column};
use crate::{
    model::{Partition, event::pack_lines},
    projector::batch::Batch,
};

pub(super) async fn remote_holds(db: &Apply<'_>, here: Partition, batch: &Batch) -> Result<(), ApplyError> {
    let (forgotten, holds): (Vec<_>, Vec<_>) = batch.remote_holds.iter().partition(|(_, hold)| hold.forgotten);
    db.run_any(
        forgotten.len(),
        "DELETE FROM stock_holds WHERE partition = $1 AND order_id = ANY($2)",
        vec![i32::from(here.0).into(), column!(forgotten, (order, _) => **order)],
    )
    .await?;
    db.run(
        "stock holds",
        holds.len(),
        "INSERT INTO stock_holds (partition, order_id, user_id, state, lines)
         SELECT $1, order_id, user_id, state, lines
         FROM unnest($2::bigint[], $3::bigint[], $4::text[], $5::text[]) AS new (order_id, user_id, state, lines)
         ON CONFLICT (partition, order_id) DO UPDATE SET state = excluded.state",
        vec![
            i32::from(here.0).into(),
            column!(holds, (order, _) => **order),
            column!(holds, (_, hold) => hold.user),
            column!(holds, (_, hold) => hold.state.as_str().to_owned()),
            column!(holds, (_, hold) => pack_lines(&hold.lines)),
        ],
    )
    .await
}
