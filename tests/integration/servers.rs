//! Servers as local processes: from apply to Ready, and what goes wrong on the way.

use serde_json::json;

use crate::support::{Perch, fixture, perch, wait};

fn up(dir: &tempfile::TempDir) -> Perch {
    Perch::up(dir.path(), &["--runtime", "process"])
}

#[test]
fn ready_means_that_the_server_answers() {
    let dir = tempfile::tempdir().unwrap();
    let up = up(&dir);
    up.apply("a", &json!({"command": [fixture(), "stdio", "--delay-ms", "1500"]}));
    up.apply("h", &json!({"command": [fixture(), "http"], "transport": {"type": "StreamableHttp"}}));
    for name in ["a", "h"] {
        up.until(name, "Ready");
        let status = up.status(name);
        assert_eq!(status["serverInfo"], json!({"name": "fixture", "version": "1.2.3"}));
        assert_eq!(
            (&status["tools"], &status["readyReplicas"], &status["runtime"]),
            (&json!(7), &json!(1), &json!("Process"))
        );
        assert!(status["toolsDigest"].as_str().unwrap().starts_with("sha256:"));
        assert_eq!(up.session(name).text("echo", &json!({"text": "hé"})), "hé");
    }
    let before = up.ok(&["get", "mcps", "a", "-o", "jsonpath={.metadata.resourceVersion}"]);
    up.ok(&["wait", "mcps", "a", "--for=condition=Ready", "--timeout=10s"]);
    // Two probe periods later nothing was written, because nothing changed.
    up.apply("tick", &json!({"command": [fixture(), "stdio"], "probe": {"period": "100ms"}}));
    up.until("tick", "Ready");
    assert_eq!(up.ok(&["get", "mcps", "a", "-o", "jsonpath={.metadata.resourceVersion}"]), before);
}

