//! Tests of the verification of tokens.

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use proptest::prelude::*;
use ring::{
    hmac,
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm,
        Ed25519KeyPair, KeyPair,
    },
};
use serde_json::json;

use super::*;
use crate::{config::Secret, dev::ScratchDir, model::Millis};

const SECRET: &str = "a secret of more than thirty-two bytes";
/// Seconds; the clock stands here.
const NOW: i64 = 1_772_427_600;

fn encoded(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn token(header: &Value, claims: &Value, sign: impl Fn(&[u8]) -> Vec<u8>) -> String {
    let message = format!("{}.{}", encoded(header.to_string()), encoded(claims.to_string()));
    let signature = encoded(sign(message.as_bytes()));
    format!("{message}.{signature}")
}

fn by_secret(algorithm: hmac::Algorithm, secret: &[u8]) -> impl Fn(&[u8]) -> Vec<u8> {
    let key = hmac::Key::new(algorithm, secret);
    move |message| hmac::sign(&key, message).as_ref().to_vec()
}

/// Signs by HS256 with the shared secret.
pub(crate) fn signed(claims: &Value) -> String {
    token(&json!({"alg": "HS256", "typ": "JWT"}), claims, by_secret(hmac::HMAC_SHA256, SECRET.as_bytes()))
}

fn good() -> Value {
    json!({"sub": "7", "exp": NOW + 60})
}

pub(crate) fn config() -> AuthConfig {
    AuthConfig { auth: Auth::Jwt, auth_jwt_secret: Some(Secret::new(SECRET)), ..AuthConfig::default() }
}

fn tokens(config: &AuthConfig) -> Arc<Tokens> {
    Tokens::new(config, Clock::standing(Millis(NOW * 1000))).unwrap().unwrap()
}

/// A verifier with this set of keys.
fn by_set(set: &Value) -> Arc<Tokens> {
    let dir = ScratchDir::new().unwrap();
    let file = dir.path().join("jwks.json");
    std::fs::write(&file, set.to_string()).unwrap();
    tokens(&AuthConfig { auth: Auth::Jwt, auth_jwks_file: Some(file), ..AuthConfig::default() })
}

/// The user, or 0 if the token is rejected.
async fn user(tokens: &Tokens, token: &str) -> i64 {
    tokens.user(token).await.map_or(0, UserId::get)
}

async fn why(tokens: &Tokens, token: &str) -> &'static str {
    match tokens.user(token).await.unwrap_err() {
        Refused::Invalid(why) => why,
        Refused::KeysUnknown => panic!("the keys are known"),
    }
}

fn curve(
    kid: &str,
    algorithm: &'static EcdsaSigningAlgorithm,
    name: &str,
) -> (Value, impl Fn(&[u8]) -> Vec<u8> + use<>) {
    let random = SystemRandom::new();
    let document = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
    let pair = EcdsaKeyPair::from_pkcs8(algorithm, document.as_ref(), &random).unwrap();
    let (x, y) = pair.public_key().as_ref()[1..].split_at(pair.public_key().as_ref().len() / 2);
    let jwk = json!({"kty": "EC", "kid": kid, "crv": name, "x": encoded(x), "y": encoded(y), "use": "sig"});
    (jwk, move |message: &[u8]| pair.sign(&SystemRandom::new(), message).unwrap().as_ref().to_vec())
}

fn edwards(kid: &str) -> (Value, impl Fn(&[u8]) -> Vec<u8> + use<>) {
    let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
    let pair = Ed25519KeyPair::from_pkcs8(document.as_ref()).unwrap();
    let jwk = json!({"kty": "OKP", "kid": kid, "crv": "Ed25519", "x": encoded(pair.public_key())});
    (jwk, move |message: &[u8]| pair.sign(message).as_ref().to_vec())
}

fn rsa() -> (Value, BTreeMap<String, String>) {
    let rsa: Value = serde_json::from_str(include_str!("tests_rsa.json")).unwrap();
    let jwk = json!({"kty": "RSA", "kid": "rsa", "n": rsa["modulus"], "e": "AQAB"});
    (jwk, serde_json::from_value(rsa["tokens"].clone()).unwrap())
}

