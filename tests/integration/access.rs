//! Who may use the gateway of a running perch: API keys, rules, limits, and what nobody gets to see.

use std::path::Path;

use http::HeaderMap;
use http_body_util::{BodyExt, Full};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use perch::gateway::access::api_key;
use serde_json::{Value, json};

use crate::support::{Perch, fixture, perch, wait};

pub const LIST: &str = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#;

/// An answer on the wire.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: String,
}

impl Answer {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(|v| v.to_str().unwrap()).unwrap_or_default()
    }

    pub fn json(&self) -> Value {
        let event = self.body.lines().filter_map(|l| l.strip_prefix("data: ")).next_back();
        serde_json::from_str(event.unwrap_or(&self.body)).unwrap_or_else(|_| panic!("{}", self.body))
    }

    pub fn error(&self) -> String {
        self.json()["error"]["message"].as_str().unwrap_or_else(|| panic!("{}", self.body)).to_owned()
    }
}

/// Sends what it is told.
pub fn ask(method: &str, url: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    let mut request = http::Request::builder()
        .method(method)
        .uri(url)
        .header("Content-Type", "application/json")
        .header("Accept", "application/json, text/event-stream");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::<bytes::Bytes>::from(body.to_owned())).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let response = Client::builder(TokioExecutor::new()).build_http().request(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body: String::from_utf8(body.to_vec()).unwrap(),
        }
    })
}

/// A user of a server.
pub struct User<'a> {
    pub url: String,
    pub credential: &'a str,
    pub session: String,
}

impl<'a> User<'a> {
    /// Initialises, which must succeed.
    pub fn open(url: &str, credential: &'a str) -> Self {
        let mut user = Self { url: url.to_owned(), credential, session: String::new() };
        let answer = user.initialize();
        assert_eq!(answer.status, 200, "{answer:?}");
        user.session = answer.header("mcp-session-id").to_owned();
        user
    }

    pub fn initialize(&self) -> Answer {
        let params = json!({"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "0"}});
        self.send(&json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}).to_string())
    }

    pub fn send(&self, body: &str) -> Answer {
        let bearer = format!("Bearer {}", self.credential);
        let mut headers = vec![("Authorization", bearer.as_str())];
        if !self.session.is_empty() {
            headers.push(("Mcp-Session-Id", &self.session));
        }
        ask("POST", &self.url, &headers, body)
    }

    pub fn call(&self, tool: &str, arguments: &Value) -> Answer {
        let params = json!({"name": tool, "arguments": arguments});
        self.send(&json!({"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": params}).to_string())
    }
}

/// A perch whose access is what the file says.
pub fn up(dir: &Path, access: &Value) -> Perch {
    let file = write(dir, access);
    Perch::up(&dir.join("data"), &["--runtime", "process", "--access-config", &file])
}

/// Writes the file of access, all at once.
pub fn write(dir: &Path, access: &Value) -> String {
    let (file, new) = (dir.join("access.yaml"), dir.join("access.new"));
    std::fs::write(&new, access.to_string()).unwrap();
    std::fs::rename(&new, &file).unwrap();
    file.display().to_string()
}

pub fn serve(up: &Perch, name: &str) -> String {
    up.apply(name, &json!({"command": [fixture(), "stdio"]}));
    up.until(name, "Ready");
    format!("{}/default/{name}/mcp", up.gateway)
}

struct Key {
    key: String,
    entry: Value,
}

fn key(user: &str, groups: &[&str]) -> Key {
    let (key, hash) = api_key::create();
    Key { key, entry: json!({"name": user, "hash": hash, "user": user, "groups": groups}) }
}

