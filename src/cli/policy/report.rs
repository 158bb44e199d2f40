//! What was found, for people, for programs, and for code scanning.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::Checked;
use crate::policy::{PolicyAction, Violation, ViolationSeverity};

/// Prints for a person.
pub fn human(checked: &[Checked]) {
    for Checked { document, judgement } in checked {
        for v in &judgement.violations {
            let word = if v.action == PolicyAction::Deny { "error" } else { "warning" };
            say!("{}:{}: {word}: {} [{}]", document.file, line(document.line, v), v.message, v.rule);
            let place = if v.field.is_empty() { String::new() } else { format!(" {}", v.field) };
            say!("    {}{place}", document.what);
            if !v.remedy.is_empty() {
                say!("    {}", v.remedy);
            }
        }
    }
    let broken = checked.iter().filter(|c| !c.judgement.is_compliant()).count();
    say!("{} checked, {broken} not compliant", checked.len());
}

/// The line of a violation: that of its own where it names one, as in a Dockerfile.
fn line(begin: usize, violation: &Violation) -> usize {
    violation.field.strip_prefix("line ").and_then(|n| n.parse().ok()).unwrap_or(begin)
}

/// One tree for programs.
pub fn json(checked: &[Checked]) -> Value {
    let objects = checked.iter().map(|Checked { document, judgement }| {
        json!({
            "file": document.file,
            "line": document.line,
            "kind": document.object["kind"],
            "namespace": document.object["metadata"]["namespace"],
            "name": document.object["metadata"]["name"],
            "compliant": judgement.is_compliant(),
            "violations": judgement.violations,
        })
    });
    json!({"compliant": checked.iter().all(|c| c.judgement.is_compliant()), "objects": objects.collect::<Vec<_>>()})
}

/// SARIF 2.1.0 (<https://docs.oasis-open.org/sarif/sarif/v2.1.0/>). `security-severity` is what code
/// scanning sorts by: the middle of the range of CVSS that has the same name.
pub fn sarif(checked: &[Checked]) -> Value {
    let mut rules: BTreeMap<&str, Value> = BTreeMap::new();
    let mut results = Vec::new();
    for Checked { document, judgement } in checked {
        for v in &judgement.violations {
            rules.entry(&v.rule).or_insert_with(|| {
                json!({
                    "id": v.rule,
                    "shortDescription": {"text": v.rule},
                    "help": {"text": v.remedy},
                    "properties": {"security-severity": score(v.severity), "tags": ["security"]},
                })
            });
            let uri = if document.file == "-" { "stdin" } else { document.file.as_str() };
            results.push(json!({
                "ruleId": v.rule,
                "level": if v.action == PolicyAction::Deny { "error" } else { "warning" },
                "message": {"text": format!("{}: {}. Remedy: {}", document.what, v.message, v.remedy)},
                "locations": [{
                    "physicalLocation": {
                        "artifactLocation": {"uri": uri},
                        "region": {"startLine": line(document.line, v)},
                    },
                    "logicalLocations": [{"fullyQualifiedName": format!("{}: {}", document.what, v.field)}],
                }],
            }));
        }
    }
    json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": {"driver": {
                "name": "perch",
                "version": env!("CARGO_PKG_VERSION"),
                "rules": rules.into_values().collect::<Vec<_>>(),
            }},
            "results": results,
        }],
    })
}

fn score(severity: ViolationSeverity) -> &'static str {
    match severity {
        ViolationSeverity::Critical => "9.5",
        ViolationSeverity::High => "8.0",
        ViolationSeverity::Medium => "5.5",
        ViolationSeverity::Low => "2.0",
    }
}
