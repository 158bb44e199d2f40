//! The task that makes one server's processes what they should be.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use jiff::Timestamp;
use rustix::process::Pid;
use tokio::{
    sync::{broadcast, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::{Config, instance, instance::Plan, packages, streams::Slot};
use crate::{
    names::{Revision, ServerKey},
    runtime::{
        Address, Endpoint, Exit, Instance, InstanceId, InstanceState, Preparing, RuntimeError, Workload, backoff,
        private_files::Folder, workload::Program,
    },
};

/// What a server's tasks share with everybody who asks about it.
#[derive(Debug)]
pub struct Shared {
    /// The backend's configuration.
    pub config: Arc<Config>,
    server: ServerKey,
    changes: broadcast::Sender<ServerKey>,
    view: Mutex<View>,
    starts: AtomicU64,
}

#[derive(Debug, Default)]
struct View {
    preparing: Option<Preparing>,
    plan: Option<Plan>,
    replicas: BTreeMap<u32, Replica>,
    sessions: HashMap<InstanceId, Session>,
}

/// One replica as it is now.
#[derive(Clone, Debug)]
pub struct Replica {
    /// Its identity, new for each start.
    pub id: InstanceId,
    /// What it runs.
    pub revision: Revision,
    /// What it does.
    pub state: InstanceState,
    /// Starts after the first.
    pub restarts: u32,
    /// Its last end that was not asked for.
    pub last_exit: Option<Exit>,
    /// How it is reached while it runs.
    pub address: Option<Address>,
    /// Its standard streams while it runs, for Stdio.
    pub slot: Option<Arc<Slot>>,
    /// Its process group while it runs.
    pub group: Option<Pid>,
}

#[derive(Debug)]
struct Session {
    slot: Option<Arc<Slot>>,
    cancel: CancellationToken,
}

impl Shared {
    fn change<T>(&self, change: impl FnOnce(&mut View) -> T) -> T {
        let result = change(&mut self.view.lock().expect("nobody panics while holding the view"));
        // Nobody listening is fine: whoever comes later looks first.
        let _ = self.changes.send(self.server.clone());
        result
    }

    fn look<T>(&self, look: impl FnOnce(&View) -> T) -> T {
        look(&self.view.lock().expect("nobody panics while holding the view"))
    }

    /// A name that no instance of this server had before.
    pub fn next_id(&self, server: &ServerKey, ordinal: u32) -> InstanceId {
        let start = self.starts.fetch_add(1, Ordering::Relaxed);
        InstanceId(format!("{}.{}.{ordinal}.{start}", server.namespace, server.name))
    }

    /// Records what a replica does.
    pub fn set(&self, ordinal: u32, replica: Replica) {
        self.change(|view| view.replicas.insert(ordinal, replica));
    }

    /// Forgets a replica that ended.
    pub fn clear(&self, ordinal: u32) {
        self.change(|view| view.replicas.remove(&ordinal));
    }

    /// Records long work, or its end.
    pub fn prepare(&self, preparing: Option<Preparing>) {
        if self.look(|view| view.preparing != preparing) {
            self.change(|view| view.preparing = preparing);
        }
    }

    /// Forgets a session that ended.
    pub fn end_session(&self, id: &InstanceId) {
        self.change(|view| view.sessions.remove(id));
    }

    /// Long work under way, and the replicas.
    pub fn observed(&self) -> (Option<Preparing>, Vec<Instance>) {
        self.look(|view| {
            let instances = view.replicas.values().map(|r| Instance {
                id: r.id.clone(),
                revision: r.revision.clone(),
                state: r.state.clone(),
                restarts: r.restarts,
                last_exit: r.last_exit.clone(),
            });
            (view.preparing.clone(), instances.collect())
        })
    }

    /// Where the running replicas are reached.
    pub fn endpoints(&self) -> Vec<Endpoint> {
        self.look(|view| {
            let endpoint = |r: &Replica| {
                Some(Endpoint { instance: r.id.clone(), revision: r.revision.clone(), address: r.address.clone()? })
            };
            view.replicas.values().filter_map(endpoint).collect()
        })
    }

    /// The streams of an instance: `None` when there is no such instance here.
    pub fn slot(&self, id: &InstanceId) -> Option<Option<Arc<Slot>>> {
        self.look(|view| {
            let replica = view.replicas.values().find(|r| r.id == *id).map(|r| r.slot.clone());
            replica.or_else(|| view.sessions.get(id).map(|s| s.slot.clone()))
        })
    }

    /// The process groups of the running replicas.
    pub fn groups(&self) -> Vec<(InstanceId, Pid)> {
        self.look(|view| view.replicas.values().filter_map(|r| Some((r.id.clone(), r.group?))).collect())
    }

    /// Forgets a session and asks its process to end. False when there is none.
    pub fn cancel_session(&self, id: &InstanceId) -> bool {
        let known = self.look(|view| view.sessions.contains_key(id));
        if known && let Some(session) = self.change(|view| view.sessions.remove(id)) {
            session.cancel.cancel();
        }
        known
    }

    /// What the server's processes are started from, once that is known.
    pub fn plan(&self) -> Option<Plan> {
        self.look(|view| view.plan.clone())
    }
}

/// A server's task, from outside.
#[derive(Debug)]
pub struct Keeper {
    /// What the task shares.
    pub shared: Arc<Shared>,
    wish: watch::Sender<Option<Arc<Workload>>>,
    ended: CancellationToken,
    sessions: tokio_util::task::TaskTracker,
    cancel_sessions: CancellationToken,
}

impl Keeper {
    /// Starts the task for a server.
    pub fn start(config: Arc<Config>, workload: Workload, changes: broadcast::Sender<ServerKey>) -> Self {
        let shared = Arc::new(Shared {
            config,
            server: workload.server.clone(),
            changes,
            view: Mutex::default(),
            starts: AtomicU64::new(0),
        });
        let (wish, wishes) = watch::channel(Some(Arc::new(workload)));
        let ended = CancellationToken::new();
        let guard = ended.clone().drop_guard();
        let task = run(Arc::clone(&shared), wishes);
        tokio::spawn(async move {
            let _guard = guard;
            task.await;
        });
        Self {
            shared,
            wish,
            ended,
            sessions: tokio_util::task::TaskTracker::new(),
            cancel_sessions: CancellationToken::new(),
        }
    }

    /// Replaces the wish, if it is another one.
    pub fn wish(&self, workload: &Workload) {
        self.wish.send_if_modified(|wish| {
            let new = wish.as_deref() != Some(workload);
            if new {
                *wish = Some(Arc::new(workload.clone()));
            }
            new
        });
    }

    /// Stops everything and waits for the end.
    pub async fn stop(&self) {
        self.cancel_sessions.cancel();
        self.wish.send_replace(None);
        self.sessions.close();
        self.sessions.wait().await;
        self.ended.cancelled().await;
    }

    /// Starts a process for one client session.
    pub fn start_session(&self) -> Result<InstanceId, RuntimeError> {
        let server = &self.shared.server;
        let plan = self.shared.plan().ok_or_else(|| RuntimeError::NotRunning(server.to_string()))?;
        let id = self.shared.next_id(server, u32::MAX);
        let log = self.shared.config.log_dir(server).join("sessions.log");
        let log = Arc::new(super::log_file::LogFile::new(log));
        let running = plan
            .start(&self.shared.config, 0, &log)
            .map_err(|error| RuntimeError::unavailable(format!("start a process of {server}"), error))?;
        let cancel = self.cancel_sessions.child_token();
        let session = Session { slot: running.slot.clone(), cancel: cancel.clone() };
        self.shared.change(|view| view.sessions.insert(id.clone(), session));
        let grace = plan.workload.stop_grace;
        self.sessions.spawn(instance::keep_session(Arc::clone(&self.shared), id.clone(), running, grace, cancel));
        Ok(id)
    }
}

/// Replicas of one revision that run, each with its own way to be stopped.
#[derive(Default)]
struct Fleet {
    /// Whose replicas they are: the server's uid, and the revision.
    runs: Option<(String, Revision)>,
    cancels: BTreeMap<u32, CancellationToken>,
    tasks: JoinSet<u32>,
}

impl Fleet {
    /// Stops the replicas from `first` on and waits for their end.
    async fn shrink(&mut self, first: u32) {
        let stopped: Vec<u32> = self.cancels.range(first..).map(|(ordinal, _)| *ordinal).collect();
        for ordinal in &stopped {
            if let Some(cancel) = self.cancels.remove(ordinal) {
                cancel.cancel();
            }
        }
        let mut left = stopped.len();
        while left > 0 && self.tasks.join_next().await.is_some() {
            left -= 1;
        }
    }
}

async fn run(shared: Arc<Shared>, mut wishes: watch::Receiver<Option<Arc<Workload>>>) {
    let mut fleet = Fleet::default();
    let mut failures = 0;
    let mut wished = None;
    loop {
        let wish = wishes.borrow_and_update().clone();
        let Some(workload) = wish else {
            fleet.shrink(0).await;
            return;
        };
        let runs = (workload.uid.clone(), workload.revision.clone());
        if wished.replace(runs.clone()).as_ref() != Some(&runs) {
            // What went wrong before says nothing about another revision.
            failures = 0;
            shared.prepare(None);
        }
        let same_server = fleet.runs.as_ref().is_none_or(|(uid, _)| *uid == workload.uid);
        if !same_server || workload.replicas == 0 {
            // Nothing is needed to stop.
            fleet.shrink(0).await;
        }
        let plan = tokio::select! {
            // What the revision before has stays until it has ended.
            plan = plan(&shared, &workload) => plan.and_then(|p| give_credentials(&shared, &workload, false).map(|()| p)),
            changed = wishes.changed() => if changed.is_ok() { continue } else { Err(String::new()) },
        };
        match plan {
            Ok(plan) => {
                failures = 0;
                if fleet.runs.as_ref() != Some(&runs) {
                    // Only now that there is something to start instead.
                    fleet.shrink(0).await;
                }
                if let Err(error) = give_credentials(&shared, &workload, true) {
                    tracing::warn!(server = %shared.server, error, "credentials that are no longer wanted are still there");
                }
                shared.change(|view| view.plan = Some(plan.clone()));
                fleet.runs = Some(runs);
                fleet.shrink(workload.replicas).await;
                for ordinal in 0..workload.replicas {
                    if let std::collections::btree_map::Entry::Vacant(e) = fleet.cancels.entry(ordinal) {
                        let cancel = CancellationToken::new();
                        e.insert(cancel.clone());
                        let task = instance::keep(Arc::clone(&shared), plan.clone(), ordinal, cancel);
                        fleet.tasks.spawn(async move {
                            task.await;
                            ordinal
                        });
                    }
                }
                if wishes.changed().await.is_err() {
                    fleet.shrink(0).await;
                    return;
                }
            }
            Err(message) => {
                failures += 1;
                let wait = backoff::wait(failures + 2);
                let retry_at = Some(Timestamp::now() + wait);
                shared.prepare(Some(Preparing { reason: "InstallFailed", message, percent: None, retry_at }));
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    changed = wishes.changed() => if changed.is_err() { return },
                }
            }
        }
    }
}

/// Writes the credentials of a server where its processes find them.
fn give_credentials(shared: &Shared, workload: &Workload, prune: bool) -> Result<(), String> {
    let path = shared.config.credentials_dir(&workload.server);
    if workload.credentials.is_empty() && !path.exists() {
        return Ok(());
    }
    let files: Vec<_> = workload.credentials.iter().map(|c| (c.name.as_str(), &c.value)).collect();
    let folder = Folder { path: &path, what: "credentials", mode: 0o700, user: None, prune };
    folder.write(&files).map_err(|error| error.to_string())
}

async fn plan(shared: &Shared, workload: &Arc<Workload>) -> Result<Plan, String> {
    let argv = match &workload.program {
        Program::Command { command, args } => [command.as_slice(), args.as_slice()].concat(),
        Program::Package { package, command, args } => {
            let dir = shared.config.state_dir.join("packages");
            if !packages::is_installed(package, &dir) {
                let message = format!("installing {}@{}", package.name, package.version);
                shared.prepare(Some(Preparing { reason: "Installing", message, percent: None, retry_at: None }));
            }
            // Two servers may name the same package; one installs it, the other finds it.
            let _turn = shared.config.installs.lock().await;
            let program = packages::program(package, command, &dir, &shared.config.search_path)
                .await
                .map_err(|error| error.to_string())?;
            let rest = command.get(1..).unwrap_or_default();
            [&[program.to_string_lossy().into_owned()], rest, args.as_slice()].concat()
        }
        Program::Image { .. } => return Err("an image needs a container engine".into()),
    };
    shared.prepare(None);
    Ok(Plan { workload: Arc::clone(workload), argv })
}
