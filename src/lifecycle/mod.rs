//! Where a server is in its life: how much it is used, how safe it is, and what its owner should do
//! about it.
//!
//! Pure: the time is an argument. What is recommended is never done by itself.
//!
//! May import: `api`, `names`.

pub mod decommission;
mod score;
pub mod usage;

use jiff::{SignedDuration, Timestamp, civil::Date, tz::TimeZone};
use serde::Serialize;

use crate::api::mcp_server::{ConditionType, McpServer};
pub use score::score;

/// Without a request for so many days a server may go.
pub const REMOVAL_DAYS: i64 = 7;
/// Without a request for so many days a server should be decommissioned.
pub const DECOMMISSION_DAYS: i64 = 90;
/// Fewer users than that in 30 days are few.
pub const FEW_USERS: i32 = 3;
/// A review is due each quarter.
pub const REVIEW_DAYS: i64 = 92;
/// A scan that is older says little.
pub const SCAN_DAYS: i64 = 30;
/// Critical findings are to be mended within so many days.
pub const PATCH_DAYS: i64 = 7;

const REVIEWED_AT: &str = "policy.perch.dev/reviewed-at";
const SCANNED_AT: &str = "policy.perch.dev/scanned-at";
const SCAN_CRITICAL: &str = "policy.perch.dev/scan-critical";

/// Where a server is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum State {
    /// Nobody counts how much it is used.
    Unknown,
    /// It has not been counted for long enough to say that it is not used.
    New,
    /// It is used.
    Active,
    /// It had fewer than three users in 30 days.
    LowUsage,
    /// It had no request in 7 days.
    Idle,
    /// It had no request in 90 days.
    Unused,
    /// It is brought to its end by stages.
    Decommissioning,
    /// It is stopped on purpose.
    Suspended,
    /// It is being removed.
    Terminating,
}

impl State {
    /// Every state.
    pub const ALL: [Self; 9] = [
        Self::Unknown,
        Self::New,
        Self::Active,
        Self::LowUsage,
        Self::Idle,
        Self::Unused,
        Self::Decommissioning,
        Self::Suspended,
        Self::Terminating,
    ];

    /// The state as it stands in metrics and reports.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "Unknown",
            Self::New => "New",
            Self::Active => "Active",
            Self::LowUsage => "LowUsage",
            Self::Idle => "Idle",
            Self::Unused => "Unused",
            Self::Decommissioning => "Decommissioning",
            Self::Suspended => "Suspended",
            Self::Terminating => "Terminating",
        }
    }
}

/// Something that the owner of a server should do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Recommendation {
    /// What, in one word.
    pub reason: &'static str,
    /// Why, and what to do.
    pub message: String,
}

/// What is known of a server's life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Assessment {
    /// Where it is.
    pub state: State,
    /// How safe it is, from 0 to 100; see [`score`]. None where nobody judged it.
    pub score: Option<i32>,
    /// What should be done, the most pressing first.
    pub recommendations: Vec<Recommendation>,
}

/// What is known of a server's life now.
#[must_use]
pub fn assess(server: &McpServer, now: Timestamp) -> Assessment {
    let state = state(server, now);
    Assessment { state, score: score(server), recommendations: recommend(server, state, now) }
}

/// Days since a moment; those that are to come count as none.
fn days_since(at: Timestamp, now: Timestamp) -> i64 {
    (now.duration_since(at).as_hours() / 24).max(0)
}

fn state(server: &McpServer, now: Timestamp) -> State {
    if server.metadata.deletion_timestamp.is_some() {
        return State::Terminating;
    }
    if server.spec.decommission.is_some() {
        return State::Decommissioning;
    }
    if server.spec.suspend {
        return State::Suspended;
    }
    let usage = server.status.as_ref().and_then(|status| status.usage.as_ref());
    let Some((usage, since)) = usage.and_then(|usage| Some((usage, usage.since.as_ref()?.0))) else {
        return State::Unknown;
    };
    let counted = days_since(since, now);
    // A server that nobody ever used is unused since it is counted.
    let idle = usage.last_request.as_ref().map_or(counted, |last| days_since(last.0, now));
    match (idle, counted) {
        (DECOMMISSION_DAYS.., _) => State::Unused,
        (REMOVAL_DAYS.., _) => State::Idle,
        (_, usage::DAYS..) if usage.users_in_30_days < FEW_USERS => State::LowUsage,
        _ if usage.last_request.is_none() => State::New,
        _ => State::Active,
    }
}

