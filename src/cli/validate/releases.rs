//! Releases: whether one waits for somebody, was taken back, or no longer gets on.

use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;

use super::finding::{Finding, Outcome};
use crate::{
    api::canary_release::{CanaryRelease, ConditionType, Phase},
    names::ServerKey,
};

const CHECK: &str = "Release";
/// A release under way is looked at every few seconds. One that nobody looked at for so long is stuck.
const FORGOTTEN: SignedDuration = SignedDuration::from_mins(5);

/// What the status of a release says. Pure.
pub fn judge(release: &CanaryRelease, now: Timestamp) -> Finding {
    let subject = ServerKey::new(release.namespace().unwrap_or_default(), release.name_any()).to_string();
    let finding = |result, reason: &str, message: &str| Finding::new(CHECK, subject.clone(), result, reason, message);
    let status = release.status.clone().unwrap_or_default();
    let seen = release.status.as_ref().and_then(|s| s.observed_generation);
    if seen.is_none() || seen != release.metadata.generation {
        let message = "no controller has looked at the release as it is declared now: see whether the operator works";
        return finding(Outcome::Fail, "NotObserved", message);
    }
    let condition = |type_: ConditionType, word: &str| {
        status.conditions.iter().find(|c| c.type_ == type_.as_str() && c.status == word)
    };
    if let Some(stalled) = condition(ConditionType::Stalled, "True") {
        return finding(Outcome::Fail, &stalled.reason, &stalled.message);
    }
    let word = status.phase.as_str();
    let under_way = !status.phase.is_at_rest();
    let idle = status.last_tick.as_ref().map(|tick| now.duration_since(tick.0));
    match status.phase {
        Phase::RolledBack | Phase::Failed => finding(Outcome::Fail, word, &status.message),
        _ if under_way && idle.is_some_and(|idle| idle > FORGOTTEN) => {
            let minutes = idle.unwrap_or_default().as_mins();
            let message = format!(
                "it is under way, but nobody has looked at it for {minutes} min: see whether the operator works"
            );
            finding(Outcome::Fail, "Stuck", &message)
        }
        Phase::Paused | Phase::AwaitingApproval => finding(Outcome::Warn, word, &status.message),
        _ if !under_way => match condition(ConditionType::Ready, "False") {
            Some(ready) => finding(Outcome::Fail, &ready.reason, &ready.message),
            None => finding(Outcome::Pass, word, &status.message),
        },
        _ => match condition(ConditionType::MetricsAvailable, "False") {
            Some(metrics) => finding(Outcome::Warn, &metrics.reason, &metrics.message),
            None => finding(Outcome::Pass, word, &status.message),
        },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn judged(status: &Value) -> (Outcome, String) {
        let mut object = json!({
            "apiVersion": "perch.dev/v1alpha1", "kind": "CanaryRelease",
            "metadata": {"name": "a", "namespace": "n", "generation": 1},
            "spec": {"targetRef": {"name": "a"}, "stages": []}, "status": {"observedGeneration": 1},
        });
        for (key, value) in status.as_object().unwrap() {
            object["status"][key] = value.clone();
        }
        let now = "2026-06-01T12:00:00Z".parse().unwrap();
        let finding = judge(&serde_json::from_value(object).unwrap(), now);
        (finding.result, finding.reason)
    }

    #[test]
    fn what_needs_somebody_is_told() {
        let stalled = json!([{"type": "Stalled", "status": "True", "reason": "Invalid", "message": "m", "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
        for (status, expected) in [
            (json!({"phase": "Idle"}), (Outcome::Pass, "Idle")),
            (json!({"phase": "Succeeded"}), (Outcome::Pass, "Succeeded")),
            (json!({"phase": "Progressing", "lastTick": "2026-06-01T11:59:00Z"}), (Outcome::Pass, "Progressing")),
            (json!({"phase": "Progressing", "lastTick": "2026-06-01T11:00:00Z"}), (Outcome::Fail, "Stuck")),
            (json!({"phase": "Paused", "lastTick": "2026-06-01T11:59:00Z"}), (Outcome::Warn, "Paused")),
            (json!({"phase": "AwaitingApproval"}), (Outcome::Warn, "AwaitingApproval")),
            (json!({"phase": "RolledBack", "lastTick": "2026-01-01T11:00:00Z"}), (Outcome::Fail, "RolledBack")),
            (json!({"phase": "Failed"}), (Outcome::Fail, "Failed")),
            (json!({"phase": "Idle", "lastTick": "2026-01-01T11:00:00Z"}), (Outcome::Pass, "Idle")),
            (json!({"phase": "Progressing", "conditions": stalled}), (Outcome::Fail, "Invalid")),
            (
                json!({"phase": "Idle", "conditions": [{"type": "Ready", "status": "False", "reason": "NoServer", "message": "m", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}),
                (Outcome::Fail, "NoServer"),
            ),
            (json!({"phase": "Idle", "observedGeneration": 0}), (Outcome::Fail, "NotObserved")),
        ] {
            assert_eq!(judged(&status), (expected.0, expected.1.to_owned()), "{status}");
        }
    }
}
