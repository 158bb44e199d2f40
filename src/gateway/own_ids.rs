//! Ids of requests in a session that several clients share.
//!
//! In a session each id is good for one request, and a progress token for one request under way.
//! Clients choose theirs without knowing of each other, often from 1. So each request gets a number of
//! the gateway's own for both, and what comes back has the client's again.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use serde_json::value::RawValue;

use super::message::{Kind, Message, raw, with_member};

/// The next number. One counter is enough for all sessions.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// The id of a request, and the one it goes by.
pub struct OwnId {
    number: Box<RawValue>,
    id: Option<Box<RawValue>>,
    token: Option<Box<RawValue>>,
}

impl OwnId {
    /// A number for a request, and the request under it.
    pub fn of(request: &Message<'_>) -> (Self, Vec<u8>) {
        let number = raw(NEXT.fetch_add(1, Ordering::Relaxed));
        let token = request.progress_token();
        let params = token.zip(request.params);
        let params = params.and_then(|(_, params)| with_member(params, &["_meta", "progressToken"], &number));
        let line = request.line(Some(&number), params.as_deref());
        (Self { id: request.id.map(ToOwned::to_owned), token: token.map(ToOwned::to_owned), number }, line)
    }

    /// The number.
    pub fn number(&self) -> &RawValue {
        &self.number
    }

    /// A message as whoever asked knows it, and whether it ends the request. What is about something
    /// else stays as it is.
    pub fn back(&self, bytes: Bytes) -> (Bytes, bool) {
        let Some(message) = Message::parse(&bytes) else { return (bytes, false) };
        let is_ours = |id: Option<&RawValue>| id.is_some_and(|id| id.get() == self.number.get());
        let renamed = match message.kind() {
            Kind::Response if is_ours(message.id) => {
                return (message.line(self.id.as_deref(), None).into(), true);
            }
            Kind::Notification if message.method() == "notifications/progress" => {
                let token = self.token.as_deref().filter(|_| is_ours(message.param_raw("progressToken")));
                let params = token.zip(message.params);
                params.and_then(|(token, params)| with_member(params, &["progressToken"], token))
            }
            _ => None,
        };
        let line = renamed.map(|params| message.line(None, Some(&params)).into());
        (line.unwrap_or(bytes), false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_back_is_known_to_who_asked() {
        let text = r#"{"jsonrpc":"2.0","id":"a","x":1.0,"method":"tools/call","params":{"_meta":{"progressToken":7,"k":1e2}}}"#;
        let request = Message::parse(text.as_bytes()).unwrap();
        let ((one, line), (other, _)) = (OwnId::of(&request), OwnId::of(&request));
        let (number, unlike) = (one.number().get(), other.number().get());
        assert_ne!(number, unlike);
        let sent = text.replace("\"a\"", number).replace(":7,", &format!(":{number},"));
        assert_eq!(String::from_utf8(line).unwrap().trim_end(), sent);
        let back = |text: &str| {
            let (bytes, ends) = one.back(Bytes::from(text.to_owned()));
            (String::from_utf8(bytes.to_vec()).unwrap().trim_end().to_owned(), ends)
        };
        let answer = |id: &str| format!(r#"{{"result":{{"n":1.50}},"id":{id},"jsonrpc":"2.0"}}"#);
        assert_eq!(back(&answer(number)), (answer("\"a\""), true));
        assert_eq!(back(&answer(unlike)), (answer(unlike), false));
        let progress = |token: &str| {
            format!(
                r#"{{"jsonrpc":"2.0","method":"notifications/progress","params":{{"progressToken":{token},"progress":1}}}}"#
            )
        };
        assert_eq!(back(&progress(number)), (progress("7"), false));
        assert_eq!(back(&progress(unlike)), (progress(unlike), false));
        assert_eq!(back("no message"), ("no message".to_owned(), false));
    }
}
