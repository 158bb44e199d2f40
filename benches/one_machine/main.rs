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

use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::rt::TokioExecutor;
use kube::client::ConfigExt;
use report::{Report, mib, resident, spread};
use support::Perch;
use tower::BoxError;

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
    report.print();
}
