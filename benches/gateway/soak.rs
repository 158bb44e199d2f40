//! A long time of everything at once: clients of both eras at servers of both eras, servers that are
//! killed at random, and a table that is replaced each second.
//!
//! Each answer is checked. A call may fail only when its server was killed while the call was in
//! hand or shortly before, and a session may be lost only when an instance of its server was killed
//! since it began. Memory and open files must not grow. `PERCH_SOAK_MINUTES` says how long (30),
//! `PERCH_TEST_SEED` repeats the kills.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    time::{Duration, Instant},
};

use futures::{StreamExt, stream};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use perch::api::mcp_server::McpServer;
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use serde_json::{Value, json};
use sysinfo::{Pid, ProcessRefreshKind, RefreshKind, System, UpdateKind};

use crate::{
    proxy::{Gateway, Target, example},
    report::{Report, mib},
    wire::{Answer, Wire, request},
};

/// Clients of each era at each server.
const CLIENTS: usize = 3;
/// How long after a kill its server may fail: an instance starts again, and is introduced.
const RECOVERY: Duration = Duration::from_secs(20);
/// Time between two kills, at most.
const KILL_EACH: Duration = Duration::from_secs(10);
/// An instance that ends sooner is not started again at once: it crashes again and again.
const HEALTHY: Duration = Duration::from_secs(60);
/// Longest time for an answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// Most that memory may grow from the first half to the second.
const MOST_GROWTH: f64 = 1.10;
/// Changes that fill what the control plane keeps in memory for those who watch. They are made before
/// anything is measured, else it would grow as it gets them.
const HISTORY: usize = 10_000;
/// Growth that is no matter, in KiB.
const NOISE: f64 = 4096.0;

struct Soak {
    started: Instant,
    over: Cell<bool>,
    kills: RefCell<BTreeMap<&'static str, Vec<Instant>>>,
    calls: Cell<u64>,
    failed: Cell<u64>,
    sessions: Cell<u64>,
    number: Cell<u64>,
}

impl Soak {
    /// Whether an instance of a server was killed after a moment.
    fn was_killed(&self, server: &str, since: Instant) -> bool {
        self.kills.borrow().get(server).is_some_and(|kills| kills.iter().any(|kill| *kill >= since))
    }

    /// Counts a failure, which must have its reason.
    fn failed(&self, server: &str, since: Instant, what: &str) {
        let since = since.checked_sub(RECOVERY).unwrap_or(since);
        let after = self.started.elapsed();
        assert!(self.was_killed(server, since), "{after:?}: {server} failed though nothing killed it: {what}");
        self.failed.set(self.failed.get() + 1);
    }

    fn next(&self) -> u64 {
        self.number.set(self.number.get() + 1);
        self.number.get()
    }
}

/// Runs it.
pub async fn measure(report: &mut Report) {
    let minutes: f64 = std::env::var("PERCH_SOAK_MINUTES").map_or(30.0, |m| m.parse().unwrap());
    let seed: u64 = std::env::var("PERCH_TEST_SEED").map_or_else(|_| rand::random(), |s| s.parse().unwrap());
    eprintln!("PERCH_TEST_SEED={seed}");
    let dir = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(dir.path());
    let fixture = example("mcp-conformance-fixture");
    let mut targets = Vec::new();
    for (name, transport, era) in [
        ("http-legacy", "http", "legacy"),
        ("http-modern", "http", "modern"),
        ("stdio-legacy", "stdio", "legacy"),
        ("stdio-modern", "stdio", "modern"),
    ] {
        let type_ = if transport == "http" { "StreamableHttp" } else { "Stdio" };
        let spec = json!({
            "command": [fixture, transport, "--era", era], "transport": {"type": type_}, "replicas": 2,
        });
        targets.push((name, gateway.serve(name, &spec)));
    }
    let names: Vec<&'static str> = targets.iter().map(|(name, _)| *name).collect();
    let api = gateway.servers().await;
    let changes = (0..HISTORY).map(|number| (&api, names[number % names.len()], number));
    stream::iter(changes).for_each_concurrent(16, async |(api, name, number)| change(api, name, number).await).await;
    let soak = Soak {
        started: Instant::now(),
        over: Cell::new(false),
        kills: RefCell::default(),
        calls: Cell::new(0),
        failed: Cell::new(0),
        sessions: Cell::new(0),
        number: Cell::new(0),
    };
    let mut clients = Vec::new();
    for (name, target) in &targets {
        for _ in 0..CLIENTS {
            clients.push(futures::future::Either::Left(legacy(&soak, name, target)));
            clients.push(futures::future::Either::Right(modern(&soak, name, target)));
        }
    }
    let before = gateway.generation();
    let (samples, ..) = tokio::join!(
        watch(&soak, &gateway, Duration::from_secs_f64(minutes * 60.0)),
        futures::future::join_all(clients),
        kill(&soak, &gateway, &names, StdRng::seed_from_u64(seed)),
        swap(&soak, &api, &names),
    );
    let kills: usize = soak.kills.borrow().values().map(Vec::len).sum();
    let swaps = gateway.generation() - before;
    assert!(kills > 0 && swaps > 0, "{kills} kills, {swaps} swaps");
    let (memory, files) = growth(&samples);
    report.line(
        &format!("soak of {minutes:.0} minutes: {kills} kills, table replaced {swaps} times"),
        "no wrong answer",
        format!(
            "{} calls in {} sessions; {} failed, each where its server had been killed",
            soak.calls.get(),
            soak.sessions.get(),
            soak.failed.get()
        ),
    );
    report.line("memory in the second and in the last quarter of it", "no growth", memory);
    report.line("open files in the second and in the last quarter of it", "no growth", files);
}

