//! Random applies, deletes and kills end with exactly what is declared.

use std::collections::BTreeMap;

use serde_json::json;

use crate::{
    containers, docker, down, inspect, label, setting,
    sudden_death::{self, Numbers},
    support::{Perch, wait},
};

#[test]
fn fifty_random_steps() {
    let mut numbers = Numbers::seeded(20_261_121);
    let dir = tempfile::tempdir().unwrap();
    let mut up = Some(Perch::up(dir.path(), &["--runtime", "docker"]));
    let filter = label(up.as_ref().unwrap());
    let mut declared: BTreeMap<String, u64> = BTreeMap::new();
    for _ in 0..50 {
        let perch = up.as_ref().unwrap();
        let name = format!("s{}", numbers.below(6));
        match numbers.below(10) {
            0..5 => {
                let replicas = numbers.below(3);
                let variant = numbers.below(3).to_string();
                let spec = json!({
                    "image": setting("PERCH_TEST_FIXTURE_IMAGE"), "args": ["stdio"], "replicas": replicas,
                    "env": [{"name": "VARIANT", "value": variant}],
                });
                perch.apply(&name, &spec);
                declared.insert(name, replicas);
            }
            5..7 => {
                perch.ok(&["delete", "mcps", &name, "--ignore-not-found"]);
                declared.remove(&name);
            }
            7..9 => {
                let all = containers(&filter);
                if let Some(id) = all.get(usize::try_from(numbers.below(all.len().max(1) as u64)).unwrap()) {
                    // It may be on its way out by itself.
                    let _ = std::process::Command::new("docker").args(["rm", "-f", id]).output();
                }
            }
            _ => {
                up.take().unwrap().kill();
                up = Some(Perch::up(dir.path(), &["--runtime", "docker"]));
            }
        }
    }
    let perch = up.unwrap();
    wait("exactly the declared containers", || {
        let mut found: BTreeMap<String, u64> = declared.keys().map(|name| (name.clone(), 0)).collect();
        for id in docker(&["ps", "-q", "--filter", &filter]).lines() {
            let server = inspect(id)["Config"]["Labels"]["perch.dev/server"].as_str()?.to_owned();
            *found.entry(server).or_default() += 1;
        }
        let all = containers(&filter).len() as u64;
        (found == declared && all == declared.values().sum::<u64>()).then_some(())
    });
    for (name, replicas) in &declared {
        if *replicas > 0 {
            perch.until(name, "Ready");
        }
    }
    assert_eq!(perch.stop(), Some(0));
    down(dir.path(), &filter);
}

#[test]
fn killed_between_any_two_writes_nothing_is_lost_and_nothing_runs_twice() {
    let dir = tempfile::tempdir().unwrap();
    let spec = json!({"image": setting("PERCH_TEST_FIXTURE_IMAGE"), "args": ["stdio"]});
    let filter = |instance: &str| format!("label=perch.dev/instance={instance}");
    sudden_death::run(dir.path(), &["--runtime", "docker"], spec, 12, Numbers::seeded(20_261_122), |instance| {
        let names = |args: &[&str]| {
            let format = r#"{{.Label "perch.dev/server"}}"#;
            let all = docker(&[args, &["--format", format, "--filter", &filter(instance)]].concat());
            let mut found: BTreeMap<String, u64> = BTreeMap::new();
            all.lines().for_each(|name| *found.entry(name.to_owned()).or_default() += 1);
            found
        };
        let (running, all) = (names(&["ps"]), names(&["ps", "-a"]));
        // One that is there and does not run counts as a twin.
        if running == all { all } else { BTreeMap::from([("not all run".into(), 0)]) }
    });
    let instance = std::fs::read_to_string(dir.path().join("instance")).unwrap();
    down(dir.path(), &filter(&instance));
}
