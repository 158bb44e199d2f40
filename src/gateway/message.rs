//! JSON-RPC messages, looked into without taking them apart.
//!
//! A message stays the bytes that it was. What must change is spliced into these bytes, so that
//! unknown fields, number forms and escapes survive.

use std::{borrow::Cow, fmt, ops::Range};

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, Visitor},
};
use serde_json::{Value, json, value::RawValue};

use super::access::VisibleTools;

/// A JSON-RPC message whose parts point into its bytes.
#[derive(Debug, Default)]
pub struct Message<'a> {
    source: &'a [u8],
    /// Of a request or a response.
    pub id: Option<&'a RawValue>,
    /// Of a request or a notification.
    pub method: Option<Cow<'a, str>>,
    /// Of a request or a notification.
    pub params: Option<&'a RawValue>,
    /// Of a response.
    pub result: Option<&'a RawValue>,
    /// Of a response.
    pub error: Option<&'a RawValue>,
}

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Wants an answer.
    Request,
    /// Wants none.
    Notification,
    /// Is an answer.
    Response,
}

#[derive(Deserialize)]
struct Wire<'a> {
    #[serde(borrow, default)]
    jsonrpc: Cow<'a, str>,
    #[serde(borrow, default, deserialize_with = "there")]
    id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    method: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    params: Option<&'a RawValue>,
    #[serde(borrow, default)]
    result: Option<&'a RawValue>,
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
}

/// A member that is there, be it `null`.
fn there<'de: 'a, 'a, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'a RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

impl<'a> Message<'a> {
    /// Reads one message. `None` when the bytes are no JSON-RPC 2.0 message. A member that is there
    /// twice makes a message unsound: readers would differ in which one counts. So does text that is
    /// no UTF-8, wherever it stands: it goes on to servers that may not bear it.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        // A list of the members' values would do for serde, and is a batch for others.
        if bytes.trim_ascii_start().first() != Some(&b'{') {
            return None;
        }
        let wire: Wire<'a> = serde_json::from_str(std::str::from_utf8(bytes).ok()?).ok()?;
        let is_call = wire.method.is_some();
        let is_answer = wire.id.is_some() && (wire.result.is_some() || wire.error.is_some());
        let sound_id = wire.id.is_none_or(|id| matches!(id.get().as_bytes().first(), Some(b'"' | b'-' | b'0'..=b'9')));
        let sound = wire.jsonrpc == "2.0" && sound_id && is_call != is_answer;
        sound.then_some(Self {
            source: bytes,
            id: wire.id,
            method: wire.method,
            params: wire.params,
            result: wire.result,
            error: wire.error,
        })
    }

    /// What the message is.
    pub fn kind(&self) -> Kind {
        match (&self.method, self.id) {
            (Some(_), Some(_)) => Kind::Request,
            (Some(_), None) => Kind::Notification,
            (None, _) => Kind::Response,
        }
    }

    /// The method, empty for a response.
    pub fn method(&self) -> &str {
        self.method.as_deref().unwrap_or_default()
    }

    /// A member of the parameters as text.
    pub fn param(&self, name: &str) -> Option<Cow<'a, str>> {
        text(self.param_raw(name)?)
    }

    /// A member of the parameters as bytes.
    pub fn param_raw(&self, name: &str) -> Option<&'a RawValue> {
        member(self.params?, name)
    }

    /// A member of the parameters' `_meta` as bytes.
    pub fn meta(&self, name: &str) -> Option<&'a RawValue> {
        member(self.param_raw("_meta")?, name)
    }

    /// The token under which progress is reported.
    pub fn progress_token(&self) -> Option<&'a RawValue> {
        self.meta("progressToken")
    }

    /// Code and message of an error response.
    pub fn error_code(&self) -> Option<i64> {
        member(self.error?, "code")?.get().parse().ok()
    }

    /// The message as one line, with another id and other parameters where they are given.
    pub fn line(&self, id: Option<&RawValue>, params: Option<&RawValue>) -> Vec<u8> {
        let mut edits: Vec<(Range<usize>, &[u8])> = Vec::with_capacity(2);
        for (old, new) in [(self.id, id), (self.params, params)] {
            if let (Some(old), Some(new)) = (old, new) {
                edits.push((place(self.source, old), new.get().as_bytes()));
            }
        }
        edits.sort_by_key(|(range, _)| range.start);
        let mut line = Vec::with_capacity(self.source.len() + 64);
        let mut at = 0;
        for (range, new) in edits {
            line.extend_from_slice(&self.source[at..range.start]);
            line.extend_from_slice(new);
            at = range.end;
        }
        line.extend_from_slice(&self.source[at..]);
        // Within a message a line break can only stand between tokens: a space says the same.
        line.iter_mut().filter(|b| matches!(**b, b'\n' | b'\r')).for_each(|b| *b = b' ');
        line.push(b'\n');
        line
    }
}

/// Where a part stands in its source.
fn place(source: &[u8], part: &RawValue) -> Range<usize> {
    let start = part.get().as_ptr() as usize - source.as_ptr() as usize;
    start..start + part.get().len()
}

