//! What is new in raw counters.
//!
//! A counter is compared with its own last value, for each source and revision, so a source that
//! starts anew, comes or goes makes no spike. The last values travel with the evidence in one
//! write: what is counted is counted once, whoever dies when.

use jiff::Timestamp;

use super::observation::Series;
use crate::api::canary_release::{Baseline, CELLS, Counts};

/// Most sources that are remembered for one criterion.
const SOURCES: usize = 64;

/// What was counted between two observations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// The candidate's counts.
    pub candidate: Counts,
    /// The stable revision's bad events.
    pub stable_bad: i64,
    /// The stable revision's events.
    pub stable_total: i64,
    /// The candidate's users, one bit for each 52nd of them; 0 when none is known.
    pub users: i64,
}

/// Counters that contradict each other.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{source_name} has several series for {revision}")]
pub struct SeveralSeries {
    /// The source.
    pub source_name: String,
    /// The revision.
    pub revision: String,
}

/// Counts what is new since the last call, and remembers it in `baselines`.
///
/// A source that was not seen before counts in full when it began within the window, after
/// `window_start`; else what it counted until now is not of this window. A counter that fell began
/// anew, so all that it holds is new. A source that is silent keeps its place.
///
/// # Errors
/// When a source has several series for one revision; nothing is counted then.
pub fn advance(
    baselines: &mut Vec<Baseline>,
    series: &[Series],
    candidate: &str,
    stable: &str,
    window_start: Option<Timestamp>,
) -> Result<Window, SeveralSeries> {
    for (i, one) in series.iter().enumerate() {
        if series[..i].iter().any(|s| s.source == one.source && s.revision == one.revision) {
            return Err(SeveralSeries { source_name: one.source.clone(), revision: one.revision.clone() });
        }
    }
    baselines.retain(|b| b.revision == candidate || b.revision == stable);
    let mut window = Window::default();
    for one in series.iter().filter(|s| s.revision == candidate || s.revision == stable) {
        let now = sound(one.counts);
        let known = baselines.iter_mut().find(|b| b.source == one.source && b.revision == one.revision);
        let new = if let Some(baseline) = known {
            let new = difference(&baseline.counts, &now);
            baseline.counts = now;
            new
        } else {
            baselines.push(Baseline { source: one.source.clone(), revision: one.revision.clone(), counts: now });
            let began_within = one.since.zip(window_start).is_some_and(|(since, start)| since >= start);
            if began_within { now } else { Counts::default() }
        };
        if one.revision == candidate {
            add(&mut window.candidate, &new);
            if new.total.iter().any(|n| *n > 0) {
                window.users |= one.users.unwrap_or(0);
            }
        } else {
            window.stable_bad = window.stable_bad.saturating_add(sum(&new.bad));
            window.stable_total = window.stable_total.saturating_add(sum(&new.total));
        }
    }
    // Silent sources go first when there are too many.
    if baselines.len() > SOURCES {
        baselines.retain(|b| series.iter().any(|s| s.source == b.source));
        baselines.truncate(SOURCES);
    }
    Ok(window)
}

/// Counters of which none is negative, and none has more bad events than events.
fn sound(counts: Counts) -> Counts {
    let mut counts = counts;
    for i in 0..CELLS {
        counts.total[i] = counts.total[i].max(0);
        counts.bad[i] = counts.bad[i].clamp(0, counts.total[i]);
    }
    counts
}

fn difference(before: &Counts, now: &Counts) -> Counts {
    let fell = (0..CELLS).any(|i| now.bad[i] < before.bad[i] || now.total[i] < before.total[i]);
    if fell {
        return *now;
    }
    let mut new = *now;
    for i in 0..CELLS {
        new.total[i] -= before.total[i];
        new.bad[i] = (new.bad[i] - before.bad[i]).min(new.total[i]);
    }
    new
}

/// Adds counts, cell by cell.
pub(super) fn add(to: &mut Counts, more: &Counts) {
    for i in 0..CELLS {
        to.bad[i] = to.bad[i].saturating_add(more.bad[i]);
        to.total[i] = to.total[i].saturating_add(more.total[i]);
    }
}

