//! What stays of a server when it is removed: an immutable ConfigMap that nobody owns, with the manifest
//! that brings it back, its revisions, and a record of its life.
//!
//! The name of the ConfigMap follows from what it keeps. One that is there already is the one that was
//! to be written, so no right to read ConfigMaps is needed.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::{
    api::{apps::v1::ControllerRevision, core::v1::ConfigMap},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{
    Api, Client, ResourceExt,
    api::{ObjectMeta, PostParams},
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{MANAGER, history};
use crate::{
    api::mcp_server::{Decommission, McpServer},
    lifecycle::decommission::Plan,
};

/// Most bytes of an archive. A ConfigMap takes a mebibyte.
const MOST: usize = 900_000;
/// What kubectl keeps for itself in annotations.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Why there is no archive.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The control plane did not take it, or did not give the history.
    #[error("{}", said(.0))]
    Api(#[from] kube::Error),
    /// Something of it cannot be written down.
    #[error("it cannot be written as YAML: {0}")]
    Yaml(#[from] serde_yaml_ng::Error),
}

fn said(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// The name of the archive of a server as it is declared now.
pub fn name(server: &McpServer, since: Timestamp) -> String {
    let what = json!([server.uid(), since.to_string(), server.metadata.generation]);
    let digest = format!("{:x}", Sha256::digest(what.to_string()));
    format!("{}-archive-{}", server.name_any(), &digest[..10])
}

/// Writes the archive of a server.
pub async fn write(
    client: &Client,
    server: &McpServer,
    name: &str,
    declared: &Decommission,
    plan: &Plan,
    since: Timestamp,
) -> Result<(), ArchiveError> {
    let history = history::all(client, server).await?;
    let data = contents(server, declared, plan, since, history)?;
    let namespace = server.namespace().unwrap_or_default();
    let labels = [
        ("app.kubernetes.io/managed-by", "perch".to_owned()),
        ("perch.dev/archive", "true".to_owned()),
        ("perch.dev/server", server.name_any()),
    ];
    let map = ConfigMap {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(namespace.clone()),
            labels: Some(labels.map(|(label, value)| (label.to_owned(), value)).into()),
            ..ObjectMeta::default()
        },
        data: Some(data),
        immutable: Some(true),
        ..ConfigMap::default()
    };
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), &namespace);
    let params = PostParams { field_manager: Some(MANAGER.into()), ..PostParams::default() };
    match api.create(&params, &map).await {
        Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => Ok(()),
        other => Ok(other.map(drop)?),
    }
}

/// What an archive keeps. The oldest revisions are left out where there is no room for all.
fn contents(
    server: &McpServer,
    declared: &Decommission,
    plan: &Plan,
    since: Timestamp,
    mut history: Vec<ControllerRevision>,
) -> Result<BTreeMap<String, String>, ArchiveError> {
    let manifest = serde_yaml_ng::to_string(&manifest(server))?;
    history.sort_by_key(|revision| std::cmp::Reverse(revision.revision));
    let (mut revisions, mut left_out) = (String::new(), 0);
    for revision in &history {
        // A list of one, so that one list comes of all.
        let entry = serde_yaml_ng::to_string(&[json!({
            "name": revision.name_any(),
            "number": revision.revision,
            "createdAt": revision.metadata.creation_timestamp,
            "spec": revision.data.0,
        })])?;
        if left_out > 0 || manifest.len() + revisions.len() + entry.len() > MOST {
            left_out += 1;
        } else {
            revisions.push_str(&entry);
        }
    }
    let record = serde_yaml_ng::to_string(&record(server, declared, plan, since, left_out))?;
    let parts = [("mcpserver.yaml", manifest), ("revisions.yaml", revisions), ("record.yaml", record)];
    Ok(parts.map(|(key, text)| (key.to_owned(), text)).into())
}

/// The manifest that brings a server back.
fn manifest(server: &McpServer) -> Value {
    let mut spec = serde_json::to_value(&server.spec).unwrap_or_default();
    if let Some(spec) = spec.as_object_mut() {
        spec.remove("decommission");
    }
    let mut annotations = server.annotations().clone();
    annotations.remove(LAST_APPLIED);
    let mut metadata = json!({"name": server.name_any(), "namespace": server.namespace()});
    if !server.labels().is_empty() {
        metadata["labels"] = json!(server.labels());
    }
    if !annotations.is_empty() {
        metadata["annotations"] = json!(annotations);
    }
    json!({"apiVersion": "perch.dev/v1alpha1", "kind": "McpServer", "metadata": metadata, "spec": spec})
}

