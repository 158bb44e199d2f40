//! What several test binaries need: perch as a process, kubectl, and an MCP client on the wire.

#![allow(dead_code, reason = "no test binary needs all of it")]

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{Arc, Mutex, OnceLock},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

pub mod load;

/// How long anything may take.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Waits until `check` gives something.
pub fn wait<T>(what: &str, check: impl FnMut() -> Option<T>) -> T {
    wait_up_to(PATIENCE, check).unwrap_or_else(|| panic!("waited too long for {what}"))
}

/// Waits until `check` gives something, or nothing in all that time.
pub fn wait_up_to<T>(patience: Duration, mut check: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = check() {
            return Some(found);
        }
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// The fixture server, built with the tests.
pub fn fixture() -> String {
    let perch = Path::new(env!("CARGO_BIN_EXE_perch"));
    let path = perch.parent().unwrap().join("examples/mcp-fixture");
    assert!(path.exists(), "{} is built by `cargo build --example mcp-fixture`", path.display());
    path.display().to_string()
}

/// Prints what a process says on its standard error, where that is a pipe. The harness keeps what a
/// test and its threads print, but not what its processes do.
pub fn tell(child: &mut Child) {
    if let Some(stderr) = child.stderr.take() {
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                eprintln!("{line}");
            }
        });
    }
}

/// A running `perch up`, stopped when dropped.
pub struct Perch {
    child: Child,
    /// Its data directory.
    pub dir: PathBuf,
    /// Base URL of its gateway.
    pub gateway: String,
    output: Arc<Mutex<String>>,
    wire: OnceLock<Wire>,
}

impl Perch {
    fn spawn(environment: &[(&str, &str)], dir: &Path, args: &[&str], log: impl Into<Stdio>) -> Child {
        Command::new(env!("CARGO_BIN_EXE_perch"))
            .envs(environment.iter().copied())
            .args(["up", "--api-addr", "127.0.0.1:0", "--gateway-addr", "127.0.0.1:0", "--data-dir"])
            .arg(dir)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap()
    }

