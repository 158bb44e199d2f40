//! Whether somebody signed an image: signatures as cosign makes them with a key.
//!
//! Two forms are known: the payload of simple signing
//! (<https://github.com/sigstore/cosign/blob/main/specs/SIGNATURE_SPEC.md>), and the bundle of sigstore
//! with a DSSE envelope (<https://github.com/secure-systems-lab/dsse/blob/master/protocol.md>), which
//! newer versions of cosign make.
//!
//! # Guarantees
//! * What is signed must name the digest of the image. A signature of something else, such as an
//!   attestation about the image, is none of the image.
//! * Only the key decides: nothing else in a signature is trusted, above all no name.

use base64::{Engine, engine::general_purpose::STANDARD};
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use serde::Deserialize;
use serde_json::Value;

/// `critical.type` of a payload of simple signing.
const SIMPLE: &str = "cosign container image signature";
/// `predicateType` of a statement that says "I sign this", and nothing more.
const PREDICATE: &str = "https://sigstore.dev/cosign/sign/v1";
/// `payloadType` of a statement.
const STATEMENT: &str = "application/vnd.in-toto+json";

/// What comes before the point in the SubjectPublicKeyInfo of a P-256 key (RFC 5480): the algorithm
/// `id-ecPublicKey` with the curve `secp256r1`, and the head of a bit string of 65 bytes.
const P256: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// Why a key is not good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// It is no PEM.
    #[error("a key is no PEM of the form -----BEGIN PUBLIC KEY-----: give the file that cosign calls cosign.pub")]
    Form,
    /// It is for something else.
    #[error("a key is none of ECDSA P-256: make one with `cosign generate-key-pair`")]
    Algorithm,
}

/// A public key, ECDSA P-256.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey([u8; 65]);

impl PublicKey {
    /// Reads a key in PEM.
    ///
    /// # Errors
    /// When it is no PEM, or a key for something else.
    pub fn parse(pem: &str) -> Result<Self, KeyError> {
        let text = pem.trim();
        let text = text.strip_prefix("-----BEGIN PUBLIC KEY-----").ok_or(KeyError::Form)?;
        let text = text.strip_suffix("-----END PUBLIC KEY-----").ok_or(KeyError::Form)?;
        let text: String = text.split_ascii_whitespace().collect();
        let der = STANDARD.decode(text).map_err(|_| KeyError::Form)?;
        let point = der.strip_prefix(&P256).ok_or(KeyError::Algorithm)?;
        // 4: both coordinates follow.
        let point: [u8; 65] = point.try_into().map_err(|_| KeyError::Algorithm)?;
        if point[0] == 4 { Ok(Self(point)) } else { Err(KeyError::Algorithm) }
    }

    /// Whether the owner of the key signed these bytes; `signature` is Base64 of ASN.1.
    fn signed(&self, bytes: &[u8], signature: &str) -> bool {
        let Ok(signature) = STANDARD.decode(signature.trim()) else { return false };
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &self.0).verify(bytes, &signature).is_ok()
    }

    /// Whether this payload of simple signing, with its signature, is one of the image.
    #[must_use]
    pub fn signed_payload(&self, payload: &[u8], signature: &str, digest: &str) -> bool {
        let Ok(document) = serde_json::from_slice::<Value>(payload) else { return false };
        let critical = &document["critical"];
        critical["type"] == SIMPLE
            && critical["image"]["docker-manifest-digest"] == digest
            && self.signed(payload, signature)
    }

    /// Whether this bundle holds a signature of the image.
    #[must_use]
    pub fn signed_bundle(&self, bundle: &[u8], digest: &str) -> bool {
        let Ok(Bundle { envelope }) = serde_json::from_slice(bundle) else { return false };
        let Ok(payload) = STANDARD.decode(&envelope.payload) else { return false };
        if envelope.payload_type != STATEMENT || !is_about(&payload, digest) {
            return false;
        }
        let signed = pre_authentication(&envelope.payload_type, &payload);
        envelope.signatures.iter().take(8).any(|s| self.signed(&signed, &s.sig))
    }
}

#[derive(Deserialize)]
struct Bundle {
    #[serde(rename = "dsseEnvelope")]
    envelope: Envelope,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    payload: String,
    payload_type: String,
    signatures: Vec<Signature>,
}

#[derive(Deserialize)]
struct Signature {
    sig: String,
}

/// Whether a statement signs the image, and says nothing else about it.
fn is_about(statement: &[u8], digest: &str) -> bool {
    let Ok(statement) = serde_json::from_slice::<Value>(statement) else { return false };
    let Some(hex) = digest.strip_prefix("sha256:") else { return false };
    let subjects = statement["subject"].as_array().map(Vec::as_slice).unwrap_or_default();
    statement["predicateType"] == PREDICATE && subjects.iter().any(|s| s["digest"]["sha256"] == hex)
}

