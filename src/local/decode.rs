//! Bodies: JSON or YAML into a tree, with the paths of members that are given twice.

use http::{HeaderMap, header};
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use std::fmt;

use super::{protobuf, status::ApiError};

/// A body as a tree.
#[derive(Debug)]
pub struct Body {
    /// The tree; of members given twice, the last.
    pub value: Value,
    /// What is wrong with it that a lenient reader passes over: members that are given twice.
    pub problems: Vec<String>,
}

/// The media type of a request, without parameters.
pub fn media_type(headers: &HeaderMap) -> &str {
    let value = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim()
}

/// Media types of objects.
pub const ACCEPTED: [&str; 3] = ["application/json", "application/yaml", protobuf::MEDIA_TYPE];

/// Reads an object of a POST or PUT, which should be of this kind.
pub fn object(headers: &HeaderMap, bytes: &[u8], kind: &str) -> Result<Body, ApiError> {
    let body = match media_type(headers) {
        "" | "application/json" | "*/*" => json(bytes).map_err(|error| not_json(&error)),
        "application/yaml" => yaml(bytes),
        protobuf::MEDIA_TYPE => {
            return Ok(Body { value: protobuf::object(bytes, kind)?, problems: Vec::new() });
        }
        _ => return Err(ApiError::unsupported_media_type(&ACCEPTED)),
    };
    let body = body.and_then(|body| match type_of(&body.value) {
        "object" => Ok(body),
        other => Err(not_json(&cannot_unmarshal(other, TYPE_META))),
    });
    body.map_err(|why| unrecognized(kind, &why, bytes))
}

/// Reads the options of a DELETE.
pub fn options(headers: &HeaderMap, bytes: &[u8]) -> Result<Value, ApiError> {
    let value = match media_type(headers) {
        "" | "application/json" | "*/*" | "application/yaml" => {
            yaml_or_json(headers, bytes).map_err(|error| ApiError::bad_request(not_json(&error)))?
        }
        protobuf::MEDIA_TYPE => protobuf::object(bytes, "DeleteOptions")?,
        _ => return Err(ApiError::unsupported_media_type(&ACCEPTED)),
    };
    if !value.is_object() {
        return Err(ApiError::bad_request(not_json(&cannot_unmarshal(type_of(&value), TYPE_META))));
    }
    let text = |key: &str| value[key].as_str().unwrap_or_default();
    let (version, kind) = (text("apiVersion"), text("kind"));
    if !kind.is_empty() && kind != "DeleteOptions" {
        return Err(ApiError::bad_request(format!(
            "no kind {kind:?} is registered for version {version:?} in scheme \"pkg/runtime/scheme.go:111\""
        )));
    }
    Ok(value)
}

fn yaml_or_json(headers: &HeaderMap, bytes: &[u8]) -> Result<Value, String> {
    let body = if media_type(headers) == "application/yaml" { yaml(bytes) } else { json(bytes) };
    body.map(|body| body.value)
}

/// What Go reads the kind of an object into.
const TYPE_META: &str =
    r#"struct { APIVersion string "json:\"apiVersion,omitempty\""; Kind string "json:\"kind,omitempty\"" }"#;

fn not_json(error: &str) -> String {
    format!("couldn't get version/kind; json parse error: {error}")
}

/// 400: a body that is no object of this kind.
pub fn unrecognized(kind: &str, why: &str, bytes: &[u8]) -> ApiError {
    ApiError::bad_request(format!(
        "the object provided is unrecognized (must be of type {kind}): {why} ({})",
        summary(bytes)
    ))
}

/// The beginning of a body: as text when it is JSON, else as digits.
fn summary(bytes: &[u8]) -> String {
    const LENGTH: usize = 30;
    let cut = &bytes[..bytes.len().min(LENGTH)];
    let more = if bytes.len() > LENGTH { " ..." } else { "" };
    match bytes.first() {
        None => "<empty>".into(),
        Some(b'{') => format!("{}{more}", String::from_utf8_lossy(cut)),
        Some(_) => {
            let digits: Vec<String> = cut.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("{}{more}", digits.concat())
        }
    }
}

