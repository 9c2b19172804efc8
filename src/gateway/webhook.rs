//! Messages of providers. A message is a hint to ask the provider, and never says what became of a payment.

use std::{error::Error, fmt};

use base64::{Engine, engine::general_purpose::STANDARD};
use ring::hmac;

use crate::model::Millis;

/// How far a message's time may be from this process's, as Standard Webhooks recommends.
const TOLERANCE_MS: i64 = 5 * 60 * 1000;
/// The maximum number of signatures of a message.
const MAX_SIGNATURES: usize = 8;

/// A message of a provider, as it arrived.
pub struct ProviderMessage<'a> {
    pub body: &'a [u8],
    /// The value of a header, by its lower-case name.
    pub header: &'a (dyn Fn(&str) -> Option<String> + Sync),
    pub now: Millis,
}

/// Why a message is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MessageRefused {
    /// The provider sends none, or none is configured.
    NotOffered,
    /// It is not the provider's, or is too old.
    Unverified(&'static str),
    /// It can't be read.
    Malformed,
}

impl fmt::Display for MessageRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            MessageRefused::NotOffered => "no messages are expected",
            MessageRefused::Unverified(why) => why,
            MessageRefused::Malformed => "the message can't be read",
        })
    }
}

impl Error for MessageRefused {}

/// The secret of a sender of [Standard Webhooks](https://www.standardwebhooks.com).
pub(super) struct MessageKey(hmac::Key);

impl MessageKey {
    /// A secret as providers show it: base64, with or without `whsec_` before it. `None` if it is not.
    pub(super) fn parse(secret: &str) -> Option<MessageKey> {
        let bytes = STANDARD.decode(secret.strip_prefix("whsec_").unwrap_or(secret)).ok()?;
        (!bytes.is_empty()).then(|| MessageKey(hmac::Key::new(hmac::HMAC_SHA256, &bytes)))
    }

    /// Whether a message is signed by this secret, within the last minutes.
    ///
    /// # Errors
    /// It is not.
    pub(super) fn verify(&self, webhook: &ProviderMessage<'_>) -> Result<(), MessageRefused> {
        let refuse = MessageRefused::Unverified;
        let header = |name: &str| (webhook.header)(name).ok_or(refuse("a header of the signature is missing"));
        let (id, at, signatures) = (header("webhook-id")?, header("webhook-timestamp")?, header("webhook-signature")?);
        let seconds: i64 = at.parse().map_err(|_| refuse("the time of the message is no number"))?;
        let age = seconds.checked_mul(1000).and_then(|at| webhook.now.0.checked_sub(at));
        if !age.is_some_and(|age| (-TOLERANCE_MS..=TOLERANCE_MS).contains(&age)) {
            return Err(refuse("the message is not of the last minutes"));
        }
        let mut signed = format!("{id}.{at}.").into_bytes();
        signed.extend_from_slice(webhook.body);
        let is_signed = |signature: &str| {
            let signature = signature.strip_prefix("v1,").and_then(|signature| STANDARD.decode(signature).ok());
            signature.is_some_and(|signature| hmac::verify(&self.0, &signed, &signature).is_ok())
        };
        match signatures.split(' ').take(MAX_SIGNATURES).any(is_signed) {
            true => Ok(()),
            false => Err(refuse("the signature is another one's")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the specification of Standard Webhooks.
    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
    const AT: &str = "1614265330";
    const BODY: &str = "{\"test\": 2432232314}";
    const SIGNATURE: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";

    fn verify(secret: &str, headers: [&str; 3], body: &str, now: i64) -> Result<(), MessageRefused> {
        let header = |name: &str| {
            let at =
                ["webhook-id", "webhook-timestamp", "webhook-signature"].iter().position(|known| *known == name)?;
            Some(headers[at].to_owned()).filter(|value| !value.is_empty())
        };
        let webhook = ProviderMessage { body: body.as_bytes(), header: &header, now: Millis(now * 1000) };
        MessageKey::parse(secret).unwrap().verify(&webhook)
    }

    #[test]
    fn message_verified_when_signed_by_secret() {
        let now = 1_614_265_330;
        assert_eq!(verify(SECRET, [ID, AT, SIGNATURE], BODY, now), Ok(()));
        let rotated = format!("v1,AAAA v2,x {SIGNATURE}");
        assert_eq!(verify(SECRET, [ID, AT, &rotated], BODY, now + 300), Ok(()));
    }

    #[test]
    fn message_refused_when_forged_old_or_incomplete() {
        let now = 1_614_265_330;
        let other = "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
        for (secret, headers, body, now) in [
            (other, [ID, AT, SIGNATURE], BODY, now),
            (SECRET, ["msg_2", AT, SIGNATURE], BODY, now),
            (SECRET, [ID, "1614265331", SIGNATURE], BODY, now),
            (SECRET, [ID, AT, SIGNATURE], "{\"test\": 1}", now),
            (SECRET, [ID, AT, SIGNATURE], BODY, now + 301),
            (SECRET, [ID, AT, SIGNATURE], BODY, now - 301),
            (SECRET, [ID, "9223372036854775807", SIGNATURE], BODY, now),
            (SECRET, [ID, "yesterday", SIGNATURE], BODY, now),
            (SECRET, [ID, AT, "v1,"], BODY, now),
            (SECRET, [ID, AT, "v1"], BODY, now),
            (SECRET, ["", AT, SIGNATURE], BODY, now),
            (SECRET, [ID, "", SIGNATURE], BODY, now),
            (SECRET, [ID, AT, ""], BODY, now),
        ] {
            let refused = verify(secret, headers, body, now).unwrap_err();
            assert!(matches!(refused, MessageRefused::Unverified(_)), "{headers:?}: {refused:?}");
        }
        assert!(MessageKey::parse("whsec_not base64").is_none() && MessageKey::parse("whsec_").is_none());
    }
}
