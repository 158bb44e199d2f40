//! The scripts for CanaryReleases, on the statuses that decisions write, from one release to the
//! next. What an action writes is read as the operator reads it, and decided on.

use jiff::Timestamp;
use perch::{
    api::canary_release::{COMMAND_ANNOTATION, CanaryRelease, Command, Counts, Phase, Verb},
    canary::{Gateway, Health, InFlight, Observation, Plan, Reading, Series, contract::Contract, decide},
};
use serde_json::{Value, json};

use crate::{
    kstatus::{KStatus, kstatus},
    scripts::Scripts,
};

/// A release that time passes for.
struct World {
    release: CanaryRelease,
    seen: Observation,
    now: i64,
    calls: i64,
    bad: i64,
}

impl World {
    /// A server whose stable revision is known.
    fn new(more: &Value) -> Self {
        let mut spec = json!({"targetRef": {"name": "srv"}, "stages": [
            {"name": "pilot", "percentage": 10, "duration": "60s", "successCriteria": [{"metric": "errorRate", "threshold": "< 5%"}]},
            {"name": "wide", "percentage": 50, "duration": "60s"}]});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let mut release = CanaryRelease::new("srv", serde_json::from_value(spec).unwrap());
        release.metadata.namespace = Some("default".into());
        release.metadata.generation = Some(1);
        let seen = Observation {
            generation: Some(1),
            declared: Some("srv-1".into()),
            candidate: Health::Ready,
            stable: Health::Ready,
            contract: Some(Contract::default()),
            in_flight: InFlight { candidate: Some(0), stable: Some(0) },
            ..Observation::default()
        };
        let mut world = Self { release, seen, now: 1_795_000_000, calls: 0, bad: 0 };
        world.turn();
        world
    }

    fn phase(&self) -> Phase {
        self.release.status.as_ref().unwrap().phase
    }

    /// Ten seconds, with a hundred calls of many users.
    fn turn(&mut self) {
        self.now += 10;
        self.calls += 100;
        let status = self.release.status.clone().unwrap_or_default();
        self.seen.gateways = vec![Gateway { name: "g".into(), epoch: Some(status.routing.desired_epoch) }];
        self.seen.readings = ["errorRate", "schemaErrors"]
            .map(|metric| {
                let bad = if metric == "errorRate" { self.bad } else { 0 };
                let series = |revision: &str, bad: i64| Series {
                    source: "g".into(),
                    revision: revision.into(),
                    since: None,
                    counts: Counts { bad: [bad; 16], total: [self.calls; 16] },
                    users: Some(0xffff),
                };
                (metric.to_owned(), Reading::Counters(vec![series("srv-1", 0), series("srv-2", bad)]))
            })
            .to_vec();
        let plan = Plan::new(&self.release.spec).unwrap();
        let annotation = self.release.metadata.annotations.as_ref().and_then(|a| a.get(COMMAND_ANNOTATION));
        self.seen.command = annotation.map(|text| Command::parse(text).expect("the script writes a command"));
        let decision = decide(&plan, &status, &self.seen, Timestamp::from_second(self.now).unwrap());
        self.release.status = Some(decision.progress);
        self.release.metadata.resource_version = Some(self.now.to_string());
    }

    fn until(&mut self, phase: Phase) {
        for _ in 0..100 {
            if self.phase() == phase {
                return;
            }
            self.turn();
        }
        panic!("{phase:?} did not come, it is {:?}", self.release.status);
    }

    /// A release in its first stage.
    fn released(more: &Value) -> Self {
        let mut world = Self::new(more);
        world.seen.declared = Some("srv-2".into());
        world.until(Phase::Progressing);
        world
    }

    fn object(&self) -> Value {
        serde_json::to_value(&self.release).unwrap()
    }

    /// Does what a click does, and what the operator does then.
    fn act(&mut self, scripts: &Scripts, action: &str) -> (Verb, bool, String) {
        let before = self.object();
        assert!(scripts.enabled(&before).contains(&action.to_owned()), "{action} is offered");
        let mut after = scripts.act(action, &before);
        let annotation = after["metadata"]["annotations"][COMMAND_ANNOTATION].take();
        let mut metadata = before["metadata"].clone();
        metadata["annotations"] = json!({COMMAND_ANNOTATION: null});
        // Lua knows no fractions that are whole, so the status is not compared; it is not written either.
        assert_eq!(
            (&after["metadata"], &after["spec"]),
            (&metadata, &before["spec"]),
            "{action} writes the annotation alone"
        );
        let annotations = [(COMMAND_ANNOTATION.to_owned(), annotation.as_str().unwrap().to_owned())];
        self.release.metadata.annotations = Some(annotations.into());
        self.turn();
        let result = self.release.status.as_ref().unwrap().last_command.clone().expect("it was read");
        assert_eq!(result.by.as_deref(), Some("argocd"));
        (result.verb, result.accepted, result.result)
    }
}

fn health(scripts: &Scripts, world: &World) -> String {
    scripts.health(&world.object()).0
}