#[test]
fn who_shows_nothing_good_does_not_come_in_and_probes_do() {
    let dir = tempfile::tempdir().unwrap();
    let dana = key("dana", &[]);
    let up = up(dir.path(), &json!({"apiKeys": [dana.entry]}));
    // Ready means that a handshake through the gateway succeeded.
    let url = serve(&up, "a");
    let shown = |headers: &[(&str, &str)]| ask("POST", &url, headers, LIST);
    let bearer = format!("Bearer {}", dana.key);
    let wrong = format!("Bearer {}", api_key::create().0);
    for headers in [
        &[][..],
        &[("Authorization", wrong.as_str())],
        &[("Authorization", "Bearer x")],
        &[("Authorization", "Basic ZGFuYTp4")],
        &[("Authorization", dana.key.as_str())],
        &[("X-API-Key", "perch_x")],
        &[("Authorization", bearer.as_str()), ("X-API-Key", dana.key.as_str())],
        &[("Authorization", bearer.as_str()), ("Authorization", wrong.as_str())],
    ] {
        let answer = shown(headers);
        assert_eq!(answer.status, 401, "{headers:?}");
        assert!(answer.header("www-authenticate").starts_with("Bearer"), "{answer:?}");
        assert!(!answer.body.contains("perch_"), "no answer holds a credential: {answer:?}");
    }
    let nobody = |method: &str, path: &str| ask(method, &format!("{}{path}", up.gateway), &[], "").status;
    assert_eq!(nobody("GET", "/"), 401);
    assert_eq!(nobody("GET", "/default/nothing/mcp"), 401, "nobody learns which servers there are");
    assert_eq!(nobody("GET", "/default/a/sse"), 401);
    assert_eq!(nobody("DELETE", "/default/a/mcp"), 401);
    assert_eq!(nobody("GET", "/healthz"), 200);
    assert_eq!(nobody("GET", "/.well-known/oauth-protected-resource"), 404, "no issuer, no metadata");

    let user = User::open(&url, &dana.key);
    assert_eq!(user.call("echo", &json!({"text": "hi"})).json()["result"]["content"][0]["text"], "hi");
    let headers = [("X-API-Key", dana.key.as_str()), ("Mcp-Session-Id", user.session.as_str())];
    assert_eq!(ask("POST", &url, &headers, LIST).status, 200);
    assert_eq!(up.stop(), Some(0));
}

#[test]
fn a_session_is_of_no_use_to_another_user() {
    let dir = tempfile::tempdir().unwrap();
    let (dana, eve) = (key("dana", &[]), key("eve", &[]));
    let up = up(dir.path(), &json!({"anonymous": true, "apiKeys": [dana.entry, eve.entry]}));
    let stdio = serve(&up, "a");
    up.apply("b", &json!({"command": [fixture(), "http"], "transport": {"type": "StreamableHttp"}}));
    up.until("b", "Ready");
    for url in [stdio.clone(), format!("{}/default/b/mcp", up.gateway)] {
        let user = User::open(&url, &dana.key);
        assert_eq!(user.send(LIST).status, 200);
        let thief = User { url: url.clone(), credential: &eve.key, session: user.session.clone() };
        assert_eq!(thief.send(LIST).status, 404, "{url}");
        assert_eq!(
            ask("POST", &url, &[("Mcp-Session-Id", &user.session)], LIST).status,
            404,
            "nor to one without a name"
        );
        let bearer = format!("Bearer {}", eve.key);
        let theft = [("Authorization", bearer.as_str()), ("Mcp-Session-Id", user.session.as_str())];
        assert_eq!(ask("DELETE", &url, &theft, "").status, 404);
        assert_eq!(user.send(LIST).status, 200, "it is still there for whom it belongs to");
    }
    // The stream of an old client.
    let sse = stdio.replace("/mcp", "/sse");
    let (token, _stream) = open_stream(&sse, &dana.key);
    let post = |credential: &str| {
        let bearer = format!("Bearer {credential}");
        ask("POST", &format!("{}{token}", up.gateway), &[("Authorization", &bearer)], LIST).status
    };
    assert_eq!(post(&eve.key), 404);
    assert_eq!(post(&dana.key), 202);
}

