//! A real Kubernetes for a test binary. The launcher (`tests/cluster/launcher`, an example of this
//! package) runs it as a process; it ends when its standard input does, so a cluster does not
//! outlive the test binary that started it, even one that is killed.
//!
//! With `USE_EXISTING_CLUSTER=true` tests use the cluster of `KUBECONFIG` instead, as with envtest;
//! `PERCH_TEST_LOAD_IMAGE` is then the command that puts an image on its nodes, for example
//! `kind load docker-image`. `KUBEBUILDER_ASSETS` is where etcd, kube-apiserver and kubectl are
//! looked for first.

#![allow(dead_code, reason = "no test binary needs all of it")]

use std::{
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Output, Stdio},
    sync::{
        Mutex, OnceLock,
        atomic::{AtomicU32, Ordering},
        mpsc::{Receiver, channel},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};

/// How long anything may take.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// Image of a program that tests run in pods: `tests/cluster/tools/probe`. On the node from the
/// start; give `imagePullPolicy: Never`.
pub const PROBE_IMAGE: &str = "perch.local/probe:test";

/// How much of a Kubernetes a test needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// etcd and the API server. Ready in about 4 s; needs no root.
    ControlPlane,
    /// And the controller manager and the scheduler. Ready in about 6 s; needs no root.
    Workloads,
    /// And a node with pods, Services, DNS and network policies. Ready in about 20 s; needs root.
    Node,
}

/// How many clusters this process has started.
static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A running cluster. It ends when this is dropped, and at the latest with this process.
pub struct Cluster {
    kubeconfig: PathBuf,
    /// None for a cluster that was there before.
    launched: Option<Launched>,
}

struct Launched {
    child: Child,
    dir: PathBuf,
    control: Mutex<(Option<ChildStdin>, Receiver<String>)>,
}

impl Cluster {
    /// Starts a cluster of one's own.
    pub fn start(level: Level) -> Self {
        Self::start_with(level, 0)
    }

    /// Starts one with this number of nodes that kwok plays, and waits until all of it is ready.
    pub fn start_with(level: Level, fake_nodes: u32) -> Self {
        if let Some(kubeconfig) = existing() {
            let cluster = Self { kubeconfig, launched: None };
            if level == Level::Node {
                cluster.load_probe();
            }
            return cluster;
        }
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let dir =
            Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("target/cluster/test-{}-{number}", std::process::id()));
        let level = match level {
            Level::ControlPlane => "control-plane",
            Level::Workloads => "workloads",
            Level::Node => "node",
        };
        let mut child = Command::new(launcher())
            .args(["run", "--temporary", "--level", level, "--fake-nodes", &fake_nodes.to_string(), "--dir"])
            .arg(&dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let events = events(&mut child);
        let control = Mutex::new((child.stdin.take(), events));
        let launched = Launched { child, dir, control };
        launched.expect("ready ");
        Self { kubeconfig: launched.dir.join("kubeconfig"), launched: Some(launched) }
    }