#[tokio::test]
async fn token_verified_for_every_algorithm_and_forgery_refused() {
    let (es256, sign_es256) = curve("p256", &ECDSA_P256_SHA256_FIXED_SIGNING, "P-256");
    let (es384, sign_es384) = curve("p384", &ECDSA_P384_SHA384_FIXED_SIGNING, "P-384");
    let (eddsa, sign_eddsa) = edwards("ed");
    let (rsa, signed_by_rsa) = rsa();
    let by_set = by_set(&json!({"keys": [es256, es384, eddsa, rsa]}));
    let by_shared = tokens(&config());
    let header = |algorithm: &str, kid: &str| json!({"alg": algorithm, "kid": kid});
    let shared = |algorithm: &str, hash| token(&header(algorithm, "x"), &good(), by_secret(hash, SECRET.as_bytes()));
    let mut all = vec![
        (&by_shared, shared("HS256", hmac::HMAC_SHA256)),
        (&by_shared, shared("HS384", hmac::HMAC_SHA384)),
        (&by_shared, shared("HS512", hmac::HMAC_SHA512)),
        (&by_set, token(&header("ES256", "p256"), &good(), &sign_es256)),
        (&by_set, token(&header("ES384", "p384"), &good(), &sign_es384)),
        (&by_set, token(&header("EdDSA", "ed"), &good(), &sign_eddsa)),
        // It names no key; the algorithm has only one.
        (&by_set, token(&json!({"alg": "ES384"}), &good(), &sign_es384)),
    ];
    assert_eq!(signed_by_rsa.len(), 6);
    all.extend(signed_by_rsa.into_values().map(|token| (&by_set, token)));
    for (tokens, token) in &all {
        // The cache must not keep a rejected token, nor confuse a valid one with another.
        let (message, signature) = token.rsplit_once('.').unwrap();
        let (header, claims) = message.split_once('.').unwrap();
        let other_claims = encoded(json!({"sub": "8", "exp": NOW + 60}).to_string());
        let mut flipped = URL_SAFE_NO_PAD.decode(signature).unwrap();
        flipped[0] ^= 1;
        for round in 0..2 {
            assert_eq!(user(tokens, &format!("{header}.{other_claims}.{signature}")).await, 0, "{token} {round}");
            assert_eq!(user(tokens, &format!("{message}.{}", encoded(&flipped))).await, 0, "{token} {round}");
            assert_eq!(user(tokens, &format!("{message}.")).await, 0, "{token} {round}");
            assert_eq!(user(tokens, message).await, 0, "{token} {round}");
            assert_eq!(user(tokens, &format!("{token}.x")).await, 0, "{token} {round}");
            assert_eq!(user(tokens, token).await, 7, "{token} {round}");
        }
        let wrong = if Arc::ptr_eq(tokens, &by_set) { &by_shared } else { &by_set };
        assert_eq!(user(wrong, token).await, 0, "{token}");
        assert_ne!(claims, other_claims);
    }
}

