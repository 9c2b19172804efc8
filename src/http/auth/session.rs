//! Sessions: an operator's browser signs in once, with the token or with the company's account, and has a cookie from then on.
//!
//! The cookie is `subject.expiry.nonce.mac`: the operator, the end of the session (epoch ms), a random number, and an HMAC over the
//! three. Of a token's operator the subject is the name, and the HMAC is under the hash of the token; the role is the one that the
//! configuration gives now. Of a company's account the subject is `oidc:role:name`, the name in hexadecimal digits, and the HMAC is
//! under a key of the client's secret at the identity provider ([`derived_key`]). No store has sessions: every process with the same
//! secrets verifies the cookies of all, and a new token for an operator, or a new client secret, ends the sessions of the old one.
//!
//! Signing out clears the cookie, and this process rejects the session from then on. Other processes do not: a copy of the cookie
//! is valid there until it expires, within eight hours, or until the token changes.
//!
//! The cookie alone opens what only shows something ([`session_only`](super::require::session_only)). `/admin` also requires a header
//! that no other site can send ([`CSRF_HEADER`]). The token is never in a URL and never in the cookie.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use axum::http::{
    HeaderMap, HeaderValue,
    header::{AUTHORIZATION, COOKIE},
};
use ring::{
    hmac,
    rand::{SecureRandom, SystemRandom},
};

use super::{
    operator::{Operator, Operators, PROVIDER_PREFIX, bearer},
    sign_in::{ProviderSignIn, derived_key},
    spent::SpentIds,
};
use crate::{
    config::OperatorsConfig,
    http::{
        error::{ApiError, Code},
        headers::CSRF_HEADER,
        limits::Limits,
    },
    model::{Clock, Error, Millis},
    oidc::IdentityProvider,
};

/// The name of the cookie.
pub const COOKIE_NAME: &str = "firstcome_ops";
/// The paths to which browsers send the cookie: the dashboard and the operators' API.
pub const COOKIE_PATHS: [&str; 2] = ["/ops", "/admin"];
/// The duration of a session.
pub const SESSION_TTL_SECONDS: i64 = 8 * 60 * 60;
/// Longer cookies are not read: a name has 32 characters, or 510 digits; the rest is bounded.
const MAX_COOKIE_LEN: usize = 680;

/// Authenticates operators.
pub struct Sessions {
    operators: Operators,
    /// Signs operators in with the company's accounts, and the key of their sessions; `None` without an identity provider.
    provider: Option<(ProviderSignIn, hmac::Key)>,
    clock: Clock,
    /// Browsers send the cookie over HTTPS only.
    secure: bool,
    /// Slow down guesses.
    limits: Arc<Limits>,
    /// The nonces of signed-out sessions.
    signed_out: SpentIds,
    failed: AtomicU64,
    limited: AtomicU64,
}

/// An open session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    pub operator: Operator,
    /// The first instant after the session.
    pub expires_at: Millis,
    nonce: String,
}

/// Sign-ins that failed so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Failures {
    /// With a wrong token.
    pub wrong: u64,
    /// Not judged, because the client had too many wrong ones.
    pub limited: u64,
}

impl Sessions {
    /// `secure`: browsers send the cookie over HTTPS only. `limits` bound the guesses of a client.
    pub fn new(operators: Operators, clock: Clock, secure: bool, limits: Arc<Limits>) -> Self {
        Sessions {
            operators,
            provider: None,
            clock,
            secure,
            limits,
            signed_out: SpentIds::default(),
            failed: AtomicU64::default(),
            limited: AtomicU64::default(),
        }
    }

    /// The sessions of the operators that `config` describes.
    ///
    /// # Errors
    /// Unusable tokens, or an identity provider that is described incompletely. The message does not contain a secret.
    pub fn of(config: &OperatorsConfig, clock: Clock, limits: Arc<Limits>) -> anyhow::Result<Self> {
        let operators = Operators::new(config)?;
        let provider = IdentityProvider::new(&config.oidc, clock.clone())?;
        Ok(Sessions::new(operators, clock, config.ops_cookie_secure, limits).with_provider(provider))
    }

