//! The session of a client of the legacy era, as the connector keeps it: what is needed to open it
//! again when the gateway, or the server behind it, no longer knows it.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use serde_json::value::RawValue;
use tokio::task::AbortHandle;

use crate::gateway::{
    message::{Kind, Message, member, text},
    reply::{SESSION, VERSION},
};

/// The lists of which a client is told that they changed, by the capability that says so.
const LISTS: [&str; 3] = ["tools", "prompts", "resources"];

/// A session.
#[derive(Debug, Default)]
pub struct Session {
    id: Option<HeaderValue>,
    version: Option<HeaderValue>,
    /// Grows each time the session is opened.
    pub generation: u64,
    /// What the client sent to open it.
    pub initialize: Option<Bytes>,
    /// What it sent afterwards.
    pub initialized: Option<Bytes>,
    /// Requests whose effect belongs to the session, by what they set.
    lasting: BTreeMap<String, Bytes>,
    /// What the server announces, by the first answer.
    announces: Vec<&'static str>,
    /// Reads what the server says to nobody in particular.
    pub listener: Option<AbortHandle>,
}

impl Session {
    /// Takes the answer to `initialize`; false when it opens no session.
    pub fn opened(&mut self, headers: &HeaderMap, answer: &[u8]) -> bool {
        let Some(result) = Message::parse(answer).and_then(|m| m.result) else { return false };
        self.id = headers.get(SESSION).cloned();
        let version = member(result, "protocolVersion").and_then(text);
        self.version = version.and_then(|version| HeaderValue::from_str(&version).ok());
        let announced = |list: &&str| {
            let capability = member(result, "capabilities").and_then(|all| member(all, list));
            capability.and_then(|c| member(c, "listChanged")).is_some_and(|value| value.get() == "true")
        };
        self.announces = LISTS.into_iter().filter(announced).collect();
        self.generation += 1;
        true
    }

    /// Whether the other side keeps a session.
    pub fn has_id(&self) -> bool {
        self.id.is_some()
    }

    /// The headers of a request within the session.
    pub fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let given = [(SESSION, &self.id), (VERSION, &self.version)];
        headers.extend(given.into_iter().filter_map(|(name, value)| Some((name, value.clone()?))));
        headers
    }

    /// Remembers what must be said again in a new session.
    pub fn remember(&mut self, line: &Bytes, message: &Message<'_>) {
        let uri = || message.param("uri").unwrap_or_default();
        match (message.kind(), message.method()) {
            (Kind::Notification, "notifications/initialized") => self.initialized = Some(line.clone()),
            (Kind::Request, "logging/setLevel") => drop(self.lasting.insert("level".into(), line.clone())),
            (Kind::Request, "resources/subscribe") => {
                self.lasting.insert(format!("uri {}", uri()), line.clone());
            }
            (Kind::Request, "resources/unsubscribe") => drop(self.lasting.remove(&format!("uri {}", uri()))),
            _ => {}
        }
    }

    /// What is said again in a new session, each with an id of the connector's own.
    pub fn lasting(&self) -> Vec<Bytes> {
        let id = own_id("again");
        self.lasting.values().filter_map(|line| Some(Message::parse(line)?.line(Some(&id), None).into())).collect()
    }

    /// What tells a client that it must look again, because the server behind a session is anew.
    pub fn news(&self) -> impl Iterator<Item = Bytes> + use<> {
        let announces = self.announces.clone();
        announces.into_iter().map(|list| {
            format!(r#"{{"jsonrpc":"2.0","method":"notifications/{list}/list_changed"}}"#).into_bytes().into()
        })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(listener) = self.listener.take() {
            listener.abort();
        }
    }
}

/// An id that no client uses.
pub fn own_id(what: &str) -> Box<RawValue> {
    crate::gateway::message::raw(format!("perch-connect-{what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remember(session: &mut Session, line: &str) {
        let line = Bytes::copy_from_slice(line.as_bytes());
        session.remember(&line, &Message::parse(&line).unwrap());
    }

    #[test]
    fn what_lasts_is_said_again() {
        let mut session = Session::default();
        let request =
            |method: &str, params: &str| format!(r#"{{"jsonrpc":"2.0","id":7,"method":"{method}","params":{params}}}"#);
        remember(&mut session, &request("logging/setLevel", r#"{"level":"debug"}"#));
        remember(&mut session, &request("logging/setLevel", r#"{"level":"info"}"#));
        remember(&mut session, &request("resources/subscribe", r#"{"uri":"a"}"#));
        remember(&mut session, &request("resources/subscribe", r#"{"uri":"b"}"#));
        remember(&mut session, &request("resources/unsubscribe", r#"{"uri":"a"}"#));
        remember(&mut session, &request("tools/call", r#"{"name":"x"}"#));
        let again = session.lasting();
        let again: Vec<&str> = again.iter().map(|line| std::str::from_utf8(line).unwrap()).collect();
        assert_eq!(again.len(), 2, "{again:?}");
        assert!(again[0].contains("\"info\"") && again[1].contains("\"b\""), "{again:?}");
        assert!(again.iter().all(|line| line.contains("perch-connect-again") && !line.contains(":7")), "{again:?}");
    }

    #[test]
    fn an_answer_opens_a_session() {
        let mut session = Session::default();
        let mut headers = HeaderMap::new();
        headers.insert(SESSION, HeaderValue::from_static("s"));
        assert!(!session.opened(&headers, br#"{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":""}}"#));
        assert!(!session.has_id() && session.headers().is_empty());
        let answer = br#"{"jsonrpc":"2.0","id":1,"result":{"protocolVersion":"2025-06-18","capabilities":{"tools":{"listChanged":true},"prompts":{}}}}"#;
        assert!(session.opened(&headers, answer));
        assert_eq!(
            (&session.headers()[SESSION], &session.headers()[VERSION]),
            (&"s".parse().unwrap(), &"2025-06-18".parse().unwrap())
        );
        let news: Vec<Bytes> = session.news().collect();
        assert_eq!(news, [r#"{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}"#]);
    }
}
