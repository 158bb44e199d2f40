//! A span for each operation, by the semantic conventions of OpenTelemetry for MCP.
//!
//! The trace is the one that the request names: in `params._meta`, or in its HTTP headers. Towards
//! the server, the span stands in both: the bytes of the message stay as they are but for that
//! member. Only a span that is kept is named; what is not kept passes as it came, so that the
//! server's own spans still belong to the trace of the client.

use std::{borrow::Cow, ops::Range, sync::Arc};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::{
    Context, KeyValue,
    propagation::{Extractor, Injector, TextMapPropagator},
    trace::{Span as _, SpanKind, Status, TraceContextExt, Tracer},
};
use opentelemetry_sdk::{propagation::TraceContextPropagator, trace::Span};
use serde_json::value::RawValue;

use super::{
    era::META_VERSION,
    handler::Call,
    listen::Peer,
    message::{Message, member, text},
    observe::outcome::Outcome,
    reply::VERSION,
};
use crate::telemetry::traces::Traces;

/// Names the span that a request belongs to (W3C Trace Context).
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// What else tracers keep of a trace.
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
/// Longest value of an attribute that a client chooses, in bytes.
const LONGEST: usize = 256;

/// The span of one operation, until its end.
#[derive(Debug)]
pub struct Operation(Span);

/// The trace that a request names: `_meta` before headers, for it was written for MCP, and a
/// header may be of something on the way.
struct Named<'a> {
    message: &'a Message<'a>,
    headers: &'a HeaderMap,
    found: [Option<Cow<'a, str>>; 2],
}

impl<'a> Named<'a> {
    fn in_request(message: &'a Message<'a>, headers: &'a HeaderMap) -> Self {
        let mut named = Self { message, headers, found: [None, None] };
        let meta = |name: &HeaderName| named.message.meta(name.as_str()).and_then(text);
        let header = |name: &HeaderName| named.headers.get(name).and_then(|v| v.to_str().ok()).map(Cow::Borrowed);
        let found = match meta(&TRACEPARENT) {
            Some(parent) => [Some(parent), meta(&TRACESTATE)],
            None => [header(&TRACEPARENT), header(&TRACESTATE)],
        };
        named.found = found;
        named
    }
}

impl Extractor for Named<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        match key {
            "traceparent" => self.found[0].as_deref(),
            "tracestate" => self.found[1].as_deref(),
            _ => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        vec!["traceparent", "tracestate"]
    }
}

impl Operation {
    /// Begins the span of a request; none when its trace is not kept. `method` and `name` are what
    /// metrics call them.
    pub fn begin(
        traces: &Traces,
        call: &Call,
        message: &Message<'_>,
        method: &str,
        name: Option<&str>,
    ) -> Option<Self> {
        let parent = TraceContextPropagator::new()
            .extract_with_context(&Context::new(), &Named::in_request(message, &call.parts.headers));
        let target = name.filter(|_| matches!(method, "tools/call" | "prompts/get"));
        let title = target.map_or_else(|| method.to_owned(), |target| format!("{method} {target}"));
        let builder = traces.tracer.span_builder(title).with_kind(SpanKind::Server);
        let mut span = traces.tracer.build_with_context(builder, &parent);
        if !span.is_recording() {
            return None;
        }
        span.set_attribute(KeyValue::new("mcp.method.name", method.to_owned()));
        span.set_attribute(KeyValue::new("perch.server", call.route.server.to_string()));
        span.set_attribute(KeyValue::new("network.transport", "tcp"));
        span.set_attribute(KeyValue::new("network.protocol.name", "http"));
        let named = match method {
            "tools/call" => {
                span.set_attribute(KeyValue::new("gen_ai.operation.name", "execute_tool"));
                Some("gen_ai.tool.name")
            }
            "prompts/get" => Some("gen_ai.prompt.name"),
            "resources/read" => Some("mcp.resource.uri"),
            _ => None,
        };
        if let (Some(key), Some(name)) = (named, name) {
            span.set_attribute(KeyValue::new(key, name.to_owned()));
        }
        let version = message.meta(META_VERSION).and_then(text);
        let version = version.or_else(|| Some(call.parts.headers.get(VERSION)?.to_str().ok()?.into()));
        if let Some(version) = version {
            span.set_attribute(KeyValue::new("mcp.protocol.version", cut(&version)));
        }
        if let Some(id) = message.id {
            let id = text(id).unwrap_or(Cow::Borrowed(id.get()));
            span.set_attribute(KeyValue::new("jsonrpc.request.id", cut(&id)));
        }
        if let Some(peer) = call.parts.extensions.get::<Peer>() {
            span.set_attribute(KeyValue::new("client.address", peer.0.ip().to_string()));
        }
        Some(Self(span))
    }

