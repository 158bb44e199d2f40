//! JSON Web Tokens that are signed (RFC 7519, 7515), and keys that verify them (RFC 7517, 7518).
//! Pure: it knows no issuer and no clock.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::signature::{self, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm};
use serde::Deserialize;
use serde_json::{Map, Value};

/// What is wrong with a token, in words that hold no part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It is no signed token.
    #[error("it is no JSON Web Token")]
    Malformed,
    /// Its header asks for more than is understood.
    #[error("its header asks for an extension that is not understood")]
    Critical,
    /// Its algorithm is not among those that count.
    #[error("its signature algorithm is not accepted")]
    Algorithm,
    /// It does not name its key.
    #[error("it does not name the key that signed it")]
    NoKey,
    /// The key did not make the signature.
    #[error("its signature is wrong")]
    Signature,
    /// Its time is over, or it does not say when.
    #[error("it expired, or does not say when it does")]
    Expired,
    /// Its time has not begun.
    #[error("it is not valid yet")]
    TooEarly,
}

/// A signature algorithm, named as in RFC 7518 and RFC 8037. None of them has a secret that a verifier
/// must know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Algorithm {
    RS256,
    RS384,
    RS512,
    PS256,
    PS384,
    PS512,
    ES256,
    ES384,
    EdDSA,
}

impl Algorithm {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::RS256,
        Self::RS384,
        Self::RS512,
        Self::PS256,
        Self::PS384,
        Self::PS512,
        Self::ES256,
        Self::ES384,
        Self::EdDSA,
    ];

    /// The algorithm of this name.
    pub fn named(name: &str) -> Option<Self> {
        serde_json::from_value(name.into()).ok()
    }

    fn rsa(self) -> Option<&'static RsaParameters> {
        Some(match self {
            Self::RS256 => &signature::RSA_PKCS1_2048_8192_SHA256,
            Self::RS384 => &signature::RSA_PKCS1_2048_8192_SHA384,
            Self::RS512 => &signature::RSA_PKCS1_2048_8192_SHA512,
            Self::PS256 => &signature::RSA_PSS_2048_8192_SHA256,
            Self::PS384 => &signature::RSA_PSS_2048_8192_SHA384,
            Self::PS512 => &signature::RSA_PSS_2048_8192_SHA512,
            Self::ES256 | Self::ES384 | Self::EdDSA => return None,
        })
    }
}

/// A token whose signature nobody has looked at yet.
pub struct Token<'a> {
    signed: &'a str,
    signature: Vec<u8>,
    header: Header,
    claims: Map<String, Value>,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    crit: Option<Value>,
}

impl<'a> Token<'a> {
    /// Reads a token. What it claims is not known to be true.
    pub fn parse(token: &'a str) -> Result<Self, TokenError> {
        let (signed, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let (header, claims) = signed.split_once('.').ok_or(TokenError::Malformed)?;
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Malformed);
        let header: Header = serde_json::from_slice(&decode(header)?).map_err(|_| TokenError::Malformed)?;
        let claims = serde_json::from_slice(&decode(claims)?).map_err(|_| TokenError::Malformed)?;
        Ok(Self { signed, signature: decode(signature)?, header, claims })
    }

    /// Who says that it issued the token.
    pub fn issuer(&self) -> Option<&str> {
        self.claims.get("iss")?.as_str()
    }

    /// Which key it says has signed it.
    pub fn key_id(&self) -> Option<&str> {
        self.header.kid.as_deref()
    }

    /// Whom it says it is meant for.
    pub fn audiences(&self) -> Vec<String> {
        audiences(&self.claims)
    }

    /// What it claims, true or not.
    pub fn claims(&self) -> &Map<String, Value> {
        &self.claims
    }

    /// The claims of a token that `key` signed with one of `algorithms`.
    pub fn verify(self, key: &Key, algorithms: &[Algorithm]) -> Result<Map<String, Value>, TokenError> {
        if self.header.crit.is_some() {
            return Err(TokenError::Critical);
        }
        let algorithm = Algorithm::named(&self.header.alg).filter(|a| algorithms.contains(a));
        let algorithm = algorithm.ok_or(TokenError::Algorithm)?;
        key.verify(algorithm, self.signed.as_bytes(), &self.signature)?;
        Ok(self.claims)
    }
}

/// When claims cease to be true, in seconds since 1970, if they are true at `now`.
pub fn check_times(claims: &Map<String, Value>, now: i64, leeway: i64) -> Result<i64, TokenError> {
    let expires = expires(claims).ok_or(TokenError::Expired)?;
    let until = expires.saturating_add(leeway);
    if now >= until {
        return Err(TokenError::Expired);
    }
    if let Some(from) = claims.get("nbf") {
        let from = seconds(from).ok_or(TokenError::TooEarly)?;
        if now.saturating_add(leeway) < from {
            return Err(TokenError::TooEarly);
        }
    }
    Ok(until)
}

