//! The log of recoveries.

use axum::{Json, extract::State};
use chrono_tz::Tz;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::AdminState;
use crate::{
    http::{
        extract::params::Params,
        openapi::errors::documented_errors,
        page::{Listed, PageParams, PageResponse},
        reply::Found,
        state::AppState,
    },
    model::{Recovery, RecoveryOutcome},
};

/// The documented routes.
pub fn router() -> OpenApiRouter<AdminState> {
    OpenApiRouter::new().routes(routes!(recoveries))
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(description = "파티션 복구: Redis가 데이터를 잃은 파티션을 데이터베이스로 다시 만든 기록")]
struct RecoveryResponse {
    /// 복구 ID
    #[schema(example = "019aa0f3-5d2c-7c1e-8a53-0f6f6a1d2b3c")]
    recovery_id: String,
    /// 파티션 번호
    partition: u16,
    /// 시작한 쪽: SERVICE(서비스가 스스로), OPERATOR(운영자가 firstcome rebuild로)
    #[schema(example = "SERVICE")]
    begun_by: &'static str,
    /// 시도 횟수
    attempts: i32,
    /// 파티션이 닫힌 이유
    reason: String,
    /// 결과: RUNNING(진행 중), COMPLETE(유실 없음), WITHHELD(유실됐을 수 있는 결정의 수량을 판매 보류), FAILED(실패)
    #[schema(example = "COMPLETE")]
    outcome: &'static str,
    /// 실패한 이유: 실패하지 않았으면 빈 문자열
    detail: String,
    /// Redis에 있던 마지막 결정 순번: 파티션의 상태를 잃었으면 null
    #[schema(required = true)]
    found_seq: Option<i64>,
    /// 응답까지 나간 것으로 알려진 마지막 결정 순번
    acknowledged_seq: i64,
    /// 데이터베이스에 있던 마지막 결정 순번
    projected_seq: i64,
    /// 유실됐을 수 있는 첫 결정 순번: 유실이 없으면 null
    #[schema(required = true)]
    missing_first_seq: Option<i64>,
    /// 유실됐을 수 있는 마지막 결정 순번: 유실이 없거나 알 수 없으면 null
    #[schema(required = true)]
    missing_last_seq: Option<i64>,
    /// 마지막으로 응답한 결정을 알리지 못하고 끝난 프로세스
    silent_processes: Vec<String>,
    /// 이 파티션에서 판매를 보류한 상품 수량
    withheld_units: i64,
    /// 이 파티션에서 발급을 보류한 쿠폰 수량
    withheld_coupons: i64,
    /// 다시 만드는 단계: prepare(비교), empty(비움), load(되돌려 씀), finish(마무리). 시작 전이면 null
    #[schema(required = true, example = "load")]
    step: Option<String>,
    /// 되돌려 쓴 행 수: 함께 복구하는 모든 파티션의 합
    rows_done: i64,
    /// 되돌려 쓸 행 수의 예상: 아직 알 수 없으면 null
    #[schema(required = true)]
    rows_expected: Option<i64>,
    /// 되돌려 쓰기가 끝날 때까지 남은 시간의 예상(초): 쓰는 중이 아니면 null
    #[schema(required = true)]
    eta_seconds: Option<f64>,
    /// 다시 시작한 세대: 아직 없으면 null
    #[schema(required = true)]
    epoch: Option<i64>,
    /// 유실을 알아챈 시각
    #[schema(example = "2024-04-04T14:45:00")]
    noticed_at: String,
    /// 복구를 시작한 시각
    #[schema(example = "2024-04-04T14:45:01")]
    began_at: String,
    /// 복구가 끝난 시각: 진행 중이면 null
    #[schema(required = true, example = "2024-04-04T14:45:04")]
    ended_at: Option<String>,
    /// 알아챈 때부터 끝날 때까지 걸린 시간(초): 진행 중이면 null
    #[schema(required = true, example = 3.2)]
    seconds: Option<f64>,
}

impl RecoveryResponse {
    fn new(recovery: Recovery, zone: Tz) -> Self {
        let (missing, seconds) = (recovery.missing(), recovery.seconds());
        let running = recovery.outcome == RecoveryOutcome::Running;
        RecoveryResponse {
            recovery_id: recovery.id,
            partition: recovery.partition.0,
            begun_by: recovery.begun_by.as_str(),
            attempts: recovery.attempts,
            reason: recovery.reason,
            outcome: recovery.outcome.as_str(),
            detail: recovery.detail,
            found_seq: recovery.found_seq,
            acknowledged_seq: recovery.acknowledged_seq,
            projected_seq: recovery.projected_seq,
            missing_first_seq: missing.map(|(first, _)| first),
            missing_last_seq: missing.and_then(|(_, last)| last),
            silent_processes: recovery.silent,
            withheld_units: recovery.withheld_units,
            withheld_coupons: recovery.withheld_coupons,
            step: recovery.progress.step,
            rows_done: recovery.progress.rows_done,
            rows_expected: recovery.progress.rows_expected,
            eta_seconds: recovery.progress.eta_seconds.filter(|_| running),
            epoch: recovery.epoch,
            noticed_at: recovery.noticed_at.local(zone),
            began_at: recovery.began_at.local(zone),
            ended_at: recovery.ended_at.map(|at| at.local(zone)),
            seconds,
        }
    }
}

type RecoveryPageResponse = PageResponse<RecoveryResponse>;

impl Listed for RecoveryResponse {
    const PAGE: &str = "RecoveryPageResponse";
    const DESCRIPTION: &str = "파티션 복구 기록의 한 페이지";
    const CONTENT: &str = "복구 목록";
    const TOTAL: &str = "전체 복구 수";
}

documented_errors! { RecoveriesErrors {
    "잘못된 요청 (유효하지 않은 조회 조건)" => [InvalidRequest],
}}

#[utoipa::path(
    get,
    path = "/admin/v1/recoveries",
    operation_id = "recoveries",
    tag = "운영",
    summary = "파티션 복구 기록 조회",
    description = "Redis가 데이터를 잃은 파티션의 복구를 최신순으로 조회합니다: 언제, 왜, 무엇이 유실됐을 수 있고 결과가 무엇인지.",
    params(PageParams),
    responses((status = 200, description = "조회 성공", body = RecoveryPageResponse), RecoveriesErrors)
)]
async fn recoveries(State(app): State<AppState>, page: Params<PageParams>) -> Found<RecoveryPageResponse> {
    let PageParams { page, size } = page.valid()?;
    let recoveries = app.engine.recoveries(page.get(), size.get()).await?;
    let zone = app.engine.zone();
    Ok(Json(PageResponse::new(recoveries, |recovery| RecoveryResponse::new(recovery, zone))))
}
