//! Sessions that share a process, and modern clients, who have none.

use std::{pin::pin, sync::Arc, time::Duration};

use futures::StreamExt;
use http::{Response, StatusCode};
use serde_json::{json, value::RawValue};

use super::{
    Bridges, Line,
    link::{Link, Sharing, Spoken},
    no_session_id,
};
use crate::{
    gateway::{
        era::{self, Era, LATEST_LEGACY, LEGACY_VERSIONS},
        handler::{Call, Gateway},
        message::{self, Kind, Message, member, object, raw, text, with_member},
        peer::{self, Peer},
        reply::{self, Body, Failure, SESSION},
        session::{Home, Place},
        translate::{
            discover::is_discovered,
            legacy_client,
            modern_client::{self, LegacyPeer},
        },
    },
    names::Revision,
    runtime::{Endpoint, RuntimeError},
};

/// Time between two tries to reach a process that just ended.
const RETRY: Duration = Duration::from_millis(20);

/// A session at a shared process.
struct Session {
    place: Place,
    number: u64,
}

/// DELETE: nothing is kept of a shared session, so there is nothing to end.
pub(super) fn delete(gateway: &Gateway, call: &Call) -> Result<Response<Body>, Failure> {
    if let Some(Home::Translated(session)) = gateway.session(call)? {
        return Ok(legacy_client::delete(gateway, &session));
    }
    gateway.ended.end(session(gateway, call)?.number);
    Ok(reply::empty(StatusCode::NO_CONTENT))
}

fn session(gateway: &Gateway, call: &Call) -> Result<Session, Failure> {
    match gateway.session(call)? {
        Some(Home::Shared { place, number }) => Ok(Session { place, number }),
        Some(_) => Err(Failure::no_session()),
        None => Err(no_session_id()),
    }
}

impl Bridges {
    pub(super) async fn post_shared(
        &self,
        gateway: &Arc<Gateway>,
        call: &Call,
        message: &Message<'_>,
    ) -> Result<Response<Body>, Failure> {
        if message.method() == "initialize" {
            return self.initialize(gateway, call, message).await;
        }
        if let Some(Home::Translated(session)) = gateway.session(call)? {
            let place = Place { revision: session.revision.clone(), instance: String::new() };
            let (link, _) = self.link(gateway, call, &Session { place, number: session.number }).await?;
            let peer = Peer::Stdio(line(call, link, session.number, true));
            return Ok(legacy_client::answer(gateway, call, message, session, peer).await?);
        }
        let session = session(gateway, call)?;
        match (message.kind(), message.method()) {
            (Kind::Request, "ping") => Ok(reply::json(StatusCode::OK, message::result(message.id, &object()))),
            (Kind::Request, _) => {
                let (link, _) = self.link(gateway, call, &session).await?;
                let messages = line(call, link, session.number, false).request(&call.body).await?;
                Ok(peer::respond(gateway, call, messages, Era::Legacy).await)
            }
            (Kind::Notification, "notifications/cancelled") => {
                let (link, _) = self.link(gateway, call, &session).await?;
                // What is gone needs no cancellation.
                let _ = link.cancel(message, session.number).await;
                Ok(reply::empty(StatusCode::ACCEPTED))
            }
            // The bridge initialised the server itself, and nobody is asked back.
            (Kind::Notification | Kind::Response, _) => Ok(reply::empty(StatusCode::ACCEPTED)),
        }
    }

    async fn initialize(
        &self,
        gateway: &Arc<Gateway>,
        call: &Call,
        message: &Message<'_>,
    ) -> Result<Response<Body>, Failure> {
        let session = Session { place: Place::default(), number: rand::random() };
        let (link, place) = self.link(gateway, call, &session).await?;
        match link.spoken.get() {
            Some(Spoken::Legacy(known)) => {
                let asked = message.param("protocolVersion").unwrap_or_default();
                let home = Home::Shared { place, number: session.number };
                opened(gateway, call, message::result(message.id, &agree(known, &asked)), &home)
            }
            Some(Spoken::Modern(known)) => translated(gateway, call, message, place.revision, known),
            None => Err(super::ended(&call.route.server)),
        }
    }

