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
mod ports;
mod streams;

pub use ports::Ports;

use std::{
    collections::HashMap,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use futures::stream::BoxStream;
use rustix::process::getpgid;
use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, System, UpdateKind};
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
    /// The ports that processes have.
    pub ports: Ports,
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

    fn credentials_dir(&self, server: &ServerKey) -> PathBuf {
        self.of("credentials", server)
    }
}

/// Runs servers as processes of this machine.
#[derive(Debug)]
pub struct ProcessBackend {
    config: Arc<Config>,
    servers: Mutex<HashMap<ServerKey, Arc<Keeper>>>,
    changes: broadcast::Sender<ServerKey>,
}

/// What is kept of servers, each in a folder of its own.
const KEPT: [&str; 3] = ["logs", "work", "credentials"];
/// Changes that a slow listener may be behind before it must look at everything.
const CHANGES: usize = 4096;

impl ProcessBackend {
    /// Takes over the machine's processes of this instance: ends what still runs of an earlier
    /// life. It blocks for a moment when there is something to end.
    pub fn open(config: Config) -> Self {
        leftovers::kill(&config.instance, None);
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
        let count = leftovers::marked(&self.config.instance, None).len();
        leftovers::kill(&self.config.instance, None);
        for what in KEPT {
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

    /// Ends what still runs of this instance, or of one server of it.
    async fn kill_marked(&self, server: Option<ServerKey>) -> Result<(), RuntimeError> {
        let config = Arc::clone(&self.config);
        let kill = tokio::task::spawn_blocking(move || leftovers::kill(&config.instance, server.as_ref()));
        kill.await.map_err(|error| RuntimeError::unavailable("end processes", error))
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

/// Names of the folders in a folder; none if it is not there.
fn entries(dir: &Path) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let folders = entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
    folders.filter_map(|e| e.file_name().into_string().ok())
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
        let declared =
            keeper.shared.plan().map(|plan| (plan.workload.network, !plan.workload.declared.egress.is_empty()));
        let network = declared.map(|declared| match declared {
            (_, true) => NetworkReport {
                enforced: Some(false),
                message: "spec.network.egress is not in force: a local process uses the machine's network; use Docker to confine it".into(),
            },
            (NetworkTier::Public, _) => NetworkReport { enforced: Some(true), message: "the network is open, as declared".into() },
            (tier, _) => NetworkReport {
                enforced: Some(false),
                message: format!("tier {tier:?} is not in force: a local process uses the machine's network; use Docker to confine it"),
            },
        });
        Ok(Observed { preparing, instances, image_id: None, network })
    }

    async fn remove(&self, server: &ServerKey) -> Result<(), RuntimeError> {
        if let Some(keeper) = self.keeper(server) {
            keeper.stop().await;
            // What ran away from its group.
            self.kill_marked(Some(server.clone())).await?;
            self.servers.lock().expect("nobody panics while holding the servers").remove(server);
            let _ = self.changes.send(server.clone());
        }
        for dir in KEPT.map(|what| self.config.of(what, server)) {
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
        let mut all: Vec<ServerKey> =
            self.servers.lock().expect("nobody panics while holding the servers").keys().cloned().collect();
        // Files of servers that an earlier life ran.
        for what in KEPT {
            for namespace in entries(&self.config.state_dir.join(what)) {
                let dir = self.config.state_dir.join(what).join(&namespace);
                all.extend(entries(&dir).map(|name| ServerKey::new(&namespace, name)));
            }
        }
        all.sort();
        all.dedup();
        Ok(all)
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
        let what = ProcessRefreshKind::nothing().with_cpu().with_memory().with_environ(UpdateKind::Always);
        system.refresh_processes_specifics(ProcessesToUpdate::All, true, what);
        tokio::time::sleep(sysinfo::MINIMUM_CPU_UPDATE_INTERVAL.max(Duration::from_millis(200))).await;
        system.refresh_processes_specifics(ProcessesToUpdate::All, true, what);
        let usage = groups.into_iter().map(|(instance, group)| {
            let members = || leftovers::members(&system, &self.config.instance, Some(server));
            let processes = || members().filter(|(pid, _)| getpgid(Some(*pid)).ok() == Some(group));
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
        self.kill_marked(None).await
    }
}
