use ring::{
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256, RSA_PSS_SHA256,
        RsaKeyPair,
    },
};
use serde_json::json;

use super::*;

/// An RSA key for these tests alone, as RFC 8017 has it: ring makes none.
const RSA: &[&str] = &[
    "MIIEowIBAAKCAQEAsaKlVa+lSD6mvE5Su0hvxxEUCY/Nxabpz/8YinCXKcXy2dtFClnanQ2KvhprLu4i7HGfiFfw5TUukI5CapL+",
    "zok2DjA2N2o+Z3yM2A3y6gEuQZ5ZhgNV6YQnUABgJGPDVmsapVvnMcTniWbIQsCIyLeLFcPem5+O4GqVE22CVJV+lJs/w9sdzax+",
    "ayGkEHfNYHR6wQUFRz/1KuikStVly/1ZJac8QktuAFCDETxDbh4VQMed8CS4IdZOt0P/QeIvzfus3JtKbswGJ6Fo9JwW+pKkmtke",
    "uCMlU+xK23Oz+g/4YWxgKnpEJfvswg6dHzlQgREFBfwWuGtUSJIdziykVwIDAQABAoIBAA8ULdGNDD+KhSZzxgIWSNn7hFmFCeql",
    "Tv1UO9KrDBBRUidVvatk3thGHGjwXsWoR76nRoUqy4ApeFjWoQl69By3X3Qeefu3DeURZZAeXwIONGcAxVV8iWZxMwUcT9nG8WX8",
    "lLgRieaa2F/v7nMvWznumrF8sJp1SPBnG8OybN9qs2CVcoy/rMwXTGIkBK8TZpB6jpoQSJS3Le5LMJ7v7nsFr7Y6qDojfa5IB2+y",
    "cTTuBeAaLFd6Lq53j0HM9Zt+VWy1Xx1UCgE3f4aGYhjoFuuBjm/TrpJUyYVCmGvULL9fFD/JvbYqdV1orueAVLr9gukyYijH7rbP",
    "8GYdfOvuRsECgYEA5fTkLeI3AgEIreGye0FzgJ71hLfDdG0i4gHGTgVrmLGPpfhsIyvJdMKsLQnWVTlabNJR7fYvRLz4IlrT8kBF",
    "+PtWYz5wXy+DxtmMdEkCLsqbpQYcUUy4RpByzxcU+vyuvGQhQY3wwMh3vGF/0GUGkQw318/wWPIIhs9Qb16VP/MCgYEAxcDPJhnv",
    "zJ/oQ/2sGk8fk6CIgFC5rTBqQtb9IcBFU9n17kQX5t/tLq+S/dYz5Xky7RBvqpltsbnXIt/Qh2035HEb3xpgxU74G3dV3ahogu61",
    "rPtZaA2u8eLMICyigZtHvXou42t+dDRNNlUbc+2PZKkZvXKLXA50b4q6zge0Rw0CgYBmCwf+fHXgg8jwMEldfKvelatpm4o2bf+e",
    "vx7anHkkpxaRle2WpeWd1I1G5yifZPYFeEc3C5nqLNkHlbqbs33ZgN7S53BCLPmTEhLLv2IilXIABvgl85+KYKsxzpJW1i5MFzrS",
    "tkPxqIPJqpJnTY1ebEeTkwiaz7yM5g5RfW1JlQKBgQCBcEfm55k3tf9g6Z0KB3pitfRDERPIEeWr5G8B9YkrboJ0N+vxOedU5KVx",
    "MxD7Bg7Ybya4Yv8TEtKHyDoFOu8XvxWAPhLTc3IhAEaa9M2bzkXqeQc3faViPJJiCPVBonMdyekBAO5ff5B+nMyAYCG4wJrRjzU6",
    "x1ddX1AQ5agRzQKBgDO5vbgHCTIoo/Mv3WNQEr5/E6J1u30wC+JP+hV7iFX6g9j7Qe35x25Hys7sNn2Rm+6fea09JKN4c0O/CaKA",
    "4FYgAemz2BTTRF+JEatbfzAnlpUvKgDWdgF2Um+gck9OgBVgqltvVJ4mnlv7pvLdFGVz1lTxi4hOQRFiSQNnuIRU",
];

fn rsa() -> RsaKeyPair {
    let der = base64::engine::general_purpose::STANDARD.decode(RSA.concat()).unwrap();
    RsaKeyPair::from_der(&der).unwrap()
}

fn ec() -> EcdsaKeyPair {
    let random = SystemRandom::new();
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
    EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref(), &random).unwrap()
}

