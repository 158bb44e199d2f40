//! The MCP data plane: one HTTP entry point for every AI client.
//!
//! `/{namespace}/{name}/mcp` leads to a server over MCP Streamable HTTP, `/{namespace}/{name}/sse`
//! over the older HTTP with server-sent events ([`legacy_sse`]). An HTTP server's bytes pass through
//! ([`http_upstream`]); a Stdio server is bridged ([`bridge`]). Where client and server are of
//! different eras of the protocol, messages are translated ([`translate`]). Which server is where
//! stands in an immutable table that is swapped as a whole when a resource changes.
//!
//! May import: `routing`, `runtime`, `api`, `names`, `error`, `telemetry`. Never `controllers`,
//! `local`.

pub mod access;
mod admin;
mod balance;
pub mod bridge;
mod config;
mod era;
mod handler;
mod http_upstream;
mod instances;
mod legacy_sse;
mod listen;
mod message;
mod nesting;
mod origin;
mod parameter_headers;
mod peer;
mod pool;
mod reply;
mod session;
mod sse;
#[cfg(test)]
mod tests;
pub mod tls;
mod translate;
mod upstream_sessions;

use std::sync::Arc;

use arc_swap::ArcSwap;
use futures::TryStreamExt;
use kube::{
    Api,
    runtime::{WatchStreamExt, watcher},
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use config::Config;
pub use session::{Groups, Principal};

use crate::{
    api::mcp_server::{McpServer, TransportType},
    routing::{RouteTable, key_of},
    runtime::Backend,
};

/// Why the gateway ended.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// Listening failed.
    #[error("the gateway cannot serve: {0}")]
    Serve(#[from] std::io::Error),
}

/// Serves on `listener` until `shutdown`, then lets calls in flight finish for a while. Routes
/// follow the McpServers that `client` watches; instances are found through `backend`.
///
/// # Errors
/// When the listener fails.
pub async fn run(
    config: Config,
    client: kube::Client,
    backend: Arc<dyn Backend>,
    listener: TcpListener,
    shutdown: CancellationToken,
) -> Result<(), GatewayError> {
    let table = Arc::new(ArcSwap::from_pointee(RouteTable::default()));
    let (drain, receive, admin) = (config.drain_timeout, config.receive_timeout, config.admin);
    let servers = match &config.namespace {
        Some(namespace) => Api::namespaced(client, namespace),
        None => Api::all(client),
    };
    let bridged = config.bridged;
    let (access, tls) = (config.access.clone(), config.tls.clone());
    let instances = Arc::new(instances::Running(backend));
    let gateway = Arc::new(handler::Gateway::new(config, Arc::clone(&table), instances, shutdown.clone(), None));
    let admin = match admin {
        Some(address) => Some(TcpListener::bind(address).await?),
        None => None,
    };
    let answer = {
        let gateway = Arc::clone(&gateway);
        move |request| Arc::clone(&gateway).answer(request)
    };
    let serve = listen::serve_over(tls.clone(), listener, receive, shutdown.clone(), drain, answer);
    let certificates = async {
        match &tls {
            Some(tls) => tls.follow().await,
            None => std::future::pending().await,
        }
    };
    // Both end with `serve`: while requests are being finished, routes and reports stay.
    tokio::select! {
        () = serve => {}
        () = follow(servers, &table, bridged) => {}
        () = access.follow() => {}
        () = certificates => {}
        () = admin::serve(admin, Arc::clone(&table)) => {}
    }
    gateway.close().await;
    Ok(())
}

/// Keeps the table in step with the servers, for ever.
async fn follow(servers: Api<McpServer>, table: &ArcSwap<RouteTable>, bridged: bool) {
    let mut initial: Vec<McpServer> = Vec::new();
    let events = watcher(servers, watcher::Config::default()).default_backoff().modify(move |server| {
        if bridged {
            server.spec.transport.type_ = TransportType::StreamableHttp;
        }
    });
    futures::pin_mut!(events);
    loop {
        match events.try_next().await {
            Ok(Some(watcher::Event::Init)) => initial.clear(),
            Ok(Some(watcher::Event::InitApply(server))) => initial.push(server),
            Ok(Some(watcher::Event::InitDone)) => {
                let new = table.load().with_all(&initial);
                table.store(Arc::new(new));
                initial = Vec::new();
            }
            Ok(Some(watcher::Event::Apply(server))) => {
                let new = table.load().with(&server);
                table.store(Arc::new(new));
            }
            Ok(Some(watcher::Event::Delete(server))) => {
                let new = table.load().without(&key_of(&server));
                table.store(Arc::new(new));
            }
            Ok(None) => std::future::pending().await,
            // The stream backs off by itself; until then the last table stands.
            Err(error) => tracing::warn!(%error, "the gateway lost sight of the servers"),
        }
    }
}
