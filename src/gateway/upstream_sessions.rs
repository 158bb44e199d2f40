//! Sessions that the gateway keeps with legacy HTTP servers for clients that have none.
//!
//! One session for each instance, principal and set of client capabilities: what a server keeps in
//! a session never meets two users, and it asks a client only what that client offered.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Instant,
};

use http::{Response, StatusCode};
use serde_json::json;
use tokio::sync::OnceCell;

use super::{
    era::{LATEST_LEGACY, META_CLIENT},
    handler::{Call, Gateway},
    http_upstream::Target,
    message::{self, Kind, Message, raw},
    peer::{HttpPeer, Peer, PeerError},
    reply::{self, Body, Failure, SESSION},
    session::Principal,
    translate::{
        discover,
        modern_client::{self, LegacyPeer},
    },
};
use crate::names::ServerKey;

/// Most sessions that are kept.
const MOST: usize = 4096;

#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    server: ServerKey,
    /// Empty for a remote server.
    instance: String,
    principal: Principal,
    capabilities: String,
}

struct Slot {
    open: OnceCell<LegacyPeer>,
    used: Mutex<Instant>,
}

/// All such sessions.
#[derive(Default)]
pub struct UpstreamSessions {
    slots: Mutex<HashMap<Key, Arc<Slot>>>,
}

impl UpstreamSessions {
    /// Answers a modern request from a legacy server.
    pub async fn answer(
        &self,
        gateway: &Arc<Gateway>,
        call: &Call,
        message: &Message<'_>,
        target: Target,
    ) -> Result<Response<Body>, Failure> {
        let key = Key {
            server: call.route.server.clone(),
            instance: target.place.instance.clone(),
            principal: call.principal.clone(),
            capabilities: modern_client::capabilities(message).get().to_owned(),
        };
        // A session that the server forgot is worth one new one: nothing of the call was done.
        for is_last in [false, true] {
            let slot = self.slot(gateway, &key);
            let server = slot.open.get_or_try_init(|| open(gateway, call, message, &target, &key)).await;
            let server = server.map_err(Failure::from)?.clone();
            gateway.parameters.check(&target.place.revision, &server.peer, call, message).await?;
            match modern_client::answer(gateway, call, message, server).await {
                Err(PeerError::NoSession) if !is_last => self.forget(&key, &slot),
                done => return Ok(done?),
            }
        }
        Err(Failure::no_session())
    }

    fn slot(&self, gateway: &Gateway, key: &Key) -> Arc<Slot> {
        let now = Instant::now();
        let mut slots = self.slots.lock().expect("nobody panics while holding the sessions");
        if !slots.contains_key(key) {
            let idle = gateway.config.idle_timeout;
            let used = |slot: &Slot| *slot.used.lock().expect("nobody panics while holding the time");
            let mut old: Vec<Key> =
                slots.iter().filter(|(_, slot)| now - used(slot) > idle).map(|(key, _)| key.clone()).collect();
            if slots.len() - old.len() >= MOST {
                old.extend(slots.iter().min_by_key(|(_, slot)| used(slot)).map(|(key, _)| key.clone()));
            }
            for slot in old.iter().filter_map(|key| slots.remove(key)) {
                if let Some(LegacyPeer { peer: Peer::Http(peer), .. }) = slot.open.get().cloned() {
                    tokio::spawn(async move { peer.end().await });
                }
            }
        }
        let slot =
            slots.entry(key.clone()).or_insert_with(|| Arc::new(Slot { open: OnceCell::new(), used: Mutex::new(now) }));
        *slot.used.lock().expect("nobody panics while holding the time") = now;
        Arc::clone(slot)
    }

    fn forget(&self, key: &Key, slot: &Arc<Slot>) {
        let mut slots = self.slots.lock().expect("nobody panics while holding the sessions");
        if slots.get(key).is_some_and(|known| Arc::ptr_eq(known, slot)) {
            slots.remove(key);
        }
    }
}

/// Opens a session, in the client's name and with its capabilities.
async fn open(
    gateway: &Arc<Gateway>,
    call: &Call,
    message: &Message<'_>,
    target: &Target,
    key: &Key,
) -> Result<LegacyPeer, PeerError> {
    let mut peer = HttpPeer {
        gateway: Arc::clone(gateway),
        call: Arc::new(call.clone()),
        target: target.clone(),
        version: LATEST_LEGACY.to_owned(),
        session: None,
        headers: Vec::new(),
    };
    let capabilities = serde_json::value::RawValue::from_string(key.capabilities.clone());
    let info = message.meta(META_CLIENT).map(ToOwned::to_owned);
    let info = info.unwrap_or_else(|| raw(json!({"name": "perch", "version": env!("CARGO_PKG_VERSION")})));
    let params = json!({
        "protocolVersion": LATEST_LEGACY,
        "capabilities": capabilities.unwrap_or_else(|_| message::object()),
        "clientInfo": info,
    });
    let id = raw("perch-initialize");
    let request = message::request(Some(&id), "initialize", Some(&raw(params)));
    let response = peer.post(&request).await?;
    let session = response.headers().get(SESSION).and_then(|id| id.to_str().ok()).map(str::to_owned);
    let mut messages = peer.messages(response, Some(id)).await?;
    let server = &call.route.server;
    let initialized = loop {
        let bytes = futures::StreamExt::next(&mut messages).await.ok_or_else(|| {
            let text = format!("server {server} gave no answer to initialize");
            Failure::new(StatusCode::BAD_GATEWAY, reply::SERVER_FAILED, text)
        })?;
        let Some(message) = Message::parse(&bytes).filter(|m| m.kind() == Kind::Response) else { continue };
        let Some(result) = message.result else {
            let why = message.error.map(|e| e.get().to_owned()).unwrap_or_default();
            let text = format!("server {server} refused initialize: {why}");
            return Err(Failure::new(StatusCode::BAD_GATEWAY, reply::SERVER_FAILED, text).into());
        };
        break result.to_owned();
    };
    peer.session = session;
    peer.version = discover::agreed(&initialized);
    let peer = Peer::Http(peer);
    peer.tell(&message::request(None, "notifications/initialized", None)).await?;
    Ok(LegacyPeer { peer, initialized: initialized.into() })
}
