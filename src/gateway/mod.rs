//! The MCP data plane: one HTTP entry point for every AI client.
//!
//! `/{namespace}/{name}/mcp` leads to a server over MCP Streamable HTTP, `/{namespace}/{name}/sse`
//! over the older HTTP with server-sent events ([`legacy_sse`]). An HTTP server's bytes pass through
//! ([`http_upstream`]); a Stdio server is bridged ([`bridge`]). Where client and server are of
//! different eras of the protocol, messages are translated ([`translate`]). Which server is where
//! stands in an immutable table that is swapped as a whole when a resource changes ([`follow`]);
//! which of its instances may take a request, [`placement`] says. `/{namespace}/toolboxes/{name}/mcp`
//! leads to several servers at once ([`toolbox`]). What users say about a server is taken at
//! `/{namespace}/{name}/feedback` ([`feedback`]). What is learned of each operation
//! goes to releases, metrics and the audit log ([`observe`]).
//!
//! May import: `routing`, `canary`, `lifecycle`, `runtime`, `api`, `names`, `error`, `telemetry`. Never
//! `controllers`, `local`.

pub mod access;
mod admin;
mod balance;
pub mod bridge;
mod config;
pub mod config_file;
mod decommission;
pub(crate) mod era;
mod feedback;
mod follow;
mod handler;
mod http_upstream;
mod instances;
mod legacy_sse;
mod listen;
pub(crate) mod message;
mod nesting;
mod observe;
mod origin;
mod own_ids;
pub(crate) mod parameter_headers;
mod peer;
mod placement;
mod pool;
pub(crate) mod reply;
mod session;
pub(crate) mod sse;
mod starting;
#[cfg(test)]
mod tests;
mod threads;
pub mod tls;
mod toolbox;
mod trace;
mod translate;
mod upstream_sessions;
mod validate;

use std::{
    num::NonZero,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use arc_swap::ArcSwap;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use config::Config;
pub use observe::audit::AuditConfig;
pub use session::{Groups, Principal};

use crate::{routing::RouteTable, runtime::Backend};
use observe::Observer;
use threads::Threads;

/// Why the gateway does not start.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The audit log is not there.
    #[error("the audit log {path} cannot be written: {source}; choose another file, or leave it out")]
    Audit {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// There are no threads to answer in.
    #[error("no threads can be started to answer requests: {0}; raise the limits of processes and open files")]
    Threads(std::io::Error),
}

/// The gateway: its data plane, and what it tells about itself.
pub struct DataPlane {
    gateway: Arc<handler::Gateway>,
    observer: Arc<Observer>,
    follower: follow::Follower,
    ready: Arc<AtomicBool>,
    client: kube::Client,
    namespace: Option<String>,
    shutdown: CancellationToken,
    threads: Arc<Threads>,
}

impl DataPlane {
    /// A gateway that serves nothing yet. Routes follow the McpServers, McpToolboxes and CanaryReleases that
    /// `client` watches; instances are found through `backend`.
    ///
    /// # Errors
    /// When the audit log cannot be opened, or no threads can be had.
    pub fn new(
        config: Config,
        client: kube::Client,
        backend: Arc<dyn Backend>,
        shutdown: CancellationToken,
    ) -> Result<Self, GatewayError> {
        let observer = Observer::new(config.name.clone(), config.audit.clone()).map_err(|source| {
            let path = config.audit.as_ref().map(|audit| audit.path.display().to_string()).unwrap_or_default();
            GatewayError::Audit { path, source }
        })?;
        let observer = observer.tracing(config.traces.clone());
        let (observer, ready) = (Arc::new(observer), Arc::<AtomicBool>::default());
        let table = Arc::new(ArcSwap::from_pointee(RouteTable::default()));
        let follower =
            follow::Follower::new(Arc::clone(&table), Arc::clone(&observer), Arc::clone(&ready), config.bridged);
        let namespace = config.namespace.clone();
        let instances = Arc::new(instances::Running(backend));
        let gateway = handler::Gateway::new(config, table, instances, shutdown.clone(), None);
        let gateway = Arc::new(gateway.observed_by(Arc::clone(&observer)));
        // A machine that does not say how many cores it has gets one thread.
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        let threads = Arc::new(Threads::start(cores).map_err(GatewayError::Threads)?);
        Ok(Self { gateway, observer, follower, ready, client, namespace, shutdown, threads })
    }

    /// What is served beside health and metrics on the admin listener: `/-/report` and `/-/epoch`.
    pub fn admin_routes(&self) -> axum::Router {
        admin::router(Arc::clone(&self.gateway.table), Arc::clone(&self.observer))
    }

    /// Adds the gateway's metrics.
    pub fn register(&self, registry: &mut Registry) {
        registry.register_collector(Box::new(Arc::clone(&self.observer)));
        self.gateway.toolboxes.register(registry);
        self.gateway.arguments.register(registry);
        if let Some(traces) = &self.gateway.config.traces {
            registry.register_collector(Box::new(Arc::clone(traces)));
        }
    }

    /// Tells whether the gateway knows where requests go.
    pub fn readiness(&self) -> impl Fn() -> bool + Send + Sync + 'static {
        let ready = Arc::clone(&self.ready);
        move || ready.load(Ordering::Acquire)
    }

    /// Serves on `listener` until the shutdown, then lets calls in flight finish for a while.
    pub async fn serve(self, listener: TcpListener) {
        let Self { gateway, follower, client, namespace, shutdown, threads, .. } = self;
        let (drain, receive) = (gateway.config.drain_timeout, gateway.config.receive_timeout);
        let answer = {
            let gateway = Arc::clone(&gateway);
            move |request| Arc::clone(&gateway).answer(request)
        };
        let (access, tls) = (gateway.config.access.clone(), gateway.config.tls.clone());
        let serve = listen::serve(Arc::clone(&threads), tls.clone(), listener, receive, shutdown, drain, answer);
        let certificates = async {
            match &tls {
                Some(tls) => tls.follow().await,
                None => std::future::pending().await,
            }
        };
        // All end with `serve`: while requests are being finished, routes stay.
        tokio::select! {
            () = serve => {}
            () = access.follow() => {}
            () = certificates => {}
            () = gateway.bridges.reap_forever(&gateway) => {}
            () = follower.run(client, namespace.as_deref()) => {}
        }
        gateway.close().await;
    }
}
