//! Reads the operator log.

use axum::{Json, extract::State};
use chrono_tz::Tz;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    http::{
        auth::operator::Operator,
        extract::{
            decode::{optional_word, query_int},
            params::{LAST_PAGE, Params, QueryParams, default_size},
        },
        openapi::documented_errors,
        reply::Found,
        state::AppState,
    },
    model::{OperatorAction, OperatorLogFilter, OperatorLogPage, UserId},
};

/// This resource's routes.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(operator_log))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
struct OperatorLogParams {
    /// 운영자 이름
    #[serde(default, deserialize_with = "optional_word")]
    #[param(value_type = Option<String>, pattern = "^[a-z0-9._-]{1,32}$", nullable = false)]
    operator: Option<Operator>,
    /// 페이지 번호 (0부터)
    #[serde(default, deserialize_with = "query_int::<_, 0, LAST_PAGE>")]
    #[param(minimum = 0, maximum = 10000, default = 0)]
    page: i64,
    /// 페이지 크기
    #[serde(default = "default_size", deserialize_with = "query_int::<_, 1, 100>")]
    #[param(minimum = 1, maximum = 100, default = 20)]
    size: i64,
}

impl QueryParams for OperatorLogParams {
    fn user(&self) -> Option<UserId> {
        None
    }
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(description = "운영자 작업 기록의 한 페이지")]
struct OperatorLogResponse {
    /// 작업 목록
    content: Vec<OperatorActionResponse>,
    /// 페이지 번호 (0부터)
    page: i64,
    /// 페이지 크기
    size: i64,
    /// 전체 작업 수
    total_elements: i64,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(description = "운영자 작업")]
struct OperatorActionResponse {
    /// 운영자 이름
    operator: String,
    /// 작업: 메서드와 경로
    #[schema(example = "PATCH /admin/v1/coupons/{couponId}")]
    action: String,
    /// 작업 대상
    #[schema(example = "couponId=7")]
    target: String,
    /// 요청 내용(JSON): 길면 줄입니다
    detail: String,
    /// 응답 상태 코드
    #[schema(example = 200)]
    status: u16,
    /// 작업 시각
    #[schema(example = "2024-04-04T14:45:00")]
    at: String,
    /// 요청 ID
    request_id: String,
}

impl OperatorLogResponse {
    fn new(page: OperatorLogPage, zone: Tz) -> Self {
        let entry = |entry: OperatorAction| OperatorActionResponse {
            operator: entry.operator,
            action: entry.action,
            target: entry.target,
            detail: entry.detail,
            status: entry.status,
            at: entry.at.local(zone),
            request_id: entry.request_id,
        };
        let content = page.actions.into_iter().map(entry).collect();
        OperatorLogResponse { content, page: page.page, size: page.size, total_elements: page.total }
    }
}

documented_errors! { OperatorLogErrors {
    "잘못된 요청 (유효하지 않은 조회 조건)" => [InvalidRequest],
}}

#[utoipa::path(
    get,
    path = "/admin/v1/operator-log",
    operation_id = "operatorLog",
    tag = "운영",
    summary = "운영자 작업 기록 조회",
    description = "운영자가 한 작업을 최신순으로 조회합니다: 누가, 무엇을, 언제 했고 결과가 무엇인지.",
    params(OperatorLogParams),
    responses((status = 200, description = "조회 성공", body = OperatorLogResponse), OperatorLogErrors)
)]
async fn operator_log(State(app): State<AppState>, params: Params<OperatorLogParams>) -> Found<OperatorLogResponse> {
    let OperatorLogParams { operator, page, size } = params.valid()?;
    let filter = OperatorLogFilter { operator: operator.map(|operator| operator.name().to_owned()), page, size };
    let entries = app.engine.operator_log(&app.notes.log, &filter).await?;
    Ok(Json(OperatorLogResponse::new(entries, app.engine.zone())))
}
