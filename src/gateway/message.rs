//! JSON-RPC messages, looked into without taking them apart.

use std::{borrow::Cow, collections::BTreeMap};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json, value::RawValue};

use crate::api::mcp_server::ToolFilter;

/// A JSON-RPC message whose parts stay the bytes that they were.
#[derive(Debug, Deserialize, Serialize)]
pub struct Message<'a> {
    #[serde(borrow, default)]
    jsonrpc: Cow<'a, str>,
    /// Of a request or a response.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub id: Option<&'a RawValue>,
    /// Of a request or a notification.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub method: Option<Cow<'a, str>>,
    /// Of a request or a notification.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub params: Option<&'a RawValue>,
    /// Of a response.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub result: Option<&'a RawValue>,
    /// Of a response.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
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

/// Members of an object as bytes.
type Members<'a> = BTreeMap<Cow<'a, str>, Cow<'a, RawValue>>;

impl<'a> Message<'a> {
    /// Reads one message. `None` when the bytes are no JSON-RPC 2.0 message.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let message: Self = serde_json::from_slice(bytes).ok()?;
        let sound = message.jsonrpc == "2.0" && (message.method.is_some() || message.id.is_some());
        sound.then_some(message)
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
    pub fn param(&self, name: &str) -> Option<String> {
        let value = self.param_raw(name)?;
        serde_json::from_str(value.get()).ok()
    }

    /// A member of the parameters as bytes.
    pub fn param_raw(&self, name: &str) -> Option<Box<RawValue>> {
        let members: Members<'_> = serde_json::from_str(self.params?.get()).ok()?;
        members.get(name).map(|value| value.clone().into_owned())
    }

    /// The token under which progress is reported.
    pub fn progress_token(&self) -> Option<Box<RawValue>> {
        let meta = self.param_raw("_meta")?;
        let members: Members<'_> = serde_json::from_str(meta.get()).ok()?;
        members.get("progressToken").map(|value| value.clone().into_owned())
    }

    /// The message as one line, with another id and other parameters.
    ///
    /// # Panics
    /// Never: raw values serialise as they are.
    pub fn line(&self, id: Option<&RawValue>, params: Option<&RawValue>) -> Vec<u8> {
        let message = Message {
            jsonrpc: "2.0".into(),
            id,
            method: self.method.clone(),
            params,
            result: self.result,
            error: self.error,
        };
        let mut line = serde_json::to_vec(&message).expect("raw values serialise");
        // Within a message a line break can only stand between tokens: a space says the same.
        line.iter_mut().filter(|b| matches!(**b, b'\n' | b'\r')).for_each(|b| *b = b' ');
        line.push(b'\n');
        line
    }
}

/// `value` with the member at a path of objects replaced; the rest stays the bytes that it was.
pub fn with_member(value: &RawValue, path: &[&str], new: &RawValue) -> Option<Box<RawValue>> {
    let mut members: Members<'_> = serde_json::from_str(value.get()).ok()?;
    let (first, rest) = path.split_first()?;
    let replaced = match (rest, members.get(*first)) {
        ([], _) => new.to_owned(),
        (rest, Some(inner)) => with_member(inner, rest, new)?,
        (_, None) => return None,
    };
    members.insert(Cow::Borrowed(first), Cow::Owned(replaced));
    serde_json::value::to_raw_value(&members).ok()
}

/// A number as raw JSON.
///
/// # Panics
/// Never: a number serialises.
pub fn raw_number(number: u64) -> Box<RawValue> {
    serde_json::value::to_raw_value(&number).expect("a number serialises")
}

/// A JSON-RPC error.
pub fn error(id: Option<&RawValue>, code: i32, message: &str, data: Option<Value>) -> Vec<u8> {
    let id: Value = id.and_then(|id| serde_json::from_str(id.get()).ok()).unwrap_or(Value::Null);
    let mut error = json!({"code": code, "message": message});
    if let Some(data) = data {
        error["data"] = data;
    }
    json!({"jsonrpc": "2.0", "id": id, "error": error}).to_string().into_bytes()
}

/// A JSON-RPC result.
pub fn result(id: Option<&RawValue>, result: &RawValue) -> Vec<u8> {
    let message = Message { jsonrpc: "2.0".into(), id, method: None, params: None, result: Some(result), error: None };
    serde_json::to_vec(&message).unwrap_or_default()
}

/// A `tools/list` response with the tools that the filter admits. The bytes of each tool stay as
/// they were; a message that is no such response comes back unchanged.
pub fn filter_tools(bytes: &[u8], filter: &ToolFilter) -> Vec<u8> {
    #[derive(Deserialize)]
    struct Named {
        name: String,
    }
    let filtered = || {
        let message = Message::parse(bytes)?;
        let result = message.result?;
        let members: Members<'_> = serde_json::from_str(result.get()).ok()?;
        let mut tools: Vec<&RawValue> = serde_json::from_str(members.get("tools")?.get()).ok()?;
        tools.retain(|tool| serde_json::from_str::<Named>(tool.get()).is_ok_and(|t| filter.admits(&t.name)));
        let tools = serde_json::value::to_raw_value(&tools).ok()?;
        let result = with_member(result, &["tools"], &tools)?;
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
        for bad in ["", "{}", "[]", r#"{"jsonrpc":"1.0","id":1,"method":"x"}"#, r#"{"jsonrpc":"2.0"}"#, "\u{0}"] {
            assert_eq!(kind(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn rewriting_keeps_all_other_bytes() {
        let text = "{\"jsonrpc\":\"2.0\",\"id\":\"a\",\"method\":\"tools/call\",\"params\":{\"name\":\"x\",\n\"arguments\":{\"n\":1.50,\"s\":\"\\u00e9\"},\"_meta\":{\"progressToken\":\"p\",\"k\":1e2}}}";
        let message = Message::parse(text.as_bytes()).unwrap();
        assert_eq!(message.progress_token().unwrap().get(), "\"p\"");
        let params = with_member(message.params.unwrap(), &["_meta", "progressToken"], &raw_number(7)).unwrap();
        let line = String::from_utf8(message.line(Some(&raw_number(7)), Some(&params))).unwrap();
        assert!(
            line.contains(r#"{"n":1.50,"s":"\u00e9"}"#) && line.contains("\"progressToken\":7") && line.contains("1e2"),
            "{line}"
        );
        assert_eq!(line.matches('\n').count(), 1);
    }

    #[test]
    fn hidden_tools_leave_no_trace() {
        let filter = ToolFilter { allow: vec![], deny: vec!["b".into()] };
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
