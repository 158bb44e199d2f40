//! `apiVersion`, `kind` and `metadata`: the same for every kind.

use std::sync::LazyLock;

use serde_json::{Value, json};

use super::names;
use crate::local::status::Cause;

/// Schema of `apiVersion`.
pub fn api_version_schema() -> Value {
    json!({"type": "string", "description": "APIVersion defines the versioned schema of this representation of an object."})
}

/// Schema of `kind`.
pub fn kind_schema() -> Value {
    json!({"type": "string", "description": "Kind is a string value representing the REST resource this object represents."})
}

/// Schema of `metadata`.
pub fn schema() -> Value {
    static SCHEMA: LazyLock<Value> = LazyLock::new(|| {
        let text = |description: &str| json!({"type": "string", "description": description});
        let texts = |description: &str| json!({"type": "object", "description": description, "additionalProperties": {"type": "string"}});
        let time = |description: &str| json!({"type": "string", "format": "date-time", "nullable": true, "description": description});
        json!({
            "type": "object",
            "description": "Standard object's metadata.",
            "properties": {
                "annotations": texts("Unstructured key-value map for tools to store and retrieve arbitrary metadata."),
                "creationTimestamp": time("When the object was created."),
                "deletionGracePeriodSeconds": {"type": "integer", "description": "Seconds between the request to delete and the deletion."},
                "deletionTimestamp": time("When the object was asked to be deleted."),
                "finalizers": {
                    "type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set",
                    "description": "Must be empty before the object is deleted from the registry."
                },
                "generateName": text("Prefix of a name that the server completes when name is not given."),
                "generation": {"type": "integer", "description": "A sequence number of the desired state."},
                "labels": texts("Map of string keys and values to organize and select objects."),
                "managedFields": {
                    "type": "array", "x-kubernetes-list-type": "atomic",
                    "items": {
                        "type": "object",
                        "properties": {
                            "apiVersion": text("API version of the fields."),
                            "fieldsType": text("Form of the fields: FieldsV1."),
                            "fieldsV1": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "description": "The fields."},
                            "manager": text("Who manages the fields."),
                            "operation": text("Apply or Update."),
                            "subresource": text("Through which subresource, if any."),
                            "time": time("When the manager last changed the set of fields.")
                        }
                    },
                    "description": "Which manager set which fields."
                },
                "name": text("Name, unique within a namespace."),
                "namespace": text("The space within which the name is unique."),
                "ownerReferences": {
                    "type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["uid"],
                    "description": "Objects that this object depends on.",
                    "items": {
                        "type": "object", "x-kubernetes-map-type": "atomic",
                        "properties": {
                            "apiVersion": text("API version of the owner."),
                            "blockOwnerDeletion": {"type": "boolean", "description": "Whether the owner waits for this object in a foreground deletion."},
                            "controller": {"type": "boolean", "description": "Whether the owner is the managing controller."},
                            "kind": text("Kind of the owner."),
                            "name": text("Name of the owner."),
                            "uid": text("UID of the owner.")
                        }
                    }
                },
                "resourceVersion": text("Opaque version of the object, for optimistic concurrency and watches."),
                "selfLink": text("Deprecated."),
                "uid": text("Unique in time and space.")
            }
        })
    });
    SCHEMA.clone()
}

/// All annotations of an object together, in bytes.
const ANNOTATIONS_LIMIT: usize = 256 * 1024;

/// Finalizers without a domain that built-in kinds take.
const STANDARD_FINALIZERS: [&str; 3] = ["orphan", "foregroundDeletion", "kubernetes"];

