//! A release from its beginning to promotion, and the next one to its rollback, while users with keys
//! of their own call through the gateway's Service all the time.

use std::collections::BTreeSet;

use perch::routing::{Side, cohort::assign};
use serde_json::{Value, json};

use crate::{
    release::{Release, SYSTEM},
    support::{
        load::{Load, Users, rate},
        wait,
    },
};

const USERS: usize = 500;
/// Share of the first stage in percent.
const SHARE: i32 = 30;

fn server(name: &str, more: &[&str]) -> Value {
    let args = [&["http", "--name", name], more].concat();
    json!({"args": args, "transport": {"type": "StreamableHttp"}, "replicas": 1,
        "resources": {"requests": {"cpu": "50m", "memory": "32Mi"}, "limits": {"cpu": "2", "memory": "128Mi"}}})
}

fn status(release: &Release) -> Value {
    let object: Value = serde_json::from_str(&release.kubectl(&["get", "canary", "load", "-o", "json"])).unwrap();
    object["status"].clone()
}

fn until(release: &Release, phase: &str) -> Value {
    wait(&format!("the release to be {phase}"), || Some(status(release)).filter(|status| status["phase"] == phase))
}

/// A good revision reaches everybody, a bad one goes back, and no user notices but the canaries.
pub fn promotion_and_rollback(release: &Release) {
    let users = Users::new(USERS);
    release.let_in(&users.entries);
    release.apply("load", &server("one", &[]));
    release.ready("load");
    let stages = json!([
        {"name": "pilot", "percentage": SHARE, "duration": "5s", "maxDuration": "110s",
            "successCriteria": [{"metric": "errorRate", "threshold": "< 0.5%"}]},
        {"name": "wide", "percentage": 60, "duration": "5s", "maxDuration": "110s"},
    ]);
    let object = json!({"apiVersion": "perch.dev/v1alpha1", "kind": "CanaryRelease", "metadata": {"name": "load"},
        "spec": {"targetRef": {"name": "load"}, "drainTimeout": "5s", "stages": stages}});
    release.cluster.ok_with(&["-n", crate::release::SERVERS, "apply", "-f", "-"], &object.to_string());
    wait("the stable revision to be known", || status(release)["stableRevision"].as_str().map(drop));
    let host = format!("perch-gateway.{SYSTEM}.svc");
    let load = Load::start(&release.url("load"), Some(&host), &users, rate());
    wait("everybody to have called", || {
        let seen = load.seen();
        assert_eq!(seen.failures.first(), None, "of {} calls", seen.sent);
        (seen.of("one").users.len() == USERS).then_some(())
    });

    release.apply("load", &server("two", &[]));
    let promoted = until(release, "Succeeded");
    assert_eq!(promoted["history"][0]["reason"], "AllStagesPassed", "{promoted}");
    let before = load.seen().of("two").calls;
    wait("everybody to have the new revision", || {
        let two = load.seen().of("two");
        (two.users.len() == USERS && two.calls > before + USERS).then_some(())
    });
    let stable = load.seen().of("one").calls;

    release.apply("load", &server("three", &["--fail", "2"]));
    let back = until(release, "RolledBack");
    let ended = &back["history"][0];
    assert_eq!((&ended["reason"], &ended["stage"]), (&json!("CriterionBreached"), &json!("pilot")), "{ended}");
    let asked = load.seen();
    wait("calls after the end", || (load.seen().answered() > asked.answered() + USERS).then_some(()));
    let (seen, calls_a_second) = load.end();

    let (one, two, three) = (seen.of("one"), seen.of("two"), seen.of("three"));
    println!(
        "{} calls at {calls_a_second:.0} a second, the slowest {:?}; the bad revision had {} calls with {} errors of {} users: {}",
        seen.sent,
        seen.slowest,
        three.calls,
        three.errors,
        three.users.len(),
        ended["message"],
    );
    assert_eq!(seen.failures, Vec::<String>::new(), "of {} calls", seen.sent);
    assert_eq!((one.calls, one.errors, two.errors), (stable, 0, 0), "nobody went back to the first revision");
    assert_eq!(three.calls, asked.of("three").calls, "nobody has the bad revision after its end");
    let id = back["releaseId"].as_str().unwrap();
    let allowed: BTreeSet<usize> =
        (0..USERS).filter(|i| assign(id, &Users::name(*i), SHARE) == Side::Candidate).collect();
    let strangers: Vec<_> = three.users.difference(&allowed).collect();
    assert!(strangers.is_empty(), "{strangers:?} saw the bad revision and are no canaries");
    assert!(!three.users.is_empty());
    release.kubectl(&["delete", "canary,mcpserver", "load"]);
}