#[tokio::test]
async fn token_refused_when_algorithm_not_of_key() {
    let (rsa, _) = rsa();
    let (es256, sign_es256) = curve("p256", &ECDSA_P256_SHA256_FIXED_SIGNING, "P-256");
    let modulus = URL_SAFE_NO_PAD.decode(rsa["n"].as_str().unwrap()).unwrap();
    let x = URL_SAFE_NO_PAD.decode(es256["x"].as_str().unwrap()).unwrap();
    let oct = json!({"kty": "oct", "kid": "oct", "k": encoded(SECRET)});
    let pinned =
        json!({"kty": "EC", "kid": "pinned", "alg": "ES384", "crv": "P-256", "x": es256["x"], "y": es256["y"]});
    let by_set = by_set(&json!({"keys": [rsa, es256, oct, pinned]}));
    // A public key is no secret.
    for kid in ["rsa", "p256", "oct"] {
        for secret in [modulus.as_slice(), &x, rsa["n"].as_str().unwrap().as_bytes(), SECRET.as_bytes(), b""] {
            let forged = token(&json!({"alg": "HS256", "kid": kid}), &good(), by_secret(hmac::HMAC_SHA256, secret));
            assert_eq!(user(&by_set, &forged).await, 0, "{kid}");
        }
    }
    for none in ["none", "None", "NONE", "", "HS1", "ES512"] {
        let unsigned = token(&json!({"alg": none}), &good(), |_| Vec::new());
        assert_eq!(why(&by_set, &unsigned).await, "not a token", "{none}");
        assert_eq!(why(&tokens(&config()), &unsigned).await, "not a token", "{none}");
    }
    assert_eq!(user(&by_set, &token(&json!({"alg": "ES384", "kid": "p256"}), &good(), &sign_es256)).await, 0);
    assert_eq!(user(&by_set, &token(&json!({"alg": "ES256", "kid": "pinned"}), &good(), &sign_es256)).await, 0);
    assert_eq!(user(&by_set, &token(&json!({"alg": "RS256", "kid": "p256"}), &good(), &sign_es256)).await, 0);
    assert_eq!(user(&by_set, &token(&json!({"alg": "ES256", "kid": "rsa"}), &good(), &sign_es256)).await, 0);
    assert_eq!(user(&by_set, &token(&json!({"alg": "ES256", "kid": "p256"}), &good(), &sign_es256)).await, 7);
    // A key in the header never counts.
    let (own, sign_own) = curve("own", &ECDSA_P256_SHA256_FIXED_SIGNING, "P-256");
    for header in
        [json!({"alg": "ES256", "jwk": own}), json!({"alg": "ES256", "kid": "own", "jku": "http://127.0.0.1/"})]
    {
        assert_eq!(user(&by_set, &token(&header, &good(), &sign_own)).await, 0);
    }
}

#[tokio::test]
async fn token_times_checked_with_leeway() {
    let clock = Clock::standing(Millis(NOW * 1000));
    let tokens = Tokens::new(&config(), clock.clone()).unwrap().unwrap();
    let claims = json!({"sub": 7, "exp": NOW + 60, "nbf": NOW + 30});
    let token = signed(&claims);
    assert_eq!(user(&tokens, &token).await, 7);
    assert_eq!(why(&tokens, &signed(&json!({"sub": 7, "exp": NOW + 60, "nbf": NOW + 31}))).await, "not good yet");
    assert_eq!(why(&tokens, &signed(&json!({"sub": 7, "exp": NOW - 30}))).await, "expired");
    assert_eq!(user(&tokens, &signed(&json!({"sub": 7, "exp": NOW - 29}))).await, 7);
    // A cached token expires too.
    clock.advance(89_999);
    assert_eq!(user(&tokens, &token).await, 7);
    clock.advance(1);
    assert_eq!(why(&tokens, &token).await, "expired");
}

#[tokio::test]
async fn token_refused_without_subject_or_expiry() {
    let tokens = tokens(&config());
    for (claims, said) in [
        (json!({"sub": "7"}), "without an end"),
        (json!({"sub": "7", "exp": "4102444800"}), "without an end"),
        (json!({"sub": "7", "exp": null}), "without an end"),
        (json!({"sub": "7", "exp": -1}), "without an end"),
        (json!({"sub": "7", "exp": 1e300}), "without an end"),
        (json!({"sub": "7", "exp": NOW + 60, "nbf": "soon"}), "with a beginning that is no time"),
        (json!({"exp": NOW + 60}), "without a user"),
        (json!([]), "not a token"),
        (json!("7"), "not a token"),
    ] {
        assert_eq!(why(&tokens, &signed(&claims)).await, said, "{claims}");
    }
    for (user_id, known) in [
        (json!(7), 7),
        (json!("7"), 7),
        (json!(9_007_199_254_740_991_i64), 9_007_199_254_740_991),
        (json!(9_007_199_254_740_992_i64), 0),
        (json!(0), 0),
        (json!(-7), 0),
        (json!(7.5), 0),
        (json!("-7"), 0),
        (json!("+7"), 0),
        (json!(" 7"), 0),
        (json!("7a"), 0),
        (json!(""), 0),
        (json!("07"), 0),
        (json!("007"), 0),
        (json!("0"), 0),
        (json!("١"), 0),
        (json!("9999999999999999999999"), 0),
        (json!(null), 0),
        (json!([7]), 0),
        (json!({"id": 7}), 0),
    ] {
        assert_eq!(user(&tokens, &signed(&json!({"sub": user_id, "exp": NOW + 60}))).await, known, "{user_id}");
    }
}

