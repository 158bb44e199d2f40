//! What is left to read of a release that was taken back: what happened, when, and by what
//! evidence. Pure: a function of the release and its status.

use jiff::Timestamp;
use kube::ResourceExt;
use serde::Serialize;

use crate::api::canary_release::{CanaryRelease, EndReason, Finding, Outcome, Provider, Verdict};

/// A release that was taken back, or that failed before it had users.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Incident {
    /// Names it among all incidents: namespace, name and id of the release.
    pub id: String,
    /// Namespace of the release and of its server.
    pub namespace: String,
    /// Name of the `CanaryRelease`.
    pub release: String,
    /// Name of the `McpServer`.
    pub server: String,
    /// `status.releaseId`.
    pub release_id: String,
    /// The revision that everybody went back to.
    pub stable_revision: String,
    /// The revision that was taken back.
    pub candidate_revision: String,
    /// What became of it.
    pub outcome: Outcome,
    /// Why, in one word.
    pub reason: EndReason,
    /// Why, in one sentence, with the evidence that decided.
    pub message: String,
    /// The last stage that it reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stage: Option<String>,
    /// The largest share of users who had it, in percent.
    pub percentage: i32,
    /// When the release started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When it was decided to take it back.
    pub decided_at: Timestamp,
    /// When nothing of it was left; none while users and calls still move.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
    /// The criteria that had not passed, as they were.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub evidence: Vec<Finding>,
    /// Tools that are concerned, as far as it is known.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tools: Vec<String>,
    /// How the tools of the two revisions differed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_changes: Vec<String>,
}

/// All incidents that the release remembers, the last one first; one under way too.
#[must_use]
pub fn incidents(release: &CanaryRelease) -> Vec<Incident> {
    let Some(status) = &release.status else { return Vec::new() };
    let history = status.history.iter().filter(|entry| is_incident(entry.outcome)).map(|entry| Incident {
        stage: entry.stage.clone(),
        percentage: entry.percentage,
        started_at: Some(entry.started_at.0),
        ended_at: Some(entry.ended_at.0),
        ..incident(
            release,
            Facts {
                release_id: &entry.release_id,
                stable: &entry.stable_revision,
                candidate: &entry.candidate_revision,
                outcome: entry.outcome,
                reason: entry.reason,
                message: &entry.message,
                decided_at: entry.decided_at.0,
                evidence: entry.evidence.clone(),
                tool_changes: entry.tool_changes.clone(),
            },
        )
    });
    under_way(release).into_iter().chain(history).collect()
}

/// The incident that is under way: decided, and not yet at its end.
#[must_use]
pub fn under_way(release: &CanaryRelease) -> Option<Incident> {
    let status = release.status.as_ref()?;
    let ending = status.ending.as_ref().filter(|ending| is_incident(ending.outcome))?;
    let facts = Facts {
        release_id: status.release_id.as_deref().unwrap_or_default(),
        stable: status.stable_revision.as_deref().unwrap_or_default(),
        candidate: status.candidate_revision.as_deref().unwrap_or_default(),
        outcome: ending.outcome,
        reason: ending.reason,
        message: &ending.message,
        decided_at: ending.at.0,
        evidence: status.criteria.iter().filter(|c| c.verdict != Verdict::Pass).map(Finding::from).collect(),
        tool_changes: status.tool_contract.as_ref().map(|contract| contract.findings.clone()).unwrap_or_default(),
    };
    Some(Incident {
        stage: status.stage.as_ref().map(|stage| stage.name.clone()),
        percentage: status.stage.as_ref().map_or(0, |stage| stage.percentage),
        started_at: status.started_at.as_ref().map(|time| time.0),
        ..incident(release, facts)
    })
}

const fn is_incident(outcome: Outcome) -> bool {
    matches!(outcome, Outcome::RolledBack | Outcome::Failed)
}

/// What every incident has.
struct Facts<'a> {
    release_id: &'a str,
    stable: &'a str,
    candidate: &'a str,
    outcome: Outcome,
    reason: EndReason,
    message: &'a str,
    decided_at: Timestamp,
    evidence: Vec<Finding>,
    tool_changes: Vec<String>,
}

fn incident(release: &CanaryRelease, facts: Facts<'_>) -> Incident {
    let (namespace, name) = (release.namespace().unwrap_or_default(), release.name_any());
    Incident {
        id: format!("{namespace}/{name}/{}", facts.release_id),
        server: release.spec.target_ref.name.clone(),
        release: name,
        namespace,
        release_id: facts.release_id.to_owned(),
        stable_revision: facts.stable.to_owned(),
        candidate_revision: facts.candidate.to_owned(),
        outcome: facts.outcome,
        reason: facts.reason,
        message: facts.message.to_owned(),
        stage: None,
        percentage: 0,
        started_at: None,
        decided_at: facts.decided_at,
        ended_at: None,
        tools: tools(release, &facts.evidence, &facts.tool_changes),
        evidence: facts.evidence,
        tool_changes: facts.tool_changes,
    }
}

