//! PUT and PATCH: an object replaced by another.

use serde_json::Value;

use super::{Call, Written, create, existing, garbage};
use crate::local::{
    decode,
    objects::{managed_fields, patch},
    request::{Subresource, name_of},
    status::{ApiError, Cause},
    store::{Stored, Transaction},
};

/// A patch, by its media type.
#[derive(Clone, Debug)]
pub enum Patch {
    /// RFC 6902.
    Json(Value),
    /// RFC 7386.
    Merge(Value),
    /// Kubernetes' own, for built-in kinds.
    Strategic(Value),
    /// Server-side apply.
    Apply {
        /// What is applied.
        object: Value,
        /// Members that are given twice.
        duplicates: Vec<String>,
        /// Take what other managers own.
        force: bool,
        /// `metadata.uid`, should the object be new.
        uid: String,
    },
}

/// Replaces an object by the body of a PUT.
pub fn replace(
    transaction: &mut Transaction<'_>,
    call: &Call,
    name: &str,
    mut object: Value,
    duplicates: &[String],
) -> Result<Written, ApiError> {
    let warnings = call.accept(&mut object, duplicates)?;
    if name_of(&object) != name {
        return Err(ApiError::bad_request(format!(
            "the name of the object ({}) does not match the name on the URL ({name})",
            name_of(&object)
        )));
    }
    let stored = existing(transaction, call, name)?;
    if call.kind.custom && object["metadata"]["resourceVersion"].as_str().unwrap_or_default().is_empty() {
        let cause = Cause {
            reason: "FieldValueInvalid",
            message: "Invalid value: 0: must be specified for an update".into(),
            field: "metadata.resourceVersion".into(),
        };
        return Err(ApiError::invalid(&call.kind.subject(name), &[cause]));
    }
    call.to_stored(&mut object);
    finish(transaction, call, &stored, object, warnings, true)
}

/// Patches an object.
pub fn patch(transaction: &mut Transaction<'_>, call: &Call, name: &str, patch: Patch) -> Result<Written, ApiError> {
    if let Patch::Apply { object, duplicates, force, uid } = patch {
        return apply(transaction, call, name, object, &duplicates, force, uid);
    }
    let stored = existing(transaction, call, name)?;
    let mut current = stored.value();
    call.to_shown(&mut current);
    let patched = match patch {
        Patch::Json(patch) => patch::json_patch(&current, patch),
        Patch::Merge(patch) => patch::merge_patch(&current, &patch),
        Patch::Strategic(_) if call.kind.custom => {
            return Err(ApiError::unsupported_media_type(
                "application/strategic-merge-patch+json",
                &["application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml"],
            ));
        }
        Patch::Strategic(patch) => patch::strategic_merge(&current, &patch),
        Patch::Apply { .. } => Ok(current),
    };
    let mut patched = patched.map_err(|error| match error {
        patch::PatchError::Malformed(message) => ApiError::bad_request(message),
        patch::PatchError::DoesNotApply(message) => ApiError::invalid(
            &call.kind.subject(name),
            &[Cause { reason: "FieldValueInvalid", message, field: "patch".into() }],
        ),
    })?;
    let warnings = call.accept(&mut patched, &[])?;
    call.to_stored(&mut patched);
    finish(transaction, call, &stored, patched, warnings, true)
}

/// Reads a patch by its media type.
pub fn read_patch(media_type: &str, body: &[u8], force: bool, uid: String) -> Result<Patch, ApiError> {
    Ok(match media_type {
        "application/json-patch+json" => Patch::Json(decode::json(body)?.value),
        "application/merge-patch+json" => Patch::Merge(decode::json(body)?.value),
        "application/strategic-merge-patch+json" => Patch::Strategic(decode::json(body)?.value),
        "application/apply-patch+yaml" => {
            let body = decode::yaml(body)?;
            Patch::Apply { object: body.value, duplicates: body.duplicates, force, uid }
        }
        other => {
            return Err(ApiError::unsupported_media_type(
                other,
                &[
                    "application/json-patch+json",
                    "application/merge-patch+json",
                    "application/strategic-merge-patch+json",
                    "application/apply-patch+yaml",
                ],
            ));
        }
    })
}

