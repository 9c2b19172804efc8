//! Decisions as other systems see them: CloudEvents, in the order of each partition.
//!
//! A decision is one event. Its id is `epoch-partition-seq`: a request that decides twice, as a checkout in one step does, has two. No
//! event has the name of a user, or what an operator wrote about one.

mod data;
mod place;
mod render;

use chrono::SecondsFormat;
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

pub use self::{
    data::{EventType, schemas},
    place::{EventCursor, EventPlace},
};
use super::{Millis, Partition, event::Event};

/// An event as the table has it: its data is rendered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicEvent {
    pub kind: EventType,
    /// What it is about, such as `orders/7`. Webhooks keep the order of the events of one subject.
    pub subject: String,
    pub at: Millis,
    /// JSON.
    pub data: String,
}

impl PublicEvent {
    /// What other systems see of a decision.
    pub fn of(event: &Event) -> PublicEvent {
        let (kind, subject, data) = render::of(&event.body);
        PublicEvent { kind, subject, at: event.at, data }
    }
}

/// What a reader of the events asks for.
#[derive(Clone, Debug)]
pub struct EventQuery {
    pub after: EventStart,
    /// Only these types; all if there are none.
    pub kinds: Vec<String>,
    /// The most events.
    pub limit: i64,
}

/// Where a reader begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventStart {
    /// With the oldest event that is kept.
    Oldest,
    /// With the next event.
    Latest,
    /// Where the cursor is.
    At(EventCursor),
}

/// The events that a reader gets.
#[derive(Clone, Debug)]
pub struct EventPage {
    pub events: Vec<KeptEvent>,
    /// How far the reader is with these.
    pub next: EventCursor,
    /// Whether there are more events, of any type.
    pub has_more: bool,
}

impl EventPage {
    /// Whether the reader has all events, and got none.
    pub fn is_at_end(&self) -> bool {
        self.events.is_empty() && !self.has_more
    }
}

/// An event that is kept, with its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptEvent {
    pub partition: Partition,
    pub place: EventPlace,
    /// The number of its decision; another one than that of its place, if it was a dead letter.
    pub seq: i64,
    /// The name of its type. A newer version may know more of them.
    pub kind: String,
    pub subject: String,
    pub at: Millis,
    /// JSON.
    pub data: String,
}

/// An event as CloudEvents 1.0 defines it in JSON.
#[derive(Debug, Serialize, ToSchema)]
#[schema(description = "CloudEvents 1.0 이벤트")]
pub struct CloudEvent {
    /// CloudEvents 버전
    #[schema(example = "1.0")]
    specversion: &'static str,
    /// 이벤트 ID: epoch-partition-seq
    #[schema(example = "1-0-42")]
    id: String,
    /// 이벤트를 보낸 서비스
    #[schema(example = "/firstcome/0b5d6f0e-6f0c-4c58-8f1a-1f0a2f9d5f3e")]
    source: String,
    /// 이벤트 종류
    #[serde(rename = "type")]
    #[schema(example = "order.paid")]
    kind: String,
    /// 이벤트의 대상
    #[schema(example = "orders/7")]
    subject: String,
    /// 결정 시각 (UTC)
    #[schema(format = DateTime, example = "2024-04-04T05:45:00.123Z")]
    time: String,
    /// data의 형식
    #[schema(example = "application/json")]
    datacontenttype: &'static str,
    /// 파티션 번호
    partition: u16,
    /// 이벤트 내용
    #[schema(value_type = Object)]
    data: Box<RawValue>,
}

impl KeptEvent {
    /// `epoch-partition-seq`
    pub fn id(&self) -> String {
        format!("{}-{}-{}", self.place.epoch, self.partition.0, self.seq)
    }

    /// The CloudEvent. `store`: the identity of the deployment.
    ///
    /// # Errors
    /// The data is not JSON.
    pub fn into_cloud_event(self, store: &str) -> serde_json::Result<CloudEvent> {
        Ok(CloudEvent {
            specversion: "1.0",
            id: self.id(),
            source: format!("/firstcome/{store}"),
            kind: self.kind,
            subject: self.subject,
            time: rfc3339(self.at),
            datacontenttype: "application/json",
            partition: self.partition.0,
            data: RawValue::from_string(self.data)?,
        })
    }
}

/// The time in events: UTC.
fn rfc3339(at: Millis) -> String {
    at.to_utc().to_rfc3339_opts(SecondsFormat::Millis, true)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::model::{
        BalanceEntry, TransactionType, UserId,
        event::{Body, Record},
    };

    #[test]
    fn event_rendered_as_cloud_event() {
        let user_id = UserId::new(7).unwrap();
        let at = Millis(1_712_209_500_123);
        let entry = BalanceEntry {
            user_id,
            entry_no: 3,
            kind: TransactionType::Charge,
            amount: 500,
            before: 1_000,
            after: 1_500,
            order_id: None,
            at,
        };
        let record = Record { digest: "secret".into(), fingerprint: "f".into(), reply: "r".into() };
        let body = Body::BalanceCharged(entry);
        let event = Event { epoch: 2, seq: 41, at, request_id: "rid".into(), body, record: Some(record) };
        let PublicEvent { kind, subject, at, data } = PublicEvent::of(&event);
        let place = EventPlace { epoch: 2, seq: 44, late: 1 };
        let kept =
            KeptEvent { partition: Partition(3), place, seq: 41, kind: kind.as_str().to_owned(), subject, at, data };
        let json: Value = serde_json::to_value(kept.into_cloud_event("a-store").unwrap()).unwrap();
        assert_eq!(
            json,
            json!({
                "specversion": "1.0", "id": "2-3-41", "source": "/firstcome/a-store", "type": "balance.charged",
                "subject": "users/7", "time": "2024-04-04T05:45:00.123Z", "datacontenttype": "application/json",
                "partition": 3,
                "data": {"userId": 7, "amount": 500, "beforeBalance": 1000, "afterBalance": 1500, "entryNo": 3}
            })
        );
    }
}
