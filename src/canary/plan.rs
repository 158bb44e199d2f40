//! A spec, parsed once into what cannot be wrong.

use super::statistics::{LimitTest, MOMENTS, size};
use crate::api::{
    canary_release::{
        Approval, CanaryReleaseSpec, Criterion, FreezeWindow, Limit, OnInsufficientData, OnMetricsOutage, PercentError,
        Severity, Stage, ThresholdError, ToolContract,
    },
    quantity::Duration,
};

/// Name of the criterion that is always there beside criteria of calls: calls that the server
/// refused as malformed, or for a tool that it does not know, compared with the stable revision.
pub const SCHEMA_ERRORS: &str = "schemaErrors";

/// How a release goes, if all is well.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Whether the user holds the release.
    pub paused: bool,
    /// The stages, at least one.
    pub stages: Vec<StagePlan>,
    /// Fewest users before a stage may pass.
    pub minimum_users: i32,
    /// What happens when a stage cannot be decided.
    pub on_insufficient_data: OnInsufficientData,
    /// What happens when metrics stay away.
    pub on_metrics_outage: OnMetricsOutage,
    /// How long they may, in seconds.
    pub metrics_timeout: i64,
    /// What happens when tools differ.
    pub tool_contract: ToolContract,
    /// Longest time to drain a revision, in seconds.
    pub drain_timeout: i64,
    /// Longest time for the candidate to become ready, in seconds.
    pub progress_deadline: i64,
    /// When nothing advances.
    pub freeze_windows: Vec<FreezeWindow>,
}

/// One stage.
#[derive(Clone, Debug, PartialEq)]
pub struct StagePlan {
    /// Its name.
    pub name: String,
    /// All users who were named so far.
    pub users: Vec<String>,
    /// All groups that were named so far.
    pub groups: Vec<String>,
    /// Shares, at least one; the first has offset 0.
    pub steps: Vec<Step>,
    /// Shortest active time, in seconds.
    pub duration: i64,
    /// Further active time before a stage without a decision counts as undecidable, in seconds.
    pub extension: i64,
    /// Who lets the release go on.
    pub approval: Approval,
    /// What must hold.
    pub criteria: Vec<CriterionPlan>,
    /// Watched time between two moments at which the candidate may become bad, in seconds.
    pub moment: i64,
}

/// A share that is reached after some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Active seconds since the start of the stage.
    pub offset: i64,
    /// Share of users in percent.
    pub percentage: i32,
}

impl StagePlan {
    /// Active seconds that a step lasts.
    #[must_use]
    pub fn dwell(&self, step: usize) -> i64 {
        let end = self.steps.get(step + 1).map_or(self.duration, |next| next.offset);
        end - self.steps.get(step).map_or(0, |step| step.offset)
    }
}

/// One thing that must hold.
#[derive(Clone, Debug, PartialEq)]
pub struct CriterionPlan {
    /// Name of the metric.
    pub metric: String,
    /// The threshold, as in the spec.
    pub threshold: String,
    /// What must be read for it.
    pub signal: Signal,
    /// How it is judged.
    pub rule: Rule,
}

/// What counts as bad for a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Failed calls: transport failures, 5xx, timeouts, JSON-RPC internal errors, `isError: true`.
    Errors,
    /// Calls that took longer than this, in microseconds. It must be an edge of the gateways'
    /// buckets, so that the number is exact.
    SlowerThan(u64),
    /// Calls that the server could not be reached for.
    Unavailable,
    /// Calls whose trace is not complete.
    IncompleteTraces,
    /// Answers of users who were not satisfied.
    Dissatisfied,
    /// Calls with invalid parameters, and calls of unknown tools.
    SchemaErrors,
    /// Findings of a scan.
    Vulnerabilities,
    /// Whatever a metric of the spec counts.
    Custom,
}

/// How a criterion is judged.
#[derive(Clone, Debug, PartialEq)]
pub enum Rule {
    /// A share of bad events against a limit.
    Limit(Box<LimitTest>),
    /// A share of bad events against that of the stable revision; it is broken at this log
    /// evidence.
    NoWorse(f64),
    /// A number of findings.
    Findings {
        /// The largest number.
        at_most: u32,
        /// Findings of this severity or a worse one count.
        severity: Severity,
    },
}

