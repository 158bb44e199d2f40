//! Between the eras: a legacy client at a modern server, and a modern client at a legacy one.
//!
//! What both eras have (tools, prompts, resources, completion, discovery, progress, log messages,
//! subscriptions, questions to the client) passes in the form that each side knows. What one side
//! cannot say is a clear error there.

pub mod discover;
pub mod legacy_client;
pub mod modern_client;

use serde_json::value::RawValue;

use super::message::member;

/// An object with more members in front, but those that it has.
fn with_missing(object: &RawValue, members: &[(&str, &RawValue)]) -> Box<RawValue> {
    let Some(rest) = object.get().strip_prefix('{') else { return object.to_owned() };
    let mut text = String::with_capacity(object.get().len() + 64);
    text.push('{');
    for (name, value) in members {
        if member(object, name).is_none() {
            text.extend([&serde_json::Value::from(*name).to_string(), ":", value.get(), ","]);
        }
    }
    if rest.trim_ascii_start().starts_with('}') && text.ends_with(',') {
        text.pop();
    }
    text.push_str(rest);
    RawValue::from_string(text).unwrap_or_else(|_| object.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::message::raw;

    #[test]
    fn members_are_added_once() {
        let add = |text: &str| {
            let object = RawValue::from_string(text.into()).unwrap();
            with_missing(&object, &[("a", &raw(1)), ("b", &raw("x"))]).get().to_owned()
        };
        assert_eq!(add("{}"), r#"{"a":1,"b":"x"}"#);
        assert_eq!(add("{ }"), r#"{"a":1,"b":"x" }"#);
        assert_eq!(add(r#"{"c": 1.0}"#), r#"{"a":1,"b":"x","c": 1.0}"#);
        assert_eq!(add(r#"{"a":2}"#), r#"{"b":"x","a":2}"#);
        assert_eq!(add(r#"{"a":2,"b":3}"#), r#"{"a":2,"b":3}"#);
        assert_eq!(add("5"), "5");
    }
}