/// Tools of broken metrics that count some tools only, and tools that changed.
fn tools(release: &CanaryRelease, evidence: &[Finding], changes: &[String]) -> Vec<String> {
    let broken = |name: &String| evidence.iter().any(|c| c.metric == *name && c.verdict == Verdict::Breach);
    let metrics = release.spec.metrics.iter().filter(|m| m.provider == Provider::Gateway && broken(&m.name));
    let counted = metrics.flat_map(|m| m.tools.iter().flatten()).cloned();
    // A change begins with its tool: "search, inputSchema.properties.city: is gone".
    let changed = changes.iter().filter_map(|c| c.split([',', ':']).next()).map(str::to_owned);
    let mut tools: Vec<String> = counted.chain(changed).collect();
    tools.sort();
    tools.dedup();
    tools
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn release() -> CanaryRelease {
        serde_json::from_value(json!({
            "apiVersion": "perch.dev/v1alpha1", "kind": "CanaryRelease",
            "metadata": {"name": "canary", "namespace": "team"},
            "spec": {"targetRef": {"name": "srv"},
                "metrics": [{"name": "writes", "provider": "Gateway", "tools": ["write", "delete"]},
                    {"name": "reads", "provider": "Gateway", "tools": ["read"]}],
                "stages": [{"name": "a", "percentage": 10, "duration": "1h", "successCriteria": [
                    {"metric": "writes", "threshold": "< 1%"}, {"metric": "reads", "threshold": "< 1%"}]}]},
            "status": {"phase": "Draining", "releaseId": "srv-3.2", "stableRevision": "srv-1", "candidateRevision": "srv-3",
                "startedAt": "2026-01-02T03:00:00Z",
                "stage": {"index": 0, "name": "a", "attempt": 1, "activeSeconds": 9, "percentage": 10},
                "ending": {"outcome": "RolledBack", "reason": "CriterionBreached", "message": "writes < 1%: bad", "at": "2026-01-02T04:00:00Z"},
                "toolContract": {"breaking": 0, "review": 2, "findings": ["search, description: has changed", "write: has changed"]},
                "criteria": [
                    {"metric": "writes", "threshold": "< 1%", "verdict": "Breach", "reason": "bad", "bad": 9, "total": 100,
                        "users": 4, "breach": 8.0, "breachAt": 6.0, "evidence": {"candidate": {"bad": [0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0], "total": [0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0]},
                        "stableBad": 0, "stableTotal": 0, "users": 0, "watchedSeconds": 0, "moments": 0, "scores": [], "ratios": [0.0,0.0,0.0,0.0], "twice": 0.0}}],
                "history": [
                    {"releaseId": "srv-2.1", "stableRevision": "srv-1", "candidateRevision": "srv-2", "outcome": "Failed",
                        "reason": "CandidateUnhealthy", "message": "srv-2 fails: exits", "percentage": 0,
                        "startedAt": "2026-01-01T00:00:00Z", "decidedAt": "2026-01-01T00:01:00Z", "endedAt": "2026-01-01T00:02:00Z"},
                    {"releaseId": "srv-1.0", "stableRevision": "srv-0", "candidateRevision": "srv-1", "outcome": "Succeeded",
                        "reason": "AllStagesPassed", "message": "fine", "percentage": 100,
                        "startedAt": "2026-01-01T00:00:00Z", "decidedAt": "2026-01-01T00:01:00Z", "endedAt": "2026-01-01T00:02:00Z"}]}
        }))
        .unwrap()
    }

    #[test]
    fn an_incident_says_what_when_and_by_what_evidence() {
        let all = incidents(&release());
        let ids: Vec<_> = all.iter().map(|i| i.id.as_str()).collect();
        assert_eq!(ids, ["team/canary/srv-3.2", "team/canary/srv-2.1"], "what went well is no incident");
        let written = serde_json::to_value(&all[0]).unwrap();
        assert_eq!(written["server"], "srv");
        assert_eq!(written["reason"], "CriterionBreached");
        assert_eq!(written["decidedAt"], "2026-01-02T04:00:00Z");
        assert_eq!(written.get("endedAt"), None, "calls still finish");
        assert_eq!(written["percentage"], 10);
        let evidence = &written["evidence"][0];
        assert_eq!(
            (&evidence["bad"], &evidence["total"], &evidence["verdict"]),
            (&json!(9), &json!(100), &json!("Breach"))
        );
        assert_eq!(written["tools"], json!(["delete", "search", "write"]), "reads were fine");
    }

    #[test]
    fn an_older_incident_has_its_own_evidence() {
        let mut release = release();
        let finding = json!({"metric": "reads", "threshold": "< 1%", "verdict": "Breach", "bad": 7, "total": 9});
        release.status.as_mut().unwrap().history[0].evidence = vec![serde_json::from_value(finding).unwrap()];
        let old = incidents(&release).swap_remove(1);
        assert_eq!((old.evidence[0].metric.as_str(), old.evidence[0].bad), ("reads", 7));
        assert_eq!(old.tools, ["read"], "what is wrong now is of another release");
        assert!(old.ended_at.is_some() && old.message == "srv-2 fails: exits");
    }

    #[test]
    fn a_promotion_under_way_is_no_incident() {
        let mut release = release();
        let status = release.status.as_mut().unwrap();
        status.ending.as_mut().unwrap().outcome = Outcome::Succeeded;
        assert_eq!(under_way(&release), None);
        release.status = None;
        assert!(incidents(&release).is_empty());
    }
}
