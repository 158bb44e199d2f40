//! `apiVersion`, `kind` and `metadata`: the same for every kind.

use std::sync::LazyLock;

use regex::Regex;
use serde_json::{Value, json};

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
                        "required": ["apiVersion", "kind", "name", "uid"],
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

static DNS_SUBDOMAIN: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"));
static DNS_LABEL: LazyLock<Regex> = LazyLock::new(|| pattern("^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"));
static QUALIFIED: LazyLock<Regex> = LazyLock::new(|| pattern("^([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]$"));

fn pattern(pattern: &str) -> Regex {
    Regex::new(pattern).expect("the pattern is a constant that compiles")
}

const SUBDOMAIN_MESSAGE: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL_MESSAGE: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const VALUE_MESSAGE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const KEY_MESSAGE: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";

/// All annotations of an object together, in bytes.
const ANNOTATIONS_LIMIT: usize = 256 * 1024;

/// Everything that is wrong with an object's metadata. `label_name` asks for a DNS label as name,
/// as namespaces have it.
pub fn validate(object: &Value, label_name: bool) -> Vec<Cause> {
    let mut causes = Vec::new();
    let metadata = &object["metadata"];
    let mut invalid = |field: &str, value: &str, message: &str| {
        causes.push(Cause {
            reason: "FieldValueInvalid",
            message: format!("Invalid value: {value:?}: {message}"),
            field: format!("metadata.{field}"),
        });
    };
    if let Some(name) = metadata["name"].as_str() {
        let (limit, regex, message) =
            if label_name { (63, &DNS_LABEL, LABEL_MESSAGE) } else { (253, &DNS_SUBDOMAIN, SUBDOMAIN_MESSAGE) };
        if name.len() > limit {
            invalid("name", name, &format!("must be no more than {limit} bytes"));
        }
        if !regex.is_match(name) {
            invalid("name", name, message);
        }
    }
    for (key, value) in metadata["labels"].as_object().into_iter().flatten() {
        check_key("labels", key, &mut invalid);
        let value = value.as_str().unwrap_or_default();
        if value.len() > 63 {
            invalid("labels", value, "must be no more than 63 bytes");
        }
        if !value.is_empty() && !QUALIFIED.is_match(value) {
            invalid("labels", value, VALUE_MESSAGE);
        }
    }
    let mut size = 0;
    for (key, value) in metadata["annotations"].as_object().into_iter().flatten() {
        check_key("annotations", &key.to_lowercase(), &mut invalid);
        size += key.len() + value.as_str().map_or(0, str::len);
    }
    for (index, finalizer) in metadata["finalizers"].as_array().into_iter().flatten().enumerate() {
        let finalizer = finalizer.as_str().unwrap_or_default();
        if !finalizer.contains('/') && !["orphan", "foregroundDeletion", "kubernetes"].contains(&finalizer) {
            let message = "name is neither a standard finalizer name nor is it fully qualified";
            invalid(&format!("finalizers[{index}]"), finalizer, message);
        }
    }
    if size > ANNOTATIONS_LIMIT {
        causes.push(Cause {
            reason: "FieldValueTooLong",
            message: format!("Too long: may not be more than {ANNOTATIONS_LIMIT} bytes"),
            field: "metadata.annotations".into(),
        });
    }
    causes
}

fn check_key(field: &str, key: &str, invalid: &mut impl FnMut(&str, &str, &str)) {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    if prefix.is_some_and(|p| p.is_empty() || p.len() > 253 || !DNS_SUBDOMAIN.is_match(p)) {
        invalid(field, key, &format!("prefix part {SUBDOMAIN_MESSAGE}"));
    }
    if name.is_empty() || name.len() > 63 || !QUALIFIED.is_match(name) {
        invalid(field, key, KEY_MESSAGE);
    }
}

/// What an update may not change.
pub fn validate_update(object: &Value, old: &Value) -> Vec<Cause> {
    ["name", "namespace", "uid"]
        .into_iter()
        .filter(|field| object["metadata"][field] != old["metadata"][field])
        .map(|field| Cause {
            reason: "FieldValueInvalid",
            message: format!("Invalid value: {}: field is immutable", object["metadata"][field]),
            field: format!("metadata.{field}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(metadata: Value) -> Vec<String> {
        validate(&json!({"metadata": metadata}), false).into_iter().map(|c| c.field).collect()
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
