//! Advancing, taking back, and everything that must not advance.

use serde_json::json;

use super::world::{CANDIDATE, STABLE, World, plan_of, two_stages};
use crate::{
    api::canary_release::{EndReason, HoldReason, Outcome, Phase, Verb, Verdict},
    canary::{
        Health, Reading,
        contract::{Contract, Finding, Severity},
        wanted,
    },
};

#[test]
fn a_good_candidate_reaches_everybody() {
    let mut world = World::new(&two_stages(), &json!({}));
    assert_eq!(world.phase(), Phase::Idle);
    world.until(Phase::Progressing, 5);
    assert_eq!((world.stage().as_str(), world.progress.routing.percentage), ("small", 10));
    world.run_well(3620);
    assert_eq!((world.stage().as_str(), world.progress.routing.percentage), ("large", 50));
    world.run_well(3700);
    assert_eq!(world.phase(), Phase::Succeeded, "{}", world.progress.message);
    assert_eq!(world.progress.stable_revision.as_deref(), Some(CANDIDATE));
    assert_eq!(wanted(&world.progress).candidate, None);
    assert_eq!(world.condition("Ready").0, "True");
    assert_eq!(world.condition("Promoted").0, "True");
    let reasons: Vec<_> = world.story.iter().map(|e| e.reason).collect();
    assert_eq!(
        reasons,
        ["StableRevisionKnown", "ReleaseStarted", "Deploying", "StageStarted", "StageStarted", "Promoting", "Promoted"]
    );
    assert_eq!(world.progress.history[0].outcome, Outcome::Succeeded);
}

#[test]
fn a_bad_candidate_is_taken_back_and_stays_out() {
    let mut world = World::in_first_stage(&two_stages(), &json!({}));
    for _ in 0..10 {
        world.calls(CANDIDATE, 4, 40);
        world.calls(STABLE, 0, 360);
        world.turn(10);
    }
    assert_eq!(world.phase(), Phase::RolledBack, "{}", world.progress.message);
    assert_eq!((world.progress.routing.percentage, world.progress.failed_revisions.len()), (0, 1));
    assert_eq!(world.progress.history[0].reason, EndReason::CriterionBreached);
    assert!(world.progress.history[0].message.starts_with("errorRate < 1%: "), "{}", world.progress.history[0].message);
    assert_eq!(world.condition("Ready").0, "False");
    assert_eq!(world.condition("Stalled").0, "True");
    assert_eq!(wanted(&world.progress).candidate, None);
    assert!(world.warned("RollingBack"));
    // GitOps applies the failed revision again and again.
    for _ in 0..50 {
        world.turn(10);
    }
    assert_eq!((world.phase(), world.progress.releases), (Phase::RolledBack, 1));
    // Also by way of the stable revision.
    world.seen.declared = Some(STABLE.into());
    world.turn(10);
    assert_eq!(world.phase(), Phase::Idle);
    world.seen.declared = Some(CANDIDATE.into());
    world.turn(10);
    assert_eq!((world.phase(), world.progress.releases), (Phase::RolledBack, 1));
    // A new revision may try.
    world.seen.declared = Some("srv-3".into());
    world.turn(10);
    assert_eq!((world.phase(), world.progress.releases), (Phase::Pending, 2));
}

#[test]
fn the_way_back_is_route_then_drain_then_remove() {
    let mut world = World::in_first_stage(&two_stages(), &json!({}));
    world.acks = false;
    world.seen.in_flight.candidate = Some(3);
    world.calls(CANDIDATE, 40, 40);
    world.turn(10);
    let epoch = world.progress.routing.desired_epoch;
    for _ in 0..100 {
        world.turn(10);
        assert_eq!(world.phase(), Phase::RollingBack, "a gateway may still send users");
        assert!(wanted(&world.progress).candidate.is_some());
    }
    assert!(world.progress.message.contains("g1, g2"), "{}", world.progress.message);
    world.seen.gateways[0].epoch = Some(epoch);
    world.turn(10);
    assert_eq!(world.phase(), Phase::RollingBack);
    world.acks = true;
    world.turn(10);
    assert_eq!(world.phase(), Phase::Draining);
    world.turn(30);
    assert!(wanted(&world.progress).candidate.is_some(), "calls in flight finish");
    assert_eq!(world.phase(), Phase::Draining);
    world.turn(30);
    assert_eq!(world.phase(), Phase::RolledBack, "the drain timeout is over");
}

