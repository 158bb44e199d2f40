//! From a request to the upstream that answers it.

use std::{borrow::Cow, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header, request::Parts};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{
    Config, access,
    balance::Balancer,
    bridge::Bridges,
    decommission,
    era::{self, Era, Eras},
    feedback,
    http_upstream::HttpUpstream,
    instances::Instances,
    legacy_sse::{self, Streams},
    message::{Kind, Message},
    nesting,
    observe::{self, Observer, Trail, Watch},
    origin,
    parameter_headers::ParameterHeaders,
    reply::{self, Body, Failure, SESSION, VERSION},
    session::{Ended, Home, Principal, Sessions, Translated},
    starting::{self, Early},
    toolbox::{self, Toolboxes},
    translate::{legacy_client::LegacySessions, modern_client::HeldCalls},
    validate,
};
use crate::{
    names::{Revision, ServerKey},
    routing::{Route, RouteTable, Upstream},
};

/// How long a body that is too large is read on.
const DISCARD: Duration = Duration::from_secs(2);
/// How long a request is held while a gateway that has just started reads which servers there are.
const FIRST_LIST: Duration = Duration::from_secs(5);
/// Wait between two looks whether it has: that is a matter of milliseconds.
const LOOK: Duration = Duration::from_millis(20);

/// Everything that a request may need.
pub struct Gateway {
    pub(super) config: Config,
    pub(super) instances: Arc<dyn Instances>,
    pub(super) sessions: Sessions,
    pub(super) shutdown: CancellationToken,
    pub(super) balancer: Balancer,
    pub(super) http: HttpUpstream,
    pub(super) bridges: Bridges,
    pub(super) eras: Eras,
    pub(super) held: HeldCalls,
    pub(super) legacy: LegacySessions,
    pub(super) parameters: ParameterHeaders,
    pub(super) arguments: validate::Arguments,
    pub(super) early: Early,
    pub(super) ended: Ended,
    pub(super) streams: Streams,
    pub(super) toolboxes: Toolboxes,
    /// Who is told of operations, if anybody.
    pub(super) observer: Option<Arc<Observer>>,
    pub(super) table: Arc<ArcSwap<RouteTable>>,
    /// The one server that is at `/mcp`, when the gateway serves no other.
    only: Option<ServerKey>,
}

/// A request for a server, its body read.
#[derive(Clone)]
pub struct Call {
    /// Method, path and headers.
    pub parts: Parts,
    /// The body, empty for GET and DELETE.
    pub body: Bytes,
    /// Where it goes.
    pub route: Arc<Route>,
    /// Who asks.
    pub principal: Principal,
    /// The one revision that is asked for, with `@revision` in the path.
    pub revision: Option<Revision>,
    /// Where it went.
    pub trail: Arc<Trail>,
    /// How long it waits for an instance that is starting.
    pub patience: Duration,
}

impl Call {
    /// The id of the session, as the client knows it.
    pub fn session_id(&self) -> Option<&str> {
        self.parts.headers.get(SESSION).map(|id| id.to_str().unwrap_or_default())
    }

    /// What a session of this call belongs to. One with a revision that is asked for on purpose is
    /// no session of the server, and the other way round.
    fn home(&self) -> Cow<'_, ServerKey> {
        let server = &self.route.server;
        match &self.revision {
            None => Cow::Borrowed(server),
            Some(revision) => Cow::Owned(ServerKey::new(&*server.namespace, format!("{}@{revision}", server.name))),
        }
    }
}

impl Gateway {
    pub(super) fn new(
        config: Config,
        table: Arc<ArcSwap<RouteTable>>,
        instances: Arc<dyn Instances>,
        shutdown: CancellationToken,
        only: Option<ServerKey>,
    ) -> Self {
        let sessions = Sessions::new(&config.key);
        Self {
            parameters: ParameterHeaders::new(config.list_timeout),
            config,
            instances,
            sessions,
            shutdown,
            balancer: Balancer::default(),
            http: HttpUpstream::new(),
            bridges: Bridges::default(),
            eras: Eras::default(),
            held: HeldCalls::default(),
            legacy: LegacySessions::default(),
            arguments: validate::Arguments::default(),
            early: Early::default(),
            ended: Ended::default(),
            streams: Streams::default(),
            toolboxes: Toolboxes::default(),
            observer: None,
            table,
            only,
        }
    }

    /// Tells this observer of every operation.
    pub(super) fn observed_by(self, observer: Arc<Observer>) -> Self {
        Self { observer: Some(observer), ..self }
    }

    /// Ends what the gateway started itself.
    pub(super) async fn close(&self) {
        self.bridges.close(&*self.instances).await;
        if let Some(observer) = &self.observer {
            observer.close().await;
        }
    }

