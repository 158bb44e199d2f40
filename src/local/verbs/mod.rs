//! What a write does to the objects, as functions of a store transaction.

pub mod create;
pub mod delete;
pub mod garbage;
mod policy;
pub mod scale;
pub mod update;

use std::sync::{Arc, Mutex};

use jiff::Timestamp;
use serde_json::Value;

use crate::{
    admission::Gate,
    policy::{Images, Wanted},
};

use super::{
    decode, events,
    objects::{managed_fields::Writer, names, typed},
    options::FieldValidation,
    registry::{Kind, Registry},
    request::Subresource,
    status::{ApiError, Cause, Subject},
    store::Key,
};

/// Who asks for what kind of thing, and when.
#[derive(Clone, Debug)]
pub struct Call {
    /// The kind that the path names.
    pub kind: Arc<Kind>,
    /// All kinds.
    pub registry: Registry,
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
    /// What judges servers.
    pub gate: Option<Gate>,
    /// What registries said about images.
    pub images: Arc<Images>,
    /// What they must still be asked, before this can be done.
    pub wanted: Arc<Mutex<Vec<Wanted>>>,
}

/// Where an object that is to be written comes from; errors depend on it.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// The body of a request.
    Body(&'a [u8]),
    /// The object that a patch makes, as text.
    Patch(&'a str),
}

impl Source<'_> {
    fn refuse(&self, (kind, version): (&str, &str), wanted: &str, why: &str) -> ApiError {
        match self {
            Self::Body(_) => {
                ApiError::bad_request(format!("{kind} in version {version:?} cannot be handled as a {wanted}: {why}"))
            }
            Self::Patch(text) => ApiError::invalid_patch(text, why),
        }
    }

    fn missing_kind(&self, wanted: &str) -> ApiError {
        match self {
            Self::Body(bytes) => {
                let why = format!("Object 'Kind' is missing in '{}'", String::from_utf8_lossy(bytes));
                decode::unrecognized(wanted, &why, bytes)
            }
            Self::Patch(text) => ApiError::invalid_patch(text, &format!("Object 'Kind' is missing in '{text}'")),
        }
    }
}