/// A spec that makes no sense. The schema finds most of it before.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// No stages.
    #[error("spec.stages is empty: name at least one stage")]
    NoStages,
    /// Two stages with one name.
    #[error("two stages are called {0:?}: give each its own name")]
    StageTwice(String),
    /// A stage that would take users away.
    #[error(
        "stage {name:?} starts with {from}%, less than the {reached}% that was reached before: put stages in rising order"
    )]
    OutOfOrder {
        /// The stage.
        name: String,
        /// What it starts with.
        from: i32,
        /// What was reached.
        reached: i32,
    },
    /// A schedule that does not rise.
    #[error("stage {0:?}: the schedule does not rise from 0h on: each step must come later, with a higher percentage")]
    Schedule(String),
    /// Nobody is in a stage.
    #[error("stage {0:?} has nobody in it: name users or groups, or set percentage or schedule")]
    Nobody(String),
    /// A percentage out of range.
    #[error("stage {0:?}: a percentage is between 1 and 100")]
    Percentage(String),
    /// A stage without an end.
    #[error("stage {0:?} has no duration: say how long it lasts, for example 48h")]
    NoDuration(String),
    /// A longest time shorter than the shortest.
    #[error("stage {0:?}: maxDuration is shorter than the stage: raise it, or leave it out")]
    MaxDuration(String),
    /// A metric twice in a stage.
    #[error("stage {stage:?} has two criteria for {metric}: keep the stricter one")]
    CriterionTwice {
        /// The stage.
        stage: String,
        /// The metric.
        metric: String,
    },
    /// A metric that does not exist.
    #[error("stage {stage:?}: there is no metric {metric:?}: define it in spec.metrics, or use one of Perch's own")]
    UnknownMetric {
        /// The stage.
        stage: String,
        /// The metric.
        metric: String,
    },
    /// A threshold that does not fit its metric.
    #[error("stage {stage:?}: {metric} cannot have the threshold {threshold:?}: write it like {example:?}")]
    WrongKind {
        /// The stage.
        stage: String,
        /// The metric.
        metric: String,
        /// What was written.
        threshold: String,
        /// What would fit.
        example: &'static str,
    },
    /// A threshold that cannot be read.
    #[error("stage {stage:?}: {source}")]
    Threshold {
        /// The stage.
        stage: String,
        /// What is wrong.
        source: ThresholdError,
    },
    /// A chance that cannot be kept.
    #[error("spec.analysis.{field}: {source}")]
    Chance {
        /// The field.
        field: &'static str,
        /// What is wrong.
        source: PercentError,
    },
}

impl Plan {
    /// Parses a spec.
    ///
    /// # Errors
    /// When it makes no sense, with what to do about it.
    pub fn new(spec: &CanaryReleaseSpec) -> Result<Self, PlanError> {
        let analysis = &spec.analysis;
        let chance = |field, percent: &crate::api::canary_release::Percent| {
            percent.share().map_err(|source| PlanError::Chance { field, source })
        };
        let beta = chance("falsePass", &analysis.false_pass)?;
        // The chance of a false rollback is shared by the stages, and in a stage by its criteria.
        let alpha = chance("falseRollback", &analysis.false_rollback)? / size(spec.stages.len().max(1));
        let mut stages: Vec<StagePlan> = Vec::with_capacity(spec.stages.len());
        let mut criteria: &[Criterion] = &[];
        for stage in &spec.stages {
            if stages.iter().any(|s| s.name == stage.name) {
                return Err(PlanError::StageTwice(stage.name.clone()));
            }
            criteria = stage.success_criteria.as_deref().unwrap_or(criteria);
            let criteria = parse_criteria(spec, stage, criteria, alpha, beta)?;
            stages.push(parse_stage(stage, stages.last(), criteria)?);
        }
        if stages.is_empty() {
            return Err(PlanError::NoStages);
        }
        Ok(Self {
            paused: spec.paused,
            stages,
            minimum_users: analysis.minimum_users,
            on_insufficient_data: analysis.on_insufficient_data,
            on_metrics_outage: analysis.on_metrics_outage,
            metrics_timeout: seconds(analysis.metrics_timeout),
            tool_contract: spec.tool_contract.clone(),
            drain_timeout: seconds(spec.drain_timeout),
            progress_deadline: seconds(spec.progress_deadline),
            freeze_windows: spec.freeze_windows.clone(),
        })
    }
}

