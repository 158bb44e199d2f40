//! What reconciles cost and how they end.

use std::time::Instant;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::Registry,
};

/// Upper edges of the duration buckets, in seconds.
const EDGES: [f64; 10] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Failed {
    category: &'static str,
}

/// Counters of the McpServer controller. Clones count together.
#[derive(Clone, Debug)]
pub struct Metrics {
    reconciles: Counter,
    failures: Family<Failed, Counter>,
    duration: Histogram,
}

impl Default for Metrics {
    fn default() -> Self {
        Self { reconciles: Counter::default(), failures: Family::default(), duration: Histogram::new(EDGES) }
    }
}

impl Metrics {
    /// Makes the counters visible.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("perch_reconciles", "Reconciles of McpServers", self.reconciles.clone());
        registry.register(
            "perch_reconcile_failures",
            "Reconciles of McpServers that are tried again, by category",
            self.failures.clone(),
        );
        registry.register(
            "perch_reconcile_duration_seconds",
            "Time from the start of a reconcile to its end",
            self.duration.clone(),
        );
    }

    /// Reconciles so far.
    pub fn reconciles(&self) -> u64 {
        self.reconciles.get()
    }

    /// Counts a reconcile; its time is taken when what this returns is dropped.
    pub(super) fn begin(&self) -> Timer<'_> {
        self.reconciles.inc();
        Timer { metrics: self, begun: Instant::now() }
    }

    /// Counts a reconcile that is tried again.
    pub(super) fn failed(&self, category: &'static str) {
        self.failures.get_or_create(&Failed { category }).inc();
    }
}

/// A reconcile under way.
pub(super) struct Timer<'a> {
    metrics: &'a Metrics,
    begun: Instant,
}

impl Drop for Timer<'_> {
    fn drop(&mut self) {
        self.metrics.duration.observe(self.begun.elapsed().as_secs_f64());
    }
}
