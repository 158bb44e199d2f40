//! Taking a candidate back, resting, and starting anew.

use super::{EventKind, Turn};
use crate::api::canary_release::{
    EndReason, Ending, FailedRevision, Finding, HistoryEntry, Outcome, Phase, Verb, Verdict,
};

/// Ended releases that a status keeps.
const HISTORY: usize = 20;
/// Revisions taken back that a status keeps.
const FAILED: usize = 50;

impl Turn<'_> {
    /// Decides that the release ends. Everybody is routed to the stable revision first.
    pub(super) fn end(&mut self, outcome: Outcome, reason: EndReason, message: String) {
        let had_users = self.next.stage.is_some();
        let by_itself = reason != EndReason::Aborted;
        let outcome = if outcome == Outcome::RolledBack && !had_users && by_itself { Outcome::Failed } else { outcome };
        self.enter(match outcome {
            Outcome::Superseded | Outcome::Withdrawn => Phase::Superseded,
            _ => Phase::RollingBack,
        });
        self.next.hold = None;
        if let Some(stage) = &mut self.next.stage {
            // What was reached stays visible; the routing says what is so now.
            stage.percentage = stage.percentage.max(self.next.routing.percentage);
        }
        self.route(0, Vec::new(), Vec::new());
        let at = self.time();
        if matches!(outcome, Outcome::RolledBack | Outcome::Failed) {
            // At once, so that the revision stays out whatever happens on the way.
            let failed = FailedRevision { revision: self.candidate(), message: message.clone(), at: at.clone() };
            self.next.failed_revisions.retain(|f| f.revision != failed.revision);
            self.next.failed_revisions.insert(0, failed);
            self.next.failed_revisions.truncate(FAILED);
            self.tell(
                EventKind::Warning,
                "RollingBack",
                format!("everybody goes back to {}: {message}", self.stable()),
            );
        } else {
            self.tell(EventKind::Normal, reason.as_str(), message.clone());
        }
        self.next.message.clone_from(&message);
        self.next.ending = Some(Ending { outcome, reason, message, at });
    }

    /// One step on the way back: route, drain, be gone.
    pub(super) fn go_back(&mut self) {
        let nobody_routes = self.seen.gateways.is_empty() && !self.next.routing.opened;
        let routed = self.is_acked() || nobody_routes;
        if !routed {
            if self.next.phase == Phase::Draining {
                // A gateway came up with old routing.
                self.enter(Phase::RollingBack);
            }
            self.next.phase_seconds = 0;
            self.next.message = format!("waiting for {} to send everybody to {}", self.lagging(), self.stable());
            return;
        }
        if self.next.phase == Phase::RollingBack {
            self.enter(Phase::Draining);
            self.next.message = format!("nobody new gets {}; its calls finish", self.candidate());
            self.tell(EventKind::Normal, "Draining", self.next.message.clone());
            return;
        }
        // Who routes elsewhere tells nobody of calls in flight, so they get their time.
        let drained = self.seen.in_flight.candidate == Some(0) && self.seen.route.is_none();
        if drained || self.next.phase_seconds >= self.plan.drain_timeout {
            self.finish();
        } else {
            self.next.message = format!("calls of {} finish", self.candidate());
        }
    }

    /// Nothing of the release is left to be done.
    pub(super) fn finish(&mut self) {
        let Some(ending) = self.next.ending.take() else { return };
        let now = self.time();
        let (stable, candidate) = (self.stable(), self.candidate());
        // What was bad is kept beyond the next release; what was fine needs no record.
        let bad = matches!(ending.outcome, Outcome::RolledBack | Outcome::Failed);
        let open = self.next.criteria.iter().filter(|c| bad && c.verdict != Verdict::Pass);
        let evidence = open.map(Finding::from).collect();
        let contract = self.next.tool_contract.as_ref().filter(|_| bad);
        let tool_changes = contract.map(|c| c.findings.clone()).unwrap_or_default();
        self.next.history.insert(
            0,
            HistoryEntry {
                release_id: self.next.release_id.clone().unwrap_or_default(),
                stable_revision: stable.clone(),
                candidate_revision: candidate.clone(),
                outcome: ending.outcome,
                reason: ending.reason,
                message: ending.message.clone(),
                stage: self.next.stage.as_ref().map(|s| s.name.clone()),
                percentage: match ending.outcome {
                    Outcome::Succeeded => 100,
                    _ => self.next.stage.as_ref().map_or(0, |s| s.percentage),
                },
                started_at: self.next.started_at.clone().unwrap_or_else(|| now.clone()),
                decided_at: ending.at,
                ended_at: now,
                evidence,
                tool_changes,
            },
        );
        self.next.history.truncate(HISTORY);
        for criterion in &mut self.next.criteria {
            // The verdict stays readable; what it was made from is of no more use.
            criterion.evidence.marks.clear();
            criterion.evidence.scores.clear();
            criterion.baselines.clear();
        }
        self.next.routing.opened = false;
        let (phase, reason, message) = match ending.outcome {
            Outcome::Succeeded => {
                // One write makes the candidate the stable revision and clears the split, so there
                // is no moment at which the old revision is meant.
                self.next.stable_revision = Some(candidate.clone());
                self.next.candidate_revision = None;
                self.route(0, Vec::new(), Vec::new());
                (Phase::Succeeded, "Promoted", format!("{candidate} is the stable revision"))
            }
            Outcome::RolledBack => {
                (Phase::RolledBack, "RolledBack", format!("{candidate} was taken back: {}", ending.message))
            }
            Outcome::Failed => (Phase::Failed, "Failed", format!("{candidate} had no users yet: {}", ending.message)),
            Outcome::Superseded | Outcome::Withdrawn => {
                self.next.candidate_revision = None;
                (Phase::Idle, "CandidateRemoved", format!("{candidate} is gone: {}", ending.message))
            }
        };
        self.enter(phase);
        self.next.message.clone_from(&message);
        let kind =
            if matches!(phase, Phase::RolledBack | Phase::Failed) { EventKind::Warning } else { EventKind::Normal };
        self.tell(kind, reason, message);
    }

    /// No release is under way.
    pub(super) fn rest(&mut self) {
        let Some(declared) = self.seen.declared.clone() else { return };
        if self.retry(&declared) {
            return;
        }
        self.refuse_command("no release is under way");
        let latched = self.next.failed_revisions.iter().find(|f| f.revision == declared).map(|f| f.message.clone());
        if declared == self.stable() {
            if matches!(self.next.phase, Phase::RolledBack | Phase::Failed) {
                self.enter(Phase::Idle);
                self.next.candidate_revision = None;
                self.next.message = format!("the server declares its stable revision {declared} again");
                self.tell(EventKind::Normal, "Withdrawn", self.next.message.clone());
            }
        } else if let Some(why) = latched {
            let message = format!("{declared} was taken back before ({why}): declare another revision, or retry");
            if !matches!(self.next.phase, Phase::RolledBack | Phase::Failed) {
                self.enter(Phase::RolledBack);
                self.next.candidate_revision = Some(declared);
                self.tell(EventKind::Warning, "RevisionLatched", message.clone());
            }
            self.next.message = message;
        } else {
            self.start(declared);
        }
    }

    fn retry(&mut self, declared: &str) -> bool {
        let Some(command) = self.fresh_command().filter(|c| c.verb == Verb::Retry) else { return false };
        let meant = Some(&command.release_id) == self.next.release_id.as_ref();
        let latched = self.next.failed_revisions.iter().any(|f| f.revision == declared);
        if !meant || !latched || !matches!(self.next.phase, Phase::RolledBack | Phase::Failed) {
            return false;
        }
        self.next.failed_revisions.retain(|f| f.revision != declared);
        self.answer(&command, true, format!("{declared} is released again"));
        self.start(declared.to_owned());
        true
    }

    fn start(&mut self, candidate: String) {
        self.enter(Phase::Pending);
        self.next.releases += 1;
        self.next.release_id = Some(format!("{candidate}.{}", self.next.releases));
        self.next.candidate_revision = Some(candidate);
        self.next.started_at = Some(self.time());
        self.next.stage = None;
        self.next.criteria.clear();
        self.next.verdict = None;
        self.next.tool_contract = None;
        self.next.hold = None;
        self.next.ending = None;
        self.next.unready_seconds = 0;
        self.next.outage_seconds = 0;
        self.next.message = format!("{} will follow {}", self.candidate(), self.stable());
        self.tell(EventKind::Normal, "ReleaseStarted", self.next.message.clone());
    }
}
