//! `perch validate`, how much servers are used, and `perch report`, on the embedded control plane.

use std::{path::Path, process::Output};

use serde_json::{Value, json};

use crate::support::{Perch, fixture, perch, send, wait};

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn at(dir: &Path, args: &[&str]) -> Output {
    perch(&[args, &["--data-dir", dir.to_str().unwrap()]].concat())
}

/// The exit code of `perch validate`, and what it found.
fn validate(dir: &Path, args: &[&str]) -> (Option<i32>, Value) {
    let output = at(dir, &[&["validate", "-o", "json"], args].concat());
    let found = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output.stderr)));
    (output.status.code(), found)
}

/// Result and reason of a finding.
fn of(found: &Value, check: &str, subject: &str) -> (String, String, String) {
    let findings = found["findings"].as_array().unwrap();
    let finding = findings.iter().find(|f| f["check"] == check && f["subject"].as_str().unwrap().starts_with(subject));
    let finding = finding.unwrap_or_else(|| panic!("{check} of {subject}: {found:#}"));
    let word = |key: &str| finding[key].as_str().unwrap().to_owned();
    (word("result"), word("reason"), word("message"))
}

fn is(found: &Value, check: &str, subject: &str) -> (String, String) {
    let (result, reason, _) = of(found, check, subject);
    (result, reason)
}

fn pair(result: &str, reason: &str) -> (String, String) {
    (result.into(), reason.into())
}

fn policy(text: &str) -> String {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"rule.rego": text},
        "metadata": {"name": "mine", "namespace": "kube-system", "labels": {"perch.dev/policy": "true"}}})
    .to_string()
}

#[test]
fn a_deployment_is_validated_from_end_to_end() {
    let dir = tempfile::tempdir().unwrap();
    let nothing = at(dir.path(), &["validate"]);
    assert_eq!(nothing.status.code(), Some(2), "there is nothing here");
    assert!(text(&nothing.stderr).contains("no perch is running on"), "{}", text(&nothing.stderr));

    let up = Perch::up(dir.path(), &["--runtime", "process"]);
    up.apply("a", &json!({"command": [fixture(), "stdio"], "network": {"tier": "Public"}}));
    up.until("a", "Ready");
    let (code, found) = validate(dir.path(), &[]);
    assert_eq!(code, Some(0), "{found:#}");
    for kind in ["mcpservers", "canaryreleases", "mcptoolboxes"] {
        assert_eq!(is(&found, "Definitions", kind), pair("Pass", "Current"), "{found:#}");
    }
    for (check, subject, reason) in [
        ("ControlPlane", "api", "Reachable"),
        ("Operator", "local", "Running"),
        ("Policies", "kube-system", "Compiled"),
        ("Epoch", "127.0.0.1", "Current"),
        ("Ready", "default/a", "Ready"),
        ("NetworkEnforced", "default/a", "Enforced"),
        ("Handshake", "default/a", "Answered"),
    ] {
        assert_eq!(is(&found, check, subject), pair("Pass", reason), "{found:#}");
    }
    assert_eq!(is(&found, "Tracing", "127.0.0.1"), pair("Skip", "NotConfigured"));
    let (_, _, said) = of(&found, "Handshake", "default/a");
    assert_eq!(said, "fixture 1.2.3, protocol 2025-11-25, 7 tools");

    // Each mistake is found where it is.
    up.apply("b", &json!({"command": ["/no/such/program"], "network": {"tier": "Secure"}}));
    up.until("b", "CannotStart");
    up.ok_with(&["apply", "-f", "-"], &policy("package mine\nviolation contains {"));
    let broken = json!({"apiVersion": "perch.dev/v1alpha1", "kind": "CanaryRelease", "metadata": {"name": "r"},
        "spec": {"targetRef": {"name": "nobody"}, "stages": [{"name": "s", "percentage": 10, "duration": "1h"}]}});
    up.ok_with(&["apply", "-f", "-"], &broken.to_string());
    wait("the release to be looked at", || {
        up.ok(&["get", "canary", "r", "-o", "jsonpath={.status.conditions}"]).contains("Ready").then_some(())
    });
    let (code, found) = validate(dir.path(), &[]);
    assert_eq!((code, &found["result"]), (Some(1), &json!("Fail")), "{found:#}");
    assert_eq!(is(&found, "Ready", "default/b"), pair("Fail", "CannotStart"));
    let (result, reason, message) = of(&found, "Policies", "kube-system/mine/rule.rego:");
    assert_eq!((result, reason), pair("Fail", "Refused"), "{message}");
    assert_eq!(of(&found, "Release", "default/r").0, "Fail", "{found:#}");
    assert_eq!(is(&found, "Handshake", "default/a"), pair("Pass", "Answered"), "one that works is still asked");
    let table = at(dir.path(), &["validate"]);
    let (said, complained) = (text(&table.stdout), text(&table.stderr));
    assert!(said.contains("FAIL") && said.contains("/no/such/program"), "{said}");
    assert!(complained.contains("the deployment is not as it should be"), "{complained}");

    // Another namespace has none of it but the policies.
    up.ok(&["delete", "configmap", "mine", "-n", "kube-system"]);
    assert_eq!(validate(dir.path(), &["-n", "kube-system"]).0, Some(0));
    let (code, found) = validate(dir.path(), &["-n", "default", "--gateway-url", "http://127.0.0.1:1"]);
    assert_eq!((code, is(&found, "Gateway", "127.0.0.1:1")), (Some(1), pair("Fail", "NotReachable")));
    let usage = at(dir.path(), &["validate", "--timeout", "never"]);
    assert_eq!(usage.status.code(), Some(2));
}