    /// Starts perch and kills it so soon that it may not be up yet.
    pub fn up_and_kill(dir: &Path, args: &[&str], after: Duration) {
        let mut child = Self::spawn(&[], dir, args, Stdio::piped());
        tell(&mut child);
        std::thread::sleep(after);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Starts perch and waits until its API and gateway answer. What it says belongs to the test, and
    /// is shown when that fails.
    pub fn up(dir: &Path, args: &[&str]) -> Self {
        Self::up_logging(dir, args, Stdio::piped())
    }

    /// Like [`Perch::up`], with its standard error somewhere.
    pub fn up_logging(dir: &Path, args: &[&str], log: impl Into<Stdio>) -> Self {
        Self::up_in(&[], dir, args, log)
    }

    /// Like [`Perch::up_logging`], with more variables in its environment.
    pub fn up_in(environment: &[(&str, &str)], dir: &Path, args: &[&str], log: impl Into<Stdio>) -> Self {
        let mut child = Self::spawn(environment, dir, args, log);
        tell(&mut child);
        let output = Arc::new(Mutex::new(String::new()));
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let copy = Arc::clone(&output);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                copy.lock().unwrap().push_str(&(line + "\n"));
            }
        });
        let gateway = wait("perch to start", || {
            let output = output.lock().unwrap();
            let started = output.contains("Runtime");
            assert!(child.try_wait().unwrap().is_none(), "perch ended:\n{output}");
            started.then(|| output.lines().find_map(|l| l.strip_prefix("Gateway  ")).unwrap().to_owned())
        });
        Self { child, dir: dir.to_owned(), gateway, output, wire: OnceLock::new() }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it printed.
    pub fn output(&self) -> String {
        self.output.lock().unwrap().clone()
    }

    /// Runs kubectl against it, with a home of its own.
    pub fn kubectl(&self, args: &[&str]) -> Output {
        self.kubectl_with(args, "")
    }

    /// Runs kubectl with something on its standard input.
    pub fn kubectl_with(&self, args: &[&str], stdin: &str) -> Output {
        self.kubectl_in(&[], args, stdin)
    }

    /// Like [`Perch::kubectl_with`], with more variables in its environment.
    pub fn kubectl_in(&self, environment: &[(&str, &str)], args: &[&str], stdin: &str) -> Output {
        use std::io::Write;
        let mut child = Command::new(std::env::var("PERCH_TEST_KUBECTL").unwrap_or_else(|_| "kubectl".into()))
            .args(args)
            .env("HOME", self.dir.join("home"))
            .env("KUBECONFIG", self.dir.join("kubeconfig"))
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kubectl is on PATH");
        child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }

    /// Runs kubectl, which must succeed, and gives what it printed.
    pub fn ok(&self, args: &[&str]) -> String {
        self.ok_with(args, "")
    }

    /// Like [`Perch::ok`], with something on standard input.
    pub fn ok_with(&self, args: &[&str], stdin: &str) -> String {
        let output = self.kubectl_with(args, stdin);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kubectl {args:?}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs kubectl, which must fail, and gives what it complained about.
    pub fn fails(&self, args: &[&str], stdin: &str) -> String {
        let output = self.kubectl_with(args, stdin);
        assert!(!output.status.success(), "kubectl {args:?} succeeded");
        String::from_utf8(output.stderr).unwrap()
    }

    /// Applies an McpServer with this spec.
    pub fn apply(&self, name: &str, spec: &Value) {
        let object =
            json!({"apiVersion": "perch.dev/v1alpha1", "kind": "McpServer", "metadata": {"name": name}, "spec": spec});
        self.ok_with(&["apply", "-f", "-"], &object.to_string());
    }

    /// The status of a server. It is asked for often, and kubectl would take most of the machine.
    pub fn status(&self, name: &str) -> Value {
        if tokio::runtime::Handle::try_current().is_ok() {
            // A benchmark asks within a runtime of its own, where nobody may wait for another.
            let server: Value = serde_json::from_str(&self.ok(&["get", "mcps", name, "-o", "json"])).unwrap();
            return server["status"].clone();
        }
        let path = format!("/apis/perch.dev/v1alpha1/namespaces/default/mcpservers/{name}");
        let (code, _, mut server) = self.wire.get_or_init(|| Wire::to(self)).json("GET", &path, &json!({}));
        assert_eq!(code, 200, "{server}");
        server["status"].take()
    }

    /// Waits until the Ready condition of a server has this reason, and gives its message.
    pub fn until(&self, name: &str, reason: &str) -> String {
        self.status_when(name, reason).1
    }

    /// Like [`Perch::until`], with the whole status of that moment.
    pub fn status_when(&self, name: &str, reason: &str) -> (Value, String) {
        wait(&format!("{name} to be {reason}"), || {
            let status = self.status(name);
            // A server that is stopped on purpose has the one, any other has the other.
            let conditions = status["conditions"].as_array()?;
            let headline = conditions.iter().find(|c| c["type"] == "Ready" || c["type"] == "Suspended")?;
            let message = headline["message"].as_str().filter(|_| headline["reason"] == reason)?.to_owned();
            Some((status, message))
        })
    }

    /// A session with a server through the gateway.
    pub fn session(&self, name: &str) -> Session {
        Session::open(&format!("{}/default/{name}/mcp", self.gateway))
    }

    /// Ends perch without a chance to clean up.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asks perch to stop and waits for it; gives its exit code.
    pub fn stop(mut self) -> Option<i32> {
        self.terminate();
        self.child.wait().unwrap().code()
    }

    fn terminate(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        // It may have ended by itself.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
}

impl Drop for Perch {
    fn drop(&mut self) {
        if self.child.try_wait().ok().flatten().is_none() {
            self.terminate();
            let _ = self.child.wait();
        }
        // A test that failed did not get to its own end.
        if std::thread::panicking() && self.dir.exists() {
            perch(&["down", "--volumes", "--data-dir", self.dir.to_str().unwrap_or_default()]);
        }
    }
}

/// Runs a perch command to its end.
pub fn perch(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_perch")).args(args).stdin(Stdio::null()).output().unwrap()
}

/// A request on the wire: status, session id, and body.
pub fn post(url: &str, session: Option<&str>, body: &str) -> (u16, Option<String>, String) {
    send("POST", url, &[("Mcp-Session-Id", session.unwrap_or_default())], body)
}

/// A request with any method and headers; empty ones are left out.
pub fn send(method: &str, url: &str, headers: &[(&str, &str)], body: &str) -> (u16, Option<String>, String) {
    use http_body_util::{BodyExt, Full};
    use hyper_util::{client::legacy::Client, rt::TokioExecutor};
    let mut request = http::Request::builder()
        .method(method)
        .uri(url)
        .header("Content-Type", "application/json")
        .header("Accept", "application/json, text/event-stream");
    for (name, value) in headers.iter().filter(|(_, v)| !v.is_empty()) {
        if *name == "Host" {
            request.headers_mut().unwrap().insert("Host", value.parse().unwrap());
        } else {
            request = request.header(*name, *value);
        }
    }
    let request = request.body(Full::<bytes::Bytes>::from(body.to_owned())).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = Client::builder(TokioExecutor::new()).build_http();
        let response = client.request(request).await.unwrap();
        let session = response.headers().get("mcp-session-id").map(|v| v.to_str().unwrap().to_owned());
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, session, String::from_utf8(body.to_vec()).unwrap())
    })
}

