//! From a request to the upstream that answers it.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use axum::extract::Request;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header, request::Parts};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{
    Config,
    bridge::Bridges,
    http_upstream::HttpUpstream,
    message::{Kind, Message},
    reply::{self, Body, Failure},
    session::Sessions,
};
use crate::{
    names::ServerKey,
    routing::{Route, RouteTable, Upstream},
    runtime::{Backend, Endpoint},
};

/// Everything that a request may need.
pub struct Gateway {
    pub(super) config: Config,
    pub(super) backend: Arc<dyn Backend>,
    pub(super) sessions: Sessions,
    pub(super) shutdown: CancellationToken,
    table: Arc<ArcSwap<RouteTable>>,
    http: HttpUpstream,
    bridges: Bridges,
}

/// A request for a server, its body read.
pub struct Call {
    /// Method, path and headers.
    pub parts: Parts,
    /// The body, empty for GET and DELETE.
    pub body: Bytes,
    /// Where it goes.
    pub route: Arc<Route>,
}

impl Gateway {
    pub(super) fn new(
        config: Config,
        table: Arc<ArcSwap<RouteTable>>,
        backend: Arc<dyn Backend>,
        shutdown: CancellationToken,
    ) -> Self {
        let sessions = Sessions::new(&config.key);
        Self { config, backend, sessions, shutdown, table, http: HttpUpstream::new(), bridges: Bridges::default() }
    }

    /// Ends what the gateway started itself.
    pub(super) async fn close(&self) {
        self.bridges.close(&*self.backend).await;
    }

