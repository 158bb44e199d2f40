//! PUT and PATCH: an object replaced by another.

use bytes::Bytes;
use serde_json::Value;

use super::{Call, Source, Written, create, existing, garbage, policy};
use crate::local::{
    decode,
    objects::{managed_fields, patch, typed, typed_patch},
    options::FieldValidation,
    request::{Subresource, name_of},
    status::{ApiError, Cause, Subject},
    store::{Stored, Transaction},
};

/// A patch, by its media type.
#[derive(Clone, Debug)]
pub enum Patch {
    /// RFC 6902.
    Json {
        /// The patch.
        value: Value,
        /// What is wrong with it that a lenient reader passes over.
        problems: Vec<String>,
    },
    /// RFC 7386.
    Merge {
        /// The patch.
        value: Value,
        /// What is wrong with the body that a lenient reader passes over.
        problems: Vec<String>,
    },
    /// Kubernetes' own, for built-in kinds.
    Strategic {
        /// The patch.
        value: Value,
        /// What is wrong with the body that a lenient reader passes over.
        problems: Vec<String>,
    },
    /// Server-side apply.
    Apply {
        /// What is applied.
        object: Value,
        /// What is wrong with the body that a lenient reader passes over.
        problems: Vec<String>,
        /// Take what other managers own.
        force: bool,
        /// `metadata.uid`, should the object be new.
        uid: String,
    },
}

/// A PUT.
pub struct Replace {
    /// The object as given.
    pub object: Value,
    /// The body that it was read from.
    pub body: Bytes,
    /// What is wrong with the body that a lenient reader passes over.
    pub problems: Vec<String>,
    /// `metadata.uid`, should the object be new.
    pub uid: String,
}

