//! How much servers are used: requests and a sketch of users, by server and day, for as long as the
//! gateway lives. Whoever asks for it keeps it longer. Counting takes no lock but for the first
//! request of a day.

use std::{
    net::IpAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering},
    },
};

use arc_swap::ArcSwap;
use jiff::{Timestamp, civil::Date};

use super::by_server::ByServer;
use crate::{
    api::gateway_report::{DayUsage, ServerUsage, UsageReport},
    lifecycle::usage::{day, user_bit},
    names::ServerKey,
};

/// Most days that are kept of a server.
const MOST_DAYS: usize = 31;

/// Whether who asks for this uses a server. Handshakes, lists and pings do not: readiness checks,
/// toolboxes and clients that are only configured send them all day.
pub fn is_use(method: &str) -> bool {
    matches!(method, "tools/call" | "prompts/get" | "resources/read" | "resources/subscribe" | "completion/complete")
}

/// How much each server is used.
#[derive(Debug, Default)]
pub struct Usage {
    by_server: ByServer<Counters>,
    /// Held while a day is added.
    adding: Mutex<()>,
}

#[derive(Debug, Default)]
struct Counters {
    /// When it was used last, in seconds of Unix time.
    last: AtomicI64,
    requests: AtomicI64,
    /// The last one is the one under way.
    days: ArcSwap<Vec<Arc<Day>>>,
}

#[derive(Debug)]
struct Day {
    date: Date,
    requests: AtomicI64,
    users: AtomicI64,
}

impl Usage {
    /// Counts a request of a user, who is known by name, or else by address.
    pub fn record(&self, server: &ServerKey, user: &str, address: Option<IpAddr>, now: Timestamp) {
        // Those of a toolbox are counted where they go.
        if server.as_toolbox().is_some() {
            return;
        }
        let counters = self.by_server.get_or_add(server, Counters::default);
        let day = self.day(&counters, day(now));
        let bit = user_bit(server, user, address);
        if day.users.load(Ordering::Relaxed) & bit == 0 {
            day.users.fetch_or(bit, Ordering::Relaxed);
        }
        counters.last.fetch_max(now.as_second(), Ordering::Relaxed);
        // The total first: a report never has more in its days.
        counters.requests.fetch_add(1, Ordering::Release);
        day.requests.fetch_add(1, Ordering::Release);
    }

    fn day(&self, counters: &Counters, date: Date) -> Arc<Day> {
        let find = |days: &[Arc<Day>]| days.iter().rev().find(|day| day.date == date).cloned();
        if let Some(day) = find(&counters.days.load()) {
            return day;
        }
        let _adding = self.adding.lock().expect("nobody panics while adding");
        let mut days = Vec::clone(&counters.days.load());
        if let Some(day) = find(&days) {
            return day;
        }
        if days.len() >= MOST_DAYS {
            days.remove(0);
        }
        let day = Arc::new(Day { date, requests: AtomicI64::new(0), users: AtomicI64::new(0) });
        days.push(Arc::clone(&day));
        counters.days.store(Arc::new(days));
        day
    }

    /// Forgets servers that are no more.
    pub fn retain(&self, is_there: impl Fn(&ServerKey) -> bool) {
        self.by_server.retain(is_there);
    }

    /// What was counted.
    pub fn report(&self, gateway: &str, started_at: Timestamp) -> UsageReport {
        let of_day = |day: &Arc<Day>| DayUsage {
            date: day.date,
            requests: day.requests.load(Ordering::Acquire),
            users: day.users.load(Ordering::Relaxed),
        };
        let of_server = |(server, counters): (&ServerKey, &Arc<Counters>)| {
            // The days first: the total has at least what they have.
            let days = counters.days.load().iter().map(of_day).filter(|day| day.requests > 0).collect();
            ServerUsage {
                namespace: server.namespace.clone(),
                name: server.name.clone(),
                days,
                requests: counters.requests.load(Ordering::Acquire),
                last_request: Timestamp::from_second(counters.last.load(Ordering::Relaxed)).unwrap_or_default(),
            }
        };
        let servers = self.by_server.all().iter().map(of_server).collect();
        UsageReport { gateway: gateway.to_owned(), started_at, servers }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> ServerKey {
        ServerKey::new("n", "a")
    }

    fn report(usage: &Usage) -> Vec<ServerUsage> {
        usage.report("g", Timestamp::UNIX_EPOCH).servers
    }

    fn days(n: i64) -> Timestamp {
        Timestamp::from_second(n * 86_400 + 60).unwrap()
    }

    #[test]
    fn requests_and_users_are_counted_by_day() {
        let usage = Usage::default();
        for (user, at) in [("dana", 0), ("dana", 0), ("kim", 0), ("dana", 1)] {
            usage.record(&key(), user, None, days(at));
        }
        let found = report(&usage);
        assert_eq!((found.len(), found[0].requests, found[0].last_request), (1, 4, days(1)));
        let told: Vec<(String, i64, u32)> =
            found[0].days.iter().map(|d| (d.date.to_string(), d.requests, d.users.count_ones())).collect();
        assert_eq!(told, [("1970-01-01".into(), 3, 2), ("1970-01-02".into(), 1, 1)]);
        assert_eq!(found[0].days[1].users, user_bit(&key(), "dana", None));
    }

    #[test]
    fn a_clock_that_goes_back_makes_no_second_day() {
        let usage = Usage::default();
        for at in [1, 0, 1] {
            usage.record(&key(), "dana", None, days(at));
        }
        assert_eq!((report(&usage)[0].days.len(), report(&usage)[0].last_request), (2, days(1)));
    }

    #[test]
    fn what_is_kept_is_bounded_and_goes_with_its_server() {
        let usage = Usage::default();
        for at in 0..100 {
            usage.record(&key(), "dana", None, days(at));
        }
        let found = report(&usage);
        assert_eq!((found[0].days.len(), found[0].requests), (MOST_DAYS, 100));
        assert_eq!(found[0].days[0].date, day(days(69)), "the oldest go");
        usage.record(&ServerKey::toolbox("n", "t"), "dana", None, days(0));
        assert_eq!(report(&usage).len(), 1, "a toolbox is no server");
        usage.retain(|server| server.name != "a");
        assert!(report(&usage).is_empty());
    }

    #[test]
    fn who_only_looks_does_not_use() {
        for method in ["tools/call", "resources/read", "prompts/get"] {
            assert!(is_use(method));
        }
        for method in ["initialize", "tools/list", "ping", "server/discover", "subscriptions/listen", "other"] {
            assert!(!is_use(method));
        }
    }
}
