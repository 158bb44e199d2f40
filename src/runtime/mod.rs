//! What runs servers: one trait, [`Backend`], and its implementations.
//!
//! A backend is told what should run ([`Workload`]) and reports what it sees ([`Observed`]). It
//! owns restarts: an instance that ends by itself is started again by the backend with back-off,
//! as a kubelet does, so a controller never loops over a crash. It reports each change on
//! [`Backend::changes`], so a controller never polls.
//!
//! May import: `egress`, `api`, `names`, `error`, `telemetry`.

pub mod backoff;
pub mod dispatch;
pub mod docker;
pub mod egress_proxy;
pub mod kubernetes;
pub mod package_script;
mod private_files;
pub mod process;
pub mod workload;

use std::{fmt, pin::Pin};

use async_trait::async_trait;
use futures::stream::BoxStream;
use jiff::Timestamp;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::broadcast,
};

pub use workload::Workload;

use crate::{
    api::mcp_server::RuntimeKind,
    error::Category,
    names::{Revision, ServerKey},
};

/// Runs servers on one kind of machinery.
///
/// Guarantees that every implementation gives, and that `tests/backend_contract`
/// checks:
/// * [`apply`](Backend::apply) is idempotent and returns as soon as the wish is recorded and the
///   cheap part done; slow work (pull, build, start) goes on behind it and shows in
///   [`observe`](Backend::observe).
/// * after [`remove`](Backend::remove) returned, nothing of the server runs and nothing but its
///   persistent volumes is left.
/// * [`observe`](Backend::observe) reports what is there, never what was wished.
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// What this backend is.
    fn kind(&self) -> RuntimeKind;

    /// What runs a certain server, for a backend that is made of several.
    fn kind_for(&self, _server: &ServerKey) -> RuntimeKind {
        self.kind()
    }

    /// Whether instances get Secrets and ConfigMaps without the controller reading them: then the
    /// controller needs no right to, and [`Workload::env`] and [`Workload::volumes`] are empty.
    fn follows_references(&self) -> bool {
        false
    }

    /// Whether everything of a server goes away with its object, by owner references. Else the
    /// controller holds the object back until [`remove`](Backend::remove) is done.
    fn collects_garbage(&self) -> bool {
        false
    }

    /// Makes the workload run: creates what is missing, replaces what differs, removes instances
    /// of older revisions, repairs drift. `replicas == 0` stops all instances.
    ///
    /// # Errors
    /// When the workload can never run here ([`RuntimeError::Unsupported`],
    /// [`RuntimeError::Invalid`]) or the machinery does not answer
    /// ([`RuntimeError::Unavailable`]).
    async fn apply(&self, workload: &Workload) -> Result<(), RuntimeError>;

    /// What is there for a server now. An unknown server has no instances.
    ///
    /// # Errors
    /// When the machinery does not answer.
    async fn observe(&self, server: &ServerKey) -> Result<Observed, RuntimeError>;

    /// Stops and deletes everything of a server but its persistent volumes. Absent is fine.
    ///
    /// # Errors
    /// When the machinery does not answer; nothing is forgotten then, call again.
    async fn remove(&self, server: &ServerKey) -> Result<(), RuntimeError>;

    /// Every server of which something is left on this machine, for orphan collection.
    ///
    /// # Errors
    /// When the machinery does not answer.
    async fn servers(&self) -> Result<Vec<ServerKey>, RuntimeError>;

    /// Where the server's running instances are reached. Cheap: no I/O.
    fn endpoints(&self, server: &ServerKey) -> Vec<Endpoint>;

    /// Takes the standard streams of a running instance with a Stdio transport. One holder at a
    /// time; dropping both halves gives them back.
    ///
    /// # Errors
    /// When the instance does not run, has no Stdio transport, or its streams are taken.
    async fn attach(&self, instance: &InstanceId) -> Result<StdioStreams, RuntimeError>;

    /// Starts one more instance of a server's current workload for a single client session, for
    /// `transport.sessions: PerSession`. It is never restarted and does not count as a replica.
    ///
    /// # Errors
    /// When the server is unknown or the instance cannot start.
    async fn start_session(&self, server: &ServerKey) -> Result<InstanceId, RuntimeError>;

    /// Ends an instance made by [`start_session`](Backend::start_session). Absent is fine.
    ///
    /// # Errors
    /// When the machinery does not answer.
    async fn end_session(&self, instance: &InstanceId) -> Result<(), RuntimeError>;

    /// The server's own log lines (for a Stdio server: standard error only), oldest first.
    ///
    /// # Errors
    /// When the machinery does not answer.
    async fn logs(&self, server: &ServerKey, options: LogOptions) -> Result<BoxStream<'static, LogLine>, RuntimeError>;

    /// CPU and memory of each running instance.
    ///
    /// # Errors
    /// When the machinery does not answer.
    async fn usage(&self, server: &ServerKey) -> Result<Vec<Usage>, RuntimeError>;

    /// A server's key whenever something about its instances may have changed. A lagging receiver
    /// must treat the lag as "everything may have changed".
    fn changes(&self) -> broadcast::Receiver<ServerKey>;

    /// Stops all instances and keeps what is needed to start them again: for a clean end of
    /// Perch. Later calls but `remove` and `observe` may fail.
    ///
    /// # Errors
    /// When the machinery does not answer.
    async fn shutdown(&self) -> Result<(), RuntimeError>;
}