/// Replaces an object by the body of a PUT. Leases and events are made when they are absent.
pub fn replace(
    transaction: &mut Transaction<'_>,
    call: &Call,
    name: &str,
    request: Replace,
) -> Result<Written, ApiError> {
    let mut object = request.object;
    let warnings = call.accept(&mut object, &request.problems, &Source::Body(&request.body))?;
    check_name(call, &object, name)?;
    let version = object["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
    parse_version(&version)?;
    let Some(stored) = transaction.get(&call.key(name)) else {
        if !call.kind.made_by_put() || !version.is_empty() || call.subresource != Subresource::None {
            return Err(ApiError::not_found(&call.kind.subject(name)));
        }
        return create::new(transaction, call, object, &request.uid, "", warnings);
    };
    if call.kind.custom && version.is_empty() {
        let cause = Cause {
            reason: "FieldValueInvalid",
            message: "Invalid value: 0: must be specified for an update".into(),
            field: "metadata.resourceVersion".into(),
        };
        let subject = call.kind.subject(name);
        let plural = subject.resource.clone();
        return Err(ApiError::invalid(&Subject { kind: plural, ..subject }, &[cause]));
    }
    let live = stored.value();
    let (given, real) = (object["metadata"]["uid"].as_str(), live["metadata"]["uid"].as_str());
    if let (Some(given), Some(real)) = (given, real)
        && !given.is_empty()
        && given != real
    {
        let why = format!("Precondition failed: UID in precondition: {given}, UID in object meta: {real}");
        return Err(ApiError::conflict(&call.kind.subject(name), &why));
    }
    finish(transaction, call, &stored, object, warnings, true)
}

/// Refuses an object that says it has another name or namespace than its address.
pub(super) fn check_name(call: &Call, object: &Value, name: &str) -> Result<(), ApiError> {
    match name_of(object) {
        "" => Err(ApiError::bad_request(format!(
            "the name of the object ({name} based on URL) was undeterminable: name must be provided"
        ))),
        given if given != name => Err(ApiError::bad_request(format!(
            "the name of the object ({given}) does not match the name on the URL ({name})"
        ))),
        _ => create::check_place(call, object),
    }
}

/// Reads a resource version; none when it is empty.
pub(super) fn parse_version(version: &str) -> Result<Option<u64>, ApiError> {
    if version.is_empty() {
        return Ok(None);
    }
    version
        .parse()
        .map(Some)
        .map_err(|_| ApiError::unexpected(format!("strconv.ParseUint: parsing {version:?}: invalid syntax")))
}

/// Patches an object.
pub fn patch(transaction: &mut Transaction<'_>, call: &Call, name: &str, patch: Patch) -> Result<Written, ApiError> {
    if let Patch::Apply { object, problems, force, uid } = patch {
        return apply(transaction, call, name, object, &problems, force, uid);
    }
    let stored = existing(transaction, call, name)?;
    let mut current = stored.value();
    call.to_shown(&mut current);
    let (mut patched, problems, text) = patched(&current, patch)?;
    let text = text.unwrap_or_else(|| patched.to_string());
    let warnings = call.accept(&mut patched, &problems, &Source::Patch(&text))?;
    check_name(call, &patched, name)?;
    finish(transaction, call, &stored, patched, warnings, true)
}

/// What a patch makes of an object, members that the patch has twice, and the text by which errors
/// name the result, where that is not the result itself.
pub(super) fn patched(current: &Value, patch: Patch) -> Result<(Value, Vec<String>, Option<String>), ApiError> {
    let refuse = |error: patch::PatchError| match error {
        patch::PatchError::Malformed(message) => ApiError::bad_request(message),
        patch::PatchError::DoesNotApply => ApiError::rejected(),
        patch::PatchError::Unexpected(message) => ApiError::unexpected(message),
    };
    match patch {
        Patch::Json { value, problems } => Ok((patch::json_patch(current, value).map_err(refuse)?, problems, None)),
        Patch::Merge { value, problems } => Ok((patch::merge_patch(current, &value).map_err(refuse)?, problems, None)),
        Patch::Strategic { value, problems } => {
            let text = typed_patch::go(&value);
            Ok((patch::strategic_merge(current, &value).map_err(refuse)?, problems, Some(text)))
        }
        Patch::Apply { object, problems, .. } => Ok((object, problems, None)),
    }
}

/// The forms of patches that custom resources take.
const FORMS: [&str; 3] =
    ["application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml"];

/// Refuses a patch in a form that custom resources do not take.
pub fn check_patch_form(media_type: &str) -> Result<(), ApiError> {
    if FORMS.contains(&media_type) { Ok(()) } else { Err(ApiError::unsupported_media_type(&FORMS)) }
}

/// Reads a patch by its media type.
pub fn read_patch(custom: bool, media_type: &str, body: &[u8], force: bool, uid: String) -> Result<Patch, ApiError> {
    let decoding = |error: String| ApiError::bad_request(format!("error decoding patch: {error}"));
    Ok(match media_type {
        "application/json-patch+json" => {
            let value = decode::json(body).map_err(decoding)?.value;
            let problems = patch::unknown_members(&value);
            Patch::Json { value, problems }
        }
        "application/merge-patch+json" => {
            let body = decode::json(body).map_err(decoding)?;
            Patch::Merge { value: body.value, problems: body.problems }
        }
        "application/strategic-merge-patch+json" if !custom => {
            let body = decode::json(body).map_err(ApiError::bad_request)?;
            Patch::Strategic { value: body.value, problems: body.problems }
        }
        "application/apply-patch+yaml" => {
            // In JSON, which YAML is too, nobody looks for members that come twice.
            let lenient = body.first() == Some(&b'{');
            let body = decode::yaml(body).map_err(|error| {
                ApiError::bad_request(format!("error decoding YAML: error converting YAML to JSON: {error}"))
            })?;
            if !matches!(body.value, Value::Object(_) | Value::Null) {
                let given = decode::type_of(&body.value);
                let why = decode::cannot_unmarshal(given, "map[string]interface {}");
                return Err(ApiError::bad_request(format!(
                    "error decoding YAML: error unmarshaling JSON: while decoding JSON: {why}"
                )));
            }
            let problems = if lenient { Vec::new() } else { body.problems };
            Patch::Apply { object: body.value, problems, force, uid }
        }
        _ if custom => return Err(ApiError::unsupported_media_type(&FORMS)),
        _ => return Err(ApiError::unsupported_patch()),
    })
}

fn apply(
    transaction: &mut Transaction<'_>,
    call: &Call,
    name: &str,
    mut applied: Value,
    problems: &[String],
    force: bool,
    uid: String,
) -> Result<Written, ApiError> {
    let text = |key: &str| applied[key].as_str().unwrap_or_default().to_owned();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    if api_version != call.kind.api_version() || kind != call.kind.kind {
        let (group, version) = api_version.rsplit_once('/').unwrap_or(("", &api_version));
        return Err(ApiError::bad_request(format!("invalid object type: {group}/{version}, Kind={kind}")));
    }
    if applied["metadata"].get("managedFields").is_some_and(|m| !m.is_null()) {
        return Err(ApiError::bad_request("metadata.managedFields must be nil"));
    }
    if call.field_validation == FieldValidation::Strict && !problems.is_empty() {
        return Err(ApiError::bad_request(format!("error strict decoding YAML: {}", problems.join(", "))));
    }
    if let Some(problems) = typed_patch::problems(call.kind.schema.root(), &applied) {
        // The error names an object of no namespace, for it is read before it gets one.
        let type_ = if call.kind.group.is_empty() { format!("/{}", call.kind.version) } else { api_version };
        let place = applied["metadata"]["namespace"].as_str().unwrap_or_default();
        return Err(ApiError::unexpected(format!(
            "failed to create typed patch object ({place}/{}; {type_}, Kind={kind}): {problems}",
            name_of(&applied)
        )));
    }
    // Ownership is of what is given, be it empty; the object keeps nothing that is.
    let mut accepted = applied.clone();
    let warnings = call.accept(&mut accepted, problems, &Source::Body(b""))?;
    check_name(call, &accepted, name)?;
    if call.kind.namespaced {
        applied["metadata"]["namespace"] = call.namespace.clone().into();
    }
    let stored = transaction.get(&call.key(name));
    if stored.is_none() && call.subresource != Subresource::None {
        return Err(ApiError::not_found(&call.kind.subject(name)));
    }
    let live = stored.as_ref().map_or_else(
        || typed::nothing(&call.kind.group, &call.kind.kind),
        |s| {
            let mut live = s.value();
            call.to_shown(&mut live);
            live
        },
    );
    let given = applied["metadata"]["resourceVersion"].as_str().unwrap_or_default();
    let given = parse_version(given)?;
    if let Some(given) = given {
        match &stored {
            Some(stored) if stored.revision != given => {
                return Err(ApiError::stale(&call.kind.subject(name)));
            }
            _ => {}
        }
    }
    strip(call, &mut applied);
    let (api_version, now) = (call.kind.api_version(), call.timestamp());
    let merged =
        managed_fields::apply(call.kind.schema.root(), &live, &applied, &call.writer(&api_version, &now), force)
            .map_err(|conflicts| ApiError::apply_conflict(conflicts.message, &conflicts.causes))?;
    let mut merged = merged;
    call.normalise(&mut merged);
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
    let mut old = stored.value();
    call.to_shown(&mut old);
    let name = stored.key.name.as_str();
    check_version(call, stored, &object)?;
    restore(call, &mut object, &old);
    let mut warnings = warnings;
    warnings.extend(create::admit(call, &mut object, Some(&old)).map_err(|error| error.warn(warnings.clone()))?);
    warnings.extend(policy::check(transaction, call, &object, Some(&old)).map_err(|error| error.also(&warnings))?);
    let deleting = object["metadata"].get("deletionTimestamp").is_some();
    if call.kind.custom && specification(&object) != specification(&old) {
        let generation = old["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
        object["metadata"]["generation"] = generation.into();
    }
    // An object of which nobody is known to own anything stays so until somebody applies it.
    if track && old["metadata"].get("managedFields").is_some() {
        let (api_version, now) = (call.kind.api_version(), call.timestamp());
        managed_fields::update(call.kind.schema.root(), &old, &mut object, &call.writer(&api_version, &now));
    }
    let mut object = if object == old {
        call.to_stored(&mut old);
        old
    } else if deleting && finalizers(&object).is_empty() && !call.kind.is_namespace() {
        garbage::remove(transaction, &stored.key, call.now);
        call.to_stored(&mut object);
        object
    } else {
        call.to_stored(&mut object);
        let written = create::put(transaction, stored.key.clone(), object)?.value();
        if call.subresource == Subresource::Finalize || (deleting && call.kind.is_namespace()) {
            garbage::settle_namespace(transaction, name, call.now);
        }
        garbage::collect_if_orphaned(transaction, call, &stored.key);
        written
    };
    call.to_shown(&mut object);
    Ok(Written { object, created: false, previous: Some(stored.revision), warnings })
}

fn check_version(call: &Call, stored: &Stored, object: &Value) -> Result<(), ApiError> {
    let given = parse_version(object["metadata"]["resourceVersion"].as_str().unwrap_or_default())?;
    match given {
        Some(given) if given != stored.revision => Err(ApiError::stale(&call.kind.subject(&stored.key.name))),
        _ => Ok(()),
    }
}

/// Puts back what the client may not change through this address.
fn restore(call: &Call, object: &mut Value, old: &Value) {
    let put_back = |object: &mut Value, old: &Value, field: &str| {
        let Some(map) = object.as_object_mut() else { return };
        match old.get(field) {
            Some(value) => map.insert(field.to_owned(), value.clone()),
            None => map.remove(field),
        };
    };
    for field in ["creationTimestamp", "generation", "resourceVersion"] {
        put_back(&mut object["metadata"], &old["metadata"], field);
    }
    for field in ["uid", "namespace"] {
        if object["metadata"][field].as_str().unwrap_or_default().is_empty() {
            put_back(&mut object["metadata"], &old["metadata"], field);
        }
    }
    // Nobody takes a deletion back; one that is not under way is not begun here either.
    if old["metadata"].get("deletionTimestamp").is_some() {
        put_back(&mut object["metadata"], &old["metadata"], "deletionTimestamp");
    }
    if object["metadata"].get("deletionGracePeriodSeconds").is_none() {
        put_back(&mut object["metadata"], &old["metadata"], "deletionGracePeriodSeconds");
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
