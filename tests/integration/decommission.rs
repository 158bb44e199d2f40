//! The end of a server by stages, on the embedded control plane, with seconds for days.

use std::{collections::BTreeSet, process::Output};

use perch::gateway::access::api_key;
use serde_json::{Value, json};

use crate::{
    access::{Answer, LIST, User, ask, up},
    support::{Perch, fixture, perch, send, wait},
};

/// Many users with a key each, and the file of access that lets them in.
fn users(many: usize) -> (Vec<String>, Value) {
    let made = (0..many).map(|i| {
        let (key, hash) = api_key::create();
        (key, json!({"name": format!("user-{i}"), "hash": hash, "user": format!("user-{i}")}))
    });
    let (keys, entries): (Vec<String>, Vec<Value>) = made.unzip();
    (keys, json!({"apiKeys": entries}))
}

fn spec(decommission: &Value) -> Value {
    let mut spec = json!({"command": [fixture(), "stdio"], "probe": {"period": "1s"}});
    if !decommission.is_null() {
        spec["decommission"] = decommission.clone();
    }
    spec
}

fn end(up: &Perch) -> Value {
    up.status("old")["decommission"].clone()
}

/// Waits for a phase, and gives what the status says then.
fn until(up: &Perch, phase: &str) -> Value {
    wait(phase, || Some(end(up)).filter(|end| end["phase"] == phase))
}

fn initialize(url: &str, key: &str) -> Answer {
    User { url: url.to_owned(), credential: key, session: String::new() }.initialize()
}

/// Who of the users is served.
fn served(url: &str, keys: &[String]) -> BTreeSet<usize> {
    let answers = keys.iter().enumerate().map(|(i, key)| (i, initialize(url, key)));
    let served = answers.filter(|(_, answer)| {
        assert!(matches!(answer.status, 200 | 410), "{answer:?}");
        assert!(answer.header("deprecation").starts_with('@'), "{answer:?}");
        assert!(answer.header("sunset").ends_with(" GMT"), "{answer:?}");
        answer.status == 200
    });
    served.map(|(i, _)| i).collect()
}

fn condition(up: &Perch, type_: &str) -> Option<(String, String)> {
    let status = up.status("old");
    let found = status["conditions"].as_array()?.iter().find(|c| c["type"] == type_)?.clone();
    Some((found["reason"].as_str()?.to_owned(), found["message"].as_str()?.to_owned()))
}

fn version(up: &Perch) -> String {
    up.ok(&["get", "mcps", "old", "-o", "jsonpath={.metadata.resourceVersion}"])
}

fn events(up: &Perch) -> Vec<String> {
    let list = up.ok(&["get", "events", "-o", "json", "--field-selector", "involvedObject.name=old"]);
    let list: Value = serde_json::from_str(&list).unwrap();
    list["items"].as_array().unwrap().iter().map(|e| e["reason"].as_str().unwrap().to_owned()).collect()
}

fn archives(up: &Perch) -> Vec<Value> {
    let list = up.ok(&["get", "configmaps", "-l", "perch.dev/archive=true", "-o", "json"]);
    serde_json::from_str::<Value>(&list).unwrap()["items"].as_array().unwrap().clone()
}

fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn at(up: &Perch, args: &[&str]) -> String {
    text(&perch(&[args, &["--data-dir", up.dir.to_str().unwrap()]].concat()))
}

fn metrics(up: &Perch) -> String {
    let output = up.output();
    send("GET", output.lines().find_map(|l| l.strip_prefix("Metrics  ")).unwrap(), &[], "").2
}

