//! API keys: long random texts, of which only the SHA-256 is kept. A key has 256 bits of chance,
//! so that a slow hash, as for passwords, would protect nothing more.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;
use ring::digest::{SHA256, digest};
use subtle::ConstantTimeEq;

use super::{Identity, file::KeyEntry, identity};

/// What every key begins with, so that people and scanners know one when they see it.
pub const PREFIX: &str = "perch_";

/// The SHA-256 of a credential.
pub type Hash = [u8; 32];

/// The SHA-256 of a credential.
///
/// # Panics
/// Never: a SHA-256 has 32 bytes.
pub fn hash(credential: &str) -> Hash {
    digest(&SHA256, credential.as_bytes()).as_ref().try_into().expect("a SHA-256 has 32 bytes")
}

/// A new key, and its hash as files have it.
#[must_use]
pub fn create() -> (String, String) {
    let key = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>()));
    let digits = hash(&key).iter().fold(String::new(), |digits, byte| digits + &format!("{byte:02x}"));
    (key, format!("sha256:{digits}"))
}

/// What is wrong with an entry of a file of keys, as JSON.
pub fn check(entry: &serde_json::Value) -> Result<(), String> {
    let entry: KeyEntry = serde_json::from_value(entry.clone()).map_err(|error| error.to_string())?;
    ApiKeys::new([&entry]).map(drop)
}

/// All keys that are known.
#[derive(Debug, Default)]
pub struct ApiKeys(Vec<Known>);

#[derive(Debug)]
struct Known {
    hash: Hash,
    expires: Option<Timestamp>,
    identity: Identity,
}

impl ApiKeys {
    /// The keys of these entries, or what is wrong with one of them.
    pub fn new<'a>(entries: impl IntoIterator<Item = &'a KeyEntry>) -> Result<Self, String> {
        let mut names = std::collections::HashSet::new();
        let known = entries.into_iter().map(|entry| {
            let bad = |why: &str| format!("the API key {:?} {why}", entry.name);
            if entry.name.is_empty() || !names.insert(&entry.name) {
                return Err(bad("has no name of its own: give each key another one"));
            }
            let hash = parse(&entry.hash)
                .ok_or_else(|| bad("has no sound hash: it is `sha256:` and 64 hexadecimal digits, as `perch access key create` prints them"))?;
            let identity = identity(entry.user.clone(), entry.groups.iter().cloned()).map_err(|why| bad(&why))?;
            Ok(Known { hash, expires: entry.expires, identity })
        });
        Ok(Self(known.collect::<Result<_, _>>()?))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whose key has this hash. How long it takes tells nothing about any key.
    pub fn find(&self, hash: &Hash, now: Timestamp) -> Option<&Identity> {
        let mut found = None;
        for known in &self.0 {
            if bool::from(known.hash.ct_eq(hash)) {
                found = Some(known);
            }
        }
        found.filter(|known| known.expires.is_none_or(|at| now < at)).map(|known| &known.identity)
    }
}

fn parse(text: &str) -> Option<Hash> {
    let digits = text.strip_prefix("sha256:").filter(|d| d.len() == 64 && d.is_ascii())?;
    let mut hash = [0; 32];
    for (index, byte) in hash.iter_mut().enumerate() {
        let pair = &digits[2 * index..2 * index + 2];
        *byte = u8::from_str_radix(pair, 16).ok().filter(|_| pair.bytes().all(|b| b.is_ascii_hexdigit()))?;
    }
    Some(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, hash: &str) -> KeyEntry {
        KeyEntry { name: name.into(), hash: hash.into(), user: name.into(), groups: vec!["ci".into()], expires: None }
    }

    #[test]
    fn only_a_key_that_was_made_is_known() {
        let (one, two) = (create(), create());
        assert!(one.0.starts_with("perch_") && one.0.len() == 49 && one.0 != two.0);
        let keys =
            ApiKeys::new(&[entry("a", &one.1), entry("b", &two.1.to_uppercase().replace("SHA256", "sha256"))]).unwrap();
        let now = Timestamp::now();
        let user = |key: &str| keys.find(&hash(key), now).map(|i| i.user.to_string());
        assert_eq!(user(&one.0).as_deref(), Some("a"));
        assert_eq!(user(&two.0).as_deref(), Some("b"));
        assert_eq!(user(&create().0), None);
        assert_eq!(user(&one.1), None, "the hash is not the key");
        assert_eq!(user(""), None);
    }

    #[test]
    fn a_key_ends_when_it_expires() {
        let (key, stored) = create();
        let now: Timestamp = "2026-11-21T12:00:00Z".parse().unwrap();
        let keys = ApiKeys::new(&[KeyEntry { expires: Some(now), ..entry("a", &stored) }]).unwrap();
        assert!(keys.find(&hash(&key), now - jiff::SignedDuration::from_secs(1)).is_some());
        assert!(keys.find(&hash(&key), now).is_none());
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let (key, good) = create();
        let short = &good[..good.len() - 1];
        for (entries, expected) in [
            (vec![entry("a", &key)], "has no sound hash"),
            (vec![entry("a", short)], "has no sound hash"),
            (vec![entry("a", &format!("sha256:{}", "+1".repeat(32)))], "has no sound hash"),
            (vec![entry("a", &good), entry("a", &good)], "no name of its own"),
            (vec![entry("", &good)], "no name of its own"),
            (vec![KeyEntry { user: String::new(), ..entry("a", &good) }], "empty"),
            (vec![KeyEntry { user: "system:masters".into(), ..entry("a", &good) }], "system:"),
            (vec![KeyEntry { groups: vec!["system:x".into()], ..entry("a", &good) }], "system:"),
        ] {
            let error = ApiKeys::new(&entries).unwrap_err();
            assert!(error.contains(expected), "{error}");
            assert!(!error.contains(&key));
        }
    }
}
