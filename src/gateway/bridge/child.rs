//! One command, kept running: the instance behind `perch bridge`.

use std::{
    ffi::OsString,
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    process::{Child, ChildStdin, ChildStdout, Command},
    sync::broadcast,
};
use tokio_util::sync::CancellationToken;

use crate::{
    gateway::instances::Instances,
    names::{Revision, ServerKey},
    runtime::{Address, Endpoint, InstanceId, RuntimeError, StdioStreams, backoff},
};

/// Longest wait before a command that ended is started again. A pod that is slower than that is
/// better restarted as a whole, which its probes see to.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Starts a command in a process group of its own, with its standard streams to be taken.
pub(super) fn spawn(command: &[OsString]) -> std::io::Result<Child> {
    let (program, args) = command.split_first().ok_or(std::io::ErrorKind::InvalidInput)?;
    Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
}

/// The process of a child that has not been waited for.
pub(super) fn pid(child: &Child) -> Option<Pid> {
    child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw)
}

/// Ends a child whose input is closed: after `grace` it is asked to end, after another one it is
/// killed. What it started ends with it.
pub(super) async fn end(child: &mut Child, pid: Option<Pid>, grace: Duration) {
    let signal = |signal| {
        if let Some(pid) = pid {
            // It may just have ended.
            let _ = kill_process_group(pid, signal);
        }
    };
    for next in [Signal::TERM, Signal::KILL] {
        if tokio::time::timeout(grace, child.wait()).await.is_ok() {
            break;
        }
        signal(next);
    }
    let _ = child.wait().await;
    signal(Signal::KILL);
}

/// Ends what a child that is gone left behind: it would hold its pipes and ports.
pub(super) fn kill(pid: Option<Pid>) {
    if let Some(pid) = pid {
        let _ = kill_process_group(pid, Signal::KILL);
    }
}

/// One command, started again when it ends.
pub struct OneChild {
    server: ServerKey,
    command: Vec<OsString>,
    now: Mutex<Now>,
    changes: broadcast::Sender<ServerKey>,
}

#[derive(Default)]
struct Now {
    /// Counts starts; the current one names the instance.
    starts: u64,
    running: Option<Pid>,
    streams: Option<(ChildStdin, ChildStdout)>,
}

impl OneChild {
    /// A command that does not run yet.
    pub fn new(server: ServerKey, command: Vec<OsString>) -> Arc<Self> {
        Arc::new(Self { server, command, now: Mutex::default(), changes: broadcast::Sender::new(16) })
    }

    /// Whether the command runs.
    pub fn is_running(&self) -> bool {
        self.now.lock().expect("nobody panics while holding the child").running.is_some()
    }

    /// Sends a signal to the command and all that it started.
    pub fn signal(&self, signal: Signal) {
        let running = self.now.lock().expect("nobody panics while holding the child").running;
        if let Some(pid) = running {
            // It may just have ended.
            let _ = kill_process_group(pid, signal);
        }
    }

    /// Keeps the command running until `stop`, then ends it: its input is closed, after `grace`
    /// it is asked to end, after another one it is killed.
    ///
    /// # Errors
    /// When the command cannot be started the first time: it never can.
    pub async fn keep(self: Arc<Self>, stop: CancellationToken, grace: Duration) -> std::io::Result<()> {
        let mut failures = 0;
        loop {
            let started = Instant::now();
            match self.start() {
                Ok(mut child) => {
                    let _ = self.changes.send(self.server.clone());
                    let status = tokio::select! {
                        status = child.wait() => status,
                        () = stop.cancelled() => {
                            self.end(&mut child, grace).await;
                            return Ok(());
                        }
                    };
                    self.over(&child, &status);
                }
                Err(error) if failures == 0 => return Err(error),
                Err(error) => tracing::error!(%error, "the command cannot be started again"),
            }
            failures = backoff::failures_after(failures, started.elapsed());
            tokio::select! {
                () = tokio::time::sleep(backoff::wait(failures).min(LONGEST_WAIT)) => {}
                () = stop.cancelled() => return Ok(()),
            }
        }
    }

    fn start(&self) -> std::io::Result<Child> {
        let mut child = spawn(&self.command)?;
        let mut now = self.now.lock().expect("nobody panics while holding the child");
        now.starts += 1;
        now.running = pid(&child);
        now.streams = child.stdin.take().zip(child.stdout.take());
        tracing::info!(pid = child.id(), start = now.starts, "the command runs");
        Ok(child)
    }

    fn over(&self, child: &Child, status: &std::io::Result<ExitStatus>) {
        let mut now = self.now.lock().expect("nobody panics while holding the child");
        kill(now.running.take());
        now.streams = None;
        drop(now);
        let _ = self.changes.send(self.server.clone());
        match status {
            Ok(status) => tracing::warn!(%status, "the command ended; it is started again"),
            Err(error) => tracing::error!(%error, pid = child.id(), "the command's end was not seen"),
        }
    }

    async fn end(&self, child: &mut Child, grace: Duration) {
        // Whoever held the streams has dropped them; what was never taken is closed here.
        self.now.lock().expect("nobody panics while holding the child").streams = None;
        let pid = pid(child);
        end(child, pid, grace).await;
        self.now.lock().expect("nobody panics while holding the child").running = None;
    }

    fn instance(&self, starts: u64) -> InstanceId {
        InstanceId(format!("{}-{starts}", self.server.name))
    }
}

#[async_trait]
impl Instances for OneChild {
    fn endpoints(&self, server: &ServerKey) -> Vec<Endpoint> {
        let now = self.now.lock().expect("nobody panics while holding the child");
        if now.running.is_none() || *server != self.server {
            return Vec::new();
        }
        let instance = self.instance(now.starts);
        vec![Endpoint { instance, revision: Revision(self.server.name.clone()), address: Address::Stdio }]
    }

    async fn attach(&self, instance: &InstanceId) -> Result<StdioStreams, RuntimeError> {
        let mut now = self.now.lock().expect("nobody panics while holding the child");
        if now.running.is_none() || *instance != self.instance(now.starts) {
            return Err(RuntimeError::NotRunning(instance.to_string()));
        }
        let streams = now.streams.take();
        let (stdin, stdout) = streams.ok_or_else(|| RuntimeError::AlreadyAttached(instance.clone()))?;
        Ok(StdioStreams { stdin: Box::pin(stdin), stdout: Box::pin(stdout) })
    }

    fn changes(&self) -> broadcast::Receiver<ServerKey> {
        self.changes.subscribe()
    }
}
