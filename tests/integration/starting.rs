//! Clients that come while a server is still being started. The server does nothing until the test
//! lets it, so that nothing here depends on how long anything takes.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use http_body_util::{BodyExt, Full};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::{Value, json};

use crate::{
    eras,
    support::{PATIENCE, Perch, Session, fixture, post, send, wait},
};

/// A server that waits at a FIFO.
struct Held(PathBuf);

impl Held {
    fn apply(up: &Perch, dir: &Path, name: &str, transport: &str) -> Self {
        let fifo = dir.join(format!("{name}.fifo"));
        mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let kind = if transport == "StreamableHttp" { "http" } else { "stdio" };
        let command = json!([fixture(), kind, "--hold", fifo]);
        up.apply(name, &json!({"command": command, "transport": {"type": transport}}));
        // Whoever finds no such server gets 404.
        let url = format!("{}/default/{name}/mcp", up.gateway);
        let session = [("Mcp-Session-Id", "x")];
        wait("the route", || (!send("GET", &url, &session, "").2.contains("there is no server")).then_some(()));
        Self(fifo)
    }

    /// Lets the server go on; it was waiting until now.
    fn release(&self) {
        drop(std::fs::OpenOptions::new().write(true).open(&self.0).unwrap());
    }
}

/// Sends a request, goes on when the first words of an answer came, and gives the session's id, the
/// first words and the answer.
fn patient(url: &str, headers: &[(&str, &str)], body: &Value, go_on: impl FnOnce()) -> (String, String, Value) {
    let request = headers.iter().fold(http::Request::post(url), |r, (k, v)| r.header(*k, *v));
    let request = request
        .header("Content-Type", "application/json")
        .header("Accept", "application/json, text/event-stream")
        .body(Full::new(bytes::Bytes::from(body.to_string())))
        .unwrap();
    let read = async {
        let client = hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new()).build_http();
        let mut response = client.request(request).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let id = response.headers().get("mcp-session-id").map(|id| id.to_str().unwrap().to_owned());
        let first = response.body_mut().frame().await.unwrap().unwrap().into_data().unwrap();
        // The server has not begun: it still waits for this.
        go_on();
        let rest = response.into_body().collect().await.unwrap().to_bytes();
        let rest = String::from_utf8(rest.to_vec()).unwrap();
        let answer = rest.lines().filter_map(|l| l.strip_prefix("data: ")).next_back().expect("an answer");
        (id.unwrap_or_default(), String::from_utf8(first.to_vec()).unwrap(), serde_json::from_str(answer).unwrap())
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(PATIENCE, read).await.expect("the answer comes") })
}

fn initialize() -> Value {
    json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {
        "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "0"},
    }})
}

#[test]
fn a_legacy_client_gets_its_session_from_a_server_that_is_slow_to_start() {
    let dir = tempfile::tempdir().unwrap();
    let up = Perch::up(dir.path(), &["--runtime", "process"]);
    for transport in ["Stdio", "StreamableHttp"] {
        let name = transport.to_lowercase();
        let held = Held::apply(&up, dir.path(), &name, transport);
        let url = format!("{}/default/{name}/mcp", up.gateway);
        let (id, first, answer) = patient(&url, &[], &initialize(), || held.release());
        assert_eq!(first, ": the server is being started\n\n", "{name}");
        assert_eq!((&answer["id"], &answer["result"]["serverInfo"]["name"]), (&json!(0), &json!("fixture")), "{name}");
        let session = Session::resume(&url, &id);
        assert_eq!(post(&url, Some(&id), r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#).0, 202, "{name}");
        assert_eq!(session.text("echo", &json!({"text": "at last"})), "at last", "{name}");
        up.until(&name, "Ready");
        assert_eq!(session.text("echo", &json!({"text": "still"})), "still", "{name}: the id stays good");
        let list = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#;
        assert_eq!(post(&url, Some(&format!("{id}0")), list).0, 404, "{name}: no id can be made up");
        assert_eq!(send("DELETE", &url, &[("Mcp-Session-Id", &id)], "").0, 204, "{name}");
    }
}

#[test]
fn a_client_that_waits_follows_the_server_to_another_transport() {
    let dir = tempfile::tempdir().unwrap();
    let up = Perch::up(dir.path(), &["--runtime", "process"]);
    // It never begins. Its declaration changes while somebody waits for it.
    let _held = Held::apply(&up, dir.path(), "a", "Stdio");
    let two = json!({"command": [fixture(), "http", "--name", "two"], "transport": {"type": "StreamableHttp"}});
    let url = format!("{}/default/a/mcp", up.gateway);
    let (id, _, answer) = patient(&url, &[], &initialize(), || up.apply("a", &two));
    assert_eq!(answer["result"]["serverInfo"]["name"], "two", "{answer}");
    assert_eq!(Session::resume(&url, &id).text("echo", &json!({"text": "here"})), "here");
}

#[test]
fn a_modern_client_gets_its_answer_from_a_server_that_is_slow_to_start() {
    let dir = tempfile::tempdir().unwrap();
    let up = Perch::up(dir.path(), &["--runtime", "process"]);
    for transport in ["Stdio", "StreamableHttp"] {
        let name = transport.to_lowercase();
        let held = Held::apply(&up, dir.path(), &name, transport);
        let url = format!("{}/default/{name}/mcp", up.gateway);
        let call = eras::request("tools/call", json!({"name": "echo", "arguments": {"text": "at last"}}), &json!({}));
        let headers = [("MCP-Protocol-Version", "2026-07-28"), ("Mcp-Method", "tools/call"), ("Mcp-Name", "echo")];
        let (_, first, answer) = patient(&url, &headers, &call, || held.release());
        assert_eq!(first, ": the server is being started\n\n", "{name}");
        assert_eq!(answer["result"]["content"][0]["text"], "at last", "{name}: {answer}");
    }
}

#[test]
fn a_client_that_only_starts_commands_waits_as_well() {
    let dir = tempfile::tempdir().unwrap();
    let up = Perch::up(dir.path(), &["--runtime", "process"]);
    let held = Held::apply(&up, dir.path(), "a", "Stdio");
    let mut client = Command::new(env!("CARGO_BIN_EXE_perch"))
        .args(["connect", "a", "--data-dir", dir.path().to_str().unwrap()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(client.stdin.as_mut().unwrap(), format!("{}\n", initialize()).as_bytes()).unwrap();
    held.release();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(client.stdout.as_mut().unwrap()), &mut line).unwrap();
    assert!(line.contains(r#""serverInfo""#), "comments are not for it: {line}");
    drop(client.stdin.take());
    assert!(client.wait().unwrap().success());
}
