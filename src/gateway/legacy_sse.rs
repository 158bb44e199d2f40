//! The transport of protocol version 2024-11-05, for clients that know no other: a GET opens a
//! stream whose first event names where to POST messages, and everything comes back on the stream.
//!
//! Behind it is an ordinary session of the Streamable HTTP endpoint. The stream is the client's
//! connection to this gateway and lives in its memory: where there are several gateways, whatever
//! spreads connections over them must bring the POSTs of a client to the gateway of its stream.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use futures::{StreamExt, stream};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use http_body_util::BodyExt;
use rand::RngCore;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    handler::{Call, Gateway},
    message::{Message, member, text},
    observe::Over,
    reply::{self, Body, Failure, SESSION, VERSION},
    session::Principal,
    sse,
    starting::Unhurried,
};
use crate::names::ServerKey;

/// Messages that wait for a slow client.
const WAITING: usize = 256;
/// Most streams at the same time.
const MOST: usize = 10_000;

/// All streams that are open.
#[derive(Default)]
pub struct Streams {
    open: Mutex<HashMap<String, Arc<Stream>>>,
}

/// One client's stream.
struct Stream {
    server: ServerKey,
    principal: Principal,
    outgoing: mpsc::Sender<Bytes>,
    inner: Mutex<Inner>,
    /// Ends the stream: the client connects again.
    over: CancellationToken,
}

/// The session behind a stream.
#[derive(Clone, Default)]
struct Inner {
    session: Option<HeaderValue>,
    version: Option<HeaderValue>,
}

/// Ends the session when the client's stream ends.
struct Guard {
    gateway: Arc<Gateway>,
    token: String,
    call: Call,
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut open = self.gateway.streams.open.lock().expect("nobody panics while holding the streams");
        let Some(stream) = open.remove(&self.token) else { return };
        drop(open);
        let inner = stream.inner.lock().expect("nobody panics while holding the session").clone();
        if inner.session.is_some() {
            let (gateway, call) = (Arc::clone(&self.gateway), inside(&self.call, &inner, Method::DELETE, Bytes::new()));
            tokio::spawn(async move { drop(gateway.forward(call).await) });
        }
    }
}

/// A request of the session behind a stream.
fn inside(call: &Call, inner: &Inner, method: Method, body: Bytes) -> Call {
    let mut inside = call.clone();
    inside.parts.method = method;
    inside.body = body;
    // Its answer comes on the stream, whenever that is.
    inside.parts.extensions.insert(Unhurried);
    let headers = &mut inside.parts.headers;
    let kept: HeaderMap = [header::USER_AGENT, header::ACCEPT_LANGUAGE]
        .into_iter()
        .filter_map(|name| headers.get(&name).cloned().map(|value| (name, value)))
        .collect();
    *headers = kept;
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::ACCEPT, HeaderValue::from_static("application/json, text/event-stream"));
    if let Some(session) = &inner.session {
        headers.insert(SESSION, session.clone());
    }
    if let Some(version) = &inner.version {
        headers.insert(VERSION, version.clone());
    }
    inside
}

/// GET: opens a stream. `path` is where messages are to be sent.
pub fn open(gateway: &Arc<Gateway>, call: Call, path: &str) -> Result<Response<Body>, Failure> {
    let mut random = [0; 16];
    rand::rng().fill_bytes(&mut random);
    let token = URL_SAFE_NO_PAD.encode(random);
    let (outgoing, incoming) = mpsc::channel(WAITING);
    let stream = Stream {
        server: call.route.server.clone(),
        principal: call.principal.clone(),
        outgoing,
        inner: Mutex::default(),
        over: gateway.shutdown.child_token(),
    };
    let closing = stream.over.clone().cancelled_owned();
    let mut open = gateway.streams.open.lock().expect("nobody panics while holding the streams");
    if open.len() >= MOST {
        return Err(Failure::unavailable("too many streams are open: try again later"));
    }
    open.insert(token.clone(), Arc::new(stream));
    drop(open);
    let endpoint = reply::event("endpoint", format!("{path}?sessionId={token}").as_bytes());
    let guard = Guard { gateway: Arc::clone(gateway), token, call };
    let messages = stream::unfold((incoming, guard), |(mut incoming, guard)| async move {
        let message = incoming.recv().await?;
        Some((reply::event("message", &message), (incoming, guard)))
    });
    Ok(reply::answer(stream::once(async move { endpoint }).chain(messages).take_until(closing)))
}