    /// The same, with the accounts of this provider.
    fn with_provider(self, provider: Option<Arc<IdentityProvider>>) -> Self {
        let (clock, limits) = (self.clock.clone(), self.limits.clone());
        let provider = provider.map(|provider| {
            let key = derived_key(&provider, "session");
            (ProviderSignIn::new(provider, clock, self.secure, limits), key)
        });
        Sessions { provider, ..self }
    }

    /// Signs operators in with the company's accounts; `None` without an identity provider.
    pub fn provider(&self) -> Option<&ProviderSignIn> {
        self.provider.as_ref().map(|(sign_in, _)| sign_in)
    }

    /// The operator of a request to `/admin` with these headers: by its token, else by its session.
    ///
    /// # Errors
    /// 401: there is none. 429: the client has guessed wrong too often, and its token was not judged.
    pub fn operator(&self, headers: &HeaderMap, client: IpAddr) -> Result<Operator, ApiError> {
        if headers.contains_key(AUTHORIZATION) {
            let token = bearer(headers).ok_or(Code::Unauthorized)?;
            let credential = self.limits.judge(client, || self.operators.with_token(token))?;
            return Ok(credential.operator.clone());
        }
        let has_csrf_header = headers.get(CSRF_HEADER).is_some_and(|value| value == "1");
        let session = if has_csrf_header { self.session(headers) } else { None };
        Ok(session.ok_or(Code::Unauthorized)?.operator)
    }

    /// The open session of these headers' cookie.
    pub fn session(&self, headers: &HeaderMap) -> Option<Session> {
        let lines = headers.get_all(COOKIE).iter().filter_map(|line| line.to_str().ok());
        let pairs = lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
        let mut ours = pairs.filter(|(name, _)| *name == COOKIE_NAME).map(|(_, value)| value);
        // All cookies of the name, of which a head holds a few hundred: a page of a sibling domain may have set others that
        // browsers send first.
        ours.find_map(|value| self.read(value))
    }

    /// Whether any operator has a token.
    pub fn has_tokens(&self) -> bool {
        !self.operators.is_empty()
    }

    /// Sign-ins that failed so far.
    pub fn failures(&self) -> Failures {
        Failures { wrong: self.failed.load(Ordering::Relaxed), limited: self.limited.load(Ordering::Relaxed) }
    }

    /// A new session of the operator with this token, and its cookie.
    ///
    /// # Errors
    /// As [`operator`](Sessions::operator).
    pub fn sign_in(&self, token: &str, client: IpAddr) -> Result<(Session, String), ApiError> {
        let judged = self.limits.judge(client, || self.operators.with_token(token.trim().as_bytes()));
        let credential = judged.inspect_err(|refused| {
            let count = if refused.code() == Code::TooManyRequests { &self.limited } else { &self.failed };
            count.fetch_add(1, Ordering::Relaxed);
        })?;
        let operator = &credential.operator;
        self.open(operator.clone(), operator.name(), &credential.session_key())
    }

    /// A new session of an operator whom the identity provider named, and its cookie.
    ///
    /// # Errors
    /// There is no provider.
    pub fn sign_in_account(&self, operator: Operator) -> Result<(Session, String), ApiError> {
        let (Some((_, key)), Some(account)) = (&self.provider, operator.name().strip_prefix(PROVIDER_PREFIX)) else {
            return Err(Code::Unauthorized.into());
        };
        let subject = format!("{PROVIDER_PREFIX}{}:{}", operator.role(), hex::encode(account));
        self.open(operator, &subject, key)
    }

    fn open(&self, operator: Operator, subject: &str, key: &hmac::Key) -> Result<(Session, String), ApiError> {
        let mut nonce = [0; 16];
        SystemRandom::new().fill(&mut nonce).map_err(|_| Error::Internal(anyhow::anyhow!("no random numbers")))?;
        let (expires_at, nonce) = (self.clock.now().plus(SESSION_TTL_SECONDS * 1000), hex::encode(nonce));
        let payload = format!("{subject}.{}.{nonce}", expires_at.0);
        let mac = hex::encode(hmac::sign(key, payload.as_bytes()));
        Ok((Session { operator, expires_at, nonce }, format!("{payload}.{mac}")))
    }

