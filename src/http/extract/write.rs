//! The extractor of writes: body, idempotency key and request id become a typed request and its [`Call`].
//!
//! Order matters: a client learns what is wrong with a body before it learns what is wrong with the path or the key, so this
//! extractor is the first part of a write that can fail. The limit of the user applies once the body is decoded, before any store
//! is asked.

use std::{convert::Infallible, future::poll_fn, pin::pin, sync::Arc, task::Poll, time::Duration};

use axum::{
    body::{Body, Bytes},
    extract::{FromRef, FromRequest, FromRequestParts, RawPathParams, Request},
    http::{Extensions, HeaderMap, header::CONTENT_TYPE, request::Parts},
};
use chrono_tz::Tz;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Body as _;
use serde::{Serialize, de::DeserializeOwned};

use super::decode::Object;
use crate::{
    http::{
        auth::{operator::Operator, user},
        error::{ApiError, Code},
        headers::IDEMPOTENCY_KEY,
        limits::Limits,
        middleware::{
            operator_log::RequestDetail,
            unknown_fields::{self, Names},
        },
        request_class::RequestClass,
        request_id::RequestId,
    },
    model::{AcknowledgedPositions, Call, IdempotencyKey, KeyOwner, UserId},
};

/// What decoding depends on.
#[derive(Clone)]
pub struct Decoding {
    /// Bytes of the largest body.
    pub body_limit: usize,
    /// How long a body may take to arrive.
    pub body_timeout: Duration,
    /// The limits of the user.
    pub limits: Arc<Limits>,
    /// The zone of the wall-clock times in requests.
    pub zone: Tz,
}

/// The body of a write.
///
/// Its `Serialize` is the canonical form of the request, to which an idempotency key is bound.
pub trait RequestBody: DeserializeOwned + Serialize + Send {
    /// The type that the handler gets.
    type Valid: Send;

    /// The endpoint's own 400.
    const INVALID: Code;
    /// No part of the body may be logged, also if it can't be read.
    const SECRET: bool = false;

    /// The fields that the operator log does not keep: a person may be forgotten.
    const PERSONAL: &[&str] = &[];

    /// Whether the request changes nothing. It is refused: a field is misspelled or missing.
    fn changes_nothing(&self) -> bool {
        false
    }

    /// Checks what the types of the fields can't: bounds of two fields together, times in the zone. `None` is refused.
    fn validate(self, zone: Tz) -> Option<Self::Valid>;

    /// The user for whom the request acts, if the body names one.
    fn user(valid: &Self::Valid) -> Option<UserId>;

    /// The tokens that the request costs more than others to the same route.
    fn cost(_: &Self::Valid) -> u32 {
        0
    }
}

/// A decoded write.
#[derive(Debug)]
pub struct Write<T: RequestBody> {
    /// The request's id and idempotency key.
    pub call: Call,
    /// The validated body.
    pub body: T::Valid,
}

impl<S, T> FromRequest<S> for Write<T>
where
    S: Send + Sync,
    T: RequestBody,
    Decoding: FromRef<S>,
{
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let decoding = Decoding::from_ref(state);
        let (mut parts, body) = request.into_parts();
        if !is_json(&parts.headers) {
            return Err(Code::UnsupportedMediaType.into());
        }
        let class = RequestClass::of(&parts.extensions);
        let bytes = read(body, &decoding, class).await?.ok_or(T::INVALID)?;
        // Checked as text first: the decoder does not check the strings that it skips.
        let text = std::str::from_utf8(&bytes).map_err(|_| T::INVALID)?;
        let mut unknown = Names::default();
        let mut json = serde_json::Deserializer::from_str(text);
        let read = serde_ignored::deserialize::<_, _, Object<T>>(&mut json, |path| unknown.add(&path.to_string()));
        let read = read.and_then(|request| json.end().map(|()| request));
        // First: a missing field may be there under another name.
        unknown_fields::judge_fields(&parts.extensions, unknown)?;
        let Object(request) = read.map_err(|error| {
            if !T::SECRET {
                tracing::debug!(%error, "body refused");
            }
            T::INVALID
        })?;
        if request.changes_nothing() {
            return Err(ApiError::because(T::INVALID, "변경할 항목이 없습니다"));
        }
        if let Some(detail) = parts.extensions.get::<RequestDetail>().filter(|_| !T::SECRET) {
            detail.set(&request, T::PERSONAL);
        }
        let canonical =
            if parts.headers.contains_key(IDEMPOTENCY_KEY) { canonical(&parts, &request)? } else { Vec::new() };
        let body = request.validate(decoding.zone).ok_or(T::INVALID)?;
        let user = T::user(&body);
        user::admit(&parts.extensions, user)?;
        let more = T::cost(&body);
        if more > 0 && class == RequestClass::Public {
            let client = decoding.limits.client_of(&parts.extensions, &parts.headers);
            decoding.limits.admit_more(client, more)?;
        }
        if let Some(user) = user {
            decoding.limits.admit_user(user, 1 + more)?;
        }
        let key = match idempotency_key(&parts.headers)?.map(str::to_owned) {
            Some(key) => Some(owned_key(&mut parts, user, &key, &canonical).await?),
            None => None,
        };
        Ok(Write { call: call_of(&parts.extensions, key), body })
    }
}

