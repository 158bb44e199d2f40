//! Weights of an HTTPRoute that follow a release: a real API server, the Gateway API's own definition, and just the
//! rights that the chart gives. The test runs the servers and plays Perch's gateways; who routes by the HTTPRoute is
//! not asked.

use std::{process::Command, sync::Arc};

use axum::response::IntoResponse;
use kube::config::{KubeConfigOptions, Kubeconfig};
use perch::{
    api::mcp_server::{McpServer, RunSpec, revision_of},
    canary::{Gateway, InFlight},
    controllers::{
        canary_release::{self, Clock, Measure, Metrics},
        handshake::GatewayAccess,
    },
    metrics::{Measured, Question, http_client},
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::{
    chart::{chart, helm_ok},
    cluster::{Cluster, Namespace, program},
    operator::{defined, get, server},
    rbac::install,
    wait,
};

const STABLE: &str = "mcp-a";

/// Gateways that take every routing at once, and have no calls.
struct Quiet;

#[async_trait::async_trait]
impl Measure for Quiet {
    async fn measure(&self, question: &Question<'_>) -> Measured {
        let epoch = question.release.status.as_ref().map(|status| status.routing.desired_epoch);
        Measured {
            gateways: vec![Gateway { name: "gateway".into(), epoch }],
            in_flight: InFlight { candidate: Some(0), stable: Some(0) },
            readings: Vec::new(),
        }
    }
}

/// What a gateway answers whose servers have one tool.
async fn tools(body: String) -> axum::response::Response {
    let message: Value = serde_json::from_str(&body).unwrap_or_default();
    let result = match message["method"].as_str() {
        Some("initialize") => {
            json!({"protocolVersion": message["params"]["protocolVersion"], "capabilities": {"tools": {}},
            "serverInfo": {"name": "a", "version": "1"}})
        }
        Some("tools/list") => json!({"tools": [{"name": "echo", "inputSchema": {"type": "object"}}]}),
        _ if message["id"].is_null() => return http::StatusCode::ACCEPTED.into_response(),
        _ => json!({}),
    };
    let answer = json!({"jsonrpc": "2.0", "id": message["id"], "result": result});
    ([(http::header::CONTENT_TYPE, "application/json")], answer.to_string()).into_response()
}

/// The controller of releases, with the rights of an account.
struct Controller {
    shutdown: CancellationToken,
    #[expect(dead_code, reason = "held for its drop")]
    runtime: tokio::runtime::Runtime,
}

impl Controller {
    fn start(cluster: &Cluster, account: &str, namespace: &str) -> Self {
        let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
        let mut kubeconfig = Kubeconfig::read_from(cluster.kubeconfig()).unwrap();
        kubeconfig.auth_infos[0].auth_info.as_mut().unwrap().impersonate = Some(account.to_owned());
        let namespace = Some(namespace.to_owned());
        let shutdown = CancellationToken::new();
        let stop = shutdown.clone();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let gateway = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
            tokio::spawn(async { axum::serve(listener, axum::Router::new().fallback(tools)).await.unwrap() });
            let context = canary_release::Context {
                client: kube::Client::try_from(config).unwrap(),
                gateway,
                gateway_access: GatewayAccess::default(),
                measure: Arc::new(Quiet),
                http: http_client().unwrap(),
                namespace,
                metrics: Metrics::default(),
                clock: Clock::default(),
            };
            tokio::spawn(canary_release::run(context, stop));
        });
        Self { shutdown, runtime }
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// Declares a revision of the server, and gives its name.
fn declare(home: &Namespace<'_>, version: u32) -> String {
    home.apply(&[server("a", &json!({"image": format!("example.invalid/x:{version}")}))]);
    let server: McpServer = serde_json::from_value(get(home, "mcpserver", "a")).unwrap();
    revision_of("a", &RunSpec::from(&server.spec)).0
}

/// Writes a status, as the controller of servers would.
fn runs(home: &Namespace<'_>, current: &str, candidate: &Value) {
    let status = json!({"status": {"currentRevision": current, "phase": "Ready", "candidate": candidate}});
    home.ok(&["patch", "mcpserver", "a", "--subresource=status", "--type=merge", "-p", &status.to_string()]);
}

fn status(home: &Namespace<'_>) -> Value {
    get(home, "canaryrelease", "a")["status"].take()
}

fn until_phase(home: &Namespace<'_>, phase: &str) -> Value {
    wait(&format!("the release to be {phase}"), || {
        let status = status(home);
        (status["phase"] == phase).then_some(status)
    })
}

/// Waits until the condition about the route has a reason, and gives its status and message.
fn until_told(home: &Namespace<'_>, reason: &str) -> (String, String) {
    wait(&format!("the route to be {reason}"), || {
        let status = status(home);
        let found = status["conditions"].as_array()?.iter().find(|c| c["type"] == "HttpRouteWeighted")?;
        let text = |name: &str| found[name].as_str().unwrap().to_owned();
        (found["reason"] == reason).then(|| (text("status"), text("message")))
    })
}

fn route(backends: &Value) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"name": "mcp", "labels": {"team": "edge"}},
        "spec": {"parentRefs": [{"name": "edge"}], "hostnames": ["mcp.example.com"], "rules": [
            {"matches": [{"path": {"type": "PathPrefix", "value": "/web"}}], "backendRefs": [{"name": "web", "port": 80}]},
            {"matches": [{"path": {"type": "PathPrefix", "value": "/mcp"}}],
             "filters": [{"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": [{"name": "x-team", "value": "edge"}]}}],
             "timeouts": {"request": "60s"}, "backendRefs": backends},
        ]},
    })
}

