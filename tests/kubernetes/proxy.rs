//! The way out for package installations: pods of the test cluster reach nothing but this machine,
//! so here are an HTTP CONNECT proxy and a mirror of the npm registry, as companies have them.
//! (pip takes the proxy; npm 9 on Node 22 stands still behind one, and takes the mirror.)

use std::{
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    process::Command,
    thread,
};

use axum::{
    Router,
    body::Body,
    extract::Request,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};

/// A CONNECT proxy on an address of this machine, until the process ends; gives its URL.
pub fn connect(address: &str) -> String {
    let listener = TcpListener::bind((address, 0)).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            // A client that breaks off is its own business.
            thread::spawn(move || drop(tunnel(client)));
        }
    });
    url
}

fn tunnel(mut client: TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut line = String::new();
    while reader.read_line(&mut line)? > 2 {
        line.clear();
    }
    let Some(target) = request.strip_prefix("CONNECT ").and_then(|r| r.split(' ').next()) else {
        return client.write_all(b"HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n");
    };
    let mut server = TcpStream::connect(target)?;
    client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
    let mut from_server = server.try_clone()?;
    let back = thread::spawn(move || {
        let copied = std::io::copy(&mut from_server, &mut client);
        // Both ends are told, whichever ended first.
        let _ = client.shutdown(std::net::Shutdown::Both);
        copied
    });
    let forth = std::io::copy(&mut reader, &mut server);
    let _ = server.shutdown(std::net::Shutdown::Both);
    let _ = back.join();
    forth.map(drop)
}

/// A mirror of the registry that npm is set up with on this machine, until the process ends; gives
/// its URL.
pub fn npm_mirror(address: &str) -> String {
    let output = Command::new("npm").args(["config", "get", "registry"]).output().expect("npm is on PATH");
    let registry = String::from_utf8(output.stdout).unwrap().trim().trim_end_matches('/').to_owned();
    let listener = TcpListener::bind((address, 0)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            // Only the first call counts.
            let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
            let tls = hyper_rustls::HttpsConnectorBuilder::new()
                .with_provider_and_native_roots(tokio_rustls::rustls::crypto::ring::default_provider())
                .unwrap()
                .https_or_http()
                .enable_http1()
                .build();
            let client: Client<_, Body> = Client::builder(TokioExecutor::new()).build(tls);
            let app = Router::new().fallback(move |request: Request| {
                let (client, registry) = (client.clone(), registry.clone());
                async move { fetch(&client, &registry, request).await }
            });
            axum::serve(tokio::net::TcpListener::from_std(listener).unwrap(), app).await.unwrap();
        });
    });
    url
}

async fn fetch<C>(client: &Client<C, Body>, registry: &str, request: Request) -> Response
where
    C: hyper_util::client::legacy::connect::Connect + Clone + Send + Sync + 'static,
{
    let (mut parts, body) = request.into_parts();
    let path = parts.uri.path_and_query().map_or("/", |p| p.as_str());
    parts.uri = format!("{registry}{path}").parse().unwrap();
    for name in [header::HOST, header::CONNECTION] {
        parts.headers.remove(name);
    }
    match client.request(http::Request::from_parts(parts, body)).await {
        Ok(response) => response.into_response(),
        Err(error) => (StatusCode::BAD_GATEWAY, format!("{error:?}")).into_response(),
    }
}
