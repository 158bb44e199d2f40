//! Truthful readiness: an MCP handshake and `tools/list` on the path that users take.
//!
//! Each server that runs has a task that asks again and again: quickly until the first answer,
//! then once a period. What it finds is kept here, and a change of it reconciles the server.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    api::mcp_server::Probe,
    controllers::handshake::{self, GatewayAccess, ProbeError, Seen},
    names::{Revision, ServerKey},
    runtime::{Instance, InstanceId, InstanceState, Observed},
};

/// First wait between two tries of a server that does not answer yet; it grows to [`SLOWEST`].
const QUICKEST: Duration = Duration::from_millis(50);
/// Longest wait between two tries of a server that does not answer yet.
const SLOWEST: Duration = Duration::from_secs(1);
/// Handshakes at the same time, over all servers.
const CONCURRENCY: usize = 32;

/// The last thing that a probe found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probed {
    /// The instances that ran then.
    pub instances: Vec<InstanceId>,
    /// The last success with these instances.
    pub seen: Option<Seen>,
    /// The last failure, when nothing succeeded since.
    pub error: Option<ProbeError>,
    /// Failures since the last success.
    pub failures: u32,
}

/// The instances of a revision that run.
pub fn running(observed: &Observed, revision: Option<&Revision>) -> Vec<InstanceId> {
    let current = observed.instances.iter().filter(|i| Some(&i.revision) == revision);
    current.filter(|i| matches!(i.state, InstanceState::Running { .. })).map(|i| i.id.clone()).collect()
}

/// Whether another revision serves until this one is up.
pub fn is_updating(observed: &Observed, revision: &Revision) -> bool {
    let runs = |i: &Instance| matches!(i.state, InstanceState::Running { .. });
    observed.instances.iter().any(|i| i.revision != *revision && runs(i))
}

#[derive(Clone, Debug, PartialEq)]
struct Aim {
    url: String,
    probe: Probe,
    instances: Vec<InstanceId>,
}

struct Task {
    aim: watch::Sender<Option<Aim>>,
    cancel: CancellationToken,
    found: Arc<Mutex<Option<Probed>>>,
}

/// All probes.
pub struct Probes {
    tasks: Mutex<HashMap<ServerKey, Task>>,
    tracker: TaskTracker,
    changed: mpsc::UnboundedSender<ServerKey>,
    turns: Arc<Semaphore>,
    access: GatewayAccess,
}

impl Probes {
    /// No probes yet, and where to learn which servers have news. `access` is what the gateway
    /// asks for.
    pub fn new(access: GatewayAccess) -> (Self, mpsc::UnboundedReceiver<ServerKey>) {
        let (changed, news) = mpsc::unbounded_channel();
        let turns = Arc::new(Semaphore::new(CONCURRENCY));
        (Self { tasks: Mutex::default(), tracker: TaskTracker::new(), changed, turns, access }, news)
    }

    /// Aims the probe of a server at its instances, or at nothing, and tells what it found about
    /// exactly these instances.
    pub fn aim(
        &self,
        server: &ServerKey,
        url: &str,
        probe: &Probe,
        instances: Option<Vec<InstanceId>>,
    ) -> Option<Probed> {
        let aim = instances.map(|instances| Aim { url: url.to_owned(), probe: probe.clone(), instances });
        let mut tasks = self.tasks.lock().expect("nobody panics while holding the probes");
        if aim.is_none() && !tasks.contains_key(server) {
            return None;
        }
        let task = tasks.entry(server.clone()).or_insert_with(|| self.start(server.clone()));
        let wanted = aim.as_ref().map(|a| a.instances.clone());
        task.aim.send_if_modified(|current| {
            let new = *current != aim;
            if new {
                *current = aim;
            }
            new
        });
        let found = task.found.lock().expect("nobody panics while holding what was found").clone();
        found.filter(|f| Some(&f.instances) == wanted.as_ref())
    }

    /// Ends the probe of a server.
    pub fn forget(&self, server: &ServerKey) {
        if let Some(task) = self.tasks.lock().expect("nobody panics while holding the probes").remove(server) {
            task.cancel.cancel();
        }
    }

