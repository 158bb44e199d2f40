//! Step four: make it so.

use super::{State, build::Built, history, revisions::Revisions, status::Applied};
use crate::{
    api::mcp_server::McpServer,
    error::Category,
    names::{Revision, ServerKey},
    runtime::RuntimeError,
};

/// Records the revision, when it is the declared one, and hands the workload to the backend. Tells
/// beside what came of it whether the declared revision is in the history: what is in the way of
/// the workload is no reason to look at the history again.
pub async fn apply(state: &State, server: &McpServer, revisions: &Revisions, built: Built) -> (Applied, bool) {
    let context = &state.context;
    let revision = built.revision;
    let recorded = revision == revisions.declared;
    if recorded
        && let Err(error) =
            history::record(&context.client, &state.written, server, &revision, &built.run, &revisions.in_use(server))
                .await
    {
        let error = match error {
            kube::Error::Api(status) => status.message,
            other => other.to_string(),
        };
        let message = format!("the revision cannot be recorded: {error}");
        return (Applied::Blocked { reason: "HistoryUnavailable", message, heals: true }, false);
    }
    let result = match &built.workload {
        Some(workload) => context.backend.apply(workload).await,
        // A server that moved elsewhere leaves nothing behind here.
        None => context.backend.remove(&built.key).await,
    };
    (told(result, revision), recorded)
}

/// Leaves nothing running under the key of a server that is at its end. What such a server refers to
/// may be long gone, so nobody looks at it.
pub async fn end(state: &State, key: &ServerKey, revision: &Revision) -> Applied {
    told(state.context.backend.remove(key).await, revision.clone())
}

fn told(result: Result<(), RuntimeError>, revision: Revision) -> Applied {
    match result {
        Ok(()) => Applied::Running { revision },
        Err(error) => {
            let heals = matches!(error, RuntimeError::Unavailable { .. });
            Applied::Blocked { reason: error.category(), message: error.to_string(), heals }
        }
    }
}
