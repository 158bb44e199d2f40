//! Releases by `perch up`, from the change of a server to its end: real processes, the real gateway
//! and its own counters, and stages of seconds.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use serde_json::{Value, json};

use crate::{
    releases::{Releases, condition, greeted, held, long, named, quick, released, revision, up, who},
    support::{Session, fixture, wait},
};

#[test]
fn a_good_revision_reaches_everybody_and_nobody_notices() {
    let dir = tempfile::tempdir().unwrap();
    let up = held(&dir, &quick());
    let first = up.status("a");
    assert_eq!(up.canary("a")["stableRevision"], first["currentRevision"]);
    assert_eq!(condition(&up.canary("a"), "Ready").0, "True");

    // Clients come and go all the time, and each must be served.
    let (done, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let load = {
        let (done, calls, url) = (Arc::clone(&done), Arc::clone(&calls), format!("{}/default/a/mcp", up.gateway));
        std::thread::spawn(move || {
            while !done.load(Ordering::Relaxed) {
                let session = Session::open(&url);
                assert_eq!(session.text("echo", &json!({"text": "hi"})), "hi");
                calls.fetch_add(1, Ordering::Relaxed);
            }
        })
    };
    up.apply("a", &named("two"));
    let status = up.until_phase("a", "Progressing");
    assert_eq!(status["stage"]["name"], "half");
    let server = up.status("a");
    assert_eq!(server["currentRevision"], first["currentRevision"], "the stable revision is held");
    assert_eq!((&server["phase"], &server["candidate"]["phase"]), (&json!("Ready"), &json!("Ready")), "{server}");
    assert_eq!(server["candidate"]["revision"], server["declaredRevision"]);
    assert_eq!(condition(&server, "RevisionHeld").1, "ReleaseUnderWay");
    assert_eq!(condition(&status, "Ready").0, "False");
    let at = |revision: &str| who(&format!("{}/default/a@{revision}/mcp", up.gateway));
    assert_eq!(at(&revision(&server, "currentRevision")), "one");
    assert_eq!(at(&revision(&server, "declaredRevision")), "two");

    let status = up.until_phase("a", "Succeeded");
    assert_eq!((&status["stableRevision"], &status["candidateRevision"]), (&server["declaredRevision"], &Value::Null));
    wait("the candidate to become the server", || {
        let server = up.status("a");
        (server["candidate"].is_null() && server["currentRevision"] == server["declaredRevision"]).then_some(())
    });
    up.until("a", "Ready");
    let before = calls.load(Ordering::Relaxed);
    wait("calls after the end", || (calls.load(Ordering::Relaxed) > before + 5).then_some(()));
    done.store(true, Ordering::Relaxed);
    load.join().expect("no call failed");
    assert_eq!(up.answering("a"), "two");
    assert_eq!(condition(&up.status("a"), "RevisionHeld").0, "", "nothing is held any more");
    assert!(!dir.path().join("processes/work/default/a_candidate").exists(), "nothing is left of the candidate");
    let story = up.story();
    for told in ["ReleaseStarted", "Deploying", "stage half began", "stage all began", "Promoting", "Promoted"] {
        assert!(story.contains(told), "{told} in\n{story}");
    }
}

#[test]
fn a_revision_that_cannot_run_never_meets_a_user_and_stays_out() {
    let dir = tempfile::tempdir().unwrap();
    let up = held(&dir, &quick());
    let first = up.status("a");
    let bad = json!({"command": [fixture(), "stdio", "--exit", "3"]});
    up.apply("a", &bad);
    let status = up.until_phase("a", "Failed");
    assert_eq!(status["history"][0]["reason"], "CandidateUnhealthy", "{status}");
    assert!(status["message"].as_str().unwrap().contains("CrashLoopBackOff"), "{status}");
    assert_eq!((&status["stage"], &status["routing"]["percentage"]), (&Value::Null, &json!(0)), "it had no users");
    let stalled = condition(&status, "Stalled");
    assert_eq!((stalled.0.as_str(), condition(&status, "Ready").0.as_str()), ("True", "False"));

    wait("the candidate to be gone", || up.status("a")["candidate"].is_null().then_some(()));
    let server = up.status("a");
    assert_eq!(
        (&server["phase"], &server["currentRevision"], &server["restarts"]),
        (&json!("Ready"), &first["currentRevision"], &json!(0)),
        "the stable revision is untouched"
    );
    let held = condition(&server, "RevisionHeld");
    assert_eq!((held.0.as_str(), held.1.as_str()), ("True", "RolledBack"));
    assert!(held.2.contains("declare another revision"), "{}", held.2);
    up.ok(&["wait", "mcps", "a", "--for=condition=Ready", "--timeout=10s"]);

    // A GitOps tool applies the same again, and again with another label and more replicas.
    let releases = status["releases"].clone();
    let object = json!({"apiVersion": "perch.dev/v1alpha1", "kind": "McpServer",
        "metadata": {"name": "a", "labels": {"sync": "2"}},
        "spec": {"command": bad["command"], "replicas": 2}});
    up.ok_with(&["apply", "-f", "-"], &object.to_string());
    wait("the replicas of the stable revision", || (up.status("a")["readyReplicas"] == 2).then_some(()));
    let after = up.canary("a");
    assert_eq!((&after["phase"], &after["releases"]), (&json!("Failed"), &releases), "{after}");
    assert_eq!(up.answering("a"), "one");

    // Back to what runs: all is well. And the bad one again: it is known.
    up.apply("a", &named("one"));
    let status = up.until_phase("a", "Idle");
    assert_eq!(condition(&status, "Ready").0, "True");
    wait("the server to be as declared", || {
        let server = up.status("a");
        (condition(&server, "RevisionHeld").0.is_empty() && server["declaredRevision"] == first["declaredRevision"])
            .then_some(())
    });
    up.apply("a", &bad);
    let status = up.until_phase("a", "RolledBack");
    assert_eq!(status["releases"], releases, "no new release of a revision that was taken back");
    assert!(up.status("a")["candidate"].is_null());
}

#[test]
fn people_are_obeyed_once() {
    let dir = tempfile::tempdir().unwrap();
    let (up, _) = released(&dir, &long(100));
    wait("the gateway to send people to the candidate", || (up.answering("a") == "two").then_some(()));
    up.tell("a", "c1", "Abort");
    let status = up.until_phase("a", "RolledBack");
    assert_eq!(status["history"][0]["reason"], "Aborted");
    assert_eq!(up.answering("a"), "one");
    wait("the candidate to be gone", || up.status("a")["candidate"].is_null().then_some(()));
    assert_eq!(up.status("a")["phase"], "Ready");

    up.tell("a", "c2", "Retry");
    let status = up.until_phase("a", "Progressing");
    assert_eq!((&status["releases"], &status["lastCommand"]["id"]), (&json!(2), &json!("c2")));
    // The old command comes back, as when a tool applies what it once read.
    let replay = json!({"id": "c1", "verb": "Abort", "releaseId": status["releaseId"], "stage": "long"});
    up.ok(&["annotate", "--overwrite", "canary", "a", &format!("perch.dev/command={replay}")]);
    // One for another release is refused, which shows that the one before was read.
    let other = json!({"id": "c3", "verb": "Abort", "releaseId": "another"});
    up.ok(&["annotate", "--overwrite", "canary", "a", &format!("perch.dev/command={other}")]);
    let status = wait("the answer", || Some(up.canary("a")).filter(|s| s["lastCommand"]["id"] == "c3"));
    assert_eq!((&status["phase"], &status["lastCommand"]["accepted"]), (&json!("Progressing"), &json!(false)));
    // What is no command is complained about, and nothing else.
    up.ok(&["annotate", "--overwrite", "canary", "a", "perch.dev/command=abort please"]);
    wait("the complaint", || up.story().contains("CommandUnreadable").then_some(()));
    assert_eq!(up.canary("a")["phase"], "Progressing");
    up.tell("a", "c4", "Promote");
    up.until_phase("a", "Succeeded");
    wait("the server to follow", || {
        (up.status("a")["candidate"].is_null() && up.answering("a") == "two").then_some(())
    });
}

#[test]
fn a_newer_revision_waits_until_nobody_uses_the_one_before() {
    let dir = tempfile::tempdir().unwrap();
    let up = held(&dir, &long(100));
    let stable = up.canary("a")["stableRevision"].clone();
    up.apply("a", &named("two"));
    let second = up.until_phase("a", "Progressing")["candidateRevision"].clone();
    wait("users of the candidate", || (up.answering("a") == "two").then_some(()));
    // A session that is bound to the candidate goes on while it drains.
    let session = up.session("a");
    up.apply("a", &named("three"));
    assert_eq!(session.text("echo", &json!({"text": "still"})), "still");
    let status = wait("the next release", || {
        Some(up.canary("a")).filter(|s| s["phase"] == "Progressing" && s["candidateRevision"] != second)
    });
    assert_eq!(status["stableRevision"], stable, "{status}");
    let ended = &status["history"][0];
    assert_eq!((&ended["outcome"], &ended["candidateRevision"]), (&json!("Superseded"), &second), "{ended}");
    assert_eq!(status["failedRevisions"], Value::Null, "it was not bad");
    let server = up.status("a");
    assert_eq!(server["candidate"]["revision"], server["declaredRevision"]);
    wait("users of the newest", || (up.answering("a") == "three").then_some(()));
}

#[test]
fn a_server_has_one_release() {
    let dir = tempfile::tempdir().unwrap();
    let up = up(&dir);
    up.apply("a", &named("one"));
    up.until("a", "Ready");
    up.release("first", "a", &long(50));
    up.release("second", "a", &quick());
    let status = up.canary("second");
    let (is, reason, message) = condition(&status, "Stalled");
    assert_eq!((is.as_str(), reason.as_str()), ("True", "AnotherRelease"), "{status}");
    assert!(message.contains("CanaryRelease first is older"), "{message}");
    assert_eq!(condition(&status, "Ready").0, "False");
    up.apply("a", &named("two"));
    up.until_phase("first", "Progressing");
    let status = up.canary("second");
    assert_eq!((&status["phase"], &status["stableRevision"]), (&json!("Idle"), &Value::Null), "{status}");

    // Without the first one the server is free, and what it declares is what the second one holds.
    up.ok(&["delete", "canary", "first"]);
    wait("the second to take over", || {
        let (server, status) = (up.status("a"), up.canary("second"));
        let settled = server["candidate"].is_null() && server["phase"] == "Ready";
        (settled && status["stableRevision"] == server["currentRevision"] && condition(&status, "Stalled").0.is_empty())
            .then_some(())
    });
    assert_eq!(up.answering("a"), "two");
}

#[test]
fn a_spec_that_makes_no_sense_waits_for_a_change() {
    let dir = tempfile::tempdir().unwrap();
    let (up, _) = released(&dir, &long(100));
    up.ok(&["patch", "canary", "a", "--type=merge", "-p", r#"{"spec": {"analysis": {"falseRollback": "0%"}}}"#]);
    let status = wait("the complaint", || Some(up.canary("a")).filter(|s| condition(s, "Stalled").1 == "InvalidSpec"));
    assert!(condition(&status, "Ready").2.contains("spec.analysis.falseRollback"), "{status}");
    assert_eq!(status["phase"], "Progressing", "what was decided stands");
    assert_eq!(up.status("a")["candidate"]["phase"], "Ready");
    up.ok(&["patch", "canary", "a", "--type=merge", "-p", r#"{"spec": {"analysis": {"falseRollback": "1%"}}}"#]);
    let status = wait("it to go on", || Some(up.canary("a")).filter(|s| condition(s, "Stalled").0.is_empty()));
    assert_eq!(status["phase"], "Progressing");
    // What runs elsewhere cannot be released here.
    up.apply("r", &json!({"remote": {"url": "http://127.0.0.1:9/mcp"}, "transport": {"type": "StreamableHttp"}}));
    up.release("r", "r", &quick());
    assert_eq!(condition(&up.canary("r"), "Stalled").1, "RemoteServer");
}

#[test]
fn a_perch_that_is_killed_goes_on_with_both_revisions() {
    let dir = tempfile::tempdir().unwrap();
    let first = up(&dir);
    first
        .apply("a", &json!({"command": [fixture(), "http", "--name", "one"], "transport": {"type": "StreamableHttp"}}));
    first.until("a", "Ready");
    first.release("a", "a", &long(50));
    first
        .apply("a", &json!({"command": [fixture(), "http", "--name", "two"], "transport": {"type": "StreamableHttp"}}));
    let before = first.until_phase("a", "Progressing");
    first.kill();
    let second = up(&dir);
    let server = wait("both revisions", || {
        Some(second.status("a")).filter(|s| s["phase"] == "Ready" && s["candidate"]["phase"] == "Ready")
    });
    for (key, name) in [("currentRevision", "one"), ("declaredRevision", "two")] {
        let url = format!("{}/default/a@{}/mcp", second.gateway, revision(&server, key));
        // The status is from before until the new life has looked.
        let found = wait(name, || greeted(&url).ok());
        assert_eq!(found, name);
    }
    let after = second.canary("a");
    assert_eq!((&after["phase"], &after["releaseId"]), (&json!("Progressing"), &before["releaseId"]));
    assert_eq!(after["routing"]["desiredEpoch"], before["routing"]["desiredEpoch"], "nothing was decided anew");
    // The history is shorter than the number of revisions that a release needs, and has them all.
    second.ok(&["patch", "mcps", "a", "--type=merge", "-p", r#"{"spec": {"revisionHistoryLimit": 0}}"#]);
    let names = second.ok(&["get", "controllerrevisions", "-o", "name"]);
    for key in ["currentRevision", "declaredRevision"] {
        assert!(names.contains(&revision(&server, key)), "{key} in {names}");
    }
    second.ok(&["delete", "mcps", "a"]);
    assert!(!dir.path().join("processes/work/default/a_candidate").exists(), "a server leaves with its candidate");
}

#[test]
fn a_release_cannot_change_the_transport_and_says_so_before_anybody_notices() {
    let dir = tempfile::tempdir().unwrap();
    let up = held(&dir, &quick());
    let bound = up.session("a");
    let two = json!({"command": [fixture(), "http", "--name", "two"], "transport": {"type": "StreamableHttp"}});
    up.apply("a", &two);
    assert_eq!(up.answering("a"), "one");
    let status = up.until_phase("a", "Failed");
    let message = status["message"].as_str().unwrap();
    assert!(message.contains("from Stdio with sessions Shared to StreamableHttp"), "{message}");
    assert_eq!((up.answering("a").as_str(), &up.status("a")["transport"]["type"]), ("one", &json!("Stdio")));
    assert_eq!(bound.text("echo", &json!({"text": "still"})), "still");
    up.ok(&["wait", "mcps", "a", "--for=condition=Ready", "--timeout=10s"]);
    // Without a release the server changes at once.
    up.ok(&["delete", "canary", "a"]);
    wait("the declared revision", || {
        (greeted(&format!("{}/default/a/mcp", up.gateway)).as_deref() == Ok("two")).then_some(())
    });
    wait("the status to say so", || (up.status("a")["transport"]["type"] == "StreamableHttp").then_some(()));
}

#[test]
fn a_port_that_both_revisions_want_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let up = up(&dir);
    let server = |name: &str, port: Option<u16>| json!({"command": [fixture(), "http", "--name", name], "transport": {"type": "StreamableHttp", "port": port}});
    up.apply("a", &server("one", Some(port)));
    up.until("a", "Ready");
    let object = json!({"apiVersion": "perch.dev/v1alpha1", "kind": "CanaryRelease", "metadata": {"name": "a"},
        "spec": {"targetRef": {"name": "a"}, "progressDeadline": "5s", "stages": long(50)}});
    up.ok_with(&["apply", "-f", "-"], &object.to_string());
    wait("the stable revision to be known", || up.canary("a")["stableRevision"].as_str().map(drop));
    up.apply("a", &server("two", Some(port)));
    let status = up.until_phase("a", "Failed");
    assert_eq!(status["history"][0]["reason"], "ProgressDeadlineExceeded", "{status}");
    let message = status["message"].as_str().unwrap();
    assert!(message.contains(&format!("PortInUse: port {port}")), "it says what to do: {message}");
    assert_eq!((up.answering("a").as_str(), &up.status("a")["phase"]), ("one", &json!("Ready")));
    // Without the port each gets its own.
    up.apply("a", &server("two", None));
    let status = up.until_phase("a", "Progressing");
    let candidate = format!("{}/default/a@{}/mcp", up.gateway, revision(&status, "candidateRevision"));
    assert_eq!(who(&candidate), "two");
}
