//! A gateway with a server that runs in two revisions, and clients of either era.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};

use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use perch::{
    api::{
        canary_release::CanaryRelease,
        crds,
        gateway_report::{CountedSignal, GatewayReport, REPORT_PATH, RevisionReport},
        mcp_server::{McpServer, NetworkTier, SeccompProfile},
    },
    gateway::{
        AuditConfig, Config, DataPlane,
        access::{Access, Source},
    },
    local::ControlPlane,
    names::{Revision, ServerKey},
    runtime::{
        Backend, Workload,
        process::{self, ProcessBackend},
        workload::{Declared, EnvEntry, EnvValue, Limits, Privileges, Program, Wire},
    },
    telemetry::admin,
};
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::support::{PATIENCE, fixture};

pub const STABLE: &str = "a-1";
pub const CANDIDATE: &str = "a-2";
pub const MODERN: &str = "2026-07-28";

/// A gateway with a server that runs in two revisions.
pub struct Scene {
    pub dir: tempfile::TempDir,
    pub backend: Arc<ProcessBackend>,
    pub releases: Api<CanaryRelease>,
    pub servers: Api<McpServer>,
    pub gateway: String,
    pub admin: String,
    pub epoch: i64,
    stop: CancellationToken,
}

pub fn key() -> ServerKey {
    ServerKey::new("default", "a")
}

pub fn workload(key: &ServerKey, revision: &str, wire: &Wire) -> Workload {
    let transport = if matches!(wire, Wire::Stdio(_)) { "stdio" } else { "http" };
    let variable = |name: &str, value: &str| EnvEntry { name: name.into(), value: EnvValue::Plain(value.into()) };
    Workload {
        server: key.clone(),
        uid: "u".into(),
        revision: Revision(revision.into()),
        program: Program::Command {
            command: vec![fixture()],
            args: vec![transport.into(), "--name".into(), revision.into()],
        },
        wire: wire.clone(),
        replicas: 1,
        env: vec![variable("REVISION", revision)],
        credentials: Vec::new(),
        volumes: Vec::new(),
        limits: Limits { cpu_millis: 1000, memory_bytes: 512 << 20, pids: 128 },
        security: Privileges {
            user: 10001,
            read_only_root: true,
            add_capabilities: Vec::new(),
            seccomp: SeccompProfile::RuntimeDefault,
        },
        network: NetworkTier::Internal,
        stop_grace: Duration::from_secs(1),
        declared: Declared::default(),
    }
}

impl Scene {
    pub async fn http() -> Self {
        let wire = Wire::Http { port: None, path: "/mcp".into() };
        Self::new(wire, json!({"type": "StreamableHttp"})).await
    }

    pub async fn new(wire: Wire, transport: Value) -> Self {
        Self::with(wire, transport, None).await
    }