/// Calls over a connection, which is opened again when it broke.
async fn ask(wire: &mut Option<Wire>, target: &Target, bytes: &[u8]) -> Result<Answer, String> {
    let mut connected = match wire.take() {
        Some(connected) => connected,
        None => Wire::open(&target.address).await.expect("the gateway takes connections"),
    };
    let began = Instant::now();
    let answer = tokio::time::timeout(PATIENCE, connected.ask(bytes)).await;
    let answer = answer.unwrap_or_else(|_| {
        panic!("no answer within {PATIENCE:?}, asked {:?} ago: {}", began.elapsed(), String::from_utf8_lossy(bytes))
    });
    let answer = answer.map_err(|error| error.to_string())?;
    *wire = Some(connected);
    Ok(answer)
}

/// The response in an answer, which may be a stream.
fn response(answer: &Answer) -> Value {
    let text = String::from_utf8_lossy(&answer.body);
    let last = text.lines().filter_map(|line| line.strip_prefix("data: ")).next_back();
    serde_json::from_str(last.unwrap_or(&text)).unwrap_or_else(|_| json!({"no JSON": text}))
}

/// Whether an answer says what it must; why not, where it is an error. What is neither ends the soak.
fn judge(answer: &Answer, id: u64, expected: &str) -> Result<(), String> {
    let message = response(answer);
    if answer.status != 200 || message.get("error").is_some() {
        let has_error = message["error"]["message"].is_string() && message["error"]["code"].is_i64();
        assert!(has_error, "HTTP {} without a JSON-RPC error: {message}", answer.status);
        return Err(format!("HTTP {}: {message}", answer.status));
    }
    assert_eq!(message["id"], id, "an answer to another call: {message}");
    assert_eq!(message["result"]["content"][0]["text"], expected, "an answer to another call: {message}");
    Ok(())
}

