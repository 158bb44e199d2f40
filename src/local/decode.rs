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
    /// Paths of members that are given twice.
    pub duplicates: Vec<String>,
}

/// The media type of a request, without parameters.
pub fn media_type(headers: &HeaderMap) -> &str {
    let value = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim()
}

/// Reads an object of a POST or PUT.
pub fn object(headers: &HeaderMap, bytes: &[u8]) -> Result<Body, ApiError> {
    match media_type(headers) {
        "" | "application/json" | "*/*" => json(bytes),
        "application/yaml" => yaml(bytes),
        protobuf::MEDIA_TYPE => Ok(Body { value: protobuf::object(bytes)?, duplicates: Vec::new() }),
        other => Err(ApiError::unsupported_media_type(other, &["application/json", "application/yaml"])),
    }
}

/// Reads JSON.
pub fn json(bytes: &[u8]) -> Result<Body, ApiError> {
    let mut duplicates = Vec::new();
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = Tree { path: String::new(), duplicates: &mut duplicates }
        .deserialize(&mut deserializer)
        .and_then(|value| deserializer.end().map(|()| value))
        .map_err(|error| {
            ApiError::bad_request(format!("the object provided is unrecognized: it is not valid JSON: {error}"))
        })?;
    Ok(Body { value, duplicates })
}

/// Reads YAML, of which JSON is a part.
pub fn yaml(bytes: &[u8]) -> Result<Body, ApiError> {
    if bytes.first() == Some(&b'{') {
        return json(bytes);
    }
    let mut duplicates = Vec::new();
    let value = Tree { path: String::new(), duplicates: &mut duplicates }
        .deserialize(serde_yaml_ng::Deserializer::from_slice(bytes))
        .map_err(|error| ApiError::bad_request(format!("error decoding YAML: {error}")))?;
    Ok(Body { value, duplicates })
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
        assert_eq!(body.duplicates, ["spec.env[0].name", "a"]);
        assert_eq!(body.value["a"], 2);
        let body = yaml(b"a: 1\nspec: {image: x, image: y}\n").unwrap();
        assert_eq!(body.duplicates, ["spec.image"]);
        assert_eq!(body.value["spec"]["image"], "y");
    }

    #[test]
    fn broken_bodies_are_refused() {
        assert_eq!(json(b"{\"a\": ").unwrap_err().reason, "BadRequest");
        assert_eq!(json(b"{} trailing").unwrap_err().reason, "BadRequest");
        assert_eq!(yaml(b"a: [").unwrap_err().reason, "BadRequest");
        assert_eq!(yaml(b"a: 1\nb: [x]").unwrap().value["b"][0], "x");
    }
}
