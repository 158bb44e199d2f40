use serde_json::{Value, json};

use super::*;

fn criterion(metric: &str, threshold: &str, verdict: &str, reason: &str) -> Value {
    json!({"metric": metric, "threshold": threshold, "verdict": verdict, "reason": reason, "bad": 3, "total": 1420,
        "stableBad": 12, "stableTotal": 12030, "users": 14, "breach": 0.4, "breachAt": 8.0, "pass": 1.5, "passAt": 3.0,
        "evidence": serde_json::to_value(crate::api::canary_release::Evidence::default()).unwrap()})
}

fn release(status: Value) -> CanaryRelease {
    let mut whole = json!({
        "phase": "Progressing", "message": "stage pilot: 258450 more seconds, then the evidence decides",
        "releaseId": "srv-2.3", "stableRevision": "srv-1", "candidateRevision": "srv-2",
        "startedAt": "2026-01-01T22:00:00Z",
        "stage": {"index": 1, "name": "pilot", "attempt": 1, "activeSeconds": 750, "percentage": 10},
        "routing": {"desiredEpoch": 7, "ackedEpoch": 7, "percentage": 10, "users": ["dana@example.com"], "groups": ["qa"]},
        "criteria": [criterion("errorRate", "< 0.5%", "Undecided", "3 of 1420 calls were bad (0.21%), the limit is 0.5%; 600 more good calls would show that it holds")],
    });
    whole.as_object_mut().unwrap().extend(status.as_object().unwrap().clone());
    whole.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    serde_json::from_value(json!({
        "apiVersion": "perch.dev/v1alpha1", "kind": "CanaryRelease", "metadata": {"name": "srv", "namespace": "team"},
        "spec": {"targetRef": {"name": "srv"}, "stages": [
            {"name": "internal", "groups": ["qa"], "duration": "48h", "successCriteria": [{"metric": "errorRate", "threshold": "< 0.5%"}]},
            {"name": "pilot", "users": ["dana@example.com"], "percentage": 10, "duration": "72h"},
            {"name": "gradual", "schedule": [{"after": "0h", "percentage": 25}, {"after": "24h", "percentage": 100}]}]},
        "status": whole
    }))
    .unwrap()
}

fn at(time: &str) -> Timestamp {
    time.parse().unwrap()
}

fn shown(status: Value) -> String {
    screen(&release(status), at("2026-01-02T00:00:00Z"))
}

/// The line that begins with something, with single spaces.
fn line_of(screen: &str, begin: &str) -> String {
    let single = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    screen.lines().map(single).find(|l| l.starts_with(begin)).unwrap_or_else(|| panic!("no {begin:?} in\n{screen}"))
}

#[test]
fn a_stage_says_who_how_long_and_what_is_missing() {
    let screen = shown(json!({}));
    assert_eq!(line_of(&screen, "● srv"), "● srv Progressing");
    assert_eq!(line_of(&screen, "server"), "server team/srv");
    assert_eq!(line_of(&screen, "candidate"), "candidate srv-2 (release srv-2.3, started 2h ago)");
    assert_eq!(line_of(&screen, "who"), "who 10% of the users, group qa, user dana@example.com; all gateways do so");
    assert_eq!(line_of(&screen, "✔ internal"), "✔ internal group qa 48h");
    assert_eq!(
        line_of(&screen, "● pilot"),
        "● pilot 10% of the users, group qa, user dana@example.com ░░░░░░░░░░ 12m 30s of 72h, 71h 47m left"
    );
    assert!(line_of(&screen, "○ gradual").contains("25% → 100% of the users"), "{screen}");
    assert_eq!(
        line_of(&screen, "errorRate"),
        "errorRate < 0.5% Undecided 3 of 1420 12 of 12030 14 █████░░░░░ 50% ░░░░░░░░░░ 5%"
    );
    assert!(screen.contains("\n    3 of 1420 calls were bad (0.21%)"), "why, below its criterion: {screen}");
    assert!(screen.lines().all(|l| l == l.trim_end()), "nothing hangs over");
    let column = |line: &str, word: &str| {
        let line = screen.lines().find(|l| l.contains(line)).unwrap();
        line.split(word).next().unwrap().chars().count()
    };
    assert_eq!(column("STAGE", "STAGE"), column("○", "gradual"), "{screen}");
    assert_eq!(column("CRITERION", "VERDICT"), column("errorRate <", "Undecided"), "{screen}");
}

#[test]
fn every_criterion_has_its_own_reason() {
    let two = json!({"criteria": [criterion("errorRate", "< 0.5%", "Pass", "one"), criterion("latencyP99", "< 200ms", "NoData", "two")]});
    let screen = shown(two);
    let lines: Vec<&str> = screen.lines().map(str::trim).collect();
    let after = |name: &str| lines[lines.iter().position(|l| l.starts_with(name)).unwrap() + 1];
    assert_eq!((after("errorRate"), after("latencyP99")), ("one", "two"));
}

