//! A cluster leaves nothing behind.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::{
    cluster::{Cluster, Level, PROBE_IMAGE, launcher},
    wait,
};

/// Processes with this text in their command line.
fn processes(text: &str) -> Vec<String> {
    let of = |entry: std::io::Result<std::fs::DirEntry>| {
        let line = std::fs::read(entry.ok()?.path().join("cmdline")).ok()?;
        Some(String::from_utf8_lossy(&line).replace('\0', " "))
    };
    std::fs::read_dir("/proc").unwrap().filter_map(of).filter(|line| line.contains(text)).collect()
}

fn interface(index: &str) -> bool {
    Path::new("/sys/class/net").join(format!("perch-test{index}")).exists()
}

/// Control groups of a cluster, in whichever hierarchy.
fn groups(index: &str) -> Vec<PathBuf> {
    let name = format!("perch-test-{index}");
    let root = Path::new("/sys/fs/cgroup");
    let below = std::fs::read_dir(root).unwrap().filter_map(Result::ok).map(|e| e.path());
    below.chain([root.to_owned()]).map(|dir| dir.join(&name)).filter(|group| group.exists()).collect()
}

/// A cluster with a pod on its node; its directory and number.
fn with_a_pod() -> (Cluster, PathBuf, String) {
    let cluster = Cluster::start(Level::Node);
    let dir = cluster.dir().expect("this test breaks its cluster: it needs its own").to_owned();
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [
        {"name": "c", "image": PROBE_IMAGE, "imagePullPolicy": "Never", "args": ["serve", ":8080"]},
    ]}});
    cluster.apply("default", &[pod]);
    cluster.ok(&["wait", "pod/p", "--for=condition=Ready", "--timeout=60s"]);
    let index = std::fs::read_to_string(dir.join("index")).unwrap();
    assert!(interface(&index) && !groups(&index).is_empty());
    let shims = processes(dir.to_str().unwrap()).into_iter().filter(|p| p.contains("containerd-shim")).count();
    assert_eq!(shims, 2, "the name server and the pod");
    (cluster, dir, index)
}

#[test]
fn a_node_that_is_stopped_leaves_nothing() {
    let (cluster, dir, index) = with_a_pod();
    drop(cluster);
    assert_eq!(processes(dir.to_str().unwrap()), [""; 0]);
    assert!(!interface(&index));
    assert_eq!(groups(&index), Vec::<PathBuf>::new());
    assert!(!dir.exists());
}

#[test]
fn a_node_whose_launcher_is_killed_ends_and_down_removes_the_rest() {
    let (cluster, dir, index) = with_a_pod();
    let pid: i32 = std::fs::read_to_string(dir.join("pid")).unwrap().parse().unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    wait("all processes to end", || processes(dir.to_str().unwrap()).is_empty().then_some(()));
    wait("the interface to go", || (!interface(&index)).then_some(()));
    drop(cluster);
    let down = Command::new(launcher()).args(["down", "--dir"]).arg(&dir).output().unwrap();
    assert!(down.status.success(), "{}", String::from_utf8_lossy(&down.stderr));
    assert_eq!(groups(&index), Vec::<PathBuf>::new());
    assert!(!dir.exists());
}

#[test]
fn down_does_not_touch_a_directory_that_is_not_a_cluster() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("thesis.txt"), "years of work").unwrap();
    let run = |args: &[&str]| Command::new(launcher()).args(args).arg("--dir").arg(dir.path()).output().unwrap();
    let down = run(&["down"]);
    assert!(!down.status.success());
    assert!(String::from_utf8_lossy(&down.stderr).contains("not the directory of a cluster"));
    let up = run(&["up", "--level", "control-plane"]);
    assert!(!up.status.success());
    assert!(String::from_utf8_lossy(&up.stderr).contains("has other files"));
    assert_eq!(std::fs::read_to_string(dir.path().join("thesis.txt")).unwrap(), "years of work");
}