    /// The cluster that all tests of this binary share; started by the first that asks. Tests keep
    /// apart by namespaces (see [`Cluster::namespace`]).
    pub fn shared(level: Level) -> &'static Self {
        static SHARED: [OnceLock<Cluster>; 3] = [const { OnceLock::new() }; 3];
        // A cluster on which one test failed to start is not started again for each of the others.
        SHARED[level as usize].get_or_init(|| Self::start(level))
    }

    /// Path of the administrator's kubeconfig.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Directory of the cluster, with `logs/` in it; none for a cluster that was there before.
    pub fn dir(&self) -> Option<&Path> {
        self.launched.as_ref().map(|l| l.dir.as_path())
    }

    /// Address of this machine as pods of its node reach it: what a test serves there, pods can
    /// use. The other way, this machine reaches pods and Services by their addresses. None for a
    /// cluster that was there before, and for one without a node.
    pub fn host_address(&self) -> Option<String> {
        let index = std::fs::read_to_string(self.dir()?.join("index")).ok()?;
        Some(format!("10.111.{index}.1"))
    }

    /// Runs kubectl.
    pub fn kubectl(&self, args: &[&str]) -> Output {
        self.kubectl_with(args, "")
    }

    /// Runs kubectl with something on its standard input.
    pub fn kubectl_with(&self, args: &[&str], stdin: &str) -> Output {
        let mut child = Command::new(kubectl())
            .args(args)
            .env("KUBECONFIG", &self.kubeconfig)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kubectl: hack/cluster-tools.sh builds it");
        let mut input = child.stdin.take().unwrap();
        // kubectl may end without reading.
        let _ = input.write_all(stdin.as_bytes());
        drop(input);
        child.wait_with_output().unwrap()
    }

    /// Runs kubectl, which must succeed, and gives what it printed.
    pub fn ok(&self, args: &[&str]) -> String {
        self.ok_with(args, "")
    }

    /// Like [`Cluster::ok`], with something on standard input.
    pub fn ok_with(&self, args: &[&str], stdin: &str) -> String {
        let output = self.kubectl_with(args, stdin);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kubectl {args:?}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs kubectl, which must fail, and gives what it complained about.
    pub fn fails(&self, args: &[&str], stdin: &str) -> String {
        let output = self.kubectl_with(args, stdin);
        assert!(!output.status.success(), "kubectl {args:?} succeeded");
        String::from_utf8(output.stderr).unwrap()
    }

    /// Applies objects by server-side apply.
    pub fn apply(&self, namespace: &str, objects: &[Value]) {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        self.ok_with(&["apply", "--server-side", "--namespace", namespace, "-f", "-"], &list.to_string());
    }

    /// Makes a namespace that is deleted at the end of the test. Its name begins with `prefix`.
    pub fn namespace(&self, prefix: &str, labels: &Value) -> Namespace<'_> {
        let name = format!("{prefix}-{}", std::process::id());
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}});
        self.ok_with(&["apply", "--server-side", "-f", "-"], &object.to_string());
        Namespace { cluster: self, name }
    }

    /// Puts an image of the Docker engine on the node.
    pub fn load_image(&self, image: &str) {
        let mut command = if let Some(launched) = &self.launched {
            let mut command = Command::new(launcher());
            command.args(["load-image", "--dir"]).arg(&launched.dir);
            command
        } else {
            let load = std::env::var("PERCH_TEST_LOAD_IMAGE").expect("PERCH_TEST_LOAD_IMAGE loads an image");
            let mut words = load.split_whitespace();
            let mut command = Command::new(words.next().expect("PERCH_TEST_LOAD_IMAGE is a command"));
            command.args(words);
            command
        };
        let output = command.arg(image).output().unwrap();
        assert!(output.status.success(), "{image}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Puts the probe on the nodes of a cluster that was there before.
    fn load_probe(&self) {
        let mut archive = Command::new(launcher()).arg("probe-image").stdout(Stdio::piped()).spawn().unwrap();
        let load = Command::new("docker").arg("load").stdin(archive.stdout.take().unwrap()).output().unwrap();
        assert!(load.status.success(), "docker load: {}", String::from_utf8_lossy(&load.stderr));
        assert!(archive.wait().unwrap().success());
        self.load_image(PROBE_IMAGE);
    }

    /// Ends a program of the cluster at once, for example `kube-apiserver`.
    pub fn stop_component(&self, name: &str) {
        self.command(&format!("stop {name}"));
    }

    /// Starts it again; it may take a while until it answers.
    pub fn start_component(&self, name: &str) {
        self.command(&format!("start {name}"));
    }

    fn command(&self, line: &str) {
        let launched = self.launched.as_ref().expect("only a cluster that the test started can be broken");
        {
            let mut control = launched.control.lock().unwrap();
            writeln!(control.0.as_mut().unwrap(), "{line}").unwrap();
        }
        launched.expect(&format!("done {line}"));
    }
}

impl Launched {
    /// Waits for an event of the launcher.
    fn expect(&self, event: &str) {
        let control = self.control.lock().unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = control.1.recv_timeout(left).unwrap_or_else(|e| panic!("the cluster: no {event:?}: {e}"));
            assert!(!line.starts_with("failed "), "the cluster: {line}");
            if line.starts_with(event) {
                return;
            }
        }
    }
}

impl Drop for Launched {
    fn drop(&mut self) {
        if let Ok(control) = self.control.get_mut() {
            control.0.take();
        }
        // It ends because its input did.
        let _ = self.child.wait();
    }
}

/// A namespace of one test.
pub struct Namespace<'a> {
    cluster: &'a Cluster,
    name: String,
}

impl Namespace<'_> {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs kubectl in it, which must succeed.
    pub fn ok(&self, args: &[&str]) -> String {
        self.cluster.ok(&[&["--namespace", &self.name], args].concat())
    }

    /// Runs kubectl in it.
    pub fn kubectl(&self, args: &[&str]) -> Output {
        self.cluster.kubectl(&[&["--namespace", &self.name], args].concat())
    }

    /// Applies objects in it.
    pub fn apply(&self, objects: &[Value]) {
        self.cluster.apply(&self.name, objects);
    }
}

impl Drop for Namespace<'_> {
    fn drop(&mut self) {
        // The cluster may be broken, which the test has said already.
        self.cluster.kubectl(&["delete", "namespace", &self.name, "--wait=false"]);
    }
}

fn events(child: &mut Child) -> Receiver<String> {
    let (sender, receiver) = channel();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

/// The kubeconfig of the cluster that tests shall use instead of one of their own.
fn existing() -> Option<PathBuf> {
    if std::env::var("USE_EXISTING_CLUSTER").is_ok_and(|v| v == "true") {
        let kubeconfig = std::env::var_os("KUBECONFIG").expect("USE_EXISTING_CLUSTER needs KUBECONFIG");
        return Some(kubeconfig.into());
    }
    None
}

/// The launcher, built with the tests.
pub fn launcher() -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_perch")).parent().unwrap().join("examples/test-cluster");
    assert!(path.exists(), "{} is built by `cargo build --example test-cluster`", path.display());
    path
}

/// kubectl as new as the API server.
pub fn kubectl() -> PathBuf {
    std::env::var_os("PERCH_TEST_KUBECTL").map_or_else(|| program("kubectl"), PathBuf::from)
}

/// A program that `hack/cluster-tools.sh` made, or else one on the path.
pub fn program(name: &str) -> PathBuf {
    let mut places = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("target/testbin")];
    places.extend(["PERCH_TESTBIN", "KUBEBUILDER_ASSETS"].iter().filter_map(std::env::var_os).map(PathBuf::from));
    places.into_iter().map(|p| p.join(name)).find(|p| p.is_file()).unwrap_or_else(|| name.into())
}
