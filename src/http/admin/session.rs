//! Signing in and out of the dashboard.

use axum::{
    Json, Router,
    extract::{Request, State},
    http::{
        HeaderMap, HeaderValue, StatusCode,
        header::{CACHE_CONTROL, SET_COOKIE},
    },
    response::{IntoResponse, Response},
    routing::post,
};
use chrono_tz::Tz;
use serde::{Deserialize, Serialize};

use crate::{
    http::{
        auth::{
            operator::Operator,
            session::{COOKIE_PATHS, LIFE_SECONDS, Sessions},
        },
        error::{ApiError, Code},
        extract::{
            decode::text,
            write::{RequestBody, Write},
        },
        limits::Client,
        request_id::RequestId,
        state::AppState,
    },
    model::UserId,
};

/// What signing in and out answer.
const DONE: StatusCode = StatusCode::NO_CONTENT;

/// Signing in and out: for the page, so not in the API's document.
pub fn router() -> Router<AppState> {
    Router::new().route("/ops/session", post(sign_in).get(session).delete(sign_out))
}

#[derive(Deserialize, Serialize)]
struct SignInRequest {
    #[serde(deserialize_with = "text::<_, 1_000>")]
    token: String,
}

impl RequestBody for SignInRequest {
    type Valid = String;

    const INVALID: Code = Code::InvalidRequest;
    const SECRET: bool = true;

    fn validate(self, _zone: Tz) -> Option<String> {
        Some(self.token)
    }

    fn user(_: &Self::Valid) -> Option<UserId> {
        None
    }
}

/// Only as JSON, which no other site's form can send.
async fn sign_in(
    State(app): State<AppState>,
    Client(client): Client,
    Write { call, body: token }: Write<SignInRequest>,
) -> Response {
    match app.sessions.sign_in(&token, client) {
        Ok((session, cookie)) => {
            app.notes.done(&session.operator, "POST /ops/session", DONE.as_u16(), call.request_id);
            with_cookie(&app.sessions, Some(session.operator), &cookie, LIFE_SECONDS)
        }
        Err(refused) => refused.into_response(),
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SessionResponse<'a> {
    operator: &'a str,
    /// Epoch ms.
    expires_at: i64,
}

async fn session(State(app): State<AppState>, headers: HeaderMap) -> Result<Response, ApiError> {
    let session = app.sessions.session(&headers).ok_or(Code::Unauthorized)?;
    let shown = SessionResponse { operator: session.operator.name(), expires_at: session.expires_at.0 };
    Ok(([(CACHE_CONTROL, "no-store")], Json(shown)).into_response())
}

/// Also clears a cookie that opens nothing.
async fn sign_out(State(app): State<AppState>, request: Request) -> Response {
    let session = app.sessions.session(request.headers());
    if let Some(session) = &session {
        app.sessions.sign_out(session);
        let request_id = RequestId::of(request.extensions());
        app.notes.done(&session.operator, "DELETE /ops/session", DONE.as_u16(), request_id);
    }
    with_cookie(&app.sessions, session.map(|session| session.operator), "", 0)
}

fn with_cookie(sessions: &Sessions, operator: Option<Operator>, value: &str, seconds: i64) -> Response {
    let mut response = DONE.into_response();
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    for cookie in COOKIE_PATHS.iter().filter_map(|path| sessions.set_cookie(value, path, seconds)) {
        response.headers_mut().append(SET_COOKIE, cookie);
    }
    operator.map(|operator| response.extensions_mut().insert(operator));
    response
}
