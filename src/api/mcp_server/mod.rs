//! `McpServer`: one MCP server, declared.

mod credentials;
mod decommission;
mod pieces;
mod revision;
mod status;

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

pub use credentials::*;
pub use decommission::*;
pub use pieces::*;
pub use revision::{RunSpec, revision_of};
pub use status::*;

/// An MCP server that Perch runs, or reaches, and serves through its gateway.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "perch.dev",
    version = "v1alpha1",
    kind = "McpServer",
    plural = "mcpservers",
    singular = "mcpserver",
    shortname = "mcps",
    category = "perch",
    namespaced,
    derive = "PartialEq",
    status = "McpServerStatus",
    validation = Rule::new("!has(self.metadata.name) || self.metadata.name.size() <= 52")
        .message("metadata.name may have at most 52 characters, because names of revisions and label values are made from it"),
    validation = Rule::new("!has(self.spec) || !has(self.spec.decommission) || !has(self.spec.decommission.replacement) || !has(self.metadata.name) || self.spec.decommission.replacement != self.metadata.name")
        .message("a server cannot replace itself: name another one in spec.decommission.replacement, or leave it out"),
    doc = "McpServer is an MCP server that Perch runs, or reaches, and serves through its gateway.",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Ready", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].status"#),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Transport", type_ = "string", json_path = ".spec.transport.type"),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.serverInfo.version"),
    printcolumn(name = "Tools", type_ = "integer", json_path = ".status.tools"),
    printcolumn(name = "Decommission", type_ = "string", json_path = ".status.decommission.phase", priority = 1),
    printcolumn(name = "URL", type_ = "string", json_path = ".status.url", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(
    validation = Rule::new("[has(self.image), has(self.__package__), has(self.remote)].filter(x, x).size() <= 1")
        .message("set only one of image, package and remote"),
    validation = Rule::new("has(self.image) || has(self.__package__) || has(self.remote) || has(self.command)")
        .message("nothing to run: set one of image, package or remote, or give a command to run as a local process"),
    validation = Rule::new("!(has(self.remote) && has(self.command))")
        .message("a remote server has no command: remove command, or use image or package"),
    validation = Rule::new("!(has(self.remote) && self.transport.type == 'Stdio')")
        .message("a remote server is reached over HTTP: set transport.type to StreamableHttp"),
    validation = Rule::new("self.transport.type != 'Stdio' || !has(self.transport.port)")
        .message("transport.port is for StreamableHttp: a Stdio server has no port"),
    validation = Rule::new("!(has(self.remote) && has(self.network.egress) && self.network.egress.size() > 0)")
        .message("Perch does not start a remote server and cannot limit what it reaches: remove network.egress"),
    validation = Rule::new("!(has(self.remote) && has(self.credentials) && self.credentials.size() > 0)")
        .message("Perch does not start a remote server and cannot give it credentials: remove credentials")
)]
#[serde(rename_all = "camelCase")]
pub struct McpServerSpec {
    /// Container image to run. Exactly one of image, package and remote, or command alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub image: Option<String>,

    /// Published package to run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub package: Option<Package>,

    /// Server that already runs elsewhere; Perch only serves it through the gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<Remote>,

    /// Program to start. With image, it replaces the image's entrypoint, as in a pod. Alone, it
    /// runs as a process on the machine of `perch up`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub command: Option<Vec<String>>,

    /// Arguments of the program.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,

    /// How the server speaks MCP.
    #[serde(default)]
    pub transport: Transport,

    /// How many instances run.
    #[serde(default = "one")]
    #[schemars(range(min = 0, max = 1000))]
    pub replicas: i32,

    /// Environment variables.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub env: Vec<EnvVar>,

    /// Sources of environment variables: every key of a Secret or ConfigMap.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub env_from: Vec<EnvFrom>,

    /// Values that the server needs and that nobody else may see.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub credentials: Vec<Credential>,

    /// Files and folders that the server sees.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub volumes: Vec<Volume>,

    /// CPU and memory of one instance.
    #[serde(default)]
    pub resources: Resources,

    /// Privileges of the server's process. The defaults take all of them away.
    #[serde(default)]
    pub security: Security,

    /// What the server may reach.
    #[serde(default)]
    pub network: Network,

    /// How readiness is checked: an MCP handshake and `tools/list` through the gateway.
    #[serde(default)]
    pub probe: Probe,

    /// Which tools clients see and may call.
    #[serde(default)]
    pub tools: ToolFilter,

    /// What the gateway does for the server, beside passing requests on.
    #[serde(default)]
    pub gateway: GatewayOptions,

    /// Who answers for the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub governance: Option<Governance>,

    /// Stops all instances and keeps the declaration.
    #[serde(default)]
    pub suspend: bool,

    /// The end of the server by stages: people are told, fewer are served, it is archived and
    /// stopped, and at last removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decommission: Option<Decommission>,

    /// On Kubernetes: lets a HorizontalPodAutoscaler choose the number of instances; `replicas` is
    /// then without effect. With `perch up`, `minReplicas` instances run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autoscaling: Option<Autoscaling>,

    /// On Kubernetes: laid over the pod template that Perch makes, as a strategic merge: lists of
    /// named things merge by name. The container of the server is named `server`. `perch up`
    /// ignores it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_template: Option<PodTemplateOverlay>,

    /// How many previous revisions are kept.
    #[serde(default = "five")]
    #[schemars(range(min = 0, max = 100))]
    pub revision_history_limit: i32,
}

impl McpServerSpec {
    /// How many instances are declared where nothing scales by itself: `replicas`, or the fewest
    /// of `autoscaling`.
    pub fn wanted_replicas(&self) -> i32 {
        self.autoscaling.as_ref().map_or(self.replicas, |a| a.min_replicas)
    }
}

fn one() -> i32 {
    1
}

fn five() -> i32 {
    5
}
