//! The processes behind `perch bridge`: the command itself, kept running, and with
//! `transport.sessions: PerSession` one more for each client session.
//!
//! The command itself runs in both cases. It tells whether the server works at all, and it answers
//! clients of the version that knows no sessions. A session's process is never started again: what
//! it knew is lost, so its session ends with it.

use std::{
    collections::HashMap,
    ffi::OsString,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    process::{Child, ChildStdin, ChildStdout},
    sync::broadcast,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::child::{self, OneChild};
use crate::{
    gateway::instances::Instances,
    names::ServerKey,
    runtime::{Endpoint, InstanceId, RuntimeError, StdioStreams},
};

/// The command, and the processes of sessions.
pub struct Processes {
    command: Vec<OsString>,
    grace: Duration,
    /// The command that runs all the time.
    pub main: Arc<OneChild>,
    starts: AtomicU64,
    running: Arc<Mutex<HashMap<InstanceId, Own>>>,
    ends: TaskTracker,
}

/// The process of a session.
struct Own {
    pid: Option<Pid>,
    streams: Option<(ChildStdin, ChildStdout)>,
    stop: CancellationToken,
}

impl Processes {
    /// Processes of a command, of which none runs yet. A session's process gets `grace` to end once
    /// its input is closed, and again once it was asked to; then it is killed.
    pub fn new(main: Arc<OneChild>, command: Vec<OsString>, grace: Duration) -> Arc<Self> {
        Arc::new(Self {
            command,
            grace,
            main,
            starts: AtomicU64::new(0),
            running: Arc::default(),
            ends: TaskTracker::new(),
        })
    }

    /// Sends a signal to all of them, and all that they started.
    pub fn signal(&self, signal: Signal) {
        self.main.signal(signal);
        let running = self.running.lock().expect("nobody panics while holding the processes");
        for pid in running.values().filter_map(|own| own.pid) {
            // It may just have ended.
            let _ = kill_process_group(pid, signal);
        }
    }

    /// Ends the processes of all sessions, and waits for their end.
    pub async fn close(&self) {
        {
            let running = self.running.lock().expect("nobody panics while holding the processes");
            running.values().for_each(|own| own.stop.cancel());
        }
        self.ends.close();
        self.ends.wait().await;
    }

    /// Follows a session's process to its end.
    fn follow(&self, instance: InstanceId, mut child: Child, stop: CancellationToken) {
        let (running, grace) = (Arc::clone(&self.running), self.grace);
        self.ends.spawn(async move {
            let pid = child::pid(&child);
            let asked = tokio::select! {
                _ = child.wait() => false,
                () = stop.cancelled() => true,
            };
            let forget = || running.lock().expect("nobody panics while holding the processes").remove(&instance);
            if asked {
                // Its input closes when nobody holds it any more; what was never taken is closed here.
                drop(forget());
                child::end(&mut child, pid, grace).await;
            } else {
                tracing::info!(%instance, "the process of a session ended");
                child::kill(pid);
                drop(forget());
            }
        });
    }
}

#[async_trait]
impl Instances for Processes {
    fn endpoints(&self, server: &ServerKey) -> Vec<Endpoint> {
        self.main.endpoints(server)
    }

    async fn attach(&self, instance: &InstanceId) -> Result<StdioStreams, RuntimeError> {
        {
            let mut running = self.running.lock().expect("nobody panics while holding the processes");
            if let Some(own) = running.get_mut(instance) {
                let streams = own.streams.take();
                let (stdin, stdout) = streams.ok_or_else(|| RuntimeError::AlreadyAttached(instance.clone()))?;
                return Ok(StdioStreams { stdin: Box::pin(stdin), stdout: Box::pin(stdout) });
            }
        }
        self.main.attach(instance).await
    }

    async fn start_session(&self, server: &ServerKey) -> Result<InstanceId, RuntimeError> {
        let started = child::spawn(&self.command);
        let mut child = started
            .map_err(|error| RuntimeError::unavailable(format!("start a process of {server} for a session"), error))?;
        let number = self.starts.fetch_add(1, Ordering::Relaxed);
        let instance = InstanceId(format!("{}-session-{number}", server.name));
        let stop = CancellationToken::new();
        let own =
            Own { pid: child::pid(&child), streams: child.stdin.take().zip(child.stdout.take()), stop: stop.clone() };
        self.running.lock().expect("nobody panics while holding the processes").insert(instance.clone(), own);
        tracing::info!(pid = child.id(), %instance, "the process of a session runs");
        self.follow(instance.clone(), child, stop);
        Ok(instance)
    }

    async fn end_session(&self, instance: &InstanceId) -> Result<(), RuntimeError> {
        let running = self.running.lock().expect("nobody panics while holding the processes");
        if let Some(own) = running.get(instance) {
            own.stop.cancel();
        }
        Ok(())
    }

    fn changes(&self) -> broadcast::Receiver<ServerKey> {
        self.main.changes()
    }
}
