//! Servers as containers of a Docker engine.
//!
//! * Every container, network, volume and built image carries the label `perch.dev/instance` of
//!   this Perch; nothing without it is ever touched.
//! * A container is locked down as far as the spec allows ([`container`]): no root, no
//!   capabilities, read-only root, limits on memory, CPU and processes, no published ports.
//! * Containers outlive Perch. The next life of this Perch finds them by their labels and goes on
//!   with those that are as they should be.
//!
//! The gateway reaches containers at their addresses on the engine's bridge networks, so the
//! engine must run on this machine's kernel.
//!
//! May import: `runtime`, `egress`, `api`, `names`.

mod attach;
mod container;
mod egress;
mod files;
mod image;
mod keeper;
mod logs;
mod network;
mod view;
mod volume;
mod way_out;

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use bollard::{
    API_DEFAULT_VERSION, Docker,
    query_parameters::{
        EventsOptionsBuilder, ListContainersOptionsBuilder, ListVolumesOptionsBuilder, RemoveContainerOptionsBuilder,
        StatsOptionsBuilder, WaitContainerOptionsBuilder,
    },
};
use futures::{StreamExt, stream::BoxStream};
use tokio::sync::broadcast;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Backend, Endpoint, InstanceId, LogLine, LogOptions, Observed, RuntimeError, StdioStreams, Usage, Workload,
    egress_proxy::Refusals,
    workload::{Program, Wire},
};
use crate::{
    api::mcp_server::{NetworkTier, RuntimeKind},
    names::ServerKey,
};
use keeper::Keeper;

/// Labels of everything that belongs to Perch.
mod label {
    pub const INSTANCE: &str = "perch.dev/instance";
    pub const NAMESPACE: &str = "perch.dev/namespace";
    pub const SERVER: &str = "perch.dev/server";
    pub const UID: &str = "perch.dev/uid";
    pub const REVISION: &str = "perch.dev/revision";
    pub const ORDINAL: &str = "perch.dev/ordinal";
    pub const SESSION: &str = "perch.dev/session";
    /// On containers: what they may reach.
    pub const EGRESS: &str = "perch.dev/egress";
    /// On a network: where its egress proxy listens.
    pub const EGRESS_PORT: &str = "perch.dev/egress-port";
}

/// How long the engine may take to answer a request, in seconds. Pulls and builds stream.
const TIMEOUT: u64 = 120;
/// Changes that a slow listener may be behind before it must look at everything.
const CHANGES: usize = 4096;
/// Wait before the event stream is opened again.
const RECONNECT: Duration = Duration::from_secs(1);

/// Which engine, and on whose behalf.
#[derive(Clone, Debug)]
pub struct Config {
    /// Proves ownership: the value of the label on everything.
    pub instance: String,
    /// Where files for containers are kept.
    pub state_dir: PathBuf,
    /// Image on which npm packages are built.
    pub npm_base: String,
    /// Image on which PyPI packages are built.
    pub pypi_base: String,
    /// `unix://…` or `tcp://…`; the usual socket when none.
    pub host: Option<String>,
}

impl Config {
    /// A short form of the instance for names.
    fn short(&self) -> &str {
        self.instance.get(..8).unwrap_or(&self.instance)
    }
}

/// What all parts of the backend share.
#[derive(Debug)]
struct Engine {
    docker: Docker,
    config: Config,
    changes: broadcast::Sender<ServerKey>,
    /// One network is made at a time.
    networks: tokio::sync::Mutex<()>,
    /// One build of a package at a time.
    builds: tokio::sync::Mutex<()>,
    egress: egress::Egress,
}

impl Engine {
    /// Every container of this instance, or of one server.
    async fn containers(
        &self,
        server: Option<&ServerKey>,
    ) -> Result<Vec<bollard::models::ContainerSummary>, RuntimeError> {
        let mut labels = vec![format!("{}={}", label::INSTANCE, self.config.instance)];
        if let Some(server) = server {
            labels.push(format!("{}={}", label::NAMESPACE, server.namespace));
            labels.push(format!("{}={}", label::SERVER, server.name));
        }
        let filters = HashMap::from([("label".to_owned(), labels)]);
        let options = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
        self.docker.list_containers(Some(options)).await.map_err(unavailable("list containers"))
    }