/// Everything that is wrong with an object's metadata. `label_name` asks for a DNS label as name,
/// as namespaces have it; `custom` says that the kind comes from a CustomResourceDefinition, whose
/// finalizers may be without a domain.
pub fn validate(object: &Value, label_name: bool, custom: bool) -> Vec<Cause> {
    let mut causes = Vec::new();
    let metadata = &object["metadata"];
    let text = |field: &str| metadata[field].as_str().unwrap_or_default();
    let name_problems = |name: &str| if label_name { names::label(name) } else { names::subdomain(name) };
    let mut invalid = |field: &str, value: &str, problems: Vec<String>| {
        causes.extend(problems.into_iter().map(|problem| Cause {
            reason: "FieldValueInvalid",
            message: format!("Invalid value: {}: {problem}", names::quoted(value)),
            field: format!("metadata.{field}"),
        }));
    };
    let prefix = text("generateName");
    if !prefix.is_empty() {
        // The server completes it, so it may end like the middle of a name.
        let masked = prefix.strip_suffix('-').filter(|p| !p.is_empty()).map(|p| {
            let mut p: Vec<char> = p.chars().collect();
            p.pop();
            p.into_iter().chain(['a']).collect::<String>()
        });
        invalid("generateName", prefix, name_problems(masked.as_deref().unwrap_or(prefix)));
    }
    if !text("name").is_empty() {
        invalid("name", text("name"), name_problems(text("name")));
    }
    for (key, value) in metadata["labels"].as_object().into_iter().flatten() {
        invalid("labels", key, names::label_key(key));
        let value = value.as_str().unwrap_or_default();
        invalid("labels", value, names::label_value(value));
    }
    let mut size = 0;
    for (key, value) in metadata["annotations"].as_object().into_iter().flatten() {
        invalid("annotations", key, names::label_key(&key.to_lowercase()));
        size += key.len() + value.as_str().map_or(0, str::len);
    }
    let finalizers: Vec<&str> =
        metadata["finalizers"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    for (index, finalizer) in finalizers.iter().enumerate() {
        invalid("finalizers", finalizer, names::label_key(finalizer));
        if !custom && !finalizer.contains('/') && !STANDARD_FINALIZERS.contains(finalizer) {
            let problem = "name is neither a standard finalizer name nor is it fully qualified";
            invalid(&format!("finalizers[{index}]"), finalizer, vec![problem.to_owned()]);
        }
    }
    if text("name").is_empty() {
        let message = "Required value: name or generateName is required".to_owned();
        causes.insert(0, Cause { reason: "FieldValueRequired", message, field: "metadata.name".into() });
    }
    if finalizers.contains(&"orphan") && finalizers.contains(&"foregroundDeletion") {
        causes.push(Cause {
            reason: "FieldValueInvalid",
            message: format!(
                "Invalid value: {}: finalizer orphan and foregroundDeletion cannot be both set",
                json!(finalizers)
            ),
            field: "metadata.finalizers".into(),
        });
    }
    if size > ANNOTATIONS_LIMIT {
        causes.push(Cause {
            reason: "FieldValueTooLong",
            message: format!("Too long: may not be more than {ANNOTATIONS_LIMIT} bytes"),
            field: "metadata.annotations".into(),
        });
    }
    causes.extend(owner_problems(&metadata["ownerReferences"]));
    causes
}

/// What is wrong with the owners of an object. Fields are named without an index, as in
/// Kubernetes.
fn owner_problems(owners: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    let mut invalid = |field: &str, message: String| {
        let field = format!("metadata.ownerReferences{field}");
        causes.push(Cause { reason: "FieldValueInvalid", message: format!("Invalid value: {message}"), field });
    };
    let mut controller: Option<String> = None;
    for owner in owners.as_array().into_iter().flatten() {
        let text = |field: &str| owner[field].as_str().unwrap_or_default();
        let version = text("apiVersion");
        if version.is_empty() || version.matches('/').count() > 1 || version.ends_with('/') {
            invalid(".apiVersion", format!("{}: version must not be empty", names::quoted(version)));
        }
        for field in ["kind", "name", "uid"] {
            if text(field).is_empty() {
                invalid(&format!(".{field}"), "\"\": must not be empty".to_owned());
            }
        }
        if version == "v1" && text("kind") == "Event" {
            invalid("", format!("{}: /v1, Kind=Event is disallowed from being an owner", shown_owner(owner)));
        }
        if owner["controller"] == true {
            let name = format!("{}/{}", text("kind"), text("name"));
            match &controller {
                Some(first) => {
                    let all: Vec<String> = owners.as_array().into_iter().flatten().map(shown_owner).collect();
                    invalid(
                        "",
                        format!(
                            "[{}]: Only one reference can have Controller set to true. Found \"true\" in references for {first} and {name}",
                            all.join(",")
                        ),
                    );
                }
                None => controller = Some(name),
            }
        }
    }
    causes
}

/// An owner with its members in the order of the type.
fn shown_owner(owner: &Value) -> String {
    let members = ["apiVersion", "kind", "name", "uid", "controller", "blockOwnerDeletion"];
    let members = members.iter().filter_map(|m| Some(format!("\"{m}\":{}", owner.get(*m)?)));
    format!("{{{}}}", members.collect::<Vec<_>>().join(","))
}

/// Warnings about finalizers that a custom resource newly gets.
pub fn finalizer_warnings(object: &Value, old: Option<&Value>) -> Vec<String> {
    let list = |object: &Value| -> Vec<String> {
        let list = object["metadata"]["finalizers"].as_array().into_iter().flatten();
        list.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let before = old.map(list).unwrap_or_default();
    let mut added: Vec<String> = list(object).into_iter().filter(|f| !before.contains(f)).collect();
    added.sort();
    added.dedup();
    let worth = |f: &String| !f.contains('/') && !STANDARD_FINALIZERS.contains(&f.as_str());
    added.retain(worth);
    let advice = |f: &String| {
        let path = if f.contains('.') { " including a path (/)" } else { "" };
        format!(
            "metadata.finalizers: {}: prefer a domain-qualified finalizer name{path} to avoid accidental conflicts with other finalizer writers",
            names::quoted(f)
        )
    };
    added.iter().map(advice).collect()
}

/// What an update may not change.
pub fn validate_update(object: &Value, old: &Value) -> Vec<Cause> {
    let (object, old) = (&object["metadata"], &old["metadata"]);
    let mut causes = Vec::new();
    if !old["deletionTimestamp"].is_null() {
        let list = |metadata: &Value| -> Vec<String> {
            let list = metadata["finalizers"].as_array().into_iter().flatten();
            list.filter_map(Value::as_str).map(str::to_owned).collect()
        };
        let before = list(old);
        let mut added: Vec<String> = list(object).into_iter().filter(|f| !before.contains(f)).collect();
        added.sort();
        if !added.is_empty() {
            let added: Vec<String> = added.iter().map(|f| names::quoted(f)).collect();
            causes.push(Cause {
                reason: "FieldValueForbidden",
                message: format!(
                    "Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                    added.join(", ")
                ),
                field: "metadata.finalizers".into(),
            });
        }
    }
    for field in ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        if object[field] != old[field] {
            causes.push(Cause {
                reason: "FieldValueInvalid",
                message: format!("Invalid value: {}: field is immutable", object[field]),
                field: format!("metadata.{field}"),
            });
        }
    }
    causes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(metadata: Value) -> Vec<String> {
        validate(&json!({"metadata": metadata}), false, false).into_iter().map(|c| c.field).collect()
    }

    #[test]
    fn names_and_labels_follow_kubernetes() {
        assert!(problems(json!({"name": "a.b-c", "labels": {"app.kubernetes.io/name": "x_1", "e": ""}})).is_empty());
        assert_eq!(problems(json!({"name": "Big"})), ["metadata.name"]);
        assert_eq!(
            problems(json!({"name": "a", "labels": {"-x": "y", "z": "no spaces"}})),
            ["metadata.labels", "metadata.labels"]
        );
        assert_eq!(problems(json!({"name": "a", "finalizers": ["mine"]})), ["metadata.finalizers[0]"]);
        assert_eq!(problems(json!({"name": "a", "annotations": {"x": "y".repeat(300_000)}})), ["metadata.annotations"]);
    }
}
