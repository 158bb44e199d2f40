//! Containers: locked down, repaired, adopted, and gone when they should be.

use serde_json::{Value, json};

use crate::{
    containers, docker, down, inspect, label, setting,
    support::{Perch, Session, wait},
};

fn up(dir: &tempfile::TempDir) -> Perch {
    Perch::up(dir.path(), &["--runtime", "docker"])
}

fn stdio() -> Value {
    json!({"image": setting("PERCH_TEST_FIXTURE_IMAGE"), "args": ["stdio"]})
}

fn http() -> Value {
    json!({"image": setting("PERCH_TEST_FIXTURE_IMAGE"), "args": ["http"], "transport": {"type": "StreamableHttp"}})
}

#[test]
fn every_container_is_locked_down() {
    let dir = tempfile::tempdir().unwrap();
    let up = up(&dir);
    up.ok(&["create", "secret", "generic", "s", "--from-literal=token=hunter2"]);
    let mut spec = http();
    spec["env"] = json!([{"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "s", "key": "token"}}}]);
    spec["volumes"] = json!([
        {"name": "secret", "mountPath": "/secret", "secret": {"secretName": "s"}},
        {"name": "data", "mountPath": "/data", "persistentVolumeClaim": {"claimName": "d"}},
    ]);
    up.apply("a", &spec);
    up.apply("b", &stdio());
    up.apply("c", &{
        let mut spec = stdio();
        spec["network"] = json!({"tier": "Secure"});
        spec
    });
    for name in ["a", "b", "c"] {
        up.until(name, "Ready");
        let conditions = up.status(name)["conditions"].clone();
        let enforced = conditions.as_array().unwrap().iter().find(|c| c["type"] == "NetworkEnforced").unwrap().clone();
        assert_eq!(enforced["status"], "True");
    }
    let filter = label(&up);
    for id in containers(&filter) {
        let found = inspect(&id);
        let host = &found["HostConfig"];
        assert_eq!(found["Config"]["User"], "10001:10001");
        assert_eq!(host["ReadonlyRootfs"], true);
        assert_eq!(host["CapDrop"], json!(["ALL"]));
        assert_eq!(host["SecurityOpt"], json!(["no-new-privileges"]));
        assert_eq!(host["Privileged"], false);
        assert_eq!((&host["Memory"], &host["MemorySwap"]), (&json!(256 << 20), &json!(256 << 20)));
        assert_eq!((&host["NanoCpus"], &host["PidsLimit"]), (&json!(500_000_000), &json!(512)));
        assert!(host["PortBindings"].as_object().is_none_or(serde_json::Map::is_empty));
        assert!(!found["Config"]["Labels"].to_string().contains("hunter2"));
        assert!(!docker(&["logs", &id]).contains("hunter2"));
    }
    for hidden in [up.ok(&["get", "mcps,events,controllerrevisions", "-o", "yaml"]), up.output()] {
        assert!(!hidden.contains("hunter2"));
    }
    let session = up.session("a");
    let who = session.text("whoami", &json!({}));
    for part in ["Uid:\t10001", "CapEff:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(who.contains(part), "{who}");
    }
    assert_eq!(session.text("env", &json!({"name": "TOKEN"})), "hunter2");
    let refused = session.text("write", &json!({"path": "/x"}));
    assert!(refused.contains("ead-only"), "{refused}");
    assert_eq!(session.text("write", &json!({"path": "/tmp/x"})), "written");

    // The network leads to this machine alone: neither out, nor to a neighbour, nor with tier Secure at all.
    let neighbour = up.session("b");
    let address = inspect(
        &containers(&filter).into_iter().find(|id| inspect(id)["Config"]["Labels"]["perch.dev/server"] == "a").unwrap(),
    );
    let networks = address["NetworkSettings"]["Networks"].as_object().unwrap().clone();
    let ip = networks.values().next().unwrap()["IPAddress"].as_str().unwrap().to_owned();
    for addr in [format!("{ip}:3000"), "10.255.255.53:53".to_owned()] {
        for session in [&neighbour, &up.session("c")] {
            assert_ne!(session.text("connect", &json!({"addr": addr})), "connected", "{addr}");
        }
    }
    assert_eq!(up.stop(), Some(0));
    down(dir.path(), &filter);
}

#[test]
fn what_is_changed_behind_its_back_is_put_back() {
    let dir = tempfile::tempdir().unwrap();
    let up = up(&dir);
    up.apply("a", &http());
    up.until("a", "Ready");
    let filter = label(&up);
    let only = || containers(&filter).into_iter().next();
    let answers =
        || wait("an answer", || Some(up.session("a").text("echo", &json!({"text": "x"}))).filter(|t| t == "x"));

    let first = only().unwrap();
    docker(&["rm", "-f", &first]);
    wait("another container", || only().filter(|id| *id != first));
    answers();
    let second = only().unwrap();
    docker(&["kill", &second]);
    wait("the restart", || (up.status("a")["restarts"] == 1).then_some(()));
    answers();
    docker(&["pause", &only().unwrap()]);
    wait("the container to go on", || (inspect(&only()?)["State"]["Paused"] == false).then_some(()));
    answers();
    docker(&["update", "--memory", "512m", "--memory-swap", "512m", &only().unwrap()]);
    wait("the limit", || {
        let all = containers(&filter);
        (all.len() == 1 && inspect(&all[0])["HostConfig"]["Memory"] == 256 << 20).then_some(())
    });
    answers();
    let network = inspect(&only().unwrap())["HostConfig"]["NetworkMode"].as_str().unwrap().to_owned();
    docker(&["network", "disconnect", &network, &only().unwrap()]);
    wait("the network", || {
        let all = containers(&filter);
        (all.len() == 1 && inspect(&all[0])["NetworkSettings"]["Networks"].get(&network).is_some()).then_some(())
    });
    answers();
    assert_eq!(up.stop(), Some(0));
    down(dir.path(), &filter);
}

#[test]
fn a_broken_change_leaves_what_served() {
    let dir = tempfile::tempdir().unwrap();
    let up = up(&dir);
    up.apply("a", &http());
    up.until("a", "Ready");
    let filter = label(&up);
    let before = up.status("a")["currentRevision"].clone();
    let with = |args: &[&str]| {
        let mut spec = http();
        spec["args"] = json!(args);
        spec
    };
    let mut absent = http();
    absent["image"] = "perch.local/no-such-image:1".into();
    for (spec, reason) in [(with(&["--exit", "4"]), "CrashLoopBackOff"), (absent, "ImagePullFailed")] {
        up.apply("a", &spec);
        let (status, message) = up.status_when("a", reason);
        assert!(message.contains("goes on serving"), "{message}");
        assert_eq!((&status["phase"], &status["readyReplicas"]), (&json!("Degraded"), &json!(1)));
        assert_eq!(status["currentRevision"], before);
        assert_eq!(up.session("a").text("echo", &json!({"text": "x"})), "x");
    }
    // A good one gets the clients once it listens, and not before.
    up.apply("a", &with(&["http", "--delay-ms", "6000"]));
    up.until("a", "Updating");
    assert_eq!(up.session("a").text("echo", &json!({"text": "x"})), "x");
    up.until("a", "Ready");
    assert_ne!(up.status("a")["currentRevision"], before);
    wait("the old one to go", || (containers(&filter).len() == 1).then_some(()));
    assert_eq!(up.stop(), Some(0));
    down(dir.path(), &filter);
}

#[test]
fn logs_are_followed_from_one_container_to_the_next() {
    use std::io::{BufRead, BufReader};
    let dir = tempfile::tempdir().unwrap();
    let up = up(&dir);
    up.apply("a", &stdio());
    up.until("a", "Ready");
    let filter = label(&up);
    let mut follower = std::process::Command::new(env!("CARGO_BIN_EXE_perch"))
        .args(["logs", "a", "-f", "--data-dir", dir.path().to_str().unwrap()])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert_eq!(lines.next().unwrap(), "fixture starts");
    up.session("a").call("crash", &json!({}));
    assert_eq!(lines.next().unwrap(), "the fixture crashes as asked");
    assert_eq!(lines.next().unwrap(), "fixture starts");
    docker(&["rm", "-f", &containers(&filter)[0]]);
    assert_eq!(lines.next().unwrap(), "fixture starts");
    follower.kill().unwrap();
    follower.wait().unwrap();
    assert_eq!(up.stop(), Some(0));
    down(dir.path(), &filter);
}

#[test]
fn what_is_written_to_a_claim_outlives_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let up = up(&dir);
    let mut spec = stdio();
    spec["volumes"] = json!([{"name": "d", "mountPath": "/data", "persistentVolumeClaim": {"claimName": "notes"}}]);
    up.apply("a", &spec);
    up.until("a", "Ready");
    assert_eq!(up.session("a").text("write", &json!({"path": "/data/x"})), "written");
    let filter = label(&up);
    assert_eq!(containers(&filter).len(), 1);
    up.ok(&["delete", "mcps", "a"]);
    spec["security"] = json!({"runAsUser": 20002});
    up.apply("b", &spec);
    up.until("b", "Ready");
    assert_eq!(up.session("b").text("write", &json!({"path": "/data/y"})), "written");
    assert_eq!(up.stop(), Some(0));
    let volume = docker(&["volume", "ls", "-q", "--filter", &filter]);
    let place = docker(&["volume", "inspect", "-f", "{{.Mountpoint}}", volume.trim()]);
    for file in ["x", "y"] {
        assert!(std::path::Path::new(place.trim()).join(file).exists(), "{file}");
    }
    down(dir.path(), &filter);
}

#[test]
fn after_a_kill_the_next_perch_adopts_what_runs() {
    let dir = tempfile::tempdir().unwrap();
    let first = up(&dir);
    first.apply("h", &http());
    first.apply("s", &stdio());
    first.until("h", "Ready");
    first.until("s", "Ready");
    let filter = label(&first);
    let mut before = containers(&filter);
    let session = first.session("h");
    let gateway = first.gateway.clone();
    first.kill();
    let second = up(&dir);
    second.until("h", "Ready");
    second.until("s", "Ready");
    let mut after = containers(&filter);
    before.sort();
    after.sort();
    assert_eq!(before, after, "the same containers, no twins");
    assert_eq!(second.status("h")["restarts"], 0);
    assert_eq!(second.session("s").text("echo", &json!({"text": "x"})), "x");
    // The old session is good at the new gateway: it needs no memory there.
    assert_ne!(gateway, second.gateway);
    let resumed = Session::resume(&format!("{}/default/h/mcp", second.gateway), &session.id);
    assert_eq!(resumed.text("echo", &json!({"text": "y"})), "y");
    assert_eq!(second.stop(), Some(0));
    down(dir.path(), &filter);
}

#[test]
fn what_cannot_run_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let up = up(&dir);
    let image = setting("PERCH_TEST_FIXTURE_IMAGE");
    up.apply("absent", &json!({"image": "perch.local/no-such-image:1"}));
    up.apply("crash", &json!({"image": image, "args": ["--exit", "7"]}));
    up.apply("entry", &json!({"image": image, "command": ["/no/such/program"]}));
    up.apply("process", &json!({"command": ["true"]}));
    let said = up.until("absent", "ImagePullFailed");
    assert!(said.contains("perch.local/no-such-image:1 cannot be pulled") && said.contains("docker load"), "{said}");
    let said = up.until("crash", "CrashLoopBackOff");
    assert!(said.contains("code 7") && said.contains("told to end"), "{said}");
    let said = up.until("entry", "CannotStart");
    assert!(said.contains("No such file"), "{said}");
    up.until("process", "UnsupportedByRuntime");
    let filter = label(&up);
    up.ok(&["delete", "mcps", "--all"]);
    assert!(containers(&filter).is_empty());
    assert_eq!(up.stop(), Some(0));
    down(dir.path(), &filter);
}

#[test]
fn what_serves_goes_on_while_the_next_cannot_and_stops_when_told() {
    let dir = tempfile::tempdir().unwrap();
    let up = up(&dir);
    up.apply("a", &http());
    up.until("a", "Ready");
    let filter = label(&up);
    let before = containers(&filter);
    let mut absent = http();
    absent["image"] = "perch.local/no-such-image:1".into();
    up.apply("a", &absent);
    up.until("a", "ImagePullFailed");
    assert_eq!(containers(&filter), before, "what runs is left alone");
    // No image is needed to run nothing.
    absent["replicas"] = 0.into();
    up.apply("a", &absent);
    up.until("a", "ScaledToZero");
    wait("the old to end", || containers(&filter).is_empty().then_some(()));
    assert_eq!(up.status("a")["replicas"], 0);
    up.apply("a", &http());
    up.until("a", "Ready");
    assert_eq!(up.stop(), Some(0));
    down(dir.path(), &filter);
}

#[test]
fn what_nobody_declares_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let first = up(&dir);
    first.apply("a", &http());
    first.apply("kept", &stdio());
    first.until("a", "Ready");
    first.until("kept", "Ready");
    let filter = label(&first);
    first.kill();
    // The declaration is lost, the containers are not.
    std::fs::remove_file(dir.path().join("store.redb")).unwrap();
    let second = up(&dir);
    second.apply("kept", &stdio());
    wait("the orphan to be removed", || {
        let all = containers(&filter);
        (all.len() == 1 && inspect(&all[0])["Config"]["Labels"]["perch.dev/server"] == "kept").then_some(())
    });
    second.until("kept", "Ready");
    assert_eq!(second.stop(), Some(0));
    down(dir.path(), &filter);
}
