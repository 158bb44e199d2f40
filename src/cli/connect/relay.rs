//! Takes the client's lines to the gateway, and brings back what it says.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt, stream::BoxStream};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use serde_json::{Value, json, value::RawValue};
use tokio::{
    sync::{OwnedRwLockWriteGuard, RwLock, mpsc},
    task::AbortHandle,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    door::{Answer, Door, LIMIT, SendError},
    legacy::{Session, own_id},
};
use crate::gateway::{
    era::{self, Era, META_SUBSCRIPTION, META_VERSION, MODERN},
    message::{self, Kind, Message, member, raw, text},
    parameter_headers::{Parameter, listed},
    reply::{self, Failure, SESSION, VERSION},
    sse,
};

/// Names the event after which a stream is taken up again.
const LAST_EVENT: HeaderName = HeaderName::from_static("last-event-id");
/// Most requests that wait for their answers.
const MOST: usize = 1024;
/// Time to take leave of the gateway.
const LEAVE: Duration = Duration::from_secs(2);
/// Pause before a stream is taken up again.
const PAUSE: Duration = Duration::from_secs(1);
/// How often a stream is taken up again without anything having come.
const RESUMED: usize = 3;
/// Pages of tools that are read.
const MOST_PAGES: usize = 100;

/// A request whose answer is awaited.
struct Pending {
    cancel: CancellationToken,
    era: Era,
    /// It only listens, and never ends by itself.
    listens: bool,
}

/// Between the client and the gateway.
pub struct Relay {
    door: Door,
    out: mpsc::Sender<Bytes>,
    session: Arc<RwLock<Session>>,
    pending: Mutex<HashMap<String, Pending>>,
    /// What tools want repeated in headers, as far as they were seen.
    parameters: Mutex<HashMap<String, Vec<Parameter>>>,
    tasks: TaskTracker,
}

type Events = BoxStream<'static, Result<sse::Event, sse::Broken>>;

/// How a stream is read.
#[derive(Clone, Copy, Default)]
struct Reading<'a> {
    /// It may be taken up again, as the legacy era has it.
    resumes: bool,
    /// Notifications of this method are kept from the client.
    hidden: Option<&'a str>,
}

impl Relay {
    /// Sends what the gateway says to `out`, a line each.
    pub fn new(door: Door, out: mpsc::Sender<Bytes>) -> Self {
        Self {
            door,
            out,
            session: Arc::default(),
            pending: Mutex::default(),
            parameters: Mutex::default(),
            tasks: TaskTracker::new(),
        }
    }

    /// Takes a line of the client. Requests go on by themselves; what wants no answer has been
    /// delivered when this returns, so that it arrives before what comes after it.
    pub async fn handle(self: &Arc<Self>, line: Bytes) {
        let Some(message) = Message::parse(&line) else { return self.unparsed(line.clone()).await };
        match message.kind() {
            Kind::Request => self.accept(&line, &message).await,
            Kind::Notification if self.cancels(&message) => {}
            Kind::Notification | Kind::Response => {
                if let Err(failure) = self.tell(&line, &message).await {
                    tracing::warn!(method = message.method(), why = failure.message, "a message was not delivered");
                }
            }
        }
    }

    /// Waits for the answers that are still to come, at most for a while.
    pub async fn finish(&self, limit: Duration) {
        let listens: Vec<_> = {
            let pending = self.pending();
            pending.values().filter(|p| p.listens).map(|p| p.cancel.clone()).collect()
        };
        listens.iter().for_each(CancellationToken::cancel);
        self.tasks.close();
        if tokio::time::timeout(limit, self.tasks.wait()).await.is_err() {
            tracing::warn!(calls = self.tasks.len(), "not all calls were answered when the client left");
        }
    }

    /// Ends the session at the gateway.
    pub async fn end(&self) {
        let leave = async {
            let mut session = self.session.write().await;
            if let Some(listener) = session.listener.take() {
                listener.abort();
            }
            if session.has_id() {
                let gone = self.door.send(Method::DELETE, session.headers(), Bytes::new()).await;
                tracing::debug!(ended = gone.is_ok(), "the session was ended");
            }
        };
        let _ = tokio::time::timeout(LEAVE, leave).await;
    }

