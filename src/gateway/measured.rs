//! Counts the calls to a gateway, and the messages of its provider.

use std::{sync::Arc, time::Instant};

use futures_util::{FutureExt, future::BoxFuture};

use super::{
    CancelOutcome, Charge, InvalidToken, PartToCancel, PayOutcome, PaymentGateway, PaymentPage, PrepareOutcome,
    Presented, Provider, StatusOutcome,
    webhook::{MessageRefused, ProviderMessage},
};
use crate::{
    model::Won,
    telemetry::metrics::{GATEWAY_CALL_SECONDS, GATEWAY_CALLS, GATEWAY_MESSAGES},
};

/// The outcome of a call that has none yet: also of one that is given up.
const UNKNOWN: &str = "unknown";
/// The outcomes of each kind of call.
const OUTCOMES: [(&str, &[&str]); 4] = [
    ("prepare", &["prepared", "refused", UNKNOWN]),
    ("pay", &["approved", "unacceptable", "declined", UNKNOWN]),
    ("status", &["approved", "unacceptable", "declined", "not_found", UNKNOWN]),
    ("cancel", &["cancelled", "not_found", UNKNOWN]),
];
/// What becomes of messages.
const MESSAGES: [&str; 5] = ["taken", "ignored", "unverified", "malformed", "not_offered"];

/// A gateway whose calls are counted.
pub(super) struct MeasuredGateway(Arc<dyn PaymentGateway>);

impl MeasuredGateway {
    /// Begins every count of the provider at 0.
    pub fn of(gateway: Arc<dyn PaymentGateway>) -> Arc<dyn PaymentGateway> {
        let provider = gateway.provider().as_str();
        for (call, outcomes) in OUTCOMES {
            GATEWAY_CALL_SECONDS.with_label_values(&[provider, call]);
            for outcome in outcomes {
                GATEWAY_CALLS.with_label_values(&[provider, call, outcome]);
            }
        }
        for result in MESSAGES {
            GATEWAY_MESSAGES.with_label_values(&[provider, result]);
        }
        Arc::new(MeasuredGateway(gateway))
    }

    fn begin(&self, call: &'static str) -> MeasuredCall {
        MeasuredCall { provider: self.0.provider().as_str(), call, outcome: UNKNOWN, began: Instant::now() }
    }
}

/// A call under way. Counted when it is dropped.
struct MeasuredCall {
    provider: &'static str,
    call: &'static str,
    outcome: &'static str,
    began: Instant,
}

impl Drop for MeasuredCall {
    fn drop(&mut self) {
        GATEWAY_CALLS.with_label_values(&[self.provider, self.call, self.outcome]).inc();
        let seconds = GATEWAY_CALL_SECONDS.with_label_values(&[self.provider, self.call]);
        seconds.observe(self.began.elapsed().as_secs_f64());
    }
}

impl PaymentGateway for MeasuredGateway {
    fn provider(&self) -> Provider {
        self.0.provider()
    }

    fn needs_token(&self) -> bool {
        self.0.needs_token()
    }

    fn takes_money_first(&self) -> bool {
        self.0.takes_money_first()
    }

    fn transaction_of(&self, presented: Presented<'_>) -> Result<Option<String>, InvalidToken> {
        self.0.transaction_of(presented)
    }

    fn prepare<'a>(
        &'a self,
        request_id: &'a str,
        charge: &'a Charge,
        page: PaymentPage<'a>,
    ) -> BoxFuture<'a, PrepareOutcome> {
        async move {
            let mut call = self.begin("prepare");
            let outcome = self.0.prepare(request_id, charge, page).await;
            call.outcome = match &outcome {
                PrepareOutcome::Prepared(_) => "prepared",
                PrepareOutcome::Refused { .. } => "refused",
                PrepareOutcome::Unknown { .. } => UNKNOWN,
            };
            outcome
        }
        .boxed()
    }

    fn find_approved<'a>(
        &'a self,
        request_id: &'a str,
        charge: &'a Charge,
        prepared: &'a [String],
    ) -> BoxFuture<'a, Result<Option<String>, String>> {
        async move {
            // Several queries at once, and no money in any of them.
            let mut call = self.begin("status");
            let found = self.0.find_approved(request_id, charge, prepared).await;
            call.outcome = if found.is_ok() { "not_found" } else { UNKNOWN };
            found
        }
        .boxed()
    }

    fn pay<'a>(&'a self, request_id: &'a str, charge: &'a Charge, token: Option<&'a str>) -> BoxFuture<'a, PayOutcome> {
        async move {
            let mut call = self.begin("pay");
            let outcome = self.0.pay(request_id, charge, token).await;
            call.outcome = match &outcome {
                PayOutcome::Approved { .. } => "approved",
                PayOutcome::Unacceptable { .. } => "unacceptable",
                PayOutcome::Declined { .. } => "declined",
                PayOutcome::Unknown { .. } => UNKNOWN,
            };
            outcome
        }
        .boxed()
    }

    fn status<'a>(&'a self, request_id: &'a str, charge: &'a Charge) -> BoxFuture<'a, StatusOutcome> {
        async move {
            let mut call = self.begin("status");
            let outcome = self.0.status(request_id, charge).await;
            call.outcome = match &outcome {
                StatusOutcome::Approved { .. } => "approved",
                StatusOutcome::Unacceptable { .. } => "unacceptable",
                StatusOutcome::Declined { .. } => "declined",
                StatusOutcome::NotFound => "not_found",
                StatusOutcome::Unknown { .. } => UNKNOWN,
            };
            outcome
        }
        .boxed()
    }

    fn cancel<'a>(
        &'a self,
        request_id: &'a str,
        charge: &'a Charge,
        amount: Won,
        reason: &'a str,
    ) -> BoxFuture<'a, CancelOutcome> {
        async move {
            let mut call = self.begin("cancel");
            let outcome = self.0.cancel(request_id, charge, amount, reason).await;
            call.outcome = cancelled(&outcome);
            outcome
        }
        .boxed()
    }

    fn cancel_part<'a>(&'a self, request_id: &'a str, part: &'a PartToCancel<'a>) -> BoxFuture<'a, CancelOutcome> {
        async move {
            let mut call = self.begin("cancel");
            let outcome = self.0.cancel_part(request_id, part).await;
            call.outcome = cancelled(&outcome);
            outcome
        }
        .boxed()
    }

    fn read_webhook(&self, webhook: &ProviderMessage<'_>) -> Result<Option<String>, MessageRefused> {
        let read = self.0.read_webhook(webhook);
        let result = match &read {
            Ok(Some(_)) => "taken",
            Ok(None) => "ignored",
            Err(MessageRefused::Unverified(_)) => "unverified",
            Err(MessageRefused::Malformed) => "malformed",
            Err(MessageRefused::NotOffered) => "not_offered",
        };
        GATEWAY_MESSAGES.with_label_values(&[self.0.provider().as_str(), result]).inc();
        read
    }
}

