//! How often releases are rolled back, rightly and wrongly, and how soon: the tests of
//! `perch::canary` beside the simple thresholds that are common. `make sim` runs it; its output is
//! in docs/canary-statistics.md.

#![expect(clippy::cast_precision_loss, clippy::cast_possible_wrap, reason = "simulated counts are small")]

use std::{hint::black_box, time::Instant};

use jiff::Timestamp;
use perch::{
    api::canary_release::{CELLS, Counts, CriterionStatus, Evidence, Verdict},
    canary::{
        Gateway, Health, InFlight, Observation, Plan, Progress, Reading, Series,
        contract::Contract,
        counters::Window,
        decide,
        evidence::{judge, record},
        plan::{CriterionPlan, StagePlan},
    },
    routing::cohort::assign,
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::json;

/// Minutes of a stage of 48 h.
const MINUTES: usize = 48 * 60;
/// Simulated stages for each figure.
const STAGES: u64 = 400;

fn plan(threshold: &str) -> Plan {
    let spec = json!({"targetRef": {"name": "x"}, "stages": [{"name": "a", "percentage": 10, "duration": "48h",
        "successCriteria": [{"metric": "errorRate", "threshold": threshold}]}]});
    Plan::new(&serde_json::from_value(spec).expect("a spec")).expect("a plan")
}

/// Bad events of each minute, found by their gaps.
fn bad_minutes(random: &mut StdRng, calls: i64, rate: impl Fn(usize) -> f64) -> Vec<(i64, [i64; CELLS])> {
    (0..MINUTES)
        .map(|minute| {
            let mut cells = [0; CELLS];
            let rate = rate(minute);
            if rate <= 0.0 {
                return (0, cells);
            }
            #[expect(clippy::cast_possible_truncation, reason = "gaps beyond a minute are cut")]
            let gap =
                |random: &mut StdRng| (random.random::<f64>().max(1e-300).ln() / (1.0 - rate).ln()).min(1e15) as i64;
            let (mut at, mut bad) = (gap(random), 0);
            while at < calls {
                cells[random.random_range(0..CELLS)] += 1;
                bad += 1;
                at += 1 + gap(random);
            }
            (bad, cells)
        })
        .collect()
}

#[derive(Clone, Copy, Default)]
struct Outcome {
    rolled_back_at: Option<usize>,
    passed: bool,
}

/// The tests of this crate.
fn ours(stage: &StagePlan, criterion: &CriterionPlan, calls: i64, minutes: &[(i64, [i64; CELLS])]) -> Outcome {
    let mut status = CriterionStatus { evidence: Evidence::default(), ..CriterionStatus::default() };
    for (minute, (bad, cells)) in minutes.iter().enumerate() {
        let mut counts = Counts { bad: *cells, total: [calls / CELLS as i64; CELLS] };
        for cell in 0..CELLS {
            counts.total[cell] =
                (counts.total[cell] + i64::from(calls % CELLS as i64 > cell as i64)).max(counts.bad[cell]);
        }
        record(
            &mut status.evidence,
            &Window { candidate: counts, users: 0xffff, ..Window::default() },
            60,
            stage,
            criterion,
        );
        // Evidence for a breach grows with bad calls only.
        if *bad > 0 {
            judge(criterion, &mut status, 5);
            if status.verdict == Verdict::Breach {
                return Outcome { rolled_back_at: Some(minute), passed: false };
            }
        }
    }
    judge(criterion, &mut status, 5);
    Outcome { rolled_back_at: None, passed: status.verdict == Verdict::Pass }
}

/// One measurement a minute, rolled back at the sixth that is over the limit.
fn points(limit: f64, calls: i64, minutes: &[(i64, [i64; CELLS])]) -> Outcome {
    let mut failures = 0;
    for (minute, (bad, _)) in minutes.iter().enumerate() {
        failures += i32::from(*bad as f64 > limit * calls as f64);
        if failures > 5 {
            return Outcome { rolled_back_at: Some(minute), passed: false };
        }
    }
    Outcome { rolled_back_at: None, passed: true }
}

/// The rate since the start of the stage, looked at each minute once there are 100 calls.
fn running_rate(limit: f64, calls: i64, minutes: &[(i64, [i64; CELLS])]) -> Outcome {
    let (mut bad, mut total) = (0, 0);
    for (minute, (more, _)) in minutes.iter().enumerate() {
        bad += more;
        total += calls;
        if total >= 100 && bad as f64 > limit * total as f64 {
            return Outcome { rolled_back_at: Some(minute), passed: false };
        }
    }
    Outcome { rolled_back_at: None, passed: true }
}

fn summary(outcomes: &[Outcome], from: usize) -> String {
    let mut times: Vec<usize> = outcomes.iter().filter_map(|o| o.rolled_back_at).filter(|t| *t >= from).collect();
    let early = outcomes.iter().filter_map(|o| o.rolled_back_at).filter(|t| *t < from).count();
    times.sort_unstable();
    let percent = |n: usize| 100.0 * n as f64 / outcomes.len() as f64;
    let passed = outcomes.iter().filter(|o| o.passed).count();
    let median = times.get(times.len() / 2).map_or("-".to_owned(), |t| duration(t - from + 1));
    if from > 0 {
        format!("{:5.1}% {median:>7} {:6.1}%", percent(times.len()), percent(early))
    } else {
        format!("{:5.1}% {median:>7} {:6.1}%", percent(times.len()), percent(passed))
    }
}

fn duration(minutes: usize) -> String {
    if minutes < 120 { format!("{minutes}m") } else { format!("{:.1}h", minutes as f64 / 60.0) }
}

fn grid() {
    println!(
        "Stages of 48 h, one look a minute, {STAGES} of each; falseRollback 1%, falsePass 5%, as they are by default."
    );
    println!(
        "'back' is the share that was rolled back, 'after' the median time until then, 'pass' the share that passed."
    );
    println!("Rates up to 1 x limit: 'back' is wrong. Above: what is neither back nor passed waits for a person.\n");
    println!(
        "limit  calls/min  true rate |  perch: back   after    pass | 6 bad points: back after pass | running rate: back after pass"
    );
    for (threshold, limit) in [("< 0.1%", 0.001), ("< 0.5%", 0.005)] {
        let plan = plan(threshold);
        let (stage, criterion) = (&plan.stages[0], &plan.stages[0].criteria[0]);
        for calls in [1, 30, 600] {
            for factor in [0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 50.0] {
                let rate = limit * factor;
                let mut all = [Vec::new(), Vec::new(), Vec::new()];
                for seed in 0..STAGES {
                    let mut random = StdRng::seed_from_u64(seed);
                    let minutes = bad_minutes(&mut random, calls, |_| rate);
                    all[0].push(ours(stage, criterion, calls, &minutes));
                    all[1].push(points(limit, calls, &minutes));
                    all[2].push(running_rate(limit, calls, &minutes));
                }
                println!(
                    "{threshold:<7} {calls:>8} {factor:>6} x     | {} | {} | {}",
                    summary(&all[0], 0),
                    summary(&all[1], 0),
                    summary(&all[2], 0)
                );
            }
        }
    }
}

fn late() {
    println!("\n40 good hours, then a regression, 30 calls a minute, limit 0.1%. 'early' is rolled back before it.");
    println!("from -> to          |  perch: found after   early | 6 bad points                | running rate");
    let plan = plan("< 0.1%");
    let (stage, criterion) = (&plan.stages[0], &plan.stages[0].criteria[0]);
    let turn = 40 * 60;
    for (before, after) in [(0.0, 0.005), (0.0, 0.01), (0.0, 0.05), (0.0005, 0.01)] {
        let mut all = [Vec::new(), Vec::new(), Vec::new()];
        for seed in 0..STAGES {
            let mut random = StdRng::seed_from_u64(seed);
            let minutes = bad_minutes(&mut random, 30, |minute| if minute < turn { before } else { after });
            all[0].push(ours(stage, criterion, 30, &minutes));
            all[1].push(points(0.001, 30, &minutes));
            all[2].push(running_rate(0.001, 30, &minutes));
        }
        let line: Vec<_> = all.iter().map(|outcomes| summary(outcomes, turn)).collect();
        println!("{:>5.2}% -> {:>4.1}%     | {}", before * 100.0, after * 100.0, line.join(" | "));
    }
}

fn speed() {
    let users: Vec<String> = (0..1000).map(|i| format!("user-{i}@example.com")).collect();
    // The quickest of many short batches: other work on the machine does not count.
    let batch = || {
        let start = Instant::now();
        for user in &users {
            black_box(assign(black_box("everything-6f9c.17"), black_box(user), 10));
        }
        start.elapsed().as_secs_f64() * 1e9 / 1000.0
    };
    println!("\nassign: {:.0} ns", (0..1000).map(|_| batch()).fold(f64::INFINITY, f64::min));
    let spec = json!({"targetRef": {"name": "x"}, "stages": [{"name": "a", "percentage": 10, "duration": "48h", "successCriteria": [
        {"metric": "errorRate", "threshold": "< 0.5%"}, {"metric": "latencyP99", "threshold": "< 200ms"}]}]});
    let plan = Plan::new(&serde_json::from_value(spec).expect("a spec")).expect("a plan");
    let mut progress = Progress::default();
    let mut seen = Observation {
        declared: Some("x-1".into()),
        candidate: Health::Ready,
        stable: Health::Ready,
        contract: Some(Contract::default()),
        in_flight: InFlight { candidate: Some(0), stable: Some(0) },
        ..Observation::default()
    };
    let mut now = 1_795_000_000;
    let mut spent = Vec::new();
    for turn in 0..12_000_i64 {
        now += 10;
        seen.declared = Some(if turn == 0 { "x-1" } else { "x-2" }.into());
        seen.gateways = vec![Gateway { name: "g".into(), epoch: Some(progress.routing.desired_epoch) }];
        let series = |revision: &str, share: i64| Series {
            source: "g".into(),
            revision: revision.into(),
            since: None,
            counts: Counts { bad: [turn * share / 50; CELLS], total: [turn * share * 10; CELLS] },
            users: Some(0xffff),
        };
        let reading = Reading::Counters(vec![series("x-2", 1), series("x-1", 9)]);
        seen.readings = ["errorRate", "latencyP99", "schemaErrors"].map(|m| (m.to_owned(), reading.clone())).to_vec();
        let at = Timestamp::from_second(now).expect("a time");
        let start = Instant::now();
        let decision = decide(&plan, &progress, &seen, at);
        if turn > 10_000 {
            spent.push(start.elapsed().as_secs_f64() * 1e6);
        }
        progress = decision.progress;
    }
    spent.sort_by(f64::total_cmp);
    let size = serde_json::to_string(&progress).expect("JSON").len();
    println!(
        "decide: {:.1} µs (median) with 3 criteria and {} marks; status {size} bytes as JSON ({:?})",
        spent[spent.len() / 2],
        progress.criteria[0].evidence.marks.len(),
        progress.phase
    );
}

fn main() {
    grid();
    late();
    speed();
}
