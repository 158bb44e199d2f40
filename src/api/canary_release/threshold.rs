//! Limits as people write them: `< 0.1%`, `< 200ms`, `> 99%`, `0 critical`.

use std::{borrow::Cow, fmt};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// A limit, kept as the user wrote it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Threshold(pub String);

/// What a [`Threshold`] means.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Limit {
    /// At most this share of events may be bad; strictly between 0 and 1. `> 99%` is a share of
    /// 0.01.
    Share {
        /// The largest share of bad events.
        bad: f64,
        /// Whether the user wrote a lower limit of good events.
        of_good: bool,
    },
    /// Upper limit of a latency, in microseconds.
    Latency {
        /// Microseconds, greater than zero.
        micros: u64,
    },
    /// At most this many findings.
    Findings {
        /// The largest number.
        at_most: u32,
        /// Findings of this severity or a worse one count.
        severity: Severity,
    },
}

/// Severity of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Low.
    Low,
    /// Medium.
    Medium,
    /// High.
    High,
    /// Critical.
    Critical,
}

impl Severity {
    /// The word in a threshold.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::Critical => "critical",
        }
    }
}

/// A limit that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ThresholdError {
    /// A number without a unit.
    #[error("threshold {0:?} has no unit: write \"{0}%\" for a share of calls, or \"{0}ms\" for a latency")]
    NoUnit(String),
    /// Anything else that cannot be read.
    #[error(
        "threshold {0:?} cannot be read: write a comparison, a number and a unit, such as \"< 0.1%\", \"< 200ms\", \"> 99%\" or \"0 critical\""
    )]
    Malformed(String),
    /// A share that no evidence can show.
    #[error(
        "threshold {0:?}: no number of calls can show 0% or 100%; leave some room, such as \"< 0.01%\" or \"> 99.99%\""
    )]
    Unreachable(String),
    /// A lower limit of a latency.
    #[error("threshold {0:?} is a lower limit of a latency: turn it round, such as \"< 200ms\"")]
    LowerLatency(String),
}

impl Threshold {
    /// What the threshold means. `<` and `<=` mean the same, as do `>` and `>=`: no evidence can
    /// tell them apart.
    ///
    /// # Errors
    /// When it cannot be read, or no evidence could ever meet it.
    pub fn limit(&self) -> Result<Limit, ThresholdError> {
        let text = self.0.trim();
        let malformed = || ThresholdError::Malformed(self.0.clone());
        let (upper, rest) = match text.split_at_checked(1) {
            Some(("<", rest)) => (true, rest),
            Some((">", rest)) => (false, rest),
            _ => return findings(text).ok_or_else(malformed),
        };
        let rest = rest.strip_prefix('=').unwrap_or(rest).trim_start();
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let number: f64 = rest[..end].parse().map_err(|_| malformed())?;
        let unit = match rest[end..].trim() {
            "" => return Err(ThresholdError::NoUnit(self.0.clone())),
            "%" => return share(number, upper).ok_or_else(|| ThresholdError::Unreachable(self.0.clone())),
            "us" => 1.0,
            "ms" => 1e3,
            "s" => 1e6,
            _ => return Err(malformed()),
        };
        if !upper {
            return Err(ThresholdError::LowerLatency(self.0.clone()));
        }
        let micros = (number * unit).round();
        if !(1.0..=1e15).contains(&micros) {
            return Err(malformed());
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range is checked")]
        Ok(Limit::Latency { micros: micros as u64 })
    }
}

fn share(percent: f64, upper: bool) -> Option<Limit> {
    // 100 - 99.9 is 0.0999…94 in binary; nine digits are more than anybody writes.
    let bad = (if upper { percent } else { 100.0 - percent } / 100.0 * 1e12).round() / 1e12;
    (bad > 0.0 && bad < 1.0).then_some(Limit::Share { bad, of_good: !upper })
}

fn findings(text: &str) -> Option<Limit> {
    let (number, severity) = text.split_once(char::is_whitespace)?;
    let severity = match severity.trim() {
        "critical" => Severity::Critical,
        "high" => Severity::High,
        "medium" => Severity::Medium,
        "low" => Severity::Low,
        _ => return None,
    };
    Some(Limit::Findings { at_most: number.parse().ok()?, severity })
}

impl fmt::Display for Threshold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl JsonSchema for Threshold {
    fn schema_name() -> Cow<'static, str> {
        "Threshold".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "minLength": 1, "maxLength": 32})
    }
}

/// A share in percent, `1%` or `0.5%`, between 0% and 50%.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Percent(pub String);

/// A percentage that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a chance that can be kept: write a percentage above 0% and up to 50%, such as 1%")]
pub struct PercentError(String);

impl Percent {
    /// The share, above 0 and up to 0.5.
    ///
    /// # Errors
    /// When the text is no percentage in that range.
    pub fn share(&self) -> Result<f64, PercentError> {
        let number = self.0.strip_suffix('%').and_then(|n| n.trim().parse::<f64>().ok());
        let share = number.map(|n| n / 100.0).filter(|s| *s > 0.0 && *s <= 0.5);
        share.ok_or_else(|| PercentError(self.0.clone()))
    }
}

impl JsonSchema for Percent {
    fn schema_name() -> Cow<'static, str> {
        "Percent".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "maxLength": 16, "pattern": r"^[0-9]+(\.[0-9]+)?%$"})
    }
}
