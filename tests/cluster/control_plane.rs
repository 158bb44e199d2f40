//! The API server and its controllers, without a node.

use serde_json::{Value, json};

use crate::{
    cluster::{Cluster, Level},
    wait,
};

#[test]
fn the_control_plane_answers_kubectl_and_its_data_outlives_the_api_server() {
    let cluster = Cluster::start(Level::ControlPlane);
    assert_eq!(cluster.ok(&["get", "--raw", "/readyz"]), "ok");
    let version: Value = serde_json::from_str(&cluster.ok(&["version", "-o", "json"])).unwrap();
    let (client, server) = (&version["clientVersion"]["minor"], &version["serverVersion"]["minor"]);
    assert_eq!(client, server, "kubectl and the API server are of one version");

    cluster.apply("default", &[json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kept"}})]);
    cluster.stop_component("kube-apiserver");
    let refused = cluster.fails(&["get", "configmap", "kept", "-n", "default"], "");
    assert!(refused.contains("refused"), "{refused}");
    cluster.start_component("kube-apiserver");
    wait("the API server to come back", || {
        cluster.kubectl(&["get", "--raw", "/readyz"]).status.success().then_some(())
    });
    cluster.ok(&["get", "configmap", "kept", "-n", "default"]);
}

#[test]
fn controllers_and_played_nodes_bring_a_deployment_to_life() {
    let cluster = Cluster::start_with(Level::Workloads, 2);
    let nodes = cluster.ok(&["get", "nodes", "-o", "name"]);
    assert_eq!(nodes.lines().collect::<Vec<_>>(), ["node/fake-0", "node/fake-1"]);
    cluster.ok(&["create", "deployment", "web", "--image=example.invalid/web", "--replicas=3"]);
    cluster.ok(&["rollout", "status", "deployment/web", "--timeout=60s"]);

    // The garbage collector: what the Deployment owns goes with it.
    cluster.ok(&["delete", "deployment", "web"]);
    wait("the pods to go", || cluster.ok(&["get", "pods,replicasets", "-o", "name"]).is_empty().then_some(()));
}
