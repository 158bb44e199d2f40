//! The MCP data plane: one HTTP entry point for every AI client.
//!
//! May import: `routing`, `runtime`, `api`, `names`, `error`, `telemetry`. Never `controllers`,
//! `local`.

use std::sync::Arc;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::runtime::Backend;

/// Why the gateway ended.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// Listening failed.
    #[error("the gateway cannot serve: {0}")]
    Serve(#[from] std::io::Error),
}

/// Serves `/{namespace}/{name}/mcp` on `listener` until `shutdown`, then lets calls in flight
/// finish for at most ten seconds. Routes follow the McpServers that `client` watches; instances
/// are found through `backend`.
pub async fn run(
    _client: kube::Client,
    _backend: Arc<dyn Backend>,
    _listener: TcpListener,
    _shutdown: CancellationToken,
) -> Result<(), GatewayError> {
    todo!()
}
