//! What the controller of releases costs with many of them in progress: time of a core and memory.
//!
//! Controller and control plane are real and in this process, the gateways are not: their counters
//! come from a function. `PERCH_BENCH_RELEASES` says how many releases (2,000), and
//! `PERCH_BENCH_SECONDS` for how long they are watched (180). Every release stands in a stage of days
//! with three criteria and is decided every ten seconds. Prints a Markdown table.

#[path = "../one_machine/report.rs"]
mod report;

use std::{sync::Arc, time::Duration};

use futures::{StreamExt, stream};
use jiff::Timestamp;
use kube::{Api, api::PostParams};
use perch::{
    api::{
        canary_release::{CELLS, CanaryRelease, CanaryReleaseStatus, Counts},
        crds,
        mcp_server::{McpServer, RunSpec, revision_of},
    },
    canary::{Gateway, InFlight, Reading, Series},
    controllers::{
        canary_release::{self, Clock, Measure, Metrics},
        handshake::GatewayAccess,
    },
    local::ControlPlane,
    metrics::{Measured, Question, http_client},
};
use report::{Report, mib, resident};
use serde_json::json;
use tokio_util::sync::CancellationToken;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |n| n.parse().expect("a number"))
}

/// Gateways that answer at once: ten good calls a second on either side.
struct Steady(Timestamp);

#[async_trait::async_trait]
impl Measure for Steady {
    async fn measure(&self, question: &Question<'_>) -> Measured {
        let calls = Timestamp::now().duration_since(self.0).as_secs();
        let series = |revision: &str| Series {
            source: "gateway".into(),
            revision: revision.into(),
            since: None,
            counts: Counts { bad: [0; CELLS], total: [calls; CELLS] },
            users: Some(0xffff),
        };
        let reading = Reading::Counters(vec![series(question.stable), series(question.candidate)]);
        let epoch = question.release.status.as_ref().map(|status| status.routing.desired_epoch);
        Measured {
            gateways: vec![Gateway { name: "gateway".into(), epoch }],
            in_flight: InFlight { candidate: Some(0), stable: Some(0) },
            readings: ["errorRate", "latencyP99", "schemaErrors"].map(|m| (m.to_owned(), reading.clone())).into(),
        }
    }
}

/// Time of a core that the threads of this process took so far, in ticks: all, and of those that write.
fn ticks() -> (u64, u64) {
    let (mut all, mut store) = (0, 0);
    for task in std::fs::read_dir("/proc/self/task").expect("Linux").flatten() {
        let Ok(stat) = std::fs::read_to_string(task.path().join("stat")) else { continue };
        let Some((name, fields)) = stat.rsplit_once(')') else { continue };
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let used: u64 = fields[11..13].iter().map(|n| n.parse::<u64>().unwrap_or(0)).sum();
        all += used;
        if name.contains("perch-store") {
            store += used;
        }
    }
    (all, store)
}