fn apply(
    transaction: &mut Transaction<'_>,
    call: &Call,
    name: &str,
    mut applied: Value,
    duplicates: &[String],
    force: bool,
    uid: String,
) -> Result<Written, ApiError> {
    let warnings = call.accept(&mut applied, duplicates)?;
    if applied["metadata"].get("managedFields").is_some_and(|m| !m.is_null()) {
        return Err(ApiError::bad_request("metadata.managedFields must be nil"));
    }
    if name_of(&applied).is_empty() {
        applied["metadata"]["name"] = name.into();
    }
    if name_of(&applied) != name {
        return Err(ApiError::bad_request(format!(
            "the name of the object ({}) does not match the name on the URL ({name})",
            name_of(&applied)
        )));
    }
    if call.kind.namespaced && applied["metadata"]["namespace"].as_str().unwrap_or_default().is_empty() {
        applied["metadata"]["namespace"] = call.namespace.clone().into();
    }
    call.to_stored(&mut applied);
    let stored = transaction.get(&call.key(name));
    if stored.is_none() && call.subresource != Subresource::None {
        return Err(ApiError::not_found(&call.kind.subject(name)));
    }
    let live = stored.as_ref().map_or_else(|| serde_json::json!({"metadata": {}}), |s| s.value());
    if let (Some(given), Some(stored)) = (applied["metadata"]["resourceVersion"].as_str(), &stored)
        && !given.is_empty()
        && given != stored.revision.to_string()
    {
        return Err(ApiError::stale(&call.kind.subject(name)));
    }
    strip(call, &mut applied);
    let (api_version, now) = (call.kind.api_version(), call.timestamp());
    let merged =
        managed_fields::apply(call.kind.schema.root(), &live, &applied, &call.writer(&api_version, &now), force)
            .map_err(|conflicts| ApiError::apply_conflict(conflicts.message, &conflicts.causes))?;
    match stored {
        Some(stored) => finish(transaction, call, &stored, merged, warnings, false),
        None => create::create_applied(transaction, call, merged, uid, warnings),
    }
}

/// Leaves of an applied object only what the addressed part takes, so that nobody comes to own
/// what the write does not change.
fn strip(call: &Call, applied: &mut Value) {
    let Some(map) = applied.as_object_mut() else { return };
    match call.subresource {
        Subresource::Status => {
            map.retain(|key, _| matches!(key.as_str(), "apiVersion" | "kind" | "metadata" | "status"));
        }
        _ if call.kind.status => {
            map.remove("status");
        }
        _ => {}
    }
    if call.subresource == Subresource::Status
        && let Some(metadata) = map.get_mut("metadata").and_then(Value::as_object_mut)
    {
        metadata.retain(|key, _| matches!(key.as_str(), "name" | "namespace"));
    }
}

