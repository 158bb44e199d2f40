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
    let versions = versions(registry).remove(name).ok_or_else(ApiError::no_handler)?;
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
        let mut resource = json!({
            "name": kind.plural, "singularName": kind.singular, "namespaced": kind.namespaced, "kind": kind.kind,
            "verbs": verbs(kind),
        });
        add_names(kind, &mut resource);
        resources.push(resource);
        for sub in subresources(kind) {
            let mut resource = json!({
                "name": format!("{}/{}", kind.plural, sub.name), "singularName": "", "namespaced": kind.namespaced,
                "kind": sub.kind, "verbs": sub.verbs,
            });
            // Told only where it is not that of the document.
            if sub.group != kind.group {
                resource["group"] = sub.group.into();
                resource["version"] = sub.version.into();
            }
            resources.push(resource);
        }
    }
    if resources.is_empty() {
        return Err(if group.is_empty() { ApiError::no_such_path() } else { ApiError::no_handler() });
    }
    let mut list = json!({"kind": "APIResourceList", "resources": resources});
    if group.is_empty() {
        list["groupVersion"] = version.into();
    } else {
        list["apiVersion"] = "v1".into();
        list["groupVersion"] = format!("{group}/{version}").into();
    }
    Ok(json_response(StatusCode::OK, &list))
}

/// Short names and categories, where there are any.
fn add_names(kind: &Kind, resource: &mut Value) {
    for (key, names) in [("shortNames", &kind.short_names), ("categories", &kind.categories)] {
        if !names.is_empty() {
            resource[key] = names.clone().into();
        }
    }
}

/// A part of the objects of a kind.
struct Part {
    name: &'static str,
    group: String,
    version: String,
    kind: String,
    verbs: &'static [&'static str],
}

fn subresources(kind: &Kind) -> Vec<Part> {
    const VERBS: &[&str] = &["get", "patch", "update"];
    let own = |name, verbs| Part {
        name,
        group: kind.group.clone(),
        version: kind.version.clone(),
        kind: kind.kind.clone(),
        verbs,
    };
    let mut all = Vec::new();
    if kind.is_namespace() {
        all.push(own("finalize", &["update"]));
    }
    if kind.status || kind.is_namespace() {
        all.push(own("status", VERBS));
    }
    if kind.scale.is_some() {
        let (group, version, kind) = ("autoscaling".into(), "v1".into(), "Scale".into());
        all.push(Part { name: "scale", group, version, kind, verbs: VERBS });
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
            let metadata = if group.is_empty() { json!({}) } else { json!({"name": group}) };
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    let list = json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items});
    let mut response = json_response(StatusCode::OK, &list);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(AGGREGATED));
    response
}

fn aggregated_resource(kind: &Kind) -> Value {
    // Of built-in kinds, only the kind is told: the rest is that of the document.
    let kind_of = |group: &str, version: &str, name: &str| {
        let own = !kind.custom && group == kind.group;
        let (group, version) = if own { ("", "") } else { (group, version) };
        json!({"group": group, "version": version, "kind": name})
    };
    let subresources: Vec<Value> = subresources(kind)
        .into_iter()
        .map(|sub| {
            let answer = kind_of(&sub.group, &sub.version, &sub.kind);
            json!({"subresource": sub.name, "responseKind": answer, "verbs": sub.verbs})
        })
        .collect();
    let mut resource = json!({
        "resource": kind.plural,
        "responseKind": kind_of(&kind.group, &kind.version, &kind.kind),
        "scope": if kind.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": kind.singular,
        "verbs": verbs(kind),
    });
    add_names(kind, &mut resource);
    if !subresources.is_empty() {
        resource["subresources"] = subresources.into();
    }
    resource
}
