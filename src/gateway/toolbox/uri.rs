//! URIs of resources as a toolbox's clients know them: with the server's name in front, where the
//! toolbox has names that do not meet.

use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderMap, Response, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use serde_json::value::RawValue;

use super::member;
use crate::gateway::{
    message::{self, Message, raw, text, with_member},
    reply::{self, Body, Failure},
    sse,
};

/// An answer whose URIs have the prefix in front.
///
/// # Errors
/// When the answer breaks off.
pub async fn outward(response: Response<Body>, prefix: String, limit: usize) -> Result<Response<Body>, Failure> {
    let (mut parts, body) = response.into_parts();
    parts.headers.remove(header::CONTENT_LENGTH);
    if is_stream(&parts.headers) {
        return Ok(Response::from_parts(parts, events(body, prefix, limit)));
    }
    let body = member::whole(body, limit).await.map_err(|error| {
        let text = format!("the server broke off its answer: {error}");
        Failure::new(http::StatusCode::BAD_GATEWAY, reply::UNAVAILABLE, text)
    })?;
    Ok(Response::from_parts(parts, reply::full(prefixed(&body, &prefix).map_or(body, Bytes::from))))
}

/// The events of an answer, each as soon as it is there.
fn events(body: Body, prefix: String, limit: usize) -> Body {
    let frames = sse::events(body, limit).map(move |event| {
        let event = event?;
        let mut bytes = event.id.map(|id| format!("id: {id}\n").into_bytes()).unwrap_or_default();
        let data = prefixed(&event.data, &prefix).map_or(event.data, Bytes::from);
        bytes.extend_from_slice(&reply::event("message", &data));
        Ok(Frame::data(Bytes::from(bytes)))
    });
    StreamBody::new(frames).boxed_unsync()
}

fn is_stream(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"text/event-stream"))
}

/// A response with prefixes; none when there is nothing to change.
fn prefixed(bytes: &[u8], prefix: &str) -> Option<Vec<u8>> {
    memchr::memmem::find(bytes, b"\"uri\"")?;
    let message = Message::parse(bytes)?;
    let result = message.result?;
    let contents = replaced(result, "contents", |content| at(content, &["uri"], prefix));
    let linked = |content: &RawValue| {
        let path: &[&str] = match message::member(content, "type").and_then(text).as_deref() {
            Some("resource_link") => &["uri"],
            Some("resource") => &["resource", "uri"],
            _ => return None,
        };
        at(content, path, prefix)
    };
    let content = || replaced(result, "content", linked);
    let messages = || {
        replaced(result, "messages", |said| {
            with_member(said, &["content"], &linked(message::member(said, "content")?)?)
        })
    };
    let result = contents.or_else(content).or_else(messages)?;
    Some(message::result(message.id, &result))
}

fn at(value: &RawValue, path: &[&str], prefix: &str) -> Option<Box<RawValue>> {
    let uri = path.iter().try_fold(value, |value, name| message::member(value, name)).and_then(text)?;
    with_member(value, path, &raw(format!("{prefix}{uri}")))
}

/// An object with some elements of one of its lists replaced.
fn replaced(
    object: &RawValue,
    list: &str,
    replace: impl Fn(&RawValue) -> Option<Box<RawValue>>,
) -> Option<Box<RawValue>> {
    let elements: Vec<&RawValue> = serde_json::from_str(message::member(object, list)?.get()).ok()?;
    let replaced: Vec<Box<RawValue>> =
        elements.into_iter().map(|element| replace(element).unwrap_or_else(|| element.to_owned())).collect();
    with_member(object, &[list], &raw(replaced))
}

/// Whether a URI may be one that a template (RFC 6570) stands for: an expression is any text, without
/// a slash unless it says that it may have some.
pub fn fits(template: &str, uri: &str) -> bool {
    let Some((literal, rest)) = template.split_once('{') else { return template == uri };
    let (Some(uri), Some((expression, rest))) = (uri.strip_prefix(literal), rest.split_once('}')) else { return false };
    let any = expression.starts_with(['+', '#', '/', '?', '&', ';', '.']) || expression.ends_with('*');
    let optional = expression.starts_with(['?', '&', ';', '#', '/', '.']);
    let ends = uri.char_indices().map(|(at, _)| at).chain([uri.len()]);
    let ends = ends.skip_while(|at| *at == 0 && !optional).take_while(|at| any || !uri[..*at].contains('/'));
    ends.into_iter().any(|at| fits(rest, &uri[at..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outward_of(result: &str) -> Option<String> {
        let bytes = format!(r#"{{"jsonrpc":"2.0","id":1,"result":{result}}}"#);
        prefixed(bytes.as_bytes(), "a+").map(|bytes| String::from_utf8(bytes).unwrap())
    }

    #[test]
    fn everything_that_can_be_read_has_its_prefix() {
        let read = outward_of(r#"{"contents":[{"uri":"memo://x","text":"\"uri\": 1.0"}]}"#).unwrap();
        assert!(read.contains(r#"{"uri":"a+memo://x","text":"\"uri\": 1.0"}"#), "{read}");
        let called = outward_of(
            r#"{"content":[{"type":"text","uri":"no"},{"type":"resource_link","uri":"memo://x"},{"type":"resource","resource":{"uri":"memo://y"}}],"isError":false}"#,
        )
        .unwrap();
        assert!(called.contains(r#""uri":"no""#) && called.contains(r#""uri":"a+memo://x""#), "{called}");
        assert!(called.contains(r#"{"uri":"a+memo://y"}"#) && called.contains(r#""isError":false"#), "{called}");
        let got = outward_of(
            r#"{"messages":[{"role":"user","content":{"type":"resource","resource":{"uri":"memo://z","text":"t"}}},{"role":"user","content":{"type":"text","text":"x"}}]}"#,
        )
        .unwrap();
        assert!(got.contains(r#""uri":"a+memo://z""#) && got.contains(r#"{"type":"text","text":"x"}"#), "{got}");
        assert_eq!(outward_of(r#"{"content":[{"type":"text","text":"a uri"}]}"#), None);
    }

    #[test]
    fn a_template_stands_for_uris() {
        for (expected, template, uri) in [
            (true, "memo://x", "memo://x"),
            (false, "memo://x", "memo://xy"),
            (true, "memo://{id}", "memo://7"),
            (false, "memo://{id}", "memo://"),
            (false, "memo://{id}", "memo://7/8"),
            (true, "memo://{+path}", "memo://7/8"),
            (true, "memo://{id}/{part}", "memo://7/8"),
            (true, "memo://{id}{?q}", "memo://7?q=1"),
            (true, "memo://{id}{?q}", "memo://7"),
            (false, "file://{id}", "memo://7"),
            (false, "memo://{id", "memo://7"),
        ] {
            assert_eq!(fits(template, uri), expected, "{template} {uri}");
        }
    }
}