fn cancelled(outcome: &CancelOutcome) -> &'static str {
    match outcome {
        CancelOutcome::Cancelled => "cancelled",
        CancelOutcome::NotFound => "not_found",
        CancelOutcome::Unknown { .. } => UNKNOWN,
    }
}

#[cfg(test)]
mod tests {
    use std::{future::pending, task::Poll};

    use futures_util::poll;

    use super::*;
    use crate::model::{OrderId, UserId};

    /// A gateway that approves, never answers a query, and takes one message. No other test measures this provider.
    struct HalfDeafGateway;

    impl PaymentGateway for HalfDeafGateway {
        fn provider(&self) -> Provider {
            Provider::PortOne
        }

        fn pay<'a>(&'a self, _: &'a str, _: &'a Charge, _: Option<&'a str>) -> BoxFuture<'a, PayOutcome> {
            async { PayOutcome::Approved { transaction_id: "t".to_owned() } }.boxed()
        }

        fn status<'a>(&'a self, _: &'a str, _: &'a Charge) -> BoxFuture<'a, StatusOutcome> {
            pending().boxed()
        }

        fn cancel<'a>(&'a self, _: &'a str, _: &'a Charge, _: Won, _: &'a str) -> BoxFuture<'a, CancelOutcome> {
            async { CancelOutcome::NotFound }.boxed()
        }

        fn cancel_part<'a>(&'a self, _: &'a str, _: &'a PartToCancel<'a>) -> BoxFuture<'a, CancelOutcome> {
            async { CancelOutcome::Cancelled }.boxed()
        }

        fn read_webhook(&self, webhook: &ProviderMessage<'_>) -> Result<Option<String>, MessageRefused> {
            if webhook.body.is_empty() { Err(MessageRefused::Malformed) } else { Ok(Some("order".to_owned())) }
        }
    }

    #[tokio::test]
    async fn calls_counted_by_provider_and_outcome() {
        let gateway = MeasuredGateway::of(Arc::new(HalfDeafGateway));
        let charge = Charge {
            merchant_uid: "uid".to_owned(),
            merchant_order_id: "order".to_owned(),
            order_id: OrderId::new(1).unwrap(),
            user_id: UserId::new(1).unwrap(),
            amount: 10,
            transaction: None,
        };
        let count = |call: &str, outcome: &str| GATEWAY_CALLS.with_label_values(&["portone", call, outcome]).get();
        let timed = |call: &str| GATEWAY_CALL_SECONDS.with_label_values(&["portone", call]).get_sample_count();
        assert_eq!((count("pay", "approved"), timed("pay"), count("pay", "unknown")), (0, 0, 0));
        for _ in 0..2 {
            assert!(matches!(gateway.pay("rid", &charge, None).await, PayOutcome::Approved { .. }));
        }
        assert_eq!((count("pay", "approved"), timed("pay"), count("pay", "unknown")), (2, 2, 0));
        // A call that is given up is unknown, once it is given up.
        let mut status = gateway.status("rid", &charge);
        assert_eq!(poll!(&mut status), Poll::Pending);
        assert_eq!((count("status", "unknown"), timed("status")), (0, 0));
        drop(status);
        assert_eq!((count("status", "unknown"), timed("status")), (1, 1));
        let part = PartToCancel { charge: &charge, amount: 1, total: 1, reason: "r" };
        assert_eq!(gateway.cancel_part("rid", &part).await, CancelOutcome::Cancelled);
        assert_eq!(gateway.cancel("rid", &charge, 10, "r").await, CancelOutcome::NotFound);
        assert_eq!((count("cancel", "cancelled"), count("cancel", "not_found"), timed("cancel")), (1, 1, 2));
        let message = |body| ProviderMessage { body, header: &|_| None, now: crate::model::Millis(0) };
        let _ = (gateway.read_webhook(&message(b"{}")), gateway.read_webhook(&message(b"")));
        let messages = |result: &str| GATEWAY_MESSAGES.with_label_values(&["portone", result]).get();
        assert_eq!((messages("taken"), messages("malformed"), messages("unverified")), (1, 1, 0));
    }
}
