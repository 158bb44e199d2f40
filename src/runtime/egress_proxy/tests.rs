//! The proxy over loopback: 127.0.0.1 is a server with a list, every other address is nobody.

use std::net::Ipv4Addr;

use prometheus_client::{encoding::text::encode, registry::Registry};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpSocket,
};

use super::*;
use crate::api::mcp_server::EgressRule;

struct Fixed(AllowList);

#[async_trait]
impl Peers for Fixed {
    async fn find(&self, address: IpAddr) -> Option<Client> {
        let server = ServerKey::new("default", "a");
        (address == IpAddr::from(Ipv4Addr::LOCALHOST)).then(|| Client { server, allow: self.0.clone() })
    }
}

struct Proxy {
    address: SocketAddr,
    refusals: Refusals,
    shutdown: CancellationToken,
}

impl Proxy {
    /// A proxy for these rules.
    async fn start(rules: &str) -> Self {
        let rules: Vec<EgressRule> = serde_yaml_ng::from_str(rules).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (refusals, shutdown) = (Refusals::default(), CancellationToken::new());
        let peers = Arc::new(Fixed(AllowList::new(&rules).unwrap()));
        tokio::spawn(serve(listener, peers, refusals.clone(), shutdown.clone()));
        Self { address, refusals, shutdown }
    }

    /// A connection from an address.
    async fn connect(&self, from: [u8; 4]) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from((from, 0))).unwrap();
        socket.connect(self.address).await.unwrap()
    }

    /// Sends a request; gives the connection and the head of the answer.
    async fn send(&self, request: &str) -> (TcpStream, String) {
        let mut stream = self.connect([127, 0, 0, 1]).await;
        stream.write_all(request.as_bytes()).await.unwrap();
        let head = head(&mut stream).await;
        (stream, head)
    }

    /// The answer to a request after which the connection ends.
    async fn ask(&self, request: &str) -> String {
        let (mut stream, mut answer) = self.send(request).await;
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    async fn open(&self, target: &str) -> (TcpStream, String) {
        self.send(&format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n")).await
    }

    async fn refused(&self, target: &str) -> String {
        self.ask(&format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\nConnection: close\r\n\r\n")).await
    }
}

async fn head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

/// Somebody on this machine who sends back what it gets, and tells how often it was connected to.
async fn echo() -> (u16, tokio::sync::watch::Receiver<usize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (count, counted) = tokio::sync::watch::channel(0);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            count.send_modify(|count| *count += 1);
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                tokio::io::copy(&mut read, &mut write).await
            });
        }
    });
    (port, counted)
}

fn rules(port: u16) -> String {
    format!("[{{host: localhost, ports: [{port}]}}, {{cidr: 127.0.0.0/8, ports: [{port}]}}]")
}

#[tokio::test]
async fn what_is_listed_is_passed_on_as_it_is() {
    let (port, _) = echo().await;
    let proxy = Proxy::start(&rules(port)).await;
    for host in ["localhost", "LocalHost.", "127.0.0.1"] {
        let (mut stream, head) = proxy.open(&format!("{host}:{port}")).await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        stream.write_all(b"\x16\x03\x01 as it is").await.unwrap();
        let mut back = [0; 12];
        stream.read_exact(&mut back).await.unwrap();
        assert_eq!(&back, b"\x16\x03\x01 as it is");
        stream.shutdown().await.unwrap();
        assert_eq!(stream.read(&mut back).await.unwrap(), 0, "the end is passed on too");
    }
    assert_eq!(proxy.refusals.last(&ServerKey::new("default", "a")), None);
}

