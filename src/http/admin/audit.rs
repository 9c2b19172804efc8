//! The audit of the invariants, and its progress.

use std::{sync::Arc, time::Duration};

use axum::{Json, body::Bytes, extract::State, response::Response};
use chrono_tz::Tz;
use futures_util::{StreamExt, stream};
use serde::Serialize;
use serde_json::json;
use tokio::time::interval;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::AdminState;
use crate::{
    audit::{AuditProgress, AuditReport, Check, Finished, PartitionPositions, RunningAudit},
    http::{
        error::ApiError,
        event_stream::{event, event_stream},
        openapi::errors::documented_errors,
        reply::Found,
    },
    model::Error,
};

/// A long route.
pub const AUDIT_PATH: &str = "/admin/v1/audit";

/// The documented routes.
pub fn router() -> OpenApiRouter<AdminState> {
    OpenApiRouter::new().routes(routes!(audit)).routes(routes!(progress)).routes(routes!(events))
}

/// The interval of the progress in a stream of events.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(description = "장부 감사 결과")]
struct AuditResponse {
    /// 모든 보존 법칙이 지켜지는지 여부
    balanced: bool,
    /// 법칙별 결과
    checks: Vec<CheckResponse>,
    /// 파티션별 현황
    partitions: Vec<AuditedPartitionResponse>,
    /// 감사에 걸린 시간(초)
    seconds: f64,
    /// 감사 시작 시각
    #[schema(example = "2024-04-04T14:45:00")]
    audited_at: String,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(description = "보존 법칙 하나의 결과")]
struct CheckResponse {
    /// 법칙
    name: &'static str,
    /// 지켜지는지 여부
    ok: bool,
    /// 확인한 수, 또는 어긋난 항목과 그 ID
    detail: String,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(description = "감사한 파티션")]
struct AuditedPartitionResponse {
    /// 파티션 번호
    partition: u16,
    /// 세대
    epoch: i64,
    /// 마지막으로 결정된 순번
    decided_seq: i64,
    /// 마지막으로 반영된 순번
    projected_seq: i64,
}

impl From<Check> for CheckResponse {
    fn from(Check { name, ok, detail }: Check) -> Self {
        CheckResponse { name, ok, detail }
    }
}

impl From<PartitionPositions> for AuditedPartitionResponse {
    fn from(PartitionPositions { partition, epoch, decided_seq, projected_seq }: PartitionPositions) -> Self {
        AuditedPartitionResponse { partition, epoch, decided_seq, projected_seq }
    }
}

documented_errors! { AuditErrors {
    "다른 감사가 진행 중" => [RequestInProgress],
}}

impl AuditResponse {
    fn new(report: &AuditReport, zone: Tz) -> Self {
        let AuditReport { balanced, checks, positions, at, seconds, .. } = report;
        AuditResponse {
            balanced: *balanced,
            checks: checks.iter().cloned().map(CheckResponse::from).collect(),
            partitions: positions.iter().copied().map(AuditedPartitionResponse::from).collect(),
            seconds: rounded(*seconds),
            audited_at: at.local(zone),
        }
    }
}

#[derive(Debug, Default, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(description = "장부 감사의 진행 상황")]
struct AuditProgressResponse {
    /// 이 프로세스에서 감사가 진행 중인지 여부: 아니면 나머지는 0, 빈 문자열 또는 null
    running: bool,
    /// 지금 확인하는 법칙
    check: &'static str,
    /// 확인을 마친 법칙 수
    checks: usize,
    /// 비교한 항목 수: 레코드와 Redis 키
    items: i64,
    /// 비교할 항목 수: 아직 알 수 없으면 null
    #[schema(required = true)]
    expected_items: Option<i64>,
    /// 진행률: 0에서 1까지
    #[schema(example = 0.42)]
    share: f64,
    /// 시작한 뒤로 지난 시간(초)
    seconds: f64,
    /// 남은 시간의 예상(초): 아직 알 수 없으면 null
    #[schema(required = true)]
    eta_seconds: Option<f64>,
    /// 시작 시각: 진행 중이 아니면 null
    #[schema(required = true, example = "2024-04-04T14:45:00")]
    began_at: Option<String>,
}

