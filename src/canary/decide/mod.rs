//! The decision itself: one turn, one step at most.
//!
//! Rules, in order: abort, unhealthy candidate, breach, newer revision, other commands, pause,
//! metrics outage, advance. What comes first wins; a turn that changed the phase ends there.

mod advance;
mod commands;
mod conditions;
mod ending;
mod measure;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::{
    Progress,
    observation::{Health, Observation},
    plan::{Plan, StagePlan},
};
use crate::api::canary_release::{ConditionType, EndReason, Hold, HoldReason, Outcome, Phase, Verdict};

/// What is so from now on.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// The new status. It must be written, with the resource version of the one that the decision
    /// was made from, before anything is done about it.
    pub progress: Progress,
    /// What happened, for events, alerts and logs.
    pub story: Vec<StoryEvent>,
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoryEvent {
    /// Whether somebody should look.
    pub kind: EventKind,
    /// What, in one word.
    pub reason: &'static str,
    /// What, in one sentence.
    pub message: String,
}

/// Type of an event, as in Kubernetes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// All goes as it should.
    Normal,
    /// Somebody should look.
    Warning,
}

/// The revisions that must run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The revision that everybody falls back to.
    pub stable: Option<String>,
    /// The revision that is being released, while any request may still go to it.
    pub candidate: Option<String>,
}

/// Which revisions must run. It follows from the progress alone, so whoever reads it does the same.
#[must_use]
pub fn wanted(progress: &Progress) -> Wanted {
    let runs = !progress.phase.is_at_rest()
        && progress.phase != Phase::Pending
        && progress.hold.as_ref().is_none_or(|hold| hold.from != Phase::Pending);
    Wanted { stable: progress.stable_revision.clone(), candidate: progress.candidate_revision.clone().filter(|_| runs) }
}

/// Decides what is so from now on.
///
/// Pure, total and deterministic: equal arguments give equal decisions, and none of them panics.
/// It changes at most one thing about the release, so that each is written before the next.
#[must_use]
pub fn decide(plan: &Plan, progress: &Progress, seen: &Observation, now: Timestamp) -> Decision {
    // Times in a status have whole seconds. Starting from whole seconds, nothing is lost.
    let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
    let mut turn = Turn { plan, seen, now, next: progress.clone(), story: Vec::new(), elapsed: 0 };
    turn.next.observed_generation = seen.generation.or(progress.observed_generation);
    turn.run();
    turn.tell_of_route();
    conditions::write(&mut turn.next, seen, now);
    Decision { progress: turn.next, story: turn.story }
}

/// One decision in the making.
struct Turn<'a> {
    plan: &'a Plan,
    seen: &'a Observation,
    now: Timestamp,
    next: Progress,
    story: Vec<StoryEvent>,
    /// Seconds since the last turn that count.
    elapsed: i64,
}

