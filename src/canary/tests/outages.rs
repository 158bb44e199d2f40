//! When it is not the candidate's fault, or cannot be known.

use serde_json::json;

use super::world::{CANDIDATE, STABLE, World, two_stages};
use crate::{
    api::canary_release::{HoldReason, Phase, Verb, Verdict},
    canary::{Health, Reading},
};

#[test]
fn metrics_that_are_down_stop_the_clock_and_blame_nobody() {
    let mut world = World::in_first_stage(&two_stages(), &json!({}));
    world.run_well(600);
    let before = world.active();
    world.instead.insert("errorRate".into(), Reading::Unknown("connection refused".into()));
    for _ in 0..30 {
        world.turn(10);
    }
    assert_eq!((world.phase(), world.active()), (Phase::Progressing, before), "held at once");
    for _ in 0..90 {
        world.turn(10);
    }
    assert_eq!((world.phase(), world.active()), (Phase::Paused, before), "20 minutes");
    assert_eq!(world.progress.hold.as_ref().unwrap().reason, HoldReason::MetricsOutage);
    assert_eq!(world.condition("MetricsAvailable").0, "False");
    assert_eq!(world.progress.routing.percentage, 10, "nobody was taken back");
    world.instead.clear();
    world.run_well(20);
    assert_eq!(world.phase(), Phase::Progressing, "it goes on by itself");
    assert_eq!(world.condition("MetricsAvailable").0, "True");
}

#[test]
fn metrics_that_are_down_do_not_hide_what_happened_meanwhile() {
    let mut world = World::in_first_stage(&two_stages(), &json!({}));
    world.run_well(600);
    world.instead.insert("errorRate".into(), Reading::Unknown("timeout".into()));
    for _ in 0..20 {
        world.calls(CANDIDATE, 10, 40);
        world.turn(10);
    }
    assert_eq!(world.phase(), Phase::Progressing);
    world.instead.clear();
    world.turn(10);
    assert_eq!(world.phase(), Phase::RollingBack, "the counters went on");
}

#[test]
fn a_metric_that_nobody_read_is_unknown() {
    let mut world = World::in_first_stage(&two_stages(), &json!({"analysis": {"onMetricsOutage": "Hold"}}));
    let before = world.active();
    world.instead.insert("errorRate".into(), Reading::Unknown(String::new()));
    for _ in 0..1000 {
        world.turn(10);
    }
    assert_eq!((world.phase(), world.active()), (Phase::Progressing, before));
}

#[test]
fn an_outage_of_both_pauses_and_a_resume_starts_anew() {
    let mut world = World::in_first_stage(&two_stages(), &json!({}));
    world.run_well(600);
    for _ in 0..30 {
        world.calls(CANDIDATE, 20, 40);
        world.calls(STABLE, 180, 360);
        world.turn(10);
    }
    assert_eq!(world.phase(), Phase::Paused, "{}", world.progress.message);
    assert_eq!(world.progress.hold.as_ref().unwrap().reason, HoldReason::SharedDegradation);
    assert_eq!((world.verdict("errorRate"), world.progress.routing.percentage), (Verdict::SharedDegradation, 10));
    assert_eq!(world.told("SharedDegradation"), 1);
    world.tell(Verb::Resume);
    world.run_well(3700);
    assert_eq!((world.phase(), world.stage().as_str()), (Phase::Progressing, "large"), "{}", world.progress.message);
}

#[test]
fn when_only_the_candidate_stays_bad_it_is_taken_back() {
    let mut world = World::in_first_stage(&two_stages(), &json!({}));
    for _ in 0..30 {
        world.calls(CANDIDATE, 20, 40);
        world.calls(STABLE, 180, 360);
        world.turn(10);
    }
    assert_eq!(world.phase(), Phase::Paused);
    for _ in 0..120 {
        world.calls(CANDIDATE, 20, 40);
        world.calls(STABLE, 0, 360);
        world.turn(10);
    }
    assert_eq!(world.phase(), Phase::RolledBack, "{}", world.progress.message);
}

#[test]
fn both_revisions_crashing_is_nobodys_fault() {
    let mut world = World::in_first_stage(&two_stages(), &json!({}));
    world.seen.candidate = Health::Failing("no memory left on the node".into());
    world.seen.stable = Health::Failing("no memory left on the node".into());
    for _ in 0..5 {
        world.turn(10);
    }
    assert_eq!(world.phase(), Phase::Paused);
    assert_eq!(world.told("SharedDegradation"), 1);
    world.seen.stable = Health::Ready;
    world.turn(10);
    assert_eq!(world.phase(), Phase::RollingBack);
}

#[test]
fn counters_that_start_anew_make_no_spike() {
    let mut world = World::in_first_stage(&two_stages(), &json!({}));
    // A usual share of errors, below the limit, and gateways that restart every few minutes.
    for i in 0..300 {
        if i % 20 == 0 {
            world.reset_counters();
        }
        world.calls(CANDIDATE, i64::from(i % 8 == 0), 40);
        world.calls(STABLE, i64::from(i % 2 == 0), 360);
        world.turn(10);
        assert_eq!(world.phase(), Phase::Progressing, "{}", world.progress.message);
    }
    let criterion = world.progress.criteria.iter().find(|c| c.metric == "errorRate").unwrap();
    assert!(criterion.total <= 300 * 40 && criterion.total > 250 * 40, "{}", criterion.total);
}

#[test]
fn one_user_with_nearly_all_errors_takes_nobody_back() {
    let mut world = World::in_first_stage(&two_stages(), &json!({}));
    for i in 0..300 {
        world.calls(CANDIDATE, i64::from(i % 20 == 0), 36);
        world.calls_of_one("errorRate", CANDIDATE, 2, 2);
        world.calls(STABLE, 1, 360);
        world.turn(10);
        assert_eq!(world.phase(), Phase::Progressing, "{}", world.progress.message);
    }
    assert!(world.progress.criteria[0].bad > 600, "{:?}", world.progress.criteria[0]);
}

#[test]
fn a_critical_finding_needs_no_statistics() {
    let stages = json!([{"name": "a", "percentage": 10, "duration": "1h",
        "successCriteria": [{"metric": "vulnerabilities", "threshold": "0 critical"}]}]);
    let mut world = World::new(&stages, &json!({}));
    world.instead.insert("vulnerabilities".into(), Reading::Findings(crate::canary::observation::Findings::default()));
    world.until(Phase::Progressing, 5);
    world.turn(10);
    assert_eq!(world.verdict("vulnerabilities"), Verdict::Pass);
    let one = crate::canary::observation::Findings { critical: 1, ..Default::default() };
    world.instead.insert("vulnerabilities".into(), Reading::Findings(one));
    world.turn(10);
    assert_eq!(world.phase(), Phase::RollingBack);
}
