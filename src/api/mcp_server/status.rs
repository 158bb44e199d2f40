//! What Perch reports about an `McpServer`: only what was applied or observed.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    decommission::DecommissionStatus,
    pieces::{StdioSessions, Transport, TransportType},
};

/// Observed state of an `McpServer`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct McpServerStatus {
    /// The `metadata.generation` that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Summary in one word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// Where AI clients reach the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// What runs the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<RuntimeKind>,
    /// Instances that exist.
    #[serde(default)]
    pub replicas: i32,
    /// Instances that answer.
    #[serde(default)]
    pub ready_replicas: i32,
    /// Label selector of the instances, for the scale subresource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// Name of the revision that runs; with a release, the stable one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_revision: Option<String>,
    /// Name of the revision that the spec declares, once it is in the history. It differs from
    /// currentRevision during a change, and while a release holds it back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub declared_revision: Option<String>,
    /// How the revision that runs is reached. While a release holds it, the spec may say otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transport: Option<RunningTransport>,
    /// What runs beside, while a release brings a new revision to the users.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidate: Option<CandidateStatus>,
    /// Digest of the image that runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_id: Option<String>,
    /// What the server says it is, from the MCP handshake.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_info: Option<ServerInfo>,
    /// MCP protocol versions that the server was seen to speak.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub protocol_versions: Vec<String>,
    /// Number of tools that the server lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tools: Option<i32>,
    /// SHA-256 of the tools' definitions, sorted by name: `sha256:…`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tools_digest: Option<String>,
    /// Starts after the first, over all instances.
    #[serde(default)]
    pub restarts: i32,
    /// The last end of an instance that was not asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<LastFailure>,
    /// How much the server is used, where that is counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<UsageStatus>,
    /// How far the end of the server is, while `spec.decommission` declares one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decommission: Option<DecommissionStatus>,
    /// Policy rules that the server breaks, the gravest first; at most 32 are told.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub violations: Vec<PolicyViolation>,
    /// Details, one for each aspect.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

impl McpServerStatus {
    /// The condition that says in one line how the server is: `Ready`, or `Suspended` of one that is
    /// stopped on purpose. None before Perch looked at the server.
    #[must_use]
    pub fn headline(&self) -> Option<&Condition> {
        let of = |type_: ConditionType| self.conditions.iter().find(|c| c.type_ == type_.as_str());
        of(ConditionType::Ready).or_else(|| of(ConditionType::Suspended))
    }
}

/// How a revision is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RunningTransport {
    /// The wire.
    #[serde(rename = "type")]
    pub type_: TransportType,
    /// Who shares a process of a Stdio server.
    #[serde(default)]
    pub sessions: StdioSessions,
}

impl From<&Transport> for RunningTransport {
    fn from(transport: &Transport) -> Self {
        Self { type_: transport.type_, sessions: transport.sessions }
    }
}

/// Summary of a server's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Phase {
    /// Accepted, nothing started yet.
    Pending,
    /// Image, process or handshake under way.
    Starting,
    /// All instances answer through the gateway.
    Ready,
    /// Some instances answer, or the last change has not arrived.
    Degraded,
    /// It cannot run until somebody changes something.
    Failed,
    /// Stopped because the spec says so.
    Suspended,
    /// Being removed.
    Terminating,
}

/// What runs a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum RuntimeKind {
    /// Containers of a Docker engine.
    Docker,
    /// Processes of this machine.
    Process,
    /// Pods of a cluster.
    Kubernetes,
    /// Somebody else, elsewhere.
    Remote,
}

/// `serverInfo` of the MCP handshake.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServerInfo {
    /// The server's own name.
    pub name: String,
    /// The server's own version.
    pub version: String,
}

/// An end of an instance that was not asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LastFailure {
    /// `OOMKilled`, `Error`, `CannotStart`…
    pub reason: String,
    /// What was seen, with the last lines of standard error.
    pub message: String,
    /// Exit code, when the process ended by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// When it was seen.
    pub at: Time,
}