impl AuditProgressResponse {
    fn new(progress: Option<AuditProgress>, zone: Tz) -> Self {
        let Some(progress) = progress else { return AuditProgressResponse::default() };
        let AuditProgress { check, checks, items, expected_items, share, seconds, eta_seconds, began_at } = progress;
        let (share, seconds, eta_seconds) = (rounded(share), rounded(seconds), eta_seconds.map(rounded));
        let (running, began_at) = (true, Some(began_at.local(zone)));
        AuditProgressResponse { running, check, checks, items, expected_items, share, seconds, eta_seconds, began_at }
    }
}

/// Rounded to a thousandth.
fn rounded(number: f64) -> f64 {
    (number * 1000.0).round() / 1000.0
}

#[utoipa::path(
    get,
    path = AUDIT_PATH,
    tag = "운영",
    summary = "장부 감사",
    description = "모든 보존 법칙을 Redis와 PostgreSQL에서 다시 계산하고 서로 비교합니다. 요청을 처리하는 중에도 정확하며, 한 번에 하나만 진행됩니다. \
                   기다리던 클라이언트가 연결을 끊으면 감사도 멈춥니다.",
    responses((status = 200, description = "감사 완료", body = AuditResponse), AuditErrors)
)]
async fn audit(State(AdminState { app, auditor, .. }): State<AdminState>) -> Found<AuditResponse> {
    let finished = auditor.run().await?;
    Ok(Json(AuditResponse::new(&finished.report, app.engine.zone())))
}

#[utoipa::path(
    get,
    path = "/admin/v1/audit/progress",
    operation_id = "auditProgress",
    tag = "운영",
    summary = "장부 감사의 진행 상황 조회",
    description = "이 프로세스에서 진행 중인 감사가 어디까지 왔는지 조회합니다.",
    responses((status = 200, description = "조회 성공", body = AuditProgressResponse))
)]
async fn progress(State(AdminState { app, auditor, .. }): State<AdminState>) -> Json<AuditProgressResponse> {
    Json(AuditProgressResponse::new(auditor.progress(), app.engine.zone()))
}

#[utoipa::path(
    get,
    path = "/admin/v1/audit/events",
    operation_id = "auditEvents",
    tag = "운영",
    summary = "장부 감사를 진행 상황과 함께 실행",
    description = "감사를 시작하고 서버 전송 이벤트(SSE)로 알립니다: 1초마다 `progress`(진행 상황), 끝나면 `report`(감사 결과)나 \
                   `failed`(오류)를 보내고 스트림을 닫습니다. 시간 제한이 없으며, 클라이언트가 연결을 끊으면 감사도 멈춥니다.",
    responses((status = 200, description = "감사 시작", body = String, content_type = "text/event-stream"), AuditErrors)
)]
async fn events(State(AdminState { app, auditor, stopping, .. }): State<AdminState>) -> Result<Response, ApiError> {
    let (running, zone) = (auditor.begin()?, app.engine.zone());
    let events = stream::unfold(Some((running, interval(PROGRESS_INTERVAL))), move |state| async move {
        let (mut running, mut ticks) = state?;
        tokio::select! {
            biased;
            finished = running.finished() => Some((last_event(finished, zone), None)),
            _ = ticks.tick() => Some((progress_event(&running, zone), Some((running, ticks)))),
        }
    });
    // Ends with the process: a stream must not delay a shutdown.
    let events = events.take_until(stopping.cancelled_owned());
    Ok(event_stream(events))
}

fn progress_event(running: &RunningAudit, zone: Tz) -> Bytes {
    event("progress", json!(AuditProgressResponse::new(Some(running.progress()), zone)).to_string().as_bytes())
}

fn last_event(finished: Result<Arc<Finished>, Error>, zone: Tz) -> Bytes {
    match finished {
        Ok(finished) => event("report", json!(AuditResponse::new(&finished.report, zone)).to_string().as_bytes()),
        Err(error) => {
            let code = ApiError::from(error).code();
            event("failed", json!({ "errorCode": code.as_str(), "message": code.message() }).to_string().as_bytes())
        }
    }
}
