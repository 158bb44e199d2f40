//! The gateway on the wire.

use serde_json::{Value, json};

use crate::support::{Perch, Session, fixture, post, send, wait};

const LIST: &str = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#;

fn up(dir: &tempfile::TempDir, spec: &Value) -> (Perch, String) {
    let up = Perch::up(dir.path(), &["--runtime", "process"]);
    up.apply("a", spec);
    up.until("a", "Ready");
    let url = format!("{}/default/a/mcp", up.gateway);
    (up, url)
}

fn stdio() -> Value {
    json!({"command": [fixture(), "stdio"]})
}

fn http(replicas: u32) -> Value {
    json!({"command": [fixture(), "http"], "transport": {"type": "StreamableHttp"}, "replicas": replicas})
}

#[test]
fn wrong_requests_get_the_right_answers() {
    let dir = tempfile::tempdir().unwrap();
    let (up, url) = up(&dir, &stdio());
    let session = Session::open(&url);
    let code = |body: &str| serde_json::from_str::<Value>(body).unwrap()["error"]["code"].as_i64();

    let (status, _, body) = post(&url, None, LIST);
    assert_eq!((status, code(&body)), (400, Some(-32600)), "no session");
    let (status, _, body) = post(&url, Some("forged"), LIST);
    assert_eq!((status, code(&body)), (404, Some(-32001)), "unknown session");
    let (status, _, body) = post(&url, Some(&session.id), "{\"jsonrpc\":");
    assert_eq!((status, code(&body)), (400, Some(-32700)), "truncated");
    let (status, _, body) = post(&url, Some(&session.id), &format!("[{LIST}]"));
    assert_eq!((status, code(&body)), (400, Some(-32600)), "batch");
    let (status, _, _) = post(&url, Some(&session.id), &"x".repeat(5 << 20));
    assert_eq!(status, 413);
    let (status, _, body) = post(&format!("{}/default/nobody/mcp", up.gateway), None, LIST);
    assert_eq!(status, 404);
    assert!(body.contains("there is no server default/nobody"), "{body}");
    assert_eq!(send("PUT", &url, &[], "").0, 405);
    assert_eq!(send("POST", &url, &[("Host", "evil.example")], LIST).0, 403);
    assert_eq!(send("POST", &url, &[("Origin", "http://evil.example")], LIST).0, 403);
    assert_ne!(
        send("POST", &url, &[("Origin", "http://localhost:3000"), ("Mcp-Session-Id", &session.id)], LIST).0,
        403
    );
    let (status, _, body) =
        send("POST", &url, &[("Mcp-Session-Id", &session.id), ("MCP-Protocol-Version", "2026-07-28")], LIST);
    assert_eq!((status, code(&body)), (400, Some(-32020)), "a modern request without its headers");
    assert_eq!(send("DELETE", &url, &[("Mcp-Session-Id", &session.id)], "").0, 204);
}

#[test]
fn many_calls_on_one_process_keep_apart() {
    let dir = tempfile::tempdir().unwrap();
    let (_up, url) = up(&dir, &stdio());
    std::thread::scope(|scope| {
        for client in 0..10 {
            let url = &url;
            scope.spawn(move || {
                let session = Session::open(url);
                for call in 0..10 {
                    let text = format!("{client}-{call}-{}", "é".repeat(1000));
                    assert_eq!(session.text("echo", &json!({"text": text})), text);
                }
            });
        }
    });
}

#[test]
fn a_session_stays_with_its_instance_and_outlives_the_gateway() {
    let dir = tempfile::tempdir().unwrap();
    let (up, url) = up(&dir, &http(3));
    let sessions: Vec<Session> = (0..6).map(|_| Session::open(&url)).collect();
    for _ in 0..5 {
        // An instance knows only its own session, so each call must reach the same one.
        for session in &sessions {
            assert_eq!(session.text("echo", &json!({"text": "x"})), "x");
        }
    }
    assert!(!sessions[0].id.contains("plain"), "the id tells nothing about the instance");
    let other = format!("{}/default/b/mcp", up.gateway);
    up.apply("b", &http(1));
    up.until("b", "Ready");
    assert_eq!(post(&other, Some(&sessions[0].id), LIST).0, 404, "a session of another server is unknown");
}

#[test]
fn hidden_tools_are_unknown() {
    let dir = tempfile::tempdir().unwrap();
    for spec in [stdio(), http(1)] {
        let mut spec = spec;
        spec["tools"] = json!({"deny": ["crash"]});
        let dir = tempfile::tempdir_in(dir.path()).unwrap();
        let (up, url) = up(&dir, &spec);
        let session = Session::open(&url);
        let tools = session.request("tools/list", &json!({}))["result"]["tools"].clone();
        let names: Vec<&str> = tools.as_array().unwrap().iter().map(|t| t["name"].as_str().unwrap()).collect();
        assert!(names.contains(&"echo") && !names.contains(&"crash"), "{names:?}");
        assert_eq!(session.call("crash", &json!({}))["error"]["message"], "Unknown tool: crash");
        assert_eq!(up.status("a")["tools"], 6);
    }
}

