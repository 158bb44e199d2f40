//! Who gets the candidate.
//!
//! A person keeps one side for all their requests. Raising the percentage never takes the
//! candidate from anybody: each person has a fixed place between 0 and 9999, and the percentage is
//! the mark below which places belong to the canary. The release is part of the hash, so it is not
//! always the same people who go first. Pure.

use core::net::IpAddr;
use std::hash::Hasher;

use siphasher::sip::SipHasher13;

use crate::api::canary_release::{CELLS, Routing};

/// Which revision serves a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// The revision that everybody falls back to.
    Stable,
    /// The revision that is being released.
    Candidate,
}

/// Whoever sends a request, as far as it is known; the best known part decides.
#[derive(Clone, Copy, Debug, Default)]
pub struct Subject<'a> {
    /// The authenticated user.
    pub user: Option<&'a str>,
    /// The user's groups.
    pub groups: &'a [String],
    /// The session of an anonymous client.
    pub session: Option<&'a str>,
    /// The address of an anonymous client without a session.
    pub address: Option<IpAddr>,
}

/// What the hash of a subject says, all at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seat {
    /// The side.
    pub side: Side,
    /// The cell of evidence that the subject's calls are counted in.
    pub cell: usize,
    /// The bit that stands for the subject in a count of users.
    pub user_bit: i64,
}

/// Places that people are spread over.
const PLACES: u64 = 10_000;
/// Users fall on this many bits when they are counted: as many as a JSON number keeps exactly.
const USER_BITS: u64 = 52;

/// A hash that is the same on every machine and in every version: SipHash-1-3 of the release and
/// of who it is, each closed by a byte that no UTF-8 text contains.
fn hash(salt: SipHasher13, kind: u8, who: &[u8]) -> u64 {
    let mut hasher = salt;
    hasher.write(&[0xff, kind]);
    hasher.write(who);
    hasher.write(&[0xff]);
    hasher.finish()
}

/// The part of the hash that is the same for everybody.
fn salt(release_id: &str) -> SipHasher13 {
    let mut hasher = SipHasher13::new();
    hasher.write(release_id.as_bytes());
    hasher
}

fn place(salt: SipHasher13, subject: &Subject<'_>) -> u64 {
    match (subject.user, subject.session, subject.address.map(|address| address.to_canonical())) {
        (Some(user), _, _) => hash(salt, b'u', user.as_bytes()),
        (None, Some(session), _) => hash(salt, b's', session.as_bytes()),
        // Addresses of either family have a length of their own.
        (None, None, Some(IpAddr::V4(address))) => hash(salt, b'a', &address.octets()),
        (None, None, Some(IpAddr::V6(address))) => hash(salt, b'a', &address.octets()),
        (None, None, None) => hash(salt, b'a', b""),
    }
}

/// Whether a user is among a percentage of all users of a release.
#[must_use]
pub fn assign(release_id: &str, user: &str, percentage: i32) -> Side {
    side(hash(salt(release_id), b'u', user.as_bytes()), percentage)
}

fn side(hash: u64, percentage: i32) -> Side {
    let mark = u64::from(percentage.clamp(0, 100).unsigned_abs()) * (PLACES / 100);
    if hash % PLACES < mark { Side::Candidate } else { Side::Stable }
}

/// The routing of one release, ready to be asked for each request.
#[derive(Clone, Debug, Default)]
pub struct Cohort {
    release_id: String,
    salt: SipHasher13,
    percentage: i32,
    /// Named users with their hashes, in the order of these.
    users: Vec<(u64, String)>,
    /// Named groups, in order.
    groups: Vec<String>,
}

impl PartialEq for Cohort {
    fn eq(&self, other: &Self) -> bool {
        // The salt follows from the release.
        (&self.release_id, self.percentage, &self.users, &self.groups)
            == (&other.release_id, other.percentage, &other.users, &other.groups)
    }
}

impl Eq for Cohort {}

impl Cohort {
    /// Reads the routing of a release.
    #[must_use]
    pub fn new(release_id: &str, routing: &Routing) -> Self {
        let salt = salt(release_id);
        let mut users: Vec<(u64, String)> =
            routing.users.iter().map(|user| (hash(salt, b'u', user.as_bytes()), user.clone())).collect();
        users.sort_unstable();
        let mut groups = routing.groups.clone();
        groups.sort_unstable();
        Self { release_id: release_id.to_owned(), salt, percentage: routing.percentage, users, groups }
    }

    /// Where a subject belongs: always the same for the same one, and on the candidate's side for
    /// as long as the percentage does not fall.
    #[must_use]
    pub fn seat(&self, subject: &Subject<'_>) -> Seat {
        let place = place(self.salt, subject);
        let named = subject.user.is_some_and(|user| self.names(place, user))
            || (!self.groups.is_empty() && subject.groups.iter().any(|group| self.groups.binary_search(group).is_ok()));
        // Other bits than those that decide the side, else a small canary would fill few cells.
        let rest = place / PLACES;
        Seat {
            side: if named { Side::Candidate } else { side(place, self.percentage) },
            cell: (rest % CELLS as u64) as usize,
            user_bit: 1 << (rest / CELLS as u64 % USER_BITS),
        }
    }

