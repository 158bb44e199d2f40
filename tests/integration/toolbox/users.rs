//! Who gets what.

use perch::gateway::access::api_key;
use serde_json::{Value, json};

use super::{LIST, Toolboxes, names, stdio};
use crate::{
    access::{User, ask},
    support::{Perch, wait},
};

#[test]
fn who_may_use_a_toolbox() {
    let dir = tempfile::tempdir().unwrap();
    let key = |user: &str, groups: &[&str]| {
        let (key, hash) = api_key::create();
        (key, json!({"name": user, "hash": hash, "user": user, "groups": groups}))
    };
    let (dana, eve, adam) = (key("dana", &["dev"]), key("eve", &[]), key("adam", &["dev"]));
    let access = json!({
        "apiKeys": [dana.1, eve.1, adam.1],
        "allow": [
            {"users": ["dana"], "servers": ["default/a"]},
            {"users": ["dana"], "servers": ["default/b"], "tools": ["echo"]},
            {"users": ["eve"]},
            {"users": ["adam"], "servers": ["default/other"]},
        ],
        "rateLimits": [{"users": ["dana"], "servers": ["default/b"], "tools": ["echo"], "requests": 1, "period": "1h"}],
    });
    let file = crate::access::write(dir.path(), &access);
    let up = Perch::up(&dir.path().join("data"), &["--runtime", "process", "--access-config", &file]);
    for name in ["a", "b"] {
        up.apply(name, &stdio());
        up.until(name, "Ready");
    }
    let servers = json!([{"name": "a"}, {"name": "b"}]);
    let url = up.toolbox(&json!({"servers": servers, "access": {"groups": ["dev"]}}));
    // Perch itself sees all of it, and says so.
    assert_eq!(up.until_toolbox("Ready")["tools"], 14);

    assert_eq!(ask("POST", &url, &[], LIST).status, 401);
    let user = User::open(&url, &dana.0);
    let listed: Vec<String> = names(&user.send(LIST).json(), "tools", "name");
    assert!(listed.contains(&"a_write".to_owned()) && listed.contains(&"b_echo".to_owned()), "{listed:?}");
    assert_eq!(listed.iter().filter(|name| name.starts_with("b_")).count(), 1, "{listed:?}");
    assert_eq!(user.call("a_echo", &json!({"text": "x"})).json()["result"]["content"][0]["text"], "x");
    let refused = user.call("b_write", &json!({"text": "x"})).json();
    assert!(refused["error"]["message"].as_str().unwrap().contains("no rule allows it"), "{refused}");
    assert_eq!(user.call("b_echo", &json!({"text": "x"})).json()["result"]["content"][0]["text"], "x");
    let limited = user.call("b_echo", &json!({"text": "x"})).json();
    assert!(limited["error"]["message"].as_str().unwrap().contains("too many"), "limits of the server hold: {limited}");

    for (who, why) in [(&eve.0, "is in no group that the toolbox is for"), (&adam.0, "may use no server of it")] {
        let other = User { url: url.clone(), credential: who, session: String::new() };
        let answer = other.initialize();
        assert_eq!(answer.status, 403, "{why}: {answer:?}");
        let stolen = User { url: url.clone(), credential: who, session: user.session.clone() };
        assert_eq!(stolen.send(LIST).status, 403, "{why}");
    }
    let bearer = format!("Bearer {}", eve.0);
    assert!(!ask("GET", &up.gateway, &[("Authorization", &bearer)], "").body.contains("toolboxes/dev"));

    // Without access of its own it is for whoever may use one of its servers.
    up.toolbox(&json!({"servers": servers}));
    wait("the change", || {
        let other = User { url: url.clone(), credential: &eve.0, session: String::new() };
        (other.initialize().status == 200).then_some(())
    });
    let other = User { url: url.clone(), credential: &adam.0, session: String::new() };
    assert_eq!(other.initialize().status, 403);
    let stolen = User { url, credential: &eve.0, session: user.session.clone() };
    assert_eq!(stolen.send(LIST).status, 404, "a session is its user's");
}

#[test]
fn a_release_divides_users_behind_a_toolbox_too() {
    let dir = tempfile::tempdir().unwrap();
    let key = |user: &str| {
        let (key, hash) = api_key::create();
        (key, json!({"name": user, "hash": hash, "user": user}))
    };
    let (dana, eve) = (key("dana"), key("eve"));
    let file = crate::access::write(dir.path(), &json!({"apiKeys": [dana.1, eve.1]}));
    let audit = dir.path().join("audit.log");
    let arguments = ["--runtime", "process", "--access-config", &file, "--audit-log", audit.to_str().unwrap()];
    let up = Perch::up(&dir.path().join("data"), &arguments);
    let runs = |said: &str| {
        let mut spec = stdio();
        spec["env"] = json!([{"name": "SAID", "value": said}]);
        spec
    };
    up.apply("a", &runs("one"));
    up.until("a", "Ready");
    let release = json!({"apiVersion": "perch.dev/v1alpha1", "kind": "CanaryRelease", "metadata": {"name": "a"},
        "spec": {"targetRef": {"name": "a"}, "stages": [{"name": "first", "users": ["dana"], "duration": "10h"}]}});
    up.ok_with(&["apply", "-f", "-"], &release.to_string());
    let canary =
        || serde_json::from_str::<Value>(&up.ok(&["get", "canary", "a", "-o", "json"])).unwrap()["status"].take();
    wait("the release to be looked at", || canary()["stableRevision"].is_string().then_some(()));
    let url = up.toolbox(&json!({"servers": [{"name": "a"}]}));
    up.apply("a", &runs("two"));
    wait("the first stage", || (canary()["phase"] == "Progressing").then_some(()));
    let said = |key: &str| {
        let answer = User::open(&url, key).call("a_env", &json!({"name": "SAID"})).json();
        answer["result"]["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
    };
    wait("dana to be with the candidate", || (said(&dana.0) == "two").then_some(()));
    for _ in 0..3 {
        assert_eq!((said(&dana.0).as_str(), said(&eve.0).as_str()), ("two", "one"));
    }
    // What was done is recorded where it was done.
    let status = canary();
    let (stable, candidate) =
        (status["stableRevision"].as_str().unwrap(), status["candidateRevision"].as_str().unwrap());
    wait("the audit log", || {
        let log = std::fs::read_to_string(&audit).unwrap_or_default();
        let calls: Vec<Value> = log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let of = |user: &str, revision: &str| {
            calls.iter().any(|c| c["method"] == "tools/call" && c["user"] == user && c["revision"] == revision)
        };
        let elsewhere = calls.iter().any(|c| c["method"] == "tools/call" && c["server"] != "default/a");
        assert!(!elsewhere, "each call is recorded once: {log}");
        (of("dana", candidate) && of("eve", stable)).then_some(())
    });
}
