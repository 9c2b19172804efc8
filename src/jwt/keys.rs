//! The keys of tokens, and the choice of the key for a token.

use jsonwebtoken::{
    Algorithm, AlgorithmFamily, DecodingKey,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse},
};
use serde::Deserialize;
use serde_json::Value;

/// The maximum number of keys read from a set.
const MAX_KEYS: usize = 100;

/// A key and its algorithms.
#[derive(Debug, PartialEq)]
pub struct TokenKey {
    id: Option<String>,
    /// The algorithms of the key's kind, or the one that the set names.
    pub algorithms: Vec<Algorithm>,
    pub decoding: KeyMaterial,
}

/// The current keys.
#[derive(Debug, Default)]
pub struct TokenKeys {
    keys: Vec<TokenKey>,
    /// Increments with every change of the set.
    pub generation: u64,
}

impl TokenKeys {
    /// The key of a shared secret.
    pub fn of_secret(secret: &[u8]) -> Self {
        let algorithms = AlgorithmFamily::Hmac.algorithms().to_vec();
        TokenKeys {
            keys: vec![TokenKey { id: None, algorithms, decoding: KeyMaterial::new(DecodingKey::from_secret(secret)) }],
            generation: 1,
        }
    }

    /// The keys of a JWK set (RFC 7517) that verify signatures by a supported algorithm. Omits other keys, and secrets, which
    /// have no place in a public set.
    ///
    /// # Errors
    /// The JSON is no JWK set, or the set has no usable key.
    pub fn of_set(json: &[u8]) -> Result<Vec<TokenKey>, &'static str> {
        #[derive(Deserialize)]
        struct Set {
            keys: Vec<Value>,
        }
        let set: Set = serde_json::from_slice(json).map_err(|_| "it is not a JWK set")?;
        let keys: Vec<TokenKey> = set.keys.into_iter().take(MAX_KEYS).filter_map(TokenKey::of_jwk).collect();
        if keys.is_empty() { Err("it has no key that verifies signatures") } else { Ok(keys) }
    }

    /// The next generation with `keys`; `None` if they are the current ones.
    pub fn next(&self, keys: Vec<TokenKey>) -> Option<TokenKeys> {
        (keys != self.keys).then_some(TokenKeys { keys, generation: self.generation + 1 })
    }

    /// Whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The number of keys.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// The keys that may have signed a token with this header: the key that it names, or, if it names none, all keys of the
    /// algorithm.
    pub fn candidates<'a>(&'a self, id: Option<&'a str>, algorithm: Algorithm) -> impl Iterator<Item = &'a TokenKey> {
        let named = move |key: &&TokenKey| match (id, key.id.as_deref()) {
            // A shared secret, or the only key of an issuer that does not name its keys.
            (Some(_), None) => self.keys.len() == 1,
            (Some(requested), Some(id)) => requested == id,
            (None, _) => true,
        };
        self.keys.iter().filter(move |key| key.algorithms.contains(&algorithm)).filter(named)
    }

    /// Whether [`TokenKeys::candidates`] has any key.
    pub fn have(&self, id: Option<&str>, algorithm: Algorithm) -> bool {
        self.candidates(id, algorithm).next().is_some()
    }
}

impl TokenKey {
    fn of_jwk(jwk: Value) -> Option<TokenKey> {
        let jwk: Jwk = serde_json::from_value(jwk).ok()?;
        let supported: &[Algorithm] = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => AlgorithmFamily::Rsa.algorithms(),
            AlgorithmParameters::EllipticCurve(key) => match key.curve {
                EllipticCurve::P256 => &[Algorithm::ES256],
                EllipticCurve::P384 => &[Algorithm::ES384],
                _ => return None,
            },
            AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => &[Algorithm::EdDSA],
            _ => return None,
        };
        if jwk.common.public_key_use.is_some_and(|purpose| purpose != PublicKeyUse::Signature) {
            return None;
        }
        if jwk.common.key_operations.as_ref().is_some_and(|may| !may.contains(&KeyOperations::Verify)) {
            return None;
        }
        let decoding = DecodingKey::from_jwk(&Jwk { common: Default::default(), algorithm: jwk.algorithm }).ok()?;
        let algorithms = match jwk.common.key_algorithm {
            None => supported.to_vec(),
            Some(named) => {
                let named = Algorithm::try_from(named).ok().filter(|named| supported.contains(named))?;
                vec![named]
            }
        };
        Some(TokenKey { id: jwk.common.key_id, algorithms, decoding: KeyMaterial::new(decoding) })
    }
}

/// The material of a key: comparable by its digest, never printed.
pub struct KeyMaterial {
    key: DecodingKey,
    digest: ring::digest::Digest,
}

impl KeyMaterial {
    fn new(key: DecodingKey) -> Self {
        use jsonwebtoken::DecodingKeyKind::{RsaModulusExponent, SecretOrDer};
        let mut digest = ring::digest::Context::new(&ring::digest::SHA256);
        match key.kind() {
            SecretOrDer(bytes) => digest.update(bytes),
            RsaModulusExponent { n, e } => {
                digest.update(&(n.len() as u64).to_le_bytes());
                digest.update(n);
                digest.update(e);
            }
        }
        KeyMaterial { digest: digest.finish(), key }
    }
}

impl std::ops::Deref for KeyMaterial {
    type Target = DecodingKey;

    fn deref(&self) -> &DecodingKey {
        &self.key
    }
}

impl PartialEq for KeyMaterial {
    fn eq(&self, other: &Self) -> bool {
        self.key.family() == other.key.family() && self.digest.as_ref() == other.digest.as_ref()
    }
}

impl std::fmt::Debug for KeyMaterial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}
