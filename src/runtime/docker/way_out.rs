//! Whether a container gets out of its network: tried, from inside.
//!
//! A thread of its own enters the container's network namespace and connects to a listener of this
//! machine, at the address by which the machine reaches others. What has no route there has none to
//! anywhere else. No packet leaves the machine, and nothing is needed in the container.

use std::{
    fs::File,
    io,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd,
    path::{Path, PathBuf},
    time::Duration,
};

use bollard::models::ContainerInspectResponse;
use rustix::{
    io::Errno,
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

/// Time for one connection on this machine.
const PATIENCE: Duration = Duration::from_secs(1);
/// An address for documentation (RFC 5737): asked for its route, never sent anything.
const ELSEWHERE: (IpAddr, u16) = (IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 1)), 9);

/// What came of a try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Tried {
    /// There is no route out.
    NoRoute,
    /// It got out.
    GotOut,
    /// It could not be told, for this reason.
    Unknown(String),
}

/// The network namespace of a container that runs, and what is new with each start of it.
pub(super) fn namespace(found: &ContainerInspectResponse) -> Option<PathBuf> {
    let running = found.state.as_ref().and_then(|s| s.running) == Some(true);
    let path = found.network_settings.as_ref()?.sandbox_key.clone()?;
    (running && !path.is_empty()).then(|| path.into())
}

/// Tries the way out of a network namespace.
pub(super) async fn attempt(namespace: PathBuf) -> Tried {
    let (told, hears) = tokio::sync::oneshot::channel();
    // A thread that entered another namespace must not be used for anything else.
    let thread = std::thread::Builder::new().name("way-out".into()).spawn(move || {
        // Nobody listens any more: the wish is another one by now.
        let _ = told.send(attempt_here(&namespace));
    });
    match thread {
        Ok(_) => hears.await.unwrap_or_else(|_| Tried::Unknown("the try was given up".into())),
        Err(error) => Tried::Unknown(format!("no thread could be started: {error}")),
    }
}

/// Tries it, and leaves the thread in the namespace.
fn attempt_here(namespace: &Path) -> Tried {
    let unknown = |what: &str, error: &dyn std::fmt::Display| Tried::Unknown(format!("{what}: {error}"));
    let listener = match outside() {
        Ok(listener) => listener,
        Err(error) => return unknown("this machine has no address outside of itself", &error),
    };
    let address = match listener.local_addr() {
        Ok(address) => address,
        Err(error) => return unknown("the listener has no address", &error),
    };
    // What this machine itself cannot reach would prove nothing.
    if let Err(error) = TcpStream::connect_timeout(&address, PATIENCE) {
        return unknown("this machine does not reach its own address", &error);
    }
    let entered = File::open(namespace)
        .and_then(|file| Ok(move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?));
    match entered {
        Ok(()) => judge(connect(address)),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Tried::Unknown("only perch as root may enter the networks of containers to try".into())
        }
        Err(error) => unknown("the container's network cannot be entered", &error),
    }
}

/// A listener at the address by which this machine reaches others.
fn outside() -> io::Result<TcpListener> {
    let socket = UdpSocket::bind(("0.0.0.0", 0))?;
    socket.connect(ELSEWHERE)?;
    let address = socket.local_addr()?.ip();
    if address.is_loopback() || address.is_unspecified() {
        return Err(io::Error::other("it has no route to others"));
    }
    TcpListener::bind((address, 0))
}

fn connect(address: SocketAddr) -> io::Result<()> {
    TcpStream::connect_timeout(&address, PATIENCE).map(drop)
}

/// Only the lack of a route is proof: silence may come from a firewall that lets other things pass.
fn judge(result: io::Result<()>) -> Tried {
    match result {
        Ok(()) => Tried::GotOut,
        Err(error) => match Errno::from_io_error(&error) {
            Some(Errno::NETUNREACH | Errno::HOSTUNREACH | Errno::NETDOWN) => Tried::NoRoute,
            _ => Tried::Unknown(format!("a connection out has a route and fails all the same: {error}")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_lack_of_a_route_is_proof() {
        let error = |errno: Errno| judge(Err(errno.into()));
        assert_eq!(judge(Ok(())), Tried::GotOut);
        assert_eq!([error(Errno::NETUNREACH), error(Errno::HOSTUNREACH)], [Tried::NoRoute, Tried::NoRoute]);
        for errno in [Errno::CONNREFUSED, Errno::TIMEDOUT, Errno::PERM] {
            assert!(matches!(error(errno), Tried::Unknown(_)), "{errno}");
        }
    }

    #[tokio::test]
    async fn what_cannot_be_entered_is_unknown() {
        assert!(matches!(attempt("/no/such/namespace".into()).await, Tried::Unknown(_)));
    }
}
