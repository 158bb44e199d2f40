//! Counts of a stage, added up and judged.
//!
//! Invariants: a window is counted once; the verdict depends on the counts alone, so it is the
//! same whoever judges and however often; what one user did never decides a breach.

use super::{
    counters::{Window, add, sum},
    plan::{CriterionPlan, Rule, StagePlan},
    statistics::{self, FOLLOWED, LimitTest, comparison, log_sum_exp, log_weight},
};
use crate::api::canary_release::{Block, CELLS, Counts, CriterionStatus, Evidence, RATIOS, Verdict};

/// Fewest bad events for a breach.
pub const MINIMUM_BAD: i64 = 3;

/// Adds a window of `seconds` to the evidence.
pub fn record(evidence: &mut Evidence, window: &Window, seconds: i64, stage: &StagePlan) {
    let Window { candidate, stable_bad, stable_total, users } = window;
    add(&mut evidence.candidate, candidate);
    evidence.stable_bad = evidence.stable_bad.saturating_add(*stable_bad);
    evidence.stable_total = evidence.stable_total.saturating_add(*stable_total);
    evidence.users |= users;
    // What the user with most bad events added is left out of the comparison: it can only lower
    // the scores.
    let worst = if evidence.users == 0 { None } else { worst_cell(&evidence.candidate) };
    let bad = sum(&candidate.bad) - worst.map_or(0, |cell| candidate.bad[cell]);
    let scores = statistics::compare(bad, sum(&candidate.total), *stable_bad, *stable_total);
    for (score, more) in evidence.ratios.iter_mut().zip(scores) {
        *score += more;
    }
    evidence.watched_seconds = evidence.watched_seconds.saturating_add(seconds.max(0));
    let number = evidence.watched_seconds / stage.block;
    if number > evidence.blocks.last().map_or(0, |block| block.number) {
        // What is yet to come decides, so a block may start at any moment that is known before.
        evidence.blocks.push(Block {
            number,
            candidate: evidence.candidate,
            stable_bad: evidence.stable_bad,
            stable_total: evidence.stable_total,
            ratios: evidence.ratios,
        });
        if evidence.blocks.len() > FOLLOWED {
            evidence.blocks.remove(0);
        }
    }
}

fn worst_cell(counts: &Counts) -> Option<usize> {
    (0..CELLS).max_by_key(|i| counts.bad[*i]).filter(|i| counts.bad[*i] > 0)
}

/// What came since the start of a block.
struct Since {
    log_weight: f64,
    candidate: Counts,
    stable_bad: i64,
    stable_total: i64,
    ratios: [f64; RATIOS],
}

fn moments(evidence: &Evidence) -> impl Iterator<Item = Since> + '_ {
    let stage = Block::default();
    std::iter::once(stage).chain(evidence.blocks.iter().cloned()).map(|start| {
        let mut candidate = evidence.candidate;
        let mut ratios = evidence.ratios;
        for i in 0..CELLS {
            candidate.bad[i] -= start.candidate.bad[i];
            candidate.total[i] -= start.candidate.total[i];
        }
        for (ratio, before) in ratios.iter_mut().zip(start.ratios) {
            *ratio -= before;
        }
        Since {
            log_weight: log_weight(start.number),
            candidate,
            stable_bad: evidence.stable_bad - start.stable_bad,
            stable_total: evidence.stable_total - start.stable_total,
            ratios,
        }
    })
}

/// Log evidence that the limit is broken, and what happened since the moment that speaks most for
/// it.
fn breach(test: &LimitTest, evidence: &Evidence) -> (f64, Since) {
    let users_known = evidence.users != 0;
    let mut terms = [f64::NEG_INFINITY; FOLLOWED + 1];
    let mut best: Option<(f64, Since)> = None;
    for (term, since) in terms.iter_mut().zip(moments(evidence)) {
        let (bad, total) = (sum(&since.candidate.bad), sum(&since.candidate.total));
        let mut log_e = test.breach(bad, total);
        let mut enough = bad >= MINIMUM_BAD;
        if users_known && let Some(worst) = worst_cell(&since.candidate) {
            // It must hold without the users of the worst cell as well. The smaller of two is at
            // most the first, so the test stays valid.
            let (others_bad, others) = (bad - since.candidate.bad[worst], total - since.candidate.total[worst]);
            log_e = log_e.min(test.breach(others_bad, others));
            enough &= others_bad > 0;
        }
        if !enough {
            log_e = log_e.min(0.0);
        }
        *term = since.log_weight + log_e;
        if best.as_ref().is_none_or(|(most, _)| *term > *most) {
            best = Some((*term, since));
        }
    }
    let since = best.map_or_else(
        || Since {
            log_weight: 0.0,
            candidate: Counts::default(),
            stable_bad: 0,
            stable_total: 0,
            ratios: [0.0; RATIOS],
        },
        |(_, since)| since,
    );
    (log_sum_exp(&terms), since)
}

/// Log evidence that the candidate is worse than the stable revision.
fn worse(evidence: &Evidence) -> f64 {
    let mut terms = [f64::NEG_INFINITY; FOLLOWED + 1];
    for (term, since) in terms.iter_mut().zip(moments(evidence)) {
        *term = since.log_weight + comparison(since.ratios);
    }
    log_sum_exp(&terms)
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
            let (breach, since) = breach(test, evidence);
            (status.breach, status.breach_at) = (breach, test.breach_at);
            (status.pass, status.pass_at) = (test.pass(bad, total), test.pass_at);
            if breach >= test.breach_at {
                judge_breach(test, &since, worse(evidence), bad, total)
            } else {
                judge_limit(test, status, users, minimum_users)
            }
        }
        Rule::NoWorse(at) => {
            let log_e = worse(evidence);
            (status.breach, status.breach_at) = (log_e, *at);
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

fn judge_breach(test: &LimitTest, since: &Since, worse: f64, bad: i64, total: i64) -> (Verdict, String) {
    let (recent_bad, recent) = (sum(&since.candidate.bad), sum(&since.candidate.total));
    let share = percent(recent_bad, recent);
    let found = if recent == total {
        format!("{bad} of {total} calls were bad ({share}), more than the limit of {}", of(test.limit))
    } else {
        format!("{recent_bad} of the last {recent} calls were bad ({share}), more than the limit of {}", of(test.limit))
    };
    // The stable revision fails alike when it is over the limit too, or when the windows are better
    // explained by equal rates than by twice the rate. Until the candidate is shown to be worse,
    // holding does less harm than blaming it.
    let over = statistics::real(since.stable_bad) > test.limit * statistics::real(since.stable_total);
    let alike = since.stable_bad >= MINIMUM_BAD && (over || since.ratios[0] < 0.0);
    if alike && worse < test.breach_at {
        let stable = percent(since.stable_bad, since.stable_total);
        (Verdict::SharedDegradation, format!("{found}, but so were {stable} of the stable revision's"))
    } else {
        (Verdict::Breach, found)
    }
}

fn judge_limit(test: &LimitTest, status: &CriterionStatus, users: i32, minimum_users: i32) -> (Verdict, String) {
    let (bad, total) = (status.bad, status.total);
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
    if status.breach >= test.pass_at {
        return (Verdict::Undecided, format!("{found}; the last calls look worse than the limit"));
    }
    if status.pass < test.pass_at {
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
    of(statistics::real(bad) / statistics::real(total.max(1)))
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
