//! What the policy webhook adds to a write: the same server declared in a namespace that it judges and
//! in one that it does not, in turns. Nothing is kept (`dryRun`), so neither pays for storage.

use std::{
    net::TcpListener,
    time::{Duration, Instant},
};

use kube::{Api, api::PostParams};
use perch::api::mcp_server::McpServer;
use serde_json::json;

use crate::{
    NOWHERE,
    cluster::{Cluster, Level, PATIENCE},
    connect, define,
    process::Operator,
    report::{Report, ms},
};

/// Writes in each namespace.
const WRITES: usize = 2000;
const CONFIGURATION: &str = "bench-policy";

/// A server that the rules of level high have much to say about, and nothing against.
fn declared() -> McpServer {
    serde_json::from_value(json!({
        "apiVersion": "perch.dev/v1alpha1", "kind": "McpServer",
        "metadata": {"name": "a"},
        "spec": {
            "image": format!("registry.example.com/x:1@sha256:{}", "a".repeat(64)),
            "env": (0..8).map(|i| json!({"name": format!("V{i}"), "value": "x"})).collect::<Vec<_>>(),
            "governance": {"owner": "team-a", "level": "High"},
        },
    }))
    .unwrap()
}

/// What the API server is told about the webhook.
fn configuration(port: u16) -> String {
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": CONFIGURATION},
        "webhooks": [{
            "name": "policy.perch.dev", "admissionReviewVersions": ["v1"], "sideEffects": "None",
            "failurePolicy": "Fail", "timeoutSeconds": 5,
            "clientConfig": {"url": format!("https://localhost:{port}/validate")},
            "rules": [{
                "apiGroups": ["perch.dev"], "apiVersions": ["*"], "operations": ["CREATE", "UPDATE"],
                "resources": ["mcpservers"], "scope": "Namespaced",
            }],
            "namespaceSelector": {"matchLabels": {"perch.dev/policy-mode": "warn"}},
        }],
    })
    .to_string()
}

/// Measures it.
pub async fn measure(report: &mut Report) {
    let cluster = Cluster::start(Level::ControlPlane);
    let client = connect(&cluster).await;
    define(&cluster);
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    for namespace in ["judged", "free"] {
        cluster.ok(&["create", "namespace", namespace]);
    }
    cluster.ok(&["label", "namespace", "judged", "perch.dev/policy-mode=warn", "perch.dev/policy-level=high"]);
    cluster.ok(&["-n", "default", "create", "secret", "generic", "perch-webhook-tls"]);
    cluster.ok_with(&["apply", "-f", "-"], &configuration(port));
    let address = format!("127.0.0.1:{port}");
    let webhook = [
        "--policies",
        "--webhook-addr",
        &address,
        "--webhook-configuration",
        CONFIGURATION,
        "--webhook-host",
        "localhost",
    ];
    let log = cluster.dir().unwrap().join("operator.log");
    let operator = Operator::start(cluster.kubeconfig(), &log, NOWHERE, &webhook);

    let dry = PostParams { dry_run: true, ..PostParams::default() };
    let [judged, free] = ["judged", "free"].map(|namespace| Api::<McpServer>::namespaced(client.clone(), namespace));
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = judged.create(&dry, &declared()).await {
        assert!(Instant::now() < deadline, "the webhook does not answer: {error}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for _ in 0..WRITES {
        for (api, times) in [(&judged, &mut with), (&free, &mut without)] {
            let begun = Instant::now();
            api.create(&dry, &declared()).await.unwrap();
            times.push(begun.elapsed());
        }
    }
    operator.stop();
    let at = |times: &mut Vec<Duration>, percent: usize| {
        times.sort();
        ms(times[times.len() * percent / 100])
    };
    let figures = |times: &mut Vec<Duration>| (at(times, 50), at(times, 99));
    let ((half, most), (half_without, most_without)) = (figures(&mut with), figures(&mut without));
    report.line(
        &format!("a write that the policies judge, of {WRITES}, and one that they do not"),
        "99 of 100 less than 5 ms more",
        format!(
            "median {half:.1} and {half_without:.1} ms, 99 of 100 within {most:.1} and {most_without:.1} ms: {:.1} ms more",
            most - most_without
        ),
    );
}
