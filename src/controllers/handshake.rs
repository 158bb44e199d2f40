//! An MCP handshake and `tools/list`, on the path that users take: through the gateway.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rmcp::{
    RoleClient, ServiceError,
    model::{ServerPeerInfo, Tool},
    service::{ClientInitializeError, RunningService, serve_client},
    transport::StreamableHttpClientTransport,
    transport::streamable_http_client::StreamableHttpClientTransportConfig,
};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::names::{Revision, ServerKey};

/// Where a gateway serves a server: all of it, or one revision that runs.
pub fn url(gateway: &url::Url, server: &ServerKey, revision: Option<&Revision>) -> String {
    let base = gateway.as_str().trim_end_matches('/');
    let pinned = revision.map(|revision| format!("@{revision}")).unwrap_or_default();
    format!("{base}/{}/{}{pinned}/mcp", server.namespace, server.name)
}

/// What handshakes need to be let in by a gateway, where it asks for anything.
#[derive(Clone, Default)]
pub struct GatewayAccess {
    /// The key to show.
    pub key: Option<GatewayKey>,
    /// PEM file with the certificates by which its own must be signed. Defaults to the machine's.
    pub authority: Option<PathBuf>,
}

/// The key that a gateway wants from the controllers. It may do nothing but ask servers how they are.
#[derive(Clone)]
pub enum GatewayKey {
    /// As it is.
    Key(Arc<str>),
    /// In a file, which is read for each handshake: it may change.
    File(PathBuf),
}

impl GatewayKey {
    async fn read(&self) -> Result<String, ProbeError> {
        match self {
            Self::Key(key) => Ok(key.to_string()),
            Self::File(path) => Ok(String::from_utf8_lossy(&read(path).await?).trim().to_owned()),
        }
    }
}

async fn read(path: &Path) -> Result<Vec<u8>, ProbeError> {
    tokio::fs::read(path).await.map_err(|error| ProbeError::Access(format!("{}: {error}", path.display())))
}

/// What a handshake showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Name and version that the server gives itself.
    pub name: String,
    /// See `name`.
    pub version: String,
    /// The protocol version that was agreed on.
    pub protocol: String,
    /// Number of tools.
    pub tools: usize,
    /// SHA-256 over the tools' definitions, sorted by name.
    pub digest: String,
}

/// Why there was no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    /// What is needed to be let in by the gateway is not there.
    #[error("what the gateway asks for cannot be read: {0}")]
    Access(String),
    /// `initialize` was not answered, or wrongly.
    #[error("no MCP handshake: {0}")]
    Handshake(String),
    /// `tools/list` was not answered, or wrongly.
    #[error("the handshake succeeded, but tools/list failed: {0}")]
    Tools(String),
    /// Nothing came in time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
}

/// One handshake and one list of tools, and then the session is ended. The tools are sorted by
/// name.
pub async fn ask(url: &str, access: &GatewayAccess, limit: Duration) -> Result<(Seen, Vec<Tool>), ProbeError> {
    tokio::time::timeout(limit, handshake(url, access)).await.unwrap_or(Err(ProbeError::Timeout(limit)))
}

/// A client that keeps no connection, so that each probe takes the way that a new client takes.
///
/// # Errors
/// When `authority`, certificates as PEM, cannot be read, or the TLS library does not work.
pub fn http_client(url: &str, authority: Option<&[u8]>) -> reqwest::Result<reqwest::Client> {
    let builder = reqwest::Client::builder().pool_max_idle_per_host(0);
    let builder = match authority {
        Some(pem) => builder.tls_certs_only(reqwest::Certificate::from_pem_bundle(pem)?),
        // Without certificates on the machine, as in an empty image, loading them would fail.
        None if !url.starts_with("https:") => builder.tls_certs_only([]),
        None => builder,
    };
    builder.build()
}

/// One handshake and one page of tools: how many they are, and what else the page says in `_meta`.
pub async fn list(url: &str, access: &GatewayAccess, limit: Duration) -> Result<(usize, Value), ProbeError> {
    let listed = async {
        let client = connect(url, access).await?;
        let page = client.list_tools(None).await;
        // The session's end is a courtesy; what was seen stands without it.
        let _ = client.cancel().await;
        let page = page.map_err(|error| ProbeError::Tools(readable(&error.to_string())))?;
        let meta = page.meta.map(|meta| serde_json::to_value(meta).unwrap_or_default()).unwrap_or_default();
        Ok((page.tools.len(), meta))
    };
    tokio::time::timeout(limit, listed).await.unwrap_or(Err(ProbeError::Timeout(limit)))
}

async fn connect(url: &str, access: &GatewayAccess) -> Result<RunningService<RoleClient, ()>, ProbeError> {
    let mut config = StreamableHttpClientTransportConfig::with_uri(url);
    if let Some(key) = &access.key {
        config = config.auth_header(key.read().await?);
    }
    let authority = match &access.authority {
        Some(path) => Some(read(path).await?),
        None => None,
    };
    let client = http_client(url, authority.as_deref())
        .map_err(|error| ProbeError::Handshake(format!("no HTTP client can be made: {error}")))?;
    let transport = StreamableHttpClientTransport::with_client(client, config);
    serve_client((), transport).await.map_err(|error| ProbeError::Handshake(explain(&error)))
}

