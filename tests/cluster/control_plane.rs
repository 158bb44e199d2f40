//! The API server and its controllers, without a node.

use serde_json::{Value, json};

use crate::cluster::{Cluster, Level, PATIENCE};

#[test]
fn the_control_plane_answers_kubectl_and_ends_with_its_test() {
    let cluster = Cluster::start(Level::ControlPlane);
    assert_eq!(cluster.ok(&["get", "--raw", "/readyz"]), "ok");
    let version: Value = serde_json::from_str(&cluster.ok(&["version", "-o", "json"])).unwrap();
    let (client, server) = (&version["clientVersion"]["minor"], &version["serverVersion"]["minor"]);
    assert_eq!(client, server, "kubectl and the API server are of one version");

    // The store outlives the API server.
    cluster.apply("default", &[json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kept"}})]);
    cluster.stop_component("kube-apiserver");
    let refused = cluster.fails(&["get", "configmap", "kept", "-n", "default"], "");
    assert!(refused.contains("refused"), "{refused}");
    cluster.start_component("kube-apiserver");
    let deadline = std::time::Instant::now() + PATIENCE;
    while !cluster.kubectl(&["get", "--raw", "/readyz"]).status.success() {
        assert!(std::time::Instant::now() < deadline, "the API server does not come back");
    }
    cluster.ok(&["get", "configmap", "kept", "-n", "default"]);

    let dir = cluster.dir().map(ToOwned::to_owned);
    let kubeconfig = cluster.kubeconfig().to_owned();
    drop(cluster);
    assert!(dir.is_none_or(|d| !d.exists()), "the directory is gone");
    assert!(!kubeconfig.exists());
}