    /// Answers a request. Every failure is an answer.
    pub async fn answer(self: Arc<Self>, request: Request<hyper::body::Incoming>) -> Response<Body> {
        let (mut parts, body) = request.into_parts();
        if parts.uri.path().trim_matches('/') == "healthz" {
            return reply::json(StatusCode::OK, "\"ok\"");
        }
        if let Err(failure) = origin::check(&self.config, &parts) {
            return failure.reply(None);
        }
        if let Err(answer) = self.config.access.admit(&mut parts).await {
            self.observer.iter().for_each(|observer| observer.refused(&parts, answer.status()));
            return answer;
        }
        let path: Vec<&str> = parts.uri.path().split('/').filter(|p| !p.is_empty()).collect();
        let (server, revision, door) = match (path.as_slice(), &self.only) {
            ([door], Some(only)) => (only.clone(), None, *door),
            ([], None) => {
                self.listed(RouteTable::is_synced).await;
                return self.index(&parts);
            }
            ([namespace, "toolboxes", name, door], None) => (ServerKey::toolbox(namespace, name), None, *door),
            ([namespace, name, door], None) => {
                let (name, revision) = name.split_once('@').map_or((*name, None), |(name, r)| (name, Some(r)));
                (ServerKey::new(*namespace, name), revision.map(|r| Revision(r.to_owned())), *door)
            }
            (_, Some(_)) => return nothing("nothing is here: the server is at /mcp"),
            _ => return nothing("nothing is here: a server is at /{namespace}/{name}/mcp, and / lists them"),
        };
        let methods: &[Method] = match door {
            "mcp" => &[Method::GET, Method::POST, Method::DELETE],
            "sse" => &[Method::GET],
            "messages" | "feedback" => &[Method::POST],
            _ => return nothing("nothing is here: a server is at …/mcp, and for old clients at …/sse"),
        };
        self.listed(|table| {
            let of_its_kind = || server.as_toolbox().is_none() || table.has_toolboxes();
            table.find(&server).is_some() || table.is_synced() && of_its_kind()
        })
        .await;
        let table = self.table.load();
        let route = match table.find(&server) {
            Some(route) => Arc::clone(route),
            None if !table.is_synced() => return not_synced(),
            None if server.as_toolbox().is_some() => {
                return if table.has_toolboxes() { nothing(toolbox::unknown(&server)) } else { not_synced() };
            }
            None => {
                return nothing(format!(
                    "there is no server {server}: `kubectl get mcpservers -A` lists those that there are"
                ));
            }
        };
        drop(table);
        if !methods.contains(&parts.method) {
            let mut response = reply::empty(StatusCode::METHOD_NOT_ALLOWED);
            let allowed: Vec<&str> = methods.iter().map(Method::as_str).collect();
            if let Ok(allowed) = HeaderValue::from_str(&allowed.join(", ")) {
                response.headers_mut().insert(header::ALLOW, allowed);
            }
            return response;
        }
        let messages =
            parts.uri.path().trim_end_matches('/').strip_suffix("/sse").map(|base| format!("{base}/messages"));
        let (is_message, is_feedback) = (door == "messages", door == "feedback");
        let body = match self.read(&parts, body).await {
            Ok(body) => body,
            Err(failure) => return failure.reply(None),
        };
        // The table may have changed while the body came.
        let route = self.table.load().find(&server).cloned().unwrap_or(route);
        let principal = parts.extensions.get::<Principal>().cloned().unwrap_or_default();
        let call = Call {
            parts,
            body,
            route,
            principal,
            revision,
            trail: Arc::default(),
            patience: self.config.start_timeout,
        };
        let done = match messages {
            Some(path) => legacy_sse::open(&self, call, &path),
            None if is_message => legacy_sse::post(&self, &call),
            None if is_feedback => feedback::take(&self, &call),
            None => {
                let notice = call.route.notice.clone();
                let mut response = self.forward(call).await;
                if let Some(notice) = notice {
                    decommission::tell(&notice, &mut response);
                }
                return response;
            }
        };
        done.unwrap_or_else(|failure| failure.reply(None))
    }

