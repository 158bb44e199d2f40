//! What a controller finds out before it asks for a decision.

use jiff::Timestamp;

use super::contract::Contract;
use crate::api::canary_release::{Command, Counts, Severity};

/// Everything that is seen at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observation {
    /// `metadata.generation` of the release.
    pub generation: Option<i64>,
    /// The revision that the server declares now; none when there is no such server.
    pub declared: Option<String>,
    /// The candidate's instances.
    pub candidate: Health,
    /// What the candidate waits for while it is [`Health::Starting`], in a few words; empty when
    /// nobody says.
    pub waits: String,
    /// The stable revision's instances.
    pub stable: Health,
    /// How the candidate's tools differ; none until both have listed theirs.
    pub contract: Option<Contract>,
    /// Every gateway that serves the server.
    pub gateways: Vec<Gateway>,
    /// What was read for each metric of the stage, by name. A metric that is not there counts as
    /// [`Reading::Unknown`].
    pub readings: Vec<(String, Reading)>,
    /// Calls in flight and open sessions.
    pub in_flight: InFlight,
    /// The command in the annotation.
    pub command: Option<Command>,
    /// The weights of the HTTPRoute that the release names; none when it names none.
    pub route: Option<RouteWeights>,
}

/// The weights of an HTTPRoute, as somebody has just written or found them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteWeights {
    /// Name of the HTTPRoute.
    pub name: String,
    /// Share of the requests that goes to the candidate, in percent; none when the weights could not be set.
    pub percentage: Option<i32>,
    /// In one word.
    pub reason: &'static str,
    /// In one sentence, with what to do.
    pub message: String,
}

/// How the instances of a revision are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Health {
    /// It could not be found out.
    #[default]
    Unknown,
    /// Fewer answer than are declared.
    Starting,
    /// All that are declared answer.
    Ready,
    /// They crash, or cannot start. It says why in a few words.
    Failing(String),
}

/// A gateway, and the routing that it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    /// Its name.
    pub name: String,
    /// The epoch of the routing that it runs; none when it does not answer.
    pub epoch: Option<i64>,
}

/// Work that is still bound to a revision. None: it could not be found out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InFlight {
    /// Of the candidate.
    pub candidate: Option<i64>,
    /// Of the stable revision.
    pub stable: Option<i64>,
}

/// What was read for a metric.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reading {
    /// Counters of each source.
    Counters(Vec<Series>),
    /// Findings of a scan of the candidate.
    Findings(Findings),
    /// The provider answered, but with nothing to judge by. It says why in a few words.
    NoData(String),
    /// The provider did not answer. It says why in a few words.
    Unknown(String),
}

/// The counters of one source for one revision. They rise until the source starts anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Series {
    /// Who counts: a pod, together with what tells its lives apart.
    pub source: String,
    /// What it counts for.
    pub revision: String,
    /// When it began to count from zero, when it knows.
    pub since: Option<Timestamp>,
    /// The counters. A provider that knows no users puts all into the first cell.
    pub counts: Counts,
    /// The users that it saw, one bit for each 52nd of them; none when it knows no users.
    pub users: Option<i64>,
}

/// Findings of a scan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Findings {
    pub critical: u32,
    pub high: u32,
    pub medium: u32,
    pub low: u32,
}

impl Findings {
    /// Findings of a severity and of worse ones.
    #[must_use]
    pub fn at_least(self, severity: Severity) -> u32 {
        let all = [
            (Severity::Low, self.low),
            (Severity::Medium, self.medium),
            (Severity::High, self.high),
            (Severity::Critical, self.critical),
        ];
        all.iter().filter(|(s, _)| *s >= severity).fold(0, |sum, (_, n)| sum.saturating_add(*n))
    }
}

/// A counter from a provider that speaks floating point numbers. Anything that is no count, NaN
/// and infinity above all, is no data: never zero, and never a success.
///
/// # Errors
/// When the number is no count, with why in a few words.
pub fn count_of(number: f64) -> Result<i64, String> {
    if !number.is_finite() {
        return Err(format!("the provider answered {number}, which is no count"));
    }
    if !(0.0..9e15).contains(&number) {
        return Err(format!("the provider answered {number}, and a counter is between 0 and 9e15"));
    }
    #[expect(clippy::cast_possible_truncation, reason = "the range is checked")]
    Ok(number.round() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_count_is_no_data() {
        assert_eq!(count_of(12.0), Ok(12));
        assert_eq!(count_of(0.0), Ok(0));
        for number in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1.0, 1e300] {
            assert!(count_of(number).is_err(), "{number}");
        }
    }

    #[test]
    fn worse_findings_count_too() {
        let findings = Findings { critical: 1, high: 2, medium: 4, low: u32::MAX };
        assert_eq!(findings.at_least(Severity::Critical), 1);
        assert_eq!(findings.at_least(Severity::High), 3);
        assert_eq!(findings.at_least(Severity::Low), u32::MAX);
    }
}