/// What Go's decoder says of a value of another type.
pub fn cannot_unmarshal(given: &str, into: &str) -> String {
    format!("json: cannot unmarshal {given} into Go value of type {into}")
}

/// The type of a value in the words of Go's decoder.
pub fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Reads JSON. The error is that of Go's decoder where this one tells as much.
pub fn json(bytes: &[u8]) -> Result<Body, String> {
    let mut duplicates = Vec::new();
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = Tree { path: String::new(), duplicates: &mut duplicates }
        .deserialize(&mut deserializer)
        .and_then(|value| deserializer.end().map(|()| value))
        .map_err(|error| {
            let wrong = bytes.get(error.column().saturating_sub(1)).filter(|_| error.line() == 1).copied();
            match wrong {
                _ if error.is_eof() => "unexpected end of JSON input".to_owned(),
                Some(byte) if error.to_string().starts_with("trailing") => {
                    format!("invalid character '{}' after top-level value", char::from(byte))
                }
                _ => error.to_string(),
            }
        })?;
    Ok(Body { value, problems: named(duplicates) })
}

fn named(duplicates: Vec<String>) -> Vec<String> {
    duplicates.into_iter().map(|path| format!("duplicate field {path:?}")).collect()
}

/// Reads YAML, of which JSON is a part.
pub fn yaml(bytes: &[u8]) -> Result<Body, String> {
    if bytes.first() == Some(&b'{') {
        return json(bytes);
    }
    if bytes.is_empty() {
        return Ok(Body { value: Value::Null, problems: Vec::new() });
    }
    let mut duplicates = Vec::new();
    let value = Tree { path: String::new(), duplicates: &mut duplicates }
        .deserialize(serde_yaml_ng::Deserializer::from_slice(bytes))
        .map_err(|error| format!("yaml: {error}"))?;
    Ok(Body { value, problems: named(duplicates) })
}

struct Tree<'a> {
    path: String,
    duplicates: &'a mut Vec<String>,
}

impl<'de> DeserializeSeed<'de> for Tree<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Tree<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        loop {
            let seed = Tree { path: format!("{}[{}]", self.path, list.len()), duplicates: &mut *self.duplicates };
            match items.next_element_seed(seed)? {
                Some(item) => list.push(item),
                None => return Ok(Value::Array(list)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(name) = members.next_key::<String>()? {
            let path = if self.path.is_empty() { name.clone() } else { format!("{}.{name}", self.path) };
            let value = members.next_value_seed(Tree { path: path.clone(), duplicates: &mut *self.duplicates })?;
            if map.insert(name, value).is_some() {
                self.duplicates.push(path);
            }
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_given_twice_are_named() {
        let body = json(br#"{"a": 1, "spec": {"env": [{"name": "x", "name": "y"}]}, "a": 2}"#).unwrap();
        assert_eq!(body.problems, [r#"duplicate field "spec.env[0].name""#, r#"duplicate field "a""#]);
        assert_eq!(body.value["a"], 2);
        assert_eq!(yaml(b"a: 1\nb: [x]\na: 2\n").unwrap().problems, [r#"duplicate field "a""#]);
        let body = yaml(b"a: 1\nspec: {image: x, image: y}\n").unwrap();
        assert_eq!(body.value["spec"]["image"], "y");
    }

    #[test]
    fn broken_bodies_are_refused() {
        assert_eq!(json(b"{\"a\": ").unwrap_err(), "unexpected end of JSON input");
        assert_eq!(json(b"{} trailing").unwrap_err(), "invalid character 't' after top-level value");
        assert!(yaml(b"a: [").unwrap_err().starts_with("yaml: "));
        assert_eq!(yaml(b"a: 1\nb: [x]").unwrap().value["b"][0], "x");
        assert_eq!(
            summary(br#"{"metadata":{"name":"a"},"spec":{"image":"x"}}"#),
            r#"{"metadata":{"name":"a"},"spec ..."#
        );
        assert_eq!(summary(b"a: ["), "613a205b");
    }
}