/// The members of an object, in their order, as bytes.
#[derive(Debug, Default)]
pub struct Entries<'a>(pub Vec<(Cow<'a, str>, Cow<'a, RawValue>)>);

impl<'de: 'a, 'a> Deserialize<'de> for Entries<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct All;
        impl<'de> Visitor<'de> for All {
            type Value = Entries<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(Key(key)) = map.next_key()? {
                    entries.push((key, Cow::Borrowed(map.next_value::<&RawValue>()?)));
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(All)
    }
}

#[derive(Deserialize)]
#[serde(transparent)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'a> Entries<'a> {
    /// The members of an object; none for anything else.
    pub fn of(object: &'a RawValue) -> Self {
        serde_json::from_str(object.get()).unwrap_or_default()
    }

    /// Sets a member, in its old place if it has one.
    pub fn set(&mut self, name: &'a str, value: Box<RawValue>) {
        let value = Cow::Owned(value);
        match self.0.iter_mut().find(|(key, _)| key == name) {
            Some((_, old)) => *old = value,
            None => self.0.push((Cow::Borrowed(name), value)),
        }
    }

    /// Keeps the members whose name the test admits.
    pub fn retain(&mut self, admits: impl Fn(&str) -> bool) {
        self.0.retain(|(key, _)| admits(key));
    }

    /// The object again.
    ///
    /// # Panics
    /// Never: what was JSON is JSON.
    pub fn raw(&self) -> Box<RawValue> {
        let mut text = String::from("{");
        for (index, (key, value)) in self.0.iter().enumerate() {
            if index > 0 {
                text.push(',');
            }
            text.push_str(&Value::from(&**key).to_string());
            text.push(':');
            text.push_str(value.get());
        }
        text.push('}');
        RawValue::from_string(text).expect("members of an object make an object")
    }
}

/// A member of an object as bytes, the last one where there are several.
pub fn member<'a>(object: &'a RawValue, name: &str) -> Option<&'a RawValue> {
    struct Find<'n>(&'n str);
    impl<'de> Visitor<'de> for Find<'_> {
        type Value = Option<&'de RawValue>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut found = None;
            while let Some(Key(key)) = map.next_key()? {
                if key == self.0 {
                    found = Some(map.next_value()?);
                } else {
                    map.next_value::<IgnoredAny>()?;
                }
            }
            Ok(found)
        }
    }
    if object.get().as_bytes().first() != Some(&b'{') {
        return None;
    }
    serde_json::Deserializer::from_str(object.get()).deserialize_map(Find(name)).ok().flatten()
}

/// A JSON string's text.
pub fn text(value: &RawValue) -> Option<Cow<'_, str>> {
    serde_json::from_str::<Key<'_>>(value.get()).ok().map(|Key(text)| text)
}

/// `value` with the member at a path of objects replaced; the rest stays the bytes that it was.
/// `None` when the path is not there.
pub fn with_member(value: &RawValue, path: &[&str], new: &RawValue) -> Option<Box<RawValue>> {
    let mut at = value;
    for name in path {
        at = member(at, name)?;
    }
    let source = value.get();
    let range = place(source.as_bytes(), at);
    let text = [&source[..range.start], new.get(), &source[range.end..]].concat();
    RawValue::from_string(text).ok()
}

/// Anything that serialises, as raw JSON.
///
/// # Panics
/// Never for values with text keys.
pub fn raw(value: impl serde::Serialize) -> Box<RawValue> {
    serde_json::value::to_raw_value(&value).expect("a plain value serialises")
}

/// An empty object.
pub fn object() -> Box<RawValue> {
    raw(json!({}))
}

/// A JSON-RPC error.
pub fn error(id: Option<&RawValue>, code: i32, message: &str, data: Option<Value>) -> Vec<u8> {
    let mut error = json!({"code": code, "message": message});
    if let Some(data) = data {
        error["data"] = data;
    }
    respond(id, "error", &raw(error))
}

/// A JSON-RPC error as another one put it.
pub fn failure(id: Option<&RawValue>, error: Option<&RawValue>) -> Vec<u8> {
    error.map_or_else(|| self::error(id, -32603, "unknown", None), |error| respond(id, "error", error))
}

/// A JSON-RPC result.
pub fn result(id: Option<&RawValue>, result: &RawValue) -> Vec<u8> {
    respond(id, "result", result)
}