    /// Whether a user with this hash is named.
    fn names(&self, hash: u64, user: &str) -> bool {
        let first = self.users.partition_point(|(named, _)| *named < hash);
        self.users[first..].iter().take_while(|(named, _)| *named == hash).any(|(_, named)| named == user)
    }

    /// The side of a subject.
    #[must_use]
    pub fn side(&self, subject: &Subject<'_>) -> Side {
        self.seat(subject).side
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_hash_is_the_same_for_ever() {
        // Changing these numbers moves users of releases under way to the other side.
        let places: Vec<u64> =
            ["a", "dana@example.com", "ü"].iter().map(|u| hash(salt("x-1.1"), b'u', u.as_bytes()) % PLACES).collect();
        assert_eq!(places, [1588, 9493, 4239]);
    }

    #[test]
    fn ten_to_twenty_five_percent_of_a_hundred_thousand() {
        let users: Vec<String> = (0..100_000).map(|i| format!("user-{i}@example.com")).collect();
        let at = |percentage| -> HashSet<&str> {
            let inside = users.iter().filter(|u| assign("everything-1.7", u, percentage) == Side::Candidate);
            inside.map(String::as_str).collect()
        };
        let (ten, quarter) = (at(10), at(25));
        assert!(ten.is_subset(&quarter), "nobody leaves");
        for (found, share) in [(ten.len(), 0.10), (quarter.len(), 0.25)] {
            let found = f64::from(u32::try_from(found).unwrap());
            // Five standard deviations of a binomial count: one build in two million would fail.
            let n = 100_000.0;
            let deviation = (found - n * share).abs();
            assert!(deviation < 5.0 * (n * share * (1.0 - share)).sqrt(), "{found} of {share}");
        }
    }

    #[test]
    fn each_release_begins_with_others() {
        let users: Vec<String> = (0..10_000).map(|i| format!("u{i}")).collect();
        let both =
            users.iter().filter(|u| assign("a.1", u, 10) == Side::Candidate && assign("a.2", u, 10) == Side::Candidate);
        let both = both.count();
        assert!((50..150).contains(&both), "{both} of 10000 are in both, by chance about 100 would be");
    }

    #[test]
    fn named_people_are_in_whatever_the_share() {
        let routing = Routing { users: vec!["dana".into()], groups: vec!["qa".into()], ..Routing::default() };
        let cohort = Cohort::new("r", &routing);
        let dana = Subject { user: Some("dana"), ..Subject::default() };
        let groups = ["qa".to_owned()];
        let tester = Subject { user: Some("tom"), groups: &groups, ..Subject::default() };
        let other = Subject { user: Some("eve"), ..Subject::default() };
        assert_eq!([dana, tester, other].map(|p| cohort.side(&p)), [Side::Candidate, Side::Candidate, Side::Stable]);
    }

    #[test]
    fn nobody_is_in_at_zero_and_everybody_at_a_hundred() {
        for i in 0..1000 {
            assert_eq!(assign("r", &format!("{i}"), 0), Side::Stable);
            assert_eq!(assign("r", &format!("{i}"), 100), Side::Candidate);
        }
    }

    #[test]
    fn a_small_canary_fills_all_cells_and_bits() {
        let cohort = Cohort::new("r", &Routing { percentage: 5, ..Routing::default() });
        let (mut cells, mut bits) = (HashSet::new(), 0);
        for i in 0..20_000 {
            let user = format!("u{i}");
            let seat = cohort.seat(&Subject { user: Some(&user), ..Subject::default() });
            if seat.side == Side::Candidate {
                cells.insert(seat.cell);
                bits |= seat.user_bit;
            }
        }
        assert_eq!((cells.len(), bits), (CELLS, (1 << USER_BITS) - 1));
    }

    proptest! {
        #[test]
        fn raising_the_share_takes_it_from_nobody(release in ".{0,40}", user in ".{0,40}", low in 0..=100i32, more in 0..=100i32) {
            let high = (low + more).min(100);
            if assign(&release, &user, low) == Side::Candidate {
                prop_assert_eq!(assign(&release, &user, high), Side::Candidate);
            }
        }

        #[test]
        fn the_best_known_part_decides(user in ".{0,20}", session in ".{0,20}", address: u32) {
            let cohort = Cohort::new("r", &Routing { percentage: 50, ..Routing::default() });
            let v4 = core::net::Ipv4Addr::from(address);
            let address = Some(IpAddr::V4(v4));
            let seat = |user, session, address| cohort.seat(&Subject { user, session, address, ..Subject::default() });
            let (user, session) = (Some(user.as_str()), Some(session.as_str()));
            prop_assert_eq!(seat(user, session, address), seat(user, None, None));
            prop_assert_eq!(seat(None, session, address), seat(None, session, None));
            prop_assert_eq!(seat(None, None, address), seat(None, None, Some(v4.to_ipv6_mapped().into())));
        }
    }
}
