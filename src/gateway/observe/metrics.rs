//! Metrics for Prometheus, named by the semantic conventions of OpenTelemetry for MCP. Counting
//! takes no lock once a series exists, and the number of series is bounded.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use prometheus_client::{
    encoding::{DescriptorEncoder, NoLabelSet},
    metrics::MetricType,
    registry::Unit,
};

use super::{by_server::ByServer, outcome::Outcome};
use crate::names::ServerKey;

/// Upper edges of the buckets, in microseconds: those of the semantic conventions, and some below,
/// for fast tools.
const EDGES: [u64; 17] = [
    1_000,
    2_000,
    5_000,
    10_000,
    20_000,
    50_000,
    100_000,
    200_000,
    500_000,
    1_000_000,
    2_000_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    120_000_000,
    300_000_000,
];
/// Tools of one revision that have series of their own.
const MOST_TOOLS: usize = 64;
/// Revisions of one server that are told apart; the one that was not used for longest goes.
const MOST_REVISIONS: usize = 4;

/// Methods that are told apart; whatever else a client asks for is `other`.
const METHODS: [&str; 20] = [
    "tools/call",
    "tools/list",
    "initialize",
    "ping",
    "prompts/get",
    "prompts/list",
    "resources/list",
    "resources/read",
    "resources/subscribe",
    "resources/templates/list",
    "resources/unsubscribe",
    "completion/complete",
    "logging/setLevel",
    "server/discover",
    "subscriptions/listen",
    "tasks/get",
    "tasks/update",
    "tasks/cancel",
    "tasks/list",
    "tasks/result",
];
const TOOLS_CALL: &str = METHODS[0];
const OTHER: &str = "other";

/// A method as it stands in metrics.
pub fn method_label(method: &str) -> &'static str {
    METHODS.into_iter().find(|known| *known == method).unwrap_or(OTHER)
}

/// Durations of the operations of all servers.
#[derive(Default)]
pub struct Meters {
    by_server: ByServer<ServerMeter>,
    /// Held while a revision or a tool is added.
    adding: Mutex<()>,
    uses: AtomicU64,
}

#[derive(Debug)]
struct ServerMeter {
    edges: Arc<[u64]>,
    revisions: ArcSwap<Vec<Arc<RevisionMeter>>>,
}

impl ServerMeter {
    fn new(edges: Vec<u64>) -> Self {
        Self { edges: edges.into(), revisions: ArcSwap::default() }
    }
}

#[derive(Debug)]
struct RevisionMeter {
    revision: Box<str>,
    edges: Arc<[u64]>,
    /// When it was used last, as a count of uses of all.
    used: AtomicU64,
    /// By method; the last one is `other`.
    methods: [ByOutcome; METHODS.len() + 1],
    /// Calls of tools; `methods` has those of other tools.
    tools: ArcSwap<HashMap<Box<str>, Arc<ByOutcome>>>,
}

#[derive(Debug, Default)]
struct ByOutcome([OnceLock<Histogram>; Outcome::ALL.len()]);

#[derive(Debug)]
struct Histogram {
    /// One more than there are edges.
    buckets: Box<[AtomicU64]>,
    micros: AtomicU64,
}

impl Histogram {
    fn new(edges: &[u64]) -> Self {
        Self { buckets: (0..=edges.len()).map(|_| AtomicU64::new(0)).collect(), micros: AtomicU64::new(0) }
    }
}

impl RevisionMeter {
    fn new(revision: &str, edges: &Arc<[u64]>) -> Self {
        Self {
            revision: revision.into(),
            edges: Arc::clone(edges),
            used: AtomicU64::new(0),
            methods: std::array::from_fn(|_| ByOutcome::default()),
            tools: ArcSwap::default(),
        }
    }

    fn record(&self, into: &ByOutcome, outcome: Outcome, micros: u64) {
        let histogram = into.0[outcome.index()].get_or_init(|| Histogram::new(&self.edges));
        // A value on an edge is within it.
        let bucket = self.edges.partition_point(|edge| *edge < micros);
        histogram.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        histogram.micros.fetch_add(micros, Ordering::Relaxed);
    }
}

