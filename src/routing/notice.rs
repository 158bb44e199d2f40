//! What the users of a server that comes to its end are told, and which of them are still served.
//!
//! How far it is comes from the status: a gateway does not look at the time. Pure.

use jiff::Timestamp;

use super::{
    cohort::{Cohort, Side, Subject},
    key_of,
};
use crate::api::{
    canary_release::Routing,
    mcp_server::{DecommissionPhase, McpServer},
};

/// The end of a server, as its users meet it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Since when it is announced.
    pub since: Timestamp,
    /// When nobody is served any more.
    pub stops_at: Timestamp,
    /// Whether nothing runs any more.
    pub stopped: bool,
    /// Why.
    pub reason: String,
    /// What to use instead.
    pub replacement: Option<String>,
    /// Those who are still served are its candidates: as their share falls, nobody comes back.
    cohort: Cohort,
}

impl Notice {
    /// What is to be told of a server; none where nothing is, or where nobody has looked yet.
    #[must_use]
    pub fn of(server: &McpServer) -> Option<Self> {
        let declared = server.spec.decommission.as_ref()?;
        let status = server.status.as_ref()?.decommission.as_ref()?;
        // Each time others are the first who have to go.
        let salt = format!("{}@{}", key_of(server), status.since.0);
        let served = Routing { percentage: status.percentage, ..Routing::default() };
        Some(Self {
            since: status.since.0,
            stops_at: status.stops_at.0,
            stopped: status.phase == DecommissionPhase::Stopped,
            reason: declared.reason.clone(),
            replacement: declared.replacement.clone(),
            cohort: Cohort::new(&salt, &served),
        })
    }

    /// Whether somebody is still served. Whoever is not, is not again as the share falls.
    #[must_use]
    pub fn serves(&self, subject: &Subject<'_>) -> bool {
        !self.stopped && self.cohort.side(subject) == Side::Candidate
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::json;

    use super::*;

    fn server(phase: &str, percentage: i32) -> McpServer {
        serde_json::from_value(json!({
            "apiVersion": "perch.dev/v1alpha1", "kind": "McpServer", "metadata": {"name": "a", "namespace": "n"},
            "spec": {"image": "x", "decommission": {"reason": "too old", "replacement": "b"}},
            "status": {"decommission": {
                "since": "2026-01-01T00:00:00Z", "phase": phase, "percentage": percentage,
                "reducesAt": "2026-01-31T00:00:00Z", "stopsAt": "2026-02-07T00:00:00Z", "removesAt": "2026-03-09T00:00:00Z"}},
        }))
        .unwrap()
    }

    fn served(percentage: i32) -> BTreeSet<usize> {
        let notice = Notice::of(&server("Reducing", percentage)).unwrap();
        let serves = |i: &usize| notice.serves(&Subject { user: Some(&format!("user-{i}")), ..Subject::default() });
        (0..1000).filter(serves).collect()
    }

    #[test]
    fn as_the_share_falls_nobody_comes_back() {
        let mut before = served(100);
        assert_eq!(before.len(), 1000);
        for percentage in (0..100).step_by(10).rev() {
            let now = served(percentage);
            assert!(now.is_subset(&before), "{percentage}%");
            // Five standard deviations of a binomial count are 79 at most.
            let wanted = usize::try_from(percentage).unwrap() * 10;
            assert!(now.len().abs_diff(wanted) < 80, "{} of {wanted}", now.len());
            before = now;
        }
        assert!(before.is_empty());
    }

    #[test]
    fn there_is_a_notice_while_it_is_declared_and_seen() {
        let told = server("Noticed", 100);
        let notice = Notice::of(&told).unwrap();
        assert_eq!((notice.reason.as_str(), notice.replacement.as_deref()), ("too old", Some("b")));
        let mut unseen = told.clone();
        unseen.status = None;
        assert_eq!(Notice::of(&unseen), None);
        let mut taken_back = told.clone();
        taken_back.spec.decommission = None;
        assert_eq!(Notice::of(&taken_back), None);
        let stopped = Notice::of(&server("Stopped", 100)).unwrap();
        assert!(!stopped.serves(&Subject::default()), "whatever the share says");
    }

    #[test]
    fn another_time_others_go_first() {
        let mut again = server("Reducing", 50);
        let first = served(50);
        again.status.as_mut().unwrap().decommission.as_mut().unwrap().since.0 = Timestamp::UNIX_EPOCH;
        let notice = Notice::of(&again).unwrap();
        let serves = |i: &usize| notice.serves(&Subject { user: Some(&format!("user-{i}")), ..Subject::default() });
        let second: BTreeSet<usize> = (0..1000).filter(serves).collect();
        let both = first.intersection(&second).count();
        assert!((150..350).contains(&both), "{both} of 1000 are in both, by chance about 250 would be");
    }
}
