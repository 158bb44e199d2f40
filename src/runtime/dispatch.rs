//! One backend made of several: each server goes to the one that can run it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use futures::stream::BoxStream;
use tokio::sync::broadcast;
use tokio_util::task::AbortOnDropHandle;

use super::{
    Backend, Endpoint, InstanceId, LogLine, LogOptions, Observed, RuntimeError, StdioStreams, Usage, Workload,
    workload::Program,
};
use crate::{api::mcp_server::RuntimeKind, names::ServerKey};

/// Sends images to containers, commands to processes, and packages to containers where there is
/// an engine, else to processes.
pub struct Dispatch {
    containers: Option<Arc<dyn Backend>>,
    processes: Option<Arc<dyn Backend>>,
    /// Which backend has a server.
    homes: Mutex<HashMap<ServerKey, Arc<dyn Backend>>>,
    changes: broadcast::Sender<ServerKey>,
    /// Keep `changes` fed for as long as this lives.
    #[expect(dead_code, reason = "held for its drop")]
    forwarders: Vec<AbortOnDropHandle<()>>,
}

impl Dispatch {
    /// A backend over those that this machine has. Must be called within a tokio runtime.
    pub fn new(containers: Option<Arc<dyn Backend>>, processes: Option<Arc<dyn Backend>>) -> Self {
        let changes = broadcast::Sender::new(4096);
        let forwarders = [&containers, &processes]
            .into_iter()
            .flatten()
            .map(|backend| AbortOnDropHandle::new(tokio::spawn(forward(backend.changes(), changes.clone()))));
        let forwarders = forwarders.collect();
        Self { containers, processes, homes: Mutex::default(), changes, forwarders }
    }

    fn backends(&self) -> impl Iterator<Item = &Arc<dyn Backend>> {
        self.containers.iter().chain(&self.processes)
    }

    fn choose(&self, workload: &Workload) -> Result<&Arc<dyn Backend>, RuntimeError> {
        let unsupported = |message: &str| RuntimeError::Unsupported(message.to_owned());
        match &workload.program {
            Program::Image { .. } => self.containers.as_ref().ok_or_else(|| {
                unsupported("spec.image needs a Docker engine, and none answers: start Docker and then perch, or use spec.package or spec.command")
            }),
            Program::Package { .. } => self
                .containers
                .as_ref()
                .or(self.processes.as_ref())
                .ok_or_else(|| unsupported("spec.package needs a Docker engine or local processes, and perch was started with neither")),
            Program::Command { .. } => self.processes.as_ref().ok_or_else(|| {
                unsupported("spec.command alone runs as a local process, and perch was started with --runtime docker: add spec.image, or start perch with --runtime auto")
            }),
        }
    }

    fn home(&self, server: &ServerKey) -> Option<Arc<dyn Backend>> {
        self.homes.lock().expect("nobody panics while holding the homes").get(server).cloned()
    }

    fn require(&self, server: &ServerKey) -> Result<Arc<dyn Backend>, RuntimeError> {
        self.home(server).ok_or_else(|| RuntimeError::NotRunning(server.to_string()))
    }

    /// The kind of the backend that has a server.
    pub fn kind_of(&self, server: &ServerKey) -> Option<RuntimeKind> {
        self.home(server).map(|backend| backend.kind())
    }
}

async fn forward(mut from: broadcast::Receiver<ServerKey>, to: broadcast::Sender<ServerKey>) {
    loop {
        match from.recv().await {
            Ok(server) => drop(to.send(server)),
            // Our own channel has the same size, so whoever listens there lags as well.
            Err(broadcast::error::RecvError::Lagged(_)) => {}
            Err(broadcast::error::RecvError::Closed) => return,
        }
    }
}

#[async_trait]
impl Backend for Dispatch {
    fn kind(&self) -> RuntimeKind {
        self.containers.as_ref().or(self.processes.as_ref()).map_or(RuntimeKind::Process, |b| b.kind())
    }

    fn kind_for(&self, server: &ServerKey) -> RuntimeKind {
        self.kind_of(server).unwrap_or_else(|| self.kind())
    }

    async fn apply(&self, workload: &Workload) -> Result<(), RuntimeError> {
        let chosen = Arc::clone(self.choose(workload)?);
        for other in self.backends().filter(|b| b.kind() != chosen.kind()) {
            if self.home(&workload.server).is_none_or(|home| home.kind() == other.kind()) {
                other.remove(&workload.server).await?;
            }
        }
        chosen.apply(workload).await?;
        self.homes.lock().expect("nobody panics while holding the homes").insert(workload.server.clone(), chosen);
        Ok(())
    }

    async fn observe(&self, server: &ServerKey) -> Result<Observed, RuntimeError> {
        match self.home(server) {
            Some(home) => home.observe(server).await,
            None => Ok(Observed::default()),
        }
    }

    async fn remove(&self, server: &ServerKey) -> Result<(), RuntimeError> {
        for backend in self.backends() {
            backend.remove(server).await?;
        }
        self.homes.lock().expect("nobody panics while holding the homes").remove(server);
        Ok(())
    }

    async fn servers(&self) -> Result<Vec<ServerKey>, RuntimeError> {
        let mut all = Vec::new();
        for backend in self.backends() {
            all.extend(backend.servers().await?);
        }
        all.sort();
        all.dedup();
        Ok(all)
    }

    fn endpoints(&self, server: &ServerKey) -> Vec<Endpoint> {
        self.home(server).map(|home| home.endpoints(server)).unwrap_or_default()
    }

    async fn attach(&self, instance: &InstanceId) -> Result<StdioStreams, RuntimeError> {
        for backend in self.backends() {
            match backend.attach(instance).await {
                Err(RuntimeError::NotRunning(_)) => {}
                other => return other,
            }
        }
        Err(RuntimeError::NotRunning(instance.to_string()))
    }

    async fn start_session(&self, server: &ServerKey) -> Result<InstanceId, RuntimeError> {
        self.require(server)?.start_session(server).await
    }

    async fn end_session(&self, instance: &InstanceId) -> Result<(), RuntimeError> {
        for backend in self.backends() {
            backend.end_session(instance).await?;
        }
        Ok(())
    }

    async fn logs(&self, server: &ServerKey, options: LogOptions) -> Result<BoxStream<'static, LogLine>, RuntimeError> {
        self.require(server)?.logs(server, options).await
    }

    async fn usage(&self, server: &ServerKey) -> Result<Vec<Usage>, RuntimeError> {
        self.require(server)?.usage(server).await
    }

    fn changes(&self) -> broadcast::Receiver<ServerKey> {
        self.changes.subscribe()
    }

    async fn shutdown(&self) -> Result<(), RuntimeError> {
        let all: Vec<_> = self.backends().cloned().collect();
        let ends = futures::future::join_all(all.iter().map(|b| b.shutdown())).await;
        ends.into_iter().collect()
    }
}
