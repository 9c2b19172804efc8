//! Relays the effects of events to other partitions: the second step of a transfer of units, and changed prices.
//!
//! The request that decided has usually taken these steps itself; they are idempotent, so the relay then changes
//! nothing. With one partition there is nothing to relay.

use crate::{
    model::{
        Call, Error, Partition,
        event::{Body, Event},
    },
    redis::{
        Store,
        commands::{NumberedPrice, ReturnedUnits},
    },
};

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
            Body::StockAllotted { product, partition, total, price, version, .. } => {
                let price = NumberedPrice { price: *price, version: *version };
                store.stock_receive(&call, *partition, *product, *total, price).await
            }
            Body::StockReturned { product, total, withheld, .. } => {
                let units = if *withheld { ReturnedUnits::Withheld } else { ReturnedUnits::OnSale };
                store.stock_regain(&call, *product, here, *total, units).await
            }
            Body::ProductUpdated { product, price, version, .. } if *version > 0 => {
                let price = NumberedPrice { price: *price, version: *version };
                store.price_spread(*product, price).await
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