/// Opens the stream of a 2024-11-05 client, which stays open, and gives where messages go.
fn open_stream(url: &str, key: &str) -> (String, std::net::TcpStream) {
    use std::io::{BufRead, BufReader, Write};
    let parsed: url::Url = url.parse().unwrap();
    let mut stream = std::net::TcpStream::connect(parsed.socket_addrs(|| None).unwrap()[0]).unwrap();
    let host = format!("{}:{}", parsed.host_str().unwrap(), parsed.port().unwrap());
    write!(stream, "GET {} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {key}\r\n\r\n", parsed.path()).unwrap();
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map(Result::unwrap);
    let endpoint = lines.find_map(|line| line.strip_prefix("data: ").map(str::to_owned)).unwrap();
    (endpoint, stream)
}

#[test]
fn servers_see_no_credentials() {
    let dir = tempfile::tempdir().unwrap();
    let dana = key("dana", &[]);
    let up = up(dir.path(), &json!({"apiKeys": [dana.entry]}));
    let mirror = mirror();
    up.apply("a", &json!({"remote": {"url": mirror}, "transport": {"type": "StreamableHttp"}}));
    let url = format!("{}/default/a/mcp", up.gateway);
    wait("the route", || {
        (User { url: url.clone(), credential: &dana.key, session: String::new() }.initialize().status == 200)
            .then_some(())
    });
    for credential in [("Authorization", format!("Bearer {}", dana.key)), ("X-API-Key", dana.key.clone())] {
        let headers = [(credential.0, credential.1.as_str()), ("Cookie", "secret=1"), ("User-Agent", "seen")];
        let seen = ask(
            "POST",
            &url,
            &headers,
            r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"t","version":"0"}}}"#,
        );
        let said = seen.json()["result"]["instructions"].as_str().unwrap().to_lowercase();
        assert!(said.contains("user-agent: seen"), "the mirror shows headers: {said}");
        for secret in [dana.key.to_lowercase().as_str(), "authorization", "x-api-key", "cookie"] {
            assert!(!said.contains(secret), "{secret}: {said}");
        }
    }
}

/// A server that tells which headers it sees.
fn mirror() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let url = format!("http://{}/mcp", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let answer = |headers: HeaderMap, body: String| async move {
                let seen: Vec<_> = headers.iter().map(|(n, v)| format!("{n}: {}", v.to_str().unwrap())).collect();
                let id = serde_json::from_str::<Value>(&body).unwrap()["id"].take();
                axum::Json(json!({"jsonrpc": "2.0", "id": id, "result": {
                    "protocolVersion": "2025-11-25", "capabilities": {},
                    "serverInfo": {"name": "mirror", "version": "0"}, "instructions": seen.join("\n"),
                }}))
            };
            let app = axum::Router::new().route("/mcp", axum::routing::post(answer));
            axum::serve(tokio::net::TcpListener::from_std(listener).unwrap(), app).await.unwrap();
        });
    });
    url
}