impl Turn<'_> {
    fn run(&mut self) {
        self.tick();
        self.acknowledge();
        let Some(declared) = &self.seen.declared else {
            self.next.message = "the server does not exist: create it, or change targetRef".into();
            return;
        };
        if self.next.stable_revision.is_none() {
            self.next.stable_revision = Some(declared.clone());
            self.next.message = format!("{declared} is the stable revision");
            self.tell(EventKind::Normal, "StableRevisionKnown", self.next.message.clone());
            return;
        }
        if self.next.phase.is_at_rest() {
            self.rest();
            return;
        }
        self.sync_stage();
        self.watch_candidate();
        self.measure();
        if self.next.phase.is_ending() {
            self.refuse_command("the release is on its way back already");
            self.go_back();
            return;
        }
        let settled = self.abort()
            || self.unhealthy()
            || self.breached()
            || self.revision_changed()
            || self.command()
            || self.paused()
            || self.outage();
        if !settled {
            self.advance();
        }
    }

    fn time(&self) -> Time {
        Time(self.now)
    }

    fn tell(&mut self, kind: EventKind, reason: &'static str, message: impl Into<String>) {
        self.story.push(StoryEvent { kind, reason, message: message.into() });
    }

    fn enter(&mut self, phase: Phase) {
        self.next.phase = phase;
        self.next.phase_seconds = 0;
    }

    fn stage_plan(&self) -> Option<&StagePlan> {
        let index = self.next.stage.as_ref()?.index;
        self.plan.stages.get(usize::try_from(index).ok()?)
    }

    fn candidate(&self) -> String {
        self.next.candidate_revision.clone().unwrap_or_default()
    }

    fn stable(&self) -> String {
        self.next.stable_revision.clone().unwrap_or_default()
    }

    /// Changes who gets the candidate.
    fn route(&mut self, percentage: i32, users: Vec<String>, groups: Vec<String>) {
        let routing = &mut self.next.routing;
        routing.percentage = percentage;
        routing.users = users;
        routing.groups = groups;
        routing.desired_epoch += 1;
    }

    /// Remembers which route sends requests to the candidate, and tells when that changes. It decides nothing: a
    /// release goes on by what Perch's gateways do.
    fn tell_of_route(&mut self) {
        let Some(route) = &self.seen.route else { return };
        match route.percentage {
            Some(0) => self.next.http_route = None,
            Some(_) => self.next.http_route = Some(route.name.clone()),
            None => {}
        }
        let told = |c: &Condition| {
            let same_words = route.percentage.is_none() || c.message == route.message;
            c.type_ == ConditionType::HttpRouteWeighted.as_str() && c.reason == route.reason && same_words
        };
        if !self.next.conditions.iter().any(told) {
            let kind = if route.percentage.is_some() { EventKind::Normal } else { EventKind::Warning };
            self.tell(kind, route.reason, route.message.clone());
        }
    }

    /// Whether every gateway runs the wished routing. Nobody to ask is no yes.
    fn is_acked(&self) -> bool {
        !self.seen.gateways.is_empty() && self.next.routing.acked_epoch == self.next.routing.desired_epoch
    }

    fn lagging(&self) -> String {
        let epoch = self.next.routing.desired_epoch;
        let late = self.seen.gateways.iter().filter(|g| g.epoch != Some(epoch)).map(|g| g.name.as_str());
        let late: Vec<_> = late.take(5).collect();
        if late.is_empty() { "any gateway".into() } else { late.join(", ") }
    }

    /// What the candidate waits for, as the end of a sentence.
    fn why_not_ready(&self) -> String {
        if self.seen.waits.is_empty() { String::new() } else { format!(" ({})", self.seen.waits) }
    }

    fn unhealthy(&mut self) -> bool {
        if wanted(&self.next).candidate.is_none() {
            return false;
        }
        let candidate = self.candidate();
        let late = self.next.unready_seconds >= self.plan.progress_deadline;
        let (reason, message) = match &self.seen.candidate {
            Health::Failing(why) => (EndReason::CandidateUnhealthy, format!("{candidate} fails: {why}")),
            Health::Starting if late => (
                EndReason::ProgressDeadlineExceeded,
                format!("{candidate} was not ready for {} seconds{}", self.next.unready_seconds, self.why_not_ready()),
            ),
            _ => return false,
        };
        let stable_as_well = match self.seen.candidate {
            Health::Failing(_) => matches!(self.seen.stable, Health::Failing(_)),
            _ => !matches!(self.seen.stable, Health::Ready),
        };
        if stable_as_well {
            return self.shared_degradation(&format!("{message}, and {} is no better", self.stable()));
        }
        self.end(Outcome::RolledBack, reason, message);
        true
    }

    fn breached(&mut self) -> bool {
        let of = |verdict| self.next.criteria.iter().find(move |c| c.verdict == verdict);
        if let Some(criterion) = of(Verdict::Breach) {
            let message = format!("{} {}: {}", criterion.metric, criterion.threshold, criterion.reason);
            self.end(Outcome::RolledBack, EndReason::CriterionBreached, message);
            return true;
        }
        if let Some(criterion) = of(Verdict::SharedDegradation)
            && self.next.phase != Phase::Promoting
        {
            let message = format!("{} {}: {}", criterion.metric, criterion.threshold, criterion.reason);
            return self.shared_degradation(&message);
        }
        false
    }

    fn shared_degradation(&mut self, message: &str) -> bool {
        let message = format!("{message}; resume starts the stage's evidence anew");
        self.hold(Phase::Paused, HoldReason::SharedDegradation, message)
    }

    fn revision_changed(&mut self) -> bool {
        let Some(declared) = self.seen.declared.clone().filter(|d| *d != self.candidate()) else { return false };
        let (outcome, message) = if declared == self.stable() {
            (Outcome::Withdrawn, format!("the server declares its stable revision {declared} again"))
        } else {
            (
                Outcome::Superseded,
                format!("the server declares {declared}; it follows when nobody uses {}", self.candidate()),
            )
        };
        self.end(outcome, EndReason::RevisionChanged, message);
        true
    }

    /// Waits for something. Says whether that is new.
    fn hold(&mut self, phase: Phase, reason: HoldReason, message: String) -> bool {
        if self.next.hold.as_ref().is_some_and(|hold| hold.reason == reason) {
            return false;
        }
        let from = self.next.hold.as_ref().map_or(self.next.phase, |hold| hold.from);
        self.enter(phase);
        let kind = if matches!(reason, HoldReason::Spec | HoldReason::Command | HoldReason::Approval) {
            EventKind::Normal
        } else {
            EventKind::Warning
        };
        self.tell(kind, reason.as_str(), message.clone());
        self.next.message.clone_from(&message);
        self.next.hold = Some(Hold { reason, message, since: self.time(), from });
        true
    }

    /// Goes on where it was held.
    fn go_on(&mut self, message: &str) {
        if let Some(hold) = self.next.hold.take() {
            self.enter(hold.from);
            self.next.message = message.to_owned();
            self.tell(EventKind::Normal, "Resumed", message);
        }
    }

    fn paused(&mut self) -> bool {
        let reason = self.next.hold.as_ref().map(|hold| hold.reason);
        match reason {
            Some(HoldReason::Spec) if !self.plan.paused => {
                self.go_on("spec.paused is false again");
                true
            }
            Some(HoldReason::MetricsOutage) if self.next.outage_seconds == 0 && !self.plan.paused => {
                self.go_on("the metrics are back");
                true
            }
            Some(HoldReason::InsufficientData) => {
                self.tell_what_suffices();
                true
            }
            Some(_) => true,
            None if self.plan.paused && self.next.phase != Phase::Promoting => {
                self.hold(Phase::Paused, HoldReason::Spec, "spec.paused is true: set it to false to go on".into())
            }
            None => false,
        }
    }

    /// A release that was held for lack of evidence waits for a person, also when the evidence comes
    /// later: whoever was called decides what happens next. It says when it is there.
    fn tell_what_suffices(&mut self) {
        let Some(hold) = &self.next.hold else { return };
        let suffices = !self.next.criteria.is_empty() && self.next.criteria.iter().all(|c| c.verdict == Verdict::Pass);
        let message = if suffices { "the evidence suffices now: resume to go on".into() } else { hold.message.clone() };
        if suffices && self.next.message != message {
            self.tell(EventKind::Normal, "EvidenceSuffices", message.clone());
        }
        self.next.message = message;
    }

    fn outage(&mut self) -> bool {
        if self.next.phase != Phase::Progressing || self.next.verdict != Some(Verdict::Unknown) {
            return false;
        }
        let unknown = self.next.criteria.iter().find(|c| c.verdict == Verdict::Unknown);
        let why = unknown.map(|c| format!("{}: {}", c.metric, c.reason)).unwrap_or_default();
        if self.plan.on_metrics_outage == crate::api::canary_release::OnMetricsOutage::Pause
            && self.next.outage_seconds >= self.plan.metrics_timeout
        {
            let message = format!(
                "metrics are unavailable for {} seconds ({why}); it goes on when they are back",
                self.next.outage_seconds
            );
            return self.hold(Phase::Paused, HoldReason::MetricsOutage, message);
        }
        self.next.message = format!("the clock stands still while metrics are unavailable ({why})");
        true
    }

    fn frozen(&self) -> Option<&str> {
        self.plan.freeze_windows.iter().find(|w| w.holds(self.now)).map(|w| w.name.as_str())
    }
}
