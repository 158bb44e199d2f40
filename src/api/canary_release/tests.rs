//! The schema, as the API server applies it, and thresholds.

use kube::{
    CustomResourceExt,
    core::cel::{Validator, compile_schema},
};
use serde_json::{Value, json};

use super::*;

fn problems(spec: &Value) -> Vec<String> {
    let crd = CanaryRelease::crd();
    let schema = crd.spec.versions[0].schema.as_ref().unwrap().open_api_v3_schema.as_ref().unwrap();
    let compiled = compile_schema(&serde_json::to_value(schema).unwrap());
    let object =
        json!({"apiVersion": "perch.dev/v1alpha1", "kind": "CanaryRelease", "metadata": {"name": "x"}, "spec": spec});
    match Validator::new().validate_compiled(&compiled, &object, None) {
        Ok(()) => Vec::new(),
        Err(errors) => errors.into_iter().map(|e| e.message).collect(),
    }
}

fn stages(stages: Value) -> Value {
    json!({"targetRef": {"name": "everything"}, "stages": stages})
}

fn criterion(metric: &str, threshold: &str) -> Vec<String> {
    problems(&stages(json!([{"name": "a", "percentage": 10, "duration": "1h",
        "successCriteria": [{"metric": metric, "threshold": threshold}]}])))
}

fn one(found: &[String], words: &str) {
    assert!(found.len() == 1 && found[0].contains(words), "wanted one message with {words:?}, got {found:?}");
}

/// The release of the design.
pub fn example() -> Value {
    stages(json!([
        {"name": "internal", "groups": ["infrastructure-team", "qa-team"], "duration": "48h", "successCriteria": [
            {"metric": "errorRate", "threshold": "< 0.1%"}, {"metric": "latencyP99", "threshold": "< 200ms"}]},
        {"name": "pilot", "users": ["dana@example.com"], "percentage": 10, "duration": "72h", "successCriteria": [
            {"metric": "errorRate", "threshold": "< 0.5%"}, {"metric": "latencyP99", "threshold": "< 300ms"}]},
        {"name": "gradual", "schedule": [
            {"after": "0h", "percentage": 25}, {"after": "24h", "percentage": 50},
            {"after": "48h", "percentage": 75}, {"after": "72h", "percentage": 100}]},
    ]))
}

#[test]
fn the_example_is_sound() {
    assert_eq!(problems(&example()), Vec::<String>::new());
    let spec: CanaryReleaseSpec = serde_json::from_value(example()).unwrap();
    assert_eq!(spec.analysis, Analysis::default());
    assert_eq!(spec.drain_timeout, Duration::from_secs(60));
    assert_eq!(spec.stages[1].approval, Approval::Automatic);
}

#[test]
fn the_definition_is_found_by_its_short_name_and_category() {
    let crd = CanaryRelease::crd();
    assert_eq!(crd.spec.names.short_names, Some(vec!["canary".to_owned()]));
    assert_eq!(crd.spec.names.categories, Some(vec!["perch".to_owned()]));
    let columns = crd.spec.versions[0].additional_printer_columns.clone().unwrap();
    let names: Vec<_> = columns.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names, ["Phase", "Stage", "Percent", "Verdict", "Stable", "Candidate", "Age"]);
}

#[test]
fn stages_out_of_order_are_told() {
    let percent = |a: i32, b: i32| {
        problems(&stages(json!([
            {"name": "a", "percentage": a, "duration": "1h"}, {"name": "b", "percentage": b, "duration": "1h"}])))
    };
    assert_eq!(percent(10, 25), Vec::<String>::new());
    one(&percent(25, 10), "the stages are out of order");
    let after_schedule = stages(json!([
        {"name": "a", "schedule": [{"after": "0h", "percentage": 5}, {"after": "1h", "percentage": 50}]},
        {"name": "b", "percentage": 20, "duration": "1h"}]));
    one(&problems(&after_schedule), "the stages are out of order");
}

#[test]
fn a_stage_says_who_and_how_long() {
    one(&problems(&stages(json!([{"name": "a", "duration": "1h"}]))), "nobody is in this stage");
    one(&problems(&stages(json!([{"name": "a", "percentage": 5}]))), "how long does this stage last?");
    let both =
        json!([{"name": "a", "duration": "1h", "percentage": 5, "schedule": [{"after": "0h", "percentage": 5}]}]);
    one(&problems(&stages(both)), "set percentage or schedule, not both");
    let short = json!([{"name": "a", "duration": "2h", "maxDuration": "1h30m", "percentage": 5}]);
    one(&problems(&stages(short)), "maxDuration is shorter than the stage");
}

#[test]
fn a_schedule_rises() {
    let schedule = |steps: Value| problems(&stages(json!([{"name": "a", "schedule": steps}])));
    let step = |after: &str, percentage: i32| json!({"after": after, "percentage": percentage});
    assert_eq!(schedule(json!([step("0h", 5), step("30m", 10), step("1h30m", 100)])), Vec::<String>::new());
    one(&schedule(json!([step("0h", 5), step("2h", 50), step("1h", 75)])), "the schedule does not rise");
    one(&schedule(json!([step("0h", 50), step("2h", 50)])), "the schedule does not rise");
    one(&schedule(json!([step("1h", 5), step("2h", 50)])), "give it after: 0h");
}

