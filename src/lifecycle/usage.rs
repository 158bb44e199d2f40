//! How much a server is used: what gateways counted becomes days, and days become a few figures.
//!
//! What was counted and what of it is already in the days are in one object, so they are written
//! together: each request counts once, whoever dies when. Users are a sketch: one bit for each 52nd
//! of them, so a day's number tells at most that somebody who may be this one was there.

use core::net::IpAddr;
use std::{collections::BTreeSet, hash::Hasher};

use jiff::{Timestamp, ToSpan, civil::Date, tz::TimeZone};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use siphasher::sip::SipHasher13;

use crate::{
    api::mcp_server::{UsageCounter, UsageDay, UsageStatus},
    names::ServerKey,
};

/// Users fall on this many bits: as many as a JSON number keeps exactly.
const BITS: u32 = 52;
const SKETCH: i64 = (1 << BITS) - 1;
/// Days that are kept, today included.
pub const DAYS: i64 = 30;
/// Days of which requests are told, today included.
pub const WEEK: i64 = 7;
/// Gateways whose counters are remembered for one server. What others count is left out.
const GATEWAYS: usize = 64;
/// Requests go at most so often into the figures of one server, in seconds.
pub const WRITE_SECONDS: i64 = 3600;

/// The day of a moment, in UTC.
#[must_use]
pub fn day(now: Timestamp) -> Date {
    now.to_zoned(TimeZone::UTC).date()
}

/// The bit that stands for a user of a server: one who is known by name, else by address.
#[must_use]
pub fn user_bit(server: &ServerKey, user: &str, address: Option<IpAddr>) -> i64 {
    let mut hasher = SipHasher13::new();
    // No UTF-8 text contains the byte that closes each part.
    for part in [server.namespace.as_bytes(), server.name.as_bytes()] {
        hasher.write(part);
        hasher.write(&[0xff]);
    }
    match (user, address.map(|address| address.to_canonical())) {
        ("", Some(IpAddr::V4(address))) => hasher.write(&address.octets()),
        ("", Some(IpAddr::V6(address))) => hasher.write(&address.octets()),
        (user, _) => hasher.write(user.as_bytes()),
    }
    1 << (hasher.finish() % u64::from(BITS))
}

/// About how many users a sketch stands for, by linear counting (Whang, Vander-Zanden and Taylor,
/// 1990): −m·ln(z/m), with m bits of which z are zero. Exact enough to tell two from three, ±15% at
/// 50; a full sketch stands for 205 or more.
#[must_use]
pub fn users(sketch: i64) -> i32 {
    let seen = (sketch & SKETCH).count_ones();
    let (all, zero) = (f64::from(BITS), f64::from(BITS - seen).max(1.0));
    let estimate = if seen == BITS { all * all.ln() } else { -all * (zero / all).ln() };
    #[expect(clippy::cast_possible_truncation, reason = "it is between 0 and 206")]
    let rounded = estimate.round() as i32;
    rounded
}

/// What one gateway counted for a server in its life.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// The gateway and its life.
    pub source: String,
    /// When somebody last asked the server to do something.
    pub last_request: Option<Timestamp>,
    /// Requests in this life.
    pub requests: i64,
    /// The last days with requests: the day, requests, and a sketch of the users.
    pub days: Vec<(Date, i64, i64)>,
}

/// The usage of a server that is counted from now on.
#[must_use]
pub fn begin(now: Timestamp) -> UsageStatus {
    UsageStatus { since: Some(Time(whole(now, 1))), ..UsageStatus::default() }
}

/// Adds what gateways counted since it was added last, and brings the figures up to date. `all` says
/// that every gateway there is was heard: the counters of others are forgotten then.
#[must_use]
pub fn merge(before: &UsageStatus, counted: &[Counted], all: bool, now: Timestamp) -> UsageStatus {
    let mut usage = before.clone();
    for one in counted {
        let is_room = usage.counters.len() < GATEWAYS;
        let known = usage.counters.iter_mut().find(|c| c.gateway == one.source);
        let requests = one.requests.max(0);
        let fresh = match known {
            // One that fell began anew, so all of it is new.
            Some(counter) => {
                let was = std::mem::replace(&mut counter.requests, requests);
                if requests >= was { requests - was } else { requests }
            }
            None if requests == 0 => 0,
            None if is_room => {
                usage.counters.push(UsageCounter { gateway: one.source.clone(), requests });
                requests
            }
            // It could not be remembered that it was added.
            None => continue,
        };
        add(&mut usage, one, fresh);
    }
    if all {
        let heard: BTreeSet<&str> = counted.iter().map(|one| one.source.as_str()).collect();
        usage.counters.retain(|counter| heard.contains(counter.gateway.as_str()));
    }
    let today = day(now);
    let first = |days: i64| today.saturating_sub((days - 1).days()).to_string();
    let (month, week) = (first(DAYS), first(WEEK));
    usage.days.retain(|day| day.date >= month);
    usage.days.sort_by(|a, b| b.date.cmp(&a.date));
    // A gateway whose clock is ahead may speak of days that are to come.
    usage.days.truncate(usize::try_from(DAYS).unwrap_or_default() + 1);
    let of_week = usage.days.iter().filter(|day| day.date >= week);
    usage.requests_in_7_days = of_week.fold(0, |sum, day| sum.saturating_add(day.requests));
    usage.users_in_30_days = users(usage.days.iter().fold(0, |bits, day| bits | day.users));
    usage
}

