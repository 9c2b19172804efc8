//! 상태: whether the process lives, and whether it can serve.

use std::num::NonZeroU32;

use axum::{
    Json,
    extract::State,
    http::{HeaderValue, header::RETRY_AFTER},
    response::{IntoResponse, Response},
};
use governor::Quota;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::recent::Recent;
use crate::http::{
    error::{Code, Failure},
    state::AppState,
};

/// This resource's routes.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(healthz)).routes(routes!(readyz))
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(description = "서비스 상태")]
pub struct HealthResponse {
    /// 정상일 때 UP, 처리할 수는 있지만 살펴볼 것이 있을 때 DEGRADED
    #[schema(example = "UP")]
    status: &'static str,
    /// DEGRADED인 이유 목록
    #[serde(skip_serializing_if = "Vec::is_empty")]
    reasons: Vec<String>,
}

const UP: Json<HealthResponse> = Json(HealthResponse { status: "UP", reasons: Vec::new() });

/// Looks at a partition per second at most, of all partitions together: whoever asks in a loop costs Redis no more.
const LOOKS_PER_SECOND: u32 = 200;

/// Whether it can serve, or why not, as found out a moment ago.
pub type Readiness = Recent<Result<(), Vec<String>>>;

/// Nothing is found out yet. `partitions`: how many are looked at each time.
pub fn readiness(partitions: usize) -> Readiness {
    let partitions = u32::try_from(partitions).unwrap_or(u32::MAX).max(1);
    // Between every tenth and every hundredth of a second.
    let rate = NonZeroU32::new((LOOKS_PER_SECOND / partitions).clamp(10, 100)).unwrap_or(NonZeroU32::MIN);
    Recent::new(Quota::per_second(rate))
}

/// The reason of a process that was told to end.
const STOPPING: &str = "stopping";

/// The envelope, and what is missing.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(description = "요청을 처리할 수 없는 이유")]
struct NotReadyResponse {
    /// 오류 코드
    #[schema(example = "SERVICE_UNAVAILABLE")]
    error_code: &'static str,
    /// 오류 메시지
    message: &'static str,
    /// 처리할 수 없는 이유 목록
    reasons: Vec<String>,
}

#[utoipa::path(
    get,
    path = "/healthz",
    tag = "상태",
    summary = "프로세스 생존 확인",
    description = "프로세스가 살아 있으면 항상 200을 반환합니다.",
    responses((status = 200, description = "살아 있음", body = HealthResponse, example = json!({ "status": "UP" })))
)]
pub async fn healthz() -> Json<HealthResponse> {
    UP
}

#[utoipa::path(
    get,
    path = "/readyz",
    tag = "상태",
    summary = "요청 처리 가능 확인",
    description = "요청을 처리할 수 있으면 200, 아니면 이유와 함께 503을 반환합니다. 처리할 수는 있지만 PostgreSQL로의 반영이 멈춰 있으면 \
                   상태는 DEGRADED이고 이유가 함께 있습니다. 종료 중이면 이유는 stopping입니다.",
    responses(
        (status = 200, description = "처리 가능", body = HealthResponse, example = json!({ "status": "UP" })),
        (status = 503, description = "처리 불가", body = NotReadyResponse),
    )
)]
async fn readyz(State(app): State<AppState>) -> Response {
    let ready = match app.stopping.is_cancelled() {
        // What it could do is no matter: whoever balances load is to look elsewhere.
        true => Err(vec![STOPPING.to_owned()]),
        false => {
            let look = async || Ok::<_, std::convert::Infallible>(app.engine.ready().await);
            let Ok(ready) = app.readiness.get(look).await;
            ready
        }
    };
    match ready {
        Ok(()) => match app.engine.projection_stalls() {
            reasons if reasons.is_empty() => UP.into_response(),
            // Requests are served all the same: nobody is to be sent elsewhere for it.
            reasons => Json(HealthResponse { status: "DEGRADED", reasons }).into_response(),
        },
        Err(reasons) => not_ready(reasons),
    }
}

/// 503, and why.
pub fn not_ready(reasons: Vec<String>) -> Response {
    let code = Code::Unavailable;
    let body = NotReadyResponse { error_code: code.as_str(), message: code.message(), reasons };
    let mut response = (code.status(), [(RETRY_AFTER, HeaderValue::from_static("1"))], Json(body)).into_response();
    response.extensions_mut().insert(Failure { code, cause: None });
    response
}
