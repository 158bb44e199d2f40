//! What is served: `/version`, `/api`, `/apis` and what lies below, in the old form and in the
//! aggregated one that kubectl prefers.

use std::collections::BTreeMap;

use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};

use super::{
    api::json_response,
    registry::{Kind, Registry},
    service::Body,
    status::ApiError,
};

/// `/version`. The API is that of the Kubernetes release named here.
pub fn version() -> Value {
    json!({
        "major": "1", "minor": "33", "gitVersion": concat!("v1.33.0+perch-", env!("CARGO_PKG_VERSION")),
        "gitCommit": "", "gitTreeState": "clean", "buildDate": "", "goVersion": "", "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH),
    })
}

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

fn wants_aggregated(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
    accept.split(',').any(|choice| {
        let choice = choice.trim();
        choice.contains("as=APIGroupDiscoveryList") && choice.contains("v=v2") && !choice.contains("v2beta")
    })
}

/// `/api`
pub fn core_versions(registry: &Registry, headers: &HeaderMap) -> Response<Body> {
    if wants_aggregated(headers) {
        return aggregated(registry, str::is_empty);
    }
    json_response(
        StatusCode::OK,
        &json!({
            "kind": "APIVersions", "versions": ["v1"],
            "serverAddressByClientCIDRs": [],
        }),
    )
}

/// `/apis`
pub fn groups(registry: &Registry, headers: &HeaderMap) -> Response<Body> {
    if wants_aggregated(headers) {
        return aggregated(registry, |group| !group.is_empty());
    }
    let groups: Vec<Value> =
        versions(registry).into_iter().filter(|(g, _)| !g.is_empty()).map(|(g, v)| group_object(g, &v)).collect();
    json_response(StatusCode::OK, &json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}))
}

/// `/apis/{group}`
pub fn group(registry: &Registry, name: &str) -> Result<Response<Body>, ApiError> {
    let versions = versions(registry).remove(name).ok_or_else(ApiError::no_such_path)?;
    let mut group = group_object(name, &versions);
    group["kind"] = "APIGroup".into();
    group["apiVersion"] = "v1".into();
    Ok(json_response(StatusCode::OK, &group))
}

fn versions(registry: &Registry) -> BTreeMap<&str, Vec<&str>> {
    let mut groups: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for kind in registry.kinds() {
        let versions = groups.entry(&kind.group).or_default();
        if !versions.contains(&kind.version.as_str()) {
            versions.push(&kind.version);
        }
    }
    groups
}

fn group_object(name: &str, versions: &[&str]) -> Value {
    let versions: Vec<Value> =
        versions.iter().map(|v| json!({"groupVersion": format!("{name}/{v}"), "version": v})).collect();
    json!({"name": name, "versions": versions, "preferredVersion": versions[0]})
}

fn verbs(kind: &Kind) -> Vec<&'static str> {
    if kind.is_namespace() {
        vec!["create", "delete", "get", "list", "patch", "update", "watch"]
    } else if kind.writable {
        vec!["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
    } else {
        vec!["get", "list", "watch"]
    }
}

/// `/api/v1`, `/apis/{group}/{version}`
pub fn resources(registry: &Registry, group: &str, version: &str) -> Result<Response<Body>, ApiError> {
    let mut resources = Vec::new();
    for kind in registry.kinds().filter(|k| k.group == group && k.version == version) {
        resources.push(json!({
            "name": kind.plural, "singularName": kind.singular, "namespaced": kind.namespaced, "kind": kind.kind,
            "verbs": verbs(kind), "shortNames": kind.short_names, "categories": kind.categories,
        }));
        for (name, group, version, sub_kind) in subresources(kind) {
            resources.push(json!({
                "name": format!("{}/{name}", kind.plural), "singularName": "", "namespaced": kind.namespaced,
                "kind": sub_kind, "group": group, "version": version, "verbs": ["get", "patch", "update"],
            }));
        }
    }
    if resources.is_empty() {
        return Err(ApiError::no_such_path());
    }
    let group_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    Ok(json_response(
        StatusCode::OK,
        &json!({
            "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources,
        }),
    ))
}

/// Name, group, version and kind of each subresource.
fn subresources(kind: &Kind) -> Vec<(&'static str, String, String, String)> {
    let mut all = Vec::new();
    if kind.status || kind.is_namespace() {
        all.push(("status", kind.group.clone(), kind.version.clone(), kind.kind.clone()));
    }
    if kind.scale.is_some() {
        all.push(("scale", "autoscaling".into(), "v1".into(), "Scale".into()));
    }
    all
}

fn aggregated(registry: &Registry, wanted: impl Fn(&str) -> bool) -> Response<Body> {
    let items: Vec<Value> = versions(registry)
        .into_iter()
        .filter(|(group, _)| wanted(group))
        .map(|(group, versions)| {
            let versions: Vec<Value> = versions
                .into_iter()
                .map(|version| {
                    let kinds = registry.kinds().filter(|k| k.group == group && k.version == version);
                    let resources: Vec<Value> = kinds.map(|kind| aggregated_resource(kind)).collect();
                    json!({"version": version, "freshness": "Current", "resources": resources})
                })
                .collect();
            json!({"metadata": {"name": if group.is_empty() { Value::Null } else { group.into() }}, "versions": versions})
        })
        .collect();
    let list = json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items});
    let mut response = json_response(StatusCode::OK, &list);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(AGGREGATED));
    response
}

fn aggregated_resource(kind: &Kind) -> Value {
    let kind_of = |group: &str, version: &str, kind: &str| json!({"group": group, "version": version, "kind": kind});
    let subresources: Vec<Value> = subresources(kind)
        .into_iter()
        .map(|(name, group, version, sub_kind)| {
            json!({"subresource": name, "responseKind": kind_of(&group, &version, &sub_kind), "verbs": ["get", "patch", "update"]})
        })
        .collect();
    json!({
        "resource": kind.plural,
        "responseKind": kind_of(&kind.group, &kind.version, &kind.kind),
        "scope": if kind.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": kind.singular,
        "verbs": verbs(kind),
        "shortNames": kind.short_names,
        "categories": kind.categories,
        "subresources": subresources,
    })
}