/// Adds the last `fresh` requests of a gateway: those are of its last days.
fn add(usage: &mut UsageStatus, one: &Counted, mut fresh: i64) {
    if fresh > 0 {
        let last = one.last_request.map(|at| Time(whole(at, WRITE_SECONDS)));
        usage.last_request = usage.last_request.take().max(last);
    }
    let mut days = one.days.clone();
    days.sort_by_key(|(date, ..)| std::cmp::Reverse(*date));
    for (date, requests, users) in days {
        let more = fresh.min(requests.max(0));
        if more == 0 {
            continue;
        }
        fresh -= more;
        let (date, users) = (date.to_string(), users & SKETCH);
        match usage.days.iter_mut().find(|day| day.date == date) {
            Some(day) => {
                day.requests = day.requests.saturating_add(more);
                day.users |= users;
            }
            None => usage.days.push(UsageDay { date, requests: more, users }),
        }
    }
}

/// A moment, in whole multiples of so many seconds.
fn whole(at: Timestamp, seconds: i64) -> Timestamp {
    Timestamp::from_second(at.as_second() - at.as_second().rem_euclid(seconds)).unwrap_or(at)
}

/// Whether new figures are worth a write. `waited` is the time since the last one in seconds, where
/// it is known. The first use is told at once; the rest waits for its hour, and without any use
/// nothing but a day that is over is ever written.
#[must_use]
pub fn is_due(before: &UsageStatus, after: &UsageStatus, waited: Option<i64>) -> bool {
    let told = |usage: &UsageStatus| UsageStatus { counters: Vec::new(), ..usage.clone() };
    // Which gateways there are is no news by itself.
    if told(before) == told(after) {
        return false;
    }
    before.last_request.is_none() || waited.is_none_or(|waited| waited >= WRITE_SECONDS)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn date(text: &str) -> Date {
        text.parse().unwrap()
    }

    fn counted(source: &str, requests: i64, days: &[(&str, i64, i64)]) -> Counted {
        Counted {
            source: source.into(),
            last_request: (requests > 0).then(|| at("2026-06-10T10:20:30Z")),
            requests,
            days: days.iter().map(|(day, requests, users)| (date(day), *requests, *users)).collect(),
        }
    }

    const NOW: &str = "2026-06-10T10:30:00Z";

    #[test]
    fn each_request_counts_once_whoever_begins_anew() {
        let new = begin(at(NOW));
        let first = merge(&new, &[counted("a@1", 5, &[("2026-06-10", 5, 1)])], true, at(NOW));
        assert_eq!((first.requests_in_7_days, first.users_in_30_days), (5, 1));
        assert_eq!(first.last_request, Some(Time(at("2026-06-10T10:00:00Z"))), "to the hour");
        let again = merge(&first, &[counted("a@1", 5, &[("2026-06-10", 5, 1)])], true, at(NOW));
        assert_eq!(again, first, "the same counters add nothing, also to a controller that begins anew");
        let two = [counted("a@1", 7, &[("2026-06-10", 7, 1)]), counted("b@1", 3, &[("2026-06-10", 3, 2)])];
        let more = merge(&again, &two, true, at(NOW));
        assert_eq!((more.requests_in_7_days, more.users_in_30_days), (10, 2));
        // One gateway was replaced, the other is silent.
        let next = merge(&more, &[counted("a@2", 2, &[("2026-06-10", 2, 4)])], false, at(NOW));
        assert_eq!((next.requests_in_7_days, next.counters.len()), (12, 3));
        let back = merge(&next, &two, false, at(NOW));
        assert_eq!(back.requests_in_7_days, 12, "the silent ones had counted nothing");
        let fell = merge(&next, &[counted("a@2", 1, &[("2026-06-10", 1, 4)])], true, at(NOW));
        assert_eq!((fell.requests_in_7_days, fell.counters.len()), (13, 1));
    }

    #[test]
    fn requests_are_of_the_days_that_they_came_on() {
        let new = begin(at(NOW));
        let days = [("2026-06-01", 10, 1), ("2026-06-09", 20, 2), ("2026-06-10", 5, 4)];
        let all = merge(&new, &[counted("a@1", 35, &days)], true, at(NOW));
        assert_eq!((all.requests_in_7_days, all.users_in_30_days), (25, 3));
        assert_eq!(all.days[0].date, "2026-06-10");
        let seen = UsageStatus { counters: vec![UsageCounter { gateway: "a@1".into(), requests: 28 }], ..new };
        let late = merge(&seen, &[counted("a@1", 35, &days)], true, at(NOW));
        let told: Vec<(&str, i64)> = late.days.iter().map(|d| (d.date.as_str(), d.requests)).collect();
        assert_eq!(told, [("2026-06-10", 5), ("2026-06-09", 2)], "the last seven");
    }

    #[test]
    fn days_grow_old_by_themselves() {
        let used = merge(&begin(at(NOW)), &[counted("a@1", 5, &[("2026-06-10", 5, 1)])], true, at(NOW));
        let week = merge(&used, &[], true, at("2026-06-16T23:59:59Z"));
        assert_eq!((week.requests_in_7_days, week.users_in_30_days), (5, 1));
        let after = merge(&week, &[], true, at("2026-06-17T00:00:00Z"));
        assert_eq!((after.requests_in_7_days, after.users_in_30_days), (0, 1));
        let month = merge(&after, &[], true, at("2026-07-10T00:00:00Z"));
        assert_eq!((month.users_in_30_days, month.days.len()), (0, 0));
        assert_eq!(month.last_request, used.last_request, "that stays");
        assert!(
            !is_due(&month, &merge(&month, &[], true, at("2026-09-01T00:00:00Z")), None),
            "nothing more is written"
        );
    }

    #[test]
    fn writes_are_rare() {
        let none = begin(at(NOW));
        let one = merge(&none, &[counted("a@1", 1, &[("2026-06-10", 1, 1)])], true, at(NOW));
        let two = merge(&one, &[counted("a@1", 2, &[("2026-06-10", 2, 1)])], true, at(NOW));
        let replaced = merge(&two, &[counted("b@1", 0, &[])], true, at(NOW));
        assert!(is_due(&none, &one, Some(0)), "the first use is told at once");
        assert!(!is_due(&one, &two, Some(WRITE_SECONDS - 1)));
        assert!(is_due(&one, &two, Some(WRITE_SECONDS)));
        assert!(is_due(&one, &two, None), "a controller that begins anew does not know when");
        assert!(!is_due(&two, &two, None));
        assert_ne!(two, replaced);
        assert!(!is_due(&two, &replaced, None), "another gateway is no news");
    }

    #[test]
    fn few_users_are_told_apart_and_many_are_many() {
        let server = ServerKey::new("n", "a");
        let of = |n: usize| users((0..n).fold(0, |bits, i| bits | user_bit(&server, &format!("user-{i}"), None)));
        assert_eq!((of(0), of(1), of(2)), (0, 1, 2));
        assert!((8..=12).contains(&of(10)), "{}", of(10));
        assert!((35..=65).contains(&of(50)), "{}", of(50));
        assert_eq!(users(-1), 205);
        let anonymous = |text: &str| user_bit(&server, "", Some(text.parse().unwrap()));
        assert_eq!(anonymous("10.0.0.1"), anonymous("::ffff:10.0.0.1"));
        assert_eq!(user_bit(&server, "dana", None), user_bit(&server, "dana", Some("10.0.0.1".parse().unwrap())));
    }

    #[test]
    fn gateways_are_not_remembered_without_end() {
        let many: Vec<Counted> = (0..200).map(|i| counted(&format!("g{i}@1"), 1, &[("2026-06-10", 1, 1)])).collect();
        let usage = merge(&begin(at(NOW)), &many, true, at(NOW));
        assert_eq!((usage.counters.len(), usage.requests_in_7_days), (GATEWAYS, 64));
        assert_eq!(merge(&usage, &many, true, at(NOW)), usage, "nothing is counted twice");
    }

    proptest! {
        #[test]
        fn whatever_gateways_say_figures_are_sound(
            rounds in prop::collection::vec(prop::collection::vec((0_u8..4, -5_i64..100, 0_i8..60, any::<i64>()), 0..4), 0..8)
        ) {
            let mut usage = begin(at(NOW));
            for (hour, round) in rounds.iter().enumerate() {
                let now = at(NOW) + jiff::SignedDuration::from_hours(i64::try_from(hour).unwrap() * 7);
                let seen: Vec<Counted> = round.iter().map(|(gateway, requests, ago, users)| Counted {
                    source: format!("g{gateway}"),
                    last_request: Some(now),
                    requests: *requests,
                    days: vec![(day(now).saturating_sub(i64::from(*ago).days()), *requests, *users)],
                }).collect();
                usage = merge(&usage, &seen, hour % 2 == 0, now);
                prop_assert!(usage.requests_in_7_days >= 0);
                prop_assert!((0..=205).contains(&usage.users_in_30_days));
                prop_assert!(usage.days.len() <= 31 && usage.days.iter().all(|d| d.requests > 0));
                prop_assert!(usage.counters.len() <= 4);
            }
        }
    }
}