/// The common end of all replacements: what the client may not change is put back, the rest is
/// checked and written. `track` records the writer as owner of what changed.
pub(super) fn finish(
    transaction: &mut Transaction<'_>,
    call: &Call,
    stored: &Stored,
    mut object: Value,
    warnings: Vec<String>,
    track: bool,
) -> Result<Written, ApiError> {
    let old = stored.value();
    let name = stored.key.name.as_str();
    let subject = call.kind.subject(name);
    check_preconditions(call, stored, &object, &old)?;
    restore(call, &mut object, &old);
    create::admit(call, &mut object, Some(&old))?;
    let deleting = object["metadata"].get("deletionTimestamp").is_some();
    if deleting {
        let before = finalizers(&old);
        let added: Vec<&str> = finalizers(&object).into_iter().filter(|f| !before.contains(f)).collect();
        if !added.is_empty() {
            let cause = Cause {
                reason: "FieldValueForbidden",
                message: format!(
                    "Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers {added:?}"
                ),
                field: "metadata.finalizers".into(),
            };
            return Err(ApiError::invalid(&subject, &[cause]));
        }
    }
    if call.kind.custom && specification(&object) != specification(&old) {
        let generation = old["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
        object["metadata"]["generation"] = generation.into();
    }
    if track {
        let (api_version, now) = (call.kind.api_version(), call.timestamp());
        managed_fields::update(call.kind.schema.root(), &old, &mut object, &call.writer(&api_version, &now));
    }
    let mut object = if object == old {
        old
    } else if deleting && finalizers(&object).is_empty() && !call.kind.is_namespace() {
        transaction.put(stored.key.clone(), object);
        garbage::remove(transaction, &stored.key, call.now).unwrap_or(old)
    } else {
        let written = create::put(transaction, stored.key.clone(), object)?.value();
        if call.subresource == Subresource::Finalize || (deleting && call.kind.is_namespace()) {
            garbage::settle_namespace(transaction, name, call.now);
        }
        written
    };
    call.to_shown(&mut object);
    Ok(Written { object, created: false, warnings })
}

fn check_preconditions(call: &Call, stored: &Stored, object: &Value, old: &Value) -> Result<(), ApiError> {
    let subject = call.kind.subject(&stored.key.name);
    let given = object["metadata"]["resourceVersion"].as_str().unwrap_or_default();
    if !given.is_empty() && given != stored.revision.to_string() {
        return Err(ApiError::stale(&subject));
    }
    let (given, real) = (object["metadata"]["uid"].as_str(), old["metadata"]["uid"].as_str());
    if let (Some(given), Some(real)) = (given, real)
        && !given.is_empty()
        && given != real
    {
        let why = format!("Precondition failed: UID in precondition: {given}, UID in object meta: {real}");
        return Err(ApiError::conflict(&subject, &why));
    }
    Ok(())
}

/// Puts back what the client may not change through this address.
fn restore(call: &Call, object: &mut Value, old: &Value) {
    let fields = [
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "resourceVersion",
        "namespace",
    ];
    let put_back = |object: &mut Value, old: &Value, field: &str| {
        let Some(map) = object.as_object_mut() else { return };
        match old.get(field) {
            Some(value) => map.insert(field.to_owned(), value.clone()),
            None => map.remove(field),
        };
    };
    for field in fields {
        if field == "namespace" && object["metadata"]["namespace"].as_str().is_some_and(|n| !n.is_empty()) {
            continue;
        }
        put_back(&mut object["metadata"], &old["metadata"], field);
    }
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.remove("selfLink");
        if metadata.get("managedFields").and_then(Value::as_array).is_none_or(Vec::is_empty) {
            metadata.remove("managedFields");
            if let Some(fields) = old["metadata"].get("managedFields") {
                metadata.insert("managedFields".into(), fields.clone());
            }
        }
    }
    match call.subresource {
        Subresource::Status => {
            let status = object.get("status").cloned();
            let managed = object["metadata"].get("managedFields").cloned();
            *object = old.clone();
            if let Some(map) = object.as_object_mut() {
                match status {
                    Some(status) => map.insert("status".into(), status),
                    None => map.remove("status"),
                };
            }
            if let Some(managed) = managed {
                object["metadata"]["managedFields"] = managed;
            }
        }
        Subresource::Finalize => {
            let finalizers = object["spec"]["finalizers"].clone();
            *object = old.clone();
            object["spec"]["finalizers"] = if finalizers.is_null() { Value::Array(Vec::new()) } else { finalizers };
        }
        _ if call.kind.status || call.kind.is_namespace() => put_back(object, old, "status"),
        _ => {}
    }
    if call.kind.is_namespace() && call.subresource == Subresource::None {
        put_back(object, old, "spec");
    }
}

/// What the generation counts: all but metadata and status.
fn specification(object: &Value) -> Vec<(&String, &Value)> {
    let members = object.as_object().into_iter().flatten();
    members.filter(|(key, _)| !matches!(key.as_str(), "metadata" | "status")).collect()
}

pub(super) fn finalizers(object: &Value) -> Vec<&str> {
    object["metadata"]["finalizers"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}
