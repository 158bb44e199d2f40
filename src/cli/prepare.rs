//! `perch internal prepare`: what comes before a server in its pod.

use std::{net::SocketAddr, path::Path};

use super::{
    args::{Prepare, WayOut},
    exit::Failure,
};
use crate::runtime::kubernetes::way_out::{self, Declared};

/// Where Kubernetes reads the last words of a container.
const LAST_WORDS: &str = "/dev/termination-log";

/// Tries the way out, leaves what was found as the last words of this container, and copies the executable.
///
/// # Errors
/// When the copy fails. A server is not kept from its start because nobody can read what was tried.
pub fn run(args: &Prepare) -> Result<(), Failure> {
    if let Some(way_out) = args.way_out {
        let declared = Declared { open: way_out == WayOut::Open, proxy: args.proxy, listed: args.listed.clone() };
        let found = way_out::attempt(api_server(), &declared);
        tracing::info!(enforced = ?found.enforced, message = found.message, "the way out was tried");
        let words = serde_json::to_string(&found).map_err(std::io::Error::other);
        if let Err(error) = words.and_then(|words| std::fs::write(LAST_WORDS, words)) {
            tracing::warn!(%error, "what was found cannot be told: NetworkEnforced stays Unknown");
        }
    }
    args.copy.as_deref().map_or(Ok(()), copy_self)
}

/// The cluster's API server, as every container is told.
fn api_server() -> Option<SocketAddr> {
    let variable = |name| std::env::var(format!("KUBERNETES_SERVICE_{name}")).ok();
    Some(SocketAddr::new(variable("HOST")?.parse().ok()?, variable("PORT")?.parse().ok()?))
}

/// Puts this executable somewhere else, for containers that have none.
fn copy_self(to: &Path) -> Result<(), Failure> {
    let copy = || {
        std::fs::copy(std::env::current_exe()?, to)?;
        std::fs::set_permissions(to, std::os::unix::fs::PermissionsExt::from_mode(0o555))
    };
    copy().map_err(|error| Failure::failed(format!("perch cannot be copied to {}: {error}", to.display())))
}
