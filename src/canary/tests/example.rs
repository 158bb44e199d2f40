//! The release of the design, whole, in simulated time: internal 48 h, pilot 10% 72 h, gradual
//! 25/50/75/100 over 72 h.

use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};

use super::world::{CANDIDATE, STABLE, World};
use crate::api::canary_release::{Outcome, Phase};

fn stages() -> Value {
    json!([
        {"name": "internal", "groups": ["infrastructure-team", "qa-team"], "duration": "48h", "successCriteria": [
            {"metric": "errorRate", "threshold": "< 0.1%"}, {"metric": "latencyP99", "threshold": "< 200ms"}]},
        {"name": "pilot", "users": ["dana@example.com"], "percentage": 10, "duration": "72h", "successCriteria": [
            {"metric": "errorRate", "threshold": "< 0.5%"}, {"metric": "latencyP99", "threshold": "< 300ms"}]},
        {"name": "gradual", "schedule": [
            {"after": "0h", "percentage": 25}, {"after": "24h", "percentage": 50},
            {"after": "48h", "percentage": 75}, {"after": "72h", "percentage": 100}]},
    ])
}

/// Runs a release with turns of a minute. At random, a decision is lost before it is written, or
/// the controller is away for some minutes. Errors begin at some hour, if any. Returns the world,
/// the share and hour of each change, and the seconds between the errors and the way back.
fn run(seed: u64, errors_from_hour: Option<i64>) -> (World, Vec<(i32, i64)>, Option<i64>) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut world = World::new(&stages(), &json!({}));
    world.restarts = false;
    let start = world.now;
    let mut shares: Vec<(i32, i64)> = Vec::new();
    let mut back = None;
    while world.now - start < 400 * 3600 {
        let hour = (world.now - start) / 3600;
        let share = i64::from(world.progress.routing.percentage.max(2));
        let open = matches!(world.phase(), Phase::Progressing | Phase::Promoting);
        if open {
            let total = 3 * share;
            let rate = if errors_from_hour.is_some_and(|from| hour >= from) { 0.02 } else { 0.0002 };
            let bad = (0..total).filter(|_| random.random_bool(rate)).count();
            world.calls(CANDIDATE, i64::try_from(bad).unwrap(), total);
        }
        world.calls(STABLE, i64::from(random.random_bool(0.05)), 3 * (100 - share));
        match random.random_range(0..100) {
            0..5 => {
                // Decided, and killed before the write.
                let saved = world.progress.clone();
                world.turn(random.random_range(1..60));
                world.progress = saved;
                world.restart();
            }
            5 => {
                world.turn(random.random_range(60..900));
                world.restart();
            }
            _ => {
                world.turn(60);
            }
        }
        let routed = world.progress.routing.percentage;
        if shares.last().is_none_or(|(last, _)| *last != routed) && open {
            shares.push((routed, (world.now - start) / 3600));
        }
        if world.phase() == Phase::RollingBack && back.is_none() {
            back = errors_from_hour.map(|from| world.now - start - from * 3600);
        }
        if matches!(world.phase(), Phase::Succeeded | Phase::RolledBack | Phase::Failed) {
            break;
        }
    }
    (world, shares, back)
}

#[test]
fn it_reaches_everybody_in_its_time() {
    let (world, shares, _) = run(3, None);
    assert_eq!(world.phase(), Phase::Succeeded, "{}", world.progress.message);
    let order: Vec<_> = shares.iter().map(|(share, _)| *share).filter(|s| *s > 0).collect();
    assert_eq!(order, [10, 25, 50, 75, 100, 0][..5], "{shares:?}");
    // Never early: time that nobody watched does not count.
    let hours: Vec<_> = shares.iter().filter(|(s, _)| *s > 0).map(|(_, hour)| *hour).collect();
    let earliest = [48, 120, 144, 168, 192];
    assert!(hours.iter().zip(earliest).all(|(hour, least)| *hour >= least), "{hours:?}");
    assert!(hours.iter().zip(earliest).all(|(hour, least)| *hour <= least + 40), "{hours:?}");
    assert_eq!((world.told("StageStarted"), world.told("PercentageRaised")), (3, 3));
}

#[test]
fn a_late_regression_takes_it_back() {
    let (world, _, back) = run(7, Some(100));
    assert_eq!(world.phase(), Phase::RolledBack, "{}", world.progress.message);
    let last = &world.progress.history[0];
    assert_eq!((last.outcome, last.stage.as_deref()), (Outcome::RolledBack, Some("pilot")));
    assert!(last.percentage <= 25, "{last:?}");
    assert!(back.unwrap() < 2 * 3600, "{back:?} seconds");
}
