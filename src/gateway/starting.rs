//! Requests for a server that is being started: bridged, not failed.
//!
//! A start may take longer than a client waits for an answer. So when a server is known not to be
//! ready, and nothing came for a moment, the client gets the head of a stream of events, comments
//! that show that somebody is there, and at last the answer as an event. Only the server's own
//! start is bridged so: a server that is ready answers as it always did, and one that has failed is
//! not waited for longer than for any call.
//!
//! A session begins with the head of an answer, which is gone by the time the server gives its id.
//! So the client gets an id that stands for it, and only this gateway knows for what: another one
//! answers 404, and the client initialises again.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use futures::{
    FutureExt, StreamExt,
    stream::{self, BoxStream},
};
use http::{HeaderMap, HeaderValue, Response, header};
use http_body_util::BodyExt;
use serde_json::value::RawValue;

use super::{
    era::Era,
    handler::{Call, Gateway},
    message::{self, Kind, Message},
    observe::{self, Watch},
    reply::{self, Body, SESSION},
};
use crate::{names::ServerKey, routing::Upstream};

/// Begins ids that stand for others. No sealed id has a dot.
const STANDS: &str = "w.";
/// Most ids that stand for others.
const MOST: usize = 65_536;

/// In a request's extensions: its client waits as long as need be, on a stream of its own.
#[derive(Clone, Copy, Debug)]
pub struct Unhurried;

/// Sessions that began before their ids were known.
#[derive(Debug, Default)]
pub struct Early {
    known: Mutex<Known>,
}

/// The ids that stand for others; none of a server that keeps no sessions.
#[derive(Debug, Default)]
struct Known {
    ids: HashMap<String, Option<HeaderValue>>,
    /// The oldest first.
    order: VecDeque<String>,
}

impl Early {
    fn know(&self, id: String, real: Option<HeaderValue>) {
        let mut known = self.known.lock().expect("nobody panics while holding the ids");
        known.ids.insert(id.clone(), real);
        known.order.push_back(id);
        if known.order.len() > MOST
            && let Some(oldest) = known.order.pop_front()
        {
            known.ids.remove(&oldest);
        }
    }

    /// Puts the session's own id where a request has the one that stands for it. Of an id that
    /// stands for nothing, nobody knows the session.
    pub fn resolve(&self, headers: &mut HeaderMap) {
        let Some(id) = headers.get(SESSION).and_then(|id| id.to_str().ok()).filter(|id| id.starts_with(STANDS)) else {
            return;
        };
        let real = self.known.lock().expect("nobody panics while holding the ids").ids.get(id).cloned();
        match real {
            Some(Some(real)) => drop(headers.insert(SESSION, real)),
            // The server keeps no sessions.
            Some(None) => drop(headers.remove(SESSION)),
            None => {}
        }
    }
}

/// Whether a request may have to wait for the server to start, and its client can be told.
pub fn concerns(call: &Call, message: &Message<'_>) -> bool {
    call.route.not_ready.is_some()
        && !call.route.has_failed
        && message.kind() == Kind::Request
        && call.revision.is_none()
        && !matches!(call.route.upstream, Upstream::Suspended | Upstream::Remote(_))
        && takes_events(&call.parts.headers)
}

fn takes_events(headers: &HeaderMap) -> bool {
    let accepts = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    accepts.contains("text/event-stream") || accepts.contains("*/*")
}

