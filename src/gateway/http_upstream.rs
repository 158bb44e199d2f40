//! Servers that speak Streamable HTTP: requests and answers pass through as bytes.

use std::{
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt, stream};
use http::{HeaderName, HeaderValue, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Either, Full};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::value::RawValue;

use super::{
    access::{self, VisibleTools},
    balance::{Holding, InHand},
    era::{Era, MODERN},
    handler::{Call, Gateway},
    message::{self, Kind, Message, member},
    peer::{self, HttpPeer, Peer},
    pool::{Driven, Pool, PoolError},
    reply::{self, Body, Failure, SESSION, VERSION},
    session::{Home, Place, Translated},
    sse, trace,
    translate::{discover, legacy_client},
    upstream_sessions::UpstreamSessions,
};
use crate::{
    routing::Upstream,
    runtime::{Address, Endpoint, InstanceId},
};

/// Time to open a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// Time between two tries to reach an instance that does not listen yet.
const RETRY: Duration = Duration::from_millis(25);

/// Request headers that are the upstream's business. Cookies and credentials are for the gateway.
const PASSED: [HeaderName; 8] = [
    header::ACCEPT,
    header::CONTENT_TYPE,
    VERSION,
    HeaderName::from_static("last-event-id"),
    header::ACCEPT_LANGUAGE,
    header::USER_AGENT,
    trace::TRACEPARENT,
    trace::TRACESTATE,
];

