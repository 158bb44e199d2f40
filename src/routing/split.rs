//! How a server's users are divided between two revisions while a release is on. Pure.

use super::{
    cohort::{Cohort, Seat, Side, Subject},
    drain::{Bond, Leaving, Placement, place},
};
use crate::{
    api::canary_release::{CanaryRelease, Routing},
    names::{Revision, ServerKey},
};

/// What a release says about where its server's requests go. It is there for as long as the release
/// knows a stable revision, also when nothing is being released.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    /// The release. It salts the division, so that not the same people go first each time.
    pub release_id: String,
    /// Grows with each change that the release makes to its routing.
    pub epoch: i64,
    /// What everybody falls back to.
    pub stable: Revision,
    /// The new revision, also after its time.
    pub candidate: Option<Revision>,
    /// How far the candidate has been left.
    pub leaving: Leaving,
    cohort: Cohort,
}

impl Split {
    /// The division that a release asks for; none while it knows no stable revision. `runs` says
    /// whether the candidate must run: whether any request may go to it.
    #[must_use]
    pub fn of(release: &CanaryRelease, runs: bool) -> Option<Self> {
        let status = release.status.as_ref()?;
        let (release_id, stable) = (status.release_id.as_deref()?, status.stable_revision.clone()?);
        let candidate = status.candidate_revision.clone().filter(|candidate| *candidate != stable).map(Revision);
        let leaving = match (&candidate, runs) {
            (Some(_), true) if status.phase.is_ending() => Leaving::Draining,
            (Some(_), true) => Leaving::No,
            _ => Leaving::Gone,
        };
        Some(Self { candidate, leaving, ..Self::new(release_id, &status.routing, Revision(stable)) })
    }

    /// A division without a candidate.
    fn new(release_id: &str, routing: &Routing, stable: Revision) -> Self {
        Self {
            release_id: release_id.to_owned(),
            epoch: routing.desired_epoch,
            stable,
            candidate: None,
            leaving: Leaving::Gone,
            cohort: Cohort::new(release_id, routing),
        }
    }

    /// A division with a candidate that takes new work.
    #[must_use]
    pub fn between(release_id: &str, routing: &Routing, stable: Revision, candidate: Revision) -> Self {
        Self { candidate: Some(candidate), leaving: Leaving::No, ..Self::new(release_id, routing, stable) }
    }

    /// The candidate, while requests may go to it.
    #[must_use]
    pub fn running_candidate(&self) -> Option<&Revision> {
        self.candidate.as_ref().filter(|_| self.leaving != Leaving::Gone)
    }

    /// The revision on a side.
    #[must_use]
    pub fn revision(&self, side: Side) -> &Revision {
        match (side, &self.candidate) {
            (Side::Candidate, Some(candidate)) => candidate,
            _ => &self.stable,
        }
    }

    /// The side that a revision is on, if it is on one.
    #[must_use]
    pub fn side_of(&self, revision: &str) -> Option<Side> {
        if self.stable.as_str() == revision {
            return Some(Side::Stable);
        }
        self.candidate.as_ref().is_some_and(|c| c.as_str() == revision).then_some(Side::Candidate)
    }

    /// Where a subject belongs.
    #[must_use]
    pub fn seat(&self, subject: &Subject<'_>) -> Seat {
        self.cohort.seat(subject)
    }

    /// Where a request goes that may be bound to what a revision served before.
    #[must_use]
    pub fn place(&self, wished: Side, bond: Bond) -> Placement {
        place(wished, bond, self.leaving, Side::Candidate)
    }
}

/// The server that a release is about.
#[must_use]
pub fn target_of(release: &CanaryRelease) -> ServerKey {
    ServerKey::new(release.metadata.namespace.clone().unwrap_or_default(), release.spec.target_ref.name.clone())
}

/// The release that counts for a server where several name it: the oldest one.
pub fn first<'a>(releases: impl IntoIterator<Item = &'a CanaryRelease>) -> Option<&'a CanaryRelease> {
    releases.into_iter().min_by_key(|release| {
        let created = release.metadata.creation_timestamp.as_ref().map(|time| time.0);
        (created.is_none(), created, release.metadata.name.clone())
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn release(status: &Value) -> CanaryRelease {
        serde_json::from_value(json!({
            "apiVersion": "perch.dev/v1alpha1", "kind": "CanaryRelease",
            "metadata": {"name": "r", "namespace": "default"},
            "spec": {"targetRef": {"name": "a"}, "stages": [{"name": "s", "percentage": 10, "duration": "1h"}]},
            "status": status,
        }))
        .unwrap()
    }

    fn status(phase: &str) -> Value {
        json!({"phase": phase, "releaseId": "a-2.1", "stableRevision": "a-1", "candidateRevision": "a-2",
            "routing": {"desiredEpoch": 4, "percentage": 100}})
    }

    #[test]
    fn a_phase_says_how_far_the_candidate_is_left() {
        let leaving = |phase: &str, runs| Split::of(&release(&status(phase)), runs).unwrap().leaving;
        for phase in ["Deploying", "Progressing", "Paused", "AwaitingApproval", "Promoting"] {
            assert_eq!(leaving(phase, true), Leaving::No, "{phase}");
        }
        for phase in ["RollingBack", "Draining", "Superseded"] {
            assert_eq!(leaving(phase, true), Leaving::Draining, "{phase}");
        }
        for phase in ["Pending", "RolledBack", "Failed"] {
            assert_eq!(leaving(phase, false), Leaving::Gone, "{phase}");
        }
    }

    #[test]
    fn new_work_meets_the_candidate_only_while_it_is_not_left() {
        let dana = Subject { user: Some("dana"), ..Subject::default() };
        let goes = |phase: &str, runs| {
            let split = Split::of(&release(&status(phase)), runs).unwrap();
            split.place(split.seat(&dana).side, Bond::None)
        };
        assert_eq!(goes("Progressing", true), Placement::Serve(Side::Candidate));
        assert_eq!(goes("RollingBack", true), Placement::Serve(Side::Stable), "whatever the percentage says");
        assert_eq!(goes("RolledBack", false), Placement::Serve(Side::Stable));
    }

    #[test]
    fn a_release_without_a_stable_revision_divides_nothing() {
        assert_eq!(Split::of(&release(&Value::Null), false), None);
        assert_eq!(Split::of(&release(&json!({"phase": "Idle", "stableRevision": "a-1"})), false), None);
        let promoted = json!({"phase": "Succeeded", "releaseId": "a-2.1", "stableRevision": "a-2", "routing": {"desiredEpoch": 9}});
        let split = Split::of(&release(&promoted), false).unwrap();
        assert_eq!((split.epoch, split.stable.as_str(), split.running_candidate()), (9, "a-2", None));
        assert_eq!((split.side_of("a-2"), split.side_of("a-1")), (Some(Side::Stable), None));
    }

    #[test]
    fn of_several_releases_the_oldest_counts() {
        let named = |name: &str, created: &str| {
            let mut release = release(&Value::Null);
            release.metadata.name = Some(name.into());
            release.metadata.creation_timestamp = serde_json::from_value(json!(created)).unwrap();
            release
        };
        let all = [
            named("b", "2026-01-02T00:00:00Z"),
            named("c", "2026-01-01T00:00:00Z"),
            named("a", "2026-01-02T00:00:00Z"),
        ];
        assert_eq!(first(&all).unwrap().metadata.name.as_deref(), Some("c"));
        assert_eq!(first(&all[..1]).map(target_of), Some(ServerKey::new("default", "a")));
        assert!(first([]).is_none());
    }
}
