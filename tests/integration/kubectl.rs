//! What people type: every verb through the real kubectl.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

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
    let mut unread = Command::new(env!("CARGO_BIN_EXE_perch"))
        .args(["get", "-o", "yaml", "--data-dir", data])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(unread.stdout.take());
    let output = unread.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let logs = wait("the log", || Some(said(&["logs", "a"])).filter(|l| !l.is_empty()));
    assert!(logs.contains("fixture starts"), "{logs}");
}

/// A program that an editor can be: it runs `script` on the file that it is given.
fn editor(dir: &tempfile::TempDir, name: &str, script: &str) -> String {
    use std::os::unix::fs::PermissionsExt;
    let path = dir.path().join(name);
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path.display().to_string()
}

fn stopped(replicas: u32) -> Value {
    json!({"command": ["true"], "suspend": true, "replicas": replicas})
}

#[test]
fn edit_changes_what_the_editor_changed() {
    let dir = tempfile::tempdir().unwrap();
    let up = up(&dir);
    up.apply("a", &stopped(1));
    let edit = |editor: &str| up.kubectl_in(&[("KUBE_EDITOR", editor)], &["edit", "mcps", "a"], "");
    let replicas = || up.ok(&["get", "mcps", "a", "-o", "jsonpath={.spec.replicas}"]);

    let output = edit(&editor(&dir, "five", r#"sed -i 's/replicas: 1/replicas: 5/' "$1""#));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("mcpserver.perch.dev/a edited"));
    assert_eq!(replicas(), "5");
    let output = edit(&editor(&dir, "nothing", "true"));
    assert!(String::from_utf8_lossy(&output.stderr).contains("Edit cancelled, no changes made"), "{output:?}");
    // A mistake is shown in the file, and the editor opens again; giving up changes nothing.
    let seen = dir.path().join("seen");
    let wrong = format!(
        r#"cp "$1" {0}.$(ls {0}.* 2>/dev/null | wc -l); sed -i 's/replicas: 5/replicas: -5/' "$1""#,
        seen.display()
    );
    let output = edit(&editor(&dir, "wrong", &wrong));
    assert!(!output.status.success());
    let shown = std::fs::read_to_string(dir.path().join("seen.1")).unwrap();
    assert!(shown.contains("spec.replicas: Invalid value: -5"), "{shown}");
    assert_eq!(replicas(), "5");
    // Somebody else was faster: what was edited is not what is there.
    let faster = format!(
        r#"kubectl --kubeconfig {} patch mcps a --type=merge -p '{{"spec":{{"replicas":7}}}}' >/dev/null; sed -i 's/replicas: 5/replicas: 6/' "$1""#,
        dir.path().join("kubeconfig").display()
    );
    let output = edit(&editor(&dir, "faster", &faster));
    assert!(
        output.status.success(),
        "an edit is a patch of what was edited: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(replicas(), "6");
    assert_eq!(up.ok(&["get", "mcps", "a", "-o", "jsonpath={.metadata.generation}"]), "4");
    let output = up.kubectl_in(
        &[("KUBE_EDITOR", &editor(&dir, "status", r#"sed -i 's/phase: Suspended/phase: Ready/' "$1""#))],
        &["edit", "mcps", "a", "--subresource=status"],
        "",
    );
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn scale_keeps_its_conditions() {
    let dir = tempfile::tempdir().unwrap();
    let up = up(&dir);
    up.apply("a", &json!({"command": [fixture(), "stdio"]}));
    up.until("a", "Ready");
    assert!(up.ok(&["scale", "mcps", "a", "--replicas=2", "--current-replicas=1"]).contains("scaled"));
    let refused = up.fails(&["scale", "mcps", "a", "--replicas=9", "--current-replicas=1"], "");
    assert!(refused.contains("Expected replicas to be 1, was 2"), "{refused}");
    let refused = up.fails(&["scale", "mcps", "a", "--replicas=9", "--resource-version=1"], "");
    assert!(refused.contains("resource version"), "{refused}");
    let refused = up.fails(&["scale", "mcps", "a", "--replicas=-1"], "");
    assert!(
        refused.contains("greater than or equal to 0") || refused.contains("number equal or greater than zero"),
        "{refused}"
    );
    up.ok(&["wait", "mcps", "a", "--for=jsonpath={.status.readyReplicas}=2", "--timeout=60s"]);
    let scale: Value = serde_json::from_str(&up.ok(&[
        "get",
        "--raw",
        "/apis/perch.dev/v1alpha1/namespaces/default/mcpservers/a/scale",
    ]))
    .unwrap();
    assert_eq!(
        (&scale["kind"], &scale["spec"]["replicas"], &scale["status"]["replicas"]),
        (&json!("Scale"), &json!(2), &json!(2))
    );
    assert_eq!(scale["status"]["selector"], "perch.dev/server=a");
}

#[test]
fn labels_and_annotations_come_and_go() {
    let dir = tempfile::tempdir().unwrap();
    let up = up(&dir);
    up.apply("a", &stopped(1));
    up.until("a", "Suspended");
    let generation = || up.ok(&["get", "mcps", "a", "-o", "jsonpath={.metadata.generation}"]);
    let before = generation();
    for what in ["label", "annotate"] {
        let field = if what == "label" { "labels" } else { "annotations" };
        let value =
            || up.ok(&["get", "mcps", "a", "-o", &format!(r"jsonpath={{.metadata.{field}.example\.com/note}}")]);
        up.ok(&[what, "mcps", "a", "example.com/note=one"]);
        assert_eq!(value(), "one");
        let refused = up.fails(&[what, "mcps", "a", "example.com/note=two"], "");
        assert!(refused.contains("--overwrite is false"), "{refused}");
        up.ok(&[what, "mcps", "a", "example.com/note=two", "--overwrite"]);
        assert_eq!(value(), "two");
        let refused = up.fails(&[what, "mcps", "a", "example.com/note=x", "--overwrite", "--resource-version=1"], "");
        assert!(refused.contains("the object has been modified"), "{refused}");
        up.ok(&[what, "mcps", "a", "example.com/note-"]);
        assert_eq!(value(), "");
    }
    assert_eq!(generation(), before, "only a change of the spec is a new generation");
    let refused = up.fails(&["label", "mcps", "a", "note=not allowed!"], "");
    assert!(refused.contains("a valid label must be"), "{refused}");
}

#[test]
fn diff_says_by_its_exit_code_whether_anything_differs() {
    let dir = tempfile::tempdir().unwrap();
    let up = up(&dir);
    let diff = |spec: &Value, args: &[&str]| {
        let output = up.kubectl_with(&[&["diff", "-f", "-"], args].concat(), &manifest("a", spec));
        (
            output.status.code().unwrap(),
            String::from_utf8(output.stdout).unwrap(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    let (code, shown, _) = diff(&stopped(1), &[]);
    assert_eq!(code, 1);
    assert!(shown.contains("+kind: McpServer") && shown.contains("+  replicas: 1"), "{shown}");
    assert_eq!(up.ok(&["get", "mcps", "-o", "name"]), "", "a diff makes nothing");
    up.apply("a", &stopped(1));
    assert_eq!(diff(&stopped(1), &[]).0, 0, "defaults are no difference");
    for args in [&[][..], &["--server-side", "--force-conflicts"]] {
        let (code, shown, said) = diff(&stopped(3), args);
        assert_eq!(code, 1, "{said}");
        assert!(shown.contains("-  replicas: 1") && shown.contains("+  replicas: 3"), "{shown}");
    }
    let (code, _, said) = diff(&json!({"command": ["true"], "replicas": -1}), &[]);
    assert!(code > 1 && said.contains("spec.replicas"), "{said}");
}

#[test]
fn deletion_waits_for_what_it_says() {
    let dir = tempfile::tempdir().unwrap();
    let up = up(&dir);
    up.apply("a", &json!({"command": [fixture(), "stdio"]}));
    up.until("a", "Ready");
    let a: Value = serde_json::from_str(&up.ok(&["get", "mcps", "a", "-o", "json"])).unwrap();
    assert_eq!(a["metadata"]["finalizers"], json!(["perch.dev/runtime"]));
    let owner = json!([{
        "apiVersion": "perch.dev/v1alpha1", "kind": "McpServer", "name": "a", "uid": a["metadata"]["uid"], "blockOwnerDeletion": true,
    }]);
    let dependent = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "child", "ownerReferences": owner, "finalizers": ["example.com/hold"]},
    });
    up.ok_with(&["create", "-f", "-"], &dependent.to_string());
    let said = up.fails(&["wait", "mcps", "a", "--for=delete", "--timeout=0s"], "");
    assert!(said.contains("timed out") || said.contains("condition not met"), "{said}");

    up.ok(&["delete", "mcps", "a", "--cascade=foreground", "--wait=false"]);
    // The owner stays until its dependent is gone, and that is held.
    up.ok(&["wait", "configmap", "child", "--for=jsonpath={.metadata.deletionTimestamp}", "--timeout=30s"]);
    let a: Value = serde_json::from_str(&up.ok(&["get", "mcps", "a", "-o", "json"])).unwrap();
    assert!(a["metadata"]["deletionTimestamp"].is_string());
    assert!(a["metadata"]["finalizers"].as_array().unwrap().contains(&json!("foregroundDeletion")), "{a}");
    // kubectl says nothing of what is gone before it looks, so it waits first.
    let mut waiting = Command::new("kubectl")
        .args(["wait", "mcps/a", "configmap/child", "--for=delete", "--timeout=60s", "-v=6", "--kubeconfig"])
        .arg(dir.path().join("kubeconfig"))
        .env("HOME", dir.path().join("home"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut requests = BufReader::new(waiting.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(requests.any(|line| line.contains("mcpservers") && line.contains("watch=true")));
    up.ok(&["patch", "configmap", "child", "--type=json", "-p", r#"[{"op":"remove","path":"/metadata/finalizers"}]"#]);
    let all: Vec<String> = requests.collect();
    let waited = waiting.wait_with_output().unwrap();
    assert!(waited.status.success(), "{all:?}");
    let said = String::from_utf8(waited.stdout).unwrap();
    assert!(said.contains("mcpserver.perch.dev/a condition met"), "{said}");
    assert_eq!(up.ok(&["get", "mcps,configmaps,controllerrevisions", "-o", "name"]), "");

    // In the background the owner goes first, and with orphan what it owned stays.
    for (policy, left) in [("background", ""), ("orphan", "configmap/child\n")] {
        up.apply("b", &stopped(1));
        up.until("b", "Suspended");
        let uid = up.ok(&["get", "mcps", "b", "-o", "jsonpath={.metadata.uid}"]);
        let owner = json!([{"apiVersion": "perch.dev/v1alpha1", "kind": "McpServer", "name": "b", "uid": uid}]);
        let dependent =
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "child", "ownerReferences": owner}});
        up.ok_with(&["create", "-f", "-"], &dependent.to_string());
        up.ok(&["delete", "mcps", "b", &format!("--cascade={policy}")]);
        assert_eq!(up.ok(&["get", "mcps", "-o", "name"]), "");
        assert_eq!(up.ok(&["get", "configmaps", "-o", "name"]), left, "{policy}");
    }
}

#[test]
fn lists_come_in_chunks_and_by_selectors() {
    let dir = tempfile::tempdir().unwrap();
    let up = up(&dir);
    let items: Vec<Value> = (0..23)
        .map(|i| {
            let labels = json!({"parity": if i % 2 == 0 { "even" } else { "odd" }, "third": (i % 3).to_string()});
            json!({"apiVersion": "perch.dev/v1alpha1", "kind": "McpServer", "metadata": {"name": format!("s{i:02}"), "labels": labels}, "spec": stopped(1)})
        })
        .collect();
    up.ok_with(&["create", "-f", "-"], &json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string());
    let whole = up.ok(&["get", "mcps", "-o", "name", "--chunk-size=0"]);
    assert_eq!(whole.lines().count(), 23);
    for size in [5, 7, 23, 24] {
        let said = up.kubectl(&["get", "mcps", "-o", "name", &format!("--chunk-size={size}"), "-v=6"]);
        assert_eq!(String::from_utf8_lossy(&said.stdout), whole, "chunks of {size}");
        let said = String::from_utf8_lossy(&said.stderr);
        let requests = said.lines().filter(|l| l.contains("Response") && l.contains("/mcpservers?")).count();
        assert_eq!(requests, 23_usize.div_ceil(size), "chunks of {size}: {said}");
        assert_eq!(up.ok(&["get", "mcps", &format!("--chunk-size={size}"), "--no-headers"]).lines().count(), 23);
    }
    let count = |args: &[&str]| up.ok(&[&["get", "mcps", "-o", "name"], args].concat()).lines().count();
    for (selector, expected) in [
        ("parity=even", 12),
        ("parity!=even", 11),
        ("parity=even,third=0", 4),
        ("third in (0,1)", 16),
        ("third notin (0,1)", 7),
        ("third", 23),
        ("!third", 0),
        ("absent notin (x)", 23),
    ] {
        assert_eq!(count(&["-l", selector]), expected, "{selector}");
        assert_eq!(count(&["-l", selector, "--chunk-size=5"]), expected, "{selector} in chunks");
    }
    assert_eq!(count(&["--field-selector", "metadata.name=s03"]), 1);
    assert_eq!(count(&["--field-selector", "metadata.name!=s03"]), 22);
    assert_eq!(count(&["--field-selector", "metadata.namespace=default,metadata.name=s03", "-l", "parity=odd"]), 1);
    assert_eq!(count(&["--field-selector", "metadata.namespace=other"]), 0);
    up.until("s03", "Suspended");
    let events =
        up.ok(&["get", "events", "--field-selector", "involvedObject.name=s03,reason=Suspended", "-o", "name"]);
    assert_eq!(events.lines().count(), 1, "{events}");
    up.ok(&["delete", "mcps", "-l", "parity=odd"]);
    assert_eq!(count(&[]), 12);
}
