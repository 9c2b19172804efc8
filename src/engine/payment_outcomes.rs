//! Stuck payments: gateway payments without an outcome. Operators list and resolve them.
//!
//! A resolution is one step, like the gateway's own outcome: the order becomes PAID, or FAILED with its stock and coupon
//! released. The sweeper still queries the gateway, and reconciles its later outcome:
//!
//! | operator | gateway, later | then |
//! | --- | --- | --- |
//! | APPROVED | approved | the payment is settled, with the gateway's transaction id |
//! | APPROVED | declined, or another amount | the order stays PAID, because its user saw that; the payment counts as stuck until the order is refunded, the gateway approves, or `PAYMENT_GATEWAY_WATCH_SECONDS` are over: then it is DISPUTED |
//! | DECLINED | approved | the gateway refunds the money |
//! | DECLINED | declined, or unknown to it for that time | the payment has ended |

use futures_util::future::try_join_all;

use super::*;
use crate::redis::{commands::ResolvePayment, records::GatewayState};

/// The maximum number of stuck payments in a listing.
const MAX_SHOWN: usize = 100;
/// The time from a resolution to the next query to the gateway.
const CONFIRM_AFTER_MS: i64 = 2_000;
/// The number of attempts to resolve a payment that changes concurrently.
const RESOLVE_ATTEMPTS: usize = 5;

impl Engine {
    /// The stuck payments: the first hundred, the oldest first, and the number of all.
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
                let part = record.due.first();
                let state = match gateway.state {
                    _ if part.is_some() => GatewayState::RefundDue.as_str(),
                    GatewayState::Ended => return None,
                    open => open.as_str(),
                };
                Some(StuckPayment {
                    order_id: record.order.order_id,
                    user_id: record.order.user_id,
                    payment_type: gateway.payment_type,
                    amount: part.map_or(record.order.left_price, |part| part.amount),
                    receipt: gateway.receipt,
                    state,
                    since: part.map_or(gateway.since, |part| part.since),
                    queries: gateway.queries,
                    last_answer: gateway.last_answer,
                })
            }));
        }
        payments.sort_by_key(|payment| (payment.since, payment.order_id));
        payments.truncate(MAX_SHOWN);
        Ok(StuckPayments { payments, total })
    }

    /// The number of stuck payments.
    ///
    /// # Errors
    /// [`Error::Unavailable`] while Redis is.
    pub async fn count_stuck_payments(&self) -> Result<i64, Error> {
        let counts = try_join_all(self.store.all().map(|here| self.store.stuck_payments(here, 0))).await?;
        Ok(counts.iter().map(|(_, count)| count).sum())
    }

    /// Resolves a payment whose gateway does not know the outcome.
    ///
    /// # Errors
    /// [`Error::OrderNotFound`]; [`Error::NoPaymentUnderWay`].
    pub async fn resolve_payment(
        &self,
        call: &Call,
        order: OrderId,
        resolution: &PaymentResolution,
    ) -> Outcome<ResolvedPayment> {
        let owner = self.store.owner(order.get());
        let work = async {
            // Check the key before the order, which may be archived by now.
            if let Some(resolved) = self.store.payment_resolved_before(call, owner, order).await? {
                return Ok(resolved);
            }
            for _ in 0..RESOLVE_ATTEMPTS {
                let record = self.archive.find(order).await?.ok_or(Error::OrderNotFound)?.record;
                let Some(payment) = &record.gateway else { return Err(Error::NoPaymentUnderWay) };
                let resolve_at = |now| ResolvePayment {
                    order_id: order,
                    user_id: record.order.user_id,
                    receipt: payment.receipt.clone(),
                    key: payment.key.clone(),
                    resolution: resolution.clone(),
                    day: self.day(now),
                    check_in_ms: CONFIRM_AFTER_MS,
                };
                let decided = self.store.payment_resolve(call, owner, &resolve_at).await?;
                let Some(resolved) = decided else { continue };
                tracing::warn!(
                    request_id = call.request_id,
                    %order,
                    approved = resolution.approved,
                    operator = resolution.operator,
                    "an operator resolved a payment"
                );
                if resolution.approved {
                    self.popular.sold();
                }
                return Ok(resolved);
            }
            Err(Error::InProgress)
        };
        self.with_claimed_key(call, owner, work).await
    }
}