impl Meters {
    /// Makes sure that these latencies, in microseconds, are edges of a server's buckets. Series
    /// that lack one begin anew.
    pub fn edges(&self, server: &ServerKey, latencies: impl Iterator<Item = u64>) {
        let wanted: Vec<u64> = latencies.collect();
        let known = self.by_server.get(server);
        let has = |edges: &[u64]| wanted.iter().all(|edge| edges.contains(edge));
        if known.as_ref().map_or(wanted.is_empty(), |known| has(&known.edges)) {
            return;
        }
        let mut edges: Vec<u64> = EDGES.into_iter().chain(wanted).collect();
        edges.sort_unstable();
        edges.dedup();
        self.by_server.set(server, Arc::new(ServerMeter::new(edges)));
    }

    /// Forgets servers that are no more.
    pub fn retain(&self, is_there: impl Fn(&ServerKey) -> bool) {
        self.by_server.retain(is_there);
    }

    fn server(&self, server: &ServerKey) -> Arc<ServerMeter> {
        self.by_server.get_or_add(server, || ServerMeter::new(EDGES.to_vec()))
    }

    fn revision(&self, server: &ServerMeter, revision: &str) -> Arc<RevisionMeter> {
        let find = |all: &[Arc<RevisionMeter>]| all.iter().find(|meter| *meter.revision == *revision).cloned();
        if let Some(meter) = find(&server.revisions.load()) {
            return meter;
        }
        let _adding = self.adding.lock().expect("nobody panics while adding");
        let mut all = Vec::clone(&server.revisions.load());
        if let Some(meter) = find(&all) {
            return meter;
        }
        if all.len() >= MOST_REVISIONS {
            all.sort_by_key(|meter| meter.used.load(Ordering::Relaxed));
            all.remove(0);
        }
        let meter = Arc::new(RevisionMeter::new(revision, &server.edges));
        all.push(Arc::clone(&meter));
        server.revisions.store(Arc::new(all));
        meter
    }

    /// Records an operation. The revision is empty when none was reached.
    pub fn record(
        &self,
        server: &ServerKey,
        revision: &str,
        method: &str,
        tool: Option<&str>,
        outcome: Outcome,
        duration: Duration,
    ) {
        let server = self.server(server);
        let meter = self.revision(&server, revision);
        meter.used.store(self.uses.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        if let (TOOLS_CALL, Some(tool)) = (method, tool) {
            if let Some(series) = meter.tools.load().get(tool) {
                return meter.record(series, outcome, micros);
            }
            // A name that nothing answered to may be anything that a client made up.
            let exists = matches!(outcome, Outcome::Ok | Outcome::InputRequired) && tool != OTHER;
            if exists && meter.tools.load().len() < MOST_TOOLS {
                let _adding = self.adding.lock().expect("nobody panics while adding");
                let mut tools = HashMap::clone(&meter.tools.load());
                if tools.len() < MOST_TOOLS {
                    let series = Arc::clone(tools.entry(tool.into()).or_default());
                    meter.tools.store(Arc::new(tools));
                    return meter.record(&series, outcome, micros);
                }
            }
        }
        let place = METHODS.iter().position(|known| *known == method).unwrap_or(METHODS.len());
        meter.record(&meter.methods[place], outcome, micros);
    }

    /// Writes all series.
    pub fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut family = encoder.encode_descriptor(
            "mcp_server_operation_duration",
            "Time from a request to the end of its answer, by server, revision, method, tool and outcome",
            Some(&Unit::Seconds),
            MetricType::Histogram,
        )?;
        for (server, meter) in &**self.by_server.all() {
            let server = server.to_string();
            for meter in &**meter.revisions.load() {
                let methods = METHODS.into_iter().chain([OTHER]).zip(&meter.methods);
                let methods = methods.map(|(method, series)| {
                    let tool = if method == TOOLS_CALL { OTHER } else { "" };
                    (method, tool.to_owned(), series)
                });
                let tools = meter.tools.load();
                let tools = tools.iter().map(|(tool, series)| (TOOLS_CALL, tool.to_string(), &**series));
                for (method, tool, series) in methods.chain(tools) {
                    for outcome in Outcome::ALL {
                        let Some(histogram) = series.0[outcome.index()].get() else { continue };
                        let labels = [
                            ("server", server.as_str()),
                            ("revision", &*meter.revision),
                            ("method", method),
                            ("tool", tool.as_str()),
                            ("outcome", outcome.as_str()),
                        ];
                        write(&mut family.encode_family(&labels)?, histogram, &meter.edges)?;
                    }
                }
            }
        }
        Ok(())
    }
}

