//! Relays the effects of events to other partitions: the second step of a transfer of units, changed prices and terms of sale,
//! and the limits of groups.
//!
//! The request that decided has usually taken these steps itself; they are idempotent, so the relay then changes
//! nothing. With one partition there is nothing to relay.

use crate::{
    model::{
        Call, Error, Partition, ProductId,
        event::{Body, Event},
    },
    redis::{
        Store,
        commands::{NumberedPrice, ReturnedUnits},
    },
};

/// Brings a changed price, or changed terms, of a product to the other partitions.
async fn spread(store: &Store, product: ProductId, price: NumberedPrice) -> Result<(), Error> {
    if price.version == 0 {
        return Ok(());
    }
    store.price_spread(product, price).await?;
    // The first partition may have lost the limit of the group: it has no event.
    let Some((group, limit)) = price.terms.limit_group.zip(price.terms.limit_per_user) else { return Ok(()) };
    if !store.limit_group_set(group, limit).await? {
        tracing::error!(%product, %group, limit, "the group has another limit per user");
    }
    Ok(())
}

/// Relays committed events.
///
/// # Errors
/// A partition can't answer; a retry is safe.
pub async fn relay(store: &Store, here: Partition, events: &[&Event]) -> Result<(), Error> {
    if store.partitions() == 1 {
        return Ok(());
    }
    let _operation = store.begin_operation();
    for event in events {
        // The relayed steps belong to the same request.
        let call = Call::new(&event.request_id, None);
        let relayed = match &event.body {
            Body::StockAllotted { product, partition, total, price, version, terms, .. } => {
                let price = NumberedPrice { price: *price, terms: *terms, version: *version };
                store.stock_receive(&call, *partition, *product, *total, price).await
            }
            Body::StockReturned { product, total, withheld, .. } => {
                let units = if *withheld { ReturnedUnits::Withheld } else { ReturnedUnits::OnSale };
                store.stock_regain(&call, *product, here, *total, units).await
            }
            Body::ProductCreated { product, price, terms, .. } => {
                spread(store, *product, NumberedPrice::first(*price, *terms)).await
            }
            Body::ProductUpdated { product, price, version, terms, .. } => {
                spread(store, *product, NumberedPrice { price: *price, terms: *terms, version: *version }).await
            }
            _ => Ok(()),
        };
        if let Err(error) = relayed {
            tracing::warn!(partition = here.0, request_id = event.request_id, %error, "an event is relayed later");
            return Err(error);
        }
    }
    Ok(())
}
