//! OpenAPI v3: what `kubectl explain` shows, and how kubectl finds out which options the server
//! knows.

use http::{Response, StatusCode};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::{
    api::json_response,
    objects::builtin,
    registry::{Kind, Registry},
    service::Body,
    status::ApiError,
};

/// `/openapi/v3`: one document for each group and version.
pub fn index(registry: &Registry) -> Response<Body> {
    let mut paths = Map::new();
    for kind in registry.kinds() {
        let path = base(kind);
        if !paths.contains_key(&path) {
            let hash = build(registry, &kind.group, &kind.version)
                .map(|document| format!("{:X}", Sha256::digest(document.to_string())))
                .unwrap_or_default();
            let url = format!("/openapi/v3/{path}?hash={hash}");
            paths.insert(path, json!({"serverRelativeURL": url}));
        }
    }
    json_response(StatusCode::OK, &json!({"paths": paths}))
}

/// `/openapi/v3/apis/{group}/{version}`
pub fn document(registry: &Registry, group: &str, version: &str) -> Result<Response<Body>, ApiError> {
    let document = build(registry, group, version).ok_or_else(ApiError::no_such_path)?;
    Ok(json_response(StatusCode::OK, &document))
}

fn base(kind: &Kind) -> String {
    if kind.group.is_empty() {
        format!("api/{}", kind.version)
    } else {
        format!("apis/{}/{}", kind.group, kind.version)
    }
}

fn build(registry: &Registry, group: &str, version: &str) -> Option<Value> {
    let mut paths = Map::new();
    let mut schemas = Map::new();
    for kind in registry.kinds().filter(|k| k.group == group && k.version == version) {
        let name = schema_name(kind);
        let (known, parts) = builtin::document(&kind.group, &kind.kind).unwrap_or_default();
        schemas.extend(parts);
        let mut schema = if known.is_null() { kind.schema.openapi().clone() } else { known };
        if kind.custom {
            tell_both_types(&mut schema);
            // What every object has is told in the same words.
            let (shared, parts) = builtin::document("", "ConfigMap").unwrap_or_default();
            schemas.extend(parts);
            for member in ["apiVersion", "kind", "metadata"] {
                schema["properties"][member] = shared["properties"][member].clone();
            }
        }
        schema["x-kubernetes-group-version-kind"] = json!([gvk(kind)]);
        schemas.insert(name.clone(), schema);
        let reference = format!("#/components/schemas/{name}");
        schemas.insert(format!("{name}List"), json!({
            "type": "object",
            "description": format!("{}List is a list of {}", kind.kind, kind.kind),
            "properties": {"items": {"type": "array", "items": {"$ref": reference}}},
            "x-kubernetes-group-version-kind": [{"group": kind.group, "version": kind.version, "kind": format!("{}List", kind.kind)}],
        }));
        let scope = if kind.namespaced { "namespaces/{namespace}/" } else { "" };
        let collection = format!("/{}/{scope}{}", base(kind), kind.plural);
        let mut on_collection = Map::new();
        on_collection.insert("get".into(), operation(kind, "list", &reference, &[]));
        let mut on_object = Map::new();
        on_object.insert("get".into(), operation(kind, "get", &reference, &[]));
        if kind.writable {
            let write = ["dryRun", "fieldManager", "fieldValidation"];
            on_collection.insert("post".into(), operation(kind, "post", &reference, &write));
            on_collection.insert("delete".into(), operation(kind, "deletecollection", &reference, &["dryRun"]));
            on_object.insert("put".into(), operation(kind, "put", &reference, &write));
            on_object.insert("patch".into(), operation(kind, "patch", &reference, &[&write[..], &["force"]].concat()));
            on_object.insert("delete".into(), operation(kind, "delete", &reference, &["dryRun", "propagationPolicy"]));
        }
        paths.insert(format!("{collection}/{{name}}"), on_object.into());
        paths.insert(collection, on_collection.into());
    }
    if schemas.is_empty() {
        return None;
    }
    Some(json!({
        "openapi": "3.0.0",
        "info": {"title": "Perch", "version": concat!("v", env!("CARGO_PKG_VERSION"))},
        "paths": paths,
        "components": {"schemas": schemas},
    }))
}

/// A value that is an integer or a string is so also to those who do not know the extension.
fn tell_both_types(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            if map.get("x-kubernetes-int-or-string").is_some_and(|flag| flag == true) && !map.contains_key("anyOf") {
                map.insert("anyOf".into(), json!([{"type": "integer"}, {"type": "string"}]));
            }
            map.values_mut().for_each(tell_both_types);
        }
        Value::Array(items) => items.iter_mut().for_each(tell_both_types),
        _ => {}
    }
}

/// `dev.perch.v1alpha1.McpServer`
fn schema_name(kind: &Kind) -> String {
    let group = if kind.group.is_empty() {
        "io.k8s.api.core".to_owned()
    } else {
        kind.group.rsplit('.').collect::<Vec<_>>().join(".")
    };
    format!("{group}.{}.{}", kind.version, kind.kind)
}

fn gvk(kind: &Kind) -> Value {
    json!({"group": kind.group, "version": kind.version, "kind": kind.kind})
}

fn operation(kind: &Kind, action: &str, reference: &str, parameters: &[&str]) -> Value {
    let parameters: Vec<Value> = parameters
        .iter()
        .map(|name| {
            let type_ = if *name == "force" { "boolean" } else { "string" };
            json!({"name": name, "in": "query", "schema": {"type": type_, "uniqueItems": true}})
        })
        .collect();
    let answer = json!({"description": "OK", "content": {"application/json": {"schema": {"$ref": reference}}}});
    let mut operation = json!({
        "operationId": format!("{action}{}{}", kind.version, kind.kind),
        "responses": {"200": answer},
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": gvk(kind),
    });
    if !parameters.is_empty() {
        operation["parameters"] = parameters.into();
    }
    operation
}
