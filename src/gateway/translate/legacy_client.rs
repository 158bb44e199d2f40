//! A legacy client at a modern server.
//!
//! The client's session is in its id: who it is and what it can do, told anew with each request.
//! In memory is only what a moment needs: a log level, subscriptions, calls in hand, and questions
//! to the client that wait for its answer.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{
    StreamExt,
    stream::{self},
};
use http::{Response, StatusCode};
use serde_json::{json, value::RawValue};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::discover;
use crate::gateway::{
    era::{Era, META_CAPABILITIES, META_CLIENT, META_LOG, META_VERSION, MODERN},
    handler::{Call, Gateway},
    message::{self, Entries, Kind, Message, member, object, raw, text},
    peer::{self, Messages, Peer, PeerError},
    reply::{self, Body, Failure},
    session::Translated,
};

/// Rounds of questions that one call may take.
const MOST_ROUNDS: usize = 32;
/// Wait before a call is tried again that a busy server put off.
const PUT_OFF: Duration = Duration::from_millis(500);
/// Longest wait between two tries to listen.
const SLOWEST_LISTEN: Duration = Duration::from_secs(30);

/// What is kept of sessions, by their numbers.
#[derive(Default)]
pub struct LegacySessions {
    sessions: Mutex<HashMap<u64, Arc<Session>>>,
}

/// What is kept of one session.
#[derive(Default)]
struct Session {
    used: Mutex<Option<Instant>>,
    log_level: Mutex<Option<Box<RawValue>>>,
    uris: watch::Sender<BTreeSet<String>>,
    /// Questions to the client, by the id that they went out with.
    asked: Mutex<HashMap<String, oneshot::Sender<Box<RawValue>>>>,
    /// Calls in hand, by their id.
    calls: Mutex<HashMap<String, CancellationToken>>,
}

impl LegacySessions {
    fn get(&self, number: u64, idle: Duration) -> Arc<Session> {
        let now = Instant::now();
        let mut sessions = self.sessions.lock().expect("nobody panics while holding the sessions");
        if !sessions.contains_key(&number) {
            let is_used = |session: &Arc<Session>| {
                let used = session.used.lock().expect("nobody panics while holding the time");
                Arc::strong_count(session) > 1 || used.is_some_and(|used| now - used < idle)
            };
            sessions.retain(|_, session| is_used(session));
        }
        let session = Arc::clone(sessions.entry(number).or_default());
        *session.used.lock().expect("nobody panics while holding the time") = Some(now);
        session
    }

    fn end(&self, number: u64) {
        self.sessions.lock().expect("nobody panics while holding the sessions").remove(&number);
    }
}