fn rsa_jwk(pair: &RsaKeyPair) -> Value {
    let RsaPublicKeyComponents { n, e } = RsaPublicKeyComponents::<Vec<u8>>::from(pair.public());
    json!({"kty": "RSA", "kid": "r", "use": "sig", "n": URL_SAFE_NO_PAD.encode(n), "e": URL_SAFE_NO_PAD.encode(e)})
}

fn ec_jwk(pair: &EcdsaKeyPair) -> Value {
    let (x, y) = pair.public_key().as_ref()[1..].split_at(32);
    json!({"kty": "EC", "crv": "P-256", "kid": "e", "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y)})
}

fn unsigned(header: &Value, claims: &Value) -> String {
    format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(claims.to_string()))
}

fn signed(header: &Value, claims: &Value, sign: impl Fn(&[u8]) -> Vec<u8>) -> String {
    let message = unsigned(header, claims);
    let signature = URL_SAFE_NO_PAD.encode(sign(message.as_bytes()));
    format!("{message}.{signature}")
}

fn by_ec(pair: &EcdsaKeyPair) -> impl Fn(&[u8]) -> Vec<u8> {
    |message| pair.sign(&SystemRandom::new(), message).unwrap().as_ref().to_vec()
}

fn by_rsa(pair: &RsaKeyPair, pss: bool) -> impl Fn(&[u8]) -> Vec<u8> {
    move |message| {
        let mut signature = vec![0; pair.public().modulus_len()];
        let padding: &dyn signature::RsaEncoding = if pss { &RSA_PSS_SHA256 } else { &RSA_PKCS1_SHA256 };
        pair.sign(padding, &SystemRandom::new(), message, &mut signature).unwrap();
        signature
    }
}

fn verify(token: &str, key: &Key, algorithms: &[Algorithm]) -> Result<Map<String, Value>, TokenError> {
    Token::parse(token)?.verify(key, algorithms)
}

#[test]
fn a_signature_of_the_right_key_is_good() {
    let claims = json!({"sub": "dana"});
    let (rsa, ec) = (rsa(), ec());
    let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
    let ed = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap();
    let x = URL_SAFE_NO_PAD.encode(ed.public_key().as_ref());
    let ed_jwk = json!({"kty": "OKP", "crv": "Ed25519", "kid": "d", "alg": "EdDSA", "x": x});
    let key = |jwk: &Value| Key::parse(jwk).unwrap().1;
    for (token, key) in [
        (signed(&json!({"alg": "RS256"}), &claims, by_rsa(&rsa, false)), key(&rsa_jwk(&rsa))),
        (signed(&json!({"alg": "PS256"}), &claims, by_rsa(&rsa, true)), key(&rsa_jwk(&rsa))),
        (signed(&json!({"alg": "ES256"}), &claims, by_ec(&ec)), key(&ec_jwk(&ec))),
        (signed(&json!({"alg": "EdDSA"}), &claims, |m| ed.sign(m).as_ref().to_vec()), key(&ed_jwk)),
    ] {
        assert_eq!(verify(&token, &key, &Algorithm::ALL).unwrap()["sub"], "dana");
        let (rest, signature) = token.rsplit_once('.').unwrap();
        let other = unsigned(&json!({"alg": "ES256"}), &json!({"sub": "eve"}));
        let (header, _) = rest.split_once('.').unwrap();
        let (_, forged) = other.split_once('.').unwrap();
        assert_eq!(
            verify(&format!("{header}.{forged}.{signature}"), &key, &Algorithm::ALL),
            Err(TokenError::Signature)
        );
        assert_eq!(verify(&format!("{rest}."), &key, &Algorithm::ALL), Err(TokenError::Signature));
    }
}

#[test]
fn a_token_does_not_choose_how_it_is_verified() {
    let claims = json!({"sub": "eve"});
    let (rsa, ec) = (rsa(), ec());
    let jwk = rsa_jwk(&rsa);
    let key = Key::parse(&jwk).unwrap().1;
    let refused = |token: &str, algorithms: &[Algorithm]| verify(token, &key, algorithms).unwrap_err();
    for none in ["none", "None", "NONE", ""] {
        let token = format!("{}.", unsigned(&json!({"alg": none}), &claims));
        assert_eq!(refused(&token, &Algorithm::ALL), TokenError::Algorithm);
    }
    // The public key as the secret of an HMAC.
    let secret = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, jwk["n"].as_str().unwrap().as_bytes());
    let token = signed(&json!({"alg": "HS256"}), &claims, |m| ring::hmac::sign(&secret, m).as_ref().to_vec());
    assert_eq!(refused(&token, &Algorithm::ALL), TokenError::Algorithm);
    let token = signed(&json!({"alg": "ES256"}), &claims, by_ec(&ec));
    assert_eq!(refused(&token, &Algorithm::ALL), TokenError::Algorithm, "a key of another kind");
    let token = signed(&json!({"alg": "RS256"}), &claims, by_rsa(&rsa, false));
    assert_eq!(refused(&token, &[Algorithm::ES256]), TokenError::Algorithm, "not on the list");
    let mut only = jwk.clone();
    only["alg"] = "PS256".into();
    let only = Key::parse(&only).unwrap().1;
    assert_eq!(verify(&token, &only, &Algorithm::ALL), Err(TokenError::Algorithm), "the key is for another one");
    let token = signed(&json!({"alg": "RS256", "crit": ["b64"], "b64": false}), &claims, by_rsa(&rsa, false));
    assert_eq!(refused(&token, &Algorithm::ALL), TokenError::Critical);
    let token = signed(&json!({"alg": "ES256"}), &claims, by_ec(&ec));
    let other = Key::parse(&ec_jwk(&self::ec())).unwrap().1;
    assert_eq!(verify(&token, &other, &Algorithm::ALL), Err(TokenError::Signature), "another key");
}

