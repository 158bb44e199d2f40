//! What people tell a release. A repeat does nothing; what is meant for another release or stage
//! is refused, and says so.

use super::{EventKind, Turn};
use crate::{
    api::canary_release::{Command, CommandResult, EndReason, HoldReason, Outcome, Phase, Verb},
    canary::observation::Health,
};

/// Ids of commands that a status keeps.
const SEEN: usize = 16;

impl Turn<'_> {
    /// The command, unless it was read before.
    pub(super) fn fresh_command(&self) -> Option<Command> {
        self.seen.command.clone().filter(|c| !self.next.seen_commands.contains(&c.id))
    }

    pub(super) fn answer(&mut self, command: &Command, accepted: bool, result: String) {
        self.next.seen_commands.insert(0, command.id.clone());
        self.next.seen_commands.truncate(SEEN);
        let who = command.by.as_deref().unwrap_or("somebody");
        let (kind, reason) =
            if accepted { (EventKind::Normal, "CommandDone") } else { (EventKind::Warning, "CommandRefused") };
        self.tell(kind, reason, format!("{} by {who}: {result}", command.verb.as_str()));
        self.next.last_command = Some(CommandResult {
            id: command.id.clone(),
            verb: command.verb,
            by: command.by.clone(),
            at: self.time(),
            accepted,
            result,
        });
    }

    pub(super) fn refuse_command(&mut self, why: &str) {
        if let Some(command) = self.fresh_command() {
            self.answer(&command, false, why.to_owned());
        }
    }

    fn meant_for_this_release(&self, command: &Command) -> bool {
        Some(&command.release_id) == self.next.release_id.as_ref()
    }

    /// An abort wins over everything else, also over a stage that ends in the same moment.
    pub(super) fn abort(&mut self) -> bool {
        let Some(command) = self.fresh_command().filter(|c| c.verb == Verb::Abort) else { return false };
        if !self.meant_for_this_release(&command) {
            return false;
        }
        let who = command.by.as_deref().unwrap_or("somebody").to_owned();
        self.answer(&command, true, format!("{} is taken back", self.candidate()));
        self.end(Outcome::RolledBack, EndReason::Aborted, format!("aborted by {who}"));
        true
    }

    pub(super) fn command(&mut self) -> bool {
        let Some(command) = self.fresh_command() else { return false };
        if !self.meant_for_this_release(&command) {
            let here = self.next.release_id.clone().unwrap_or_default();
            self.answer(&command, false, format!("it is meant for release {}, and this is {here}", command.release_id));
            return true;
        }
        let stage = self.next.stage.as_ref().map(|s| s.name.clone());
        if command.stage != stage && command.verb != Verb::Retry {
            let named = |stage: &Option<String>| stage.clone().map_or("no stage".to_owned(), |s| format!("stage {s}"));
            let message = format!("it is meant for {}, and this is {}", named(&command.stage), named(&stage));
            self.answer(&command, false, message);
            return true;
        }
        let result = match command.verb {
            Verb::Pause => self.pause_by(&command),
            Verb::Resume => self.resume(),
            Verb::Skip => self.skip(),
            Verb::Promote => self.promote_by(&command),
            Verb::Retry => Err("only a release that was taken back can be retried".to_owned()),
            // Handled before everything else.
            Verb::Abort => Err("it is too late".to_owned()),
        };
        match result {
            Ok(message) => self.answer(&command, true, message),
            Err(message) => self.answer(&command, false, message),
        }
        true
    }

    fn pause_by(&mut self, command: &Command) -> Result<String, String> {
        if !matches!(self.next.phase, Phase::Pending | Phase::Deploying | Phase::Progressing) {
            return Err(format!("the release is {} and cannot be paused", self.next.phase.as_str()));
        }
        let who = command.by.as_deref().unwrap_or("somebody");
        self.hold(Phase::Paused, HoldReason::Command, format!("paused by {who}: resume to go on"));
        Ok("the release is paused".into())
    }

    fn resume(&mut self) -> Result<String, String> {
        let Some(reason) = self.next.hold.as_ref().map(|hold| hold.reason) else {
            return Err(format!("the release is {} and waits for nobody", self.next.phase.as_str()));
        };
        if self.plan.paused {
            return Err("spec.paused is true: set it to false".into());
        }
        match reason {
            HoldReason::Approval => {
                if let Some(window) = self.frozen() {
                    return Err(format!("freeze window {window} is on"));
                }
                self.next_stage();
                return Ok("the stage is approved".into());
            }
            HoldReason::InsufficientData => {
                if let Some(stage) = &mut self.next.stage {
                    stage.extensions = stage.extensions.saturating_add(1);
                }
            }
            HoldReason::SharedDegradation => {
                if let Some(stage) = &mut self.next.stage {
                    stage.attempt = stage.attempt.saturating_add(1);
                    stage.active_seconds =
                        self.plan.stages.get(usize::try_from(stage.index).unwrap_or(0)).map_or(0, |plan| {
                            // The share stays; its time starts anew.
                            plan.steps.get(usize::try_from(stage.step).unwrap_or(0)).map_or(0, |step| step.offset)
                        });
                    stage.step_seconds = 0;
                }
                if let Some(plan) = self.stage_plan().cloned() {
                    self.forget_evidence(&plan);
                }
                self.next.unready_seconds = 0;
            }
            HoldReason::ToolContractBroken | HoldReason::ToolReview => {
                if let Some(contract) = &mut self.next.tool_contract {
                    contract.accepted = true;
                }
            }
            HoldReason::MetricsOutage => self.next.outage_seconds = 0,
            HoldReason::Spec | HoldReason::Command => {}
        }
        self.go_on("a person resumed the release");
        Ok("the release goes on".into())
    }

    /// Whether a person may raise the candidate's share now.
    fn may_raise(&self) -> Result<(), String> {
        if self.next.stage.is_none() || self.next.phase == Phase::Promoting {
            return Err(format!("the release is {}: there is no stage to leave", self.next.phase.as_str()));
        }
        if self.plan.paused {
            return Err("spec.paused is true: set it to false".into());
        }
        if let Some(window) = self.frozen() {
            return Err(format!("freeze window {window} is on"));
        }
        if self.seen.candidate != Health::Ready {
            return Err(format!("{} is not ready", self.candidate()));
        }
        Ok(())
    }

    fn skip(&mut self) -> Result<String, String> {
        self.may_raise()?;
        let stage = self.next.stage.as_ref().map(|s| s.name.clone()).unwrap_or_default();
        self.next_stage();
        Ok(format!("stage {stage} is skipped"))
    }

    fn promote_by(&mut self, command: &Command) -> Result<String, String> {
        self.may_raise()?;
        let who = command.by.as_deref().unwrap_or("somebody");
        self.promote(EndReason::PromotedByCommand, format!("promoted by {who}"));
        Ok("everybody gets the candidate".into())
    }
}