/// POST: a message. What it is answered with comes on the stream.
pub fn post(gateway: &Arc<Gateway>, call: &Call) -> Result<Response<Body>, Failure> {
    let query = call.parts.uri.query().unwrap_or_default();
    let token = url::form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "sessionId");
    let token = token.map(|(_, token)| token.into_owned()).unwrap_or_default();
    let stream = {
        let open = gateway.streams.open.lock().expect("nobody panics while holding the streams");
        open.get(&token).filter(|s| s.server == call.route.server && s.principal == call.principal).cloned()
    };
    let stream = stream.ok_or_else(|| {
        let text = "there is no such stream: open one with GET first, and keep it open";
        Failure::new(StatusCode::NOT_FOUND, reply::NO_SESSION, text)
    })?;
    if Message::parse(&call.body).is_none() {
        let text = "the body is not one JSON-RPC 2.0 message";
        return Err(Failure::new(StatusCode::BAD_REQUEST, reply::PARSE_ERROR, text));
    }
    let (gateway, call) = (Arc::clone(gateway), call.clone());
    tokio::spawn(async move {
        let done = async { serve(&gateway, &call, &stream).await };
        tokio::select! {
            () = done => {}
            // Nobody reads the answers any more.
            () = stream.outgoing.closed() => {}
        }
    });
    Ok(reply::empty(StatusCode::ACCEPTED))
}

async fn serve(gateway: &Arc<Gateway>, call: &Call, stream: &Arc<Stream>) {
    let inner = stream.inner.lock().expect("nobody panics while holding the session").clone();
    let method = Message::parse(&call.body).map(|m| m.method().to_owned()).unwrap_or_default();
    let response = Arc::clone(gateway).forward(inside(call, &inner, Method::POST, call.body.clone())).await;
    if method == "initialize"
        && let Some(session) = response.headers().get(SESSION).cloned()
    {
        stream.inner.lock().expect("nobody panics while holding the session").session = Some(session);
        if let Some(Over(over)) = response.extensions().get::<Over>().cloned() {
            let stream = Arc::clone(stream);
            tokio::spawn(async move {
                tokio::select! {
                    () = over.cancelled() => stream.over.cancel(),
                    () = stream.outgoing.closed() => {}
                }
            });
        }
    }
    let status = response.status();
    pump(response, stream, method == "initialize", gateway.config.line_limit).await;
    if method == "notifications/initialized" && status.is_success() {
        let inner = stream.inner.lock().expect("nobody panics while holding the session").clone();
        if inner.session.is_some() {
            let news = Arc::clone(gateway).forward(inside(call, &inner, Method::GET, Bytes::new())).await;
            if news.status().is_success() {
                pump(news, stream, false, gateway.config.line_limit).await;
            }
        }
    }
}

/// Puts the messages of an answer on the stream.
async fn pump(response: Response<Body>, stream: &Stream, is_start: bool, limit: usize) {
    let media = response.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let send = |message: Bytes| {
        if is_start
            && let Some(version) =
                Message::parse(&message).and_then(|m| member(m.result?, "protocolVersion")).and_then(text)
        {
            let version = HeaderValue::from_str(&version).ok();
            stream.inner.lock().expect("nobody panics while holding the session").version = version;
        }
        stream.outgoing.send(message)
    };
    if media.starts_with("text/event-stream") {
        let events = sse::events(response.into_body(), limit);
        futures::pin_mut!(events);
        while let Some(Ok(event)) = events.next().await {
            if !event.data.is_empty() && send(event.data).await.is_err() {
                return;
            }
        }
    } else if let Ok(body) = response.into_body().collect().await {
        let body = body.to_bytes();
        if !body.is_empty() {
            // The client is gone if it does not listen.
            let _ = send(body).await;
        }
    }
}
