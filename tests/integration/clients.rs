//! The clients that people have, in front of the servers that people run, through one gateway: every
//! pair of eras, and a server from npm and one from PyPI. What the clients are is in `clients/`.
//!
//! `PERCH_TEST_CONFORMANCE` names the directory with the npm packages, `PERCH_TEST_PYTHON` a Python
//! with mcp 1 and `PERCH_TEST_PYTHON_MODERN` one with mcp 2 and mcp-server-time: see `hack/test.sh`.

use std::{
    collections::BTreeMap,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use rmcp::{
    ClientHandler, RoleClient,
    model::{
        CallToolRequestParams, ClientCapabilities, ClientConfig, ElicitRequestParams, ElicitResult, ElicitationAction,
        ErrorData, GetPromptRequestParams, ProtocolVersion, ReadResourceRequestParams,
    },
    service::{ClientLifecycleMode, ClientServiceExt, RequestContext, ServiceError},
    transport::StreamableHttpClientTransport,
};
use serde_json::{Value, json};

use crate::support::Perch;

const LEGACY: &str = "2025-11-25";
const MODERN: &str = "2026-07-28";

fn setting(name: &str) -> PathBuf {
    std::env::var_os(name).unwrap_or_else(|| panic!("{name} is not set: run this test with `make test`")).into()
}

fn packages() -> PathBuf {
    setting("PERCH_TEST_CONFORMANCE").join("node_modules")
}

fn node() -> PathBuf {
    let entries = std::fs::read_dir(packages()).unwrap().filter_map(Result::ok).map(|e| e.path().join("bin/node"));
    let is_node = |path: &PathBuf| path.to_string_lossy().contains("/node-") && path.exists();
    entries.filter(is_node).min().expect("an npm package node-… is there")
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/integration/clients").join(name)
}

/// A server as the clients are told of it.
struct Server {
    name: &'static str,
    spec: Value,
    tool: &'static str,
    arguments: Value,
    /// What is in the tool's answer.
    says: &'static str,
    /// Whether it is the fixture, which has everything.
    full: bool,
}

fn servers() -> Vec<Server> {
    let fixture = Path::new(env!("CARGO_BIN_EXE_perch")).parent().unwrap().join("examples/mcp-conformance-fixture");
    let everything = packages().join("@modelcontextprotocol/server-everything/dist/index.js");
    let http = json!({"type": "StreamableHttp"});
    // What asks its client something has one client.
    let own = json!({"type": "Stdio", "sessions": "PerSession"});
    let full = |name, transport: &str, era: &str, type_: &Value| Server {
        name,
        spec: json!({"command": [fixture, transport, "--era", era], "transport": type_}),
        tool: "echo",
        arguments: json!({"text": "é"}),
        says: "é",
        full: true,
    };
    let npm = |name, transport: &str, type_: Value| Server {
        name,
        spec: json!({"command": [node(), everything, transport], "transport": type_}),
        tool: "echo",
        arguments: json!({"message": "é"}),
        says: "Echo: é",
        full: false,
    };
    let python = setting("PERCH_TEST_PYTHON_MODERN");
    let time = json!({"source_timezone": "UTC", "time": "12:00", "target_timezone": "Asia/Tokyo"});
    vec![
        full("http-legacy", "http", "legacy", &http),
        full("http-modern", "http", "modern", &http),
        full("stdio-legacy", "stdio", "legacy", &own),
        full("stdio-modern", "stdio", "modern", &own),
        npm("npm-stdio", "stdio", json!({"type": "Stdio"})),
        npm("npm-http", "streamableHttp", http.clone()),
        Server {
            name: "pypi-stdio",
            spec: json!({"command": [python, "-m", "mcp_server_time", "--local-timezone", "UTC"]}),
            tool: "convert_time",
            arguments: time,
            says: "+9.0h",
            full: false,
        },
    ]
}

/// What a client saw of each server, by the server's name.
type Seen = BTreeMap<String, Value>;

fn run(mut command: Command, servers: &[Server], up: &Perch) -> Seen {
    let told: Vec<Value> = servers
        .iter()
        .map(|server| {
            let url = format!("{}/default/{}/mcp", up.gateway, server.name);
            let Server { name, tool, arguments, full, .. } = server;
            json!({"name": name, "url": url, "tool": tool, "arguments": arguments, "full": full})
        })
        .collect();
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    child.stdin.take().unwrap().write_all(Value::from(told).to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let (said, why) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?} after\n{said}\n{why}");
    let seen = said.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    seen.map(|seen| (seen["name"].as_str().unwrap().to_owned(), seen)).collect()
}

fn python(setting_name: &str, era: &str) -> Command {
    let mut command = Command::new(setting(setting_name));
    command.arg(script("client.py")).arg(era);
    command
}

fn typescript(era: &str) -> Command {
    let mut command = Command::new(node());
    command.arg(script("client.mjs")).arg(era).arg(packages().parent().unwrap());
    command
}

/// Checks that a client met every server as it would have without a gateway, but for the era.
fn check(client: &str, version: &str, servers: &[Server], seen: &Seen) {
    for server in servers {
        let what = format!("{client}, {}", server.name);
        let seen = seen.get(server.name).unwrap_or_else(|| panic!("{what}: not visited"));
        assert_eq!(seen["version"], version, "{what}");
        let tools: Vec<&str> = seen["tools"].as_array().unwrap().iter().map(|t| t.as_str().unwrap()).collect();
        assert!(tools.contains(&server.tool), "{what}: {tools:?}");
        assert!(seen["text"].as_str().unwrap().contains(server.says), "{what}: {}", seen["text"]);
        if !server.full {
            continue;
        }
        assert_eq!(seen["prompt"], "user", "{what}");
        assert_eq!(seen["resource"], true, "{what}");
        assert_eq!(seen["completion"], json!(["paris"]), "{what}");
        let progress: Vec<f64> = seen["progress"].as_array().unwrap().iter().map(|p| p.as_f64().unwrap()).collect();
        assert_eq!(progress, [0.0, 50.0, 100.0], "{what}");
        assert_eq!(seen["failed"], true, "{what}");
        assert_eq!(seen["unknown"], -32602, "{what}");
        let elicited = seen["elicited"].as_str().unwrap();
        if (version, server.name) == (MODERN, "stdio-legacy") {
            // Modern clients share the process of a legacy Stdio server, which may ask none of them.
            assert!(elicited.contains("is not offered"), "{what}: {elicited}");
            continue;
        }
        assert_eq!(seen["question"], "Who are you?", "{what}");
        assert!(elicited.contains("accept") && elicited.contains("dana"), "{what}: {elicited}");
    }
}

#[test]
fn the_clients_that_people_have_meet_every_server_in_every_pair_of_eras() {
    let dir = tempfile::tempdir().unwrap();
    let up = Perch::up(dir.path(), &["--runtime", "process"]);
    let servers = servers();
    for server in &servers {
        up.apply(server.name, &server.spec);
    }
    for server in &servers {
        up.until(server.name, "Ready");
    }
    check("Python", LEGACY, &servers, &run(python("PERCH_TEST_PYTHON", "legacy"), &servers, &up));
    check("Python", MODERN, &servers, &run(python("PERCH_TEST_PYTHON_MODERN", "modern"), &servers, &up));
    check("TypeScript", LEGACY, &servers, &run(typescript("legacy"), &servers, &up));
    check("TypeScript", MODERN, &servers, &run(typescript("modern"), &servers, &up));
    check("rmcp", LEGACY, &servers, &rmcp_visits(LEGACY, &servers, &up));
    check("rmcp", MODERN, &servers, &rmcp_visits(MODERN, &servers, &up));
    inspect(&up, "legacy", "http-modern", "echo", "text=é", "é");
    inspect(&up, "modern", "npm-stdio", "echo", "message=é", "Echo: é");
}

/// The inspector's command line.
fn inspect(up: &Perch, era: &str, server: &str, tool: &str, argument: &str, says: &str) {
    let run = |arguments: &[&str]| {
        let home = tempfile::tempdir().unwrap();
        let output = Command::new(node())
            .arg(packages().join("@modelcontextprotocol/inspector/clients/launcher/build/index.js"))
            .args(["--cli", &format!("{}/default/{server}/mcp", up.gateway), "--transport", "http"])
            .args(["--protocol-era", era])
            .args(arguments)
            .env("HOME", home.path())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{era}, {server}: {said}{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_str::<Value>(&said).unwrap_or_else(|error| panic!("{era}, {server}: {error}: {said}"))
    };
    let listed = run(&["--method", "tools/list"]);
    assert!(listed["tools"].as_array().unwrap().iter().any(|t| t["name"] == tool), "{era}, {server}: {listed}");
    let called = run(&["--method", "tools/call", "--tool-name", tool, "--tool-arg", argument]);
    assert_eq!(called["content"][0]["text"], says, "{era}, {server}: {called}");
}

/// A client that answers every question as the scripts' clients do.
#[derive(Clone, Default)]
struct Answers {
    question: std::sync::Arc<std::sync::Mutex<Option<String>>>,
    progress: std::sync::Arc<std::sync::Mutex<Vec<f64>>>,
}

impl ClientHandler for Answers {
    fn get_info(&self) -> ClientConfig {
        let mut config = ClientConfig::default();
        config.capabilities = ClientCapabilities::builder().enable_elicitation().build();
        config
    }

    async fn create_elicitation(
        &self,
        request: ElicitRequestParams,
        _context: RequestContext<RoleClient>,
    ) -> Result<ElicitResult, ErrorData> {
        if let ElicitRequestParams::FormElicitationParams { message, .. } = request {
            *self.question.lock().unwrap() = Some(message);
        }
        let content = json!({"username": "dana", "email": "d@example.com"});
        Ok(ElicitResult::new(ElicitationAction::Accept).with_content(content))
    }

    async fn on_progress(
        &self,
        params: rmcp::model::ProgressNotificationParam,
        _context: rmcp::service::NotificationContext<RoleClient>,
    ) {
        self.progress.lock().unwrap().push(params.progress);
    }
}

fn rmcp_visits(version: &str, servers: &[Server], up: &Perch) -> Seen {
    let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let visits = servers.iter().map(|server| {
        let url = format!("{}/default/{}/mcp", up.gateway, server.name);
        let seen = runtime.block_on(rmcp_visit(&url, version, server));
        (server.name.to_owned(), seen)
    });
    visits.collect()
}

async fn rmcp_visit(url: &str, version: &str, server: &Server) -> Value {
    let lifecycle = if version == MODERN {
        ClientLifecycleMode::Auto { preferred_versions: vec![ProtocolVersion::V_2026_07_28], legacy_version: None }
    } else {
        ClientLifecycleMode::Initialize
    };
    let answers = Answers::default();
    let transport = StreamableHttpClientTransport::from_uri(url.to_owned());
    let client = answers.clone().serve_with_lifecycle(transport, lifecycle).await.unwrap();
    let call = async |tool: &str, arguments: &Value| {
        let mut params = CallToolRequestParams::new(tool.to_owned());
        params.arguments = arguments.as_object().cloned();
        client.call_tool(params).await
    };
    let text = |result: rmcp::model::CallToolResult| {
        let parts = result.content.iter().filter_map(|part| part.as_text().map(|text| text.text.clone()));
        parts.collect::<Vec<_>>().join("\n")
    };
    let tools = client.list_all_tools().await.unwrap();
    let mut seen = json!({
        "version": client.peer_info().unwrap().protocol_version.as_str(),
        "tools": tools.iter().map(|tool| &*tool.name).collect::<Vec<_>>(),
        "text": text(call(server.tool, &server.arguments).await.unwrap()),
    });
    if server.full {
        let prompt = client.get_prompt(GetPromptRequestParams::new("test_simple_prompt")).await.unwrap();
        seen["prompt"] = serde_json::to_value(&prompt.messages[0].role).unwrap();
        let read = client.read_resource(ReadResourceRequestParams::new("test://static-text")).await.unwrap();
        seen["resource"] = (!read.contents.is_empty()).into();
        let completed = client.complete_prompt_simple("p", "a", "pari").await.unwrap();
        seen["completion"] = completed.into();
        call("test_tool_with_progress", &json!({})).await.unwrap();
        seen["elicited"] = text(call("test_elicitation", &json!({"message": "Who are you?"})).await.unwrap()).into();
        seen["failed"] = call("test_error_handling", &json!({})).await.unwrap().is_error.into();
        seen["unknown"] = match call("no_such_tool", &json!({})).await {
            Err(ServiceError::McpError(error)) => error.code.0.into(),
            other => format!("{other:?}").into(),
        };
        // Each is handled by a task of its own.
        let mut progress = answers.progress.lock().unwrap().clone();
        progress.sort_by(f64::total_cmp);
        seen["progress"] = progress.into();
        seen["question"] = answers.question.lock().unwrap().clone().into();
    }
    client.cancel().await.unwrap();
    seen
}