    /// Opens the session of a legacy client at a revision whose server is of the modern era; nothing
    /// when it is not.
    pub(super) async fn open_translated(
        &self,
        gateway: &Arc<Gateway>,
        call: &Call,
        message: &Message<'_>,
        revision: &Revision,
    ) -> Result<Option<Response<Body>>, Failure> {
        let place = Place { revision: revision.0.clone(), instance: String::new() };
        let (link, place) = self.link(gateway, call, &Session { place, number: rand::random() }).await?;
        let Some(Spoken::Modern(known)) = link.spoken.get() else { return Ok(None) };
        translated(gateway, call, message, place.revision, known).map(Some)
    }

    pub(super) async fn listen_shared(&self, gateway: &Arc<Gateway>, call: &Call) -> Result<Response<Body>, Failure> {
        if let Some(Home::Translated(session)) = gateway.session(call)? {
            let place = Place { revision: session.revision.clone(), instance: String::new() };
            let (link, _) = self.link(gateway, call, &Session { place, number: session.number }).await?;
            let peer = Peer::Stdio(line(call, link, session.number, true));
            return Ok(legacy_client::listen(gateway, &session, peer));
        }
        let session = session(gateway, call)?;
        let (link, _) = self.link(gateway, call, &session).await?;
        let closing = gateway.shutdown.clone().cancelled_owned();
        Ok(reply::events(line(call, link, session.number, false).news().take_until(closing)))
    }

    /// Answers a client without sessions.
    pub(super) async fn modern(
        &self,
        gateway: &Arc<Gateway>,
        call: &Call,
        message: &Message<'_>,
    ) -> Result<Response<Body>, Failure> {
        let number = rand::random();
        let session = Session { place: Place::default(), number };
        let (link, place) = self.link(gateway, call, &session).await?;
        let spoken = match link.spoken.get() {
            Some(Spoken::Modern(_)) => None,
            Some(Spoken::Legacy(known)) => Some(Arc::clone(known)),
            None => return Err(super::ended(&call.route.server)),
        };
        let line = line(call, link, number, true);
        if let Some(initialized) = spoken {
            let peer = Peer::Stdio(line);
            gateway.parameters.check(&place.revision, &peer, call, message).await?;
            let server = LegacyPeer { peer, initialized };
            return Ok(modern_client::answer(gateway, call, message, server).await?);
        }
        if message.kind() != Kind::Request {
            return Ok(reply::empty(StatusCode::ACCEPTED));
        }
        // On its streams the server has no headers to compare, and no status to answer with.
        era::check_meta(message)?;
        if message.method() == "initialize" {
            // The server would take it for a new client.
            return Err(Failure::new(StatusCode::NOT_FOUND, reply::NO_METHOD, "Method not found: initialize"));
        }
        let peer = Peer::Stdio(line.clone());
        gateway.parameters.check(&place.revision, &peer, call, message).await?;
        let messages = line.request(&call.body).await?;
        Ok(peer::respond(gateway, call, messages, Era::Modern).await)
    }

