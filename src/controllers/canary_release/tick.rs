//! When to look again: changes of the release and its server are told, but time and calls are not.

use std::time::Duration;

use jiff::Timestamp;
use kube::runtime::controller::Action;

use crate::{
    api::canary_release::{CanaryRelease, Phase, Provider},
    canary::{Decision, Plan, Progress},
};

/// Longest time between two looks at a release under way.
const SLOWEST: Duration = Duration::from_secs(10);
/// Shortest time between two looks: times in a status have whole seconds.
const QUICKEST: Duration = Duration::from_secs(1);
/// Longest time between two writes of a release under way about which nothing but counts is new. It is well below
/// the longest gap between two turns that [`crate::canary::decide`] counts as time.
const SELDOM: Duration = Duration::from_secs(60);
/// Wait before the next step of a release that has just made one.
const NEXT_STEP: Duration = Duration::from_millis(100);
/// Time between two looks at an HTTPRoute at rest, for somebody may have written other weights.
const ROUTE: Duration = Duration::from_secs(30);
/// What a look costs the releases together: with a hundred of them each is looked at every second,
/// with a thousand every ten.
const EACH: Duration = Duration::from_millis(10);
/// What a write costs them together: up to three hundred of them are written every ten seconds, two thousand and more
/// every minute.
const EACH_WRITE: Duration = Duration::from_millis(30);

/// When to look at a release again, one of so many. `moved`: something has just happened.
pub fn after(release: &CanaryRelease, plan: &Plan, progress: &Progress, moved: bool, releases: usize) -> Action {
    if moved {
        return Action::requeue(NEXT_STEP);
    }
    if progress.phase.is_at_rest() {
        let settled = progress.release_id.is_none() || progress.routing.acked_epoch == progress.routing.desired_epoch;
        return match (settled, release.spec.http_route()) {
            (false, _) => Action::requeue(SLOWEST),
            (true, Some(_)) => Action::requeue(ROUTE),
            (true, None) => Action::await_change(),
        };
    }
    Action::requeue(match progress.phase {
        // It waits for a person, or for evidence, and both take their time. A bad candidate should
        // not: where only gateways are asked, which costs nobody much, it is found out sooner.
        Phase::Progressing | Phase::Paused | Phase::AwaitingApproval if asks_only_gateways(release) => {
            turn(EACH, releases).clamp(QUICKEST, SLOWEST).min(pace(plan))
        }
        Phase::Progressing | Phase::Paused | Phase::AwaitingApproval => pace(plan),
        // It waits for instances and gateways, which do not.
        _ => QUICKEST,
    })
}

/// Whether a decision about one of so many releases must be written now. One that only adds to the evidence can wait:
/// the same is found out again at the next look, from the counters and the last written status.
pub fn is_due(plan: &Plan, before: &Progress, decision: &Decision, now: Timestamp, releases: usize) -> bool {
    let after = &decision.progress;
    let moved = before.phase != after.phase
        || before.routing != after.routing
        || before.hold != after.hold
        || before.verdict != after.verdict
        || before.last_command != after.last_command
        || before.observed_generation != after.observed_generation;
    let waited = before.last_tick.as_ref().map(|last| now.duration_since(last.0).unsigned_abs());
    let patience = match pace(plan) {
        SLOWEST => turn(EACH_WRITE, releases).clamp(SLOWEST, SELDOM),
        short => short,
    };
    // At rest nobody looks again by itself.
    after.phase.is_at_rest() || !decision.story.is_empty() || moved || waited.is_none_or(|waited| waited >= patience)
}

/// How long so many take one after the other.
fn turn(each: Duration, releases: usize) -> Duration {
    each.saturating_mul(u32::try_from(releases).unwrap_or(u32::MAX))
}

fn asks_only_gateways(release: &CanaryRelease) -> bool {
    release.spec.metrics.iter().all(|metric| metric.provider == Provider::Gateway)
}

