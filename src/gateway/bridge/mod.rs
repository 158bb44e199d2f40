//! Servers that speak on their standard streams, made reachable over Streamable HTTP.
//!
//! * **Shared**: all sessions talk through one [`Link`] to an instance. The bridge is the server's
//!   only client: it initialises it once, without client capabilities, and answers each
//!   `initialize` from what it learned. Ids and progress tokens are rewritten, so that sessions
//!   never see each other's. A session needs no memory here, so it survives a gateway restart.
//! * **PerSession**: a session has a process and a link of its own, and everything passes both
//!   ways unchanged.
//!
//! A process that ends takes its pending calls with it: each gets an error at once. The next call
//! waits for the process that the backend starts in its place.

mod link;
mod shared;
mod solo;

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use futures::{StreamExt, stream};
use http::{Method, Response, StatusCode};
use tokio::sync::{Mutex, mpsc};

use super::{
    handler::{Call, Gateway},
    message::{Kind, Message},
    reply::{self, Body, Failure, SESSION, VERSION},
};
use crate::{
    api::mcp_server::StdioSessions,
    names::ServerKey,
    runtime::{Backend, InstanceId},
};
use link::Link;
use solo::Solo;

/// Protocol versions with `initialize`, oldest first.
const LEGACY_VERSIONS: [&str; 4] = ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"];
/// The newest of them.
const LATEST_LEGACY: &str = "2025-11-25";

/// All bridges of a gateway.
#[derive(Default)]
pub struct Bridges {
    shared: Mutex<HashMap<InstanceId, Arc<Link>>>,
    solo: Mutex<HashMap<u128, Arc<Solo>>>,
}

/// What a client gets back for a request: first the messages for it, then the end.
type Answers = mpsc::Receiver<Bytes>;

impl Bridges {
    /// Answers a request for a Stdio server.
    pub(super) async fn forward(&self, gateway: &Arc<Gateway>, call: Call, mode: StdioSessions) -> Response<Body> {
        if call.parts.method == Method::POST {
            self.post(gateway, &call, mode).await
        } else {
            let done = match (call.parts.method == Method::DELETE, mode) {
                (true, StdioSessions::Shared) => shared::delete(gateway, &call),
                (true, StdioSessions::PerSession) => self.end_solo(gateway, &call).await,
                (false, StdioSessions::Shared) => self.listen_shared(gateway, &call).await,
                (false, StdioSessions::PerSession) => self.listen_solo(gateway, &call).await,
            };
            done.unwrap_or_else(|failure| failure.reply(None))
        }
    }

    async fn post(&self, gateway: &Arc<Gateway>, call: &Call, mode: StdioSessions) -> Response<Body> {
        let Some(message) = Message::parse(&call.body) else {
            let batch = call.body.trim_ascii_start().starts_with(b"[");
            let (code, text) = if batch {
                (reply::INVALID_REQUEST, "batches are not served: send one message a request")
            } else {
                (reply::PARSE_ERROR, "the body is not one JSON-RPC 2.0 message")
            };
            return Failure::new(StatusCode::BAD_REQUEST, code, text).reply(None);
        };
        if let Err(failure) = check_version(call, &message) {
            return failure.reply(message.id);
        }
        let done = match mode {
            StdioSessions::Shared => self.post_shared(gateway, call, &message).await,
            StdioSessions::PerSession => self.post_solo(gateway, call, &message).await,
        };
        done.unwrap_or_else(|failure| failure.reply(message.id))
    }

    /// Ends every process that the bridges started.
    pub(super) async fn close(&self, backend: &dyn Backend) {
        self.shared.lock().await.clear();
        for (_, solo) in self.solo.lock().await.drain() {
            if let Err(error) = backend.end_session(&solo.instance).await {
                tracing::warn!(%error, instance = %solo.instance, "a session's process was not ended");
            }
        }
    }
}

/// The modern era has no sessions and no `initialize`; a Stdio server is spoken to in the legacy
/// era so far, and a modern client falls back when it is told so.
fn check_version(call: &Call, message: &Message<'_>) -> Result<(), Failure> {
    let header = call.parts.headers.get(VERSION).and_then(|v| v.to_str().ok()).map(str::to_owned);
    let modern = message.method() == "server/discover";
    match header {
        Some(version) if !LEGACY_VERSIONS.contains(&version.as_str()) => Err(unsupported(&version)),
        _ if modern => Err(unsupported("2026-07-28")),
        _ => Ok(()),
    }
}

fn unsupported(version: &str) -> Failure {
    let message = format!("protocol version {version} is not served for this server");
    Failure {
        data: Some(serde_json::json!({"supported": LEGACY_VERSIONS, "requested": version})),
        ..Failure::new(StatusCode::BAD_REQUEST, reply::UNSUPPORTED_VERSION, message)
    }
}

/// The id of the request's session as the client knows it.
fn session_id(call: &Call) -> Result<&str, Failure> {
    let id = call.parts.headers.get(SESSION).ok_or_else(|| {
        let message =
            "the Mcp-Session-Id header is missing: send initialize first, and the id that it gives with every request";
        Failure::new(StatusCode::BAD_REQUEST, reply::INVALID_REQUEST, message)
    })?;
    id.to_str().map_err(|_| Failure::no_session())
}

/// An answer to a request: JSON when its response comes first, else a stream of events.
async fn respond(call: &Call, mut answers: Answers) -> Response<Body> {
    let Some(first) = answers.recv().await else {
        let failure = Failure::new(StatusCode::OK, reply::SERVER_FAILED, "the server gave no answer");
        return failure.reply(Message::parse(&call.body).and_then(|m| m.id));
    };
    let is_response = Message::parse(&first).is_some_and(|m| m.kind() == Kind::Response);
    if is_response {
        return reply::json(StatusCode::OK, filter(call, first));
    }
    let tools = call.route.tools.clone();
    let list = Message::parse(&call.body).is_some_and(|m| m.method() == "tools/list") && !tools.is_open();
    let rest = stream::unfold(answers, |mut answers| async move { Some((answers.recv().await?, answers)) });
    reply::events(
        stream::once(async { first })
            .chain(rest)
            .map(move |message| if list { super::message::filter_tools(&message, &tools).into() } else { message }),
    )
}

fn filter(call: &Call, response: Bytes) -> Bytes {
    let open = call.route.tools.is_open();
    if open || Message::parse(&call.body).is_none_or(|m| m.method() != "tools/list") {
        return response;
    }
    super::message::filter_tools(&response, &call.route.tools).into()
}

fn ended(server: &ServerKey) -> Failure {
    Failure::new(StatusCode::OK, reply::SERVER_FAILED, format!("the process of server {server} ended"))
}