async fn legacy(soak: &Soak, name: &str, target: &Target) {
    let mut wire = None;
    let mut session: Option<(String, Instant)> = None;
    while !soak.over.get() {
        let began = Instant::now();
        let Some((id, opened)) = &session else {
            let initialize = crate::proxy::INITIALIZE.replace("\"id\":1", &format!("\"id\":{}", soak.next()));
            let bytes = request("POST", &target.address, &target.path, &target.credential, &initialize);
            match ask(&mut wire, target, &bytes).await {
                Ok(Answer { status: 200, session: Some(id), .. }) => {
                    soak.sessions.set(soak.sessions.get() + 1);
                    let told = target.request(&id, "POST", r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#);
                    if ask(&mut wire, target, &told).await.is_ok_and(|answer| answer.status == 202) {
                        session = Some((id, began));
                    } else {
                        soak.failed(name, began, "notifications/initialized");
                    }
                }
                other => soak.failed(name, began, &format!("{other:?}")),
            }
            continue;
        };
        let number = soak.next();
        let text = format!("{number}-{}", "é".repeat(usize::try_from(number % 97).unwrap()));
        let call = json!({"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": {
            "name": "echo", "arguments": {"text": text},
        }});
        let answer = ask(&mut wire, target, &target.request(id, "POST", &call.to_string())).await;
        soak.calls.set(soak.calls.get() + 1);
        match answer.and_then(|answer| judge(&answer, number, &text).map_err(|why| format!("{}, {why}", answer.status)))
        {
            Ok(()) if number.is_multiple_of(200) => {
                // Sessions come and go.
                let _ = ask(&mut wire, target, &target.request(id, "DELETE", "")).await;
                session = None;
            }
            Ok(()) => {}
            Err(why) if why.starts_with("404") => {
                assert!(soak.was_killed(name, *opened), "{name} lost a session though nothing killed it: {why}");
                soak.failed.set(soak.failed.get() + 1);
                session = None;
            }
            Err(why) => soak.failed(name, began, &why),
        }
    }
}

async fn modern(soak: &Soak, name: &str, target: &Target) {
    let mut wire = None;
    let head = format!(
        "{}MCP-Protocol-Version: 2026-07-28\r\nMcp-Method: tools/call\r\nMcp-Name: echo\r\n",
        target.credential
    );
    while !soak.over.get() {
        let began = Instant::now();
        let number = soak.next();
        let text = format!("{number}-{}", "x".repeat(usize::try_from(number % 991).unwrap()));
        let call = json!({"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": {
            "name": "echo", "arguments": {"text": text}, "_meta": {
                "io.modelcontextprotocol/protocolVersion": "2026-07-28",
                "io.modelcontextprotocol/clientCapabilities": {},
            },
        }});
        let bytes = request("POST", &target.address, &target.path, &head, &call.to_string());
        soak.calls.set(soak.calls.get() + 1);
        let answer = ask(&mut wire, target, &bytes).await;
        if let Err(why) = answer.and_then(|answer| judge(&answer, number, &text)) {
            soak.failed(name, began, &why);
        }
    }
}

/// Kills an instance of a server that ran for long enough, if there is one.
fn kill_one(soak: &Soak, perch: u32, name: &'static str, number: usize) {
    let (transport, era) = name.split_once('-').unwrap();
    let kind = ProcessRefreshKind::nothing().with_cmd(UpdateKind::Always).without_tasks();
    let system = System::new_with_specifics(RefreshKind::nothing().with_processes(kind));
    let grown: Vec<_> = (system.processes().values())
        .filter(|process| process.parent() == Some(Pid::from_u32(perch)) && process.run_time() > HEALTHY.as_secs())
        .filter(|process| process.cmd().ends_with(&[transport.into(), "--era".into(), era.into()]))
        .collect();
    if let Some(process) = grown.get(number % grown.len().max(1)) {
        // Written down first: a call may fail at once.
        soak.kills.borrow_mut().entry(name).or_default().push(Instant::now());
        process.kill();
    }
}

async fn kill(soak: &Soak, gateway: &Gateway, names: &[&'static str], mut chance: StdRng) {
    loop {
        let pause = chance.random_range(Duration::from_secs(1)..KILL_EACH);
        tokio::time::sleep(pause).await;
        if soak.over.get() {
            return;
        }
        let (name, number) = (*names.choose(&mut chance).unwrap(), chance.random::<u32>() as usize);
        kill_one(soak, gateway.perch.pid(), name, number);
    }
}

/// Changes what is in the table, and nothing that anybody sees.
async fn change(api: &Api<McpServer>, name: &str, number: usize) {
    let patch = json!({"spec": {"tools": {"deny": [format!("none-{number}")]}}});
    api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
}

/// Changes it each second.
async fn swap(soak: &Soak, api: &Api<McpServer>, names: &[&'static str]) {
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    for number in 0.. {
        ticks.tick().await;
        if soak.over.get() {
            return;
        }
        change(api, names[number % names.len()], number).await;
    }
}

/// Memory in KiB, and open files, of a moment.
type Sample = (u64, usize);

async fn watch(soak: &Soak, gateway: &Gateway, time: Duration) -> Vec<Sample> {
    let files = format!("/proc/{}/fd", gateway.perch.pid());
    let mut samples = Vec::new();
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    while soak.started.elapsed() < time {
        ticks.tick().await;
        samples.push((gateway.resident(), std::fs::read_dir(&files).unwrap().count()));
    }
    soak.over.set(true);
    samples
}

/// What memory and files were, and that they did not grow.
fn growth(samples: &[Sample]) -> (String, String) {
    let quarter = samples.len() / 4;
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    let mean = |part: &[Sample], of: fn(&Sample) -> u64| part.iter().map(of).sum::<u64>() as f64 / part.len() as f64;
    let both = |of: fn(&Sample) -> u64| (mean(&samples[quarter..2 * quarter], of), mean(&samples[3 * quarter..], of));
    let (memory, later) = both(|sample| sample.0);
    assert!(later < memory * MOST_GROWTH + NOISE, "memory grew from {memory:.0} KiB to {later:.0} KiB");
    let (files, more) = both(|sample| sample.1 as u64);
    assert!(more < files * MOST_GROWTH + 16.0, "open files grew from {files:.0} to {more:.0}");
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "figures for people")]
    let shown = |kib: f64| mib(kib as u64);
    (format!("{}, then {}", shown(memory), shown(later)), format!("{files:.0}, then {more:.0}"))
}