    /// The link to the session's instance, started and introduced if need be. A session stays
    /// with its instance while that runs, and then with another one of its revision: nothing of it
    /// is in the process. It ends with its revision.
    async fn link(
        &self,
        gateway: &Arc<Gateway>,
        call: &Call,
        session: &Session,
    ) -> Result<(Arc<Link>, Place), Failure> {
        let deadline = tokio::time::Instant::now() + call.patience;
        let server = &call.route.server;
        loop {
            let endpoints = match session.place.revision.as_str() {
                "" => {
                    let number = call.parts.headers.get(era::METHOD).is_none().then_some(session.number);
                    gateway.eligible(call, number).await?
                }
                revision => gateway.bound(call, revision).await?,
            };
            let named = endpoints.iter().find(|e| e.instance.0 == session.place.instance);
            let Some(endpoint) = named.or_else(|| choose(&endpoints, session.number)) else {
                return Err(Failure::no_session());
            };
            call.trail.serve(&endpoint.revision, || None);
            let failed = match self.attached(gateway, endpoint, server.to_string()).await {
                Ok(link) => {
                    let spoken = link.spoken.get_or_try_init(|| introduce(gateway, call, &link, &endpoint.revision.0));
                    match tokio::time::timeout_at(deadline, spoken).await {
                        Ok(Ok(_)) => {
                            let place =
                                Place { revision: endpoint.revision.0.clone(), instance: endpoint.instance.0.clone() };
                            return Ok((link, place));
                        }
                        Ok(Err(failure)) => failure,
                        Err(_) => Failure::unavailable(format!(
                            "server {server} does not answer initialize: it may still be starting, or it speaks no MCP on its standard output"
                        )),
                    }
                }
                Err(error) => Failure::unavailable(format!("server {server} cannot be reached: {error}")),
            };
            if tokio::time::Instant::now() >= deadline {
                return Err(failed);
            }
            // The instance ended, or its streams are just being given back.
            tokio::select! {
                () = tokio::time::sleep(RETRY) => {}
                () = gateway.shutdown.cancelled() => return Err(failed),
            }
        }
    }

    async fn attached(&self, gateway: &Gateway, endpoint: &Endpoint, what: String) -> Result<Arc<Link>, RuntimeError> {
        let mut links = self.shared.lock().await;
        links.retain(|_, link| !link.is_dead());
        if let Some(link) = links.get(&endpoint.instance) {
            return Ok(Arc::clone(link));
        }
        let streams = gateway.instances.attach(&endpoint.instance).await?;
        let link = Arc::new(Link::start(streams, Sharing::Many, gateway.config.line_limit, what));
        links.insert(endpoint.instance.clone(), Arc::clone(&link));
        Ok(link)
    }
}

/// The answer to `initialize`, and the session that it opens.
fn opened(gateway: &Gateway, call: &Call, body: Vec<u8>, home: &Home) -> Result<Response<Body>, Failure> {
    let mut response = reply::json(StatusCode::OK, body);
    response.headers_mut().insert(SESSION, gateway.seal(call, home)?);
    Ok(response)
}

/// The answer to `initialize` in the name of a server that is asked without sessions.
fn translated(
    gateway: &Gateway,
    call: &Call,
    message: &Message<'_>,
    revision: String,
    known: &RawValue,
) -> Result<Response<Body>, Failure> {
    let body = legacy_client::initialized(message, known, &call.route.server.name);
    opened(gateway, call, body, &Home::Translated(legacy_client::introduce(message, revision)))
}

fn line(call: &Call, link: Arc<Link>, session: u64, cancels: bool) -> Line {
    Line { link, server: call.route.server.clone(), session, cancels }
}

/// The instance of a session: the same as long as the same instances run (rendezvous hashing).
fn choose(endpoints: &[Endpoint], session: u64) -> Option<&Endpoint> {
    use std::hash::{DefaultHasher, Hash, Hasher};
    endpoints.iter().max_by_key(|endpoint| {
        let mut hasher = DefaultHasher::new();
        (session, &endpoint.instance).hash(&mut hasher);
        hasher.finish()
    })
}

