use super::*;
use crate::{
    names::Revision,
    runtime::{Exit, InstanceId, NetworkReport, Preparing},
};

fn server(spec: &str) -> McpServer {
    let mut server = McpServer::new("x", serde_yaml_ng::from_str(spec).unwrap());
    server.metadata.generation = Some(3);
    server
}

fn now() -> Timestamp {
    "2026-01-01T00:00:00Z".parse().unwrap()
}

fn applied() -> Applied {
    Applied::Running { revision: Revision("x-1".into()) }
}

fn instance(state: InstanceState) -> Instance {
    Instance { id: InstanceId("i".into()), revision: Revision("x-1".into()), state, restarts: 0, last_exit: None }
}

fn up() -> Observed {
    Observed { instances: vec![instance(InstanceState::Running { since: now() })], ..Observed::default() }
}

fn answered() -> Probed {
    let seen = Seen {
        name: "s".into(),
        version: "1".into(),
        protocol: "2025-11-25".into(),
        tools: 4,
        digest: "sha256:0".into(),
    };
    Probed { instances: vec![InstanceId("i".into())], seen: Some(seen), error: None, failures: 0 }
}

fn status(server: &McpServer, applied: &Applied, observed: &Observed, probe: Option<&Probed>) -> McpServerStatus {
    derive(&Facts {
        server,
        applied,
        observed: Ok(observed),
        runtime: RuntimeKind::Process,
        probe,
        url: "http://g/default/x/mcp".into(),
        credentials: None,
        held: None,
        now: now(),
    })
}

fn ready(status: &McpServerStatus) -> (String, String, String) {
    let c = status.conditions.iter().find(|c| c.type_ == "Ready").unwrap();
    (c.status.clone(), c.reason.clone(), c.message.clone())
}

#[test]
fn ready_means_that_it_answered() {
    let server = server("{image: x}");
    let answered = status(&server, &applied(), &up(), Some(&answered()));
    assert_eq!((answered.phase, answered.ready_replicas, answered.tools), (Some(Phase::Ready), 1, Some(4)));
    assert_eq!(answered.observed_generation, Some(3));
    let started = status(&server, &applied(), &up(), None);
    assert_eq!((started.phase, started.ready_replicas), (Some(Phase::Starting), 0));
    assert_eq!(ready(&started).0, "False");
}

#[test]
fn instances_of_an_older_revision_do_not_count() {
    let later = Applied::Running { revision: Revision("x-2".into()) };
    let found = status(&server("{image: x}"), &later, &up(), Some(&answered()));
    assert_ne!(found.phase, Some(Phase::Ready));
}

#[test]
fn what_serves_while_a_change_is_stuck_is_told() {
    let later = Applied::Running { revision: Revision("x-2".into()) };
    let mut server = server("{image: x}");
    server.status = Some(status(&server, &applied(), &up(), Some(&answered())));
    let exit = Exit { reason: "Error", code: Some(4), at: now(), stderr_tail: String::new() };
    let crashing = Instance {
        revision: Revision("x-2".into()),
        last_exit: Some(exit),
        ..instance(InstanceState::Waiting { until: now() })
    };
    let pull = |retry_at| Preparing { reason: "ImagePullFailed", message: "no".into(), percent: None, retry_at };
    let crash = Observed { instances: vec![crashing, up().instances.remove(0)], ..Observed::default() };
    let absent = Observed { preparing: Some(pull(Some(now()))), ..up() };
    let invalid = Applied::Invalid { message: "bad".into() };
    for (applied, observed, reason) in
        [(&later, &crash, "CrashLoopBackOff"), (&later, &absent, "ImagePullFailed"), (&invalid, &up(), "InvalidSpec")]
    {
        let found = status(&server, applied, observed, None);
        assert_eq!((found.phase, found.ready_replicas), (Some(Phase::Degraded), 1), "{reason}");
        assert_eq!(found.current_revision.as_deref(), Some("x-1"), "{reason}");
        assert_eq!(found.tools, Some(4), "{reason}");
        let (is, why, message) = ready(&found);
        assert_eq!((is.as_str(), why.as_str()), ("False", reason));
        assert!(message.contains("revision x-1 goes on serving"), "{message}");
    }
    let starting = Instance { revision: Revision("x-2".into()), ..instance(InstanceState::Starting) };
    let update = Observed { instances: vec![starting, up().instances.remove(0)], ..Observed::default() };
    let found = status(&server, &later, &update, None);
    assert_eq!((found.phase, ready(&found).1), (Some(Phase::Starting), "Updating".into()));
    assert!(!is_failure("Updating"));
}

#[test]
fn a_few_failed_probes_are_forgiven_and_then_not() {
    let failing = |failures| Probed {
        error: Some(ProbeError::Timeout(std::time::Duration::from_secs(5))),
        failures,
        ..answered()
    };
    let server = server("{image: x}");
    assert_eq!(status(&server, &applied(), &up(), Some(&failing(2))).phase, Some(Phase::Ready));
    let lost = status(&server, &applied(), &up(), Some(&failing(3)));
    assert_eq!((lost.phase, ready(&lost).1), (Some(Phase::Degraded), "Unresponsive".into()));
}

