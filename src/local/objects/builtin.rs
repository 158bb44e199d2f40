//! Schemas of the kinds that every cluster has, from the types of `k8s-openapi`.

use k8s_openapi::api::{
    apps::v1::ControllerRevision,
    autoscaling::v1::Scale,
    coordination::v1::Lease,
    core::v1::{ConfigMap, Event, Namespace, Secret},
    events::v1::Event as NewEvent,
};
use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use super::schema::Schema;

/// The schema of a built-in kind. A kind that is not known here takes anything.
///
/// # Panics
/// Never: the schemas are constants that compile, as the tests show for each.
pub fn schema(group: &str, kind: &str) -> Schema {
    let mut openapi = match (group, kind) {
        ("", "Namespace") => openapi_of::<Namespace>(),
        ("", "Secret") => openapi_of::<Secret>(),
        ("", "ConfigMap") => openapi_of::<ConfigMap>(),
        ("", "Event") => openapi_of::<Event>(),
        ("events.k8s.io", "Event") => openapi_of::<NewEvent>(),
        ("coordination.k8s.io", "Lease") => openapi_of::<Lease>(),
        ("apps", "ControllerRevision") => openapi_of::<ControllerRevision>(),
        ("autoscaling", "Scale") => openapi_of::<Scale>(),
        _ => json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}),
    };
    for reference in ["involvedObject", "regarding", "related"] {
        if kind == "Event" && openapi["properties"].get(reference).is_some() {
            openapi["properties"][reference]["x-kubernetes-map-type"] = "atomic".into();
        }
    }
    if kind == "ControllerRevision" {
        openapi["properties"]["data"]["x-kubernetes-preserve-unknown-fields"] = true.into();
    }
    Schema::compile(&openapi).expect("schemas of built-in kinds compile")
}

/// The OpenAPI schema of a type of Kubernetes.
///
/// # Panics
/// Never: the schema of a struct is an object.
pub fn openapi_of<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::openapi3().with(|s| {
        s.inline_subschemas = true;
        s.meta_schema = None;
    });
    let mut schema = settings.into_generator().into_root_schema_for::<T>().to_value();
    let root = schema.as_object_mut().expect("the schema of a struct is an object");
    root.remove("title");
    root.remove("components");
    drop_absent_numbers(&mut schema);
    schema
}

/// The OpenAPI schemas of a built-in kind as a document shows them: its own, and those that it
/// refers to, by name. None for a kind that is not known here.
pub fn document(group: &str, kind: &str) -> Option<(Value, Map<String, Value>)> {
    Some(match (group, kind) {
        ("", "Namespace") => parts_of::<Namespace>(),
        ("", "Secret") => parts_of::<Secret>(),
        ("", "ConfigMap") => parts_of::<ConfigMap>(),
        ("", "Event") => parts_of::<Event>(),
        ("events.k8s.io", "Event") => parts_of::<NewEvent>(),
        ("coordination.k8s.io", "Lease") => parts_of::<Lease>(),
        ("apps", "ControllerRevision") => parts_of::<ControllerRevision>(),
        _ => return None,
    })
}

fn parts_of<T: JsonSchema>() -> (Value, Map<String, Value>) {
    let settings = SchemaSettings::openapi3().with(|s| s.meta_schema = None);
    let mut schema = settings.into_generator().into_root_schema_for::<T>().to_value();
    drop_absent_numbers(&mut schema);
    refer(&mut schema);
    let parts = schema["components"]["schemas"].take();
    if let Some(root) = schema.as_object_mut() {
        root.remove("title");
        root.remove("components");
        // Rust's types need it, the API does not.
        if let Some(Value::Array(required)) = root.get_mut("required") {
            required.retain(|member| member != "metadata");
        }
    }
    let Value::Object(parts) = parts else { return (schema, Map::new()) };
    (schema, parts)
}

/// A reference stands alone: what is said beside it goes around it.
fn refer(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            map.remove("nullable");
            if map.len() > 1
                && let Some(reference) = map.remove("$ref")
            {
                map.insert("allOf".into(), json!([{"$ref": reference}]));
            }
            map.values_mut().for_each(refer);
        }
        Value::Array(items) => items.iter_mut().for_each(refer),
        _ => {}
    }
}

/// Number formats (`int32`) and wide types (`["string", "null"]`) are narrowed to the plain form
/// that clients of the API expect.
fn drop_absent_numbers(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            if let Some(Value::Array(types)) = map.get("type").cloned() {
                if let Some(first) = types.iter().find(|t| *t != "null") {
                    map.insert("type".into(), first.clone());
                }
                map.insert("nullable".into(), true.into());
            }
            map.values_mut().for_each(drop_absent_numbers);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_absent_numbers),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_checked_like_any_object() {
        let secret = schema("", "Secret");
        let mut good = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "x"}, "data": {"a": "Yg=="}, "type": "Opaque"});
        assert!(secret.prune(&mut good).is_empty());
        assert_eq!(secret.validate(&good), vec![]);
        let mut bad = json!({"metadata": {"name": "x"}, "data": {"a": 1}, "datum": {}});
        assert_eq!(secret.prune(&mut bad), ["datum"]);
        assert_eq!(secret.validate(&bad).len(), 1);
    }

    #[test]
    fn every_built_in_schema_compiles() {
        for (group, kind) in [
            ("", "Namespace"),
            ("", "ConfigMap"),
            ("", "Event"),
            ("events.k8s.io", "Event"),
            ("coordination.k8s.io", "Lease"),
            ("apps", "ControllerRevision"),
            ("apiextensions.k8s.io", "CustomResourceDefinition"),
        ] {
            let _ = schema(group, kind);
        }
    }

    #[test]
    fn the_data_of_a_revision_is_kept_whole() {
        let revision = schema("apps", "ControllerRevision");
        let mut object = json!({"metadata": {"name": "x"}, "data": {"image": "y", "deep": {"er": [1]}}, "revision": 1});
        assert!(revision.prune(&mut object).is_empty());
        assert_eq!(object["data"]["deep"]["er"][0], 1);
    }
}