/// The session of a client that introduces itself.
pub fn introduce(message: &Message<'_>, revision: String) -> Translated {
    let part = |name: &str| message.param_raw(name).map(|part| part.get().to_owned());
    Translated {
        revision,
        number: rand::random(),
        capabilities: part("capabilities").unwrap_or_else(|| "{}".into()),
        info: part("clientInfo").unwrap_or_else(|| r#"{"name":"unknown","version":"unknown"}"#.into()),
    }
}

/// `server/discover`, as the gateway asks it for itself.
pub fn discover_request() -> Vec<u8> {
    let client = json!({"name": "perch", "version": env!("CARGO_PKG_VERSION")});
    let params = json!({"_meta": {META_VERSION: MODERN, META_CAPABILITIES: {}, META_CLIENT: client}});
    message::request(Some(&raw("perch-discover")), "server/discover", Some(&raw(params)))
}

/// DELETE: the session ends.
pub fn delete(gateway: &Gateway, session: &Translated) -> Response<Body> {
    gateway.legacy.end(session.number);
    gateway.ended.end(session.number);
    reply::empty(StatusCode::NO_CONTENT)
}

/// Answers a legacy message of a session from a modern server.
///
/// # Errors
/// When the server does not answer.
pub async fn answer(
    gateway: &Arc<Gateway>,
    call: &Call,
    message: &Message<'_>,
    translated: Translated,
    peer: Peer,
) -> Result<Response<Body>, PeerError> {
    let session = gateway.legacy.get(translated.number, gateway.config.idle_timeout);
    let done = |message: &Message<'_>| Ok(reply::json(StatusCode::OK, message::result(message.id, &object())));
    let accepted = || Ok(reply::empty(StatusCode::ACCEPTED));
    match (message.kind(), message.method()) {
        (Kind::Request, "ping") => done(message),
        (Kind::Request, "logging/setLevel") => {
            *session.log_level.lock().expect("nobody panics while holding the level") =
                message.param_raw("level").map(ToOwned::to_owned);
            done(message)
        }
        (Kind::Request, method @ ("resources/subscribe" | "resources/unsubscribe")) => {
            let Some(uri) = message.param("uri") else {
                let text = "params.uri is missing";
                return Err(Failure::new(StatusCode::OK, reply::INVALID_PARAMS, text).into());
            };
            session.uris.send_if_modified(|uris| match method {
                "resources/subscribe" => uris.insert(uri.into_owned()),
                _ => uris.remove(&*uri),
            });
            done(message)
        }
        (Kind::Request, _) => {
            let ask = Ask::new(gateway, message, &translated, session, peer);
            let messages = ask.stream();
            Ok(peer::respond(gateway, call, messages, Era::Legacy).await)
        }
        (Kind::Notification, "notifications/cancelled") => {
            let calls = session.calls.lock().expect("nobody panics while holding the calls");
            if let Some(token) = message.param_raw("requestId").and_then(|id| calls.get(id.get())) {
                token.cancel();
            }
            accepted()
        }
        (Kind::Notification, _) => accepted(),
        (Kind::Response, _) => {
            let id = message.id.and_then(text);
            let mut asked = session.asked.lock().expect("nobody panics while holding the questions");
            if let Some(answer) = id.and_then(|id| asked.remove(&*id)) {
                // An error is the client's "no": the server hears that it was declined.
                let declined = raw(json!({"action": "decline"}));
                let _ = answer.send(message.result.map_or(declined, ToOwned::to_owned));
            }
            accepted()
        }
    }
}

/// One call, over as many rounds as the server has questions.
struct Ask {
    gateway: Arc<Gateway>,
    session: Arc<Session>,
    peer: Peer,
    /// The request as the server gets it, but for answers and state.
    request: Vec<u8>,
    id: Box<RawValue>,
    cancelled: CancellationToken,
    state: State,
    rounds: usize,
}

enum State {
    Start(Option<Box<RawValue>>, Option<Box<RawValue>>),
    Reading(Messages),
    /// Questions that have not gone out yet, those that have, and the server's state.
    Asking {
        out: Vec<Bytes>,
        waiting: Vec<(String, String, oneshot::Receiver<Box<RawValue>>)>,
        state: Option<Box<RawValue>>,
    },
    Over,
}

impl Drop for Ask {
    fn drop(&mut self) {
        self.session.calls.lock().expect("nobody panics while holding the calls").remove(self.id.get());
    }
}

impl Ask {
    fn new(
        gateway: &Arc<Gateway>,
        message: &Message<'_>,
        translated: &Translated,
        session: Arc<Session>,
        peer: Peer,
    ) -> Self {
        let level = session.log_level.lock().expect("nobody panics while holding the level").clone();
        let empty = object();
        let mut params = Entries::of(message.params.unwrap_or(&empty));
        let mut meta = Entries::of(message.param_raw("_meta").unwrap_or(&empty));
        meta.retain(|key| !key.starts_with("io.modelcontextprotocol/"));
        meta.set(META_VERSION, raw(MODERN));
        for (key, json) in [(META_CAPABILITIES, &translated.capabilities), (META_CLIENT, &translated.info)] {
            meta.set(key, RawValue::from_string(json.clone()).unwrap_or_else(|_| object()));
        }
        if let Some(level) = level {
            meta.set(META_LOG, level);
        }
        params.set("_meta", meta.raw());
        let request = message::request(message.id, message.method(), Some(&params.raw()));
        let id = message.id.map_or_else(object, ToOwned::to_owned);
        let cancelled = CancellationToken::new();
        let mut calls = session.calls.lock().expect("nobody panics while holding the calls");
        calls.insert(id.get().to_owned(), cancelled.clone());
        drop(calls);
        let gateway = Arc::clone(gateway);
        Self { gateway, session, peer, request, id, cancelled, state: State::Start(None, None), rounds: 0 }
    }

    fn stream(self) -> Messages {
        stream::unfold(self, |mut ask| async move {
            let cancelled = ask.cancelled.clone();
            let next = tokio::select! {
                next = ask.next() => next?,
                // Dropping what is in hand ends it at the server. The client wants no answer, but
                // its request is still open.
                () = cancelled.cancelled() => ask.fail(reply::UNAVAILABLE, "the call was cancelled"),
            };
            Some((next, ask))
        })
        .boxed()
    }

    fn fail(&mut self, code: i32, text: &str) -> Bytes {
        self.state = State::Over;
        message::error(Some(&self.id), code, text, None).into()
    }

    async fn next(&mut self) -> Option<Bytes> {
        loop {
            match std::mem::replace(&mut self.state, State::Over) {
                State::Over => return None,
                State::Start(answers, state) => match self.send(answers, state).await {
                    Ok(messages) => self.state = State::Reading(messages),
                    Err(error) => {
                        let failure = Failure::from(error);
                        return Some(self.fail(failure.code, &failure.message));
                    }
                },
                State::Reading(mut messages) => {
                    let Some(bytes) = messages.next().await else {
                        return Some(self.fail(reply::SERVER_FAILED, "the server gave no answer"));
                    };
                    let Some(message) = Message::parse(&bytes) else {
                        self.state = State::Reading(messages);
                        continue;
                    };
                    if message.kind() != Kind::Response {
                        self.state = State::Reading(messages);
                        return Some(bytes);
                    }
                    let kind = message.result.and_then(|r| member(r, "resultType")).and_then(text);
                    match (message.result, kind.as_deref()) {
                        (Some(result), Some("input_required")) => self.ask(result).await,
                        _ => return Some(bytes),
                    }
                }
                State::Asking { mut out, waiting, state } => {
                    if let Some(question) = out.pop() {
                        self.state = State::Asking { out, waiting, state };
                        return Some(question);
                    }
                    match self.collect(waiting).await {
                        Ok(answers) => self.state = State::Start(Some(answers), state),
                        Err(text) => return Some(self.fail(reply::SERVER_FAILED, text)),
                    }
                }
            }
        }
    }

    async fn send(
        &mut self,
        answers: Option<Box<RawValue>>,
        state: Option<Box<RawValue>>,
    ) -> Result<Messages, PeerError> {
        if answers.is_none() && state.is_none() {
            return self.peer.request(&self.request).await;
        }
        let empty = object();
        let message = Message::parse(&self.request).unwrap_or_default();
        let mut params = Entries::of(message.params.unwrap_or(&empty));
        if let Some(answers) = answers {
            params.set("inputResponses", answers);
        }
        if let Some(state) = state {
            params.set("requestState", state);
        }
        self.peer.request(&message.line(None, Some(&params.raw()))).await
    }

    /// Turns what the server wants to know into requests to the client.
    async fn ask(&mut self, result: &RawValue) {
        self.rounds += 1;
        let state = member(result, "requestState").map(ToOwned::to_owned);
        let empty = object();
        let questions = Entries::of(member(result, "inputRequests").unwrap_or(&empty));
        if self.rounds > MOST_ROUNDS {
            let text = "the server asks on and on";
            let over = Bytes::from(message::error(Some(&self.id), reply::SERVER_FAILED, text, None));
            self.state = State::Reading(stream::once(async { over }).boxed());
            return;
        }
        if questions.0.is_empty() {
            tokio::time::sleep(PUT_OFF).await;
            self.state = State::Start(None, state);
            return;
        }
        let (mut out, mut waiting) = (Vec::new(), Vec::new());
        for (key, question) in &questions.0 {
            let id = format!("perch-{:032x}", rand::random::<u128>());
            let method = member(question, "method").and_then(text).unwrap_or_default();
            out.push(message::request(Some(&raw(&id)), &method, member(question, "params")).into());
            let (sender, receiver) = oneshot::channel();
            self.session.asked.lock().expect("nobody panics while holding the questions").insert(id.clone(), sender);
            waiting.push((key.clone().into_owned(), id, receiver));
        }
        self.state = State::Asking { out, waiting, state };
    }

    async fn collect(
        &mut self,
        waiting: Vec<(String, String, oneshot::Receiver<Box<RawValue>>)>,
    ) -> Result<Box<RawValue>, &'static str> {
        let deadline = tokio::time::Instant::now() + self.gateway.config.call_timeout;
        let mut answers: Vec<(String, Box<RawValue>)> = Vec::new();
        for (key, id, receiver) in waiting {
            let Ok(Ok(answer)) = tokio::time::timeout_at(deadline, receiver).await else {
                self.session.asked.lock().expect("nobody panics while holding the questions").remove(&id);
                return Err("the client did not answer the server's question in time");
            };
            answers.push((key, answer));
        }
        let mut entries = Entries::default();
        for (key, answer) in &answers {
            entries.set(key, answer.clone());
        }
        Ok(entries.raw())
    }
}

