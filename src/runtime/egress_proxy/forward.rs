//! Requests for `http://` URLs, passed on one by one.

use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, Uri, header};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Headers that are for the next hop alone (RFC 9110, 7.6.1), besides those that `Connection` names.
const HOP: [&str; 8] = [
    "connection",
    "proxy-connection",
    "keep-alive",
    "proxy-authorization",
    "proxy-authenticate",
    "te",
    "transfer-encoding",
    "upgrade",
];

/// Sends a request over a connection to its target, and gives the response.
pub(super) async fn forward(request: Request<Incoming>, stream: TcpStream) -> hyper::Result<Response<Incoming>> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // Its end is seen by whoever reads the response.
    tokio::spawn(connection);
    let (mut parts, body) = request.into_parts();
    strip(&mut parts.headers);
    // RFC 9112, 3.2.2: the host of the URL is the one that counts.
    let host = parts.uri.authority().and_then(|authority| authority.as_str().rsplit('@').next());
    if let Some(Ok(host)) = host.map(HeaderValue::from_str) {
        parts.headers.insert(header::HOST, host);
    }
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    parts.uri = path.parse().unwrap_or_else(|_| Uri::from_static("/"));
    let mut response = sender.send_request(Request::from_parts(parts, body)).await?;
    strip(response.headers_mut());
    Ok(response)
}

fn strip(headers: &mut HeaderMap) {
    let named = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let named: Vec<HeaderName> =
        named.flat_map(|value| value.split(',')).filter_map(|n| n.trim().parse().ok()).collect();
    for name in named.iter().map(HeaderName::as_str).chain(HOP) {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_for_the_next_hop_ends_here() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, x-private"),
            ("x-private", "a"),
            ("proxy-authorization", "Basic x"),
            ("authorization", "Bearer x"),
            ("upgrade", "websocket"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        strip(&mut headers);
        assert_eq!(headers.keys().collect::<Vec<_>>(), ["authorization"]);
    }
}
