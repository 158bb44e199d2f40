//! POST: a new object.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Value, json};

use super::{Call, Source, Written, garbage, policy, scale};
use crate::local::{
    objects::{config_data, managed_fields, meta, small_kinds, typed},
    request::{Subresource, name_of},
    status::{ApiError, Cause},
    store::{Key, Stored, Transaction},
};

/// Largest object as JSON: what etcd takes unless told otherwise, so that no object works here and
/// not on a cluster.
const OBJECT_LIMIT: usize = 3 * 512 * 1024;

/// A new object, from the body of a POST or from an apply to nothing.
pub struct Create {
    /// The object as given.
    pub object: Value,
    /// The body that it was read from.
    pub body: Bytes,
    /// What is wrong with the body that a lenient reader passes over.
    pub problems: Vec<String>,
    /// `metadata.uid` of the new object.
    pub uid: String,
    /// Completes `metadata.generateName`.
    pub suffix: String,
}

/// Creates an object.
pub fn create(transaction: &mut Transaction<'_>, call: &Call, request: Create) -> Result<Written, ApiError> {
    let mut object = request.object;
    let warnings = call.accept(&mut object, &request.problems, &Source::Body(&request.body))?;
    check_place(call, &object)?;
    if object["metadata"]["resourceVersion"].as_str().is_some_and(|v| !v.is_empty()) {
        return Err(ApiError::unexpected("resourceVersion should not be set on objects to be created"));
    }
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.remove("managedFields");
    }
    new(transaction, call, object, &request.uid, &request.suffix, warnings)
}

/// Makes an object that is of its kind for sure.
pub(super) fn new(
    transaction: &mut Transaction<'_>,
    call: &Call,
    mut object: Value,
    uid: &str,
    suffix: &str,
    mut warnings: Vec<String>,
) -> Result<Written, ApiError> {
    let name = complete_name(&mut object, suffix);
    prepare(call, &mut object, uid.to_owned());
    warnings.extend(admit(call, &mut object, None).map_err(|error| error.warn(warnings.clone()))?);
    let (api_version, now) = (call.kind.api_version(), call.timestamp());
    managed_fields::update(
        call.kind.schema.root(),
        &typed::nothing(&call.kind.group, &call.kind.kind),
        &mut object,
        &call.writer(&api_version, &now),
    );
    insert(transaction, call, &name, object, warnings)
}

/// Creates the object that an apply to nothing makes; its managed fields are already there.
pub(super) fn create_applied(
    transaction: &mut Transaction<'_>,
    call: &Call,
    mut object: Value,
    uid: String,
    mut warnings: Vec<String>,
) -> Result<Written, ApiError> {
    let name = name_of(&object).to_owned();
    prepare(call, &mut object, uid);
    warnings.extend(admit(call, &mut object, None)?);
    insert(transaction, call, &name, object, warnings)
}

fn insert(
    transaction: &mut Transaction<'_>,
    call: &Call,
    name: &str,
    mut object: Value,
    mut warnings: Vec<String>,
) -> Result<Written, ApiError> {
    if call.kind.is_namespace() {
        object["spec"] = json!({"finalizers": ["kubernetes"]});
        object["status"] = json!({"phase": "Active"});
    }
    call.to_stored(&mut object);
    let key = call.key(name);
    check_namespace(transaction, call, name)?;
    warnings.extend(policy::check(transaction, call, &object, None).map_err(|error| error.also(&warnings))?);
    if transaction.get(&key).is_some() {
        return Err(ApiError::already_exists(&call.kind.subject(name)));
    }
    let mut object = put(transaction, key.clone(), object)?.value();
    garbage::collect_if_orphaned(transaction, call, &key);
    call.to_shown(&mut object);
    Ok(Written { object, created: true, previous: None, warnings })
}

/// Writes an object, unless it is larger than a cluster would keep.
pub(super) fn put(transaction: &mut Transaction<'_>, key: Key, object: Value) -> Result<Arc<Stored>, ApiError> {
    let stored = transaction.put(key, object);
    if stored.json.len() > OBJECT_LIMIT {
        return Err(ApiError::object_too_large(stored.json.len(), OBJECT_LIMIT));
    }
    Ok(stored)
}

fn complete_name(object: &mut Value, suffix: &str) -> String {
    let metadata = &mut object["metadata"];
    if metadata["name"].as_str().unwrap_or_default().is_empty()
        && let Some(prefix) = metadata["generateName"].as_str().filter(|p| !p.is_empty())
    {
        metadata["name"] = format!("{prefix}{suffix}").into();
    }
    name_of(object).to_owned()
}

