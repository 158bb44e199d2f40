//! Findings of Trivy Operator about what the candidate runs.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, ResourceExt,
    api::{ApiResource, DynamicObject, GroupVersionKind, ListParams},
};

use super::Question;
use crate::canary::{Reading, observation::Findings};

/// Annotation of pods: the revision that they run.
const REVISION: &str = "perch.dev/revision";
/// Label of pods that Perch made.
const MANAGED: &str = "app.kubernetes.io/managed-by=perch";
/// Container of the server in its pod. The others are Perch's own, the same for each revision.
const CONTAINER: &str = "server";

/// Counts the findings in the reports of the candidate's pods.
pub(super) async fn read(cluster: Option<&Client>, question: &Question<'_>) -> Reading {
    let Some(client) = cluster else {
        return Reading::Unknown(
            "reports of scanners are read on Kubernetes only: leave the criterion out here".into(),
        );
    };
    let namespace = &question.server.namespace;
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let reports: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource());
    let (of_perch, of_container) = (ListParams::default().labels(MANAGED), of_container());
    let (pods, reports) = tokio::join!(pods.list(&of_perch), reports.list(&of_container));
    let pods = match pods {
        Ok(pods) => pods.items,
        Err(error) => return Reading::Unknown(format!("the candidate's pods cannot be listed: {}", explain(&error))),
    };
    match reports {
        Ok(reports) => judge(&pods, &reports.items, question.candidate),
        Err(kube::Error::Api(status)) if status.code == 404 => Reading::Unknown(
            "this cluster has no VulnerabilityReports: install Trivy Operator, or leave the criterion out".into(),
        ),
        Err(kube::Error::Api(status)) if status.code == 403 => Reading::Unknown(
            "the operator may not list vulnerabilityreports.aquasecurity.github.io: grant it in this namespace".into(),
        ),
        Err(error) => Reading::Unknown(format!("VulnerabilityReports cannot be listed: {}", explain(&error))),
    }
}

fn resource() -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk("aquasecurity.github.io", "v1alpha1", "VulnerabilityReport"))
}

fn of_container() -> ListParams {
    ListParams::default().labels(&format!("trivy-operator.container.name={CONTAINER}"))
}

fn explain(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        _ => "the API server does not answer".into(),
    }
}

/// The findings in the reports about what owns the pods of a revision.
fn judge(pods: &[Pod], reports: &[DynamicObject], revision: &str) -> Reading {
    let of_revision = pods.iter().filter(|p| p.annotations().get(REVISION).is_some_and(|r| r == revision));
    let owners: BTreeSet<(String, String)> = of_revision
        .flat_map(|pod| {
            let own = ("Pod".to_owned(), pod.name_any());
            pod.owner_references().iter().map(|o| (o.kind.clone(), o.name.clone())).chain([own])
        })
        .collect();
    if owners.is_empty() {
        return Reading::NoData(format!("no pod runs {revision}"));
    }
    let label = |report: &DynamicObject, name: &str| report.labels().get(name).cloned().unwrap_or_default();
    let about = |report: &&DynamicObject| {
        let kind = label(report, "trivy-operator.resource.kind");
        owners.contains(&(kind, label(report, "trivy-operator.resource.name")))
    };
    // One report for each image: replicas have the same findings.
    let mut by_image: BTreeMap<String, Findings> = BTreeMap::new();
    for report in reports.iter().filter(about) {
        let summary = &report.data["report"]["summary"];
        let count = |key: &str| summary[key].as_u64().and_then(|n| u32::try_from(n).ok());
        let (Some(critical), Some(high), Some(medium), Some(low)) =
            (count("criticalCount"), count("highCount"), count("mediumCount"), count("lowCount"))
        else {
            return Reading::NoData(format!("VulnerabilityReport {} has no summary", report.name_any()));
        };
        let image = report.data["report"]["artifact"]["digest"].as_str().unwrap_or_default();
        by_image.insert(image.to_owned(), Findings { critical, high, medium, low });
    }
    let worst = by_image.into_values().max_by_key(|f| (f.critical, f.high, f.medium, f.low));
    worst.map_or_else(|| Reading::NoData(format!("{revision} has not been scanned yet")), Reading::Findings)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, revision: &str, owner: &str) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": name, "annotations": {REVISION: revision},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": owner, "uid": "1"}]}}))
        .unwrap()
    }

    fn report(owner: &str, summary: serde_json::Value) -> DynamicObject {
        serde_json::from_value(json!({"metadata": {"name": format!("replicaset-{owner}-server"), "labels": {
            "trivy-operator.resource.kind": "ReplicaSet", "trivy-operator.resource.name": owner,
            "trivy-operator.container.name": "server"}}, "report": {"summary": summary}}))
        .unwrap()
    }

    #[test]
    fn only_reports_of_the_candidate_count() {
        let pods = [pod("a", "srv-1", "mcp-srv-11"), pod("b", "srv-2", "mcp-srv-22"), pod("c", "srv-2", "mcp-srv-22")];
        let summary =
            |critical: u32| json!({"criticalCount": critical, "highCount": 2, "mediumCount": 3, "lowCount": 4});
        let old = report("mcp-srv-11", summary(9));
        assert_eq!(judge(&pods, &[old.clone()], "srv-2"), Reading::NoData("srv-2 has not been scanned yet".into()));
        let both = [old, report("mcp-srv-22", summary(1))];
        let found = Findings { critical: 1, high: 2, medium: 3, low: 4 };
        assert_eq!(judge(&pods, &both, "srv-2"), Reading::Findings(found));
        assert_eq!(judge(&pods, &both, "srv-3"), Reading::NoData("no pod runs srv-3".into()));
        let broken = [report("mcp-srv-22", json!({"criticalCount": 0}))];
        assert!(matches!(judge(&pods, &broken, "srv-2"), Reading::NoData(why) if why.contains("no summary")));
    }
}