/// One instance of a server: a container or a process, unique on this machine and never reused.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InstanceId(pub String);

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is there for a server.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    /// Long work before any instance exists.
    pub preparing: Option<Preparing>,
    /// The replicas, in the order of their ordinals. Session instances are not among them.
    pub instances: Vec<Instance>,
    /// Digest of the image that runs, `sha256:…`.
    pub image_id: Option<String>,
    /// Whether the network tier is in force, with a sentence for people.
    pub network: Option<NetworkReport>,
}

/// Long work before an instance exists: an image pull or build, a package installation.
#[derive(Clone, Debug, PartialEq)]
pub struct Preparing {
    /// `Pulling`, `Building`, `Installing`; or a failure: `ImagePullFailed`, `ImageBuildFailed`,
    /// `InstallFailed`, `CannotStart`.
    pub reason: &'static str,
    /// What is going on, or what failed and what to do.
    pub message: String,
    /// How far it is, 0 to 100, where that is known.
    pub percent: Option<u8>,
    /// Set when the last try failed: when the next one begins.
    pub retry_at: Option<Timestamp>,
}

/// One replica of a server.
#[derive(Clone, Debug, PartialEq)]
pub struct Instance {
    /// Its identity.
    pub id: InstanceId,
    /// The revision that it runs.
    pub revision: Revision,
    /// What it does now.
    pub state: InstanceState,
    /// Starts after the first.
    pub restarts: u32,
    /// Its last end that was not asked for.
    pub last_exit: Option<Exit>,
}

/// What an instance does now.
#[derive(Clone, Debug, PartialEq)]
pub enum InstanceState {
    /// It runs since then.
    Running {
        /// When it started.
        since: Timestamp,
    },
    /// It ended and waits for its next start.
    Waiting {
        /// When it starts again.
        until: Timestamp,
    },
    /// It is created, or ended and starts again at once.
    Starting,
}

/// An end of an instance.
#[derive(Clone, Debug, PartialEq)]
pub struct Exit {
    /// `OOMKilled`, `Error`, `Completed`, `Killed`.
    pub reason: &'static str,
    /// Exit code, when it ended by itself.
    pub code: Option<i32>,
    /// When.
    pub at: Timestamp,
    /// Its last lines of standard error, at most 1 KiB.
    pub stderr_tail: String,
}

/// Whether a network tier is in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkReport {
    /// True only when this backend set it up and a try from inside confirmed it; none when it cannot
    /// tell.
    pub enforced: Option<bool>,
    /// What is in force, or why not.
    pub message: String,
}

/// Where an instance is reached.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// The instance.
    pub instance: InstanceId,
    /// The revision that it runs.
    pub revision: Revision,
    /// How.
    pub address: Address,
}

/// How an instance is reached.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// MCP Streamable HTTP at this URL.
    Http(url::Url),
    /// Standard streams, through [`Backend::attach`].
    Stdio,
}

/// Standard streams of an instance.
pub struct StdioStreams {
    /// What the instance reads.
    pub stdin: Pin<Box<dyn AsyncWrite + Send>>,
    /// What the instance writes: newline-delimited JSON-RPC. Ends when the instance does.
    pub stdout: Pin<Box<dyn AsyncRead + Send>>,
}

impl fmt::Debug for StdioStreams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StdioStreams")
    }
}

/// Which log lines.
#[derive(Clone, Debug, Default)]
pub struct LogOptions {
    /// Only the last so many lines.
    pub tail: Option<usize>,
    /// Only lines written at or after this moment.
    pub since: Option<Timestamp>,
    /// Go on with new lines as they come.
    pub follow: bool,
}

/// A line that an instance wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// The instance.
    pub instance: InstanceId,
    /// When, where the machinery keeps it.
    pub at: Option<Timestamp>,
    /// The line without its end.
    pub text: String,
}

/// What an instance uses.
#[derive(Clone, Debug, PartialEq)]
pub struct Usage {
    /// The instance.
    pub instance: InstanceId,
    /// CPUs in use, 1.0 for one full CPU, over the last second or so.
    pub cpus: f64,
    /// Resident memory in bytes.
    pub memory_bytes: u64,
}

/// Why a backend could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// This backend can never run such a workload.
    #[error("{0}")]
    Unsupported(String),
    /// The workload contradicts itself or names something impossible.
    #[error("{0}")]
    Invalid(String),
    /// The instance or server is not there.
    #[error("{0} is not running")]
    NotRunning(String),
    /// The streams of the instance are in other hands.
    #[error("the standard streams of {0} are already attached")]
    AlreadyAttached(InstanceId),
    /// The machinery does not answer, or refuses; later it may not.
    #[error("{what}: {source}")]
    Unavailable {
        /// What was tried, as a fragment: `list containers`.
        what: String,
        /// What came back.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl RuntimeError {
    /// Wraps an error of the machinery.
    pub fn unavailable(what: impl Into<String>, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Unavailable { what: what.into(), source: source.into() }
    }
}

impl Category for RuntimeError {
    fn category(&self) -> &'static str {
        match self {
            Self::Unsupported(_) => "UnsupportedByRuntime",
            Self::Invalid(_) => "InvalidWorkload",
            Self::NotRunning(_) => "NotRunning",
            Self::AlreadyAttached(_) => "AlreadyAttached",
            Self::Unavailable { .. } => "RuntimeUnavailable",
        }
    }
}