#[test]
fn a_crash_loop_tells_code_count_time_and_last_words() {
    let exit = Exit { reason: "Error", code: Some(42), at: now(), stderr_tail: "no such table".into() };
    let crashed = Instance { restarts: 5, last_exit: Some(exit), ..instance(InstanceState::Waiting { until: now() }) };
    let observed = Observed { instances: vec![crashed], ..Observed::default() };
    let status = status(&server("{image: x}"), &applied(), &observed, None);
    let (_, reason, message) = ready(&status);
    assert_eq!(reason, "CrashLoopBackOff");
    for part in ["code 42", "5 restarts", "2026-01-01T00:00:00Z", "no such table"] {
        assert!(message.contains(part), "{message}");
    }
    assert_eq!((status.restarts, status.last_failure.unwrap().exit_code), (5, Some(42)));
}

#[test]
fn long_work_shows_its_progress_and_failures_their_reason() {
    let preparing = |reason, percent, retry_at| Observed {
        preparing: Some(Preparing { reason, message: "pulling x".into(), percent, retry_at }),
        ..Observed::default()
    };
    let server = server("{image: x}");
    let pulling = status(&server, &applied(), &preparing("Pulling", Some(40), None), None);
    assert_eq!((pulling.phase, ready(&pulling).2), (Some(Phase::Starting), "pulling x (40%)".into()));
    let failed = status(&server, &applied(), &preparing("ImagePullFailed", None, Some(now())), None);
    assert_eq!((failed.phase, ready(&failed).1), (Some(Phase::Failed), "ImagePullFailed".into()));
}

#[test]
fn what_needs_a_person_is_stalled() {
    let invalid = Applied::Invalid { message: "bad".into() };
    let found = status(&server("{image: x}"), &invalid, &Observed::default(), None);
    assert_eq!(found.phase, Some(Phase::Failed));
    assert!(found.conditions.iter().any(|c| c.type_ == "Stalled" && c.status == "True"));
    let fine = status(&server("{image: x}"), &applied(), &up(), Some(&answered()));
    assert!(fine.conditions.iter().all(|c| c.type_ != "Stalled"));
}

#[test]
fn some_of_the_replicas_are_degraded() {
    let found = status(&server("{image: x, replicas: 2}"), &applied(), &up(), Some(&answered()));
    assert_eq!((found.phase, found.ready_replicas), (Some(Phase::Degraded), 1));
    assert_eq!(ready(&found).1, "ReplicasUnavailable");
}

#[test]
fn stopped_on_purpose_is_no_failure() {
    for (spec, reason, why) in [
        ("{image: x, suspend: true}", "Suspended", "spec.suspend is true"),
        ("{image: x, replicas: 0}", "ScaledToZero", "spec.replicas is 0"),
    ] {
        let mut server = server(spec);
        server.status = Some(status(&server, &applied(), &up(), None));
        let stopping = server.status.as_ref().unwrap();
        assert_eq!((stopping.phase, ready(stopping).0), (Some(Phase::Suspended), "False".into()));
        assert_eq!((ready(stopping).1, is_true(stopping, "Progressing")), ("Stopping".into(), true));

        let found = status(&server, &applied(), &Observed::default(), None);
        assert_eq!(found.phase, Some(Phase::Suspended));
        assert!(found.conditions.iter().all(|c| c.type_ != "Ready"), "kstatus would wait for it for ever");
        assert!(is_true(&found, "Suspended") && !is_true(&found, "Progressing"));
        let headline = found.headline().unwrap();
        assert_eq!((headline.reason.as_str(), &headline.message), (reason, &format!("stopped, because {why}")));
        assert!(!is_failure(reason) && !is_failure("Stopping"));
    }
}

#[test]
fn what_cannot_be_looked_at_is_not_called_stopped() {
    let found = derive(&Facts {
        server: &server("{image: x, suspend: true}"),
        applied: &applied(),
        observed: Err("no engine".into()),
        runtime: RuntimeKind::Docker,
        probe: None,
        url: String::new(),
        credentials: None,
        held: None,
        now: now(),
    });
    assert_eq!((found.phase, ready(&found).1), (Some(Phase::Pending), "RuntimeUnavailable".into()));
}

fn is_true(status: &McpServerStatus, type_: &str) -> bool {
    status.conditions.iter().any(|c| c.type_ == type_ && c.status == "True")
}

#[test]
fn the_network_is_reported_as_it_is() {
    let network = Some(NetworkReport { enforced: Some(false), message: "open".into() });
    let found = status(&server("{image: x}"), &applied(), &Observed { network, ..up() }, Some(&answered()));
    let condition = found.conditions.iter().find(|c| c.type_ == "NetworkEnforced").unwrap();
    assert_eq!((condition.status.as_str(), condition.message.as_str()), ("False", "open"));
}