fn recommend(server: &McpServer, state: State, now: Timestamp) -> Vec<Recommendation> {
    let mut all = Vec::new();
    let mut add = |reason, message: String| all.push(Recommendation { reason, message });
    if state == State::Terminating {
        return all;
    }
    let usage = server.status.as_ref().and_then(|status| status.usage.clone()).unwrap_or_default();
    let last = usage.last_request.as_ref().map_or_else(
        || "nobody ever used it".to_owned(),
        |last| format!("its last request was on {}", last.0.to_zoned(TimeZone::UTC).date()),
    );
    match state {
        State::Unused => add(
            "Decommission",
            format!(
                "{last}, more than {DECOMMISSION_DAYS} days ago or as long as it is counted: declare spec.decommission, which tells its users and removes it by stages"
            ),
        ),
        State::Idle => add(
            "CandidateForRemoval",
            format!("{last}, and there was none in {REMOVAL_DAYS} days: ask its owner whether it is needed"),
        ),
        State::LowUsage => add(
            "LowUsageWarning",
            format!(
                "it had about {} users in {} days: see whether another server serves them",
                usage.users_in_30_days,
                usage::DAYS
            ),
        ),
        _ => {}
    }
    let critical = number(server, SCAN_CRITICAL);
    let scanned = annotated_day(server, SCANNED_AT).map(|at| days_since(at, now));
    if critical > 0 && scanned.is_some_and(|days| days > PATCH_DAYS) {
        add(
            "PatchOverdue",
            format!("{critical} critical findings are known for more than {PATCH_DAYS} days: bring a mended version"),
        );
    }
    let broken = server.status.iter().flat_map(|status| &status.conditions);
    let broken = broken.filter(|c| c.type_ == ConditionType::Compliant.as_str() && c.status == "False");
    for condition in broken {
        add("NotCompliant", condition.message.clone());
    }
    let owner = server.spec.governance.as_ref().and_then(|g| g.owner.as_deref()).unwrap_or_default();
    if owner.trim().is_empty() {
        add("NoOwner", "nobody answers for it: set spec.governance.owner".to_owned());
    }
    match annotated_day(server, REVIEWED_AT).map(|at| days_since(at, now)) {
        Some(days) if days <= REVIEW_DAYS => {}
        Some(days) => add(
            "ReviewOverdue",
            format!("its last review was {days} days ago: review it, and set the annotation {REVIEWED_AT}"),
        ),
        None => add("ReviewOverdue", format!("no review is recorded: review it, and set the annotation {REVIEWED_AT}")),
    }
    // Only images are scanned.
    if server.spec.image.is_some() && scanned.is_none_or(|days| days > SCAN_DAYS) {
        let when = scanned
            .map_or_else(|| "no scan is recorded".to_owned(), |days| format!("its last scan was {days} days ago"));
        add("ScanOverdue", format!("{when}: scan the image, and set the annotation {SCANNED_AT}"));
    }
    all
}

/// When the image of a server was last scanned, as its annotation says.
#[must_use]
pub fn last_scan(server: &McpServer) -> Option<Timestamp> {
    annotated_day(server, SCANNED_AT)
}

fn annotation<'a>(server: &'a McpServer, name: &str) -> Option<&'a str> {
    server.metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

fn number(server: &McpServer, name: &str) -> u64 {
    annotation(server, name).and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// A day or a moment, as the policies take it.
fn annotated_day(server: &McpServer, name: &str) -> Option<Timestamp> {
    let text = annotation(server, name)?.trim();
    let moment = text.parse::<Timestamp>().ok();
    moment.or_else(|| text.parse::<Date>().ok()?.to_zoned(TimeZone::UTC).ok().map(|zoned| zoned.timestamp()))
}

/// How long ago something was, for a person.
#[must_use]
pub fn ago(at: Timestamp, now: Timestamp) -> String {
    let passed = now.duration_since(at).max(SignedDuration::ZERO);
    match passed.as_hours() {
        0 => "within the hour".to_owned(),
        hours @ 1..48 => format!("{hours}h ago"),
        hours => format!("{}d ago", hours / 24),
    }
}

#[cfg(test)]
mod tests;
