//! Two counters of each revision, as one reading.

use crate::{
    api::canary_release::Counts,
    canary::{Reading, Series, observation::count_of},
};

use super::Question;

/// Why a number could not be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The provider answered, but not with exactly one count.
    NoData(String),
    /// The provider did not answer.
    Unknown(String),
}

impl From<Trouble> for Reading {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::NoData(why) => Self::NoData(why),
            Trouble::Unknown(why) => Self::Unknown(why),
        }
    }
}

/// Bad events and all events of a revision.
pub(super) type Pair = Result<(f64, f64), Trouble>;

/// Puts `{{revision}}` into what a user wrote.
pub(super) fn fill_in(template: &str, revision: &str) -> String {
    template.replace("{{revision}}", revision)
}

/// One reading from the counters of both revisions. A stable revision without data is left out, for
/// a metric may be new; then the candidate cannot be compared with it, and only its limit counts.
pub(super) fn reading(source: &str, question: &Question<'_>, candidate: Pair, stable: Pair) -> Reading {
    let counted = |revision: &str, pair: Pair| {
        let (bad, total) = pair?;
        let count = |number| count_of(number).map_err(Trouble::NoData);
        let (bad, total) = (count(bad)?, count(total)?);
        if bad > total {
            return Err(Trouble::NoData(format!(
                "{bad} bad events of {total} in all for {revision}: let total count the bad ones too"
            )));
        }
        let mut counts = Counts::default();
        (counts.bad[0], counts.total[0]) = (bad, total);
        Ok(Series { source: source.into(), revision: revision.into(), since: None, counts, users: None })
    };
    match (counted(question.candidate, candidate), counted(question.stable, stable)) {
        (Err(trouble), _) | (Ok(_), Err(trouble @ Trouble::Unknown(_))) => trouble.into(),
        (Ok(candidate), Ok(stable)) => Reading::Counters(vec![candidate, stable]),
        (Ok(candidate), Err(Trouble::NoData(_))) => Reading::Counters(vec![candidate]),
    }
}
