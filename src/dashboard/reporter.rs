//! Reports of the requests of a process, once per second in PostgreSQL, so that every dashboard shows those of all processes. The
//! report of a process that dies soon is too old to count.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::{
    snapshot::Instance,
    traffic::{Traffic, Window},
};
use crate::{
    engine::Engine,
    model::{Error, RequestSample},
    worker::{Worker, Workers},
};

const REPORT_INTERVAL: Duration = Duration::from_secs(1);
/// How long writing a report may take, and how long the end of the process waits for withdrawing it.
const REPORT_TIMEOUT: Duration = Duration::from_secs(3);
const WITHDRAW_TIMEOUT: Duration = Duration::from_millis(500);
/// Reports between two deletions of reports that dead processes left behind.
const REPORTS_PER_TIDY: u32 = 60;

/// A process and its requests.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ProcessReport {
    pub instance: Instance,
    pub window: Window,
}

impl ProcessReport {
    /// `None` if another version wrote it in another form.
    fn read(text: &str) -> Option<Self> {
        let read = serde_json::from_str(text);
        read.inspect_err(|error| tracing::debug!(%error, "another instance's report can't be read")).ok()
    }
}

/// By name.
pub fn sort(reports: &mut [ProcessReport]) {
    reports.sort_by(|a, b| (&a.instance.name, a.instance.started_at).cmp(&(&b.instance.name, b.instance.started_at)));
}

impl From<&RequestSample> for ProcessReport {
    fn from(sample: &RequestSample) -> Self {
        let RequestSample { instance, name, version, started_at, .. } = sample.clone();
        let instance = Instance { id: instance, name, version, started_at };
        ProcessReport { instance, window: Window::from(sample) }
    }
}

/// Starts to report; the stop withdraws the report.
pub fn keep_reporting(engine: Arc<Engine>, instance: Arc<Instance>, workers: &Workers) {
    let (withdrawing, id) = (engine.clone(), instance.id.clone());
    workers.at_stop(async move {
        log_failure(timeout(WITHDRAW_TIMEOUT, withdrawing.withdraw_requests(Some(&id))).await);
    });
    workers.spawn(Worker::RequestReports, move || report(engine.clone(), instance.clone()));
}

/// Reports every [`REPORT_INTERVAL`], for ever.
async fn report(engine: Arc<Engine>, instance: Arc<Instance>) {
    let (mut traffic, mut ticks) = (Traffic::default(), interval(REPORT_INTERVAL));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for count in 0_u32.. {
        ticks.tick().await;
        let window = traffic.sample(&crate::telemetry::metrics::counted(), Instant::now());
        if count % REPORTS_PER_TIDY == 0 {
            log_failure(timeout(REPORT_TIMEOUT, engine.withdraw_requests(None)).await);
        }
        let Some(window) = window else { continue };
        let report = ProcessReport { instance: Instance::clone(&instance), window };
        if let Ok(report) = serde_json::to_string(&report) {
            log_failure(timeout(REPORT_TIMEOUT, engine.report_requests(&instance.id, &report)).await);
        }
    }
}

/// A missing report is not an error: the dashboards show that PostgreSQL is unavailable.
fn log_failure(written: Result<Result<(), Error>, tokio::time::error::Elapsed>) {
    match written {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "the requests of this instance are not reported"),
        Err(_elapsed) => tracing::debug!("the requests of this instance are not reported in time"),
    }
}

/// The reports of the other processes.
///
/// # Errors
/// [`Error::Unavailable`] while Postgres is.
pub async fn others(engine: &Engine, instance: &Instance) -> Result<Vec<ProcessReport>, Error> {
    let reports = engine.requests_of_others(&instance.id).await?;
    let mut reports: Vec<ProcessReport> = reports.iter().filter_map(|text| ProcessReport::read(text)).collect();
    sort(&mut reports);
    Ok(reports)
}