#[test]
fn dwell_is_kept_whoever_dies_when() {
    let mut world = World::in_first_stage(&two_stages(), &json!({}));
    world.run_well(1800);
    let before = world.active();
    // The same status is read by many lives of the controller, which die before they write.
    for _ in 0..100 {
        let saved = world.progress.clone();
        world.calls(CANDIDATE, 0, 40);
        world.turn(0);
        world.progress = saved;
    }
    assert_eq!(world.active(), before);
    world.turn(10);
    assert_eq!(world.active(), before + 10);
}

#[test]
fn a_crash_every_five_seconds_advances_nothing_early() {
    let mut world = World::in_first_stage(&two_stages(), &json!({}));
    let start = world.now;
    while world.stage() == "small" {
        world.calls(CANDIDATE, 0, 20);
        world.calls(STABLE, 0, 180);
        world.turn(5);
        assert!(world.now - start < 4000, "{}", world.progress.message);
    }
    assert!(world.now - start >= 3600 - 10, "{}", world.now - start);
    assert_eq!(world.told("StageStarted"), 2);
}

#[test]
fn of_two_leaders_one_write_wins() {
    let mut world = World::in_first_stage(&two_stages(), &json!({}));
    world.run_well(3580);
    // Both read the same status and decide; the second write has an old resource version.
    let read = world.progress.clone();
    let mut advances = 0;
    for _ in 0..5 {
        world.calls(CANDIDATE, 0, 40);
        let (before, release) = (world.progress.clone(), read.clone());
        let one = world.turn(10).progress;
        world.progress = before;
        let two = world.turn(0).progress;
        assert_eq!(one, two, "equal facts give equal decisions");
        assert_eq!(release.release_id, one.release_id);
        advances += usize::from(one.stage.as_ref().unwrap().name == "large");
        world.progress = one;
        if advances > 0 {
            break;
        }
    }
    assert_eq!((advances, world.stage().as_str()), (1, "large"));
}

#[test]
fn a_clock_that_jumps_advances_nothing() {
    let mut world = World::in_first_stage(&two_stages(), &json!({}));
    world.run_well(600);
    let before = world.active();
    world.now -= 7200;
    world.turn(0);
    assert_eq!((world.stage().as_str(), world.active()), ("small", before));
    world.now += 72 * 3600;
    world.turn(0);
    assert_eq!((world.stage().as_str(), world.active()), ("small", before));
    world.run_well(100);
    assert_eq!(world.active(), before + 100);
}

#[test]
fn an_unacknowledged_route_advances_nothing() {
    let mut world = World::new(&two_stages(), &json!({}));
    world.until(Phase::Progressing, 5);
    world.acks = false;
    world.seen.gateways[0].epoch = Some(world.progress.routing.desired_epoch);
    world.run_well(8000);
    assert_eq!((world.stage().as_str(), world.active()), ("small", 0));
    assert!(world.progress.message.contains("waiting for g2"), "{}", world.progress.message);
    assert_eq!(world.condition("TrafficVerified").0, "False");
    // One gateway has users on the candidate already, so it is judged all the same.
    world.calls(CANDIDATE, 400, 400);
    world.turn(10);
    assert_eq!(world.phase(), Phase::RollingBack);
}

#[test]
fn no_gateway_is_no_yes() {
    let mut world = World::in_first_stage(&two_stages(), &json!({}));
    world.seen.gateways.clear();
    world.run_well(8000);
    assert_eq!((world.stage().as_str(), world.active()), ("small", 10));
}

