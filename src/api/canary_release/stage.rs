//! The stages of a release.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Threshold;
use crate::api::quantity::Duration;

/// One step of a release: who is in it, for how long, and what must hold.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("!(has(self.percentage) && has(self.schedule))")
        .message("set percentage or schedule, not both"),
    validation = Rule::new("has(self.percentage) || has(self.schedule) || has(self.users) || has(self.groups)")
        .message("nobody is in this stage: name users or groups, or set percentage or schedule"),
    validation = Rule::new("has(self.duration) || has(self.schedule)")
        .message("how long does this stage last? Set duration, for example 48h"),
    validation = Rule::new("!has(self.schedule) || duration(self.schedule[0].after) == duration('0s')")
        .message("the first step of a schedule is what the stage starts with: give it after: 0h"),
    validation = Rule::new("!has(self.schedule) || [0,1,2,3,4,5,6,7,8,9,10,11,12,13,14].all(i, i + 1 >= size(self.schedule) || (duration(self.schedule[i].after) < duration(self.schedule[i + 1].after) && self.schedule[i].percentage < self.schedule[i + 1].percentage))")
        .message("the schedule does not rise: each step must come later than the one before, with a higher percentage"),
    validation = Rule::new("!has(self.schedule) || !has(self.duration) || duration(self.schedule[size(self.schedule) - 1].after) <= duration(self.duration)")
        .message("the schedule's last step comes after the end of the stage: raise duration, or leave it out"),
    validation = Rule::new("!has(self.maxDuration) || duration(self.maxDuration) >= duration(has(self.duration) ? self.duration : self.schedule[size(self.schedule) - 1].after)")
        .message("maxDuration is shorter than the stage: raise it, or leave it out for twice the duration")
)]
#[serde(rename_all = "camelCase")]
pub struct Stage {
    /// Name of the stage.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,

    /// Users who get the candidate from this stage on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1000))]
    pub users: Option<Vec<String>>,

    /// Groups whose members get the candidate from this stage on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 100))]
    pub groups: Option<Vec<String>>,

    /// Share of all other users who get the candidate. Who is in stays in while it rises.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub percentage: Option<i32>,

    /// Shares that rise with time, instead of percentage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16))]
    pub schedule: Option<Vec<ScheduleStep>>,

    /// Shortest time in this stage. Time in pause, and time without metrics, does not count. With
    /// a schedule, its last step by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration: Option<Duration>,

    /// Longest time in this stage when the evidence is not sufficient after duration; twice the
    /// duration by default. Then `analysis.onInsufficientData` says what happens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_duration: Option<Duration>,

    /// What must hold. Left out, the criteria of the stage before hold here too; an empty list
    /// means none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["metric".into()]))]
    pub success_criteria: Option<Vec<Criterion>>,

    /// Who lets the release go on after this stage.
    #[serde(default)]
    pub approval: Approval,
}

/// A share that is reached some time after the start of a stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScheduleStep {
    /// Active time since the start of the stage.
    pub after: Duration,
    /// Share of users.
    #[schemars(range(min = 1, max = 100))]
    pub percentage: i32,
}

/// One thing that must hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("self.threshold.matches('^([<>]=? *[0-9]+([.][0-9]+)? *(%|us|ms|s)|[0-9]+ +(critical|high|medium|low))$')")
        .message("a threshold is a comparison, a number and a unit: \"< 0.1%\" or \"> 99%\" for a share of calls, \"< 200ms\" for a latency, \"0 critical\" for findings"),
    validation = Rule::new("!self.metric.startsWith('latency') || self.threshold.matches('^<.*s$')")
        .message("a latency needs an upper limit with a unit of time, for example \"< 200ms\""),
    validation = Rule::new("self.metric.startsWith('latency') || self.metric == 'vulnerabilities' || self.threshold.matches('^.*%$')")
        .message("this metric is a share of calls: give its threshold in percent, for example \"< 0.1%\""),
    validation = Rule::new("self.metric != 'errorRate' || self.threshold.matches('^<.*$')")
        .message("errorRate needs an upper limit, for example \"< 0.1%\""),
    validation = Rule::new("!(self.metric in ['availability', 'traceCompletion', 'userSatisfaction']) || self.threshold.matches('^>.*$')")
        .message("this metric needs a lower limit, for example \"> 99%\""),
    validation = Rule::new("self.metric != 'vulnerabilities' || self.threshold.matches('^[0-9]+ +[a-z]+$')")
        .message("vulnerabilities needs a number and a severity, for example \"0 critical\""),
    validation = Rule::new("!self.threshold.matches('^[<>]=? *(0+([.]0+)?|0*100([.]0+)?) *%$')")
        .message("no number of calls can show 0% or 100%: leave some room, for example \"< 0.01%\" or \"> 99.99%\"")
)]
#[serde(rename_all = "camelCase")]
pub struct Criterion {
    /// Name of the metric: errorRate, latencyP50, latencyP90, latencyP95, latencyP99,
    /// availability, traceCompletion, userSatisfaction, vulnerabilities, or one of spec.metrics.
    #[schemars(length(min = 1, max = 63))]
    pub metric: String,
    /// What must hold: `< 0.1%`, `< 200ms`, `> 99%`, `0 critical`.
    pub threshold: Threshold,
}

/// Who lets a release go on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Approval {
    /// The evidence.
    #[default]
    Automatic,
    /// A person, after the evidence, with `perch canary resume`.
    Manual,
}
