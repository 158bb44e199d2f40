//! The parts of an `McpServer` spec.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::api::quantity::{Duration, Quantity};

/// A package of a public registry.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Package {
    /// Where the package is published.
    pub registry: PackageRegistry,
    /// Name of the package, for example `@modelcontextprotocol/server-everything`.
    #[schemars(
        length(min = 1, max = 214),
        regex(pattern = r"^(@[a-z0-9~-][a-z0-9._~-]*/)?[A-Za-z0-9~-][A-Za-z0-9._~-]*$")
    )]
    pub name: String,
    /// Exact version: what runs must not depend on the day it starts.
    #[schemars(length(min = 1, max = 128), regex(pattern = r"^[0-9A-Za-z][0-9A-Za-z.+!_-]*$"))]
    pub version: String,
}

/// Where packages are published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum PackageRegistry {
    /// npm, run as `npx` does.
    Npm,
    /// The Python package index, run as `uvx` does.
    PyPI,
}

/// A server that runs elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Remote {
    /// URL of its MCP endpoint.
    #[schemars(regex(pattern = r"^https?://[^\s/?#]+([/?][^\s#]*)?$"))]
    pub url: String,
}

/// How a server speaks MCP.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Transport {
    /// Standard input and output, or HTTP.
    #[serde(rename = "type", default)]
    pub type_: TransportType,
    /// Port that an HTTP server listens on. The server finds it in the environment variable
    /// `PORT`. Without it, a container gets 3000 and a local process a free port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<i32>,
    /// Path of the MCP endpoint of an HTTP server.
    #[serde(default = "default_path")]
    #[schemars(regex(pattern = r"^/[^\s?#]*$"))]
    pub path: String,
    /// Who shares a process of a Stdio server.
    #[serde(default)]
    pub sessions: StdioSessions,
}

impl Default for Transport {
    fn default() -> Self {
        Self { type_: TransportType::default(), port: None, path: default_path(), sessions: StdioSessions::default() }
    }
}

fn default_path() -> String {
    "/mcp".into()
}

/// The wire that a server speaks MCP on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum TransportType {
    /// JSON-RPC lines on standard input and output.
    #[default]
    Stdio,
    /// MCP Streamable HTTP.
    StreamableHttp,
}

/// Who shares a process of a Stdio server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum StdioSessions {
    /// All clients talk to one process for each replica. The server cannot ask a client back
    /// (sampling, elicitation, roots), because it could not tell which.
    #[default]
    Shared,
    /// Each client session has a process of its own, ended with the session.
    PerSession,
}

/// An environment variable.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = Rule::new("!(has(self.value) && has(self.valueFrom))").message("set value or valueFrom, not both"))]
#[serde(rename_all = "camelCase")]
pub struct EnvVar {
    /// Name of the variable.
    #[schemars(length(min = 1), regex(pattern = r"^[A-Za-z_][A-Za-z0-9_.-]*$"))]
    pub name: String,
    /// Its value, in plain sight. Use valueFrom for anything secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Where the value comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_from: Option<EnvValueFrom>,
}

/// Where the value of an environment variable comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = Rule::new("has(self.secretKeyRef) != has(self.configMapKeyRef)").message("set exactly one of secretKeyRef and configMapKeyRef"))]
#[serde(rename_all = "camelCase")]
pub struct EnvValueFrom {
    /// A key of a Secret in the server's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_key_ref: Option<KeyRef>,
    /// A key of a ConfigMap in the server's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map_key_ref: Option<KeyRef>,
}

/// A key of a Secret or ConfigMap.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KeyRef {
    /// Name of the Secret or ConfigMap.
    #[schemars(length(min = 1))]
    pub name: String,
    /// The key whose value is used.
    #[schemars(length(min = 1))]
    pub key: String,
    /// Start without the variable when the object or the key is absent.
    #[serde(default)]
    pub optional: bool,
}

/// All keys of a Secret or ConfigMap as environment variables.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = Rule::new("has(self.secretRef) != has(self.configMapRef)").message("set exactly one of secretRef and configMapRef"))]
#[serde(rename_all = "camelCase")]
pub struct EnvFrom {
    /// Put before each key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// A Secret in the server's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<ObjectRef>,
    /// A ConfigMap in the server's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map_ref: Option<ObjectRef>,
}

/// An object in the server's namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ObjectRef {
    /// Name of the object.
    #[schemars(length(min = 1))]
    pub name: String,
    /// Start without it when it is absent.
    #[serde(default)]
    pub optional: bool,
}

/// Files that an instance sees at a path.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = Rule::new("[has(self.persistentVolumeClaim), has(self.hostPath), has(self.emptyDir), has(self.configMap), has(self.secret)].filter(x, x).size() == 1")
    .message("set exactly one of persistentVolumeClaim, hostPath, emptyDir, configMap and secret"))]