/// Half the shortest time that the plan speaks of, within bounds.
fn pace(plan: &Plan) -> Duration {
    let dwells = plan.stages.iter().flat_map(|stage| (0..stage.steps.len()).map(|step| stage.dwell(step)));
    let shortest = dwells.filter(|seconds| *seconds > 0).min().unwrap_or(0);
    (Duration::from_secs(u64::try_from(shortest).unwrap_or(0)) / 2).clamp(QUICKEST, SLOWEST)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn release(durations: &[&str]) -> CanaryRelease {
        let stages: Vec<_> = durations
            .iter()
            .enumerate()
            .map(|(i, d)| json!({"name": format!("s{i}"), "percentage": 10, "duration": d}))
            .collect();
        let spec = serde_json::from_value(json!({"targetRef": {"name": "a"}, "stages": stages}));
        CanaryRelease::new("a", spec.unwrap())
    }

    fn plan(durations: &[&str]) -> Plan {
        Plan::new(&release(durations).spec).unwrap()
    }

    #[test]
    fn short_stages_are_looked_at_often() {
        assert_eq!(pace(&plan(&["48h", "72h"])), Duration::from_secs(10));
        assert_eq!(pace(&plan(&["48h", "8s"])), Duration::from_secs(4));
        assert_eq!(pace(&plan(&["1s"])), Duration::from_secs(1));
    }

    #[test]
    fn a_release_at_rest_waits_for_a_change() {
        let (release, plan) = (release(&["1h"]), plan(&["1h"]));
        let after = |progress: &Progress, moved| after(&release, &plan, progress, moved, 1);
        let progress = |phase, release_id: Option<&str>, acked| {
            let mut progress = Progress { phase, release_id: release_id.map(Into::into), ..Progress::default() };
            progress.routing.desired_epoch = 3;
            progress.routing.acked_epoch = acked;
            progress
        };
        assert_eq!(after(&progress(Phase::Idle, None, 0), false), Action::await_change());
        assert_eq!(after(&progress(Phase::RolledBack, Some("r"), 3), false), Action::await_change());
        assert_eq!(after(&progress(Phase::Succeeded, Some("r"), 2), false), Action::requeue(SLOWEST));
        assert_eq!(after(&progress(Phase::Draining, Some("r"), 3), false), Action::requeue(QUICKEST));
        assert_eq!(after(&progress(Phase::Progressing, Some("r"), 3), false), Action::requeue(QUICKEST));
        assert_eq!(after(&progress(Phase::Progressing, Some("r"), 3), true), Action::requeue(NEXT_STEP));
        let mut routed = release.clone();
        routed.spec.traffic = serde_json::from_value(json!({"httpRoute": {"name": "r"}})).ok();
        let at_rest = super::after(&routed, &plan, &progress(Phase::Idle, None, 0), false, 1);
        assert_eq!(at_rest, Action::requeue(ROUTE), "others write routes too");
    }

    #[test]
    fn many_releases_and_providers_of_others_are_spared() {
        let (mut release, plan) = (release(&["1h"]), plan(&["1h"]));
        let under_way = Progress { phase: Phase::Progressing, ..Progress::default() };
        assert_eq!(after(&release, &plan, &under_way, false, 300), Action::requeue(Duration::from_secs(3)));
        assert_eq!(after(&release, &plan, &under_way, false, 1_000_000), Action::requeue(SLOWEST));
        let metric = json!({"name": "mine", "provider": "Prometheus", "address": "http://p", "bad": "b", "total": "t"});
        release.spec.metrics = vec![serde_json::from_value(metric).unwrap()];
        assert_eq!(after(&release, &plan, &under_way, false, 1), Action::requeue(SLOWEST));
    }

    #[test]
    fn a_look_between_two_writes_is_written_only_when_something_moved() {
        let plan = plan(&["1h"]);
        let at = |second| Timestamp::from_second(second).unwrap();
        let last_tick = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(100)));
        let before = Progress { phase: Phase::Progressing, last_tick, ..Progress::default() };
        let decision = |progress: Progress| Decision { progress, story: Vec::new() };
        let more = decision(Progress { phase_seconds: 4, ..before.clone() });
        let is_due = |before: &Progress, decision: &Decision, now| is_due(&plan, before, decision, now, 1);
        assert!(!is_due(&before, &more, at(104)));
        assert!(is_due(&before, &more, at(110)));
        assert!(is_due(&Progress { last_tick: None, ..before.clone() }, &more, at(104)));
        let mut acked = before.clone();
        acked.routing.acked_epoch = 1;
        let back = Progress { phase: Phase::RollingBack, ..before.clone() };
        let mut at_rest = before.clone();
        at_rest.phase = Phase::Succeeded;
        assert!(is_due(&at_rest, &decision(Progress { message: "x".into(), ..at_rest.clone() }), at(101)));
        for moved in [acked, back] {
            assert!(is_due(&before, &decision(moved), at(101)));
        }
    }

    #[test]
    fn counts_of_many_releases_are_written_seldom_and_those_of_short_stages_as_ever() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let last_tick = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(100)));
        let before = Progress { phase: Phase::Progressing, last_tick, ..Progress::default() };
        let more = Decision { progress: Progress { phase_seconds: 4, ..before.clone() }, story: Vec::new() };
        for (stage, releases, seconds) in
            [("1h", 300, 10), ("1h", 1000, 30), ("1h", 2000, 60), ("1h", 1_000_000, 60), ("8s", 2000, 4)]
        {
            let is_due = |second: i64| is_due(&plan(&[stage]), &before, &more, at(100 + second), releases);
            assert!(!is_due(seconds - 1) && is_due(seconds), "{releases} releases with stages of {stage}");
        }
    }
}
