//! The egress proxy: the one way out of servers that name what they reach (`spec.network.egress`).
//!
//! An HTTP proxy: `CONNECT` for everything over TLS, which is passed on as it is, and requests for `http://`
//! URLs. [`crate::egress`] decides. A name is resolved here and nowhere else, and the connection goes to the
//! very address that was judged.
//!
//! * Whose connection it is, and so which list counts, [`Peers`] tells by the address that it comes from.
//! * What is refused is answered with 403, a sentence, and `Proxy-Status` (RFC 9209), and is a line of the log
//!   and a count ([`Refusals`]).
//! * A connection whose owner nobody knows is closed without a word.
//!
//! May import: `egress`, `names`.

mod forward;
pub mod probe;
mod refusals;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    convert::Infallible,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::{
    egress::{AllowList, Host, Refusal, Target},
    names::ServerKey,
};
use probe::PROBE;
pub use refusals::Refusals;

/// Time for the head of a request.
const HEAD: Duration = Duration::from_secs(10);
/// Time to resolve a name.
const RESOLVE: Duration = Duration::from_secs(10);
/// Time to connect to one address.
const CONNECT: Duration = Duration::from_secs(10);
/// Most connections from one address at a time.
const CONNECTIONS: usize = 256;
/// Longest name (RFC 1035, 2.3.4).
const NAME: usize = 253;
/// Wait after an error of the listener, such as too many open files.
const PAUSE: Duration = Duration::from_millis(100);

/// The variables by which programs find their proxy, in both spellings that are in use.
#[must_use]
pub fn environment(proxy: &str) -> [(&'static str, String); 6] {
    let near = "localhost,127.0.0.1,::1";
    let all = [
        ("HTTP_PROXY", proxy),
        ("HTTPS_PROXY", proxy),
        ("http_proxy", proxy),
        ("https_proxy", proxy),
        ("NO_PROXY", near),
        ("no_proxy", near),
    ];
    all.map(|(name, value)| (name, value.to_owned()))
}

/// Who asks, and what it may reach.
#[derive(Clone, Debug)]
pub struct Client {
    /// The server.
    pub server: ServerKey,
    /// What it may reach.
    pub allow: AllowList,
}

/// Knows whose an address is.
#[async_trait]
pub trait Peers: Send + Sync + 'static {
    /// The server that has this address now; none when no server has.
    async fn find(&self, address: IpAddr) -> Option<Client>;
}

type Body = BoxBody<Bytes, hyper::Error>;

struct Shared {
    peers: Arc<dyn Peers>,
    refusals: Refusals,
    open: Mutex<HashMap<IpAddr, usize>>,
    shutdown: CancellationToken,
}

/// Serves until `shutdown`; then every connection ends.
pub async fn serve(listener: TcpListener, peers: Arc<dyn Peers>, refusals: Refusals, shutdown: CancellationToken) {
    let shared = Arc::new(Shared { peers, refusals, open: Mutex::default(), shutdown });
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shared.shutdown.cancelled() => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                let peer = peer.ip().to_canonical();
                if let Some(place) = Place::take(&shared, peer) {
                    tokio::spawn(connection(stream, Arc::new(place)));
                } else {
                    tracing::warn!(%peer, most = CONNECTIONS, "too many connections to the egress proxy");
                }
            }
            Err(error) => {
                tracing::warn!(%error, "the egress proxy takes no connection");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// One of the connections that an address may have, given back when dropped.
struct Place {
    shared: Arc<Shared>,
    peer: IpAddr,
}

impl Place {
    fn take(shared: &Arc<Shared>, peer: IpAddr) -> Option<Self> {
        let mut open = shared.open.lock().expect("nobody panics while holding the count");
        let count = open.entry(peer).or_default();
        (*count < CONNECTIONS).then(|| {
            *count += 1;
            Self { shared: Arc::clone(shared), peer }
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.shared.open.lock().expect("nobody panics while holding the count");
        if let Some(count) = open.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.peer);
            }
        }
    }
}

