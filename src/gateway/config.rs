//! What a gateway can be told.

use std::time::Duration;

use super::observe::audit::AuditConfig;

use super::{access::Access, tls::Tls, trace::Tracing};

/// Settings of a gateway.
#[derive(Clone, Debug)]
pub struct Config {
    /// Who may use the gateway.
    pub access: Access,
    /// The certificate to show to clients; without one, they are served in plain HTTP.
    pub tls: Option<Tls>,
    /// Host names under which clients may reach the gateway, beside loopback; `*` for any. Requests
    /// with other `Host` or `Origin` headers are refused, so that a web page cannot reach the
    /// gateway by rebinding its own name (DNS rebinding).
    pub hosts: Vec<String>,
    /// Origins of web pages that may call the gateway, `scheme://host[:port]`, beside those on
    /// `hosts` and loopback.
    pub origins: Vec<String>,
    /// Seals session ids. Gateways with the same key accept each other's sessions.
    pub key: [u8; 32],
    /// The only namespace whose servers are served; all when none.
    pub namespace: Option<String>,
    /// Whether instances of Stdio servers speak Streamable HTTP, through a bridge beside them.
    pub bridged: bool,
    /// Name of the gateway in what it reports: its pod or host.
    pub name: String,
    /// Where operations are recorded, if anywhere.
    pub audit: Option<AuditConfig>,
    /// Where spans of operations go, if anywhere.
    pub traces: Tracing,
    /// Largest request body, in bytes.
    pub body_limit: usize,
    /// Most objects and lists that may stand in each other in a request.
    pub depth_limit: usize,
    /// Longest message of a Stdio server, in bytes.
    pub line_limit: usize,
    /// How long a client may take to send the head of a request, and then its body.
    pub receive_timeout: Duration,
    /// How long a request waits for an instance that is starting.
    pub start_timeout: Duration,
    /// How long it waits at most, when its client was told that the server is being started.
    pub longest_start: Duration,
    /// After this long, a client hears that the server is being started.
    pub start_notice: Duration,
    /// How long a server may take to begin its answer to a call.
    pub call_timeout: Duration,
    /// How long a server may take to list what it has, when the gateway asks: for a toolbox, which
    /// then lists the others without it, and for arguments that are repeated in headers.
    pub list_timeout: Duration,
    /// How long a Stdio server may be silent about `server/discover` before it gets `initialize`
    /// as well.
    pub discover_timeout: Duration,
    /// After this long without a request, a session's own process ends.
    pub idle_timeout: Duration,
    /// Most sessions with own processes for one server.
    pub max_sessions: usize,
    /// How long requests may go on when the gateway stops.
    pub drain_timeout: Duration,
}

impl Config {
    /// The defaults, with a key, for those who may.
    pub fn new(key: [u8; 32], access: Access) -> Self {
        Self {
            access,
            tls: None,
            hosts: Vec::new(),
            origins: Vec::new(),
            key,
            namespace: None,
            bridged: false,
            name: "local".into(),
            audit: None,
            traces: None,
            body_limit: 4 * 1024 * 1024,
            depth_limit: 128,
            line_limit: 16 * 1024 * 1024,
            receive_timeout: Duration::from_secs(30),
            start_timeout: Duration::from_secs(30),
            longest_start: Duration::from_secs(180),
            start_notice: Duration::from_secs(2),
            call_timeout: Duration::from_secs(300),
            list_timeout: Duration::from_secs(5),
            discover_timeout: Duration::from_secs(2),
            idle_timeout: Duration::from_secs(1800),
            max_sessions: 32,
            drain_timeout: Duration::from_secs(10),
        }
    }
}