fn write(
    encoder: &mut prometheus_client::encoding::MetricEncoder<'_>,
    histogram: &Histogram,
    edges: &[u64],
) -> fmt::Result {
    #[expect(clippy::cast_precision_loss, reason = "seconds need no more than 52 bits")]
    let seconds = |micros: u64| micros as f64 / 1e6;
    let edges = edges.iter().map(|edge| seconds(*edge)).chain([f64::INFINITY]);
    let buckets: Vec<(f64, u64)> =
        edges.zip(&*histogram.buckets).map(|(edge, count)| (edge, count.load(Ordering::Relaxed))).collect();
    let count = buckets.iter().map(|(_, count)| count).sum();
    let sum = seconds(histogram.micros.load(Ordering::Relaxed));
    encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
}

impl fmt::Debug for Meters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Meters").field("servers", &self.by_server.all().len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::{collector::Collector, encoding::text::encode, registry::Registry};

    use super::*;

    #[derive(Debug)]
    struct All(Arc<Meters>);

    impl Collector for All {
        fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
            self.0.encode(&mut encoder)
        }
    }

    fn text(meters: &Arc<Meters>) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(All(Arc::clone(meters))));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        text
    }

    fn server() -> ServerKey {
        ServerKey::new("default", "a")
    }

    #[test]
    fn a_call_is_in_the_bucket_that_holds_it() {
        let meters = Arc::new(Meters::default());
        meters.edges(&server(), [150_000, 200_000].into_iter());
        for micros in [150_000, 150_001, 999_000_000] {
            meters.record(&server(), "a-1", "tools/call", Some("echo"), Outcome::Ok, Duration::from_micros(micros));
        }
        let text = text(&meters);
        let labels = r#"server="default/a",revision="a-1",method="tools/call",tool="echo",outcome="ok""#;
        for (edge, count) in [("0.1", 0), ("0.15", 1), ("0.2", 2), ("300.0", 2), ("+Inf", 3)] {
            let line = format!("mcp_server_operation_duration_seconds_bucket{{le=\"{edge}\",{labels}}} {count}\n");
            assert!(text.contains(&line), "{line}{text}");
        }
        assert!(text.contains(&format!("mcp_server_operation_duration_seconds_count{{{labels}}} 3\n")), "{text}");
    }

    #[test]
    fn names_that_clients_make_up_make_no_series() {
        let meters = Arc::new(Meters::default());
        let record = |method: &str, tool: &str, outcome| {
            meters.record(&server(), "a-1", method, Some(tool), outcome, Duration::ZERO);
        };
        for i in 0..1000 {
            record("tools/call", &format!("no-{i}"), Outcome::InvalidParams);
            record(&format!("no/{i}"), "", Outcome::Rejected);
            record("tools/call", &format!("tool-{i}"), Outcome::Ok);
        }
        record("tools/call", "tool-1", Outcome::ToolError);
        let text = text(&meters);
        let count = |part: &str| text.lines().filter(|l| l.contains("_count{") && l.contains(part)).count();
        assert_eq!((count("tool=\"tool-"), count("tool=\"no-"), count("method=\"no/")), (MOST_TOOLS + 1, 0, 0));
        assert!(text.contains("method=\"tools/call\",tool=\"other\",outcome=\"ok\"} 936\n"), "{text}");
        assert!(text.contains("tool=\"tool-1\",outcome=\"tool_error\"} 1\n"));
    }

    #[test]
    fn old_revisions_and_servers_are_forgotten() {
        let meters = Arc::new(Meters::default());
        for revision in ["a-1", "a-2", "a-3", "a-4", "a-1", "a-5"] {
            meters.record(&server(), revision, "ping", None, Outcome::Ok, Duration::ZERO);
        }
        let found = text(&meters);
        assert!(found.contains("a-1") && !found.contains("a-2") && found.contains("a-5"), "{found}");
        meters.retain(|server| server.name != "a");
        assert!(!text(&meters).contains("default/a"));
    }

    #[test]
    fn edges_that_are_there_change_nothing() {
        let meters = Arc::new(Meters::default());
        let record = || meters.record(&server(), "a-1", "ping", None, Outcome::Ok, Duration::ZERO);
        record();
        meters.edges(&server(), [200_000].into_iter());
        record();
        assert!(text(&meters).contains("outcome=\"ok\"} 2\n"));
        meters.edges(&server(), [123].into_iter());
        record();
        assert!(text(&meters).contains("outcome=\"ok\"} 1\n"), "other buckets begin anew");
    }
}
