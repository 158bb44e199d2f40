//! From what was found to what is done about it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Judgement, PolicyAction, Violation, level_name};
use crate::api::mcp_server::GovernanceLevel;

/// Label of a namespace: the least level of what is in it, `low`, `medium` or `high`.
pub const LEVEL_LABEL: &str = "perch.dev/policy-level";
/// Label of a namespace: what happens to what breaks a rule, `off`, `warn` or `deny`.
pub const MODE_LABEL: &str = "perch.dev/policy-mode";

/// What happens to what breaks a rule that its level insists on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Nothing at admission; the condition `Compliant` still tells.
    Off,
    /// It is admitted with warnings.
    #[default]
    Warn,
    /// It is not admitted.
    Deny,
}

/// What counts in a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scope {
    /// The least level.
    pub level: GovernanceLevel,
    /// What happens.
    pub mode: Mode,
}

impl Default for Scope {
    fn default() -> Self {
        Self { level: GovernanceLevel::Low, mode: Mode::Warn }
    }
}

impl Scope {
    /// What the labels of a namespace say, or else the default. A label with another value than
    /// those above counts as the strictest: a slip must not open anything.
    #[must_use]
    pub fn of(labels: Option<&BTreeMap<String, String>>, default: Self) -> Self {
        let label = |name: &str| labels.and_then(|l| l.get(name)).map(|v| v.to_ascii_lowercase());
        Self {
            level: match label(LEVEL_LABEL).as_deref() {
                None => default.level,
                Some("low") => GovernanceLevel::Low,
                Some("medium") => GovernanceLevel::Medium,
                Some(_) => GovernanceLevel::High,
            },
            mode: match label(MODE_LABEL).as_deref() {
                None => default.mode,
                Some("off") => Mode::Off,
                Some("warn") => Mode::Warn,
                Some(_) => Mode::Deny,
            },
        }
    }

    /// The level at which an object is judged here: that of the namespace, or its own where that is
    /// stricter.
    #[must_use]
    pub fn level_of(&self, object: &serde_json::Value) -> GovernanceLevel {
        match object["spec"]["governance"]["level"].as_str() {
            Some("Low") => stricter(self.level, GovernanceLevel::Low),
            Some("Medium") => stricter(self.level, GovernanceLevel::Medium),
            Some("High") => GovernanceLevel::High,
            _ => self.level,
        }
    }
}

/// The stricter of two levels.
#[must_use]
pub const fn stricter(a: GovernanceLevel, b: GovernanceLevel) -> GovernanceLevel {
    match (a, b) {
        (GovernanceLevel::High, _) | (_, GovernanceLevel::High) => GovernanceLevel::High,
        (GovernanceLevel::Medium, _) | (_, GovernanceLevel::Medium) => GovernanceLevel::Medium,
        _ => GovernanceLevel::Low,
    }
}

/// The rule about signatures.
const SIGNED: &str = "image-signed";
/// Longest warning: API servers cut longer ones.
const WARNING: usize = 250;

/// What is done with an object.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decision {
    /// Why it is not admitted; empty where it is.
    pub denied: Vec<Violation>,
    /// What whoever wrote it should know.
    pub warnings: Vec<String>,
}

impl Decision {
    /// Decides. `before` is what was found about the object that is replaced: what it broke already
    /// may stay broken, so that a policy that came later never stands in the way of a repair.
    #[must_use]
    pub fn new(mode: Mode, level: GovernanceLevel, found: Judgement, before: Option<&Judgement>) -> Self {
        let mut decision = Self::default();
        if mode == Mode::Off {
            return decision;
        }
        for violation in found.violations {
            let known = before.is_some_and(|b| b.violations.iter().any(|v| same(v, &violation)));
            if violation.action == PolicyAction::Deny && mode == Mode::Deny && !known {
                decision.denied.push(violation);
            } else {
                decision.warnings.push(cut(format!("policy {}", sentence(&violation))));
            }
        }
        for fault in found.faults {
            decision.warnings.push(cut(format!("policy {fault}; it was left out")));
        }
        if !decision.denied.is_empty() {
            // What the error says need not be said twice.
            let level = level_name(level);
            decision.warnings.insert(0, format!("the policy level here is {level}"));
            decision.warnings.truncate(1);
        }
        decision
    }

    /// Why it is not admitted, in one line; none where it is.
    #[must_use]
    pub fn message(&self) -> Option<String> {
        if self.denied.is_empty() {
            return None;
        }
        Some(self.denied.iter().map(sentence).collect::<Vec<_>>().join("; "))
    }
}

/// What is said of a signature names the image: that one could not be verified excuses no other.
fn same(a: &Violation, b: &Violation) -> bool {
    a.rule == b.rule && a.field == b.field && (a.rule != SIGNED || a.message == b.message)
}

/// A violation in one sentence.
fn sentence(violation: &Violation) -> String {
    let Violation { rule, message, field, remedy, .. } = violation;
    let place = if field.is_empty() { String::new() } else { format!(" ({field})") };
    let remedy = if remedy.is_empty() { String::new() } else { format!("; {remedy}") };
    format!("{rule}: {message}{place}{remedy}")
}

fn cut(text: String) -> String {
    if text.chars().count() <= WARNING {
        return text;
    }
    text.chars().take(WARNING - 1).chain(['…']).collect()
}