    /// With a file of access, if there is one.
    pub async fn with(wire: Wire, transport: Value, access: Option<Value>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let access = access.map_or_else(Access::anonymous, |access| {
            let path = dir.path().join("access.yaml");
            std::fs::write(&path, access.to_string()).unwrap();
            let resource = Some("http://127.0.0.1".to_owned());
            Access::load(Source { path, resource, operator_key: None, client: None }).unwrap()
        });
        let config = process::Config {
            instance: format!("release-{}", dir.path().display()),
            state_dir: dir.path().join("processes"),
            launcher: env!("CARGO_BIN_EXE_perch").into(),
            search_path: std::env::var_os("PATH").unwrap(),
            environment: vec![("PATH".into(), std::env::var("PATH").unwrap())],
            installs: tokio::sync::Mutex::default(),
            ports: process::Ports::default(),
        };
        let backend = Arc::new(tokio::task::spawn_blocking(|| ProcessBackend::open(config)).await.unwrap());
        for (key, revision) in [(key(), STABLE), (key().candidate(), CANDIDATE)] {
            backend.apply(&workload(&key, revision, &wire)).await.unwrap();
        }
        until("both revisions to run", || async {
            let runs = |key: &ServerKey| !backend.endpoints(key).is_empty();
            (runs(&key()) && runs(&key().candidate())).then_some(())
        })
        .await;

        let control = ControlPlane::open(&dir.path().join("control"), crds::all()).await.unwrap();
        let client = control.client();
        let servers: Api<McpServer> = Api::namespaced(client.clone(), "default");
        let server = json!({"apiVersion": "perch.dev/v1alpha1", "kind": "McpServer", "metadata": {"name": "a"},
            "spec": {"command": [fixture()], "transport": transport}});
        servers.create(&PostParams::default(), &serde_json::from_value(server).unwrap()).await.unwrap();
        let releases: Api<CanaryRelease> = Api::namespaced(client.clone(), "default");
        let release = json!({"apiVersion": "perch.dev/v1alpha1", "kind": "CanaryRelease", "metadata": {"name": "a"},
        "spec": {"targetRef": {"name": "a"}, "stages": [{"name": "s", "percentage": 10, "duration": "1h",
            "successCriteria": [{"metric": "errorRate", "threshold": "< 1%"}, {"metric": "latencyP99", "threshold": "< 150ms"},
                {"metric": "traceCompletion", "threshold": "> 99%"}, {"metric": "userSatisfaction", "threshold": "> 80%"}]}]}});
        releases.create(&PostParams::default(), &serde_json::from_value(release).unwrap()).await.unwrap();

        let stop = CancellationToken::new();
        let config = Config {
            audit: Some(AuditConfig::new(dir.path().join("audit.log"))),
            name: "test".into(),
            ..Config::new([7; 32], access)
        };
        let plane = DataPlane::new(config, client, Arc::clone(&backend) as _, stop.clone()).unwrap();
        let (gateway, told) =
            (TcpListener::bind("0.0.0.0:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap());
        let port = gateway.local_addr().unwrap().port();
        let admin = format!("http://{}", told.local_addr().unwrap());
        let mut registry = Registry::default();
        plane.register(&mut registry);
        let registry = Arc::new(std::sync::Mutex::new(registry));
        let ready = plane.readiness();
        let ready: admin::Readiness = Arc::new(move || if ready() { Ok(()) } else { Err("not yet".into()) });
        tokio::spawn(admin::serve(told, ready, registry, plane.admin_routes(), stop.clone()));
        tokio::spawn(plane.serve(gateway));
        let scene = Self {
            dir,
            backend,
            releases,
            servers,
            gateway: format!("http://127.0.0.1:{port}"),
            admin,
            epoch: 0,
            stop,
        };
        until("the gateway to be ready", || async { (scene.ask("/readyz").await.0 == 200).then_some(()) }).await;
        scene
    }

    pub fn url(&self) -> String {
        format!("{}/default/a/mcp", self.gateway)
    }

    pub async fn ask(&self, path: &str) -> (u16, String) {
        let answer = send(1, "GET", &format!("{}{path}", self.admin), &[], "").await;
        (answer.status, answer.body)
    }

    pub async fn report(&self) -> GatewayReport {
        serde_json::from_str(&self.ask(REPORT_PATH).await.1).unwrap()
    }

    /// Writes what a controller would, without waiting for the gateway.
    pub async fn write(&mut self, phase: &str, percentage: i32) {
        self.epoch += 1;
        let status = json!({"phase": phase, "releaseId": "a-2.1", "stableRevision": STABLE, "candidateRevision": CANDIDATE,
            "routing": {"desiredEpoch": self.epoch, "percentage": percentage, "users": ["dana"], "groups": ["qa"]}});
        let patch = Patch::Merge(json!({"status": status}));
        self.releases.patch_status("a", &PatchParams::default(), &patch).await.unwrap();
    }

    /// Writes a status, and waits until the gateway says that it runs it.
    pub async fn set(&mut self, phase: &str, percentage: i32) {
        self.write(phase, percentage).await;
        let epoch = self.epoch;
        let scene = &*self;
        until("the epoch", || async {
            let report = scene.report().await;
            (report.synced && report.servers.iter().any(|s| s.epoch == epoch)).then_some(())
        })
        .await;
    }

    pub async fn revision(&self, name: &str) -> RevisionReport {
        let report = self.report().await;
        report.servers[0].revisions.iter().find(|r| r.revision == name).unwrap().clone()
    }

    /// Bad and all events of a signal.
    pub async fn counted(&self, revision: &str, signal: CountedSignal) -> (i64, i64) {
        let report = self.revision(revision).await;
        let counts = report.counters.iter().find(|c| c.signal == signal).unwrap().counts;
        (counts.bad.iter().sum(), counts.total.iter().sum())
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.stop.cancel();
        let backend = Arc::clone(&self.backend);
        let end = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                for key in [key(), key().candidate()] {
                    // The test says what is wrong; this only cleans up.
                    let _ = backend.remove(&key).await;
                }
            });
        });
        let _ = end.join();
    }
}

