//! The events of other systems.

use std::{
    str::FromStr,
    time::{Duration, Instant},
};

use axum::{Extension, Json, extract::State};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::AdminState;
use crate::{
    http::{
        error::{ApiError, Code},
        extract::{
            decode::parsed,
            fields::{Bounded, text_field},
            params::{Params, QueryParams},
        },
        openapi::errors::documented_errors,
        reply::Waited,
    },
    model::{
        Error, UserId,
        public_event::{CloudEvent, EventQuery, EventStart, EventType},
    },
};

/// The path, which may wait.
pub const EVENTS_PATH: &str = "/admin/v1/events";

/// How long a reader waits in a process that is to end: it comes back at once, mostly to the same process while that still serves.
const MAX_WAIT_AT_STOP: Duration = Duration::from_secs(1);

/// The documented routes.
pub fn router() -> OpenApiRouter<AdminState> {
    OpenApiRouter::new().routes(routes!(events))
}

/// Types of events, separated by commas.
#[derive(Debug, Default)]
struct EventTypes(Vec<String>);

impl FromStr for EventTypes {
    type Err = ();

    fn from_str(names: &str) -> Result<Self, ()> {
        let named = |name: &str| EventType::ALL.iter().find(|kind| kind.as_str() == name).ok_or(());
        let kinds = names.split(',').map(|name| named(name).map(|kind| kind.as_str().to_owned()));
        kinds.collect::<Result<_, ()>>().map(EventTypes)
    }
}

text_field! { EventTypes, r"^[a-z]+\.[a-z]+(,[a-z]+\.[a-z]+)*$" }

impl FromStr for EventStart {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "latest" => Ok(EventStart::Latest),
            cursor => cursor.parse().map(EventStart::At).map_err(|_| ()),
        }
    }
}

text_field! { EventStart, r"^(latest|[0-9]+~[0-9]+-[0-9]+(-[0-9]+)?(_[0-9]+-[0-9]+(-[0-9]+)?)*)$" }

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct EventParams {
    /// 이 위치 다음의 이벤트: 앞선 응답의 next 값, 또는 지금부터는 latest. 없으면 보관된 처음부터
    #[param(inline)]
    after: Option<EventStart>,
    /// 이벤트 종류: 쉼표로 구분합니다. 없으면 모두
    #[serde(default)]
    #[param(inline)]
    types: Option<EventTypes>,
    /// 최대 이벤트 수
    #[serde(default = "default_limit", deserialize_with = "parsed")]
    #[param(inline, default = 100)]
    limit: Bounded<1, 1000>,
    /// 이벤트가 없을 때 기다리는 시간(초). 프로세스마다 64개 요청까지 기다리고, 그 밖의 요청에는 바로 응답합니다
    #[serde(default, deserialize_with = "parsed")]
    #[param(inline, default = 0)]
    wait: Bounded<0, 30>,
}

fn default_limit() -> Bounded<1, 1000> {
    const { Bounded::constant(100) }
}

impl QueryParams for EventParams {
    fn user(&self) -> Option<UserId> {
        None
    }
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(description = "이벤트 목록: 파티션마다 결정된 순서입니다")]
struct EventsResponse {
    /// 이벤트 목록
    events: Vec<CloudEvent>,
    /// 다음 요청의 after 값
    #[schema(example = "0~1-42")]
    next: String,
    /// 바로 조회할 수 있는 이벤트가 더 있으면 true
    more: bool,
}

documented_errors! { EventsErrors {
    "잘못된 요청 (유효하지 않은 조회 조건)" => [InvalidRequest],
    "이벤트 보관이 꺼져 있음" => [EventsOff],
    "after 다음의 이벤트가 더는 보관되지 않음" => [EventsExpired],
}}

#[utoipa::path(
    get,
    path = "/admin/v1/events",
    operation_id = "events",
    tag = "운영",
    summary = "이벤트 조회",
    description = "모든 결정을 CloudEvents 형식으로, 파티션마다 빠짐없이 순서대로 조회합니다. 응답의 next를 다음 요청의 after로 보냅니다.",
    params(EventParams),
    responses((status = 200, description = "조회 성공", body = EventsResponse), EventsErrors)
)]
async fn events(
    State(admin): State<AdminState>,
    params: Params<EventParams>,
) -> Result<(Extension<Waited>, Json<EventsResponse>), ApiError> {
    let EventParams { after, types, limit, wait } = params.valid()?;
    if !admin.projector.keeps_events() {
        return Err(Code::EventsOff.into());
    }
    let EventTypes(kinds) = types.unwrap_or_default();
    let query = EventQuery { after: after.unwrap_or(EventStart::Oldest), kinds, limit: limit.get() };
    let engine = &admin.app.engine;
    let wait = Duration::from_secs(wait.get().unsigned_abs());
    let began = Instant::now();
    let stopping = async {
        admin.stopping.cancelled().await;
        tokio::time::sleep(MAX_WAIT_AT_STOP).await;
    };
    let (page, waited) = tokio::select! {
        page = engine.await_events(query.clone(), wait) => page?,
        // The process is to end: the reader comes back to another one.
        () = stopping => {
            let waited = began.elapsed();
            (engine.events(query, Duration::ZERO).await?, waited)
        }
    };
    let store = engine.store_identity().await?;
    let events = page.events.into_iter().map(|event| event.into_cloud_event(store));
    let events = events.collect::<Result<_, _>>().map_err(|error| Error::Internal(error.into()))?;
    let reply = EventsResponse { events, next: page.next.to_string(), more: page.has_more };
    Ok((Extension(Waited(waited)), Json(reply)))
}
