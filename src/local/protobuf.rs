//! The few bodies that kubectl sends as protobuf and nothing else: `create namespace`,
//! `create secret`, `create configmap`, `auth can-i` and `auth whoami`.
//!
//! The message numbers are those of `k8s.io/api` (`generated.proto`). Answers are always JSON,
//! which every client accepts.

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::STANDARD};
use prost::Message;
use serde_json::{Map, Value, json};

use super::{decode, status::ApiError};

/// Media type of these bodies.
pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";

/// Comes before the envelope.
const MAGIC: &[u8] = b"k8s\0";

#[derive(Clone, PartialEq, Message)]
struct Unknown {
    #[prost(message, optional, tag = "1")]
    type_meta: Option<TypeMeta>,
    #[prost(bytes = "vec", tag = "2")]
    raw: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct TypeMeta {
    #[prost(string, tag = "1")]
    api_version: String,
    #[prost(string, tag = "2")]
    kind: String,
}

#[derive(Clone, PartialEq, Message)]
struct ObjectMeta {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    generate_name: String,
    #[prost(string, tag = "3")]
    namespace: String,
    #[prost(btree_map = "string, string", tag = "11")]
    labels: BTreeMap<String, String>,
    #[prost(btree_map = "string, string", tag = "12")]
    annotations: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
struct Plain {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ObjectMeta>,
}

#[derive(Clone, PartialEq, Message)]
struct Secret {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ObjectMeta>,
    #[prost(btree_map = "string, bytes", tag = "2")]
    data: BTreeMap<String, Vec<u8>>,
    #[prost(string, tag = "3")]
    type_: String,
    #[prost(btree_map = "string, string", tag = "4")]
    string_data: BTreeMap<String, String>,
    #[prost(bool, optional, tag = "5")]
    immutable: Option<bool>,
}

#[derive(Clone, PartialEq, Message)]
struct ConfigMap {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ObjectMeta>,
    #[prost(btree_map = "string, string", tag = "2")]
    data: BTreeMap<String, String>,
    #[prost(btree_map = "string, bytes", tag = "3")]
    binary_data: BTreeMap<String, Vec<u8>>,
    #[prost(bool, optional, tag = "4")]
    immutable: Option<bool>,
}

/// Reads an object, which should be of this kind.
pub fn object(bytes: &[u8], kind: &str) -> Result<Value, ApiError> {
    let broken =
        |error: prost::DecodeError| ApiError::bad_request(format!("the object provided is unrecognized: {error}"));
    let envelope = bytes.strip_prefix(MAGIC).ok_or_else(|| {
        let why = "provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]";
        decode::unrecognized(kind, why, bytes)
    })?;
    let envelope = Unknown::decode(envelope).map_err(broken)?;
    let meta = envelope.type_meta.unwrap_or_default();
    let raw = envelope.raw.as_slice();
    let mut object = match (meta.api_version.as_str(), meta.kind.as_str()) {
        ("v1", "Secret") => {
            let secret = Secret::decode(raw).map_err(broken)?;
            let mut object = json!({"metadata": metadata(secret.metadata), "data": encoded(secret.data), "stringData": secret.string_data});
            set(&mut object, "type", (!secret.type_.is_empty()).then(|| secret.type_.into()));
            set(&mut object, "immutable", secret.immutable.map(Value::from));
            object
        }
        ("v1", "ConfigMap") => {
            let map = ConfigMap::decode(raw).map_err(broken)?;
            let mut object = json!({"metadata": metadata(map.metadata), "data": map.data});
            set(&mut object, "binaryData", (!map.binary_data.is_empty()).then(|| encoded(map.binary_data)));
            set(&mut object, "immutable", map.immutable.map(Value::from));
            object
        }
        ("v1", "Namespace")
        | ("authorization.k8s.io/v1", "SelfSubjectAccessReview" | "SelfSubjectRulesReview")
        | ("authentication.k8s.io/v1", "SelfSubjectReview") => {
            json!({"metadata": metadata(Plain::decode(raw).map_err(broken)?.metadata)})
        }
        _ => return Err(ApiError::unsupported_media_type(&["application/json", "application/yaml"])),
    };
    object["apiVersion"] = meta.api_version.into();
    object["kind"] = meta.kind.into();
    Ok(object)
}

fn set(object: &mut Value, field: &str, value: Option<Value>) {
    if let Some(value) = value {
        object[field] = value;
    }
}

fn encoded(data: BTreeMap<String, Vec<u8>>) -> Value {
    Value::Object(data.into_iter().map(|(key, bytes)| (key, STANDARD.encode(bytes).into())).collect())
}

fn metadata(meta: Option<ObjectMeta>) -> Value {
    let meta = meta.unwrap_or_default();
    let mut object = Map::new();
    for (field, value) in [("name", meta.name), ("generateName", meta.generate_name), ("namespace", meta.namespace)] {
        if !value.is_empty() {
            object.insert(field.into(), value.into());
        }
    }
    for (field, values) in [("labels", meta.labels), ("annotations", meta.annotations)] {
        if !values.is_empty() {
            object.insert(field.into(), json!(values));
        }
    }
    Value::Object(object)
}