async fn connection(stream: TcpStream, place: Arc<Place>) {
    let Some(client) = place.shared.peers.find(place.peer).await else {
        tracing::warn!(peer = %place.peer, "a connection to the egress proxy comes from no server that may use it");
        return;
    };
    let (client, shared) = (Arc::new(client), Arc::clone(&place.shared));
    let service = service_fn(move |request| {
        let (client, place) = (Arc::clone(&client), Arc::clone(&place));
        async move { Ok::<_, Infallible>(answer(request, &client, place).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    tokio::select! {
        // How a client ends is its own business.
        _ = served => {}
        () = shared.shutdown.cancelled() => {}
    }
}

async fn answer(request: Request<Incoming>, client: &Client, place: Arc<Place>) -> Response<Body> {
    let target = match target(&request) {
        Ok(target) => target,
        Err(why) => return says(StatusCode::BAD_REQUEST, "http_request_error", why.to_owned()),
    };
    match reach(&client.allow, &target).await {
        Ok(stream) if request.method() == Method::CONNECT => {
            tokio::spawn(tunnel(request, stream, place));
            Response::new(empty())
        }
        Ok(stream) => match forward::forward(request, stream).await {
            Ok(response) => response.map(BodyExt::boxed),
            Err(error) => {
                says(StatusCode::BAD_GATEWAY, "http_protocol_error", format!("{target} does not speak HTTP: {error}"))
            }
        },
        Err(Unreached::Refused(refusal)) => {
            if target.host != Host::Name(PROBE.to_owned()) {
                place.shared.refusals.note(&client.server, &target, &refusal);
            }
            let error = match refusal {
                Refusal::SpecialAddress { .. } => "destination_ip_prohibited",
                Refusal::Unresolved(_) => "dns_error",
                Refusal::NotListed(_) | Refusal::PortNotListed(_) => "http_request_denied",
            };
            says(StatusCode::FORBIDDEN, error, refusal.to_string())
        }
        Err(Unreached::Failed(error)) => {
            let status = if error.kind() == io::ErrorKind::TimedOut {
                StatusCode::GATEWAY_TIMEOUT
            } else {
                StatusCode::BAD_GATEWAY
            };
            says(status, "destination_unavailable", format!("{target} cannot be connected to: {error}"))
        }
    }
}

/// Where a request is to go.
fn target<B>(request: &Request<B>) -> Result<Target, &'static str> {
    let uri = request.uri();
    let authority = uri.authority().ok_or("this is an HTTP proxy: name it in HTTPS_PROXY and HTTP_PROXY")?;
    let port = match (request.method(), uri.scheme_str()) {
        (&Method::CONNECT, _) => authority.port_u16().ok_or("CONNECT needs a port, as in api.example.com:443")?,
        (_, Some("http")) => authority.port_u16().unwrap_or(80),
        _ => return Err("a proxy reaches https:// URLs by CONNECT"),
    };
    if authority.host().len() > NAME {
        return Err("no host has so long a name");
    }
    Ok(Target::new(authority.host(), port))
}

enum Unreached {
    Refused(Refusal),
    Failed(io::Error),
}

/// Connects to a target, if it may be reached.
async fn reach(allow: &AllowList, target: &Target) -> Result<TcpStream, Unreached> {
    // Before anything is resolved: a name can carry a message.
    allow.ask(target).map_err(Unreached::Refused)?;
    let resolved = match &target.host {
        Host::Address(address) => vec![*address],
        Host::Name(name) => resolve(name, target.port).await,
    };
    let mut last = io::ErrorKind::NotConnected.into();
    for address in allow.decide(target, &resolved).map_err(Unreached::Refused)? {
        let connect = TcpStream::connect(SocketAddr::new(address, target.port));
        match tokio::time::timeout(CONNECT, connect).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(Unreached::Failed(last))
}

/// The addresses of a name; none when it has none, or nobody can tell.
async fn resolve(name: &str, port: u16) -> Vec<IpAddr> {
    match tokio::time::timeout(RESOLVE, tokio::net::lookup_host((name, port))).await {
        Ok(Ok(addresses)) => addresses.map(|address| address.ip()).collect(),
        Ok(Err(error)) => {
            tracing::debug!(name, %error, "a name does not resolve");
            Vec::new()
        }
        Err(_) => Vec::new(),
    }
}

/// Passes bytes on until both sides are done, or the proxy ends.
async fn tunnel(request: Request<Incoming>, mut upstream: TcpStream, place: Arc<Place>) {
    // The client may have gone before it heard the answer.
    let Ok(upgraded) = hyper::upgrade::on(request).await else { return };
    let mut client = TokioIo::new(upgraded);
    tokio::select! {
        // How a connection ends is the business of its two sides.
        _ = tokio::io::copy_bidirectional(&mut client, &mut upstream) => {}
        () = place.shared.shutdown.cancelled() => {}
    }
}

fn empty() -> Body {
    Full::default().map_err(|never| match never {}).boxed()
}

fn says(status: StatusCode, error: &'static str, text: String) -> Response<Body> {
    let mut response = Response::new(Full::from(text + "\n").map_err(|never| match never {}).boxed());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    if let Ok(value) = HeaderValue::from_str(&format!("perch; error={error}")) {
        headers.insert("proxy-status", value);
    }
    response
}
