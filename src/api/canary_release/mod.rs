//! `CanaryRelease`: how new revisions of a server reach its users.
//!
//! Only users write `spec`. Perch writes `status` and nothing else, so a GitOps tool and Perch
//! never fight over a field.

mod analysis;
mod command;
mod progress;
mod stage;
mod status;
mod threshold;
mod traffic;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use analysis::*;
pub use command::*;
pub use progress::*;
pub use stage::*;
pub use status::*;
pub use threshold::*;
pub use traffic::*;

use super::quantity::Duration;

/// How new revisions of one server are released.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "perch.dev",
    version = "v1alpha1",
    kind = "CanaryRelease",
    plural = "canaryreleases",
    singular = "canaryrelease",
    shortname = "canary",
    category = "perch",
    namespaced,
    derive = "PartialEq",
    status = "CanaryReleaseStatus",
    doc = "CanaryRelease says how new revisions of an McpServer reach its users: by stages, judged by evidence, taken back when it is bad.",
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Stage", type_ = "string", json_path = ".status.stage.name"),
    printcolumn(name = "Percent", type_ = "integer", json_path = ".status.routing.percentage"),
    printcolumn(name = "Verdict", type_ = "string", json_path = ".status.verdict"),
    printcolumn(name = "Stable", type_ = "string", json_path = ".status.stableRevision"),
    printcolumn(name = "Candidate", type_ = "string", json_path = ".status.candidateRevision"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(
    validation = Rule::new("[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14].all(i, i + 1 >= size(self.stages) || (has(self.stages[i].schedule) ? self.stages[i].schedule[size(self.stages[i].schedule) - 1].percentage : has(self.stages[i].percentage) ? self.stages[i].percentage : 0) <= (has(self.stages[i + 1].schedule) ? self.stages[i + 1].schedule[0].percentage : has(self.stages[i + 1].percentage) ? self.stages[i + 1].percentage : 100))")
        .message("the stages are out of order: a stage starts at a lower percentage than the one before it ends with; put them in rising order"),
    validation = Rule::new("self.stages.all(s, !has(s.successCriteria) || s.successCriteria.all(c, c.metric in ['errorRate', 'latencyP50', 'latencyP90', 'latencyP95', 'latencyP99', 'availability', 'traceCompletion', 'userSatisfaction', 'vulnerabilities'] || (has(self.metrics) && self.metrics.exists(m, m.name == c.metric))))")
        .message("a success criterion names an unknown metric: use errorRate, latencyP50, latencyP90, latencyP95, latencyP99, availability, traceCompletion, userSatisfaction or vulnerabilities, or define it in spec.metrics")
)]
#[serde(rename_all = "camelCase")]
pub struct CanaryReleaseSpec {
    /// The server whose revisions are released.
    pub target_ref: TargetRef,

    /// Holds the release where it is. Bad candidates are still taken back.
    #[serde(default)]
    pub paused: bool,

    /// The steps from the first users to all of them.
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub stages: Vec<Stage>,

    /// Metrics of your own, for success criteria.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub metrics: Vec<Metric>,

    /// How sure a decision must be, and what happens when none can be made.
    #[serde(default)]
    pub analysis: Analysis,

    /// What happens when the candidate's tools differ from those of the stable revision.
    #[serde(default)]
    pub tool_contract: ToolContract,

    /// What else divides the traffic, for people who do not route by Perch's gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic: Option<Traffic>,

    /// Longest time that calls in flight get to finish when a revision is left.
    #[serde(default = "one_minute")]
    pub drain_timeout: Duration,

    /// Longest time that the candidate may take to become ready, or be without ready instances.
    #[serde(default = "ten_minutes")]
    pub progress_deadline: Duration,

    /// Times at which no release starts or advances. Rollbacks go on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub freeze_windows: Vec<FreezeWindow>,

    /// Who is told.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub alerts: Vec<Alert>,
}

impl CanaryReleaseSpec {
    /// Name of the HTTPRoute whose weights follow the release.
    #[must_use]
    pub fn http_route(&self) -> Option<&str> {
        Some(&self.traffic.as_ref()?.http_route.as_ref()?.name)
    }
}

/// An `McpServer` in the namespace of the release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TargetRef {
    /// Name of the `McpServer`.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

pub(super) fn one_minute() -> Duration {
    Duration::from_secs(60)
}

pub(super) fn ten_minutes() -> Duration {
    Duration::from_secs(600)
}

#[cfg(test)]
mod tests;