#[test]
fn warnings_fail_only_where_that_is_asked_and_a_token_lets_the_handshake_in() {
    let dir = tempfile::tempdir().unwrap();
    let created = text(&perch(&["access", "key", "create", "dana"]).stdout);
    let (key, entry) = created.split_once("\n- ").unwrap();
    let entry: Value = serde_json::from_str(entry).unwrap();
    let config = dir.path().join("access.yaml");
    std::fs::write(&config, json!({"apiKeys": [entry]}).to_string()).unwrap();
    let up = Perch::up(dir.path(), &["--runtime", "process", "--access-config", config.to_str().unwrap()]);
    up.apply("a", &json!({"command": [fixture(), "stdio"]}));
    up.until("a", "Ready");
    let (code, found) = validate(dir.path(), &[]);
    assert_eq!(is(&found, "Handshake", "all"), pair("Warn", "NoToken"), "{found:#}");
    assert_eq!(code, Some(0), "{found:#}");
    assert_eq!(validate(dir.path(), &["--strict"]).0, Some(1));
    let file = dir.path().join("token");
    std::fs::write(&file, key.trim()).unwrap();
    let (_, found) = validate(dir.path(), &["--token-file", file.to_str().unwrap()]);
    assert_eq!(is(&found, "Handshake", "default/a"), pair("Pass", "Answered"), "{found:#}");
    std::fs::write(&file, "perch_wrong").unwrap();
    let (code, found) = validate(dir.path(), &["--token-file", file.to_str().unwrap()]);
    assert_eq!((code, is(&found, "Handshake", "default/a")), (Some(1), pair("Fail", "NoAnswer")), "{found:#}");
}

fn version(up: &Perch, name: &str) -> String {
    up.ok(&["get", "mcps", name, "-o", "jsonpath={.metadata.resourceVersion}"])
}

/// The admin endpoint of the gateway.
fn admin(up: &Perch) -> String {
    let output = up.output();
    let metrics = output.lines().find_map(|l| l.strip_prefix("Metrics  ")).unwrap();
    metrics.strip_suffix("/metrics").unwrap().to_owned()
}

