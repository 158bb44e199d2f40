//! The parts of the status that move during a release: stage, routing, evidence.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Phase;

/// Users fall into this many cells by hash. Evidence is kept for each cell, so that what one
/// user does can be left out.
pub const CELLS: usize = 8;

/// Alternatives that the comparison with the stable revision keeps a score for.
pub const RATIOS: usize = 4;

/// The stage under way.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StageProgress {
    /// Its place in the spec, from 0.
    pub index: i32,
    /// Its name.
    pub name: String,
    /// Counts from 1; more when its evidence was started anew.
    pub attempt: i32,
    /// When it was entered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entered_at: Option<Time>,
    /// Time that counts, in seconds: all gateways on the route, metrics there, nothing on hold.
    pub active_seconds: i64,
    /// The step of the schedule, from 0.
    #[serde(default)]
    pub step: i32,
    /// Time that counts in this step, in seconds.
    #[serde(default)]
    pub step_seconds: i64,
    /// The wished share of users.
    pub percentage: i32,
    /// How often a person gave the stage more time.
    #[serde(default)]
    pub extensions: i32,
}

/// Who gets which revision.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Routing {
    /// Counts up at each change.
    #[serde(default)]
    pub desired_epoch: i64,
    /// The epoch that all gateways are known to run, or a later one.
    #[serde(default)]
    pub acked_epoch: i64,
    /// Whether a gateway has run a route of this release that has users, so that calls count.
    #[serde(default)]
    pub opened: bool,
    /// Share of users who get the candidate, beside those who are named.
    #[serde(default)]
    pub percentage: i32,
    /// Users who get the candidate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub users: Vec<String>,
    /// Groups whose members get the candidate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
}

/// What a release waits for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Hold {
    /// Why, in one word.
    pub reason: HoldReason,
    /// Why, and what to do, in one sentence.
    pub message: String,
    /// Since when.
    pub since: Time,
    /// The phase that it goes on with.
    pub from: Phase,
}

/// Why a release waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum HoldReason {
    /// `spec.paused` is true.
    Spec,
    /// A person paused it.
    Command,
    /// The candidate and the stable revision fail alike.
    SharedDegradation,
    /// The stage had its longest time, and the evidence does not suffice.
    InsufficientData,
    /// Metrics are unavailable.
    MetricsOutage,
    /// The candidate's tools would break callers.
    ToolContractBroken,
    /// A person must review what models read of the candidate's tools.
    ToolReview,
    /// The stage passed, and a person must say yes.
    Approval,
}

impl HoldReason {
    /// The reason as it stands in conditions.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Spec => "PausedBySpec",
            Self::Command => "PausedByCommand",
            Self::SharedDegradation => "SharedDegradation",
            Self::InsufficientData => "InsufficientData",
            Self::MetricsOutage => "MetricsOutage",
            Self::ToolContractBroken => "ToolContractBroken",
            Self::ToolReview => "ToolReview",
            Self::Approval => "ApprovalNeeded",
        }
    }
}

/// What the evidence says about a criterion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Verdict {
    /// It was shown to hold.
    Pass,
    /// Neither was shown yet.
    #[default]
    Undecided,
    /// There is nothing to judge by.
    NoData,
    /// The metric cannot be read.
    Unknown,
    /// It was shown to be broken, but the stable revision fails alike.
    SharedDegradation,
    /// It was shown to be broken.
    Breach,
}

/// The evidence about one criterion in this stage.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct CriterionStatus {
    /// Name of the metric.
    pub metric: String,
    /// The threshold, as in the spec.
    pub threshold: String,
    /// What the evidence says.
    pub verdict: Verdict,
    /// Why, in one sentence, and how far from a decision.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Bad events of the candidate in this stage.
    #[serde(default)]
    pub bad: i64,
    /// All events of the candidate in this stage.
    #[serde(default)]
    pub total: i64,
    /// Bad events of the stable revision in the same time.
    #[serde(default)]
    pub stable_bad: i64,
    /// All events of the stable revision in the same time.
    #[serde(default)]
    pub stable_total: i64,
    /// At least so many users of the candidate were seen; 0 when the metric knows no users.
    #[serde(default)]
    pub users: i32,
    /// Evidence that the limit is broken: a natural logarithm. At breachAt it suffices.
    #[serde(default)]
    pub breach: f64,
    /// What `breach` must reach.
    #[serde(default)]
    pub breach_at: f64,
    /// Evidence that the limit holds: a natural logarithm. At passAt it suffices.
    #[serde(default)]
    pub pass: f64,
    /// What `pass` must reach.
    #[serde(default)]
    pub pass_at: f64,
    /// End of the last window that was counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_window_end: Option<Time>,
    /// What the numbers above are made from.
    #[serde(default)]
    pub evidence: Evidence,
    /// The last counters of each source, to count what is new.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub baselines: Vec<Baseline>,
}

/// Counts since the start of a stage, and what they were at the start of each block.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Evidence {
    /// The candidate's counts, in cells of users.
    pub candidate: Counts,
    /// The stable revision's bad events.
    pub stable_bad: i64,
    /// The stable revision's events.
    pub stable_total: i64,
    /// Scores of the comparison with the stable revision: natural logarithms.
    pub ratios: [f64; RATIOS],
    /// One bit for each 52nd of the users that was seen.
    pub users: i64,
    /// Time that was watched, in seconds: it parts the blocks.
    pub watched_seconds: i64,
    /// The blocks that are still followed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blocks: Vec<Block>,
}

/// What the counts were when a block started.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Block {
    /// Which block, from 1. The stage itself is block 0.
    pub number: i64,
    /// The candidate's counts.
    pub candidate: Counts,
    /// The stable revision's bad events.
    pub stable_bad: i64,
    /// The stable revision's events.
    pub stable_total: i64,
    /// Scores of the comparison.
    pub ratios: [f64; RATIOS],
}

/// Bad events and all events, in cells of users.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Counts {
    /// Bad events.
    pub bad: [i64; CELLS],
    /// All events.
    pub total: [i64; CELLS],
}

/// The last counters of a source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Baseline {
    /// Who counts.
    pub source: String,
    /// What it counts for.
    pub revision: String,
    /// What it had counted.
    pub counts: Counts,
}
