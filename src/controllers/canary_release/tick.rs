//! When to look again: changes of the release and its server are told, but time and calls are not.

use std::time::Duration;

use kube::runtime::controller::Action;

use crate::{
    api::canary_release::Phase,
    canary::{Plan, Progress},
};

/// Longest time between two looks at a release under way.
const SLOWEST: Duration = Duration::from_secs(10);
/// Shortest time between two looks: times in a status have whole seconds.
const QUICKEST: Duration = Duration::from_secs(1);
/// Wait before the next step of a release that has just made one.
const NEXT_STEP: Duration = Duration::from_millis(100);

/// When to look at a release again. `moved`: something has just happened.
pub fn after(plan: &Plan, progress: &Progress, moved: bool) -> Action {
    if moved {
        return Action::requeue(NEXT_STEP);
    }
    if progress.phase.is_at_rest() {
        let settled = progress.release_id.is_none() || progress.routing.acked_epoch == progress.routing.desired_epoch;
        return if settled { Action::await_change() } else { Action::requeue(SLOWEST) };
    }
    Action::requeue(match progress.phase {
        // It waits for a person, or for evidence, and both take their time.
        Phase::Progressing | Phase::Paused | Phase::AwaitingApproval => pace(plan),
        // It waits for instances and gateways, which do not.
        _ => QUICKEST,
    })
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

    fn plan(durations: &[&str]) -> Plan {
        let stages: Vec<_> = durations
            .iter()
            .enumerate()
            .map(|(i, d)| json!({"name": format!("s{i}"), "percentage": 10, "duration": d}))
            .collect();
        Plan::new(&serde_json::from_value(json!({"targetRef": {"name": "a"}, "stages": stages})).unwrap()).unwrap()
    }

    #[test]
    fn short_stages_are_looked_at_often() {
        assert_eq!(pace(&plan(&["48h", "72h"])), Duration::from_secs(10));
        assert_eq!(pace(&plan(&["48h", "8s"])), Duration::from_secs(4));
        assert_eq!(pace(&plan(&["1s"])), Duration::from_secs(1));
    }

    #[test]
    fn a_release_at_rest_waits_for_a_change() {
        let plan = plan(&["1h"]);
        let progress = |phase, release_id: Option<&str>, acked| {
            let mut progress = Progress { phase, release_id: release_id.map(Into::into), ..Progress::default() };
            progress.routing.desired_epoch = 3;
            progress.routing.acked_epoch = acked;
            progress
        };
        assert_eq!(after(&plan, &progress(Phase::Idle, None, 0), false), Action::await_change());
        assert_eq!(after(&plan, &progress(Phase::RolledBack, Some("r"), 3), false), Action::await_change());
        assert_eq!(after(&plan, &progress(Phase::Succeeded, Some("r"), 2), false), Action::requeue(SLOWEST));
        assert_eq!(after(&plan, &progress(Phase::Draining, Some("r"), 3), false), Action::requeue(QUICKEST));
        assert_eq!(after(&plan, &progress(Phase::Progressing, Some("r"), 3), false), Action::requeue(SLOWEST));
        assert_eq!(after(&plan, &progress(Phase::Progressing, Some("r"), 3), true), Action::requeue(NEXT_STEP));
    }
}