/// Waits until `check` gives something.
pub async fn until<T, F: Future<Output = Option<T>>>(what: &str, check: impl Fn() -> F) -> T {
    let found = async {
        loop {
            if let Some(found) = check().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, found).await.unwrap_or_else(|_| panic!("waited too long for {what}"))
}

pub struct Answer {
    pub status: u16,
    pub session: Option<String>,
    pub body: String,
}

impl Answer {
    pub fn message(&self) -> Value {
        let last = self.body.lines().filter_map(|l| l.strip_prefix("data: ")).next_back();
        serde_json::from_str(last.unwrap_or(&self.body)).unwrap_or_default()
    }
}

/// A client at the loopback address of this number: that is what tells anonymous clients apart.
pub fn client(number: u32) -> Client<HttpConnector, Full<bytes::Bytes>> {
    let mut connector = HttpConnector::new();
    let address = Ipv4Addr::from(0x7f00_0000 + 256 + number);
    connector.set_local_address(Some(IpAddr::V4(if number == 1 { Ipv4Addr::LOCALHOST } else { address })));
    Client::builder(TokioExecutor::new()).build(connector)
}

pub async fn send(number: u32, method: &str, url: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    let mut request = http::Request::builder()
        .method(method)
        .uri(url)
        .header("Content-Type", "application/json")
        .header("Accept", "application/json, text/event-stream");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::from(body.to_owned())).unwrap();
    let response = client(number).request(request).await.unwrap();
    let session = response.headers().get("mcp-session-id").map(|v| v.to_str().unwrap().to_owned());
    let status = response.status().as_u16();
    // An answer that breaks off is as good as what came of it.
    let body = response.into_body().collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    Answer { status, session, body: String::from_utf8(body.to_vec()).unwrap() }
}

pub const INITIALIZE: &str = r#"{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"test","version":"0"}}}"#;

/// Opens a legacy session: its id, and the revision that it is at.
pub async fn open(url: &str) -> (String, String) {
    let answer = send(1, "POST", url, &[], INITIALIZE).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let revision = answer.message()["result"]["serverInfo"]["name"].as_str().unwrap().to_owned();
    (answer.session.unwrap(), revision)
}

pub fn call(tool: &str, arguments: &Value) -> Value {
    json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool, "arguments": arguments}})
}

/// A call in a session.
pub async fn in_session(url: &str, session: &str, tool: &str, arguments: &Value) -> Answer {
    send(1, "POST", url, &[("Mcp-Session-Id", session)], &call(tool, arguments).to_string()).await
}

/// A call of a client of 2026-07-28, who has no session.
pub async fn modern(number: u32, url: &str, tool: &str, arguments: &Value) -> Answer {
    let mut request = call(tool, arguments);
    request["params"]["_meta"] = json!({"io.modelcontextprotocol/protocolVersion": MODERN,
        "io.modelcontextprotocol/clientCapabilities": {}});
    let headers = [("MCP-Protocol-Version", MODERN), ("Mcp-Method", "tools/call"), ("Mcp-Name", tool)];
    send(number, "POST", url, &headers, &request.to_string()).await
}

/// The revision that answers a call.
pub fn said(answer: &Answer) -> String {
    let message = answer.message();
    message["result"]["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{}", answer.body)).to_owned()
}

pub fn who() -> Value {
    json!({"name": "REVISION"})
}
