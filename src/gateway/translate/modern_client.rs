//! A modern client at a legacy server.
//!
//! The gateway keeps the session that the server wants. When the server asks the client something
//! in the middle of a call, the call is held, the client gets `input_required`, and its next try
//! brings the answers to the held call. A held call lives in this gateway's memory: a try that
//! reaches another gateway is told to begin again.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use futures::{
    StreamExt,
    stream::{self},
};
use http::{Response, StatusCode};
use rand::RngCore;
use serde_json::{Map, Value, json, value::RawValue};

use super::{discover, with_missing};
use crate::{
    gateway::{
        era::{self, Era, META_CAPABILITIES, META_LOG, META_SERVER, META_SUBSCRIPTION},
        handler::{Call, Gateway},
        message::{self, Entries, Kind, Message, member, object, raw, text},
        observe::Trail,
        peer::{self, Messages, Peer, PeerError},
        reply::{self, Body, Failure},
        session::Principal,
    },
    names::Revision,
};

/// How long a call waits for its client's answers.
const HOLD: Duration = Duration::from_secs(600);
/// Most calls that wait at the same time.
const MOST_HELD: usize = 1024;

/// A legacy server with the session that is open with it.
#[derive(Clone)]
pub struct LegacyPeer {
    /// The server.
    pub peer: Peer,
    /// Its answer to `initialize`.
    pub initialized: Arc<RawValue>,
}

/// Calls that wait for their clients' answers.
#[derive(Default)]
pub struct HeldCalls {
    calls: Mutex<HashMap<String, Held>>,
}

struct Held {
    messages: Messages,
    server: LegacyPeer,
    /// The id of the server's request.
    asked: Box<RawValue>,
    principal: Principal,
    /// The revision that asks.
    revision: Option<Revision>,
    until: Instant,
}

impl HeldCalls {
    /// Keeps a call; the state by which its client finds it again cannot be guessed.
    fn keep(&self, held: Held) -> Option<String> {
        let mut random = [0; 16];
        rand::rng().fill_bytes(&mut random);
        let state = URL_SAFE_NO_PAD.encode(random);
        let mut calls = self.calls.lock().expect("nobody panics while holding the calls");
        let now = Instant::now();
        calls.retain(|_, held| held.until > now);
        if calls.len() >= MOST_HELD {
            return None;
        }
        calls.insert(state.clone(), held);
        Some(state)
    }

    fn take(&self, state: &str, principal: &Principal) -> Option<Held> {
        let mut calls = self.calls.lock().expect("nobody panics while holding the calls");
        let known = calls.get(state).is_some_and(|held| held.principal == *principal && held.until > Instant::now());
        if known { calls.remove(state) } else { None }
    }
}

/// Whether a legacy server knows the method.
fn is_shared(method: &str) -> bool {
    matches!(
        method,
        "tools/list"
            | "tools/call"
            | "prompts/list"
            | "prompts/get"
            | "resources/list"
            | "resources/templates/list"
            | "resources/read"
            | "completion/complete"
    )
}

/// Whether a result of the method must say how long it is good for.
fn is_cacheable(method: &str) -> bool {
    matches!(method, "tools/list" | "prompts/list" | "resources/list" | "resources/templates/list" | "resources/read")
}

/// Answers a modern request from a legacy server.
///
/// # Errors
/// See [`PeerError`]; a session that the server forgot is worth one more try with a new one.
pub async fn answer(
    gateway: &Arc<Gateway>,
    call: &Call,
    message: &Message<'_>,
    server: LegacyPeer,
) -> Result<Response<Body>, PeerError> {
    if message.kind() != Kind::Request {
        // There is nothing that a notification could be about: closing a stream cancels its call.
        return Ok(reply::empty(StatusCode::ACCEPTED));
    }
    era::check_meta(message)?;
    match message.method() {
        "server/discover" => {
            let result = discover::from_initialize(&server.initialized);
            Ok(reply::json(StatusCode::OK, message::result(message.id, &result)))
        }
        "subscriptions/listen" => listen(gateway, message, server).await,
        method if is_shared(method) => {
            let messages = match message.param("requestState") {
                Some(state) => resume(gateway, call, message, &state).await?,
                None => begin(gateway, call, message, server).await?,
            };
            Ok(peer::respond(gateway, call, messages, Era::Modern).await)
        }
        method => {
            let text = format!("Method not found: {method}");
            Err(Failure::new(StatusCode::NOT_FOUND, reply::NO_METHOD, text).into())
        }
    }
}