fn call_of(extensions: &Extensions, key: Option<IdempotencyKey>) -> Call {
    let acknowledged = extensions.get::<AcknowledgedPositions>().cloned().unwrap_or_default();
    Call { request_id: RequestId::of(extensions), key, acknowledged }
}

/// A write without a body, whose repeat needs no idempotency key.
#[derive(Debug)]
pub struct Bodiless(pub Call);

impl<S: Send + Sync> FromRequestParts<S> for Bodiless {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Infallible> {
        Ok(Bodiless(call_of(&parts.extensions, None)))
    }
}

/// The whole body; `None` if the client breaks it off.
pub(in crate::http) async fn read(
    body: Body,
    decoding: &Decoding,
    class: RequestClass,
) -> Result<Option<Bytes>, ApiError> {
    let limit = decoding.body_limit;
    if body.size_hint().lower() > limit as u64 {
        return Err(Code::PayloadTooLarge.into());
    }
    let mut reading = pin!(Limited::new(body, limit).collect());
    // Most bodies arrive with their heads.
    let read = match poll_fn(|cx| Poll::Ready(reading.as_mut().poll(cx))).await {
        Poll::Ready(read) => read,
        Poll::Pending => {
            let suspended = decoding.limits.suspend(class);
            let late = |_| ApiError::from(Code::RequestTimeout);
            let read = tokio::time::timeout(decoding.body_timeout, reading).await.map_err(late)?;
            if !suspended.resume() {
                return Err(decoding.limits.shed());
            }
            read
        }
    };
    match read {
        Ok(read) => Ok(Some(read.to_bytes())),
        Err(error) if error.is::<LengthLimitError>() => Err(Code::PayloadTooLarge.into()),
        Err(error) => {
            tracing::debug!(%error, "body broke off");
            Ok(None)
        }
    }
}

/// `application/json` or `application/<anything>+json`, with any parameters, in one header.
fn is_json(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(CONTENT_TYPE).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return false };
    let Ok(value) = value.to_str() else { return false };
    let essence = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence.strip_prefix("application/").is_some_and(|subtype| subtype == "json" || subtype.ends_with("+json"))
}

/// Method, path and decoded body: two spellings of a request have one canonical form.
fn canonical<T: Serialize>(parts: &Parts, request: &T) -> Result<Vec<u8>, ApiError> {
    let mut bytes = format!("{} {}\n", parts.method, parts.uri.path()).into_bytes();
    serde_json::to_writer(&mut bytes, request).map_err(|error| crate::model::Error::Internal(error.into()))?;
    Ok(bytes)
}

/// The key with its owner: the operator, or the user whom the body or the path names.
async fn owned_key(
    parts: &mut Parts,
    named: Option<UserId>,
    key: &str,
    canonical: &[u8],
) -> Result<IdempotencyKey, ApiError> {
    if let Some(operator) = parts.extensions.get::<Operator>() {
        return Ok(IdempotencyKey::new(KeyOwner::Operator(operator.name()), key, canonical));
    }
    let user = match named {
        Some(user) => Some(user),
        None => {
            let path = RawPathParams::from_request_parts(parts, &()).await.ok();
            let user = path.as_ref().and_then(|path| path.iter().find(|(name, _)| *name == "userId"));
            // The path's extractor refuses an invalid id.
            user.and_then(|(_, id)| UserId::new(id.parse().ok()?))
        }
    };
    Ok(match user {
        Some(user) => IdempotencyKey::new(KeyOwner::User(user), key, canonical),
        None => IdempotencyKey::new(KeyOwner::Operator(""), key, canonical),
    })
}

