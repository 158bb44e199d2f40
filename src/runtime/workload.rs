//! What should run, checked and with every default in place. Made by a controller from a spec.

use std::{fmt, path::PathBuf, time::Duration};

use secrecy::{ExposeSecret, SecretSlice};

use crate::{
    api::mcp_server::{
        Autoscaling, Credential, EgressRule, EnvFrom, EnvVar, NetworkTier, Package, PodTemplateOverlay, Resources,
        SeccompProfile, StdioSessions, Volume,
    },
    names::{Revision, ServerKey},
};

/// What should run for one server.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    /// The server.
    pub server: ServerKey,
    /// `metadata.uid` of the `McpServer`, so that a namesake made later is another server.
    pub uid: String,
    /// Names what runs: instances with another revision are replaced.
    pub revision: Revision,
    /// What is started.
    pub program: Program,
    /// How it speaks MCP.
    pub wire: Wire,
    /// How many instances.
    pub replicas: u32,
    /// Environment, later entries win.
    pub env: Vec<EnvEntry>,
    /// Credentials that it gets as files.
    pub credentials: Vec<CredentialFile>,
    /// Files and folders.
    pub volumes: Vec<Mount>,
    /// Upper bounds of one instance.
    pub limits: Limits,
    /// Privileges.
    pub security: Privileges,
    /// How far its network reaches.
    pub network: NetworkTier,
    /// Time between asking an instance to stop and killing it.
    pub stop_grace: Duration,
    /// The same as the user declared it, for a backend that follows references itself.
    pub declared: Declared,
}

/// Parts of a spec that a backend hands on as they are (see
/// [`Backend::follows_references`](super::Backend::follows_references)).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Declared {
    /// Environment, with references.
    pub env: Vec<EnvVar>,
    /// Whole objects as environment.
    pub env_from: Vec<EnvFrom>,
    /// Credentials, with references.
    pub credentials: Vec<Credential>,
    /// Files and folders, with references.
    pub volumes: Vec<Volume>,
    /// Requests and limits.
    pub resources: Resources,
    /// Bounds of the number of instances, where something scales by itself.
    pub autoscaling: Option<Autoscaling>,
    /// Laid over the pod template.
    pub pod_template: Option<PodTemplateOverlay>,
    /// The only places that may be reached; the tier alone decides when there are none.
    pub egress: Vec<EgressRule>,
}

/// What is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Program {
    /// A container image; an empty command keeps the image's entrypoint.
    Image {
        /// Reference as the user wrote it.
        image: String,
        /// Replaces the entrypoint when not empty.
        command: Vec<String>,
        /// Arguments.
        args: Vec<String>,
    },
    /// A package of a public registry.
    Package {
        /// The package.
        package: Package,
        /// Program of the package to start; empty means the one that it offers.
        command: Vec<String>,
        /// Arguments.
        args: Vec<String>,
    },
    /// A program of this machine.
    Command {
        /// The program and its first arguments; never empty.
        command: Vec<String>,
        /// More arguments.
        args: Vec<String>,
    },
}

/// How an instance speaks MCP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wire {
    /// JSON-RPC lines on standard streams.
    Stdio(StdioSessions),
    /// Streamable HTTP.
    Http {
        /// Port that the instance must listen on. `None` leaves the choice to the backend; either
        /// way the instance finds it in `PORT`.
        port: Option<u16>,
        /// Path of the endpoint, with its leading slash.
        path: String,
    },
}

/// One environment variable.
#[derive(Clone, Debug, PartialEq)]
pub struct EnvEntry {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: EnvValue,
}

/// Value of an environment variable.
#[derive(Clone)]
pub enum EnvValue {
    /// In plain sight in the spec.
    Plain(String),
    /// From a Secret or ConfigMap: shown nowhere.
    Secret(SecretText),
}

impl PartialEq for EnvValue {
    fn eq(&self, other: &Self) -> bool {
        matches!(self, Self::Plain(_)) == matches!(other, Self::Plain(_)) && reveal(self) == reveal(other)
    }
}

