//! Time, acknowledgements, health and metrics, before anything is decided.

use super::Turn;
use crate::{
    api::canary_release::{CriterionStatus, Phase, StageProgress, Verdict},
    canary::{
        counters,
        evidence::{judge, record},
        observation::{Health, Reading},
        plan::{CriterionPlan, Rule, SCHEMA_ERRORS},
        statistics::real,
    },
};

/// Longest time between two written turns that counts, in seconds: of thousands of releases each is written every
/// minute. A longer gap means that nobody watched, or that the clock was set: it counts nothing.
const LONGEST_GAP: i64 = 120;

impl Turn<'_> {
    pub(super) fn tick(&mut self) {
        let gap = self.next.last_tick.as_ref().map_or(0, |last| self.now.as_second() - last.0.as_second());
        self.elapsed = if (0..=LONGEST_GAP).contains(&gap) { gap } else { 0 };
        self.next.last_tick = Some(self.time());
        self.next.phase_seconds = self.next.phase_seconds.saturating_add(self.elapsed);
    }

    pub(super) fn acknowledge(&mut self) {
        let desired = self.next.routing.desired_epoch;
        let gateways = &self.seen.gateways;
        if gateways.iter().all(|g| g.epoch == Some(desired)) && !gateways.is_empty() {
            self.next.routing.acked_epoch = desired;
        } else {
            let least = gateways.iter().map(|g| g.epoch.unwrap_or(0)).min().unwrap_or(0);
            self.next.routing.acked_epoch = least.min(desired - 1).max(0);
        }
        let has_users = self.next.stage.is_some() && !self.next.phase.is_at_rest() && !self.next.phase.is_ending();
        if has_users && gateways.iter().any(|g| g.epoch == Some(desired)) {
            self.next.routing.opened = true;
        }
    }

    /// Finds the stage again in a plan that may have been edited.
    pub(super) fn sync_stage(&mut self) {
        let Some(stage) = &mut self.next.stage else { return };
        let here = usize::try_from(stage.index).unwrap_or(0);
        if self.plan.stages.get(here).is_some_and(|s| s.name == stage.name) {
            return;
        }
        let found = self.plan.stages.iter().position(|s| s.name == stage.name);
        let index = found.unwrap_or_else(|| here.min(self.plan.stages.len().saturating_sub(1)));
        if let Some(plan) = self.plan.stages.get(index) {
            *stage = StageProgress { index: index_of(index), name: plan.name.clone(), ..stage.clone() };
        }
    }

    pub(super) fn watch_candidate(&mut self) {
        match self.seen.candidate {
            Health::Ready => self.next.unready_seconds = 0,
            Health::Starting | Health::Failing(_) => {
                self.next.unready_seconds = self.next.unready_seconds.saturating_add(self.elapsed);
            }
            // Not knowing is no failure.
            Health::Unknown => {}
        }
    }

    /// Counts what is new and judges it. Also while the release is held: a candidate that turns
    /// bad in a pause has users all the same.
    pub(super) fn measure(&mut self) {
        let active =
            matches!(self.next.phase, Phase::Progressing | Phase::Paused | Phase::AwaitingApproval | Phase::Promoting);
        let Some(stage) = self.stage_plan().filter(|_| active).cloned() else { return };
        let mut before = std::mem::take(&mut self.next.criteria);
        for criterion in &stage.criteria {
            let known = before.iter().position(|c| c.metric == criterion.metric && c.threshold == criterion.threshold);
            let mut status = known.map_or_else(|| fresh(criterion), |i| before.swap_remove(i));
            let reading = self.seen.readings.iter().find(|(metric, _)| *metric == criterion.metric).map(|(_, r)| r);
            self.read(criterion, &mut status, reading, &stage);
            self.next.criteria.push(status);
        }
        self.next.verdict = self.next.criteria.iter().map(|c| c.verdict).max();
        if self.next.criteria.iter().any(|c| c.verdict == Verdict::Unknown) {
            self.next.outage_seconds = self.next.outage_seconds.saturating_add(self.elapsed.max(1));
        } else {
            self.next.outage_seconds = 0;
        }
    }

    fn read(
        &self,
        criterion: &CriterionPlan,
        status: &mut CriterionStatus,
        reading: Option<&Reading>,
        stage: &crate::canary::plan::StagePlan,
    ) {
        let (verdict, reason) = match reading {
            None => (Verdict::Unknown, "it was not read".to_owned()),
            Some(Reading::Unknown(why)) => (Verdict::Unknown, why.clone()),
            // Nothing to compare is no obstacle, but only where no proof is asked for.
            Some(Reading::NoData(why)) if criterion.metric == SCHEMA_ERRORS => (Verdict::Pass, why.clone()),
            Some(Reading::NoData(why)) => (Verdict::NoData, why.clone()),
            Some(Reading::Findings(findings)) => match &criterion.rule {
                Rule::Findings { at_most, severity } => {
                    let found = findings.at_least(*severity);
                    (status.bad, status.total) = (i64::from(found), i64::from(found));
                    (status.breach, status.breach_at) = (real(i64::from(found)), real(i64::from(*at_most) + 1));
                    let reason =
                        format!("{found} findings of severity {} or worse, {at_most} are allowed", severity.as_str());
                    (if found > *at_most { Verdict::Breach } else { Verdict::Pass }, reason)
                }
                _ => (Verdict::NoData, "the provider answered with findings, and this metric is a share".into()),
            },
            Some(Reading::Counters(_)) if matches!(criterion.rule, Rule::Findings { .. }) => {
                (Verdict::NoData, "the provider answered with counters, and this metric has findings".into())
            }
            Some(Reading::Counters(series)) => {
                let start = status.last_window_end.as_ref().map(|t| t.0);
                match counters::advance(&mut status.baselines, series, &self.candidate(), &self.stable(), start) {
                    Ok(window) => {
                        // Before a gateway sends users to the candidate, there is nothing to count.
                        if self.next.routing.opened {
                            record(&mut status.evidence, &window, self.elapsed, stage, criterion);
                        }
                        status.last_window_end = Some(self.time());
                        judge(criterion, status, self.plan.minimum_users);
                        return;
                    }
                    Err(error) => (Verdict::NoData, error.to_string()),
                }
            }
        };
        status.verdict = verdict;
        status.reason = reason;
    }
}

/// A criterion about which nothing is known.
pub(super) fn fresh(criterion: &CriterionPlan) -> CriterionStatus {
    CriterionStatus {
        metric: criterion.metric.clone(),
        threshold: criterion.threshold.clone(),
        verdict: Verdict::NoData,
        ..CriterionStatus::default()
    }
}

/// An index as the status has it.
pub(super) fn index_of(index: usize) -> i32 {
    i32::try_from(index).unwrap_or(i32::MAX)
}
