//! The cryptography of `jsonwebtoken`, implemented with ring, which TLS needs anyway.
//!
//! Only verifies: the service signs no tokens.

use jsonwebtoken::{
    Algorithm, AlgorithmFamily, DecodingKey, DecodingKeyKind,
    crypto::{CryptoProvider, JwtVerifier, KeyUtils},
    errors::{ErrorKind, Result, new_error},
};
use ring::{
    hmac,
    signature::{
        ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256,
        RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512, RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384,
        RSA_PSS_2048_8192_SHA512, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm,
    },
};
use signature::{Error, Verifier};

static PROVIDER: CryptoProvider = CryptoProvider {
    signer_factory: |_, _| Err(new_error(ErrorKind::UnsupportedAlgorithm)),
    verifier_factory: verifier,
    key_utils: KeyUtils::new_unimplemented(),
};

/// Installs the process's provider for tokens. A second call does nothing.
pub fn install() {
    // The error means that it is already installed.
    let _ = PROVIDER.install_default();
}

/// A verifier of `algorithm` with `key`. The two must be of the same kind.
fn verifier(algorithm: &Algorithm, key: &DecodingKey) -> Result<Box<dyn JwtVerifier>> {
    let algorithm = *algorithm;
    if algorithm.family() != key.family() {
        return Err(new_error(ErrorKind::InvalidAlgorithm));
    }
    Ok(match (algorithm.family(), key.kind()) {
        (AlgorithmFamily::Hmac, DecodingKeyKind::SecretOrDer(secret)) => {
            Box::new(HmacVerifier { algorithm, key: hmac::Key::new(keyed_hash(algorithm)?, secret) })
        }
        (AlgorithmFamily::Rsa, DecodingKeyKind::RsaModulusExponent { n, e }) => {
            let key = RsaPublicKeyComponents { n: n.clone(), e: e.clone() };
            Box::new(RsaVerifier { algorithm, parameters: rsa(algorithm)?, key })
        }
        (AlgorithmFamily::Ec | AlgorithmFamily::Ed, DecodingKeyKind::SecretOrDer(key)) => {
            let key = UnparsedPublicKey::new(curve(algorithm)?, key.clone());
            Box::new(CurveVerifier { algorithm, key })
        }
        _ => return Err(new_error(ErrorKind::InvalidKeyFormat)),
    })
}

fn unsupported<T>() -> Result<T> {
    Err(new_error(ErrorKind::UnsupportedAlgorithm))
}

fn keyed_hash(algorithm: Algorithm) -> Result<hmac::Algorithm> {
    Ok(match algorithm {
        Algorithm::HS256 => hmac::HMAC_SHA256,
        Algorithm::HS384 => hmac::HMAC_SHA384,
        Algorithm::HS512 => hmac::HMAC_SHA512,
        _ => return unsupported(),
    })
}

fn rsa(algorithm: Algorithm) -> Result<&'static RsaParameters> {
    Ok(match algorithm {
        Algorithm::RS256 => &RSA_PKCS1_2048_8192_SHA256,
        Algorithm::RS384 => &RSA_PKCS1_2048_8192_SHA384,
        Algorithm::RS512 => &RSA_PKCS1_2048_8192_SHA512,
        Algorithm::PS256 => &RSA_PSS_2048_8192_SHA256,
        Algorithm::PS384 => &RSA_PSS_2048_8192_SHA384,
        Algorithm::PS512 => &RSA_PSS_2048_8192_SHA512,
        _ => return unsupported(),
    })
}

fn curve(algorithm: Algorithm) -> Result<&'static dyn VerificationAlgorithm> {
    Ok(match algorithm {
        Algorithm::ES256 => &ECDSA_P256_SHA256_FIXED,
        Algorithm::ES384 => &ECDSA_P384_SHA384_FIXED,
        Algorithm::EdDSA => &ED25519,
        _ => return unsupported(),
    })
}

/// HS256, HS384, HS512.
struct HmacVerifier {
    algorithm: Algorithm,
    key: hmac::Key,
}

/// RS256 to PS512.
struct RsaVerifier {
    algorithm: Algorithm,
    parameters: &'static RsaParameters,
    key: RsaPublicKeyComponents<Vec<u8>>,
}

/// ES256, ES384, EdDSA.
struct CurveVerifier {
    algorithm: Algorithm,
    key: UnparsedPublicKey<Vec<u8>>,
}

macro_rules! verifies {
    ($verifier:ty, |$this:ident, $message:ident, $signature:ident| $verified:expr) => {
        impl Verifier<Vec<u8>> for $verifier {
            fn verify(&self, $message: &[u8], $signature: &Vec<u8>) -> std::result::Result<(), Error> {
                let $this = self;
                $verified.map_err(|_| Error::new())
            }
        }

        impl JwtVerifier for $verifier {
            fn algorithm(&self) -> Algorithm {
                self.algorithm
            }
        }
    };
}

verifies!(HmacVerifier, |this, message, signature| hmac::verify(&this.key, message, signature));
verifies!(RsaVerifier, |this, message, signature| this.key.verify(this.parameters, message, signature));
verifies!(CurveVerifier, |this, message, signature| this.key.verify(message, signature));
