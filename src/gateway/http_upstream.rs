//! Servers that speak Streamable HTTP: requests and answers pass through as bytes.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};

use super::{
    handler::{Call, Gateway},
    message::{self, Message},
    reply::{self, Body, Failure, SESSION, VERSION},
    session::Home,
};
use crate::{
    api::mcp_server::ToolFilter,
    routing::Upstream,
    runtime::{Address, Endpoint},
};

/// Time to open a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// Time between two tries to reach an instance that does not listen yet.
const RETRY: Duration = Duration::from_millis(25);

/// Request headers that are the upstream's business. Cookies and credentials are for the gateway.
const PASSED: [HeaderName; 6] = [
    header::ACCEPT,
    header::CONTENT_TYPE,
    VERSION,
    HeaderName::from_static("last-event-id"),
    header::ACCEPT_LANGUAGE,
    header::USER_AGENT,
];

/// Sends requests to HTTP instances, over connections that are kept.
pub struct HttpUpstream {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

/// Where a request goes.
struct Target {
    uri: Uri,
    /// Empty for a remote server.
    instance: String,
    session: Option<String>,
}

impl HttpUpstream {
    pub(super) fn new() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT));
        connector.set_nodelay(true);
        connector.enforce_http(false);
        let builder = HttpsConnectorBuilder::new()
            .with_provider_and_native_roots(tokio_rustls::rustls::crypto::ring::default_provider());
        // Without the machine's certificates no remote server can be trusted, but all others work.
        let connector = match builder {
            Ok(builder) => builder.https_or_http().enable_http1().wrap_connector(connector),
            Err(error) => {
                tracing::warn!(%error, "the machine has no root certificates: remote servers over https will fail");
                let config = tokio_rustls::rustls::ClientConfig::builder_with_provider(
                    tokio_rustls::rustls::crypto::ring::default_provider().into(),
                )
                .with_safe_default_protocol_versions()
                .expect("ring supports the default protocol versions")
                .with_root_certificates(tokio_rustls::rustls::RootCertStore::empty())
                .with_no_client_auth();
                HttpsConnectorBuilder::new()
                    .with_tls_config(config)
                    .https_or_http()
                    .enable_http1()
                    .wrap_connector(connector)
            }
        };
        Self { client: Client::builder(TokioExecutor::new()).build(connector) }
    }

    /// Forwards a request and its answer.
    pub(super) async fn forward(&self, gateway: &Gateway, call: Call) -> Response<Body> {
        let message = Message::parse(&call.body);
        let id = message.as_ref().and_then(|m| m.id);
        match self.try_forward(gateway, &call, message.as_ref()).await {
            Ok(response) => response,
            Err(failure) => failure.reply(id),
        }
    }

    async fn try_forward(
        &self,
        gateway: &Gateway,
        call: &Call,
        message: Option<&Message<'_>>,
    ) -> Result<Response<Body>, Failure> {
        let deadline = tokio::time::Instant::now() + gateway.config.start_timeout;
        loop {
            let target = target(gateway, call).await?;
            let request = request(call, &target)?;
            match self.client.request(request).await {
                Ok(response) => {
                    let list = message.is_some_and(|m| m.method() == "tools/list") && !call.route.tools.is_open();
                    let filter = list.then_some(&call.route.tools);
                    return answer(gateway, call, &target, response, filter).await;
                }
                // Nothing was sent, so trying again is safe: the instance does not listen yet, or
                // it just ended and another one takes its place.
                Err(error) if error.is_connect() && !target.instance.is_empty() => {
                    if tokio::time::Instant::now() >= deadline {
                        return Err(gateway.not_ready(&call.route.server));
                    }
                    tokio::select! {
                        () = tokio::time::sleep(RETRY) => {}
                        () = gateway.shutdown.cancelled() => return Err(Failure::unavailable("the gateway is shutting down")),
                    }
                }
                Err(error) => {
                    let server = &call.route.server;
                    tracing::warn!(%server, %error, "a request got no answer");
                    let message = format!("server {server} did not answer: {}", innermost(&error));
                    return Err(Failure::new(StatusCode::BAD_GATEWAY, reply::UNAVAILABLE, message));
                }
            }
        }
    }
}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// Where a request goes: to the home of its session, or to any instance of the newest revision.
async fn target(gateway: &Gateway, call: &Call) -> Result<Target, Failure> {
    let session = match call.parts.headers.get(SESSION) {
        Some(id) => {
            let id = id.to_str().unwrap_or_default();
            match gateway.sessions.open(&call.route.server, id) {
                Some(Home::Upstream { instance, id }) => Some((instance, id)),
                _ => return Err(Failure::no_session()),
            }
        }
        None => None,
    };
    if let Upstream::Remote(url) = &call.route.upstream {
        let uri = url.parse().map_err(|_| Failure::unavailable(format!("spec.remote.url {url:?} is not a URL")))?;
        return Ok(Target { uri, instance: String::new(), session: session.map(|(_, id)| id) });
    }
    let endpoints = gateway.endpoints(&call.route).await?;
    let chosen = match &session {
        Some((instance, _)) => {
            endpoints.into_iter().find(|e| e.instance.0 == *instance).ok_or_else(Failure::no_session)?
        }
        None => any(endpoints),
    };
    let Address::Http(url) = &chosen.address else { return Err(gateway.not_ready(&call.route.server)) };
    let uri = url.as_str().parse().map_err(|_| Failure::unavailable(format!("{url} is not a URL")))?;
    Ok(Target { uri, instance: chosen.instance.0, session: session.map(|(_, id)| id) })
}

