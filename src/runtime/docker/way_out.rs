//! Whether a container gets out of its network: tried, from inside.
//!
//! A thread of its own enters the container's network namespace and connects to a neighbour of this
//! machine: its resolver, or its gateway. That the neighbour answers this machine just before and
//! just after makes its silence towards the container a proof. Addresses of the machine itself prove
//! nothing: an engine filters what it forwards, and they are reached without.

use std::{
    fs::{self, File},
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    os::fd::AsFd,
    path::{Path, PathBuf},
    time::Duration,
};

use bollard::models::ContainerInspectResponse;
use rustix::{
    io::Errno,
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use crate::runtime::egress_proxy::probe;

/// Time for an answer of a neighbour. It is near, so this is long.
const PATIENCE: Duration = Duration::from_millis(150);
/// Tries before silence is taken for silence: one packet may be lost.
const TRIES: usize = 2;
/// Ports of neighbours that may answer, be it with a refusal.
const PORTS: [u16; 3] = [53, 443, 80];

/// What came of a try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Tried {
    /// Nothing gets out.
    Closed,
    /// Nothing gets out but through the proxy, which refuses what is not on the list.
    Filtered,
    /// Nothing gets out, and the proxy does not answer as it should.
    NoProxy(String),
    /// It got out.
    GotOut,
    /// It could not be told, for this reason.
    Unknown(String),
}

/// What a connection came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// Somebody answered, with a refusal perhaps.
    Answered,
    /// There is no route.
    NoRoute,
    /// Nobody answered.
    Silence,
}

/// The network namespace of a container that runs, new with each start of it.
pub(super) fn namespace(found: &ContainerInspectResponse) -> Option<PathBuf> {
    let running = found.state.as_ref().and_then(|s| s.running) == Some(true);
    let path = found.network_settings.as_ref()?.sandbox_key.clone()?;
    (running && !path.is_empty()).then(|| path.into())
}

/// Tries the way out of a network namespace, and the proxy that should be the only one, if there is one.
pub(super) async fn attempt(namespace: PathBuf, proxy: Option<SocketAddr>) -> Tried {
    let (told, hears) = tokio::sync::oneshot::channel();
    // A thread that entered another namespace must not be used for anything else.
    let thread = std::thread::Builder::new().name("way-out".into()).spawn(move || {
        let neighbour = neighbours().into_iter().find(|n| connect(*n) == Outcome::Answered);
        let (inside, asked) = match inside(&namespace, neighbour, proxy) {
            Ok((outcome, asked)) => (Ok(outcome), asked),
            Err(why) => (Err(why), None),
        };
        let again = neighbour.map(connect);
        // Nobody listens any more: the wish is another one by now.
        let _ = told.send(filtered(judge(inside, again), proxy, asked));
    });
    match thread {
        Ok(_) => hears.await.unwrap_or_else(|_| Tried::Unknown("the try was given up".into())),
        Err(error) => Tried::Unknown(format!("no thread could be started: {error}")),
    }
}

/// What a connection from inside of a namespace comes to, and what the proxy answers there.
fn inside(
    namespace: &Path,
    neighbour: Option<SocketAddr>,
    proxy: Option<SocketAddr>,
) -> Result<(Outcome, Option<Answer>), String> {
    // Without a neighbour only the lack of a route tells something: an address for documentation
    // (RFC 5737).
    let target = neighbour.unwrap_or(SocketAddr::from((Ipv4Addr::new(203, 0, 113, 1), 9)));
    let namespace = namespace.to_owned();
    let entered = std::thread::spawn(move || -> io::Result<_> {
        let file = File::open(namespace)?;
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
        Ok((connect(target), proxy.map(|proxy| probe::ask(proxy).map_err(|error| error.to_string()))))
    });
    match entered.join() {
        Ok(Ok(found)) => Ok(found),
        Ok(Err(error)) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err("only perch as root may enter the networks of containers".into())
        }
        Ok(Err(error)) => Err(format!("the container's network cannot be entered: {error}")),
        Err(_) => Err("the try ended early".into()),
    }
}

/// What a try from inside means, given what the neighbour said to this machine afterwards.
fn judge(inside: Result<Outcome, String>, again: Option<Outcome>) -> Tried {
    match (inside, again) {
        (Err(why), _) => Tried::Unknown(why),
        (Ok(Outcome::Answered), _) => Tried::GotOut,
        (Ok(Outcome::NoRoute), _) | (Ok(Outcome::Silence), Some(Outcome::Answered)) => Tried::Closed,
        (Ok(Outcome::Silence), _) => {
            Tried::Unknown("neither the resolver nor the gateway of this machine answers to compare with".into())
        }
    }
}

/// The beginning of the proxy's answer to a name that is on nobody's list, or why there is none.
type Answer = Result<String, String>;

/// What a try means where a proxy should be the only way out.
fn filtered(tried: Tried, proxy: Option<SocketAddr>, asked: Option<Answer>) -> Tried {
    let (Tried::Closed, Some(proxy), Some(asked)) = (&tried, proxy, asked) else { return tried };
    match asked {
        Ok(line) if probe::is_refusal(&line) => Tried::Filtered,
        Ok(line) => Tried::NoProxy(format!(
            "{proxy} answered {line:?} to a name that is not on the list: is it perch that listens there?"
        )),
        Err(error) => Tried::NoProxy(format!(
            "the egress proxy at {proxy} does not answer containers ({error}): does a firewall of this machine drop what they send to it?"
        )),
    }
}

