//! Truthful readiness: an MCP handshake and `tools/list` on the path that users take.
//!
//! Each server that runs has a task that asks again and again: quickly until the first answer,
//! then once a period. What it finds is kept here, and a change of it reconciles the server.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Mutex,
    time::Duration,
};

use rmcp::{
    ServiceError,
    model::ServerPeerInfo,
    service::{ClientInitializeError, serve_client},
    transport::StreamableHttpClientTransport,
    transport::streamable_http_client::StreamableHttpClientTransportConfig,
};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    api::mcp_server::Probe,
    names::{Revision, ServerKey},
    runtime::{Instance, InstanceId, InstanceState, Observed},
};

/// First wait between two tries of a server that does not answer yet; it grows to [`SLOWEST`].
const QUICKEST: Duration = Duration::from_millis(50);
/// Longest wait between two tries of a server that does not answer yet.
const SLOWEST: Duration = Duration::from_secs(1);
/// Handshakes at the same time, over all servers.
const CONCURRENCY: usize = 32;

/// What probes need to be let in by a gateway, where it asks for anything.
#[derive(Clone, Default)]
pub struct GatewayAccess {
    /// The key to show.
    pub key: Option<GatewayKey>,
    /// PEM file with the certificates by which its own must be signed. Defaults to the machine's.
    pub authority: Option<PathBuf>,
}

/// The key that a gateway wants from probes. It may do nothing but ask servers how they are.
#[derive(Clone)]
pub enum GatewayKey {
    /// As it is.
    Key(Arc<str>),
    /// In a file, which is read for each probe: it may change.
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

/// The last thing that a probe found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probed {
    /// The instances that ran then.
    pub instances: Vec<InstanceId>,
    /// The last success with these instances.
    pub seen: Option<Seen>,
    /// The last failure, when nothing succeeded since.
    pub error: Option<ProbeError>,
    /// Failures since the last success.
    pub failures: u32,
}

/// The instances of a revision that run.
pub fn running(observed: &Observed, revision: Option<&Revision>) -> Vec<InstanceId> {
    let current = observed.instances.iter().filter(|i| Some(&i.revision) == revision);
    current.filter(|i| matches!(i.state, InstanceState::Running { .. })).map(|i| i.id.clone()).collect()
}

/// Whether another revision serves until this one is up.
pub fn is_updating(observed: &Observed, revision: &Revision) -> bool {
    let runs = |i: &Instance| matches!(i.state, InstanceState::Running { .. });
    observed.instances.iter().any(|i| i.revision != *revision && runs(i))
}

#[derive(Clone, Debug, PartialEq)]
struct Aim {
    url: String,
    probe: Probe,
    instances: Vec<InstanceId>,
}

struct Task {
    aim: watch::Sender<Option<Aim>>,
    cancel: CancellationToken,
    found: Arc<Mutex<Option<Probed>>>,
}

/// All probes.
pub struct Probes {
    tasks: Mutex<HashMap<ServerKey, Task>>,
    tracker: TaskTracker,
    changed: mpsc::UnboundedSender<ServerKey>,
    turns: Arc<Semaphore>,
    access: GatewayAccess,
}

impl Probes {
    /// No probes yet, and where to learn which servers have news. `access` is what the gateway
    /// asks for.
    pub fn new(access: GatewayAccess) -> (Self, mpsc::UnboundedReceiver<ServerKey>) {
        let (changed, news) = mpsc::unbounded_channel();
        let turns = Arc::new(Semaphore::new(CONCURRENCY));
        (Self { tasks: Mutex::default(), tracker: TaskTracker::new(), changed, turns, access }, news)
    }