/// GET: what the server says to nobody in particular, for as long as the client listens.
pub fn listen(gateway: &Arc<Gateway>, translated: &Translated, peer: Peer) -> Response<Body> {
    let session = gateway.legacy.get(translated.number, gateway.config.idle_timeout);
    let listen = Listen {
        uris: session.uris.subscribe(),
        _session: session,
        peer,
        capabilities: translated.capabilities.clone(),
        info: translated.info.clone(),
        messages: None,
        wait: Duration::ZERO,
    };
    let messages = stream::unfold(listen, |mut listen| async move {
        let next = listen.next().await;
        Some((next, listen))
    });
    let closing = gateway.shutdown.clone().cancelled_owned();
    reply::events(messages.boxed().take_until(closing))
}

struct Listen {
    uris: watch::Receiver<BTreeSet<String>>,
    /// Kept while somebody listens.
    _session: Arc<Session>,
    peer: Peer,
    capabilities: String,
    info: String,
    messages: Option<Messages>,
    wait: Duration,
}

impl Listen {
    async fn next(&mut self) -> Bytes {
        loop {
            let Some(messages) = &mut self.messages else {
                tokio::time::sleep(self.wait).await;
                self.wait = (self.wait * 2).clamp(PUT_OFF, SLOWEST_LISTEN);
                self.messages = self.subscribe().await;
                continue;
            };
            let next = tokio::select! {
                next = messages.next() => next,
                Ok(()) = self.uris.changed() => {
                    self.messages = None;
                    self.wait = Duration::ZERO;
                    continue;
                }
            };
            let Some(bytes) = next else {
                self.messages = None;
                continue;
            };
            let Some(message) = Message::parse(&bytes) else { continue };
            match (message.kind(), message.method()) {
                (Kind::Notification, "notifications/subscriptions/acknowledged") => self.wait = Duration::ZERO,
                (Kind::Notification, _) => return bytes,
                // A server that refuses to be listened to has nothing to say.
                (Kind::Response, _) if message.error.is_some() => {
                    self.messages = Some(stream::pending().boxed());
                }
                _ => {}
            }
        }
    }

    async fn subscribe(&mut self) -> Option<Messages> {
        let uris = self.uris.borrow_and_update().clone();
        let json = |text: &str| RawValue::from_string(text.to_owned()).unwrap_or_else(|_| object());
        let mut filter = json!({"toolsListChanged": true, "promptsListChanged": true, "resourcesListChanged": true});
        if !uris.is_empty() {
            filter["resourceSubscriptions"] = json!(uris);
        }
        let meta =
            json!({META_VERSION: MODERN, META_CAPABILITIES: json(&self.capabilities), META_CLIENT: json(&self.info)});
        let params = raw(json!({"notifications": filter, "_meta": meta}));
        let id = raw(format!("perch-listen-{:016x}", rand::random::<u64>()));
        let request = message::request(Some(&id), "subscriptions/listen", Some(&params));
        self.peer.request(&request).await.ok()
    }
}

/// The answer to `initialize`, from what the server says of itself.
pub fn initialized(message: &Message<'_>, discovered: &RawValue, name: &str) -> Vec<u8> {
    let asked = message.param("protocolVersion").unwrap_or_default();
    message::result(message.id, &discover::to_initialize(discovered, &asked, name))
}
