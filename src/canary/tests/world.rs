//! A server, its users and its gateways, as small as a decision can be tested with.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{
    api::canary_release::{CELLS, Command, Counts, Phase, Verb, Verdict},
    canary::{
        Decision, EventKind, Gateway, Health, InFlight, Observation, Plan, Progress, Reading, Series, StoryEvent,
        contract::Contract, decide, plan::SCHEMA_ERRORS,
    },
};

pub const STABLE: &str = "srv-1";
pub const CANDIDATE: &str = "srv-2";

/// Calls of one side so far.
#[derive(Clone, Copy, Default)]
struct Tally {
    counts: Counts,
}

pub struct World {
    pub plan: Plan,
    pub progress: Progress,
    pub seen: Observation,
    pub now: i64,
    pub story: Vec<StoryEvent>,
    /// Whether the controller dies after each turn.
    pub restarts: bool,
    /// Whether gateways take new routing at once.
    pub acks: bool,
    tallies: BTreeMap<(String, String), Tally>,
    /// What to read instead of counters, by metric.
    pub instead: BTreeMap<String, Reading>,
    commands: u32,
    /// Where the remainder of calls that do not fill all cells evenly begins.
    first_cell: usize,
}

/// One stage of an hour at 10%, then one at 50%.
pub fn two_stages() -> Value {
    json!([
        {"name": "small", "percentage": 10, "duration": "1h", "successCriteria": [{"metric": "errorRate", "threshold": "< 1%"}]},
        {"name": "large", "percentage": 50, "duration": "1h"},
    ])
}

pub fn plan_of(stages: &Value, more: &Value) -> Plan {
    let mut spec = json!({"targetRef": {"name": "srv"}, "stages": stages});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    Plan::new(&serde_json::from_value(spec).unwrap()).unwrap()
}

impl World {
    pub fn new(stages: &Value, more: &Value) -> Self {
        let seen = Observation {
            generation: Some(1),
            declared: Some(STABLE.into()),
            candidate: Health::Ready,
            stable: Health::Ready,
            contract: Some(Contract::default()),
            gateways: vec![
                Gateway { name: "g1".into(), epoch: Some(0) },
                Gateway { name: "g2".into(), epoch: Some(0) },
            ],
            in_flight: InFlight { candidate: Some(0), stable: Some(0) },
            ..Observation::default()
        };
        let mut world = Self {
            plan: plan_of(stages, more),
            progress: Progress::default(),
            seen,
            now: 1_795_000_000,
            story: Vec::new(),
            restarts: true,
            acks: true,
            tallies: BTreeMap::new(),
            instead: BTreeMap::new(),
            commands: 0,
            first_cell: 0,
        };
        world.turn(10);
        world.seen.declared = Some(CANDIDATE.into());
        world
    }

    /// A world in its first stage, acknowledged.
    pub fn in_first_stage(stages: &Value, more: &Value) -> Self {
        let mut world = Self::new(stages, more);
        world.until(Phase::Progressing, 10);
        world.turn(10);
        assert!(world.progress.routing.opened);
        world
    }

    /// Lets time pass, and decides.
    pub fn turn(&mut self, seconds: i64) -> Decision {
        self.now += seconds;
        self.turn_at(self.now)
    }

    pub fn turn_at(&mut self, now: i64) -> Decision {
        self.observe();
        let decision = decide(&self.plan, &self.progress, &self.seen, Timestamp::from_second(now).unwrap());
        self.progress = decision.progress.clone();
        if self.restarts {
            self.restart();
        }
        self.story.extend(decision.story.clone());
        decision
    }

    /// A new life of the controller knows what was written, and nothing else.
    pub fn restart(&mut self) {
        let written = serde_json::to_string(&self.progress).unwrap();
        let read = serde_json::from_str(&written).unwrap();
        assert_eq!(self.progress, read, "the status is all there is");
        self.progress = read;
    }

