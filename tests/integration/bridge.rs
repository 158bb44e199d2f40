//! The core of `perch bridge`: one Stdio server over Streamable HTTP.

use std::{net::SocketAddr, time::Duration};

use perch::gateway::{
    Config,
    bridge::{BridgeError, ServeConfig, serve},
};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::support::{Session, fixture, post, send, wait};

pub struct Bridge {
    address: SocketAddr,
    stop: CancellationToken,
    thread: Option<std::thread::JoinHandle<Result<(), BridgeError>>>,
}

impl Bridge {
    fn start(command: &[&str]) -> Self {
        Self::start_with(command, |_| ())
    }

    /// Starts it with other settings than the usual ones.
    pub fn start_with(command: &[&str], set: impl FnOnce(&mut Config)) -> Self {
        let mut gateway = Config::new([3; 32], perch::gateway::access::Access::anonymous());
        gateway.hosts = vec!["*".into()];
        gateway.drain_timeout = Duration::from_secs(5);
        set(&mut gateway);
        let command = command.iter().map(Into::into).collect();
        let config = ServeConfig { command, gateway, grace: Duration::from_millis(500) };
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
    let pid: i32 = after.split_whitespace().nth(1).unwrap().parse().unwrap();
    let gone = rustix::process::test_kill_process(rustix::process::Pid::from_raw(pid).unwrap()).is_err();
    assert!(gone, "the command outlived its bridge");
}

#[test]
fn calls_in_hand_are_finished_before_the_end() {
    let bridge = Bridge::start(&[&fixture(), "stdio"]);
    let url = bridge.url();
    let session = Session::open(&url);
    let slow = std::thread::spawn(move || session.text("slow", &json!({"ms": 700})));
    // The call is in hand once a second one waits behind it.
    let probe = Session::open(&url);
    wait("the slow call to begin", || (!slow.is_finished()).then_some(()));
    std::thread::sleep(Duration::from_millis(200));
    bridge.end().unwrap();
    assert_eq!(slow.join().unwrap(), "done");
    drop(probe);
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
