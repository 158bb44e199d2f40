//! An upstream as whoever translates sees it: something that takes a request and gives messages.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{
    StreamExt,
    stream::{self, BoxStream},
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use http_body_util::BodyExt;
use serde_json::{json, value::RawValue};
use tokio::runtime::Handle;

use super::{
    access,
    bridge::Line,
    era::{self, MODERN},
    handler::{Call, Gateway},
    http_upstream::{self, Answer, SendError, Target},
    message::{self, Kind, Message, member, raw, text},
    own_ids::OwnId,
    reply::{self, Body, Failure, SESSION, VERSION},
    sse::{self, Event},
    toolbox::ToolboxPeer,
};

/// Names the event after which a stream is taken up again.
const LAST_EVENT: HeaderName = HeaderName::from_static("last-event-id");

/// The messages that answer a request, the response last.
pub type Messages = BoxStream<'static, Bytes>;

/// An upstream, in one era.
#[derive(Clone)]
pub enum Peer {
    /// A process, through its bridge.
    Stdio(Line),
    /// An HTTP server.
    Http(HttpPeer),
    /// A toolbox, or one of its servers.
    Toolbox(ToolboxPeer),
}

/// An HTTP server, and the session with it.
#[derive(Clone)]
pub struct HttpPeer {
    /// Whose connections are used.
    pub gateway: Arc<Gateway>,
    /// For whom.
    pub call: Arc<Call>,
    /// Where.
    pub target: Target,
    /// The protocol version.
    pub version: String,
    /// The upstream's own id of a legacy session.
    pub session: Option<String>,
    /// What else each request must tell in headers.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

/// Why a peer does not answer.
#[derive(Debug)]
pub enum PeerError {
    /// It forgot the session.
    NoSession,
    /// Anything else.
    Failed(Failure),
}

impl From<Failure> for PeerError {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<PeerError> for Failure {
    fn from(error: PeerError) -> Self {
        match error {
            PeerError::NoSession => Self::no_session(),
            PeerError::Failed(failure) => failure,
        }
    }
}

impl Peer {
    /// Sends a request. Dropping the messages before the response cancels it.
    pub async fn request(&self, request: &[u8]) -> Result<Messages, PeerError> {
        match self {
            Self::Stdio(line) => Ok(line.request(request).await?),
            Self::Http(http) => http.request(request).await,
            Self::Toolbox(toolbox) => Ok(toolbox.request(request).await?),
        }
    }

    /// Whether it speaks without sessions.
    pub fn is_modern(&self) -> bool {
        match self {
            Self::Stdio(line) => line.is_modern(),
            Self::Http(http) => http.version == MODERN,
            Self::Toolbox(_) => true,
        }
    }

    /// Sends a request and gives its response, however long it takes.
    pub async fn ask(&self, request: &[u8]) -> Result<Bytes, PeerError> {
        let mut messages = self.request(request).await?;
        while let Some(message) = messages.next().await {
            if Message::parse(&message).is_some_and(|m| m.kind() == Kind::Response) {
                return Ok(message);
            }
        }
        Err(no_answer("the server gave no answer".into()))
    }

    /// The same, within `limit`.
    pub async fn ask_within(&self, request: &[u8], limit: Duration) -> Result<Bytes, PeerError> {
        let late = |_| no_answer(format!("the server did not answer within {}s", limit.as_secs()));
        tokio::time::timeout(limit, self.ask(request)).await.map_err(late)?
    }

    /// Sends a notification or a response.
    pub async fn tell(&self, message: &[u8]) -> Result<(), PeerError> {
        match self {
            Self::Stdio(line) => Ok(line.tell(message).await?),
            Self::Http(http) => match http.post(message).await {
                Ok(_) => Ok(()),
                Err(error) => Err(error),
            },
            // Whoever has no sessions is told nothing.
            Self::Toolbox(_) => Ok(()),
        }
    }

    /// What the server says to nobody in particular.
    pub async fn news(&self) -> Result<Messages, PeerError> {
        match self {
            Self::Stdio(line) => Ok(line.news()),
            Self::Http(http) => http.news().await,
            Self::Toolbox(_) => Ok(stream::pending().boxed()),
        }
    }
}

fn no_answer(text: String) -> PeerError {
    Failure::new(StatusCode::BAD_GATEWAY, reply::SERVER_FAILED, text).into()
}

impl HttpPeer {
    async fn send(&self, method: Method, message: &[u8], last: Option<HeaderValue>) -> Result<Answer, PeerError> {
        let mut request = http_upstream::request(method, &self.target, Bytes::copy_from_slice(message))?;
        self.fill(request.headers_mut(), message)?;
        if let Some(last) = last {
            request.headers_mut().insert(LAST_EVENT, last);
        }
        let response = self.gateway.http.send(&self.target, request, self.gateway.config.call_timeout).await;
        let response = response.map_err(|error| match error {
            // It ended, and its session with it.
            SendError::Connect(_) if self.session.is_some() => PeerError::NoSession,
            error => http_upstream::no_answer(&self.call, &error).into(),
        })?;
        if response.status() == StatusCode::NOT_FOUND && self.session.is_some() {
            return Err(PeerError::NoSession);
        }
        Ok(response)
    }

