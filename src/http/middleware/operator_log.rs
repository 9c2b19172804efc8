//! What operators do, noted for the log of acts: who, what, when, and what came of it.
//!
//! Every request to `/admin` that may change something is noted when it is over, also one that is given up (its outcome is then
//! what its client was told). What was asked for is noted by [`body`](crate::http::extract::write) once it is understood, so that the note has
//! nothing in it that the request's type does not name; what was made, by its handler.

use std::sync::{Arc, Mutex, PoisonError};

use axum::{
    extract::{FromRequestParts, MatchedPath, RawPathParams, Request, State},
    http::request::Parts,
    middleware::Next,
    response::Response,
};
use serde::Serialize;

use crate::{
    engine::OperatorLog,
    http::{auth::operator::Operator, error::Code, reply::Made, request_id::RequestId},
    model::{Clock, OperatorAction},
};

/// Characters kept of what was asked for, and of each part of the path.
const LONGEST_DETAIL: usize = 2000;
const LONGEST_PART: usize = 40;

/// In the extensions of a request whose body is to be noted.
#[derive(Clone, Default)]
pub struct Asked(Arc<Mutex<String>>);

impl Asked {
    /// Notes what is asked for.
    pub fn note(&self, request: &impl Serialize) {
        let json = serde_json::to_string(request).unwrap_or_default();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = shortened(&json, LONGEST_DETAIL);
    }

    fn noted(&self) -> String {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What notes acts.
#[derive(Clone)]
pub struct Notes {
    pub log: Arc<OperatorLog>,
    pub clock: Clock,
}

impl Notes {
    /// Notes that something was done.
    pub fn done(&self, operator: &Operator, act: &str, status: u16, request_id: String) {
        self.log.record(OperatorAction {
            id: id(),
            operator: operator.name().to_owned(),
            action: act.to_owned(),
            target: String::new(),
            detail: String::new(),
            status,
            request_id,
            at: self.clock.now(),
        });
    }
}

/// The layer, under the one that finds out whose the request is.
pub async fn noted(State(notes): State<Notes>, request: Request, next: Next) -> Response {
    let Some(operator) = request.extensions().get::<Operator>().cloned() else { return next.run(request).await };
    if request.method().is_safe() {
        return next.run(request).await;
    }
    let (mut parts, body) = request.into_parts();
    let asked = Asked::default();
    parts.extensions.insert(asked.clone());
    let mut act = Doing { notes, asked, act: Some(begun(&operator, &mut parts).await) };
    let response = next.run(Request::from_parts(parts, body)).await;
    act.over(&response);
    response
}

/// What is known of an act before it is one.
async fn begun(operator: &Operator, parts: &mut Parts) -> OperatorAction {
    let route = parts.extensions.get::<MatchedPath>().map_or("-", MatchedPath::as_str);
    let act = format!("{} {route}", parts.method);
    let target = match RawPathParams::from_request_parts(parts, &()).await {
        Ok(ids) => ids.iter().map(|(name, id)| format!("{name}={}", shortened(id, LONGEST_PART))).collect(),
        Err(_) => Vec::new(),
    };
    OperatorAction {
        id: id(),
        operator: operator.name().to_owned(),
        action: act,
        target: target.join(" "),
        detail: String::new(),
        status: Code::Unavailable.status().as_u16(),
        request_id: RequestId::of(&parts.extensions),
        at: crate::model::Millis(0),
    }
}

/// Under way; where it is given up half way, it is noted all the same.
struct Doing {
    notes: Notes,
    asked: Asked,
    act: Option<OperatorAction>,
}

impl Doing {
    fn over(&mut self, response: &Response) {
        let Some(act) = &mut self.act else { return };
        act.status = response.status().as_u16();
        if let Some(Made(made)) = response.extensions().get() {
            act.target.clone_from(made);
        }
    }
}

impl Drop for Doing {
    fn drop(&mut self) {
        let Some(mut act) = self.act.take() else { return };
        if std::thread::panicking() {
            act.status = Code::Internal.status().as_u16();
        }
        act.detail = self.asked.noted();
        act.at = self.notes.clock.now();
        self.notes.log.record(act);
    }
}

/// Ids in the order of their making, which is nearly that of the acts.
fn id() -> String {
    uuid::Uuid::now_v7().to_string()
}

/// At most so many characters, none of them a control character: paths may have anything in them.
fn shortened(text: &str, most: usize) -> String {
    let printable = text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c });
    let mut short: String = printable.take(most).collect();
    if text.chars().nth(most).is_some() {
        short.push('…');
    }
    short
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn note_shortened_and_printable() {
        assert_eq!(shortened("a\0b\u{9f}", 4), "a\u{fffd}b\u{fffd}");
        assert_eq!(shortened("가나다", 2), "가나…");
        let asked = Asked::default();
        asked.note(&"x".repeat(10_000));
        assert_eq!(asked.noted().chars().count(), LONGEST_DETAIL + 1);
    }
}
