//! A release as a screen of text: pure, a function of the object and the time.

use comfy_table::Table;
use jiff::Timestamp;
use kube::ResourceExt;

use super::words::{ago, bar, gateways, mark, progress, span, users, verdict};
use crate::{
    api::canary_release::{CanaryRelease, CanaryReleaseStatus, CriterionStatus, HistoryEntry, Phase},
    canary::{Plan, plan::StagePlan},
    cli::get,
};

/// Ended releases that are shown.
const HISTORY: usize = 3;
/// Differences of tools that are shown.
const FINDINGS: usize = 5;

/// Everything about a release that a person wants to know, in lines.
pub fn screen(release: &CanaryRelease, now: Timestamp) -> String {
    let Some(status) = &release.status else {
        return format!("{}  waiting for the operator to see it\n", release.name_any());
    };
    let mut out = Lines::default();
    out.push(format!("{} {}  {}", mark(status.phase), release.name_any(), status.phase.as_str()));
    if !status.message.is_empty() {
        out.push(format!("  {}", status.message));
    }
    out.push(String::new());
    facts(&mut out, release, status, now);
    let plan = Plan::new(&release.spec);
    match &plan {
        Ok(plan) => out.table(&stages(plan, status)),
        Err(error) => out.fact("spec", &format!("cannot be used: {error}")),
    }
    if !status.criteria.is_empty() {
        out.push(String::new());
        criteria(&mut out, &status.criteria);
    }
    if !status.history.is_empty() {
        out.push(String::new());
        for entry in status.history.iter().take(HISTORY) {
            out.push(format!("  {}", ended(entry, now)));
        }
    }
    out.0
}

/// One line about a release; two that are equal say the same. Numbers that move all the time are
/// left out.
pub fn line(release: &CanaryRelease) -> String {
    let Some(status) = &release.status else { return "waiting for the operator to see it".into() };
    let mut parts = vec![status.phase.as_str().to_owned()];
    if let Some(stage) = status.stage.as_ref().filter(|_| !status.phase.is_at_rest()) {
        parts.push(format!("stage {}", stage.name));
    }
    let routing = &status.routing;
    parts.push(users(routing.percentage, &routing.users, &routing.groups));
    if !status.phase.is_at_rest() {
        parts.extend(status.criteria.iter().map(|c| format!("{}={}", c.metric, verdict(c.verdict))));
    }
    let why = status.hold.as_ref().map(|h| &h.message).or(status.ending.as_ref().map(|e| &e.message));
    let why = why.or(Some(&status.message).filter(|_| status.phase.is_at_rest()));
    parts.extend(why.filter(|why| !why.is_empty()).cloned());
    parts.join("  ")
}

#[derive(Default)]
struct Lines(String);

impl Lines {
    fn push(&mut self, line: impl AsRef<str>) {
        self.0.push_str(line.as_ref().trim_end());
        self.0.push('\n');
    }

    fn fact(&mut self, name: &str, what: &str) {
        self.push(format!("  {name:<10} {what}"));
    }

    /// A line of a table, whose cells begin with a space.
    fn row(&mut self, line: &str) {
        self.push(format!("  {}", line.strip_prefix(' ').unwrap_or(line)));
    }

    fn table(&mut self, table: &Table) {
        table.lines().for_each(|line| self.row(&line));
    }
}

fn facts(out: &mut Lines, release: &CanaryRelease, status: &CanaryReleaseStatus, now: Timestamp) {
    let namespace = release.namespace().unwrap_or_default();
    out.fact("server", &format!("{namespace}/{}", release.spec.target_ref.name));
    out.fact("stable", status.stable_revision.as_deref().unwrap_or("not known yet"));
    if let Some(candidate) = &status.candidate_revision {
        let started = status.started_at.as_ref().map(|time| format!(", started {}", ago(time.0, now)));
        let id = status.release_id.as_deref().unwrap_or_default();
        out.fact("candidate", &format!("{candidate} (release {id}{})", started.unwrap_or_default()));
        let routing = &status.routing;
        let who = users(routing.percentage, &routing.users, &routing.groups);
        out.fact("who", &format!("{who}; {}", gateways(routing)));
    }
    if let Some(hold) = &status.hold {
        out.fact(
            "waits",
            &format!("{} for {}", hold.reason.as_str(), span(now.as_second() - hold.since.0.as_second())),
        );
    }
    if let Some(ending) = &status.ending {
        out.fact(
            "ends",
            &format!("{:?} ({}), decided {}", ending.outcome, ending.reason.as_str(), ago(ending.at.0, now)),
        );
    }
    if status.outage_seconds > 0 {
        out.fact("metrics", &format!("cannot be read for {}; the clock stands still", span(status.outage_seconds)));
    }
    if let Some(tools) = status.tool_contract.as_ref().filter(|t| t.breaking + t.review > 0) {
        let accepted = if tools.accepted { ", accepted" } else { "" };
        out.fact("tools", &format!("{} breaking changes, {} to review{accepted}", tools.breaking, tools.review));
        for finding in tools.findings.iter().take(FINDINGS) {
            out.fact("", finding);
        }
    }
    if let Some(command) = &status.last_command {
        let by = command.by.as_deref().unwrap_or("somebody");
        let refused = if command.accepted { "" } else { "refused: " };
        out.fact(
            "command",
            &format!("{} by {by} {}: {refused}{}", command.verb.as_str(), ago(command.at.0, now), command.result),
        );
    }
    out.push(String::new());
}