/// The idempotency key: 1–255 printable ASCII characters in one header, or none.
fn idempotency_key(headers: &HeaderMap) -> Result<Option<&str>, ApiError> {
    let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let printable = value.as_bytes().iter().all(|byte| (0x20..=0x7e).contains(byte));
    if values.next().is_some() || !printable || !(1..=255).contains(&value.len()) {
        return Err(Code::InvalidIdempotencyKey.into());
    }
    value.to_str().map(Some).map_err(|_| Code::InvalidIdempotencyKey.into())
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderValue, Method};
    use tokio::sync::mpsc;

    use super::*;
    use crate::{
        config::LimitsConfig,
        http::routes::{
            balances::ChargeRequest, coupons::UserCouponRequest, orders::OrderCreateRequest, payments::PaymentRequest,
        },
        model::{NewOrder, NewPayment},
    };

    const BODY_LIMIT: usize = 4096;

    impl FromRef<()> for Decoding {
        fn from_ref((): &()) -> Decoding {
            Decoding::from_ref(&Arc::new(Limits::new(&LimitsConfig::off())))
        }
    }

    impl FromRef<Arc<Limits>> for Decoding {
        fn from_ref(limits: &Arc<Limits>) -> Decoding {
            let body_timeout = Duration::from_millis(20);
            Decoding { body_limit: BODY_LIMIT, body_timeout, limits: limits.clone(), zone: chrono_tz::Asia::Seoul }
        }
    }

    fn request(body: impl Into<Body>) -> Request {
        Request::builder()
            .method(Method::POST)
            .uri("/api/v1/orders")
            .header(CONTENT_TYPE, "application/json")
            .body(body.into())
            .unwrap()
    }

    async fn write<T: RequestBody>(request: Request) -> Result<Write<T>, Code> {
        Write::<T>::from_request(request, &()).await.map_err(|error| error.code())
    }

    async fn body<T: RequestBody>(json: &str) -> Result<T::Valid, Code> {
        write::<T>(request(json.to_owned())).await.map(|write| write.body)
    }

    async fn order(json: &str) -> Result<NewOrder, Code> {
        body::<OrderCreateRequest>(json).await
    }

    async fn payment(json: &str) -> Result<NewPayment, Code> {
        body::<PaymentRequest>(json).await.map(|(payment, _)| payment)
    }

    #[tokio::test]
    async fn body_fault_answered_with_code_of_endpoint() {
        let deep = "[".repeat(2_000);
        for hostile in
            ["", "{", "null", "[]", "[1,1]", "\"\"", "{}", "{}{}", "\u{feff}{}", &deep, "{\"amount\":1,\"amount\":1}"]
        {
            assert_eq!(body::<ChargeRequest>(hostile).await.unwrap_err(), Code::InvalidAmount, "{hostile}");
            assert_eq!(body::<UserCouponRequest>(hostile).await.unwrap_err(), Code::InvalidCoupon, "{hostile}");
            assert_eq!(order(hostile).await.unwrap_err(), Code::InvalidOrder, "{hostile}");
            assert_eq!(payment(hostile).await.unwrap_err(), Code::InvalidPaymentRequest, "{hostile}");
        }
        let latin1: &[u8] = b"{\"amount\":1,\"\xe9\":1}";
        assert_eq!(write::<ChargeRequest>(request(latin1)).await.unwrap_err(), Code::InvalidAmount);
    }

    #[tokio::test]
    async fn charge_refused_when_amount_out_of_bounds() {
        for (amount, won) in [("1", 1), ("100000", 100_000), ("1000.0", 1_000), ("1e3", 1_000)] {
            assert_eq!(body::<ChargeRequest>(&format!("{{\"amount\":{amount},\"unknown\":[{{}}]}}")).await, Ok(won));
        }
        for hostile in ["0", "-1", "100001", "0.5", "\"1000\"", "null", "true", "9223372036854775808"] {
            let refused = body::<ChargeRequest>(&format!("{{\"amount\":{hostile}}}")).await;
            assert_eq!(refused, Err(Code::InvalidAmount), "{hostile}");
        }
    }

    #[tokio::test]
    async fn payment_of_zero_accepted_and_unknown_type_refused() {
        let json = |kind: &str, amount: &str| {
            format!("{{\"orderId\":1,\"userId\":2,\"paymentType\":{kind},\"amount\":{amount}}}")
        };
        assert_eq!(payment(&json("\"CARD\"", "0")).await.unwrap().amount, 0);
        for (kind, amount) in [
            ("\"CARD\"", "-1"),
            ("\"card\"", "1"),
            ("\"CASH\"", "1"),
            ("{\"CARD\":null}", "1"),
            ("null", "1"),
            ("0", "1"),
            ("\"CARD\"", "9007199254740992"),
        ] {
            assert_eq!(payment(&json(kind, amount)).await.unwrap_err(), Code::InvalidPaymentRequest, "{kind} {amount}");
        }
    }

    #[tokio::test]
    async fn order_lines_of_same_product_summed() {
        let placed = order(
            "{\"userId\":1,\"orderProducts\":[{\"productId\":7,\"quantity\":2},{\"productId\":3,\"quantity\":1},\
             {\"productId\":7,\"quantity\":9998}],\"userCouponId\":null}",
        )
        .await
        .unwrap();
        let lines: Vec<_> = placed.lines.iter().map(|(product, quantity)| (product.get(), *quantity)).collect();
        assert_eq!(lines, [(7, 10_000), (3, 1)]);
        assert!(placed.coupon_id.is_none());
    }

    #[tokio::test]
    async fn order_refused_when_out_of_bounds() {
        let json = |lines: &[String]| format!("{{\"userId\":1,\"orderProducts\":[{}]}}", lines.join(","));
        let line = |product: i64, quantity: i64| format!("{{\"productId\":{product},\"quantity\":{quantity}}}");
        let many = |count: i64| (1..=count).map(|product| line(product, 1)).collect::<Vec<_>>();
        assert_eq!(order(&json(&many(100))).await.unwrap().lines.len(), 100);
        let hostile = [
            json(&[]),
            json(&many(101)),
            json(&[line(1, 0)]),
            json(&[line(1, 2), line(1, -1)]),
            json(&[line(0, 1)]),
            json(&[line(1, 10_001)]),
            json(&[line(1, 10_000), line(1, 1)]),
            json(&["[1,1]".to_owned()]),
            json(&["null".to_owned()]),
            "{\"userId\":1,\"orderProducts\":{}}".to_owned(),
            "{\"userId\":1,\"orderProducts\":null}".to_owned(),
            format!("{{\"userId\":1,\"userCouponId\":0,\"orderProducts\":[{}]}}", line(1, 1)),
        ];
        for hostile in hostile {
            assert_eq!(order(&hostile).await.unwrap_err(), Code::InvalidOrder, "{hostile}");
        }
    }

    #[tokio::test]
    async fn body_refused_when_not_json_or_too_large() {
        let typed = |kind: &'static str| {
            let mut request = request("{\"amount\":1}");
            request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
            request
        };
        for json in ["application/json", "Application/JSON; charset=utf-8", "application/vnd.firstcome+json"] {
            assert!(write::<ChargeRequest>(typed(json)).await.is_ok(), "{json}");
        }
        for other in ["text/plain", "application/x-www-form-urlencoded", "application/jsonp", "json", ""] {
            assert_eq!(write::<ChargeRequest>(typed(other)).await.unwrap_err(), Code::UnsupportedMediaType, "{other}");
        }
        let mut untyped = request("{\"amount\":1}");
        untyped.headers_mut().remove(CONTENT_TYPE);
        assert_eq!(write::<ChargeRequest>(untyped).await.unwrap_err(), Code::UnsupportedMediaType);

        let padded = format!("{{\"amount\":1{}}}", " ".repeat(BODY_LIMIT));
        assert_eq!(body::<ChargeRequest>(&padded).await, Err(Code::PayloadTooLarge));
        let chunks =
            padded.into_bytes().chunks(100).map(|chunk| Ok::<_, std::io::Error>(chunk.to_vec())).collect::<Vec<_>>();
        let chunked = Body::from_stream(futures_util::stream::iter(chunks));
        assert_eq!(write::<ChargeRequest>(request(chunked)).await.unwrap_err(), Code::PayloadTooLarge);
    }

    /// A body whose first bytes arrive at once, and the rest once it is sent.
    fn slow() -> (mpsc::UnboundedSender<&'static str>, Body) {
        let (rest, parts) = mpsc::unbounded_channel();
        rest.send("{\"amount\"").unwrap();
        let next =
            async |mut parts: mpsc::UnboundedReceiver<_>| Some((Ok::<_, std::io::Error>(parts.recv().await?), parts));
        (rest, Body::from_stream(futures_util::stream::unfold(parts, next)))
    }

    #[tokio::test]
    async fn body_refused_when_too_slow() {
        let (_rest, body) = slow();
        assert_eq!(write::<ChargeRequest>(request(body)).await.unwrap_err(), Code::RequestTimeout);
    }

    #[tokio::test]
    async fn permit_taken_after_body_read() {
        let limits = Arc::new(Limits::new(&LimitsConfig { max_in_flight: 1, ..LimitsConfig::off() }));
        let client = std::net::Ipv4Addr::LOCALHOST.into();
        for full in [false, true] {
            let inside = limits.admit(RequestClass::Public, client, "").unwrap();
            let (rest, body) = slow();
            let waiting = Write::<ChargeRequest>::from_request(request(body), &limits);
            let meanwhile = async {
                let other = limits.admit(RequestClass::Public, client, "").unwrap();
                let other = full.then_some(other);
                rest.send(":1}").unwrap();
                drop(rest);
                other
            };
            let (answer, other) = tokio::join!(biased; waiting, meanwhile);
            let code = answer.map(|write| write.body).map_err(|error| error.code());
            assert_eq!(code, if full { Err(Code::Unavailable) } else { Ok(1) });
            drop((inside, other));
            assert_eq!(limits.in_flight(), 0);
        }
    }

    #[tokio::test]
    async fn user_limit_shared_by_all_request_classes() {
        let config = LimitsConfig {
            rate_limit_user_per_second: 1,
            rate_limit_user_burst: 3,
            rate_limit_keys: 9,
            ..LimitsConfig::off()
        };
        let limits = Arc::new(Limits::new(&config));
        async fn ask<T: RequestBody>(limits: &Arc<Limits>, json: &str) -> Option<Code> {
            Write::<T>::from_request(request(json.to_owned()), limits).await.err().map(|error| error.code())
        }
        let order = "{\"userId\":7,\"orderProducts\":[{\"productId\":1,\"quantity\":1}]}";
        let payment = "{\"orderId\":1,\"userId\":7,\"paymentType\":\"CARD\",\"amount\":1}";
        assert_eq!(ask::<OrderCreateRequest>(&limits, "{\"userId\":7}").await, Some(Code::InvalidOrder));
        assert_eq!(ask::<OrderCreateRequest>(&limits, order).await, None);
        assert_eq!(ask::<PaymentRequest>(&limits, payment).await, None);
        assert_eq!(ask::<UserCouponRequest>(&limits, "{\"userId\":7,\"couponId\":1}").await, None);
        assert_eq!(ask::<OrderCreateRequest>(&limits, order).await, Some(Code::TooManyRequests));
        assert_eq!(ask::<PaymentRequest>(&limits, payment).await, Some(Code::TooManyRequests));
        assert_eq!(ask::<UserCouponRequest>(&limits, "{\"userId\":8,\"couponId\":1}").await, None);
    }

    #[tokio::test]
    async fn idempotency_fingerprint_follows_meaning_of_request() {
        let keyed = |json: &str, keys: &[&'static [u8]]| {
            let mut request = request(json.to_owned());
            for key in keys {
                request.headers_mut().append(IDEMPOTENCY_KEY, HeaderValue::from_bytes(key).unwrap());
            }
            write::<ChargeRequest>(request)
        };
        let plain = keyed("{\"amount\":1000}", &[b"k 1"]).await.unwrap().call.key.unwrap();
        let spelled = keyed(" {\"x\":0, \"amount\" : 1e3 }", &[b"k 1"]).await.unwrap().call.key.unwrap();
        let other = keyed("{\"amount\":1001}", &[b"k 1"]).await.unwrap().call.key.unwrap();
        assert_eq!(plain, spelled);
        assert_eq!(plain.digest, other.digest);
        assert_ne!(plain.fingerprint, other.fingerprint);
        assert!(keyed("{\"amount\":1}", &[]).await.unwrap().call.key.is_none());

        static LONG: [u8; 256] = [b'k'; 256];
        assert!(keyed("{\"amount\":1}", &[&LONG[..255]]).await.is_ok());
        let refused: [&[&'static [u8]]; 5] = [&[b""], &[&LONG], &[b"\xed\x82\xa4"], &[b"a\tb"], &[b"k", b"k"]];
        for keys in refused {
            assert_eq!(keyed("{\"amount\":1}", keys).await.unwrap_err(), Code::InvalidIdempotencyKey, "{keys:?}");
        }
        assert_eq!(keyed("{}", &[b""]).await.unwrap_err(), Code::InvalidAmount, "the body comes first");
    }
}
