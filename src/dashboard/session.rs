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

use super::Dashboard;
use crate::{
    http::{
        auth::{
            operator::Operator,
            session::{COOKIE_PATHS, SESSION_TTL_SECONDS, Session, Sessions},
        },
        error::{ApiError, Code},
        extract::{
            fields::Text,
            write::{RequestBody, Write},
        },
        limits::Client,
        request_id::RequestId,
    },
    model::{Role, UserId},
};

/// The status of signing in and of signing out.
const DONE: StatusCode = StatusCode::NO_CONTENT;

/// The routes. They belong to the page and are not in the API's document.
pub fn router() -> Router<Dashboard> {
    Router::new().route("/ops/session", post(sign_in).get(session).delete(sign_out))
}

#[derive(Deserialize, Serialize)]
struct SignInRequest {
    token: Text<1_000>,
}

impl RequestBody for SignInRequest {
    type Valid = String;

    const INVALID: Code = Code::InvalidRequest;
    const SECRET: bool = true;

    fn validate(self, _zone: Tz) -> Option<String> {
        Some(self.token.into())
    }

    fn user(_: &Self::Valid) -> Option<UserId> {
        None
    }
}

/// Takes JSON only, which no form of another site can send.
async fn sign_in(
    State(Dashboard { sessions, recorder, .. }): State<Dashboard>,
    Client(client): Client,
    Write { call, body: token }: Write<SignInRequest>,
) -> Response {
    match sessions.sign_in(&token, client) {
        Ok((session, cookie)) => {
            recorder.record(&session.operator, "POST /ops/session", DONE.as_u16(), call.request_id);
            with_cookie(&sessions, Some(session.operator), &cookie, SESSION_TTL_SECONDS)
        }
        Err(refused) => refused.into_response(),
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SessionResponse<'a> {
    operator: &'a str,
    role: Role,
    /// Epoch ms.
    expires_at: i64,
}

async fn session(
    State(Dashboard { sessions, .. }): State<Dashboard>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let session = sessions.session(&headers).ok_or(Code::Unauthorized)?;
    let Session { operator, expires_at, .. } = &session;
    let shown = SessionResponse { operator: operator.name(), role: operator.role(), expires_at: expires_at.0 };
    Ok(([(CACHE_CONTROL, "no-store")], Json(shown)).into_response())
}

/// Clears the cookie also if it opens no session.
async fn sign_out(State(Dashboard { sessions, recorder, .. }): State<Dashboard>, request: Request) -> Response {
    let session = sessions.session(request.headers());
    if let Some(session) = &session {
        sessions.sign_out(session);
        let request_id = RequestId::of(request.extensions());
        recorder.record(&session.operator, "DELETE /ops/session", DONE.as_u16(), request_id);
    }
    with_cookie(&sessions, session.map(|session| session.operator), "", 0)
}

fn with_cookie(sessions: &Sessions, operator: Option<Operator>, value: &str, seconds: i64) -> Response {
    let mut response = DONE.into_response();
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    for cookie in cookies(sessions, value, seconds) {
        response.headers_mut().append(SET_COOKIE, cookie);
    }
    operator.map(|operator| response.extensions_mut().insert(operator));
    response
}

/// The headers that make a browser keep the cookie of a new session.
pub fn session_cookies(sessions: &Sessions, value: &str) -> impl Iterator<Item = HeaderValue> {
    cookies(sessions, value, SESSION_TTL_SECONDS)
}

fn cookies(sessions: &Sessions, value: &str, seconds: i64) -> impl Iterator<Item = HeaderValue> {
    COOKIE_PATHS.iter().filter_map(move |path| sessions.set_cookie(value, path, seconds))
}