    /// Aims the probe of a server at its instances, or at nothing, and tells what it found about
    /// exactly these instances.
    pub fn aim(
        &self,
        server: &ServerKey,
        url: &str,
        probe: &Probe,
        instances: Option<Vec<InstanceId>>,
    ) -> Option<Probed> {
        let aim = instances.map(|instances| Aim { url: url.to_owned(), probe: probe.clone(), instances });
        let mut tasks = self.tasks.lock().expect("nobody panics while holding the probes");
        if aim.is_none() && !tasks.contains_key(server) {
            return None;
        }
        let task = tasks.entry(server.clone()).or_insert_with(|| self.start(server.clone()));
        let wanted = aim.as_ref().map(|a| a.instances.clone());
        task.aim.send_if_modified(|current| {
            let new = *current != aim;
            if new {
                *current = aim;
            }
            new
        });
        let found = task.found.lock().expect("nobody panics while holding what was found").clone();
        found.filter(|f| Some(&f.instances) == wanted.as_ref())
    }

    /// Ends the probe of a server.
    pub fn forget(&self, server: &ServerKey) {
        if let Some(task) = self.tasks.lock().expect("nobody panics while holding the probes").remove(server) {
            task.cancel.cancel();
        }
    }

    /// Ends all probes and waits for it.
    pub async fn close(&self) {
        for (_, task) in self.tasks.lock().expect("nobody panics while holding the probes").drain() {
            task.cancel.cancel();
        }
        self.tracker.close();
        self.tracker.wait().await;
    }

    fn start(&self, server: ServerKey) -> Task {
        let (aim, aims) = watch::channel(None);
        let cancel = CancellationToken::new();
        let found = Arc::new(Mutex::new(None));
        let prober = Prober {
            server,
            aims,
            found: Arc::clone(&found),
            changed: self.changed.clone(),
            turns: Arc::clone(&self.turns),
            access: self.access.clone(),
        };
        let token = cancel.clone();
        self.tracker.spawn(async move {
            tokio::select! {
                () = prober.run() => {}
                () = token.cancelled() => {}
            }
        });
        Task { aim, cancel, found }
    }
}

struct Prober {
    server: ServerKey,
    aims: watch::Receiver<Option<Aim>>,
    found: Arc<Mutex<Option<Probed>>>,
    changed: mpsc::UnboundedSender<ServerKey>,
    turns: Arc<Semaphore>,
    access: GatewayAccess,
}

impl Prober {
    async fn run(mut self) {
        let mut wait = QUICKEST;
        let mut instances: Option<Vec<InstanceId>> = None;
        loop {
            let aim = self.aims.borrow_and_update().clone();
            let Some(aim) = aim else {
                instances = None;
                if self.aims.changed().await.is_err() {
                    return;
                }
                continue;
            };
            if instances.as_ref() != Some(&aim.instances) {
                instances = Some(aim.instances.clone());
                wait = QUICKEST;
                let delay = aim.probe.initial_delay.to_std();
                if !delay.is_zero() && self.interrupted(delay).await {
                    continue;
                }
            }
            let result = {
                let _turn = self.turns.acquire().await;
                tokio::select! {
                    result = ask(&aim.url, &self.access, aim.probe.timeout.to_std()) => result,
                    // Other instances run now: what this one would say is of no interest.
                    changed = self.aims.changed() => if changed.is_ok() { continue } else { return },
                }
            };
            let ready = self.record(&aim, result);
            let pause = if ready { aim.probe.period.to_std().max(QUICKEST) } else { wait };
            wait = if ready { QUICKEST } else { (wait * 2).min(SLOWEST) };
            self.interrupted(pause).await;
        }
    }

    /// Waits, unless there is a new aim.
    async fn interrupted(&mut self, pause: Duration) -> bool {
        tokio::select! {
            () = tokio::time::sleep(pause) => false,
            changed = self.aims.changed() => changed.is_ok(),
        }
    }

