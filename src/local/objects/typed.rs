//! What a typed decoder does to an object of a built-in kind, and to the metadata of every object:
//! it refuses values of another type, and what is absent, null or empty is the same to it.
//!
//! Messages are those of Go's decoder, for clients show them.

use std::sync::LazyLock;

use base64::{Engine, engine::general_purpose::STANDARD};
use regex::Regex;
use serde_json::{Map, Value};

use super::{names, schema::Node};

static MICROSECONDS: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"\.\d{6}(Z|[+-]\d\d:\d\d)$").expect("the pattern is a constant that compiles"));

/// Times that are written with six digits after the second.
const PRECISE: [&str; 4] = ["acquireTime", "renewTime", "eventTime", "lastObservedTime"];

/// The first value that is not of its type, as an error message. `owner` is the Go type that has
/// `value`, for example `ConfigMap`.
pub fn mismatch(node: &Node, value: &Value, owner: &str) -> Option<String> {
    find_mismatch(node, value, owner, "")
}

fn find_mismatch(node: &Node, value: &Value, owner: &str, path: &str) -> Option<String> {
    let given = match value {
        Value::Null => return None,
        _ if node.preserve_unknown => return None,
        Value::String(_) => "string".to_owned(),
        Value::Bool(_) => "bool".to_owned(),
        Value::Array(_) => "array".to_owned(),
        Value::Object(_) => "object".to_owned(),
        Value::Number(number) if number.is_f64() => format!("number {number}"),
        Value::Number(_) => "number".to_owned(),
    };
    let refuse = || {
        let place = if path.is_empty() { String::new() } else { format!("struct field {owner}.{path}") };
        let place = if place.is_empty() { "value".to_owned() } else { place };
        Some(format!("json: cannot unmarshal {given} into Go {place} of type {}", go_type(node, owner)))
    };
    match (node.type_.as_deref(), value) {
        (Some("object"), Value::Object(map)) => map.iter().find_map(|(name, value)| {
            if let Some(member) = node.properties.get(name) {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                let owner = if member.type_.as_deref() == Some("object") && !member.properties.is_empty() {
                    struct_name(owner, name)
                } else {
                    owner.to_owned()
                };
                find_mismatch(member, value, &owner, &path).or_else(|| broken_time(member, name, value))
            } else {
                find_mismatch(node.values.as_deref()?, value, owner, path)
            }
        }),
        (Some("array"), Value::Array(items)) => {
            let item = node.items.as_deref()?;
            items.iter().find_map(|value| find_mismatch(item, value, owner, path))
        }
        (Some("string"), Value::String(text)) => {
            if node.format.as_deref() != Some("byte") {
                return None;
            }
            let bare: String = text.chars().filter(|c| !matches!(c, '\r' | '\n')).collect();
            STANDARD.decode(bare).err().map(|error| format!("illegal base64 data at input byte {}", position(&error)))
        }
        (Some("integer"), Value::Number(number)) => number.is_f64().then(refuse).flatten(),
        (Some("number"), Value::Number(_)) | (Some("boolean"), Value::Bool(_)) | (None, _) => None,
        (Some(_), _) => refuse(),
    }
}

fn broken_time(node: &Node, name: &str, value: &Value) -> Option<String> {
    let text = value.as_str().filter(|_| node.format.as_deref() == Some("date-time"))?;
    let precise = PRECISE.contains(&name);
    let layout = if precise { "2006-01-02T15:04:05.000000Z07:00" } else { "2006-01-02T15:04:05Z07:00" };
    let (rest, part) = if text.parse::<jiff::Timestamp>().is_err() {
        (text, "2006")
    } else if precise && !MICROSECONDS.is_match(text) {
        (text.get(19..).unwrap_or_default(), ".000000")
    } else {
        return None;
    };
    let [text, rest] = [text, rest].map(names::quoted);
    Some(format!("parsing time {text} as {layout:?}: cannot parse {rest} as {part:?}"))
}

fn position(error: &base64::DecodeError) -> usize {
    match error {
        base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _) => *at,
        base64::DecodeError::InvalidLength(length) => *length,
        base64::DecodeError::InvalidPadding => 0,
    }
}

/// The Go type of a member that is a struct.
fn struct_name(owner: &str, member: &str) -> String {
    match member {
        "metadata" => "ObjectMeta".into(),
        "spec" | "status" => format!("{owner}{}{}", member[..1].to_uppercase(), &member[1..]),
        "involvedObject" | "regarding" | "related" => "ObjectReference".into(),
        "source" | "deprecatedSource" => "EventSource".into(),
        "series" => "EventSeries".into(),
        "ownerReferences" => "OwnerReference".into(),
        other => other.into(),
    }
}