async fn begin(
    gateway: &Arc<Gateway>,
    call: &Call,
    message: &Message<'_>,
    server: LegacyPeer,
) -> Result<Messages, PeerError> {
    if message.meta(META_LOG).is_some() && discover::offers(&server.initialized, "logging", None) {
        // The level is the session's there; which messages a call gets is decided here.
        let params = raw(json!({"level": "debug"}));
        let request = message::request(Some(&raw("perch-log")), "logging/setLevel", Some(&params));
        drop(server.peer.ask_within(&request, gateway.config.call_timeout).await?);
    }
    let empty = object();
    let mut params = Entries::of(message.params.unwrap_or(&empty));
    let mut meta = Entries::of(message.param_raw("_meta").unwrap_or(&empty));
    meta.retain(|key| !key.starts_with("io.modelcontextprotocol/"));
    params.set("_meta", meta.raw());
    params.retain(|key| key != "inputResponses" && (key != "_meta" || !meta.0.is_empty()));
    let request = message.line(None, Some(&params.raw()));
    let messages = server.peer.request(&request).await?;
    Ok(Passage::new(gateway, call, message, server, messages).stream())
}

async fn resume(
    gateway: &Arc<Gateway>,
    call: &Call,
    message: &Message<'_>,
    state: &str,
) -> Result<Messages, PeerError> {
    let Some(held) = gateway.held.take(state, &call.principal) else {
        let text = "requestState is not known here: the call it belongs to waited too long, or began at another gateway; send the call again without it";
        return Err(Failure::new(StatusCode::OK, reply::INVALID_PARAMS, text).into());
    };
    let key = key_of(&held.asked);
    let answer = message.param_raw("inputResponses").and_then(|responses| member(responses, &key));
    let Some(answer) = answer else {
        let text = format!("inputResponses has no {key:?}, which the server asked for");
        let failure = Failure::new(StatusCode::OK, reply::INVALID_PARAMS, text);
        drop(held);
        return Err(failure.into());
    };
    if let Some(revision) = &held.revision {
        gateway.resumes(call, revision);
    }
    held.server.peer.tell(&message::result(Some(&held.asked), answer)).await?;
    Ok(Passage::new(gateway, call, message, held.server, held.messages).stream())
}

/// The key under which a request of the server is put to the client.
fn key_of(id: &RawValue) -> String {
    id.get().trim_matches('"').to_owned()
}

/// The messages of a call on their way from a legacy server to a modern client.
struct Passage {
    gateway: Arc<Gateway>,
    principal: Principal,
    trail: Arc<Trail>,
    server: LegacyPeer,
    messages: Option<Messages>,
    id: Box<RawValue>,
    cacheable: bool,
    /// What the client declared with this try.
    capabilities: Box<RawValue>,
    log_level: Option<usize>,
    info: Option<Box<RawValue>>,
}

/// Severities of log messages, lowest first.
const LEVELS: [&str; 8] = ["debug", "info", "notice", "warning", "error", "critical", "alert", "emergency"];

fn severity(level: &RawValue) -> Option<usize> {
    let level = text(level)?;
    LEVELS.iter().position(|l| *l == level)
}

impl Passage {
    fn new(gateway: &Arc<Gateway>, call: &Call, message: &Message<'_>, server: LegacyPeer, messages: Messages) -> Self {
        let info = member(&server.initialized, "serverInfo").map(ToOwned::to_owned);
        Self {
            gateway: Arc::clone(gateway),
            principal: call.principal.clone(),
            trail: Arc::clone(&call.trail),
            server,
            messages: Some(messages),
            id: message.id.map_or_else(|| raw(Value::Null), ToOwned::to_owned),
            cacheable: is_cacheable(message.method()),
            capabilities: capabilities(message),
            log_level: message.meta(META_LOG).and_then(severity),
            info,
        }
    }

