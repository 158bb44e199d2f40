//! One process of a server, from start to end, again and again.

use std::{
    os::unix::process::ExitStatusExt,
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

use super::{
    Config,
    keeper::{Replica, Shared},
    leftovers,
    log_file::LogFile,
    ports::Port,
    streams::Slot,
};
use crate::runtime::{
    Address, Exit, InstanceId, InstanceState, Preparing, Workload, backoff,
    workload::{Wire, reveal},
};

/// Open files of one process.
const OPEN_FILES: u64 = 65_536;
/// Time between two looks at a port that somebody else has.
const PORT_RETRY: Duration = Duration::from_secs(2);
/// Exit codes of the launcher when the program cannot be started, as in a shell.
const CANNOT_START: [i32; 2] = [126, 127];

/// What is started: the workload, and the program that its source turned out to be.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The workload.
    pub workload: Arc<Workload>,
    /// The program and its arguments; never empty.
    pub argv: Vec<String>,
}

/// A process that runs.
pub struct Running {
    child: Child,
    group: Option<Pid>,
    logs: tokio::task::JoinSet<()>,
    /// How it is reached.
    pub address: Address,
    /// Its standard streams, for Stdio.
    pub slot: Option<Arc<Slot>>,
}

impl Plan {
    /// Starts a process that listens on `port`, if it listens.
    pub fn start(&self, config: &Config, port: u16, log: &Arc<LogFile>) -> std::io::Result<Running> {
        let workload = &self.workload;
        let work = config.work_dir(&workload.server);
        std::fs::create_dir_all(&work)?;
        let stdio = matches!(workload.wire, Wire::Stdio(_));
        let mut command = Command::new(&config.launcher);
        command
            .args(["internal", "exec", "--data-bytes"])
            .arg(workload.limits.memory_bytes.to_string())
            .args(["--open-files", &OPEN_FILES.to_string(), "--"])
            .args(&self.argv)
            .current_dir(&work)
            .env_clear()
            .envs(config.environment.iter().cloned())
            .process_group(0)
            .kill_on_drop(true)
            .stdin(if stdio { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if !stdio {
            command.env("PORT", port.to_string());
        }
        let credentials = config.credentials_dir(&workload.server);
        for credential in &workload.credentials {
            command.env(&credential.variable, credentials.join(&credential.name));
        }
        for entry in &workload.env {
            command.env(&entry.name, reveal(&entry.value));
        }
        // Last, so that no server slips its mark.
        command.env(leftovers::MARKER, &config.instance).env(leftovers::SERVER, workload.server.to_string());
        let mut child = command.spawn()?;
        let group = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        let mut logs = tokio::task::JoinSet::new();
        if let Some(stderr) = child.stderr.take() {
            let log = Arc::clone(log);
            logs.spawn(async move { log.copy(stderr).await });
        }
        let (address, slot) = match &workload.wire {
            Wire::Stdio(_) => (Address::Stdio, Some(Slot::new(child.stdin.take(), child.stdout.take()))),
            Wire::Http { path, .. } => {
                if let Some(stdout) = child.stdout.take() {
                    let log = Arc::clone(log);
                    logs.spawn(async move { log.copy(stdout).await });
                }
                let url = format!("http://{}:{port}{path}", std::net::Ipv4Addr::LOCALHOST);
                let url = url.parse().map_err(|error| std::io::Error::other(format!("{url}: {error}")))?;
                (Address::Http(url), None)
            }
        };
        Ok(Running { child, group, logs, address, slot })
    }
}

impl Running {
    /// Waits for the end of the process, and ends what it left in its group.
    pub async fn wait(&mut self) -> std::io::Result<ExitStatus> {
        let status = self.child.wait().await;
        self.signal(Signal::KILL);
        status
    }

    /// Asks the whole group to end, and makes it after `grace`.
    pub async fn stop(mut self, grace: Duration) {
        self.signal(Signal::TERM);
        if tokio::time::timeout(grace, self.child.wait()).await.is_err() {
            self.signal(Signal::KILL);
            let _ = self.child.wait().await;
        }
        self.signal(Signal::KILL);
        self.end_log().await;
    }

    fn signal(&self, signal: Signal) {
        if let Some(group) = self.group {
            // Nobody is left in the group: that is what was wanted.
            let _ = kill_process_group(group, signal);
        }
    }

    /// Lets the log take in what the process wrote last; nothing writes to it afterwards.
    async fn end_log(&mut self) {
        let drained = async { while self.logs.join_next().await.is_some() {} };
        if tokio::time::timeout(Duration::from_millis(200), drained).await.is_err() {
            self.logs.shutdown().await;
        }
    }
}

/// Keeps one replica running until `cancel`, then stops it.
pub async fn keep(shared: Arc<Shared>, mut plan: Plan, ordinal: u32, cancel: CancellationToken) {
    let server = &plan.workload.server.clone();
    let log = Arc::new(LogFile::new(shared.config.log_dir(server).join(format!("{ordinal}.log"))));
    let (mut failures, mut restarts) = (0, 0);
    let mut last_exit: Option<Exit> = None;
    loop {
        // A Secret may have changed since the last start; that makes no other revision.
        if let Some(newest) = shared.plan().filter(|p| p.workload.revision == plan.workload.revision) {
            plan = newest;
        }
        let id = shared.next_id(server, ordinal);
        let update =
            |state: InstanceState, running: Option<&Running>, restarts: u32, last_exit: Option<Exit>| Replica {
                id: id.clone(),
                revision: plan.workload.revision.clone(),
                state,
                restarts,
                last_exit,
                address: running.map(|r| r.address.clone()),
                slot: running.and_then(|r| r.slot.clone()),
                group: running.and_then(|r| r.group),
            };
        shared.set(ordinal, update(InstanceState::Starting, None, restarts, last_exit.clone()));
        let port = match plan.workload.wire {
            Wire::Http { port, .. } => match choose_port(&shared, port, &cancel).await {
                Some(port) => Some(port),
                None => break,
            },
            Wire::Stdio(_) => None,
        };
        let begun = Instant::now();
        let mut running = match plan.start(&shared.config, port.as_ref().map_or(0, Port::number), &log) {
            Ok(running) => running,
            Err(error) => {
                failures += 1;
                let exit =
                    Exit { reason: "CannotStart", code: None, at: Timestamp::now(), stderr_tail: error.to_string() };
                last_exit = Some(exit);
                if !pause(&shared, ordinal, failures.max(2), &cancel, |state| {
                    update(state, None, restarts, last_exit.clone())
                })
                .await
                {
                    break;
                }
                continue;
            }
        };
        let state = InstanceState::Running { since: Timestamp::now() };
        shared.set(ordinal, update(state, Some(&running), restarts, last_exit.clone()));
        let status = tokio::select! {
            status = running.wait() => status,
            () = cancel.cancelled() => {
                running.stop(plan.workload.stop_grace).await;
                break;
            }
        };
        running.end_log().await;
        failures = backoff::failures_after(failures, begun.elapsed());
        restarts += 1;
        last_exit = Some(describe(status, log.tail()));
        tracing::info!(%server, ordinal, exit = ?last_exit.as_ref().map(|e| (e.reason, e.code)), "a process ended");
        if !pause(&shared, ordinal, failures, &cancel, |state| update(state, None, restarts, last_exit.clone())).await {
            break;
        }
    }
    shared.clear(ordinal);
}

/// The port for a process: the one that the spec names, once it is free, or any. None when the
/// process is no longer wanted.
async fn choose_port(shared: &Shared, wanted: Option<u16>, cancel: &CancellationToken) -> Option<Port> {
    let ports = &shared.config.ports;
    loop {
        let (found, problem) = match wanted {
            None => match ports.any() {
                Ok(port) => (Some(port), None),
                Err(error) => (None, Some(problem("CannotStart", format!("no port is free: {error}")))),
            },
            Some(number) => match ports.take(number) {
                Some(port) => (Some(port), None),
                None => (None, Some(in_use(number))),
            },
        };
        shared.prepare(problem);
        if found.is_some() {
            return found;
        }
        tokio::select! {
            () = tokio::time::sleep(PORT_RETRY) => {}
            () = cancel.cancelled() => {
                shared.prepare(None);
                return None;
            }
        }
    }
}

fn in_use(port: u16) -> Preparing {
    problem(
        "PortInUse",
        format!(
            "port {port} of this machine is in use by another program or server: stop it, choose another spec.transport.port, or leave the port out to get a free one"
        ),
    )
}

fn problem(reason: &'static str, message: String) -> Preparing {
    Preparing { reason, message, percent: None, retry_at: Some(Timestamp::now() + PORT_RETRY) }
}

/// Waits for the next start. False when it does not come.
async fn pause(
    shared: &Shared,
    ordinal: u32,
    failures: u32,
    cancel: &CancellationToken,
    replica: impl Fn(InstanceState) -> Replica,
) -> bool {
    let wait = backoff::wait(failures);
    let until = Timestamp::now() + wait;
    shared
        .set(ordinal, replica(if wait.is_zero() { InstanceState::Starting } else { InstanceState::Waiting { until } }));
    tokio::select! {
        () = tokio::time::sleep(wait) => true,
        () = cancel.cancelled() => false,
    }
}

fn describe(status: std::io::Result<ExitStatus>, stderr_tail: String) -> Exit {
    let (reason, code) = match status {
        Ok(status) => match (status.code(), status.signal()) {
            (Some(0), _) => ("Completed", Some(0)),
            (Some(code), _) if CANNOT_START.contains(&code) => ("CannotStart", Some(code)),
            (Some(code), _) => ("Error", Some(code)),
            (None, Some(signal)) => ("Killed", Some(128 + signal)),
            (None, None) => ("Error", None),
        },
        Err(_) => ("Error", None),
    };
    Exit { reason, code, at: Timestamp::now(), stderr_tail }
}

/// Runs one process for one client session; it is not started again.
pub async fn keep_session(
    shared: Arc<Shared>,
    id: InstanceId,
    mut running: Running,
    grace: Duration,
    cancel: CancellationToken,
) {
    tokio::select! {
        _ = running.wait() => running.end_log().await,
        () = cancel.cancelled() => running.stop(grace).await,
    }
    shared.end_session(&id);
}
