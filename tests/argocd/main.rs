//! What `manifests/argocd` teaches Argo CD, and what kstatus (`flux`, `helm --wait`) makes of the
//! same objects: the scripts run on servers of a real control plane, from creation to deletion.

#[path = "../support/mod.rs"]
mod support;

mod canary;
mod kstatus;
mod scripts;
mod toolbox;

use std::{
    io::{BufReader, Read},
    process::{Child, Command, Stdio},
};

use kstatus::{KStatus, kstatus};
use scripts::Scripts;
use serde_json::{Value, json};
use support::{Perch, fixture, wait};

fn up(dir: &tempfile::TempDir) -> Perch {
    Perch::up(dir.path(), &["--runtime", "process"])
}

fn get(up: &Perch, name: &str) -> Value {
    serde_json::from_str(&up.ok(&["get", "mcpserver", name, "-o", "json"])).unwrap()
}

#[test]
fn health_says_what_is_so() {
    let dir = tempfile::tempdir().unwrap();
    let up = up(&dir);
    let scripts = Scripts::load();
    let server = fixture();
    for (name, spec, reason, health, said, status) in [
        ("ready", json!({"command": [server]}), "Ready", "Healthy", "lists 7 tools", KStatus::Current),
        (
            "mute",
            json!({"command": [server, "stdio", "--mute"], "probe": {"timeout": "300ms"}}),
            "HandshakeFailed",
            "Progressing",
            "Does it speak MCP",
            KStatus::InProgress,
        ),
        (
            "exits",
            json!({"command": [server, "--exit", "42"]}),
            "CrashLoopBackOff",
            "Degraded",
            "code 42",
            KStatus::InProgress,
        ),
        (
            "invalid",
            json!({"command": [server], "resources": {"requests": {"memory": "9Gi"}}}),
            "InvalidSpec",
            "Degraded",
            "more than the limit",
            KStatus::Failed,
        ),
        (
            "image",
            json!({"image": "example.com/x:1"}),
            "UnsupportedByRuntime",
            "Degraded",
            "start Docker",
            KStatus::Failed,
        ),
        (
            "stopped",
            json!({"command": [server], "suspend": true}),
            "Suspended",
            "Suspended",
            "spec.suspend",
            KStatus::Current,
        ),
        (
            "none",
            json!({"command": [server], "replicas": 0}),
            "ScaledToZero",
            "Healthy",
            "spec.replicas",
            KStatus::Current,
        ),
    ] {
        up.apply(name, &spec);
        up.until(name, reason);
        let object = get(&up, name);
        let (found, message) = scripts.health(&object);
        assert_eq!(found, health, "{name}: {message}");
        assert!(message.contains(said), "{name}: {message}");
        assert_eq!(kstatus(&object), status, "{name}");
    }
}

#[test]
fn health_waits_for_what_perch_has_not_seen() {
    let dir = tempfile::tempdir().unwrap();
    let up = up(&dir);
    let scripts = Scripts::load();
    let spec = json!({"command": [fixture()], "replicas": 2});
    up.apply("a", &spec);
    up.until("a", "Ready");
    let ready = get(&up, "a");
    assert_eq!(scripts.health(&ready).0, "Healthy");

    let mut changed = ready.clone();
    changed["metadata"]["generation"] = json!(changed["metadata"]["generation"].as_i64().unwrap() + 1);
    assert_eq!(scripts.health(&changed).0, "Progressing", "the status is of the generation before");
    let mut created = ready.clone();
    created.as_object_mut().unwrap().remove("status");
    assert_eq!(scripts.health(&created).0, "Progressing", "there is no status yet");

    // A wave that waits for more instances, or for a node, does not fail.
    for reason in ["ReplicasUnavailable", "Unschedulable"] {
        let mut some = ready.clone();
        some["status"]["phase"] = json!(if reason == "Unschedulable" { "Failed" } else { "Degraded" });
        let conditions = some["status"]["conditions"].as_array_mut().unwrap();
        let condition = conditions.iter_mut().find(|c| c["type"] == "Ready").unwrap();
        condition["status"] = json!("False");
        condition["reason"] = json!(reason);
        assert_eq!(scripts.health(&some).0, "Progressing", "{reason}");
    }
}

