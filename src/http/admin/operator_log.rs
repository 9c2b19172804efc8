//! The operator log.

use std::str::FromStr;

use axum::{Json, extract::State};
use chrono_tz::Tz;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::AdminState;
use crate::{
    http::{
        auth::operator::is_operator_name,
        extract::{
            fields::text_field,
            params::{Params, QueryParams},
        },
        openapi::errors::documented_errors,
        page::{Listed, PageParams, PageResponse},
        reply::Found,
    },
    model::{OperatorAction, OperatorLogFilter, Role, UserId},
};

/// The documented routes.
pub fn router() -> OpenApiRouter<AdminState> {
    OpenApiRouter::new().routes(routes!(operator_log))
}

/// The name of an operator, as the log has it.
#[derive(Debug)]
struct OperatorName(String);

impl FromStr for OperatorName {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        if is_operator_name(name) { Ok(OperatorName(name.to_owned())) } else { Err(()) }
    }
}

text_field! { OperatorName, r"^([a-z0-9._-]{1,32}|oidc:[^\u0000-\u001F\u007F-\u009F]{1,255})$" }

#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
struct OperatorLogParams {
    /// 운영자 이름
    #[param(inline)]
    operator: Option<OperatorName>,
}

impl QueryParams for OperatorLogParams {
    fn user(&self) -> Option<UserId> {
        None
    }
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(description = "운영자 작업")]
struct OperatorActionResponse {
    /// 운영자 이름
    operator: String,
    /// 작업할 때의 역할: 서비스나 명령줄의 작업이면 null
    role: Option<Role>,
    /// 작업: 메서드와 경로, 또는 명령
    #[schema(example = "PATCH /admin/v1/coupons/{couponId}")]
    action: String,
    /// 작업 대상
    #[schema(example = "couponId=7")]
    target: String,
    /// 요청이나 명령 결과의 내용(JSON): 길면 줄입니다
    detail: String,
    /// 응답 상태 코드: 명령은 시작하면 202, 끝나면 200, 끝나지 못하면 503
    #[schema(example = 200)]
    status: u16,
    /// 작업 시각
    #[schema(example = "2024-04-04T14:45:00")]
    at: String,
    /// 요청 ID
    request_id: String,
}

impl OperatorActionResponse {
    fn new(action: OperatorAction, zone: Tz) -> Self {
        OperatorActionResponse {
            operator: action.operator,
            role: action.role,
            action: action.action,
            target: action.target,
            detail: action.detail,
            status: action.status,
            at: action.at.local(zone),
            request_id: action.request_id,
        }
    }
}

type OperatorLogResponse = PageResponse<OperatorActionResponse>;

impl Listed for OperatorActionResponse {
    const PAGE: &str = "OperatorLogResponse";
    const DESCRIPTION: &str = "운영자 작업 기록의 한 페이지";
    const CONTENT: &str = "작업 목록";
    const TOTAL: &str = "전체 작업 수";
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
    params(OperatorLogParams, PageParams),
    responses((status = 200, description = "조회 성공", body = OperatorLogResponse), OperatorLogErrors)
)]
async fn operator_log(
    State(AdminState { app, recorder, .. }): State<AdminState>,
    params: Params<OperatorLogParams>,
    page: Params<PageParams>,
) -> Found<OperatorLogResponse> {
    let OperatorLogParams { operator } = params.valid()?;
    let PageParams { page, size } = page.valid()?;
    let operator = operator.map(|OperatorName(name)| name);
    let filter = OperatorLogFilter { operator, page: page.get(), size: size.get() };
    let actions = app.engine.operator_log(&recorder.log, &filter).await?;
    let zone = app.engine.zone();
    Ok(Json(PageResponse::new(actions, |action| OperatorActionResponse::new(action, zone))))
}