#[tokio::test]
async fn what_is_not_is_refused_counted_and_never_connected_to() {
    let (port, connections) = echo().await;
    // The name leads to the machine itself, and nothing says that this is meant.
    let proxy = Proxy::start(&format!("[{{host: localhost, ports: [{port}]}}]")).await;
    for (target, error, part) in [
        (format!("localhost:{port}"), "destination_ip_prohibited", "(the machine itself)"),
        (format!("127.0.0.1:{port}"), "http_request_denied", "is not on the list"),
        ("other.example:443".into(), "http_request_denied", "other.example:443 is not on the list"),
        (format!("{PROBE}:443"), "http_request_denied", "is not on the list"),
        ("localhost:1".into(), "http_request_denied", "not with this port"),
    ] {
        let answer = proxy.refused(&target).await;
        assert!(answer.starts_with("HTTP/1.1 403 ") && answer.contains(part), "{target}: {answer}");
        assert!(answer.contains(&format!("proxy-status: perch; error={error}\r\n")), "{target}: {answer}");
    }
    assert_eq!(*connections.borrow(), 0);
    assert_eq!(proxy.refusals.last(&ServerKey::new("default", "a")).as_deref(), Some("localhost:1 (PortNotListed)"));
    let (mut registry, mut text) = (Registry::default(), String::new());
    proxy.refusals.register(&mut registry);
    encode(&mut text, &registry).unwrap();
    for (reason, count) in [("SpecialAddress", 1), ("NotListed", 2), ("PortNotListed", 1)] {
        let line =
            format!("perch_egress_refused_total{{namespace=\"default\",server=\"a\",reason=\"{reason}\"}} {count}\n");
        assert!(text.contains(&line), "the probe does not count: {text}");
    }
}

#[tokio::test]
async fn nobody_else_uses_it() {
    let (port, connections) = echo().await;
    let proxy = Proxy::start(&rules(port)).await;
    let mut stream = proxy.connect([127, 0, 0, 2]).await;
    // The proxy may have closed it already.
    let _ = stream.write_all(format!("CONNECT localhost:{port} HTTP/1.1\r\n\r\n").as_bytes()).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert_eq!((answer, *connections.borrow()), (Vec::new(), 0));
}

#[tokio::test]
async fn requests_without_tls_are_passed_on_one_by_one() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let served = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let request = head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\nKeep-Alive: x\r\n\r\nok").await.unwrap();
        request
    });
    let proxy = Proxy::start(&rules(port)).await;
    let request = format!(
        "GET http://localhost:{port}/a?b=c HTTP/1.1\r\nHost: other.example\r\nProxy-Connection: keep-alive\r\n\
         Proxy-Authorization: Basic x\r\nAuthorization: Bearer y\r\nConnection: close\r\n\r\n"
    );
    let answer = proxy.ask(&request).await;
    assert!(answer.starts_with("HTTP/1.1 201 ") && answer.ends_with("\r\n\r\nok"), "{answer}");
    assert!(!answer.to_lowercase().contains("keep-alive"), "{answer}");
    let request = served.await.unwrap().to_lowercase();
    assert!(request.starts_with("get /a?b=c http/1.1\r\n"), "{request}");
    assert!(request.contains(&format!("host: localhost:{port}\r\n")) && request.contains("authorization: bearer y"));
    assert!(!request.contains("proxy-") && !request.contains("other.example"), "{request}");

    let answer = proxy.ask("GET http://other.example/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 403 ") && answer.contains("other.example:80 is not on the list"), "{answer}");
    for (line, part) in [
        ("GET / HTTP/1.1", "this is an HTTP proxy"),
        ("GET https://localhost/ HTTP/1.1", "by CONNECT"),
        ("CONNECT localhost HTTP/1.1", "needs a port"),
    ] {
        let answer = proxy.ask(&format!("{line}\r\nHost: localhost\r\nConnection: close\r\n\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains(part), "{line}: {answer}");
    }
}

#[tokio::test]
async fn one_server_cannot_take_all_connections_and_the_end_ends_them() {
    let (port, _) = echo().await;
    let proxy = Proxy::start(&rules(port)).await;
    let mut open = Vec::new();
    for _ in 0..CONNECTIONS {
        let (stream, head) = proxy.open(&format!("localhost:{port}")).await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        open.push(stream);
    }
    let mut more = proxy.connect([127, 0, 0, 1]).await;
    assert!(matches!(more.read(&mut [0]).await, Ok(0) | Err(_)), "one too many");
    drop(open.pop());
    // The place is free as soon as the proxy has seen the end.
    let mut again = None;
    while again.is_none() {
        let mut stream = proxy.connect([127, 0, 0, 1]).await;
        let request = format!("CONNECT localhost:{port} HTTP/1.1\r\nHost: x\r\n\r\n");
        let mut byte = [0];
        // A connection without a place is reset or closed.
        let taken = stream.write_all(request.as_bytes()).await.is_ok() && matches!(stream.read(&mut byte).await, Ok(1));
        again = taken.then_some(stream);
    }
    proxy.shutdown.cancel();
    for mut stream in open {
        assert!(matches!(stream.read(&mut [0]).await, Ok(0) | Err(_)), "tunnels end with the proxy");
    }
}