#[tokio::test]
async fn token_refused_when_issuer_audience_or_claim_differs() {
    let strict = AuthConfig {
        auth_jwt_issuer: Some("https://id.example".to_owned()),
        auth_jwt_audience: Some("firstcome".to_owned()),
        auth_jwt_user_claim: "shop_user".to_owned(),
        ..config()
    };
    let tokens_of = tokens(&strict);
    let claims = |iss: Value, aud: Value| json!({"sub": "x", "shop_user": 7, "exp": NOW + 60, "iss": iss, "aud": aud});
    let (iss, aud) = (json!("https://id.example"), json!("firstcome"));
    assert_eq!(user(&tokens_of, &signed(&claims(iss.clone(), aud.clone()))).await, 7);
    assert_eq!(user(&tokens_of, &signed(&claims(iss.clone(), json!(["other", "firstcome"])))).await, 7);
    for (iss, aud) in [
        (json!("https://id.example/"), aud.clone()),
        (json!(null), aud.clone()),
        (json!(7), aud.clone()),
        (iss.clone(), json!("Firstcome")),
        (iss.clone(), json!([])),
        (iss.clone(), json!(["other"])),
        (iss.clone(), json!(null)),
    ] {
        assert_eq!(user(&tokens_of, &signed(&claims(iss.clone(), aud.clone()))).await, 0, "{iss} {aud}");
    }
    assert_eq!(user(&tokens_of, &signed(&good())).await, 0, "without them");
    // Without a required issuer and audience, any are accepted.
    let free = tokens(&AuthConfig { auth_jwt_issuer: None, auth_jwt_audience: None, ..strict });
    assert_eq!(user(&free, &signed(&claims(json!("anybody"), json!("anything")))).await, 7);
}

#[tokio::test]
async fn token_refused_when_malformed() {
    let (tokens, sign) = (tokens(&config()), by_secret(hmac::HMAC_SHA256, SECRET.as_bytes()));
    let extended = token(&json!({"alg": "HS256", "crit": ["b64"], "b64": false}), &good(), &sign);
    assert_eq!(why(&tokens, &extended).await, "critical extensions");
    for odd in ["", ".", "..", "...", "a.b.c", "e30.e30.e30", "e30.e30.", "ünï.cödé.x"] {
        assert_eq!(why(&tokens, odd).await, "not a token", "{odd}");
    }
}

/// Tokens of issuers that put groups and addresses into them.
#[tokio::test]
async fn token_accepted_up_to_head_size() {
    let long = signed(&json!({"sub": "7", "exp": NOW + 60, "groups": "x".repeat(11_500)}));
    assert!(long.len() > 15 * 1024, "{}", long.len());
    assert_eq!(user(&tokens(&config()), &long).await, 7);
}

#[tokio::test]
async fn token_refused_when_type_differs() {
    let (tokens, sign) = (tokens(&config()), by_secret(hmac::HMAC_SHA256, SECRET.as_bytes()));
    for typ in ["JWT", "jwt", "at+jwt", "AT+JWT", "application/at+jwt", "Application/jwt"] {
        assert_eq!(user(&tokens, &token(&json!({"alg": "HS256", "typ": typ}), &good(), &sign)).await, 7, "{typ}");
    }
    assert_eq!(user(&tokens, &token(&json!({"alg": "HS256"}), &good(), &sign)).await, 7, "it need not say");
    for typ in ["", "logout+jwt", "dpop+jwt", "secevent+jwt", "JWT2", "application/", "text/jwt", "JWT ", "앱/jwt"] {
        let other = token(&json!({"alg": "HS256", "typ": typ}), &good(), &sign);
        assert_eq!(why(&tokens, &other).await, "of another type", "{typ}");
    }
    let odd = token(&json!({"alg": "HS256", "typ": 7}), &good(), &sign);
    assert_eq!(why(&tokens, &odd).await, "not a token");
}

