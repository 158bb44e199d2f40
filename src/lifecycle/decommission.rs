//! The end of a server by stages: from what is declared, since when, and the time to the stage.
//!
//! Pure, and without memory: whoever asks, and after whatever pause, gets the same answer for the same
//! moment. Nothing comes early, and with time a server only comes nearer to its end.

use jiff::{SignedDuration, Timestamp};

use crate::api::{mcp_server::Decommission, quantity::Duration};

/// Equal parts of the reduction. After each part fewer users are served; in the last one nobody is,
/// while the server still runs and can be had back at once.
pub const STEPS: i32 = 10;

/// When the stages of a server's end begin. All times are whole seconds, as a status has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Everybody is served until then.
    pub reduces_at: Timestamp,
    /// Nobody is served from then on.
    pub stops_at: Timestamp,
    /// The server is removed then.
    pub removes_at: Timestamp,
}

/// A stage of a server's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Everybody is served, and told.
    Noticed,
    /// A part of the users is served.
    Reducing {
        /// Steps that were taken, at least one.
        steps: i32,
    },
    /// Nothing runs.
    Stopped,
    /// It is to be removed.
    Removed,
}

impl Stage {
    /// Percentage of the users who are served.
    #[must_use]
    pub const fn percentage(self) -> i32 {
        match self {
            Self::Noticed => 100,
            Self::Reducing { steps } => 100 - steps * 100 / STEPS,
            Self::Stopped | Self::Removed => 0,
        }
    }
}

/// The next whole second, so that nothing is early.
#[must_use]
pub fn whole(at: Timestamp) -> Timestamp {
    let rest = at.subsec_nanosecond();
    let second = at.as_second();
    let next = Timestamp::from_second(second + i64::from(rest > 0));
    next.or_else(|_| Timestamp::from_second(second)).unwrap_or(at)
}

fn after(at: Timestamp, wait: SignedDuration) -> Timestamp {
    // What is beyond all calendars never comes.
    at.checked_add(wait).unwrap_or(Timestamp::MAX)
}

fn span(duration: Duration) -> SignedDuration {
    SignedDuration::try_from(duration.to_std()).unwrap_or(SignedDuration::MAX)
}

impl Plan {
    /// The plan of what is declared, seen first at `since`.
    #[must_use]
    pub fn new(declared: &Decommission, since: Timestamp) -> Self {
        let reduces_at = whole(after(since, span(declared.notice)));
        let stops_at = whole(after(reduces_at, span(declared.reduction)));
        Self { reduces_at, stops_at, removes_at: whole(after(stops_at, span(declared.keep))) }
    }

    /// When a step of the reduction is taken; the first one is number 1.
    fn step(&self, number: i32) -> Timestamp {
        let whole = self.stops_at.duration_since(self.reduces_at);
        // Divided first, no reduction is too long to be multiplied.
        after(self.reduces_at, (whole / STEPS) * (number - 1))
    }

