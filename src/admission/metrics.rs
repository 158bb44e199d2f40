//! What was decided, and which policies count.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::policy::{Decision, Policies};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Decided {
    decision: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Bundles {
    state: &'static str,
}

/// Counters of admission.
#[derive(Debug, Default)]
pub struct Metrics {
    decisions: Family<Decided, Counter>,
    bundles: Family<Bundles, Gauge>,
}

impl Metrics {
    /// Makes them visible.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("perch_policy_decisions", "Writes that were judged, by decision", self.decisions.clone());
        registry.register("perch_policy_bundles", "Policy bundles of users, by state", self.bundles.clone());
    }

    /// Counts a decision.
    pub fn decided(&self, decision: &Decision) {
        let word = match (decision.denied.is_empty(), decision.warnings.is_empty()) {
            (false, _) => "deny",
            (true, false) => "warn",
            (true, true) => "admit",
        };
        self.decisions.get_or_create(&Decided { decision: word }).inc();
    }

    /// Says how many bundles count.
    pub fn installed(&self, policies: &Policies) {
        let set = |state, n: usize| {
            self.bundles.get_or_create(&Bundles { state }).set(i64::try_from(n).unwrap_or(i64::MAX));
        };
        set("in_force", policies.bundles());
        set("refused", policies.refused().len());
    }
}