    /// Deletes a container at once, and returns when it is gone. Absent is fine.
    async fn delete(&self, id: &str) -> Result<(), RuntimeError> {
        let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
        match self.docker.remove_container(id, Some(options)).await {
            Err(error) if is_conflict(&error) => {
                // Somebody else deletes it already; an error here says that it is gone.
                let removed = WaitContainerOptionsBuilder::new().condition("removed").build();
                let _ = self.docker.wait_container(id, Some(removed)).next().await;
                Ok(())
            }
            Err(error) if is_gone(&error) => Ok(()),
            other => other.map_err(unavailable("remove a container")),
        }
    }
}

fn unavailable(what: &'static str) -> impl Fn(bollard::errors::Error) -> RuntimeError {
    move |error| match error {
        bollard::errors::Error::HyperLegacyError { .. } | bollard::errors::Error::SocketNotFoundError(_) => {
            RuntimeError::unavailable(what, "the Docker engine does not answer; perch goes on when it is back")
        }
        other => RuntimeError::unavailable(what, other),
    }
}

/// Whether the engine says that the thing is not there, or is going already.
fn is_gone(error: &bollard::errors::Error) -> bool {
    matches!(error, bollard::errors::Error::DockerResponseServerError { status_code: 404, .. }) || is_conflict(error)
}

/// Whether the engine says that the thing is going already.
fn is_conflict(error: &bollard::errors::Error) -> bool {
    matches!(error, bollard::errors::Error::DockerResponseServerError { status_code: 409, .. })
}

fn key_of(labels: &HashMap<String, String>) -> Option<ServerKey> {
    Some(ServerKey::new(labels.get(label::NAMESPACE)?, labels.get(label::SERVER)?))
}

/// Runs servers as containers.
#[derive(Debug)]
pub struct DockerBackend {
    engine: Arc<Engine>,
    version: String,
    servers: Mutex<HashMap<ServerKey, Arc<Keeper>>>,
    tasks: TaskTracker,
    closing: CancellationToken,
}

impl DockerBackend {
    /// Connects to the engine and takes over the containers of this instance: those of sessions
    /// end, all others are adopted when their server is applied.
    ///
    /// # Errors
    /// When no engine answers.
    pub async fn connect(config: Config) -> Result<Arc<Self>, RuntimeError> {
        let backend = Arc::new(Self::reader(config).await?);
        for container in backend.engine.containers(None).await? {
            let labels = container.labels.unwrap_or_default();
            if let (true, Some(id)) = (labels.contains_key(label::SESSION), container.id) {
                backend.engine.delete(&id).await?;
            }
        }
        backend.tasks.spawn(follow_events(Arc::downgrade(&backend), backend.closing.clone()));
        Ok(backend)
    }

    /// A backend for reading logs and for cleaning up, which takes over nothing.
    ///
    /// # Errors
    /// When no engine answers.
    pub async fn reader(config: Config) -> Result<Self, RuntimeError> {
        let what = "reach the Docker engine";
        let docker = match config.host.as_deref() {
            None => Docker::connect_with_socket_defaults(),
            Some(host) if host.starts_with("unix://") => {
                Docker::connect_with_socket(host, TIMEOUT, API_DEFAULT_VERSION)
            }
            Some(host) => Docker::connect_with_http(host, TIMEOUT, API_DEFAULT_VERSION),
        };
        let docker = docker.map_err(unavailable(what))?.negotiate_version().await.map_err(unavailable(what))?;
        let version = docker.version().await.map_err(unavailable(what))?.version.unwrap_or_default();
        let engine = Engine {
            docker,
            config,
            changes: broadcast::Sender::new(CHANGES),
            networks: tokio::sync::Mutex::default(),
            builds: tokio::sync::Mutex::default(),
            egress: egress::Egress::default(),
        };
        Ok(Self {
            engine: Arc::new(engine),
            version,
            servers: Mutex::default(),
            tasks: TaskTracker::new(),
            closing: CancellationToken::new(),
        })
    }

