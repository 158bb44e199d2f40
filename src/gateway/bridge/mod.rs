//! Servers that speak on their standard streams, made reachable over Streamable HTTP.
//!
//! * **Shared**: all sessions talk through one [`Link`] to an instance. The bridge is the server's
//!   only client: it initialises it once, without client capabilities, and answers each
//!   `initialize` from what it learned. Ids and progress tokens are rewritten, so that sessions
//!   never see each other's. A session needs no memory here, so it survives a gateway restart.
//! * **PerSession**: a session has a process and a link of its own, and everything passes both
//!   ways unchanged. Where one side is of the modern era there are no sessions, and so it is as if
//!   the server were shared.
//!
//! A process that ends takes its pending calls with it: each gets an error at once. The next call
//! waits for the process that the backend starts in its place.

mod child;
mod line;
mod link;
mod serve;
mod sessions;
mod shared;
mod solo;

use std::{collections::HashMap, sync::Arc};

use http::{Method, Response, StatusCode};
use tokio::sync::Mutex;

pub(in crate::gateway) use line::Line;
pub use serve::{BridgeError, ServeConfig, serve};

use super::{
    era::Era,
    handler::{Call, Gateway},
    instances::Instances,
    message::Message,
    reply::{self, Body, Failure},
    session::Home,
};
use crate::{api::mcp_server::StdioSessions, names::ServerKey, runtime::InstanceId};
use link::Link;
use solo::Solo;

/// All bridges of a gateway.
#[derive(Default)]
pub struct Bridges {
    shared: Mutex<HashMap<InstanceId, Arc<Link>>>,
    solo: Mutex<HashMap<u128, Arc<Solo>>>,
}

impl Bridges {
    /// Answers a request for a Stdio server.
    pub(super) async fn answer(
        &self,
        gateway: &Arc<Gateway>,
        call: &Call,
        message: &Message<'_>,
        era: Era,
        mode: StdioSessions,
    ) -> Result<Response<Body>, Failure> {
        if era == Era::Modern {
            return self.modern(gateway, call, message).await;
        }
        let mode = match mode {
            // A server of the modern era has no process for each session.
            StdioSessions::PerSession if matches!(gateway.session(call), Ok(Some(Home::Translated(_)))) => {
                StdioSessions::Shared
            }
            mode => mode,
        };
        match (&call.parts.method, mode) {
            (&Method::POST, StdioSessions::Shared) => self.post_shared(gateway, call, message).await,
            (&Method::POST, StdioSessions::PerSession) => self.post_solo(gateway, call, message).await,
            (&Method::DELETE, StdioSessions::Shared) => shared::delete(gateway, call),
            (&Method::DELETE, StdioSessions::PerSession) => self.end_solo(gateway, call).await,
            (_, StdioSessions::Shared) => self.listen_shared(gateway, call).await,
            (_, StdioSessions::PerSession) => self.listen_solo(gateway, call).await,
        }
    }

    /// Ends every process that the bridges started.
    pub(super) async fn close(&self, instances: &dyn Instances) {
        self.shared.lock().await.clear();
        for (_, solo) in self.solo.lock().await.drain() {
            if let Err(error) = instances.end_session(&solo.instance).await {
                tracing::warn!(%error, instance = %solo.instance, "a session's process was not ended");
            }
        }
    }
}

/// A request of a session must name it.
fn no_session_id() -> Failure {
    let message =
        "the Mcp-Session-Id header is missing: send initialize first, and the id that it gives with every request";
    Failure::new(StatusCode::BAD_REQUEST, reply::INVALID_REQUEST, message)
}

fn ended(server: &ServerKey) -> Failure {
    Failure::new(StatusCode::OK, reply::SERVER_FAILED, format!("the process of server {server} ended"))
}
