//! Policies on the embedded control plane, through the real kubectl, and `perch policy check`.

use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use crate::support::{Perch, send, wait};

fn up(dir: &tempfile::TempDir, args: &[&str]) -> Perch {
    Perch::up(dir.path(), &[&["--runtime", "process", "--gateway-admin-addr", "127.0.0.1:0"], args].concat())
}

fn server(name: &str, namespace: &str, context: &Value) -> String {
    json!({
        "apiVersion": "perch.dev/v1alpha1", "kind": "McpServer", "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "image": "example.invalid/x:1", "suspend": true,
            "podTemplate": {"spec": {"containers": [{"name": "server", "securityContext": context}]}},
        },
    })
    .to_string()
}

fn namespace(up: &Perch, name: &str, level: &str, mode: &str) {
    up.ok(&["create", "namespace", name]);
    let (level, mode) = (format!("perch.dev/policy-level={level}"), format!("perch.dev/policy-mode={mode}"));
    up.ok(&["label", "namespace", name, &level, &mode]);
}

/// What kubectl says on standard error, warnings above all.
fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn condition(up: &Perch, name: &str, namespace: &str) -> Option<Value> {
    let object: Value = serde_json::from_str(&up.ok(&["get", "mcps", name, "-n", namespace, "-o", "json"])).unwrap();
    object["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == "Compliant").cloned()
}

fn until(up: &Perch, name: &str, namespace: &str, reason: &str) -> Value {
    wait(&format!("{name} to be {reason}"), || condition(up, name, namespace).filter(|c| c["reason"] == reason))
}

#[test]
fn a_root_container_is_denied_warned_about_and_admitted_after_the_fix() {
    let dir = tempfile::tempdir().unwrap();
    let up = up(&dir, &[]);
    namespace(&up, "strict", "medium", "deny");
    namespace(&up, "lenient", "low", "deny");
    namespace(&up, "asking", "medium", "warn");
    namespace(&up, "silent", "high", "off");
    let root = json!({"runAsUser": 0});

    let refused = up.fails(&["apply", "-f", "-"], &server("a", "strict", &root));
    for part in [
        "Error from server (Forbidden)",
        "admission webhook \"policy.perch.dev\" denied the request",
        "run-as-non-root: the server runs as root",
        "spec.podTemplate.spec.containers[server].securityContext.runAsUser",
        "runAsUser: 10001",
    ] {
        assert!(refused.contains(part), "{part}: {refused}");
    }
    assert_eq!(up.ok(&["get", "mcps", "-n", "strict", "-o", "name"]), "", "nothing was written");
    let dry = up.fails(&["apply", "--dry-run=server", "-f", "-"], &server("a", "strict", &root));
    assert!(dry.contains("run-as-non-root"), "{dry}");

    for place in ["lenient", "asking"] {
        let warned = up.kubectl_with(&["apply", "-f", "-"], &server("a", place, &root));
        assert!(warned.status.success(), "{}", said(&warned));
        assert!(
            said(&warned).contains("Warning: policy run-as-non-root: the server runs as root"),
            "{}",
            said(&warned)
        );
    }
    let off = up.kubectl_with(&["apply", "-f", "-"], &server("a", "silent", &root));
    assert!(off.status.success() && !said(&off).contains("policy"), "{}", said(&off));

    let fixed = up.kubectl_with(&["apply", "-f", "-"], &server("a", "strict", &json!({"runAsUser": 10001})));
    assert!(fixed.status.success(), "{}", said(&fixed));
    assert!(!said(&fixed).contains("run-as-non-root"), "{}", said(&fixed));
    let patch = r#"{"spec":{"podTemplate":{"spec":{"hostNetwork":true}}}}"#;
    let refused = up.fails(&["patch", "mcps", "a", "-n", "strict", "--type=merge", "-p", patch], "");
    assert!(refused.contains("privileged: the pod shares the machine's namespace: hostNetwork"), "{refused}");
}

#[test]
fn the_condition_follows_the_server_its_namespace_and_the_policies() {
    let dir = tempfile::tempdir().unwrap();
    let up = up(&dir, &[]);
    namespace(&up, "team", "low", "warn");
    up.ok_with(&["apply", "-f", "-"], &server("a", "team", &json!({"runAsUser": 0})));
    until(&up, "a", "team", "CompliantWithWarnings");

    up.ok(&["label", "namespace", "team", "--overwrite", "perch.dev/policy-level=medium"]);
    let broken = until(&up, "a", "team", "PolicyViolated");
    assert!(broken["message"].as_str().unwrap().contains("breaks run-as-non-root"), "{broken}");
    let violation = up.ok(&["get", "mcps", "a", "-n", "team", "-o", "jsonpath={.status.violations[0]}"]);
    let violation: Value = serde_json::from_str(&violation).unwrap();
    assert_eq!((&violation["rule"], &violation["severity"]), (&json!("run-as-non-root"), &json!("High")));
    assert!(violation["remedy"].as_str().unwrap().contains("runAsUser: 10001"), "{violation}");
    wait("the event", || up.ok(&["get", "events", "-n", "team"]).contains("PolicyViolated").then_some(()));

    // A namespace that became strict does not hold back a repair, and lets nothing get worse.
    up.ok(&["label", "namespace", "team", "--overwrite", "perch.dev/policy-mode=deny"]);
    let scaled = up.kubectl(&["patch", "mcps", "a", "-n", "team", "--type=merge", "-p", r#"{"spec":{"replicas":2}}"#]);
    assert!(scaled.status.success() && said(&scaled).contains("Warning: policy run-as-non-root"), "{}", said(&scaled));
    up.ok_with(&["apply", "-f", "-"], &server("a", "team", &json!({"runAsUser": 7})));
    until(&up, "a", "team", "CompliantWithWarnings");

    let rule = "package team\nviolation contains {\"rule\": \"named\", \"severity\": \"Low\", \"message\": \"no team is named\", \"field\": \"metadata.labels.team\", \"remedy\": \"label it\"} if {\n\tnot input.object.metadata.labels.team\n}\n";
    let map = |text: &str| {
        json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"rule.rego": text},
            "metadata": {"name": "team", "namespace": "kube-system", "labels": {"perch.dev/policy": "true"}}})
        .to_string()
    };
    up.ok_with(&["apply", "-f", "-"], &map(rule));
    let broken = until(&up, "a", "team", "PolicyViolated");
    assert!(broken["message"].as_str().unwrap().contains("breaks named"), "{broken}");
    let refused = up.fails(&["apply", "-f", "-"], &server("b", "team", &json!({})));
    assert!(refused.contains("named: no team is named (metadata.labels.team); label it"), "{refused}");

    // What does not compile, loops or is too large takes nothing down, and counts no longer.
    let bad = [
        "package team\nviolation contains {".to_owned(),
        "package team\na if b\nb if a\nviolation contains {\"rule\": \"r\", \"message\": \"m\"} if a".to_owned(),
        "package team\nl := [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]\nviolation contains {\"rule\": \"r\", \"message\": \"m\"} if { some a in l; some b in l; some c in l; some d in l; some e in l; some f in l; a + b + c + d + e + f == 0 }".to_owned(),
        format!("package team\n# {}", "x".repeat(100_000)),
    ];
    for text in bad {
        up.ok_with(&["apply", "-f", "-"], &map(rule));
        until(&up, "a", "team", "PolicyViolated");
        let replaced = json!([{"op": "replace", "path": "/data/rule.rego", "value": text}]).to_string();
        up.ok(&["patch", "configmap", "team", "-n", "kube-system", "--type=json", "-p", &replaced]);
        until(&up, "a", "team", "CompliantWithWarnings");
        let refused = up.fails(&["apply", "-f", "-"], &server("b", "team", &json!({"runAsUser": 0})));
        assert!(refused.contains("run-as-non-root") && !refused.contains("named"), "{refused}");
    }
    let metrics = up.output();
    let metrics = metrics.lines().find_map(|l| l.strip_prefix("Metrics  ")).unwrap();
    let text = send("GET", metrics, &[], "").2;
    assert!(text.contains("perch_servers_compliant{compliant=\"true\"} 1"), "{text}");
    assert!(text.contains("perch_policy_bundles{state=\"refused\"} 1"), "{text}");

    // Nothing is written while nothing happens.
    let version = || up.ok(&["get", "mcps", "a", "-n", "team", "-o", "jsonpath={.metadata.resourceVersion}"]);
    let before = version();
    let other = "perch.dev/policy-level=medium";
    up.ok(&["create", "namespace", "other"]);
    up.ok(&["label", "namespace", "other", other]);
    up.ok_with(&["apply", "-f", "-"], &server("c", "other", &json!({})));
    until(&up, "c", "other", "CompliantWithWarnings");
    assert_eq!(version(), before, "everything was judged anew, and nothing differed");
}

