//! The state of the projection.

use axum::{Json, extract::State};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::AdminState;
use crate::{
    http::{reply::Found, state::AppState},
    model::{PartitionStatus, ProjectionStatus},
};

/// The documented routes.
pub fn router() -> OpenApiRouter<AdminState> {
    OpenApiRouter::new().routes(routes!(projection))
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(description = "데이터베이스 반영 현황")]
struct ProjectionResponse {
    /// 아직 반영되지 않은 이벤트 수
    lag_events: i64,
    /// 그중 가장 오래된 이벤트의 나이(초)
    lag_seconds: f64,
    /// 반영되지 않은 이벤트의 한도: 넘으면 쓰기 요청에 503을 반환합니다
    max_backlog: i64,
    /// 반영할 수 없어 따로 보관된 이벤트 수
    dead_letters: i64,
    /// 파티션별 현황
    partitions: Vec<PartitionResponse>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(description = "파티션의 데이터베이스 반영 현황")]
struct PartitionResponse {
    /// 파티션 번호
    partition: u16,
    /// 세대
    epoch: i64,
    /// 마지막으로 결정된 순번
    decided_seq: i64,
    /// 마지막으로 반영된 순번
    projected_seq: i64,
    /// 가장 오래된 미반영 이벤트의 나이(초)
    lag_seconds: f64,
    /// 반영할 수 없어 따로 보관된 이벤트 수
    dead_letters: i64,
}

impl From<ProjectionStatus> for ProjectionResponse {
    fn from(status: ProjectionStatus) -> Self {
        ProjectionResponse {
            lag_events: status.lag_events,
            lag_seconds: status.lag_seconds,
            max_backlog: status.max_backlog,
            dead_letters: status.dead_letters,
            partitions: status.partitions.into_iter().map(PartitionResponse::from).collect(),
        }
    }
}

impl From<PartitionStatus> for PartitionResponse {
    fn from(status: PartitionStatus) -> Self {
        PartitionResponse {
            partition: status.partition,
            epoch: status.epoch,
            decided_seq: status.decided_seq,
            projected_seq: status.projected_seq,
            lag_seconds: status.lag_seconds,
            dead_letters: status.dead_letters,
        }
    }
}

#[utoipa::path(
    get,
    path = "/admin/v1/projection",
    tag = "운영",
    summary = "데이터베이스 반영 현황 조회",
    description = "결정된 이벤트가 데이터베이스에 얼마나 반영되었는지 조회합니다.",
    responses((status = 200, description = "반영 현황 조회 성공", body = ProjectionResponse))
)]
async fn projection(State(app): State<AppState>) -> Found<ProjectionResponse> {
    Ok(Json(app.engine.projection().await?.into()))
}
