//! Whether the control plane knows the kinds as this program knows them. It is asked for its OpenAPI
//! document, which everybody who is known to it may read.

use std::collections::BTreeSet;

use http::Request;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Client;
use serde_json::Value;

use super::finding::{Finding, Outcome};
use crate::{api::crds, cli::client::explain};

const CHECK: &str = "Definitions";
/// Fields that are told of one definition.
const TOLD: usize = 3;
/// Deeper than any field of ours; what comes from elsewhere has no bounds.
const DEEPEST: usize = 24;

/// Compares the definitions of the control plane with those of this program.
pub async fn check(client: &Client) -> Vec<Finding> {
    let mut findings = Vec::new();
    for crd in crds::all() {
        let name = crd.metadata.name.clone().unwrap_or_default();
        let version = crd.spec.versions.first().map(|v| v.name.clone()).unwrap_or_default();
        let document = read(client, &crd.spec.group, &version).await;
        findings.push(match &document {
            Ok(document) => judge(&name, &crd, &version, document),
            Err(kube::Error::Api(status)) if status.code == 404 => missing(&name),
            Err(kube::Error::Api(status)) if status.code == 403 => {
                Finding::new(CHECK, name, Outcome::Warn, "Forbidden", status.message.clone())
            }
            Err(error) => Finding::new(CHECK, name, Outcome::Fail, "Unreadable", explain(error)),
        });
    }
    findings
}

async fn read(client: &Client, group: &str, version: &str) -> kube::Result<Value> {
    let path = format!("/openapi/v3/apis/{group}/{version}");
    let request = Request::get(path).body(Vec::new()).map_err(kube::Error::HttpError)?;
    client.request(request).await
}

fn missing(name: &str) -> Finding {
    let message =
        "the control plane does not know this kind: `kubectl apply -f crds/`, or let the chart install the definitions";
    Finding::new(CHECK, name, Outcome::Fail, "NotInstalled", message)
}

/// Compares a definition with the control plane's document of its group and version.
fn judge(name: &str, crd: &CustomResourceDefinition, version: &str, document: &Value) -> Finding {
    let Some(theirs) = schema(document, &crd.spec.names.kind) else { return missing(name) };
    let ours = crd.spec.versions.first().and_then(|v| v.schema.as_ref()).and_then(|s| s.open_api_v3_schema.as_ref());
    let ours = serde_json::to_value(ours).unwrap_or_default();
    let (ours, theirs) = (fields(&ours), fields(theirs));
    let lacking: Vec<&str> = ours.difference(&theirs).map(String::as_str).collect();
    let unknown: Vec<&str> = theirs.difference(&ours).map(String::as_str).collect();
    if !lacking.is_empty() {
        let message = format!(
            "the installed definition is older than this perch and lacks {}: install the definitions of version {}",
            some(&lacking),
            env!("CARGO_PKG_VERSION")
        );
        return Finding::new(CHECK, name, Outcome::Fail, "Outdated", message);
    }
    if !unknown.is_empty() {
        let message = format!(
            "the installed definition has {}, which this perch ({}) does not know: use the perch that it was installed with",
            some(&unknown),
            env!("CARGO_PKG_VERSION")
        );
        return Finding::new(CHECK, name, Outcome::Warn, "Newer", message);
    }
    let message = format!("{version}, with all {} fields of perch {}", ours.len(), env!("CARGO_PKG_VERSION"));
    Finding::new(CHECK, name, Outcome::Pass, "Current", message)
}

fn some(fields: &[&str]) -> String {
    let told = fields.iter().take(TOLD).copied().collect::<Vec<_>>().join(", ");
    if fields.len() > TOLD { format!("{told} and {} more", fields.len() - TOLD) } else { told }
}

/// The schema of a kind in a document.
fn schema<'a>(document: &'a Value, kind: &str) -> Option<&'a Value> {
    document["components"]["schemas"].as_object()?.values().find(|schema| {
        let kinds = schema["x-kubernetes-group-version-kind"].as_array();
        kinds.into_iter().flatten().any(|k| k["kind"] == kind && k["group"] == "perch.dev")
    })
}

/// The paths of all fields that a schema declares below spec and status.
fn fields(schema: &Value) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for part in ["spec", "status"] {
        walk(&schema["properties"][part], part, DEEPEST, &mut found);
    }
    found
}

fn walk(schema: &Value, path: &str, depth: usize, found: &mut BTreeSet<String>) {
    if depth == 0 || schema.is_null() {
        return;
    }
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        walk(field, &path, depth - 1, found);
        found.insert(path);
    }
    walk(&schema["items"], path, depth - 1, found);
    walk(&schema["additionalProperties"], path, depth - 1, found);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn document(change: impl FnOnce(&mut Value)) -> Finding {
        let crd = crds::all().remove(0);
        let version = crd.spec.versions[0].schema.as_ref().unwrap();
        let mut schema = serde_json::to_value(version.open_api_v3_schema.as_ref().unwrap()).unwrap();
        schema["x-kubernetes-group-version-kind"] =
            json!([{"group": "perch.dev", "version": "v1alpha1", "kind": "McpServer"}]);
        change(&mut schema);
        let document = json!({"components": {"schemas": {"dev.perch.v1alpha1.McpServer": schema}}});
        judge("mcpservers.perch.dev", &crd, "v1alpha1", &document)
    }

    #[test]
    fn the_same_fields_pass_and_others_are_named() {
        assert_eq!(document(|_| {}).result, Outcome::Pass);
        let older = document(|schema| {
            schema["properties"]["spec"]["properties"]["transport"]["properties"]
                .as_object_mut()
                .unwrap()
                .remove("port");
        });
        assert_eq!((older.result, older.reason.as_str()), (Outcome::Fail, "Outdated"));
        assert!(older.message.contains("lacks spec.transport.port:"), "{}", older.message);
        let items = document(|schema| {
            schema["properties"]["spec"]["properties"]["env"]["items"]["properties"]
                .as_object_mut()
                .unwrap()
                .remove("value");
        });
        assert!(items.message.contains("lacks spec.env.value:"), "{}", items.message);
        let newer = document(|schema| {
            schema["properties"]["spec"]["properties"]["later"] = json!({"type": "string"});
        });
        assert_eq!((newer.result, newer.reason.as_str()), (Outcome::Warn, "Newer"));
        assert!(newer.message.contains("has spec.later,"), "{}", newer.message);
        let none = judge("mcpservers.perch.dev", &crds::all()[0], "v1alpha1", &json!({}));
        assert_eq!((none.result, none.reason.as_str()), (Outcome::Fail, "NotInstalled"));
    }
}