/// Runs `perch policy check` with something on standard input.
fn check(args: &[&str], input: &str) -> (Option<i32>, String, String) {
    use std::io::Write;
    let mut child = Command::new(env!("CARGO_BIN_EXE_perch"))
        .args(["policy", "check"])
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn files_are_checked_before_anything_runs() {
    let (code, said, _) = check(&["-"], &server("a", "x", &json!({"runAsUser": 0})));
    assert_eq!(code, Some(1));
    assert!(said.contains("-:1: error: the server runs as root [run-as-non-root]"), "{said}");
    let (code, said, _) = check(&["--level", "low", "-"], &server("a", "x", &json!({"runAsUser": 0})));
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("warning: the server runs as root"), "{said}");
    let (code, ..) = check(&["--level", "low", "--strict", "-"], &server("a", "x", &json!({"runAsUser": 0})));
    assert_eq!(code, Some(1));

    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write("Dockerfile", "FROM debian:12\nRUN true\nUSER root\n");
    write("compose.yaml", "services:\n  web:\n    image: nginx\n    privileged: true\n");
    let two = "kind: Deployment\napiVersion: apps/v1\nmetadata: {name: d}\nspec: {template: {spec: {hostPID: true, containers: [{name: c, image: x}]}}}\n";
    write("chart.yaml", &format!("---\n# Source: x\nkind: ConfigMap\nmetadata: {{name: m}}\n---\n{two}"));
    let folder = dir.path().to_str().unwrap();
    let (code, said, _) = check(&["--output", "json", folder], "");
    assert_eq!(code, Some(1));
    let report: Value = serde_json::from_str(&said).unwrap();
    let rules = |file: &str, kind: &str| -> Vec<String> {
        let objects = report["objects"].as_array().unwrap().iter();
        let mine =
            objects.filter(|o| o["file"].as_str().unwrap().ends_with(file) && o["kind"].as_str().unwrap_or("") == kind);
        mine.flat_map(|o| o["violations"].as_array().unwrap().iter().map(|v| v["rule"].as_str().unwrap().to_owned()))
            .collect()
    };
    assert!(rules("Dockerfile", "Dockerfile").contains(&"run-as-non-root".into()), "{report:#}");
    assert!(rules("compose.yaml", "").contains(&"privileged".into()));
    assert!(rules("chart.yaml", "Deployment").contains(&"privileged".into()));
    assert!(rules("chart.yaml", "ConfigMap").is_empty());

    let (code, said, _) = check(&["--output", "sarif", folder], "");
    assert_eq!(code, Some(1));
    let sarif: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(sarif["version"], "2.1.0");
    let results = sarif["runs"][0]["results"].as_array().unwrap();
    let of = |rule: &str, file: &str| {
        let place = |r: &Value| r["locations"][0]["physicalLocation"].clone();
        let found = results
            .iter()
            .find(|r| r["ruleId"] == rule && place(r)["artifactLocation"]["uri"].as_str().unwrap().ends_with(file));
        place(found.unwrap())["region"]["startLine"].clone()
    };
    assert_eq!(of("run-as-non-root", "Dockerfile"), 3, "the line of USER");
    assert_eq!(of("privileged", "chart.yaml"), 5, "the line of the document");
    let ids = sarif["runs"][0]["tool"]["driver"]["rules"].as_array().unwrap();
    assert!(results.iter().all(|r| ids.iter().any(|rule| rule["id"] == r["ruleId"])), "every rule is described");

    let (code, _, said) = check(&["-"], "a: b: c");
    assert_eq!(code, Some(2));
    assert!(said.contains("-:1 is not valid YAML"), "{said}");
    write("bad.rego", "package t\nviolation contains {");
    let (code, _, said) = check(&["--policies", folder, "-"], "");
    assert_eq!(code, Some(1));
    assert!(said.contains("bad.rego:2:"), "{said}");
}

#[test]
fn policies_of_a_folder_are_in_force_from_the_start() {
    let (dir, policies) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::write(
        policies.path().join("settings.yaml"),
        "levels: {Low: {parameters: {allowedRegistries: [registry.example.com]}}}\n",
    )
    .unwrap();
    let up = up(&dir, &["--policies", policies.path().to_str().unwrap(), "--policy-mode", "deny"]);
    let refused = up.fails(&["apply", "-f", "-"], &server("a", "default", &json!({})));
    assert!(refused.contains("registry-allow-list: the image example.invalid/x:1"), "{refused}");
    let good = server("a", "default", &json!({})).replace("example.invalid/", "registry.example.com/");
    up.ok_with(&["apply", "-f", "-"], &good);
}