#[test]
fn a_candidate_without_all_its_instances_advances_nothing() {
    let mut world = World::in_first_stage(&two_stages(), &json!({"progressDeadline": "100h"}));
    world.seen.candidate = Health::Starting;
    world.run_well(8000);
    assert_eq!((world.stage().as_str(), world.active()), ("small", 10));
    // Also when the time is over and only the evidence was missing.
    let mut world = World::in_first_stage(&two_stages(), &json!({"progressDeadline": "100h"}));
    for _ in 0..370 {
        world.turn(10);
    }
    assert!(world.progress.message.contains("is extended"), "{}", world.progress.message);
    world.seen.candidate = Health::Starting;
    world.run_well(1000);
    assert_eq!((world.verdict("errorRate"), world.stage().as_str()), (Verdict::Pass, "small"));
    world.seen.candidate = Health::Ready;
    world.run_well(20);
    assert_eq!(world.stage(), "large");
}

#[test]
fn a_crash_loop_needs_no_statistics() {
    let mut world = World::in_first_stage(&two_stages(), &json!({}));
    world.seen.candidate = Health::Failing("exit code 137, four times in a minute".into());
    world.turn(10);
    assert_eq!(world.phase(), Phase::RollingBack);
    assert_eq!(world.progress.ending.as_ref().unwrap().reason, EndReason::CandidateUnhealthy);
}

#[test]
fn a_candidate_that_never_starts_fails_without_users() {
    let mut world = World::new(&two_stages(), &json!({"progressDeadline": "2m"}));
    world.seen.candidate = Health::Starting;
    world.seen.waits = "PortInUse: port 3000 is in use".into();
    world.until(Phase::Failed, 20);
    assert!(world.progress.message.contains("seconds (PortInUse: port 3000 is in use)"), "{}", world.progress.message);
    let last = &world.progress.history[0];
    assert_eq!((last.outcome, last.reason), (Outcome::Failed, EndReason::ProgressDeadlineExceeded));
    assert_eq!((last.percentage, world.told("StageStarted")), (0, 0));
}

#[test]
fn not_knowing_the_candidates_health_is_no_failure() {
    let mut world = World::in_first_stage(&two_stages(), &json!({"progressDeadline": "1m"}));
    world.seen.candidate = Health::Unknown;
    world.run_well(3600);
    assert_eq!((world.phase(), world.active()), (Phase::Progressing, 10));
}

#[test]
fn no_traffic_is_no_pass() {
    let mut world = World::in_first_stage(&two_stages(), &json!({}));
    for _ in 0..719 {
        world.turn(10);
        assert_eq!(world.stage(), "small");
    }
    assert_eq!(world.phase(), Phase::Paused, "{}", world.progress.message);
    assert_eq!(world.progress.hold.as_ref().unwrap().reason, HoldReason::InsufficientData);
    assert_eq!(world.condition("Paused"), ("True".into(), "InsufficientData".into()));
    // More time on request, once.
    world.tell(Verb::Resume);
    world.turn(10);
    assert_eq!(world.phase(), Phase::Progressing);
    for _ in 0..370 {
        world.turn(10);
    }
    assert_eq!(world.phase(), Phase::Paused);
}

#[test]
fn evidence_that_comes_late_is_told_and_waits_for_a_person() {
    let mut world = World::in_first_stage(&two_stages(), &json!({}));
    for _ in 0..730 {
        world.turn(10);
    }
    assert_eq!(world.progress.hold.as_ref().unwrap().reason, HoldReason::InsufficientData);
    let asked = world.progress.message.clone();
    world.run_well(7200);
    assert_eq!((world.phase(), world.progress.routing.percentage), (Phase::Paused, 10), "nobody resumed it");
    assert_eq!(world.progress.message, "the evidence suffices now: resume to go on");
    assert_eq!((world.told("EvidenceSuffices"), world.told("InsufficientData")), (1, 1), "each is told once");
    assert_eq!(world.condition("Ready").1, "InsufficientData");
    // What sufficed may cease to.
    world.instead.insert("errorRate".into(), Reading::NoData("the series is gone".into()));
    world.turn(10);
    assert_eq!(world.progress.message, asked);
    world.instead.clear();
    world.turn(10);
    world.tell(Verb::Resume);
    world.turn(10);
    world.turn(10);
    assert_eq!((world.phase(), world.stage().as_str()), (Phase::Progressing, "large"), "what was counted counts");
}

