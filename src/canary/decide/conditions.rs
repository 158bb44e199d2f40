//! Conditions: the progress as `kubectl wait`, Argo CD and Flux read it.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use crate::{
    api::canary_release::{ConditionType, Outcome, Phase, Verdict},
    canary::{Observation, Progress},
};

/// Writes all conditions. Times change only where the status does.
pub(super) fn write(next: &mut Progress, seen: &Observation, now: Timestamp) {
    let phase = next.phase;
    let word = phase.as_str();
    let held = next.hold.as_ref().map(|hold| hold.reason.as_str());
    let ended = next.ending.as_ref().map(|ending| ending.reason.as_str());
    let ready = matches!(phase, Phase::Idle | Phase::Succeeded)
        && seen.declared.is_some()
        && seen.declared == next.stable_revision;
    let failed = matches!(phase, Phase::RolledBack | Phase::Failed);
    let moving = !phase.is_at_rest() && held.is_none();
    let broken = matches!(next.verdict, Some(Verdict::Breach | Verdict::SharedDegradation));
    let unknown = next.outage_seconds > 0;
    let epoch = next.routing.desired_epoch;
    let verified = !seen.gateways.is_empty() && seen.gateways.iter().all(|g| g.epoch == Some(epoch));
    let promoted = next.history.first().is_some_and(|last| last.outcome == Outcome::Succeeded) && phase.is_at_rest();
    let reason_of = |yes: bool, yes_word: &'static str, no_word: &'static str| if yes { yes_word } else { no_word };
    let rolling_back = matches!(phase, Phase::RollingBack | Phase::Draining);
    let mut all = vec![
        (ConditionType::Ready, ready, held.unwrap_or(word)),
        (ConditionType::Progressing, moving, held.unwrap_or(word)),
        (ConditionType::Paused, held.is_some(), held.unwrap_or("NotPaused")),
        (ConditionType::AnalysisHealthy, !broken, reason_of(!broken, "NoBreach", "Breach")),
        (ConditionType::MetricsAvailable, !unknown, reason_of(!unknown, "MetricsRead", "MetricsUnavailable")),
        (ConditionType::TrafficVerified, verified, reason_of(verified, "AllGateways", "GatewaysLag")),
        (ConditionType::RollbackInProgress, rolling_back, ended.filter(|_| rolling_back).unwrap_or(word)),
        (ConditionType::Promoted, promoted, word),
    ];
    if let Some(route) = &seen.route {
        all.push((ConditionType::HttpRouteWeighted, route.percentage.is_some(), route.reason));
    }
    if failed {
        all.push((ConditionType::Stalled, true, word));
    }
    let before = std::mem::take(&mut next.conditions);
    next.conditions = all
        .into_iter()
        .map(|(type_, is, reason)| {
            let status = if is { "True" } else { "False" };
            let same = before.iter().find(|c| c.type_ == type_.as_str() && c.status == status);
            Condition {
                type_: type_.as_str().to_owned(),
                status: status.to_owned(),
                reason: reason.to_owned(),
                message: match type_ {
                    ConditionType::Ready
                    | ConditionType::Progressing
                    | ConditionType::Paused
                    | ConditionType::Stalled => next.message.clone(),
                    ConditionType::AnalysisHealthy => {
                        let worst = next.criteria.iter().max_by_key(|c| c.verdict);
                        worst.map(|c| format!("{}: {}", c.metric, c.reason)).unwrap_or_default()
                    }
                    ConditionType::TrafficVerified => {
                        format!("epoch {} of {epoch} on all gateways", next.routing.acked_epoch)
                    }
                    ConditionType::RollbackInProgress => {
                        next.ending.as_ref().map(|e| e.message.clone()).unwrap_or_default()
                    }
                    ConditionType::HttpRouteWeighted => {
                        seen.route.as_ref().map(|route| route.message.clone()).unwrap_or_default()
                    }
                    ConditionType::MetricsAvailable | ConditionType::Promoted => String::new(),
                },
                observed_generation: next.observed_generation,
                last_transition_time: same.map_or(Time(now), |c| c.last_transition_time.clone()),
            }
        })
        .collect();
}
