//! Step four: make it so.

use super::{Context, build::Built, history, revisions::Revisions, status::Applied};
use crate::{api::mcp_server::McpServer, error::Category, runtime::RuntimeError};

/// Records the revision, when it is the declared one, and hands the workload to the backend.
pub async fn apply(context: &Context, server: &McpServer, revisions: &Revisions, built: Built) -> Applied {
    let revision = built.revision;
    if revision == revisions.declared
        && let Err(error) =
            history::record(&context.client, server, &revision, &built.run, &revisions.in_use(server)).await
    {
        let error = match error {
            kube::Error::Api(status) => status.message,
            other => other.to_string(),
        };
        let message = format!("the revision cannot be recorded: {error}");
        return Applied::Blocked { reason: "HistoryUnavailable", message, heals: true };
    }
    let result = match &built.workload {
        Some(workload) => context.backend.apply(workload).await,
        // A server that moved elsewhere leaves nothing behind here.
        None => context.backend.remove(&built.key).await,
    };
    match result {
        Ok(()) => Applied::Running { revision },
        Err(error) => {
            let heals = matches!(error, RuntimeError::Unavailable { .. });
            Applied::Blocked { reason: error.category(), message: error.to_string(), heals }
        }
    }
}
