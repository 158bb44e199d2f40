//! 200 servers applied at once as processes: reconciles for each, and tasks left behind.

use std::{path::Path, time::Duration, time::Instant};

use futures::{StreamExt, stream};
use kube::{
    Api,
    api::{DeleteParams, ListParams, PostParams},
};
use perch::{
    api::{crds, mcp_server::McpServer},
    controllers::mcp_server,
    gateway::{self, DataPlane},
    local::ControlPlane,
    runtime::process::{Config, Ports, ProcessBackend},
};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::{Report, support::fixture};

pub async fn measure(report: &mut Report) {
    let mut counts = Vec::new();
    for servers in [50, 100, 200] {
        let dir = tempfile::tempdir().unwrap();
        let run = fleet(dir.path(), servers).await;
        let each = |n: u64| format!("{:.1}", f64::from(u32::try_from(n).unwrap()) / f64::from(servers));
        report.line(
            &format!("{servers} servers applied at once as processes"),
            "all Ready",
            format!("all Ready after {:.1} s", run.ready.as_secs_f64()),
        );
        counts.push(format!("{servers}: {} up, {} down", each(run.up), each(run.down)));
        report.line(
            &format!("tasks alive after {servers} servers came and went"),
            "as before",
            format!("{} before, {} after", run.before, run.after),
        );
    }
    report.line("reconciles for each server, to Ready and to its end", "the same at any number", counts.join("; "));
}

struct Run {
    ready: Duration,
    up: u64,
    down: u64,
    before: usize,
    after: usize,
}

async fn fleet(dir: &Path, servers: u32) -> Run {
    let control_plane = ControlPlane::open(dir, crds::all()).await.unwrap();
    let backend = std::sync::Arc::new(ProcessBackend::open(Config {
        instance: "bench".into(),
        state_dir: dir.join("processes"),
        launcher: env!("CARGO_BIN_EXE_perch").into(),
        search_path: std::env::var_os("PATH").unwrap(),
        environment: Vec::new(),
        installs: tokio::sync::Mutex::default(),
        ports: Ports::default(),
    }));
    let shutdown = CancellationToken::new();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    let context = mcp_server::Context::new(control_plane.client(), backend.clone(), url);
    let reconciles = context.metrics.clone();
    let parts = [
        tokio::spawn({
            let (client, backend, shutdown) = (control_plane.client(), backend.clone(), shutdown.clone());
            let config = gateway::Config::new([7; 32], gateway::access::Access::anonymous());
            DataPlane::new(config, client, backend, shutdown).unwrap().serve(listener)
        }),
        tokio::spawn(mcp_server::run(context, shutdown.clone())),
    ];
    let api: Api<McpServer> = Api::namespaced(control_plane.client(), "default");
    // One server comes and goes first, so that what is made once and kept is there.
    apply(&api, 1).await;
    gone(&api).await;
    let metrics = tokio::runtime::Handle::current().metrics();
    let (before, first) = (metrics.num_alive_tasks(), reconciles.reconciles());
    let started = Instant::now();
    apply(&api, servers).await;
    let ready = started.elapsed();
    let up = reconciles.reconciles() - first;
    gone(&api).await;
    let down = reconciles.reconciles() - first - up;
    // A connection that says nothing any more is closed when the time for a next request is over.
    let mut after = metrics.num_alive_tasks();
    for _ in 0..450 {
        if after <= before {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        after = metrics.num_alive_tasks();
    }
    shutdown.cancel();
    for part in parts {
        part.await.unwrap();
    }
    perch::runtime::Backend::shutdown(&*backend).await.unwrap();
    Run { ready, up, down, before, after }
}

async fn apply(api: &Api<McpServer>, servers: u32) {
    stream::iter(0..servers)
        .for_each_concurrent(32, |i| async move {
            let server = serde_json::from_value(json!({
                "apiVersion": "perch.dev/v1alpha1", "kind": "McpServer", "metadata": {"name": format!("s{i}")},
                "spec": {"command": [fixture(), "stdio"]},
            }));
            api.create(&PostParams::default(), &server.unwrap()).await.unwrap();
        })
        .await;
    until(api, |servers| {
        servers.iter().all(|s| {
            s.status.as_ref().is_some_and(|s| s.conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
        })
    })
    .await;
}

async fn gone(api: &Api<McpServer>) {
    api.delete_collection(&DeleteParams::default(), &ListParams::default()).await.unwrap();
    until(api, <[McpServer]>::is_empty).await;
}

async fn until(api: &Api<McpServer>, done: impl Fn(&[McpServer]) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(300);
    while !done(&api.list(&ListParams::default()).await.unwrap().items) {
        assert!(Instant::now() < deadline, "waited too long");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