#[test]
fn health_follows_a_release_that_goes_well() {
    let scripts = Scripts::of("CanaryRelease");
    let mut world = World::new(&json!({}));
    assert_eq!((health(&scripts, &world).as_str(), kstatus(&world.object())), ("Healthy", KStatus::Current));
    world.seen.declared = Some("srv-2".into());
    let mut seen = Vec::new();
    for _ in 0..100 {
        world.turn();
        if world.phase() == Phase::Succeeded {
            break;
        }
        let object = world.object();
        assert_eq!(scripts.health(&object).0, "Progressing", "{object}");
        assert_eq!(kstatus(&object), KStatus::InProgress);
        seen.push(world.phase());
    }
    seen.dedup();
    assert_eq!(seen, [Phase::Pending, Phase::Deploying, Phase::Progressing, Phase::Promoting]);
    assert_eq!((health(&scripts, &world).as_str(), kstatus(&world.object())), ("Healthy", KStatus::Current));

    let mut changed = world.object();
    changed["metadata"]["generation"] = json!(2);
    assert_eq!(scripts.health(&changed).0, "Progressing", "the status is of the generation before");
    changed.as_object_mut().unwrap().remove("status");
    assert_eq!(scripts.health(&changed).0, "Progressing", "there is no status yet");
}

#[test]
fn health_is_bad_from_the_decision_to_take_back_on() {
    let scripts = Scripts::of("CanaryRelease");
    let mut world = World::released(&json!({}));
    for _ in 0..20 {
        world.bad += 30;
        world.turn();
        if world.phase() == Phase::RollingBack {
            break;
        }
    }
    for phase in [Phase::RollingBack, Phase::Draining, Phase::RolledBack] {
        assert_eq!(world.phase(), phase);
        let (health, message) = scripts.health(&world.object());
        assert_eq!(health, "Degraded", "{phase:?}: {message}");
        world.turn();
    }
    let (_, message) = scripts.health(&world.object());
    assert!(message.contains("errorRate < 5%"), "{message}");
    assert_eq!(kstatus(&world.object()), KStatus::Failed);
    world.seen.declared = Some("srv-1".into());
    world.turn();
    world.turn();
    assert_eq!(health(&scripts, &world), "Healthy", "Git declares the stable revision again");
}

#[test]
fn actions_are_offered_when_they_are_of_use() {
    let scripts = Scripts::of("CanaryRelease");
    let mut world = World::new(&json!({}));
    assert!(scripts.enabled(&world.object()).is_empty(), "nothing is under way");
    world.seen.declared = Some("srv-2".into());
    world.turn();
    assert_eq!(scripts.enabled(&world.object()), ["abort", "pause"]);
    world.until(Phase::Progressing);
    assert_eq!(scripts.enabled(&world.object()), ["abort", "pause", "promote"]);
    let mut paused = world.object();
    paused["spec"]["paused"] = json!(true);
    assert!(!scripts.enabled(&paused).contains(&"promote".to_owned()), "the spec forbids it");
    world.until(Phase::Succeeded);
    assert!(scripts.enabled(&world.object()).is_empty());
    let none = json!({"metadata": {}, "spec": {}});
    assert!(scripts.enabled(&none).is_empty(), "there is no status yet");
}

#[test]
fn what_an_action_writes_is_obeyed() {
    let scripts = Scripts::of("CanaryRelease");
    let mut world = World::released(&json!({}));
    assert_eq!(world.act(&scripts, "pause"), (Verb::Pause, true, "the release is paused".into()));
    assert_eq!((world.phase(), health(&scripts, &world).as_str()), (Phase::Paused, "Suspended"));
    assert!(scripts.health(&world.object()).1.contains("paused by argocd"));
    assert_eq!(scripts.enabled(&world.object()), ["abort", "promote", "resume"]);
    assert_eq!(world.act(&scripts, "resume"), (Verb::Resume, true, "the release goes on".into()));
    assert_eq!(world.phase(), Phase::Progressing);
    assert_eq!(world.act(&scripts, "abort"), (Verb::Abort, true, "srv-2 is taken back".into()));
    world.until(Phase::RolledBack);
    assert_eq!(scripts.enabled(&world.object()), ["retry"]);
    assert_eq!(world.act(&scripts, "retry"), (Verb::Retry, true, "srv-2 is released again".into()));
    world.until(Phase::Progressing);
    assert_eq!(world.act(&scripts, "promote"), (Verb::Promote, true, "everybody gets the candidate".into()));
    world.until(Phase::Succeeded);
    assert_eq!(health(&scripts, &world), "Healthy");
}

#[test]
fn approval_is_a_resume() {
    let scripts = Scripts::of("CanaryRelease");
    let stages = json!({"stages": [{"name": "pilot", "percentage": 10, "duration": "60s", "approval": "Manual", "successCriteria": []}]});
    let mut world = World::released(&stages);
    world.until(Phase::AwaitingApproval);
    assert_eq!(health(&scripts, &world), "Suspended");
    assert_eq!(world.act(&scripts, "resume"), (Verb::Resume, true, "the stage is approved".into()));
    world.until(Phase::Succeeded);
}
