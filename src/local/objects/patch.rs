//! The patches that clients send: RFC 6902, RFC 7386, and Kubernetes' strategic merge.

use json_patch::{AddOperation, PatchOperation};
use serde_json::{Map, Value};

use super::typed_patch;
use crate::local::decode;

/// A patch that cannot be applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// The patch is not of the form that its media type says.
    #[error("{0}")]
    Malformed(String),
    /// The patch is well formed, but does not fit the object.
    #[error("the patch does not fit the object")]
    DoesNotApply,
    /// The patch has a directive that is none.
    #[error("{0}")]
    Unexpected(String),
}

/// Applies an RFC 6902 patch. As in Kubernetes, a test for null passes where there is nothing, for
/// clients ask so for "not set", and a replacement of a member that is not there adds it.
pub fn json_patch(object: &Value, patch: Value) -> Result<Value, PatchError> {
    let Value::Array(operations) = &patch else {
        return Err(PatchError::Malformed(format!(
            "error decoding patch: json: cannot unmarshal {} into Go value of type []handlers.jsonPatchOp",
            decode::type_of(&patch)
        )));
    };
    if let Some(other) = operations.iter().find(|o| !o.is_object()) {
        return Err(PatchError::Malformed(format!(
            "error decoding patch: json: cannot unmarshal {} into Go value of type handlers.jsonPatchOp",
            decode::type_of(other)
        )));
    }
    let patch: json_patch::Patch = serde_json::from_value(patch).map_err(|_| PatchError::DoesNotApply)?;
    let mut patched = object.clone();
    for operation in patch.0 {
        let operation = match operation {
            PatchOperation::Test(test) if test.value.is_null() && patched.pointer(test.path.as_str()).is_none() => {
                continue;
            }
            PatchOperation::Replace(replace)
                if patched.pointer(replace.path.as_str()).is_none()
                    && replace
                        .path
                        .as_str()
                        .rsplit_once('/')
                        .is_some_and(|(parent, _)| patched.pointer(parent).is_some_and(Value::is_object)) =>
            {
                PatchOperation::Add(AddOperation { path: replace.path, value: replace.value })
            }
            other => other,
        };
        json_patch::patch(&mut patched, &[operation]).map_err(|_| PatchError::DoesNotApply)?;
    }
    Ok(patched)
}

/// Members of the operations of an RFC 6902 patch that it does not know.
pub fn unknown_members(patch: &Value) -> Vec<String> {
    let mut unknown = Vec::new();
    for (index, operation) in patch.as_array().into_iter().flatten().enumerate() {
        for name in operation.as_object().into_iter().flat_map(Map::keys) {
            if !["op", "path", "from", "value"].contains(&name.as_str()) {
                unknown.push(format!("json patch unknown field \"[{index}].{name}\""));
            }
        }
    }
    unknown
}

/// Applies an RFC 7386 patch.
pub fn merge_patch(object: &Value, patch: &Value) -> Result<Value, PatchError> {
    if !patch.is_object() {
        let why = decode::cannot_unmarshal(decode::type_of(patch), "map[string]interface {}");
        return Err(PatchError::Malformed(format!("error decoding patch: {why}")));
    }
    let mut patched = object.clone();
    json_patch::merge(&mut patched, patch);
    Ok(patched)
}

/// Lists that a strategic merge merges by key, by the name of their field. Others are replaced.
const MERGE_KEYS: &[(&str, &str)] = &[("ownerReferences", "uid")];
/// Lists of scalars that a strategic merge adds to.
const MERGED_SCALARS: &[&str] = &["finalizers"];

/// Applies a strategic merge patch, for built-in kinds.
pub fn strategic_merge(object: &Value, patch: &Value) -> Result<Value, PatchError> {
    let Value::Object(patch) = patch else {
        let given = decode::type_of(patch);
        return Err(PatchError::Malformed(decode::cannot_unmarshal(given, "map[string]interface {}")));
    };
    let mut patched = object.clone();
    merge_objects(&mut patched, patch)?;
    Ok(patched)
}

fn merge_objects(target: &mut Value, patch: &Map<String, Value>) -> Result<(), PatchError> {
    match patch.get("$patch").and_then(Value::as_str) {
        Some("replace") => {
            *target = Value::Object(
                patch.iter().filter(|(k, _)| *k != "$patch").map(|(k, v)| (k.clone(), v.clone())).collect(),
            );
            return Ok(());
        }
        Some("delete") => {
            *target = Value::Object(Map::new());
            return Ok(());
        }
        Some("merge") | None => {}
        Some(other) => {
            let map = typed_patch::go(&Value::Object(patch.clone()));
            return Err(PatchError::Unexpected(format!("unknown patch type: {other} in map: {map}")));
        }
    }
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let target = target.as_object_mut().expect("made an object above");
    if let Some(Value::Array(retained)) = patch.get("$retainKeys") {
        target.retain(|key, _| retained.iter().any(|r| r == key));
    }
    for (key, value) in patch {
        if let Some(list) = key.strip_prefix("$deleteFromPrimitiveList/") {
            if let (Some(Value::Array(current)), Value::Array(gone)) = (target.get_mut(list), value) {
                current.retain(|item| !gone.contains(item));
            }
        } else if key.starts_with('$') {
            // The other directives order lists or were read above.
        } else if value.is_null() {
            target.remove(key);
        } else {
            merge_member(target, key, value)?;
        }
    }
    Ok(())
}

