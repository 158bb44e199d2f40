//! How often somebody may ask: token buckets, as the generic cell rate algorithm (ITU-T I.371)
//! keeps them, in one number each.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use super::{
    Identity,
    file::{Per, RateLimitEntry},
    rules::Scope,
};
use crate::names::ServerKey;

/// Most buckets that are not full. Beyond, whoever has none yet must wait.
const MOST: usize = 100_000;

/// All limits.
#[derive(Debug, Default)]
pub struct Limits(Vec<Limit>);

#[derive(Debug)]
struct Limit {
    scope: Scope,
    per: Per,
    /// Time in which one request becomes free again.
    interval: Duration,
    /// How far ahead of a steady pace somebody may be.
    tolerance: Duration,
}

/// Whose bucket.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Whose {
    User(Arc<str>),
    Address(IpAddr),
    Everyone,
}

/// What was asked, by limit and by whom. A bucket is when it will be full; one that is full is not
/// kept.
#[derive(Debug, Default)]
pub struct Buckets(Mutex<HashMap<(usize, Whose), Instant>>);

impl Limits {
    /// The limits of these entries, or what is wrong with one of them.
    pub fn new(entries: &[RateLimitEntry]) -> Result<Self, String> {
        let parse = |(index, entry): (usize, &RateLimitEntry)| {
            let bad = |why: String| format!("rateLimits[{index}]: {why}");
            let period = entry.period.map_or(Duration::from_secs(60), crate::api::quantity::Duration::to_std);
            let burst = entry.burst.unwrap_or(entry.requests);
            if entry.requests == 0 || burst == 0 || period.is_zero() {
                return Err(bad("`requests`, `burst` and `period` must be more than nothing".into()));
            }
            let interval = (period / entry.requests).max(Duration::from_nanos(1));
            let tolerance = interval.checked_mul(burst - 1).ok_or_else(|| bad("the period is too long".into()))?;
            Ok(Limit { scope: Scope::new(entry).map_err(bad)?, per: entry.per, interval, tolerance })
        };
        Ok(Self(entries.iter().enumerate().map(parse).collect::<Result<_, _>>()?))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Counts a message; where a limit is reached nothing is counted, and the answer is how long to
    /// wait. `tool` is the tool that it calls.
    pub fn take(
        &self,
        buckets: &Buckets,
        who: &Identity,
        address: Option<IpAddr>,
        server: &ServerKey,
        tool: Option<&str>,
        now: Instant,
    ) -> Result<(), Duration> {
        let limits = self.0.iter().enumerate().filter(|(_, limit)| limit.scope.has(who, server, tool));
        let mut limits = limits.peekable();
        if limits.peek().is_none() {
            return Ok(());
        }
        let mut buckets = buckets.0.lock().expect("nobody panics while holding the buckets");
        let mut counted = Vec::new();
        for (index, limit) in limits {
            let key = (index, limit.whose(who, address));
            let full = buckets.get(&key).copied().map_or(now, |full| full.max(now));
            let ahead = full.duration_since(now);
            if let Some(wait) = ahead.checked_sub(limit.tolerance).filter(|wait| !wait.is_zero()) {
                return Err(wait);
            }
            counted.push((key, full + limit.interval));
        }
        for (key, full) in counted {
            if buckets.len() >= MOST && !buckets.contains_key(&key) {
                buckets.retain(|_, full| *full > now);
                if buckets.len() >= MOST {
                    return Err(Duration::from_secs(1));
                }
            }
            buckets.insert(key, full);
        }
        Ok(())
    }
}

impl Limit {
    fn whose(&self, who: &Identity, address: Option<IpAddr>) -> Whose {
        match (self.per, address) {
            (Per::User, _) if !who.user.is_empty() => Whose::User(Arc::clone(&who.user)),
            (Per::User, Some(address)) => Whose::Address(household(address)),
            (Per::Everyone, _) | (Per::User, None) => Whose::Everyone,
        }
    }
}

/// The part of an address that one customer of a network has: of IPv6 the first 64 bits.
fn household(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn limits(yaml: &str) -> Result<Limits, String> {
        Limits::new(&serde_yaml_ng::from_str::<Vec<RateLimitEntry>>(yaml).unwrap())
    }

    fn who(user: &str) -> Identity {
        Identity { user: user.into(), groups: Arc::new([]), operator: false }
    }

    fn server() -> ServerKey {
        ServerKey::new("default", "a")
    }

    #[test]
    fn a_burst_and_then_a_steady_pace() {
        let limits = limits("[{requests: 10, period: 10s, burst: 3}]").unwrap();
        let (buckets, start) = (Buckets::default(), Instant::now());
        let take = |user: &str, at: Duration| limits.take(&buckets, &who(user), None, &server(), None, start + at);
        for _ in 0..3 {
            assert_eq!(take("dana", Duration::ZERO), Ok(()));
        }
        assert_eq!(take("dana", Duration::ZERO), Err(SECOND));
        assert_eq!(take("eve", Duration::ZERO), Ok(()), "each user has a bucket");
        assert_eq!(take("dana", SECOND / 2), Err(SECOND / 2), "what was refused did not count");
        assert_eq!(take("dana", SECOND), Ok(()));
        assert_eq!(take("dana", SECOND), Err(SECOND));
        for _ in 0..3 {
            assert_eq!(take("dana", 60 * SECOND), Ok(()), "a bucket does not grow beyond its burst");
        }
        assert_eq!(take("dana", 60 * SECOND), Err(SECOND));
    }

    #[test]
    fn a_limit_is_for_some() {
        let limits = limits(
            "[{tools: [search], requests: 1}, {users: [dana], servers: [default/a], requests: 2}, {tools: [shared], per: Everyone, requests: 1}]",
        )
        .unwrap();
        let (buckets, now) = (Buckets::default(), Instant::now());
        let take =
            |user: &str, tool: Option<&str>| limits.take(&buckets, &who(user), None, &server(), tool, now).is_ok();
        assert!(take("eve", Some("search")) && !take("eve", Some("search")));
        assert!((0..9).all(|_| take("eve", Some("other")) && take("eve", None)));
        assert!(take("dana", None) && take("dana", Some("other")) && !take("dana", None));
        assert!(take("eve", Some("shared")) && !take("adam", Some("shared")), "one bucket for everybody");
    }

    #[test]
    fn who_has_no_name_has_an_address() {
        let limits = limits("[{requests: 1}]").unwrap();
        let (buckets, now) = (Buckets::default(), Instant::now());
        let take = |address: &str| {
            limits.take(&buckets, &who(""), Some(address.parse().unwrap()), &server(), None, now).is_ok()
        };
        assert!(take("10.0.0.1") && !take("10.0.0.1") && take("10.0.0.2") && !take("::ffff:10.0.0.1"));
        assert!(take("2001:db8::1") && !take("2001:db8::2:1") && take("2001:db8:0:1::1"));
    }

    #[test]
    fn there_are_never_too_many_buckets() {
        let limits = limits("[{requests: 1, period: 1s}]").unwrap();
        let (buckets, now) = (Buckets::default(), Instant::now());
        let take = |user: usize, now| limits.take(&buckets, &who(&user.to_string()), None, &server(), None, now);
        for user in 0..MOST {
            assert_eq!(take(user, now), Ok(()));
        }
        assert_eq!(take(MOST, now), Err(SECOND));
        assert_eq!(take(MOST, now + SECOND), Ok(()), "buckets that are full again are not kept");
        assert_eq!(buckets.0.lock().unwrap().len(), 1);
    }

    #[test]
    fn limits_of_nothing_are_refused() {
        for yaml in ["[{requests: 0}]", "[{requests: 1, burst: 0}]", "[{requests: 1, period: 0s}]"] {
            assert!(limits(yaml).unwrap_err().starts_with("rateLimits[0]"), "{yaml}");
        }
    }
}
