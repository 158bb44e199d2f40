//! What Perch reports about an `McpToolbox`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Observed state of an `McpToolbox`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct McpToolboxStatus {
    /// The `metadata.generation` that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Where AI clients reach the toolbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Servers that answer, of those that should: `2/3`. Servers that are suspended do not count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub servers_ready: Option<String>,
    /// Number of tools that the toolbox lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tools: Option<i32>,
    /// The servers of the toolbox.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub servers: Vec<MemberStatus>,
    /// Details, one for each aspect.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// How a server of a toolbox is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MemberStatus {
    /// Name of the `McpServer`.
    pub name: String,
    /// Whether it answers.
    pub ready: bool,
    /// How it is, in one word.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// The same in one sentence, of a server that does not answer.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// Types of conditions of an `McpToolbox`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ConditionType {
    /// The toolbox answers through the gateway, with all of its servers.
    Ready,
    /// It answers without some of its servers.
    Degraded,
    /// Only present when true: names that several servers have are not offered, or only by the
    /// first of them.
    Conflicting,
}

impl ConditionType {
    /// The type as it stands in `status.conditions`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "Ready",
            Self::Degraded => "Degraded",
            Self::Conflicting => "Conflicting",
        }
    }
}