fn stages(plan: &Plan, status: &CanaryReleaseStatus) -> Table {
    let mut table = get::plain();
    table.set_header(["", "STAGE", "WHO", "TIME"]);
    let rests = status.phase.is_at_rest();
    let promoted = matches!(status.phase, Phase::Succeeded | Phase::Promoting);
    let here = status.stage.as_ref().filter(|_| status.phase != Phase::Idle);
    for (index, stage) in plan.stages.iter().enumerate() {
        let current = here.filter(|here| here.name == stage.name);
        let passed = here.is_some_and(|here| usize::try_from(here.index).is_ok_and(|at| index < at)) || promoted;
        let sign = match (current.is_some(), passed) {
            (_, true) => "✔",
            (true, false) if rests || status.phase.is_ending() => "✖",
            (true, false) => "●",
            (false, false) => "○",
        };
        let time = match current {
            Some(here) if !promoted => {
                let left = stage.duration - here.active_seconds;
                let left = if rests || status.phase.is_ending() {
                    String::new()
                } else if left > 0 {
                    format!(", {} left", span(left))
                } else {
                    let most = stage.duration + stage.extension * (1 + i64::from(here.extensions));
                    format!(", the evidence decides within {}", span(most - here.active_seconds))
                };
                let percent = here.active_seconds.saturating_mul(100) / stage.duration.max(1);
                let done = bar(u8::try_from(percent.clamp(0, 100)).unwrap_or(100));
                format!("{done} {} of {}{left}", span(here.active_seconds), span(stage.duration))
            }
            _ => span(stage.duration),
        };
        table.add_row([sign.to_owned(), stage.name.clone(), who(stage), time]);
    }
    table
}

fn who(stage: &StagePlan) -> String {
    let shares: Vec<String> = stage.steps.iter().map(|step| format!("{}%", step.percentage)).collect();
    let last = stage.steps.last().map_or(0, |step| step.percentage);
    let who = users(last, &stage.users, &stage.groups);
    if shares.len() > 1 { who.replacen(&format!("{last}%"), &shares.join(" → "), 1) } else { who }
}

fn criteria(out: &mut Lines, criteria: &[CriterionStatus]) {
    let mut table = get::plain();
    table.set_header(["CRITERION", "VERDICT", "BAD", "STABLE", "USERS", "FOR", "AGAINST"]);
    let decided = |evidence, needed| {
        progress(evidence, needed).map_or_else(|| "-".to_owned(), |percent| format!("{} {percent}%", bar(percent)))
    };
    for criterion in criteria {
        table.add_row([
            format!("{} {}", criterion.metric, criterion.threshold),
            verdict(criterion.verdict).to_owned(),
            format!("{} of {}", criterion.bad, criterion.total),
            format!("{} of {}", criterion.stable_bad, criterion.stable_total),
            if criterion.users > 0 { criterion.users.to_string() } else { "-".into() },
            decided(criterion.pass, criterion.pass_at),
            decided(criterion.breach, criterion.breach_at),
        ]);
    }
    let mut lines = table.lines();
    if let Some(header) = lines.next() {
        out.row(&header);
    }
    for (line, criterion) in lines.zip(criteria) {
        out.row(&line);
        if !criterion.reason.is_empty() {
            out.push(format!("    {}", criterion.reason));
        }
    }
}

/// One line about a release that ended.
pub fn ended(entry: &HistoryEntry, now: Timestamp) -> String {
    let stage = entry.stage.as_ref().map(|stage| format!(" in stage {stage} at {}%", entry.percentage));
    format!(
        "{}  {:?} {}{}: {}",
        ago(entry.ended_at.0, now),
        entry.outcome,
        entry.candidate_revision,
        stage.unwrap_or_default(),
        entry.message
    )
}

#[cfg(test)]
mod tests;
