//! Session ids as clients see them.
//!
//! An id is a sealed box (ChaCha20-Poly1305) that holds where the session lives: the revision and
//! the instance that keep it. Only a gateway with the key can make or open one. It reveals nothing,
//! it cannot be guessed, and it is good for one server and one principal only. It needs no memory:
//! it stays good when the gateway restarts, and at every gateway with the key.

use std::{
    collections::{HashSet, VecDeque},
    sync::{Arc, Mutex},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use rand::RngCore;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use serde::{Deserialize, Serialize};

use crate::names::ServerKey;

/// Who asks, as whatever checks access found out, and put into the request's extensions. Empty for
/// everyone whom nobody checked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Principal(pub Arc<str>);

/// The groups of who asks, beside their [`Principal`].
#[derive(Clone, Debug, Default)]
pub struct Groups(pub Arc<[String]>);

/// Seals and opens session ids.
#[derive(Debug)]
pub struct Sessions {
    key: LessSafeKey,
}

/// Where a session lives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Home {
    /// At an HTTP instance, under the instance's own id.
    #[serde(rename = "u")]
    Upstream {
        /// The instance.
        #[serde(flatten)]
        place: Place,
        /// The id that it gave.
        id: String,
    },
    /// At a shared Stdio process. The number tells sessions apart.
    #[serde(rename = "s")]
    Shared {
        /// The instance.
        #[serde(flatten)]
        place: Place,
        /// Of the session.
        number: u64,
    },
    /// At a process of its own, by the number of the bridge's session.
    #[serde(rename = "o")]
    Own(u128),
    /// At a server that knows no sessions: all that there is to know travels in the id.
    #[serde(rename = "t")]
    Translated(Translated),
}

/// The instance that keeps a session. Both are empty for a remote server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// What the instance runs.
    #[serde(rename = "r")]
    pub revision: String,
    /// The instance.
    #[serde(rename = "i")]
    pub instance: String,
}

/// What `initialize` told of a client, for a server to which each request tells it anew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Translated {
    /// The revision of the server.
    #[serde(rename = "r")]
    pub revision: String,
    /// Tells sessions apart.
    #[serde(rename = "n")]
    pub number: u64,
    /// The client's capabilities, as JSON.
    #[serde(rename = "c")]
    pub capabilities: String,
    /// The client's name and version, as JSON.
    #[serde(rename = "f")]
    pub info: String,
}

/// The last sessions that clients ended, of those that live in their ids alone. A gateway that
/// starts again has forgotten them, and another one never knew: their ids are good there, and
/// still good for nobody else.
#[derive(Debug, Default)]
pub struct Ended {
    numbers: Mutex<(HashSet<u64>, VecDeque<u64>)>,
}

impl Ended {
    /// Most that are remembered.
    const MOST: usize = 65_536;

    /// A session ends.
    pub fn end(&self, number: u64) {
        let mut numbers = self.numbers.lock().expect("nobody panics while holding the numbers");
        let (known, order) = &mut *numbers;
        if known.insert(number) {
            order.push_back(number);
            if order.len() > Self::MOST
                && let Some(oldest) = order.pop_front()
            {
                known.remove(&oldest);
            }
        }
    }

    /// Whether a session ended.
    pub fn has(&self, number: u64) -> bool {
        self.numbers.lock().expect("nobody panics while holding the numbers").0.contains(&number)
    }
}

impl Sessions {
    /// Sessions under a key.
    ///
    /// # Panics
    /// Never: the key has the length that the algorithm asks for.
    pub fn new(key: &[u8; 32]) -> Self {
        let key = UnboundKey::new(&CHACHA20_POLY1305, key).expect("the key has 32 bytes");
        Self { key: LessSafeKey::new(key) }
    }

    /// The id that a client gets.
    ///
    /// # Panics
    /// Never: a home serialises, and is far smaller than what can be sealed.
    pub fn seal(&self, server: &ServerKey, principal: &Principal, home: &Home) -> String {
        let mut nonce = [0; NONCE_LEN];
        rand::rng().fill_bytes(&mut nonce);
        let mut sealed = serde_json::to_vec(home).expect("a home serialises");
        self.key
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), owner(server, principal), &mut sealed)
            .expect("a small text can be sealed");
        let mut id = nonce.to_vec();
        id.append(&mut sealed);
        URL_SAFE_NO_PAD.encode(id)
    }

    /// Where the session of an id lives; nothing for an id that was not made here for this server
    /// and this principal.
    pub fn open(&self, server: &ServerKey, principal: &Principal, id: &str) -> Option<Home> {
        let bytes = URL_SAFE_NO_PAD.decode(id).ok()?;
        let (nonce, sealed) = bytes.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut sealed = sealed.to_vec();
        let opened = self.key.open_in_place(nonce, owner(server, principal), &mut sealed).ok()?;
        serde_json::from_slice(opened).ok()
    }
}

/// No server's name has the separator.
fn owner(server: &ServerKey, principal: &Principal) -> Aad<String> {
    Aad::from(format!("{server}\0{}", principal.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_key_server_and_principal_open_an_id() {
        let sessions = Sessions::new(&[7; 32]);
        let server = ServerKey::new("default", "a");
        let dana = Principal("dana".into());
        let place = Place { revision: "a-1".into(), instance: "i".into() };
        let home = Home::Upstream { place, id: "secret".into() };
        let id = sessions.seal(&server, &dana, &home);
        assert_eq!(sessions.open(&server, &dana, &id), Some(home.clone()));
        assert_eq!(Sessions::new(&[7; 32]).open(&server, &dana, &id), Some(home.clone()));
        assert_eq!(Sessions::new(&[8; 32]).open(&server, &dana, &id), None);
        assert_eq!(sessions.open(&ServerKey::new("default", "b"), &dana, &id), None);
        assert_eq!(sessions.open(&server, &Principal("eve".into()), &id), None);
        assert_eq!(sessions.open(&server, &Principal::default(), &id), None);
        assert_eq!(sessions.open(&server, &dana, "secret"), None);
        assert_eq!(sessions.open(&server, &dana, ""), None);
        let mut forged = id.clone().into_bytes();
        forged[20] ^= 1;
        assert_eq!(sessions.open(&server, &dana, &String::from_utf8_lossy(&forged)), None);
        assert_ne!(sessions.seal(&server, &dana, &home), id);
        assert!(!id.contains("secret"));
    }

    #[test]
    fn what_ended_is_remembered_within_bounds() {
        let ended = Ended::default();
        for number in 0..=Ended::MOST as u64 {
            ended.end(number);
            ended.end(number);
        }
        assert!(!ended.has(0) && ended.has(1) && ended.has(Ended::MOST as u64));
    }

    #[test]
    fn every_home_can_be_read_again() {
        let sessions = Sessions::new(&[7; 32]);
        let (server, nobody) = (ServerKey::new("default", "a"), Principal::default());
        let place = Place { revision: "a-1".into(), instance: "i".into() };
        let translated =
            Translated { revision: "a-1".into(), number: u64::MAX, capabilities: "{}".into(), info: "{}".into() };
        let homes = [
            Home::Upstream { place: place.clone(), id: "x".into() },
            Home::Shared { place, number: u64::MAX },
            Home::Own(u128::MAX),
            Home::Translated(translated),
        ];
        for home in homes {
            assert_eq!(sessions.open(&server, &nobody, &sessions.seal(&server, &nobody, &home)), Some(home));
        }
    }
}