#[test]
fn thresholds_fit_their_metric() {
    assert_eq!(criterion("errorRate", "< 0.1%"), Vec::<String>::new());
    assert_eq!(criterion("latencyP99", "<=1.5s"), Vec::<String>::new());
    assert_eq!(criterion("availability", "> 99.9%"), Vec::<String>::new());
    assert_eq!(criterion("vulnerabilities", "0 critical"), Vec::<String>::new());
    assert!(criterion("errorRate", "< 0.1").iter().any(|m| m.contains("a comparison, a number and a unit")));
    one(&criterion("errorRate", "> 99%"), "errorRate needs an upper limit");
    one(&criterion("errorRate", "< 0%"), "no number of calls can show 0%");
    one(&criterion("availability", "> 100%"), "no number of calls can show 0% or 100%");
    assert!(criterion("errorRate", "< 200ms").iter().any(|m| m.contains("in percent")));
    one(&criterion("latencyP99", "< 5%"), "a latency needs an upper limit");
    one(&criterion("traceCompletion", "< 1%"), "this metric needs a lower limit");
    assert!(criterion("vulnerabilities", "< 1%").iter().any(|m| m.contains("0 critical")));
    one(&criterion("speed", "< 1%"), "unknown metric");
}

#[test]
fn a_metric_of_ones_own_can_be_used() {
    let mut spec = stages(json!([{"name": "a", "percentage": 10, "duration": "1h",
        "successCriteria": [{"metric": "refunds", "threshold": "< 2%"}]}]));
    spec["metrics"] = json!([{"name": "refunds", "provider": "Prometheus", "address": "http://prometheus:9090",
        "bad": "sum(refunds_total)", "total": "sum(orders_total)"}]);
    assert_eq!(problems(&spec), Vec::<String>::new());
    spec["metrics"][0].as_object_mut().unwrap().remove("total");
    one(&problems(&spec), "needs address, bad and total");
}

#[test]
fn thresholds_become_numbers() {
    let limit = |text: &str| Threshold(text.into()).limit();
    assert_eq!(limit("< 0.1%"), Ok(Limit::Share { bad: 0.001, of_good: false }));
    assert_eq!(limit("<=5 %"), Ok(Limit::Share { bad: 0.05, of_good: false }));
    assert_eq!(limit("> 99.9%"), Ok(Limit::Share { bad: 0.001, of_good: true }));
    assert_eq!(limit("< 200ms"), Ok(Limit::Latency { micros: 200_000 }));
    assert_eq!(limit("< 1.5s"), Ok(Limit::Latency { micros: 1_500_000 }));
    assert_eq!(limit("0 critical"), Ok(Limit::Findings { at_most: 0, severity: Severity::Critical }));
    assert_eq!(limit("3 high"), Ok(Limit::Findings { at_most: 3, severity: Severity::High }));
}

#[test]
fn a_bad_threshold_says_what_to_write() {
    let error = |text: &str| Threshold(text.into()).limit().unwrap_err();
    assert_eq!(error("< 0.1"), ThresholdError::NoUnit("< 0.1".into()));
    assert!(error("< 0.1").to_string().contains("write \"< 0.1%\""));
    assert_eq!(error("0.1%"), ThresholdError::Malformed("0.1%".into()));
    assert_eq!(error("< ..1%"), ThresholdError::Malformed("< ..1%".into()));
    assert_eq!(error("< 0%"), ThresholdError::Unreachable("< 0%".into()));
    assert_eq!(error("> 100%"), ThresholdError::Unreachable("> 100%".into()));
    assert_eq!(error("> 200ms"), ThresholdError::LowerLatency("> 200ms".into()));
    assert_eq!(error("< 0ms"), ThresholdError::Malformed("< 0ms".into()));
    assert_eq!(error(""), ThresholdError::Malformed(String::new()));
    assert_eq!(error("0 awful"), ThresholdError::Malformed("0 awful".into()));
    assert_eq!(Percent("0%".into()).share(), Err(Percent("0%".into()).share().unwrap_err()));
    assert_eq!(Percent("1%".into()).share(), Ok(0.01));
}

#[test]
fn a_command_is_read_from_its_annotation() {
    let command = Command::parse(r#"{"id": "1", "verb": "Abort", "releaseId": "x-1.1", "stage": "pilot"}"#).unwrap();
    assert_eq!((command.verb, command.stage.as_deref()), (Verb::Abort, Some("pilot")));
    let error = Command::parse(r#"{"id": "1", "verb": "Explode", "releaseId": "x"}"#).unwrap_err().to_string();
    assert!(error.contains("Explode") && error.contains("perch canary"), "{error}");
}

#[test]
fn a_freeze_window_holds_when_it_says() {
    let at = |t: &str| t.parse::<jiff::Timestamp>().unwrap();
    let once: FreezeWindow = serde_json::from_value(
        json!({"name": "holidays", "start": "2026-12-24T00:00:00Z", "end": "2027-01-02T00:00:00Z"}),
    )
    .unwrap();
    assert!(once.holds(at("2026-12-24T00:00:00Z")) && !once.holds(at("2027-01-02T00:00:00Z")));
    let weekly: FreezeWindow =
        serde_json::from_value(json!({"name": "weekend", "days": ["Friday"], "from": "16:00", "until": "24:00"}))
            .unwrap();
    assert!(weekly.holds(at("2026-11-20T16:00:00Z")) && weekly.holds(at("2026-11-20T23:59:59Z")));
    assert!(!weekly.holds(at("2026-11-20T15:59:59Z")) && !weekly.holds(at("2026-11-21T16:00:00Z")));
}

#[test]
fn a_status_survives_json() {
    let mut status = CanaryReleaseStatus::default();
    status.criteria.push(CriterionStatus { metric: "errorRate".into(), breach: 0.1 + 0.2, ..Default::default() });
    let text = serde_json::to_string(&status).unwrap();
    assert_eq!(serde_json::from_str::<CanaryReleaseStatus>(&text).unwrap(), status);
}