    /// What the egress proxy refused.
    pub fn refusals(&self) -> Refusals {
        self.engine.egress.refusals.clone()
    }

    /// Version of the engine.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Removes every container and network of this instance, and its volumes if wished. Returns
    /// what was removed, in words.
    ///
    /// # Errors
    /// When the engine does not answer.
    pub async fn remove_everything(&self, volumes: bool) -> Result<Vec<String>, RuntimeError> {
        let mut removed = Vec::new();
        for container in self.engine.containers(None).await? {
            if let Some(id) = container.id {
                self.engine.delete(&id).await?;
                let name = container.names.and_then(|n| n.into_iter().next()).unwrap_or(id);
                removed.push(format!("container {}", name.trim_start_matches('/')));
            }
        }
        removed.extend(network::remove(&self.engine).await?);
        files::remove_all(&self.engine.config)?;
        if volumes {
            let filters =
                HashMap::from([("label", vec![format!("{}={}", label::INSTANCE, self.engine.config.instance)])]);
            let options = ListVolumesOptionsBuilder::new().filters(&filters).build();
            let found = self.engine.docker.list_volumes(Some(options)).await.map_err(unavailable("list volumes"))?;
            for volume in found.volumes.unwrap_or_default() {
                let none = None::<bollard::query_parameters::RemoveVolumeOptions>;
                self.engine.docker.remove_volume(&volume.name, none).await.map_err(unavailable("remove a volume"))?;
                removed.push(format!("volume {}", volume.name));
            }
        }
        Ok(removed)
    }

    fn keeper(&self, server: &ServerKey) -> Option<Arc<Keeper>> {
        self.servers.lock().expect("nobody panics while holding the servers").get(server).cloned()
    }

    fn keepers(&self) -> Vec<Arc<Keeper>> {
        self.servers.lock().expect("nobody panics while holding the servers").values().cloned().collect()
    }

    fn wake(&self, server: Option<&ServerKey>) {
        match server {
            Some(server) => self.keeper(server).iter().for_each(|k| k.wake()),
            None => self.keepers().iter().for_each(|k| k.wake()),
        }
    }
}

/// Wakes the keeper of a server whenever the engine says that something happened to one of its
/// containers. When the stream breaks, everybody looks for themselves.
async fn follow_events(backend: std::sync::Weak<DockerBackend>, closing: CancellationToken) {
    loop {
        let Some(alive) = backend.upgrade() else { return };
        let filters = HashMap::from([("type", vec!["container".to_owned(), "network".to_owned()])]);
        let mut events =
            alive.engine.docker.events(Some(EventsOptionsBuilder::new().filters(&filters).build())).boxed();
        let instance = alive.engine.config.instance.clone();
        // What happened before the stream was open is found by looking.
        alive.wake(None);
        drop(alive);
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                () = closing.cancelled() => return,
            };
            let Some(Ok(event)) = event else { break };
            let Some(alive) = backend.upgrade() else { return };
            let attributes = event.actor.and_then(|a| a.attributes).unwrap_or_default();
            if attributes.contains_key("container") {
                alive.wake(None);
            } else if attributes.get(label::INSTANCE) == Some(&instance) {
                alive.wake(key_of(&attributes).as_ref());
            }
        }
        tokio::select! {
            () = tokio::time::sleep(RECONNECT) => {}
            () = closing.cancelled() => return,
        }
    }
}

fn check(workload: &Workload) -> Result<(), RuntimeError> {
    if let Program::Command { .. } = workload.program {
        let message = "spec.command alone runs as a local process: add spec.image to run it in a container";
        return Err(RuntimeError::Unsupported(message.into()));
    }
    if workload.network == NetworkTier::Secure && matches!(workload.wire, Wire::Http { .. }) {
        let message = "network tier Secure leaves no network, and an HTTP server needs one: use transport Stdio, or tier Internal";
        return Err(RuntimeError::Unsupported(message.into()));
    }
    Ok(())
}