#[test]
fn actions_suspend_resume_and_restart() {
    let dir = tempfile::tempdir().unwrap();
    let up = up(&dir);
    let scripts = Scripts::load();
    let patch = |action: &str| {
        let before = get(&up, "a");
        let after = scripts.act(action, &before);
        assert_eq!(before["metadata"], after["metadata"], "{action} touches the spec alone");
        let patch = serde_json::to_string(&json_patch::diff(&before, &after)).unwrap();
        up.ok(&["patch", "mcpserver", "a", "--type=json", "-p", &patch]);
        get(&up, "a")
    };
    up.apply("a", &json!({"command": [fixture()], "env": [{"name": "A", "value": "b"}], "volumes": []}));
    up.until("a", "Ready");
    let first = get(&up, "a");
    assert_eq!(scripts.enabled(&first), ["restart", "suspend"]);

    let suspended = patch("suspend");
    up.until("a", "Suspended");
    assert_eq!(suspended["spec"]["suspend"], true);
    assert_eq!(scripts.enabled(&suspended), ["resume"]);
    assert_eq!(scripts.health(&get(&up, "a")).0, "Suspended");

    let resumed = patch("resume");
    up.until("a", "Ready");
    assert_eq!(resumed["spec"], first["spec"], "as it was");
    assert_eq!(scripts.enabled(&resumed), ["restart", "suspend"]);
    assert_eq!(get(&up, "a")["status"]["currentRevision"], first["status"]["currentRevision"]);

    let mut restarted = patch("restart");
    let stamp = restarted["spec"]["podTemplate"]["metadata"]["annotations"]["perch.dev/restartedAt"].take();
    let stamp: jiff::Timestamp = stamp.as_str().unwrap().parse().unwrap();
    let age = jiff::Timestamp::now().duration_since(stamp);
    assert!(age.as_secs().abs() < 60, "{stamp} is now, in UTC");
    restarted["spec"].as_object_mut().unwrap().remove("podTemplate");
    assert_eq!(restarted["spec"], first["spec"], "nothing else was changed");
    wait("the new revision", || {
        let now = get(&up, "a");
        (now["status"]["currentRevision"] != first["status"]["currentRevision"]).then_some(())
    });
    up.until("a", "Ready");

    let remote = json!({"spec": {"remote": {"url": "https://mcp.example.com/mcp"}}});
    assert_eq!(scripts.enabled(&remote), ["suspend"], "what runs elsewhere is not restarted");
}

#[test]
fn a_restart_keeps_what_the_template_has() {
    let before = json!({"spec": {
        "image": "example.com/x:1",
        "volumes": [{"name": "scratch", "mountPath": "/scratch", "emptyDir": {}}],
        "podTemplate": {"metadata": {"annotations": {"a": "b"}, "labels": {"l": "m"}}, "spec": {"nodeSelector": {"k": "v"}}},
    }});
    let mut after = Scripts::load().act("restart", &before);
    let annotations = after["spec"]["podTemplate"]["metadata"]["annotations"].as_object_mut().unwrap();
    assert!(annotations.remove("perch.dev/restartedAt").is_some());
    assert_eq!(after, before);
}

/// What `kubectl get --watch` shows of a server, one object a change.
struct Watch {
    child: Child,
    objects: std::sync::mpsc::Receiver<Value>,
}

