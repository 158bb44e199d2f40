//! What is compared: the server itself, nginx in front of it, and Perch in front of it.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use kube::Api;
use perch::{api::mcp_server::McpServer, gateway::access::api_key};
use serde_json::json;

use crate::{
    report::resident,
    support::{Perch, wait},
    wire::{Wire, request},
};

/// The user's `initialize`.
pub const INITIALIZE: &str = r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"bench","version":"1"}}}"#;

/// An example that is built beside perch.
pub fn example(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_perch")).parent().unwrap().join("examples").join(name);
    assert!(path.exists(), "{} is built by hack/bench.sh", path.display());
    path
}

/// A port that nobody listens on.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A process that ends with the benchmark.
pub struct Ended(pub Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Where calls go.
#[derive(Clone)]
pub struct Target {
    /// What it is called.
    pub name: &'static str,
    /// `host:port`.
    pub address: String,
    /// The endpoint.
    pub path: String,
    /// The line of the head by which one is let in.
    pub credential: String,
    /// The processes whose time counts; none for the server itself.
    pub pids: Vec<u32>,
}

impl Target {
    /// Opens a session and gives its id.
    pub async fn open(&self) -> String {
        let mut wire = Wire::open(&self.address).await.unwrap();
        self.initialize(&mut wire).await
    }

    /// Opens a session over a connection that is there.
    pub async fn initialize(&self, wire: &mut Wire) -> String {
        let answer = wire.ask(&request("POST", &self.address, &self.path, &self.credential, INITIALIZE)).await.unwrap();
        assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
        answer.session.expect("a session id")
    }

    /// A request of a session.
    pub fn request(&self, session: &str, method: &str, body: &str) -> Vec<u8> {
        let head = format!("{}MCP-Protocol-Version: 2025-11-25\r\nMcp-Session-Id: {session}\r\n", self.credential);
        request(method, &self.address, &self.path, &head, body)
    }

    /// Processor time so far.
    pub fn cpu(&self) -> Duration {
        self.pids.iter().copied().map(cpu).sum()
    }
}

/// Processor time of a process so far.
fn cpu(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // After the name in parentheses; fields 14 and 15 are user and system time in 1/100 s.
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    Duration::from_millis((fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()) * 10)
}

/// Starts the server, and gives its address.
pub fn upstream() -> (Ended, String) {
    let mut child = Command::new(example("mcp-bench-upstream")).stdout(Stdio::piped()).spawn().unwrap();
    let mut address = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut address).unwrap();
    (Ended(child), address.trim().to_owned())
}

/// Starts nginx in front of a server; nothing where there is none.
pub fn nginx(dir: &Path, upstream: &str) -> Option<(Ended, Target)> {
    let port = free_port();
    let temp = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {};", dir.display()))
        .join(" ");
    let config = format!(
        r#"daemon off; master_process off; pid {dir}/nginx.pid; error_log stderr error;
events {{ worker_connections 4096; }}
http {{
    access_log off; {temp}
    upstream mcp {{ server {upstream}; keepalive 128; keepalive_requests 10000000; }}
    server {{
        listen 127.0.0.1:{port}; keepalive_requests 10000000;
        location / {{ proxy_pass http://mcp; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; }}
    }}
}}
"#,
        dir = dir.display()
    );
    let file = dir.join("nginx.conf");
    std::fs::write(&file, config).unwrap();
    let child = Command::new("nginx").arg("-p").arg(dir).arg("-c").arg(&file).spawn().ok()?;
    // One process: a worker would outlive a master that is killed.
    let pid = child.id();
    let address = format!("127.0.0.1:{port}");
    wait("nginx to listen", || std::net::TcpStream::connect(&address).ok());
    let target = Target { name: "nginx", address, path: "/mcp".into(), credential: String::new(), pids: vec![pid] };
    Some((Ended(child), target))
}

/// A Perch with everything on: access by key, audit log, metrics, sessions.
pub struct Gateway {
    /// The process.
    pub perch: Perch,
    /// Where it tells of itself.
    admin: String,
    credential: String,
}

impl Gateway {
    /// Starts it.
    pub fn start(dir: &Path) -> Self {
        let (key, hash) = api_key::create();
        let access = json!({"apiKeys": [{"name": "bench", "hash": hash, "user": "bench"}]});
        let file = dir.join("access.yaml");
        std::fs::write(&file, access.to_string()).unwrap();
        let audit = dir.join("audit.log");
        let admin = format!("127.0.0.1:{}", free_port());
        let args = ["--access-config", file.to_str().unwrap(), "--audit-log", audit.to_str().unwrap()];
        let args = [&["--runtime", "process", "--gateway-admin-addr", &admin], &args[..]].concat();
        let perch = Perch::up(&dir.join("data"), &args);
        Self { perch, admin, credential: format!("Authorization: Bearer {key}\r\n") }
    }

    /// A server of it, once it answers.
    pub fn serve(&self, name: &'static str, spec: &serde_json::Value) -> Target {
        self.perch.apply(name, spec);
        self.perch.until(name, "Ready");
        self.target(name)
    }

    /// A server of it.
    pub fn target(&self, name: &str) -> Target {
        Target {
            name: "Perch",
            address: self.perch.gateway.strip_prefix("http://").unwrap().to_owned(),
            path: format!("/default/{name}/mcp"),
            credential: self.credential.clone(),
            pids: vec![self.perch.pid()],
        }
    }

    /// How often its table of routes was replaced.
    pub fn generation(&self) -> u64 {
        let mut stream = std::net::TcpStream::connect(&self.admin).unwrap();
        stream.write_all(b"GET /-/epoch HTTP/1.0\r\nHost: localhost\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let body = text.split_once("\r\n\r\n").unwrap().1;
        serde_json::from_str::<serde_json::Value>(body).unwrap()["generation"].as_u64().unwrap()
    }

    /// Its servers as objects.
    pub async fn servers(&self) -> Api<McpServer> {
        let kubeconfig = kube::config::Kubeconfig::read_from(self.perch.dir.join("kubeconfig")).unwrap();
        let options = kube::config::KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
        Api::namespaced(kube::Client::try_from(config).unwrap(), "default")
    }

    /// Its memory in KiB.
    pub fn resident(&self) -> u64 {
        resident(self.perch.pid())
    }
}