#[test]
fn what_happens_without_data_is_the_users_choice() {
    let ended = |choice: &str| {
        let mut world = World::in_first_stage(&two_stages(), &json!({"analysis": {"onInsufficientData": choice}}));
        for _ in 0..721 {
            world.turn(10);
        }
        (world.phase(), world.stage())
    };
    assert_eq!(ended("Advance"), (Phase::Progressing, "large".into()));
    assert_eq!(ended("Rollback").0, Phase::RolledBack);
}

#[test]
fn a_reading_that_is_no_number_is_no_pass() {
    let mut world = World::in_first_stage(&two_stages(), &json!({}));
    world.run_well(1800);
    assert_eq!(world.verdict("errorRate"), Verdict::Pass);
    let why = crate::canary::observation::count_of(f64::NAN).unwrap_err();
    world.instead.insert("errorRate".into(), Reading::NoData(why));
    world.run_well(4000);
    assert_eq!((world.verdict("errorRate"), world.stage().as_str()), (Verdict::NoData, "small"));
    assert_ne!(world.phase(), Phase::RollingBack);
}

#[test]
fn a_schedule_takes_each_step_in_its_time() {
    let stages = json!([{"name": "g", "schedule": [
        {"after": "0h", "percentage": 25}, {"after": "1h", "percentage": 50}, {"after": "2h", "percentage": 75},
        {"after": "3h", "percentage": 100}], "successCriteria": [{"metric": "errorRate", "threshold": "< 1%"}]}]);
    let mut world = World::in_first_stage(&stages, &json!({}));
    // No traffic for longer than three steps: it waits, and makes up for nothing afterwards.
    for _ in 0..900 {
        world.turn(10);
    }
    assert_eq!(world.progress.routing.percentage, 25);
    let mut seen = vec![25];
    let mut changed = vec![world.now];
    while world.phase() == Phase::Progressing {
        world.run_well(10);
        if *seen.last().unwrap() != world.progress.routing.percentage {
            seen.push(world.progress.routing.percentage);
            changed.push(world.now);
        }
        assert!(seen.len() < 9);
    }
    assert_eq!(seen, [25, 50, 75, 100]);
    assert!(changed.windows(2).skip(1).all(|w| w[1] - w[0] >= 3600), "{changed:?}");
    assert_eq!(world.phase(), Phase::Promoting);
}

#[test]
fn a_new_revision_waits_until_users_have_left_the_old_candidate() {
    let mut world = World::in_first_stage(&two_stages(), &json!({}));
    world.run_well(3620);
    assert_eq!(world.progress.routing.percentage, 50);
    world.acks = false;
    world.seen.in_flight.candidate = Some(2);
    world.seen.declared = Some("srv-3".into());
    world.turn(10);
    assert_eq!((world.phase(), world.progress.routing.percentage), (Phase::Superseded, 0));
    for _ in 0..20 {
        world.turn(10);
        assert_eq!(wanted(&world.progress).candidate.as_deref(), Some(CANDIDATE), "gateways may still send users");
    }
    world.acks = true;
    world.turn(10);
    assert_eq!(wanted(&world.progress).candidate.as_deref(), Some(CANDIDATE), "calls finish");
    world.seen.in_flight.candidate = Some(0);
    world.turn(10);
    assert_eq!((world.phase(), wanted(&world.progress).candidate), (Phase::Idle, None));
    world.until(Phase::Deploying, 3);
    assert_eq!(wanted(&world.progress).candidate.as_deref(), Some("srv-3"));
    assert_eq!(wanted(&world.progress).stable.as_deref(), Some(STABLE));
    assert!(world.progress.failed_revisions.is_empty(), "nothing is held against it");
}

#[test]
fn going_back_to_the_stable_revision_withdraws_the_candidate() {
    let mut world = World::in_first_stage(&two_stages(), &json!({}));
    world.seen.declared = Some(STABLE.into());
    world.until(Phase::Idle, 5);
    assert_eq!(world.progress.history[0].outcome, Outcome::Withdrawn);
    assert_eq!(world.condition("Ready").0, "True");
}