    /// Adds the headers that go with a message.
    ///
    /// # Errors
    /// When the session's id is no header.
    pub fn fill(&self, headers: &mut HeaderMap, message: &[u8]) -> Result<(), Failure> {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json, text/event-stream"));
        if let Ok(version) = HeaderValue::from_str(&self.version) {
            headers.insert(VERSION, version);
        }
        if let Some(session) = &self.session {
            headers.insert(SESSION, HeaderValue::from_str(session).map_err(|_| Failure::no_session())?);
        }
        for (name, value) in &self.headers {
            headers.insert(name, value.clone());
        }
        if self.version == MODERN
            && let Some(message) = Message::parse(message)
            && message.kind() != Kind::Response
        {
            let value = |text: &str| HeaderValue::from_str(&era::encode(text)).ok();
            if let Some(method) = value(message.method()) {
                headers.insert(era::METHOD, method);
            }
            let name = era::named_by(message.method()).and_then(|name| message.param(name));
            if let Some(name) = name.and_then(|name| value(&name)) {
                headers.insert(era::NAME, name);
            }
        }
        Ok(())
    }

    /// Sends a message and gives the answer as it is.
    pub async fn post(&self, message: &[u8]) -> Result<Answer, PeerError> {
        self.send(Method::POST, message, None).await
    }

    async fn request(&self, request: &[u8]) -> Result<Messages, PeerError> {
        let message = Message::parse(request);
        // Only a legacy server has sessions that are shared.
        let Some(named) = message.as_ref().filter(|_| self.version != MODERN) else {
            let id = message.and_then(|m| m.id.map(ToOwned::to_owned));
            let response = self.post(request).await?;
            return self.messages(response, id).await;
        };
        let (own, line) = OwnId::of(named);
        let number = own.number().to_owned();
        let mut asked = Asked { peer: self.clone(), own, answered: false };
        let response = self.post(&line).await?;
        let messages = self.messages(response, Some(number)).await?;
        Ok(messages.map(move |bytes| asked.back(bytes)).boxed())
    }

    /// The messages of an answer to a request.
    pub async fn messages(&self, response: Answer, id: Option<Box<RawValue>>) -> Result<Messages, PeerError> {
        let status = response.status();
        if is_stream(&response) {
            let events = sse::events(response.into_body(), self.gateway.config.line_limit);
            return Ok(Reader { peer: self.clone(), events: events.boxed(), id, last: None, over: false }.messages());
        }
        let body = collect(response, self.gateway.config.line_limit).await.map_err(|why| self.broken(&why))?;
        if Message::parse(&body).is_some_and(|m| m.kind() == Kind::Response) {
            return Ok(stream::once(async { body }).boxed());
        }
        // What is no answer to this request may still say why.
        let said = loose_error(&body).unwrap_or((reply::SERVER_FAILED, "it answered with no JSON-RPC message".into()));
        let text = format!("server {} answered HTTP {status}: {}", self.call.route.server, said.1);
        let status = if status.is_client_error() { status } else { StatusCode::BAD_GATEWAY };
        Err(Failure::new(status, said.0, text).into())
    }

    fn broken(&self, why: &str) -> Failure {
        let text = format!("server {} broke off its answer: {why}", self.call.route.server);
        Failure::new(StatusCode::BAD_GATEWAY, reply::UNAVAILABLE, text)
    }

    async fn news(&self) -> Result<Messages, PeerError> {
        let response = self.send(Method::GET, b"", None).await?;
        if !is_stream(&response) {
            // It has nothing to say: that is a stream without end, too.
            return Ok(stream::pending().boxed());
        }
        let events = sse::events(response.into_body(), self.gateway.config.line_limit);
        Ok(events.filter_map(|event| async { event.ok().map(|e| e.data).filter(|data| !data.is_empty()) }).boxed())
    }

