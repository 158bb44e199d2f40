#![expect(clippy::cast_possible_wrap, clippy::cast_possible_truncation, reason = "simulated counts are small")]

use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::json;

use super::*;
use crate::canary::plan::Plan;

/// A stage of 48 h with one limit, alone, so that the whole chance of 1% is its own.
fn stage(threshold: &str) -> (StagePlan, CriterionPlan) {
    let spec = json!({"targetRef": {"name": "x"}, "stages": [{"name": "a", "percentage": 10, "duration": "48h",
        "successCriteria": [{"metric": "errorRate", "threshold": threshold}]}]});
    let mut stage = Plan::new(&serde_json::from_value(spec).unwrap()).unwrap().stages.remove(0);
    let mut criterion = stage.criteria.remove(0);
    let Rule::Limit(test) = &criterion.rule else { panic!("a share has a limit") };
    criterion.rule = Rule::Limit(Box::new(LimitTest::new(test.limit, 0.01, 0.05)));
    (stage, criterion)
}

fn window(cells: &[(usize, i64, i64)], stable: (i64, i64)) -> Window {
    let mut window = Window { stable_bad: stable.0, stable_total: stable.1, ..Window::default() };
    for (cell, bad, total) in cells {
        window.candidate.bad[*cell] += bad;
        window.candidate.total[*cell] += total;
        window.users |= 0b11_1111 << cell;
    }
    window
}

/// Calls spread over all cells, each bad with a chance.
fn calls(random: &mut StdRng, number: i64, rate: f64) -> Window {
    let mut window = Window { users: 0xffff, ..Window::default() };
    for _ in 0..number {
        let cell = random.random_range(0..CELLS);
        window.candidate.total[cell] += 1;
        window.candidate.bad[cell] += i64::from(random.random_bool(rate));
    }
    window
}

fn verdict(criterion: &CriterionPlan, evidence: &Evidence) -> (Verdict, String) {
    let mut status = CriterionStatus { evidence: evidence.clone(), ..CriterionStatus::default() };
    judge(criterion, &mut status, 5);
    (status.verdict, status.reason)
}

fn even(bad: i64, total: i64, stable: (i64, i64)) -> Window {
    let share = |n: i64, i: usize| {
        let cells = CELLS as i64;
        n / cells + i64::from(n % cells > i as i64)
    };
    let cells: Vec<_> = (0..CELLS).map(|i| (i, share(bad, i), share(total, i))).collect();
    window(&cells, stable)
}

fn after(threshold: &str, windows: &[Window]) -> (Verdict, String) {
    let (stage, criterion) = stage(threshold);
    let mut evidence = Evidence::default();
    for window in windows {
        record(&mut evidence, window, 10, &stage, &criterion);
    }
    verdict(&criterion, &evidence)
}

#[test]
fn good_calls_pass_and_few_calls_do_not() {
    assert_eq!(after("< 0.1%", &[even(0, 4000, (0, 0))]).0, Verdict::Pass);
    let (verdict, reason) = after("< 0.1%", &[even(0, 400, (0, 0))]);
    assert_eq!(verdict, Verdict::Undecided);
    assert!(
        reason.starts_with("0 of 400 calls were bad (0%), the limit is 0.1%; 3")
            && reason.ends_with("more good calls would show that it holds"),
        "{reason}"
    );
    assert_eq!(after("< 0.1%", &[]).0, Verdict::NoData);
}

#[test]
fn bad_calls_breach_and_say_so() {
    let (verdict, reason) = after("< 0.5%", &[even(24, 1000, (0, 9000))]);
    assert_eq!(verdict, Verdict::Breach);
    assert_eq!(reason, "24 of 1000 calls were bad (2.4%), more than the limit of 0.5%");
}

#[test]
fn two_bad_calls_are_too_few() {
    // From a metric that knows no users, two of two would be evidence enough by the numbers.
    let of = |bad: i64| Window { users: 0, ..window(&[(0, bad, bad)], (0, 100)) };
    let (stage, criterion) = stage("< 0.1%");
    let Rule::Limit(test) = &criterion.rule else { panic!("a share has a limit") };
    let mut evidence = Evidence::default();
    record(&mut evidence, &of(2), 10, &stage, &criterion);
    assert!(log_mean_exp(&evidence.scores[0]) > test.breach_at);
    assert_eq!(verdict(&criterion, &evidence).0, Verdict::Undecided);
    assert_eq!(after("< 0.1%", &[of(3)]).0, Verdict::Breach);
}