#[test]
fn each_failure_has_its_reason() {
    let dir = tempfile::tempdir().unwrap();
    let up = up(&dir);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    for (name, spec) in [
        ("exits", json!({"command": [fixture(), "--exit", "42"]})),
        ("absent", json!({"command": ["/no/such/program"]})),
        ("mute", json!({"command": [fixture(), "stdio", "--mute"], "probe": {"timeout": "300ms"}})),
        ("image", json!({"image": "example.com/x:1"})),
        ("port", json!({"command": [fixture(), "http"], "transport": {"type": "StreamableHttp", "port": port}})),
        (
            "secret",
            json!({"command": [fixture()], "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]}),
        ),
        ("request", json!({"command": [fixture()], "resources": {"requests": {"memory": "9Gi"}}})),
        (
            "share",
            json!({"command": [fixture(), "http"], "transport": {"type": "StreamableHttp", "port": 18080}, "replicas": 2}),
        ),
        ("volume", json!({"command": [fixture()], "volumes": [{"name": "v", "mountPath": "/v", "emptyDir": {}}]})),
    ] {
        up.apply(name, &spec);
    }
    let said = |name: &str, reason: &str, parts: &[&str]| {
        let message = up.until(name, reason);
        for part in parts {
            assert!(message.contains(part), "{name}: {message}");
        }
    };
    said("exits", "CrashLoopBackOff", &["code 42", "restarts", "told to end"]);
    said("absent", "CannotStart", &["/no/such/program does not exist"]);
    said("mute", "HandshakeFailed", &["no answer within 300ms", "Does it speak MCP"]);
    said("image", "UnsupportedByRuntime", &["start Docker"]);
    said("port", "PortInUse", &["in use by another program"]);
    said("secret", "ReferenceNotFound", &["Secret \"s\" does not exist"]);
    said("request", "InvalidSpec", &["more than the limit of 256Mi"]);
    said("share", "UnsupportedByRuntime", &["cannot share port 18080", "leave spec.transport.port out"]);
    said("volume", "UnsupportedByRuntime", &["volume v cannot be mounted", "use spec.image with Docker"]);
    drop(taken);
    up.until("port", "Ready");
    up.ok(&["create", "secret", "generic", "s", "--from-literal=k=hunter2"]);
    up.until("secret", "Ready");
    assert_eq!(up.session("secret").text("env", &json!({"name": "A"})), "hunter2");
    for hidden in [up.ok(&["get", "mcps,events,controllerrevisions", "-o", "yaml"]), up.output()] {
        assert!(!hidden.contains("hunter2"));
    }
}

#[test]
fn what_speaks_no_mcp_is_told_so_and_asked_again() {
    let dir = tempfile::tempdir().unwrap();
    let up = up(&dir);
    let http = json!({"type": "StreamableHttp"});
    let probe = json!({"timeout": "500ms"});
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    for (name, spec) in [
        // It says back what it hears, it never ends talking, it hears nothing, it has a web page.
        ("echo", json!({"command": ["cat"], "probe": probe})),
        ("flood", json!({"command": ["yes"], "probe": probe})),
        ("deaf", json!({"command": ["sleep", "1000"], "probe": probe})),
        ("page", json!({"command": [fixture(), "http", "--garbage"], "transport": http, "probe": probe})),
        ("away", json!({"remote": {"url": format!("http://127.0.0.1:{port}/mcp")}, "transport": http, "probe": probe})),
        // Good ones in bad company.
        ("good", json!({"command": [fixture(), "stdio"]})),
    ] {
        up.apply(name, &spec);
    }
    for name in ["echo", "flood", "deaf", "page", "away"] {
        let said = up.until(name, "HandshakeFailed");
        let question = if name == "away" {
            "Does an MCP server answer at spec.remote.url?"
        } else {
            "Does it speak MCP on the transport that spec.transport names?"
        };
        assert!(said.contains(question), "{name}: {said}");
        assert_eq!(up.status(name)["readyReplicas"], 0);
    }
    assert_eq!(up.session("good").text("echo", &json!({"text": "x"})), "x");
    // The cure is a change of the spec.
    up.apply("echo", &json!({"command": [fixture(), "stdio"]}));
    up.until("echo", "Ready");
    let memory = std::fs::read_to_string(format!("/proc/{}/status", up.pid())).unwrap();
    let resident = memory.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap().trim().trim_end_matches(" kB");
    assert!(resident.parse::<u64>().unwrap() < 200 << 10, "what nobody reads is not kept: {resident} kB");
    let instance = std::fs::read_to_string(dir.path().join("instance")).unwrap();
    up.ok(&["delete", "mcps", "--all"]);
    assert_eq!(marked(&instance), 0, "nothing is left running");
}

#[test]
fn a_server_that_answers_after_half_a_minute_becomes_ready_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let up = up(&dir);
    let begun = std::time::Instant::now();
    up.apply("late", &json!({"command": [fixture(), "stdio", "--delay-ms", "30000"], "probe": {"timeout": "1s"}}));
    up.apply("web", &json!({
        "command": [fixture(), "http", "--delay-ms", "30000"], "transport": {"type": "StreamableHttp"}, "probe": {"timeout": "1s"},
    }));
    for name in ["late", "web"] {
        let said = up.until(name, "HandshakeFailed");
        assert!(said.contains("it is asked again until it answers"), "{said}");
    }
    // kubectl watches; nothing else happens to the servers.
    up.ok(&["wait", "mcps", "late", "web", "--for=condition=Ready", "--timeout=120s"]);
    assert!(begun.elapsed() >= std::time::Duration::from_secs(30));
    for name in ["late", "web"] {
        let status = up.status(name);
        assert_eq!((&status["restarts"], &status["tools"]), (&json!(0), &json!(7)), "patience, no restarts: {status}");
    }
}

#[test]
fn a_server_that_dies_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let up = up(&dir);
    up.apply("a", &json!({"command": [fixture(), "stdio", "--garbage"]}));
    up.until("a", "Ready");
    let session = up.session("a");
    let answer = session.call("crash", &json!({}));
    assert!(answer["error"]["message"].as_str().unwrap().contains("ended before it answered"), "{answer}");
    assert_eq!(session.text("echo", &json!({"text": "again"})), "again", "the session outlives the process");
    wait("the restart to be told", || (up.status("a")["restarts"] == 1).then_some(()));
    assert_eq!(up.status("a")["lastFailure"]["exitCode"], 42);
}

