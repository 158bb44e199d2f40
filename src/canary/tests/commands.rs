//! What people say, and when it counts.

use serde_json::json;

use super::world::{CANDIDATE, STABLE, World, two_stages};
use crate::{
    api::canary_release::{EndReason, HoldReason, Outcome, Phase, Verb, Verdict},
    canary::plan::SCHEMA_ERRORS,
};

#[test]
fn a_repeated_command_does_nothing() {
    let mut world = World::in_first_stage(&two_stages(), &json!({}));
    world.tell(Verb::Pause);
    world.turn(10);
    assert_eq!(world.phase(), Phase::Paused);
    let pause = world.seen.command.clone();
    world.tell(Verb::Resume);
    world.turn(10);
    assert_eq!(world.phase(), Phase::Progressing);
    let said = world.told("CommandDone");
    // The annotation with the pause is applied again.
    world.seen.command = pause;
    for _ in 0..20 {
        world.turn(10);
    }
    assert_eq!((world.phase(), world.told("CommandDone")), (Phase::Progressing, said));
}

#[test]
fn a_command_for_another_release_or_stage_is_refused() {
    let mut world = World::in_first_stage(&two_stages(), &json!({}));
    for (release, stage, words) in [
        (Some("other.1"), "small", "meant for release other.1"),
        (None, "large", "meant for stage large, and this is stage small"),
    ] {
        world.tell(Verb::Skip);
        let command = world.seen.command.as_mut().unwrap();
        if let Some(release) = release {
            command.release_id = release.into();
        }
        command.stage = Some(stage.into());
        world.turn(10);
        let last = world.progress.last_command.clone().unwrap();
        assert!(!last.accepted && last.result.contains(words), "{last:?}");
        assert_eq!(world.stage(), "small");
    }
    assert!(world.warned("CommandRefused"));
}

#[test]
fn pause_stops_the_clock_and_resume_starts_it() {
    let mut world = World::in_first_stage(&two_stages(), &json!({}));
    world.run_well(100);
    world.tell(Verb::Pause);
    world.turn(10);
    let before = world.active();
    world.run_well(10_000);
    assert_eq!((world.phase(), world.active()), (Phase::Paused, before));
    world.tell(Verb::Resume);
    world.turn(10);
    world.run_well(100);
    assert_eq!((world.phase(), world.active()), (Phase::Progressing, before + 100));
}

#[test]
fn the_spec_pauses_and_goes_on() {
    let mut world = World::in_first_stage(&two_stages(), &json!({}));
    world.plan.paused = true;
    world.run_well(5000);
    assert_eq!(world.progress.hold.as_ref().unwrap().reason, HoldReason::Spec);
    world.tell(Verb::Resume);
    world.turn(10);
    assert!(world.progress.last_command.as_ref().unwrap().result.contains("spec.paused is true"));
    world.plan.paused = false;
    world.turn(10);
    assert_eq!((world.phase(), world.stage().as_str()), (Phase::Progressing, "small"));
}

#[test]
fn a_breach_in_a_pause_takes_back() {
    for paused_by in ["spec", "command", "approval"] {
        let mut stages = two_stages();
        stages[0]["approval"] = json!(if paused_by == "approval" { "Manual" } else { "Automatic" });
        let mut world = World::in_first_stage(&stages, &json!({}));
        match paused_by {
            "spec" => world.plan.paused = true,
            "command" => world.tell(Verb::Pause),
            _ => world.run_well(3620),
        }
        world.turn(10);
        assert!(world.progress.hold.is_some(), "{paused_by}");
        for _ in 0..60 {
            world.calls(CANDIDATE, 20, 40);
            world.turn(10);
        }
        assert_eq!(world.phase(), Phase::RolledBack, "{paused_by}");
    }
}

#[test]
fn an_abort_wins_over_a_stage_that_ends_now() {
    let mut world = World::in_first_stage(&two_stages(), &json!({}));
    world.run_well(3580);
    // One turn before the stage would end, and it is the last moment of the release as well.
    world.calls(CANDIDATE, 0, 40);
    world.tell(Verb::Abort);
    world.turn(10);
    world.turn(10);
    assert!(matches!(world.phase(), Phase::Draining | Phase::RollingBack), "{:?}", world.phase());
    assert_eq!(world.progress.ending.as_ref().unwrap().reason, EndReason::Aborted);
    assert_eq!(world.told("StageStarted"), 1);
}

