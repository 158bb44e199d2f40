//! What `perch operator` costs with many servers on a real API server: requests for each server,
//! writes at rest, memory, a restart, and the way from a change to the Deployment.
//!
//! First there is no node, so no pod runs and no server becomes ready: what is measured is what the
//! operator asks of the API server and what it takes itself. `PERCH_BENCH_SERVERS` says how many
//! servers (2,000); before them, what the policy webhook adds to a write is measured. Then
//! `PERCH_BENCH_PODS` of them (200) become Ready, on nodes that kwok plays. Prints a Markdown table.
//! `hack/bench.sh operator` sets up what it needs.

#[path = "../../tests/support/cluster/mod.rs"]
mod cluster;
#[path = "../one_machine/report.rs"]
mod report;

mod admission;
mod pods;
mod process;
mod requests;

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use cluster::{Cluster, Level};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::apps::v1::Deployment;
use kube::{
    Api, ResourceExt,
    api::{ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams},
    runtime::{WatchStreamExt, watcher},
};
use perch::api::{crds, mcp_server::McpServer};
use process::Operator;
use report::{Report, mib, ms, resident};
use requests::{Requests, between, is_write, requests};
use serde_json::json;

/// Nobody listens there: without pods nobody has to be asked.
const NOWHERE: &str = "http://127.0.0.1:9";
/// How long nothing changes.
const REST: Duration = Duration::from_secs(60);
/// Longest wait for all servers to be looked at.
const ARRIVAL: Duration = Duration::from_secs(600);
/// Changes whose way is timed.
const CHANGES: usize = 200;