/// Sends requests to HTTP instances, over connections that are kept.
pub struct HttpUpstream {
    pool: Arc<Pool>,
    sessions: UpstreamSessions,
    remote: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

/// An answer of an upstream, its body still on the way.
pub type Answer = Response<Pin<Box<Either<Driven, Incoming>>>>;

/// Where a request goes.
#[derive(Clone, Debug)]
pub struct Target {
    /// The URL.
    pub uri: Uri,
    /// Both empty for a remote server.
    pub place: Place,
}

/// Why an upstream gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// Nothing was sent.
    #[error("{0}")]
    Connect(String),
    /// The connection broke before the answer began.
    #[error("{0}")]
    Broken(String),
    /// Nothing came in time.
    #[error("nothing came within {}s", .0.as_secs())]
    Timeout(Duration),
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
        Self {
            pool: Arc::default(),
            sessions: UpstreamSessions::default(),
            remote: Client::builder(TokioExecutor::new()).build(connector),
        }
    }

    /// Answers a request for an HTTP server.
    pub(super) async fn answer(
        &self,
        gateway: &Arc<Gateway>,
        call: &Call,
        message: &Message<'_>,
        era: Era,
    ) -> Result<Response<Body>, Failure> {
        // A modern request has no session, whatever its headers say.
        let session = if era == Era::Modern { None } else { gateway.session(call)? };
        let session = match session {
            None => None,
            Some(Home::Upstream { place, id }) => Some((place, id)),
            Some(Home::Translated(session)) => return self.translated(gateway, call, message, session).await,
            Some(_) => return Err(Failure::no_session()),
        };
        self.pass(gateway, call, message, session, era).await
    }

    /// Passes a request and its answer as bytes, unless the upstream is of another era.
    async fn pass(
        &self,
        gateway: &Arc<Gateway>,
        call: &Call,
        message: &Message<'_>,
        session: Option<(Place, String)>,
        era: Era,
    ) -> Result<Response<Body>, Failure> {
        let deadline = tokio::time::Instant::now() + call.patience;
        loop {
            let is_start = message.method() == "initialize";
            let target = target(gateway, call, session.as_ref().map(|(place, _)| place), is_start).await?;
            let sent = async {
                if era == Era::Modern && self.era_of(gateway, call, &target).await? == Era::Legacy {
                    return Ok(None);
                }
                let request = passed(call, &target, session.as_ref().map(|(_, id)| id.as_str()))?;
                let in_hand = gateway.balancer.take(&InstanceId(target.place.instance.clone()));
                let response = self.send(&target, request, gateway.config.call_timeout).await?;
                Ok(Some((response, in_hand)))
            };
            match sent.await {
                Ok(Some((response, in_hand))) => {
                    if era == Era::Legacy && message.method() == "initialize" {
                        return self.initialized(gateway, call, message, &target, response, in_hand).await;
                    }
                    return answer(gateway, call, message, &target, response, in_hand).await;
                }
                Ok(None) => return self.sessions.answer(gateway, call, message, target).await,
                // Nothing was sent, so trying again is safe: the instance does not listen yet, or
                // it just ended and another one takes its place.
                Err(NotPassed::Send(SendError::Connect(_))) if !target.place.instance.is_empty() => {
                    if tokio::time::Instant::now() >= deadline {
                        return Err(gateway.not_ready(&call.route.server));
                    }
                    tokio::select! {
                        () = tokio::time::sleep(RETRY) => {}
                        () = gateway.shutdown.cancelled() => return Err(Failure::restarting("the gateway is shutting down")),
                    }
                }
                Err(NotPassed::Send(error)) => return Err(no_answer(call, &error)),
                Err(NotPassed::Failed(failure)) => return Err(failure),
            }
        }
    }

    /// The era that a target speaks with modern clients: asked once for each revision.
    async fn era_of(&self, gateway: &Arc<Gateway>, call: &Call, target: &Target) -> Result<Era, NotPassed> {
        let revision = revision(target);
        if let Some(era) = gateway.eras.get(&call.route.server, &revision) {
            return Ok(era);
        }
        let discovered = self.discover(gateway, call, target).await?;
        let era = if discovered.is_some() { Era::Modern } else { Era::Legacy };
        gateway.eras.set(&call.route.server, &revision, Some(era));
        Ok(era)
    }

    /// What a modern server says of itself; nothing from one that is none.
    async fn discover(
        &self,
        gateway: &Arc<Gateway>,
        call: &Call,
        target: &Target,
    ) -> Result<Option<Arc<RawValue>>, NotPassed> {
        let peer = peer(gateway, call, target, MODERN);
        let request = legacy_client::discover_request();
        let mut ask = super::http_upstream::request(http::Method::POST, target, request.clone().into())?;
        peer.fill(ask.headers_mut(), &request)?;
        let response = self.send(target, ask, gateway.config.call_timeout).await?;
        let status = response.status();
        if status.is_server_error() {
            return Err(Failure::unavailable(format!("server {} answered HTTP {status}", call.route.server)).into());
        }
        let limit = gateway.config.line_limit;
        let broken = |why: String| NotPassed::from(no_answer(call, &SendError::Broken(why)));
        if !is_media(response.headers(), "text/event-stream") {
            return Ok(modern(&peer::collect(response, limit).await.map_err(broken)?));
        }
        let mut events = pin!(sse::events(response.into_body(), limit));
        while let Some(event) = events.next().await {
            let event = event.map_err(|error| broken(error.to_string()))?;
            if Message::parse(&event.data).is_some_and(|m| m.kind() == Kind::Response) {
                return Ok(modern(&event.data));
            }
        }
        // It ended, perhaps with its process: that says nothing about its era.
        Err(broken("the stream ended early".into()))
    }

    /// Passes the answer to `initialize` on; when it is a refusal because the server is of the
    /// modern era, the gateway answers for it.
    async fn initialized(
        &self,
        gateway: &Arc<Gateway>,
        call: &Call,
        message: &Message<'_>,
        target: &Target,
        response: Answer,
        in_hand: InHand,
    ) -> Result<Response<Body>, Failure> {
        let status = response.status();
        let may_refuse = status.is_client_error()
            && !matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::TOO_MANY_REQUESTS);
        if !may_refuse && !status.is_success() {
            return answer(gateway, call, message, target, response, in_hand).await;
        }
        let (mut parts, mut body) = response.into_parts();
        let mut parser = sse::Parser::default();
        let (mut seen, mut said) = (Vec::new(), Vec::new());
        let is_stream = is_media(&parts.headers, "text/event-stream");
        let deadline = tokio::time::Instant::now() + gateway.config.call_timeout;
        let late = || no_answer(call, &SendError::Timeout(gateway.config.call_timeout));
        // What was read to see what it is goes on to the client as it came.
        while let Some(frame) = tokio::time::timeout_at(deadline, body.frame()).await.map_err(|_| late())? {
            let frame = frame.map_err(|error| no_answer(call, &SendError::Broken(error.to_string())))?;
            let Ok(data) = frame.into_data() else { continue };
            if is_stream {
                parser.feed(&data);
                let mut events = std::iter::from_fn(|| parser.next());
                said = events.find(|e| Message::parse(&e.data).is_some()).map_or(said, |e| e.data.to_vec());
            } else {
                said.extend_from_slice(&data);
            }
            seen.push(data);
            if is_stream && !said.is_empty() || seen.iter().map(Bytes::len).sum::<usize>() > gateway.config.line_limit {
                break;
            }
        }
        let refused = may_refuse || Message::parse(&said).is_none_or(|m| m.error.is_some());
        if refused && let Ok(Some(discovered)) = self.discover(gateway, call, target).await {
            gateway.eras.set(&call.route.server, &revision(target), Some(Era::Modern));
            let session = legacy_client::introduce(message, target.place.revision.clone());
            let body = legacy_client::initialized(message, &discovered, &call.route.server.name);
            let mut response = reply::json(StatusCode::OK, body);
            response.headers_mut().insert(SESSION, gateway.seal(call, &Home::Translated(session))?);
            return Ok(response);
        }
        check_media(call, message, &parts)?;
        adopt(gateway, call, target, &mut parts)?;
        let seen = stream::iter(seen.into_iter().map(|data| Ok(hyper::body::Frame::data(data))));
        let rest = Holding::new(body, in_hand, None).map_err(Into::into).into_data_stream();
        let rest = rest.map(|data| data.map(hyper::body::Frame::data));
        Ok(Response::from_parts(parts, http_body_util::StreamBody::new(seen.chain(rest)).boxed_unsync()))
    }

    /// Answers a legacy client's request from a modern server.
    async fn translated(
        &self,
        gateway: &Arc<Gateway>,
        call: &Call,
        message: &Message<'_>,
        session: Translated,
    ) -> Result<Response<Body>, Failure> {
        if call.parts.method == http::Method::DELETE {
            return Ok(legacy_client::delete(gateway, &session));
        }
        let target = if let Upstream::Remote(_) = &call.route.upstream {
            target(gateway, call, None, false).await?
        } else {
            let endpoints = gateway.bound(call, &session.revision).await?;
            let chosen = gateway.balancer.choose(&endpoints).ok_or_else(Failure::no_session)?;
            at(gateway, call, chosen)?
        };
        let mut peer = peer(gateway, call, &target, MODERN);
        if call.parts.method == http::Method::GET {
            return Ok(legacy_client::listen(gateway, &session, Peer::Http(peer)));
        }
        if message.method() == "tools/call" {
            let revision = session.revision.clone();
            peer.headers = gateway.parameters.headers(&revision, &Peer::Http(peer.clone()), call, message).await;
        }
        Ok(legacy_client::answer(gateway, call, message, session, Peer::Http(peer)).await?)
    }

    /// Sends a request and waits for the head of its answer, at most for `limit`.
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn send(
        &self,
        target: &Target,
        request: Request<Full<Bytes>>,
        limit: Duration,
    ) -> Result<Answer, SendError> {
        let sent = async {
            if target.place.instance.is_empty() {
                let response = self.remote.request(request).await;
                let response = response.map_err(|error| {
                    let why = innermost(&error);
                    if error.is_connect() { SendError::Connect(why) } else { SendError::Broken(why) }
                })?;
                return Ok(response.map(|body| Box::pin(Either::Right(body))));
            }
            let authority = request.headers().get(header::HOST).and_then(|h| h.to_str().ok()).unwrap_or_default();
            let authority: Arc<str> = authority.into();
            let response = self.pool.send(&authority, request).await;
            let response = response.map_err(|error| match error {
                PoolError::Connect(error) => SendError::Connect(error.to_string()),
                PoolError::Broken(error) => SendError::Broken(innermost(&error)),
            })?;
            Ok(response.map(|body| Box::pin(Either::Left(body))))
        };
        tokio::time::timeout(limit, sent).await.unwrap_or(Err(SendError::Timeout(limit)))
    }
}