/// An object that a write made or left, and warnings for the client.
#[derive(Debug)]
pub struct Written {
    /// The object.
    pub object: Value,
    /// Whether it did not exist before.
    pub created: bool,
    /// The version that it had before.
    pub previous: Option<u64>,
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
        let untouched = (self.kind.status && self.subresource == Subresource::None).then_some("f:status");
        Writer { manager: &self.manager, api_version, subresource: self.subresource.as_str(), untouched, now }
    }

    /// Checks that an object is of the kind that the path names, and removes what is unknown or
    /// empty. Returns warnings.
    ///
    /// `problems` are those of the body, such as members that come twice.
    fn accept(&self, object: &mut Value, problems: &[String], source: &Source<'_>) -> Result<Vec<String>, ApiError> {
        let (api_version, kind, given_problems) = (self.kind.api_version(), &self.kind.kind, problems);
        let Value::Object(map) = object else {
            return Err(source.missing_kind(kind));
        };
        let given = |key: &str| map.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (given_version, given_kind) = (given("apiVersion"), given("kind"));
        let version = given_version.rsplit('/').next().unwrap_or_default();
        let refuse = |why: &str| source.refuse((&given_kind, version), kind, why);
        let given_name = map.get("metadata").and_then(|m| m["name"].as_str()).unwrap_or_default();
        if self.kind.custom {
            if given_kind.is_empty() {
                return Err(source.missing_kind(kind));
            }
            if given_version != api_version {
                let Source::Patch(_) = source else {
                    return Err(ApiError::bad_request(format!(
                        "the API version in the data ({given_version}) does not match the expected API version ({api_version})"
                    )));
                };
                let message = format!("Invalid value: {}: must be {api_version}", names::quoted(&given_version));
                let cause = Cause { reason: "FieldValueInvalid", message, field: "apiVersion".into() };
                return Err(ApiError::invalid(&self.kind.subject(given_name), &[cause]));
            }
            if given_kind != *kind {
                let message = format!("Invalid value: {}: must be {kind}", names::quoted(&given_kind));
                let cause = Cause { reason: "FieldValueInvalid", message, field: "kind".into() };
                let subject = Subject { kind: given_kind.clone(), ..self.kind.subject(given_name) };
                return Err(ApiError::invalid(&subject, &[cause]));
            }
        } else if (!given_kind.is_empty() && given_kind != *kind)
            || (!given_version.is_empty() && given_version != api_version)
        {
            let known = self.registry.of_owner(&given_version, &given_kind).filter(|known| !known.custom);
            return Err(refuse(&match known {
                Some(known) => {
                    let group = if self.kind.group.is_empty() { "core" } else { &self.kind.group };
                    format!("converting ({}.{given_kind}) to ({group}.{kind}): unknown conversion", known.version)
                }
                None => format!(
                    "no kind {given_kind:?} is registered for version {given_version:?} in scheme \"pkg/runtime/scheme.go:111\""
                ),
            }));
        }
        map.insert("apiVersion".into(), api_version.into());
        map.insert("kind".into(), kind.clone().into());
        if map.get("metadata").is_none_or(Value::is_null) {
            map.insert("metadata".into(), Value::Object(serde_json::Map::new()));
        }
        let (given_kind, version) = (kind.as_str(), self.kind.version.as_str());
        let refuse = |why: &str| source.refuse((given_kind, version), kind, why);
        let root = self.kind.schema.root();
        let metadata = root.properties.get("metadata");
        let mismatch = match metadata {
            Some(node) if self.kind.custom => typed::mismatch(node, &object["metadata"], "ObjectMeta"),
            _ => typed::mismatch(root, object, kind),
        };
        if let Some(mismatch) = mismatch {
            return Err(refuse(&mismatch));
        }
        let unknown = self.kind.schema.prune(object);
        self.normalise(object);
        // Of members that are not known, a typed decoder does not see that they come twice.
        let seen = |problem: &&String| {
            self.kind.custom || !unknown.iter().any(|path| **problem == format!("duplicate field {path:?}"))
        };
        let mut problems: Vec<String> = given_problems.iter().filter(seen).cloned().collect();
        problems.extend(unknown.iter().map(|path| format!("unknown field {path:?}")));
        let repeated = object["metadata"].get_mut("ownerReferences").and_then(|owners| dedup_owners(owners, source));
        match self.field_validation {
            FieldValidation::Strict if !problems.is_empty() => {
                Err(refuse(&format!("strict decoding error: {}", problems.join(", "))))
            }
            FieldValidation::Warn => Ok(problems.into_iter().chain(repeated).collect()),
            FieldValidation::Ignore | FieldValidation::Strict => Ok(repeated.into_iter().collect()),
        }
    }

    /// Takes out what is empty where a typed object cannot tell it from absent.
    fn normalise(&self, object: &mut Value) {
        let root = self.kind.schema.root();
        match root.properties.get("metadata") {
            Some(node) if self.kind.custom => typed::normalise(node, &mut object["metadata"]),
            _ => {
                typed::normalise(root, object);
                if object.get("metadata").is_none() {
                    object["metadata"] = Value::Object(serde_json::Map::new());
                }
                typed::complete(&self.kind.group, &self.kind.kind, object);
            }
        }
    }

    /// From the form of the path's version to the form in the store.
    fn to_stored(&self, object: &mut Value) {
        if self.kind.group == "events.k8s.io" {
            events::to_core(object);
            typed::complete("", "Event", object);
        }
    }

    /// From the form in the store to the form of the path's version.
    pub fn to_shown(&self, object: &mut Value) {
        if self.kind.group == "events.k8s.io" {
            events::from_core(object);
            for field in ["reportingController", "reportingInstance"] {
                if object[field] == ""
                    && let Some(map) = object.as_object_mut()
                {
                    map.remove(field);
                }
            }
            typed::complete("events.k8s.io", "Event", object);
        }
    }
}

/// Drops owners that are named twice, and returns a warning.
fn dedup_owners(owners: &mut Value, source: &Source<'_>) -> Option<String> {
    let owners = owners.as_array_mut()?;
    let mut uids = Vec::new();
    let mut seen: Vec<Value> = Vec::new();
    owners.retain(|owner| {
        let first = !seen.contains(owner);
        if first {
            seen.push(owner.clone());
        } else {
            uids.push(owner["uid"].as_str().unwrap_or_default().to_owned());
        }
        first
    });
    uids.dedup();
    let when = match source {
        Source::Body(_) => "",
        Source::Patch(_) => " after mutating admission happens",
    };
    (!uids.is_empty()).then(|| {
        format!(
            ".metadata.ownerReferences contains duplicate entries{when}; API server dedups owner references in 1.20+, and may reject such requests as early as 1.24; please fix your requests; duplicate UID(s) observed: {}",
            uids.join(", ")
        )
    })
}

/// The object in the store, or the error that says it is not there.
fn existing(
    transaction: &super::store::Transaction<'_>,
    call: &Call,
    name: &str,
) -> Result<Arc<super::store::Stored>, ApiError> {
    transaction.get(&call.key(name)).ok_or_else(|| ApiError::not_found(&call.kind.subject(name)))
}