async fn fill(plane: &ControlPlane, count: u64) {
    let client = plane.client();
    let (servers, releases): (Api<McpServer>, Api<CanaryRelease>) =
        (Api::namespaced(client.clone(), "default"), Api::namespaced(client, "default"));
    stream::iter(0..count)
        .for_each_concurrent(64, |i| {
            let (servers, releases) = (servers.clone(), releases.clone());
            async move {
                let name = format!("server-{i}");
                let server = |image: &str| -> McpServer {
                    let object = json!({"apiVersion": "perch.dev/v1alpha1", "kind": "McpServer",
                        "metadata": {"name": name}, "spec": {"image": image}});
                    serde_json::from_value(object).unwrap()
                };
                let made = servers.create(&PostParams::default(), &server("server:2")).await.unwrap();
                let candidate = revision_of(&name, &RunSpec::from(&made.spec)).0;
                let stable = format!("{name}-0123456789");
                let status = json!({"phase": "Ready", "currentRevision": stable,
                    "candidate": {"revision": candidate, "phase": "Ready", "replicas": 1, "readyReplicas": 1}});
                let made = McpServer { status: serde_json::from_value(status).unwrap(), ..made };
                servers.replace_status(&name, &PostParams::default(), &made).await.unwrap();
                let stages = json!([{"name": "pilot", "percentage": 10, "duration": "72h", "successCriteria": [
                    {"metric": "errorRate", "threshold": "< 0.5%"}, {"metric": "latencyP99", "threshold": "< 300ms"}]}]);
                let release = json!({"apiVersion": "perch.dev/v1alpha1", "kind": "CanaryRelease",
                    "metadata": {"name": name}, "spec": {"targetRef": {"name": name}, "stages": stages}});
                let made =
                    releases.create(&PostParams::default(), &serde_json::from_value(release).unwrap()).await.unwrap();
                let status = json!({"phase": "Progressing", "releaseId": format!("{candidate}.1"), "releases": 1,
                    "stableRevision": stable, "candidateRevision": candidate, "startedAt": Timestamp::now(),
                    "stage": {"index": 0, "name": "pilot", "attempt": 1, "percentage": 10, "enteredAt": Timestamp::now(),
                        "activeSeconds": 0},
                    "routing": {"desiredEpoch": 1, "ackedEpoch": 1, "percentage": 10, "opened": true}});
                let made = CanaryRelease { status: serde_json::from_value(status).unwrap(), ..made };
                releases.replace_status(&name, &PostParams::default(), &made).await.unwrap();
            }
        })
        .await;
}

#[tokio::main]
async fn main() {
    let (count, seconds) = (number("PERCH_BENCH_RELEASES", 2000), number("PERCH_BENCH_SECONDS", 180));
    let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
    let dir = tempfile::tempdir().unwrap();
    let plane = ControlPlane::open(dir.path(), crds::all()).await.unwrap();
    fill(&plane, count).await;
    let mut report = Report::default();
    let without = resident(std::process::id());
    let context = canary_release::Context {
        client: plane.client(),
        gateway: "http://127.0.0.1:9".parse().unwrap(),
        gateway_access: GatewayAccess::default(),
        measure: Arc::new(Steady(Timestamp::now())),
        http: http_client().unwrap(),
        namespace: None,
        metrics: Metrics::default(),
        clock: Clock::default(),
    };
    let shutdown = CancellationToken::new();
    let controller = tokio::spawn(canary_release::run(context, shutdown.clone()));
    // Every release was decided at least twice before it is watched.
    tokio::time::sleep(Duration::from_secs(30)).await;
    let releases: Api<CanaryRelease> = Api::namespaced(plane.client(), "default");
    // Of all releases together: time that counts for their stages, and time until they were written last.
    let told = async || -> (i64, i64) {
        let all = releases.list(&kube::api::ListParams::default()).await.unwrap();
        let statuses = all.items.iter().filter_map(|release| release.status.as_ref());
        let of = |status: &CanaryReleaseStatus| -> Option<(i64, i64)> {
            Some((status.stage.as_ref()?.active_seconds, status.last_tick.as_ref()?.0.as_second()))
        };
        statuses.filter_map(of).fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    };
    let (before, (counted, written)) = (ticks(), told().await);
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let (after, held) = (ticks(), resident(std::process::id()));
    let (counted, written) = {
        let (counted_later, written_later) = told().await;
        (counted_later - counted, written_later - written)
    };
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    let percent = |ticks: u64| format!("{:.1}% of a core", ticks as f64 / seconds as f64);
    let (all, store) = (after.0 - before.0, after.1 - before.1);
    report.line(&format!("{count} releases in progress, controller"), "under 5% of a core", percent(all - store));
    report.line(&format!("{count} releases in progress, writes to the store"), "-", percent(store));
    report.line("memory that the controller adds", "under 100 MiB", mib(held.saturating_sub(without)));
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    let kept = counted as f64 / written as f64 * 100.0;
    report.line("time of the stages that was counted", "all of it", format!("{kept:.0}%"));
    shutdown.cancel();
    controller.await.unwrap();
    report.print();
}
