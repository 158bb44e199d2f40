//! The parts of the status that move during a release: stage, routing, evidence.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Phase;

/// Users fall into this many cells by hash. Evidence is kept for each cell, so that what one
/// user does can be left out.
pub const CELLS: usize = 16;

/// Ratios of the two rates that the comparison with the stable revision keeps a score for.
pub const RATIOS: usize = 4;

/// Rates above the limit that the evidence keeps a score for.
pub const RATES: usize = 8;

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
    pub evidence: Evidence,
    /// The last counters of each source, to count what is new.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub baselines: Vec<Baseline>,
}

/// Counts since the start of a stage, and the scores made from them, window by window.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Evidence {
    /// The candidate's counts, in cells of users.
    pub candidate: Counts,
    /// The stable revision's bad events.
    pub stable_bad: i64,
    /// The stable revision's events.
    pub stable_total: i64,
    /// One bit for each 52nd of the users that was seen.
    pub users: i64,
    /// Time that was watched, in seconds.
    pub watched_seconds: i64,
    /// Moments so far at which the candidate may have become bad.
    pub moments: i64,
    /// Scores of the rates above the limit: of all calls, then without each cell. Logarithms.
    pub scores: Vec<[f64; RATES]>,
    /// Scores of the ratios to the stable revision. Logarithms.
    pub ratios: [f64; RATIOS],
    /// Score of twice the rate of the stable revision since the start of the stage.
    pub twice: f64,
    /// What the counts were at some moments, the first ones first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub marks: Vec<Mark>,
}

impl Default for Evidence {
    fn default() -> Self {
        Self {
            candidate: Counts::default(),
            stable_bad: 0,
            stable_total: 0,
            users: 0,
            watched_seconds: 0,
            moments: 0,
            scores: vec![[NO_EVIDENCE; RATES]; CELLS + 1],
            ratios: [NO_EVIDENCE; RATIOS],
            twice: 0.0,
            marks: Vec::new(),
        }
    }
}

/// The logarithm of next to nothing.
pub const NO_EVIDENCE: f64 = -100_000.0;

/// What the counts were at some moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Mark {
    /// Watched time then, in seconds.
    pub watched_seconds: i64,
    /// The candidate's bad events.
    pub bad: i64,
    /// The candidate's events.
    pub total: i64,
    /// The stable revision's bad events.
    pub stable_bad: i64,
    /// The stable revision's events.
    pub stable_total: i64,
    /// Score of twice the rate of the stable revision.
    pub twice: f64,
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
