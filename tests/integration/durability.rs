//! A write that was answered is there after kill -9.

use std::{collections::BTreeMap, process::Command};

use serde_json::{Value, json};

use crate::{
    sudden_death::{self, Numbers},
    support::{Perch, perch},
};

#[test]
fn answered_writes_survive_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let mut expected = BTreeMap::new();
    for round in 0..4 {
        let up = Perch::up(dir.path(), &["--runtime", "process"]);
        for i in 0..6 {
            let name = format!("c{}", (round * 5 + i) % 12);
            let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"round": round.to_string()}});
            up.ok_with(&["apply", "-f", "-"], &map.to_string());
            expected.insert(name, round.to_string());
        }
        // At once after the last answer: nothing may be in a buffer still.
        up.kill();
    }
    let up = Perch::up(dir.path(), &["--runtime", "process"]);
    let list: Value = serde_json::from_str(&up.ok(&["get", "configmaps", "-o", "json"])).unwrap();
    let found: BTreeMap<String, String> = list["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| (m["metadata"]["name"].as_str().unwrap().into(), m["data"]["round"].as_str().unwrap().into()))
        .collect();
    assert_eq!(found, expected);
    assert_eq!(up.stop(), Some(0));
}

#[test]
fn killed_between_any_two_writes_nothing_is_lost_and_nothing_runs_twice() {
    let dir = tempfile::tempdir().unwrap();
    let spec = json!({"command": [crate::support::fixture(), "http"], "transport": {"type": "StreamableHttp"}});
    sudden_death::run(dir.path(), &["--runtime", "process"], spec, 15, Numbers::seeded(20_261_121), |instance| {
        let mut found = BTreeMap::new();
        for path in environments() {
            let environment = std::fs::read(path).unwrap_or_default();
            let variables: Vec<&[u8]> = environment.split(|b| *b == 0).collect();
            if variables.contains(&format!("PERCH_INSTANCE={instance}").as_bytes()) {
                let server = variables.iter().find_map(|v| v.strip_prefix(b"PERCH_SERVER=default/")).unwrap();
                *found.entry(String::from_utf8(server.to_vec()).unwrap()).or_default() += 1;
            }
        }
        found
    });
}

#[test]
fn a_second_perch_is_told_who_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let up = Perch::up(dir.path(), &["--runtime", "process"]);
    let second = perch(&[
        "up",
        "--data-dir",
        dir.path().to_str().unwrap(),
        "--api-addr",
        "127.0.0.1:0",
        "--gateway-addr",
        "127.0.0.1:0",
    ]);
    assert_eq!(second.status.code(), Some(3));
    let said = String::from_utf8_lossy(&second.stderr);
    assert!(said.contains("is held by perch with pid") && said.contains(&up.gateway), "{said}");
}

#[test]
fn down_leaves_nothing_and_may_be_said_twice() {
    let dir = tempfile::tempdir().unwrap();
    let up = Perch::up(dir.path(), &["--runtime", "process"]);
    up.apply("a", &json!({"command": [crate::support::fixture(), "stdio"]}));
    up.until("a", "Ready");
    let instance = std::fs::read_to_string(dir.path().join("instance")).unwrap();
    for _ in 0..2 {
        let down = perch(&["down", "--data-dir", dir.path().to_str().unwrap()]);
        assert!(down.status.success(), "{}", String::from_utf8_lossy(&down.stderr));
    }
    let left = Command::new("grep")
        .args(["-la", &format!("PERCH_INSTANCE={instance}")])
        .args(environments())
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&left.stdout), "");
    assert!(!dir.path().join("store.redb").exists());
}

/// The environments of all processes; those that end meanwhile are no matter.
pub fn environments() -> Vec<String> {
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    all.map(|e| e.path().join("environ")).filter(|p| p.exists()).map(|p| p.display().to_string()).collect()
}

#[test]
fn down_does_not_forget_containers_that_it_cannot_remove() {
    let dir = tempfile::tempdir().unwrap();
    let up = Perch::up(dir.path(), &["--runtime", "process"]);
    assert_eq!(up.stop(), Some(0));
    // As it is left by a perch that ran containers.
    std::fs::create_dir(dir.path().join("containers")).unwrap();
    let down = || {
        Command::new(env!("CARGO_BIN_EXE_perch"))
            .args(["down", "--data-dir", dir.path().to_str().unwrap()])
            .env("DOCKER_HOST", "unix:///no/such/engine.sock")
            .output()
            .unwrap()
    };
    let output = down();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("start the engine and say `perch down` again"), "{said}");
    assert!(dir.path().join("store.redb").exists());
    std::fs::remove_dir(dir.path().join("containers")).unwrap();
    assert_eq!(down().status.code(), Some(0));
    assert!(!dir.path().join("store.redb").exists());
}
