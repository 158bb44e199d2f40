//! What a write does to the objects, as functions of a store transaction.

pub mod create;
pub mod delete;
pub mod garbage;
pub mod scale;
pub mod update;

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::{
    events,
    objects::managed_fields::Writer,
    registry::Kind,
    request::{FieldValidation, Subresource},
    status::ApiError,
    store::Key,
};

/// Who asks for what kind of thing, and when.
#[derive(Clone, Debug)]
pub struct Call {
    /// The kind that the path names.
    pub kind: Arc<Kind>,
    /// The namespace in the path, empty for cluster scope.
    pub namespace: String,
    /// The part of the object.
    pub subresource: Subresource,
    /// Field manager.
    pub manager: String,
    /// The moment of the request.
    pub now: Timestamp,
    /// How strictly the body is read.
    pub field_validation: FieldValidation,
}

/// An object that a write made or left, and warnings for the client.
#[derive(Debug)]
pub struct Written {
    /// The object.
    pub object: Value,
    /// Whether it did not exist before.
    pub created: bool,
    /// For `Warning` headers.
    pub warnings: Vec<String>,
}

impl Call {
    /// The key of an object of this kind.
    pub fn key(&self, name: &str) -> Key {
        Key { resource: self.kind.storage.clone(), namespace: self.namespace.clone(), name: name.to_owned() }
    }

    /// The moment as Kubernetes writes it, in whole seconds.
    pub fn timestamp(&self) -> String {
        self.now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
    }

    fn writer<'a>(&'a self, api_version: &'a str, now: &'a str) -> Writer<'a> {
        Writer { manager: &self.manager, api_version, subresource: self.subresource.as_str(), now }
    }

    /// Checks that a body is of the kind that the path names, and removes unknown fields.
    fn accept(&self, object: &mut Value, duplicates: &[String]) -> Result<Vec<String>, ApiError> {
        let (api_version, kind) = (self.kind.api_version(), &self.kind.kind);
        let Value::Object(map) = object else {
            return Err(ApiError::bad_request("the object provided is unrecognized: it is not a JSON object"));
        };
        let given = |key: &str| map.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (given_version, given_kind) = (given("apiVersion"), given("kind"));
        if (!given_kind.is_empty() && given_kind != *kind)
            || (!given_version.is_empty() && given_version != api_version)
        {
            return Err(ApiError::bad_request(format!(
                "the object provided ({given_kind}, {given_version}) does not match what the path names ({kind}, {api_version})"
            )));
        }
        map.insert("apiVersion".into(), api_version.into());
        map.insert("kind".into(), kind.clone().into());
        if !map.get("metadata").is_some_and(Value::is_object) {
            if map.get("metadata").is_some_and(|m| !m.is_null()) {
                return Err(ApiError::bad_request("the object provided is unrecognized: metadata is not an object"));
            }
            map.insert("metadata".into(), Value::Object(serde_json::Map::new()));
        }
        let unknown = self.kind.schema.prune(object);
        let mut problems: Vec<String> = duplicates.iter().map(|path| format!("duplicate field {path:?}")).collect();
        problems.extend(unknown.iter().map(|path| format!("unknown field {path:?}")));
        match self.field_validation {
            FieldValidation::Strict if !problems.is_empty() => Err(ApiError::bad_request(format!(
                "{kind} in version {:?} cannot be handled as a {kind}: strict decoding error: {}",
                self.kind.version,
                problems.join(", ")
            ))),
            FieldValidation::Warn => Ok(problems),
            FieldValidation::Ignore | FieldValidation::Strict => Ok(Vec::new()),
        }
    }

    /// From the form of the path's version to the form in the store.
    fn to_stored(&self, object: &mut Value) {
        if self.kind.group == "events.k8s.io" {
            events::to_core(object);
        }
    }

    /// From the form in the store to the form of the path's version.
    pub fn to_shown(&self, object: &mut Value) {
        if self.kind.group == "events.k8s.io" {
            events::from_core(object);
        }
    }
}

/// The object in the store, or the error that says it is not there.
fn existing(
    transaction: &super::store::Transaction<'_>,
    call: &Call,
    name: &str,
) -> Result<Arc<super::store::Stored>, ApiError> {
    transaction.get(&call.key(name)).ok_or_else(|| ApiError::not_found(&call.kind.subject(name)))
}