    /// Ends all probes and waits for it.
    pub async fn close(&self) {
        for (_, task) in self.tasks.lock().expect("nobody panics while holding the probes").drain() {
            task.cancel.cancel();
        }
        self.tracker.close();
        self.tracker.wait().await;
    }

    fn start(&self, server: ServerKey) -> Task {
        let (aim, aims) = watch::channel(None);
        let cancel = CancellationToken::new();
        let found = Arc::new(Mutex::new(None));
        let prober = Prober {
            server,
            aims,
            found: Arc::clone(&found),
            changed: self.changed.clone(),
            turns: Arc::clone(&self.turns),
            access: self.access.clone(),
        };
        let token = cancel.clone();
        self.tracker.spawn(async move {
            tokio::select! {
                () = prober.run() => {}
                () = token.cancelled() => {}
            }
        });
        Task { aim, cancel, found }
    }
}

struct Prober {
    server: ServerKey,
    aims: watch::Receiver<Option<Aim>>,
    found: Arc<Mutex<Option<Probed>>>,
    changed: mpsc::UnboundedSender<ServerKey>,
    turns: Arc<Semaphore>,
    access: GatewayAccess,
}

impl Prober {
    async fn run(mut self) {
        let mut wait = QUICKEST;
        let mut instances: Option<Vec<InstanceId>> = None;
        loop {
            let aim = self.aims.borrow_and_update().clone();
            let Some(aim) = aim else {
                instances = None;
                if self.aims.changed().await.is_err() {
                    return;
                }
                continue;
            };
            if instances.as_ref() != Some(&aim.instances) {
                instances = Some(aim.instances.clone());
                wait = QUICKEST;
                let delay = aim.probe.initial_delay.to_std();
                if !delay.is_zero() && self.interrupted(delay).await {
                    continue;
                }
            }
            let result = {
                let _turn = self.turns.acquire().await;
                tokio::select! {
                    result = handshake::ask(&aim.url, &self.access, aim.probe.timeout.to_std()) => result.map(|(seen, _)| seen),
                    // Other instances run now: what this one would say is of no interest.
                    changed = self.aims.changed() => if changed.is_ok() { continue } else { return },
                }
            };
            let ready = self.record(&aim, result);
            let pause = if ready { aim.probe.period.to_std().max(QUICKEST) } else { wait };
            wait = if ready { QUICKEST } else { (wait * 2).min(SLOWEST) };
            self.interrupted(pause).await;
        }
    }

    /// Waits, unless there is a new aim.
    async fn interrupted(&mut self, pause: Duration) -> bool {
        tokio::select! {
            () = tokio::time::sleep(pause) => false,
            changed = self.aims.changed() => changed.is_ok(),
        }
    }

    /// Keeps a result; true when the server counts as answering.
    fn record(&self, aim: &Aim, result: Result<Seen, ProbeError>) -> bool {
        let mut found = self.found.lock().expect("nobody panics while holding what was found");
        let before = found.take().filter(|f| f.instances == aim.instances);
        let new = match result {
            Ok(seen) => Probed { instances: aim.instances.clone(), seen: Some(seen), error: None, failures: 0 },
            Err(error) => Probed {
                instances: aim.instances.clone(),
                seen: before.as_ref().and_then(|b| b.seen.clone()),
                error: Some(error),
                failures: before.as_ref().map_or(1, |b| b.failures.saturating_add(1)),
            },
        };
        let ready = new.error.is_none();
        // The count alone matters only where it crosses the threshold.
        let threshold = u32::try_from(aim.probe.failure_threshold).unwrap_or(1);
        let same = before.as_ref().is_some_and(|b| {
            b.seen == new.seen && b.error == new.error && (b.failures >= threshold) == (new.failures >= threshold)
        });
        *found = Some(new);
        drop(found);
        if !same {
            // Nobody to tell: the controller is ending.
            let _ = self.changed.send(self.server.clone());
        }
        ready
    }
}
