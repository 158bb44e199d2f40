//! Going on: from one phase, stage or step to the next.

use super::{
    EventKind, Turn,
    measure::{fresh, index_of},
};
use crate::{
    api::canary_release::{
        Approval, CriterionStatus, EndReason, Ending, HoldReason, OnBreaking, OnDescriptionChange, OnInsufficientData,
        Outcome, Phase, StageProgress, ToolContractStatus, Verdict,
    },
    canary::{
        observation::Health,
        plan::{StagePlan, Step},
    },
};

/// Findings of the tool contract that a status keeps.
const FINDINGS: usize = 10;

impl Turn<'_> {
    pub(super) fn advance(&mut self) {
        match self.next.phase {
            Phase::Pending => self.deploy(),
            Phase::Deploying => self.admit(),
            Phase::Progressing => self.progress(),
            Phase::Promoting => self.promoting(),
            _ => {}
        }
    }

    fn waits_for_thaw(&mut self) -> bool {
        let frozen = self.frozen().map(|window| format!("freeze window {window} is on"));
        frozen.is_some_and(|message| {
            self.next.message = message;
            true
        })
    }

    fn deploy(&mut self) {
        if self.waits_for_thaw() {
            return;
        }
        self.enter(Phase::Deploying);
        self.next.unready_seconds = 0;
        let message = format!("{} starts beside {}", self.candidate(), self.stable());
        self.next.message.clone_from(&message);
        self.tell(EventKind::Normal, "Deploying", message);
    }

    /// From no users to the first: the candidate must be ready, and its tools must be compared.
    fn admit(&mut self) {
        if self.seen.candidate != Health::Ready {
            self.next.message = format!("waiting for {} to be ready{}", self.candidate(), self.why_not_ready());
            return;
        }
        let Some(contract) = &self.seen.contract else {
            self.next.message = "waiting for the tools of both revisions".into();
            if self.next.phase_seconds >= self.plan.progress_deadline && self.seen.stable == Health::Ready {
                let message = format!("{} did not list its tools in time", self.candidate());
                self.end(Outcome::RolledBack, EndReason::ProgressDeadlineExceeded, message);
            }
            return;
        };
        let accepted = self.next.tool_contract.as_ref().is_some_and(|c| c.accepted);
        let first = self.next.tool_contract.is_none();
        let (breaking, review) = (contract.breaking(), contract.review());
        self.next.tool_contract = Some(ToolContractStatus {
            breaking: index_of(breaking),
            review: index_of(review),
            findings: contract.findings.iter().take(FINDINGS).map(ToString::to_string).collect(),
            accepted,
        });
        let examples: Vec<_> = contract.findings.iter().take(3).map(ToString::to_string).collect();
        let examples = examples.join("; ");
        let wishes = self.plan.tool_contract.clone();
        if !accepted && breaking > 0 && wishes.on_breaking == OnBreaking::Block {
            let message =
                format!("the candidate's tools break callers ({examples}): change the server, or resume to accept");
            self.hold(Phase::Paused, HoldReason::ToolContractBroken, message);
            return;
        }
        if !accepted && breaking + review > 0 && wishes.on_description_change == OnDescriptionChange::Approve {
            let message = format!("read what changed in the candidate's tools ({examples}), then resume or abort");
            self.hold(Phase::AwaitingApproval, HoldReason::ToolReview, message);
            return;
        }
        if first && breaking + review > 0 && wishes.on_description_change != OnDescriptionChange::Ignore {
            self.tell(EventKind::Warning, "ToolsChanged", format!("the candidate's tools differ: {examples}"));
        }
        if !self.is_acked() {
            // Who cannot follow the routing of before cannot be trusted with the first users.
            self.next.message = format!("waiting for {} to take the routing", self.lagging());
            return;
        }
        if !self.waits_for_thaw() {
            self.enter_stage(0);
        }
    }

    pub(super) fn enter_stage(&mut self, index: usize) {
        let Some(stage) = self.plan.stages.get(index) else { return };
        let step = stage.steps.first().copied().unwrap_or(Step { offset: 0, percentage: 0 });
        // Who is in stays in, also when the plan was edited on the way.
        let percentage = step.percentage.max(self.next.routing.percentage);
        self.enter(Phase::Progressing);
        self.next.hold = None;
        self.next.outage_seconds = 0;
        self.next.stage = Some(StageProgress {
            index: index_of(index),
            name: stage.name.clone(),
            attempt: 1,
            entered_at: Some(self.time()),
            percentage,
            ..StageProgress::default()
        });
        self.route(percentage, stage.users.clone(), stage.groups.clone());
        self.forget_evidence(stage);
        self.next.message = format!("stage {} began with {percentage}% of the users", stage.name);
        self.tell(EventKind::Normal, "StageStarted", self.next.message.clone());
    }

    /// Starts all evidence anew. The counters' last values stay: nothing is counted twice, and
    /// nothing is lost between two stages.
    pub(super) fn forget_evidence(&mut self, stage: &StagePlan) {
        let before = std::mem::take(&mut self.next.criteria);
        for criterion in &stage.criteria {
            let mut status = CriterionStatus { last_window_end: Some(self.time()), ..fresh(criterion) };
            let same = before.iter().find(|c| c.metric == criterion.metric && c.threshold == criterion.threshold);
            if let Some(same) = same {
                status = CriterionStatus {
                    baselines: same.baselines.clone(),
                    last_window_end: same.last_window_end.clone(),
                    ..status
                };
            }
            self.next.criteria.push(status);
        }
        self.next.verdict = self.next.criteria.iter().map(|c| c.verdict).max();
    }

    fn progress(&mut self) {
        let Some(plan) = self.stage_plan().cloned() else { return };
        let acked = self.is_acked();
        let ready = self.seen.candidate == Health::Ready;
        let elapsed = self.elapsed;
        let Some(stage) = &mut self.next.stage else { return };
        if acked && ready {
            stage.active_seconds = stage.active_seconds.saturating_add(elapsed);
            stage.step_seconds = stage.step_seconds.saturating_add(elapsed);
        }
        let step = usize::try_from(stage.step).unwrap_or(0).min(plan.steps.len().saturating_sub(1));
        let (active, in_step, extensions) = (stage.active_seconds, stage.step_seconds, i64::from(stage.extensions));
        if !acked {
            self.next.message = format!("waiting for {} to take the new routing", self.lagging());
            return;
        }
        if !ready {
            self.next.message = format!("waiting for {} to be ready{}", self.candidate(), self.why_not_ready());
            return;
        }
        let is_last = step + 1 >= plan.steps.len();
        if in_step < plan.dwell(step) || (is_last && active < plan.duration) {
            let left = (plan.dwell(step) - in_step).max(if is_last { plan.duration - active } else { 0 });
            self.next.message = format!("stage {}: {left} more seconds, then the evidence decides", plan.name);
            return;
        }
        if self.waits_for_thaw() {
            return;
        }
        let open: Vec<_> = self.next.criteria.iter().filter(|c| c.verdict != Verdict::Pass).collect();
        if let Some(first) = open.first() {
            let why = format!("{} {}: {}", first.metric, first.threshold, first.reason);
            // A step may wait as long as its stage may; waits of earlier steps count in.
            let planned = plan.steps.get(step + 1).map_or(plan.duration, |next| next.offset);
            let patience = plan.extension.saturating_mul(1 + extensions);
            if active < planned.saturating_add(patience) {
                self.next.message = format!("stage {} is extended: {why}", plan.name);
                return;
            }
            match self.plan.on_insufficient_data {
                OnInsufficientData::Pause => {
                    let message =
                        format!("the evidence does not suffice ({why}): resume for more time, skip, or abort");
                    self.hold(Phase::Paused, HoldReason::InsufficientData, message);
                    return;
                }
                OnInsufficientData::Rollback => {
                    let message = format!("the evidence does not suffice: {why}");
                    self.end(Outcome::RolledBack, EndReason::InsufficientData, message);
                    return;
                }
                OnInsufficientData::Advance => {
                    self.tell(EventKind::Warning, "AdvancedWithoutEvidence", format!("stage {}: {why}", plan.name));
                }
            }
        }
        if is_last { self.leave_stage(&plan) } else { self.next_step(&plan, step + 1) }
    }

    pub(super) fn next_step(&mut self, plan: &StagePlan, step: usize) {
        let Some(percentage) = plan.steps.get(step).map(|s| s.percentage.max(self.next.routing.percentage)) else {
            return;
        };
        if let Some(stage) = &mut self.next.stage {
            stage.step = index_of(step);
            stage.step_seconds = 0;
            stage.percentage = percentage;
        }
        self.route(percentage, plan.users.clone(), plan.groups.clone());
        self.next.message = format!("stage {} goes on with {percentage}% of the users", plan.name);
        self.tell(EventKind::Normal, "PercentageRaised", self.next.message.clone());
    }

    fn leave_stage(&mut self, plan: &StagePlan) {
        if plan.approval == Approval::Manual {
            let message = format!("stage {} passed: resume to go on, or abort", plan.name);
            self.hold(Phase::AwaitingApproval, HoldReason::Approval, message);
            return;
        }
        self.next_stage();
    }

    /// Ends the stage: on to the next, or to everybody.
    pub(super) fn next_stage(&mut self) {
        let index = self.next.stage.as_ref().map_or(0, |s| usize::try_from(s.index).unwrap_or(0) + 1);
        if index < self.plan.stages.len() {
            self.enter_stage(index);
        } else {
            self.promote(EndReason::AllStagesPassed, format!("{} passed all stages", self.candidate()));
        }
    }

    pub(super) fn promote(&mut self, reason: EndReason, message: String) {
        self.enter(Phase::Promoting);
        self.next.hold = None;
        let (users, groups) = (self.next.routing.users.clone(), self.next.routing.groups.clone());
        self.route(100, users, groups);
        self.tell(EventKind::Normal, "Promoting", message.clone());
        self.next.message.clone_from(&message);
        self.next.ending = Some(Ending { outcome: Outcome::Succeeded, reason, message, at: self.time() });
    }

    fn promoting(&mut self) {
        if !self.is_acked() {
            // Draining begins when nobody new comes to the stable revision.
            self.next.phase_seconds = 0;
            self.next.message = format!("waiting for {} to send everybody to {}", self.lagging(), self.candidate());
            return;
        }
        if self.seen.candidate != Health::Ready {
            self.next.message = format!("waiting for {} to be ready{}", self.candidate(), self.why_not_ready());
            return;
        }
        // Who routes elsewhere tells nobody of calls in flight, so they get their time.
        let drained = self.seen.in_flight.stable == Some(0) && self.seen.route.is_none();
        if !drained && self.next.phase_seconds < self.plan.drain_timeout {
            self.next.message = format!("calls of {} finish", self.stable());
            return;
        }
        self.finish();
    }
}
