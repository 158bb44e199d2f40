//! DELETE: finalizers, preconditions, propagation, owners, namespaces.

use serde_json::{Value, json};

use crate::case::{Case, case, config, object, plain, with};

fn owned(name: &str, owner: &str) -> Value {
    let owner = json!({"apiVersion": "perch.dev/v1alpha1", "kind": "McpServer", "name": "owner", "uid": owner, "blockOwnerDeletion": true});
    with(config(name, &json!({})), &json!({"metadata": {"ownerReferences": [owner], "labels": {"l": ""}}}))
}

fn owner() -> Case {
    case("")
        .post("mcpservers", &plain("owner"))
        .keep("uid", "/metadata/uid")
        .post("configmaps", &owned("owned", "$(uid)"))
}

fn owners(name: &str) -> Case {
    Case { name: name.into(), ..owner() }
}

/// Only whether it is there, for the order of what the collector does is not fixed.
fn status(outcome: &mut Value) {
    *outcome = outcome["status"].take();
}

pub fn cases() -> Vec<Case> {
    vec![
        case("delete")
            .post("mcpservers", &plain("a"))
            .delete("mcpservers/a?dryRun=All")
            .delete("mcpservers/a")
            .delete("mcpservers/a")
            .get("mcpservers/a")
            .post("configmaps", &config("a", &json!({})))
            .delete("configmaps/a")
            .delete("configmaps/a")
            .post("secrets", &object("v1", "Secret", "a", &json!({})))
            .delete("secrets/a")
            .post("leases", &object("coordination.k8s.io/v1", "Lease", "a", &json!({})))
            .delete("leases/a"),
        case("delete-with-options")
            .post("mcpservers", &plain("a"))
            .keep("rv", "/metadata/resourceVersion")
            .keep("uid", "/metadata/uid")
            .delete_with("mcpservers/a", &json!({"preconditions": {"uid": "11111111-1111-1111-1111-111111111111"}}))
            .delete_with("mcpservers/a", &json!({"preconditions": {"resourceVersion": "1"}}))
            .delete_with("mcpservers/a", &json!({"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Strange"}))
            .delete_with("mcpservers/a", &json!({"propagationPolicy": "Background", "orphanDependents": true}))
            .delete_with("mcpservers/a", &json!({"dryRun": ["Some"]}))
            .delete_with("mcpservers/a", &json!({"gracePeriodSeconds": -1, "dryRun": ["All"]}))
            .delete_with("mcpservers/a", &json!({"kind": "Pod", "apiVersion": "v1"}))
            .delete_with("mcpservers/a", &json!([1]))
            .delete_with("mcpservers/a?fieldValidation=Strict", &json!({"unknown": 1, "dryRun": ["All"]}))
            .delete("mcpservers/a?propagationPolicy=Strange")
            .send("DELETE", "mcpservers/a", "application/json", "{")
            .send("DELETE", "mcpservers/a", "text/plain", "{}")
            .delete_with("mcpservers/a", &json!({"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": {"uid": "$(uid)", "resourceVersion": "$(rv)"}}))
            .delete_with("mcpservers/a", &json!({"preconditions": {"uid": "11111111-1111-1111-1111-111111111111"}})),
        case("delete-configmap-with-options")
            .post("configmaps", &config("a", &json!({})))
            .delete_with("configmaps/a", &json!({"preconditions": {"uid": "11111111-1111-1111-1111-111111111111"}}))
            .delete_with("configmaps/a", &json!({"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Strange"}))
            .delete_with("configmaps/a", &json!({"apiVersion": "v1", "kind": "DeleteOptions", "dryRun": ["All"]}))
            .get("configmaps/a"),
        case("finalizers")
            .post("mcpservers", &with(plain("a"), &json!({"metadata": {"finalizers": ["a.b/c", "a.b/d"]}})))
            .delete("mcpservers/a?dryRun=All")
            .delete("mcpservers/a")
            .delete("mcpservers/a")
            .get("mcpservers/a")
            .merge("mcpservers/a", &json!({"metadata": {"finalizers": ["a.b/c", "a.b/d", "a.b/e"]}}))
            .merge("mcpservers/a", &json!({"metadata": {"deletionTimestamp": null}}))
            .merge("mcpservers/a", &json!({"spec": {"replicas": 2}}))
            .merge("mcpservers/a", &json!({"metadata": {"finalizers": ["a.b/d"]}}))
            .merge("mcpservers/a?dryRun=All", &json!({"metadata": {"finalizers": []}}))
            .merge("mcpservers/a", &json!({"metadata": {"finalizers": []}}))
            .get("mcpservers/a")
            .post("configmaps", &with(config("a", &json!({})), &json!({"metadata": {"finalizers": ["a.b/c"]}})))
            .delete("configmaps/a")
            .merge("configmaps/a", &json!({"metadata": {"finalizers": ["a.b/x"]}}))
            .json_patch("configmaps/a", &json!([{"op": "remove", "path": "/metadata/finalizers"}]))
            .get("configmaps/a"),
        case("finalizers-and-watch")
            .get("mcpservers")
            .keep("rv", "/metadata/resourceVersion")
            .post("mcpservers", &with(plain("a"), &json!({"metadata": {"finalizers": ["a.b/c"]}})))
            .delete("mcpservers/a")
            .merge("mcpservers/a", &json!({"metadata": {"finalizers": null}}))
            .post("mcpservers", &plain("last"))
            .watch("mcpservers?watch=true&resourceVersion=$(rv)", "last"),
        case("delete-collection")
            .post("mcpservers", &with(plain("a"), &json!({"metadata": {"labels": {"l": "1"}}})))
            .post("mcpservers", &with(plain("b"), &json!({"metadata": {"labels": {"l": "1"}, "finalizers": ["a.b/c"]}})))
            .post("mcpservers", &with(plain("c"), &json!({"metadata": {"labels": {"l": "2"}}})))
            .delete("mcpservers?labelSelector=l%3D1&dryRun=All")
            .delete("mcpservers?labelSelector=l%3D1")
            .get("mcpservers")
            .delete("mcpservers?fieldSelector=metadata.name%3Dc")
            .delete("mcpservers?labelSelector=a%20of%20b")
            .get("mcpservers")
            .delete("mcpservers")
            .delete("/apis/perch.dev/v1alpha1/mcpservers")
            .delete("namespaces"),
        case("orphan-finalizer-by-hand")
            .post("mcpservers", &plain("owner"))
            .delete_with("mcpservers/owner", &json!({"propagationPolicy": "Orphan"}))
            .until_gone("mcpservers/owner"),
        owners("propagation-background")
            .delete_with("mcpservers/owner", &json!({"propagationPolicy": "Background"}))
            .until_gone("configmaps/owned")
            .get("mcpservers/owner"),
        owners("propagation-default").delete("mcpservers/owner").until_gone("configmaps/owned").get("mcpservers/owner"),
        owners("propagation-orphan")
            .delete_with("mcpservers/owner", &json!({"propagationPolicy": "Orphan"}))
            .only(status)
            .until_gone("mcpservers/owner")
            .get("configmaps/owned"),
        owners("propagation-orphan-by-the-old-option")
            .delete_with("mcpservers/owner", &json!({"orphanDependents": true}))
            .only(status)
            .until_gone("mcpservers/owner")
            .get("configmaps/owned"),
        owners("propagation-foreground")
            .delete_with("mcpservers/owner", &json!({"propagationPolicy": "Foreground"}))
            .only(status)
            .until_gone("mcpservers/owner")
            .get("configmaps/owned"),
        owners("propagation-foreground-waits")
            .merge("configmaps/owned", &json!({"metadata": {"finalizers": ["a.b/c"]}}))
            .delete_with("mcpservers/owner", &json!({"propagationPolicy": "Foreground"}))
            .until("configmaps/owned", |answer| !answer.body["metadata"]["deletionTimestamp"].is_null())
            .get("mcpservers/owner")
            .merge("configmaps/owned", &json!({"metadata": {"finalizers": null}}))
            .until_gone("mcpservers/owner"),
        owners("an-object-with-two-owners")
            .post("mcpservers", &plain("second"))
            .keep("second", "/metadata/uid")
            .json_patch("configmaps/owned", &json!([{"op": "add", "path": "/metadata/ownerReferences/-", "value": {"apiVersion": "perch.dev/v1alpha1", "kind": "McpServer", "name": "second", "uid": "$(second)"}}]))
            .delete("mcpservers/owner")
            .until("configmaps/owned", |answer| answer.body["metadata"]["ownerReferences"].as_array().is_some_and(|o| o.len() == 1))
            .delete("mcpservers/second")
            .until_gone("configmaps/owned"),
        case("owners-that-do-not-exist")
            .post("configmaps", &owned("orphan", "11111111-1111-1111-1111-111111111111"))
            .until_gone("configmaps/orphan"),
        case("namespaces")
            .post("namespaces", &object("v1", "Namespace", "other-space", &json!({"metadata": {"labels": {"a": "b"}}})))
            .post("namespaces", &object("v1", "Namespace", "other-space", &json!({})))
            .post("/api/v1/namespaces/other-space/configmaps", &config("a", &json!({})))
            .post("/apis/perch.dev/v1alpha1/namespaces/other-space/mcpservers", &with(plain("a"), &json!({"metadata": {"finalizers": ["a.b/c"]}})))
            .merge("/api/v1/namespaces/other-space", &json!({"metadata": {"labels": {"c": "d", "kubernetes.io/metadata.name": "x"}}, "spec": {"finalizers": []}, "status": {"phase": "Terminating"}}))
            .delete("/api/v1/namespaces/other-space")
            .until("/apis/perch.dev/v1alpha1/namespaces/other-space/mcpservers/a", |answer| !answer.body["metadata"]["deletionTimestamp"].is_null())
            .only(status)
            .until_gone("/api/v1/namespaces/other-space/configmaps/a")
            .get("/api/v1/namespaces/other-space")
            .only(|outcome| *outcome = json!([outcome["body"]["status"]["phase"], outcome["body"]["spec"]]))
            .post("/api/v1/namespaces/other-space/configmaps", &config("b", &json!({})))
            .post("/apis/perch.dev/v1alpha1/namespaces/other-space/mcpservers", &plain("b"))
            .merge("/apis/perch.dev/v1alpha1/namespaces/other-space/mcpservers/a", &json!({"metadata": {"finalizers": null}}))
            .only(status)
            .until_gone("/api/v1/namespaces/other-space")
            .get("/apis/perch.dev/v1alpha1/namespaces/other-space/mcpservers"),
        case("namespaces-that-stay")
            .delete("namespaces/default")
            .delete("namespaces/kube-system")
            .delete("namespaces/absent")
            .get("namespaces/default")
            .only(|outcome| *outcome = json!([outcome["status"], outcome["body"]["metadata"]["labels"], outcome["body"]["spec"], outcome["body"]["status"]])),
    ]
}