    /// Names the span in a request: in its headers, and in its body, which is given back.
    pub fn carry(&self, headers: &mut HeaderMap, message: &Message<'_>, body: &[u8]) -> Option<Bytes> {
        let mut carried = Carried::default();
        let context = Context::new().with_remote_span_context(self.0.span_context().clone());
        TraceContextPropagator::new().inject_context(&context, &mut carried);
        let mut members = Vec::new();
        for (name, value) in [(TRACEPARENT, carried.parent), (TRACESTATE, carried.state)] {
            match HeaderValue::from_str(&value) {
                Ok(value) if !value.is_empty() => drop(headers.insert(name.clone(), value)),
                _ => drop(headers.remove(&name)),
            }
            members.push((name, value));
        }
        with_meta(message, body, &members)
    }

    /// The operation is over.
    pub fn end(mut self, outcome: Outcome, revision: &str) {
        if !revision.is_empty() {
            self.0.set_attribute(KeyValue::new("perch.revision", revision.to_owned()));
        }
        if !matches!(outcome, Outcome::Ok | Outcome::InputRequired) {
            self.0.set_attribute(KeyValue::new("error.type", outcome.as_str()));
            self.0.set_status(Status::error(outcome.as_str()));
        }
        self.0.end();
    }
}

fn cut(text: &str) -> String {
    text[..text.floor_char_boundary(LONGEST)].to_owned()
}

#[derive(Default)]
struct Carried {
    parent: String,
    state: String,
}

impl Injector for Carried {
    fn set(&mut self, key: &str, value: String) {
        match key {
            "traceparent" => self.parent = value,
            "tracestate" => self.state = value,
            _ => {}
        }
    }
}