/// A client of the API that sends what it is told.
pub struct Wire {
    client: kube::Client,
    runtime: tokio::runtime::Runtime,
}

impl Wire {
    /// A client with the kubeconfig of a perch.
    pub fn to(up: &Perch) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let client = runtime.block_on(async {
            let kubeconfig = kube::config::Kubeconfig::read_from(up.dir.join("kubeconfig")).unwrap();
            let config =
                kube::Config::from_custom_kubeconfig(kubeconfig, &kube::config::KubeConfigOptions::default()).await;
            kube::Client::try_from(config.unwrap()).unwrap()
        });
        Self { client, runtime }
    }

    /// Code, warnings and body of the answer.
    pub fn send(&self, method: &str, path: &str, media_type: &str, body: impl Into<Vec<u8>>) -> (u16, String, Value) {
        self.try_send(method, path, media_type, body).expect("an answer")
    }

    /// Like [`Wire::send`]; nothing when there was no whole answer.
    pub fn try_send(
        &self,
        method: &str,
        path: &str,
        media_type: &str,
        body: impl Into<Vec<u8>>,
    ) -> Option<(u16, String, Value)> {
        use http_body_util::BodyExt;
        let request = http::Request::builder().method(method).uri(path).header("Content-Type", media_type);
        let request = request.body(kube::client::Body::from(body.into())).unwrap();
        self.runtime.block_on(async {
            let answer = self.client.send(request).await.ok()?;
            let warnings = answer.headers().get_all("warning").iter().map(|w| w.to_str().unwrap()).collect();
            let code = answer.status().as_u16();
            let body = answer.into_body().collect().await.ok()?.to_bytes();
            Some((code, warnings, serde_json::from_slice(&body).ok()?))
        })
    }

    /// Like [`Wire::send`], with a JSON body.
    pub fn json(&self, method: &str, path: &str, body: &Value) -> (u16, String, Value) {
        self.send(method, path, "application/json", body.to_string())
    }
}

/// An MCP session on the wire.
pub struct Session {
    url: String,
    /// The id that the gateway gave.
    pub id: String,
}

impl Session {
    /// Initialises.
    pub fn open(url: &str) -> Self {
        let request = json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {
            "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "0"},
        }});
        let (status, id, body) = post(url, None, &request.to_string());
        assert_eq!(status, 200, "{body}");
        let session = Self { url: url.to_owned(), id: id.expect("a session id") };
        let (status, _, _) = post(url, Some(&session.id), r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#);
        assert_eq!(status, 202);
        session
    }

    /// Goes on with a session that was opened before.
    pub fn resume(url: &str, id: &str) -> Self {
        Self { url: url.to_owned(), id: id.to_owned() }
    }

    /// Sends a request and gives its response.
    pub fn request(&self, method: &str, params: &Value) -> Value {
        let request = json!({"jsonrpc": "2.0", "id": "t", "method": method, "params": params});
        let (_, _, body) = post(&self.url, Some(&self.id), &request.to_string());
        let last = body.lines().filter_map(|l| l.strip_prefix("data: ")).next_back().map(str::to_owned);
        serde_json::from_str(&last.unwrap_or(body)).unwrap()
    }

    /// Calls a tool and gives the response.
    pub fn call(&self, tool: &str, arguments: &Value) -> Value {
        self.request("tools/call", &json!({"name": tool, "arguments": arguments}))
    }

    /// Calls a tool and gives the text that it answers.
    pub fn text(&self, tool: &str, arguments: &Value) -> String {
        let response = self.call(tool, arguments);
        response["result"]["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{response}")).to_owned()
    }
}
