//! What operators see and decide of payments whose gateway can't say what became of them.
//!
//! The decision is one step, as the gateway's own would be: the order is PAID, or FAILED with stock and coupon given back.
//! The gateway is asked on, so that what it says later is reconciled:
//!
//! | an operator said | the gateway says later | then |
//! | --- | --- | --- |
//! | APPROVED | approved | the payment is settled, under the gateway's transaction id |
//! | APPROVED | declined, or another amount | the order stays PAID, for its user was told so; the payment counts as stuck until the order is refunded, the gateway says otherwise, or `PAYMENT_GATEWAY_WATCH_SECONDS` are over: then it is DISPUTED |
//! | DECLINED | approved | the money goes back through the gateway |
//! | DECLINED | declined, or nothing for as long | the payment has ended |

use futures_util::future::try_join_all;

use super::*;
use crate::redis::{commands::RemoteEnd, records::GatewayState};

/// Stuck payments that are shown at most.
const MAX_SHOWN: usize = 100;
/// How long after an operator's decision the gateway is asked.
const CONFIRM_AFTER_MS: i64 = 2_000;
/// How often a decision is tried when the payment changes under our eyes.
const RESOLVE_ATTEMPTS: usize = 5;

impl Engine {
    /// Payments that nobody can settle: the first hundred, those that have been so for longest first, and how many there
    /// are.
    ///
    /// # Errors
    /// [`Error::Unavailable`] while Redis is.
    pub async fn stuck_payments(&self) -> Result<StuckPayments, Error> {
        let (mut payments, mut total) = (Vec::new(), 0);
        for here in self.store.all() {
            let (orders, count) = self.store.stuck_payments(here, MAX_SHOWN).await?;
            total += count;
            payments.extend(orders.into_iter().filter_map(|record| {
                let gateway = record.gateway?;
                let state = match gateway.state {
                    GatewayState::Ended => return None,
                    open => open.as_str(),
                };
                Some(StuckPayment {
                    order_id: record.order.order_id,
                    user_id: record.order.user_id,
                    payment_type: gateway.payment_type,
                    amount: record.order.final_price,
                    receipt: gateway.receipt,
                    state,
                    since: gateway.since,
                    asks: gateway.asks,
                    said: gateway.said,
                })
            }));
        }
        payments.sort_by_key(|payment| (payment.since, payment.order_id));
        payments.truncate(MAX_SHOWN);
        Ok(StuckPayments { payments, total })
    }

    /// How many payments nobody can settle.
    ///
    /// # Errors
    /// [`Error::Unavailable`] while Redis is.
    pub async fn count_stuck_payments(&self) -> Result<i64, Error> {
        let counts = try_join_all(self.store.all().map(|here| self.store.stuck_payments(here, 0))).await?;
        Ok(counts.iter().map(|(_, count)| count).sum())
    }

    /// Decides a payment whose gateway can't say what became of it.
    ///
    /// # Errors
    /// [`Error::OrderNotFound`]; [`Error::NoPaymentUnderWay`].
    pub async fn resolve_payment(
        &self,
        call: &Call,
        order: OrderId,
        resolution: &PaymentResolution,
    ) -> Outcome<ResolvedPayment> {
        let home = self.store.owner(order.get());
        let work = async {
            // The key comes before the order, which may have left since.
            if let Some(resolved) = self.store.payment_resolved_before(call, home, order).await? {
                return Ok(resolved);
            }
            for _ in 0..RESOLVE_ATTEMPTS {
                let record = self.archive.find(order).await?.ok_or(Error::OrderNotFound)?.record;
                let day = |now| self.day(now);
                let decided = self.store.payment_resolve(call, &record, resolution, &day, CONFIRM_AFTER_MS).await;
                let Some(resolved) = decided? else { continue };
                tracing::warn!(
                    request_id = call.request_id,
                    %order,
                    approved = resolution.approved,
                    operator = resolution.operator,
                    "an operator decided a payment"
                );
                if !resolved.replayed {
                    let end = if resolution.approved { RemoteEnd::Settled } else { RemoteEnd::Released };
                    self.settle_remote(call, order, end).await;
                }
                if resolution.approved {
                    self.popular.sold();
                }
                return Ok(resolved);
            }
            Err(Error::InProgress)
        };
        self.with_claimed_key(call, home, work).await
    }
}
