//! Sessions: an operator's browser signs in with the token once, and has a cookie from then on.
//!
//! The cookie is `name.expiry.nonce.mac`: whose session it is, until when (epoch ms), a number used once, and an HMAC over the
//! three under the hash of that operator's token. So nothing is kept anywhere: every process that has the same tokens knows
//! its own cookies again, whatever else is away, and another token for an operator ends the sessions begun with the old one.
//!
//! Signing out clears the cookie, and this process remembers the session as over. Other processes don't hear of it: whoever
//! had copied the cookie could use it there until it expires, within eight hours, or until the token is changed.
//!
//! The cookie alone opens what only shows something ([`session_only`]); `/admin` also asks for a header that no other site
//! can send ([`FROM_PAGE`](super::auth::FROM_PAGE)). The token is never in a URL and never in the cookie.

use std::{
    collections::HashMap,
    num::NonZeroU32,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use axum::{
    Json, Router,
    extract::{Request, State},
    http::{
        HeaderMap, HeaderValue, StatusCode,
        header::{AUTHORIZATION, CACHE_CONTROL, COOKIE, SET_COOKIE},
    },
    middleware::Next,
    response::{IntoResponse, Response},
    routing::post,
};
use chrono_tz::Tz;
use governor::{DefaultDirectRateLimiter, Quota};
use ring::{
    hmac,
    rand::{SecureRandom, SystemRandom},
};
use serde::{Deserialize, Serialize};

use super::{
    AppState,
    auth::{FROM_PAGE, Known, Operator, Operators, bearer, run_as},
    body::{RequestBody, Write},
    decode::text,
    edge::RequestId,
    error::{ApiError, Code},
};
use crate::{
    domain::{Clock, Error, Millis, UserId},
    metrics,
};

/// The cookie's name.
pub const COOKIE_NAME: &str = "firstcome_ops";
/// How long a session lasts.
const LIFE_SECONDS: i64 = 8 * 60 * 60;
/// The longest cookie that is looked at: a name of 32, and what follows it.
const LONGEST_COOKIE: usize = 160;
/// Cookies of our name that are looked at: a sibling domain may have set another one.
const MOST_COOKIES: usize = 4;
/// Sessions remembered as over. Only a real one gets there, so it takes as many sign-ins to fill it.
const MOST_SIGNED_OUT: usize = 10_000;
/// Sign-ins a second, of everybody, after a burst.
const SIGN_INS_PER_SECOND: NonZeroU32 = NonZeroU32::new(5).unwrap();
const SIGN_INS_AT_ONCE: NonZeroU32 = NonZeroU32::new(20).unwrap();

/// What signing in and out answer.
const DONE: StatusCode = StatusCode::NO_CONTENT;

/// Sees who is an operator.
pub struct Sessions {
    operators: Operators,
    clock: Clock,
    /// Browsers send the cookie over https alone.
    secure: bool,
    /// Slows down whoever guesses. Right tokens count too: otherwise a guess would be told from a right token by not being
    /// slowed down.
    attempts: DefaultDirectRateLimiter,
    /// Nonces of sessions that were signed out of, and when they would have expired.
    over: Mutex<HashMap<String, Millis>>,
    failed: AtomicU64,
    limited: AtomicU64,
}

/// A session that is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Whose it is.
    pub operator: Operator,
    /// The first instant at which it is no more.
    pub expires_at: Millis,
    nonce: String,
}

/// Sign-ins that failed so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Failures {
    /// With a token that is nobody's.
    pub wrong: u64,
    /// Not looked at: too many at a time.
    pub limited: u64,
}

impl Sessions {
    /// `secure`: browsers send the cookie over https alone.
    pub fn new(operators: Operators, clock: Clock, secure: bool) -> Self {
        Sessions {
            operators,
            clock,
            secure,
            attempts: DefaultDirectRateLimiter::direct(
                Quota::per_second(SIGN_INS_PER_SECOND).allow_burst(SIGN_INS_AT_ONCE),
            ),
            over: Mutex::default(),
            failed: AtomicU64::default(),
            limited: AtomicU64::default(),
        }
    }

