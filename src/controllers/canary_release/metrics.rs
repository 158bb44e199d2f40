//! Releases as Prometheus sees them.

use std::sync::{Arc, Mutex, PoisonError};

use kube::ResourceExt;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::{
    api::canary_release::{CanaryRelease, CriterionStatus, Outcome, Verdict},
    canary::StoryEvent,
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Release {
    namespace: String,
    canary_release: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InPhase {
    namespace: String,
    canary_release: String,
    mcp_server: String,
    phase: &'static str,
    stage: String,
    hold: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfCriterion {
    namespace: String,
    canary_release: String,
    metric: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ended {
    namespace: String,
    canary_release: String,
    outcome: &'static str,
    reason: &'static str,
}

/// What is shown of one release now.
#[derive(Clone, Debug)]
struct Shown {
    release: Release,
    phase: InPhase,
    criteria: Vec<OfCriterion>,
}

/// Gauges and counters of all releases. Clones count together. There is one series for each release
/// and for each criterion of its stage, and none is left of a release that is gone.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    phase: Family<InPhase, Gauge>,
    percentage: Family<Release, Gauge>,
    lag: Family<Release, Gauge>,
    outage: Family<Release, Gauge>,
    verdict: Family<OfCriterion, Gauge>,
    bad: Family<OfCriterion, Gauge>,
    total: Family<OfCriterion, Gauge>,
    breach: Family<OfCriterion, Gauge<f64, std::sync::atomic::AtomicU64>>,
    pass: Family<OfCriterion, Gauge<f64, std::sync::atomic::AtomicU64>>,
    ended: Family<Ended, Counter>,
    shown: Arc<Mutex<std::collections::HashMap<Release, Shown>>>,
}

impl Metrics {
    /// Makes them visible.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("perch_canary_phase", "1 for the phase, stage and hold of each release", self.phase.clone());
        registry.register("perch_canary_percentage", "Share of users who get the candidate", self.percentage.clone());
        registry.register(
            "perch_canary_routing_lag",
            "Changes of routing that not all gateways run yet",
            self.lag.clone(),
        );
        registry.register(
            "perch_canary_metrics_outage_seconds",
            "Time since all metrics of a release could be read",
            self.outage.clone(),
        );
        registry.register(
            "perch_canary_criterion_verdict",
            "0 Pass, 1 Undecided, 2 NoData, 3 Unknown, 4 SharedDegradation, 5 Breach",
            self.verdict.clone(),
        );
        registry.register("perch_canary_criterion_bad", "Bad events of the candidate in the stage", self.bad.clone());
        registry.register("perch_canary_criterion_events", "Events of the candidate in the stage", self.total.clone());
        registry.register(
            "perch_canary_criterion_breach_ratio",
            "Evidence that the limit is broken; at 1 it suffices",
            self.breach.clone(),
        );
        registry.register(
            "perch_canary_criterion_pass_ratio",
            "Evidence that the limit holds; at 1 it suffices",
            self.pass.clone(),
        );
        registry.register("perch_canary_ended", "Releases that ended, by outcome and reason", self.ended.clone());
    }

    /// Shows what is so of a release, and counts what has happened. `story` is what was told with
    /// the status of `release` when it was written; empty when it was only read.
    pub fn show(&self, release: &CanaryRelease, story: &[StoryEvent]) {
        let Some(status) = &release.status else { return };
        let key = key(release);
        let of = |criterion: &CriterionStatus| OfCriterion {
            namespace: key.namespace.clone(),
            canary_release: key.canary_release.clone(),
            metric: criterion.metric.clone(),
        };
        let now = Shown {
            release: key.clone(),
            phase: InPhase {
                namespace: key.namespace.clone(),
                canary_release: key.canary_release.clone(),
                mcp_server: release.spec.target_ref.name.clone(),
                phase: status.phase.as_str(),
                stage: status.stage.as_ref().map(|s| s.name.clone()).unwrap_or_default(),
                hold: status.hold.as_ref().map_or("", |h| h.reason.as_str()),
            },
            criteria: status.criteria.iter().map(of).collect(),
        };
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(before) = shown.get(&key) {
            self.withdraw(before, Some(&now));
        }
        self.phase.get_or_create(&now.phase).set(1);
        self.percentage.get_or_create(&key).set(i64::from(status.routing.percentage));
        self.lag.get_or_create(&key).set(status.routing.desired_epoch - status.routing.acked_epoch);
        self.outage.get_or_create(&key).set(status.outage_seconds);
        for (labels, criterion) in now.criteria.iter().zip(&status.criteria) {
            self.verdict.get_or_create(labels).set(number(criterion.verdict));
            self.bad.get_or_create(labels).set(criterion.bad);
            self.total.get_or_create(labels).set(criterion.total);
            self.breach.get_or_create(labels).set(ratio(criterion.breach, criterion.breach_at));
            self.pass.get_or_create(labels).set(ratio(criterion.pass, criterion.pass_at));
        }
        shown.insert(key.clone(), now);
        let done = ["Promoted", "RolledBack", "Failed", "CandidateRemoved"];
        for _ in story.iter().filter(|event| done.contains(&event.reason)) {
            // The release that has just ended is the first of the history.
            if let Some(entry) = status.history.first() {
                let labels = Ended {
                    namespace: key.namespace.clone(),
                    canary_release: key.canary_release.clone(),
                    outcome: outcome(entry.outcome),
                    reason: entry.reason.as_str(),
                };
                self.ended.get_or_create(&labels).inc();
            }
        }
    }

    /// Forgets a release that is gone.
    pub fn forget(&self, namespace: &str, name: &str) {
        let key = Release { namespace: namespace.into(), canary_release: name.into() };
        let removed = self.shown.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
        if let Some(shown) = removed {
            self.withdraw(&shown, None);
        }
    }

    /// Forgets all releases, when another operator leads.
    pub fn forget_all(&self) {
        let all = std::mem::take(&mut *self.shown.lock().unwrap_or_else(PoisonError::into_inner));
        for shown in all.values() {
            self.withdraw(shown, None);
        }
    }

    /// Takes away what is shown no more.
    fn withdraw(&self, before: &Shown, now: Option<&Shown>) {
        if now.is_none_or(|now| now.phase != before.phase) {
            self.phase.remove(&before.phase);
        }
        for labels in before.criteria.iter().filter(|c| now.is_none_or(|now| !now.criteria.contains(c))) {
            self.verdict.remove(labels);
            self.bad.remove(labels);
            self.total.remove(labels);
            self.breach.remove(labels);
            self.pass.remove(labels);
        }
        if now.is_none() {
            self.percentage.remove(&before.release);
            self.lag.remove(&before.release);
            self.outage.remove(&before.release);
        }
    }
}

fn key(release: &CanaryRelease) -> Release {
    Release { namespace: release.namespace().unwrap_or_default(), canary_release: release.name_any() }
}

/// How much of what is needed is there, between 0 and 1.
fn ratio(evidence: f64, needed: f64) -> f64 {
    if needed > 0.0 { (evidence / needed).clamp(0.0, 1.0) } else { 0.0 }
}

const fn number(verdict: Verdict) -> i64 {
    match verdict {
        Verdict::Pass => 0,
        Verdict::Undecided => 1,
        Verdict::NoData => 2,
        Verdict::Unknown => 3,
        Verdict::SharedDegradation => 4,
        Verdict::Breach => 5,
    }
}

const fn outcome(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Succeeded => "Succeeded",
        Outcome::RolledBack => "RolledBack",
        Outcome::Failed => "Failed",
        Outcome::Superseded => "Superseded",
        Outcome::Withdrawn => "Withdrawn",
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;
    use serde_json::json;

    use super::*;
    use crate::canary::EventKind;

    fn release(phase: &str, criteria: &[&str]) -> CanaryRelease {
        let evidence = serde_json::to_value(crate::api::canary_release::Evidence::default()).unwrap();
        let criteria: Vec<_> = criteria
            .iter()
            .map(|metric| {
                json!({"metric": metric, "threshold": "< 1%", "verdict": "Undecided", "bad": 3, "total": 40,
                    "breach": 2.0, "breachAt": 8.0, "pass": 5.0, "passAt": 4.0, "evidence": evidence})
            })
            .collect();
        serde_json::from_value(json!({
            "apiVersion": "perch.dev/v1alpha1", "kind": "CanaryRelease", "metadata": {"name": "r", "namespace": "n"},
            "spec": {"targetRef": {"name": "srv"}, "stages": [{"name": "a", "percentage": 10, "duration": "1h"}]},
            "status": {"phase": phase, "routing": {"percentage": 10, "desiredEpoch": 4, "ackedEpoch": 3}, "criteria": criteria,
                "history": [{"releaseId": "x", "stableRevision": "a", "candidateRevision": "b", "outcome": "RolledBack",
                    "reason": "CriterionBreached", "message": "m", "percentage": 10, "startedAt": "2026-01-01T00:00:00Z",
                    "decidedAt": "2026-01-01T00:00:00Z", "endedAt": "2026-01-01T00:00:00Z"}]}
        }))
        .unwrap()
    }

    fn text(metrics: &Metrics) -> String {
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        text.lines().filter(|l| !l.starts_with('#')).map(|l| format!("{l}\n")).collect()
    }

    #[test]
    fn what_is_so_is_shown_and_what_was_is_not() {
        let metrics = Metrics::default();
        metrics.show(&release("Progressing", &["errorRate", "latencyP99"]), &[]);
        let first = text(&metrics);
        for line in [
            r#"perch_canary_phase{namespace="n",canary_release="r",mcp_server="srv",phase="Progressing",stage="",hold=""} 1"#,
            r#"perch_canary_percentage{namespace="n",canary_release="r"} 10"#,
            r#"perch_canary_routing_lag{namespace="n",canary_release="r"} 1"#,
            r#"perch_canary_criterion_bad{namespace="n",canary_release="r",metric="errorRate"} 3"#,
            r#"perch_canary_criterion_breach_ratio{namespace="n",canary_release="r",metric="latencyP99"} 0.25"#,
            r#"perch_canary_criterion_pass_ratio{namespace="n",canary_release="r",metric="latencyP99"} 1.0"#,
        ] {
            assert!(first.contains(line), "{line} is not in\n{first}");
        }
        let ended = StoryEvent { kind: EventKind::Warning, reason: "RolledBack", message: String::new() };
        metrics.show(&release("RolledBack", &["errorRate"]), &[ended]);
        let second = text(&metrics);
        assert!(!second.contains("Progressing") && !second.contains("latencyP99"), "{second}");
        assert!(
            second.contains(
                r#"perch_canary_ended_total{namespace="n",canary_release="r",outcome="RolledBack",reason="CriterionBreached"} 1"#
            ),
            "{second}"
        );
        metrics.forget("n", "r");
        let gone = text(&metrics);
        assert_eq!(gone.lines().filter(|l| !l.starts_with("perch_canary_ended")).count(), 0, "{gone}");
    }

    #[test]
    fn dashboards_and_alerts_ask_for_what_is_there() {
        let metrics = Metrics::default();
        metrics.show(&release("Progressing", &["errorRate"]), &[]);
        let ended = StoryEvent { kind: EventKind::Warning, reason: "RolledBack", message: String::new() };
        metrics.show(&release("RolledBack", &["errorRate"]), &[ended]);
        let shown = text(&metrics);
        let there: Vec<&str> = shown.lines().filter_map(|line| line.split('{').next()).collect();
        let name = regex::Regex::new("perch_canary_[a-z_]+").unwrap();
        for file in ["releases.json", "alerts.yaml", "alerts-test.yaml"] {
            let path = format!("{}/dashboards/{file}", env!("CARGO_MANIFEST_DIR"));
            let asked = std::fs::read_to_string(path).unwrap();
            assert!(name.find_iter(&asked).count() > 3, "{file}");
            for metric in name.find_iter(&asked) {
                assert!(there.contains(&metric.as_str()), "{file} asks for {}, which is not there", metric.as_str());
            }
        }
    }
}
