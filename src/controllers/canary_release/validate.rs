//! Step two: whether anything can be done about the release.

use super::dereference::Found;
use crate::{api::canary_release::CanaryRelease, canary::Plan};

/// What came of it.
#[derive(Debug)]
pub enum Verdict {
    /// It makes sense.
    Sound(Plan),
    /// It waits for a change.
    Refused(Refusal),
}

/// Why nothing is done about a release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// In one word.
    pub reason: &'static str,
    /// In one sentence, with what to do.
    pub message: String,
    /// Whether what was decided before stands, for the time when the cause is gone.
    pub keeps_progress: bool,
}

/// Checks a release.
pub fn validate(release: &CanaryRelease, found: &Found) -> Verdict {
    let refused = |reason, message, keeps_progress| Verdict::Refused(Refusal { reason, message, keeps_progress });
    let server = &found.key.name;
    if let Some(elder) = &found.elder {
        let message = format!(
            "CanaryRelease {elder} is older and releases server {server} already, and a server has one release: delete one of the two"
        );
        return refused("AnotherRelease", message, false);
    }
    if found.server.as_ref().is_some_and(|server| server.spec.remote.is_some()) {
        let message = format!(
            "server {server} runs elsewhere (spec.remote), so there are no two revisions of it to run side by side: release it where it runs"
        );
        return refused("RemoteServer", message, false);
    }
    match Plan::new(&release.spec) {
        Ok(plan) => Verdict::Sound(plan),
        Err(error) => refused("InvalidSpec", error.to_string(), true),
    }
}