    /// The body, as a whole: a call is small, and what it asks decides where it goes.
    async fn read(&self, parts: &Parts, mut body: hyper::body::Incoming) -> Result<Bytes, Failure> {
        if parts.method != Method::POST {
            return Ok(Bytes::new());
        }
        let limit = self.config.body_limit;
        let too_large = || {
            let message = format!("the body is larger than {limit} bytes");
            Failure::new(StatusCode::PAYLOAD_TOO_LARGE, reply::INVALID_REQUEST, message)
        };
        let announced = parts.headers.get(header::CONTENT_LENGTH).and_then(|l| l.to_str().ok()?.parse::<usize>().ok());
        if announced.is_some_and(|length| length > limit) {
            discard(&mut body).await;
            return Err(too_large());
        }
        match tokio::time::timeout(self.config.receive_timeout, Limited::new(&mut body, limit).collect()).await {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(error)) if error.is::<LengthLimitError>() => {
                discard(&mut body).await;
                Err(too_large())
            }
            Ok(Err(_)) => {
                Err(Failure::new(StatusCode::BAD_REQUEST, reply::INVALID_REQUEST, "the body did not arrive as a whole"))
            }
            Err(_) => {
                let text = format!("the body did not arrive within {}s", self.config.receive_timeout.as_secs());
                Err(Failure::new(StatusCode::REQUEST_TIMEOUT, reply::INVALID_REQUEST, text))
            }
        }
    }

    /// Answers a request to a server's endpoint.
    pub(super) async fn forward(self: Arc<Self>, mut call: Call) -> Response<Body> {
        let trail = Arc::<Trail>::default();
        call.trail = Arc::clone(&trail);
        self.early.resolve(&mut call.parts.headers);
        let body = call.body.clone();
        if call.parts.method != Method::POST {
            let done = match decommission::check(&call, true) {
                Ok(()) => self.dispatch(&call, &Message::default(), Era::Legacy).await,
                Err(failure) => Err(failure),
            };
            return observe::follow(None, &trail, done, None);
        }
        if let Err(failure) = check_media_types(&call.parts.headers) {
            return failure.reply(None);
        }
        if let Err(failure) = nesting::check(&body, self.config.depth_limit) {
            return failure.reply(None);
        }
        let Some(message) = Message::parse(&body) else {
            return observe::follow(None, &trail, self.unparsed(call).await, None);
        };
        let mut watch = self.observer.as_ref().and_then(|observer| Watch::new(observer, &call, &message));
        let carried = watch.as_ref().and_then(|watch| watch.carry(&mut call.parts.headers, &message, &body));
        if let Some(carried) = &carried {
            call.body = carried.clone();
        }
        let message = carried.as_deref().and_then(Message::parse).unwrap_or(message);
        let era = era::of(&call.parts.headers, &message);
        let checked = if era == Era::Modern { era::check_headers(&call.parts.headers, &message) } else { Ok(()) };
        let checked = checked.and_then(|()| {
            let refused = access::check(&call, &message)
                .and_then(|()| decommission::check(&call, message.kind() == Kind::Request))
                .and_then(|()| refuse_hidden_tool(&call.route, &message));
            refused.inspect_err(|_| watch.iter_mut().for_each(Watch::deny))
        });
        if checked.is_ok() && starting::concerns(&call, &message) {
            return starting::answer(&self, call, era, watch).await;
        }
        let done = match checked {
            Ok(()) => self.dispatch(&call, &message, era).await,
            Err(failure) => Err(failure),
        };
        observe::follow(watch, &trail, done, message.id)
    }

    /// Answers a call in the way that its server is reached. While a call waits for a server to
    /// start, that way may become another: with a new transport, or when the server is suspended.
    pub(super) async fn dispatch(
        self: &Arc<Self>,
        call: &Call,
        message: &Message<'_>,
        era: Era,
    ) -> Result<Response<Body>, Failure> {
        let mut done = self.dispatch_as_routed(call, message, era).await;
        while done.as_ref().is_err_and(|failure| failure.moved) {
            let call = Call { route: self.route_now(call), ..call.clone() };
            done = self.dispatch_as_routed(&call, message, era).await;
        }
        done
    }

    async fn dispatch_as_routed(
        self: &Arc<Self>,
        call: &Call,
        message: &Message<'_>,
        era: Era,
    ) -> Result<Response<Body>, Failure> {
        if validate::concerns(&call.route, message) {
            validate::check(self, call, message, era).await?;
        }
        match &call.route.upstream {
            Upstream::Suspended => Err(Failure::unavailable(format!(
                "server {} is suspended: set spec.suspend to false to start it",
                call.route.server
            ))),
            Upstream::Http | Upstream::Remote(_) => self.http.answer(self, call, message, era).await,
            Upstream::Stdio(mode) => self.bridges.answer(self, call, message, era, *mode).await,
            Upstream::Toolbox(toolbox) => toolbox::answer(self, call, message, era, toolbox).await,
        }
    }

    /// What is no single message may be a batch, which one legacy version has; it passes to servers
    /// that read it themselves, unless something in it would have to be hidden.
    async fn unparsed(self: &Arc<Self>, call: Call) -> Result<Response<Body>, Failure> {
        let refuse = |code, text: &str| Err(Failure::new(StatusCode::BAD_REQUEST, code, text));
        let text = std::str::from_utf8(&call.body).ok();
        if text.is_none_or(|text| serde_json::from_str::<serde::de::IgnoredAny>(text).is_err()) {
            return refuse(reply::PARSE_ERROR, "the body is not one JSON-RPC 2.0 message in UTF-8");
        }
        if !call.body.trim_ascii_start().starts_with(b"[") {
            return refuse(reply::INVALID_REQUEST, "the body is JSON, but not a JSON-RPC 2.0 message");
        }
        let version = call.parts.headers.get(VERSION).map(|v| v.to_str().unwrap_or_default());
        let has_batches = version.is_none_or(|v| v == "2025-03-26")
            && call.session_id().is_some()
            && call.route.tools.is_open()
            && access::is_unlimited(&call.parts)
            && matches!(call.route.upstream, Upstream::Http | Upstream::Remote(_));
        if !has_batches {
            return refuse(reply::INVALID_REQUEST, "batches are not served: send one message a request");
        }
        decommission::check(&call, true)?;
        self.http.answer(self, &call, &Message::default(), Era::Legacy).await
    }

    /// The session of a request; nothing for a request without one.
    pub(super) fn session(&self, call: &Call) -> Result<Option<Home>, Failure> {
        let Some(id) = call.session_id() else { return Ok(None) };
        let home = self.sessions.open(&call.home(), &call.principal, id);
        let home = home.filter(|home| match home {
            Home::Shared { number, .. } | Home::Translated(Translated { number, .. }) => !self.ended.has(*number),
            Home::Upstream { .. } | Home::Own(_) => true,
        });
        home.map(Some).ok_or_else(Failure::no_session)
    }

    /// The header that gives a client its session.
    pub(super) fn seal(&self, call: &Call, home: &Home) -> Result<HeaderValue, Failure> {
        let id = self.sessions.seal(&call.home(), &call.principal, home);
        HeaderValue::from_str(&id).map_err(|_| Failure::no_session())
    }

    /// Says why a server does not answer, as its status has it now.
    pub(super) fn not_ready(&self, server: &ServerKey) -> Failure {
        let table = self.table.load();
        let why = table.find(server).and_then(|route| route.not_ready.clone());
        let why = why.unwrap_or_else(|| "no instance is running".into());
        Failure::unavailable(format!("server {server} is not ready: {why}"))
    }

    /// Waits until the table has what a request needs; what has not come in time is answered by the
    /// request's own look at the table.
    async fn listed(&self, is_there: impl Fn(&RouteTable) -> bool) {
        if is_there(&self.table.load()) {
            return;
        }
        let there = async {
            while !is_there(&self.table.load()) {
                tokio::time::sleep(LOOK).await;
            }
        };
        let _ = tokio::time::timeout(FIRST_LIST, there).await;
    }

    fn index(&self, parts: &Parts) -> Response<Body> {
        let host = parts.headers.get(header::HOST).and_then(|h| h.to_str().ok()).unwrap_or("localhost");
        let table = self.table.load();
        if !table.is_synced() {
            return not_synced();
        }
        let servers: Vec<_> = table
            .servers()
            .into_iter()
            .filter(|key| access::may_see(parts, key))
            .map(|key| json!({"namespace": key.namespace, "name": key.name, "url": format!("http://{host}/{key}/mcp")}))
            .collect();
        let toolboxes = toolbox::index(&table, parts, host);
        reply::json(StatusCode::OK, json!({"servers": servers, "toolboxes": toolboxes}).to_string())
    }
}

