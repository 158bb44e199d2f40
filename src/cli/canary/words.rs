//! Numbers and names as people read them.

use jiff::Timestamp;

use crate::api::canary_release::{Phase, Routing, Verdict};

/// A time span: `71h 47m`, `12m 30s`, `34s`.
pub(super) fn span(seconds: i64) -> String {
    let seconds = seconds.max(0);
    let (hours, minutes, rest) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes, rest) {
        (0, 0, s) => format!("{s}s"),
        (0, m, 0) => format!("{m}m"),
        (0, m, s) => format!("{m}m {s}s"),
        (h, 0, _) => format!("{h}h"),
        (h, m, _) => format!("{h}h {m}m"),
    }
}

/// How long ago something was.
pub(super) fn ago(then: Timestamp, now: Timestamp) -> String {
    format!("{} ago", span(now.as_second() - then.as_second()))
}

/// Who gets the candidate.
pub(super) fn users(percentage: i32, users: &[String], groups: &[String]) -> String {
    let mut who = Vec::new();
    if percentage > 0 {
        who.push(format!("{percentage}% of the users"));
    }
    if !groups.is_empty() {
        who.push(named("group", groups));
    }
    if !users.is_empty() {
        who.push(named("user", users));
    }
    if who.is_empty() { "nobody".into() } else { who.join(", ") }
}

fn named(what: &str, names: &[String]) -> String {
    match names {
        [one] => format!("{what} {one}"),
        [one, two] => format!("{what}s {one} and {two}"),
        many => format!("{} {what}s", many.len()),
    }
}

/// Whether the gateways do what is wished.
pub(super) fn gateways(routing: &Routing) -> String {
    if routing.acked_epoch >= routing.desired_epoch {
        "all gateways do so".into()
    } else {
        format!("not all gateways yet: routing {} of {}", routing.acked_epoch, routing.desired_epoch)
    }
}

/// How much of the evidence that is needed is there; none when none is needed.
pub(super) fn progress(evidence: f64, needed: f64) -> Option<u8> {
    (needed > 0.0).then(|| {
        let percent = (evidence / needed * 100.0).clamp(0.0, 100.0);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and 100")]
        let percent = percent as u8;
        percent
    })
}

/// A bar of ten places.
pub(super) fn bar(percent: u8) -> String {
    let full = usize::from(percent.min(100)) / 10;
    format!("{}{}", "█".repeat(full), "░".repeat(10 - full))
}

/// A mark before a phase.
pub(super) const fn mark(phase: Phase) -> &'static str {
    match phase {
        Phase::Idle | Phase::Succeeded => "✔",
        Phase::Pending | Phase::Deploying | Phase::Progressing | Phase::Promoting => "●",
        Phase::Paused | Phase::AwaitingApproval => "‖",
        Phase::RollingBack | Phase::Draining | Phase::Superseded => "↩",
        Phase::RolledBack | Phase::Failed => "✖",
    }
}

/// A verdict as it stands in the status.
pub(super) const fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Pass => "Pass",
        Verdict::Undecided => "Undecided",
        Verdict::NoData => "NoData",
        Verdict::Unknown => "Unknown",
        Verdict::SharedDegradation => "SharedDegradation",
        Verdict::Breach => "Breach",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_two_units_at_most() {
        let all = [-5, 0, 34, 60, 750, 3600, 258_420, 259_200].map(span);
        assert_eq!(all, ["0s", "0s", "34s", "1m", "12m 30s", "1h", "71h 47m", "72h"]);
    }

    #[test]
    fn users_are_named_while_they_are_few() {
        let names = |n: usize| (0..n).map(|i| format!("u{i}")).collect::<Vec<_>>();
        assert_eq!(users(0, &[], &[]), "nobody");
        assert_eq!(users(10, &names(1), &names(2)), "10% of the users, groups u0 and u1, user u0");
        assert_eq!(users(0, &names(7), &[]), "7 users");
    }

    #[test]
    fn evidence_is_between_nothing_and_enough() {
        assert_eq!([(-3.0, 4.0), (2.0, 4.0), (9.0, 4.0)].map(|(e, n)| progress(e, n)), [Some(0), Some(50), Some(100)]);
        assert_eq!(progress(1.0, 0.0), None);
        assert_eq!((bar(0), bar(55), bar(100)), ("░".repeat(10), "█████░░░░░".into(), "█".repeat(10)));
    }
}
