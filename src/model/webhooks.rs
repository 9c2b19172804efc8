//! Webhooks: the receivers of events, and what was sent to them.

use std::fmt;

use super::{
    IdempotencyKey, Millis, Partition, WebhookId, WebhookStatus,
    public_event::{EventCursor, EventPlace},
};

/// The most webhooks of a deployment.
pub const MAX_WEBHOOKS: i64 = 50;

/// The key that signs what is sent to a webhook.
#[derive(Clone, PartialEq, Eq)]
pub struct WebhookKey(Vec<u8>);

impl WebhookKey {
    pub fn new(bytes: Vec<u8>) -> Self {
        WebhookKey(bytes)
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for WebhookKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// A webhook to create.
#[derive(Clone, Debug)]
pub struct NewWebhook {
    pub url: String,
    /// The types of its events; all if there are none.
    pub kinds: Vec<String>,
    pub description: String,
}

/// A change of a webhook. `None` leaves a field unchanged.
#[derive(Clone, Debug, Default)]
pub struct WebhookPatch {
    pub url: Option<String>,
    pub kinds: Option<Vec<String>>,
    pub description: Option<String>,
    pub enabled: Option<bool>,
}

/// A webhook.
#[derive(Clone, Debug)]
pub struct Webhook {
    pub id: WebhookId,
    pub url: String,
    pub kinds: Vec<String>,
    pub description: String,
    pub status: WebhookStatus,
    /// The time since which its receiver takes nothing.
    pub failing_since: Option<Millis>,
    /// Not before this time is anything sent.
    pub next_at: Millis,
    /// Events that are to be sent again.
    pub retries: i64,
    /// The end of the old key.
    pub old_key_until: Option<Millis>,
    pub created_at: Millis,
}

/// The keys of a webhook.
#[derive(Clone, Debug)]
pub struct WebhookKeys {
    pub key: WebhookKey,
    /// Valid until this time.
    pub old: Option<(WebhookKey, Millis)>,
}

/// A change of the key of a webhook.
#[derive(Clone, Debug)]
pub struct KeyRotation {
    pub new: WebhookKey,
    /// How long the old key is valid.
    pub valid_ms: i64,
    pub request: Option<IdempotencyKey>,
}

/// An event to send to a webhook.
#[derive(Clone, Debug)]
pub struct PendingEvent {
    pub partition: Partition,
    pub place: EventPlace,
    pub id: String,
    pub kind: String,
    /// The events of one subject are sent in their order.
    pub subject: String,
    /// The CloudEvent.
    pub body: String,
    /// Attempts until now.
    pub attempts: i64,
    pub first_failed_at: Option<Millis>,
    /// An operator sends it again: it waits for no other.
    pub manual: bool,
}

impl PendingEvent {
    /// Whether it has not been kept to be sent again.
    pub fn is_new(&self) -> bool {
        self.first_failed_at.is_none()
    }
}

/// An attempt to deliver an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebhookDelivery {
    /// Counts all attempts; 0 before it is written.
    pub no: i64,
    pub event_id: String,
    pub kind: String,
    /// Counts the attempts of this event from 1.
    pub attempt: i64,
    pub at: Millis,
    pub took_ms: i64,
    /// The receiver's status.
    pub status: Option<u16>,
    /// Why there is no status, or why it counts as a failure.
    pub failure: Option<String>,
    pub manual: bool,
}

/// The attempts to list, newest first.
#[derive(Clone, Copy, Debug)]
pub struct DeliveryFilter {
    /// Only older ones.
    pub before: Option<i64>,
    pub failed: bool,
    pub limit: i64,
}

/// A webhook that this process sends to, as of the beginning of a round.
#[derive(Clone, Debug)]
pub struct LeasedWebhook {
    pub id: WebhookId,
    pub url: String,
    pub kinds: Vec<String>,
    pub keys: WebhookKeys,
    pub cursor: EventCursor,
    pub failing_since: Option<Millis>,
    /// Rounds since then.
    pub failures: i64,
    /// Events that are to be sent again.
    pub retries: i64,
    /// Counts what operators change.
    pub changes: i64,
}

/// What a round changes.
#[derive(Clone, Debug)]
pub struct RoundOutcome {
    pub cursor: EventCursor,
    /// Events that failed, or wait for one of their subject that did, each with the time of its next attempt.
    pub failed: Vec<(PendingEvent, Millis)>,
    /// Earlier failures that were delivered, and whether an operator sent each again.
    pub recovered: Vec<(Partition, EventPlace, bool)>,
    pub deliveries: Vec<WebhookDelivery>,
    pub failing_since: Option<Millis>,
    pub failures: i64,
    pub next_at: Millis,
    /// Switches the webhook off.
    pub gives_up: bool,
}
