//! The audit of the invariants.

use axum::{Json, extract::State};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::AdminState;
use crate::{
    audit::{AuditReport, Check, PartitionPositions},
    http::{openapi::errors::documented_errors, reply::Found},
};

/// A long route.
pub const AUDIT_PATH: &str = "/admin/v1/audit";

/// The documented routes.
pub fn router() -> OpenApiRouter<AdminState> {
    OpenApiRouter::new().routes(routes!(audit))
}

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

#[utoipa::path(
    get,
    path = AUDIT_PATH,
    tag = "운영",
    summary = "장부 감사",
    description = "모든 보존 법칙을 Redis와 PostgreSQL에서 다시 계산하고 서로 비교합니다. 요청을 처리하는 중에도 정확하며, 한 번에 하나만 진행됩니다.",
    responses((status = 200, description = "감사 완료", body = AuditResponse), AuditErrors)
)]
async fn audit(State(AdminState { app, auditor, .. }): State<AdminState>) -> Found<AuditResponse> {
    let finished = auditor.run().await?;
    let AuditReport { balanced, checks, positions, at, seconds, .. } = &finished.report;
    Ok(Json(AuditResponse {
        balanced: *balanced,
        checks: checks.iter().cloned().map(CheckResponse::from).collect(),
        partitions: positions.iter().copied().map(AuditedPartitionResponse::from).collect(),
        seconds: (seconds * 1000.0).round() / 1000.0,
        audited_at: at.local(app.engine.zone()),
    }))
}