fn respond(id: Option<&RawValue>, member: &str, value: &RawValue) -> Vec<u8> {
    let id = id.map_or("null", RawValue::get);
    format!(r#"{{"jsonrpc":"2.0","id":{id},"{member}":{}}}"#, value.get()).into_bytes()
}

/// A request or, without an id, a notification.
pub fn request(id: Option<&RawValue>, method: &str, params: Option<&RawValue>) -> Vec<u8> {
    let mut text = String::from(r#"{"jsonrpc":"2.0","#);
    if let Some(id) = id {
        text.extend([r#""id":"#, id.get(), ","]);
    }
    text.extend([r#""method":"#, &Value::from(method).to_string()]);
    if let Some(params) = params {
        text.extend([r#","params":"#, params.get()]);
    }
    text.push('}');
    text.into_bytes()
}

/// A `tools/list` response with the tools that the filter admits. The bytes of each tool stay as
/// they were; a message that is no such response comes back unchanged.
pub(super) fn filter_tools(bytes: &[u8], filter: &VisibleTools) -> Vec<u8> {
    let filtered = || {
        let message = Message::parse(bytes)?;
        let result = message.result?;
        let mut tools: Vec<&RawValue> = serde_json::from_str(member(result, "tools")?.get()).ok()?;
        tools.retain(|tool| member(tool, "name").and_then(text).is_some_and(|name| filter.admits(&name)));
        let result = with_member(result, &["tools"], &raw(&tools))?;
        // What one user sees is not for a cache that others share.
        let private = || with_member(&result, &["cacheScope"], &raw("private"));
        let result = filter.is_personal().then(private).flatten().unwrap_or(result);
        Some(self::result(message.id, &result))
    };
    filtered().unwrap_or_else(|| bytes.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_told_by_its_parts() {
        let kind = |text: &str| Message::parse(text.as_bytes()).map(|m| m.kind());
        assert_eq!(kind(r#"{"jsonrpc":"2.0","id":1,"method":"x"}"#), Some(Kind::Request));
        assert_eq!(kind(r#"{"jsonrpc":"2.0","method":"x"}"#), Some(Kind::Notification));
        assert_eq!(kind(r#"{"jsonrpc":"2.0","id":"a","result":{}}"#), Some(Kind::Response));
        assert_eq!(kind(r#"{"jsonrpc":"2.0","id":-1,"error":{"code":1}}"#), Some(Kind::Response));
        for bad in [
            "",
            "{}",
            "[]",
            r#"{"jsonrpc":"1.0","id":1,"method":"x"}"#,
            r#"{"jsonrpc":"2.0"}"#,
            r#"{"jsonrpc":"2.0","id":1}"#,
            r#"{"jsonrpc":"2.0","id":{},"method":"x"}"#,
            r#"{"jsonrpc":"2.0","id":[1],"method":"x"}"#,
            r#"{"jsonrpc":"2.0","id":true,"method":"x"}"#,
            r#"{"jsonrpc":"2.0","id":1,"id":2,"method":"x"}"#,
            r#"{"jsonrpc":"2.0","id":null,"method":"x"}"#,
            r#"{"jsonrpc":"2.0","id":null,"result":{}}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"x","result":{}}"#,
            r#"["2.0",1,"x",{"jsonrpc":"2.0","id":2,"method":"y"}]"#,
            "\u{0}",
        ] {
            assert_eq!(kind(bad), None, "{bad:?}");
        }
        assert!(Message::parse(b"{\"jsonrpc\":\"2.0\",\"method\":\"x\",\"other\":\"\xff\"}").is_none());
    }

    #[test]
    fn rewriting_keeps_all_other_bytes() {
        let text = "{\"jsonrpc\":\"2.0\",\"x-new\": 1.0,\"id\":\"a\",\"method\":\"tools/call\",\"params\":{\"name\":\"x\",\n\"arguments\":{\"n\":1.50,\"s\":\"\\u00e9\"},\"_meta\":{\"progressToken\":\"p\",\"k\":1e2}}}";
        let message = Message::parse(text.as_bytes()).unwrap();
        assert_eq!(message.progress_token().unwrap().get(), "\"p\"");
        let params = with_member(message.params.unwrap(), &["_meta", "progressToken"], &raw(7)).unwrap();
        let line = String::from_utf8(message.line(Some(&raw(7)), Some(&params))).unwrap();
        let expected = text.replace("\"a\"", "7").replace("\"p\"", "7").replace('\n', " ") + "\n";
        assert_eq!(line, expected);
    }

    #[test]
    fn members_keep_their_order_and_form() {
        let source = RawValue::from_string(r#"{"b": 1.0, "a":{"x":[1]}, "b":2}"#.into()).unwrap();
        assert_eq!(member(&source, "b").unwrap().get(), "2", "the last one counts, as for most readers");
        let mut entries = Entries::of(&source);
        entries.set("a", raw("new"));
        entries.set("c\"", raw(3));
        entries.retain(|key| key != "z");
        assert_eq!(entries.raw().get(), r#"{"b":1.0,"a":"new","b":2,"c\"":3}"#);
        assert!(member(&raw(5), "a").is_none());
    }

    #[test]
    fn hidden_tools_leave_no_trace() {
        let filter = crate::api::mcp_server::ToolFilter { allow: vec![], deny: vec!["b".into()] }.into();
        let response =
            br#"{"jsonrpc":"2.0","id":3,"result":{"tools":[{"name":"a","x": 1.0},{"name":"b"}],"nextCursor":"n"}}"#;
        let filtered = String::from_utf8(filter_tools(response, &filter)).unwrap();
        assert!(
            filtered.contains(r#"{"name":"a","x": 1.0}"#)
                && filtered.contains("nextCursor")
                && !filtered.contains("\"b\""),
            "{filtered}"
        );
        assert_eq!(filter_tools(b"{\"x\":1}", &filter), b"{\"x\":1}");
    }
}
