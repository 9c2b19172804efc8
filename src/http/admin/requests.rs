//! The requests of the last fifteen minutes.

use std::str::FromStr;

use axum::{Json, extract::State};
use chrono_tz::Tz;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use super::AdminState;
use crate::{
    engine::request_history::{RequestHistory, RequestSlot, SAMPLE_PERIOD, SampledInstance},
    http::{
        extract::{
            fields::text_field,
            params::{Params, QueryParams},
        },
        openapi::errors::documented_errors,
        reply::Found,
        state::AppState,
    },
    model::{UserId, rounded},
};

/// The documented routes.
pub fn router() -> OpenApiRouter<AdminState> {
    OpenApiRouter::new().routes(routes!(requests))
}

/// The id of a process.
#[derive(Debug)]
struct InstanceId(String);

impl FromStr for InstanceId {
    type Err = ();

    fn from_str(id: &str) -> Result<Self, ()> {
        let is_id = Uuid::try_parse(id).is_ok_and(|parsed| parsed.to_string() == id);
        if is_id { Ok(InstanceId(id.to_owned())) } else { Err(()) }
    }
}

text_field! { InstanceId, r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$" }

#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
struct RequestHistoryParams {
    /// 인스턴스 ID: 없으면 모든 인스턴스의 합
    #[param(inline)]
    instance_id: Option<InstanceId>,
}

impl QueryParams for RequestHistoryParams {
    fn user(&self) -> Option<UserId> {
        None
    }
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(description = "지난 15분의 요청: /ops의 요청은 세지 않습니다")]
struct RequestHistoryResponse {
    /// 구간의 길이(초)
    #[schema(example = 5)]
    period_seconds: u64,
    /// 구간별 요청, 오래된 순: 아무 인스턴스도 알리지 않은 구간은 없습니다
    slots: Vec<RequestSlotResponse>,
    /// 15분 동안의 오류 코드별 응답 수, 많은 순
    refusals: Vec<RefusalCountResponse>,
    /// 15분 안에 요청을 알린 인스턴스, 이름순, 최대 64개
    instances: Vec<SampledInstanceResponse>,
    /// 읽을 수 없어 건너뛴 표본 수
    skipped_samples: u64,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(description = "한 구간의 요청")]
struct RequestSlotResponse {
    /// 구간이 끝난 시각
    #[schema(example = "2024-04-04T14:45:00")]
    at: String,
    /// 초당 요청 수
    per_second: f64,
    /// 초당 거절 수: 429를 뺀 4xx
    refused_per_second: f64,
    /// 초당 실패 수: 과부하로 돌려보낸 것을 뺀 5xx
    failed_per_second: f64,
    /// 초당 요청 제한 초과 수: 429
    limited_per_second: f64,
    /// 과부하로 돌려보낸 초당 요청 수
    shed_per_second: f64,
    /// 응답 시간의 중앙값(ms): 요청이 없으면 null
    #[schema(required = true, example = 1.2)]
    p50_ms: Option<f64>,
    /// 응답 시간의 95번째 백분위수(ms): 요청이 없으면 null
    #[schema(required = true, example = 3.4)]
    p95_ms: Option<f64>,
    /// 응답 시간의 99번째 백분위수(ms): 요청이 없으면 null
    #[schema(required = true, example = 8.1)]
    p99_ms: Option<f64>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(description = "오류 코드별 응답 수")]
struct RefusalCountResponse {
    /// 오류 코드
    #[schema(example = "COUPON_OUT_OF_STOCK")]
    error_code: String,
    /// 응답 수
    count: u64,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(description = "지난 15분 안에 요청을 알린 인스턴스")]
struct SampledInstanceResponse {
    /// 인스턴스 ID: 프로세스를 시작할 때마다 다릅니다
    #[schema(example = "019aa0f3-5d2c-7c1e-8a53-0f6f6a1d2b3c")]
    instance_id: String,
    /// 이름: 호스트와 포트
    #[schema(example = "shop-1:8080")]
    name: String,
    /// 버전
    #[schema(example = "0.2.0")]
    version: String,
    /// 시작한 시각
    #[schema(example = "2024-04-04T09:00:00")]
    started_at: String,
    /// 마지막으로 요청을 알린 시각
    #[schema(example = "2024-04-04T14:45:00")]
    sampled_at: String,
}

impl RequestHistoryResponse {
    fn new(history: &RequestHistory, instance: Option<&str>, zone: Tz) -> Self {
        let slot = |RequestSlot { at, rates, latency }| RequestSlotResponse {
            at: at.local(zone),
            per_second: rates.all,
            refused_per_second: rates.refused,
            failed_per_second: rounded(rates.failed_otherwise()),
            limited_per_second: rates.limited,
            shed_per_second: rates.shed,
            p50_ms: latency.map(|latency| latency.p50_ms),
            p95_ms: latency.map(|latency| latency.p95_ms),
            p99_ms: latency.map(|latency| latency.p99_ms),
        };
        let sampled = |SampledInstance { id, name, version, started_at, sampled_at }| SampledInstanceResponse {
            instance_id: id,
            name,
            version,
            started_at: started_at.local(zone),
            sampled_at: sampled_at.local(zone),
        };
        let refusals = history.refusals(instance).into_iter();
        RequestHistoryResponse {
            period_seconds: SAMPLE_PERIOD.as_secs(),
            slots: history.slots(instance).into_iter().map(slot).collect(),
            refusals: refusals.map(|(error_code, count)| RefusalCountResponse { error_code, count }).collect(),
            instances: history.instances().into_iter().map(sampled).collect(),
            skipped_samples: history.skipped(),
        }
    }
}

documented_errors! { RequestHistoryErrors {
    "잘못된 요청 (유효하지 않은 조회 조건)" => [InvalidRequest],
}}

#[utoipa::path(
    get,
    path = "/admin/v1/requests",
    operation_id = "requestHistory",
    tag = "운영",
    summary = "지난 15분의 요청 조회",
    description = "모든 인스턴스가 지난 15분 동안 받은 요청을 5초 구간으로 조회합니다: 요청 수, 거절과 실패, 응답 시간. 인스턴스 하나만 볼 수도 있고, \
                   끝난 인스턴스도 15분 동안 남습니다. 응답 시간은 히스토그램을 합쳐 구합니다.",
    params(RequestHistoryParams),
    responses((status = 200, description = "조회 성공", body = RequestHistoryResponse), RequestHistoryErrors)
)]
async fn requests(State(app): State<AppState>, params: Params<RequestHistoryParams>) -> Found<RequestHistoryResponse> {
    let RequestHistoryParams { instance_id } = params.valid()?;
    let history = app.engine.request_history().await?;
    let instance = instance_id.as_ref().map(|id| id.0.as_str());
    Ok(Json(RequestHistoryResponse::new(&history, instance, app.engine.zone())))
}
