//! `perch bridge`: one Stdio server, reachable over Streamable HTTP.
//!
//! It runs beside the server in its container, so that a gateway, and the probes of a cluster,
//! reach a server that only knows its standard streams. It serves `/mcp`, `/healthz` (the bridge
//! lives) and `/readyz` (the command runs). The command's standard error is the bridge's own.

use std::{ffi::OsString, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use http::{Request, StatusCode};
use rustix::process::Signal;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;

use super::{child::OneChild, sessions::Processes};
use crate::{
    api::mcp_server::{StdioSessions, ToolFilter},
    gateway::{Config, handler::Gateway, listen, reply},
    names::ServerKey,
    routing::{Route, RouteTable, Upstream},
};

/// What a bridge serves, and how.
#[derive(Clone, Debug)]
pub struct ServeConfig {
    /// The command and its arguments.
    pub command: Vec<OsString>,
    /// Who shares a process. With [`StdioSessions::PerSession`] the gateway's `max_sessions` and
    /// `idle_timeout` are those of this bridge.
    pub sessions: StdioSessions,
    /// Limits, times and names. Any `Host` is served when `hosts` has `*`, as a pod's must.
    pub gateway: Config,
    /// How long the command may take to end once its input is closed, and again once it was asked
    /// to by SIGTERM. Then it is killed.
    pub grace: Duration,
}

/// Why a bridge ended.
#[derive(Debug, thiserror::Error)]
pub enum BridgeError {
    /// There is no command.
    #[error("no command is given: name the server's command and its arguments after --")]
    NoCommand,
    /// The command never ran.
    #[error("{command:?} cannot be started: {source}")]
    CannotStart {
        /// The program.
        command: OsString,
        /// Why.
        source: std::io::Error,
    },
    /// Signals cannot be received.
    #[error("signals cannot be received: {0}")]
    Signals(std::io::Error),
}

/// Serves a command on `listener` until `shutdown`. A command that ends by itself is started
/// again, with back-off; calls that it had in hand get an error at once, and calls that come
/// meanwhile wait for it. SIGHUP, SIGUSR1 and SIGUSR2 are passed on to the command. At the end
/// calls in hand are finished within the drain time, and then the command is ended.
///
/// # Errors
/// When the command cannot be started at all.
pub async fn serve(config: ServeConfig, listener: TcpListener, shutdown: CancellationToken) -> Result<(), BridgeError> {
    let program = config.command.first().cloned().ok_or(BridgeError::NoCommand)?;
    let server = ServerKey::new("bridge", "server");
    let route = Route {
        server: server.clone(),
        upstream: Upstream::Stdio(config.sessions),
        tools: ToolFilter::default(),
        not_ready: None,
        has_failed: false,
        split: None,
        validates_arguments: false,
        notice: None,
    };
    let table = Arc::new(ArcSwap::from_pointee(RouteTable::of([route])));
    let child = OneChild::new(server.clone(), config.command.clone());
    let processes = Processes::new(Arc::clone(&child), config.command, config.grace);
    let signals = forward_signals(Arc::clone(&processes)).map_err(BridgeError::Signals)?;
    let stop = CancellationToken::new();
    let keep = tokio::spawn(Arc::clone(&child).keep(stop.clone(), config.grace));
    let (receive, drain) = (config.gateway.receive_timeout, config.gateway.drain_timeout);
    let gateway = Gateway::new(config.gateway, table, Arc::clone(&processes) as _, shutdown.clone(), Some(server));
    let gateway = Arc::new(gateway);
    let answer = {
        let (gateway, child) = (Arc::clone(&gateway), Arc::clone(&child));
        move |request: Request<hyper::body::Incoming>| {
            let (gateway, child) = (Arc::clone(&gateway), Arc::clone(&child));
            async move {
                match request.uri().path() {
                    "/readyz" if child.is_running() => reply::json(StatusCode::OK, "\"ok\""),
                    "/readyz" => reply::json(StatusCode::SERVICE_UNAVAILABLE, "\"the command does not run\""),
                    _ => gateway.answer(request).await,
                }
            }
        }
    };
    let serving = async {
        tokio::select! {
            () = listen::serve(Arc::default(), None, listener, receive, shutdown, drain, answer) => {}
            () = gateway.bridges.reap_forever(&gateway) => {}
        }
        gateway.close().await;
    };
    let mut keep = keep;
    let failed = tokio::select! {
        () = serving => None,
        kept = &mut keep => Some(kept.unwrap_or_else(|error| Err(std::io::Error::other(error)))),
    };
    stop.cancel();
    let ended = if let Some(kept) = failed {
        processes.close().await;
        kept
    } else {
        // Its result is no news: it was told to end.
        let _ = tokio::join!(processes.close(), keep);
        Ok(())
    };
    signals.abort();
    ended.map_err(|source| BridgeError::CannotStart { command: program, source })
}

/// Passes signals that mean something to servers on to the command.
fn forward_signals(processes: Arc<Processes>) -> std::io::Result<tokio::task::JoinHandle<()>> {
    let mut hangup = signal(SignalKind::hangup())?;
    let mut first = signal(SignalKind::user_defined1())?;
    let mut second = signal(SignalKind::user_defined2())?;
    Ok(tokio::spawn(async move {
        loop {
            let signal = tokio::select! {
                Some(()) = hangup.recv() => Signal::HUP,
                Some(()) = first.recv() => Signal::USR1,
                Some(()) = second.recv() => Signal::USR2,
                else => return,
            };
            processes.signal(signal);
        }
    }))
}
