//! The keys that tokens are verified with, and which token goes to which.

use jsonwebtoken::{
    Algorithm, AlgorithmFamily, DecodingKey,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse},
};
use serde::Deserialize;
use serde_json::Value;

/// The most keys of a set that are looked at.
const MOST: usize = 100;

/// A key, and what it may be used for.
#[derive(Debug, PartialEq)]
pub struct Key {
    id: Option<String>,
    /// Those that fit the key's kind, or the one that the set names.
    pub algorithms: Vec<Algorithm>,
    pub decoding: Decoding,
}

/// All keys there are.
#[derive(Debug, Default)]
pub struct Keys {
    keys: Vec<Key>,
    /// Of which set these are: grows whenever another one comes.
    pub generation: u64,
}

impl Keys {
    /// A shared secret's.
    pub fn of_secret(secret: &[u8]) -> Self {
        let algorithms = AlgorithmFamily::Hmac.algorithms().to_vec();
        Keys {
            keys: vec![Key { id: None, algorithms, decoding: Decoding::new(DecodingKey::from_secret(secret)) }],
            generation: 1,
        }
    }

    /// Those of a JWK set (RFC 7517) that verify signatures in a way that is known here. The others are left out, and so are
    /// secrets: a set is public.
    ///
    /// # Errors
    /// It is no set, or has nothing of use.
    pub fn of_set(json: &[u8]) -> Result<Vec<Key>, &'static str> {
        #[derive(Deserialize)]
        struct Set {
            keys: Vec<Value>,
        }
        let set: Set = serde_json::from_slice(json).map_err(|_| "it is not a JWK set")?;
        let keys: Vec<Key> = set.keys.into_iter().take(MOST).filter_map(Key::of_jwk).collect();
        if keys.is_empty() { Err("it has no key that signatures could be verified with") } else { Ok(keys) }
    }

    /// The set after these, if it is another.
    pub fn next(&self, keys: Vec<Key>) -> Option<Keys> {
        (keys != self.keys).then_some(Keys { keys, generation: self.generation + 1 })
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// The keys that may have signed a token with this header: the one that it names, or where it names none all of the kind.
    pub fn fitting<'a>(&'a self, id: Option<&'a str>, algorithm: Algorithm) -> impl Iterator<Item = &'a Key> {
        let named = move |key: &&Key| match (id, key.id.as_deref()) {
            // A shared secret, and the only key of an issuer that does not name it.
            (Some(_), None) => self.keys.len() == 1,
            (Some(asked), Some(id)) => asked == id,
            (None, _) => true,
        };
        self.keys.iter().filter(move |key| key.algorithms.contains(&algorithm)).filter(named)
    }

    /// Whether there is any such key.
    pub fn have(&self, id: Option<&str>, algorithm: Algorithm) -> bool {
        self.fitting(id, algorithm).next().is_some()
    }
}

impl Key {
    fn of_jwk(jwk: Value) -> Option<Key> {
        let jwk: Jwk = serde_json::from_value(jwk).ok()?;
        let fitting: &[Algorithm] = match &jwk.algorithm {
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
            None => fitting.to_vec(),
            Some(named) => {
                let named = Algorithm::try_from(named).ok().filter(|named| fitting.contains(named))?;
                vec![named]
            }
        };
        Some(Key { id: jwk.common.key_id, algorithms, decoding: Decoding::new(decoding) })
    }
}

/// A key's material: comparable, and never printed.
pub struct Decoding {
    key: DecodingKey,
    digest: ring::digest::Digest,
}

impl Decoding {
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
        Decoding { digest: digest.finish(), key }
    }
}

impl std::ops::Deref for Decoding {
    type Target = DecodingKey;

    fn deref(&self) -> &DecodingKey {
        &self.key
    }
}

impl PartialEq for Decoding {
    fn eq(&self, other: &Self) -> bool {
        self.key.family() == other.key.family() && self.digest.as_ref() == other.digest.as_ref()
    }
}

impl std::fmt::Debug for Decoding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}
