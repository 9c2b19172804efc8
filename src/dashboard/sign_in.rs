//! Signing in with the company's account: the browser goes to the identity provider and comes back.
//!
//! Whatever happens, the browser ends at the page, which has a sentence for each reason. The log has the details. (A client that is
//! refused too often is answered 429, and is not in the log.)

use std::net::IpAddr;

use axum::{
    Json, Router,
    extract::{Request, State},
    http::{
        HeaderValue, StatusCode,
        header::{CACHE_CONTROL, LOCATION, SET_COOKIE},
    },
    response::{IntoResponse, Response},
    routing::get,
};
use serde::Serialize;

use super::{Dashboard, session::session_cookies};
use crate::{
    http::{
        auth::sign_in::{NotSignedIn, ProviderSignIn},
        error::{ApiError, Code},
        limits::Client,
        request_id::RequestId,
    },
    oidc::{AuthorizationReply, CALLBACK_PATH},
    telemetry::metrics,
};

/// The routes. They belong to the page and are not in the API's document.
pub fn router() -> Router<Dashboard> {
    Router::new()
        .route("/ops/sign-in", get(ways))
        .route("/ops/oidc", get(begin))
        .route("/ops/oidc/callback", get(complete))
}

/// How operators may sign in.
#[derive(Serialize)]
struct WaysResponse {
    token: bool,
    oidc: bool,
}

async fn ways(State(Dashboard { sessions, .. }): State<Dashboard>) -> impl IntoResponse {
    let ways = WaysResponse { token: sessions.has_tokens(), oidc: sessions.provider().is_some() };
    ([(CACHE_CONTROL, "no-store")], Json(ways))
}

/// Sends the browser to the identity provider.
async fn begin(
    State(dashboard): State<Dashboard>,
    Client(client): Client,
    request: Request,
) -> Result<Response, ApiError> {
    let sign_in = dashboard.sessions.provider().ok_or(Code::NotFound)?;
    Ok(match sign_in.begin(request.headers(), request.uri()).await {
        Ok((url, cookie)) => redirect(url.as_str(), [cookie]),
        Err(refused) => back(sign_in, &refused.into(), client)?,
    })
}

/// Opens a session for the browser that the identity provider sends back.
async fn complete(
    State(Dashboard { sessions, recorder, .. }): State<Dashboard>,
    Client(client): Client,
    request: Request,
) -> Result<Response, ApiError> {
    let sign_in = sessions.provider().ok_or(Code::NotFound)?;
    let (state, reply) = parameters(request.uri().query().unwrap_or_default());
    let completed = sign_in.complete(request.headers(), request.uri(), &state, reply, client).await;
    let operator = match completed {
        Ok(operator) => operator,
        Err(refused) => return back(sign_in, &refused, client),
    };
    let (session, cookie) = sessions.sign_in_account(operator)?;
    metrics::ACCOUNT_SIGN_INS.with_label_values(&["signed_in"]).inc();
    let request_id = RequestId::of(request.extensions());
    recorder.record(&session.operator, &format!("GET {CALLBACK_PATH}"), StatusCode::SEE_OTHER.as_u16(), request_id);
    let cookies = session_cookies(&sessions, &cookie);
    let mut response = redirect("/ops", cookies.chain([sign_in.set_cookie("", 0)]));
    response.extensions_mut().insert(session.operator);
    Ok(response)
}

/// The state and the rest of what the provider sends. A parameter that comes twice counts for nothing.
fn parameters(query: &str) -> (String, AuthorizationReply) {
    let once = |name: &str| {
        let mut values = form_urlencoded::parse(query.as_bytes()).filter(|(key, _)| key == name);
        let value = values.next().map(|(_, value)| value.into_owned());
        value.filter(|_| values.next().is_none())
    };
    let reply = AuthorizationReply { code: once("code"), issuer: once("iss"), error: once("error") };
    (once("state").unwrap_or_default(), reply)
}

/// Sends the browser to the page, which says why it is not signed in.
fn back(sign_in: &ProviderSignIn, refused: &NotSignedIn, client: IpAddr) -> Result<Response, ApiError> {
    let reason = refused.reason();
    metrics::ACCOUNT_SIGN_INS.with_label_values(&[reason]).inc();
    sign_in.admit_refused(client)?;
    match refused {
        NotSignedIn::Refused(error) => {
            tracing::warn!(reason, %client, %error, "a sign-in with a company's account is refused")
        }
        NotSignedIn::Limited => tracing::warn!(reason, %client, "a sign-in with a company's account is not judged"),
    }
    Ok(redirect(&format!("/ops#sign-in-{reason}"), [sign_in.set_cookie("", 0)]))
}

fn redirect(to: &str, cookies: impl IntoIterator<Item = HeaderValue>) -> Response {
    let Ok(location) = HeaderValue::try_from(to) else { return ApiError::from(Code::Internal).into_response() };
    let mut response = StatusCode::SEE_OTHER.into_response();
    let headers = response.headers_mut();
    headers.insert(LOCATION, location);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    for cookie in cookies {
        headers.append(SET_COOKIE, cookie);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{oidc::SignInError, telemetry::metrics::state::Observed};

    #[test]
    fn refusal_has_sentence_and_metric() {
        let text = || "x".to_owned();
        let errors = [
            SignInError::State,
            SignInError::Denied(text()),
            SignInError::Unavailable(text()),
            SignInError::Code(text()),
            SignInError::Token("x"),
            SignInError::Issuer,
            SignInError::Audience,
            SignInError::Expired("x"),
            SignInError::Nonce,
            SignInError::Role(text(), text()),
            SignInError::Name(text()),
        ];
        let exported = metrics::text(&Observed::default()).unwrap();
        for refused in errors.into_iter().map(NotSignedIn::Refused).chain([NotSignedIn::Limited]) {
            let reason = refused.reason();
            let sentence = format!("    'signIn.refused.{reason}': '");
            let sentences = include_str!("assets/messages.js").matches(&sentence).count();
            assert_eq!(sentences, 2, "{reason}: Korean and English");
            let metric = format!("firstcome_account_sign_ins_total{{outcome=\"{reason}\"}} ");
            assert!(exported.contains(&metric), "{metric}");
        }
    }

    #[test]
    fn parameter_counts_for_nothing_when_repeated() {
        let (state, reply) = parameters("code=a%20b&state=s&iss=https%3A%2F%2Fid.example&error=x&error=y");
        assert_eq!((state.as_str(), reply.code.as_deref(), reply.error), ("s", Some("a b"), None));
        assert_eq!(reply.issuer.as_deref(), Some("https://id.example"));
        assert_eq!(parameters("state=a&state=a").0, "");
        assert_eq!(parameters("").0, "");
    }
}
