//! The script for McpToolboxes, on toolboxes over servers of a real control plane.

use serde_json::{Value, json};

use crate::{
    kstatus::{KStatus, kstatus},
    scripts::Scripts,
    support::{Perch, fixture, wait},
    up,
};

fn toolbox(up: &Perch, name: &str, spec: &Value) {
    let object =
        json!({"apiVersion": "perch.dev/v1alpha1", "kind": "McpToolbox", "metadata": {"name": name}, "spec": spec});
    up.ok_with(&["apply", "-f", "-"], &object.to_string());
}

/// The toolbox, once its Ready condition has a reason and says something.
fn until(up: &Perch, name: &str, reason: &str, said: &str) -> Value {
    wait(&format!("toolbox {name} to be {reason}"), || {
        let object: Value = serde_json::from_str(&up.ok(&["get", "mcptoolbox", name, "-o", "json"])).unwrap();
        let ready = object["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == "Ready")?;
        let current = object["status"]["observedGeneration"] == object["metadata"]["generation"];
        let is_so = current && ready["reason"] == reason && ready["message"].as_str()?.contains(said);
        is_so.then(|| object.clone())
    })
}

#[test]
fn health_of_a_toolbox_is_that_of_its_servers() {
    let dir = tempfile::tempdir().unwrap();
    let up = up(&dir);
    let scripts = Scripts::of("McpToolbox");
    let server = fixture();
    up.apply("good", &json!({"command": [server]}));
    up.apply("exits", &json!({"command": [server, "--exit", "42"]}));
    up.apply("mute", &json!({"command": [server, "stdio", "--mute"], "probe": {"timeout": "300ms"}}));
    up.apply("off", &json!({"command": [server], "suspend": true}));
    for (name, reason) in
        [("good", "Ready"), ("exits", "CrashLoopBackOff"), ("mute", "HandshakeFailed"), ("off", "Suspended")]
    {
        up.until(name, reason);
    }
    let of =
        |servers: &[&str]| json!({"servers": servers.iter().map(|name| json!({"name": name})).collect::<Vec<_>>()});
    let odd = json!({"selector": {"matchExpressions": [{"key": "team", "operator": "Like", "values": ["red"]}]}});
    for (name, spec, reason, said, health, status) in [
        ("ready", of(&["good", "off"]), "Ready", "answers", "Healthy", KStatus::Current),
        ("waits", of(&["good", "mute"]), "ServersNotReady", "HandshakeFailed", "Progressing", KStatus::InProgress),
        ("lacks", of(&["good", "missing"]), "ServersNotReady", "NotFound", "Progressing", KStatus::InProgress),
        ("broken", of(&["good", "exits"]), "ServersNotReady", "CrashLoopBackOff", "Degraded", KStatus::InProgress),
        ("stopped", of(&["off"]), "NoServers", "suspended", "Suspended", KStatus::InProgress),
        (
            "empty",
            json!({"selector": {"matchLabels": {"a": "b"}}}),
            "NoServers",
            "no server",
            "Progressing",
            KStatus::InProgress,
        ),
        ("odd", odd, "InvalidSelector", "spec.selector", "Degraded", KStatus::InProgress),
    ] {
        toolbox(&up, name, &spec);
        let object = until(&up, name, reason, said);
        let (found, message) = scripts.health(&object);
        assert_eq!(found, health, "{name}: {message}");
        assert!(message.contains(said), "{name}: {message}");
        assert_eq!(kstatus(&object), status, "{name}");
    }
}

#[test]
fn health_of_a_toolbox_waits_for_what_perch_has_not_seen() {
    let scripts = Scripts::of("McpToolbox");
    let ready = json!({
        "metadata": {"generation": 2},
        "status": {"observedGeneration": 2, "servers": [{"name": "a", "ready": true, "reason": "Ready"}],
            "conditions": [{"type": "Ready", "status": "True", "reason": "Ready", "message": "the server answers"}]},
    });
    assert_eq!(scripts.health(&ready), ("Healthy".to_owned(), "the server answers".to_owned()));
    let mut changed = ready.clone();
    changed["metadata"]["generation"] = json!(3);
    assert_eq!(scripts.health(&changed).0, "Progressing");
    let mut created = ready;
    created.as_object_mut().unwrap().remove("status");
    assert_eq!(scripts.health(&created).0, "Progressing");
}
