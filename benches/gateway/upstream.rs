//! The fastest MCP server that there can be: constant answers, so that a comparison of proxies
//! measures the proxies.
//!
//! `mcp-bench-upstream` listens on the port that `PORT` names, else on any, and prints its address.
//! Legacy era, one session id for all. A request with `"stream":true` in it is answered with a stream of
//! one event, and GET with an event each second.

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use futures::StreamExt;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{
    body::{Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

const INITIALIZED: &str = r#"{"jsonrpc":"2.0","id":0,"result":{"protocolVersion":"2025-11-25","capabilities":{"tools":{}},"serverInfo":{"name":"bench","version":"1"}}}"#;
const CALLED: &str = r#"{"jsonrpc":"2.0","id":1,"result":{"content":[{"type":"text","text":"pong"}]}}"#;

/// The body of an answer.
type Body = BoxBody<Bytes, Infallible>;

fn whole(bytes: Bytes) -> Body {
    Full::new(bytes).boxed()
}

/// A message as the one event of a stream.
fn event(message: &[u8]) -> Bytes {
    [b"event: message\ndata: ", message, b"\n\n"].concat().into()
}

/// A stream that never ends: a notification each second.
fn news() -> Body {
    let ticks = tokio_stream::wrappers::IntervalStream::new(tokio::time::interval(Duration::from_secs(1)));
    let told = event(br#"{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":"tick"}}"#);
    BodyExt::boxed(StreamBody::new(ticks.map(move |_| Ok(Frame::data(told.clone())))))
}

async fn answer(request: Request<Incoming>, tools: Bytes) -> Result<Response<Body>, Infallible> {
    let response = Response::builder().header("mcp-session-id", "bench");
    let events = |body: Body| response.header(header::CONTENT_TYPE, "text/event-stream").body(body);
    if request.method() == Method::GET {
        return Ok(events(news()).unwrap_or_default());
    }
    let body = request.into_body().collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let has = |what: &[u8]| memchr::memmem::find(&body, what).is_some();
    let answer = if has(b"\"tools/call\"") {
        Bytes::from_static(CALLED.as_bytes())
    } else if has(b"\"tools/list\"") {
        tools
    } else if has(b"\"initialize\"") {
        // The id is the one thing that a client checks.
        let id = if has(b"\"id\":0") { "\"id\":0" } else { "\"id\":1" };
        Bytes::from(INITIALIZED.replace("\"id\":0", id))
    } else {
        let mut accepted = Response::new(Body::default());
        *accepted.status_mut() = StatusCode::ACCEPTED;
        return Ok(accepted);
    };
    if has(b"\"stream\":true") {
        let frame = Frame::data(event(&answer));
        let body = BodyExt::boxed(StreamBody::new(futures::stream::once(async { Ok(frame) })));
        return Ok(events(body).unwrap_or_default());
    }
    let response =
        Response::builder().header("mcp-session-id", "bench").header(header::CONTENT_TYPE, "application/json");
    Ok(response.body(whole(answer)).unwrap_or_default())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    let port = std::env::var("PORT").unwrap_or_else(|_| "0".into());
    // Ten tools of the size that real ones have: 7.7 KB.
    let schema = format!(
        r#"{{"type":"object","properties":{{"text":{{"type":"string","description":"{}"}}}}}}"#,
        "x".repeat(640)
    );
    let tools: Vec<String> = (0..10).map(|n| format!(r#"{{"name":"tool_{n}","inputSchema":{schema}}}"#)).collect();
    let tools = Bytes::from(format!(r#"{{"jsonrpc":"2.0","id":1,"result":{{"tools":[{}]}}}}"#, tools.join(",")));
    let listener = TcpListener::bind(format!("127.0.0.1:{port}")).await?;
    println!("{}", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let tools = tools.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(request, tools.clone()));
            // A client that goes away is no news.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}