    fn observe(&mut self) {
        if self.acks {
            for gateway in &mut self.seen.gateways {
                gateway.epoch = Some(self.progress.routing.desired_epoch);
            }
        }
        let mut metrics: Vec<&str> =
            self.plan.stages.iter().flat_map(|s| &s.criteria).map(|c| c.metric.as_str()).collect();
        metrics.sort_unstable();
        metrics.dedup();
        let readings = metrics.into_iter().map(|metric| {
            let counters = || {
                let of = |revision: &str| {
                    let tally =
                        self.tallies.get(&(metric.to_owned(), revision.to_owned())).copied().unwrap_or_default();
                    let users = if tally.counts.total.iter().any(|n| *n > 0) { 0xffff_ffff } else { 0 };
                    Series {
                        source: "g1".into(),
                        revision: revision.into(),
                        since: None,
                        counts: tally.counts,
                        users: Some(users),
                    }
                };
                Reading::Counters(vec![of(CANDIDATE), of(STABLE)])
            };
            (metric.to_owned(), self.instead.get(metric).cloned().unwrap_or_else(counters))
        });
        self.seen.readings = readings.collect();
    }

    /// Calls of many users, for every metric; the bad ones are bad for one metric.
    pub fn calls_for(&mut self, bad_metric: &str, revision: &str, bad: i64, total: i64) {
        let metrics: Vec<String> =
            self.plan.stages.iter().flat_map(|s| &s.criteria).map(|c| c.metric.clone()).collect();
        let unique: std::collections::BTreeSet<_> = metrics.into_iter().collect();
        self.first_cell += 1;
        let first = self.first_cell;
        for metric in unique {
            let bad = if metric == bad_metric { bad } else { 0 };
            let tally = self.tallies.entry((metric, revision.to_owned())).or_default();
            for i in 0..CELLS {
                let cells = i64::try_from(CELLS).unwrap();
                let part = |n: i64| n / cells + i64::from(n % cells > i64::try_from(i).unwrap());
                let cell = (first + i) % CELLS;
                tally.counts.bad[cell] += part(bad);
                tally.counts.total[cell] += part(total);
            }
        }
    }

    pub fn calls(&mut self, revision: &str, bad: i64, total: i64) {
        self.calls_for("errorRate", revision, bad, total);
    }

    /// All calls come from users of one cell.
    pub fn calls_of_one(&mut self, metric: &str, revision: &str, bad: i64, total: i64) {
        let tally = self.tallies.entry((metric.to_owned(), revision.to_owned())).or_default();
        tally.counts.bad[3] += bad;
        tally.counts.total[3] += total;
    }

    /// The gateways start anew and count from zero.
    pub fn reset_counters(&mut self) {
        self.tallies.clear();
    }

    /// Good traffic and turns of ten seconds, until the phase comes.
    pub fn until(&mut self, phase: Phase, most_turns: usize) {
        for _ in 0..most_turns {
            self.turn(10);
            if self.progress.phase == phase {
                return;
            }
        }
        panic!("{phase:?} did not come; it is {:?}: {}", self.progress.phase, self.progress.message);
    }

    /// Turns of ten seconds with good traffic.
    pub fn run_well(&mut self, seconds: i64) {
        for _ in 0..seconds / 10 {
            self.calls(CANDIDATE, 0, 40);
            self.calls(STABLE, 0, 360);
            self.turn(10);
        }
    }

    pub fn tell(&mut self, verb: Verb) {
        self.commands += 1;
        self.seen.command = Some(Command {
            id: format!("c{}", self.commands),
            verb,
            release_id: self.progress.release_id.clone().unwrap_or_default(),
            stage: self.progress.stage.as_ref().map(|s| s.name.clone()),
            by: Some("dana".into()),
        });
    }

    pub fn phase(&self) -> Phase {
        self.progress.phase
    }

    pub fn stage(&self) -> String {
        self.progress.stage.as_ref().map(|s| s.name.clone()).unwrap_or_default()
    }

    pub fn active(&self) -> i64 {
        self.progress.stage.as_ref().map_or(0, |s| s.active_seconds)
    }

    pub fn verdict(&self, metric: &str) -> Verdict {
        self.progress.criteria.iter().find(|c| c.metric == metric).unwrap().verdict
    }

    pub fn condition(&self, type_: &str) -> (String, String) {
        let found = self.progress.conditions.iter().find(|c| c.type_ == type_).unwrap();
        (found.status.clone(), found.reason.clone())
    }

    pub fn told(&self, reason: &str) -> usize {
        self.story.iter().filter(|e| e.reason == reason).count()
    }

    pub fn warned(&self, reason: &str) -> bool {
        self.story.iter().any(|e| e.reason == reason && e.kind == EventKind::Warning)
    }
}

#[test]
fn refused_calls_are_watched_too() {
    let world = World::new(&two_stages(), &json!({}));
    assert!(world.plan.stages.iter().all(|s| s.criteria.iter().any(|c| c.metric == SCHEMA_ERRORS)));
}