/// Answers a request, in the end.
pub async fn answer(gateway: &Arc<Gateway>, mut call: Call, era: Era, watch: Option<Watch>) -> Response<Body> {
    call.patience = gateway.config.longest_start;
    let server = call.route.server.clone();
    let message = Message::parse(&call.body);
    let id = message.as_ref().and_then(|message| message.id.map(RawValue::to_owned));
    let begins = era == Era::Legacy && message.is_some_and(|m| m.method() == "initialize");
    let is_unhurried = call.parts.extensions.get::<Unhurried>().is_some();
    let work = {
        let gateway = Arc::clone(gateway);
        async move {
            let body = call.body.clone();
            let message = Message::parse(&body).unwrap_or_default();
            let done = gateway.dispatch(&call, &message, era).await;
            observe::follow(watch, &call.trail, done, message.id)
        }
    };
    let mut work = work.boxed();
    if is_unhurried {
        return work.await;
    }
    tokio::select! {
        biased;
        response = &mut work => return response,
        () = tokio::time::sleep(gateway.config.start_notice) => {}
    }
    let session = begins.then(|| format!("{STANDS}{}", uuid::Uuid::new_v4().simple()));
    let header = session.as_deref().and_then(|id| HeaderValue::from_str(id).ok());
    let gateway = Arc::clone(gateway);
    let answered = stream::once(work).flat_map(move |response| {
        if let Some(id) = session.clone().filter(|_| response.status().is_success()) {
            gateway.early.know(id, response.headers().get(SESSION).cloned());
        }
        passing(response, &server, id.clone())
    });
    let notice = stream::once(async { Bytes::from_static(b": the server is being started\n\n") });
    let mut response = reply::answer(notice.chain(answered));
    if let Some(header) = header {
        response.headers_mut().insert(SESSION, header);
    }
    response
}

/// The answer of a server to the request with an id, as events.
fn passing(response: Response<Body>, server: &ServerKey, id: Option<Box<RawValue>>) -> BoxStream<'static, Bytes> {
    let media = response.headers().get(header::CONTENT_TYPE);
    let is_stream = media.is_some_and(|media| media.as_bytes().starts_with(b"text/event-stream"));
    let mut frames = response.into_body().into_data_stream();
    if is_stream {
        // One that broke off was given its end where it was observed.
        return frames
            .take_while(|frame| std::future::ready(frame.is_ok()))
            .filter_map(async |frame| frame.ok())
            .boxed();
    }
    let broken = format!("server {server} broke off its answer");
    let whole = async move {
        let mut body = Vec::new();
        while let Some(frame) = frames.next().await {
            let Ok(frame) = frame else {
                return reply::event("message", &message::error(id.as_deref(), reply::SERVER_FAILED, &broken, None));
            };
            body.extend_from_slice(&frame);
        }
        reply::event("message", &body)
    };
    stream::once(whole).boxed()
}

#[cfg(test)]
mod tests {
    use http_body_util::StreamBody;
    use hyper::body::Frame;

    use super::*;

    #[tokio::test]
    async fn an_answer_that_breaks_off_ends_with_an_error() {
        let pieces = [Ok(Frame::data(Bytes::from_static(b"{\"jsonrpc\":"))), Err("reset".into())];
        let response = Response::new(StreamBody::new(stream::iter(pieces)).boxed_unsync());
        let id = serde_json::from_str("7").ok();
        let events: Vec<Bytes> = passing(response, &ServerKey::new("n", "a"), id).collect().await;
        let text = String::from_utf8(events.concat()).unwrap();
        let message = text.strip_prefix("event: message\ndata: ").unwrap();
        let message: serde_json::Value = serde_json::from_str(message).unwrap();
        assert_eq!((&message["id"], &message["error"]["code"]), (&7.into(), &reply::SERVER_FAILED.into()));
        assert_eq!(message["error"]["message"], "server n/a broke off its answer");
    }

    #[test]
    fn an_id_stands_for_another_at_the_gateway_that_gave_it() {
        let early = Early::default();
        let resolved = |early: &Early, id: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(SESSION, id.parse().unwrap());
            early.resolve(&mut headers);
            headers.get(SESSION).map(|id| id.to_str().unwrap().to_owned())
        };
        early.know("w.1".into(), Some("sealed".parse().unwrap()));
        early.know("w.2".into(), None);
        assert_eq!(resolved(&early, "w.1").as_deref(), Some("sealed"));
        assert_eq!(resolved(&early, "w.2"), None, "a server without sessions");
        assert_eq!(resolved(&early, "w.3").as_deref(), Some("w.3"));
        assert_eq!(resolved(&early, "other").as_deref(), Some("other"));
        for number in 0..MOST {
            early.know(format!("w.n{number}"), None);
        }
        assert_eq!(resolved(&early, "w.1").as_deref(), Some("w.1"), "the oldest are forgotten");
    }
}
