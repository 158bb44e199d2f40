//! What people type: every verb through the real kubectl.

use serde_json::{Value, json};

use crate::support::{Perch, fixture, perch, wait};

fn up(dir: &tempfile::TempDir) -> Perch {
    Perch::up(dir.path(), &["--runtime", "process"])
}

fn manifest(name: &str, spec: &Value) -> String {
    json!({"apiVersion": "perch.dev/v1alpha1", "kind": "McpServer", "metadata": {"name": name}, "spec": spec})
        .to_string()
}

#[test]
fn every_verb() {
    let dir = tempfile::tempdir().unwrap();
    let up = up(&dir);
    let server = manifest("a", &json!({"command": [fixture(), "stdio"], "suspend": true}));

    assert!(up.ok(&["api-resources"]).contains("mcps"));
    let explained = up.ok(&["explain", "mcpserver.spec.transport"]);
    assert!(explained.contains("sessions") && explained.contains("enum: Stdio, StreamableHttp"), "{explained}");

    assert!(up.ok_with(&["create", "-f", "-"], &server).contains("created"));
    assert!(up.fails(&["create", "-f", "-"], &server).contains("AlreadyExists"));
    assert!(up.ok_with(&["apply", "-f", "-"], &server).contains("configured"));
    assert!(up.ok_with(&["apply", "-f", "-"], &server).contains("unchanged"));
    assert!(up.ok(&["get", "mcps"]).starts_with("NAME"));
    assert!(up.ok(&["get", "mcps", "-A", "-o", "wide"]).contains("URL"));
    assert_eq!(up.ok(&["get", "mcps", "-o", "name"]), "mcpserver.perch.dev/a\n");
    assert_eq!(up.ok(&["get", "mcps", "a", "-o", "jsonpath={.spec.transport.type}"]), "Stdio");
    assert!(up.ok(&["get", "mcps", "a", "-o", "yaml"]).contains("readOnlyRootFilesystem: true"));

    up.ok(&["label", "mcps", "a", "team=red"]);
    up.ok(&["annotate", "mcps", "a", "note=hello"]);
    assert!(up.ok(&["get", "mcps", "-l", "team in (red,blue)"]).contains('a'));
    assert_eq!(up.ok(&["get", "mcps", "-l", "team!=red", "-o", "name"]), "");
    assert!(up.ok(&["get", "mcps", "--field-selector", "metadata.name=a", "-o", "name"]).contains("/a"));
    assert!(up.fails(&["get", "mcps", "--field-selector", "spec.image=a"], "").contains("field label not supported"));

    up.ok(&["scale", "mcps", "a", "--replicas=3"]);
    assert_eq!(up.ok(&["get", "mcps", "a", "-o", "jsonpath={.spec.replicas}"]), "3");
    up.ok(&["patch", "mcps", "a", "--type=merge", "-p", r#"{"spec":{"replicas":2}}"#]);
    up.ok(&["patch", "mcps", "a", "--type=json", "-p", r#"[{"op":"replace","path":"/spec/replicas","value":4}]"#]);
    assert_eq!(up.ok(&["get", "mcps", "a", "-o", "jsonpath={.spec.replicas}"]), "4");
    assert!(
        up.fails(&["patch", "mcps", "a", "--type=strategic", "-p", "{}"], "")
            .contains("is not supported by perch.dev/v1alpha1")
    );

    let wanted = manifest("a", &json!({"command": [fixture(), "stdio"], "suspend": true, "replicas": 5}));
    let dry = up.ok_with(&["apply", "--dry-run=server", "-o", "yaml", "-f", "-"], &wanted);
    assert!(dry.contains("replicas: 5"));
    assert_eq!(up.ok(&["get", "mcps", "a", "-o", "jsonpath={.spec.replicas}"]), "4");
    let difference = up.kubectl_with(&["diff", "-f", "-"], &wanted);
    assert_eq!(difference.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&difference.stdout).contains("+  replicas: 5"));

    up.ok(&["wait", "mcps", "a", "--for=jsonpath={.status.phase}=Suspended", "--timeout=30s"]);
    let described = up.ok(&["describe", "mcps", "a"]);
    assert!(described.contains("Suspended") && described.contains("Events:"), "{described}");

    up.ok(&["create", "namespace", "other"]);
    up.ok_with(&["apply", "-n", "other", "-f", "-"], &manifest("b", &json!({"command": ["true"], "suspend": true})));
    up.ok(&["create", "secret", "generic", "s", "--from-literal=k=v", "-n", "other"]);
    up.ok(&["delete", "namespace", "other"]);
    assert_eq!(up.ok(&["get", "mcps,secrets", "-A", "-o", "name"]), "mcpserver.perch.dev/a\n");

    assert!(up.ok(&["get", "controllerrevisions", "-o", "name"]).contains("/a-"));
    up.ok(&["delete", "mcps", "a", "--cascade=foreground"]);
    assert_eq!(up.ok(&["get", "mcps,controllerrevisions", "-o", "name"]), "", "what a server owns goes with it");
}

#[test]
fn field_managers_and_conflicts() {
    let dir = tempfile::tempdir().unwrap();
    let up = up(&dir);
    let spec = |replicas: u32| manifest("a", &json!({"command": ["true"], "suspend": true, "replicas": replicas}));
    up.ok_with(&["apply", "--server-side", "--field-manager=git", "-f", "-"], &spec(1));
    let conflict = up.fails(&["apply", "--server-side", "--field-manager=me", "-f", "-"], &spec(2));
    assert!(conflict.contains("conflict with \"git\"") && conflict.contains(".spec.replicas"), "{conflict}");
    up.ok_with(&["apply", "--server-side", "--field-manager=me", "--force-conflicts", "-f", "-"], &spec(2));
    assert_eq!(up.ok(&["get", "mcps", "a", "-o", "jsonpath={.spec.replicas}"]), "2");
    up.ok_with(&["apply", "-f", "-"], &spec(3));
    up.ok_with(&["apply", "--server-side", "--force-conflicts", "-f", "-"], &spec(4));
    assert_eq!(up.ok(&["get", "mcps", "a", "-o", "jsonpath={.spec.replicas}"]), "4");
}

#[test]
fn mistakes_are_answered_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let up = up(&dir);
    let refused = |spec: Value| up.fails(&["apply", "-f", "-"], &manifest("bad", &spec));
    for (spec, expected) in [
        (json!({"imagee": "x", "image": "y"}), "unknown field \"spec.imagee\""),
        (json!({"image": 7}), "spec.image in body must be of type string"),
        (
            json!({"image": "x", "remote": {"url": "https://x/mcp"}, "transport": {"type": "StreamableHttp"}}),
            "set only one of image, package and remote",
        ),
        (json!({}), "nothing to run: set one of image, package or remote"),
        (
            json!({"image": "x", "resources": {"limits": {"memory": "lots"}}}),
            "spec.resources.limits.memory: Invalid value: \"lots\"",
        ),
        (json!({"image": "x", "transport": {"port": 80}}), "a Stdio server has no port"),
        (json!({"image": "x".repeat(4 << 20)}), "too large"),
    ] {
        let said = refused(spec);
        assert!(said.contains(expected), "{expected}: {}", said.chars().take(500).collect::<String>());
    }
    let said = up.fails(&["apply", "-f", "-"], &manifest("Bad_Name", &json!({"image": "x"})));
    assert!(said.contains("RFC 1123 subdomain"), "{said}");
    assert!(up.fails(&["get", "mcps", "nobody"], "").contains("mcpservers.perch.dev \"nobody\" not found"));
    assert!(up.fails(&["get", "pods"], "").contains("doesn't have a resource type \"pods\""));
    let stale = json!({"apiVersion": "perch.dev/v1alpha1", "kind": "McpServer", "metadata": {"name": "gone", "resourceVersion": "1"}, "spec": {"image": "x"}});
    assert!(up.fails(&["replace", "-f", "-"], &stale.to_string()).contains("NotFound"));
    assert_eq!(up.ok(&["get", "mcps", "-o", "name"]), "", "nothing of it is left");
}

#[test]
fn a_watch_shows_changes_as_they_come() {
    use std::{
        io::{BufRead, BufReader},
        process::{Command, Stdio},
    };
    let dir = tempfile::tempdir().unwrap();
    let up = up(&dir);
    let mut watch = Command::new("kubectl")
        .args(["get", "mcps", "-w", "--output-watch-events", "--kubeconfig"])
        .arg(dir.path().join("kubeconfig"))
        .env("HOME", dir.path().join("home"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    up.apply("a", &json!({"command": [fixture(), "stdio"]}));
    let mut seen = String::new();
    while !seen.contains("Ready") {
        seen.push_str(&lines.next().unwrap().unwrap());
    }
    up.ok(&["delete", "mcps", "a"]);
    while !seen.contains("DELETED") {
        seen.push_str(&lines.next().unwrap().unwrap());
    }
    watch.kill().unwrap();
    watch.wait().unwrap();
    assert!(seen.contains("ADDED"), "{seen}");
}

#[test]
fn people_without_kubectl_are_served_too() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().to_str().unwrap();
    let none = perch(&["get", "--data-dir", data]);
    assert!(String::from_utf8_lossy(&none.stderr).contains("start one with `perch up`"));
    let up = up(&dir);
    up.apply("a", &json!({"command": [fixture(), "stdio"]}));
    up.until("a", "Ready");
    let said = |args: &[&str]| {
        let output = perch(&[args, &["--data-dir", data]].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(said(&["get"]).contains("READY"));
    assert!(said(&["get", "a", "-o", "yaml"]).contains("kind: McpServer"));
    let status = said(&["status", "a"]);
    assert!(status.contains("a  Ready  1/1 ready") && status.contains("fixture 1.2.3, 7 tools"), "{status}");
    // As with `| head`, when head had enough.
    let mut unread = std::process::Command::new(env!("CARGO_BIN_EXE_perch"))
        .args(["get", "-o", "yaml", "--data-dir", data])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(unread.stdout.take());
    let output = unread.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let logs = wait("the log", || Some(said(&["logs", "a"])).filter(|l| !l.is_empty()));
    assert!(logs.contains("fixture starts"), "{logs}");
}
