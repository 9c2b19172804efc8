//! 상태: `/healthz` and `/readyz`.

use std::{convert::Infallible, num::NonZeroU32, sync::Arc};

use axum::{
    Json,
    extract::State,
    http::{HeaderValue, header::RETRY_AFTER},
    response::{IntoResponse, Response},
};
use governor::Quota;
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::recent::Recent;
use crate::{
    engine::Engine,
    http::error::{Code, Failure},
};

/// The state of these routes.
#[derive(Clone)]
pub struct HealthState {
    engine: Arc<Engine>,
    /// The result of the last check.
    readiness: Arc<Recent<Result<Vec<String>, Vec<String>>>>,
    /// Cancelled once the process is to end: it is not ready from then on.
    stopping: CancellationToken,
}

impl HealthState {
    /// `partitions`: each check asks so many.
    pub fn new(engine: Arc<Engine>, partitions: usize, stopping: CancellationToken) -> Self {
        let partitions = u32::try_from(partitions).unwrap_or(u32::MAX).max(1);
        let per_second = (PARTITION_CHECKS_PER_SECOND / partitions).clamp(10, 100);
        let quota = Quota::per_second(NonZeroU32::new(per_second).unwrap_or(NonZeroU32::MIN));
        HealthState { engine, readiness: Arc::new(Recent::new(quota)), stopping }
    }

    /// What needs attention while requests are served.
    fn attention(&self) -> Vec<String> {
        let mut reasons = self.engine.projection_stalls();
        reasons.extend(self.engine.missing_replicas());
        reasons
    }

    async fn check(&self) -> Result<Vec<String>, Vec<String>> {
        let check = async || Ok::<_, Infallible>(self.engine.ready().await);
        let Ok(ready) = self.readiness.get(check).await;
        ready
    }
}

/// The documented routes.
pub fn routes() -> OpenApiRouter<HealthState> {
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

/// The most partitions that checks ask per second, at ten to a hundred checks per second: more requests to `/readyz` cost Redis
/// no more.
const PARTITION_CHECKS_PER_SECOND: u32 = 200;

/// The reason of a process that is to end.
const STOPPING: &str = "stopping";

/// The envelope of errors, with the reasons.
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
    description = "요청을 처리할 수 있으면 200, 아니면 이유와 함께 503을 반환합니다. 처리할 수는 있지만 일부 파티션이 결정하지 못하거나, \
                   PostgreSQL로의 반영이 멈춰 있거나, Redis 복제본이 부족하면 상태는 DEGRADED이고 이유가 함께 있습니다. 종료 중이면 이유는 stopping입니다.",
    responses(
        (status = 200, description = "처리 가능", body = HealthResponse, example = json!({ "status": "UP" })),
        (status = 503, description = "처리 불가", body = NotReadyResponse),
    )
)]
async fn readyz(State(health): State<HealthState>) -> Response {
    if health.stopping.is_cancelled() {
        // Balancers use another process, even if the check succeeds.
        return not_ready(vec![STOPPING.to_owned()]);
    }
    match health.check().await {
        Ok(closed) => match [closed, health.attention()].concat() {
            reasons if reasons.is_empty() => UP.into_response(),
            // Still 200: requests are served.
            reasons => Json(HealthResponse { status: "DEGRADED", reasons }).into_response(),
        },
        Err(reasons) => not_ready(reasons),
    }
}

/// 503, with the reasons.
pub fn not_ready(reasons: Vec<String>) -> Response {
    let code = Code::Unavailable;
    let body = NotReadyResponse { error_code: code.as_str(), message: code.message(), reasons };
    let mut response = (code.status(), [(RETRY_AFTER, HeaderValue::from_static("1"))], Json(body)).into_response();
    response.extensions_mut().insert(Failure { code, cause: None });
    response
}
