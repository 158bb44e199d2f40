//! The task that makes one server's containers what they should be.
//!
//! It looks at what the engine has, compares, changes what differs, and sleeps until the engine
//! says that something happened, the wish changes, or a back-off is over. It keeps no list of its
//! own: what it knows about containers it reads from the engine each time.

use std::{collections::HashMap, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use bollard::{
    models::ContainerInspectResponse,
    query_parameters::{LogsOptionsBuilder, StopContainerOptionsBuilder},
};
use futures::StreamExt;
use jiff::Timestamp;
use tokio::sync::watch;

use super::{
    super::{
        Engine, container, egress, files, image, is_gone, label, network, unavailable,
        view::{Release, Replica},
        way_out::{self, Tried},
    },
    Shared, Wish,
    rollout::{NOT_UP, Sorted},
};
use crate::runtime::{
    Address, Exit, Instance, InstanceId, InstanceState, Preparing, RuntimeError, Workload, backoff, workload::Wire,
};

/// Longest time without a look, for what no event tells.
pub(super) const LOOK: Duration = Duration::from_secs(30);
/// Wait before a failed step is tried again.
const RETRY: Duration = Duration::from_secs(2);
/// Bytes of the last words of a container.
const TAIL: usize = 1024;

/// What the task remembers of a container between two looks.
#[derive(Clone, Debug, Default)]
struct Memory {
    failures: u32,
    restarts: u32,
    last_exit: Option<Exit>,
    /// The end that was counted, so that one end counts once.
    counted: Option<String>,
    start_at: Option<Timestamp>,
}

pub(super) struct Task {
    pub(super) shared: Arc<Shared>,
    /// By container id.
    memory: HashMap<String, Memory>,
    /// What came of trying the way out, by container id, with the namespace where it was tried.
    ways_out: HashMap<String, (PathBuf, Tried)>,
    /// Images that could not be had and starts that were refused, in a row.
    failures: u32,
    /// What came up last: it goes on serving until another revision came up.
    pub(super) settled: Option<Release>,
}

impl Task {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, memory: HashMap::new(), ways_out: HashMap::new(), failures: 0, settled: None }
    }

    pub(super) async fn run(mut self, mut wishes: watch::Receiver<Wish>) {
        let mut revision = None;
        loop {
            let wish = wishes.borrow_and_update().clone();
            let next = match wish {
                Wish::End => return,
                Wish::Stop => {
                    self.stop_all().await;
                    return;
                }
                Wish::Run(workload) => {
                    if revision.replace(workload.revision.clone()).is_some_and(|r| r != workload.revision) {
                        // What went wrong before says nothing about another revision.
                        self.failures = 0;
                    }
                    tokio::select! {
                        next = self.converge(&workload) => next,
                        // A pull or a build for a wish that is no longer there is given up.
                        changed = wishes.changed() => if changed.is_ok() { continue } else { return },
                    }
                }
            };
            let next = next.unwrap_or_else(|error| {
                let trouble = error.to_string();
                if self.shared.look(|view| view.trouble.as_ref() != Some(&trouble)) {
                    tracing::warn!(server = %self.shared.server, %error, "containers are not as they should be");
                    self.shared.change(|view| view.trouble = Some(trouble));
                }
                RETRY
            });
            tokio::select! {
                () = self.shared.wake.notified() => {}
                () = tokio::time::sleep(next) => {}
                changed = wishes.changed() => if changed.is_err() { return },
            }
        }
    }

    async fn stop_all(&mut self) {
        let engine = &self.shared.engine;
        self.shared.made().await;
        let Ok(containers) = engine.containers(Some(&self.shared.server)).await else { return };
        let grace = self.shared.look(|v| v.serving.as_ref().map_or(Duration::from_secs(10), |s| s.workload.stop_grace));
        let stops = containers.into_iter().filter_map(|c| Some((c.id?, c.labels.unwrap_or_default()))).map(
            |(id, labels)| async move {
                if labels.contains_key(label::SESSION) {
                    return engine.delete(&id).await;
                }
                stop(engine, &id, grace).await
            },
        );
        for result in futures::future::join_all(stops).await {
            if let Err(error) = result {
                tracing::warn!(server = %self.shared.server, %error, "a container was not stopped");
            }
        }
        self.shared.change(|view| {
            view.replicas.clear();
            view.sessions.clear();
        });
    }

    /// One look and what follows from it. Returns when to look again at the latest.
    async fn converge(&mut self, workload: &Arc<Workload>) -> Result<Duration, RuntimeError> {
        let shared = Arc::clone(&self.shared);
        if workload.replicas == 0 {
            // No image is needed to stop, so one that cannot be had is no hindrance.
            let all = self.inspect_all().await?;
            self.settled = None;
            self.show_nothing(workload);
            self.retire(all, workload.stop_grace).await?;
            return Ok(LOOK);
        }
        let image = {
            let report = |preparing| shared.prepare(workload, Some(preparing));
            match image::ensure(&shared.engine, &workload.program, &report).await {
                Ok(image) => image,
                Err((reason, message)) => {
                    self.failures += 1;
                    let wait = backoff::wait(self.failures + 3);
                    let retry_at = Some(Timestamp::now() + wait);
                    shared.prepare(workload, Some(Preparing { reason, message, percent: None, retry_at }));
                    return Ok(wait.min(self.go_on_alone().await?));
                }
            }
        };
        let release = Release { workload: Arc::clone(workload), image };
        if egress::is_listed(workload) {
            // What runs already needs its proxy too.
            network::ensure(&shared.engine, workload).await?;
        }
        let mut sorted = self.sort(&release).await?;
        files::write(&shared.engine.config, workload, sorted.previous.is_empty())?;
        let mut next = LOOK;
        for ordinal in 0..workload.replicas {
            if let Some(found) = sorted.kept.get(&ordinal) {
                next = next.min(self.revive(found, workload).await?);
            } else {
                let Some(id) = self.create(&release, ordinal).await else {
                    let wait = backoff::wait(self.failures + 2).min(self.go_on(&sorted.previous).await?);
                    self.show(&release, &sorted, false);
                    return Ok(wait);
                };
                let found = shared
                    .engine
                    .docker
                    .inspect_container(&id, None)
                    .await
                    .map_err(unavailable("inspect a container"))?;
                sorted.kept.insert(ordinal, found);
            }
        }
        if !sorted.previous.is_empty() && !self.is_up(&release, sorted.kept.values()).await {
            next = next.min(self.go_on(&sorted.previous).await?).min(NOT_UP);
        } else {
            self.settled = Some(release.clone());
            sorted.surplus.append(&mut sorted.previous);
        }
        let proxy = shared.engine.egress.address().filter(|_| egress::is_listed(workload));
        self.try_ways_out(sorted.kept.values(), proxy, &network::as_declared(workload)).await;
        self.show(&release, &sorted, true);
        // Only now, so that somebody serves all the time.
        self.retire(sorted.surplus, workload.stop_grace).await?;
        Ok(next)
    }

    /// Tries the way out of containers that started since the last look, or for which it was then not
    /// as it is declared: a machine that stands still for a moment looks like one without a way out.
    async fn try_ways_out(
        &mut self,
        found: impl Iterator<Item = &ContainerInspectResponse>,
        proxy: Option<SocketAddr>,
        as_declared: &Tried,
    ) {
        let is_known = |id: &String, namespace: &PathBuf| {
            self.ways_out.get(id).is_some_and(|(at, tried)| at == namespace && tried == as_declared)
        };
        let started = found.filter_map(|c| Some((c.id.clone()?, way_out::namespace(c)?)));
        let tries = started.filter(|(id, namespace)| !is_known(id, namespace)).map(|(id, namespace)| async {
            let tried = way_out::attempt(namespace.clone(), proxy).await;
            (id, (namespace, tried))
        });
        let tries: Vec<_> = tries.collect();
        self.ways_out.extend(futures::future::join_all(tries).await);
    }

    /// The server's containers; those of sessions are left out.
    pub(super) async fn inspect_all(&mut self) -> Result<Vec<ContainerInspectResponse>, RuntimeError> {
        // A replica that an earlier wish still makes is there before anything is decided.
        drop(self.shared.turn.lock().await);
        let engine = &self.shared.engine;
        let mut all = Vec::new();
        let sessions: Vec<InstanceId> = self.shared.look(|view| view.sessions.keys().cloned().collect());
        let summaries = engine.containers(Some(&self.shared.server)).await?;
        self.forget_sessions(sessions, &summaries);
        for summary in summaries {
            let session = summary.labels.as_ref().is_some_and(|l| l.contains_key(label::SESSION));
            let Some(id) = summary.id.filter(|_| !session) else { continue };
            match engine.docker.inspect_container(&id, None).await {
                Ok(found) => all.push(found),
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(unavailable("inspect a container")(error)),
            }
        }
        let ids: Vec<&str> = all.iter().filter_map(|c| c.id.as_deref()).collect();
        self.memory.retain(|id, _| ids.contains(&id.as_str()));
        self.ways_out.retain(|id, _| ids.contains(&id.as_str()));
        // The oldest first, so that of twins the one with the history stays.
        all.sort_by_key(|c| c.created);
        Ok(all)
    }

    /// Forgets those of some sessions whose containers are gone.
    fn forget_sessions(&self, mut sessions: Vec<InstanceId>, found: &[bollard::models::ContainerSummary]) {
        self.shared.look(|view| {
            let there = |id: &InstanceId| {
                let container = view.sessions.get(id).map(|(container, _)| container);
                found.iter().any(|summary| summary.id.as_ref() == container)
            };
            sessions.retain(|id| !there(id));
        });
        if !sessions.is_empty() {
            self.shared.change(|view| view.sessions.retain(|id, _| !sessions.contains(id)));
        }
    }

    /// The ordinal that a container serves, if it is of this workload.
    pub(super) fn place(found: &ContainerInspectResponse, workload: &Workload) -> Option<u32> {
        let labels = found.config.as_ref()?.labels.as_ref()?;
        let same = labels.get(label::REVISION).map(String::as_str) == Some(workload.revision.as_str())
            && labels.get(label::UID) == Some(&workload.uid);
        let ordinal: u32 = labels.get(label::ORDINAL)?.parse().ok()?;
        (same && ordinal < workload.replicas).then_some(ordinal)
    }

    /// Creates a replica. What the engine refuses is told, and tried again later.
    async fn create(&mut self, release: &Release, ordinal: u32) -> Option<String> {
        let workload = &release.workload;
        match self.shared.create(release, Some(ordinal)).await {
            Ok(id) => {
                self.failures = 0;
                self.shared.prepare(workload, None);
                Some(id)
            }
            Err(error) => {
                let message = match &error {
                    RuntimeError::Unavailable { what, source } => format!("the engine refused to {what}: {source}"),
                    other => other.to_string(),
                };
                self.failures += 1;
                let retry_at = Some(Timestamp::now() + backoff::wait(self.failures + 2));
                let preparing = Preparing { reason: "CannotStart", message, percent: None, retry_at };
                self.shared.change(|view| {
                    view.trouble = None;
                    view.preparing = Some((workload.revision.clone(), preparing));
                });
                None
            }
        }
    }

    /// Brings a container back that is not running, when its time has come. Returns the time until
    /// then.
    pub(super) async fn revive(
        &mut self,
        found: &ContainerInspectResponse,
        workload: &Workload,
    ) -> Result<Duration, RuntimeError> {
        let engine = Arc::clone(&self.shared.engine);
        let (Some(id), Some(state)) = (found.id.clone(), found.state.clone()) else { return Ok(RETRY) };
        if state.paused == Some(true) {
            engine.docker.unpause_container(&id).await.map_err(unavailable("unpause a container"))?;
            return Ok(Duration::ZERO);
        }
        if state.running == Some(true) {
            return Ok(LOOK);
        }
        let ended = state.finished_at.clone().unwrap_or_default();
        let known = self.memory.get(&id).is_some_and(|m| m.counted.as_ref() == Some(&ended));
        if !known {
            let first_sight = !self.memory.contains_key(&id) && self.shared.look(|view| view.replicas.is_empty());
            let started: Option<Timestamp> = state.started_at.as_deref().and_then(|t| t.parse().ok());
            let finished: Option<Timestamp> = ended.parse().ok();
            let ran = match (started, finished) {
                (Some(started), Some(finished)) => {
                    Duration::try_from(finished.duration_since(started)).unwrap_or_default()
                }
                _ => Duration::ZERO,
            };
            let tail = self.last_words(&id, matches!(workload.wire, Wire::Stdio(_)), started).await;
            let memory = self.memory.entry(id.clone()).or_default();
            memory.counted = Some(ended);
            if first_sight {
                // It was stopped with the last life of Perch, not by itself.
                memory.start_at = None;
            } else {
                memory.failures = backoff::failures_after(memory.failures, ran);
                memory.restarts += 1;
                memory.last_exit = Some(Exit {
                    reason: match (state.oom_killed, state.exit_code) {
                        (Some(true), _) => "OOMKilled",
                        (_, Some(0)) => "Completed",
                        // What the init process says when it cannot start the program.
                        (_, Some(126 | 127)) => "CannotStart",
                        (_, Some(code)) if code > 128 => "Killed",
                        _ => "Error",
                    },
                    code: state.exit_code.and_then(|c| i32::try_from(c).ok()),
                    at: finished.unwrap_or_else(Timestamp::now),
                    stderr_tail: tail,
                });
                memory.start_at = Some(Timestamp::now() + backoff::wait(memory.failures));
            }
        }
        let start_at = self.memory.get(&id).and_then(|m| m.start_at);
        let wait = start_at
            .map_or(Duration::ZERO, |at| Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default());
        if wait.is_zero() {
            match engine.docker.start_container(&id, None).await {
                Ok(()) => self.shared.prepare(workload, None),
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(unavailable("start a container")(error)),
            }
        }
        Ok(wait.max(Duration::from_millis(50)))
    }

    /// What a container wrote last in the run that began then.
    async fn last_words(&self, id: &str, stdio: bool, started: Option<Timestamp>) -> String {
        // The engine counts standard output among the last lines even when it is not asked for, so
        // it is not asked for the last ones.
        let since = started.and_then(|s| i32::try_from(s.as_second()).ok()).unwrap_or(0);
        let options = LogsOptionsBuilder::new().stderr(true).stdout(!stdio).since(since).build();
        let mut lines = self.shared.engine.docker.logs(id, Some(options)).boxed();
        let mut said = String::new();
        while let Some(Ok(line)) = lines.next().await {
            said.push_str(&String::from_utf8_lossy(&line.into_bytes()));
            if said.len() > 64 * TAIL {
                said = last(&said);
            }
        }
        last(&said).trim().to_owned()
    }

    /// Stops and deletes containers, all at once.
    async fn retire(&self, found: Vec<ContainerInspectResponse>, grace: Duration) -> Result<(), RuntimeError> {
        let engine = &self.shared.engine;
        let ends = found.into_iter().filter_map(|c| c.id).map(|id| async move {
            stop(engine, &id, grace).await?;
            engine.delete(&id).await
        });
        futures::future::join_all(ends).await.into_iter().collect()
    }

    /// Takes what no longer runs out of the view, while the wish cannot be fulfilled.
    pub(super) fn forget_ended(&self, found: &[ContainerInspectResponse]) {
        let stays = |replica: &Replica| runs(found, replica);
        if !self.shared.look(|view| view.trouble.is_none() && view.replicas.iter().all(stays)) {
            self.shared.change(|view| {
                view.trouble = None;
                view.replicas.retain(stays);
            });
        }
    }

    /// Publishes that nothing shall run.
    fn show_nothing(&self, workload: &Arc<Workload>) {
        let report = Some(network::report(workload, [].iter(), None));
        // The image of another revision is not the one that would run.
        let serving = self.shared.look(|view| view.serving.clone());
        let serving = serving.filter(|s| s.workload.uid == workload.uid && s.workload.revision == workload.revision);
        let serving = serving.map(|s| Release { workload: Arc::clone(workload), ..s });
        let same = self.shared.look(|view| {
            view.trouble.is_none()
                && view.preparing.is_none()
                && view.network == report
                && view.replicas.is_empty()
                && view.serving == serving
        });
        if !same {
            self.shared.change(|view| {
                view.trouble = None;
                view.preparing = None;
                view.network = report;
                view.replicas.clear();
                view.serving = serving;
            });
        }
    }

    /// Publishes what was found. `preparing` stays when it is not over.
    pub(super) fn show(&self, release: &Release, sorted: &Sorted, over: bool) {
        let old = self.shared.look(|view| view.replicas.clone());
        let mut replicas: Vec<Replica> =
            sorted.kept.values().filter_map(|found| self.replica(found, release, &old)).collect();
        let serving = match &self.settled {
            Some(settled) if !sorted.previous.is_empty() => settled,
            _ => release,
        };
        replicas.extend(sorted.previous.iter().filter_map(|found| self.replica(found, serving, &old)));
        if !over {
            // What is to be replaced serves until something else can.
            let others = old.iter().filter(|r| runs(&sorted.surplus, r));
            replicas.extend(others.cloned());
        }
        let tried = |found: &ContainerInspectResponse| self.ways_out.get(found.id.as_ref()?).map(|(_, tried)| tried);
        let mut kept = sorted.kept.values().filter_map(tried).peekable();
        let refused = self.shared.engine.egress.refusals.last(&self.shared.server);
        let report = if kept.peek().is_some() {
            network::report(&release.workload, kept, refused)
        } else {
            network::report(&serving.workload, sorted.previous.iter().filter_map(tried), refused)
        };
        let report = Some(report);
        let same = self.shared.look(|view| {
            let key = |r: &Replica| (r.instance.clone(), r.address.clone());
            view.trouble.is_none()
                && !(over && view.preparing.is_some())
                && view.network == report
                && view.replicas.iter().map(key).eq(replicas.iter().map(key))
                && view.serving.as_ref() == Some(serving)
        });
        if !same {
            self.shared.change(|view| {
                view.trouble = None;
                view.network = report;
                view.replicas = replicas;
                view.serving = Some(serving.clone());
                if over {
                    view.preparing = None;
                }
            });
        }
    }

    pub(super) fn replica(
        &self,
        found: &ContainerInspectResponse,
        release: &Release,
        old: &[Replica],
    ) -> Option<Replica> {
        let workload = &release.workload;
        let container = found.id.clone()?;
        let state = found.state.clone()?;
        let started = state.started_at.clone().unwrap_or_default();
        // Unique for each start, and the same for whoever looks at the same start.
        let id = InstanceId(format!("{}.{started}", container.get(..12).unwrap_or(&container)));
        let memory = self.memory.get(&container).cloned().unwrap_or_default();
        let running = state.running == Some(true) && state.paused != Some(true);
        let address = match &workload.wire {
            _ if !running => None,
            Wire::Stdio(_) => Some(Address::Stdio),
            Wire::Http { path, .. } => {
                let network = network::name(&self.shared.engine, workload)?;
                let ip = container::address(found, &network);
                let port = container::port(workload).unwrap_or(container::PORT);
                ip.and_then(|ip| format!("http://{ip}:{port}{path}").parse().ok()).map(Address::Http)
            }
        };
        let state = match (running, memory.start_at) {
            (true, _) => InstanceState::Running { since: started.parse().unwrap_or_else(|_| Timestamp::now()) },
            (false, Some(until)) if until > Timestamp::now() => InstanceState::Waiting { until },
            (false, _) => InstanceState::Starting,
        };
        let held = old.iter().find(|r| r.instance.id == id).map(|r| Arc::clone(&r.held)).unwrap_or_default();
        let revision = workload.revision.clone();
        let instance = Instance { id, revision, state, restarts: memory.restarts, last_exit: memory.last_exit };
        Some(Replica { instance, container, address, held })
    }
}

/// Whether a replica is among these containers and runs.
fn runs(found: &[ContainerInspectResponse], replica: &Replica) -> bool {
    let running = |c: &ContainerInspectResponse| c.state.as_ref().is_some_and(|s| s.running == Some(true));
    found.iter().any(|c| c.id.as_ref() == Some(&replica.container) && running(c))
}

/// The end of a text.
fn last(said: &str) -> String {
    let cut = (said.len().saturating_sub(TAIL)..=said.len()).find(|i| said.is_char_boundary(*i)).unwrap_or(0);
    said[cut..].to_owned()
}

async fn stop(engine: &Engine, id: &str, grace: Duration) -> Result<(), RuntimeError> {
    let options = StopContainerOptionsBuilder::new().t(i32::try_from(grace.as_secs()).unwrap_or(10)).build();
    match engine.docker.stop_container(id, Some(options)).await {
        Err(error) if is_gone(&error) => Ok(()),
        // It was not running.
        Err(bollard::errors::Error::DockerResponseServerError { status_code: 304, .. }) => Ok(()),
        other => other.map_err(unavailable("stop a container")),
    }
}