/// What a modern server says of itself, in its answer to `server/discover`.
fn modern(answer: &[u8]) -> Option<Arc<RawValue>> {
    let message = Message::parse(answer)?;
    // One that knows the modern errors is modern, though it may want another version.
    let knows = match message.error_code() {
        Some(-32022) => message.error.and_then(|e| member(e, "data")).is_some_and(discover::supports_modern),
        Some(code) => (-32021..=-32020).contains(&code),
        None => false,
    };
    let result = message.result.map(ToOwned::to_owned).filter(|result| discover::is_discovered(result));
    result.or_else(|| knows.then(message::object)).map(Arc::from)
}

fn is_media(headers: &http::HeaderMap, media: &str) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(media.as_bytes()))
}

/// Refuses what greets a browser as an answer to a request.
fn check_media(call: &Call, message: &Message<'_>, parts: &http::response::Parts) -> Result<(), Failure> {
    let is_message = is_media(&parts.headers, "application/json") || is_media(&parts.headers, "text/event-stream");
    if is_message || message.kind() != Kind::Request || parts.status != StatusCode::OK {
        return Ok(());
    }
    let media = parts.headers.get(header::CONTENT_TYPE).and_then(|t| t.to_str().ok()).unwrap_or("nothing");
    let text = format!("server {} answered with {media} and not with a JSON-RPC message", call.route.server);
    Err(Failure::new(StatusCode::BAD_GATEWAY, reply::SERVER_FAILED, text))
}