#[test]
fn a_status_that_did_not_change_is_equal_to_itself() {
    let mut server = server("{image: x}");
    let first = status(&server, &applied(), &up(), Some(&answered()));
    server.status = Some(first.clone());
    let later = derive(&Facts {
        server: &server,
        applied: &applied(),
        observed: Ok(&up()),
        runtime: RuntimeKind::Process,
        probe: Some(&answered()),
        url: "http://g/default/x/mcp".into(),
        credentials: None,
        held: None,
        now: "2026-01-01T05:00:00Z".parse().unwrap(),
    });
    assert_eq!(later, first);
}

#[test]
fn a_server_that_is_being_deleted_is_not_ready() {
    let mut server = server("{image: x}");
    server.status = Some(status(&server, &applied(), &up(), Some(&answered())));
    for (replicas, removal, reason, words) in [
        (1, Removal::Begun, "Terminating", "being removed"),
        (0, Removal::Done, "Terminating", "other finalizers"),
        (1, Removal::Failed("no engine"), "RemoveFailed", "no engine"),
    ] {
        let found = terminating(&server, removal, now());
        assert_eq!((found.phase, found.replicas, found.ready_replicas), (Some(Phase::Terminating), replicas, 0));
        let (is, why, message) = ready(&found);
        assert_eq!((is.as_str(), why.as_str()), ("False", reason));
        assert!(message.contains(words), "{message}");
    }
}

fn beside(observed: &Observed, applied: &Applied, probe: Option<&Probed>) -> CandidateStatus {
    let server = server("{image: x}");
    let facts = Facts {
        server: &server,
        applied,
        observed: Ok(observed),
        runtime: RuntimeKind::Process,
        probe,
        url: String::new(),
        credentials: None,
        held: None,
        now: now(),
    };
    candidate(&facts, &Revision("x-1".into()))
}

#[test]
fn a_candidate_fails_only_when_waiting_cannot_help() {
    let crashed = |restarts, reason| {
        let exit = Exit { reason, code: Some(1), at: now(), stderr_tail: "oh".into() };
        let instance =
            Instance { restarts, last_exit: Some(exit), ..instance(InstanceState::Waiting { until: now() }) };
        Observed { instances: vec![instance], ..Observed::default() }
    };
    let preparing = Preparing { reason: "ImagePullFailed", message: "no".into(), percent: None, retry_at: Some(now()) };
    let absent = Observed { preparing: Some(preparing), ..Observed::default() };
    let blocked = |reason, heals| Applied::Blocked { reason, message: "no".into(), heals };
    let invalid = Applied::Invalid { message: "bad".into() };
    let none = Observed::default();
    for (observed, applied, phase) in [
        (&crashed(1, "Error"), &applied(), Phase::Starting),
        (&crashed(2, "Error"), &applied(), Phase::Failed),
        (&crashed(0, "CannotStart"), &applied(), Phase::Failed),
        (&absent, &applied(), Phase::Starting),
        (&none, &invalid, Phase::Failed),
        (&none, &blocked("UnsupportedByRuntime", false), Phase::Failed),
        (&none, &blocked("ReferenceNotFound", false), Phase::Starting),
        (&none, &blocked("RuntimeUnavailable", true), Phase::Starting),
    ] {
        let found = beside(observed, applied, None);
        assert_eq!(found.phase, Some(phase), "{found:?}");
        assert!(!found.reason.is_empty() && !found.message.is_empty(), "{found:?}");
    }
    let fine = beside(&up(), &applied(), Some(&answered()));
    assert_eq!((fine.phase, fine.replicas, fine.ready_replicas), (Some(Phase::Ready), 1, 1));
}

#[test]
fn one_instance_that_crashes_again_and_again_is_enough() {
    let exit = Exit { reason: "Error", code: Some(1), at: now(), stderr_tail: String::new() };
    let crashing = Instance {
        id: InstanceId("j".into()),
        restarts: 2,
        last_exit: Some(exit),
        ..instance(InstanceState::Waiting { until: now() })
    };
    let observed = Observed { instances: vec![up().instances.remove(0), crashing], ..Observed::default() };
    let found = beside(&observed, &applied(), Some(&answered()));
    assert_eq!((found.phase, found.reason.as_str()), (Some(Phase::Failed), "CrashLoopBackOff"));
}

#[test]
fn what_a_release_holds_is_ready_and_says_what_it_is_not() {
    let server = server("{image: x}");
    let held = Some(("RolledBack", "x-1 runs, not the declared x-2".to_owned()));
    let facts = Facts {
        server: &server,
        applied: &applied(),
        observed: Ok(&up()),
        runtime: RuntimeKind::Process,
        probe: Some(&answered()),
        url: String::new(),
        credentials: None,
        held,
        now: now(),
    };
    let found = derive(&facts);
    assert_eq!(ready(&found).0, "True");
    let condition = found.conditions.iter().find(|c| c.type_ == "RevisionHeld").unwrap();
    assert_eq!((condition.status.as_str(), condition.reason.as_str()), ("True", "RolledBack"));
    assert!(found.conditions.iter().all(|c| c.type_ != "Stalled"));
}
