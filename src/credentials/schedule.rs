//! When a value is fetched again. Pure: now and chance are arguments.

use std::time::Duration;

use jiff::Timestamp;

/// First wait after a failure; it doubles up to [`LONGEST`].
const FIRST: Duration = Duration::from_secs(1);
/// Longest wait after a failure. A token may be near its end, so it is not long.
const LONGEST: Duration = Duration::from_secs(60);
/// Shortest wait after a success, whatever lifetime the other side names.
const SHORTEST: Duration = Duration::from_millis(500);
/// Longest lifetime that is believed: ten years.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// When a value that lasts for some seconds ends.
#[must_use]
pub fn end(now: Timestamp, seconds: u64) -> Timestamp {
    now + Duration::from_secs(seconds).min(FOREVER)
}

/// When a value that was fetched is fetched again: after three quarters of its lifetime, so that a
/// quarter is left for failures, and after `interval` at the latest.
#[must_use]
pub fn after_success(fetched: Timestamp, expires: Option<Timestamp>, interval: Option<Duration>) -> Option<Timestamp> {
    let by_end = expires.map(|end| {
        let lifetime = Duration::try_from(end.duration_since(fetched)).unwrap_or_default();
        lifetime * 3 / 4
    });
    let wait = by_end.into_iter().chain(interval).min()?;
    Some(fetched + wait.clamp(SHORTEST, FOREVER))
}

/// When a fetch that failed, as the last of `failures` in a row, is tried again. `chance`, of 0 to
/// 1, takes up to a quarter off the wait, so that servers that failed together do not come back
/// together.
#[must_use]
pub fn after_failure(now: Timestamp, failures: u32, chance: f64) -> Timestamp {
    let wait = FIRST.saturating_mul(2_u32.saturating_pow(failures.clamp(1, 16) - 1)).min(LONGEST);
    now + wait.mul_f64(1.0 - chance.clamp(0.0, 1.0) / 4.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_quarter_of_the_lifetime_is_left_for_failures() {
        assert_eq!(after_success(at(0), Some(at(3600)), None), Some(at(2700)));
        assert_eq!(after_success(at(0), Some(at(3600)), Some(Duration::from_secs(300))), Some(at(300)));
        assert_eq!(after_success(at(0), Some(at(40)), Some(Duration::from_secs(300))), Some(at(30)));
        assert_eq!(after_success(at(0), None, None), None);
        let soon = after_success(at(10), Some(at(5)), None).unwrap();
        assert!(soon > at(10), "what has ended already is not asked for without a pause");
        assert!(after_success(at(0), Some(end(at(0), u64::MAX)), None).is_some(), "no sum overflows");
    }

    #[test]
    fn failures_back_off_to_a_minute() {
        let wait = |failures| after_failure(at(0), failures, 0.0);
        assert_eq!([wait(1), wait(2), wait(3), wait(7), wait(u32::MAX)], [at(1), at(2), at(4), at(60), at(60)]);
        assert_eq!(after_failure(at(0), 7, 1.0), at(45));
    }
}
