//! The log lines of calls to gateways.

use tracing::{debug, warn};

use super::{CancelOutcome, Charge, PayOutcome, StatusOutcome, client::ProviderClient};
use crate::model::Won;

pub(super) fn pay(client: &ProviderClient, request_id: &str, charge: &Charge, outcome: PayOutcome) -> PayOutcome {
    let (gateway, merchant_uid) = (client.kind(), charge.merchant_uid.as_str());
    match &outcome {
        PayOutcome::Unknown { why } => warn!(request_id, %gateway, merchant_uid, why, "payment: unknown"),
        known => debug!(request_id, %gateway, merchant_uid, outcome = ?known, "payment"),
    }
    outcome
}

pub(super) fn status(
    client: &ProviderClient,
    request_id: &str,
    charge: &Charge,
    outcome: StatusOutcome,
) -> StatusOutcome {
    let (gateway, merchant_uid) = (client.kind(), charge.merchant_uid.as_str());
    match &outcome {
        StatusOutcome::Unknown { why } => warn!(request_id, %gateway, merchant_uid, why, "payment status: unknown"),
        known => debug!(request_id, %gateway, merchant_uid, outcome = ?known, "payment status"),
    }
    outcome
}

pub(super) fn cancel(
    client: &ProviderClient,
    request_id: &str,
    charge: &Charge,
    amount: Won,
    outcome: CancelOutcome,
) -> CancelOutcome {
    let (gateway, merchant_uid) = (client.kind(), charge.merchant_uid.as_str());
    match &outcome {
        CancelOutcome::Unknown { why } => {
            warn!(request_id, %gateway, merchant_uid, amount, why, "payment cancel: unknown");
        }
        known => debug!(request_id, %gateway, merchant_uid, amount, outcome = ?known, "payment cancel"),
    }
    outcome
}
