//! The operator log: records who did what, when, and with which outcome.
//!
//! Every request of an operator that may change something is recorded once it ends, also if its client goes away; the recorded
//! outcome is then the 503 of an unfinished request. The [body's extractor](crate::http::extract::write) gives the detail once
//! the body is decoded, so that it has no field that the request's type does not name. The handler names what it created.

use std::sync::Arc;

use axum::{
    extract::{FromRequestParts, MatchedPath, RawPathParams, Request, State},
    http::request::Parts,
    middleware::Next,
    response::Response,
};
use parking_lot::Mutex;
use serde::Serialize;
use uuid::Uuid;

use crate::{
    engine::OperatorLog,
    http::{auth::operator::Operator, error::Code, reply::CreatedResource, request_id::RequestId},
    model::{Clock, Millis, OperatorAction},
};

/// The most characters of a body, and of an id in the path, that are recorded.
const MAX_DETAIL_LEN: usize = 2000;
const MAX_ID_LEN: usize = 40;

/// In the extensions of a recorded request: takes its body.
#[derive(Clone, Default)]
pub struct RequestDetail(Arc<Mutex<String>>);

impl RequestDetail {
    /// Keeps the beginning of a body, as JSON, without the values of these fields.
    pub fn set(&self, body: &impl Serialize, personal: &[&str]) {
        let json = match personal {
            [] => serde_json::to_string(body).unwrap_or_default(),
            personal => {
                let mut body = serde_json::to_value(body).unwrap_or_default();
                for name in personal {
                    if let Some(field) = body.get_mut(*name) {
                        *field = "…".into();
                    }
                }
                body.to_string()
            }
        };
        *self.0.lock() = shortened(&json, MAX_DETAIL_LEN);
    }

    fn take(&self) -> String {
        std::mem::take(&mut self.0.lock())
    }
}

/// Writes to the operator log.
#[derive(Clone)]
pub struct ActionRecorder {
    pub log: Arc<OperatorLog>,
    pub clock: Clock,
}

impl ActionRecorder {
    /// Records an action that has no target and no detail.
    pub fn record(&self, operator: &Operator, action: &str, status: u16, request_id: String) {
        self.log.record(OperatorAction {
            id: new_id(),
            operator: operator.name().to_owned(),
            role: Some(operator.role()),
            action: action.to_owned(),
            target: String::new(),
            detail: String::new(),
            status,
            request_id,
            at: self.clock.now(),
        });
    }
}

/// The layer. Stands inside the layer that authenticates operators.
pub async fn recorded(State(recorder): State<ActionRecorder>, request: Request, next: Next) -> Response {
    let Some(operator) = request.extensions().get::<Operator>().cloned() else { return next.run(request).await };
    if request.method().is_safe() {
        return next.run(request).await;
    }
    let (mut parts, body) = request.into_parts();
    let detail = RequestDetail::default();
    parts.extensions.insert(detail.clone());
    let action = unfinished(&operator, &mut parts).await;
    let mut in_progress = ActionInProgress { recorder, detail, action: Some(action) };
    let response = next.run(Request::from_parts(parts, body)).await;
    in_progress.finish(&response);
    response
}

/// The action of a request that has no reply yet.
async fn unfinished(operator: &Operator, parts: &mut Parts) -> OperatorAction {
    let route = parts.extensions.get::<MatchedPath>().map_or("-", MatchedPath::as_str);
    let action = format!("{} {route}", parts.method);
    let target = match RawPathParams::from_request_parts(parts, &()).await {
        Ok(ids) => ids.iter().map(|(name, id)| format!("{name}={}", shortened(id, MAX_ID_LEN))).collect(),
        Err(_) => Vec::new(),
    };
    OperatorAction {
        id: new_id(),
        operator: operator.name().to_owned(),
        role: Some(operator.role()),
        action,
        target: target.join(" "),
        detail: String::new(),
        status: Code::Unavailable.status().as_u16(),
        request_id: RequestId::of(&parts.extensions),
        at: Millis(0),
    }
}

/// Records its action when it is dropped: also a request that is given up is recorded.
struct ActionInProgress {
    recorder: ActionRecorder,
    detail: RequestDetail,
    action: Option<OperatorAction>,
}

impl ActionInProgress {
    fn finish(&mut self, response: &Response) {
        let Some(action) = &mut self.action else { return };
        action.status = response.status().as_u16();
        if let Some(CreatedResource(created)) = response.extensions().get() {
            action.target.clone_from(created);
        }
    }
}

impl Drop for ActionInProgress {
    fn drop(&mut self) {
        let Some(mut action) = self.action.take() else { return };
        if std::thread::panicking() {
            action.status = Code::Internal.status().as_u16();
        }
        action.detail = self.detail.take();
        action.at = self.recorder.clock.now();
        self.recorder.log.record(action);
    }
}

/// Ids sort by the time of their creation, which is nearly that of the actions.
fn new_id() -> String {
    Uuid::now_v7().to_string()
}

/// The first `max` characters, control characters replaced: a path may have any.
fn shortened(text: &str, max: usize) -> String {
    let printable = text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c });
    let mut short: String = printable.take(max).collect();
    if text.chars().nth(max).is_some() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn detail_shortened_and_printable() {
        assert_eq!(shortened("a\0b\u{9f}", 4), "a\u{fffd}b\u{fffd}");
        assert_eq!(shortened("가나다", 2), "가나…");
        let detail = RequestDetail::default();
        detail.set(&"x".repeat(10_000), &[]);
        assert_eq!(detail.take().chars().count(), MAX_DETAIL_LEN + 1);
        detail.set(&serde_json::json!({ "userName": "이다은", "balance": 7 }), &["userName"]);
        assert_eq!(detail.take(), r#"{"userName":"…","balance":7}"#);
    }
}