#[tokio::test]
async fn key_of_set_used_for_its_purpose_only() {
    let (one, sign_one) = edwards("one");
    let (two, sign_two) = edwards("two");
    let with = |key: &Value, more: Value| {
        let mut key = key.clone();
        key.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        key
    };
    let tokens = by_set(&json!({"keys": [one, two, {"kty": "new", "kid": "odd"}, 7, {"kid": "bare"}]}));
    let header = |kid: &str| json!({"alg": "EdDSA", "kid": kid});
    assert_eq!(user(&tokens, &token(&header("one"), &good(), &sign_one)).await, 7);
    assert_eq!(user(&tokens, &token(&header("two"), &good(), &sign_two)).await, 7);
    assert_eq!(user(&tokens, &token(&header("two"), &good(), &sign_one)).await, 0);
    assert_eq!(user(&tokens, &token(&json!({"alg": "EdDSA"}), &good(), &sign_two)).await, 7);
    assert_eq!(why(&tokens, &token(&header("odd"), &good(), &sign_one)).await, "no key for it");
    for (more, fits) in [
        (json!({"use": "sig"}), true),
        (json!({"key_ops": ["verify"]}), true),
        (json!({"alg": "EdDSA"}), true),
        (json!({"use": "enc"}), false),
        (json!({"key_ops": ["encrypt"]}), false),
        (json!({"alg": "RS256"}), false),
        (json!({"alg": "RSA-OAEP"}), false),
    ] {
        let set = json!({"keys": [with(&one, more.clone())]}).to_string();
        assert_eq!(TokenKeys::of_set(set.as_bytes()).is_ok(), fits, "{more}");
    }
    for none in ["", "{}", "[]", "{\"keys\":[]}", "{\"keys\":{}}", "{\"keys\":[{\"kty\":\"oct\",\"k\":\"YQ\"}]}"] {
        assert!(TokenKeys::of_set(none.as_bytes()).is_err(), "{none}");
    }
}

#[test]
fn token_settings_refused_when_contradictory() {
    let new = |config: &AuthConfig| Tokens::new(config, Clock::system()).map(|tokens| tokens.is_some());
    assert!(matches!(new(&AuthConfig::default()), Ok(false)));
    assert!(matches!(new(&config()), Ok(true)));
    let refused = [
        AuthConfig { auth: Auth::None, ..config() },
        AuthConfig { auth_jwt_secret: None, ..config() },
        AuthConfig { auth_jwt_secret: Some(Secret::new(&SECRET[..31])), ..config() },
        AuthConfig { auth_jwks_url: Some(Secret::new("https://id.example/")), ..config() },
        AuthConfig { auth_jwt_user_claim: String::new(), ..config() },
        AuthConfig { auth_jwt_secret: None, auth_jwks_url: Some(Secret::new("http://id.example/")), ..config() },
        AuthConfig { auth_jwt_secret: None, auth_jwks_file: Some("/nowhere/jwks.json".into()), ..config() },
        AuthConfig { auth_jwt_secret: None, auth_jwks_file: Some("/dev/null".into()), ..config() },
    ];
    for config in refused {
        let error = new(&config).unwrap_err();
        assert!(!format!("{error:#} {config:?}").contains(&SECRET[..31]), "{error:#}");
    }
}

proptest! {
    #[test]
    fn fuzz_token_refused(header in "\\PC{0,40}", claims in "\\PC{0,60}", signature in "[A-Za-z0-9_-]{0,60}", raw in any::<bool>()) {
        let tokens = tokens(&config());
        let token = match raw {
            true => format!("{header}.{claims}.{signature}"),
            false => format!("{}.{}.{signature}", encoded(&header), encoded(&claims)),
        };
        let refused = futures_util::FutureExt::now_or_never(tokens.user(&token)).unwrap();
        prop_assert!(matches!(refused, Err(Refused::Invalid(_))));
    }

    #[test]
    fn fuzz_key_set_parsed_or_refused(set in "\\PC{0,200}", field in "kty|crv|n|e|x|y|k|use|alg|key_ops", value in "\\PC{0,20}") {
        let _ = TokenKeys::of_set(set.as_bytes());
        let (mut jwk, _) = edwards("a");
        jwk[field] = value.into();
        let _ = TokenKeys::of_set(json!({"keys": [jwk]}).to_string().as_bytes());
    }
}