    /// Answers a request. Every failure is an answer.
    pub async fn answer(self: Arc<Self>, request: Request) -> Response<Body> {
        let (parts, body) = request.into_parts();
        if let Err(failure) = self.check_names(&parts) {
            return failure.reply(None);
        }
        let path: Vec<&str> = parts.uri.path().split('/').filter(|p| !p.is_empty()).collect();
        let server = match path.as_slice() {
            [] => return self.index(&parts),
            ["healthz"] => return reply::json(StatusCode::OK, "\"ok\""),
            [namespace, name, "mcp"] => ServerKey::new(*namespace, *name),
            _ => {
                let message = "nothing is here: a server is at /{namespace}/{name}/mcp, and / lists them";
                return Failure::new(StatusCode::NOT_FOUND, reply::INVALID_REQUEST, message).reply(None);
            }
        };
        let Some(route) = self.table.load().find(&server).cloned() else {
            let message =
                format!("there is no server {server}: `kubectl get mcpservers -A` lists those that there are");
            return Failure::new(StatusCode::NOT_FOUND, reply::INVALID_REQUEST, message).reply(None);
        };
        if !matches!(parts.method, Method::GET | Method::POST | Method::DELETE) {
            let mut response = reply::empty(StatusCode::METHOD_NOT_ALLOWED);
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, POST, DELETE"));
            return response;
        }
        let body = match Limited::new(body, self.config.body_limit).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) if error.is::<LengthLimitError>() => {
                let message = format!("the body is larger than {} bytes", self.config.body_limit);
                return Failure::new(StatusCode::PAYLOAD_TOO_LARGE, reply::INVALID_REQUEST, message).reply(None);
            }
            Err(_) => return reply::empty(StatusCode::BAD_REQUEST),
        };
        self.forward(Call { parts, body, route }).await
    }

    async fn forward(self: Arc<Self>, call: Call) -> Response<Body> {
        if call.parts.method == Method::POST
            && let Err(failure) = check_media_types(&call.parts.headers)
        {
            return failure.reply(None);
        }
        if let Some(refused) = refuse_hidden_tool(&call) {
            return refused;
        }
        match &call.route.upstream {
            Upstream::Suspended => {
                let message =
                    format!("server {} is suspended: set spec.suspend to false to start it", call.route.server);
                Failure::unavailable(message).reply(Message::parse(&call.body).and_then(|m| m.id))
            }
            Upstream::Http | Upstream::Remote(_) => self.http.forward(&self, call).await,
            Upstream::Stdio(mode) => {
                let mode = *mode;
                self.bridges.forward(&self, call, mode).await
            }
        }
    }

    /// The running instances of a server, waited for while it starts.
    pub(super) async fn endpoints(&self, route: &Route) -> Result<Vec<Endpoint>, Failure> {
        let mut changes = self.backend.changes();
        let found = async {
            loop {
                let endpoints = self.backend.endpoints(&route.server);
                if !endpoints.is_empty() {
                    return endpoints;
                }
                // A lag means that something changed; a closed channel is looked at again in time.
                let _ = tokio::time::timeout(Duration::from_secs(1), changes.recv()).await;
            }
        };
        tokio::select! {
            endpoints = found => Ok(endpoints),
            () = tokio::time::sleep(self.config.start_timeout) => Err(self.not_ready(&route.server)),
            () = self.shutdown.cancelled() => Err(Failure::unavailable("the gateway is shutting down")),
        }
    }

    /// Says why a server does not answer, as its status has it now.
    pub(super) fn not_ready(&self, server: &ServerKey) -> Failure {
        let table = self.table.load();
        let why = table.find(server).and_then(|route| route.not_ready.clone());
        let why = why.unwrap_or_else(|| "no instance is running".into());
        Failure::unavailable(format!("server {server} is not ready: {why}"))
    }

    fn index(&self, parts: &Parts) -> Response<Body> {
        let host = parts.headers.get(header::HOST).and_then(|h| h.to_str().ok()).unwrap_or("localhost");
        let table = self.table.load();
        let servers: Vec<_> = table
            .servers()
            .into_iter()
            .map(|key| json!({"namespace": key.namespace, "name": key.name, "url": format!("http://{host}/{key}/mcp")}))
            .collect();
        reply::json(StatusCode::OK, json!({"servers": servers}).to_string())
    }

    /// A browser sends the name of the page that it shows. Only known names may talk to us.
    fn check_names(&self, parts: &Parts) -> Result<(), Failure> {
        let refuse = |what: &str, value: &str| {
            let message = format!("{what} {value:?} is not a name of this gateway");
            Err(Failure::new(StatusCode::FORBIDDEN, reply::INVALID_REQUEST, message))
        };
        let host = parts.headers.get(header::HOST).map(|h| h.to_str().unwrap_or("?"));
        let host = host.or_else(|| parts.uri.authority().map(http::uri::Authority::as_str)).unwrap_or_default();
        if !self.is_known(host) {
            return refuse("host", host);
        }
        match parts.headers.get(header::ORIGIN).map(|o| o.to_str().unwrap_or("?")) {
            Some(origin) => {
                let host = origin.split_once("://").map_or(origin, |(_, host)| host);
                if self.is_known(host) { Ok(()) } else { refuse("origin", origin) }
            }
            None => Ok(()),
        }
    }

    fn is_known(&self, authority: &str) -> bool {
        let host = match authority.strip_prefix('[') {
            Some(rest) => rest.split(']').next().unwrap_or_default(),
            None => authority.rsplit_once(':').map_or(authority, |(host, _)| host),
        };
        let loopback = host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
        loopback || self.config.hosts.iter().any(|known| known.eq_ignore_ascii_case(host))
    }
}

fn check_media_types(headers: &HeaderMap) -> Result<(), Failure> {
    let text = |name| headers.get(name).and_then(|v: &HeaderValue| v.to_str().ok()).unwrap_or_default();
    let media = text(header::CONTENT_TYPE).split(';').next().unwrap_or_default().trim();
    if !media.eq_ignore_ascii_case("application/json") {
        let message = format!("the content type is {media:?}: send application/json");
        return Err(Failure::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, reply::INVALID_REQUEST, message));
    }
    let accept = text(header::ACCEPT);
    if !accept.is_empty()
        && !["application/json", "text/event-stream", "application/*", "*/*"].iter().any(|m| accept.contains(m))
    {
        let message = "accept application/json and text/event-stream";
        return Err(Failure::new(StatusCode::NOT_ACCEPTABLE, reply::INVALID_REQUEST, message));
    }
    Ok(())
}

/// A hidden tool answers as one that does not exist.
fn refuse_hidden_tool(call: &Call) -> Option<Response<Body>> {
    if call.route.tools.is_open() {
        return None;
    }
    let message = Message::parse(&call.body)?;
    if message.kind() != Kind::Request || message.method() != "tools/call" {
        return None;
    }
    let tool = message.param("name")?;
    if call.route.tools.admits(&tool) {
        return None;
    }
    let failure = Failure::new(StatusCode::OK, reply::INVALID_PARAMS, format!("Unknown tool: {tool}"));
    Some(failure.reply(message.id))
}