    /// The operator of a cookie's subject, and the key that signed the cookie.
    fn signatory(&self, subject: &str) -> Option<(Operator, hmac::Key)> {
        let Some(account) = subject.strip_prefix(PROVIDER_PREFIX) else {
            let credential = self.operators.named(subject)?;
            return Some((credential.operator.clone(), credential.session_key()));
        };
        let (role, name) = account.split_once(':')?;
        let name = String::from_utf8(hex::decode(name).ok()?).ok()?;
        Some((Operator::of_provider(&name, role.parse().ok()?), self.provider.as_ref()?.1.clone()))
    }

    /// The open session of a cookie's value.
    fn read(&self, cookie: &str) -> Option<Session> {
        if cookie.len() > MAX_COOKIE_LEN {
            return None;
        }
        // From the right: a name may have dots.
        let (payload, mac) = cookie.rsplit_once('.')?;
        let (rest, nonce) = payload.rsplit_once('.')?;
        let (subject, expiry) = rest.rsplit_once('.')?;
        let expires_at = Millis(expiry.parse().ok()?);
        // Before the HMAC, which costs more.
        if self.clock.now() >= expires_at {
            return None;
        }
        // One spelling of each cookie.
        if mac.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return None;
        }
        let (operator, key) = self.signatory(subject)?;
        hmac::verify(&key, payload.as_bytes(), &hex::decode(mac).ok()?).ok()?;
        let open = !self.signed_out.has(nonce);
        open.then(|| Session { operator, expires_at, nonce: nonce.to_owned() })
    }

    /// Ends a session in this process.
    pub fn sign_out(&self, session: &Session) {
        self.signed_out.spend(&session.nonce, session.expires_at, self.clock.now());
    }

    /// The header that makes a browser keep the cookie for `seconds`, or forget it for 0.
    pub fn set_cookie(&self, value: &str, path: &str, seconds: i64) -> Option<HeaderValue> {
        let secure = if self.secure { "; Secure" } else { "" };
        let cookie =
            format!("{COOKIE_NAME}={value}; HttpOnly; SameSite=Strict; Path={path}; Max-Age={seconds}{secure}");
        HeaderValue::try_from(cookie).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::{LimitsConfig, OidcConfig, Secret},
        http::auth::spent::MAX_SPENT,
        model::Role,
    };

    const RIGHT: &str = "the-right-token-01";
    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
    const START: Millis = Millis(1_772_427_600_000);

    fn sessions(named: &str, clock: &Clock) -> Sessions {
        let config = OperatorsConfig { admin_tokens: Some(Secret::new(named)), ..OperatorsConfig::admin(RIGHT) };
        let limits = Arc::new(Limits::new(&LimitsConfig::off()));
        Sessions::new(Operators::new(&config).unwrap(), clock.clone(), false, limits)
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
    fn session_valid_eight_hours_in_every_process() {
        let clock = Clock::standing(START);
        let (here, there) = (sessions("k.1:0123456789abcdef", &clock), sessions("k.1:0123456789abcdef", &clock));
        let (session, cookie) = here.sign_in(" 0123456789abcdef ", HERE).unwrap();
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

    /// Sessions with an identity provider that knows this secret.
    fn with_provider(secret: &str, clock: &Clock) -> Sessions {
        let config = OidcConfig {
            ops_oidc_issuer: Some("https://id.example".to_owned()),
            ops_oidc_client_id: Some("firstcome".to_owned()),
            ops_oidc_client_secret: Some(Secret::new(secret)),
            ..OidcConfig::default()
        };
        let provider = IdentityProvider::new(&config, clock.clone()).unwrap();
        sessions("kim:0123456789abcdef", clock).with_provider(provider)
    }

    #[test]
    fn session_of_account_has_its_role_until_secret_changes() {
        let clock = Clock::standing(START);
        let (here, there) = (with_provider("secret-0123456789", &clock), with_provider("secret-0123456789", &clock));
        for (name, role) in
            [("kim@shop.example", Role::Viewer), ("김.a.1", Role::Admin), (&"x".repeat(255), Role::Operator)]
        {
            let (session, cookie) = here.sign_in_account(Operator::of_provider(name, role)).unwrap();
            assert_eq!((session.operator.name(), session.operator.role()), (format!("oidc:{name}").as_str(), role));
            let headers = with(&[&format!("{COOKIE_NAME}={cookie}")]);
            assert_eq!(there.session(&headers).as_ref(), Some(&session));
            assert!(opens(&here, &cookie) && !opens(&here, &cookie.replacen("oidc:", "", 1)));
            let promoted = cookie.replacen(&format!(":{role}:"), ":admin:", 1);
            assert_eq!(opens(&here, &promoted), promoted == cookie);
            assert!(!opens(&with_provider("secret-9876543210", &clock), &cookie));
            assert!(!opens(&sessions("", &clock), &cookie), "without a provider");
            there.sign_out(&session);
            assert!(!opens(&there, &cookie) && opens(&here, &cookie));
        }
        let token = Operator::named("kim", Role::Admin);
        assert!(here.sign_in_account(token.clone()).is_err());
        assert!(sessions("", &clock).sign_in_account(Operator::of_provider("kim", Role::Admin)).is_err());
        // A session of a token is not one of an account, and the other way round.
        let (_, of_token) = here.sign_in("0123456789abcdef", HERE).unwrap();
        let (_, of_account) = here.sign_in_account(Operator::of_provider("kim", Role::Admin)).unwrap();
        for (cookie, subject) in [(&of_token, "oidc:admin:6b696d"), (&of_account, "kim")] {
            let rest = cookie.split_once('.').unwrap().1;
            assert!(opens(&here, cookie) && !opens(&here, &format!("{subject}.{rest}")));
        }
    }

    #[test]
    fn session_ends_when_its_token_changes() {
        let clock = Clock::standing(START);
        let before = sessions("kim:0123456789abcdef", &clock);
        let (admin, kim) =
            (before.sign_in(RIGHT, HERE).unwrap().1, before.sign_in("0123456789abcdef", HERE).unwrap().1);
        let after = sessions("kim:another-0123456789", &clock);
        assert!(opens(&after, &admin) && !opens(&after, &kim));
    }

    #[test]
    fn session_refused_when_cookie_altered() {
        let clock = Clock::standing(START);
        let sessions = sessions("kim:0123456789abcdef", &clock);
        let (_, cookie) = sessions.sign_in("0123456789abcdef", HERE).unwrap();
        assert!(opens(&sessions, &cookie));
        for at in 0..cookie.len() {
            let mut changed = cookie.clone().into_bytes();
            changed[at] = if changed[at] == b'0' { b'1' } else { b'0' };
            assert!(!opens(&sessions, &String::from_utf8(changed).unwrap()), "{at}");
            assert!(!opens(&sessions, &cookie[..at]), "{at}");
        }
        let (payload, mac) = cookie.rsplit_once('.').unwrap();
        for wrong in [
            format!("{cookie}0"),
            format!("{cookie}00"),
            format!("{payload}.{}", mac.replace(['a', 'b', 'c', 'd', 'e', 'f'], "A")),
            cookie.replacen("kim", "admin", 1),
            format!("{payload}."),
            "...".to_owned(),
            ".".repeat(200),
            "kim.+1.0.00".to_owned(),
        ] {
            assert!(!opens(&sessions, &wrong), "{wrong}");
        }
    }

    #[test]
    fn session_found_among_cookies_of_same_name() {
        let sessions = sessions("", &Clock::standing(START));
        let (_, cookie) = sessions.sign_in(RIGHT, HERE).unwrap();
        let (ours, theirs) = (format!("{COOKIE_NAME}={cookie}"), format!("{COOKIE_NAME}=theirs"));
        assert!(sessions.session(&with(&[&theirs, &ours])).is_some());
        assert!(sessions.session(&with(&[&format!("{theirs}; {ours}")])).is_some());
        // As many as a head of 16 KiB holds, of the right looks: none of them is read for the one behind it.
        let (payload, mac) = cookie.rsplit_once('.').unwrap();
        let forged = format!("{COOKIE_NAME}={payload}.{}", mac.replace(|_| true, "0"));
        for bogus in [theirs, forged] {
            let many = vec![bogus.as_str(); 16 * 1024 / bogus.len()].join("; ");
            assert!(sessions.session(&with(&[&many, &ours])).is_some());
            assert!(sessions.session(&with(&[&many])).is_none());
        }
    }

    #[test]
    fn operator_admitted_by_token_or_session_with_csrf_header() {
        let sessions = sessions("", &Clock::standing(START));
        let (_, cookie) = sessions.sign_in(RIGHT, HERE).unwrap();
        let mut headers = with(&[&format!("{COOKIE_NAME}={cookie}")]);
        let operator = |headers: &HeaderMap| sessions.operator(headers, HERE).map_err(|refused| refused.code());
        assert_eq!(operator(&headers), Err(Code::Unauthorized), "a form of another site has the cookie");
        headers.insert(CSRF_HEADER, HeaderValue::from_static("0"));
        assert_eq!(operator(&headers), Err(Code::Unauthorized));
        headers.insert(CSRF_HEADER, HeaderValue::from_static("1"));
        assert_eq!(operator(&headers).unwrap().name(), "admin");
        headers.insert(AUTHORIZATION, HeaderValue::from_static("Bearer wrong"));
        assert_eq!(operator(&headers), Err(Code::Unauthorized), "what was said first counts");
        headers.insert(AUTHORIZATION, HeaderValue::from_static("Bearer the-right-token-01"));
        headers.remove(COOKIE);
        assert!(operator(&headers).is_ok());
    }

    #[test]
    fn signed_out_sessions_remembered_up_to_bound() {
        let clock = Clock::standing(START);
        let sessions = sessions("", &clock);
        let (session, cookie) = sessions.sign_in(RIGHT, HERE).unwrap();
        sessions.sign_out(&session);
        assert!(!opens(&sessions, &cookie));
        clock.advance(1);
        let later =
            |n: usize| Session { expires_at: session.expires_at.plus(1), nonce: n.to_string(), ..session.clone() };
        for n in 0..MAX_SPENT + 10 {
            sessions.sign_out(&later(n));
        }
        assert_eq!(sessions.signed_out.len(), MAX_SPENT);
        assert!(!sessions.signed_out.has(&session.nonce), "it ends before the others");
        clock.advance(9 * 3_600_000);
        sessions.sign_out(&Session { expires_at: clock.now().plus(1), nonce: "new".to_owned(), ..session });
        assert_eq!(sessions.signed_out.len(), 1);
    }

    #[test]
    fn failures_counted_per_client() {
        let limits = LimitsConfig { rate_limit_guesses_per_minute: 4, rate_limit_keys: 10, ..LimitsConfig::off() };
        let operators = Operators::new(&OperatorsConfig::admin(RIGHT)).unwrap();
        let sessions = Sessions::new(operators, Clock::standing(START), false, Arc::new(Limits::new(&limits)));
        let bearing = |token: &'static str| HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_static(token))]);
        let (wrong, right) = (bearing("Bearer wrong"), bearing("Bearer the-right-token-01"));
        let asked =
            |headers: &HeaderMap, client| sessions.operator(headers, client).err().map(|refused| refused.code());
        let signed_in = |token: &str, client| sessions.sign_in(token, client).err().map(|refused| refused.code());
        let (_, cookie) = sessions.sign_in(RIGHT, HERE).unwrap();
        for _ in 0..2 {
            assert_eq!(asked(&wrong, HERE), Some(Code::Unauthorized));
            assert_eq!(signed_in("wrong", HERE), Some(Code::Unauthorized));
        }
        for _ in 0..10 {
            assert_eq!(asked(&wrong, HERE), Some(Code::TooManyRequests));
            assert_eq!(asked(&right, HERE), Some(Code::TooManyRequests), "a right guess is not told from a wrong one");
            assert_eq!(signed_in("wrong", HERE), Some(Code::TooManyRequests));
            assert_eq!(signed_in(RIGHT, HERE), Some(Code::TooManyRequests));
        }
        // Operators elsewhere, and those who are signed in, are not locked out.
        let elsewhere = IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 7));
        assert_eq!((asked(&right, elsewhere), signed_in(RIGHT, elsewhere)), (None, None));
        let mut page = with(&[&format!("{COOKIE_NAME}={cookie}")]);
        page.insert(CSRF_HEADER, HeaderValue::from_static("1"));
        assert_eq!(asked(&page, HERE), None);
        assert_eq!(sessions.failures(), Failures { wrong: 2, limited: 20 });
    }
}
