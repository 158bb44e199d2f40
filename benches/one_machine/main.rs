//! What one machine costs: start of `perch up`, memory at rest, the way from apply to Ready, the
//! embedded API with 10,000 objects, and 200 servers at once.
//!
//! Prints a Markdown table. `hack/bench.sh` sets up what it needs and puts it into
//! docs/benchmarks.md. Wall times differ between machines; the ratios and counts should not.

#[path = "../../tests/support/mod.rs"]
mod support;

mod api;
mod fleet;
mod ready;
mod start;

use std::time::Duration;

use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::rt::TokioExecutor;
use kube::client::ConfigExt;
use support::Perch;
use tower::BoxError;

/// The lines of the table.
#[derive(Default)]
struct Report(Vec<[String; 3]>);

impl Report {
    /// Adds a line, and shows it at once.
    fn line(&mut self, what: &str, goal: &str, seen: String) {
        eprintln!("{what}: {seen} (goal: {goal})");
        self.0.push([what.into(), goal.into(), seen]);
    }
}

/// Minimum, median and maximum of some durations, in milliseconds.
fn spread(mut times: Vec<Duration>) -> String {
    times.sort();
    let ms = |time: Duration| time.as_secs_f64() * 1000.0;
    let (first, last) = (times[0], times[times.len() - 1]);
    format!("median {:.1} ms ({:.1} to {:.1}, {} runs)", ms(times[times.len() / 2]), ms(first), ms(last), times.len())
}

/// Resident memory of a process in KiB.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Megabytes of 2^20 bytes, from KiB.
fn mib(kib: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    let mib = kib as f64 / 1024.0;
    format!("{mib:.1} MiB")
}

/// A client for a perch that runs.
async fn client(perch: &Perch) -> kube::Client {
    kube::Client::try_from(config(perch).await).unwrap()
}

/// A client with one connection for all its requests (HTTP/2), as kubectl and clients in Go have.
async fn multiplexed(perch: &Perch) -> kube::Client {
    let config = config(perch).await;
    let tls = config.rustls_client_config().unwrap();
    let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_only().enable_http2().build();
    let http = hyper_util::client::legacy::Client::builder(TokioExecutor::new()).http2_only(true).build(connector);
    let service = tower::ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer().unwrap())
        .map_err(BoxError::from)
        .service(http);
    kube::Client::new(service, "default")
}

async fn config(perch: &Perch) -> kube::Config {
    let kubeconfig = kube::config::Kubeconfig::read_from(perch.dir.join("kubeconfig")).unwrap();
    let options = kube::config::KubeConfigOptions::default();
    kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap()
}

fn main() {
    let only: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let wanted = |name: &str| only.is_empty() || only.iter().any(|o| o == name);
    tokio_rustls::rustls::crypto::ring::default_provider().install_default().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let mut report = Report::default();
    if wanted("start") {
        start::measure(&mut report);
    }
    if wanted("ready") {
        ready::measure(&mut report);
    }
    if wanted("api") {
        runtime.block_on(api::measure(&mut report));
    }
    if wanted("fleet") {
        runtime.block_on(fleet::measure(&mut report));
    }
    println!("| What | Goal | Seen |\n|---|---|---|");
    for [what, goal, seen] in &report.0 {
        println!("| {what} | {goal} | {seen} |");
    }
}