    /// Keeps a result; true when the server counts as answering.
    fn record(&self, aim: &Aim, result: Result<Seen, ProbeError>) -> bool {
        let mut found = self.found.lock().expect("nobody panics while holding what was found");
        let before = found.take().filter(|f| f.instances == aim.instances);
        let new = match result {
            Ok(seen) => Probed { instances: aim.instances.clone(), seen: Some(seen), error: None, failures: 0 },
            Err(error) => Probed {
                instances: aim.instances.clone(),
                seen: before.as_ref().and_then(|b| b.seen.clone()),
                error: Some(error),
                failures: before.as_ref().map_or(1, |b| b.failures.saturating_add(1)),
            },
        };
        let ready = new.error.is_none();
        // The count alone matters only where it crosses the threshold.
        let threshold = u32::try_from(aim.probe.failure_threshold).unwrap_or(1);
        let same = before.as_ref().is_some_and(|b| {
            b.seen == new.seen && b.error == new.error && (b.failures >= threshold) == (new.failures >= threshold)
        });
        *found = Some(new);
        drop(found);
        if !same {
            // Nobody to tell: the controller is ending.
            let _ = self.changed.send(self.server.clone());
        }
        ready
    }
}

/// One handshake and one list of tools, and then the session is ended.
async fn ask(url: &str, access: &GatewayAccess, limit: Duration) -> Result<Seen, ProbeError> {
    tokio::time::timeout(limit, handshake(url, access)).await.unwrap_or(Err(ProbeError::Timeout(limit)))
}

/// A client that keeps no connection, so that each probe takes the way that a new client takes.
fn http_client(url: &str, authority: Option<&[u8]>) -> reqwest::Result<reqwest::Client> {
    let builder = reqwest::Client::builder().pool_max_idle_per_host(0);
    let builder = match authority {
        Some(pem) => builder.tls_certs_only(reqwest::Certificate::from_pem_bundle(pem)?),
        // Without certificates on the machine, as in an empty image, loading them would fail.
        None if !url.starts_with("https:") => builder.tls_certs_only([]),
        None => builder,
    };
    builder.build()
}

async fn handshake(url: &str, access: &GatewayAccess) -> Result<Seen, ProbeError> {
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
    let client = serve_client((), transport).await.map_err(|error| ProbeError::Handshake(explain(&error)))?;
    let info: Option<Arc<ServerPeerInfo>> = client.peer_info();
    let offers_tools = info.as_ref().is_some_and(|i| i.capabilities.tools.is_some());
    let tools = if offers_tools { client.list_all_tools().await } else { Ok(Vec::new()) };
    // The session's end is a courtesy; what was seen stands without it.
    let _ = client.cancel().await;
    let mut tools = tools.map_err(|error: ServiceError| ProbeError::Tools(error.to_string()))?;
    tools.sort_by(|a, b| a.name.cmp(&b.name));
    let definitions = serde_json::to_vec(&tools).map_err(|error| ProbeError::Tools(error.to_string()))?;
    let implementation = info.as_ref().and_then(|i| i.server_info.clone());
    Ok(Seen {
        name: implementation.as_ref().map(|i| i.name.clone()).unwrap_or_default(),
        version: implementation.map(|i| i.version).unwrap_or_default(),
        protocol: info.map(|i| i.protocol_version.to_string()).unwrap_or_default(),
        tools: tools.len(),
        digest: format!("sha256:{:x}", Sha256::digest(&definitions)),
    })
}

/// The part of an error that a person can use.
fn explain(error: &ClientInitializeError) -> String {
    readable(&error.to_string())
}

/// The gateway's own words, where it spoke; else without the names of types and steps in which the
/// client wraps what happened.
fn readable(text: &str) -> String {
    let json = text.find('{').and_then(|start| {
        let mut values = serde_json::Deserializer::from_str(&text[start..]).into_iter::<serde_json::Value>();
        values.next()?.ok()
    });
    let spoken = json.as_ref().and_then(|json| json.pointer("/error/message").or(json.get("message"))?.as_str());
    if let Some(spoken) = spoken {
        return spoken.to_owned();
    }
    let inner = text.rsplit_once("] error: ").map_or(text, |(_, inner)| inner);
    let inner = inner.rsplit_once(", when send").map_or(inner, |(inner, _)| inner);
    let inner = inner.strip_prefix("JSON-RPC error: -32000: ").unwrap_or(inner);
    inner.trim_end_matches([':', ' ']).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a gateway would see of a probe.
    async fn shown(access: &GatewayAccess) -> (Result<Seen, ProbeError>, Option<String>) {
        let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/default/a/mcp", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(None));
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
}