fn connect(address: SocketAddr) -> Outcome {
    let mut last = Outcome::Silence;
    for _ in 0..TRIES {
        last = outcome(TcpStream::connect_timeout(&address, PATIENCE).map(drop));
        if last != Outcome::Silence {
            break;
        }
    }
    last
}

fn outcome(result: io::Result<()>) -> Outcome {
    match result {
        Ok(()) => Outcome::Answered,
        Err(error) => match Errno::from_io_error(&error) {
            Some(Errno::CONNREFUSED | Errno::CONNRESET) => Outcome::Answered,
            Some(Errno::NETUNREACH | Errno::NETDOWN) => Outcome::NoRoute,
            _ => Outcome::Silence,
        },
    }
}

/// Addresses next to this machine that may answer: its resolvers, then its gateways.
fn neighbours() -> Vec<SocketAddr> {
    // Files that are not there name nobody.
    let resolvers = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let routes = fs::read_to_string("/proc/net/route").unwrap_or_default();
    let resolvers = resolvers_in(&resolvers).into_iter().map(|ip| SocketAddr::from((ip, 53)));
    let gateways = gateways_in(&routes).into_iter().flat_map(|ip| PORTS.map(|port| SocketAddr::from((ip, port))));
    resolvers.chain(gateways).filter(|address| !is_own(address.ip())).collect()
}

fn resolvers_in(file: &str) -> Vec<Ipv4Addr> {
    file.lines().filter_map(|line| line.strip_prefix("nameserver")?.trim().parse().ok()).collect()
}

/// The gateways of default routes: numbers in hexadecimal, in the machine's byte order.
fn gateways_in(file: &str) -> Vec<Ipv4Addr> {
    let gateway = |line: &str| {
        let mut fields = line.split_whitespace().skip(1);
        let (to, gateway) = (fields.next()?, fields.next()?);
        let number = u32::from_str_radix(gateway, 16).ok()?;
        (to == "00000000" && number != 0).then(|| Ipv4Addr::from(number.to_ne_bytes()))
    };
    file.lines().filter_map(gateway).collect()
}

/// Whether an address is this machine's own: only those can be bound.
fn is_own(address: IpAddr) -> bool {
    address.is_loopback() || UdpSocket::bind((address, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_proof_only_beside_an_answer() {
        let answered = Some(Outcome::Answered);
        assert_eq!(judge(Ok(Outcome::Answered), answered), Tried::GotOut);
        assert_eq!(judge(Ok(Outcome::Silence), answered), Tried::Closed);
        assert_eq!(judge(Ok(Outcome::NoRoute), None), Tried::Closed);
        for again in [None, Some(Outcome::Silence), Some(Outcome::NoRoute)] {
            assert!(matches!(judge(Ok(Outcome::Silence), again), Tried::Unknown(_)), "{again:?}");
        }
        assert_eq!(judge(Err("why".into()), answered), Tried::Unknown("why".into()));
    }

    #[test]
    fn a_proxy_counts_only_where_nothing_else_leads_out_and_when_it_refuses() {
        let proxy = Some(SocketAddr::from(([10, 0, 0, 1], 3128)));
        let with = |tried, line: &str| filtered(tried, proxy, Some(Ok(line.to_owned())));
        assert_eq!(with(Tried::Closed, "HTTP/1.1 403 Forbidden"), Tried::Filtered);
        assert_eq!(with(Tried::GotOut, "HTTP/1.1 403 Forbidden"), Tried::GotOut);
        for line in ["HTTP/1.1 200 OK", "HTTP/1.1 502 Bad Gateway", "", "SSH-2.0-x 403"] {
            assert!(matches!(with(Tried::Closed, line), Tried::NoProxy(_)), "{line:?}");
        }
        assert!(matches!(filtered(Tried::Closed, proxy, Some(Err("why".into()))), Tried::NoProxy(_)));
        assert_eq!(filtered(Tried::Closed, None, None), Tried::Closed);
    }

    #[test]
    fn a_refusal_is_an_answer() {
        let of = |errno: Errno| outcome(Err(errno.into()));
        assert_eq!([outcome(Ok(())), of(Errno::CONNREFUSED)], [Outcome::Answered; 2]);
        assert_eq!(of(Errno::NETUNREACH), Outcome::NoRoute);
        // What a filter may say as well as a router.
        assert_eq!([of(Errno::TIMEDOUT), of(Errno::HOSTUNREACH), of(Errno::PERM)], [Outcome::Silence; 3]);
    }

    #[test]
    fn neighbours_are_those_of_the_machine() {
        let file = "# comment\nsearch example.com\nnameserver 10.0.0.53\nnameserver fd00::1\noptions edns0\n";
        assert_eq!(resolvers_in(file), [Ipv4Addr::new(10, 0, 0, 53)]);
        let number = |ip: [u8; 4]| format!("{:08X}", u32::from_ne_bytes(ip));
        let routes = format!(
            "Iface\tDestination\tGateway\tFlags\neth0\t00000000\t{}\t0003\neth0\t{}\t00000000\t0001\n",
            number([192, 0, 2, 1]),
            number([192, 0, 2, 0])
        );
        assert_eq!(gateways_in(&routes), [Ipv4Addr::new(192, 0, 2, 1)]);
        assert!(is_own(Ipv4Addr::LOCALHOST.into()) && !is_own(Ipv4Addr::new(203, 0, 113, 1).into()));
    }

    #[tokio::test]
    async fn what_cannot_be_entered_is_unknown() {
        assert!(matches!(attempt("/no/such/namespace".into(), None).await, Tried::Unknown(_)));
    }
}
