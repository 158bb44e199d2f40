//! The scale subresource: an object's number of replicas as `autoscaling/v1` Scale.

use serde_json::{Value, json};

use super::{Call, Written, existing, update};
use crate::local::{
    objects::patch,
    status::{ApiError, Cause},
    store::Transaction,
    verbs::update::Patch,
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
        "spec": {"replicas": object.pointer(&paths.spec).cloned().unwrap_or_else(|| 0.into())},
        "status": {"replicas": object.pointer(&paths.status).cloned().unwrap_or_else(|| 0.into())},
    });
    if let Some(selector) = paths.selector.as_ref().and_then(|p| object.pointer(p)) {
        scale["status"]["selector"] = selector.clone();
    }
    scale
}

/// Writes the replicas of an object through its Scale.
pub fn write(
    transaction: &mut Transaction<'_>,
    call: &Call,
    name: &str,
    change: impl FnOnce(&Value) -> Result<Value, ApiError>,
) -> Result<Written, ApiError> {
    let stored = existing(transaction, call, name)?;
    let mut object = stored.value();
    let scale = change(&show(call, &object))?;
    let subject = call.kind.subject(name);
    let replicas = scale["spec"]["replicas"].as_i64().unwrap_or(0);
    if replicas < 0 {
        let cause = Cause {
            reason: "FieldValueInvalid",
            message: format!("Invalid value: {replicas}: must be greater than or equal to 0"),
            field: "spec.replicas".into(),
        };
        return Err(ApiError::invalid(&subject, &[cause]));
    }
    let version = scale["metadata"]["resourceVersion"].as_str().unwrap_or_default();
    if !version.is_empty() && version != stored.revision.to_string() {
        return Err(ApiError::stale(&subject));
    }
    if let Some(target) = call.kind.scale.as_ref().and_then(|paths| object.pointer_mut(&paths.spec)) {
        *target = replicas.into();
    }
    let written = update::finish(transaction, call, &stored, object, Vec::new(), true)?;
    Ok(Written { object: show(call, &written.object), ..written })
}

/// The Scale that a patch makes of the current one.
pub fn patched(current: &Value, change: &Patch) -> Result<Value, ApiError> {
    match change {
        Patch::Json(p) => patch::json_patch(current, p.clone()),
        Patch::Merge(p) | Patch::Strategic(p) => patch::merge_patch(current, p),
        Patch::Apply { object, .. } => patch::merge_patch(current, object),
    }
    .map_err(|error| ApiError::bad_request(error.to_string()))
}
