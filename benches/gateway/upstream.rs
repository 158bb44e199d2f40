//! The fastest MCP server that there can be: constant answers, so that a comparison of proxies
//! measures the proxies.
//!
//! `mcp-bench-upstream [--port N]`, or the port from `PORT`. Legacy era, one session id for all.

use std::convert::Infallible;

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

const INITIALIZED: &str = r#"{"jsonrpc":"2.0","id":0,"result":{"protocolVersion":"2025-11-25","capabilities":{"tools":{}},"serverInfo":{"name":"bench","version":"1"}}}"#;
const CALLED: &str = r#"{"jsonrpc":"2.0","id":1,"result":{"content":[{"type":"text","text":"pong"}]}}"#;

async fn answer(request: Request<Incoming>, tools: Bytes) -> Result<Response<Full<Bytes>>, Infallible> {
    let body = request.into_body().collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let has = |what: &[u8]| body.windows(what.len()).any(|part| part == what);
    let answer = if has(b"\"tools/call\"") {
        Bytes::from_static(CALLED.as_bytes())
    } else if has(b"\"tools/list\"") {
        tools
    } else if has(b"\"initialize\"") {
        // The id is the one thing that a client checks.
        let id = if has(b"\"id\":0") { "\"id\":0" } else { "\"id\":1" };
        Bytes::from(INITIALIZED.replace("\"id\":0", id))
    } else {
        let mut accepted = Response::new(Full::default());
        *accepted.status_mut() = StatusCode::ACCEPTED;
        return Ok(accepted);
    };
    let response =
        Response::builder().header(header::CONTENT_TYPE, "application/json").header("mcp-session-id", "bench");
    Ok(response.body(Full::new(answer)).unwrap_or_default())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let port = args.iter().position(|a| a == "--port").and_then(|i| args.get(i + 1).cloned());
    let port = port.or_else(|| std::env::var("PORT").ok()).unwrap_or_else(|| "0".into());
    // Ten tools of the size that real ones have: 7.7 KB.
    let schema = format!(
        r#"{{"type":"object","properties":{{"text":{{"type":"string","description":"{}"}}}}}}"#,
        "x".repeat(640)
    );
    let tools: Vec<String> = (0..10).map(|n| format!(r#"{{"name":"tool_{n}","inputSchema":{schema}}}"#)).collect();
    let tools = Bytes::from(format!(r#"{{"jsonrpc":"2.0","id":1,"result":{{"tools":[{}]}}}}"#, tools.join(",")));
    let listener = TcpListener::bind(format!("127.0.0.1:{port}")).await?;
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
