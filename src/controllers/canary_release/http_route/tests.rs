use super::*;

fn server() -> ServerKey {
    ServerKey::new("n", "a")
}

fn backend(service: &str, weight: Option<i32>) -> Value {
    let mut backend = json!({"group": "", "kind": "Service", "name": service, "port": 3000});
    if let Some(weight) = weight {
        backend["weight"] = weight.into();
    }
    backend
}

fn route(rules: &[Value]) -> Value {
    let rules: Vec<_> = rules.iter().map(|backends| json!({"backendRefs": backends})).collect();
    json!({"spec": {"hostnames": ["mcp.example.com"], "rules": rules}})
}

fn weights(route: &Value, share: i32) -> Value {
    let operations = operations(route, &server(), share).unwrap();
    let patch: json_patch::Patch = serde_json::from_value(Value::Array(operations)).unwrap();
    let mut patched = route.clone();
    json_patch::patch(&mut patched, &patch).unwrap();
    patched
}

#[test]
fn only_weights_of_the_two_services_change() {
    let (stable, candidate) = services(&server());
    assert_eq!(stable, "mcp-a");
    let other = json!([backend("web", Some(7)), backend("api", None)]);
    let by_header = json!([backend(&candidate, Some(1))]);
    let before = route(&[
        other.clone(),
        json!([backend(&candidate, None), backend(&stable, None)]),
        by_header.clone(),
        json!([backend(&stable, Some(100)), backend(&candidate, Some(0))]),
    ]);
    let expected = route(&[
        other,
        json!([backend(&candidate, Some(25)), backend(&stable, Some(75))]),
        by_header,
        json!([backend(&stable, Some(75)), backend(&candidate, Some(25))]),
    ]);
    let after = weights(&before, 25);
    assert_eq!(after, expected);
    assert_eq!(operations(&after, &server(), 25).unwrap(), Vec::<Value>::new(), "nothing is written twice");
    assert_eq!(weights(&after, 0)["spec"]["rules"][3], before["spec"]["rules"][3]);
}

#[test]
fn a_weight_that_is_left_out_is_one() {
    let (stable, candidate) = services(&server());
    let both = route(&[json!([backend(&stable, Some(99)), backend(&candidate, None)])]);
    assert_eq!(operations(&both, &server(), 1).unwrap(), Vec::<Value>::new());
}

#[test]
fn what_cannot_be_divided_says_why() {
    let (stable, candidate) = services(&server());
    let why = |route: &Value| operations(route, &server(), 10).unwrap_err().reason();
    assert_eq!(why(&json!({})), "BackendRefsMissing");
    assert_eq!(why(&route(&[json!([backend(&stable, None)])])), "BackendRefsMissing");
    let mut elsewhere = backend(&candidate, None);
    elsewhere["namespace"] = "m".into();
    assert_eq!(why(&route(&[json!([backend(&stable, None), elsewhere])])), "BackendRefsMissing");
    let shared = json!([backend(&stable, None), backend(&candidate, None), backend("web", None)]);
    assert_eq!(why(&route(&[json!([backend("web", None)]), shared])), "BackendRefsShared");
}

#[test]
fn a_route_that_changed_meanwhile_is_left_alone() {
    let (stable, candidate) = services(&server());
    let seen = route(&[json!([backend(&stable, None), backend(&candidate, None)])]);
    let operations = operations(&seen, &server(), 10).unwrap();
    let patch: json_patch::Patch = serde_json::from_value(Value::Array(operations)).unwrap();
    let others = json!([backend("web", None), backend("api", None)]);
    let mut now = route(&[others, json!([backend(&stable, None), backend(&candidate, None)])]);
    assert!(json_patch::patch(&mut now, &patch).is_err());
}

#[test]
fn the_share_follows_the_release_and_who_answers() {
    let of = |release: Value, server: Value| {
        let mut found = McpServer::new("a", serde_json::from_value(json!({"image": "x"})).unwrap());
        found.status = serde_json::from_value(server).unwrap();
        share(&serde_json::from_value(release).unwrap(), Some(&found))
    };
    let release = |phase: &str, percentage: i32| json!({"phase": phase, "stableRevision": "a-1", "candidateRevision": "a-2", "routing": {"percentage": percentage}});
    let beside = json!({"currentRevision": "a-1", "phase": "Ready", "candidate": {"revision": "a-2"}});
    assert_eq!(of(release("Deploying", 0), beside.clone()), 0);
    assert_eq!(of(release("Progressing", 25), beside.clone()), 25);
    assert_eq!(of(release("Promoting", 100), beside.clone()), 100);
    assert_eq!(of(release("RollingBack", 0), beside.clone()), 0);
    assert_eq!(of(release("Progressing", 25), json!({"candidate": {"revision": "a-3"}})), 0, "another runs there");
    assert_eq!(of(release("Progressing", 25), json!({"phase": "Ready"})), 0, "nobody runs there");
    // It is promoted, and the server's own instances are not yet what it is.
    let promoted = json!({"phase": "Succeeded", "stableRevision": "a-2"});
    assert_eq!(of(promoted.clone(), beside), 100);
    let starts = json!({"currentRevision": "a-2", "phase": "Starting", "candidate": {"revision": "a-2"}});
    assert_eq!(of(promoted.clone(), starts), 100);
    let answers = json!({"currentRevision": "a-2", "phase": "Ready", "candidate": {"revision": "a-2"}});
    assert_eq!(of(promoted.clone(), answers), 0);
    assert_eq!(of(promoted, json!({"currentRevision": "a-2", "phase": "Ready"})), 0);
    assert_eq!(share(&Progress::default(), None), 0);
}

#[test]
fn a_kind_that_is_not_there_is_told_from_a_route_that_is_not() {
    let error = |status: Value| Trouble::from(kube::Error::Api(serde_json::from_value(status).unwrap())).reason();
    let found =
        json!({"status": "Failure", "code": 404, "reason": "NotFound", "details": {"name": "r", "kind": "httproutes"}});
    assert_eq!(error(found), "HttpRouteNotFound");
    assert_eq!(
        error(json!({"status": "Failure", "code": 404, "message": "404 page not found"})),
        "HttpRouteKindNotInstalled"
    );
    assert_eq!(error(json!({"status": "Failure", "code": 403})), "HttpRouteNotPermitted");
    assert_eq!(error(json!({"status": "Failure", "code": 422})), "HttpRouteUnavailable");
}