#[test]
fn what_is_no_token_is_said_to_be_none() {
    for text in ["", ".", "..", "a.b", "a.b.c", "a.b.c.d", "e30.e30", "e30.e30.!", "W10.W10.", "bnVsbA.e30."] {
        assert!(Token::parse(text).is_err_and(|e| e == TokenError::Malformed), "{text:?}");
    }
}

#[test]
fn keys_that_verify_no_signatures_are_left_out() {
    let good = rsa_jwk(&rsa());
    assert!(Key::parse(&good).is_some());
    for (name, value) in [
        ("kid", Value::Null),
        ("use", "enc".into()),
        ("key_ops", json!(["encrypt"])),
        ("alg", "RSA-OAEP".into()),
        ("kty", "oct".into()),
        ("kty", "EC".into()),
        ("n", Value::Null),
        ("n", "!".into()),
    ] {
        let mut bad = good.clone();
        bad[name] = value;
        assert!(Key::parse(&bad).is_none(), "{bad}");
    }
    assert!(Key::parse(&json!("key")).is_none());
}

#[test]
fn times_are_looked_at_with_some_leeway() {
    let check = |claims: Value| check_times(claims.as_object().unwrap(), 1000, 30);
    assert_eq!(check(json!({"exp": 971})), Ok(1001));
    assert_eq!(check(json!({"exp": 1000.9})), Ok(1030));
    for expired in
        [json!({"exp": 970}), json!({}), json!({"exp": "2000"}), json!({"exp": null}), json!({"exp": [2000]})]
    {
        assert_eq!(check(expired.clone()), Err(TokenError::Expired), "{expired}");
    }
    assert_eq!(check(json!({"exp": 2000, "nbf": 1030})), Ok(2030));
    for early in
        [json!({"exp": 2000, "nbf": 1031}), json!({"exp": 2000, "nbf": "0"}), json!({"exp": 2000, "nbf": null})]
    {
        assert_eq!(check(early.clone()), Err(TokenError::TooEarly), "{early}");
    }
    assert_eq!(check(json!({"exp": i64::MAX})), Ok(i64::MAX));
}

#[test]
fn claims_are_found_by_name_and_by_pointer() {
    let claims = json!({
        "sub": "dana", "https://example.com/groups": ["a"], "realm_access": {"roles": ["b", 7]}, "scope": "x  y", "aud": "one",
    });
    let claims = claims.as_object().unwrap();
    assert_eq!(claim(claims, "sub").unwrap(), "dana");
    assert_eq!(claim(claims, "https://example.com/groups").map(texts).unwrap(), ["a"]);
    assert_eq!(claim(claims, "/realm_access/roles").map(texts).unwrap(), ["b"]);
    assert_eq!(claim(claims, "/sub").unwrap(), "dana");
    assert!(
        claim(claims, "/realm_access/none").is_none() && claim(claims, "none").is_none() && claim(claims, "").is_none()
    );
    assert_eq!(scopes(claims), ["x", "y"]);
    assert_eq!(scopes(json!({"scp": ["a", "b c"]}).as_object().unwrap()), ["a", "b", "c"]);
    assert_eq!(audiences(claims), ["one"]);
    assert!(audiences(json!({"aud": 7}).as_object().unwrap()).is_empty());
}
