//! Servers as processes of this machine: a command, or a package of npm or PyPI.
//!
//! * Each instance is the leader of a process group, and a group ends as a whole.
//! * Limits are those that a process can set on itself ([`launch`]): data size, open files. CPU
//!   shares, users and networks of their own need containers.
//! * Every process carries the mark of its Perch in its environment. What an earlier life of this
//!   Perch left behind is ended before anything is started, so there are never twins.
//!
//! May import: `runtime`, `api`, `names`.

mod instance;
mod keeper;
pub mod launch;
mod leftovers;
mod log_file;
mod packages;
mod streams;

use std::{
    collections::HashMap,
    ffi::OsString,
    fs,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use futures::stream::BoxStream;
use rustix::process::getpgid;
use sysinfo::{ProcessesToUpdate, System};
use tokio::sync::broadcast;

use super::{
    Backend, Endpoint, InstanceId, LogLine, LogOptions, NetworkReport, Observed, RuntimeError, StdioStreams, Usage,
    Workload,
    workload::{MountSource, Program, Wire},
};
use crate::{
    api::mcp_server::{NetworkTier, RuntimeKind},
    names::ServerKey,
};
use keeper::Keeper;

/// Where and how processes run.
#[derive(Debug)]
pub struct Config {
    /// Marks the processes of this Perch.
    pub instance: String,
    /// Where packages, logs and working directories are kept.
    pub state_dir: PathBuf,
    /// The perch executable, through which processes are started.
    pub launcher: PathBuf,
    /// `PATH` for package tools.
    pub search_path: OsString,
    /// The environment that every process gets before its own.
    pub environment: Vec<(String, String)>,
    /// One package installation at a time.
    pub installs: tokio::sync::Mutex<()>,
}

impl Config {
    fn of(&self, what: &str, server: &ServerKey) -> PathBuf {
        self.state_dir.join(what).join(&server.namespace).join(&server.name)
    }

    fn log_dir(&self, server: &ServerKey) -> PathBuf {
        self.of("logs", server)
    }

    fn work_dir(&self, server: &ServerKey) -> PathBuf {
        self.of("work", server)
    }
}

/// Runs servers as processes of this machine.
#[derive(Debug)]
pub struct ProcessBackend {
    config: Arc<Config>,
    servers: Mutex<HashMap<ServerKey, Arc<Keeper>>>,
    changes: broadcast::Sender<ServerKey>,
}

/// Changes that a slow listener may be behind before it must look at everything.
const CHANGES: usize = 4096;

impl ProcessBackend {
    /// Takes over the machine's processes of this instance: ends what still runs of an earlier
    /// life. It blocks for a moment when there is something to end.
    pub fn open(config: Config) -> Self {
        leftovers::kill(&config.instance);
        Self::reader(config)
    }

    /// A backend for reading logs while another process of the same instance runs the servers: it
    /// ends nothing.
    pub fn reader(config: Config) -> Self {
        Self { config: Arc::new(config), servers: Mutex::default(), changes: broadcast::Sender::new(CHANGES) }
    }

    /// Ends every process of this instance and forgets what it kept, but packages.
    ///
    /// # Errors
    /// When files cannot be deleted.
    pub fn remove_everything(&self) -> std::io::Result<usize> {
        let count = leftovers::marked(&self.config.instance).len();
        leftovers::kill(&self.config.instance);
        for what in ["logs", "work"] {
            let dir = self.config.state_dir.join(what);
            if dir.exists() {
                fs::remove_dir_all(dir)?;
            }
        }
        Ok(count)
    }

    fn keeper(&self, server: &ServerKey) -> Option<Arc<Keeper>> {
        self.servers.lock().expect("nobody panics while holding the servers").get(server).cloned()
    }

    fn keepers(&self) -> Vec<Arc<Keeper>> {
        self.servers.lock().expect("nobody panics while holding the servers").values().cloned().collect()
    }
}

fn check(workload: &Workload) -> Result<(), RuntimeError> {
    let unsupported = |message: String| Err(RuntimeError::Unsupported(message));
    if let Program::Image { image, .. } = &workload.program {
        return unsupported(format!(
            "spec.image ({image}) needs a container engine, and servers run as processes here: start Docker, or use spec.package or spec.command"
        ));
    }
    for mount in &workload.volumes {
        match &mount.source {
            MountSource::Host(path) if *path == mount.path => {}
            MountSource::Host(path) => {
                return unsupported(format!(
                    "volume {} cannot show {} at {}, because a local process sees the machine's own files: make both paths equal, or use spec.image with Docker",
                    mount.name,
                    path.display(),
                    mount.path.display()
                ));
            }
            _ => {
                return unsupported(format!(
                    "volume {} cannot be mounted into a local process: use spec.image with Docker, or a hostPath that equals mountPath",
                    mount.name
                ));
            }
        }
    }
    if let Wire::Http { port: Some(port), .. } = workload.wire
        && workload.replicas > 1
    {
        return unsupported(format!(
            "{} local processes cannot share port {port}: leave spec.transport.port out, so that each gets its own in PORT, or set spec.replicas to 1",
            workload.replicas
        ));
    }
    Ok(())
}

#[async_trait]
impl Backend for ProcessBackend {
    fn kind(&self) -> RuntimeKind {
        RuntimeKind::Process
    }

    async fn apply(&self, workload: &Workload) -> Result<(), RuntimeError> {
        check(workload)?;
        let mut servers = self.servers.lock().expect("nobody panics while holding the servers");
        if let Some(keeper) = servers.get(&workload.server) {
            keeper.wish(workload);
        } else {
            let keeper = Keeper::start(Arc::clone(&self.config), workload.clone(), self.changes.clone());
            servers.insert(workload.server.clone(), Arc::new(keeper));
        }
        Ok(())
    }

    async fn observe(&self, server: &ServerKey) -> Result<Observed, RuntimeError> {
        let Some(keeper) = self.keeper(server) else { return Ok(Observed::default()) };
        let (preparing, instances) = keeper.shared.observed();
        let tier = keeper.shared.plan().map(|plan| plan.workload.network);
        let network = tier.map(|tier| match tier {
            NetworkTier::Public => NetworkReport { enforced: Some(true), message: "the network is open, as declared".into() },
            tier => NetworkReport {
                enforced: Some(false),
                message: format!("tier {tier:?} is not in force: a local process uses the machine's network; use Docker to confine it"),
            },
        });
        Ok(Observed { preparing, instances, image_id: None, network })
    }

    async fn remove(&self, server: &ServerKey) -> Result<(), RuntimeError> {
        if let Some(keeper) = self.keeper(server) {
            keeper.stop().await;
            self.servers.lock().expect("nobody panics while holding the servers").remove(server);
            let _ = self.changes.send(server.clone());
        }
        for dir in [self.config.log_dir(server), self.config.work_dir(server)] {
            match fs::remove_dir_all(&dir) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(RuntimeError::unavailable(format!("delete {}", dir.display()), error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    async fn servers(&self) -> Result<Vec<ServerKey>, RuntimeError> {
        Ok(self.servers.lock().expect("nobody panics while holding the servers").keys().cloned().collect())
    }

    fn endpoints(&self, server: &ServerKey) -> Vec<Endpoint> {
        self.keeper(server).map(|keeper| keeper.shared.endpoints()).unwrap_or_default()
    }

    async fn attach(&self, instance: &InstanceId) -> Result<StdioStreams, RuntimeError> {
        let slot = self.keepers().iter().find_map(|k| k.shared.slot(instance));
        let slot = slot.flatten().ok_or_else(|| RuntimeError::NotRunning(instance.to_string()))?;
        slot.lend().ok_or_else(|| RuntimeError::AlreadyAttached(instance.clone()))
    }

    async fn start_session(&self, server: &ServerKey) -> Result<InstanceId, RuntimeError> {
        let keeper = self.keeper(server).ok_or_else(|| RuntimeError::NotRunning(server.to_string()))?;
        keeper.start_session()
    }

    async fn end_session(&self, instance: &InstanceId) -> Result<(), RuntimeError> {
        for keeper in self.keepers() {
            if keeper.shared.cancel_session(instance) {
                break;
            }
        }
        Ok(())
    }

    async fn logs(&self, server: &ServerKey, options: LogOptions) -> Result<BoxStream<'static, LogLine>, RuntimeError> {
        Ok(log_file::read(&self.config.log_dir(server), &options))
    }

    async fn usage(&self, server: &ServerKey) -> Result<Vec<Usage>, RuntimeError> {
        let Some(keeper) = self.keeper(server) else { return Ok(Vec::new()) };
        let groups = keeper.shared.groups();
        let mut system = System::new();
        system.refresh_processes(ProcessesToUpdate::All, true);
        tokio::time::sleep(sysinfo::MINIMUM_CPU_UPDATE_INTERVAL.max(Duration::from_millis(200))).await;
        system.refresh_processes(ProcessesToUpdate::All, true);
        let in_group = |pid: &sysinfo::Pid, group| {
            let pid = i32::try_from(pid.as_u32()).ok().and_then(rustix::process::Pid::from_raw);
            pid.is_some_and(|pid| getpgid(Some(pid)).ok() == Some(group))
        };
        let usage = groups.into_iter().map(|(instance, group)| {
            let processes =
                || system.processes().iter().filter(|(pid, p)| p.thread_kind().is_none() && in_group(pid, group));
            Usage {
                instance,
                cpus: processes().map(|(_, p)| f64::from(p.cpu_usage()) / 100.0).sum(),
                memory_bytes: processes().map(|(_, p)| p.memory()).sum(),
            }
        });
        Ok(usage.collect())
    }

    fn changes(&self) -> broadcast::Receiver<ServerKey> {
        self.changes.subscribe()
    }

    async fn shutdown(&self) -> Result<(), RuntimeError> {
        let keepers = self.keepers();
        futures::future::join_all(keepers.iter().map(|keeper| keeper.stop())).await;
        Ok(())
    }
}
