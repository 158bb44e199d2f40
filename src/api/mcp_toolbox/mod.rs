//! `McpToolbox`: several servers behind one MCP endpoint.
//!
//! A toolbox runs nothing and gives nobody more than they have: who may not use a server does not
//! find it in a toolbox either.

mod status;

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use status::*;

use super::mcp_server::ToolFilter;

/// Several servers behind one MCP endpoint.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "perch.dev",
    version = "v1alpha1",
    kind = "McpToolbox",
    plural = "mcptoolboxes",
    singular = "mcptoolbox",
    shortname = "mcpt",
    category = "perch",
    namespaced,
    derive = "PartialEq",
    status = "McpToolboxStatus",
    doc = "McpToolbox puts several McpServers of its namespace behind one MCP endpoint.",
    printcolumn(name = "Ready", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].status"#),
    printcolumn(name = "Servers", type_ = "string", json_path = ".status.serversReady"),
    printcolumn(name = "Tools", type_ = "integer", json_path = ".status.tools"),
    printcolumn(name = "URL", type_ = "string", json_path = ".status.url", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(
    validation = Rule::new("has(self.selector) || (has(self.servers) && size(self.servers) > 0)")
        .message("the toolbox is empty: list servers, or give a selector for labels of servers")
)]
#[serde(rename_all = "camelCase")]
pub struct McpToolboxSpec {
    /// Servers of the toolbox, the first one first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub servers: Vec<ToolboxServer>,

    /// Labels of more servers of the namespace, which come after those of `servers` in the order of
    /// their names. An empty selector takes all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,

    /// What becomes of names that several servers have.
    #[serde(default)]
    pub conflict_policy: ConflictPolicy,

    /// Who may use the toolbox, of those whom the gateway lets in. Without it, whoever may use one
    /// of its servers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access: Option<ToolboxAccess>,
}

/// A server of a toolbox.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ToolboxServer {
    /// Name of an `McpServer` in the namespace of the toolbox.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,

    /// Put before the names of the server's tools and prompts, as it is. Defaults to the server's
    /// name and an underscore where `conflictPolicy` is Prefix, and else to nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), regex(pattern = r"^[A-Za-z0-9_./-]*$"))]
    pub prefix: Option<String>,

    /// Which of the server's tools are in the toolbox, and under which names.
    #[serde(default, skip_serializing_if = "ToolSelection::is_plain")]
    pub tools: ToolSelection,
}

/// Which tools of a server are in a toolbox. Names are those that the server itself gives them. A
/// tool that is not there answers as an unknown one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("!has(self.rename) || self.rename.all(r, self.rename.exists_one(o, o.to == r.to))")
        .message("two tools of one server would get the same name: give each entry of rename another `to`")
)]
#[serde(rename_all = "camelCase")]
pub struct ToolSelection {
    /// Names of the only tools to offer. Empty means all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub allow: Vec<String>,

    /// Names of tools to leave out, also when allowed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub deny: Vec<String>,

    /// Other names for tools, without the prefix.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub rename: Vec<ToolRename>,
}

impl ToolSelection {
    /// Whether all tools are in, under their own names.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.allow.is_empty() && self.deny.is_empty() && self.rename.is_empty()
    }

    /// Which tools are in.
    #[must_use]
    pub fn filter(&self) -> ToolFilter {
        ToolFilter { allow: self.allow.clone(), deny: self.deny.clone() }
    }

    /// New names by old ones.
    #[must_use]
    pub fn renames(&self) -> BTreeMap<String, String> {
        self.rename.iter().map(|r| (r.name.clone(), r.to.clone())).collect()
    }
}

/// Another name for a tool.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ToolRename {
    /// The name that the server gives it.
    #[schemars(length(min = 1, max = 128))]
    pub name: String,
    /// Its whole name in the toolbox.
    #[schemars(length(min = 1, max = 128), regex(pattern = r"^[A-Za-z0-9_./-]+$"))]
    pub to: String,
}

/// What becomes of names that several servers have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum ConflictPolicy {
    /// Names do not meet: tools and prompts get the server's name before their own, unless the
    /// server has a prefix, and URIs of resources begin with the server's name and a plus sign. A
    /// name that is there twice all the same is offered by none.
    #[default]
    Prefix,
    /// The first server that has a name keeps it.
    First,
    /// A name that is there twice is offered by none.
    Reject,
}

/// Who may use a toolbox, of those whom the gateway lets in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("(has(self.users) && size(self.users) > 0) || (has(self.groups) && size(self.groups) > 0)")
        .message("nobody may use the toolbox: name users or groups, or leave access out")
)]
#[serde(rename_all = "camelCase")]
pub struct ToolboxAccess {
    /// Users; `*` for everybody with a name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1000))]
    pub users: Vec<String>,

    /// Groups. `system:authenticated` is everybody with a name, `system:unauthenticated` everybody
    /// without.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100))]
    pub groups: Vec<String>,
}

#[cfg(test)]
mod tests;
