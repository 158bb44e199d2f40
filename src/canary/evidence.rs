//! Counts of a stage, added up and judged.
//!
//! Invariants: a window is counted once; the verdict depends on what was recorded alone, so it is the
//! same whoever judges and however often; what one user did never decides a breach.

use super::{
    counters::{Window, add, sum},
    plan::{CriterionPlan, Rule, StagePlan},
    statistics::{LimitTest, MOMENTS, begin, compare, kept, log_mean_exp, log_weight, real},
};
use crate::api::canary_release::{CELLS, Counts, CriterionStatus, Evidence, Mark, NO_EVIDENCE, Verdict};

/// Fewest bad events for a breach.
pub const MINIMUM_BAD: i64 = 3;
/// Marks that are kept.
const MARKS: usize = 24;

/// Adds a window of `seconds` to the evidence.
pub fn record(evidence: &mut Evidence, window: &Window, seconds: i64, stage: &StagePlan, criterion: &CriterionPlan) {
    // Moments that have come see this window; their weights were fixed before.
    let due = evidence.watched_seconds / stage.moment + 1;
    if evidence.moments < due {
        let weight = log_weight(evidence.moments, due - 1);
        evidence.scores.iter_mut().for_each(|scores| begin(scores, weight));
        begin(&mut evidence.ratios, weight);
        evidence.moments = due;
        mark(evidence, stage);
    }
    let Window { candidate, stable_bad, stable_total, users } = window;
    add(&mut evidence.candidate, candidate);
    evidence.stable_bad = evidence.stable_bad.saturating_add(*stable_bad);
    evidence.stable_total = evidence.stable_total.saturating_add(*stable_total);
    evidence.users |= users;
    evidence.watched_seconds = evidence.watched_seconds.saturating_add(seconds.max(0));
    let (bad, total) = (sum(&candidate.bad), sum(&candidate.total));
    if let Rule::Limit(test) = &criterion.rule {
        for (i, scores) in evidence.scores.iter_mut().enumerate() {
            // First all calls, then all but those of one cell.
            let (less_bad, less) = i.checked_sub(1).map_or((0, 0), |cell| (candidate.bad[cell], candidate.total[cell]));
            test.follow(scores, bad - less_bad, total - less);
        }
    }
    // What the users of the worst cell added is left out of the comparison: it can only lower it.
    let worst = if evidence.users == 0 { None } else { worst_cell(&evidence.candidate) };
    let scores = compare(bad - worst.map_or(0, |cell| candidate.bad[cell]), total, *stable_bad, *stable_total);
    for (ratio, score) in evidence.ratios.iter_mut().zip(scores) {
        *ratio = kept(*ratio + score);
    }
    evidence.twice = kept(evidence.twice + scores[0]);
}

/// Remembers the counts twelve times in the planned duration, and as often afterwards.
fn mark(evidence: &mut Evidence, stage: &StagePlan) {
    let last = evidence.marks.last().map_or(0, |mark| mark.watched_seconds);
    if evidence.watched_seconds - last < stage.moment * (MOMENTS / 12) {
        return;
    }
    evidence.marks.push(Mark {
        watched_seconds: evidence.watched_seconds,
        bad: sum(&evidence.candidate.bad),
        total: sum(&evidence.candidate.total),
        stable_bad: evidence.stable_bad,
        stable_total: evidence.stable_total,
        twice: evidence.twice,
    });
    if evidence.marks.len() > MARKS {
        evidence.marks.remove(0);
    }
}

fn worst_cell(counts: &Counts) -> Option<usize> {
    (0..CELLS).max_by_key(|i| counts.bad[*i]).filter(|i| counts.bad[*i] > 0)
}

/// Log evidence that the limit is broken.
fn breach(test: &LimitTest, evidence: &Evidence) -> f64 {
    let bad = &evidence.candidate.bad;
    let users_known = evidence.users != 0;
    let all = evidence.scores.first().map_or(NO_EVIDENCE, |scores| log_mean_exp(scores));
    if sum(bad) < MINIMUM_BAD || (users_known && bad.iter().filter(|n| **n > 0).count() < 2) {
        return all.min(0.0);
    }
    if !users_known {
        return all;
    }
    // Whichever cell is left out, the others must show it too, if only as surely as a pass is
    // shown: so no single user decides. The lesser of two is at most the first, so the test stays
    // valid.
    let others = evidence.scores.iter().skip(1).map(|scores| log_mean_exp(scores)).fold(all, f64::min);
    all.min(others + (test.breach_at - test.pass_at).max(0.0))
}

/// Log evidence that the candidate is worse than the stable revision.
fn worse(evidence: &Evidence) -> f64 {
    log_mean_exp(&evidence.ratios)
}

/// What came since the mark that speaks most for a breach.
fn since(test: &LimitTest, evidence: &Evidence) -> Mark {
    let now = Mark {
        watched_seconds: evidence.watched_seconds,
        bad: sum(&evidence.candidate.bad),
        total: sum(&evidence.candidate.total),
        stable_bad: evidence.stable_bad,
        stable_total: evidence.stable_total,
        twice: evidence.twice,
    };
    let start = Mark::default();
    let all = std::iter::once(&start).chain(&evidence.marks).map(|mark| Mark {
        watched_seconds: now.watched_seconds - mark.watched_seconds,
        bad: now.bad - mark.bad,
        total: now.total - mark.total,
        stable_bad: now.stable_bad - mark.stable_bad,
        stable_total: now.stable_total - mark.stable_total,
        twice: now.twice - mark.twice,
    });
    let strength = |mark: &Mark| test.breach(mark.bad, mark.total);
    all.max_by(|a, b| strength(a).total_cmp(&strength(b))).unwrap_or_default()
}

