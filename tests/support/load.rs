//! Many users who call a tool at a steady rate, each with a key of their own, and what they saw.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use jiff::Timestamp;
use perch::gateway::access::api_key;
use serde_json::{Value, json};

const PROTOCOL: &str = "2026-07-28";

/// Users with keys.
pub struct Users {
    keys: Vec<String>,
    /// Their entries in a file of access.
    pub entries: Vec<Value>,
}

impl Users {
    /// So many users.
    pub fn new(number: usize) -> Self {
        let (mut keys, mut entries) = (Vec::new(), Vec::new());
        for i in 0..number {
            let (key, hash) = api_key::create();
            let user = Self::name(i);
            keys.push(key);
            entries.push(json!({"name": user, "user": user, "hash": hash}));
        }
        Self { keys, entries }
    }

    /// The name of a user.
    pub fn name(number: usize) -> String {
        format!("user-{number}")
    }
}

/// What users saw of one revision, by the name that it gives itself.
#[derive(Clone, Debug, Default)]
pub struct Saw {
    /// Calls that it answered.
    pub calls: usize,
    /// Those of them that it answered with an error of its own.
    pub errors: usize,
    /// Who was answered.
    pub users: BTreeSet<usize>,
    /// When the last call that it answered was sent.
    pub last: Option<Timestamp>,
}

/// What all users saw.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Calls that were sent.
    pub sent: usize,
    /// By revision.
    pub by: BTreeMap<String, Saw>,
    /// Whatever is no answer of a revision.
    pub failures: Vec<String>,
    /// The longest time that an answer took.
    pub slowest: Duration,
}

impl Seen {
    /// What was seen of a revision.
    pub fn of(&self, name: &str) -> Saw {
        self.by.get(name).cloned().unwrap_or_default()
    }

    /// Calls that were answered.
    pub fn answered(&self) -> usize {
        self.by.values().map(|saw| saw.calls).sum()
    }
}

/// Calls a second: 200, or what `PERCH_TEST_LOAD` says, for machines that cannot do that.
pub fn rate() -> u32 {
    std::env::var("PERCH_TEST_LOAD").map_or(200, |rate| rate.parse().expect("PERCH_TEST_LOAD is a number"))
}

/// A load, until it is ended.
pub struct Load {
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    begun: Instant,
    runs: std::thread::JoinHandle<()>,
}

impl Load {
    /// Calls the tool `name` at this rate, each time as the next user. A call is sent when its time
    /// has come, whether those before it were answered or not.
    /// `host` is the name under which the gateway is called, where the URL has its address.
    pub fn start(url: &str, host: Option<&str>, users: &Users, per_second: u32) -> Self {
        let (seen, stop) = (Arc::new(Mutex::new(Seen::default())), Arc::new(AtomicBool::new(false)));
        let to = (url.to_owned(), host.map(str::to_owned));
        let keys = users.keys.clone();
        let (copy, ends) = (Arc::clone(&seen), Arc::clone(&stop));
        let runs = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(run(to, keys, per_second, copy, ends));
        });
        Self { seen, stop, begun: Instant::now(), runs }
    }

    /// What was seen so far.
    pub fn seen(&self) -> Seen {
        self.seen.lock().unwrap().clone()
    }

    /// Ends it when every call is answered; gives what was seen, and the calls a second.
    pub fn end(self) -> (Seen, f64) {
        self.stop.store(true, Ordering::Relaxed);
        let seconds = self.begun.elapsed().as_secs_f64();
        self.runs.join().unwrap();
        let seen = self.seen.lock().unwrap().clone();
        #[expect(clippy::cast_precision_loss, reason = "far fewer calls than that")]
        let rate = seen.sent as f64 / seconds;
        (seen, rate)
    }
}

async fn run(
    to: (String, Option<String>),
    keys: Vec<String>,
    per_second: u32,
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
) {
    let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
    let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(60)).build().unwrap();
    let mut clock = tokio::time::interval(Duration::from_secs(1) / per_second);
    let mut calls = tokio::task::JoinSet::new();
    for user in (0..keys.len()).cycle() {
        clock.tick().await;
        if stop.load(Ordering::Relaxed) {
            break;
        }
        seen.lock().unwrap().sent += 1;
        let (http, to, key, seen) = (http.clone(), to.clone(), keys[user].clone(), Arc::clone(&seen));
        calls.spawn(async move {
            let (sent, begun) = (Timestamp::now(), Instant::now());
            let answer = call(&http, &to.0, to.1.as_deref(), &key).await;
            let mut seen = seen.lock().unwrap();
            seen.slowest = seen.slowest.max(begun.elapsed());
            match answer {
                Ok((name, failed)) => {
                    let saw = seen.by.entry(name).or_default();
                    saw.calls += 1;
                    saw.errors += usize::from(failed);
                    saw.users.insert(user);
                    saw.last = saw.last.max(Some(sent));
                }
                Err(why) => seen.failures.push(format!("{sent} user {user}: {why}")),
            }
        });
        while calls.try_join_next().is_some() {}
    }
    while let Some(ended) = calls.join_next().await {
        ended.unwrap();
    }
}

/// One call: the name that the revision gives itself, and whether it says that the call failed.
async fn call(http: &reqwest::Client, url: &str, host: Option<&str>, key: &str) -> Result<(String, bool), String> {
    let meta = json!({"io.modelcontextprotocol/protocolVersion": PROTOCOL, "io.modelcontextprotocol/clientCapabilities": {},
        "io.modelcontextprotocol/clientInfo": {"name": "load", "version": "0"}});
    let params = json!({"name": "name", "arguments": {}, "_meta": meta});
    let request = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params});
    let mut request = http
        .post(url)
        .header("Content-Type", "application/json")
        .header("Accept", "application/json, text/event-stream")
        .header("X-API-Key", key)
        .header("MCP-Protocol-Version", PROTOCOL)
        .header("Mcp-Method", "tools/call")
        .header("Mcp-Name", "name")
        .body(request.to_string());
    if let Some(host) = host {
        request = request.header("Host", host);
    }
    let response = request.send().await.map_err(|error| format!("{error:?}"))?;
    let status = response.status();
    let body = response.text().await.map_err(|error| format!("{status} {error:?}"))?;
    let last = body.lines().filter_map(|line| line.strip_prefix("data: ")).next_back();
    let message: Value = serde_json::from_str(last.unwrap_or(&body)).unwrap_or_default();
    let said = message["result"]["content"][0]["text"].as_str().filter(|name| status == 200 && !name.is_empty());
    let name = said.ok_or_else(|| format!("{status} {body}"))?;
    Ok((name.to_owned(), message["result"]["isError"] == true))
}
