//! What was found, and what it means for the whole.

use serde::Serialize;
use serde_json::{Value, json};

use crate::cli::get;

/// How a check went, the worst last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Outcome {
    /// There is nothing of the kind to check.
    Skip,
    /// It is as it should be.
    Pass,
    /// It works, or cannot be told from here.
    Warn,
    /// It is not as it should be.
    Fail,
}

impl Outcome {
    const ALL: [Self; 4] = [Self::Fail, Self::Warn, Self::Pass, Self::Skip];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Skip => "skip",
            Self::Pass => "pass",
            Self::Warn => "warn",
            Self::Fail => "FAIL",
        }
    }
}

/// What one check found about one thing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The check.
    pub check: &'static str,
    /// What was checked.
    pub subject: String,
    /// How it went.
    pub result: Outcome,
    /// Why, in one word.
    pub reason: String,
    /// Why, in one sentence, and what to do.
    pub message: String,
}

impl Finding {
    /// A finding.
    pub fn new(
        check: &'static str,
        subject: impl Into<String>,
        result: Outcome,
        reason: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        Self { check, subject: subject.into(), result, reason: reason.into(), message: message.into() }
    }
}

/// How it went as a whole: as its worst part did.
pub fn worst(findings: &[Finding]) -> Outcome {
    findings.iter().map(|f| f.result).max().unwrap_or(Outcome::Skip)
}

/// Whether the whole has failed.
pub fn failed(findings: &[Finding], strict: bool) -> bool {
    let limit = if strict { Outcome::Warn } else { Outcome::Fail };
    worst(findings) >= limit
}

fn count(findings: &[Finding], result: Outcome) -> usize {
    findings.iter().filter(|f| f.result == result).count()
}

/// How many findings there are of each kind, in words.
pub fn summary(findings: &[Finding]) -> String {
    let words = ["failed", "warned", "passed", "skipped"];
    let counts = Outcome::ALL.map(|result| count(findings, result));
    let parts: Vec<String> = words.iter().zip(counts).map(|(word, n)| format!("{n} {word}")).collect();
    parts.join(", ")
}

/// One tree for programs.
pub fn json(findings: &[Finding]) -> Value {
    json!({
        "result": worst(findings),
        "failed": count(findings, Outcome::Fail),
        "warned": count(findings, Outcome::Warn),
        "passed": count(findings, Outcome::Pass),
        "skipped": count(findings, Outcome::Skip),
        "findings": findings,
    })
}

/// Prints for a person.
pub fn table(findings: &[Finding]) {
    let mut table = get::plain();
    table.set_header(["RESULT", "CHECK", "SUBJECT", "REASON", "MESSAGE"]);
    for finding in findings {
        let Finding { check, subject, result, reason, message } = finding;
        table.add_row([result.as_str(), check, subject, reason, message]);
    }
    say!("{table}");
    say!("\n{}", summary(findings));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(results: &[Outcome]) -> Vec<Finding> {
        results.iter().map(|result| Finding::new("Check", "a", *result, "R", "m")).collect()
    }

    #[test]
    fn the_worst_decides_and_warnings_only_where_asked() {
        use Outcome::{Fail, Pass, Skip, Warn};
        assert!(!failed(&of(&[Pass, Skip]), true));
        assert!(!failed(&of(&[Pass, Warn]), false));
        assert!(failed(&of(&[Pass, Warn]), true));
        assert!(failed(&of(&[Warn, Fail, Pass]), false));
        assert!(!failed(&[], true));
        assert_eq!(summary(&of(&[Pass, Warn, Pass, Fail])), "1 failed, 1 warned, 2 passed, 0 skipped");
        let tree = json(&of(&[Warn, Skip]));
        assert_eq!((&tree["result"], &tree["findings"][1]["result"]), (&json!("Warn"), &json!("Skip")));
    }
}
