//! The core of `perch bridge`: one Stdio server over Streamable HTTP.

use std::{net::SocketAddr, time::Duration};

use perch::{
    api::mcp_server::StdioSessions,
    gateway::{
        Config,
        bridge::{BridgeError, ServeConfig, serve},
    },
};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    events::events,
    support::{PATIENCE, Session, fixture, post, send, wait},
};

pub struct Bridge {
    address: SocketAddr,
    stop: CancellationToken,
    thread: Option<std::thread::JoinHandle<Result<(), BridgeError>>>,
}

impl Bridge {
    fn start(command: &[&str]) -> Self {
        Self::start_with(command, StdioSessions::Shared, |_| {})
    }

    /// Starts it with other settings than the usual ones.
    pub fn start_with(command: &[&str], sessions: StdioSessions, set: impl FnOnce(&mut Config)) -> Self {
        let mut gateway = Config::new([3; 32], perch::gateway::access::Access::anonymous());
        gateway.hosts = vec!["*".into()];
        gateway.drain_timeout = Duration::from_secs(5);
        set(&mut gateway);
        let command = command.iter().map(Into::into).collect();
        let config = ServeConfig { command, sessions, gateway, grace: Duration::from_millis(500) };
        let stop = CancellationToken::new();
        let (sender, address) = std::sync::mpsc::channel();
        let thread = std::thread::spawn({
            let stop = stop.clone();
            move || {
                let runtime =
                    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
                runtime.block_on(async {
                    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                    sender.send(listener.local_addr().unwrap()).unwrap();
                    serve(config, listener, stop).await
                })
            }
        });
        Self { address: address.recv().unwrap(), stop, thread: Some(thread) }
    }

    pub fn url(&self) -> String {
        format!("http://{}/mcp", self.address)
    }

    pub fn end(mut self) -> Result<(), BridgeError> {
        self.stop.cancel();
        self.thread.take().unwrap().join().unwrap()
    }
}

fn pid(session: &Session) -> String {
    session.text("whoami", &json!({})).lines().find(|l| l.starts_with("Pid:")).unwrap().to_owned()
}

/// Whether the process that [`pid`] told of is gone.
fn is_gone(pid: &str) -> bool {
    let pid: i32 = pid.split_whitespace().nth(1).unwrap().parse().unwrap();
    rustix::process::test_kill_process(rustix::process::Pid::from_raw(pid).unwrap()).is_err()
}

#[test]
fn a_crash_fails_the_pending_calls_and_the_next_ones_work() {
    let bridge = Bridge::start(&[&fixture(), "stdio"]);
    let session = Session::open(&bridge.url());
    let before = pid(&session);
    let answer = session.call("crash", &json!({}));
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(message.contains("ended before it answered"), "{answer}");
    let after = pid(&session);
    assert_ne!(before, after, "the same session goes on with a new process");
    assert_eq!(send("GET", &format!("http://{}/readyz", bridge.address), &[], "").0, 200);
    let host = [("Host", "10.0.0.7:8080"), ("Mcp-Session-Id", session.id.as_str())];
    assert_eq!(send("POST", &bridge.url(), &host, r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#).0, 200);
    assert_eq!(post(&format!("http://{}/default/x/mcp", bridge.address), None, "{}").0, 404);
    bridge.end().unwrap();
    assert!(is_gone(&after), "the command outlived its bridge");
}

#[test]
fn each_session_has_a_process_that_ends_with_it() {
    let bridge = Bridge::start_with(&[&fixture(), "stdio"], StdioSessions::PerSession, |_| {});
    let (one, other) = (Session::open(&bridge.url()), Session::open(&bridge.url()));
    let (first, second) = (pid(&one), pid(&other));
    assert_ne!(first, second);
    assert_eq!(pid(&one), first, "a session stays with its process");
    // A process that ends takes its session with it, and no other.
    one.call("crash", &json!({}));
    let list = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#;
    assert_eq!(post(&bridge.url(), Some(&one.id), list).0, 404, "the client is told to begin anew");
    assert_eq!(pid(&other), second);
    assert_eq!(send("DELETE", &bridge.url(), &[("Mcp-Session-Id", &other.id)], "").0, 204);
    wait("the process of the ended session to end", || is_gone(&second).then_some(()));
    // At the end none is left.
    let last = Session::open(&bridge.url());
    let third = pid(&last);
    bridge.end().unwrap();
    assert!(is_gone(&third), "a session's process outlived its bridge");
}

#[test]
fn sessions_are_as_many_as_allowed_and_end_when_nobody_uses_them() {
    let bridge = Bridge::start_with(&[&fixture(), "stdio"], StdioSessions::PerSession, |gateway| {
        gateway.max_sessions = 1;
        gateway.idle_timeout = Duration::from_secs(2);
    });
    let only = Session::open(&bridge.url());
    let process = pid(&only);
    let request = json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {
        "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "0"},
    }});
    let (status, _, body) = post(&bridge.url(), None, &request.to_string());
    assert!(status == 503 && body.contains("which is the most"), "{status} {body}");
    // No request comes that would make the bridge look.
    wait("the unused session's process to end", || is_gone(&process).then_some(()));
    Session::open(&bridge.url());
    bridge.end().unwrap();
}

#[test]
fn calls_in_hand_are_finished_before_the_end() {
    let bridge = Bridge::start(&[&fixture(), "stdio"]);
    let url = bridge.url();
    let session = Session::open(&url);
    let (began, begun) = std::sync::mpsc::channel();
    let slow = std::thread::spawn(move || {
        let call = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {
            "name": "slow", "arguments": {"ms": 700}, "_meta": {"progressToken": "p"},
        }});
        let mut said = Value::Null;
        events("POST", &url, &[("Mcp-Session-Id", &session.id)], &call.to_string(), |message| {
            if message["method"] == "notifications/progress" {
                began.send(()).unwrap();
            }
            said = message["result"]["content"][0]["text"].clone();
            !said.is_null()
        });
        said
    });
    begun.recv_timeout(PATIENCE).unwrap();
    bridge.end().unwrap();
    assert_eq!(slow.join().unwrap(), "done");
}

#[test]
fn a_command_that_cannot_start_is_an_error_that_names_it() {
    let bridge = Bridge::start(&["/does/not/exist"]);
    let error = bridge.thread.unwrap().join().unwrap().unwrap_err().to_string();
    assert!(error.contains("/does/not/exist") && error.contains("cannot be started"), "{error}");
}

#[test]
fn a_slow_start_is_waited_for() {
    let bridge = Bridge::start(&[&fixture(), "stdio", "--delay-ms", "1500"]);
    assert_eq!(Session::open(&bridge.url()).text("echo", &json!({"text": "here"})), "here");
    bridge.end().unwrap();
}
