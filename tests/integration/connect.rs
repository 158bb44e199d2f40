//! `perch connect`: clients that only start commands, in front of a running perch.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, Command, Output, Stdio},
    sync::{Arc, Mutex, mpsc},
};

use serde_json::{Value, json};

use crate::{
    eras,
    support::{PATIENCE, Perch, fixture, perch, wait},
};

/// A client's end of a connector.
struct Connector {
    child: Child,
    input: Option<ChildStdin>,
    lines: mpsc::Receiver<String>,
    log: Arc<Mutex<String>>,
}

impl Connector {
    fn start(up: &Perch, name: &str) -> Self {
        Self::with(&[name, "--data-dir", up.dir.to_str().unwrap()], &[])
    }

    fn with(args: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_perch"))
            .arg("connect")
            .args(args)
            .envs(environment.iter().copied())
            .env("PERCH_LOG", "info")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (said, lines) = mpsc::channel();
        let output = BufReader::new(child.stdout.take().unwrap()).lines();
        std::thread::spawn(move || output.map_while(Result::ok).all(|line| said.send(line).is_ok()));
        let log = Arc::<Mutex<String>>::default();
        let (copy, errors) = (Arc::clone(&log), BufReader::new(child.stderr.take().unwrap()).lines());
        std::thread::spawn(move || {
            for line in errors.map_while(Result::ok) {
                eprintln!("connect: {line}");
                copy.lock().unwrap().push_str(&(line + "\n"));
            }
        });
        let input = child.stdin.take();
        Self { child, input, lines, log }
    }

    /// Starts one and initialises.
    fn initialized(up: &Perch, name: &str) -> Self {
        let mut connector = Self::start(up, name);
        connector.say(&initialize());
        assert!(connector.answer(0)["result"]["serverInfo"].is_object());
        connector.say(&json!({"jsonrpc": "2.0", "method": "notifications/initialized"}));
        connector
    }

    fn say(&mut self, message: &Value) {
        let input = self.input.as_mut().unwrap();
        writeln!(input, "{message}").unwrap();
        input.flush().unwrap();
    }

    fn next(&self) -> Value {
        let line = self.lines.recv_timeout(PATIENCE).expect("the connector says something");
        serde_json::from_str(&line).unwrap_or_else(|_| panic!("no JSON on standard output: {line}"))
    }

    /// What comes before the answer to a request, and the answer.
    fn until(&self, id: impl Into<Value>) -> (Vec<Value>, Value) {
        let (id, mut before) = (id.into(), Vec::new());
        loop {
            let message = self.next();
            if message["id"] == id && message.get("method").is_none() {
                return (before, message);
            }
            before.push(message);
        }
    }

    fn answer(&self, id: impl Into<Value>) -> Value {
        self.until(id).1
    }

