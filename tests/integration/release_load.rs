//! Five hundred users who call all the time while one revision is promoted and the next one, which
//! fails too often, is taken back: nobody sees a failure of Perch, and nobody but the canary's users
//! sees the bad revision.

use std::collections::BTreeSet;

use perch::routing::{Side, cohort::assign};
use serde_json::{Value, json};

use crate::{
    access,
    releases::{Releases, named},
    support::{
        PATIENCE, Perch, fixture,
        load::{Load, Users, rate},
        wait, wait_up_to,
    },
};

const USERS: usize = 500;
/// Share of the first stage in percent.
const SHARE: i32 = 20;

fn stages() -> Value {
    json!([
        {"name": "pilot", "percentage": SHARE, "duration": "5s", "maxDuration": "100s",
            "successCriteria": [{"metric": "errorRate", "threshold": "< 0.5%"}]},
        {"name": "wide", "percentage": 60, "duration": "5s", "maxDuration": "100s"},
    ])
}

/// The users whom a release gives its candidate at a share.
fn canaries(release_id: &str, percentage: i32) -> BTreeSet<usize> {
    (0..USERS).filter(|i| assign(release_id, &Users::name(*i), percentage) == Side::Candidate).collect()
}

/// A slow machine takes its time: the stages end when there were calls enough.
fn until(up: &Perch, phase: &str) -> Value {
    let mut last = Value::Null;
    let found = wait_up_to(3 * PATIENCE, || {
        last = up.canary("a");
        (last["phase"] == phase).then_some(())
    });
    assert!(found.is_some(), "the release is not {phase}: {last:#}");
    last
}

#[test]
fn five_hundred_users_see_no_failure_and_only_canaries_the_bad_revision() {
    let dir = tempfile::tempdir().unwrap();
    let users = Users::new(USERS);
    let up = access::up(dir.path(), &json!({"apiKeys": users.entries}));
    up.apply("a", &named("one"));
    up.until("a", "Ready");
    up.release("a", "a", &stages());
    let load = Load::start(&format!("{}/default/a/mcp", up.gateway), None, &users, rate());
    wait("everybody to have called", || (load.seen().of("one").users.len() == USERS).then_some(()));

    // A good one, which reaches everybody.
    up.apply("a", &named("two"));
    let status = until(&up, "Succeeded");
    assert_eq!(status["history"][0]["reason"], "AllStagesPassed", "{status}");
    let before = load.seen().of("two").calls;
    wait("everybody to have the new revision", || {
        let two = load.seen().of("two");
        (two.users.len() == USERS && two.calls > before + USERS).then_some(())
    });
    let stable = load.seen().of("one").calls;
    assert_eq!(load.seen().of("one").errors + load.seen().of("two").errors, 0);

    // One that fails 2% of the calls, against a limit of 0.5%.
    up.apply("a", &json!({"command": [fixture(), "stdio", "--name", "three", "--fail", "2"]}));
    let status = until(&up, "RolledBack");
    let ended = &status["history"][0];
    assert_eq!((&ended["reason"], &ended["stage"]), (&json!("CriterionBreached"), &json!("pilot")), "{ended}");
    let asked = load.seen();
    wait("calls after the end", || (load.seen().answered() > asked.answered() + USERS).then_some(()));
    let (seen, sent) = load.end();

    assert_eq!(seen.failures, Vec::<String>::new(), "of {} calls", seen.sent);
    assert_eq!(seen.answered(), seen.sent, "each call has its answer");
    assert_eq!(seen.of("one").calls, stable, "nobody went back to the first revision");
    let (two, three) = (seen.of("two"), seen.of("three"));
    assert_eq!((two.errors, three.calls), (0, asked.of("three").calls), "nobody has it after its end");
    let allowed = canaries(status["releaseId"].as_str().unwrap(), SHARE);
    assert!((60..=140).contains(&allowed.len()), "{} of {USERS} users are {SHARE}% of them", allowed.len());
    let strangers: Vec<_> = three.users.difference(&allowed).collect();
    assert!(strangers.is_empty(), "{strangers:?} saw the bad revision and are no canaries");
    assert!(three.users.len() * 10 >= allowed.len() * 9, "{} of {} canaries met it", three.users.len(), allowed.len());
    // Decided in a whole second, on all gateways within two, and a call was sent before it is routed.
    let decided: jiff::Timestamp = ended["decidedAt"].as_str().unwrap().parse().unwrap();
    let late = three.last.unwrap().duration_since(decided);
    assert!(late < jiff::SignedDuration::from_secs(3), "the last call of the bad revision came {late:?} late");
    println!(
        "{} calls at {sent:.0} a second, the slowest {:?}; the bad revision had {} calls with {} errors of {} users, \
         the last {late:?} after the decision: {}",
        seen.sent,
        seen.slowest,
        three.calls,
        three.errors,
        three.users.len(),
        ended["message"],
    );
    assert!(sent >= 0.9 * f64::from(rate()), "the load was {sent:.0} calls a second");
    assert_eq!(up.stop(), Some(0));
}
