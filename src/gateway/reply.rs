//! Answers that the gateway gives itself.

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::Frame;
use serde_json::{Value, json as value, value::RawValue};

use super::message;
use crate::names::ServerKey;

/// The body of an answer.
pub type Body = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

/// Names the session of a request or an answer.
pub const SESSION: HeaderName = HeaderName::from_static("mcp-session-id");
/// Names the protocol version of a request.
pub const VERSION: HeaderName = HeaderName::from_static("mcp-protocol-version");

/// Longest silence on a stream.
const KEEP_ALIVE: Duration = Duration::from_secs(25);

/// JSON-RPC: the request is not sound.
pub const INVALID_REQUEST: i32 = -32600;
/// JSON-RPC: parameters do not fit, or name what is not there.
pub const INVALID_PARAMS: i32 = -32602;
/// JSON-RPC: the server failed.
pub const SERVER_FAILED: i32 = -32603;
/// JSON-RPC: the body is no JSON.
pub const PARSE_ERROR: i32 = -32700;
/// The server cannot be reached now.
pub const UNAVAILABLE: i32 = -32000;
/// MCP: the session is not known.
pub const NO_SESSION: i32 = -32001;
/// JSON-RPC: there is no such method.
pub const NO_METHOD: i32 = -32601;
/// MCP 2026-07-28: headers and body disagree.
pub const HEADER_MISMATCH: i32 = -32020;
/// MCP 2026-07-28: the protocol version is not supported.
pub const UNSUPPORTED_VERSION: i32 = -32022;

/// `data.reason` of an error: the gateway starts or stops.
pub const RESTARTING: &str = "GatewayRestarting";

/// A failure of a request, as the client sees it.
#[derive(Debug)]
pub struct Failure {
    /// HTTP status.
    pub status: StatusCode,
    /// JSON-RPC code.
    pub code: i32,
    /// What, why, and what to do.
    pub message: String,
    /// `data` of the JSON-RPC error.
    pub data: Option<Value>,
    /// There when a tool's schema does not take the arguments: how that is told.
    pub arguments: Option<Told>,
    /// The server is reached in another way than when the call came. Nothing of it was done.
    pub moved: bool,
}

/// How a client hears that arguments do not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// As a JSON-RPC error.
    Error,
    /// As a result of the tool, which a model sees.
    ToolResult {
        /// In the form of the modern era.
        modern: bool,
    },
}

impl Failure {
    /// A failure.
    pub fn new(status: StatusCode, code: i32, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), data: None, arguments: None, moved: false }
    }

    /// The session is not known: clients initialise again.
    pub fn no_session() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            NO_SESSION,
            "session not found: it ended or was never opened here; initialize again",
        )
    }

    /// The server cannot be reached now.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, UNAVAILABLE, message)
    }

    /// The gateway starts or stops: nothing of the request was done, and soon it can be.
    pub fn restarting(message: impl Into<String>) -> Self {
        Self { data: Some(value!({"reason": RESTARTING})), ..Self::unavailable(message) }
    }

    /// The server is reached in another way than when the call came. Nothing of it was done.
    pub fn moved(server: &ServerKey) -> Self {
        Self {
            moved: true,
            ..Self::restarting(format!("the transport of server {server} has just changed: ask again"))
        }
    }

    /// The answer.
    pub fn reply(&self, id: Option<&RawValue>) -> Response<Body> {
        let mut response = match self.arguments {
            Some(Told::ToolResult { modern }) => {
                let mut result = value!({"content": [{"type": "text", "text": self.message}], "isError": true});
                if modern {
                    result["resultType"] = "complete".into();
                }
                json(self.status, message::result(id, &message::raw(result)))
            }
            Some(Told::Error) | None => {
                json(self.status, message::error(id, self.code, &self.message, self.data.clone()))
            }
        };
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if self.status == StatusCode::TOO_MANY_REQUESTS
            && let Some(seconds) = self.data.as_ref().and_then(|data| data["retryAfterSeconds"].as_u64())
        {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

/// A body that is there as a whole.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never: Infallible| match never {}).boxed_unsync()
}

/// A JSON answer.
pub fn json(status: StatusCode, bytes: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(full(bytes));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// An answer without content.
pub fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(full(Bytes::new()));
    *response.status_mut() = status;
    response
}

/// An answer as server-sent events, one for each message.
pub fn events(messages: impl Stream<Item = Bytes> + Send + 'static) -> Response<Body> {
    answer(messages.map(|message| event("message", &message)))
}

/// One server-sent event.
pub fn event(name: &str, data: &[u8]) -> Bytes {
    let mut event = Vec::with_capacity(data.len() + 32);
    event.extend_from_slice(format!("event: {name}\n").as_bytes());
    // A line break within a message stands between tokens; within an event it would end a line.
    for line in data.trim_ascii_end().split(|b| matches!(b, b'\n' | b'\r')) {
        event.extend_from_slice(b"data: ");
        event.extend_from_slice(line);
        event.push(b'\n');
    }
    event.push(b'\n');
    event.into()
}

/// An answer that is a stream of server-sent events.
pub fn answer(events: impl Stream<Item = Bytes> + Send + 'static) -> Response<Body> {
    // A comment now and then shows both ends that the other one is still there.
    let frames = stream::unfold(events.boxed(), |mut events| async move {
        match tokio::time::timeout(KEEP_ALIVE, events.next()).await {
            Ok(event) => Some((Ok(Frame::data(event?)), events)),
            Err(_) => Some((Ok(Frame::data(Bytes::from_static(b": still here\n\n"))), events)),
        }
    });
    let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Proxies in front of the gateway must not hold events back.
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}
