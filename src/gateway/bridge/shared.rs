//! Sessions that share a process.

use std::sync::Arc;

use bytes::Bytes;
use futures::stream;
use http::{Response, StatusCode};
use serde_json::{json, value::RawValue};

use super::{
    Bridges, ended,
    link::{Link, Sharing},
    no_session_id, respond,
};
use crate::{
    gateway::{
        era::{LATEST_LEGACY, LEGACY_VERSIONS},
        handler::{Call, Gateway},
        message::{self, Kind, Message, object, raw, with_member},
        reply::{self, Body, Failure, SESSION},
        session::{Home, Place},
    },
    runtime::{Endpoint, RuntimeError},
};

/// A session at a shared process.
struct Session {
    place: Place,
    number: u64,
}

/// DELETE: nothing is kept of a shared session, so there is nothing to end.
pub(super) fn delete(gateway: &Gateway, call: &Call) -> Result<Response<Body>, Failure> {
    session(gateway, call)?;
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
        let session = session(gateway, call)?;
        match (message.kind(), message.method()) {
            (Kind::Request, "ping") => Ok(reply::json(StatusCode::OK, message::result(message.id, &object()))),
            (Kind::Request, _) => {
                let (link, _) = self.link(gateway, call, &session).await?;
                let answers = link.request(message, session.number).await.map_err(|_| ended(&call.route.server))?;
                let limit = gateway.config.call_timeout;
                tokio::time::timeout(limit, respond(call, answers)).await.map_err(|_| {
                    let text = format!("server {} did not answer within {}s", call.route.server, limit.as_secs());
                    Failure::new(StatusCode::OK, reply::SERVER_FAILED, text)
                })
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
        let known = link.initialized.get().ok_or_else(|| ended(&call.route.server))?;
        let asked = message.param("protocolVersion").unwrap_or_default();
        let result = agree(known, &asked);
        let mut response = reply::json(StatusCode::OK, message::result(message.id, &result));
        let id = gateway.seal(call, &Home::Shared { place, number: session.number })?;
        response.headers_mut().insert(SESSION, id);
        Ok(response)
    }

    pub(super) async fn listen_shared(&self, gateway: &Arc<Gateway>, call: &Call) -> Result<Response<Body>, Failure> {
        let session = session(gateway, call)?;
        let (link, _) = self.link(gateway, call, &session).await?;
        Ok(reply::events(listen(gateway, link)))
    }

    /// The link to the session's instance, started and initialised if need be. A session stays
    /// with its instance while that runs, and then with another one of its revision: nothing of it
    /// is in the process. It ends with its revision.
    async fn link(
        &self,
        gateway: &Arc<Gateway>,
        call: &Call,
        session: &Session,
    ) -> Result<(Arc<Link>, Place), Failure> {
        let deadline = tokio::time::Instant::now() + gateway.config.start_timeout;
        let server = &call.route.server;
        loop {
            let endpoints = match session.place.revision.as_str() {
                "" => gateway.eligible(call, Some(session.number)).await?,
                revision => {
                    let mut all = gateway.endpoints(&call.route).await?;
                    all.retain(|e| e.revision.0 == *revision);
                    all
                }
            };
            let named = endpoints.iter().find(|e| e.instance.0 == session.place.instance);
            let Some(endpoint) = named.or_else(|| choose(&endpoints, session.number)) else {
                return Err(Failure::no_session());
            };
            let link = self.attached(gateway, endpoint, server.to_string()).await;
            let failed = match link {
                Ok(link) => {
                    let initialized = link.initialized.get_or_try_init(|| initialize(&link));
                    match tokio::time::timeout_at(deadline, initialized).await {
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
                () = tokio::time::sleep(std::time::Duration::from_millis(20)) => {}
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

/// The instance of a session: the same as long as the same instances run (rendezvous hashing).
fn choose(endpoints: &[Endpoint], session: u64) -> Option<&Endpoint> {
    use std::hash::{DefaultHasher, Hash, Hasher};
    endpoints.iter().max_by_key(|endpoint| {
        let mut hasher = DefaultHasher::new();
        (session, &endpoint.instance).hash(&mut hasher);
        hasher.finish()
    })
}

/// Introduces the bridge to the server, as a client that can do nothing for it.
async fn initialize(link: &Link) -> Result<Box<RawValue>, Failure> {
    let refused = |why: String| Failure::unavailable(format!("the server refused initialize: {why}"));
    let request = json!({
        "jsonrpc": "2.0", "id": "perch", "method": "initialize",
        "params": {
            "protocolVersion": LATEST_LEGACY,
            "capabilities": {},
            "clientInfo": {"name": "perch", "version": env!("CARGO_PKG_VERSION")},
        },
    })
    .to_string();
    let request = Message::parse(request.as_bytes()).ok_or_else(|| refused("it cannot be sent".into()))?;
    let gone = || Failure::unavailable("the server's process ended before it answered initialize");
    let mut answers = link.request(&request, 0).await.map_err(|_| gone())?;
    let answer = loop {
        let answer = answers.recv().await.ok_or_else(gone)?;
        if Message::parse(&answer).is_some_and(|m| m.kind() == Kind::Response) {
            break answer;
        }
    };
    let response = Message::parse(&answer).ok_or_else(gone)?;
    let result = response
        .result
        .ok_or_else(|| refused(response.error.map(|e| e.get().to_owned()).unwrap_or_default()))?
        .to_owned();
    let initialized = br#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
    if let Some(message) = Message::parse(initialized) {
        link.pass(&message).await.map_err(|_| gone())?;
    }
    Ok(result)
}

/// The server's answer to `initialize`, in the version that the client asked for when that is
/// older than the server's: what the legacy versions share is all that passes the bridge.
fn agree(result: &RawValue, asked: &str) -> Box<RawValue> {
    let spoken = serde_json::from_str::<serde_json::Value>(result.get())
        .ok()
        .and_then(|r| r["protocolVersion"].as_str().map(str::to_owned))
        .unwrap_or_default();
    let rank = |version: &str| LEGACY_VERSIONS.iter().position(|v| *v == version);
    match (rank(asked), rank(&spoken)) {
        (Some(asked_rank), Some(spoken_rank)) if asked_rank < spoken_rank => {
            with_member(result, &["protocolVersion"], &raw(asked)).unwrap_or_else(|| result.to_owned())
        }
        _ => result.to_owned(),
    }
}

/// The news of a link for one listener, until the process, the client or the gateway ends.
pub(super) fn listen(gateway: &Arc<Gateway>, link: Arc<Link>) -> impl futures::Stream<Item = Bytes> + Send + use<> {
    let news = link.news();
    let shutdown = gateway.shutdown.clone();
    stream::unfold((news, link, shutdown), |(mut news, link, shutdown)| async move {
        loop {
            let next = tokio::select! {
                next = news.recv() => next,
                () = link.ended() => return None,
                () = shutdown.cancelled() => return None,
            };
            match next {
                Ok(message) => return Some((message, (news, link, shutdown))),
                Err(tokio::sync::broadcast::error::RecvError::Lagged(missed)) => {
                    tracing::warn!(missed, "a slow listener missed notifications");
                }
                Err(tokio::sync::broadcast::error::RecvError::Closed) => return None,
            }
        }
    })
}