/// The bytes that are signed in an envelope: DSSE calls them PAE.
fn pre_authentication(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let head = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len());
    [head.as_bytes(), payload].concat()
}

#[cfg(test)]
mod tests {
    use ring::{
        rand::SystemRandom,
        signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair},
    };
    use serde_json::json;

    use super::*;

    fn key_pair() -> (EcdsaKeyPair, PublicKey) {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8.as_ref(), &random).unwrap();
        let der = [P256.as_slice(), pair.public_key().as_ref()].concat();
        let pem = format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(der));
        (pair, PublicKey::parse(&pem).unwrap())
    }

    fn sign(pair: &EcdsaKeyPair, bytes: &[u8]) -> String {
        STANDARD.encode(pair.sign(&SystemRandom::new(), bytes).unwrap())
    }

    fn digest(c: char) -> String {
        format!("sha256:{}", c.to_string().repeat(64))
    }

    #[test]
    fn a_key_that_cosign_made_is_read() {
        // Made by openssl: ecparam -name prime256v1 -genkey, ec -pubout.
        let pem = "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAElnYkMLlWYfyKRozqhgKl+b9ApNCx\nJENsFMi/Gysvsn7RMyn3Fn+ntJARMRC+TqqkGU/YAFdZPxhlZhpVORqK8g==\n-----END PUBLIC KEY-----\n";
        assert!(PublicKey::parse(pem).is_ok());
        let rsa = pem.replace("MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcD", "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcE");
        assert_eq!(PublicKey::parse(&rsa), Err(KeyError::Algorithm));
        assert_eq!(PublicKey::parse("-----BEGIN RSA PUBLIC KEY-----"), Err(KeyError::Form));
        assert_eq!(PublicKey::parse(""), Err(KeyError::Form));
    }

    #[test]
    fn a_payload_counts_for_its_digest_and_its_key_alone() {
        let ((pair, key), (_, other)) = (key_pair(), key_pair());
        let payload = |kind: &str| {
            let image = json!({"docker-manifest-digest": digest('a')});
            json!({"critical": {"identity": {"docker-reference": "x"}, "image": image, "type": kind}, "optional": null})
                .to_string()
        };
        let good = payload(SIMPLE);
        let signature = sign(&pair, good.as_bytes());
        assert!(key.signed_payload(good.as_bytes(), &signature, &digest('a')));
        assert!(!other.signed_payload(good.as_bytes(), &signature, &digest('a')), "another key");
        assert!(!key.signed_payload(good.as_bytes(), &signature, &digest('b')), "another image");
        let forged = good.replace(&digest('a'), &digest('b'));
        assert!(!key.signed_payload(forged.as_bytes(), &signature, &digest('b')), "changed after it was signed");
        let kind = payload("something else");
        assert!(!key.signed_payload(kind.as_bytes(), &sign(&pair, kind.as_bytes()), &digest('a')), "another purpose");
        for broken in ["", "AAAA", "not base64"] {
            assert!(!key.signed_payload(good.as_bytes(), broken, &digest('a')));
        }
    }

    #[test]
    fn a_bundle_counts_for_a_signature_and_no_attestation() {
        let ((pair, key), (_, other)) = (key_pair(), key_pair());
        let bundle = |predicate: &str, kind: &str, c: char| {
            let subject = json!([{"digest": {"sha256": c.to_string().repeat(64)}}]);
            let statement = json!({"_type": "https://in-toto.io/Statement/v1", "subject": subject,
                "predicateType": predicate, "predicate": {}})
            .to_string();
            let signature = sign(&pair, &pre_authentication(kind, statement.as_bytes()));
            json!({"mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json", "dsseEnvelope": {
                "payload": STANDARD.encode(statement), "payloadType": kind, "signatures": [{"sig": signature}]}})
            .to_string()
        };
        let signed = |bundle: &str| key.signed_bundle(bundle.as_bytes(), &digest('a'));
        let good = bundle(PREDICATE, STATEMENT, 'a');
        assert!(signed(&good));
        assert!(!other.signed_bundle(good.as_bytes(), &digest('a')), "another key");
        assert!(!signed(&bundle(PREDICATE, STATEMENT, 'b')), "another image");
        assert!(!signed(&bundle("https://slsa.dev/provenance/v1", STATEMENT, 'a')), "an attestation");
        assert!(!signed(&bundle(PREDICATE, "text/plain", 'a')), "another type of payload");
        assert!(!signed("{}"));
        assert_eq!(
            pre_authentication("http://example.com/HelloWorld", b"hello world"),
            b"DSSEv1 29 http://example.com/HelloWorld 11 hello world",
            "the example of the specification"
        );
    }
}