fn backend(service: &str, weight: u32) -> Value {
    json!({"name": service, "port": 3000, "weight": weight})
}

/// The weights of the route, stable first, and the rest of its spec.
fn seen(home: &Namespace<'_>) -> ([i64; 2], Value) {
    let mut spec = get(home, "httproute", "mcp")["spec"].take();
    let backends = spec["rules"][1]["backendRefs"].as_array_mut().unwrap();
    let weights = [0, 1].map(|i| backends[i].as_object_mut().unwrap().remove("weight").unwrap().as_i64().unwrap());
    (weights, spec)
}

fn until_weights(home: &Namespace<'_>, weights: [i64; 2]) -> Value {
    let mut last = [0; 2];
    let deadline = std::time::Instant::now() + crate::cluster::PATIENCE;
    while std::time::Instant::now() < deadline {
        let (found, rest) = seen(home);
        if found == weights {
            return rest;
        }
        last = found;
        std::thread::park_timeout(std::time::Duration::from_millis(50));
    }
    panic!("the weights are {last:?}, not {weights:?}: {}", status(home));
}

#[test]
fn weights_follow_a_promotion_a_rollback_and_a_release_that_is_deleted() {
    let cluster = defined();
    let home = cluster.namespace("routes", &json!({}));
    let [account, _] = install(&cluster, home.name(), &[]);
    let _controller = Controller::start(&cluster, &account, home.name());
    let one = declare(&home, 1);
    runs(&home, &one, &Value::Null);
    let release = json!({
        "apiVersion": "perch.dev/v1alpha1", "kind": "CanaryRelease", "metadata": {"name": "a"},
        "spec": {"targetRef": {"name": "a"}, "traffic": {"httpRoute": {"name": "mcp"}}, "drainTimeout": "1s", "stages": [
            {"name": "quarter", "percentage": 25, "duration": "1s", "approval": "Manual"},
            {"name": "all", "percentage": 100, "duration": "1s"},
        ]},
    });
    home.apply(std::slice::from_ref(&release));
    wait("the stable revision", || (status(&home)["stableRevision"] == one.as_str()).then_some(()));

    // Whatever is wrong with the route is told, and the release goes on.
    let two = declare(&home, 2);
    runs(&home, &one, &json!({"revision": two, "phase": "Ready"}));
    until_phase(&home, "AwaitingApproval");
    let (is, message) = until_told(&home, "HttpRouteNotPermitted");
    assert!(is == "False" && message.contains("httpRoutes.enabled"), "{message}");
    let chart = chart();
    let upgrade = ["upgrade", "perch", chart.to_str().unwrap(), "-n", home.name(), "--reuse-values"];
    helm_ok(Some(&cluster), &[upgrade.as_slice(), &["--set", "httpRoutes.enabled=true"]].concat());
    until_told(&home, "HttpRouteKindNotInstalled");
    let definition = program("httproutes.yaml");
    assert!(definition.is_file(), "httproutes.yaml: hack/cluster-tools.sh fetches it");
    cluster.ok(&["apply", "--server-side", "-f", definition.to_str().unwrap()]);
    cluster.ok(&[
        "wait",
        "crd",
        "httproutes.gateway.networking.k8s.io",
        "--for=condition=Established",
        "--timeout=60s",
    ]);
    until_told(&home, "HttpRouteNotFound");
    home.apply(&[route(&json!([backend(STABLE, 1)]))]);
    let (_, message) = until_told(&home, "BackendRefsMissing");
    let candidate = message.split_whitespace().find(|word| word.starts_with("mcp-a-candidate-"));
    let candidate = candidate.unwrap_or_else(|| panic!("{message}")).trim_end_matches(':').to_owned();
    let both = |more: &[Value]| {
        let backends = [&[backend(STABLE, 100), backend(&candidate, 0)], more].concat();
        route(&Value::Array(backends))
    };
    home.apply(&[both(&[backend("web", 1)])]);
    until_told(&home, "BackendRefsShared");
    assert_eq!(seen(&home).0, [100, 0], "what others get is not for Perch to change");
    assert_eq!(status(&home)["phase"], "AwaitingApproval", "the release does not depend on the route");

    // The weights are the stage's, and nothing else of the route is written.
    let wanted = both(&[]);
    let dry = ["apply", "--server-side", "--dry-run=server", "-o", "json", "-n", home.name(), "-f", "-"];
    let mut expected: Value = serde_json::from_str(&cluster.ok_with(&dry, &wanted.to_string())).unwrap();
    for backend in expected["spec"]["rules"][1]["backendRefs"].as_array_mut().unwrap() {
        backend.as_object_mut().unwrap().remove("weight");
    }
    home.apply(&[wanted]);
    assert_eq!(until_weights(&home, [75, 25]), expected["spec"]);
    let (is, message) = until_told(&home, "Weighted");
    assert!(is == "True" && message.contains("25% of the requests"), "{message}");
    assert_eq!(get(&home, "httproute", "mcp")["metadata"]["labels"], json!({"team": "edge"}));

    // Others change the route, be it the weights: these are put back, and the rest stays.
    let patch = json!([
        {"op": "add", "path": "/spec/hostnames/-", "value": "mcp.example.org"},
        {"op": "replace", "path": "/spec/rules/1/timeouts/request", "value": "30s"},
        {"op": "replace", "path": "/spec/rules/1/backendRefs/0/weight", "value": 100},
        {"op": "replace", "path": "/spec/rules/1/backendRefs/1/weight", "value": 0},
    ]);
    home.ok(&["patch", "httproute", "mcp", "--type=json", "-p", &patch.to_string()]);
    let rest = until_weights(&home, [75, 25]);
    assert_eq!(rest["hostnames"], json!(["mcp.example.com", "mcp.example.org"]));
    assert_eq!(rest["rules"][1]["timeouts"]["request"], "30s");

    // A promotion: the candidate's Service answers for everybody until the server itself runs the revision.
    let resumed = Command::new(env!("CARGO_BIN_EXE_perch"))
        .args(["canary", "resume", "a", "-n", home.name(), "--kubeconfig", cluster.kubeconfig().to_str().unwrap()])
        .output()
        .unwrap();
    assert!(resumed.status.success(), "{}", String::from_utf8_lossy(&resumed.stderr));
    let promoted = until_phase(&home, "Succeeded");
    assert_eq!(promoted["stableRevision"], two.as_str());
    assert_eq!(seen(&home).0, [0, 100]);
    runs(&home, &two, &json!({"revision": two, "phase": "Ready"}));
    assert_eq!(until_weights(&home, [100, 0]), rest);
    runs(&home, &two, &Value::Null);

    // A rollback.
    let three = declare(&home, 3);
    runs(&home, &two, &json!({"revision": three, "phase": "Ready"}));
    until_weights(&home, [75, 25]);
    let fails = json!({"revision": three, "phase": "Failed", "reason": "CrashLoopBackOff", "message": "no database"});
    runs(&home, &two, &fails);
    assert_eq!(until_weights(&home, [100, 0]), rest);
    until_phase(&home, "RolledBack");
    runs(&home, &two, &Value::Null);

    // A release that names another route gives the first one back.
    let five = declare(&home, 5);
    runs(&home, &two, &json!({"revision": five, "phase": "Ready"}));
    until_weights(&home, [75, 25]);
    wait("the route to be remembered", || (status(&home)["httpRoute"] == "mcp").then_some(()));
    let other = r#"{"spec": {"traffic": {"httpRoute": {"name": "other"}}}}"#;
    home.ok(&["patch", "canaryrelease", "a", "--type=merge", "-p", other]);
    assert_eq!(until_weights(&home, [100, 0]), rest);
    until_told(&home, "HttpRouteNotFound");
    home.ok(&["patch", "canaryrelease", "a", "--type=merge", "-p", &other.replace("other", "mcp")]);

    // A release that is deleted in the middle leaves nobody with the candidate.
    until_weights(&home, [75, 25]);
    home.ok(&["delete", "canaryrelease", "a"]);
    assert_eq!(until_weights(&home, [100, 0]), rest);

    // The story is told.
    let events = home.ok(&["get", "events.events.k8s.io", "-o", "json"]);
    let events: Value = serde_json::from_str(&events).unwrap();
    let told = |reason: &str| {
        let of = events["items"].as_array().unwrap().iter().find(|event| event["reason"] == reason);
        of.unwrap_or_else(|| panic!("no event {reason}"))["type"].clone()
    };
    assert_eq!(
        (told("HttpRouteNotFound"), told("BackendRefsMissing"), told("Weighted")),
        (json!("Warning"), json!("Warning"), json!("Normal"))
    );
}
