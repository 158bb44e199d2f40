//! Step five: write what was decided. It is the only thing that the controller does.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{Api, Client, ResourceExt, api::PostParams};

use super::{MANAGER, progress_of, validate::Refusal};
use crate::{
    api::canary_release::{CanaryRelease, ConditionType, Phase},
    canary::Progress,
};

/// Whether a decision must be written. At rest the mere passing of time is no news.
pub fn is_news(before: Option<&Progress>, after: &Progress) -> bool {
    let Some(before) = before else { return true };
    if !after.phase.is_at_rest() || before.phase != after.phase {
        return true;
    }
    let same = Progress { last_tick: before.last_tick.clone(), phase_seconds: before.phase_seconds, ..after.clone() };
    same != *before
}

/// What is left of a status when the release lets go of its server: nothing is wanted any more, and
/// what happened is remembered.
pub fn at_rest(before: &Progress) -> Progress {
    Progress {
        releases: before.releases,
        history: before.history.clone(),
        failed_revisions: before.failed_revisions.clone(),
        seen_commands: before.seen_commands.clone(),
        ..Progress::default()
    }
}

/// The status of a release that nothing is done about.
pub fn refused(release: &CanaryRelease, refusal: &Refusal, now: Timestamp) -> Progress {
    let before = release.status.clone().unwrap_or_default();
    let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
    let make = |type_: ConditionType, status: &str| {
        let same = before.conditions.iter().find(|c| c.type_ == type_.as_str() && c.status == status);
        Condition {
            type_: type_.as_str().to_owned(),
            status: status.to_owned(),
            reason: refusal.reason.to_owned(),
            message: refusal.message.clone(),
            observed_generation: release.metadata.generation,
            last_transition_time: same.map_or(Time(now), |c| c.last_transition_time.clone()),
        }
    };
    let said = [
        make(ConditionType::Ready, "False"),
        make(ConditionType::Progressing, "False"),
        make(ConditionType::Stalled, "True"),
    ];
    let kept = if refusal.keeps_progress { progress_of(release) } else { at_rest(&before) };
    let others = kept.conditions.iter().filter(|c| said.iter().all(|s| s.type_ != c.type_)).cloned();
    let conditions = said.iter().cloned().chain(others).collect();
    Progress {
        observed_generation: release.metadata.generation,
        message: refusal.message.clone(),
        phase: if refusal.keeps_progress { kept.phase } else { Phase::Idle },
        conditions,
        ..kept
    }
}

/// Writes a status, unless the release changed since it was read. Returns the release as written;
/// none when it is gone.
pub async fn write(client: &Client, release: &CanaryRelease, status: Progress) -> kube::Result<Option<CanaryRelease>> {
    let api: Api<CanaryRelease> = Api::namespaced(client.clone(), &release.namespace().unwrap_or_default());
    let object = CanaryRelease { status: Some(status), ..release.clone() };
    let params = PostParams { field_manager: Some(MANAGER.into()), ..PostParams::default() };
    match api.replace_status(&release.name_any(), &params, &object).await {
        Ok(written) => Ok(Some(written)),
        // It went away: there is nobody to tell.
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn release(status: &Value) -> CanaryRelease {
        serde_json::from_value(json!({
            "apiVersion": "perch.dev/v1alpha1", "kind": "CanaryRelease",
            "metadata": {"name": "r", "namespace": "n", "generation": 4},
            "spec": {"targetRef": {"name": "a"}, "stages": [{"name": "s", "percentage": 10, "duration": "1h"}]},
            "status": status,
        }))
        .unwrap()
    }

    fn refusal(keeps_progress: bool) -> Refusal {
        Refusal { reason: "InvalidSpec", message: "two stages are called a".into(), keeps_progress }
    }

    fn now() -> Timestamp {
        "2026-01-01T00:00:00.7Z".parse().unwrap()
    }

    #[test]
    fn time_alone_is_no_news_at_rest() {
        let before = release(&json!({"phase": "RolledBack", "phaseSeconds": 1})).status.unwrap();
        let later = Progress { phase_seconds: 9, last_tick: Some(Time(now())), ..before.clone() };
        assert!(!is_news(Some(&before), &later));
        assert!(is_news(Some(&before), &Progress { message: "other".into(), ..later.clone() }));
        assert!(is_news(None, &later));
        let moving = Progress { phase: Phase::Progressing, ..before };
        assert!(is_news(Some(&moving), &Progress { phase_seconds: 2, ..moving.clone() }), "the clock counts");
    }

    #[test]
    fn a_spec_that_makes_no_sense_stops_the_release_where_it_is() {
        let running = release(&json!({"phase": "Progressing", "stableRevision": "a-1", "candidateRevision": "a-2",
            "conditions": [{"type": "Paused", "status": "False", "reason": "x", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}));
        let found = refused(&running, &refusal(true), now());
        assert_eq!((found.phase, found.stable_revision.as_deref()), (Phase::Progressing, Some("a-1")));
        assert_eq!(found.observed_generation, Some(4));
        let told = |type_: &str| {
            found.conditions.iter().find(|c| c.type_ == type_).map(|c| (c.status.as_str(), c.message.as_str()))
        };
        assert_eq!(told("Ready"), Some(("False", "two stages are called a")));
        assert_eq!(told("Stalled"), Some(("True", "two stages are called a")));
        assert!(told("Paused").is_some(), "what is not concerned stays");
        // Times of whole seconds, so that the status equals what is read back; and stable.
        let again = refused(
            &CanaryRelease { status: Some(found.clone()), ..running },
            &refusal(true),
            "2026-01-02T00:00:00Z".parse().unwrap(),
        );
        assert_eq!(again, found);
    }

    #[test]
    fn who_does_not_count_wants_nothing() {
        let running = release(
            &json!({"phase": "Progressing", "stableRevision": "a-1", "candidateRevision": "a-2", "releases": 3,
            "routing": {"desiredEpoch": 7, "percentage": 50},
            "failedRevisions": [{"revision": "a-0", "message": "bad", "at": "2026-01-01T00:00:00Z"}]}),
        );
        let found = refused(&running, &refusal(false), now());
        assert_eq!((found.phase, &found.stable_revision, &found.candidate_revision), (Phase::Idle, &None, &None));
        assert_eq!((found.routing.percentage, found.releases, found.failed_revisions.len()), (0, 3, 1));
    }
}
