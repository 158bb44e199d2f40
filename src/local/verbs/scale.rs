//! The scale subresource: an object's number of replicas as `autoscaling/v1` Scale.

use std::sync::LazyLock;

use bytes::Bytes;
use serde_json::{Value, json};

use super::{Call, Written, existing, update, update::Patch};
use crate::local::{
    objects::{builtin, schema::Schema, typed, typed_patch},
    options::FieldValidation,
    registry::ScalePaths,
    status::{ApiError, Cause},
    store::Transaction,
};

/// The Scale of an object.
pub fn show(call: &Call, object: &Value) -> Value {
    let Some(paths) = &call.kind.scale else { return Value::Null };
    let metadata = &object["metadata"];
    let mut scale = json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "uid": metadata["uid"],
            "resourceVersion": metadata["resourceVersion"],
            "creationTimestamp": metadata["creationTimestamp"],
        },
        "spec": {},
        "status": {"replicas": object.pointer(&paths.status).cloned().unwrap_or_else(|| 0.into())},
    });
    if let Some(replicas) = object.pointer(&paths.spec).filter(|r| r.as_i64() != Some(0)) {
        scale["spec"]["replicas"] = replicas.clone();
    }
    if let Some(selector) = paths.selector.as_ref().and_then(|p| object.pointer(p)) {
        scale["status"]["selector"] = selector.clone();
    }
    scale
}

/// What is wrong with the numbers that the Scale of an object shows. A number with a fraction is no
/// count, not even `1.0`; so this looks at the object before its numbers are made whole.
pub(super) fn problems(paths: &ScalePaths, object: &Value, status_only: bool) -> Vec<Cause> {
    let mut causes = Vec::new();
    let places = if status_only { &[&paths.status][..] } else { &[&paths.spec, &paths.status] };
    for pointer in places {
        let path = pointer.replace('/', ".");
        let mut invalid = |value: i64, problem: &str| {
            let message = format!("Invalid value: {value}: {problem}");
            causes.push(Cause { reason: "FieldValueInvalid", message, field: path.clone() });
        };
        match lookup(object, pointer) {
            Ok(None) => {}
            Ok(Some(value)) => match value.as_i64() {
                Some(count) if count < 0 => invalid(count, "should be a non-negative integer"),
                Some(count) if count > i64::from(i32::MAX) => {
                    invalid(count, &format!("should be less than or equal to {}", i32::MAX));
                }
                Some(_) => {}
                None => invalid(0, &accessor_error(&path, value, "int64")),
            },
            Err(value) => invalid(0, &accessor_error(&path, value, "map[string]interface{}")),
        }
    }
    causes
}

/// The value at a pointer; an error when something on the way there is no object.
fn lookup<'a>(object: &'a Value, pointer: &str) -> Result<Option<&'a Value>, &'a Value> {
    let mut value = object;
    for part in pointer.split('/').skip(1) {
        let Value::Object(map) = value else { return Err(value) };
        let Some(next) = map.get(part).filter(|next| !next.is_null()) else { return Ok(None) };
        value = next;
    }
    Ok(Some(value))
}

fn accessor_error(path: &str, value: &Value, expected: &str) -> String {
    let type_ = match value {
        Value::String(_) => "string",
        Value::Bool(_) => "bool",
        Value::Number(_) => "float64",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
        Value::Null => "<nil>",
    };
    let shown = match value.as_f64() {
        // Beyond this, Go writes an exponent.
        Some(number) if number.abs() >= 1e21 => format!("{number:e}").replace('e', "e+"),
        Some(number) => number.to_string(),
        None => typed_patch::go(value),
    };
    format!("{path} accessor error: {shown} is of the type {type_}, expected {expected}")
}

/// What a client wants of a Scale.
pub enum Change {
    /// A PUT: the Scale, and the body that it was read from.
    Replace(Value, Bytes),
    /// A patch of the current one.
    Patch(Patch),
}

static SCHEMA: LazyLock<Schema> = LazyLock::new(|| builtin::schema("autoscaling", "Scale"));

/// Writes the replicas of an object through its Scale.
pub fn write(transaction: &mut Transaction<'_>, call: &Call, name: &str, change: Change) -> Result<Written, ApiError> {
    let stored = existing(transaction, call, name)?;
    let mut object = stored.value();
    let (mut scale, text) = match change {
        Change::Replace(scale, body) => (scale, Err(body)),
        Change::Patch(Patch::Apply { .. }) => {
            // So says the real one too: it cannot read the fields of the object as those of a Scale.
            return Err(ApiError::unexpected(
                "failed to create manager for existing fields: failed to convert live object (/; autoscaling/v1, Kind=Scale) to proper version: request to convert CR to an invalid group/version: autoscaling/v1",
            ));
        }
        Change::Patch(patch) => {
            let (scale, _, _) = update::patched(&show(call, &object), patch)?;
            let text = scale.to_string();
            (scale, Ok(text))
        }
    };
    let text_of = |key: &str| scale[key].as_str().unwrap_or_default().to_owned();
    if text_of("kind") != "Scale" || text_of("apiVersion") != "autoscaling/v1" {
        return Err(ApiError::bad_request(
            "no kind is registered for the type v1.Scale in scheme \"pkg/runtime/scheme.go:111\"",
        ));
    }
    if let Some(why) = typed::mismatch(SCHEMA.root(), &scale, "Scale") {
        return Err(match &text {
            Ok(text) => ApiError::invalid_patch(text, &why),
            Err(_) => ApiError::bad_request(format!("Scale in version \"v1\" cannot be handled as a Scale: {why}")),
        });
    }
    let unknown = SCHEMA.prune(&mut scale);
    let problems: Vec<String> = unknown.iter().map(|path| format!("unknown field {path:?}")).collect();
    let warnings = match call.field_validation {
        FieldValidation::Warn => problems,
        FieldValidation::Strict if !problems.is_empty() => {
            let why = format!("strict decoding error: {}", problems.join(", "));
            return Err(match &text {
                Ok(text) => ApiError::invalid_patch(text, &why),
                Err(_) => ApiError::bad_request(format!("Scale in version \"v1\" cannot be handled as a Scale: {why}")),
            });
        }
        _ => Vec::new(),
    };
    update::check_name(call, &scale, name)?;
    let version = scale["metadata"]["resourceVersion"].as_str().unwrap_or_default();
    if update::parse_version(version)?.is_some_and(|version| version != stored.revision) {
        return Err(ApiError::stale(&call.kind.subject(name)));
    }
    let replicas = scale["spec"]["replicas"].as_i64().unwrap_or(0);
    if let Some(target) = call.kind.scale.as_ref().and_then(|paths| object.pointer_mut(&paths.spec)) {
        *target = replicas.into();
    }
    let written = update::finish(transaction, call, &stored, object, warnings, true)?;
    Ok(Written { object: show(call, &written.object), ..written })
}