    /// The stage at a moment, and when the next one or the next step begins; none after the last.
    #[must_use]
    pub fn at(&self, now: Timestamp) -> (Stage, Option<Timestamp>) {
        if now >= self.removes_at {
            return (Stage::Removed, None);
        }
        if now >= self.stops_at {
            return (Stage::Stopped, Some(self.removes_at));
        }
        if now < self.reduces_at {
            return (Stage::Noticed, Some(self.reduces_at));
        }
        let taken = (1..=STEPS).rev().find(|number| now >= self.step(*number)).unwrap_or(1);
        let next = if taken == STEPS { self.stops_at } else { self.step(taken + 1) };
        (Stage::Reducing { steps: taken }, Some(next))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn declared(notice: &str, reduction: &str, keep: &str) -> Decommission {
        serde_json::from_value(
            serde_json::json!({"reason": "r", "notice": notice, "reduction": reduction, "keep": keep}),
        )
        .unwrap()
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn without_a_word_it_takes_thirty_days_seven_days_and_thirty_days() {
        let declared: Decommission = serde_json::from_str(r#"{"reason": "r"}"#).unwrap();
        let plan = Plan::new(&declared, at("2026-01-01T00:00:00Z"));
        assert_eq!(plan.reduces_at, at("2026-01-31T00:00:00Z"));
        assert_eq!(plan.stops_at, at("2026-02-07T00:00:00Z"));
        assert_eq!(plan.removes_at, at("2026-03-09T00:00:00Z"));
        assert_eq!(plan.at(at("2026-01-30T23:59:59Z")), (Stage::Noticed, Some(plan.reduces_at)));
        let (first, next) = plan.at(plan.reduces_at);
        assert_eq!((first.percentage(), next), (90, Some(at("2026-01-31T16:48:00Z"))));
        let (last, next) = plan.at(at("2026-02-06T23:59:59Z"));
        assert_eq!((last, last.percentage(), next), (Stage::Reducing { steps: 10 }, 0, Some(plan.stops_at)));
        assert_eq!(plan.at(plan.stops_at), (Stage::Stopped, Some(plan.removes_at)));
        assert_eq!(plan.at(plan.removes_at), (Stage::Removed, None));
    }

    #[test]
    fn what_takes_no_time_is_left_out() {
        let since = at("2026-01-01T00:00:00Z");
        assert_eq!(Plan::new(&declared("0s", "0s", "0s"), since).at(since).0, Stage::Removed);
        assert_eq!(Plan::new(&declared("0s", "0s", "1h"), since).at(since).0, Stage::Stopped);
        assert_eq!(Plan::new(&declared("0s", "10s", "1h"), since).at(since).0.percentage(), 90);
    }

    #[test]
    fn what_is_beyond_all_calendars_never_comes() {
        let longest = "999999h999999h999999h999999h";
        let plan = Plan::new(&declared(longest, longest, longest), at("9000-01-01T00:00:00Z"));
        assert_eq!(plan.at(at("9990-01-01T00:00:00Z")).0, Stage::Stopped, "{plan:?}");
        assert_eq!(plan.removes_at, whole(plan.removes_at), "a status has it as it is");
    }

    proptest! {
        #[test]
        fn with_time_the_end_only_comes_nearer_and_never_early(
            notice in 0_u64..100_000_000, reduction in 0_u64..100_000_000, keep in 0_u64..100_000_000,
            since in 0_i64..4_000_000_000_000, moments in prop::collection::vec(0_i64..300_000_000, 2..20),
        ) {
            let text = |millis: u64| format!("{}s{}ms", millis / 1000, millis % 1000);
            let declared = declared(&text(notice), &text(reduction), &text(keep));
            let since = Timestamp::from_millisecond(since).unwrap();
            let plan = Plan::new(&declared, since);
            let mut moments: Vec<Timestamp> =
                moments.iter().map(|wait| after(since, SignedDuration::from_millis(*wait))).collect();
            moments.sort();
            let mut before: Option<Stage> = None;
            for now in moments {
                let (stage, next) = plan.at(now);
                prop_assert_eq!((stage, next), Plan::new(&declared, since).at(now), "whoever asks");
                let passed = u64::try_from(now.duration_since(since).as_millis()).unwrap();
                let due = match stage {
                    Stage::Noticed => 0,
                    Stage::Reducing { steps } => notice + reduction / 10 * u64::try_from(steps - 1).unwrap(),
                    Stage::Stopped => notice + reduction,
                    Stage::Removed => notice + reduction + keep,
                };
                prop_assert!(passed >= due, "{stage:?} after {passed} ms, due after {due}");
                if let Some(before) = before {
                    prop_assert!(stage >= before && stage.percentage() <= before.percentage());
                }
                before = Some(stage);
                let Some(next) = next else {
                    prop_assert_eq!(stage, Stage::Removed);
                    continue;
                };
                prop_assert!(next > now);
                prop_assert!(plan.at(next).0 > stage, "something happens at each step");
                let just_before = after(next, SignedDuration::from_nanos(-1));
                prop_assert_eq!(plan.at(just_before).0, stage, "and nothing before it");
            }
        }
    }
}