/// Whole seconds, rounded up: a wait is never shorter than it says.
fn seconds(duration: Duration) -> i64 {
    let std = duration.to_std();
    let whole = std.as_secs() + u64::from(std.subsec_nanos() > 0);
    i64::try_from(whole).unwrap_or(i64::MAX).min(1 << 40)
}

fn parse_stage(
    stage: &Stage,
    before: Option<&StagePlan>,
    criteria: Vec<CriterionPlan>,
) -> Result<StagePlan, PlanError> {
    let name = || stage.name.clone();
    let reached = before.and_then(|s| s.steps.last()).map_or(0, |s| s.percentage);
    let steps: Vec<Step> = match (&stage.schedule, stage.percentage) {
        (Some(schedule), _) => {
            schedule.iter().map(|s| Step { offset: seconds(s.after), percentage: s.percentage }).collect()
        }
        (None, Some(percentage)) => vec![Step { offset: 0, percentage }],
        // A stage of named people leaves the share where it is.
        (None, None) if stage.users.is_some() || stage.groups.is_some() => {
            vec![Step { offset: 0, percentage: reached }]
        }
        (None, None) => return Err(PlanError::Nobody(name())),
    };
    let named_only = stage.schedule.is_none() && stage.percentage.is_none();
    if !named_only && steps.iter().any(|s| !(1..=100).contains(&s.percentage)) {
        return Err(PlanError::Percentage(name()));
    }
    let rises = steps.windows(2).all(|s| s[0].offset < s[1].offset && s[0].percentage < s[1].percentage);
    let (Some(first), Some(last)) = (steps.first(), steps.last()) else { return Err(PlanError::Schedule(name())) };
    if !rises || first.offset != 0 {
        return Err(PlanError::Schedule(name()));
    }
    if first.percentage < reached {
        return Err(PlanError::OutOfOrder { name: name(), from: first.percentage, reached });
    }
    let duration = match (stage.duration, &stage.schedule) {
        (Some(duration), _) => seconds(duration),
        (None, Some(_)) => last.offset,
        (None, None) => return Err(PlanError::NoDuration(name())),
    };
    if duration < last.offset {
        return Err(PlanError::Schedule(name()));
    }
    let extension = stage.max_duration.map_or(duration, |max| seconds(max) - duration);
    if extension < 0 {
        return Err(PlanError::MaxDuration(name()));
    }
    let named = |before: Option<&Vec<String>>, more: &Option<Vec<String>>| {
        let mut all = before.cloned().unwrap_or_default();
        all.extend(more.iter().flatten().cloned());
        all.sort();
        all.dedup();
        all
    };
    Ok(StagePlan {
        name: name(),
        users: named(before.map(|s| &s.users), &stage.users),
        groups: named(before.map(|s| &s.groups), &stage.groups),
        duration,
        extension,
        approval: stage.approval,
        criteria,
        moment: (duration / MOMENTS).max(1),
        steps,
    })
}

fn parse_criteria(
    spec: &CanaryReleaseSpec,
    stage: &Stage,
    criteria: &[Criterion],
    alpha: f64,
    beta: f64,
) -> Result<Vec<CriterionPlan>, PlanError> {
    let is_scan = |c: &Criterion| c.metric == "vulnerabilities";
    let counted = criteria.iter().filter(|c| !is_scan(c)).count();
    // The comparison of refused calls takes its share too, where calls are counted at all.
    let alpha = alpha / size(counted + 1);
    let mut parsed: Vec<CriterionPlan> = Vec::new();
    for criterion in criteria {
        if parsed.iter().any(|c| c.metric == criterion.metric) {
            return Err(PlanError::CriterionTwice { stage: stage.name.clone(), metric: criterion.metric.clone() });
        }
        parsed.push(parse_criterion(spec, stage, criterion, alpha, beta)?);
    }
    if counted > 0 {
        parsed.push(CriterionPlan {
            metric: SCHEMA_ERRORS.into(),
            threshold: "no more than stable".into(),
            signal: Signal::SchemaErrors,
            rule: Rule::NoWorse(-alpha.ln()),
        });
    }
    Ok(parsed)
}