#[test]
fn progress_comes_before_the_answer() {
    let dir = tempfile::tempdir().unwrap();
    let (_up, url) = up(&dir, &stdio());
    let session = Session::open(&url);
    let call = json!({"jsonrpc": "2.0", "id": "mine", "method": "tools/call", "params": {
        "name": "slow", "arguments": {"ms": 50}, "_meta": {"progressToken": "token"},
    }});
    let (_, _, body) = post(&url, Some(&session.id), &call.to_string());
    let events: Vec<Value> =
        body.lines().filter_map(|l| l.strip_prefix("data: ")).map(|d| serde_json::from_str(d).unwrap()).collect();
    assert_eq!(events[0]["params"]["progressToken"], "token", "{body}");
    assert_eq!(events[1]["id"], "mine");
}

#[test]
fn a_session_may_have_a_process_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let mut spec = stdio();
    spec["transport"] = json!({"sessions": "PerSession"});
    let (_up, url) = up(&dir, &spec);
    let (one, two) = (Session::open(&url), Session::open(&url));
    let pid = |s: &Session| s.text("whoami", &json!({})).lines().find(|l| l.starts_with("Pid:")).unwrap().to_owned();
    assert_ne!(pid(&one), pid(&two));
    let answer = one.call("crash", &json!({}));
    assert!(answer["error"]["message"].as_str().unwrap().contains("ended"), "{answer}");
    assert_eq!(two.text("echo", &json!({"text": "still here"})), "still here");
    assert_eq!(post(&url, Some(&one.id), LIST).0, 404);
    assert_eq!(send("DELETE", &url, &[("Mcp-Session-Id", &two.id)], "").0, 204);
    assert_eq!(post(&url, Some(&two.id), LIST).0, 404);
}

#[test]
fn a_call_to_a_server_that_starts_waits_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let up = Perch::up(dir.path(), &["--runtime", "process"]);
    up.apply("late", &json!({"command": [fixture(), "stdio", "--delay-ms", "2000"]}));
    wait("the route", || (post(&format!("{}/default/late/mcp", up.gateway), None, LIST).0 != 404).then_some(()));
    assert_eq!(up.session("late").text("echo", &json!({"text": "here"})), "here");
    up.apply("late", &json!({"command": [fixture()], "suspend": true}));
    up.until("late", "Suspended");
    let (status, _, body) = post(&format!("{}/default/late/mcp", up.gateway), None, LIST);
    assert_eq!(status, 503);
    assert!(body.contains("is suspended"), "{body}");
}

#[test]
fn what_is_not_listed_yet_is_not_called_absent() {
    let dir = tempfile::tempdir().unwrap();
    let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (listen, admin, nobody) = (free(), free(), free());
    let kubeconfig = dir.path().join("kubeconfig");
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": format!("http://{nobody}")}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "users": [{"name": "u", "user": {}}],
    });
    std::fs::write(&kubeconfig, config.to_string()).unwrap();
    let _gateway = Ended(
        std::process::Command::new(env!("CARGO_BIN_EXE_perch"))
            .args(["gateway", "--access", "anonymous", "--listen", &listen.to_string()])
            .args(["--admin-addr", &admin.to_string()])
            .env("KUBECONFIG", &kubeconfig)
            .spawn()
            .unwrap(),
    );
    wait("the gateway to listen", || std::net::TcpStream::connect(listen).ok());

    let (status, _, body) = post(&format!("http://{listen}/default/a/mcp"), None, LIST);
    assert_eq!(status, 503, "{body}");
    assert!(body.contains("has not read which servers there are"), "{body}");
    assert_eq!(send("GET", &format!("http://{listen}/"), &[], "").0, 503, "a list of none would be wrong too");
    let told = |path: &str| send("GET", &format!("http://{admin}{path}"), &[], "");
    assert_eq!(told("/healthz").0, 200);
    let (status, _, body) = told("/readyz");
    assert_eq!((status, body.as_str()), (503, "the servers and releases are not listed yet"));
    let (status, _, body) = told("/-/epoch");
    assert_eq!(
        (status, serde_json::from_str::<Value>(&body).unwrap()),
        (200, json!({"generation": 0, "releases": {}}))
    );
}

/// A process that ends with the test.
struct Ended(std::process::Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // It may have ended, which the test has said.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
