use serde_json::{Value, json};

use super::*;

const NOW: &str = "2026-06-10T12:00:00Z";

fn now() -> Timestamp {
    NOW.parse().unwrap()
}

/// A server that is well, changed by a merge patch.
fn server(patch: &Value) -> McpServer {
    let mut object = json!({
        "apiVersion": "perch.dev/v1alpha1", "kind": "McpServer",
        "metadata": {"name": "a", "namespace": "n", "annotations": {
            "policy.perch.dev/reviewed-at": "2026-05-01", "policy.perch.dev/scanned-at": "2026-06-09T00:00:00Z",
        }},
        "spec": {"image": "x", "governance": {"owner": "team-a"}},
        "status": {
            "conditions": [condition("Compliant", "True")],
            "usage": {"since": "2026-01-01T00:00:00Z", "lastRequest": "2026-06-10T11:00:00Z", "requestsIn7Days": 9, "usersIn30Days": 5},
        },
    });
    json_patch::merge(&mut object, patch);
    serde_json::from_value(object).unwrap()
}

fn condition(type_: &str, status: &str) -> Value {
    json!({"type": type_, "status": status, "reason": "R", "message": "it breaks a rule", "lastTransitionTime": "2026-01-01T00:00:00Z"})
}

fn usage(since: &str, last: Option<&str>, users: i32) -> McpServer {
    server(&json!({"status": {"usage": {"since": since, "lastRequest": last, "usersIn30Days": users}}}))
}

fn reasons(server: &McpServer) -> Vec<&'static str> {
    assess(server, now()).recommendations.into_iter().map(|r| r.reason).collect()
}

#[test]
fn a_server_that_is_well_needs_nothing() {
    assert_eq!(
        assess(&server(&json!({})), now()),
        Assessment { state: State::Active, score: Some(100), recommendations: Vec::new() }
    );
}

#[test]
fn use_decides_the_state() {
    for (since, last, users, expected) in [
        ("2026-06-09T00:00:00Z", None, 0, State::New),
        ("2026-06-09T00:00:00Z", Some("2026-06-10T00:00:00Z"), 1, State::Active),
        ("2026-06-03T12:00:00Z", None, 0, State::Idle),
        ("2026-06-03T12:00:01Z", None, 0, State::New),
        ("2026-01-01T00:00:00Z", Some("2026-06-03T12:00:00Z"), 5, State::Idle),
        ("2026-01-01T00:00:00Z", Some("2026-06-03T13:00:00Z"), 5, State::Active),
        ("2026-01-01T00:00:00Z", Some("2026-06-10T00:00:00Z"), 2, State::LowUsage),
        ("2026-01-01T00:00:00Z", Some("2026-06-10T00:00:00Z"), 3, State::Active),
        ("2026-05-20T00:00:00Z", Some("2026-06-10T00:00:00Z"), 1, State::Active),
        ("2026-01-01T00:00:00Z", Some("2026-03-12T12:00:00Z"), 0, State::Unused),
        ("2026-01-01T00:00:00Z", Some("2026-03-12T13:00:00Z"), 0, State::Idle),
        ("2026-01-01T00:00:00Z", None, 0, State::Unused),
        ("2027-01-01T00:00:00Z", None, 0, State::New),
    ] {
        assert_eq!(assess(&usage(since, last, users), now()).state, expected, "{since} {last:?} {users}");
    }
    assert_eq!(assess(&server(&json!({"status": {"usage": null}})), now()).state, State::Unknown);
    assert_eq!(assess(&server(&json!({"spec": {"suspend": true}})), now()).state, State::Suspended);
    let ends = server(&json!({"spec": {"suspend": true, "decommission": {"reason": "r"}}}));
    assert_eq!(assess(&ends, now()).state, State::Decommissioning);
    let unused = json!({"usage": {"since": "2026-01-01T00:00:00Z", "lastRequest": null}});
    let unused = |spec: Value| server(&json!({"spec": spec, "status": unused}));
    assert_eq!(reasons(&unused(json!({}))), ["Decommission"]);
    assert!(reasons(&unused(json!({"decommission": {"reason": "r"}}))).is_empty(), "it is under way");
    let goes = server(&json!({"metadata": {"deletionTimestamp": NOW}}));
    assert_eq!(assess(&goes, now()).state, State::Terminating);
    assert!(reasons(&goes).is_empty());
}

