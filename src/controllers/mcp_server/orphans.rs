//! What runs for nobody: servers that do not exist any more, and candidates that no release wants.

use std::{sync::Arc, time::Duration};

use kube::{Api, runtime::reflector::Store};
use tokio_util::sync::CancellationToken;

use super::{State, object_ref};
use crate::{api::mcp_server::McpServer, names::ServerKey};

/// Time between two looks.
const EVERY: Duration = Duration::from_secs(60);

/// Removes what runs for servers that do not exist, and candidates that no release wants.
pub async fn collect(state: Arc<State>, store: Store<McpServer>, shutdown: CancellationToken) {
    if tokio::select! { ready = store.wait_until_ready() => ready.is_err(), () = shutdown.cancelled() => true } {
        return;
    }
    loop {
        match state.context.backend.servers().await {
            Ok(found) => {
                for key in found {
                    if is_orphan(&state, &store, &key).await {
                        tracing::info!(server = %key, "removing what runs for nobody");
                        if let Err(error) = state.context.backend.remove(&key).await {
                            tracing::warn!(server = %key, %error, "an orphan was not removed");
                        }
                    }
                }
            }
            Err(error) => tracing::warn!(%error, "orphans cannot be looked for"),
        }
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

/// Whether nobody wants what runs under a key. Asks the control plane itself before it says so: the
/// watch may not know a server or a release that was just made.
async fn is_orphan(state: &State, store: &Store<McpServer>, key: &ServerKey) -> bool {
    // A candidate that the status names is in the hands of the reconciles.
    let named = |server: &McpServer| server.status.as_ref().is_some_and(|s| s.candidate.is_some());
    let wanted = |server: &McpServer| !key.is_candidate() || named(server);
    if store.get(&object_ref(key)).is_some_and(|server| wanted(&server)) {
        return false;
    }
    let api: Api<McpServer> = Api::namespaced(state.context.client.clone(), &key.namespace);
    api.get_opt(&key.declared().name).await.is_ok_and(|server| !server.is_some_and(|server| wanted(&server)))
}
