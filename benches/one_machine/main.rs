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
mod report;
mod start;

use report::{Report, mib, resident, spread};
use support::Perch;

/// A client for a perch that runs.
async fn client(perch: &Perch) -> kube::Client {
    let kubeconfig = kube::config::Kubeconfig::read_from(perch.dir.join("kubeconfig")).unwrap();
    let options = kube::config::KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
    kube::Client::try_from(config).unwrap()
}

fn main() {
    let only: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let wanted = |name: &str| only.is_empty() || only.iter().any(|o| o == name);
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
    report.print();
}
