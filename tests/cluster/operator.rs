//! The operator as a process on a real API server, with just the rights that the chart gives it.

use std::process::{Child, Command, Stdio};

use perch::api::crds;
use serde_json::{Value, json};

use crate::{
    cluster::{Cluster, Level},
    rbac::install,
    wait,
};

/// A `perch operator` that ends with the test.
pub struct Operator(Child);

impl Operator {
    /// Starts it as a service account.
    pub fn start(cluster: &Cluster, dir: &tempfile::TempDir, account: &str, namespace: &str) -> Self {
        Self::start_logging(cluster, dir, account, namespace, "warn", Stdio::inherit())
    }

    /// Like [`Operator::start`], with more or other log lines, somewhere.
    pub fn start_logging(
        cluster: &Cluster,
        dir: &tempfile::TempDir,
        account: &str,
        namespace: &str,
        filter: &str,
        log: impl Into<Stdio>,
    ) -> Self {
        let kubeconfig = std::fs::read_to_string(cluster.kubeconfig()).unwrap();
        let mut kubeconfig: Value = serde_yaml_ng::from_str(&kubeconfig).unwrap();
        kubeconfig["users"][0]["user"]["as"] = account.into();
        let path = dir.path().join("kubeconfig");
        std::fs::write(&path, kubeconfig.to_string()).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_perch"))
            .args(["operator", "--gateway-url", "http://127.0.0.1:9", "--image", "perch.example/perch:test"])
            .args(["--admin-addr", "127.0.0.1:0", "--pod-namespace", namespace])
            .env("KUBECONFIG", path)
            .env("PERCH_LOG", filter)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Self(child)
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        // It may have ended, which the test has said.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A cluster of its own with Perch's definitions.
pub fn defined() -> Cluster {
    let cluster = Cluster::start(Level::ControlPlane);
    for crd in crds::all() {
        let mut crd = serde_json::to_value(crd).unwrap();
        crd["apiVersion"] = "apiextensions.k8s.io/v1".into();
        crd["kind"] = "CustomResourceDefinition".into();
        cluster.ok_with(&["apply", "--server-side", "-f", "-"], &crd.to_string());
    }
    cluster.ok(&["wait", "crd", "--all", "--for=condition=Established", "--timeout=60s"]);
    cluster
}

#[test]
fn what_was_moved_from_a_machine_is_not_held_by_its_finalizer() {
    let cluster = defined();
    let home = cluster.namespace("moved", &json!({}));
    let [account, _] = install(&cluster, home.name(), &[]);
    let server = |name: &str, finalizers: &[&str]| {
        json!({
            "apiVersion": "perch.dev/v1alpha1", "kind": "McpServer",
            "metadata": {"name": name, "finalizers": finalizers},
            "spec": {"image": "example.invalid/x:1"},
        })
    };
    home.apply(&[
        server("alone", &["perch.dev/runtime"]),
        server("kept", &["example.com/before", "perch.dev/runtime", "example.com/after"]),
        server("going", &["perch.dev/runtime"]),
    ]);
    let get =
        |name: &str| -> Value { serde_json::from_str(&home.ok(&["get", "mcpserver", name, "-o", "json"])).unwrap() };
    let new = get("kept");
    assert_eq!(new["status"]["observedGeneration"], -1, "nobody has looked at it");
    home.ok(&["delete", "mcpserver", "going", "--wait=false"]);
    assert!(get("going")["metadata"]["deletionTimestamp"].is_string());

    let dir = tempfile::tempdir().unwrap();
    let _operator = Operator::start(&cluster, &dir, &account, home.name());
    for (name, left) in [("alone", json!(null)), ("kept", json!(["example.com/before", "example.com/after"]))] {
        let seen = wait(name, || {
            let object = get(name);
            (object["status"]["observedGeneration"] == 1).then_some(object)
        });
        assert_eq!(seen["metadata"]["finalizers"], left, "{name}");
        assert_eq!(seen["spec"], new["spec"], "{name}: nothing else was written");
        assert_eq!(seen["metadata"]["generation"], 1, "{name}");
    }
    wait("what was being deleted to go", || {
        home.kubectl(&["get", "mcpserver", "going"]).status.code().filter(|code| *code != 0)
    });
    home.ok(&["patch", "mcpserver", "kept", "--type=merge", "-p", r#"{"metadata": {"finalizers": null}}"#]);
}