    /// Whether the client answers such questions.
    fn offers(&self, method: &str) -> bool {
        let capability = match method {
            "elicitation/create" => "elicitation",
            "sampling/createMessage" => "sampling",
            "roots/list" => "roots",
            _ => return false,
        };
        member(&self.capabilities, capability).is_some()
    }

    fn stream(self) -> Messages {
        stream::unfold(self, |mut passage| async move {
            let next = passage.next().await?;
            Some((next, passage))
        })
        .boxed()
    }

    async fn next(&mut self) -> Option<Bytes> {
        loop {
            let bytes = self.messages.as_mut()?.next().await?;
            let Some(message) = Message::parse(&bytes) else { continue };
            match (message.kind(), message.method()) {
                (Kind::Response, _) => {
                    self.messages = None;
                    return Some(self.response(&message));
                }
                (Kind::Request, "ping") => {
                    // A server that cannot be told is about to end the stream.
                    let _ = self.server.peer.tell(&message::result(message.id, &object())).await;
                }
                (Kind::Request, method) if !self.offers(method) => {
                    let text = format!("the client does not offer {method}");
                    let refusal = message::error(message.id, reply::NO_METHOD, &text, None);
                    let _ = self.server.peer.tell(&refusal).await;
                }
                (Kind::Request, _) => return Some(self.hold(&message)),
                (Kind::Notification, "notifications/message") => {
                    let level = message.param_raw("level").and_then(severity);
                    if self.log_level.zip(level).is_some_and(|(wanted, level)| level >= wanted) {
                        return Some(bytes);
                    }
                }
                (Kind::Notification, "notifications/progress") => return Some(bytes),
                // Whoever wants to know of changes listens for them.
                (Kind::Notification, _) => {}
            }
        }
    }

    fn response(&self, message: &Message<'_>) -> Bytes {
        match (message.result, message.error) {
            (Some(result), _) => message::result(Some(&self.id), &self.complete(result)).into(),
            (None, Some(error)) => {
                let moved = member(error, "code").is_some_and(|code| code.get() == "-32002");
                let error =
                    if moved { message::with_member(error, &["code"], &raw(reply::INVALID_PARAMS)) } else { None };
                message::failure(Some(&self.id), error.as_deref().or(message.error)).into()
            }
            (None, None) => {
                message::error(Some(&self.id), reply::SERVER_FAILED, "the server gave no answer", None).into()
            }
        }
    }

    fn complete(&self, result: &RawValue) -> Box<RawValue> {
        let (complete, ttl, scope) = (raw("complete"), raw(0), raw("private"));
        let mut members: Vec<(&str, &RawValue)> = vec![("resultType", &complete)];
        if self.cacheable {
            members.extend([("ttlMs", &*ttl), ("cacheScope", &*scope)]);
        }
        let empty = object();
        let meta = self.info.as_ref().map(|info| {
            let meta = member(result, "_meta").unwrap_or(&empty);
            with_missing(meta, &[(META_SERVER, info)])
        });
        let with_meta = meta.as_ref().and_then(|meta| message::with_member(result, &["_meta"], meta));
        if let Some(meta) = &meta {
            members.push(("_meta", meta));
        }
        with_missing(with_meta.as_deref().unwrap_or(result), &members)
    }

    /// Turns the server's question into the end of this try.
    fn hold(&mut self, message: &Message<'_>) -> Bytes {
        let (Some(messages), Some(asked)) = (self.messages.take(), message.id) else {
            return message::error(Some(&self.id), reply::SERVER_FAILED, "the server asked without an id", None).into();
        };
        let held = Held {
            messages,
            server: self.server.clone(),
            asked: asked.to_owned(),
            principal: self.principal.clone(),
            revision: self.trail.revision(),
            until: Instant::now() + HOLD,
        };
        let Some(state) = self.gateway.held.keep(held) else {
            let text = "too many calls wait for their clients: try again later";
            return message::error(Some(&self.id), reply::UNAVAILABLE, text, None).into();
        };
        let mut request = Entries::default();
        request.set("method", raw(message.method()));
        request.set("params", message.params.map_or_else(object, ToOwned::to_owned));
        let key = key_of(asked);
        let mut requests = Entries::default();
        requests.set(&key, request.raw());
        let mut result = Entries::default();
        result.set("resultType", raw("input_required"));
        result.set("inputRequests", requests.raw());
        result.set("requestState", raw(state));
        message::result(Some(&self.id), &result.raw()).into()
    }
}