    fn pending(&self) -> std::sync::MutexGuard<'_, HashMap<String, Pending>> {
        self.pending.lock().expect("nobody panics while holding the requests")
    }

    async fn emit(&self, message: &[u8]) {
        let mut line = message.trim_ascii().to_vec();
        if line.is_empty() {
            return;
        }
        // Within a message a line break can only stand between tokens: a space says the same.
        line.iter_mut().filter(|b| matches!(**b, b'\n' | b'\r')).for_each(|b| *b = b' ');
        line.push(b'\n');
        // Nobody reads any more: the connector is about to end.
        let _ = self.out.send(line.into()).await;
    }

    async fn accept(self: &Arc<Self>, line: &Bytes, message: &Message<'_>) {
        let id = message.id.map(|id| id.get().to_owned()).unwrap_or_default();
        let era = era::of(&HeaderMap::new(), message);
        let cancel = CancellationToken::new();
        let listens = message.method() == "subscriptions/listen";
        let refused = {
            let mut pending = self.pending();
            if pending.contains_key(&id) {
                Some("a request with this id is still to be answered: take another id")
            } else if pending.len() >= MOST {
                Some("too many requests wait for their answers: wait for some of them")
            } else {
                pending.insert(id.clone(), Pending { cancel: cancel.clone(), era, listens });
                None
            }
        };
        if let Some(why) = refused {
            return self.emit(&message::error(message.id, reply::INVALID_REQUEST, why, None)).await;
        }
        // What comes after it waits until the session is there.
        let opens = era == Era::Legacy && message.method() == "initialize";
        let guard = if opens { Some(Arc::clone(&self.session).write_owned().await) } else { None };
        let (relay, line) = (Arc::clone(self), line.clone());
        self.tasks.spawn(async move {
            let answer = tokio::select! {
                answer = relay.answer(&line, era, guard) => Some(answer),
                () = cancel.cancelled() => None,
            };
            relay.pending().remove(&id);
            if let Some(answer) = answer {
                relay.emit(&answer).await;
            }
        });
    }

    /// The answer to a request, whatever happens.
    async fn answer(self: &Arc<Self>, line: &Bytes, era: Era, guard: Option<OwnedRwLockWriteGuard<Session>>) -> Bytes {
        let message = Message::parse(line).unwrap_or_default();
        let done = match guard {
            Some(session) => self.initialize(line, &message, session).await,
            None if era == Era::Modern => self.modern(line, &message).await,
            None => self.legacy(line, &message).await,
        };
        done.unwrap_or_else(|failure| message::error(message.id, failure.code, &failure.message, failure.data).into())
    }

    /// A modern client gives a request up with a notification; over HTTP that is the end of its
    /// stream. A legacy one tells the server.
    fn cancels(&self, message: &Message<'_>) -> bool {
        if message.method() != "notifications/cancelled" {
            return false;
        }
        let Some(id) = message.param_raw("requestId") else { return false };
        let pending = self.pending();
        let Some(request) = pending.get(id.get()).filter(|request| request.era == Era::Modern) else { return false };
        request.cancel.cancel();
        true
    }

    /// Delivers what wants no answer.
    async fn tell(self: &Arc<Self>, line: &Bytes, message: &Message<'_>) -> Result<(), Failure> {
        if era::of(&HeaderMap::new(), message) == Era::Modern {
            let answer = self.post(self.modern_headers(message), line.clone()).await?;
            return accepted(answer).await;
        }
        let (headers, generation, has_id) = {
            let session = self.session.read().await;
            (session.headers(), session.generation, session.has_id())
        };
        let answer = self.post(headers, line.clone()).await?;
        if answer.status() == StatusCode::NOT_FOUND && has_id {
            // What was said belongs to the session that is gone.
            return self.renew(generation).await;
        }
        accepted(answer).await?;
        if message.method() == "notifications/initialized" {
            let mut session = self.session.write().await;
            session.remember(line, message);
            self.listen(&mut session);
        }
        Ok(())
    }

    /// What is no message may be a batch, which one legacy version has; it passes as it is.
    async fn unparsed(self: &Arc<Self>, line: Bytes) {
        let refuse = |code, text: &str| message::error(None, code, text, None);
        if serde_json::from_slice::<serde::de::IgnoredAny>(&line).is_err() {
            return self.emit(&refuse(reply::PARSE_ERROR, "the line is no JSON-RPC 2.0 message")).await;
        }
        if !line.trim_ascii_start().starts_with(b"[") {
            return self.emit(&refuse(reply::INVALID_REQUEST, "the line is JSON, but no JSON-RPC 2.0 message")).await;
        }
        let relay = Arc::clone(self);
        self.tasks.spawn(async move {
            let headers = relay.session.read().await.headers();
            let answer = match relay.post(headers, line).await {
                Ok(answer) => answer,
                Err(failure) => return relay.emit(&message::error(None, failure.code, &failure.message, None)).await,
            };
            if is_stream(&answer) {
                relay.forward(&mut events(answer)).await;
            } else if let Ok(body) = Limited::new(answer.into_body(), LIMIT).collect().await {
                relay.emit(&body.to_bytes()).await;
            }
        });
    }

    async fn post(&self, mut headers: HeaderMap, line: Bytes) -> Result<Answer, Failure> {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json, text/event-stream"));
        self.door.send(Method::POST, headers, line).await.map_err(|error| match error {
            SendError::Unsent(_) => Failure::unavailable(format!("{error}; nothing was done")),
            SendError::Broken(_) => broken(&error.to_string()),
        })
    }

    /// Reads an answer up to the response to `id`; what comes before it goes to the client, and
    /// what comes after it, too.
    async fn read(
        self: &Arc<Self>,
        answer: Answer,
        id: Option<&RawValue>,
        reading: Reading<'_>,
    ) -> Result<Bytes, Failure> {
        let status = answer.status();
        let is_answer = |message: &Message<'_>| {
            message.kind() == Kind::Response && message.id.map(RawValue::get) == id.map(RawValue::get)
        };
        if !is_stream(&answer) {
            let body = Limited::new(answer.into_body(), LIMIT).collect().await;
            let body = body.map_err(|error| broken(&error.to_string()))?.to_bytes();
            if Message::parse(&body).is_some_and(|message| is_answer(&message)) {
                return Ok(body);
            }
            return Err(loose_error(status, &body));
        }
        let mut events = events(answer);
        let (mut last, mut tried) = (None, 0);
        loop {
            let why = match events.next().await {
                Some(Ok(event)) => {
                    if let Some(id) = event.id.filter(|id| !id.is_empty()) {
                        (last, tried) = (Some(id), 0);
                    }
                    let said = Message::parse(&event.data);
                    if said.as_ref().is_some_and(is_answer) {
                        let relay = Arc::clone(self);
                        tokio::spawn(async move { relay.forward(&mut events).await });
                        return Ok(event.data);
                    }
                    if said.is_none_or(|said| said.method.as_deref().is_none_or(|m| Some(m) != reading.hidden)) {
                        self.emit(&event.data).await;
                    }
                    continue;
                }
                Some(Err(error)) => error.to_string(),
                None => "the answer ended early".to_owned(),
            };
            tried += 1;
            let resumed = match last.as_deref().filter(|_| reading.resumes && tried <= RESUMED) {
                Some(last) => self.resume(last).await,
                None => None,
            };
            events = resumed.ok_or_else(|| broken(&why))?;
        }
    }

    /// The rest of a stream, after an event.
    async fn resume(&self, last: &str) -> Option<Events> {
        let mut headers = self.session.read().await.headers();
        headers.insert(header::ACCEPT, HeaderValue::from_static("text/event-stream"));
        headers.insert(LAST_EVENT, HeaderValue::from_str(last).ok()?);
        let answer = self.door.send(Method::GET, headers, Bytes::new()).await.ok()?;
        is_stream(&answer).then(|| events(answer))
    }

    /// Brings all that a stream has to the client; gives the id of its last event.
    async fn forward(&self, events: &mut Events) -> Option<String> {
        let mut last = None;
        while let Some(Ok(event)) = events.next().await {
            last = event.id.filter(|id| !id.is_empty()).or(last);
            self.emit(&event.data).await;
        }
        last
    }

    async fn initialize(
        self: &Arc<Self>,
        line: &Bytes,
        message: &Message<'_>,
        mut session: OwnedRwLockWriteGuard<Session>,
    ) -> Result<Bytes, Failure> {
        let mut fresh = Session::default();
        fresh.generation = session.generation;
        fresh.initialize = Some(line.clone());
        *session = fresh;
        let answer = self.post(HeaderMap::new(), line.clone()).await?;
        let headers = answer.headers().clone();
        let said = self.read(answer, message.id, Reading::default()).await?;
        session.opened(&headers, &said);
        Ok(said)
    }

    async fn legacy(self: &Arc<Self>, line: &Bytes, message: &Message<'_>) -> Result<Bytes, Failure> {
        let mut renewed = false;
        loop {
            let (headers, generation, has_id) = {
                let session = self.session.read().await;
                (session.headers(), session.generation, session.has_id())
            };
            let answer = self.post(headers, line.clone()).await?;
            if answer.status() == StatusCode::NOT_FOUND && has_id && !renewed {
                // The session is not known, so nothing was done.
                renewed = true;
                self.renew(generation).await?;
                continue;
            }
            let said = self.read(answer, message.id, Reading { resumes: true, hidden: None }).await?;
            if message.method().starts_with("resources/") || message.method() == "logging/setLevel" {
                self.session.write().await.remember(line, message);
            }
            return Ok(said);
        }
    }

    /// Opens the session anew, unless another one did already.
    async fn renew(self: &Arc<Self>, generation: u64) -> Result<(), Failure> {
        let mut session = self.session.write().await;
        if session.generation != generation {
            return Ok(());
        }
        let Some(initialize) = session.initialize.clone() else { return Err(Failure::no_session()) };
        let id = own_id("initialize");
        let line = Message::parse(&initialize).unwrap_or_default().line(Some(&id), None);
        let answer = self.post(HeaderMap::new(), line.into()).await?;
        let headers = answer.headers().clone();
        let said = self.read(answer, Some(&id), Reading::default()).await?;
        if !session.opened(&headers, &said) {
            let why = Message::parse(&said).and_then(|m| m.error).and_then(|error| member(error, "message"));
            let why = why.and_then(text).unwrap_or_default();
            return Err(Failure::unavailable(format!("the session was lost, and a new one is refused: {why}")));
        }
        tracing::info!("the session was lost and is open again");
        if let Some(initialized) = session.initialized.clone() {
            accepted(self.post(session.headers(), initialized).await?).await?;
            self.listen(&mut session);
        }
        for line in session.lasting() {
            let answer = self.post(session.headers(), line).await?;
            self.read(answer, Some(&own_id("again")), Reading::default()).await?;
        }
        for news in session.news() {
            self.emit(&news).await;
        }
        Ok(())
    }

    /// Begins to listen to what the server says to nobody in particular.
    fn listen(self: &Arc<Self>, session: &mut Session) {
        let heard = Arc::clone(self).hear(session.generation);
        let listener: AbortHandle = tokio::spawn(heard).abort_handle();
        if let Some(old) = session.listener.replace(listener) {
            old.abort();
        }
    }

    async fn hear(self: Arc<Self>, generation: u64) {
        let mut last: Option<String> = None;
        loop {
            let mut headers = {
                let session = self.session.read().await;
                if session.generation != generation {
                    return;
                }
                session.headers()
            };
            let has_id = headers.contains_key(SESSION);
            headers.insert(header::ACCEPT, HeaderValue::from_static("text/event-stream"));
            if let Some(last) = last.as_deref().and_then(|last| HeaderValue::from_str(last).ok()) {
                headers.insert(LAST_EVENT, last);
            }
            match self.door.send(Method::GET, headers, Bytes::new()).await {
                Ok(answer) if is_stream(&answer) => last = self.forward(&mut events(answer)).await.or(last),
                Ok(answer) if answer.status() == StatusCode::NOT_FOUND && has_id => {
                    // Whoever opens the session anew ends this listener, so another one does it.
                    tokio::spawn(async move {
                        while let Err(failure) = self.renew(generation).await {
                            tracing::info!(why = failure.message, "the session cannot be opened yet");
                            tokio::time::sleep(PAUSE).await;
                        }
                    });
                    return;
                }
                Ok(answer) if answer.status().is_client_error() => {
                    tracing::debug!(status = %answer.status(), "the server says nothing by itself");
                    return;
                }
                Ok(_) | Err(_) => {}
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn modern(self: &Arc<Self>, line: &Bytes, message: &Message<'_>) -> Result<Bytes, Failure> {
        let listens = message.method() == "subscriptions/listen";
        let (mut learned, mut reading) = (false, Reading::default());
        loop {
            let answer = self.post(self.modern_headers(message), line.clone()).await?;
            let is_open = is_stream(&answer);
            if reading.hidden.is_some() && is_open {
                for news in missed(message) {
                    self.emit(&news).await;
                }
            }
            let said = self.read(answer, message.id, reading).await;
            let parsed = said.as_ref().ok().and_then(|said| Message::parse(said));
            let code = parsed.as_ref().and_then(Message::error_code);
            if listens && is_open && code.is_none() {
                // The gateway or the server was started again; the client goes on listening.
                reading.hidden = Some("notifications/subscriptions/acknowledged");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            let disagrees = code == Some(i64::from(reply::HEADER_MISMATCH)) && message.method() == "tools/call";
            if disagrees && !learned {
                learned = true;
                self.learn_all(message).await;
                continue;
            }
            if message.method() == "tools/list"
                && let Some(result) = parsed.and_then(|m| m.result)
            {
                self.learn(result);
            }
            return said;
        }
    }

    /// The headers that repeat what a modern message says.
    fn modern_headers(&self, message: &Message<'_>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let version = message.meta(META_VERSION).and_then(text);
        let name = era::named_by(message.method()).and_then(|name| message.param(name));
        let told = [
            (VERSION, Some(version.as_deref().unwrap_or(MODERN))),
            (era::METHOD, Some(message.method())),
            (era::NAME, name.as_deref()),
        ];
        for (header, value) in told {
            if let Some(value) = value.and_then(|value| HeaderValue::from_str(&era::encode(value)).ok()) {
                headers.insert(header, value);
            }
        }
        if message.method() == "tools/call"
            && let Some(name) = name
        {
            let parameters = self.parameters.lock().expect("nobody panics while holding the parameters");
            let wanted = parameters.get(&*name).into_iter().flatten();
            headers.extend(wanted.filter_map(|parameter| parameter.header(message)));
        }
        headers
    }

    /// Remembers what the tools of a list want repeated in headers.
    fn learn(&self, result: &RawValue) {
        let Ok(result) = serde_json::from_str::<Value>(result.get()) else { return };
        let mut parameters = self.parameters.lock().expect("nobody panics while holding the parameters");
        for (name, wanted) in listed(&result) {
            if wanted.is_empty() {
                parameters.remove(&name);
            } else {
                parameters.insert(name, wanted);
            }
        }
    }

    /// Lists the tools for a client that calls one without having done so.
    async fn learn_all(self: &Arc<Self>, call: &Message<'_>) {
        let Some(meta) = call.param_raw("_meta") else { return };
        let id = own_id("tools");
        let mut cursor: Option<Box<RawValue>> = None;
        for _ in 0..MOST_PAGES {
            let params = match &cursor {
                None => raw(json!({"_meta": meta})),
                Some(cursor) => raw(json!({"_meta": meta, "cursor": cursor})),
            };
            let request = Bytes::from(message::request(Some(&id), "tools/list", Some(&params)));
            let Some(list) = Message::parse(&request) else { return };
            let Ok(answer) = self.post(self.modern_headers(&list), request.clone()).await else { return };
            let Ok(said) = self.read(answer, Some(&id), Reading::default()).await else { return };
            let Some(result) = Message::parse(&said).and_then(|m| m.result) else { return };
            self.learn(result);
            cursor = member(result, "nextCursor").map(ToOwned::to_owned);
            if cursor.is_none() {
                return;
            }
        }
    }
}

/// What a client may have missed while nobody listened for it.
fn missed(listen: &Message<'_>) -> Vec<Bytes> {
    let (Some(id), Some(wanted)) = (listen.id, listen.param_raw("notifications")) else { return Vec::new() };
    let params = raw(json!({"_meta": {META_SUBSCRIPTION: id}}));
    ["tools", "prompts", "resources"]
        .into_iter()
        .filter(|list| member(wanted, &format!("{list}ListChanged")).is_some_and(|value| value.get() == "true"))
        .map(|list| message::request(None, &format!("notifications/{list}/list_changed"), Some(&params)).into())
        .collect()
}

fn is_stream(answer: &Answer) -> bool {
    let media = answer.headers().get(header::CONTENT_TYPE);
    answer.status().is_success() && media.is_some_and(|media| media.as_bytes().starts_with(b"text/event-stream"))
}

fn events(answer: Answer) -> Events {
    sse::events(answer.into_body(), LIMIT).boxed()
}

fn broken(why: &str) -> Failure {
    let text = format!(
        "the answer is lost: {why}; whether the request was carried out is not known: send it again if that does no harm"
    );
    Failure::new(StatusCode::BAD_GATEWAY, reply::UNAVAILABLE, text)
}

/// Whether what wants no answer was taken.
async fn accepted(answer: Answer) -> Result<(), Failure> {
    let status = answer.status();
    let body = Limited::new(answer.into_body(), LIMIT).collect().await;
    if status.is_success() {
        return Ok(());
    }
    Err(loose_error(status, &body.map(http_body_util::Collected::to_bytes).unwrap_or_default()))
}

/// What an answer says that is no response to the request.
fn loose_error(status: StatusCode, body: &[u8]) -> Failure {
    let said: Value = serde_json::from_slice(body).unwrap_or_default();
    let error = &said["error"];
    let code = error["code"].as_i64().and_then(|code| i32::try_from(code).ok()).unwrap_or(reply::SERVER_FAILED);
    let why = error["message"].as_str().or(said["error_description"].as_str());
    let why = why.map_or_else(|| format!("the gateway answered HTTP {status}, and no message"), str::to_owned);
    Failure { data: error.get("data").cloned(), ..Failure::new(status, code, why) }
}