fn any(mut endpoints: Vec<Endpoint>) -> Endpoint {
    let index = rand::random_range(0..endpoints.len());
    endpoints.swap_remove(index)
}

fn request(call: &Call, target: &Target) -> Result<Request<Full<Bytes>>, Failure> {
    let mut request = Request::new(Full::new(call.body.clone()));
    *request.method_mut() = call.parts.method.clone();
    *request.uri_mut() = target.uri.clone();
    let headers = request.headers_mut();
    for (name, value) in &call.parts.headers {
        if PASSED.contains(name) || name.as_str().starts_with("mcp-") && name != SESSION {
            headers.append(name.clone(), value.clone());
        }
    }
    if let Some(session) = &target.session {
        let value = HeaderValue::from_str(session).map_err(|_| Failure::no_session())?;
        headers.insert(SESSION, value);
    }
    Ok(request)
}

/// Headers that concern one connection only (RFC 9110, 7.6.1), and the length that a filter
/// changes.
const HOP_BY_HOP: [HeaderName; 6] = [
    header::CONNECTION,
    header::TRANSFER_ENCODING,
    header::TE,
    header::TRAILER,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
];

async fn answer(
    gateway: &Gateway,
    call: &Call,
    target: &Target,
    response: Response<hyper::body::Incoming>,
    filter: Option<&ToolFilter>,
) -> Result<Response<Body>, Failure> {
    let (mut parts, body) = response.into_parts();
    for name in HOP_BY_HOP {
        parts.headers.remove(name);
    }
    if let Some(id) = parts.headers.get(SESSION).and_then(|id| id.to_str().ok()) {
        let home = Home::Upstream { instance: target.instance.clone(), id: id.to_owned() };
        let sealed = gateway.sessions.seal(&call.route.server, &home);
        let sealed = HeaderValue::from_str(&sealed).map_err(|_| Failure::no_session())?;
        parts.headers.insert(SESSION, sealed);
    }
    let Some(filter) = filter else {
        return Ok(Response::from_parts(parts, body.map_err(Into::into).boxed_unsync()));
    };
    let bytes = body.collect().await.map_err(|error| {
        let message = format!("server {} broke off its answer: {error}", call.route.server);
        Failure::new(StatusCode::BAD_GATEWAY, reply::UNAVAILABLE, message)
    })?;
    parts.headers.remove(header::CONTENT_LENGTH);
    let filtered = filtered(&parts.headers, &bytes.to_bytes(), filter);
    Ok(Response::from_parts(parts, reply::full(filtered)))
}

fn filtered(headers: &HeaderMap, bytes: &[u8], filter: &ToolFilter) -> Vec<u8> {
    let media = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    if !media.starts_with("text/event-stream") {
        return message::filter_tools(bytes, filter);
    }
    let mut filtered = Vec::with_capacity(bytes.len());
    for line in bytes.split_inclusive(|b| *b == b'\n') {
        match line.strip_prefix(b"data:") {
            Some(data) => {
                filtered.extend_from_slice(b"data: ");
                filtered.extend(message::filter_tools(data.trim_ascii(), filter));
                filtered.push(b'\n');
            }
            None => filtered.extend_from_slice(line),
        }
    }
    filtered
}