async fn handshake(url: &str, access: &GatewayAccess) -> Result<(Seen, Vec<Tool>), ProbeError> {
    let client = connect(url, access).await?;
    let info: Option<Arc<ServerPeerInfo>> = client.peer_info();
    let offers_tools = info.as_ref().is_some_and(|i| i.capabilities.tools.is_some());
    let tools = if offers_tools { client.list_all_tools().await } else { Ok(Vec::new()) };
    // The session's end is a courtesy; what was seen stands without it.
    let _ = client.cancel().await;
    let mut tools = tools.map_err(|error: ServiceError| ProbeError::Tools(error.to_string()))?;
    tools.sort_by(|a, b| a.name.cmp(&b.name));
    let definitions = serde_json::to_vec(&tools).map_err(|error| ProbeError::Tools(error.to_string()))?;
    let implementation = info.as_ref().and_then(|i| i.server_info.clone());
    let seen = Seen {
        name: implementation.as_ref().map(|i| i.name.clone()).unwrap_or_default(),
        version: implementation.map(|i| i.version).unwrap_or_default(),
        protocol: info.map(|i| i.protocol_version.to_string()).unwrap_or_default(),
        tools: tools.len(),
        digest: format!("sha256:{:x}", Sha256::digest(&definitions)),
    };
    Ok((seen, tools))
}

/// The part of an error that a person can use.
fn explain(error: &ClientInitializeError) -> String {
    readable(&error.to_string())
}

/// The gateway's own words, where it spoke; else without the names of types and steps in which the
/// client wraps what happened.
fn readable(text: &str) -> String {
    let json = text.find('{').and_then(|start| {
        let mut values = serde_json::Deserializer::from_str(&text[start..]).into_iter::<Value>();
        values.next()?.ok()
    });
    let spoken = json.as_ref().and_then(|json| json.pointer("/error/message").or(json.get("message"))?.as_str());
    if let Some(spoken) = spoken {
        return unquoted(spoken).to_owned();
    }
    let inner = text.rsplit_once("] error: ").map_or(text, |(_, inner)| inner);
    let inner = inner.rsplit_once(", when send").map_or(inner, |(inner, _)| inner);
    let inner = inner.strip_prefix("JSON-RPC error: -32000: ").unwrap_or(inner);
    unquoted(inner).trim_end_matches([':', ' ']).to_owned()
}

/// What the gateway says of a server without what it quotes of the server's status: there stands what the last probe
/// found, and a status that quoted itself would grow with every look.
fn unquoted(spoken: &str) -> &str {
    const QUOTES: &str = " is not ready: ";
    const OWN_WORDS: &str = "no instance is running";
    match spoken.split_once(QUOTES) {
        Some((server, why)) if why != OWN_WORDS => &spoken[..server.len() + QUOTES.trim_end_matches([':', ' ']).len()],
        _ => spoken,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a gateway would see of a probe.
    async fn shown(access: &GatewayAccess) -> (Result<(Seen, Vec<Tool>), ProbeError>, Option<String>) {
        let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/default/a/mcp", listener.local_addr().unwrap());
        let seen = Arc::new(std::sync::Mutex::new(None));
        let keep = Arc::clone(&seen);
        let answer = move |headers: http::HeaderMap| async move {
            *keep.lock().unwrap() = headers.get("authorization").map(|v| v.to_str().unwrap().to_owned());
            http::StatusCode::FORBIDDEN
        };
        let app = axum::Router::new().route("/default/a/mcp", axum::routing::post(answer));
        let server = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        let result = ask(&url, access, Duration::from_secs(10)).await;
        server.abort();
        (result, seen.lock().unwrap().take())
    }

    #[tokio::test]
    async fn a_probe_shows_the_key_that_is_in_its_file_now() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key");
        let access = GatewayAccess { key: Some(GatewayKey::File(file.clone())), authority: None };
        let (result, seen) = shown(&access).await;
        assert!(matches!(&result, Err(ProbeError::Access(why)) if why.contains("key: ")), "{result:?}");
        assert_eq!(seen, None, "nothing was sent without the key");
        for key in ["first", "second"] {
            std::fs::write(&file, format!("{key}\n")).unwrap();
            assert_eq!(shown(&access).await.1, Some(format!("Bearer {key}")));
        }
        assert_eq!(shown(&GatewayAccess::default()).await.1, None);
    }

    #[test]
    fn errors_are_for_people() {
        for (text, expected) in [
            (
                "Send message error Transport [rmcp::transport::worker::WorkerTransport<reqwest::Client>] error: unexpected server response: HTTP 404 Not Found: , when send initialize request",
                "unexpected server response: HTTP 404 Not Found",
            ),
            (
                "Send message error Transport [x] error: unexpected server response: {\"jsonrpc\":\"2.0\",\"error\":{\"code\":-32000,\"message\":\"server \\\"a\\\" is not ready\"}}, when send initialize request",
                "server \"a\" is not ready",
            ),
            ("JSON-RPC error: -32000: server default/a did not answer", "server default/a did not answer"),
            ("connection closed: initialize response", "connection closed: initialize response"),
        ] {
            assert_eq!(readable(text), expected);
        }
    }

    #[test]
    fn a_status_never_quotes_itself() {
        // The gateway tells why a server is not ready by its status, and the status what the gateway told a probe.
        let gateway = |status: &str| format!("server default/a is not ready: HandshakeFailed: {status}");
        let probe = |spoken: &str| {
            let body = serde_json::json!({"jsonrpc": "2.0", "error": {"code": -32000, "message": spoken}});
            let error =
                format!("Send message error Transport [x] error: unexpected server response: {body}, when send x");
            let found = [readable(&error), readable(&format!("JSON-RPC error: -32000: {spoken}"))];
            assert_eq!(found[0], found[1]);
            format!("the server runs, but no MCP handshake: {}", found[0])
        };
        let first = probe("server default/a is not ready: no instance is running");
        assert_eq!(
            first,
            "the server runs, but no MCP handshake: server default/a is not ready: no instance is running"
        );
        let second = probe(&gateway(&first));
        assert_eq!(second, "the server runs, but no MCP handshake: server default/a is not ready");
        assert_eq!(probe(&gateway(&second)), second);
    }
}