impl fmt::Debug for EnvValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(value) => write!(f, "{value:?}"),
            Self::Secret(_) => f.write_str("<redacted>"),
        }
    }
}

/// Where a container or a pod has its credentials.
pub const CREDENTIALS: &str = "/run/perch/credentials";

/// A credential that an instance gets as a file, which is replaced as a whole when the value
/// changes. That replaces no instance.
#[derive(Clone)]
pub struct CredentialFile {
    /// Name of the file.
    pub name: String,
    /// The environment variable that holds its path.
    pub variable: String,
    /// What is in it.
    pub value: SecretSlice<u8>,
}

impl PartialEq for CredentialFile {
    fn eq(&self, other: &Self) -> bool {
        let text = |c: &Self| (c.name.clone(), c.variable.clone());
        text(self) == text(other) && self.value.expose_secret() == other.value.expose_secret()
    }
}

impl fmt::Debug for CredentialFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CredentialFile({}, {})", self.name, self.variable)
    }
}

/// A secret text, redacted in debug output and wiped from memory when dropped.
pub type SecretText = secrecy::SecretString;

/// Files and folders that an instance sees at a path.
#[derive(Clone, Debug, PartialEq)]
pub struct Mount {
    /// Name of the volume within the server.
    pub name: String,
    /// Absolute path inside the instance.
    pub path: PathBuf,
    /// Without write permission.
    pub read_only: bool,
    /// What is there.
    pub source: MountSource,
}

/// What is at a mount.
#[derive(Clone)]
pub enum MountSource {
    /// Storage that outlives the server, by claim name within the namespace.
    Persistent {
        /// Name of the claim.
        claim: String,
    },
    /// A path of the machine.
    Host(PathBuf),
    /// Scratch space in memory.
    Scratch {
        /// Upper bound in bytes.
        size_limit: Option<u64>,
    },
    /// Files with these names and contents, readable by the server's user alone (0400).
    Files(Vec<(String, SecretSlice<u8>)>),
}

impl PartialEq for MountSource {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Persistent { claim: a }, Self::Persistent { claim: b }) => a == b,
            (Self::Host(a), Self::Host(b)) => a == b,
            (Self::Scratch { size_limit: a }, Self::Scratch { size_limit: b }) => a == b,
            (Self::Files(a), Self::Files(b)) => {
                let same_content = |a: &SecretSlice<u8>, b: &SecretSlice<u8>| a.expose_secret() == b.expose_secret();
                a.len() == b.len() && a.iter().zip(b).all(|((n, x), (m, y))| n == m && same_content(x, y))
            }
            _ => false,
        }
    }
}

impl fmt::Debug for MountSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Persistent { claim } => write!(f, "Persistent({claim})"),
            Self::Host(path) => write!(f, "Host({})", path.display()),
            Self::Scratch { size_limit } => write!(f, "Scratch({size_limit:?})"),
            Self::Files(files) => {
                write!(f, "Files({:?})", files.iter().map(|(name, _)| name).collect::<Vec<_>>())
            }
        }
    }
}

/// Upper bounds of one instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Thousandths of a CPU.
    pub cpu_millis: u64,
    /// Bytes of memory, swap included.
    pub memory_bytes: u64,
    /// Processes and threads.
    pub pids: u32,
}

/// Privileges of an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Privileges {
    /// Numeric user and group.
    pub user: u32,
    /// The root file system cannot be changed; `/tmp` is writable in memory.
    pub read_only_root: bool,
    /// Capabilities given back after all were dropped.
    pub add_capabilities: Vec<String>,
    /// System call filter.
    pub seccomp: SeccompProfile,
}

/// The value of an environment entry, for the code that hands it to the instance.
#[must_use]
pub fn reveal(value: &EnvValue) -> &str {
    match value {
        EnvValue::Plain(value) => value,
        EnvValue::Secret(value) => value.expose_secret(),
    }
}