/// The body with members of `params._meta` set, or left out where they are empty; all other bytes
/// stay. None where there is nothing that can be set: parameters that are no object.
fn with_meta(message: &Message<'_>, body: &[u8], members: &[(HeaderName, String)]) -> Option<Bytes> {
    let place = |part: &RawValue| -> Range<usize> {
        let start = part.get().as_ptr() as usize - body.as_ptr() as usize;
        start..start + part.get().len()
    };
    let is_object = |value: &RawValue| value.get().starts_with('{');
    let quoted = |value: &str| serde_json::Value::from(value).to_string();
    let set = |(name, value): &(HeaderName, String)| format!("{}:{}", quoted(name.as_str()), quoted(value));
    let all = || members.iter().filter(|(_, value)| !value.is_empty()).map(set).collect::<Vec<_>>().join(",");
    let inserted = |object: &RawValue, text: String| {
        let at = place(object).start + 1;
        let more = if object.get()[1..].trim_start().starts_with('}') { "" } else { "," };
        (at..at, format!("{text}{more}"))
    };
    let mut edits: Vec<(Range<usize>, String)> = Vec::new();
    match (message.params, message.param_raw("_meta")) {
        (None, _) => {
            let at = body.iter().rposition(|b| *b == b'}')?;
            edits.push((at..at, format!(r#","params":{{"_meta":{{{}}}}}"#, all())));
        }
        (Some(params), None) if is_object(params) => {
            edits.push(inserted(params, format!(r#""_meta":{{{}}}"#, all())));
        }
        (Some(_), Some(meta)) if is_object(meta) => {
            let (there, missing): (Vec<_>, Vec<_>) =
                members.iter().partition(|(name, _)| member(meta, name.as_str()).is_some());
            for (name, value) in there {
                // What is there and no longer true becomes empty, which tracers leave alone.
                let old = place(member(meta, name.as_str())?);
                edits.push((old, quoted(value)));
            }
            let missing: Vec<String> = missing.into_iter().filter(|(_, value)| !value.is_empty()).map(set).collect();
            if !missing.is_empty() {
                edits.push(inserted(meta, missing.join(",")));
            }
        }
        _ => return None,
    }
    edits.sort_by_key(|(range, _)| range.start);
    let mut whole = Vec::with_capacity(body.len() + 160);
    let mut at = 0;
    for (range, text) in edits {
        whole.extend_from_slice(&body[at..range.start]);
        whole.extend_from_slice(text.as_bytes());
        at = range.end;
    }
    whole.extend_from_slice(&body[at..]);
    Some(whole.into())
}

/// What makes spans, if anything does.
pub type Tracing = Option<Arc<Traces>>;

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn set(body: &str, state: &str) -> Option<String> {
        let members = [(TRACEPARENT, PARENT.to_owned()), (TRACESTATE, state.to_owned())];
        let message = Message::parse(body.as_bytes()).unwrap();
        with_meta(&message, body.as_bytes(), &members).map(|bytes| String::from_utf8(bytes.to_vec()).unwrap())
    }

    #[test]
    fn a_trace_is_named_and_all_other_bytes_stay() {
        let parent = format!(r#""traceparent":"{PARENT}""#);
        for (before, after) in [
            (
                r#"{"jsonrpc":"2.0","id":1,"method":"m"}"#,
                format!(r#"{{"jsonrpc":"2.0","id":1,"method":"m","params":{{"_meta":{{{parent}}}}}}}"#),
            ),
            (
                r#"{"params": {},"jsonrpc":"2.0","id":1,"method":"m"}"#,
                format!(r#"{{"params": {{"_meta":{{{parent}}}}},"jsonrpc":"2.0","id":1,"method":"m"}}"#),
            ),
            (
                r#"{"jsonrpc":"2.0","id":1,"method":"m","params":{ "n": 1.50,"_meta":{"k":1e2}}}"#,
                format!(
                    r#"{{"jsonrpc":"2.0","id":1,"method":"m","params":{{ "n": 1.50,"_meta":{{{parent},"k":1e2}}}}}}"#
                ),
            ),
            (
                r#"{"jsonrpc":"2.0","id":1,"method":"m","params":{"_meta":{"traceparent":"old","k":1}}}"#,
                format!(r#"{{"jsonrpc":"2.0","id":1,"method":"m","params":{{"_meta":{{{parent},"k":1}}}}}}"#),
            ),
        ] {
            assert_eq!(set(before, "").unwrap(), after);
        }
        let both =
            set(r#"{"jsonrpc":"2.0","id":1,"method":"m","params":{"_meta":{"tracestate":"a=1"}}}"#, "b=2").unwrap();
        assert!(both.contains(&parent) && both.contains(r#""tracestate":"b=2""#) && !both.contains("a=1"), "{both}");
        assert_eq!(set(r#"{"jsonrpc":"2.0","id":1,"method":"m","params":[1]}"#, ""), None);
        assert_eq!(set(r#"{"jsonrpc":"2.0","id":1,"method":"m","params":{"_meta":5}}"#, ""), None);
    }

    #[test]
    fn meta_names_the_trace_before_headers_do() {
        let mut headers = HeaderMap::new();
        headers.insert(TRACEPARENT, HeaderValue::from_static("header"));
        headers.insert(TRACESTATE, HeaderValue::from_static("of-header"));
        let named = |body: &str| {
            let message = Message::parse(body.as_bytes()).unwrap();
            let named = Named::in_request(&message, &headers);
            (named.get("traceparent").map(str::to_owned), named.get("tracestate").map(str::to_owned))
        };
        let body = r#"{"jsonrpc":"2.0","id":1,"method":"m","params":{"_meta":{"traceparent":"meta"}}}"#;
        assert_eq!(named(body), (Some("meta".into()), None), "the two are not mixed");
        let body = r#"{"jsonrpc":"2.0","id":1,"method":"m"}"#;
        assert_eq!(named(body), (Some("header".into()), Some("of-header".into())));
    }
}