/// The sum of all cells.
pub(super) fn sum(cells: &[i64; CELLS]) -> i64 {
    cells.iter().fold(0, |sum, n| sum.saturating_add(*n))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(bad: i64, total: i64) -> Counts {
        let mut counts = Counts::default();
        counts.bad[3] = bad;
        counts.total[3] = total;
        counts
    }

    fn series(source: &str, revision: &str, bad: i64, total: i64) -> Series {
        Series {
            source: source.into(),
            revision: revision.into(),
            since: None,
            counts: counts(bad, total),
            users: Some(1),
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn only_what_is_new_counts() {
        let mut known = Vec::new();
        let first = advance(&mut known, &[series("g1", "new", 5, 100)], "new", "old", None).unwrap();
        assert_eq!(first, Window::default(), "what was there before the first look is not of this window");
        let next = [series("g1", "new", 7, 130), series("g1", "old", 1, 10), series("g1", "older", 9, 9)];
        let second = advance(&mut known, &next, "new", "old", None).unwrap();
        assert_eq!((second.candidate, second.stable_total, second.users), (counts(2, 30), 0, 1));
        let again = advance(&mut known, &next, "new", "old", None).unwrap();
        assert_eq!(again, Window::default());
    }

    #[test]
    fn a_reset_makes_no_spike() {
        let mut known = Vec::new();
        advance(&mut known, &[series("g1", "new", 50, 10_000)], "new", "old", None).unwrap();
        let window = advance(&mut known, &[series("g1", "new", 1, 20)], "new", "old", None).unwrap();
        assert_eq!(window.candidate, counts(1, 20));
        let window = advance(&mut known, &[series("g1", "new", 1, 25)], "new", "old", None).unwrap();
        assert_eq!(window.candidate, counts(0, 5));
    }

    #[test]
    fn a_source_that_comes_or_goes_makes_no_spike() {
        let mut known = Vec::new();
        advance(&mut known, &[series("g1", "new", 0, 100)], "new", "old", Some(at(0))).unwrap();
        // g2 was there all along, unseen; g3 began within the window.
        let mut g3 = series("g3", "new", 1, 40);
        g3.since = Some(at(15));
        let both = [series("g2", "new", 90, 9000), g3];
        let window = advance(&mut known, &both, "new", "old", Some(at(10))).unwrap();
        assert_eq!(window.candidate, counts(1, 40));
        // g1 comes back and has counted on.
        let window = advance(&mut known, &[series("g1", "new", 1, 130)], "new", "old", Some(at(20))).unwrap();
        assert_eq!(window.candidate, counts(1, 30));
    }

    #[test]
    fn several_series_are_no_data() {
        let mut known = vec![Baseline { source: "g1".into(), revision: "new".into(), counts: counts(0, 0) }];
        let twice = [series("g1", "new", 0, 10), series("g1", "new", 0, 20)];
        let error = advance(&mut known, &twice, "new", "old", None).unwrap_err();
        assert_eq!(error.to_string(), "g1 has several series for new");
        assert_eq!(known[0].counts, counts(0, 0), "nothing was counted");
    }

    #[test]
    fn nonsense_counters_do_no_harm() {
        let mut known = Vec::new();
        advance(&mut known, &[series("g1", "new", 0, 0)], "new", "old", None).unwrap();
        let window = advance(&mut known, &[series("g1", "new", 50, 10)], "new", "old", None).unwrap();
        assert_eq!(window.candidate, counts(10, 10));
        let window = advance(&mut known, &[series("g1", "new", -5, -7)], "new", "old", None).unwrap();
        assert_eq!(window.candidate, counts(0, 0));
    }

    #[test]
    fn sources_are_not_remembered_without_end() {
        let mut known = Vec::new();
        for i in 0..1000 {
            advance(&mut known, &[series(&format!("g{i}"), "new", 0, 1)], "new", "old", None).unwrap();
        }
        assert!(known.len() <= SOURCES);
    }
}
