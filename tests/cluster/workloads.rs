//! What goes wrong with pods, on a cluster with the controllers and nodes that kwok plays.

use serde_json::json;

use crate::{
    cluster::{Cluster, Level},
    operator::{Operator, define, get, server, until},
    wait,
};

/// Waits until a server has a pod that runs. Nobody asks it anything here, so it is not Ready.
fn runs(home: &crate::cluster::Namespace<'_>, name: &str) {
    wait(&format!("{name} to run"), || {
        let status = get(home, "mcpserver", name)["status"].clone();
        let ready = status["conditions"].as_array()?.iter().find(|c| c["type"] == "Ready")?.clone();
        let trouble = ["PodsRefused", "Unschedulable"].iter().any(|reason| ready["reason"] == *reason);
        (status["replicas"] == 1 && !trouble).then_some(())
    });
}

#[test]
fn pods_that_are_refused_a_node_that_goes_and_a_namespace_that_ends() {
    let cluster = Cluster::start_with(Level::Workloads, 1);
    define(&cluster);
    let system = cluster.namespace("system", &json!({}));
    let kubeconfig = std::fs::read_to_string(cluster.kubeconfig()).unwrap();
    let kubeconfig = serde_yaml_ng::from_str(&kubeconfig).unwrap();
    let mut operator = Operator::start(&kubeconfig, system.name(), &[]).leading();

    let home = cluster.namespace("refused", &json!({"pod-security.kubernetes.io/enforce": "restricted"}));
    let volumes = json!([{"name": "host", "mountPath": "/host", "hostPath": {"path": "/"}}]);
    let quota = json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "few"}, "spec": {"hard": {"pods": "1"}}});
    home.apply(&[quota, server("first", &json!({}))]);
    runs(&home, "first");
    home.apply(&[server("second", &json!({})), server("forbidden", &json!({"volumes": volumes}))]);
    let message = until(&home, "second", "PodsRefused");
    assert!(message.contains("exceeded quota: few"), "{message}");
    let message = until(&home, "forbidden", "PodsRefused");
    assert!(message.contains("violates PodSecurity") && message.contains("hostPath"), "{message}");
    home.ok(&["delete", "resourcequota", "few"]);
    cluster.ok(&["label", "namespace", home.name(), "pod-security.kubernetes.io/enforce=privileged", "--overwrite"]);
    runs(&home, "second");
    runs(&home, "forbidden");

    // The only node goes, and its pods with it.
    let node = cluster.ok(&["get", "node", "fake-0", "-o", "json"]);
    cluster.ok(&["delete", "node", "fake-0"]);
    home.ok(&["delete", "pods", "--all", "--force", "--grace-period=0"]);
    let message = until(&home, "first", "Unschedulable");
    assert!(message.contains("no node takes the pod"), "{message}");
    let mut node: serde_json::Value = serde_json::from_str(&node).unwrap();
    node["metadata"] = json!({
        "name": "fake-0", "labels": node["metadata"]["labels"], "annotations": node["metadata"]["annotations"],
    });
    cluster.ok_with(&["create", "-f", "-"], &node.to_string());
    runs(&home, "first");

    // A namespace ends while the operator works in it.
    let ends = cluster.namespace("ends", &json!({}));
    let many: Vec<_> = (0..30).map(|i| server(&format!("s{i}"), &json!({}))).collect();
    ends.apply(&many);
    wait("the operator to be at work", || (!get(&ends, "deployment", "mcp-s0").is_null()).then_some(()));
    cluster.ok(&["delete", "namespace", ends.name(), "--timeout=120s"]);
    let failures = operator.figure("perch_reconcile_failures_total");
    home.apply(&[server("last", &json!({}))]);
    runs(&home, "last");
    let after = operator.figure("perch_reconcile_failures_total");
    assert!(after <= failures + 1.0, "nothing is tried again for what is gone: {failures} and then {after}");
    assert!(operator.runs());
}
