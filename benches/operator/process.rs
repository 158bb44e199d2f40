//! The operator as a process.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(300);

/// A `perch operator` that runs.
pub struct Operator {
    child: Child,
    admin: SocketAddr,
    /// When it was started.
    pub started: Instant,
}

impl Operator {
    /// Starts it, with `more` arguments. Its log goes to a file.
    pub fn start(kubeconfig: &Path, log: &Path, gateway: &str, more: &[&str]) -> Self {
        let admin = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let log = std::fs::File::options().create(true).append(true).open(log).unwrap();
        let started = Instant::now();
        // Another build may be measured than the one beside the bench.
        let program = std::env::var_os("PERCH_BENCH_OPERATOR").unwrap_or_else(|| env!("CARGO_BIN_EXE_perch").into());
        let child = Command::new(program)
            .args(["operator", "--gateway-url", gateway, "--image", "perch.example/perch:bench"])
            .args(["--pod-namespace", "default", "--gateway-namespace", "default"])
            .args(["--admin-addr", &admin.to_string()])
            .args(more)
            .env("KUBECONFIG", kubeconfig)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Self { child, admin, started }
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it says at `/metrics`; nothing while it does not answer.
    pub fn metrics(&self) -> Option<String> {
        let mut stream = TcpStream::connect(self.admin).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        Some(text)
    }

    /// A figure of its metrics, 0 while there is none.
    pub fn figure(&self, name: &str) -> f64 {
        let metrics = self.metrics().unwrap_or_default();
        let line = metrics.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }

    /// Waits for a figure to be as large.
    pub fn reach(&self, name: &str, least: f64) {
        let deadline = Instant::now() + PATIENCE;
        while self.figure(name) < least {
            assert!(Instant::now() < deadline, "{name} is {}, not {least}", self.figure(name));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Processor time so far.
    pub fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        // After the name in parentheses; fields 14 and 15 are user and system time in 1/100 s.
        let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        Duration::from_millis(ticks * 10)
    }

    /// Asks it to end, and waits.
    pub fn stop(mut self) {
        let pid = self.pid().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        // It may have been stopped.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