#[test]
fn what_should_be_done_is_told() {
    assert_eq!(reasons(&usage("2026-01-01T00:00:00Z", None, 0)), ["Decommission"]);
    assert_eq!(reasons(&usage("2026-06-01T00:00:00Z", None, 0)), ["CandidateForRemoval"]);
    assert_eq!(reasons(&usage("2026-01-01T00:00:00Z", Some(NOW), 2)), ["LowUsageWarning"]);
    assert_eq!(reasons(&server(&json!({"spec": {"governance": null}}))), ["NoOwner"]);
    assert_eq!(reasons(&server(&json!({"spec": {"governance": {"owner": " "}}}))), ["NoOwner"]);
    let annotated = |name: &str, value: Value| {
        reasons(&server(&json!({"metadata": {"annotations": {format!("policy.perch.dev/{name}"): value}}})))
    };
    assert_eq!(annotated("reviewed-at", json!("2026-03-10")), Vec::<&str>::new(), "92 days and a half");
    assert_eq!(annotated("reviewed-at", json!("2026-03-09")), ["ReviewOverdue"]);
    assert_eq!(annotated("reviewed-at", Value::Null), ["ReviewOverdue"]);
    assert_eq!(annotated("reviewed-at", json!("soon")), ["ReviewOverdue"]);
    assert_eq!(annotated("scanned-at", Value::Null), ["ScanOverdue"]);
    assert_eq!(annotated("scanned-at", json!("2026-05-01")), ["ScanOverdue"]);
    assert_eq!(annotated("scan-critical", json!("2")), Vec::<&str>::new(), "there is time yet");
    let late = json!({"metadata": {"annotations": {
        "policy.perch.dev/scan-critical": "2", "policy.perch.dev/scanned-at": "2026-06-01",
    }}});
    assert_eq!(reasons(&server(&late)), ["PatchOverdue"]);
    let broken = server(&json!({"status": {"conditions": [condition("Compliant", "False")]}}));
    assert_eq!(reasons(&broken), ["NotCompliant"]);
    let package = json!({"spec": {"image": null, "command": ["x"]}, "metadata": {"annotations": {"policy.perch.dev/scanned-at": null}}});
    assert_eq!(reasons(&server(&package)), Vec::<&str>::new(), "only images are scanned");
}

#[test]
fn the_score_is_what_is_left_of_a_hundred() {
    let violation =
        |rule: &str, severity: &str| json!({"rule": rule, "severity": severity, "action": "Warn", "message": "m"});
    let of = |violations: Value, network: &str| {
        let conditions = json!([condition("Compliant", "True"), condition("NetworkEnforced", network)]);
        assess(&server(&json!({"status": {"conditions": conditions, "violations": violations}})), now()).score
    };
    assert_eq!(of(json!([]), "True"), Some(100));
    assert_eq!(of(json!([]), "Unknown"), Some(100), "nobody has seen that it is open");
    assert_eq!(of(json!([]), "False"), Some(90));
    let each =
        json!([violation("a", "Critical"), violation("b", "High"), violation("c", "Medium"), violation("d", "Low")]);
    assert_eq!(of(each, "True"), Some(29));
    assert_eq!(of(json!([violation("a", "Low"), violation("a", "High"), violation("a", "Low")]), "True"), Some(80));
    let many = json!([violation("a", "Critical"), violation("b", "Critical"), violation("c", "Critical")]);
    assert_eq!(of(many, "True"), Some(0));
    let nobody = server(&json!({"status": {"conditions": []}}));
    assert_eq!(assess(&nobody, now()).score, None);
}

#[test]
fn times_are_told_as_people_do() {
    for (at, expected) in
        [(NOW, "within the hour"), ("2026-06-10T09:00:00Z", "3h ago"), ("2026-06-01T09:00:00Z", "9d ago")]
    {
        assert_eq!(ago(at.parse().unwrap(), now()), expected);
    }
}