/// Reads on for a while and keeps nothing: many clients listen to an answer only when they have
/// sent everything, and a connection that is closed on unread bytes takes the answer with it.
async fn discard(body: &mut hyper::body::Incoming) {
    let rest = async { while let Some(Ok(_)) = body.frame().await {} };
    let _ = tokio::time::timeout(DISCARD, rest).await;
}

fn nothing(message: impl Into<String>) -> Response<Body> {
    Failure::new(StatusCode::NOT_FOUND, reply::INVALID_REQUEST, message).reply(None)
}

/// A server that is not known yet may well be there, so 404 would be a lie that clients believe.
fn not_synced() -> Response<Body> {
    Failure::restarting("the gateway has just started and has not read which servers there are: try again").reply(None)
}

pub(super) fn check_media_types(headers: &HeaderMap) -> Result<(), Failure> {
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
fn refuse_hidden_tool(route: &Route, message: &Message<'_>) -> Result<(), Failure> {
    if route.tools.is_open() || message.kind() != Kind::Request || message.method() != "tools/call" {
        return Ok(());
    }
    match message.param("name") {
        Some(tool) if !route.tools.admits(&tool) => {
            Err(Failure::new(StatusCode::OK, reply::INVALID_PARAMS, format!("Unknown tool: {tool}")))
        }
        _ => Ok(()),
    }
}