#[test]
fn an_abort_wins_over_promotion_and_stage_changes() {
    let mut world = World::in_first_stage(&two_stages(), &json!({}));
    world.tell(Verb::Promote);
    world.turn(10);
    assert_eq!((world.phase(), world.progress.routing.percentage), (Phase::Promoting, 100));
    // It was meant for this release, and the promotion would be done in this very turn.
    world.tell(Verb::Abort);
    world.seen.command.as_mut().unwrap().stage = Some("elsewhere".into());
    world.until(Phase::RolledBack, 5);
    assert_eq!(world.progress.stable_revision.as_deref(), Some("srv-1"));
    assert_eq!(world.progress.failed_revisions[0].message, "aborted by dana");
}

#[test]
fn an_abort_after_the_end_is_refused() {
    let mut world = World::in_first_stage(&two_stages(), &json!({}));
    world.tell(Verb::Promote);
    world.until(Phase::Succeeded, 5);
    world.tell(Verb::Abort);
    world.turn(10);
    assert_eq!(world.phase(), Phase::Succeeded);
    assert_eq!(world.progress.last_command.as_ref().unwrap().result, "no release is under way");
}

#[test]
fn skip_ends_a_stage_and_promote_ends_them_all() {
    let mut world = World::in_first_stage(&two_stages(), &json!({}));
    world.tell(Verb::Skip);
    world.turn(10);
    assert_eq!((world.stage().as_str(), world.progress.routing.percentage), ("large", 50));
    world.tell(Verb::Promote);
    world.until(Phase::Succeeded, 5);
    assert_eq!(world.progress.history[0].reason, EndReason::PromotedByCommand);
}

#[test]
fn retry_releases_a_failed_revision_again() {
    let mut world = World::in_first_stage(&two_stages(), &json!({}));
    world.tell(Verb::Abort);
    world.until(Phase::RolledBack, 5);
    world.tell(Verb::Retry);
    world.turn(10);
    assert_eq!((world.phase(), world.progress.releases), (Phase::Pending, 2));
    assert!(world.progress.failed_revisions.is_empty());
    assert_eq!(world.progress.release_id.as_deref(), Some("srv-2.2"));
}

#[test]
fn an_approval_is_waited_for() {
    let mut stages = two_stages();
    stages[0]["approval"] = json!("Manual");
    let mut world = World::in_first_stage(&stages, &json!({}));
    world.run_well(7200);
    assert_eq!((world.phase(), world.stage().as_str()), (Phase::AwaitingApproval, "small"));
    world.tell(Verb::Resume);
    world.turn(10);
    assert_eq!((world.phase(), world.stage().as_str()), (Phase::Progressing, "large"));
}

#[test]
fn a_command_on_the_way_back_is_refused() {
    let mut world = World::in_first_stage(&two_stages(), &json!({}));
    world.acks = false;
    world.tell(Verb::Abort);
    world.turn(10);
    world.tell(Verb::Promote);
    world.turn(10);
    assert_eq!((world.phase(), world.progress.routing.percentage), (Phase::RollingBack, 0));
    assert!(!world.progress.last_command.as_ref().unwrap().accepted);
    world.acks = true;
    world.until(Phase::RolledBack, 5);
    assert_eq!(world.progress.history[0].outcome, Outcome::RolledBack);
}

#[test]
fn a_rollback_keeps_its_evidence_beyond_the_next_release() {
    let mut world = World::in_first_stage(&two_stages(), &json!({}));
    for _ in 0..20 {
        world.calls(CANDIDATE, 20, 100);
        world.calls(STABLE, 0, 900);
        world.turn(10);
    }
    assert_eq!(world.phase(), Phase::RolledBack);
    world.seen.declared = Some("srv-3".into());
    world.turn(10);
    assert_eq!(world.phase(), Phase::Pending);
    let entry = &world.progress.history[0];
    let broken = entry.evidence.iter().find(|f| f.metric == "errorRate").expect("what was bad");
    assert_eq!(broken.verdict, Verdict::Breach);
    assert!(
        broken.bad >= 3 && broken.total > broken.bad && broken.reason.contains("more than the limit"),
        "{broken:?}"
    );
    assert!(entry.evidence.iter().all(|f| f.metric != SCHEMA_ERRORS), "what was fine needs no record");
}