fn rounded(number: f64) -> f64 {
    (number * 1e3).round() / 1e3
}

/// Judges what was recorded, and writes verdict, numbers and reason into the status.
pub fn judge(criterion: &CriterionPlan, status: &mut CriterionStatus, minimum_users: i32) {
    let evidence = &status.evidence;
    let (bad, total) = (sum(&evidence.candidate.bad), sum(&evidence.candidate.total));
    (status.bad, status.total) = (bad, total);
    (status.stable_bad, status.stable_total) = (evidence.stable_bad, evidence.stable_total);
    let users = i32::try_from(evidence.users.count_ones()).unwrap_or(i32::MAX);
    status.users = users;
    let (verdict, reason) = match &criterion.rule {
        Rule::Limit(test) => {
            let breach = breach(test, evidence);
            let pass = test.pass(bad, total);
            (status.breach, status.breach_at) = (rounded(breach), rounded(test.breach_at));
            (status.pass, status.pass_at) = (rounded(pass), rounded(test.pass_at));
            if breach >= test.breach_at {
                judge_breach(test, &since(test, evidence), worse(evidence), bad, total)
            } else {
                judge_limit(test, status, (breach, pass), minimum_users)
            }
        }
        Rule::NoWorse(at) => {
            let log_e = worse(evidence);
            (status.breach, status.breach_at) = (rounded(log_e), rounded(*at));
            (status.pass, status.pass_at) = (0.0, 0.0);
            let shares = format!(
                "{bad} of {total} calls were refused, and {} of {} by the stable revision",
                evidence.stable_bad, evidence.stable_total
            );
            if log_e >= *at && bad >= MINIMUM_BAD {
                (Verdict::Breach, format!("{shares}: the candidate refuses calls that worked"))
            } else {
                (Verdict::Pass, shares)
            }
        }
        // Findings are judged when they are read.
        Rule::Findings { .. } => return,
    };
    status.verdict = verdict;
    status.reason = reason;
}

fn judge_breach(test: &LimitTest, since: &Mark, worse: f64, bad: i64, total: i64) -> (Verdict, String) {
    let (recent_bad, recent) = (since.bad, since.total);
    let share = percent(recent_bad, recent);
    let found = if real(recent_bad) <= test.limit * real(recent) {
        // It began after the last mark, so that good calls from before are among them.
        format!(
            "the latest calls break the limit of {}: of the last {recent}, {recent_bad} were bad ({share}), most of them just now",
            of(test.limit)
        )
    } else if recent == total {
        format!("{bad} of {total} calls were bad ({share}), more than the limit of {}", of(test.limit))
    } else {
        format!("{recent_bad} of the last {recent} calls were bad ({share}), more than the limit of {}", of(test.limit))
    };
    // The stable revision fails alike when it is over the limit too, or when the windows are better
    // explained by equal rates than by twice the rate. Until the candidate is shown to be worse,
    // holding does less harm than blaming it.
    let over = real(since.stable_bad) > test.limit * real(since.stable_total);
    let alike = since.stable_bad >= MINIMUM_BAD && (over || since.twice < 0.0);
    if alike && worse < test.breach_at {
        let stable = percent(since.stable_bad, since.stable_total);
        (Verdict::SharedDegradation, format!("{found}, but so were {stable} of the stable revision's"))
    } else {
        (Verdict::Breach, found)
    }
}

fn judge_limit(
    test: &LimitTest,
    status: &CriterionStatus,
    (breach, pass): (f64, f64),
    minimum_users: i32,
) -> (Verdict, String) {
    let (bad, total, users) = (status.bad, status.total, status.users);
    if total == 0 {
        return (Verdict::NoData, "no calls yet".into());
    }
    let found = format!("{bad} of {total} calls were bad ({}), the limit is {}", percent(bad, total), of(test.limit));
    if test.breach(bad, total) >= test.breach_at {
        return (
            Verdict::Undecided,
            format!("{found}; it is too few bad calls, or too few users, to blame the candidate"),
        );
    }
    if breach >= test.pass_at {
        return (Verdict::Undecided, format!("{found}; the last calls look worse than the limit"));
    }
    if pass < test.pass_at {
        let more = test.good_calls_to_pass(bad, total);
        return (Verdict::Undecided, format!("{found}; {more} more good calls would show that it holds"));
    }
    if users > 0 && users < minimum_users {
        return (
            Verdict::Undecided,
            format!("{found}; {users} of at least {minimum_users} users have used the candidate"),
        );
    }
    (Verdict::Pass, found)
}

fn percent(bad: i64, total: i64) -> String {
    of(real(bad) / real(total.max(1)))
}

/// A share with as many digits as it needs.
fn of(share: f64) -> String {
    let percent = share * 100.0;
    let digits = if percent == 0.0 || percent >= 10.0 {
        0
    } else if percent >= 1.0 {
        1
    } else if percent >= 0.1 {
        2
    } else {
        4
    };
    let text = format!("{percent:.digits$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}%")
}

#[cfg(test)]
mod tests;
