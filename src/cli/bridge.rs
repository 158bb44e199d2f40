//! `perch bridge`: a Stdio server over Streamable HTTP, inside its container.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{args::Bridge, exit::Failure, stop::Stop};
use crate::{
    api::mcp_server::StdioSessions,
    gateway::{
        Config,
        access::Access,
        bridge::{self, ServeConfig},
    },
};

/// Time for the server to end before it is asked to, and again before it is killed.
const GRACE: Duration = Duration::from_secs(4);

/// Serves until it is told to stop.
pub async fn run(args: Bridge) -> Result<(), Failure> {
    let mut stop = Stop::listen()?;
    let listener = super::listen_anywhere(args.listen, "bridge", "--listen").await?;
    // A pod is reached by its address: who may is the NetworkPolicy's business.
    let gateway = Config {
        hosts: vec!["*".into()],
        max_sessions: args.max_sessions,
        idle_timeout: args.idle_timeout.into(),
        ..Config::new(rand::random(), Access::anonymous())
    };
    let sessions = if args.per_session { StdioSessions::PerSession } else { StdioSessions::Shared };
    let config = ServeConfig { command: args.command, sessions, gateway, grace: GRACE };
    let shutdown = CancellationToken::new();
    let serve = bridge::serve(config, listener, shutdown.clone());
    tokio::pin!(serve);
    let result = tokio::select! {
        result = &mut serve => result,
        () = stop.wait() => {
            shutdown.cancel();
            serve.await
        }
    };
    result.map_err(|error| Failure::failed(error.to_string()))
}
