//! Who meets the new revision while a release is on. Pure.

use core::net::IpAddr;

use sha2::{Digest, Sha256};

use crate::names::Revision;

/// Parts that a share is counted in.
const WHOLE: u64 = 10_000;

/// How a server's users are divided between two revisions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    /// The release. It salts the division, so that not the same people go first each time.
    pub release_id: String,
    /// Grows with each change that the release makes to its split.
    pub epoch: u64,
    /// What everybody else meets.
    pub stable: Revision,
    /// The new revision.
    pub candidate: Revision,
    /// How many of 10,000 meet the candidate. Who met it at a smaller share meets it at a larger.
    pub share: u16,
    /// Users who always meet the candidate.
    pub users: Vec<String>,
    /// Groups whose members always meet the candidate.
    pub groups: Vec<String>,
}

/// Whom a request is for: what is known of them, the best first.
#[derive(Clone, Copy, Debug, Default)]
pub struct Subject<'a> {
    /// The user, where access is checked.
    pub user: Option<&'a str>,
    /// The user's groups.
    pub groups: &'a [String],
    /// The session, for those that nobody knows.
    pub session: Option<u64>,
    /// The client's address, for those without a session.
    pub address: Option<IpAddr>,
}

impl Split {
    /// The revision for a subject: always the same for the same one, while the split is the same.
    pub fn side(&self, subject: &Subject<'_>) -> &Revision {
        let named = subject.user.is_some_and(|user| self.users.iter().any(|u| u == user))
            || subject.groups.iter().any(|group| self.groups.contains(group));
        if named || self.place(subject) < u64::from(self.share) { &self.candidate } else { &self.stable }
    }

    /// A subject's place among 10,000.
    fn place(&self, subject: &Subject<'_>) -> u64 {
        let mut hash = Sha256::new();
        // Lengths keep parts apart: no release and user can be mistaken for another pair.
        hash.update((self.release_id.len() as u64).to_be_bytes());
        hash.update(&self.release_id);
        match (subject.user, subject.session, subject.address) {
            (Some(user), _, _) => hash.update([b"u", user.as_bytes()].concat()),
            (None, Some(session), _) => hash.update([&b"s"[..], &session.to_be_bytes()].concat()),
            (None, None, Some(IpAddr::V4(address))) => hash.update([&b"4"[..], &address.octets()].concat()),
            (None, None, Some(IpAddr::V6(address))) => hash.update([&b"6"[..], &address.octets()].concat()),
            (None, None, None) => hash.update(b"-"),
        }
        let digest = hash.finalize();
        let mut first = [0; 8];
        first.copy_from_slice(&digest[..8]);
        u64::from_be_bytes(first) % WHOLE
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn split(release: &str, share: u16) -> Split {
        Split {
            release_id: release.into(),
            epoch: 1,
            stable: Revision("old".into()),
            candidate: Revision("new".into()),
            share,
            users: vec!["dana".into()],
            groups: vec!["qa".into()],
        }
    }

    fn meets(split: &Split, user: &str) -> bool {
        split.side(&Subject { user: Some(user), ..Subject::default() }).as_str() == "new"
    }

    fn counted(release: &str, share: u16) -> usize {
        (0..100_000).filter(|n| meets(&split(release, share), &format!("user-{n}"))).count()
    }

    #[test]
    fn named_people_go_first() {
        let split = split("r", 0);
        assert!(meets(&split, "dana") && !meets(&split, "eve"));
        let groups = ["dev".to_owned(), "qa".to_owned()];
        assert_eq!(split.side(&Subject { groups: &groups, ..Subject::default() }).as_str(), "new");
        assert_eq!(split.side(&Subject { groups: &groups[..1], ..Subject::default() }).as_str(), "old");
    }

    #[test]
    fn a_share_is_met_and_nobody_leaves_when_it_grows() {
        // Five standard deviations of a binomial share of 100,000.
        for (share, width) in [(1000_u16, 475_usize), (2500, 685), (5000, 791)] {
            let count = counted("r", share);
            assert!(count.abs_diff(usize::from(share) * 10) < width, "{share}: {count}");
        }
        assert_eq!(counted("r", 0), 0);
        assert_eq!(counted("r", 10_000), 100_000);
        for n in 0..100_000 {
            let user = format!("user-{n}");
            assert!(!meets(&split("r", 1000), &user) || meets(&split("r", 2500), &user), "{user} left");
        }
    }

    #[test]
    fn each_release_begins_with_others() {
        let first: Vec<String> =
            (0..10_000).map(|n| format!("user-{n}")).filter(|u| meets(&split("a", 1000), u)).collect();
        let both = first.iter().filter(|u| meets(&split("b", 1000), u)).count();
        assert!(both < first.len() / 5, "{both} of {}", first.len());
    }

    proptest! {
        #[test]
        fn the_best_known_part_decides(user in ".*", session: u64, address: u32, share in 0_u16..=10_000) {
            let split = split("r", share);
            let address = Some(IpAddr::from(address.to_be_bytes()));
            let user = Some(user.as_str());
            let side = |subject: Subject<'_>| split.side(&subject).clone();
            prop_assert_eq!(
                side(Subject { user, session: Some(session), address, ..Subject::default() }),
                side(Subject { user, ..Subject::default() })
            );
            prop_assert_eq!(
                side(Subject { session: Some(session), address, ..Subject::default() }),
                side(Subject { session: Some(session), ..Subject::default() })
            );
        }
    }
}