    /// Whose request to `/admin` one with these headers is, if any operator's: by its token, else by its session.
    pub fn operator(&self, headers: &HeaderMap) -> Option<Operator> {
        if headers.contains_key(AUTHORIZATION) {
            return self.operators.with_token(bearer(headers)?).map(|known| known.operator.clone());
        }
        if headers.get(FROM_PAGE).is_none_or(|value| value != "1") {
            return None;
        }
        self.session(headers).map(|session| session.operator)
    }

    /// The open session of the cookie among these headers.
    pub fn session(&self, headers: &HeaderMap) -> Option<Session> {
        let lines = headers.get_all(COOKIE).iter().filter_map(|line| line.to_str().ok());
        let pairs = lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
        let ours = pairs.filter(|(name, _)| *name == COOKIE_NAME).map(|(_, value)| value);
        ours.take(MOST_COOKIES).find_map(|value| self.read(value))
    }

    /// Sign-ins that failed so far.
    pub fn failures(&self) -> Failures {
        Failures { wrong: self.failed.load(Ordering::Relaxed), limited: self.limited.load(Ordering::Relaxed) }
    }

    /// A new session for whoever has this token.
    fn sign_in(&self, token: &str) -> Result<(Session, String), ApiError> {
        if self.attempts.check().is_err() {
            self.limited.fetch_add(1, Ordering::Relaxed);
            metrics::RATE_LIMITED.with_label_values(&["operator"]).inc();
            return Err(Code::TooManyRequests.into());
        }
        let Some(known) = self.operators.with_token(token.trim().as_bytes()) else {
            self.failed.fetch_add(1, Ordering::Relaxed);
            return Err(Code::Unauthorized.into());
        };
        let mut nonce = [0; 16];
        SystemRandom::new().fill(&mut nonce).map_err(|_| Error::Internal(anyhow::anyhow!("no random numbers")))?;
        let (expires_at, nonce) = (self.clock.now().plus(LIFE_SECONDS * 1000), hex(&nonce));
        let cookie = seal(known, expires_at, &nonce);
        Ok((Session { operator: known.operator.clone(), expires_at, nonce }, cookie))
    }

    /// The session that a cookie's value is, while it is open.
    fn read(&self, cookie: &str) -> Option<Session> {
        if cookie.len() > LONGEST_COOKIE {
            return None;
        }
        // From the right: a name may have dots.
        let (sealed, mac) = cookie.rsplit_once('.')?;
        let (rest, nonce) = sealed.rsplit_once('.')?;
        let (name, expiry) = rest.rsplit_once('.')?;
        let known = self.operators.named(name)?;
        hmac::verify(&known.seal(), sealed.as_bytes(), &unhex(mac)?).ok()?;
        let expires_at = Millis(expiry.parse().ok()?);
        let open = self.clock.now() < expires_at && !self.signed_out().contains_key(nonce);
        open.then(|| Session { operator: known.operator.clone(), expires_at, nonce: nonce.to_owned() })
    }

    fn sign_out(&self, session: &Session) {
        let now = self.clock.now();
        let mut over = self.signed_out();
        if over.len() >= MOST_SIGNED_OUT {
            over.retain(|_, expires_at| *expires_at > now);
        }
        if over.len() >= MOST_SIGNED_OUT {
            // The one that would end first anyway.
            let next = over.iter().min_by_key(|(_, expires_at)| **expires_at).map(|(nonce, _)| nonce.clone());
            next.map(|nonce| over.remove(&nonce));
        }
        over.insert(session.nonce.clone(), session.expires_at);
    }

    fn signed_out(&self) -> std::sync::MutexGuard<'_, HashMap<String, Millis>> {
        self.over.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What makes a browser keep the cookie so long, or forget it.
    fn set_cookie(&self, value: &str, seconds: i64) -> Option<HeaderValue> {
        let secure = if self.secure { "; Secure" } else { "" };
        let cookie = format!("{COOKIE_NAME}={value}; HttpOnly; SameSite=Strict; Path=/; Max-Age={seconds}{secure}");
        HeaderValue::try_from(cookie).ok()
    }
}