/// `subscriptions/listen`: what the server says to nobody in particular, as far as it was asked for.
async fn listen(
    gateway: &Arc<Gateway>,
    message: &Message<'_>,
    server: LegacyPeer,
) -> Result<Response<Body>, PeerError> {
    let Some(id) = message.id.map(ToOwned::to_owned) else { return Ok(reply::empty(StatusCode::ACCEPTED)) };
    let filter = message.param_raw("notifications");
    let wants = |name: &str| filter.and_then(|f| member(f, name)).is_some_and(|value| value.get() == "true");
    let mut granted = Map::new();
    let mut methods = Vec::new();
    for (kind, name) in
        [("tools", "toolsListChanged"), ("prompts", "promptsListChanged"), ("resources", "resourcesListChanged")]
    {
        if wants(name) && discover::offers(&server.initialized, kind, Some("listChanged")) {
            granted.insert(name.into(), true.into());
            methods.push(format!("notifications/{kind}/list_changed"));
        }
    }
    let uris = filter.and_then(|f| member(f, "resourceSubscriptions"));
    let uris: Vec<String> = uris.and_then(|uris| serde_json::from_str(uris.get()).ok()).unwrap_or_default();
    let news = server.peer.news().await?;
    if !uris.is_empty() && discover::offers(&server.initialized, "resources", Some("subscribe")) {
        for uri in &uris {
            let params = raw(json!({"uri": uri}));
            let request = message::request(Some(&raw("perch-subscribe")), "resources/subscribe", Some(&params));
            drop(server.peer.ask_within(&request, gateway.config.call_timeout).await?);
        }
        granted.insert("resourceSubscriptions".into(), uris.clone().into());
    }
    let acknowledged = raw(json!({"_meta": {META_SUBSCRIPTION: id}, "notifications": granted}));
    let acknowledged = message::request(None, "notifications/subscriptions/acknowledged", Some(&acknowledged));
    let subscription = id.clone();
    let passed = news.filter_map(move |bytes| {
        let passed = Message::parse(&bytes).and_then(|message| {
            let method = message.method();
            let wanted = methods.iter().any(|m| m == method)
                || method == "notifications/resources/updated"
                    && message.param("uri").is_some_and(|uri| uris.iter().any(|u| *u == uri));
            wanted.then(|| of_subscription(&message, &subscription))
        });
        async move { passed }
    });
    let end = raw(json!({"resultType": "complete", "_meta": {META_SUBSCRIPTION: id}}));
    let end = Bytes::from(message::result(Some(&id), &end));
    let closing = gateway.shutdown.clone().cancelled_owned();
    let events = stream::once(async move { acknowledged.into() })
        .chain(passed.take_until(closing))
        .chain(stream::once(async move { end }));
    Ok(reply::events(events))
}

/// A notification that tells which subscription it belongs to.
fn of_subscription(message: &Message<'_>, id: &RawValue) -> Bytes {
    let empty = object();
    let mut params = Entries::of(message.params.unwrap_or(&empty));
    let mut meta = Entries::of(message.param_raw("_meta").unwrap_or(&empty));
    meta.set(META_SUBSCRIPTION, id.to_owned());
    params.set("_meta", meta.raw());
    message::request(None, message.method(), Some(&params.raw())).into()
}

/// The capabilities that a modern request declares, as a legacy `initialize` does.
pub fn capabilities(message: &Message<'_>) -> Box<RawValue> {
    let empty = object();
    let mut capabilities = Entries::of(message.meta(META_CAPABILITIES).unwrap_or(&empty));
    capabilities.retain(|name| name != "extensions");
    capabilities.raw()
}