/// When claims cease to be true, in seconds since 1970.
pub fn expires(claims: &Map<String, Value>) -> Option<i64> {
    claims.get("exp").and_then(seconds)
}

#[expect(clippy::cast_possible_truncation, reason = "a cast of a float to an integer saturates")]
fn seconds(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| value.as_f64().map(|seconds| seconds.floor() as i64))
}

/// Whom claims are meant for.
pub fn audiences(claims: &Map<String, Value>) -> Vec<String> {
    claims.get("aud").map(texts).unwrap_or_default()
}

/// One text, or a list of them.
pub fn texts(value: &Value) -> Vec<String> {
    match value {
        Value::String(text) => vec![text.clone()],
        Value::Array(list) => list.iter().filter_map(Value::as_str).map(ToOwned::to_owned).collect(),
        _ => Vec::new(),
    }
}

/// The scopes of a token: `scope` as RFC 9068 has it, or `scp` as others do.
pub fn scopes(claims: &Map<String, Value>) -> Vec<String> {
    let words = |value: &Value| texts(value).iter().flat_map(|t| t.split_whitespace()).map(ToOwned::to_owned).collect();
    claims.get("scope").or_else(|| claims.get("scp")).map(words).unwrap_or_default()
}

/// A claim by its name, or by a JSON pointer.
pub fn claim<'a>(claims: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    let Some(path) = name.strip_prefix('/') else { return claims.get(name) };
    let (first, rest) = path.split_once('/').map_or((path, ""), |(first, _)| (first, &path[first.len()..]));
    claims.get(&first.replace("~1", "/").replace("~0", "~"))?.pointer(rest)
}

/// A public key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// The only algorithm that it is for, if it says so.
    algorithm: Option<Algorithm>,
    material: Material,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Material {
    Rsa { n: Vec<u8>, e: Vec<u8> },
    P256(Vec<u8>),
    P384(Vec<u8>),
    Ed25519(Vec<u8>),
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    #[serde(rename = "use")]
    use_: Option<String>,
    key_ops: Option<Vec<String>>,
    alg: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

impl Key {
    /// A key of a set and its id. Nothing for a key that verifies no signatures, has no id, or is of
    /// a kind that is not known: others of the set are good all the same.
    pub fn parse(jwk: &Value) -> Option<(String, Self)> {
        let jwk = Jwk::deserialize(jwk).ok()?;
        let verifies =
            jwk.use_.is_none_or(|u| u == "sig") && jwk.key_ops.is_none_or(|ops| ops.iter().any(|o| o == "verify"));
        let algorithm = match jwk.alg {
            None => None,
            Some(name) => Some(Algorithm::named(&name)?),
        };
        let bytes = |part: Option<String>| URL_SAFE_NO_PAD.decode(part?).ok();
        let point = |x, y, length| {
            let (x, y) = (bytes(x)?, bytes(y)?);
            (x.len() == length && y.len() == length).then(|| [&[4][..], &x, &y].concat())
        };
        let material = match (jwk.kty.as_str(), jwk.crv.as_deref()) {
            ("RSA", _) => {
                let number = |part| bytes(part).map(|n| n.into_iter().skip_while(|b| *b == 0).collect());
                Material::Rsa { n: number(jwk.n)?, e: number(jwk.e)? }
            }
            ("EC", Some("P-256")) => Material::P256(point(jwk.x, jwk.y, 32)?),
            ("EC", Some("P-384")) => Material::P384(point(jwk.x, jwk.y, 48)?),
            ("OKP", Some("Ed25519")) => Material::Ed25519(bytes(jwk.x)?),
            _ => return None,
        };
        Some((jwk.kid.filter(|_| verifies)?, Self { algorithm, material }))
    }

    fn verify(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> Result<(), TokenError> {
        if self.algorithm.is_some_and(|only| only != algorithm) {
            return Err(TokenError::Algorithm);
        }
        let plain = |verifier: &'static dyn VerificationAlgorithm, key: &[u8]| {
            UnparsedPublicKey::new(verifier, key).verify(message, signature)
        };
        let verified = match (&self.material, algorithm) {
            (Material::Rsa { n, e }, algorithm) => {
                let parameters = algorithm.rsa().ok_or(TokenError::Algorithm)?;
                RsaPublicKeyComponents { n, e }.verify(parameters, message, signature)
            }
            (Material::P256(point), Algorithm::ES256) => plain(&signature::ECDSA_P256_SHA256_FIXED, point),
            (Material::P384(point), Algorithm::ES384) => plain(&signature::ECDSA_P384_SHA384_FIXED, point),
            (Material::Ed25519(key), Algorithm::EdDSA) => plain(&signature::ED25519, key),
            _ => return Err(TokenError::Algorithm),
        };
        verified.map_err(|_| TokenError::Signature)
    }
}

#[cfg(test)]
#[path = "jwt/tests.rs"]
mod tests;