#[test]
fn rules_say_who_may_use_which_server_and_tool() {
    let dir = tempfile::tempdir().unwrap();
    let (dana, eve, ops) = (key("dana", &[]), key("eve", &[]), key("oscar", &["ops"]));
    let access = json!({"apiKeys": [dana.entry, eve.entry, ops.entry], "allow": [
        {"users": ["dana"], "servers": ["default/a"], "tools": ["echo", "slo*"]},
        {"groups": ["ops"]},
    ]});
    let up = up(dir.path(), &access);
    let (a, b) = (serve(&up, "a"), serve(&up, "b"));
    let user = User::open(&a, &dana.key);
    assert_eq!(user.call("echo", &json!({"text": "hi"})).status, 200);
    assert_eq!(user.call("slow", &json!({"ms": 1})).status, 200);
    let refused = user.call("env", &json!({"name": "HOME"}));
    assert_eq!(refused.status, 403);
    assert_eq!(refused.error(), "you may not call the tool \"env\" of server default/a: no rule allows it");
    assert_eq!(refused.json()["id"], 2);
    // A server could read each of these as a call of env.
    for sly in [
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"env","name":"echo","arguments":{}}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","Name":"env","arguments":{}}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/list","Method":"tools/call","params":{"name":"env"}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo"},"PARAMS":{"name":"env"}}"#,
    ] {
        assert_eq!(user.send(sly).status, 400, "{sly}");
    }
    for refused in [
        r#"{"jsonrpc":"2.0","id":1,"method":"tools\u002fcall","params":{"n\u0061me":"env"}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/call"}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":["env"]}}"#,
    ] {
        assert_eq!(user.send(refused).status, 403, "{refused}");
    }
    let elsewhere = User { url: b.clone(), credential: &dana.key, session: String::new() }.initialize();
    assert_eq!(
        (elsewhere.status, elsewhere.error()),
        (403, "you may not use server default/b: no rule allows it".into())
    );
    assert_eq!(User { url: a.clone(), credential: &eve.key, session: String::new() }.initialize().status, 403);
    assert_eq!(User::open(&b, &ops.key).call("env", &json!({"name": "NOTHING"})).status, 200);
    let index = |key: &str| {
        let answer = ask("GET", &up.gateway, &[("X-API-Key", key)], "").json();
        answer["servers"].as_array().unwrap().iter().map(|s| s["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(index(&dana.key), ["a"]);
    assert_eq!(index(&ops.key), ["a", "b"]);
    assert!(index(&eve.key).is_empty());
}

#[test]
fn who_asks_too_often_must_wait() {
    let dir = tempfile::tempdir().unwrap();
    let (dana, eve) = (key("dana", &[]), key("eve", &[]));
    let access = json!({"apiKeys": [dana.entry, eve.entry], "rateLimits": [
        {"tools": ["echo"], "requests": 2, "period": "1h"},
        {"users": ["eve"], "requests": 1, "period": "1h"},
    ]});
    let up = up(dir.path(), &access);
    let url = serve(&up, "a");
    let user = User::open(&url, &dana.key);
    let echo = || user.call("echo", &json!({"text": "x"}));
    assert_eq!((echo().status, echo().status), (200, 200));
    let limited = echo();
    assert_eq!(limited.status, 429);
    let seconds: u64 = limited.header("retry-after").parse().unwrap();
    assert!((1790..=1800).contains(&seconds), "half of the period: {seconds}");
    assert!(limited.error().contains("too many calls of \"echo\""), "{limited:?}");
    assert_eq!(user.call("env", &json!({"name": "X"})).status, 200, "another tool");
    let other = User::open(&url, &eve.key);
    assert_eq!(other.send(LIST).status, 429, "eve may ask once, and has");
    // Probes are not counted.
    assert_eq!(up.status("a")["phase"], "Ready");
}

#[test]
fn a_changed_file_is_followed_and_a_broken_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let (dana, eve) = (key("dana", &[]), key("eve", &[]));
    let keys = dir.path().join("keys.yaml");
    let listed = |entries: &[&Value]| std::fs::write(&keys, json!(entries).to_string()).unwrap();
    listed(&[&dana.entry]);
    let file = write(dir.path(), &json!({"apiKeyFiles": ["keys.yaml"]}));
    let log = dir.path().join("log");
    let args = ["--runtime", "process", "--access-config", &file];
    let up = Perch::up_logging(&dir.path().join("data"), &args, std::fs::File::create(&log).unwrap());
    let complaints = |n: usize| {
        wait("the complaint about the file", || {
            let log = std::fs::read_to_string(&log).unwrap();
            (log.matches("the file of access cannot be used").count() == n).then_some(())
        });
    };
    let url = serve(&up, "a");
    let status = |key: &str| ask("POST", &url, &[("X-API-Key", key)], "{}").status;
    assert_eq!((status(&dana.key), status(&eve.key)), (400, 401));
    std::fs::write(&keys, "- {name: broken").unwrap();
    complaints(1);
    assert_eq!((status(&dana.key), status(&eve.key)), (400, 401));
    listed(&[&eve.entry]);
    wait("the new key", || (status(&eve.key) == 400).then_some(()));
    assert_eq!(status(&dana.key), 401, "the old key is good no more");
    std::fs::remove_file(&keys).unwrap();
    complaints(2);
    assert_eq!((status(&dana.key), status(&eve.key)), (401, 400));
}

#[test]
fn perch_does_not_start_when_it_cannot_tell_who_may() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data").display().to_string();
    for (access, expected) in [
        (json!({}), "it lets nobody in"),
        (json!({"anonymous": false}), "it lets nobody in"),
        (json!({"anonymous": true, "alow": []}), "unknown field"),
        (json!({"apiKeys": [{"name": "a", "hash": "x", "user": "a"}]}), "has no sound hash"),
        (json!({"apiKeyFiles": ["missing.yaml"]}), "missing.yaml"),
        (json!({"tokenReview": {"audiences": ["perch"]}}), "tokenReview needs a cluster"),
        (json!({"issuers": [{"issuer": "http://login.example.com"}]}), "is no https URL"),
        (json!({"issuers": [{"issuer": "https://a.example"}, {"issuer": "https://b.example"}]}), "has no userPrefix"),
        (json!({"issuers": [{"issuer": "https://a.example", "algorithms": ["HS256"]}]}), "has the algorithm \"HS256\""),
        (json!({"anonymous": true, "allow": [{"servers": ["*"]}]}), "allow[0]: it is for nobody"),
    ] {
        let file = write(dir.path(), &access);
        let args = ["up", "--runtime", "process", "--api-addr", "127.0.0.1:0", "--gateway-addr", "127.0.0.1:0"];
        let output = perch(&[&args[..], &["--data-dir", &data, "--access-config", &file]].concat());
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{access}: {said}");
        assert!(said.contains(expected), "{access}: {said}");
    }
    let output = perch(&["gateway"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--access-config FILE"));
    assert_eq!(perch(&["gateway", "--access", "anonymous", "--access-config", "x"]).status.code(), Some(2));
}

#[test]
fn a_key_that_the_command_makes_is_good_and_logs_keep_quiet_about_it() {
    let dir = tempfile::tempdir().unwrap();
    let made = perch(&["access", "key", "create", "ci", "--user", "robot", "--group", "automation"]);
    assert!(made.status.success());
    let said = String::from_utf8(made.stdout).unwrap();
    let (key, line) = said.trim_end().split_once('\n').unwrap();
    assert!(!line.contains(key) && line.contains("automation") && line.contains("robot"), "{said}");
    std::fs::write(dir.path().join("keys.yaml"), line).unwrap();
    let file = write(dir.path(), &json!({"apiKeyFiles": ["keys.yaml"]}));
    let log = dir.path().join("log");
    let args = ["--log", "trace", "--runtime", "process", "--access-config", &file];
    let up = Perch::up_logging(&dir.path().join("data"), &args, std::fs::File::create(&log).unwrap());
    let url = serve(&up, "a");
    assert_eq!(User::open(&url, key).call("echo", &json!({"text": "hi"})).status, 200);
    let forged = api_key::create().0;
    assert_eq!(User { url, credential: &forged, session: String::new() }.initialize().status, 401);
    assert_eq!(up.stop(), Some(0));
    let log = std::fs::read_to_string(log).unwrap();
    assert!(log.contains("TRACE") && log.len() > 10_000, "the log tells everything else");
    for secret in [key, &forged] {
        assert!(!log.contains(secret), "{:?}", log.lines().find(|l| l.contains(secret)));
    }
    // Nor the key of perch's own probes, which nobody else knows.
    let leak = log.lines().find(|line| line.contains(api_key::PREFIX));
    assert!(leak.is_none(), "{leak:?}");
    let refused = perch(&["access", "key", "create", "x", "--user", "system:masters"]);
    assert_eq!(refused.status.code(), Some(2));
}