#[test]
fn use_is_counted_kept_over_restarts_and_reported() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["--runtime", "process", "--usage-interval", "1s"];
    let up = Perch::up(dir.path(), &args);
    for name in ["used", "idle"] {
        let spec = json!({"command": [fixture(), "stdio"], "probe": {"period": "1s"}, "governance": {"owner": "team-a", "level": "Low"}});
        up.apply(name, &spec);
        up.until(name, "Ready");
    }
    let begun = up.status("used")["usage"].clone();
    assert_eq!(begun["requestsIn7Days"], 0, "{begun}");
    assert!(begun["since"].is_string() && begun["lastRequest"].is_null(), "{begun}");

    let session = up.session("used");
    session.request("tools/list", &json!({}));
    assert_eq!(session.text("echo", &json!({"text": "a"})), "a");
    let first = wait("the first use", || {
        let usage = up.status("used")["usage"].clone();
        (usage["requestsIn7Days"] == 1).then_some(usage)
    });
    assert_eq!(first["usersIn30Days"], 1, "{first}");
    assert!(first["lastRequest"].as_str().unwrap().ends_with(":00:00Z"), "to the hour: {first}");

    // More is counted, and waits for its hour.
    let before = (version(&up, "used"), version(&up, "idle"));
    for _ in 0..4 {
        session.text("echo", &json!({"text": "b"}));
    }
    let reported = send("GET", &format!("{}/-/usage", admin(&up)), &[], "").2;
    let reported: Value = serde_json::from_str(&reported).unwrap();
    assert_eq!(reported["servers"].as_array().unwrap().len(), 1, "who only looks does not use: {reported}");
    assert_eq!((&reported["servers"][0]["name"], &reported["servers"][0]["requests"]), (&json!("used"), &json!(5)));
    assert!(!reported.to_string().contains("127.0.0.1"), "nobody is named: {reported}");
    // Two more rounds: the controller has asked the gateway meanwhile.
    let asked = |n: u64| {
        let text = send("GET", &format!("{}/metrics", admin(&up)), &[], "").2;
        let line = text.lines().find_map(|l| l.strip_prefix("perch_usage_rounds_total ")).map(str::to_owned);
        line.and_then(|n| n.trim().parse::<u64>().ok()).filter(|now| *now >= n)
    };
    let now = wait("a round", || asked(1));
    wait("two more rounds", || asked(now + 2));
    assert_eq!((version(&up, "used"), version(&up, "idle")), before, "nothing is written within the hour");
    let metrics = send("GET", &format!("{}/metrics", admin(&up)), &[], "").2;
    for line in [
        "perch_server_lifecycle_state{server=\"default/used\",state=\"Active\"} 1",
        "perch_server_lifecycle_state{server=\"default/idle\",state=\"New\"} 1",
        "perch_server_security_score{server=\"default/used\"} ",
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }

    // What waits is written at the end, and goes on in the next life.
    assert_eq!(up.stop(), Some(0));
    let up = Perch::up(dir.path(), &args);
    assert_eq!(up.status("used")["usage"]["requestsIn7Days"], 5);
    up.until("used", "Ready");
    up.session("used").text("echo", &json!({"text": "c"}));
    wait("the use of the new life", || (up.status("used")["usage"]["requestsIn7Days"] == 6).then_some(()));
    assert_eq!(up.status("idle")["usage"]["requestsIn7Days"], 0);
    assert_eq!(up.status("used")["usage"]["since"], begun["since"]);

    let report = at(dir.path(), &["report", "-o", "json"]);
    let report: Value = serde_json::from_slice(&report.stdout).unwrap();
    let row = |name: &str| report.as_array().unwrap().iter().find(|r| r["name"] == name).unwrap().clone();
    let used = row("used");
    assert_eq!(
        (&used["owner"], &used["level"], &used["state"], &used["requestsIn7Days"], &used["usersIn30Days"]),
        (&json!("team-a"), &json!("Low"), &json!("Active"), &json!(6), &json!(1)),
        "{used}"
    );
    assert_eq!((&row("idle")["state"], &row("idle")["compliant"]), (&json!("New"), &json!(true)));
    let said = text(&at(dir.path(), &["report"]).stdout);
    assert!(said.contains("default/used") && said.contains("ReviewOverdue: no review is recorded"), "{said}");
    let csv = text(&at(dir.path(), &["report", "-o", "csv", "-n", "default"]).stdout);
    assert_eq!(csv.lines().count(), 3, "{csv}");
    up.ok(&["annotate", "mcps", "idle", "policy.perch.dev/reviewed-at=2999-01-01"]);
    let asked = text(&at(dir.path(), &["report", "--recommended", "-o", "markdown"]).stdout);
    assert!(asked.contains("| default/used |") && !asked.contains("default/idle"), "{asked}");
}

#[test]
fn an_unused_server_is_recommended_for_removal() {
    let dir = tempfile::tempdir().unwrap();
    let up = Perch::up(dir.path(), &["--runtime", "process"]);
    up.apply("a", &json!({"image": "example.invalid/x:1", "suspend": false, "replicas": 0}));
    wait("a status", || up.status("a")["usage"]["since"].is_string().then_some(()));
    let old = json!({"status": {"usage": {"since": "2020-01-01T00:00:00Z"}}}).to_string();
    up.ok(&["patch", "mcps", "a", "--subresource=status", "--type=merge", "-p", &old]);
    let said = text(&at(dir.path(), &["report"]).stdout);
    for part in ["Unused", "Decommission: nobody ever used it", "NoOwner", "ScanOverdue: no scan is recorded"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    wait("the metric", || {
        let metrics = send("GET", &format!("{}/metrics", admin(&up)), &[], "").2;
        metrics.contains("perch_server_lifecycle_state{server=\"default/a\",state=\"Unused\"} 1").then_some(())
    });
}