/// Introduces the bridge to the server and finds out which era it speaks: first the modern way,
/// and on an error or silence the legacy way. Some servers end when the first thing that they hear
/// is not `initialize`, or is: what is known decides what the process that comes next hears, and is
/// forgotten when that one ends too. So a process that ends for another reason does no lasting harm.
async fn introduce(gateway: &Gateway, call: &Call, link: &Arc<Link>, revision: &str) -> Result<Spoken, Failure> {
    let server = &call.route.server;
    let remember = |era: Option<Era>| gateway.eras.set(server, revision, era);
    let line = line(call, Arc::clone(link), 0, false);
    // Whoever waited for somebody else's try learns nothing from a process that is gone.
    if link.is_dead() {
        return Err(super::ended(server));
    }
    let known = gateway.eras.get(server, revision);
    if known == Some(Era::Legacy) {
        let result = initialize(&line).await;
        if result.is_err() {
            remember(None);
        }
        return result.map(Spoken::Legacy);
    }
    let modern = |result| {
        remember(Some(Era::Modern));
        Ok(Spoken::Modern(result))
    };
    let mut discovered = pin!(discover(&line));
    // One that has been modern is slow when it is silent, or another program by now: half of the time that
    // a call waits for a start is left for the legacy way.
    let patience = if known.is_some() { gateway.config.start_timeout / 2 } else { gateway.config.discover_timeout };
    let is_silent = match tokio::time::timeout(patience, &mut discovered).await {
        Ok(Ok(Some(result))) => return modern(result),
        Ok(_) => false,
        Err(_) => true,
    };
    let result = tokio::select! {
        biased;
        // It was only slow, and hears `initialize` after what it answers here.
        Ok(Some(result)) = &mut discovered, if is_silent => return modern(result),
        result = initialize(&line) => result,
    };
    match &result {
        Ok(_) => remember(Some(Era::Legacy)),
        Err(_) if link.is_dead() => remember(known.is_none().then_some(Era::Legacy)),
        Err(_) => {}
    }
    result.map(Spoken::Legacy)
}

/// What a modern server says of itself; nothing from one that is none.
async fn discover(line: &Line) -> Result<Option<Arc<RawValue>>, Failure> {
    let answer = Peer::Stdio(line.clone()).ask(&legacy_client::discover_request()).await?;
    let result = Message::parse(&answer).and_then(|m| m.result).filter(|result| is_discovered(result));
    Ok(result.map(|result| Arc::from(result.to_owned())))
}

/// Introduces the bridge as a client that can do nothing for the server.
async fn initialize(line: &Line) -> Result<Arc<RawValue>, Failure> {
    let params = json!({
        "protocolVersion": LATEST_LEGACY,
        "capabilities": {},
        "clientInfo": {"name": "perch", "version": env!("CARGO_PKG_VERSION")},
    });
    let request = message::request(Some(&raw("perch")), "initialize", Some(&raw(params)));
    let gone = || Failure::unavailable("the server's process ended before it answered initialize");
    let answer = Peer::Stdio(line.clone()).ask(&request).await.map_err(|_| gone())?;
    let response = Message::parse(&answer).ok_or_else(gone)?;
    let result = response.result.map(ToOwned::to_owned).ok_or_else(|| {
        let why = response.error.map(|e| e.get().to_owned()).unwrap_or_default();
        Failure::unavailable(format!("the server refused initialize: {why}"))
    })?;
    line.tell(&message::request(None, "notifications/initialized", None)).await.map_err(|_| gone())?;
    Ok(result.into())
}

/// The server's answer to `initialize`, in the version that the client asked for when that is
/// older than the server's: what the legacy versions share is all that passes the bridge.
fn agree(result: &RawValue, asked: &str) -> Box<RawValue> {
    let spoken = member(result, "protocolVersion").and_then(text).unwrap_or_default();
    let rank = |version: &str| LEGACY_VERSIONS.iter().position(|v| *v == version);
    match (rank(asked), rank(&spoken)) {
        (Some(asked_rank), Some(spoken_rank)) if asked_rank < spoken_rank => {
            with_member(result, &["protocolVersion"], &raw(asked)).unwrap_or_else(|| result.to_owned())
        }
        _ => result.to_owned(),
    }
}
