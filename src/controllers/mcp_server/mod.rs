//! Makes what an `McpServer` declares run, and reports what was observed.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::runtime::Backend;

/// What the controller works with.
#[derive(Clone)]
pub struct Context {
    /// The control plane.
    pub client: kube::Client,
    /// What runs servers.
    pub backend: Arc<dyn Backend>,
    /// Base URL of the gateway as clients reach it, for probes and for `status.url`.
    pub gateway: url::Url,
}

/// Reconciles every `McpServer` until `shutdown`; returns when all work under way has ended.
pub async fn run(_context: Context, _shutdown: CancellationToken) {
    todo!()
}
