//! What the expected traffic can decide, told before a release begins.

use super::{
    plan::{Plan, Rule, StagePlan},
    statistics::{LimitTest, real},
};

/// What somebody expects.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Traffic {
    /// Calls of the server in an hour, by all its users.
    pub calls_per_hour: f64,
    /// Share of bad calls that a good candidate has.
    pub usual_bad: f64,
    /// Share of all calls that named users and groups make, beside the percentage.
    pub named_share: f64,
}

/// What a stage can decide.
#[derive(Clone, Debug, PartialEq)]
pub struct StageForecast {
    /// The stage.
    pub stage: String,
    /// Calls of the candidate that are expected in its duration.
    pub calls: i64,
    /// Each criterion that counts calls.
    pub criteria: Vec<CriterionForecast>,
}

/// What a stage can decide about a criterion.
#[derive(Clone, Debug, PartialEq)]
pub struct CriterionForecast {
    /// The metric and its threshold.
    pub criterion: String,
    /// Calls without a bad one that let it pass.
    pub calls_without_bad: i64,
    /// Calls that let it pass at the usual share of bad ones; none when they never would.
    pub calls_to_pass: Option<i64>,
    /// Calls after which five times the limit is found; none when it is not found.
    pub calls_to_find_five_times: Option<i64>,
    /// Why the stage will not decide, and what to do. None when it will.
    pub warning: Option<String>,
}

/// What each stage of a plan can decide with some traffic.
#[must_use]
pub fn forecast(plan: &Plan, traffic: &Traffic) -> Vec<StageForecast> {
    plan.stages.iter().map(|stage| forecast_stage(stage, traffic)).collect()
}

fn forecast_stage(stage: &StagePlan, traffic: &Traffic) -> StageForecast {
    let mut expected = 0.0;
    for (i, step) in stage.steps.iter().enumerate() {
        let share = (f64::from(step.percentage) / 100.0 + traffic.named_share).clamp(0.0, 1.0);
        expected += share * traffic.calls_per_hour.max(0.0) * real(stage.dwell(i)) / 3600.0;
    }
    #[expect(clippy::cast_possible_truncation, reason = "clamped to what fits")]
    let calls = expected.clamp(0.0, 9e15) as i64;
    let criteria = stage.criteria.iter().filter_map(|criterion| {
        let Rule::Limit(test) = &criterion.rule else { return None };
        let name = format!("{} {}", criterion.metric, criterion.threshold);
        let to_pass = if traffic.usual_bad < test.limit { test.calls_to_decide(traffic.usual_bad) } else { None };
        Some(CriterionForecast {
            warning: warning(stage, &name, test, calls, to_pass, traffic),
            criterion: name,
            calls_without_bad: test.good_calls_to_pass(0, 0),
            calls_to_pass: to_pass,
            calls_to_find_five_times: test.calls_to_decide((5.0 * test.limit).min(0.99)),
        })
    });
    StageForecast { stage: stage.name.clone(), calls, criteria: criteria.collect() }
}

fn warning(
    stage: &StagePlan,
    name: &str,
    test: &LimitTest,
    calls: i64,
    to_pass: Option<i64>,
    traffic: &Traffic,
) -> Option<String> {
    let usual = traffic.usual_bad * 100.0;
    match to_pass {
        None => Some(format!(
            "stage {}: {name} cannot be shown while {usual}% of the calls are bad as usual: raise the limit of {}%",
            stage.name,
            test.limit * 100.0
        )),
        Some(needed) if needed > calls => Some(format!(
            "stage {}: {name} needs about {needed} calls and gets about {calls}: make the stage longer or larger, or raise the limit",
            stage.name
        )),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn plan() -> Plan {
        let spec = json!({"targetRef": {"name": "x"}, "stages": [
            {"name": "small", "percentage": 1, "duration": "1h", "successCriteria": [{"metric": "errorRate", "threshold": "< 0.1%"}]},
            {"name": "large", "schedule": [{"after": "0h", "percentage": 50}, {"after": "10h", "percentage": 100}]}]});
        Plan::new(&serde_json::from_value(spec).unwrap()).unwrap()
    }

    #[test]
    fn a_stage_that_cannot_decide_is_told() {
        let told = forecast(&plan(), &Traffic { calls_per_hour: 6000.0, usual_bad: 0.0, named_share: 0.0 });
        assert_eq!((told[0].calls, told[1].calls), (60, 30_000));
        let warning = told[0].criteria[0].warning.as_ref().unwrap();
        assert!(
            warning.starts_with("stage small: errorRate < 0.1% needs about 3") && warning.contains("gets about 60"),
            "{warning}"
        );
        assert_eq!(told[1].criteria[0].warning, None);
    }

    #[test]
    fn a_limit_below_what_is_usual_is_told() {
        let told = forecast(&plan(), &Traffic { calls_per_hour: 1e6, usual_bad: 0.002, named_share: 0.0 });
        let warning = told[1].criteria[0].warning.as_ref().unwrap();
        assert!(warning.contains("cannot be shown while 0.2% of the calls are bad"), "{warning}");
    }
}