fn parse_criterion(
    spec: &CanaryReleaseSpec,
    stage: &Stage,
    criterion: &Criterion,
    alpha: f64,
    beta: f64,
) -> Result<CriterionPlan, PlanError> {
    let metric = criterion.metric.as_str();
    let limit =
        criterion.threshold.limit().map_err(|source| PlanError::Threshold { stage: stage.name.clone(), source })?;
    let test = |limit| Rule::Limit(Box::new(LimitTest::new(limit, alpha, beta)));
    let quantile = |quantile: &str| quantile.parse::<f64>().ok().map(|percent| 1.0 - percent / 100.0);
    let wrong = |example| PlanError::WrongKind {
        stage: stage.name.clone(),
        metric: metric.to_owned(),
        threshold: criterion.threshold.0.clone(),
        example,
    };
    let (signal, rule) = match (metric, limit) {
        ("errorRate", Limit::Share { bad, of_good: false }) => (Signal::Errors, test(bad)),
        ("errorRate", _) => return Err(wrong("< 0.1%")),
        ("latencyP50" | "latencyP90" | "latencyP95" | "latencyP99", Limit::Latency { micros }) => {
            // "P99 < 200ms" says that fewer than 1% of the calls take longer.
            let share = quantile(&metric[8..]).ok_or_else(|| wrong("< 200ms"))?;
            (Signal::SlowerThan(micros), test(share))
        }
        ("latencyP50" | "latencyP90" | "latencyP95" | "latencyP99", _) => return Err(wrong("< 200ms")),
        ("availability", Limit::Share { bad, of_good: true }) => (Signal::Unavailable, test(bad)),
        ("traceCompletion", Limit::Share { bad, of_good: true }) => (Signal::IncompleteTraces, test(bad)),
        ("userSatisfaction", Limit::Share { bad, of_good: true }) => (Signal::Dissatisfied, test(bad)),
        ("availability" | "traceCompletion" | "userSatisfaction", _) => return Err(wrong("> 99%")),
        ("vulnerabilities", Limit::Findings { at_most, severity }) => {
            (Signal::Vulnerabilities, Rule::Findings { at_most, severity })
        }
        ("vulnerabilities", _) => return Err(wrong("0 critical")),
        (custom, Limit::Share { bad, .. }) if spec.metrics.iter().any(|m| m.name == custom) => {
            (Signal::Custom, test(bad))
        }
        (custom, _) if spec.metrics.iter().any(|m| m.name == custom) => return Err(wrong("< 1%")),
        (unknown, _) => {
            return Err(PlanError::UnknownMetric { stage: stage.name.clone(), metric: unknown.to_owned() });
        }
    };
    Ok(CriterionPlan { metric: metric.to_owned(), threshold: criterion.threshold.0.clone(), signal, rule })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn plan(stages: Value) -> Result<Plan, PlanError> {
        Plan::new(&serde_json::from_value(json!({"targetRef": {"name": "x"}, "stages": stages})).unwrap())
    }

    fn message(stages: Value) -> String {
        plan(stages).unwrap_err().to_string()
    }

    #[test]
    fn who_was_named_stays_named() {
        let plan = plan(json!([
            {"name": "a", "groups": ["qa"], "duration": "1h"},
            {"name": "b", "users": ["dana"], "percentage": 10, "duration": "1h"},
            {"name": "c", "users": ["eve"], "duration": "1h"},
        ]))
        .unwrap();
        assert_eq!(plan.stages[2].groups, ["qa"]);
        assert_eq!(plan.stages[2].users, ["dana", "eve"]);
        let shares: Vec<_> = plan.stages.iter().map(|s| s.steps[0].percentage).collect();
        assert_eq!(shares, [0, 10, 10]);
    }

    #[test]
    fn a_stage_without_criteria_keeps_those_before() {
        let plan = plan(json!([
            {"name": "a", "percentage": 1, "duration": "1h", "successCriteria": [{"metric": "errorRate", "threshold": "< 1%"}]},
            {"name": "b", "percentage": 5, "duration": "1h"},
            {"name": "c", "percentage": 9, "duration": "1h", "successCriteria": []},
        ]))
        .unwrap();
        let metrics = |i: usize| plan.stages[i].criteria.iter().map(|c| c.metric.clone()).collect::<Vec<_>>();
        assert_eq!(metrics(0), ["errorRate", SCHEMA_ERRORS]);
        assert_eq!(metrics(1), metrics(0));
        assert!(metrics(2).is_empty());
    }

    #[test]
    fn the_chance_of_a_false_rollback_is_shared() {
        let plan = plan(json!([
            {"name": "a", "percentage": 1, "duration": "1h", "successCriteria": [
                {"metric": "errorRate", "threshold": "< 1%"}, {"metric": "latencyP99", "threshold": "< 200ms"},
                {"metric": "vulnerabilities", "threshold": "0 critical"}]},
            {"name": "b", "percentage": 5, "duration": "1h"},
        ]))
        .unwrap();
        let spent: f64 = plan
            .stages
            .iter()
            .flat_map(|s| &s.criteria)
            .map(|c| match &c.rule {
                Rule::Limit(test) => (-test.breach_at).exp(),
                Rule::NoWorse(at) => (-at).exp(),
                Rule::Findings { .. } => 0.0,
            })
            .sum();
        assert!((spent - 0.01).abs() < 1e-9, "{spent}");
    }

    #[test]
    fn a_latency_is_a_share_of_slow_calls() {
        let plan = plan(json!([{"name": "a", "percentage": 1, "duration": "1h", "successCriteria": [
            {"metric": "latencyP99", "threshold": "< 200ms"}, {"metric": "latencyP50", "threshold": "< 10ms"}]}]))
        .unwrap();
        let limits: Vec<_> = plan.stages[0].criteria[..2]
            .iter()
            .map(|c| match &c.rule {
                Rule::Limit(test) => (c.signal, (test.limit * 1000.0).round()),
                _ => unreachable!(),
            })
            .collect();
        assert_eq!(limits, [(Signal::SlowerThan(200_000), 10.0), (Signal::SlowerThan(10_000), 500.0)]);
    }

    #[test]
    fn a_schedule_has_steps_with_their_times() {
        let plan = plan(json!([{"name": "a", "schedule": [
            {"after": "0h", "percentage": 25}, {"after": "24h", "percentage": 50}, {"after": "72h", "percentage": 100}]}]))
        .unwrap();
        let stage = &plan.stages[0];
        assert_eq!((0..3).map(|i| stage.dwell(i) / 3600).collect::<Vec<_>>(), [24, 48, 0]);
        assert_eq!((stage.duration / 3600, stage.moment / 60), (72, 15));
    }

    #[test]
    fn what_makes_no_sense_is_told() {
        assert_eq!(plan(json!([])).unwrap_err(), PlanError::NoStages);
        // The schema sees only neighbours; here somebody is named between.
        let falls = json!([{"name": "a", "percentage": 25, "duration": "1h"},
            {"name": "b", "users": ["x"], "duration": "1h"}, {"name": "c", "percentage": 10, "duration": "1h"}]);
        assert_eq!(
            message(falls),
            "stage \"c\" starts with 10%, less than the 25% that was reached before: put stages in rising order"
        );
        let twice =
            json!([{"name": "a", "percentage": 2, "duration": "1h"}, {"name": "a", "percentage": 3, "duration": "1h"}]);
        assert!(message(twice).contains("two stages are called \"a\""));
        let flat =
            json!([{"name": "a", "schedule": [{"after": "0h", "percentage": 9}, {"after": "1h", "percentage": 9}]}]);
        assert!(message(flat).contains("does not rise"));
        assert!(message(json!([{"name": "a", "schedule": []}])).contains("does not rise"));
        let unit = json!([{"name": "a", "percentage": 2, "duration": "1h", "successCriteria": [{"metric": "errorRate", "threshold": "< 2"}]}]);
        assert!(message(unit).contains("write \"< 2%\""));
        let kind = json!([{"name": "a", "percentage": 2, "duration": "1h", "successCriteria": [{"metric": "latencyP99", "threshold": "< 2%"}]}]);
        assert!(message(kind).contains("write it like \"< 200ms\""));
    }
}