#[test]
fn what_is_over_time_says_how_long_it_may_be() {
    let stage = json!({"index": 1, "name": "pilot", "attempt": 1, "activeSeconds": 259_200 + 3600, "percentage": 10});
    let screen = shown(json!({ "stage": stage }));
    assert!(line_of(&screen, "● pilot").ends_with("73h of 72h, the evidence decides within 71h"), "{screen}");
}

#[test]
fn gateways_that_lag_are_told() {
    let screen = shown(json!({"routing": {"desiredEpoch": 7, "ackedEpoch": 6, "percentage": 10}}));
    assert!(line_of(&screen, "who").ends_with("not all gateways yet: routing 6 of 7"), "{screen}");
}

#[test]
fn what_waits_says_for_what_and_how_long() {
    let hold = json!({"reason": "InsufficientData", "message": "too few calls: resume or abort", "since": "2026-01-01T23:50:00Z", "from": "Progressing"});
    let command = json!({"id": "1", "verb": "Skip", "by": "dana", "at": "2026-01-01T23:59:00Z", "accepted": false, "result": "srv-2 is not ready"});
    let paused = json!({"phase": "Paused", "message": "too few calls: resume or abort", "hold": hold, "lastCommand": command,
        "toolContract": {"breaking": 1, "review": 2, "findings": ["search: is gone"], "accepted": true}});
    let screen = shown(paused.clone());
    assert_eq!(line_of(&screen, "‖ srv"), "‖ srv Paused");
    assert_eq!(line_of(&screen, "waits"), "waits InsufficientData for 10m");
    assert_eq!(line_of(&screen, "command"), "command Skip by dana 1m ago: refused: srv-2 is not ready");
    assert_eq!(line_of(&screen, "tools"), "tools 1 breaking changes, 2 to review, accepted");
    assert_eq!(line_of(&screen, "search"), "search: is gone");
    assert!(line(&release(paused)).ends_with("too few calls: resume or abort"));
}

#[test]
fn a_rollback_shows_where_it_ended_and_why() {
    let entry = json!({"releaseId": "srv-2.3", "stableRevision": "srv-1", "candidateRevision": "srv-2", "outcome": "RolledBack",
        "reason": "CriterionBreached", "message": "errorRate < 0.5%: 9 of 100", "stage": "pilot", "percentage": 10,
        "startedAt": "2026-01-01T22:00:00Z", "decidedAt": "2026-01-01T23:00:00Z", "endedAt": "2026-01-01T23:30:00Z"});
    let status = json!({"phase": "RolledBack", "message": "srv-2 was taken back: errorRate", "history": [entry]});
    let screen = shown(status.clone());
    assert!(line_of(&screen, "✖ pilot").ends_with("12m 30s of 72h"), "no time is left: {screen}");
    assert_eq!(
        line_of(&screen, "30m ago"),
        "30m ago RolledBack srv-2 in stage pilot at 10%: errorRate < 0.5%: 9 of 100"
    );
    assert!(line(&release(status)).starts_with("RolledBack"), "the stage is over");
}

#[test]
fn a_promotion_shows_every_stage_as_passed() {
    let stage = json!({"index": 2, "name": "gradual", "attempt": 1, "activeSeconds": 9, "percentage": 100});
    let screen = shown(json!({"phase": "Succeeded", "candidateRevision": null, "stage": stage}));
    for stage in ["✔ internal", "✔ pilot", "✔ gradual"] {
        line_of(&screen, stage);
    }
}

#[test]
fn a_line_changes_only_when_something_happens() {
    let first = line(&release(json!({})));
    let later = release(json!({"message": "stage pilot: 258440 more seconds, then the evidence decides",
        "stage": {"index": 1, "name": "pilot", "attempt": 1, "activeSeconds": 760, "percentage": 10}}));
    assert_eq!(first, line(&later), "time passes all the time");
    assert_eq!(
        first,
        "Progressing  stage pilot  10% of the users, group qa, user dana@example.com  errorRate=Undecided"
    );
    for change in [
        json!({"phase": "Promoting"}),
        json!({"routing": {"percentage": 25}}),
        json!({"criteria": [criterion("errorRate", "< 0.5%", "Pass", "fine")]}),
        json!({"stage": {"index": 2, "name": "gradual", "attempt": 1, "activeSeconds": 0, "percentage": 25}}),
    ] {
        assert_ne!(first, line(&release(change.clone())), "{change}");
    }
}

#[test]
fn a_release_that_nobody_has_seen_and_a_spec_that_makes_no_sense_are_told() {
    let mut release = release(json!({}));
    release.spec.stages[1].percentage = Some(60);
    let screen_ = screen(&release, at("2026-01-02T00:00:00Z"));
    assert!(line_of(&screen_, "spec").contains("put stages in rising order"), "{screen_}");
    release.status = None;
    assert_eq!(screen(&release, at("2026-01-02T00:00:00Z")), "srv  waiting for the operator to see it\n");
}