#[test]
fn one_user_with_nearly_all_errors_decides_nothing() {
    // 95 of 100 errors are of one user; the others have 5 in 2500 calls, within 0.5%.
    let mut cells = vec![(3, 95, 200)];
    cells.extend([(0, 1, 500), (1, 1, 500), (2, 1, 500), (4, 1, 500), (5, 1, 500)]);
    let (verdict, reason) = after("< 0.5%", &[window(&cells, (0, 20_000))]);
    assert_eq!(verdict, Verdict::Undecided, "{reason}");
    assert!(reason.contains("too few users, to blame the candidate"), "{reason}");
    // The same number of errors spread over users is a breach.
    assert_eq!(after("< 0.5%", &[even(100, 2700, (0, 20_000))]).0, Verdict::Breach);
}

#[test]
fn a_stage_needs_its_users() {
    let mut few = even(0, 10_000, (0, 0));
    few.users = 0b111;
    let (verdict, reason) = after("< 0.1%", &[few]);
    assert_eq!(verdict, Verdict::Undecided);
    assert!(reason.ends_with("3 of at least 5 users have used the candidate"), "{reason}");
}

#[test]
fn an_outage_of_both_is_not_the_candidates_fault() {
    let (verdict, reason) = after("< 0.5%", &[even(300, 1000, (2700, 9000))]);
    assert_eq!(verdict, Verdict::SharedDegradation, "{reason}");
    assert!(reason.ends_with("but so were 30% of the stable revision's"), "{reason}");
    // Ten times the errors of a stable revision that is over the limit as well is its own fault.
    assert_eq!(after("< 0.5%", &[even(300, 1000, (270, 9000))]).0, Verdict::Breach);
}

/// An outage hits both alike while the candidate has more users than before it. Sums over the whole
/// time would blame the candidate; windows do not.
#[test]
fn an_outage_at_a_larger_share_is_not_the_candidates_fault() {
    let mut windows = vec![even(0, 500, (0, 9500)); 50];
    windows.extend(vec![even(250, 5000, (250, 5000)); 5]);
    assert_eq!(after("< 0.5%", &windows).0, Verdict::SharedDegradation);
}

#[test]
fn refused_calls_count_when_they_rise() {
    let (stage, _) = stage("< 0.5%");
    let criterion = CriterionPlan {
        metric: "schemaErrors".into(),
        threshold: String::new(),
        signal: crate::canary::plan::Signal::SchemaErrors,
        rule: Rule::NoWorse(6.0),
    };
    let judged = |window: &Window| {
        let mut evidence = Evidence::default();
        record(&mut evidence, window, 10, &stage, &criterion);
        verdict(&criterion, &evidence).0
    };
    assert_eq!(judged(&even(0, 0, (0, 0))), Verdict::Pass);
    assert_eq!(judged(&even(20, 1000, (180, 9000))), Verdict::Pass, "bad clients are on both sides");
    assert_eq!(judged(&even(80, 1000, (20, 9000))), Verdict::Breach);
    assert_eq!(judged(&window(&[(2, 80, 100), (4, 0, 900)], (20, 9000))), Verdict::Pass, "one bad client");
}

/// Forty good hours and some, then 1% of the calls fail. It is found in minutes; one test over the
/// whole stage would have it outweighed by good calls for hours.
#[test]
fn a_late_regression_is_found_in_minutes() {
    let (stage, criterion) = stage("< 0.1%");
    let Rule::Limit(test) = &criterion.rule else { panic!("a share has a limit") };
    for good_minutes in [40 * 60, 41 * 60 + 47] {
        let mut minutes = Vec::new();
        let mut by_one_test = 0;
        for seed in 0..40 {
            let mut random = StdRng::seed_from_u64(seed);
            let mut evidence = Evidence::default();
            for _ in 0..good_minutes {
                record(&mut evidence, &even(0, 30, (0, 0)), 60, &stage, &criterion);
            }
            assert_eq!(verdict(&criterion, &evidence).0, Verdict::Pass);
            let found = (1..=600).find(|_| {
                record(&mut evidence, &calls(&mut random, 30, 0.01), 60, &stage, &criterion);
                verdict(&criterion, &evidence).0 == Verdict::Breach
            });
            minutes.push(found.unwrap_or(600));
            let (bad, total) = (sum(&evidence.candidate.bad), sum(&evidence.candidate.total));
            by_one_test += usize::from(test.breach(bad, total) >= test.breach_at);
        }
        minutes.sort_unstable();
        assert!(minutes[20] <= 45, "median {} minutes", minutes[20]);
        assert!(minutes[39] <= 150, "longest {} minutes", minutes[39]);
        assert_eq!(by_one_test, 0, "a single test finds none of them by then");
    }
}