#[test]
fn a_server_that_others_hold_back_is_not_ready_any_more() {
    let dir = tempfile::tempdir().unwrap();
    let up = up(&dir);
    up.apply("a", &json!({"command": [fixture(), "stdio"]}));
    up.until("a", "Ready");
    let hold = r#"[{"op": "add", "path": "/metadata/finalizers/-", "value": "example.com/hold"}]"#;
    up.ok(&["patch", "mcps", "a", "--type=json", "-p", hold]);
    up.ok(&["delete", "mcps", "a", "--wait=false"]);
    let message = up.until("a", "Terminating");
    wait("the end of the process", || (up.status("a")["replicas"] == 0).then_some(()));
    let status = up.status("a");
    assert_eq!((&status["phase"], &status["readyReplicas"]), (&json!("Terminating"), &json!(0)), "{message}");
    up.ok(&["patch", "mcps", "a", "--type=merge", "-p", r#"{"metadata": {"finalizers": null}}"#]);
    up.fails(&["get", "mcps", "a"], "");
}

#[test]
fn changes_arrive_and_leave_history() {
    let dir = tempfile::tempdir().unwrap();
    let up = up(&dir);
    let named = |name: &str| json!({"command": [fixture(), "stdio", "--name", name], "revisionHistoryLimit": 2});
    for name in ["one", "two", "three", "four"] {
        up.apply("a", &named(name));
        wait(name, || (up.status("a")["serverInfo"]["name"] == name).then_some(()));
    }
    assert_eq!(up.ok(&["get", "controllerrevisions", "-o", "name"]).lines().count(), 3);
    up.apply("a", &json!({"command": [fixture(), "stdio"], "replicas": 3}));
    wait("three replicas", || (up.status("a")["readyReplicas"] == 3).then_some(()));
    up.ok(&["scale", "mcps", "a", "--replicas=0"]);
    up.until("a", "ScaledToZero");
    assert_eq!(up.status("a")["replicas"], 0);
}

#[test]
fn after_a_kill_there_are_no_twins() {
    let dir = tempfile::tempdir().unwrap();
    let spec = json!({"command": [fixture(), "http"], "transport": {"type": "StreamableHttp"}, "replicas": 2});
    let first = up(&dir);
    first.apply("a", &spec);
    first.until("a", "Ready");
    let instance = std::fs::read_to_string(dir.path().join("instance")).unwrap();
    first.kill();
    assert_eq!(marked(&instance), 2, "the servers of a killed perch go on");
    let second = up(&dir);
    // The status is from before until the new life has looked.
    wait("both replicas", || {
        let count = marked(&instance);
        assert!(count <= 2, "{count} processes of two replicas");
        (count == 2 && second.status("a")["readyReplicas"] == 2).then_some(())
    });
    assert_eq!(second.session("a").text("echo", &json!({"text": "x"})), "x");
    assert_eq!(marked(&instance), 2);
    assert_eq!(second.stop(), Some(0));
    assert_eq!(marked(&instance), 0, "a clean stop leaves nothing running");
    assert!(perch(&["down", "--data-dir", dir.path().to_str().unwrap()]).status.success());
}

/// How many processes carry the mark of an instance.
fn marked(instance: &str) -> usize {
    let marker = format!("PERCH_INSTANCE={instance}");
    let environments = crate::durability::environments();
    environments
        .iter()
        .filter(|p| std::fs::read(p).is_ok_and(|e| e.split(|b| *b == 0).any(|v| v == marker.as_bytes())))
        .count()
}

#[test]
fn two_hundred_servers_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let up = up(&dir);
    let servers: Vec<_> = (0..200)
        .map(|i| json!({"apiVersion": "perch.dev/v1alpha1", "kind": "McpServer", "metadata": {"name": format!("s{i}")}, "spec": {"command": [fixture(), "stdio"]}}))
        .collect();
    let list = json!({"apiVersion": "v1", "kind": "List", "items": servers});
    up.ok_with(&["apply", "--server-side", "-f", "-"], &list.to_string());
    up.ok(&["wait", "mcps", "--all", "--for=condition=Ready", "--timeout=300s"]);
    assert_eq!(up.session("s199").text("echo", &json!({"text": "x"})), "x");
}

#[test]
fn what_nobody_declares_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let first = up(&dir);
    first.apply("a", &json!({"command": [fixture(), "http"], "transport": {"type": "StreamableHttp"}}));
    first.until("a", "Ready");
    let instance = std::fs::read_to_string(dir.path().join("instance")).unwrap();
    let files = dir.path().join("processes/work/default/a");
    assert!(files.exists());
    first.kill();
    std::fs::remove_file(dir.path().join("store.redb")).unwrap();
    let _second = up(&dir);
    wait("the orphan to be removed", || (marked(&instance) == 0 && !files.exists()).then_some(()));
}
