//! The JSON of a `history` event: the requests of the last fifteen minutes, of all instances together and of each alone. Columns of
//! equal length; times are milliseconds since the epoch.

use serde::Serialize;

use crate::{
    engine::request_history::{RequestHistory, RequestSlot, SAMPLE_PERIOD, SampledInstance},
    model::rounded,
};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HistoryEvent {
    /// The width of a slot.
    period_ms: u64,
    all: HistoryColumns,
    instances: Vec<InstanceHistory>,
    /// Entries that were no samples.
    skipped: u64,
}

/// A value for each slot. Durations are null without requests.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct HistoryColumns {
    /// The ends of the slots.
    at: Vec<i64>,
    per_second: Vec<f64>,
    refused_per_second: Vec<f64>,
    failed_per_second: Vec<f64>,
    limited_per_second: Vec<f64>,
    shed_per_second: Vec<f64>,
    p50_ms: Vec<Option<f64>>,
    p95_ms: Vec<Option<f64>>,
    p99_ms: Vec<Option<f64>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct InstanceHistory {
    instance_id: String,
    name: String,
    version: String,
    started_at: i64,
    /// The end of its latest sample.
    sampled_at: i64,
    requests: HistoryColumns,
}

impl From<&[RequestSlot]> for HistoryColumns {
    fn from(slots: &[RequestSlot]) -> Self {
        let rates = |of: fn(&RequestSlot) -> f64| slots.iter().map(of).collect();
        let ms =
            |of: fn(&crate::model::Latency) -> f64| slots.iter().map(|slot| slot.latency.as_ref().map(of)).collect();
        HistoryColumns {
            at: slots.iter().map(|slot| slot.at.0).collect(),
            per_second: rates(|slot| slot.rates.all),
            refused_per_second: rates(|slot| slot.rates.refused),
            failed_per_second: rates(|slot| rounded(slot.rates.failed_otherwise())),
            limited_per_second: rates(|slot| slot.rates.limited),
            shed_per_second: rates(|slot| slot.rates.shed),
            p50_ms: ms(|latency| latency.p50_ms),
            p95_ms: ms(|latency| latency.p95_ms),
            p99_ms: ms(|latency| latency.p99_ms),
        }
    }
}

impl From<&RequestHistory> for HistoryEvent {
    fn from(history: &RequestHistory) -> Self {
        let instance = |SampledInstance { id, name, version, started_at, sampled_at }| InstanceHistory {
            requests: history.slots(Some(&id)).as_slice().into(),
            instance_id: id,
            name,
            version,
            started_at: started_at.0,
            sampled_at: sampled_at.0,
        };
        HistoryEvent {
            period_ms: SAMPLE_PERIOD.as_millis() as u64,
            all: history.slots(None).as_slice().into(),
            instances: history.instances().into_iter().map(instance).collect(),
            skipped: history.skipped(),
        }
    }
}