fn seal(known: &Known, expires_at: Millis, nonce: &str) -> String {
    let sealed = format!("{}.{}.{nonce}", known.operator.name(), expires_at.0);
    let mac = hmac::sign(&known.seal(), sealed.as_bytes());
    format!("{sealed}.{}", hex(mac.as_ref()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(digits: &str) -> Option<Vec<u8>> {
    let pair = |pair: &[u8]| {
        // Lower case alone, as it is written: one spelling of each cookie.
        let digit = |byte: u8| char::from(byte).to_digit(16).filter(|_| !byte.is_ascii_uppercase());
        let [high, low] = pair else { return None };
        u8::try_from(digit(*high)? * 16 + digit(*low)?).ok()
    };
    digits.as_bytes().chunks(2).map(pair).collect()
}

/// Lets through who has a session, whatever else; for what only shows something. The session goes with the request, as
/// [`Session`] and [`Operator`].
pub async fn session_only(
    State(sessions): State<Arc<Sessions>>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let session = sessions.session(request.headers()).ok_or(Code::Unauthorized)?;
    let operator = session.operator.clone();
    request.extensions_mut().insert(session);
    Ok(run_as(operator, request, next).await)
}

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
async fn sign_in(State(app): State<AppState>, Write { call, body: token }: Write<SignInRequest>) -> Response {
    match app.sessions.sign_in(&token) {
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
    if let Some(cookie) = sessions.set_cookie(value, seconds) {
        response.headers_mut().insert(SET_COOKIE, cookie);
    }
    operator.map(|operator| response.extensions_mut().insert(operator));
    response
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use crate::config::{OperatorsConfig, Secret};

    const START: Millis = Millis(1_772_427_600_000);

    fn sessions(named: &str, clock: &Clock) -> Sessions {
        let config = OperatorsConfig { admin_tokens: Some(Secret::new(named)), ..OperatorsConfig::admin("right") };
        Sessions::new(Operators::new(&config).unwrap(), clock.clone(), false)
    }

    fn with(cookies: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for cookie in cookies {
            headers.append(COOKIE, HeaderValue::from_str(cookie).unwrap());
        }
        headers
    }

    fn opens(sessions: &Sessions, cookie: &str) -> bool {
        sessions.session(&with(&[&format!("{COOKIE_NAME}={cookie}")])).is_some()
    }

    #[test]
    fn a_session_lasts_eight_hours_in_every_process_with_the_same_tokens() {
        let clock = Clock::standing(START);
        let (here, there) = (sessions("k.1:0123456789abcdef", &clock), sessions("k.1:0123456789abcdef", &clock));
        let (session, cookie) = here.sign_in(" 0123456789abcdef ").unwrap();
        assert_eq!((session.operator.name(), session.expires_at), ("k.1", START.plus(8 * 3_600_000)));
        assert!(!cookie.contains("0123456789abcdef"));
        for process in [&here, &there] {
            let found = process.session(&with(&["a=b; x", &format!("c=d; {COOKIE_NAME}={cookie}; e=f")])).unwrap();
            assert_eq!(found, session);
        }
        clock.advance(8 * 3_600_000 - 1);
        assert!(opens(&there, &cookie));
        clock.advance(1);
        assert!(!opens(&there, &cookie));
    }

    #[test]
    fn another_token_ends_what_was_begun_with_the_old_one_and_nobody_else_s() {
        let clock = Clock::standing(START);
        let before = sessions("kim:0123456789abcdef", &clock);
        let (admin, kim) = (before.sign_in("right").unwrap().1, before.sign_in("0123456789abcdef").unwrap().1);
        let after = sessions("kim:another-0123456789", &clock);
        assert!(opens(&after, &admin) && !opens(&after, &kim));
    }

    #[test]
    fn what_was_changed_opens_nothing() {
        let clock = Clock::standing(START);
        let sessions = sessions("kim:0123456789abcdef", &clock);
        let (_, cookie) = sessions.sign_in("0123456789abcdef").unwrap();
        assert!(opens(&sessions, &cookie));
        for at in 0..cookie.len() {
            let mut changed = cookie.clone().into_bytes();
            changed[at] = if changed[at] == b'0' { b'1' } else { b'0' };
            assert!(!opens(&sessions, &String::from_utf8(changed).unwrap()), "{at}");
            assert!(!opens(&sessions, &cookie[..at]), "{at}");
        }
        let (sealed, mac) = cookie.rsplit_once('.').unwrap();
        for wrong in [
            format!("{cookie}0"),
            format!("{cookie}00"),
            format!("{sealed}.{}", mac.replace(['a', 'b', 'c', 'd', 'e', 'f'], "A")),
            cookie.replacen("kim", "admin", 1),
            format!("{sealed}."),
            "...".to_owned(),
            ".".repeat(200),
            "kim.+1.0.00".to_owned(),
        ] {
            assert!(!opens(&sessions, &wrong), "{wrong}");
        }
    }

    #[test]
    fn another_cookie_of_the_name_is_in_nobody_s_way() {
        let sessions = sessions("", &Clock::standing(START));
        let (_, cookie) = sessions.sign_in("right").unwrap();
        let (ours, theirs) = (format!("{COOKIE_NAME}={cookie}"), format!("{COOKIE_NAME}=theirs"));
        assert!(sessions.session(&with(&[&theirs, &ours])).is_some());
        assert!(sessions.session(&with(&[&format!("{theirs}; {ours}")])).is_some());
        assert!(sessions.session(&with(&[&[theirs.as_str(); MOST_COOKIES].join(";"), &ours])).is_none());
    }

    #[test]
    fn an_operator_has_a_token_or_a_session_and_the_page_s_header() {
        let sessions = sessions("", &Clock::standing(START));
        let (_, cookie) = sessions.sign_in("right").unwrap();
        let mut headers = with(&[&format!("{COOKIE_NAME}={cookie}")]);
        assert_eq!(sessions.operator(&headers), None, "a form of another site has the cookie");
        headers.insert(FROM_PAGE, HeaderValue::from_static("0"));
        assert_eq!(sessions.operator(&headers), None);
        headers.insert(FROM_PAGE, HeaderValue::from_static("1"));
        assert_eq!(sessions.operator(&headers).unwrap().name(), "admin");
        headers.insert(AUTHORIZATION, HeaderValue::from_static("Bearer wrong"));
        assert_eq!(sessions.operator(&headers), None, "what was said first counts");
        headers.insert(AUTHORIZATION, HeaderValue::from_static("Bearer right"));
        headers.remove(COOKIE);
        assert!(sessions.operator(&headers).is_some());
    }

    #[test]
    fn signing_out_is_remembered_up_to_a_bound() {
        let clock = Clock::standing(START);
        let sessions = sessions("", &clock);
        let (session, cookie) = sessions.sign_in("right").unwrap();
        sessions.sign_out(&session);
        assert!(!opens(&sessions, &cookie));
        clock.advance(1);
        let later =
            |n: usize| Session { expires_at: session.expires_at.plus(1), nonce: n.to_string(), ..session.clone() };
        for n in 0..MOST_SIGNED_OUT + 10 {
            sessions.sign_out(&later(n));
        }
        assert_eq!(sessions.signed_out().len(), MOST_SIGNED_OUT);
        assert!(!sessions.signed_out().contains_key(&session.nonce), "it ends before the others");
        clock.advance(9 * 3_600_000);
        sessions.sign_out(&Session { expires_at: clock.now().plus(1), nonce: "new".to_owned(), ..session });
        assert_eq!(sessions.signed_out().len(), 1);
    }

    #[test]
    fn guessing_is_slowed_down_whatever_is_guessed() {
        let sessions = sessions("", &Clock::standing(START));
        let answers: Vec<Code> = (0..200).filter_map(|_| sessions.sign_in("wrong").err()).map(|e| e.code()).collect();
        let wrong = answers.iter().filter(|code| **code == Code::Unauthorized).count();
        assert!(wrong >= 20 && answers.contains(&Code::TooManyRequests), "{answers:?}");
        let failures = sessions.failures();
        assert_eq!((failures.wrong, failures.wrong + failures.limited), (wrong as u64, 200));
    }
}
