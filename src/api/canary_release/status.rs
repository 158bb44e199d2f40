//! What Perch reports about a `CanaryRelease`. It is also all that Perch remembers of it: a
//! controller that dies at any moment goes on from here.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{CommandResult, CriterionStatus, Hold, Routing, StageProgress, Verdict};

/// Observed state of a `CanaryRelease`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct CanaryReleaseStatus {
    /// The `metadata.generation` that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Where the release is.
    #[serde(default)]
    pub phase: Phase,
    /// The same in one sentence.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// The release under way, or the last one. Users are assigned anew for each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release_id: Option<String>,
    /// How many releases there were.
    #[serde(default)]
    pub releases: i64,
    /// The revision that everybody falls back to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stable_revision: Option<String>,
    /// The revision that is being released.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidate_revision: Option<String>,
    /// When the release started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// The stage under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<StageProgress>,
    /// Who gets which revision; the gateways obey it.
    #[serde(default)]
    pub routing: Routing,
    /// The HTTPRoute that was last seen to send requests to the candidate. Its weights are put back before it is
    /// forgotten.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_route: Option<String>,
    /// Worst verdict of all criteria.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
    /// The evidence, for each criterion.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["metric".into()]))]
    pub criteria: Vec<CriterionStatus>,
    /// What the release waits for, when it is paused or awaits approval.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold: Option<Hold>,
    /// How the tools of the candidate differ from those of the stable revision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_contract: Option<ToolContractStatus>,
    /// How the release ends, from the decision until the candidate is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ending: Option<Ending>,
    /// Time in the phase that was observed, in seconds.
    #[serde(default)]
    pub phase_seconds: i64,
    /// Time since the candidate was last seen ready, in seconds.
    #[serde(default)]
    pub unready_seconds: i64,
    /// Time since all metrics were last available, in seconds.
    #[serde(default)]
    pub outage_seconds: i64,
    /// Up to when time has been counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_tick: Option<Time>,
    /// The last command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_command: Option<CommandResult>,
    /// Ids of commands that were read; a repeat does nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub seen_commands: Vec<String>,
    /// Releases that ended, the last one first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<HistoryEntry>,
    /// Revisions that were taken back. They are not released again without a retry.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["revision".into()]))]
    pub failed_revisions: Vec<FailedRevision>,
    /// Details, one for each aspect.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// Where a release is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Phase {
    /// The server runs its stable revision, and there is no other.
    #[default]
    Idle,
    /// A new revision was seen.
    Pending,
    /// The candidate starts, without users.
    Deploying,
    /// A stage is under way.
    Progressing,
    /// It waits, for the reason in hold.
    Paused,
    /// It waits for a person's yes.
    AwaitingApproval,
    /// Everybody moves to the candidate.
    Promoting,
    /// The candidate has become the stable revision.
    Succeeded,
    /// Everybody moves back to the stable revision.
    RollingBack,
    /// Nobody new gets the candidate; calls in flight finish.
    Draining,
    /// The candidate was taken back.
    RolledBack,
    /// The server's revision changed again: users move to the stable revision before the next
    /// release starts.
    Superseded,
    /// The candidate failed before it had users.
    Failed,
}

impl Phase {
    /// Whether no release is under way.
    #[must_use]
    pub const fn is_at_rest(self) -> bool {
        matches!(self, Self::Idle | Self::Succeeded | Self::RolledBack | Self::Failed)
    }

    /// Whether the candidate is on its way back.
    #[must_use]
    pub const fn is_ending(self) -> bool {
        matches!(self, Self::RollingBack | Self::Draining | Self::Superseded)
    }

    /// The phase as it stands in `status.phase`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "Idle",
            Self::Pending => "Pending",
            Self::Deploying => "Deploying",
            Self::Progressing => "Progressing",
            Self::Paused => "Paused",
            Self::AwaitingApproval => "AwaitingApproval",
            Self::Promoting => "Promoting",
            Self::Succeeded => "Succeeded",
            Self::RollingBack => "RollingBack",
            Self::Draining => "Draining",
            Self::RolledBack => "RolledBack",
            Self::Superseded => "Superseded",
            Self::Failed => "Failed",
        }
    }
}

/// How a release ends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Ending {
    /// What becomes of it.
    pub outcome: Outcome,
    /// Why, in one word.
    pub reason: EndReason,
    /// Why, in one sentence.
    pub message: String,
    /// When it was decided.
    pub at: Time,
}

/// What became of a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Outcome {
    /// The candidate became the stable revision.
    Succeeded,
    /// The candidate was taken back from its users.
    RolledBack,
    /// The candidate failed before it had users.
    Failed,
    /// Another revision took its place.
    Superseded,
    /// The server went back to its stable revision.
    Withdrawn,
}

