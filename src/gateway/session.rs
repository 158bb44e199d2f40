//! Session ids as clients see them.
//!
//! An id is a sealed box (ChaCha20-Poly1305) that holds where the session lives. Only a gateway
//! with the key can make or open one, it reveals nothing, it is good for one server only, and it
//! needs no memory: it stays good when the gateway restarts, and at every gateway with the key.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use rand::RngCore;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use serde::{Deserialize, Serialize};

use crate::names::ServerKey;

/// Seals and opens session ids.
#[derive(Debug)]
pub struct Sessions {
    key: LessSafeKey,
}

/// Where a session lives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Home {
    /// At an HTTP instance, under the instance's own id.
    Upstream {
        /// The instance, empty for a remote server.
        instance: String,
        /// The id that it gave.
        id: String,
    },
    /// At a shared Stdio process. The number tells sessions apart.
    Shared(u64),
    /// At a process of its own, by the number of the bridge's session.
    Own(u128),
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
    pub fn seal(&self, server: &ServerKey, home: &Home) -> String {
        let mut nonce = [0; NONCE_LEN];
        rand::rng().fill_bytes(&mut nonce);
        let mut sealed = serde_json::to_vec(home).expect("a home serialises");
        self.key
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(server.to_string()), &mut sealed)
            .expect("a small text can be sealed");
        let mut id = nonce.to_vec();
        id.append(&mut sealed);
        URL_SAFE_NO_PAD.encode(id)
    }

    /// Where the session of an id lives; nothing for an id that was not made here for this server.
    pub fn open(&self, server: &ServerKey, id: &str) -> Option<Home> {
        let bytes = URL_SAFE_NO_PAD.decode(id).ok()?;
        let (nonce, sealed) = bytes.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut sealed = sealed.to_vec();
        let opened = self.key.open_in_place(nonce, Aad::from(server.to_string()), &mut sealed).ok()?;
        serde_json::from_slice(opened).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_key_and_server_open_an_id() {
        let sessions = Sessions::new(&[7; 32]);
        let server = ServerKey::new("default", "a");
        let home = Home::Upstream { instance: "i".into(), id: "secret".into() };
        let id = sessions.seal(&server, &home);
        assert_eq!(sessions.open(&server, &id), Some(home.clone()));
        assert_eq!(Sessions::new(&[7; 32]).open(&server, &id), Some(home.clone()));
        assert_eq!(Sessions::new(&[8; 32]).open(&server, &id), None);
        assert_eq!(sessions.open(&ServerKey::new("default", "b"), &id), None);
        assert_eq!(sessions.open(&server, "secret"), None);
        assert_eq!(sessions.open(&server, ""), None);
        let mut forged = id.clone().into_bytes();
        forged[20] ^= 1;
        assert_eq!(sessions.open(&server, &String::from_utf8_lossy(&forged)), None);
        assert_ne!(sessions.seal(&server, &home), id);
        assert!(!id.contains("secret"));
    }
}
