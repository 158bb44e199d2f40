//! The samples of the README, with the official Python client.

use std::process::Command;

use crate::{
    containers, docker, down, label, setting,
    support::{Perch, wait},
};

fn call(url: &str, tool: &str, arguments: &str) -> String {
    let output = Command::new(setting("PERCH_TEST_PYTHON"))
        .args(["tests/e2e/client.py", url, tool, arguments])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn try_samples(runtime: &str) {
    let dir = tempfile::tempdir().unwrap();
    let base = setting("PERCH_TEST_BASE_IMAGE");
    let up = Perch::up(
        dir.path(),
        &[
            "--runtime",
            runtime,
            "--apply",
            "manifests/samples/quickstart.yaml",
            "--npm-base-image",
            &base,
            "--pypi-base-image",
            &base,
        ],
    );
    wait("the samples", || {
        ["everything", "everything-http", "time"]
            .iter()
            .all(|n| up.kubectl(&["get", "mcps", n]).status.success())
            .then_some(())
    });
    up.ok(&["wait", "mcps", "--all", "--for=condition=Ready", "--timeout=300s"]);
    let url = |name: &str| format!("{}/default/{name}/mcp", up.gateway);
    for name in ["everything", "everything-http"] {
        assert!(call(&url(name), "echo", r#"{"message": "hello"}"#).contains("hello"));
    }
    assert!(call(&url("time"), "get_current_time", r#"{"timezone": "UTC"}"#).contains("UTC"));
    let summary = wait("the summary", || Some(up.output()).filter(|o| o.contains("mcpServers")));
    for part in ["get mcpservers -w", "default/everything", &url("time")] {
        assert!(summary.contains(part), "{summary}");
    }
    let filter = label(&up);
    if runtime == "docker" {
        assert_eq!(containers(&filter).len(), 3);
        assert_eq!(
            docker(&["ps", "-q", "--filter", &filter, "--filter", "publish=1-65535"]),
            "",
            "no port is published"
        );
    }
    assert_eq!(up.stop(), Some(0));
    assert_eq!(docker(&["ps", "-q", "--filter", &filter]), "", "nothing runs after a clean stop");
    down(dir.path(), &filter);
}

#[test]
fn the_samples_run_in_containers() {
    try_samples("docker");
}

#[test]
fn the_same_samples_run_as_processes() {
    try_samples("process");
}