fn main() {
    let count = std::env::var("PERCH_BENCH_SERVERS").map_or(2000, |n| n.parse().unwrap());
    let pods = std::env::var("PERCH_BENCH_PODS").map_or(200, |n| n.parse().unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let mut report = Report::default();
    if count > 0 {
        runtime.block_on(admission::measure(&mut report));
        runtime.block_on(measure(&mut report, count));
    }
    if pods > 0 {
        runtime.block_on(pods::measure(&mut report, pods));
    }
    report.print();
}

async fn connect(cluster: &Cluster) -> kube::Client {
    let kubeconfig = kube::config::Kubeconfig::read_from(cluster.kubeconfig()).unwrap();
    let options = kube::config::KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
    kube::Client::try_from(config).unwrap()
}

fn define(cluster: &Cluster) {
    for crd in crds::all() {
        let mut crd = serde_json::to_value(crd).unwrap();
        crd["apiVersion"] = "apiextensions.k8s.io/v1".into();
        crd["kind"] = "CustomResourceDefinition".into();
        cluster.ok_with(&["apply", "--server-side", "-f", "-"], &crd.to_string());
    }
    cluster.ok(&["wait", "crd", "--all", "--for=condition=Established", "--timeout=60s"]);
}

/// The server with this number.
fn declared(i: usize) -> McpServer {
    let spec = json!({
        "image": format!("registry.example/mcp:{i}"), "transport": {"type": "StreamableHttp", "port": 8000},
        "env": [{"name": "N", "value": "0"}],
    });
    McpServer::new(&format!("s{i}"), serde_json::from_value(spec).unwrap())
}

async fn measure(report: &mut Report, count: usize) {
    let cluster = Cluster::start(Level::ControlPlane);
    let client = connect(&cluster).await;
    define(&cluster);

    let log = cluster.dir().unwrap().join("operator.log");
    let operator = Operator::start(cluster.kubeconfig(), &log, NOWHERE, &[]);
    operator.reach("perch_operator_leading", 1.0);
    report.line("memory without servers", "-", mib(resident(operator.pid())));

    let servers: Api<McpServer> = Api::namespaced(client.clone(), "default");
    arrive(report, &client, &servers, &operator, count).await;
    rest(report, &client, &operator).await;
    change(report, &client, &servers, count).await;
    report.line(
        &format!("memory with {count} servers, after {CHANGES} changes"),
        "under 150 MiB",
        mib(resident(operator.pid())),
    );
    operator.stop();

    let operator = Operator::start(cluster.kubeconfig(), &log, NOWHERE, &[]);
    #[expect(clippy::cast_precision_loss, reason = "a figure of metrics")]
    operator.reach("perch_reconciles_total", count as f64);
    let time = operator.started.elapsed();
    report.line(
        &format!("start with {count} servers until each was looked at"),
        "under 10 s",
        format!("{:.1} s", time.as_secs_f64()),
    );
    let before = requests(&client).await;
    rest(report, &client, &operator).await;
    assert!(before.len() > 1, "the API server counts");
    report.line("memory after the restart", "under 150 MiB", mib(resident(operator.pid())));
    operator.stop();
}

/// Makes the servers while the operator works, until each has its status.
async fn arrive(report: &mut Report, client: &kube::Client, api: &Api<McpServer>, operator: &Operator, count: usize) {
    let (before, cpu) = (requests(client).await, operator.cpu());
    let started = Instant::now();
    let watched = {
        let api = api.clone();
        tokio::spawn(async move {
            let mut events = watcher(api, watcher::Config::default()).default_backoff().applied_objects().boxed();
            let mut seen = HashSet::new();
            while seen.len() < count {
                let server = events.try_next().await.unwrap().unwrap();
                if server.status.as_ref().and_then(|s| s.observed_generation) == server.metadata.generation {
                    seen.insert(server.name_any());
                }
            }
        })
    };
    stream::iter(0..count)
        .for_each_concurrent(32, |i| {
            let api = api.clone();
            async move {
                let server = declared(i);
                api.create(&PostParams::default(), &server).await.unwrap();
            }
        })
        .await;
    let created = started.elapsed();
    let watched = tokio::time::timeout(ARRIVAL, watched).await;
    watched.expect("not every server has a status of its generation: see operator.log").unwrap();
    let time = started.elapsed();
    // Events are told beside the work.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut made = between(&before, &requests(client).await);
    // Ours, not the operator's.
    made.remove(&("POST".to_owned(), "mcpservers".to_owned()));
    report.line(
        &format!("{count} servers created, 32 at a time, until the last had its status"),
        "-",
        format!("{:.1} s (created within {:.1} s)", time.as_secs_f64(), created.as_secs_f64()),
    );
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    let each = |n: u64| n as f64 / count as f64;
    // What is asked once, and not for each, says nothing here.
    let often = made.iter().filter(|(_, n)| each(**n) >= 0.05);
    let list: Vec<String> = often.map(|((verb, resource), n)| format!("{verb} {resource} {:.2}", each(*n))).collect();
    report.line(
        "requests for each server created",
        "-",
        format!("{:.2}: {}", each(made.values().sum()), list.join(", ")),
    );
    report.line(
        "the operator's processor time for each server created",
        "-",
        format!("{:.2} ms", ms(operator.cpu().saturating_sub(cpu)) / each(1).recip()),
    );
}

/// Counts what is written, and asked, while nothing changes.
async fn rest(report: &mut Report, client: &kube::Client, operator: &Operator) {
    let (before, cpu) = (requests(client).await, operator.cpu());
    tokio::time::sleep(REST).await;
    let seen = between(&before, &requests(client).await);
    let writes: Requests = seen.iter().filter(|((verb, _), _)| is_write(verb)).map(|(k, n)| (k.clone(), *n)).collect();
    report.line(
        "writes in a minute without changes, but for the Lease",
        "0",
        if writes.is_empty() { "0".to_owned() } else { format!("{}: {writes:?}", writes.values().sum::<u64>()) },
    );
    report.line(
        "reads and processor time in that minute",
        "-",
        format!(
            "{}; {:.0} ms",
            seen.values().sum::<u64>() - writes.values().sum::<u64>(),
            ms(operator.cpu().saturating_sub(cpu))
        ),
    );
}

/// Times the way from an acknowledged change of a server to the changed Deployment, as a watch sees
/// it, the API server's own part included.
async fn change(report: &mut Report, client: &kube::Client, api: &Api<McpServer>, count: usize) {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), "default");
    let version = deployments.list_metadata(&ListParams::default().limit(1)).await.unwrap().metadata.resource_version;
    let mut events = deployments.watch(&WatchParams::default(), &version.unwrap()).await.unwrap().boxed();
    let mut times = Vec::new();
    for i in 0..CHANGES {
        let name = format!("s{}", i * 7919 % count);
        let patch = json!({"spec": {"env": [{"name": "N", "value": (i + 1).to_string()}]}});
        api.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
        let acknowledged = Instant::now();
        loop {
            let event = tokio::time::timeout(cluster::PATIENCE, events.try_next()).await.unwrap().unwrap().unwrap();
            if let WatchEvent::Modified(deployment) = event
                && deployment.labels().get("perch.dev/server") == Some(&name)
            {
                times.push(acknowledged.elapsed());
                break;
            }
        }
    }
    times.sort();
    let at = |percent: usize| ms(times[(times.len() * percent / 100).min(times.len() - 1)]);
    report.line(
        "from a change of a server to its Deployment, one at a time",
        "99 of 100 under 50 ms beside the API server's time",
        format!("median {:.1} ms, 99 of 100 within {:.1} ms, the API server's time included", at(50), at(99)),
    );
}