/// What is told is true also when the marks are too far apart to show the share of bad calls.
#[test]
fn a_regression_after_the_last_mark_is_told_as_one() {
    let (stage, criterion) = stage("< 0.5%");
    let mut evidence = Evidence::default();
    for _ in 0..600 {
        record(&mut evidence, &even(0, 300, (0, 0)), 60, &stage, &criterion);
    }
    let found = (0..600).find_map(|_| {
        record(&mut evidence, &even(6, 300, (0, 0)), 60, &stage, &criterion);
        Some(verdict(&criterion, &evidence)).filter(|(verdict, _)| *verdict == Verdict::Breach)
    });
    let (_, reason) = found.expect("2% are found");
    assert!(reason.starts_with("the latest calls break the limit of 0.5%: of the last "), "{reason}");
}

/// The rate is half the limit in ten thousand stages of 48 h. At most 1% may be found broken; the
/// allowance on top is three standard deviations of a count at exactly 1%.
#[test]
fn false_rollbacks_are_as_rare_as_promised() {
    let found = false_breaches("< 0.5%", 0.5, 240, 10_000, 48);
    assert!(found <= 130, "{found} of 10000 stages at half the limit");
}

/// The same at the limit itself: this is where the promise is spent.
#[test]
fn a_rate_at_the_limit_is_within_the_promise() {
    let found = false_breaches("< 1%", 1.0, 120, 1000, 48);
    assert!(found <= 10 + 10, "{found} of 1000 stages at the limit");
}

fn false_breaches(threshold: &str, part: f64, per_window: i64, stages: u64, windows: i64) -> usize {
    let (stage, criterion) = stage(threshold);
    let Rule::Limit(test) = &criterion.rule else { panic!("a share has a limit") };
    let rate = test.limit * part;
    (0..stages)
        .filter(|seed| {
            let mut random = StdRng::seed_from_u64(*seed);
            let mut evidence = Evidence::default();
            let seconds = 48 * 3600 / windows;
            (0..windows).any(|_| {
                let window = sparse(&mut random, per_window, rate);
                record(&mut evidence, &window, seconds, &stage, &criterion);
                // Evidence for a breach grows with bad calls only: no need to look without one.
                sum(&window.candidate.bad) > 0 && breach(test, &evidence) >= test.breach_at
            })
        })
        .count()
}

/// Calls in even cells; bad ones are found by their gaps, which is quick when they are rare.
fn sparse(random: &mut StdRng, number: i64, rate: f64) -> Window {
    let mut window = even(0, number, (0, 0));
    window.users = 0xffff;
    let gap = |random: &mut StdRng| (random.random::<f64>().max(1e-300).ln() / (1.0 - rate).ln()) as i64;
    let mut at = gap(random);
    while at < number {
        let cell = random.random_range(0..CELLS);
        window.candidate.bad[cell] = (window.candidate.bad[cell] + 1).min(window.candidate.total[cell]);
        at += 1 + gap(random);
    }
    window
}

/// A candidate at its limit passes no more often than promised, although one looks 96 times.
#[test]
fn false_passes_are_as_rare_as_promised() {
    let (stage, criterion) = stage("< 1%");
    let Rule::Limit(test) = &criterion.rule else { panic!("a share has a limit") };
    let stages = 1000;
    let passed = (0..stages)
        .filter(|seed| {
            let mut random = StdRng::seed_from_u64(*seed);
            let mut evidence = Evidence::default();
            (0..96).any(|_| {
                record(&mut evidence, &sparse(&mut random, 60, test.limit), 1800, &stage, &criterion);
                test.pass(sum(&evidence.candidate.bad), sum(&evidence.candidate.total)) >= test.pass_at
            })
        })
        .count();
    assert!(passed <= 50 + 21, "{passed} of {stages}");
}

#[test]
fn evidence_stays_small() {
    let (stage, criterion) = stage("< 1%");
    let mut evidence = Evidence::default();
    for _ in 0..10_000 {
        record(&mut evidence, &even(1, 80, (1, 80)), 600, &stage, &criterion);
    }
    assert!(evidence.marks.len() <= MARKS);
    let text = serde_json::to_string(&evidence).unwrap();
    assert!(text.len() < 6000, "{}", text.len());
    assert_eq!(serde_json::from_str::<Evidence>(&text).unwrap(), evidence);
}