/// Why a release ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum EndReason {
    /// All stages passed.
    AllStagesPassed,
    /// A person promoted it.
    PromotedByCommand,
    /// A person aborted it.
    Aborted,
    /// The candidate crashes, or cannot start.
    CandidateUnhealthy,
    /// The candidate was not ready within the deadline.
    ProgressDeadlineExceeded,
    /// A criterion is broken.
    CriterionBreached,
    /// The evidence did not suffice, and the analysis says to roll back.
    InsufficientData,
    /// The server declares another revision.
    RevisionChanged,
}

impl EndReason {
    /// The reason as it stands in conditions and events.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AllStagesPassed => "AllStagesPassed",
            Self::PromotedByCommand => "PromotedByCommand",
            Self::Aborted => "Aborted",
            Self::CandidateUnhealthy => "CandidateUnhealthy",
            Self::ProgressDeadlineExceeded => "ProgressDeadlineExceeded",
            Self::CriterionBreached => "CriterionBreached",
            Self::InsufficientData => "InsufficientData",
            Self::RevisionChanged => "RevisionChanged",
        }
    }
}

/// A release that ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HistoryEntry {
    /// The release.
    pub release_id: String,
    /// The revision that was the stable one.
    pub stable_revision: String,
    /// The revision that was released.
    pub candidate_revision: String,
    /// What became of it.
    pub outcome: Outcome,
    /// Why, in one word.
    pub reason: EndReason,
    /// Why, in one sentence.
    pub message: String,
    /// The last stage that it reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<String>,
    /// The largest share of users who had it.
    #[serde(default)]
    pub percentage: i32,
    /// When it started.
    pub started_at: Time,
    /// When its end was decided.
    pub decided_at: Time,
    /// When nothing of it was left.
    pub ended_at: Time,
    /// Of a release that was taken back: the criteria that had not passed, as they were at the end.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub evidence: Vec<Finding>,
    /// Of a release that was taken back: how the candidate's tools differed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_changes: Vec<String>,
}

/// What the evidence said about a criterion when its release ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// Name of the metric.
    pub metric: String,
    /// The threshold, as in the spec.
    pub threshold: String,
    /// What the evidence says.
    pub verdict: Verdict,
    /// Why, in one sentence.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Bad events of the candidate.
    #[serde(default)]
    pub bad: i64,
    /// All events of the candidate.
    #[serde(default)]
    pub total: i64,
    /// Bad events of the stable revision in the same time.
    #[serde(default)]
    pub stable_bad: i64,
    /// All events of the stable revision in the same time.
    #[serde(default)]
    pub stable_total: i64,
    /// At least so many users were seen.
    #[serde(default)]
    pub users: i32,
}

impl From<&CriterionStatus> for Finding {
    fn from(criterion: &CriterionStatus) -> Self {
        Self {
            metric: criterion.metric.clone(),
            threshold: criterion.threshold.clone(),
            verdict: criterion.verdict,
            reason: criterion.reason.clone(),
            bad: criterion.bad,
            total: criterion.total,
            stable_bad: criterion.stable_bad,
            stable_total: criterion.stable_total,
            users: criterion.users,
        }
    }
}

/// A revision that was taken back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FailedRevision {
    /// The revision.
    pub revision: String,
    /// Why.
    pub message: String,
    /// When.
    pub at: Time,
}

/// How the tools of two revisions differ.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ToolContractStatus {
    /// Number of changes that may break callers.
    pub breaking: i32,
    /// Number of changes that a person should read.
    pub review: i32,
    /// The first changes, breaking ones first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<String>,
    /// Whether a person has accepted them for this release.
    #[serde(default)]
    pub accepted: bool,
}

/// Types of conditions of a `CanaryRelease`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ConditionType {
    /// The server's declared revision is the one that everybody gets.
    Ready,
    /// A release is under way and nothing holds it.
    Progressing,
    /// Something holds the release.
    Paused,
    /// No criterion is broken.
    AnalysisHealthy,
    /// All metrics can be read.
    MetricsAvailable,
    /// All gateways run the routing that is wished.
    TrafficVerified,
    /// Only present when the release names an HTTPRoute: its weights are those of the release.
    HttpRouteWeighted,
    /// Users move back to the stable revision.
    RollbackInProgress,
    /// The candidate of the last release is the stable revision.
    Promoted,
    /// Only present when true: nothing will improve without a change by a person (kstatus).
    Stalled,
}

impl ConditionType {
    /// The type as it stands in `status.conditions`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "Ready",
            Self::Progressing => "Progressing",
            Self::Paused => "Paused",
            Self::AnalysisHealthy => "AnalysisHealthy",
            Self::MetricsAvailable => "MetricsAvailable",
            Self::TrafficVerified => "TrafficVerified",
            Self::HttpRouteWeighted => "HttpRouteWeighted",
            Self::RollbackInProgress => "RollbackInProgress",
            Self::Promoted => "Promoted",
            Self::Stalled => "Stalled",
        }
    }
}