/// How much a server is used: requests that ask it to do something, which are calls of tools, prompts,
/// resources and completions. Who only looks, as readiness checks do, does not use it. Written at most
/// once an hour.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UsageStatus {
    /// Since when it is counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// The hour of the last request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_request: Option<Time>,
    /// Requests of the last 7 days, today (UTC) included.
    #[serde(default, rename = "requestsIn7Days")]
    pub requests_in_7_days: i64,
    /// About how many users there were in the last 30 days, today included. 205 stands for that many
    /// or more.
    #[serde(default, rename = "usersIn30Days")]
    pub users_in_30_days: i32,
    /// The days of the last 30 that had requests, the last one first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub days: Vec<UsageDay>,
    /// What of the counters of each gateway is in the days.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub counters: Vec<UsageCounter>,
}

/// How much a server was used on one day.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UsageDay {
    /// The day in UTC, as in 2026-01-31.
    pub date: String,
    /// Requests.
    pub requests: i64,
    /// Sketch of the users, one bit for each 52nd of them: no names are kept.
    #[serde(default)]
    pub users: i64,
}

/// What one gateway has counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UsageCounter {
    /// The gateway and its life.
    pub gateway: String,
    /// Requests in that life.
    pub requests: i64,
}

/// A policy rule that is broken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyViolation {
    /// Name of the rule.
    pub rule: String,
    /// How grave it is.
    pub severity: ViolationSeverity,
    /// What the level asks to be done about it.
    pub action: PolicyAction,
    /// What is wrong.
    pub message: String,
    /// Where: the path of a field, or a line.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub field: String,
    /// What to do.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub remedy: String,
}

/// How grave a broken rule is, the gravest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum ViolationSeverity {
    /// It gives the machine away.
    Critical,
    /// It gives secrets or neighbours away.
    High,
    /// It makes harm worse.
    Medium,
    /// It makes harm hard to follow.
    Low,
}

/// What a level asks to be done about a broken rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum PolicyAction {
    /// It is not admitted where the mode is deny, and is not compliant.
    Deny,
    /// It is told.
    Warn,
}

/// The new revision that runs beside the stable one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CandidateStatus {
    /// Name of the revision.
    pub revision: String,
    /// Summary in one word. Failed: it crashes again and again, or can never start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// Instances that exist.
    #[serde(default)]
    pub replicas: i32,
    /// Instances that answer.
    #[serde(default)]
    pub ready_replicas: i32,
    /// Starts after the first, over all instances.
    #[serde(default)]
    pub restarts: i32,
    /// Why it is in this phase, in one word.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Why it is in this phase, in one sentence.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// Types of conditions of an `McpServer`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ConditionType {
    /// The declared instances answer an MCP handshake and `tools/list` through the gateway. Absent
    /// while the server is stopped on purpose: it is as declared, and kstatus reads a Ready that is
    /// False as not there yet.
    Ready,
    /// Only present when true: nothing runs, because the spec says so.
    Suspended,
    /// A change is under way.
    Progressing,
    /// It serves, but less than declared.
    Degraded,
    /// No policy rule is broken that the server's level insists on.
    Compliant,
    /// The network tier is in force where the server runs.
    NetworkEnforced,
    /// Only present with `spec.credentials`: each of them can be had and is good.
    CredentialsReady,
    /// Only present when true: not everybody gets what the spec declares, because a
    /// `CanaryRelease` brings it by stages or has taken it back.
    RevisionHeld,
    /// Only present when true: `spec.decommission` brings the server to its end by stages.
    Decommissioning,
    /// Only present when true: nothing will improve without a change by a person (kstatus).
    Stalled,
}

impl ConditionType {
    /// The type as it stands in `status.conditions`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "Ready",
            Self::Suspended => "Suspended",
            Self::Progressing => "Progressing",
            Self::Degraded => "Degraded",
            Self::Compliant => "Compliant",
            Self::NetworkEnforced => "NetworkEnforced",
            Self::CredentialsReady => "CredentialsReady",
            Self::RevisionHeld => "RevisionHeld",
            Self::Decommissioning => "Decommissioning",
            Self::Stalled => "Stalled",
        }
    }
}