/// Sets what belongs to the server.
fn prepare(call: &Call, object: &mut Value, uid: String) {
    let now = call.timestamp();
    if let Some(metadata) = object["metadata"].as_object_mut() {
        for field in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "generation", "resourceVersion"] {
            metadata.remove(field);
        }
        metadata.insert("uid".into(), uid.into());
        metadata.insert("creationTimestamp".into(), now.into());
        if call.kind.custom {
            metadata.insert("generation".into(), 1.into());
        }
        if call.kind.namespaced && metadata.get("namespace").is_none_or(|n| n.as_str() == Some("")) {
            metadata.insert("namespace".into(), call.namespace.clone().into());
        }
    }
    if call.kind.status
        && let Some(map) = object.as_object_mut()
    {
        map.remove("status");
    }
    if call.kind.kind == "Lease"
        && let Some(spec) = object["spec"].as_object_mut()
    {
        // Of coordinated leader election, which is off unless asked for.
        spec.remove("strategy");
        spec.remove("preferredHolder");
    }
}

/// Refuses an object that says it is of another namespace than its address.
pub(super) fn check_place(call: &Call, object: &Value) -> Result<(), ApiError> {
    let given = object["metadata"]["namespace"].as_str().unwrap_or_default();
    if given.is_empty() || given == call.namespace {
        return Ok(());
    }
    Err(ApiError::bad_request("the namespace of the provided object does not match the namespace sent on the request"))
}

/// Fills defaults and checks everything about an object; `old` is the one that it replaces.
/// Returns warnings.
pub(super) fn admit(call: &Call, object: &mut Value, old: Option<&Value>) -> Result<Vec<String>, ApiError> {
    let kind = &call.kind;
    let in_status = call.subresource == Subresource::Status;
    if kind.group.is_empty() && kind.kind == "Secret" {
        fold_string_data(object);
    }
    if kind.group.is_empty() {
        config_data::normalise(&kind.kind, object);
    }
    if kind.is_namespace() && call.subresource == Subresource::None {
        let name = object["metadata"]["name"].clone();
        set(&mut object["metadata"], "labels", "kubernetes.io/metadata.name", name);
    }
    let mut causes = kind.scale.as_ref().map(|paths| scale::problems(paths, object, in_status)).unwrap_or_default();
    if kind.custom {
        kind.schema.default(object);
    }
    let name = name_of(object).to_owned();
    causes.extend(meta::validate(object, kind.is_namespace(), kind.custom));
    causes.extend(old.map(|old| meta::validate_update(object, old)).unwrap_or_default());
    if kind.custom {
        causes.extend(if in_status { kind.schema.validate_status(object) } else { kind.schema.validate(object) });
        let (unchecked, broken) = (causes.len(), kind.schema.broken_rules(object, old, &causes));
        causes.extend(broken);
        // A broken rule of the object as a whole is told first; that rules were not checked, last.
        if causes[unchecked..].iter().all(|c| c.field == "<nil>" && !c.message.contains("were not checked")) {
            causes.rotate_left(unchecked);
        }
    } else {
        causes.extend(config_data::validate(&kind.kind, object, old));
        causes.extend(small_kinds::validate(&kind.group, &kind.kind, object, old));
    }
    if causes.is_empty() {
        Ok(if kind.custom { meta::finalizer_warnings(object, old) } else { Vec::new() })
    } else {
        Err(ApiError::invalid(&kind.error_subject(&name), &causes))
    }
}

/// Sets a member of a member that is an object or absent. Anything else stays, for the schema to
/// refuse.
fn set(object: &mut Value, member: &str, key: &str, value: Value) {
    let Some(map) = object.as_object_mut() else { return };
    let target = map.entry(member).or_insert(Value::Null);
    if target.is_null() {
        *target = json!({});
    }
    if let Some(target) = target.as_object_mut() {
        target.insert(key.to_owned(), value);
    }
}

/// `stringData` is for writing only: its texts go into `data`, as base64. What is no text stays, for
/// the schema to refuse.
fn fold_string_data(secret: &mut Value) {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let Some(map) = secret.as_object_mut() else { return };
    let given = map.get("stringData").is_some_and(Value::is_object);
    if given && let Some(Value::Object(texts)) = map.remove("stringData") {
        for (key, text) in texts {
            match text {
                Value::String(text) => set(secret, "data", &key, STANDARD.encode(text).into()),
                other => set(secret, "stringData", &key, other),
            }
        }
    }
    if secret.get("type").is_none_or(|type_| type_.is_null() || type_ == "") {
        secret["type"] = "Opaque".into();
    }
}

fn check_namespace(transaction: &Transaction<'_>, call: &Call, name: &str) -> Result<(), ApiError> {
    if !call.kind.namespaced {
        return Ok(());
    }
    let key = Key { resource: "namespaces".into(), namespace: String::new(), name: call.namespace.clone() };
    let Some(namespace) = transaction.get(&key) else {
        let subject = crate::local::status::Subject {
            resource: "namespaces".into(),
            name: call.namespace.clone(),
            ..Default::default()
        };
        return Err(ApiError::not_found(&subject));
    };
    if namespace.value()["metadata"].get("deletionTimestamp").is_some() {
        let why =
            format!("unable to create new content in namespace {} because it is being terminated", call.namespace);
        let cause = Cause {
            reason: "NamespaceTerminating",
            message: format!("namespace {} is being terminated", call.namespace),
            field: "metadata.namespace".into(),
        };
        return Err(ApiError::forbidden(&call.kind.subject(name), &why).because(&[cause]));
    }
    Ok(())
}