impl Watch {
    fn start(up: &Perch, name: &str) -> Self {
        let kubectl = std::env::var("PERCH_TEST_KUBECTL").unwrap_or_else(|_| "kubectl".into());
        let mut child = Command::new(kubectl)
            .args(["get", "mcpservers", "--watch", "-o", "json", "--output-watch-events", "--field-selector"])
            .arg(format!("metadata.name={name}"))
            .env("KUBECONFIG", up.dir.join("kubeconfig"))
            .env("HOME", up.dir.join("home"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, objects) = std::sync::mpsc::channel();
        let output: Box<dyn Read + Send> = Box::new(BufReader::new(child.stdout.take().unwrap()));
        std::thread::spawn(move || {
            let events = serde_json::Deserializer::from_reader(output).into_iter::<Value>();
            for event in events.map_while(Result::ok) {
                if sender.send(event).is_err() {
                    return;
                }
            }
        });
        Self { child, objects }
    }

    /// The objects up to and with the first for which `until` holds.
    fn take(&self, what: &str, until: impl Fn(&Value) -> bool) -> Vec<Value> {
        let mut seen = Vec::new();
        loop {
            let event =
                self.objects.recv_timeout(support::PATIENCE).unwrap_or_else(|e| panic!("{what}: {e}: {seen:?}"));
            let done = until(&event);
            seen.push(event);
            if done {
                return seen;
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // It may have ended with its server.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn is_ready(object: &Value) -> bool {
    let conditions = object["status"]["conditions"].as_array();
    let current = object["status"]["observedGeneration"] == object["metadata"]["generation"];
    current && conditions.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

#[test]
fn kstatus_and_argo_cd_wait_until_it_is_true_at_each_step() {
    let dir = tempfile::tempdir().unwrap();
    let up = up(&dir);
    let scripts = Scripts::load();
    let watch = Watch::start(&up, "a");
    let check = |events: &[Value], generation: i64| {
        let mut waited = 0;
        for object in events.iter().map(|e| &e["object"]).filter(|o| o["metadata"]["generation"] == generation) {
            let health = scripts.health(object).0;
            assert_eq!(health == "Healthy", is_ready(object), "{health}: {object}");
            assert_eq!(kstatus(object) == KStatus::Current, is_ready(object), "{object}");
            waited += i32::from(kstatus(object) == KStatus::InProgress);
        }
        assert!(waited > 0, "it was seen under way");
    };

    up.apply("a", &json!({"command": [fixture(), "stdio", "--delay-ms", "300"]}));
    check(&watch.take("the start", |e| is_ready(&e["object"])), 1);
    // A change: what was true of the generation before counts no more.
    up.apply("a", &json!({"command": [fixture(), "stdio", "--delay-ms", "301"]}));
    let changed = |e: &Value| e["object"]["metadata"]["generation"] == 2 && is_ready(&e["object"]);
    check(&watch.take("the change", changed), 2);

    // Off and on again: off is as declared, but only when nothing runs any more.
    up.ok(&["patch", "mcpserver", "a", "--type=merge", "-p", r#"{"spec": {"suspend": true}}"#]);
    let is_off = |object: &Value| {
        let conditions = object["status"]["conditions"].as_array();
        object["status"]["observedGeneration"] == 3
            && conditions.into_iter().flatten().any(|c| c["type"] == "Suspended" && c["status"] == "True")
    };
    for object in watch.take("the stop", |e| is_off(&e["object"])).iter().map(|e| &e["object"]) {
        if object["metadata"]["generation"] == 3 {
            assert_eq!(kstatus(object) == KStatus::Current, is_off(object), "{object}");
            assert_eq!(scripts.health(object).0 == "Suspended", is_off(object), "{object}");
            assert!(!is_off(object) || object["status"]["replicas"] == 0, "{object}");
        }
    }
    up.ok(&["patch", "mcpserver", "a", "--type=merge", "-p", r#"{"spec": {"suspend": false}}"#]);
    check(&watch.take("the resumption", |e| is_ready(&e["object"])), 4);

    up.ok(&["delete", "mcpserver", "a", "--wait=false"]);
    let ending = watch.take("the end", |e| e["type"] == "DELETED");
    let going = ending.iter().find(|e| e["object"]["metadata"]["deletionTimestamp"].is_string()).unwrap();
    assert_eq!(kstatus(&going["object"]), KStatus::Terminating);
}