#[async_trait]
impl Backend for DockerBackend {
    fn kind(&self) -> RuntimeKind {
        RuntimeKind::Docker
    }

    async fn apply(&self, workload: &Workload) -> Result<(), RuntimeError> {
        check(workload)?;
        let mut servers = self.servers.lock().expect("nobody panics while holding the servers");
        if let Some(keeper) = servers.get(&workload.server) {
            keeper.wish(workload);
        } else {
            let keeper = Keeper::start(Arc::clone(&self.engine), workload.clone(), &self.tasks);
            servers.insert(workload.server.clone(), keeper);
        }
        Ok(())
    }

    async fn observe(&self, server: &ServerKey) -> Result<Observed, RuntimeError> {
        match self.keeper(server) {
            Some(keeper) => keeper.observed(),
            None => Ok(Observed::default()),
        }
    }

    async fn remove(&self, server: &ServerKey) -> Result<(), RuntimeError> {
        if let Some(keeper) = self.keeper(server) {
            keeper.end().await;
        }
        // Whatever is left, be it of an earlier life that nobody applied again.
        for container in self.engine.containers(Some(server)).await? {
            if let Some(id) = container.id {
                self.engine.delete(&id).await?;
            }
        }
        files::remove(&self.engine.config, server)?;
        self.engine.egress.refusals.forget(server);
        self.servers.lock().expect("nobody panics while holding the servers").remove(server);
        let _ = self.engine.changes.send(server.clone());
        Ok(())
    }

    async fn servers(&self) -> Result<Vec<ServerKey>, RuntimeError> {
        let containers = self.engine.containers(None).await?;
        let mut keys: Vec<ServerKey> = containers.iter().filter_map(|c| key_of(c.labels.as_ref()?)).collect();
        keys.sort();
        keys.dedup();
        Ok(keys)
    }

    fn endpoints(&self, server: &ServerKey) -> Vec<Endpoint> {
        self.keeper(server).map(|keeper| keeper.endpoints()).unwrap_or_default()
    }

    async fn attach(&self, instance: &InstanceId) -> Result<StdioStreams, RuntimeError> {
        for keeper in self.keepers() {
            if let Some((container, held)) = keeper.find(instance) {
                return attach::attach(&self.engine.docker, instance, &container, held).await;
            }
        }
        Err(RuntimeError::NotRunning(instance.to_string()))
    }

    async fn start_session(&self, server: &ServerKey) -> Result<InstanceId, RuntimeError> {
        let keeper = self.keeper(server).ok_or_else(|| RuntimeError::NotRunning(server.to_string()))?;
        keeper.start_session().await
    }

    async fn end_session(&self, instance: &InstanceId) -> Result<(), RuntimeError> {
        for keeper in self.keepers() {
            if let Some(container) = keeper.forget_session(instance) {
                return self.engine.delete(&container).await;
            }
        }
        Ok(())
    }

    async fn logs(&self, server: &ServerKey, options: LogOptions) -> Result<BoxStream<'static, LogLine>, RuntimeError> {
        logs::read(Arc::clone(&self.engine), server.clone(), options).await
    }

    async fn usage(&self, server: &ServerKey) -> Result<Vec<Usage>, RuntimeError> {
        let Some(keeper) = self.keeper(server) else { return Ok(Vec::new()) };
        let mut usage = Vec::new();
        for (instance, container) in keeper.running() {
            // The second sample of the engine has the difference that a rate needs.
            let options = StatsOptionsBuilder::new().stream(false).one_shot(false).build();
            let sample = self.engine.docker.stats(&container, Some(options)).boxed().next().await;
            if let Some(Ok(stats)) = sample {
                usage.push(container::usage(instance, &stats));
            }
        }
        Ok(usage)
    }

    fn changes(&self) -> broadcast::Receiver<ServerKey> {
        self.engine.changes.subscribe()
    }

    async fn shutdown(&self) -> Result<(), RuntimeError> {
        self.closing.cancel();
        let keepers = self.keepers();
        futures::future::join_all(keepers.iter().map(|keeper| keeper.stop())).await;
        self.tasks.close();
        self.tasks.wait().await;
        Ok(())
    }
}