/// Why a request did not pass.
#[derive(Debug)]
enum NotPassed {
    Send(SendError),
    Failed(Failure),
}

impl From<SendError> for NotPassed {
    fn from(error: SendError) -> Self {
        Self::Send(error)
    }
}

impl From<Failure> for NotPassed {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// By what a target's era is known.
fn revision(target: &Target) -> String {
    if target.place.instance.is_empty() { target.uri.to_string() } else { target.place.revision.clone() }
}

/// A target as a peer of whoever translates.
fn peer(gateway: &Arc<Gateway>, call: &Call, target: &Target, version: &str) -> HttpPeer {
    HttpPeer {
        gateway: Arc::clone(gateway),
        call: Arc::new(call.clone()),
        target: target.clone(),
        version: version.to_owned(),
        session: None,
        headers: Vec::new(),
    }
}

/// What a client hears when an upstream does not answer.
pub fn no_answer(call: &Call, error: &SendError) -> Failure {
    let server = &call.route.server;
    tracing::warn!(%server, %error, "a request got no answer");
    let status = match error {
        SendError::Timeout(_) => StatusCode::GATEWAY_TIMEOUT,
        SendError::Connect(_) | SendError::Broken(_) => StatusCode::BAD_GATEWAY,
    };
    Failure::new(status, reply::UNAVAILABLE, format!("server {server} did not answer: {error}"))
}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// Where a request goes: to the keeper of its session, or to the least busy instance. `is_start`
/// says whether a session begins with it.
pub async fn target(gateway: &Gateway, call: &Call, keeper: Option<&Place>, is_start: bool) -> Result<Target, Failure> {
    if let Upstream::Remote(url) = &call.route.upstream {
        let uri = url.parse().map_err(|_| Failure::unavailable(format!("spec.remote.url {url:?} is not a URL")))?;
        return Ok(Target { uri, place: Place::default() });
    }
    let endpoint = if let Some(place) = keeper {
        gateway.keeper(call, place).await?
    } else {
        // Only a session that begins has a number to be divided by.
        let endpoints = gateway.eligible(call, is_start.then(rand::random)).await?;
        let chosen = gateway.balancer.choose(&endpoints).cloned();
        chosen.ok_or_else(|| gateway.not_ready(&call.route.server))?
    };
    at(gateway, call, &endpoint)
}

/// The target that an endpoint is.
pub fn at(gateway: &Gateway, call: &Call, endpoint: &Endpoint) -> Result<Target, Failure> {
    let Address::Http(url) = &endpoint.address else { return Err(gateway.not_ready(&call.route.server)) };
    let uri = url.as_str().parse().map_err(|_| Failure::unavailable(format!("{url} is not a URL")))?;
    let place = Place { revision: endpoint.revision.0.clone(), instance: endpoint.instance.0.clone() };
    call.trail.serve(&endpoint.revision, || None);
    Ok(Target { uri, place })
}

/// A request to a target, without headers of its own but `Host`.
///
/// # Errors
/// When the target's URL has no host.
pub fn request(method: http::Method, target: &Target, body: Bytes) -> Result<Request<Full<Bytes>>, Failure> {
    let unusable = || Failure::unavailable(format!("{} is not a URL that can be asked", target.uri));
    let authority = target.uri.authority().ok_or_else(unusable)?;
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = method;
    if target.place.instance.is_empty() {
        *request.uri_mut() = target.uri.clone();
    } else {
        // On a connection of one's own the path alone says where.
        let port = target.uri.port_u16().unwrap_or(80);
        let host = HeaderValue::from_str(&format!("{}:{port}", authority.host())).map_err(|_| unusable())?;
        request.headers_mut().insert(header::HOST, host);
        let path = target.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        *request.uri_mut() = path.parse().map_err(|_| unusable())?;
    }
    Ok(request)
}

fn passed(call: &Call, target: &Target, session: Option<&str>) -> Result<Request<Full<Bytes>>, Failure> {
    let mut request = request(call.parts.method.clone(), target, call.body.clone())?;
    let headers = request.headers_mut();
    for (name, value) in &call.parts.headers {
        if PASSED.contains(name) || name.as_str().starts_with("mcp-") && name != SESSION {
            headers.append(name.clone(), value.clone());
        }
    }
    if let Some(session) = session {
        let value = HeaderValue::from_str(session).map_err(|_| Failure::no_session())?;
        headers.insert(SESSION, value);
    }
    Ok(request)
}

/// Headers that concern one connection only (RFC 9110, 7.6.1).
const HOP_BY_HOP: [HeaderName; 6] = [
    header::CONNECTION,
    header::TRANSFER_ENCODING,
    header::TE,
    header::TRAILER,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
];

/// Makes an answer's head the gateway's own.
fn adopt(gateway: &Gateway, call: &Call, target: &Target, parts: &mut http::response::Parts) -> Result<(), Failure> {
    for name in HOP_BY_HOP {
        parts.headers.remove(name);
    }
    if let Some(id) = parts.headers.get(SESSION).and_then(|id| id.to_str().ok()) {
        let home = Home::Upstream { place: target.place.clone(), id: id.to_owned() };
        parts.headers.insert(SESSION, gateway.seal(call, &home)?);
    }
    Ok(())
}

async fn answer(
    gateway: &Gateway,
    call: &Call,
    message: &Message<'_>,
    target: &Target,
    response: Answer,
    in_hand: InHand,
) -> Result<Response<Body>, Failure> {
    let (mut parts, body) = response.into_parts();
    check_media(call, message, &parts)?;
    adopt(gateway, call, target, &mut parts)?;
    let filter = Some(access::visible_tools(call)).filter(|tools| !tools.is_open());
    // A stream that only listens is taken up again elsewhere; a call is finished here.
    let listens = call.parts.method == http::Method::GET || message.method() == "subscriptions/listen";
    let body = Holding::new(body, in_hand, listens.then(|| gateway.shutdown.clone()));
    let Some(filter) = filter else {
        return Ok(Response::from_parts(parts, body.map_err(Into::into).boxed_unsync()));
    };
    if is_media(&parts.headers, "text/event-stream") {
        // A stream may be taken up again, so a list of tools can come on any of them.
        parts.headers.remove(header::CONTENT_LENGTH);
        let limit = gateway.config.line_limit;
        let events = filtered(body, filter, limit);
        return Ok(Response::from_parts(parts, events));
    }
    if message.method() != "tools/list" {
        return Ok(Response::from_parts(parts, body.map_err(Into::into).boxed_unsync()));
    }
    let bytes = peer::read(body, gateway.config.line_limit).await.map_err(|why| {
        let message = format!("server {} broke off its answer: {why}", call.route.server);
        Failure::new(StatusCode::BAD_GATEWAY, reply::UNAVAILABLE, message)
    })?;
    parts.headers.remove(header::CONTENT_LENGTH);
    Ok(Response::from_parts(parts, reply::full(message::filter_tools(&bytes, &filter))))
}

/// The events of a body, each as soon as it is there, without hidden tools.
fn filtered<B>(body: B, filter: VisibleTools, limit: usize) -> Body
where
    B: hyper::body::Body<Data = Bytes> + Unpin + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let frames = sse::events(body, limit).map(move |event| {
        let event = event?;
        let mut bytes = event.id.map(|id| format!("id: {id}\n").into_bytes()).unwrap_or_default();
        bytes.extend_from_slice(&reply::event("message", &message::filter_tools(&event.data, &filter)));
        Ok(hyper::body::Frame::data(Bytes::from(bytes)))
    });
    http_body_util::StreamBody::new(frames).boxed_unsync()
}