#[test]
fn broken_tools_stop_a_release_before_it_has_users() {
    let broken = Contract {
        findings: vec![Finding {
            severity: Severity::Breaking,
            tool: "echo".into(),
            path: String::new(),
            change: "is gone".into(),
        }],
    };
    let mut world = World::new(&two_stages(), &json!({}));
    world.seen.contract = Some(broken.clone());
    world.until(Phase::Paused, 10);
    assert_eq!(world.progress.hold.as_ref().unwrap().reason, HoldReason::ToolContractBroken);
    assert_eq!(world.progress.tool_contract.as_ref().unwrap().findings, ["echo: is gone"]);
    assert_eq!(world.told("StageStarted"), 0);
    world.tell(Verb::Resume);
    world.until(Phase::Progressing, 5);
    let mut world = World::new(&two_stages(), &json!({"toolContract": {"onBreaking": "Warn"}}));
    world.seen.contract = Some(broken);
    world.until(Phase::Progressing, 5);
    assert!(world.warned("ToolsChanged"));
}

#[test]
fn changed_words_wait_for_a_reader_on_request() {
    let words = Contract {
        findings: vec![Finding {
            severity: Severity::Review,
            tool: "echo".into(),
            path: "description".into(),
            change: "has changed".into(),
        }],
    };
    let mut world = World::new(&two_stages(), &json!({"toolContract": {"onDescriptionChange": "Approve"}}));
    world.seen.contract = Some(words.clone());
    world.until(Phase::AwaitingApproval, 10);
    world.tell(Verb::Resume);
    world.until(Phase::Progressing, 5);
    let mut world = World::new(&two_stages(), &json!({}));
    world.seen.contract = Some(words);
    world.until(Phase::Progressing, 5);
    assert!(world.warned("ToolsChanged"));
}

#[test]
fn a_freeze_stops_advancing_and_nothing_else() {
    let frozen =
        json!({"freezeWindows": [{"name": "always", "start": "2020-01-01T00:00:00Z", "end": "2040-01-01T00:00:00Z"}]});
    let mut world = World::new(&two_stages(), &frozen);
    world.run_well(1000);
    assert_eq!(world.phase(), Phase::Pending);
    let mut world = World::in_first_stage(&two_stages(), &json!({}));
    world.plan = plan_of(&two_stages(), &frozen);
    world.run_well(5000);
    assert_eq!(world.stage(), "small");
    assert!(world.progress.message.contains("freeze window always"), "{}", world.progress.message);
    world.tell(Verb::Skip);
    world.turn(10);
    assert!(!world.progress.last_command.as_ref().unwrap().accepted);
    world.calls(CANDIDATE, 4000, 4000);
    world.turn(10);
    assert_eq!(world.phase(), Phase::RollingBack);
}

#[test]
fn who_is_in_stays_in_when_the_plan_is_edited() {
    let mut world = World::in_first_stage(&two_stages(), &json!({}));
    world.run_well(3620);
    assert_eq!(world.progress.routing.percentage, 50);
    let edited = json!([
        {"name": "small", "percentage": 10, "duration": "1h", "successCriteria": [{"metric": "errorRate", "threshold": "< 1%"}]},
        {"name": "new", "percentage": 20, "duration": "1h"},
        {"name": "large", "percentage": 20, "duration": "1m"},
        {"name": "larger", "percentage": 30, "duration": "1h"}]);
    world.plan = plan_of(&edited, &json!({}));
    for _ in 0..200 {
        world.run_well(10);
        assert!(world.progress.routing.percentage >= 50);
    }
    assert_eq!(world.stage(), "larger");
}

#[test]
fn a_server_that_is_gone_changes_nothing() {
    let mut world = World::in_first_stage(&two_stages(), &json!({}));
    let before = (world.phase(), world.progress.routing.clone());
    world.seen.declared = None;
    world.run_well(100);
    assert_eq!((world.phase(), world.progress.routing.clone()), before);
}