/// What is known of the life of a server.
fn record(server: &McpServer, declared: &Decommission, plan: &Plan, since: Timestamp, left_out: usize) -> Value {
    let status = server.status.clone().unwrap_or_default();
    let usage = status.usage.as_ref().map(|usage| {
        let days: BTreeMap<&str, i64> = usage.days.iter().map(|day| (day.date.as_str(), day.requests)).collect();
        json!({
            "since": usage.since, "lastRequest": usage.last_request, "usersIn30Days": usage.users_in_30_days,
            "requestsByDay": days,
        })
    });
    let claims = server.spec.volumes.iter().filter_map(|volume| volume.persistent_volume_claim.as_ref());
    let claims: Vec<&str> = claims.map(|claim| claim.claim_name.as_str()).collect();
    json!({
        "uid": server.uid(),
        "createdAt": server.creation_timestamp(),
        "decommission": {
            "reason": declared.reason, "replacement": declared.replacement, "since": Time(since),
            "reducesAt": Time(plan.reduces_at), "stopsAt": Time(plan.stops_at), "removesAt": Time(plan.removes_at),
        },
        "url": status.url,
        "currentRevision": status.current_revision,
        "imageId": status.image_id,
        "serverInfo": status.server_info,
        "tools": status.tools,
        "toolsDigest": status.tools_digest,
        "usage": usage,
        "claimsThatStay": claims,
        "revisionsLeftOut": left_out,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server() -> McpServer {
        serde_json::from_value(json!({
            "apiVersion": "perch.dev/v1alpha1", "kind": "McpServer",
            "metadata": {"name": "a", "namespace": "n", "uid": "u", "generation": 4, "resourceVersion": "9",
                "labels": {"team": "red"}, "annotations": {LAST_APPLIED: "{}", "note": "kept"}},
            "spec": {"image": "x:1", "decommission": {"reason": "too old", "replacement": "b"},
                "volumes": [{"name": "v", "mountPath": "/data", "persistentVolumeClaim": {"claimName": "a-data"}}]},
            "status": {"currentRevision": "a-1", "usage": {"requestsIn7Days": 3, "usersIn30Days": 2,
                "days": [{"date": "2026-01-02", "requests": 3, "users": 5}], "counters": [{"gateway": "g@1", "requests": 3}]}},
        }))
        .unwrap()
    }

    fn since() -> Timestamp {
        "2026-01-01T00:00:00Z".parse().unwrap()
    }

    fn revision(number: i64, size: usize) -> ControllerRevision {
        let mut revision = ControllerRevision { revision: Some(number), ..ControllerRevision::default() };
        revision.metadata.name = Some(format!("a-{number}"));
        revision.data.0 = json!({"image": "x".repeat(size)});
        revision
    }

    fn archived(history: Vec<ControllerRevision>) -> BTreeMap<String, Value> {
        let server = server();
        let declared = server.spec.decommission.clone().unwrap();
        let data = contents(&server, &declared, &Plan::new(&declared, since()), since(), history).unwrap();
        assert!(data.values().map(String::len).sum::<usize>() < 1 << 20);
        data.into_iter().map(|(key, text)| (key, serde_yaml_ng::from_str(&text).unwrap())).collect()
    }

    #[test]
    fn an_archive_brings_the_server_back_and_tells_its_life() {
        let found = archived(vec![revision(1, 1), revision(2, 1)]);
        let again: McpServer = serde_json::from_value(found["mcpserver.yaml"].clone()).unwrap();
        let mut spec = server().spec;
        spec.decommission = None;
        assert_eq!(again.spec, spec);
        assert_eq!((again.name_any(), again.labels()), ("a".into(), server().labels()));
        assert_eq!(again.metadata.resource_version, None);
        assert_eq!(again.annotations().keys().collect::<Vec<_>>(), ["note"]);
        let names: Vec<&Value> = found["revisions.yaml"].as_array().unwrap().iter().map(|r| &r["name"]).collect();
        assert_eq!(names, ["a-2", "a-1"], "the newest first");
        let record = &found["record.yaml"];
        assert_eq!(record["decommission"]["stopsAt"], "2026-02-07T00:00:00Z");
        assert_eq!(record["usage"]["requestsByDay"]["2026-01-02"], 3);
        assert_eq!(record["claimsThatStay"], json!(["a-data"]));
        assert!(!record.to_string().contains("g@1"), "{record}");
    }

    #[test]
    fn a_long_history_loses_its_oldest_revisions() {
        let found = archived((1..=5).map(|number| revision(number, 250_000)).collect());
        let names: Vec<&Value> = found["revisions.yaml"].as_array().unwrap().iter().map(|r| &r["name"]).collect();
        assert_eq!(names, ["a-5", "a-4", "a-3"]);
        assert_eq!(found["record.yaml"]["revisionsLeftOut"], 2);
    }

    #[test]
    fn what_is_declared_anew_is_archived_anew() {
        let first = name(&server(), since());
        assert_eq!(first, name(&server(), since()));
        assert!(first.starts_with("a-archive-") && first.len() == "a-archive-".len() + 10, "{first}");
        let mut changed = server();
        changed.metadata.generation = Some(5);
        let mut other = server();
        other.metadata.uid = Some("v".into());
        assert_ne!(first, name(&changed, since()));
        assert_ne!(first, name(&other, since()));
        assert_ne!(first, name(&server(), Timestamp::UNIX_EPOCH));
    }
}
