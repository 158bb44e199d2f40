//! Requests to the servers of a toolbox.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{FutureExt, StreamExt, future::BoxFuture, stream};
use http::{HeaderValue, Method, Request, Response, header};
use http_body_util::BodyExt;
use serde_json::value::RawValue;

use crate::{
    gateway::{
        access,
        era::{self, METHOD, MODERN, NAME},
        handler::{Call, Gateway},
        message::Message,
        peer::{Messages, Peer},
        reply::{Body, Failure, SESSION, VERSION},
        session::Principal,
        sse,
    },
    names::{Revision, ServerKey},
    routing::{Route, Upstream},
};

/// Who asks servers what they have: the gateway. A user's name cannot begin like this.
const GATEWAY: &str = "system:perch:gateway";

/// Stands in requests that were of the legacy era before the toolbox translated them.
#[derive(Clone, Copy, Debug)]
pub struct FromLegacy;

/// Sends a request on its way, as if it had come from a client.
pub fn forward(gateway: &Arc<Gateway>, call: Call) -> BoxFuture<'static, Response<Body>> {
    Arc::clone(gateway).forward(call).boxed()
}

/// A request of the toolbox's client, as one to a server. None when the client may not use that
/// server, or there is no such server.
pub fn enter(gateway: &Gateway, call: &Call, server: &ServerKey, body: &[u8]) -> Option<Call> {
    let route = gateway.table.load().find(server).cloned()?;
    let mut inner = Call { route, trail: Arc::default(), revision: None, ..call.clone() };
    if !access::enter(&mut inner.parts, server) {
        return None;
    }
    Some(dressed(inner, body))
}

/// Longest wait for an instance that takes a request of the gateway itself.
const PATIENCE: Duration = Duration::from_secs(60);

/// A request of the gateway itself to a revision of a server.
pub fn own(route: Arc<Route>, revision: &str, body: &[u8]) -> Call {
    let (mut parts, ()) = Request::new(()).into_parts();
    parts.extensions.insert(Principal(GATEWAY.into()));
    let revision = (!revision.is_empty()).then(|| Revision(revision.to_owned()));
    let principal = Principal(GATEWAY.into());
    let trail = Arc::default();
    dressed(Call { parts, body: Bytes::new(), route, principal, revision, patience: PATIENCE, trail }, body)
}

/// Whether a request is the gateway's own.
pub fn is_own(call: &Call) -> bool {
    &*call.principal.0 == GATEWAY
}

/// Gives a call its body, and the headers that a modern request with it has.
fn dressed(mut call: Call, body: &[u8]) -> Call {
    let body = Bytes::copy_from_slice(body.trim_ascii_end());
    let message = Message::parse(&body).unwrap_or_default();
    let headers = &mut call.parts.headers;
    for name in [SESSION, VERSION, METHOD, NAME, header::CONTENT_LENGTH, header::ACCEPT_ENCODING] {
        headers.remove(name);
    }
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::ACCEPT, HeaderValue::from_static("application/json, text/event-stream"));
    headers.insert(VERSION, HeaderValue::from_static(MODERN));
    let named = era::named_by(message.method()).and_then(|name| message.param(name));
    for (name, value) in [(METHOD, Some(message.method())), (NAME, named.as_deref())] {
        if let Some(value) = value.and_then(|value| HeaderValue::from_str(&era::encode(value)).ok()) {
            headers.insert(name, value);
        }
    }
    call.parts.method = Method::POST;
    call.body = body;
    call
}

/// Adds what a legacy client does not know of: arguments that a tool wants repeated in headers.
pub async fn add_parameter_headers(gateway: &Arc<Gateway>, call: &mut Call) {
    let revision = gateway.revision_now(call).map(|revision| revision.0).unwrap_or_default();
    let listing = own(Arc::clone(&call.route), &revision, b"");
    let peer = Peer::Toolbox(ToolboxPeer { gateway: Arc::clone(gateway), call: Arc::new(listing) });
    let body = call.body.clone();
    let Some(message) = Message::parse(&body) else { return };
    let headers = gateway.parameters.headers(&revision, &peer, call, &message).await;
    call.parts.headers.extend(headers);
}

/// The messages of an answer.
pub async fn messages(response: Response<Body>, limit: usize) -> Result<Messages, String> {
    let media = response.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    if media.starts_with("text/event-stream") {
        return Ok(events(response.into_body(), limit));
    }
    let body = whole(response.into_body(), limit).await?;
    Ok(stream::iter((!body.is_empty()).then_some(body)).boxed())
}

fn events(body: Body, limit: usize) -> Messages {
    let events = sse::events(body, limit);
    events.filter_map(|e| async { e.ok().map(|e| e.data).filter(|d| !d.is_empty()) }).boxed()
}

/// A body as a whole, up to a limit.
pub fn whole(body: Body, limit: usize) -> BoxFuture<'static, Result<Bytes, String>> {
    let body = http_body_util::Limited::new(body.map_err(std::io::Error::other), limit).collect();
    body.map(|body| body.map(http_body_util::Collected::to_bytes).map_err(|error| error.to_string())).boxed()
}

/// The response among the messages that answer a request of the gateway itself.
pub async fn ask(gateway: &Arc<Gateway>, call: Call) -> Result<Bytes, String> {
    let server = call.route.server.clone();
    let mut messages = messages(forward(gateway, call).await, gateway.config.line_limit).await?;
    while let Some(message) = messages.next().await {
        if Message::parse(&message).is_some_and(|m| m.result.is_some() || m.error.is_some()) {
            return Ok(message);
        }
    }
    Err(format!("server {server} gave no answer"))
}

/// A toolbox, or one of its servers, as whoever translates sees it.
#[derive(Clone)]
pub struct ToolboxPeer {
    gateway: Arc<Gateway>,
    call: Arc<Call>,
}

impl ToolboxPeer {
    /// The toolbox that a call of a legacy client is for.
    pub fn new(gateway: &Arc<Gateway>, call: &Call) -> Self {
        let mut call = call.clone();
        call.parts.extensions.insert(FromLegacy);
        Self { gateway: Arc::clone(gateway), call: Arc::new(call) }
    }

    /// Sends a request of the modern era.
    pub async fn request(&self, request: &[u8]) -> Result<Messages, Failure> {
        let call = dressed(Call::clone(&self.call), request);
        let id = Message::parse(&call.body).and_then(|m| m.id.map(RawValue::to_owned));
        let response = match &call.route.upstream {
            Upstream::Toolbox(toolbox) => inside(&self.gateway, call.clone(), Arc::clone(toolbox)).await?,
            _ => forward(&self.gateway, call.clone()).await,
        };
        let messages = messages(response, self.gateway.config.line_limit).await;
        let broken = |why: String| {
            let text = format!("{} broke off its answer: {why}", self.call.route.server);
            crate::gateway::message::error(id.as_deref(), crate::gateway::reply::SERVER_FAILED, &text, None)
        };
        Ok(messages.unwrap_or_else(|why| stream::iter([broken(why).into()]).boxed()))
    }
}

fn inside(
    gateway: &Arc<Gateway>,
    call: Call,
    toolbox: Arc<crate::routing::Toolbox>,
) -> BoxFuture<'static, Result<Response<Body>, Failure>> {
    let gateway = Arc::clone(gateway);
    async move {
        let body = call.body.clone();
        let message = Message::parse(&body).unwrap_or_default();
        super::modern(&gateway, &call, &message, &toolbox).await
    }
    .boxed()
}