#[serde(rename_all = "camelCase")]
pub struct Volume {
    /// Name of the volume within this server.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// Absolute path inside the instance.
    #[schemars(regex(pattern = r"^/[^:]*$"))]
    pub mount_path: String,
    /// Mount without write permission. Secrets and ConfigMaps always are.
    #[serde(default)]
    pub read_only: bool,
    /// Storage that outlives the server. With `perch up` it is a Docker volume of that name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim: Option<PersistentVolumeClaimVolume>,
    /// A path of the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_path: Option<HostPathVolume>,
    /// Scratch space in memory, gone with the instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub empty_dir: Option<EmptyDirVolume>,
    /// Keys of a ConfigMap as files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map: Option<ConfigMapVolume>,
    /// Keys of a Secret as files, readable by the server's user alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<SecretVolume>,
}

/// Storage by claim.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PersistentVolumeClaimVolume {
    /// Name of the claim.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub claim_name: String,
}

/// A path of the machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HostPathVolume {
    /// Absolute path on the machine.
    #[schemars(regex(pattern = r"^/[^:]*$"))]
    pub path: String,
}

/// Scratch space.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EmptyDirVolume {
    /// Upper bound of its size. It counts against the memory limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_limit: Option<Quantity>,
}

/// A `ConfigMap` as files.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConfigMapVolume {
    /// Name of the ConfigMap.
    #[schemars(length(min = 1))]
    pub name: String,
}

/// A `Secret` as files.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretVolume {
    /// Name of the Secret.
    #[schemars(length(min = 1))]
    pub secret_name: String,
}

/// CPU and memory of one instance.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// What the scheduler sets aside.
    #[serde(default = "default_requests")]
    pub requests: ResourceList,
    /// What the instance can never exceed.
    #[serde(default = "default_limits")]
    pub limits: ResourceList,
}

impl Default for Resources {
    fn default() -> Self {
        Self { requests: default_requests(), limits: default_limits() }
    }
}

fn default_requests() -> ResourceList {
    ResourceList { cpu: Some(Quantity("100m".into())), memory: Some(Quantity("128Mi".into())) }
}

fn default_limits() -> ResourceList {
    ResourceList { cpu: Some(Quantity("500m".into())), memory: Some(Quantity("256Mi".into())) }
}

/// Amounts of CPU and memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResourceList {
    /// CPUs, for example `500m` or `1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Quantity>,
    /// Bytes, for example `256Mi`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Quantity>,
}

/// Privileges of the server's process.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Security {
    /// Numeric user that runs the server. Root (0) is refused.
    #[serde(default = "default_user")]
    #[schemars(range(min = 1, max = 2_147_483_647))]
    pub run_as_user: i64,
    /// The image's files cannot be changed; `/tmp` stays writable, in memory.
    #[serde(default = "yes")]
    pub read_only_root_filesystem: bool,
    /// Linux capabilities given back after all were dropped, for example `NET_BIND_SERVICE`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub add_capabilities: Vec<String>,
    /// System call filter.
    #[serde(default)]
    pub seccomp_profile: SeccompProfile,
}

impl Default for Security {
    fn default() -> Self {
        Self {
            run_as_user: default_user(),
            read_only_root_filesystem: true,
            add_capabilities: Vec::new(),
            seccomp_profile: SeccompProfile::default(),
        }
    }
}

fn default_user() -> i64 {
    10001
}

fn yes() -> bool {
    true
}

/// System call filter of a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum SeccompProfile {
    /// The default filter of the container runtime.
    #[default]
    RuntimeDefault,
    /// No filter.
    Unconfined,
}

/// What the server may reach.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = Rule::new("self.tier != 'Secure' || !has(self.egress) || self.egress.size() == 0")
    .message("network tier Secure reaches nothing: remove egress, or use tier Internal"))]
#[serde(rename_all = "camelCase")]
pub struct Network {
    /// How far the server's network reaches.
    #[serde(default)]
    pub tier: NetworkTier,
    /// The only places that the server may reach. Without any, a Public server reaches everything
    /// and an Internal one nothing. Names are reached through an HTTP proxy, which the server finds
    /// in HTTPS_PROXY and HTTP_PROXY.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub egress: Vec<EgressRule>,
}

