//! Servers up to Ready: kwok plays the nodes, and a stand-in for the gateway answers every probe.

use std::{collections::HashSet, net::SocketAddr, time::Instant};

use axum::{Json, Router, extract::Request, http::StatusCode, response::IntoResponse};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::events::v1::Event;
use kube::{
    Api, ResourceExt,
    api::{ListParams, PostParams},
    runtime::{WatchStreamExt, watcher},
};
use perch::api::mcp_server::McpServer;
use serde_json::{Value, json};

use crate::{
    ARRIVAL,
    cluster::{Cluster, Level},
    connect, declared, define,
    process::Operator,
    report::{Report, mib, ms, resident},
    requests::{Requests, between, requests},
    rest,
};

/// A gateway behind which every server answers.
async fn gateway() -> SocketAddr {
    let answer = |request: Request| async move {
        let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap_or_default();
        let message: Value = serde_json::from_slice(&body).unwrap_or_default();
        let result = match message["method"].as_str() {
            Some("initialize") => json!({
                "protocolVersion": message["params"]["protocolVersion"], "capabilities": {"tools": {}},
                "serverInfo": {"name": "stand-in", "version": "1"},
            }),
            Some("tools/list") => json!({"tools": [{"name": "t", "inputSchema": {"type": "object"}}]}),
            Some(_) if message["id"].is_null() => return StatusCode::ACCEPTED.into_response(),
            _ => return StatusCode::METHOD_NOT_ALLOWED.into_response(),
        };
        Json(json!({"jsonrpc": "2.0", "id": message["id"], "result": result})).into_response()
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await.unwrap() });
    address
}

/// Measures this many servers.
pub async fn measure(report: &mut Report, count: usize) {
    let cluster = Cluster::start_with(Level::Workloads, 4);
    let client = connect(&cluster).await;
    define(&cluster);
    let log = cluster.dir().unwrap().join("operator.log");
    let gateway = format!("http://{}", gateway().await);
    let operator = Operator::start(cluster.kubeconfig(), &log, &gateway, &[]);
    operator.reach("perch_operator_leading", 1.0);
    let api: Api<McpServer> = Api::namespaced(client.clone(), "default");
    let (before, cpu, started) = (requests(&client).await, operator.cpu(), Instant::now());
    let watched = {
        let api = api.clone();
        tokio::spawn(async move {
            let mut events = watcher(api, watcher::Config::default()).default_backoff().applied_objects().boxed();
            let mut seen = HashSet::new();
            while seen.len() < count {
                let server = events.try_next().await.unwrap().unwrap();
                if server.status.as_ref().and_then(|s| s.headline()).is_some_and(|c| c.status == "True") {
                    seen.insert(server.name_any());
                }
            }
        })
    };
    let create = |i| {
        let api = api.clone();
        async move { drop(api.create(&PostParams::default(), &declared(i)).await.unwrap()) }
    };
    stream::iter(0..count).for_each_concurrent(16, create).await;
    tokio::time::timeout(ARRIVAL, watched).await.expect("not every server is Ready: see operator.log").unwrap();
    let time = started.elapsed();
    // Events are told beside the work.
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    let made = between(&before, &requests(&client).await);
    let mut ours: Requests = made.into_iter().filter(|((verb, resource), _)| is_ours(verb, resource)).collect();
    let events: Api<Event> = Api::namespaced(client.clone(), "default");
    let events = events.list(&ListParams::default()).await.unwrap();
    let told = events.items.iter().filter(|e| e.reporting_controller.as_deref() == Some("perch-controller")).count();
    ours.insert(("POST".into(), "events".into()), told as u64);
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    let each = |n: u64| n as f64 / count as f64;
    let list: Vec<String> =
        ours.iter().map(|((verb, resource), n)| format!("{verb} {resource} {:.2}", each(*n))).collect();
    let last = format!("{count} servers with a pod each on played nodes");
    report.line(&format!("{last}, until the last was Ready"), "-", format!("{:.1} s", time.as_secs_f64()));
    report.line(
        "requests of the operator for each, from its creation to Ready",
        "-",
        format!("{:.2}: {}", each(ours.values().sum()), list.join(", ")),
    );
    report.line(
        "the operator's processor time for each",
        "-",
        format!("{:.2} ms", ms(operator.cpu().saturating_sub(cpu)) / each(1).recip()),
    );
    rest(report, &client, &operator).await;
    report.line(
        &format!("memory with {count} Ready servers, each asked time and again"),
        "-",
        mib(resident(operator.pid())),
    );
    operator.stop();
}

/// Whether only the operator, and none of the cluster's own controllers, asks this.
fn is_ours(verb: &str, resource: &str) -> bool {
    verb == "APPLY"
        || (resource.starts_with("mcpservers/") && verb != "GET")
        || resource.starts_with("canaryreleases")
        || resource == "controllerrevisions"
}