    fn call(&mut self, id: u64, tool: &str, arguments: &Value) {
        let params = json!({"name": tool, "arguments": arguments});
        self.say(&json!({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": params}));
    }

    fn text(&mut self, id: u64, tool: &str, arguments: &Value) -> String {
        self.call(id, tool, arguments);
        let answer = self.answer(id);
        answer["result"]["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
    }

    fn terminate(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }

    fn ends(&mut self) -> Option<i32> {
        wait("the connector to end", || self.child.try_wait().unwrap()).code()
    }
}

impl Drop for Connector {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn initialize() -> Value {
    json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {
        "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "0"},
    }})
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn the_official_client_meets_the_same_server_in_every_pair() {
    let dir = tempfile::tempdir().unwrap();
    let (up, servers) = eras::all(&dir);
    let python = std::env::var("PERCH_TEST_PYTHON").expect("PERCH_TEST_PYTHON is a python with the mcp package");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/integration/stdio_client.py");
    for (_, transport, era) in servers {
        let name = format!("{transport}-{era}");
        let output = Command::new(&python)
            .args([script, env!("CARGO_BIN_EXE_perch"), "connect", &name, "--data-dir", up.dir.to_str().unwrap()])
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{name}: {told}\n{}", said(&output));
        // A process that several clients share cannot ask one of them back.
        let asked = if (transport, era) == ("stdio", "legacy") { "True False" } else { "False True" };
        let expected = format!(
            "server mcp-conformance-fixture\ntools True True\necho True\nelicitation {asked}\nprogress ['progress 0.0', 'progress 50.0', 'progress 100.0']\nprompt user\n"
        );
        assert_eq!(told, expected, "{name}: {}", said(&output));
    }
}

#[test]
fn a_modern_client_meets_the_same_server_in_every_pair() {
    let dir = tempfile::tempdir().unwrap();
    let (up, servers) = eras::all(&dir);
    let none = json!({});
    for (_, transport, era) in servers {
        let what = format!("{transport}-{era}");
        let mut client = Connector::start(&up, &what);
        let ask = |client: &mut Connector, id: &str, method: &str, params: Value| {
            let mut request = eras::request(method, params, &none);
            request["id"] = id.into();
            client.say(&request);
        };
        ask(&mut client, "d", "server/discover", json!({}));
        assert!(client.answer("d")["result"]["supportedVersions"].is_array(), "{what}");
        ask(&mut client, "e", "tools/call", json!({"name": "echo", "arguments": {"text": "é\n"}}));
        assert_eq!(client.answer("e")["result"]["content"][0]["text"], "é\n", "{what}");
        // The schema wants an argument repeated in a header: the connector finds out and does so.
        let custom = json!({"name": "test_custom_headers", "arguments": {"region": "eu"}});
        ask(&mut client, "c", "tools/call", custom);
        let answer = client.answer("c");
        assert_eq!(answer["result"]["content"][0]["text"], "done", "{what}: {answer}");
        ask(&mut client, "u", "nothing/here", json!({}));
        assert_eq!(client.answer("u")["error"]["code"], -32601, "{what}");

        let filter =
            json!({"notifications": {"toolsListChanged": true, "resourceSubscriptions": ["test://cancelled"]}});
        ask(&mut client, "l", "subscriptions/listen", filter);
        assert_eq!(client.next()["method"], "notifications/subscriptions/acknowledged", "{what}");
        ask(&mut client, "t", "tools/call", json!({"name": "test_trigger_tool_change", "arguments": {}}));
        let first = [client.next(), client.next()];
        assert!(first.iter().any(|m| m["id"] == "t"), "{what}: {first:?}");
        assert!(first.iter().any(|m| m["method"] == "notifications/tools/list_changed"), "{what}: {first:?}");
        if (transport, era) != ("http", "legacy") {
            // A call that is given up reaches the server as such. A legacy server over HTTP does
            // not take the end of a connection for that.
            ask(&mut client, "s", "tools/call", json!({"name": "sleep", "arguments": {"ms": 60_000}}));
            ask(&mut client, "x", "tools/call", json!({"name": "echo", "arguments": {"text": "x"}}));
            client.answer("x");
            client.say(&json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": "s"}}));
            let cancelled = client.next();
            assert_eq!(cancelled["params"]["uri"], "test://cancelled", "{what}: {cancelled}");
        }
        drop(client.input.take());
        assert_eq!(client.ends(), Some(0), "{what}: the client closed its end");
    }
}

#[test]
fn a_legacy_client_hears_what_the_server_says_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let (up, servers) = eras::all(&dir);
    for (_, transport, era) in servers {
        let what = format!("{transport}-{era}");
        let mut client = Connector::initialized(&up, &what);
        // Nothing shows that the connector listens, so changes are made until it hears one.
        let mut id = 0;
        wait(&format!("news of {what}"), || {
            id += 1;
            client.call(id, "test_trigger_tool_change", &json!({}));
            let (before, answer) = client.until(id);
            assert!(answer["result"].is_object(), "{what}: {answer}");
            before.iter().any(|m| m["method"] == "notifications/tools/list_changed").then_some(())
        });
    }
}

#[test]
fn a_piped_conversation_is_answered_in_full() {
    let dir = tempfile::tempdir().unwrap();
    let up = Perch::up(dir.path(), &["--runtime", "process"]);
    up.apply("a", &json!({"command": [fixture(), "stdio"], "transport": {"type": "Stdio"}}));
    up.until("a", "Ready");
    // The only server needs no name, and the end of the input does not cut answers off.
    let mut client = Connector::with(&["--data-dir", up.dir.to_str().unwrap()], &[]);
    client.say(&initialize());
    client.say(&json!({"jsonrpc": "2.0", "method": "notifications/initialized"}));
    client.call(1, "slow", &json!({"ms": 300}));
    let input = client.input.as_mut().unwrap();
    input.write_all(b"no json\n{\"json\": true}\n{\"jsonrpc\":\"2.0\",\"id\":2,\"method\":\"tools/list\"}").unwrap();
    drop(client.input.take());
    let mut all: Vec<Value> = client.lines.iter().map(|line| serde_json::from_str(&line).unwrap()).collect();
    assert_eq!(client.ends(), Some(0));
    let mut errors: Vec<i64> = all.iter().filter_map(|m| m["error"]["code"].as_i64()).collect();
    errors.sort_unstable();
    assert_eq!(errors, [-32700, -32600], "{all:?}");
    all.retain(|m| m.get("result").is_some());
    let mut ids: Vec<u64> = all.iter().map(|m| m["id"].as_u64().unwrap()).collect();
    ids.sort_unstable();
    assert_eq!(ids, [0, 1, 2], "{all:?}");
}

#[test]
fn a_session_ends_with_its_client() {
    let dir = tempfile::tempdir().unwrap();
    let up = Perch::up(dir.path(), &["--runtime", "process"]);
    up.apply("a", &json!({"command": [fixture(), "stdio"], "transport": {"type": "Stdio", "sessions": "PerSession"}}));
    up.until("a", "Ready");
    for leaves in ["closes its end", "is told to stop"] {
        let mut client = Connector::initialized(&up, "a");
        let status = client.text(1, "whoami", &json!({}));
        let pid = status.lines().find_map(|l| l.strip_prefix("Pid:")).unwrap().trim().to_owned();
        assert!(std::path::Path::new(&format!("/proc/{pid}")).exists());
        if leaves == "closes its end" {
            drop(client.input.take());
        } else {
            client.call(2, "slow", &json!({"ms": 60_000}));
            client.terminate();
        }
        assert_eq!(client.ends(), Some(0), "a client that {leaves}");
        wait("the session's own process to end", || {
            (!std::path::Path::new(&format!("/proc/{pid}")).exists()).then_some(())
        });
    }
}

#[test]
fn a_gateway_that_is_started_again_goes_unnoticed() {
    let dir = tempfile::tempdir().unwrap();
    let mut up = Perch::up(dir.path(), &["--runtime", "process"]);
    up.apply("http", &json!({"command": [fixture(), "http"], "transport": {"type": "StreamableHttp"}}));
    up.apply(
        "stdio",
        &json!({"command": [fixture(), "stdio"], "transport": {"type": "Stdio", "sessions": "PerSession"}}),
    );
    up.apply("modern", &eras::spec("http", "modern"));
    for name in ["http", "stdio", "modern"] {
        up.until(name, "Ready");
    }
    let mut clients = ["http", "stdio"].map(|name| Connector::initialized(&up, name));
    let mut modern = Connector::start(&up, "modern");
    let listen = json!({"notifications": {"toolsListChanged": true}});
    modern.say(&eras::request("subscriptions/listen", listen, &json!({})));
    assert_eq!(modern.next()["method"], "notifications/subscriptions/acknowledged");
    for killed in [true, false] {
        for client in &mut clients {
            assert_eq!(client.text(1, "echo", &json!({"text": "before"})), "before");
            client.call(2, "slow", &json!({"ms": 60_000}));
        }
        if killed {
            up.kill();
        } else {
            up.stop();
        }
        for client in &clients {
            let lost = client.answer(2);
            let why = lost["error"]["message"].as_str().unwrap_or_else(|| panic!("{lost}"));
            assert!(!killed || why.contains("whether the request was carried out is not known"), "{why}");
        }
        // Another port: the data directory says where.
        up = Perch::up(dir.path(), &["--runtime", "process"]);
        for client in &mut clients {
            let message = json!({"name": "echo", "arguments": {"text": "after"}});
            client.say(&json!({"jsonrpc": "2.0", "id": 3, "method": "tools/call", "params": message}));
            let answer = client.answer(3);
            assert_eq!(answer["result"]["content"][0]["text"], "after", "killed {killed}: {answer}");
        }
        // What a listener may have missed it is told to look at; that it listens anew it need not know.
        let news = modern.next();
        assert_eq!(news["method"], "notifications/tools/list_changed", "killed {killed}: {news}");
    }
    assert!(clients[0].log.lock().unwrap().contains("the session was lost and is open again"));
}

#[test]
fn what_is_wrong_is_said_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let at = ["--data-dir", data.to_str().unwrap()];
    let output = perch(&["connect", "a", at[0], at[1]]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("no perch is running"), "{}", said(&output));
    let up = Perch::up(&data, &["--runtime", "process"]);
    let output = perch(&["connect", at[0], at[1]]);
    assert!(output.status.code() == Some(1) && said(&output).contains("serves nothing"), "{}", said(&output));
    for name in ["a", "b"] {
        up.apply(name, &json!({"command": [fixture(), "stdio"], "transport": {"type": "Stdio"}}));
        up.until(name, "Ready");
    }
    let output = perch(&["connect", at[0], at[1]]);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("default/a, default/b"), "{}", said(&output));
    for (name, key) in [("c", "default/c"), ("other/a", "other/a")] {
        let output = perch(&["connect", name, at[0], at[1]]);
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        assert!(
            said(&output).contains(&format!("no server or toolbox {key}"))
                && said(&output).contains("default/a, default/b"),
            "{}",
            said(&output)
        );
        assert!(output.stdout.is_empty(), "standard output is for messages");
    }
    let nowhere = ["connect", "a", "--url", "http://127.0.0.1:1", "--wait", "0"];
    assert!(said(&perch(&nowhere)).contains("cannot be reached"));
    let endpoint = format!("{}/default/a/mcp", up.gateway);
    assert_eq!(perch(&["connect", "a", "--url", &endpoint]).status.code(), Some(2));
    let mut client = Connector::with(&["--url", &endpoint], &[]);
    client.say(&initialize());
    assert!(client.answer(0)["result"].is_object());
}

#[test]
fn a_token_comes_from_the_environment_or_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let (key, hash) = perch::gateway::access::api_key::create();
    let access = dir.path().join("access.yaml");
    let config = json!({"apiKeys": [{"name": "dana", "hash": hash, "user": "dana"}]});
    std::fs::write(&access, config.to_string()).unwrap();
    let data = dir.path().join("data");
    let up = Perch::up(&data, &["--runtime", "process", "--access-config", access.to_str().unwrap()]);
    up.apply("a", &json!({"command": [fixture(), "stdio"], "transport": {"type": "Stdio"}}));
    up.until("a", "Ready");
    let at = ["a", "--data-dir", data.to_str().unwrap()];
    let output = perch(&[&["connect"], &at[..]].concat());
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("PERCH_TOKEN"), "{}", said(&output));
    let file = dir.path().join("token");
    let with_file = [&at[..], &["--token-file", file.to_str().unwrap()]].concat();
    std::fs::write(&file, format!("{key}\n")).unwrap();
    for mut client in [Connector::with(&at, &[("PERCH_TOKEN", &key)]), Connector::with(&with_file, &[])] {
        client.say(&initialize());
        assert!(client.answer(0)["result"].is_object());
        assert_eq!(client.text(1, "echo", &json!({"text": "in"})), "in");
        assert!(!client.log.lock().unwrap().contains(&key), "nothing shows the key");
    }
}
