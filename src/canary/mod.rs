//! When a new revision may have more users, and when it must be taken back. Pure.
//!
//! [`decide`] takes what a user wished ([`Plan`]), what was decided before ([`Progress`]) and what
//! is seen now ([`Observation`]), and returns what is so from now on. It is total and
//! deterministic, and it reads no clock: `now` is an argument. All that it remembers is in the
//! progress, which is the status of the `CanaryRelease`, so a controller that dies after any write
//! goes on as if nothing had happened.
//!
//! * [`plan`] parses a spec once, [`observation`] says what a controller must find out,
//! * [`counters`] turns raw counters into what is new, [`evidence`] adds it up and judges it by the
//!   tests of [`statistics`],
//! * [`contract`] compares the tools of two revisions, [`forecast`] says what traffic can decide.
//!
//! May import: `api`, `names`.

pub mod contract;
pub mod counters;
mod decide;
pub mod evidence;
pub mod forecast;
pub mod observation;
pub mod plan;
pub mod statistics;

pub use decide::{Decision, EventKind, StoryEvent, Wanted, decide, wanted};
pub use observation::{Gateway, Health, InFlight, Observation, Reading, RouteWeights, Series};
pub use plan::{Plan, PlanError};

/// What was decided so far: the status of the release, whole.
pub type Progress = crate::api::canary_release::CanaryReleaseStatus;

#[cfg(test)]
mod tests;
