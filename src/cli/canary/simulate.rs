//! `perch canary simulate`.

use std::{io::Read, path::Path};

use serde::Deserialize;
use serde_json::Value;

use super::{args::Simulate, words::span};
use crate::{
    api::canary_release::CanaryRelease,
    canary::{
        Plan,
        forecast::{StageForecast, Traffic, forecast},
    },
    cli::{exit::Failure, get},
};

/// Says what each stage can decide, and which cannot.
pub fn run(args: &Simulate) -> Result<(), Failure> {
    let traffic = Traffic {
        calls_per_hour: positive("--calls-per-minute", args.calls_per_minute)? * 60.0,
        usual_bad: share("--usual-errors", &args.usual_errors)?,
        named_share: share("--named-share", &args.named_share)?,
    };
    let found = read(&args.file)?;
    if found.is_empty() {
        return Err(Failure::failed(format!("{} holds no CanaryRelease", args.file.display())));
    }
    let mut undecided = 0;
    for release in &found {
        let name = release.metadata.name.as_deref().unwrap_or("(no name)");
        let plan = Plan::new(&release.spec).map_err(|error| Failure::failed(format!("{name}: {error}")))?;
        let told = forecast(&plan, &traffic);
        say!("{}", table(name, &plan, &told));
        for warning in warnings(&told) {
            complain!("warning: {warning}");
            undecided += 1;
        }
    }
    if undecided > 0 {
        return Err(Failure::failed(format!("with this traffic {undecided} criteria cannot be decided in time")));
    }
    say!("Every stage can decide in its time.");
    Ok(())
}

fn warnings(told: &[StageForecast]) -> impl Iterator<Item = &str> {
    told.iter().flat_map(|stage| &stage.criteria).filter_map(|criterion| criterion.warning.as_deref())
}

fn table(name: &str, plan: &Plan, told: &[StageForecast]) -> String {
    let mut table = get::plain();
    table.set_header(["STAGE", "LASTS", "CALLS", "CRITERION", "TO PASS", "TO FIND 5× THE LIMIT", "DECIDES"]);
    let calls = |calls: Option<i64>| calls.map_or_else(|| "never".to_owned(), |n| format!("{n} calls"));
    for (stage, forecast) in plan.stages.iter().zip(told) {
        if forecast.criteria.is_empty() {
            let none = "(none)".to_owned();
            let cells = [stage.name.clone(), span(stage.duration), forecast.calls.to_string(), none];
            table.add_row(cells.into_iter().chain([String::new(), String::new(), "by time alone".to_owned()]));
        }
        for criterion in &forecast.criteria {
            table.add_row([
                stage.name.clone(),
                span(stage.duration),
                forecast.calls.to_string(),
                criterion.criterion.clone(),
                calls(criterion.calls_to_pass),
                calls(criterion.calls_to_find_five_times),
                if criterion.warning.is_some() { "NO".to_owned() } else { "yes".to_owned() },
            ]);
        }
    }
    format!("{name}\n{table}")
}

fn positive(flag: &str, number: f64) -> Result<f64, Failure> {
    if number.is_finite() && number > 0.0 {
        return Ok(number);
    }
    Err(Failure::usage(format!("{flag} {number} is no traffic: give calls in a minute, such as 30")))
}

fn share(flag: &str, text: &str) -> Result<f64, Failure> {
    let number = text.strip_suffix('%').and_then(|n| n.trim().parse::<f64>().ok());
    let share = number.map(|n| n / 100.0).filter(|s| (0.0..=1.0).contains(s));
    share.ok_or_else(|| Failure::usage(format!("{flag} {text:?} is no share: write it like 0.1%")))
}

/// The CanaryReleases of a file; other objects in it are passed over.
fn read(path: &Path) -> Result<Vec<CanaryRelease>, Failure> {
    let mut text = String::new();
    let result = if path == Path::new("-") {
        std::io::stdin().read_to_string(&mut text).map(|_| ())
    } else {
        std::fs::read_to_string(path).map(|found| text = found)
    };
    result.map_err(|error| Failure::failed(format!("{} cannot be read: {error}", path.display())))?;
    parse(&text).map_err(|why| Failure::failed(format!("{}: {why}", path.display())))
}

fn parse(text: &str) -> Result<Vec<CanaryRelease>, String> {
    let mut found = Vec::new();
    for (index, document) in serde_yaml_ng::Deserializer::from_str(text).enumerate() {
        let broken = |error: &dyn std::fmt::Display| format!("document {}: {error}", index + 1);
        let value = serde_yaml_ng::Value::deserialize(document).map_err(|error| broken(&error))?;
        let value: Value = serde_json::to_value(value).map_err(|error| broken(&error))?;
        if value["kind"] == "CanaryRelease" {
            found.push(serde_json::from_value(value).map_err(|error| broken(&error))?);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: other}
---
apiVersion: perch.dev/v1alpha1
kind: CanaryRelease
metadata: {name: everything}
spec:
  targetRef: {name: everything}
  stages:
    - {name: pilot, percentage: 10, duration: 1h, successCriteria: [{metric: errorRate, threshold: '< 0.1%'}]}
    - {name: wide, percentage: 50, duration: 48h}
    - {name: free, percentage: 60, duration: 1h, successCriteria: []}
";

    fn told(calls_per_hour: f64) -> (String, Vec<String>) {
        let release = parse(FILE).unwrap().swap_remove(0);
        let plan = Plan::new(&release.spec).unwrap();
        let told = forecast(&plan, &Traffic { calls_per_hour, usual_bad: 0.0, named_share: 0.0 });
        (table("everything", &plan, &told), warnings(&told).map(str::to_owned).collect())
    }

    #[test]
    fn a_stage_that_cannot_decide_is_named() {
        let (table, warnings) = told(1800.0);
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].starts_with("stage pilot: errorRate < 0.1% needs about"), "{warnings:?}");
        let row = |name: &str| table.lines().find(|l| l.trim().starts_with(name)).unwrap().to_owned();
        assert!(row("pilot").trim_end().ends_with("NO") && row("pilot").contains("180"), "{table}");
        assert!(row("wide").trim_end().ends_with("yes") && row("wide").contains("43200"), "{table}");
        assert!(row("free").contains("by time alone"), "{table}");
        assert!(told(200_000.0).1.is_empty());
    }

    #[test]
    fn numbers_that_make_no_sense_are_refused() {
        for number in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(positive("--calls-per-minute", number).is_err(), "{number}");
        }
        assert!((share("--usual-errors", "0.5%").unwrap() - 0.005).abs() < 1e-12);
        for text in ["0.5", "", "-1%", "101%", "x%"] {
            assert!(share("--usual-errors", text).is_err(), "{text}");
        }
        assert!(parse("kind: CanaryRelease\nspec: {}").unwrap_err().starts_with("document 1: "));
    }
}