/// A place that a server may reach.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = Rule::new("has(self.host) != has(self.cidr)").message("set exactly one of host and cidr"))]
#[serde(rename_all = "camelCase")]
pub struct EgressRule {
    /// A name, such as `api.github.com`, or every name below one, such as `*.example.com`. It leads
    /// to no address of the inside unless a `cidr` names that too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 253),
        regex(
            pattern = r"^(\*\.([a-z0-9_]([-a-z0-9_]*[a-z0-9_])?\.)+)?([a-z0-9_]([-a-z0-9_]*[a-z0-9_])?\.)*[a-z0-9_]([-a-z0-9_]*[a-z0-9_])?$"
        )
    )]
    pub host: Option<String>,
    /// A block of addresses, such as `10.1.0.0/16`. Private addresses and others of the inside are
    /// named only by a block of theirs: `0.0.0.0/0` does not mean them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), regex(pattern = r"^[0-9a-fA-F:.]+/[0-9]{1,3}$"))]
    pub cidr: Option<String>,
    /// TCP ports.
    #[serde(default = "https")]
    #[schemars(length(min = 1, max = 16), inner(range(min = 1, max = 65535)))]
    pub ports: Vec<i32>,
}

fn https() -> Vec<i32> {
    vec![443]
}

/// How far a server's network reaches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum NetworkTier {
    /// The gateway reaches the server, and the server reaches the outside.
    Public,
    /// The gateway reaches the server; the server reaches nothing.
    #[default]
    Internal,
    /// No network at all: for Stdio servers.
    Secure,
}

/// Bounds of a HorizontalPodAutoscaler.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = Rule::new("self.minReplicas <= self.maxReplicas").message("minReplicas is more than maxReplicas: lower one or raise the other"))]
#[serde(rename_all = "camelCase")]
pub struct Autoscaling {
    /// Fewest instances.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 1000))]
    pub min_replicas: i32,
    /// Most instances.
    #[schemars(range(min = 1, max = 1000))]
    pub max_replicas: i32,
    /// CPU use, in percent of the request, that the autoscaler keeps to on average.
    #[serde(default = "eighty")]
    #[schemars(range(min = 1, max = 100))]
    pub target_cpu_utilization_percentage: i32,
}

fn one() -> i32 {
    1
}

fn eighty() -> i32 {
    80
}

/// Part of a pod template: `metadata` and `spec` as in a Deployment's `spec.template`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
pub struct PodTemplateOverlay {
    /// The fields that are set.
    #[serde(flatten)]
    #[schemars(skip)]
    pub fields: std::collections::BTreeMap<String, serde_json::Value>,
}

/// How readiness is checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Probe {
    /// Time from start to the first check.
    #[serde(default = "no_time")]
    pub initial_delay: Duration,
    /// Time between checks once the server is ready.
    #[serde(default = "ten_seconds")]
    pub period: Duration,
    /// Longest time that a check may take.
    #[serde(default = "five_seconds")]
    pub timeout: Duration,
    /// Failed checks in a row before a ready server counts as not ready.
    #[serde(default = "three")]
    #[schemars(range(min = 1, max = 100))]
    pub failure_threshold: i32,
}

impl Default for Probe {
    fn default() -> Self {
        Self { initial_delay: no_time(), period: ten_seconds(), timeout: five_seconds(), failure_threshold: three() }
    }
}

fn no_time() -> Duration {
    Duration::from_secs(0)
}

fn ten_seconds() -> Duration {
    Duration::from_secs(10)
}

fn five_seconds() -> Duration {
    Duration::from_secs(5)
}

fn three() -> i32 {
    3
}

/// Which tools clients see and may call. A hidden tool answers as an unknown one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ToolFilter {
    /// Names of the only tools to offer. Empty means all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<String>,
    /// Names of tools to hide, also when allowed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deny: Vec<String>,
}

impl ToolFilter {
    /// Whether a tool is offered.
    #[must_use]
    pub fn admits(&self, tool: &str) -> bool {
        (self.allow.is_empty() || self.allow.iter().any(|t| t == tool)) && !self.deny.iter().any(|t| t == tool)
    }

    /// Whether nothing is filtered.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.allow.is_empty() && self.deny.is_empty()
    }
}

/// What the gateway does for a server, beside passing requests on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GatewayOptions {
    /// Check the arguments of each call against the tool's inputSchema, and refuse what does not
    /// fit before the server sees it. A schema that does not compile or could take long to check
    /// refuses nobody; perch_gateway_unchecked_arguments_total counts such calls.
    #[serde(default)]
    pub validate_arguments: bool,
}

/// Who answers for the server. Perch keeps it with the object for people and reports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Governance {
    /// How much care the server needs.
    #[serde(default)]
    pub level: GovernanceLevel,
    /// Team or person that owns the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// What the server is able to do, in the owner's words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub capabilities: Vec<String>,
    /// What keeps that in bounds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub security_controls: Vec<String>,
}

/// How much care a server needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum GovernanceLevel {
    /// Reads public things.
    Low,
    /// Reads or writes things of the organisation.
    #[default]
    Medium,
    /// Touches production or personal data.
    High,
}