    /// Ends the session.
    pub async fn end(&self) {
        if self.session.is_some()
            && let Err(PeerError::Failed(failure)) = self.send(Method::DELETE, b"", None).await
        {
            tracing::debug!(server = %self.call.route.server, failure.message, "a session was not ended");
        }
    }
}

/// A request in a shared session, until it is answered. A legacy server goes on with a request whose
/// stream was closed, so one that is dropped before is cancelled with a word.
struct Asked {
    peer: HttpPeer,
    own: OwnId,
    answered: bool,
}

impl Asked {
    /// A message of the answer, as the client knows it.
    fn back(&mut self, bytes: Bytes) -> Bytes {
        let (bytes, ends) = self.own.back(bytes);
        self.answered |= ends;
        bytes
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        let Ok(runtime) = Handle::try_current() else { return };
        if self.answered {
            return;
        }
        let params = raw(json!({"requestId": self.own.number(), "reason": "the client closed its stream"}));
        let cancel = message::request(None, "notifications/cancelled", Some(&params));
        let peer = self.peer.clone();
        // A server that cannot be told has ended.
        runtime.spawn(async move { drop(peer.post(&cancel).await) });
    }
}

fn is_stream<B>(response: &http::Response<B>) -> bool {
    let media = response.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    response.status().is_success() && media.starts_with("text/event-stream")
}

/// The body of an answer as a whole, up to a limit.
pub async fn collect(response: Answer, limit: usize) -> Result<Bytes, String> {
    read(response.into_body(), limit).await
}

/// A body as a whole, up to a limit.
pub async fn read<B>(body: B, limit: usize) -> Result<Bytes, String>
where
    B: hyper::body::Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let body = http_body_util::Limited::new(body, limit).collect().await;
    body.map(http_body_util::Collected::to_bytes).map_err(|error| error.to_string())
}

/// Code and message of an error whose id fits nothing.
fn loose_error(body: &[u8]) -> Option<(i32, String)> {
    let body: &RawValue = serde_json::from_slice(body).ok()?;
    let error = member(body, "error")?;
    let code = member(error, "code")?.get().parse().ok()?;
    Some((code, member(error, "message").and_then(text).unwrap_or_default().into_owned()))
}

/// Reads the events that answer one request, and goes on where a stream broke off if the server
/// numbers its events.
struct Reader {
    peer: HttpPeer,
    events: BoxStream<'static, Result<Event, sse::Broken>>,
    id: Option<Box<RawValue>>,
    last: Option<String>,
    over: bool,
}

impl Reader {
    fn messages(self) -> Messages {
        stream::unfold(self, |mut reader| async move {
            if reader.over {
                return None;
            }
            let message = reader.next().await;
            reader.over = Message::parse(&message).is_none_or(|m| m.kind() == Kind::Response);
            Some((message, reader))
        })
        .boxed()
    }

    async fn next(&mut self) -> Bytes {
        let mut resumed = 0;
        loop {
            match self.events.next().await {
                Some(Ok(event)) => {
                    resumed = 0;
                    if let Some(id) = event.id.filter(|id| !id.is_empty()) {
                        self.last = Some(id);
                    }
                    if Message::parse(&event.data).is_some() {
                        return event.data;
                    }
                }
                ended => {
                    let why = ended.and_then(Result::err).map_or("it ended early".to_owned(), |e| e.to_string());
                    resumed += 1;
                    if resumed > 3 || !self.resume().await {
                        let text = self.peer.broken(&why).message;
                        return message::error(self.id.as_deref(), reply::SERVER_FAILED, &text, None).into();
                    }
                }
            }
        }
    }

    async fn resume(&mut self) -> bool {
        let Some(last) = self.last.as_deref().and_then(|id| HeaderValue::from_str(id).ok()) else { return false };
        match self.peer.send(Method::GET, b"", Some(last)).await {
            Ok(response) if is_stream(&response) => {
                self.events = sse::events(response.into_body(), self.peer.gateway.config.line_limit).boxed();
                true
            }
            _ => false,
        }
    }
}

/// An answer to a client: JSON when the response comes first, else a stream of events.
pub async fn respond(gateway: &Gateway, call: &Call, mut messages: Messages, era: era::Era) -> http::Response<Body> {
    let asked = Message::parse(&call.body);
    let id = asked.as_ref().and_then(|m| m.id);
    let tools = access::visible_tools(call);
    if !tools.is_open() && asked.as_ref().is_some_and(|m| m.method() == "tools/list") {
        messages = messages.map(move |bytes| message::filter_tools(&bytes, &tools).into()).boxed();
    }
    let limit = gateway.config.call_timeout;
    let server = &call.route.server;
    let first = match tokio::time::timeout(limit, messages.next()).await {
        Ok(Some(first)) => first,
        Ok(None) => {
            let text = format!("server {server} gave no answer");
            return Failure::new(StatusCode::OK, reply::SERVER_FAILED, text).reply(id);
        }
        Err(_) => {
            let text = format!("server {server} did not answer within {}s", limit.as_secs());
            return Failure::new(StatusCode::OK, reply::SERVER_FAILED, text).reply(id);
        }
    };
    match Message::parse(&first) {
        Some(message) if message.kind() == Kind::Response => {
            let status = match (era, message.error_code()) {
                (era::Era::Modern, Some(code)) => era::status(code),
                _ => StatusCode::OK,
            };
            reply::json(status, first)
        }
        _ => reply::events(stream::once(async { first }).chain(messages)),
    }
}