#[test]
fn a_server_goes_by_stages_and_leaves_an_archive() {
    let dir = tempfile::tempdir().unwrap();
    let (keys, access) = users(40);
    let up = up(dir.path(), &access);
    up.apply("old", &spec(&Value::Null));
    up.until("old", "Ready");
    let url = format!("{}/default/old/mcp", up.gateway);
    assert_eq!(initialize(&url, &keys[0]).header("deprecation"), "", "nothing is said of a server that stays");

    // Announced: everybody is served, and told.
    let mut why = json!({"reason": "it is too old", "replacement": "https://new.example/mcp"});
    up.apply("old", &spec(&why));
    let told = until(&up, "Noticed");
    assert_eq!(told["percentage"], 100);
    wait("the notice", || (!initialize(&url, &keys[0]).header("deprecation").is_empty()).then_some(()));
    assert_eq!(served(&url, &keys).len(), keys.len());
    let answer = initialize(&url, &keys[0]);
    assert_eq!(answer.header("link"), "<https://new.example/mcp>; rel=\"successor-version\"");
    let (reason, message) = condition(&up, "Decommissioning").unwrap();
    assert!(reason == "Noticed" && message.contains("it is too old"), "{message}");
    let report: Value = serde_json::from_str(&at(&up, &["report", "-o", "json"])).unwrap();
    assert_eq!(report[0]["state"], "Decommissioning");
    // The probes go on, and nothing is written while nothing changes.
    let before = version(&up);
    let session = User::open(&url, &keys[0]);
    for _ in 0..40 {
        assert_eq!(session.send(LIST).status, 200);
    }
    assert_eq!(version(&up), before);

    // Brought forward: fewer and fewer are served, and nobody comes back.
    why["notice"] = "1s".into();
    why["reduction"] = "60s".into();
    why["keep"] = "20s".into();
    up.apply("old", &spec(&why));
    wait("the reduction", || (end(&up)["percentage"].as_i64()? <= 70).then_some(()));
    assert_eq!(condition(&up, "Ready").unwrap().0, "Ready", "the probes are served");
    let first = served(&url, &keys);
    assert!(!first.is_empty() && first.len() < keys.len(), "{first:?}");
    wait("a further step", || (end(&up)["percentage"].as_i64()? <= 30).then_some(()));
    let second = served(&url, &keys);
    assert!(second.is_subset(&first) && second.len() < first.len(), "{second:?} of {first:?}");
    let out = (0..keys.len()).find(|i| !first.contains(i)).unwrap();
    let refused = initialize(&url, &keys[out]);
    assert_eq!(refused.status, 410);
    let error = refused.json()["error"].clone();
    assert_eq!(
        (&error["data"]["reason"], &error["data"]["message"]),
        (&json!("Decommissioned"), &json!("it is too old"))
    );
    assert_eq!(error["data"]["replacement"], "https://new.example/mcp");
    assert!(refused.error().contains("no longer serves you: it is too old; use https://new.example/mcp instead"));
    let bearer = format!("Bearer {}", keys[out]);
    let revision = up.status("old")["currentRevision"].as_str().unwrap().to_owned();
    let aside = format!("{}/default/old@{revision}/mcp", up.gateway);
    assert_eq!(initialize(&aside, &keys[out]).status, 410, "asking for the revision is no way around");
    assert_eq!(ask("GET", &url, &[("Authorization", &bearer)], "").status, 410);
    assert!(metrics(&up).contains(r#"outcome="decommissioned""#));

    // Stopped: archived first, and nobody is served.
    let stopped = until(&up, "Stopped");
    assert!(served(&url, &keys[..3]).is_empty());
    let found = archives(&up);
    assert_eq!(found.len(), 1);
    assert_eq!((&found[0]["metadata"]["name"], &found[0]["immutable"]), (&stopped["archive"], &json!(true)));
    assert!(found[0]["metadata"]["ownerReferences"].is_null());
    let part = |key: &str| -> Value { serde_yaml_ng::from_str(found[0]["data"][key].as_str().unwrap()).unwrap() };
    assert_eq!(part("revisions.yaml")[0]["name"], revision.as_str());
    assert_eq!(part("record.yaml")["decommission"]["reason"], "it is too old");
    up.until("old", "Decommissioned");
    assert_eq!(up.status("old")["replicas"], 0);

    // Removed, with the story told; the archive brings it back.
    wait("the end", || (!up.kubectl(&["get", "mcps", "old"]).status.success()).then_some(()));
    let told = events(&up);
    for reason in ["DecommissionNoticed", "DecommissionReducing", "DecommissionStopped", "DecommissionRemoved"] {
        assert!(told.iter().any(|e| e == reason), "{reason}: {told:?}");
    }
    assert_eq!(archives(&up).len(), 1);
    up.ok_with(&["apply", "-f", "-"], found[0]["data"]["mcpserver.yaml"].as_str().unwrap());
    up.until("old", "Ready");
    wait("the server to be as it was", || (initialize(&url, &keys[out]).status == 200).then_some(()));
    assert_eq!(initialize(&url, &keys[out]).header("deprecation"), "");
}

#[test]
fn what_is_taken_back_is_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let (keys, access) = users(20);
    let first = up(dir.path(), &access);
    let why = json!({"reason": "it is too old", "notice": "0s", "reduction": "1h", "keep": "1h"});
    first.apply("old", &spec(&why));
    let since = until(&first, "Reducing")["since"].clone();
    let serves = |up: &Perch| served(&format!("{}/default/old/mcp", up.gateway), &keys);
    first.until("old", "Ready");
    wait("the notice", || {
        let answer = initialize(&format!("{}/default/old/mcp", first.gateway), &keys[0]);
        (!answer.header("sunset").is_empty()).then_some(())
    });
    let before = serves(&first);
    assert_eq!(first.stop(), Some(0));

    // Another life goes on where the one before was.
    let second = up(dir.path(), &access);
    second.until("old", "Ready");
    assert_eq!((&end(&second)["since"], &end(&second)["percentage"]), (&since, &json!(90)));
    assert_eq!(serves(&second), before);

    // Stopped, with what it refers to long gone, and had back.
    let mut sooner = spec(&json!({"reason": "it is too old", "notice": "0s", "reduction": "0s", "keep": "1h"}));
    sooner["envFrom"] = json!([{"secretRef": {"name": "gone"}}]);
    second.apply("old", &sooner);
    second.until("old", "Decommissioned");
    assert_eq!(second.status("old")["replicas"], 0);
    assert_eq!(archives(&second).len(), 1);
    let before = version(&second);
    assert!(serves(&second).is_empty());
    assert_eq!(version(&second), before, "nothing is written at rest");
    second.apply("old", &spec(&Value::Null));
    second.until("old", "Ready");
    wait("the status to forget it", || end(&second).is_null().then_some(()));
    assert_eq!(condition(&second, "Decommissioning"), None);
    let url = format!("{}/default/old/mcp", second.gateway);
    wait("everybody to be served", || keys.iter().all(|key| initialize(&url, key).status == 200).then_some(()));
    assert!(events(&second).iter().any(|e| e == "DecommissionTakenBack"));
    assert_eq!(archives(&second).len(), 1, "the archive stays");
}

#[test]
fn what_makes_no_sense_is_refused_in_words() {
    let dir = tempfile::tempdir().unwrap();
    let up = Perch::up(dir.path(), &["--runtime", "process"]);
    for (decommission, says) in [
        (json!({"reason": " "}), "say in reason why the server goes away"),
        (json!({"reason": "r", "replacement": "old"}), "a server cannot replace itself"),
        (json!({"reason": "r", "keep": "99999h"}), "ten years (87600h) at most"),
        (json!({"reason": "r", "notice": "30d"}), "spec.decommission.notice"),
        (json!({"replacement": "new"}), "spec.decommission.reason"),
    ] {
        let object = json!({"apiVersion": "perch.dev/v1alpha1", "kind": "McpServer", "metadata": {"name": "old"}, "spec": spec(&decommission)});
        let said = up.fails(&["apply", "-f", "-"], &object.to_string());
        assert!(said.contains(says), "{says}: {said}");
    }
    up.apply("old", &spec(&json!({"reason": "r"})));
    let told = until(&up, "Noticed");
    let day = |field: &str| told[field].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    let days = |from: &str, to: &str| day(to).duration_since(day(from)).as_hours() / 24;
    assert_eq!((days("since", "reducesAt"), days("reducesAt", "stopsAt"), days("stopsAt", "removesAt")), (30, 7, 30));
    let wide = at(&up, &["get", "-o", "wide"]);
    assert!(wide.contains("DECOMMISSION") && wide.contains("Noticed"), "{wide}");
    let status = at(&up, &["status", "old"]);
    assert!(status.contains("Decommissioning True  Noticed: its users are told"), "{status}");
}
