//! A real Prometheus: what it scrapes is what is measured, and the dashboard asks it nothing that
//! it does not understand.

use std::{
    fmt::Write,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
};

use axum::{Router, routing::get};
use perch::{
    api::canary_release::CanaryRelease,
    canary::{Plan, Reading},
    metrics::{GatewayAddresses, Providers, Question, http_client},
    names::ServerKey,
};
use serde_json::{Value, json};

use crate::support::wait;

/// Folder of prometheus and promtool.
fn programs() -> String {
    if let Ok(folder) = std::env::var("PERCH_TEST_PROMETHEUS") {
        return folder;
    }
    let output = Command::new("hack/prometheus.sh").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

struct Prometheus {
    child: Child,
    url: String,
    _dir: tempfile::TempDir,
}

impl Prometheus {
    /// Starts one that scrapes an address each second.
    fn start(target: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("prometheus.yml");
        std::fs::write(
            &config,
            format!("global: {{scrape_interval: 1s}}\nscrape_configs: [{{job_name: t, static_configs: [{{targets: [\"{target}\"]}}]}}]\n"),
        )
        .unwrap();
        // Prometheus does not say which port it took, so it is told one that was free.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let child = Command::new(format!("{}/prometheus", programs()))
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, url: format!("http://127.0.0.1:{port}"), _dir: dir }
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A program with metrics. Bad and all calls of the two revisions, from two instances each.
fn target(runtime: &tokio::runtime::Runtime, counts: Arc<Mutex<[(i64, i64); 2]>>) -> String {
    let metrics = move || {
        let mut text = String::new();
        for (revision, (bad, total)) in ["srv-1", "srv-2"].iter().zip(*counts.lock().unwrap()) {
            for (instance, share) in [("a", 1), ("b", 3)] {
                let labels = format!("{{revision=\"{revision}\",pod=\"{instance}\"}}");
                writeln!(text, "bad_total{labels} {}", bad * share).unwrap();
                writeln!(text, "calls_total{labels} {}", total * share).unwrap();
            }
        }
        text
    };
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let app = Router::new().route("/metrics", get(move || std::future::ready(metrics())));
        tokio::spawn(async move { axum::serve(listener, app).await });
        address
    })
}

struct World {
    runtime: tokio::runtime::Runtime,
    providers: Providers,
    prometheus: Prometheus,
    counts: Arc<Mutex<[(i64, i64); 2]>>,
}

impl World {
    fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let counts = Arc::new(Mutex::new([(1, 100), (5, 50)]));
        let prometheus = Prometheus::start(&target(&runtime, Arc::clone(&counts)));
        let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
        let providers = Providers::new(GatewayAddresses::Fixed(Vec::new()), http_client().unwrap());
        Self { runtime, providers, prometheus, counts }
    }

    fn read(&self, bad: &str, total: &str) -> Reading {
        let spec = json!({"targetRef": {"name": "srv"},
            "metrics": [{"name": "mine", "provider": "Prometheus", "address": self.prometheus.url, "bad": bad, "total": total}],
            "stages": [{"name": "one", "percentage": 10, "duration": "1h", "successCriteria": [{"metric": "mine", "threshold": "< 5%"}]}]});
        let mut release = CanaryRelease::new("srv", serde_json::from_value(spec).unwrap());
        let status = json!({"stage": {"index": 0, "name": "one", "attempt": 1, "activeSeconds": 0, "percentage": 10}});
        release.status = Some(serde_json::from_value(status).unwrap());
        let plan = Plan::new(&release.spec).unwrap();
        let server = ServerKey::new("default", "srv");
        let question =
            Question { server: &server, release: &release, plan: &plan, stable: "srv-1", candidate: "srv-2" };
        self.runtime.block_on(self.providers.measure(&question)).readings.swap_remove(0).1
    }

    /// Bad and all events of the candidate and of the stable revision, once they are what is waited for.
    fn until(&self, bad: &str, total: &str, expected: &[(i64, i64)]) {
        wait(&format!("{expected:?}"), || {
            let Reading::Counters(series) = self.read(bad, total) else { return None };
            let found: Vec<_> = series.iter().map(|s| (s.counts.bad[0], s.counts.total[0])).collect();
            (found == expected).then_some(())
        });
    }
}

const BAD: &str = "sum(bad_total{revision=\"{{revision}}\"})";
const TOTAL: &str = "sum(calls_total{revision=\"{{revision}}\"})";

#[test]
fn what_prometheus_counts_is_measured() {
    let mut world = World::start();
    world.until(BAD, TOTAL, &[(20, 200), (4, 400)]);
    *world.counts.lock().unwrap() = [(1, 110), (6, 70)];
    world.until(BAD, TOTAL, &[(24, 280), (4, 440)]);

    for (bad, total, why) in [
        ("bad_total{revision=\"{{revision}}\"}", TOTAL, "2 series"),
        ("sum(nothing_total)", TOTAL, "no series"),
        ("vector(0) / vector(0)", TOTAL, "NaN"),
        ("vector(1) / vector(0)", TOTAL, "inf"),
        ("bad_total[1m]", TOTAL, "matrix"),
        (TOTAL, BAD, "bad events of"),
    ] {
        let read = world.read(bad, total);
        assert!(matches!(&read, Reading::NoData(said) if said.contains(why)), "{bad}: {read:?}");
    }
    // A scalar is one number too, and what is missing can be said to be none.
    world.until("sum(nothing_total) or vector(0)", "scalar(sum(calls_total))", &[(0, 720), (0, 720)]);
    let read = world.read("sum(", TOTAL);
    assert!(matches!(&read, Reading::Unknown(said) if said.contains("parse error")), "{read:?}");

    world.prometheus.child.kill().unwrap();
    world.prometheus.child.wait().unwrap();
    let read = world.read(BAD, TOTAL);
    assert!(matches!(&read, Reading::Unknown(said) if said.contains("cannot be reached")), "{read:?}");
}

#[test]
fn the_dashboard_and_the_alerts_are_understood() {
    let promtool = format!("{}/promtool", programs());
    for args in [["check", "rules", "alerts.yaml"], ["test", "rules", "alerts-test.yaml"]] {
        let output = Command::new(&promtool).args(args).current_dir("dashboards").output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let dashboard: Value = serde_json::from_str(&std::fs::read_to_string("dashboards/releases.json").unwrap()).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter().flat_map(|p| p["targets"].as_array().unwrap());
    let annotations = dashboard["annotations"]["list"].as_array().unwrap().iter();
    let queries: Vec<String> = panels
        .chain(annotations)
        .map(|t| t["expr"].as_str().unwrap().replace("$namespace", ".*").replace("$release", ".*"))
        .collect();
    assert!(queries.len() > 10);
    // promtool checks a query as part of a rule, without a server.
    let mut rules = "groups:\n- name: dashboard\n  rules:\n".to_owned();
    for (index, query) in queries.iter().enumerate() {
        writeln!(rules, "  - {{record: \"q{index}\", expr: {}}}", json!(query)).unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("rules.yaml");
    std::fs::write(&file, rules).unwrap();
    let output = Command::new(&promtool).args(["check", "rules"]).arg(&file).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
