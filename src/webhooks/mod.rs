//! Webhooks: sends events to receivers, at least once, those of one subject in their order.
//!
//! Every webhook has a cursor of its own in the events, and what failed is kept apart to be sent again, so that a receiver that is slow, or
//! dead, delays no other and never the projection. [`rounds`] has how. A receiver that takes nothing for three days is switched off.
//!
//! The processes that project send. Each webhook is sent to by one of them at a time, which has its lease.

mod address;
mod rounds;
mod schedule;
mod sender;
mod sending;

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use self::{
    address::AddressPolicy,
    sender::{Sender, key_text, new_key},
};
use crate::{
    config::WebhookConfig,
    engine::Engine,
    model::{
        Call, Clock, DeliveryFilter, Error, KeyRotation, Millis, NewWebhook, Page, Partition, Reply, Webhook,
        WebhookDelivery, WebhookId, WebhookPatch,
        public_event::{EventCursor, KeptEvent},
    },
    postgres::{self, events, webhooks},
};

/// The webhooks of a deployment.
#[derive(Clone)]
pub struct Webhooks {
    engine: Arc<Engine>,
    db: postgres::Connection,
    clock: Clock,
    policy: AddressPolicy,
    sender: Sender,
    /// Names this process in leases.
    process: Arc<str>,
    /// The stop of this process.
    stopping: CancellationToken,
}

/// A webhook with the text of its key, which is shown once.
#[derive(Debug)]
pub struct CreatedWebhook {
    pub webhook: Webhook,
    pub key: String,
}

/// The new key of a webhook, and the end of the old one.
#[derive(Debug)]
pub struct RotatedKey {
    pub key: String,
    pub old_key_until: Option<Millis>,
}

impl Webhooks {
    /// Sends nothing yet. `process` names this one.
    pub fn new(engine: Arc<Engine>, db: postgres::Connection, config: &WebhookConfig, process: &str) -> Self {
        let policy = AddressPolicy { allow_private: config.webhook_allow_private };
        let (clock, sender) = (engine.clock().clone(), Sender::new(policy));
        Webhooks { engine, db, clock, policy, sender, process: process.into(), stopping: CancellationToken::new() }
    }

    /// Whether a receiver may have this URL. Its name is resolved, and checked, for each connection.
    pub fn admits_url(&self, url: &str) -> bool {
        self.policy.url(url).is_some()
    }

    /// Creates a webhook, which is sent the events from now on.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] for its URL; [`Error::TooManyWebhooks`].
    pub async fn create(&self, call: &Call, new: NewWebhook) -> Result<Reply<CreatedWebhook>, Error> {
        if !self.admits_url(&new.url) {
            return Err(Error::InvalidRequest("url"));
        }
        let ranges = events::ranges(&self.db).await?;
        let latest = EventCursor::new(ranges.iter().map(|range| range.last).collect());
        let key = new_key()?;
        let created = webhooks::create(&self.db, &new, &key, &latest, call.key.as_ref(), self.clock.now()).await?;
        Ok(created.map(|(webhook, key)| CreatedWebhook { webhook, key: key_text(&key) }))
    }

    /// A page of the webhooks, by id.
    ///
    /// # Errors
    /// [`Error::Unavailable`] while PostgreSQL is.
    pub async fn page(&self, page: i64, size: i64) -> Result<Page<Webhook>, Error> {
        let all = webhooks::all(&self.db).await?;
        let total = all.len() as i64;
        let items = all.into_iter().skip((page * size) as usize).take(size as usize);
        let items = items.map(|webhook| self.shown(webhook)).collect();
        Ok(Page { items, page, size, total })
    }

    /// A webhook.
    ///
    /// # Errors
    /// [`Error::WebhookNotFound`].
    pub async fn find(&self, id: WebhookId) -> Result<Webhook, Error> {
        webhooks::find(&self.db, id).await.map(|webhook| self.shown(webhook))
    }

    /// Without an old key that is over.
    fn shown(&self, webhook: Webhook) -> Webhook {
        let now = self.clock.now();
        Webhook { old_key_until: webhook.old_key_until.filter(|until| *until > now), ..webhook }
    }

    /// Changes a webhook.
    ///
    /// # Errors
    /// [`Error::WebhookNotFound`]; [`Error::InvalidRequest`] for its URL.
    pub async fn update(&self, id: WebhookId, patch: &WebhookPatch) -> Result<Webhook, Error> {
        if patch.url.as_ref().is_some_and(|url| !self.admits_url(url)) {
            return Err(Error::InvalidRequest("url"));
        }
        webhooks::update(&self.db, id, patch, self.clock.now()).await.map(|webhook| self.shown(webhook))
    }

    /// Deletes a webhook.
    ///
    /// # Errors
    /// [`Error::WebhookNotFound`].
    pub async fn delete(&self, id: WebhookId) -> Result<(), Error> {
        webhooks::delete(&self.db, id).await
    }

    /// Gives a webhook another key. The old one is valid for `valid_ms`.
    ///
    /// # Errors
    /// [`Error::WebhookNotFound`]; [`Error::KeyRotating`] while a third key would be valid.
    pub async fn rotate(&self, call: &Call, id: WebhookId, valid_ms: i64) -> Result<Reply<RotatedKey>, Error> {
        let rotation = KeyRotation { new: new_key()?, valid_ms, request: call.key.clone() };
        let rotated = webhooks::rotate(&self.db, id, &rotation, self.clock.now()).await?;
        Ok(rotated.map(|(key, until)| RotatedKey { key: key_text(&key), old_key_until: Some(until) }))
    }

    /// The attempts of a webhook, newest first.
    ///
    /// # Errors
    /// [`Error::WebhookNotFound`].
    pub async fn deliveries(&self, id: WebhookId, filter: DeliveryFilter) -> Result<Vec<WebhookDelivery>, Error> {
        webhooks::find(&self.db, id).await?;
        webhooks::deliveries(&self.db, id, filter).await
    }

    /// Has an event sent again, beside all others.
    ///
    /// # Errors
    /// [`Error::WebhookNotFound`]; [`Error::EventNotFound`].
    pub async fn resend(&self, id: WebhookId, event_id: &str) -> Result<(), Error> {
        webhooks::find(&self.db, id).await?;
        let numbers: Vec<i64> = event_id.split('-').filter_map(|number| number.parse().ok()).collect();
        let [epoch, partition, seq] = numbers[..] else { return Err(Error::EventNotFound) };
        let partition = u16::try_from(partition).map_err(|_| Error::EventNotFound)?;
        let event = events::find(&self.db, Partition(partition), epoch, seq).await?.ok_or(Error::EventNotFound)?;
        let body = self.body(event.clone()).await?;
        webhooks::resend(&self.db, id, &event, &body, self.clock.now()).await
    }

    /// The body of a request with this event.
    async fn body(&self, event: KeptEvent) -> Result<String, Error> {
        let store = self.engine.store_identity().await?;
        let rendered = event.into_cloud_event(store).and_then(|event| serde_json::to_string(&event));
        rendered.map_err(|error| Error::Internal(error.into()))
    }
}
