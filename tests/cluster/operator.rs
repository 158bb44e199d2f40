//! The operator as a process on a real API server.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use perch::api::crds;
use serde_json::{Value, json};

use crate::{
    cluster::{Cluster, Level, Namespace},
    rbac::install,
    wait,
};

/// A `perch operator` that ends with the test.
pub struct Operator {
    child: Child,
    admin: SocketAddr,
    log: PathBuf,
    _dir: tempfile::TempDir,
}

impl Operator {
    /// Starts it with the administrator's rights for one namespace.
    pub fn administrator(cluster: &Cluster, namespace: &str) -> Self {
        let kubeconfig = std::fs::read_to_string(cluster.kubeconfig()).unwrap();
        Self::start(&serde_yaml_ng::from_str(&kubeconfig).unwrap(), namespace, &["--namespace", namespace])
    }

    /// Starts it as a service account, for all namespaces.
    pub fn account(cluster: &Cluster, account: &str, namespace: &str) -> Self {
        Self::account_logging(cluster, account, namespace, "info")
    }

    /// Like [`Operator::account`], with more or other log lines.
    pub fn account_logging(cluster: &Cluster, account: &str, namespace: &str, filter: &str) -> Self {
        let kubeconfig = std::fs::read_to_string(cluster.kubeconfig()).unwrap();
        let mut kubeconfig: Value = serde_yaml_ng::from_str(&kubeconfig).unwrap();
        kubeconfig["users"][0]["user"]["as"] = account.into();
        Self::start_logging(&kubeconfig, namespace, &[], filter)
    }

    /// Starts it with a kubeconfig. `namespace` is its own one, where its Lease is.
    pub fn start(kubeconfig: &Value, namespace: &str, more: &[&str]) -> Self {
        Self::start_logging(kubeconfig, namespace, more, "info")
    }

    fn start_logging(kubeconfig: &Value, namespace: &str, more: &[&str], filter: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kubeconfig");
        std::fs::write(&path, kubeconfig.to_string()).unwrap();
        let admin = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let log = dir.path().join("log");
        let child = Command::new(env!("CARGO_BIN_EXE_perch"))
            .args(["operator", "--gateway-url", "http://127.0.0.1:9", "--image", "perch.example/perch:test"])
            .args(["--admin-addr", &admin.to_string(), "--pod-namespace", namespace])
            .args(more)
            .env("KUBECONFIG", path)
            .env("PERCH_LOG", filter)
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        Self { child, admin, log, _dir: dir }
    }

    /// What it answers at a path of its admin endpoint: the code and the body; nothing while it
    /// does not listen.
    pub fn ask(&self, path: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(self.admin).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
        stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").as_bytes()).ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        let code = text.split(' ').nth(1)?.parse().ok()?;
        Some((code, text.split_once("\r\n\r\n")?.1.to_owned()))
    }

    /// The sum of a figure of its metrics over all labels.
    pub fn figure(&self, name: &str) -> f64 {
        let metrics = self.ask("/metrics").unwrap_or_default().1;
        let of = |line: &str| {
            let rest = line.strip_prefix(name)?;
            rest.starts_with([' ', '{']).then(|| rest.rsplit_once(' ')?.1.parse::<f64>().ok()).flatten()
        };
        metrics.lines().filter_map(of).sum()
    }

    /// Whether it is the one that works.
    pub fn leads(&self) -> bool {
        self.figure("perch_operator_leading") > 0.0
    }

    /// Waits until it works.
    pub fn leading(self) -> Self {
        wait("the operator to lead", || self.leads().then_some(()));
        self
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Whether the process that was started still runs.
    pub fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Ends it at once.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        // It may have ended, which the test has said.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = self.log();
            let start = log.len().saturating_sub(4000);
            eprintln!("the operator's log ends with:\n{}", log.get(start..).unwrap_or_default());
        }
    }
}

/// A cluster of its own with Perch's definitions.
pub fn defined() -> Cluster {
    let cluster = Cluster::start(Level::ControlPlane);
    define(&cluster);
    cluster
}

/// Installs the definitions.
pub fn define(cluster: &Cluster) {
    for crd in crds::all() {
        let mut crd = serde_json::to_value(crd).unwrap();
        crd["apiVersion"] = "apiextensions.k8s.io/v1".into();
        crd["kind"] = "CustomResourceDefinition".into();
        cluster.ok_with(&["apply", "--server-side", "-f", "-"], &crd.to_string());
    }
    cluster.ok(&["wait", "crd", "--all", "--for=condition=Established", "--timeout=60s"]);
}

/// A server of this name with more in its spec.
pub fn server(name: &str, more: &Value) -> Value {
    let mut server = json!({
        "apiVersion": "perch.dev/v1alpha1", "kind": "McpServer", "metadata": {"name": name},
        "spec": {"image": "example.invalid/x:1", "command": ["/serve"]},
    });
    for (key, value) in more.as_object().into_iter().flatten() {
        server["spec"][key] = value.clone();
    }
    server
}

/// An object of a namespace; null when there is none.
pub fn get(home: &Namespace<'_>, kind: &str, name: &str) -> Value {
    let output = home.kubectl(&["get", kind, name, "-o", "json", "--ignore-not-found"]);
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

/// Waits until the Ready condition of a server has this reason, and gives its message.
pub fn until(home: &Namespace<'_>, name: &str, reason: &str) -> String {
    let mut last = Value::Null;
    let deadline = std::time::Instant::now() + crate::cluster::PATIENCE;
    while std::time::Instant::now() < deadline {
        let found = get(home, "mcpserver", name);
        let conditions = found["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let current = found["status"]["observedGeneration"] == found["metadata"]["generation"];
        if let Some(ready) = conditions.into_iter().find(|c| c["type"] == "Ready") {
            if current && ready["reason"] == reason {
                return ready["message"].as_str().unwrap().to_owned();
            }
            last = ready;
        }
        std::thread::park_timeout(Duration::from_millis(100));
    }
    panic!("{name} is not {reason}: {last}");
}

/// Waits until a server runs as it is declared: the Deployment is there and the status says so.
pub fn started(home: &Namespace<'_>, name: &str) {
    until(home, name, "Starting");
    assert_eq!(get(home, "deployment", &format!("mcp-{name}"))["metadata"]["ownerReferences"][0]["name"], name);
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

    let _operator = Operator::account(&cluster, &account, home.name());
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