fn merge_member(target: &mut Map<String, Value>, key: &str, value: &Value) -> Result<(), PatchError> {
    match value {
        Value::Object(patch) => merge_objects(target.entry(key).or_insert(Value::Null), patch),
        Value::Array(patch) => {
            let merge_key = MERGE_KEYS.iter().find(|(field, _)| *field == key).map(|(_, merge_key)| *merge_key);
            if let Some(merge_key) = merge_key {
                let current = target.entry(key).or_insert_with(|| Value::Array(Vec::new()));
                merge_lists(current, patch, merge_key)
            } else if MERGED_SCALARS.contains(&key) {
                let current = target.entry(key).or_insert_with(|| Value::Array(Vec::new()));
                if let Value::Array(current) = current {
                    // What the patch gives comes first.
                    let rest: Vec<Value> = current.iter().filter(|item| !patch.contains(item)).cloned().collect();
                    *current = patch.iter().cloned().chain(rest).collect();
                }
                Ok(())
            } else {
                target.insert(key.to_owned(), value.clone());
                Ok(())
            }
        }
        _ => {
            target.insert(key.to_owned(), value.clone());
            Ok(())
        }
    }
}

fn merge_lists(current: &mut Value, patch: &[Value], merge_key: &str) -> Result<(), PatchError> {
    let Value::Array(current) = current else {
        *current = Value::Array(patch.to_vec());
        return Ok(());
    };
    if patch.iter().any(|item| item["$patch"] == "replace") {
        *current = patch.iter().filter(|item| item["$patch"] != "replace").cloned().collect();
        return Ok(());
    }
    for item in patch {
        let Some(identity) = item.get(merge_key) else {
            current.push(item.clone());
            continue;
        };
        let position = current.iter().position(|c| c.get(merge_key) == Some(identity));
        match (position, item["$patch"] == "delete") {
            (Some(position), true) => {
                current.remove(position);
            }
            (None, true) => {}
            (Some(position), false) => {
                if let Value::Object(patch) = item {
                    merge_objects(&mut current[position], patch)?;
                }
            }
            (None, false) => current.push(item.clone()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn merge_patches_follow_rfc_7386() {
        let patched = merge_patch(&json!({"a": "b", "c": {"d": "e", "f": "g"}}), &json!({"a": "z", "c": {"f": null}}));
        assert_eq!(patched, Ok(json!({"a": "z", "c": {"d": "e"}})));
        assert!(matches!(merge_patch(&json!({}), &json!([1])), Err(PatchError::Malformed(_))));
    }

    #[test]
    fn json_patches_apply_or_say_why_not() {
        let object = json!({"spec": {"replicas": 1}});
        let patched = json_patch(&object, json!([{"op": "replace", "path": "/spec/replicas", "value": 2}]));
        assert_eq!(patched, Ok(json!({"spec": {"replicas": 2}})));
        let failed = json_patch(&object, json!([{"op": "test", "path": "/spec/replicas", "value": 7}]));
        assert!(matches!(failed, Err(PatchError::DoesNotApply)));
        assert!(matches!(json_patch(&object, json!({"op": "add"})), Err(PatchError::Malformed(_))));
        let unset = json!([{"op": "test", "path": "/metadata/finalizers", "value": null}, {"op": "add", "path": "/metadata", "value": {}}]);
        assert!(json_patch(&object, unset).is_ok());
    }

    #[test]
    fn strategic_merge_knows_the_lists_of_metadata() {
        let object = json!({"metadata": {"finalizers": ["a/b"], "labels": {"x": "1", "y": "2"}}, "data": {"k": "v"}});
        let patch = json!({"metadata": {"finalizers": ["c/d"], "$deleteFromPrimitiveList/finalizers": ["a/b"], "labels": {"x": null}}});
        let patched = strategic_merge(&object, &patch).unwrap();
        assert_eq!(patched["metadata"]["labels"], json!({"y": "2"}));
        let finalizers = patched["metadata"]["finalizers"].as_array().unwrap();
        assert!(finalizers.contains(&json!("c/d")) && !finalizers.contains(&json!("a/b")), "{finalizers:?}");
        assert_eq!(patched["data"], json!({"k": "v"}));
    }
}