fn go_type(node: &Node, owner: &str) -> String {
    match node.type_.as_deref() {
        Some("string") if node.format.as_deref() == Some("byte") => "[]uint8".into(),
        Some("string") => "string".into(),
        Some("boolean") => "bool".into(),
        Some("number") => "float64".into(),
        Some("integer") => node.format.clone().unwrap_or_else(|| "int64".into()),
        Some("array") => {
            format!("[]{}", node.items.as_deref().map_or_else(String::new, |i| go_type(i, "v1.OwnerReference")))
        }
        Some("object") => match node.values.as_deref() {
            Some(values) => format!("map[string]{}", go_type(values, owner)),
            None => format!("v1.{owner}"),
        },
        _ => "interface {}".into(),
    }
}

/// Takes out what is null or empty, which a typed object does not tell from absent. A null in a map
/// of texts is the empty text.
pub fn normalise(node: &Node, value: &mut Value) {
    match value {
        Value::Object(map) => {
            if node.properties.is_empty() && node.values.is_none() {
                return;
            }
            for (name, value) in map.iter_mut() {
                match node.member(name) {
                    Some(member) if value.is_null() && !node.properties.contains_key(name) => {
                        *value = if member.type_.as_deref() == Some("string") { "".into() } else { Value::Null };
                    }
                    Some(member) => normalise(member, value),
                    None => {}
                }
            }
            map.retain(|name, value| match node.properties.get(name) {
                Some(member) if member.preserve_unknown => !value.is_null(),
                Some(_) => !is_nothing(value),
                None => true,
            });
        }
        Value::Array(items) => {
            if let Some(node) = &node.items {
                for item in items {
                    normalise(node, item);
                }
            }
        }
        _ => {}
    }
}

fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

/// A member, and the value that stands for nothing in it.
type Shown = (&'static str, fn() -> Value);

/// Members that a kind always shows.
fn shown(group: &str, kind: &str) -> &'static [Shown] {
    fn null() -> Value {
        Value::Null
    }
    fn object() -> Value {
        Value::Object(Map::new())
    }
    fn text() -> Value {
        "".into()
    }
    fn zero() -> Value {
        0.into()
    }
    match (group, kind) {
        ("", "Event") => &[
            ("involvedObject", object),
            ("source", object),
            ("firstTimestamp", null),
            ("lastTimestamp", null),
            ("eventTime", null),
            ("reportingComponent", text),
            ("reportingInstance", text),
        ],
        ("events.k8s.io", "Event") => &[
            ("regarding", object),
            ("deprecatedSource", object),
            ("deprecatedFirstTimestamp", null),
            ("deprecatedLastTimestamp", null),
            ("eventTime", null),
        ],
        ("coordination.k8s.io", "Lease") => &[("spec", object)],
        ("", "Namespace") => &[("spec", object), ("status", object)],
        ("apps", "ControllerRevision") => &[("revision", zero)],
        _ => &[],
    }
}

/// Fills in what a kind always shows.
pub fn complete(group: &str, kind: &str, object: &mut Value) {
    let Some(map) = object.as_object_mut() else { return };
    for (name, nothing) in shown(group, kind) {
        map.entry(*name).or_insert_with(nothing);
    }
}

/// An object of a kind before anybody gave it anything.
pub fn nothing(group: &str, kind: &str) -> Value {
    let mut object = serde_json::json!({"metadata": {}});
    complete(group, kind, &mut object);
    object
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::local::objects::builtin;

    #[test]
    fn other_types_are_refused_with_the_words_of_go() {
        let said =
            |kind: &str, group: &str, object: Value| mismatch(builtin::schema(group, kind).root(), &object, kind);
        assert_eq!(
            said("ConfigMap", "", json!({"data": {"a": 1}})).unwrap(),
            "json: cannot unmarshal number into Go struct field ConfigMap.data of type string"
        );
        assert_eq!(
            said("Lease", "coordination.k8s.io", json!({"spec": {"leaseDurationSeconds": "x"}})).unwrap(),
            "json: cannot unmarshal string into Go struct field LeaseSpec.spec.leaseDurationSeconds of type int32"
        );
        assert_eq!(said("Secret", "", json!({"data": {"a": "!"}})).unwrap(), "illegal base64 data at input byte 0");
        assert_eq!(said("Secret", "", json!({"data": {"a": "YQ==", "b": null}})), None);
        assert!(
            said("Lease", "coordination.k8s.io", json!({"spec": {"renewTime": "2026-01-01T00:00:00.5Z"}})).is_some()
        );
    }

    #[test]
    fn nothing_is_kept_of_what_is_empty() {
        let schema = builtin::schema("", "ConfigMap");
        let mut object = json!({"metadata": {"labels": {}, "finalizers": null}, "data": {"a": null}, "binaryData": {}});
        normalise(schema.root(), &mut object);
        assert_eq!(object, json!({"data": {"a": ""}}));
    }
}
